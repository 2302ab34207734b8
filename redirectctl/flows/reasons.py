"""Why a claim is refused, in words of the event log."""

from __future__ import annotations

from typing import Final

from redirectctl.wire.message import Status

REASONS: Final = {
    Status.PENDING: "approval-pending-there",
    Status.REJECTED: "rejected-there",
    Status.NO_SOCKET: "no-such-connection-there",
    Status.NOT_YOURS: "not-proven",
    Status.PORT: "port-not-accepted",
    Status.LIMIT: "too-many-connections",
    Status.CONFLICT: "claimed-by-another",
    Status.FAILED: "kernel-refused-there",
    Status.NUMBERS: "sequence-numbers-changed",
}

"""What the carrier has to say, at a rate that a flood of datagrams does not change."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, TypeAlias

from redirectctl.wire.addr import FourTuple, SockAddr, parse_ip
from redirectctl.wire.tunnel import Refused

_log = logging.getLogger(__name__)

REPORT_SECONDS: Final = 1.0

Source: TypeAlias = tuple[str, int]  # as the socket module has it; made an address only for a report


class Sight(StrEnum):
    """What a Report may be about, besides refused datagrams."""

    RETRANSMISSION = "retransmission"  # a socket sends again through the tunnel
    UNSENT = "unsent"  # the kernel did not take a datagram
    DEVICE_GONE = "device-gone"  # redirect0 was deleted: nothing is carried any more


@dataclass(frozen=True, slots=True)
class Report:
    """Something that happened; at most one a second for each ``what`` and socket."""

    what: Refused | Sight
    socket: FourTuple | None  # None: no flow of ours
    source: SockAddr | None  # of the last refused datagram
    count: int  # since the last report of this kind


class Reporter:
    """Passes reports on, each kind at once and then once a second with what came meanwhile."""

    def __init__(self, on_report: Callable[[Report], None]) -> None:
        self._on_report = on_report
        self._recent: dict[tuple[Refused | Sight, FourTuple | None], tuple[float, int, Source | None]] = {}

    @property
    def pending(self) -> bool:
        """Whether flush is to be called."""
        return bool(self._recent)

    def note(self, what: Refused | Sight, socket: FourTuple | None, source: Source | None, count: int = 1) -> None:
        """It happened ``count`` times."""
        key = what, socket
        recent = self._recent.get(key)
        if recent is None:
            self._recent[key] = time.monotonic() + REPORT_SECONDS, 0, None
            self._pass_on(Report(what, socket, _address(source), count))
        else:
            until, before, _ = recent
            self._recent[key] = until, before + count, source

    def flush(self, now: float) -> None:
        """Report what has waited for a second."""
        if not self._recent:
            return
        for key, (until, count, source) in list(self._recent.items()):
            if now >= until:
                del self._recent[key]
                if count:
                    self._recent[key] = now + REPORT_SECONDS, 0, None
                    self._pass_on(Report(*key, _address(source), count))

    def _pass_on(self, report: Report) -> None:
        try:
            self._on_report(report)
        except Exception:
            _log.exception("report")


def _address(source: Source | None) -> SockAddr | None:
    return SockAddr(parse_ip(source[0].partition("%")[0]), source[1]) if source else None

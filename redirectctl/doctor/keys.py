"""What both hosts think of each other's keys: two persons have to say yes."""

from __future__ import annotations

from collections.abc import Collection

from redirectctl.api.schema import Check
from redirectctl.doctor.outcome import fail, ok, several, skip, warn
from redirectctl.proto.fingerprint import fingerprint
from redirectctl.store.records import PeerRecord, PeerState
from redirectctl.wire.message import Trust

NAME = "peer.trust"


def check(own: bytes, record: PeerRecord, there: Trust | None, everybody: Collection[PeerRecord]) -> Check:
    """``own``: this host's public key; ``there``: what the peer has said, None if it has not."""
    key = record.fingerprint
    if others := _other_keys(record, everybody):
        return _changed(record, others)
    approve = f"`redirectctl approve {fingerprint(own)}` (this host's key)"
    said, asked = (
        {
            Trust.PENDING: (", we wait for approval there", f"on that host: {approve}"),
            Trust.REJECTED: (
                ", but our key was rejected there",
                f"ask who runs that host; if it was a mistake, there: {approve}",
            ),
        }.get(there, ("", ""))
        if there is not None
        else ("", "")
    )
    match record.state:
        case PeerState.PENDING:
            hint = f"compare it with `redirectctl identity` on that host, then `redirectctl approve {key}`"
            return warn(NAME, f"{key} waits for approval here{said}", f"{hint}; {asked}" if asked else hint)
        case PeerState.REJECTED:
            return fail(NAME, f"{key} was rejected here", f"`redirectctl approve {key}`, if that was a mistake")
        case PeerState.CHANGED:
            hint = f"`redirectctl forget {key}`; `redirectctl doctor HOST` or the next connection asks for approval"
            return fail(NAME, f"{key} answered where another key was known, which is forgotten now", hint)
    match there:
        case Trust.APPROVED:
            return ok(NAME, f"{key} approved here, and we there")
        case Trust.REJECTED:
            return fail(NAME, f"{key} approved here{said}", asked)
        case Trust.PENDING:
            return warn(NAME, f"{key} approved here{said}", asked)
    why = "whether that host has approved this one is not known, because it does not answer"
    return skip(NAME, f"{key} approved here; {why}")


def _other_keys(record: PeerRecord, everybody: Collection[PeerRecord]) -> list[PeerRecord]:
    """Of the same addresses: the known keys if this is a changed one, else the changed ones."""
    own = {a.address for a in record.addresses if a.identity}
    changed = record.state is PeerState.CHANGED
    others = [p for p in everybody if (p.state is PeerState.CHANGED) is not changed]
    return [p for p in others if any(a.identity and a.address in own for a in p.addresses)]


def _changed(record: PeerRecord, others: list[PeerRecord]) -> Check:
    """Two keys have answered at one address, and a person has not decided yet which is right."""
    listed = several([p.fingerprint for p in others], ", ")
    changed = record.state is PeerState.CHANGED
    known, seen = (listed, record.fingerprint) if changed else (record.fingerprint, listed)
    old = others[0].fingerprint if changed else record.fingerprint
    hint = (
        f"compare with `redirectctl identity` on that host. If {seen} is right, `redirectctl forget {old}`; "
        "`redirectctl doctor HOST` or the next connection asks for approval then. "
        "If it is not, somebody answers in that host's place"
    )
    return fail(NAME, f"{known} is known for that host, but {seen} has answered there", hint)

"""What a command's owner is told about its connections: whether they are protected, lost and regained paths, and peers
that wait for a decision.

Anybody may watch the command that was opted in together with the process that asks, so this gives no more than that
command's owner may know: of its own connections, and the key of the hosts that they go to.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from redirectctl.api import schema
from redirectctl.daemon.runtime import Runtime
from redirectctl.flows.connection import Connection
from redirectctl.flows.state import State
from redirectctl.proto.fingerprint import fingerprint, picture
from redirectctl.store.records import PeerRecord, PeerState
from redirectctl.wire.addr import IPAddress

MAX_WATCHED: Final = 64  # connections in one reply; what has no path now comes first, then what is not protected
MAX_QUESTIONS: Final = 8
UNDECIDED: Final = (State.SHORT, State.NEGOTIATING, State.CLOSED)
WAITS_THERE: Final = "approval-pending-there"


def watched(runtime: Runtime, pid: int, uid: int, may_decide: bool, process: int = 0) -> schema.WatchReply:
    """For a process and its user.  may_decide: whether that user may approve peers.  process: as of WatchRequest."""
    table, finder, peers = runtime.engine.table, runtime.finder, runtime.peers.records
    own = [c for s in finder.sockets_with(pid, uid) if (c := table.at(s)) is not None]
    theirs = connections_of(table, process, uid) if process else []
    own += [c for c in theirs if c not in own]
    told = [each for c in own if (each := _watched(c, runtime.now, peers)) is not None]
    told.sort(key=lambda each: (each.lost_for is None, each.state is schema.ConnectionState.PROTECTED, each.id))
    waits = any(each.reason == WAITS_THERE for each in told)
    return schema.WatchReply(
        connections=told[:MAX_WATCHED],
        questions=_questions(own, peers, may_decide)[:MAX_QUESTIONS],
        identity=fingerprint(runtime.engine.endpoint.static.public) if waits else None,
        process=bool(theirs) or (process > 0 and finder.opted_in(process, uid)),
    )


def connections_of(table: Iterable[Connection], process: int, uid: int) -> list[Connection]:
    """What a process has, of which a user may be told: the user's own connections only."""
    return [c for c in table if c.pid == process and uid in (0, c.uid) and c.state is not State.CLOSED]


def _watched(c: Connection, now: float, peers: dict[bytes, PeerRecord]) -> schema.Watched | None:
    lasted = last_outage(c)
    lost_for = round(max(0.0, now - c.lost_since), 3) if c.lost_since is not None else None
    if lasted is None and lost_for is None and c.state in UNDECIDED:
        return None
    peer = peers.get(c.peer) if c.peer is not None else None
    return schema.Watched(
        id=c.cid.hex(),
        remote=str(c.socket.remote),
        state=schema.ConnectionState(c.state.value),
        reason=c.reason,
        peer=peer.fingerprint if peer is not None else None,
        name=peer.name if peer is not None else None,
        lost_for=lost_for,
        lasted=lasted,
    )


def last_outage(c: Connection) -> float | None:
    """Seconds that the last time without a path took; None without one, and while there is no path."""
    lasted = began = None
    for at, state in c.history:
        if state is State.SUSPENDED:
            began, lasted = at, None
        elif began is not None:
            lasted = round(at - began, 3) if state is State.PROTECTED else None
            began = None
    return lasted


def _questions(own: Iterable[Connection], peers: dict[bytes, PeerRecord], may_decide: bool) -> list[schema.Question]:
    asked: dict[bytes, schema.Question] = {}
    for c in own:
        if c.state is State.PENDING and c.peer in peers and peers[c.peer].state is PeerState.PENDING:
            asked[c.peer] = _question(peers[c.peer], [], may_decide)
        elif c.state is State.REFUSED and c.reason == "key-changed":
            there = [p for p in peers.values() if c.socket.remote.host in _called(p)]
            known = [p.fingerprint for p in there if p.state is not PeerState.CHANGED]
            for peer in there:
                if peer.state is PeerState.CHANGED and known:
                    asked[peer.public] = _question(peer, known, may_decide)
    return list(asked.values())


def _question(peer: PeerRecord, known: list[str], may_decide: bool) -> schema.Question:
    return schema.Question(
        fingerprint=peer.fingerprint,
        picture=picture(peer.public, "redirectctl"),
        addresses=[str(address) for address in _called(peer) or _addresses(peer)],
        known=known,
        may_decide=may_decide,
        says=peer.says,
    )


def _called(peer: PeerRecord) -> list[IPAddress]:
    """Those at which we called it and its key answered: from others anybody may have called in its place."""
    identity = {a.address for a in peer.addresses if a.identity}
    return [address for address in _addresses(peer) if address in identity]


def _addresses(peer: PeerRecord) -> list[IPAddress]:
    """Latest first."""
    return [a.address for a in sorted(peer.addresses, key=lambda a: a.last_seen, reverse=True)]

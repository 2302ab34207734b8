"""Between the engine's objects and the store's records, and the listings of the Unix socket."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields
from operator import attrgetter

from msgspec import UNSET

from redirectctl.api import schema
from redirectctl.flows.connection import Before, Connection
from redirectctl.flows.state import State
from redirectctl.kernel.sockets.diag import TcpInfo
from redirectctl.proto.fingerprint import fingerprint
from redirectctl.proto.peer import Accepted, Peer, PeerState
from redirectctl.store import records
from redirectctl.store.records import ConnectionRecord, PeerAddress, PeerRecord
from redirectctl.wire.addr import SockAddr


def peer_record(peer: Peer, before: PeerRecord | None, now: float, ran: float, *, relayed: bool = False) -> PeerRecord:
    """What to store of a peer.

    ``now`` in epoch seconds; ``ran``: how long the daemon has run, all its lives together.  ``relayed``: the peer is
    reached at the address of a rendezvous.
    """
    met = peer.last_contact is not None
    known = {a.address: a for a in before.addresses} if before is not None else {}
    here = peer.remote.host if peer.remote is not None and not relayed else None
    wanted = dict.fromkeys([*([here] if here is not None else []), *peer.identity, *known])
    addresses = []
    latest = max((a.last_seen for a in known.values() if a.address != here), default=now)
    for address in wanted:
        old = known.get(address)
        seen = now if old is None else old.last_seen
        if address == here:  # where it is now comes first, also when the clock has been set back
            seen = max(now, latest + 0.001)
        first = old.first_seen if old is not None else now
        addresses.append(PeerAddress(address, first, seen, address in peer.identity))
    return PeerRecord(
        public=peer.key,
        fingerprint=fingerprint(peer.key),
        state=records.PeerState(peer.state.value),
        first_seen=before.first_seen if before is not None else now,
        name=before.name if before is not None else None,
        secret=peer.secret,
        addresses=tuple(addresses),
        last_contact=now if met else before.last_contact if before is not None else None,
        handshake_timestamp=peer.greatest_counter + 1,
        accepted=peer.accepted,
        listed=peer.listed,
        met=ran if met or before is None else before.met,
        told=peer.addresses,
        says=peer.says,
    )


def restored_peer(record: PeerRecord, port: int) -> Peer:
    """A peer of an earlier run."""
    latest = record.addresses[0].address if record.addresses else None
    return Peer(
        record.public,
        PeerState(record.state.value),
        record.secret,
        identity={a.address for a in record.addresses if a.identity},
        greatest_counter=record.handshake_timestamp - 1,
        accepted=Accepted(record.accepted),
        listed=record.listed,
        addresses=record.told,
        says=record.says,
        remote=SockAddr(latest, port) if latest is not None else None,
    )


# What a connection and its record have both: by the connection's name the column's.
_RENAMED = {"peer_tuple": "there", "agreed_in": "born", "blocked": "held"}
_COLUMNS = {f.name: _RENAMED.get(f.name, f.name) for f in fields(Connection) if f.name != "state"}
_STORED = {name: c for name, c in _COLUMNS.items() if c in {f.name for f in fields(ConnectionRecord)}}
_of_connection, _of_record = attrgetter(*_STORED), attrgetter(*_STORED.values())


def connection_records(connections: Iterable[Connection], offset: float) -> list[ConnectionRecord]:
    """What to store of connections; ``offset``: what Store.booted() says."""
    return [
        ConnectionRecord(
            **dict(zip(_STORED.values(), _of_connection(c), strict=True)),
            state=c.state.value,
            opened_at=c.since + offset,
            lost_at=c.lost_since + offset if c.lost_since is not None else None,
            window=c.saved.window if c.saved is not None else None,
            user_timeout=c.saved.user_timeout if c.saved is not None else None,
        )
        for c in connections
        if c.peer is not None
    ]


def restored_connection(record: ConnectionRecord, offset: float) -> Connection:
    """A connection of an earlier run; ``offset``: as it was stored.

    One that was just being taken on counts as protected: the peer may say no.
    """
    state = State(record.state)
    lost = state is State.SUSPENDED
    saved = None
    if record.window is not None and record.user_timeout is not None:
        saved = Before(record.window, record.user_timeout)
    if state not in (State.REFUSED, State.RELEASED) and not lost:
        state = State.PROTECTED
    has = dict(zip(_STORED, _of_record(record), strict=True)) | {
        "reason": None if state is State.PROTECTED else record.reason,
        "peer_tuple": record.there or record.socket.mirrored,
        "blocked": record.held and lost,
    }
    return Connection(
        **has,
        state=state,
        since=record.opened_at - offset,
        announced_epoch=record.remote_epoch,
        strict=record.integrity and record.tunnel,
        lost_since=record.lost_at - offset if lost and record.lost_at is not None else None,
        saved=saved,
    )


def listed_connection(
    c: Connection, now: float, control_port: int, counters: schema.Counters | None = None, *, relayed: bool = False
) -> schema.Connection:
    """For `connections`.  ``relayed``: by a rendezvous."""
    local, remote = c.on_wire(control_port)
    return schema.Connection(
        id=c.cid.hex(),
        state=schema.ConnectionState(c.state.value),
        path=schema.PathName(c.path.value),
        local=str(c.socket.local),
        remote=str(c.socket.remote),
        wire_local=str(local),
        wire_remote=str(remote),
        age=round(max(0.0, now - c.since), 3),
        peer=fingerprint(c.peer) if c.peer is not None else None,
        pid=c.pid,
        command=c.command,
        moves=c.moves,
        integrity=c.integrity and c.movable,
        suspended_for=round(now - c.lost_since, 3) if c.lost_since is not None else None,
        reason=c.reason or ("relayed" if relayed else None),
        counters=counters or UNSET,
    )


def listed_counters(info: TcpInfo) -> schema.Counters:
    """For `connections`, where counters are asked for."""
    return schema.Counters(
        rtt=info.rtt / 1e6,
        sent=info.bytes_acked,
        received=info.bytes_received,
        retransmitted=info.total_retransmits,
    )


def listed_history(c: Connection, offset: float) -> list[schema.Step]:
    """How its state changed; ``offset``: epoch time minus the engine's clock."""
    return [
        schema.Step(time=round(at + offset, 3), state=schema.ConnectionState(state.value)) for at, state in c.history
    ]


def listed_peer(
    record: PeerRecord, connections: int, observed: SockAddr | None, names: list[str], called: str | None = None
) -> schema.Peer:
    """For `peers`.  ``called``: what commands call it; that is its name until a person gives it one."""
    latest = sorted(record.addresses, key=lambda a: a.last_seen, reverse=True)
    return schema.Peer(
        fingerprint=record.fingerprint,
        name=record.name or called,
        state=schema.PeerState(record.state.value),
        addresses=[str(a.address) for a in latest],
        first_seen=record.first_seen,
        last_contact=record.last_contact,
        connections=connections,
        names=names or UNSET,
        observed=str(observed) if observed is not None else UNSET,
        contacted=any(a.identity for a in record.addresses),
        says=record.says if record.says is not None else UNSET,
    )

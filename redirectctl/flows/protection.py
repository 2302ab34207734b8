"""Taking connections on, and letting them go.

    found ─ threshold ─► contact ─► trust on both sides ─► claim ─► both ends prove that it is theirs ─► guarded

Which host asks does not matter (binding.py; claims.py is the other side of it).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from redirectctl.flows import commands, constants
from redirectctl.flows.claims import REASONS
from redirectctl.flows.connection import Connection, change
from redirectctl.flows.devices import confined_to
from redirectctl.flows.state import State
from redirectctl.proto import events
from redirectctl.proto.peer import Accepted, Peer, PeerState
from redirectctl.proto.shares import Shared
from redirectctl.wire import message as messages
from redirectctl.wire.addr import FourTuple, IPAddress, SockAddr
from redirectctl.wire.message import End, Status, Trust

if TYPE_CHECKING:
    from redirectctl.flows.engine import Engine

_TRUST = {PeerState.APPROVED: Trust.APPROVED, PeerState.REJECTED: Trust.REJECTED}

_REFUSALS = {  # why a handshake that was answered came to nothing -> why its connections are refused
    "key-changed": "key-changed",
    "rejected-peer": "peer-rejected",
    "unknown-peer": "first-contact-refused",
}


class Protection:
    """Which connections are protected, and with whom."""

    def __init__(self, engine: Engine) -> None:
        self._e = engine
        # Connections, by the address that is being contacted and who must answer there.
        self._waiting: dict[tuple[IPAddress, bytes | None], set[bytes]] = defaultdict(set)
        self._doubted: dict[bytes, float] = {}  # peers, and when they were last asked what of a move they have
        self._told: dict[bytes, float] = {}  # peers, and when they were last told that they are elsewhere
        self._said: dict[bytes, tuple[IPAddress, ...]] = {}  # peers, and what addresses of ours they know
        self._kept: dict[bytes, float] = {}  # peers, and when what they say of their addresses was stored for that only
        self._unsupported: dict[IPAddress, tuple[float, str]] = {}  # until when to leave an address alone, and why
        self._untold: Shared[bytes, bytes, bytes] = Shared()  # killed connections, and the peer that could not be told

    # -- the life of a connection -------------------------------------------------------------------------------------

    def found(
        self,
        now: float,
        socket: FourTuple,
        age: float,
        pid: int | None,
        command: str | None,
        uid: int | None,
        device: str,
        unfit: str | None,
    ) -> None:
        """An opted-in connection: short-lived until the threshold."""
        known = self._e.table.at(socket)
        if known is not None:
            known.pid, known.command = known.pid or pid, known.command or command
            known.uid = uid if known.uid is None else known.uid
            return
        if len(self._e.table) >= constants.MAX_CONNECTIONS:
            self._e.notice(
                "connection.refused", reason="too-many-connections", local=str(socket.local), remote=str(socket.remote)
            )
            return
        self.clear(socket)
        connection = Connection(self._e.rng(8), socket, socket, now - age, pid=pid, uid=uid, command=command)
        connection.device, connection.bound = device, bool(device)
        connection.history.append((now, State.SHORT))
        self._e.table.add(connection)
        self._e.notice("connection.found", connection, pid=pid, command=command)
        if unfit is not None:
            self.refuse(now, connection, unfit)
            return
        self._e.timers.set(("long", connection.cid), connection.since + self._e.policy.long_lived_after)

    def clear(self, socket: FourTuple) -> None:
        """A new connection has the tuple of one that has ended: what still rewrites the old one must not touch it."""
        old = self._e.table.ended(socket)
        if old is not None:
            self._e.timers.cancel(("linger", old.cid))
            self._unguard([old])

    def gone(self, now: float, socket: FourTuple) -> None:
        """Its socket no longer exists.  Rewriting goes on for as long as packets may be under way."""
        connection = self._e.table.at(socket)
        if connection is None:
            return
        e, was_movable = self._e, connection.movable
        e.table.end(connection)
        e.timers.cancel(("long", connection.cid))
        e.timers.cancel(("poll", connection.cid))
        e.binding.end(now, connection.cid)
        e.finish(now, connection, "closed")
        if was_movable and connection.peer is not None:
            self.tell_end(now, connection.peer, End.CLOSED, (connection.cid,))
        linger = 0.0
        if connection.guarded:
            if connection.may_come_tunnelled:
                linger = constants.LINGER_BOTH if connection.peer_closed else constants.LINGER
            e.timers.set(("linger", connection.cid), now + linger)
            e.holding.ended(connection)
        e.timers.set(("bury", connection.cid), now + max(constants.LISTED, linger + 1.0))
        e.emit(commands.DropConnections((connection.cid,)))
        self._update_keep(now, connection.peer)

    def timer(self, now: float, kind: str, *rest: Any) -> None:
        """Timers: long, poll, retry, linger, bury, reach, doubt, undecided, alive, keep."""
        if kind == "alive":
            self._stay_alive(now, rest[0])
            return
        if kind == "reach":
            self._reach(now, rest[0])
            return
        if kind == "keep":
            self._keep(now, rest[0])
            return
        if kind == "doubt":
            self._doubted[rest[0]] = now
            self.sync(now, rest[0], announce=True)
            return
        if kind == "retry":
            left_alone = (c for c in self._e.table if c.state is State.UNSUPPORTED)
            self._negotiate(now, [c for c in left_alone if c.socket.remote.host == rest[0]])
            return
        connection = self._e.table.get(rest[0])
        if connection is None:
            return
        match kind:
            case "long":
                self._e.notice("connection.long", connection)
                self._negotiate(now, [connection])
            case "poll":
                again = (REASONS[Status.NOT_YOURS], "key-changed")
                if connection.state is State.PENDING or (
                    connection.state is State.REFUSED and connection.reason in again
                ):
                    self._negotiate(now, [connection])
            case "undecided":
                self.unanswered(now, [connection.cid])
            case "linger":
                self._unguard([connection])
            case "bury":
                self._unguard([connection])  # in case its lingering was extended meanwhile
                self._e.table.bury(connection)

    def _unguard(self, connections: Iterable[Connection]) -> None:
        gone = [c for c in connections if c.guarded]
        for connection in gone:
            connection.guarded, connection.installed = False, None
        if gone:
            self._e.emit(commands.Rewrite(("guard", ()), remove=tuple(c.flow for c in gone)))
            self._e.emit(commands.Uncarry(tuple(c.socket for c in gone)))
            self._e.meeting.carried()
            self._e.holding.unguarded(gone)

    # -- contact ------------------------------------------------------------------------------------------------------

    def _negotiate(self, now: float, connections: Iterable[Connection]) -> None:
        ready: dict[bytes, list[Connection]] = defaultdict(list)
        for connection in connections:
            if connection.movable or connection.state in (State.CLOSED, State.NEGOTIATING):
                continue  # under way already
            change(connection, State.NEGOTIATING, now)
            address = connection.socket.remote.host
            until, why = self._unsupported.get(address, (0.0, ""))
            if now < until:
                self._unsupport(now, connection, why)
                continue
            peer = self._peer_at(now, address)
            if peer is not None and peer.state is PeerState.REJECTED:
                self.refuse(now, connection, "peer-rejected")
                continue
            if peer is not None and peer.session(now) is not None:
                ready[peer.key].append(connection)
                continue
            key = peer.key if peer is not None else None
            self._waiting[address, key].add(connection.cid)
            to = SockAddr(address, self._e.policy.control_port)
            self._e.contact(now, to, connection.socket.local.host, key)
        for key, of_peer in ready.items():
            self._met(now, self._e.peers[key], of_peer)

    def _peer_at(self, now: float, address: IPAddress) -> Peer | None:
        """Who is known to be at an address: who answered there when we called, or who is there right now."""
        peers = self._e.peers.values()
        called = (p for p in peers if address in p.identity and p.state is not PeerState.CHANGED)
        here = (p for p in peers if p.remote is not None and p.remote.host == address and p.session(now) is not None)
        present = (p for p in here if not self._e.meeting.by_way_of(p.key, p.remote))
        return next(called, None) or next(present, None)

    def session_up(self, now: float, event: events.SessionUp) -> None:
        """Keys are agreed: go on with what waited for them."""
        e, peer = self._e, self._e.peers.get(event.key)
        if peer is None:
            return
        self.hello(now, peer)
        self.tell_again(now, event.key)
        there = not e.meeting.by_way_of(event.key, event.remote)
        if there:
            self._unsupported.pop(event.remote.host, None)
        e.timers.cancel(("reach", peer.key))
        if event.initiator and there:
            host = event.remote.host
            cids = self._waiting.pop((host, event.key), set()) | self._waiting.pop((host, None), set())
            waiting = e.table.select(cids)
            if waiting:
                peer.identity.add(event.remote.host)
                e.emit(commands.SavePeer(peer))
            self._met(now, peer, [c for c in waiting if c.state is State.NEGOTIATING])
        if event.first or event.initiator:
            # Also when it only renews keys: the peer may have lost something since, and does not know what.
            self.sync(now, peer.key)

    def contact_failed(self, now: float, to: SockAddr, key: bytes | None, reason: str) -> None:
        """No session with that address: its connections stay as they are."""
        known = key is not None
        lasting = constants.UNANSWERED_TIME if known else constants.UNSUPPORTED_TIME
        waiting = self._e.table.select(self._waiting.pop((to.host, key), set()))
        refusal = _REFUSALS.get(reason)
        if waiting and refusal is None:
            if len(self._unsupported) >= constants.MAX_CONNECTIONS:
                self._unsupported.clear()
            self._unsupported[to.host] = (now + lasting, reason)
            if known:
                self._e.timers.set(("retry", to.host), now + lasting)
        for connection in waiting:
            if connection.state is not State.NEGOTIATING:
                continue
            if refusal is not None:
                self.refuse(now, connection, refusal)
                if refusal == "key-changed":  # somebody may only have been quicker
                    self._e.timers.set(("poll", connection.cid), now + constants.CHANGED_POLL)
            else:
                self._unsupport(now, connection, reason)
        if key is not None and self._e.table.movable(key):
            self._e.timers.set(("reach", key), now + constants.REACH_PAUSE)

    def _reach(self, now: float, key: bytes) -> None:
        """Protected connections are without a session: try again where the peer was last."""
        peer = self._e.peers.get(key)
        if peer is None or peer.session(now) is not None or peer.remote is None or not self._e.table.movable(key):
            return
        self._e.contact(now, peer.remote, None, key)

    def key_changed(self, now: float, at: SockAddr, known: bytes, seen: bytes) -> None:
        """As with ssh: loud, and nothing goes on until a person has looked."""
        e = self._e
        e.notice("peer.key_changed", peer=seen, reason="key-changed", address=at.host, known=known.hex())
        if seen not in e.peers:
            changed = [p for p in e.peers.values() if p.state is PeerState.CHANGED]
            if len(changed) >= constants.MAX_CHANGED:
                self._drop_peer(min(changed, key=lambda p: p.last_contact or 0.0).key)
            e.peers[seen] = Peer(seen, PeerState.CHANGED, identity={at.host}, last_contact=now)
            e.emit(commands.SavePeer(e.peers[seen]))
            self._known_at(at, known)
        for connection in list(e.table):  # those that are being asked for in a session which only we still have
            asked = connection.peer == known and connection.state is State.NEGOTIATING
            if asked and connection.socket.remote.host == at.host:
                self.refuse(now, connection, "key-changed")

    def _known_at(self, at: SockAddr, known: bytes) -> None:
        """That peer may have moved to where another key answers now: whoever looks at that key has to find this one."""
        peer = self._e.peers.get(known)
        if peer is None or self._e.meeting.by_way_of(known, at) or len(peer.identity) >= constants.MAX_CHANGED:
            return
        peer.identity.add(at.host)
        self._e.emit(commands.SavePeer(peer))

    # -- trust --------------------------------------------------------------------------------------------------------

    def _met(self, now: float, peer: Peer, connections: list[Connection]) -> None:
        """There is a session; may these connections be protected with this peer?"""
        for connection in connections:
            self._e.table.assign(connection, peer.key)
        if not connections:
            return
        if peer.state is PeerState.APPROVED:
            self._e.binding.claim(now, peer, connections)
            return
        for connection in connections:
            if peer.state is PeerState.PENDING:
                change(connection, State.PENDING, now, "approval-pending-here")
            else:
                self.refuse(now, connection, "peer-rejected" if peer.state is PeerState.REJECTED else "key-changed")

    def approve(self, now: float, key: bytes) -> None:
        """A person, or the policy, trusts this key."""
        peer = self._e.peers.get(key)
        if peer is None:
            return
        if peer.accepted:  # as everybody: from now on it stays
            peer.accepted = Accepted.NO
            self._e.emit(commands.SavePeer(peer))
        if peer.state is PeerState.APPROVED:
            return
        peer.state = PeerState.APPROVED
        self._e.emit(commands.SavePeer(peer))
        self._e.notice("peer.approved", peer=key)
        self.hello(now, peer)
        again = (State.PENDING, State.REFUSED)
        self._negotiate(now, [c for c in self._e.table.of(key) if c.state in again and c.reason != "released"])

    def reject(self, now: float, key: bytes) -> None:
        """Never again; what was protected with it no longer is."""
        peer = self._e.peers.get(key)
        if peer is None:
            return
        peer.state, peer.accepted = PeerState.REJECTED, Accepted.NO  # it stays rejected
        self._e.emit(commands.SavePeer(peer))
        self._e.notice("peer.rejected", peer=key)
        self.hello(now, peer)
        self._leave(now, key, "peer-rejected")

    def forget(self, now: float, key: bytes) -> None:
        """As if never met."""
        peer = self._e.peers.get(key)
        self._leave(now, key, "peer-forgotten")
        self._drop_peer(key)
        for other in list(self._e.peers.values()):  # nothing is known against it any more: it is met like any other
            if peer is not None and other.state is PeerState.CHANGED and other.identity & peer.identity:
                self._drop_peer(other.key)

    def had_to_go(self, now: float, key: bytes) -> None:
        """There was no room for this peer any more: what was about to be protected with it will not be."""
        for connection in self._e.table.of(key):
            if connection.movable or connection.state is State.NEGOTIATING:
                self._unprotect(now, connection, "peer-forgotten")
        self.dropped(key)

    def dropped(self, key: bytes) -> None:
        """A peer is gone: nothing is remembered of it."""
        self._doubted.pop(key, None)
        for of_peer in (self._told, self._said, self._kept):
            of_peer.pop(key, None)
        self._e.timers.cancel(("keep", key))
        for cid in self._untold_of(key):
            self._untold.pop(cid)
        self._e.places.forget(key)
        self._e.better.forget(key)

    def _drop_peer(self, key: bytes) -> None:
        self.dropped(key)
        self._e.endpoint.forget(key)
        self._e.emit(commands.DropPeer(key))

    def _leave(self, now: float, key: bytes, reason: str) -> None:
        """Everything with this peer becomes unprotected."""
        movable = self._e.table.movable(key)
        for connection in self._e.table.of(key):
            if connection.state not in (State.CLOSED, State.REFUSED):
                self._unprotect(now, connection, reason)
        for start in range(0, len(movable), messages.MAX_CIDS):
            self.tell_end(now, key, End.RELEASED, tuple(c.cid for c in movable[start : start + messages.MAX_CIDS]))

    # -- asking the peer ----------------------------------------------------------------------------------------------

    def unanswered(self, now: float, cids: list[bytes]) -> None:
        """The peer has not answered the claims of these."""
        asked: dict[bytes, list[bytes]] = defaultdict(list)
        for connection in self._e.table.select(cids):
            if connection.state is State.NEGOTIATING:
                self._unsupport(now, connection, "no-answer")
                self._e.timers.set(("retry", connection.socket.remote.host), now + constants.UNANSWERED_TIME)
                if connection.peer is not None:
                    asked[connection.peer].append(connection.cid)
        for key, unanswered in asked.items():
            self.tell_end(now, key, End.RELEASED, tuple(unanswered))  # it may have taken them on: its answer was lost

    def guard(self, connections: list[Connection], *claim: int) -> None:
        """From here on an RST is held and asked about; when the kernel has it the connection is protected.

        ``claim``: whom to answer then.
        """
        if connections:
            for connection in connections:
                connection.device = connection.device or confined_to(self._e.network, connection.socket.local.host)
            self._e.emit(commands.SaveConnections(tuple(connections)))
            add = tuple(c.flow for c in connections if not c.guarded)
            for connection in connections:
                connection.guarded = True
            self._e.emit(commands.Rewrite(("guard", tuple(c.cid for c in connections), *claim), add=add))

    def rewritten(self, now: float, token: tuple[Any, ...], error: str | None) -> None:
        """The kernel has (or has not) the guard of new connections."""
        connections = self._e.table.select(token[1])
        protected: list[Connection] = []
        for connection in connections:
            if error is not None:
                connection.guarded = False
                self.refuse(now, connection, f"kernel: {error}")
                self._e.emit(commands.DropConnections((connection.cid,)))
                if len(token) == 2 and connection.peer is not None:  # ours: the peer has taken it on already
                    self.tell_end(now, connection.peer, End.RELEASED, (connection.cid,))
                continue
            if connection.guarded:  # else it has been released, or has ended, meanwhile
                connection.installed = connection.flow
            if connection.state is State.NEGOTIATING:
                protected.append(connection)
        self._e.carry(c for c in connections if c.installed is not None)
        for connection in protected:
            self._e.timers.cancel(("undecided", connection.cid))
            # Where one is that has moved before, the peer may not know.
            connection.confirmed = None if connection.moved else connection.wire.local.host
            change(connection, State.PROTECTED, now)
            self._e.notice("connection.protected", connection)
        if len(token) > 2:
            self._e.claims.reply(now, token[2], failed=error is not None)
        if protected:
            self._e.emit(commands.SaveConnections(tuple(protected)))  # else a restart would not know them as protected
            for key in {c.peer for c in protected}:
                self._update_keep(now, key)
                self.used(key)
            self._e.meeting.protected(now)
            self._e.choosing.protected(now, protected)
            self._e.mobility.reconsider(now, [c for c in protected if c.movable])

    def used(self, key: bytes | None) -> None:
        """It is of use: others that were accepted because everybody is go before it."""
        peer = self._e.peers.get(key) if key is not None else None
        if peer is not None and peer.accepted is Accepted.UNUSED:
            peer.accepted = Accepted.USED
            self._e.emit(commands.SavePeer(peer))

    # -- told by a peer -----------------------------------------------------------------------------------------------

    def received(self, now: float, event: events.Received) -> None:
        """Hello, EndOf, Sync."""
        match event.message:
            case messages.Hello():
                self._on_hello(now, event, event.message)
            case messages.EndOf():
                self._on_end(now, event, event.message)
            case messages.Sync(request, cids):
                known = (self._e.table.get(cid) for cid in cids)
                mine = {c.cid for c in known if c is not None and c.movable and c.peer == event.key}
                unknown = tuple(cid for cid in cids if cid not in mine)
                self.tell_again(now, event.key)
                self._e.send(now, event.key, messages.SyncReply(request, unknown), event.source, event.local)

    def hello(self, now: float, peer: Peer, to: SockAddr | None = None, source: IPAddress | None = None) -> None:
        """Say what we think of a peer, where we see it and, unless this is where it has not been proven to be, what
        other addresses we have: there the answer is to be no longer than the question."""
        at = to or peer.remote
        if at is not None:
            addresses = () if to is not None else self.addresses()
            if addresses:
                self._said[peer.key] = addresses
            message = messages.Hello(_TRUST.get(peer.state, Trust.PENDING), at, addresses)
            self._e.send(now, peer.key, message, to, source)

    def moved(self, now: float, peer: Peer) -> None:
        """It knows where we are: let it know also what other addresses we have, if they are not those of before."""
        if self._said.get(peer.key) != self.addresses():
            self.hello(now, peer)

    def _keep(self, now: float, key: bytes) -> None:
        """Store what a peer has said of its addresses; not as often as it likes."""
        peer, next_at = self._e.peers.get(key), self._kept.get(key, float("-inf")) + constants.KEEP_PAUSE
        if peer is not None and now >= next_at:
            self._kept[key] = now
            self._e.emit(commands.SavePeer(peer))
        elif peer is not None:
            self._e.timers.set(("keep", key), next_at)

    def addresses(self) -> tuple[IPAddress, ...]:
        """Ours that others can reach, of both families."""
        known = [a for a in self._e.network.usable if not (a.is_loopback or a.is_link_local or a.is_multicast)]
        half = messages.MAX_ADDRESSES // 2
        return tuple(a for version in (4, 6) for a in sorted(b for b in known if b.version == version)[:half])

    def heard(self, now: float, event: events.Heard) -> None:
        """A peer's datagram came from elsewhere than where it was: tell it, it may not know."""
        peer = self._e.peers.get(event.key)
        if peer is not None and now - self._told.get(peer.key, float("-inf")) >= constants.TELL_PAUSE:
            self._told[peer.key] = now
            self.hello(now, peer, event.source, event.local)

    def _on_hello(self, now: float, event: events.Received, message: messages.Hello) -> None:
        key, trust = event.key, message.trust
        peer = self._e.peers[key]
        peer.trust_there = trust
        if message.addresses:
            news = peer.addresses != message.addresses
            peer.addresses, peer.told = message.addresses, now
            if self._e.table.any_movable(key):
                self._e.places.learnt(now, message.addresses)  # now, while there is a path: later may be too late
            if news and peer.state is PeerState.APPROVED and not peer.unused:
                self._keep(now, key)
        before = peer.observed
        if not self._e.meeting.by_way_of(key, event.source):  # there it sees the rendezvous, not us
            peer.observed = message.observed
        if peer.observed and before is not None and before != peer.observed:
            self._seen_elsewhere(now, key, before, peer.observed)
        if trust is Trust.REJECTED:
            for connection in self._e.table.of(key):
                if connection.state in (State.PENDING, State.NEGOTIATING):
                    self.refuse(now, connection, "rejected-there")
        elif trust is Trust.APPROVED and peer.state is PeerState.APPROVED:
            self._negotiate(now, [c for c in self._e.table.of(key) if c.state is State.PENDING])

    def _seen_elsewhere(self, now: float, key: bytes, before: SockAddr, after: SockAddr) -> None:
        """One of our own after another is no news: who leaves one for another has announced it."""
        if not {before.host, after.host} <= self._e.network.usable:
            self._e.mobility.observed(now, key, before, after)

    # -- ending -------------------------------------------------------------------------------------------------------

    def _on_end(self, now: float, event: events.Received, message: messages.EndOf) -> None:
        self._e.claims.withdrawn(event.key, message.cids)
        for connection in self._e.table.select(message.cids):
            if connection.peer != event.key:
                self._e.notice("redirect.refused", connection, peer=event.key, reason="not-your-connection")
                continue
            connection.peer_closed = connection.peer_closed or message.what is not End.RELEASED
            if connection.state is State.CLOSED:
                if connection.peer_closed and self._e.timers.armed(("linger", connection.cid)):
                    self._e.timers.set(("linger", connection.cid), now + constants.LINGER_BOTH)
            elif message.what is End.KILL and connection.movable:
                self._e.emit(commands.Destroy((connection.socket,)))
                self._e.finish(now, connection, "killed-there")
                self.gone(now, connection.socket)
            elif message.what is End.RELEASED:
                self._unprotect(now, connection, "released-there")
        self._e.send(now, event.key, messages.Done(message.request), event.source, event.local)

    def release(self, now: float, cid: bytes) -> None:
        """A person wants it left alone.  One that has moved stays as it is, heard by every way: it dies without."""
        connection = self._e.table.get(cid)
        if connection is None or connection.state is State.CLOSED:
            return
        was_movable = connection.movable
        self._unprotect(now, connection, "released")
        if was_movable and connection.peer is not None:
            self.tell_end(now, connection.peer, End.RELEASED, (cid,))

    def kill(self, now: float, cid: bytes) -> None:
        """Close on both hosts."""
        connection = self._e.table.get(cid)
        if connection is None or connection.state is State.CLOSED:
            return
        if connection.movable and connection.peer is not None:
            self.tell_end(now, connection.peer, End.KILL, (cid,))
        self._e.emit(commands.Destroy((connection.socket,)))
        self._e.finish(now, connection, "killed")
        self.gone(now, connection.socket)

    def _unprotect(self, now: float, connection: Connection, reason: str) -> None:
        self._e.timers.cancel(("long", connection.cid))
        if connection.state is not State.REFUSED:
            self.refuse(now, connection, reason)
        connection.lost_since = None
        if connection.guarded and connection.may_come_tunnelled:
            self._e.holding.lift([connection])
            self._e.holding.resume([connection])
            self._e.emit(commands.SaveConnections((connection,)))
        else:
            self._unguard([connection])
            self._e.emit(commands.DropConnections((connection.cid,)))
        self._update_keep(now, connection.peer)

    def tell_end(self, now: float, key: bytes, what: End, cids: tuple[bytes, ...]) -> None:
        """Tell a peer that these are not protected here any more: until it has heard, or they are again."""
        peer = self._e.peers.get(key)
        if peer is None or (peer.session(now) is None and peer.remote is None):
            return
        if peer.session(now) is None and peer.remote is not None:
            self._e.contact(now, peer.remote, peer.local, key)

        def build(number: int) -> messages.EndOf | None:
            if what is not End.RELEASED:
                return messages.EndOf(number, what, cids)
            again = (c.cid for c in self._e.table.select(cids) if c.movable or c.state is State.NEGOTIATING)
            left = set(cids).difference(again)
            return messages.EndOf(number, what, tuple(cid for cid in cids if cid in left)) if left else None

        def failed(_: float) -> None:
            if what is End.KILL:  # of the others, the peer finds out by itself what matters
                for cid in cids:
                    self._untold.put(constants.MAX_UNTOLD, key, cid, key)

        self._e.requests.ask(now, key, build, lambda *_: None, failed)

    def tell_again(self, now: float, key: bytes | None = None) -> None:
        """What a peer, or any of them, could not be told while there was no path.

        Before anything else is said in a session: what the peer has asked for in vain it does not protect any more,
        and nobody may kill that.
        """
        for of in {of for of in self._untold.values() if key in (None, of)}:
            peer = self._e.peers.get(of)
            if peer is None or peer.session(now) is None:
                if peer is not None and peer.remote is not None:
                    self._e.contact(now, peer.remote, peer.local, of)
                continue
            cids = self._untold_of(of)
            for cid in cids:
                self._untold.pop(cid)
            for start in range(0, len(cids), messages.MAX_CIDS):
                self.tell_end(now, of, End.KILL, tuple(cids[start : start + messages.MAX_CIDS]))

    def _untold_of(self, key: bytes) -> list[bytes]:
        return [cid for cid in self._untold if self._untold.get(cid) == key]

    # -- after a restart ----------------------------------------------------------------------------------------------

    def restore(self, now: float, connections: Iterable[Connection]) -> None:
        """The kernel has their flows already; agree with the peers again."""
        keys = set()
        restored = []
        for connection in connections:
            if not connection.movable and not connection.may_come_tunnelled:  # stored, but the kernel was not asked yet
                self._e.emit(commands.DropConnections((connection.cid,)))
                continue
            connection.guarded, connection.installed = True, connection.flow
            self._e.table.add(connection)
            self._e.offers.keep(connection.receiving)
            restored.append(connection)
            if connection.movable and connection.peer is not None:
                keys.add(connection.peer)
        self._e.carry(restored)
        self._e.holding.restore(now, restored)
        for key in keys:
            self._update_keep(now, key)
            self._reach(now, key)

    def sync(self, now: float, key: bytes, announce: bool = False) -> None:
        """Which of our connections does the peer still have?  ``announce``: tell it then where those are."""
        movable = [c.cid for c in self._e.table.movable(key)]
        for start in range(0, len(movable), messages.MAX_CIDS):
            cids = tuple(movable[start : start + messages.MAX_CIDS])
            self._e.requests.ask(
                now,
                key,
                lambda n, cids=cids: messages.Sync(n, cids),  # type: ignore[misc]
                lambda at, reply, cids=cids: self._synced(at, key, reply, cids if announce else ()),  # type: ignore[misc]
                lambda at, cids=cids: self._announce_again(at, cids if announce else ()),  # type: ignore[misc]
            )

    def doubt(self, now: float, key: bytes) -> None:
        """The peer has not all the connections of a move: find out which, then announce those that it has once more."""
        pause = self._doubted.get(key, float("-inf")) + constants.DOUBT_PAUSE
        self._e.timers.set(("doubt", key), max(now, pause))

    def _announce_again(self, now: float, cids: Iterable[bytes]) -> None:
        doubtful = self._e.table.select(cids)
        for connection in doubtful:
            connection.confirmed = None
        if doubtful:
            self._e.mobility.reconsider(now, [c for c in doubtful if c.movable])

    def _synced(self, now: float, key: bytes, reply: messages.Message, doubtful: Iterable[bytes]) -> None:
        """What the peer has lost is claimed again where it can be: not moved; else it stays as it is, unprotected."""
        if not isinstance(reply, messages.SyncReply):
            return
        lost = [c for c in self._e.table.select(reply.cids) if c.peer == key and c.movable]
        again = [c for c in lost if not c.moved]
        for connection in lost:
            if connection.moved:
                self._unprotect(now, connection, "lost-there")
                self.tell_end(now, key, End.RELEASED, (connection.cid,))  # it may be about to take it on
        for connection in again:
            connection.lost_since = None
            change(connection, State.NEGOTIATING, now)
        self._unguard(c for c in again if not c.may_come_tunnelled)
        if again:
            self._e.emit(commands.DropConnections(tuple(c.cid for c in again)))
        self._update_keep(now, key)
        self._met(now, self._e.peers[key], again)
        self._announce_again(now, doubtful)

    # -- common -------------------------------------------------------------------------------------------------------

    def refuse(self, now: float, connection: Connection, reason: str) -> None:
        """It is not to be protected."""
        if connection.state is State.CLOSED:
            return
        self._e.binding.end(now, connection.cid)
        change(connection, State.REFUSED, now, reason)
        self._e.notice("connection.refused", connection, reason=reason)

    def _unsupport(self, now: float, connection: Connection, reason: str) -> None:
        change(connection, State.UNSUPPORTED, now, reason)
        self._e.notice("connection.unsupported", connection, reason=reason)

    def _update_keep(self, now: float, key: bytes | None) -> None:
        peer = self._e.peers.get(key) if key is not None else None
        if peer is not None:
            peer.keep = self._e.table.any_movable(peer.key) or self._e.meeting.keeps(peer.key)
            if peer.keep and not self._e.timers.armed(("alive", peer.key)):
                self._e.timers.set(("alive", peer.key), now + constants.KEEPALIVE_TIME)

    def _stay_alive(self, now: float, key: bytes) -> None:
        """A NAT must not forget where datagrams of this peer belong, as long as connections depend on it."""
        peer = self._e.peers.get(key)
        if peer is None or not peer.keep:
            return
        at = now + constants.KEEPALIVE_TIME
        if any(c.natted or c.tunnel for c in self._e.table.movable(key)):
            quiet = now - peer.last_sent if peer.last_sent is not None else constants.KEEPALIVE_TIME
            if quiet >= constants.KEEPALIVE_TIME - 1.0:  # about: two times that are equal may not be as numbers
                self._e.keep_alive(now, peer)
            else:
                at -= quiet
        self._e.timers.set(("alive", key), at)

"""Peers of connections that are to be protected: finding them, and keeping in touch with them.

long-lived ─► contact: a handshake with the other end of the connection
           ─► trust on both sides ─► claim (claims/)
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable
from typing import Final

from redirectctl.flows import commands, constants, timer_kinds
from redirectctl.flows.agreement import Agreement
from redirectctl.flows.claims.outgoing import OwnClaims
from redirectctl.flows.connection import Connection, change
from redirectctl.flows.host import Host
from redirectctl.flows.moves.outgoing import OwnMoves
from redirectctl.flows.reasons import REASONS
from redirectctl.flows.rendezvous.client import Client
from redirectctl.flows.rendezvous.places import Places
from redirectctl.flows.silent import Silent
from redirectctl.flows.state import State
from redirectctl.proto import events
from redirectctl.proto.peer import Peer, PeerState
from redirectctl.wire import message as messages
from redirectctl.wire.addr import IPAddress, SockAddr
from redirectctl.wire.message import End, Status, Trust

_REFUSALS: Final = {  # why a handshake that was answered came to nothing -> why its connections are refused
    "key-changed": "key-changed",
    "rejected-peer": "peer-rejected",
    "unknown-peer": "first-contact-refused",
}


class Contact:
    """Finds out which peer is at the other end of each connection, and keeps sessions with those that are needed."""

    def __init__(
        self,
        host: Host,
        agreement: Agreement,
        places: Places,
        rendezvous: Client,
        moves: OwnMoves,
        claims: OwnClaims,
    ) -> None:
        self._host = host
        self._agreement = agreement
        self._places = places
        self._rendezvous = rendezvous
        self._moves = moves
        self._claims = claims
        # Connections, by the address that is being contacted and who must answer there.
        self._waiting: dict[tuple[IPAddress, bytes | None], set[bytes]] = defaultdict(set)
        self._silent = Silent(host.table)

    def negotiate(self, now: float, connections: Iterable[Connection]) -> None:
        """Contact the other ends of these connections, and have them claimed where a peer answers."""
        ready: dict[bytes, list[Connection]] = defaultdict(list)
        for connection in connections:
            if connection.movable or connection.state in (State.CLOSED, State.NEGOTIATING):
                continue  # under way already
            change(connection, State.NEGOTIATING, now)
            address = connection.remote_now  # where it has moved to, if it was released since
            peer = self._peer_at(now, address)
            if peer is not None and peer.state is PeerState.REJECTED:
                self.refuse(now, connection, "peer-rejected")
                continue
            if peer is not None and peer.session(now) is not None:
                ready[peer.key].append(connection)
                continue
            key = peer.key if peer is not None else None
            self._waiting[address, key].add(connection.cid)
            to = SockAddr(address, self._host.policy.control_port)
            self._host.contact(now, to, connection.local_now, key)
        for key, of_peer in ready.items():
            self.met(now, self._host.peers[key], of_peer)

    def negotiate_again(self, now: float, host: IPAddress) -> None:
        """A host did not answer, some time ago: ask it again if there are still connections that wait for that."""
        self._silent.left(host)  # if it was asked, nothing came of it
        self._silent.want(host)
        self._ask_again(now)

    def retry(self, now: float, hosts: Collection[IPAddress] | None = None) -> list[IPAddress]:
        """Ask hosts that did not answer at once, all or these.  Returns those for which connections wait."""
        wanted = [host for host in self._silent.hosts() if hosts is None or host in hosts]
        found = [host for host in wanted if self._silent.want(host)]
        self._ask_again(now)
        return found

    def _ask_again(self, now: float) -> None:
        """Ask as many as may be asked at a time.  Connections stay as they are: most often nothing comes of it."""
        while (host := self._silent.next()) is not None:
            waiting = self._silent.waiting(host)
            peer = self._peer_at(now, host)
            if peer is not None and (peer.state is PeerState.REJECTED or peer.session(now) is not None):
                self._silent.left(host)
                self.negotiate(now, waiting)
                continue
            # Should the handshake end without a word.
            self._host.timers.set(timer_kinds.NegotiateAgain(host), now + 2 * constants.UNSUPPORTED_TIME)
            sources = [c.local_now for c in waiting if c.local_now in self._host.network.usable]
            to = SockAddr(host, self._host.policy.control_port)
            self._host.contact(now, to, sources[0] if sources else None, peer.key if peer is not None else None)

    def claim_again(self, now: float, cid: bytes) -> None:
        """A connection was refused, or waits for approval: try it again."""
        connection = self._host.table.get(cid)
        again = (REASONS[Status.NOT_YOURS], "key-changed")
        if connection is not None and (
            connection.state is State.PENDING or (connection.state is State.REFUSED and connection.reason in again)
        ):
            self.negotiate(now, [connection])

    def expect(self, now: float, key: bytes, seconds: float) -> None:
        """Admit a host with this key for so long, as one that waits for approval."""
        self._host.expected.add(key)
        self._host.timers.set(timer_kinds.ExpectNoMore(key), now + seconds)

    def expect_no_more(self, key: bytes) -> None:
        """The time for that is over."""
        self._host.expected.discard(key)

    def answered_at(self, now: float, key: bytes, address: IPAddress) -> bool:
        """Count an address as one of the peer's own if we have called it there, and the session is still good."""
        peer = self._host.peers.get(key)
        if peer is None or not any(
            s.initiator and not s.expired(now) and s.path[1].host == address for s in peer.sessions
        ):
            return False
        if address not in peer.identity:
            peer.identity.add(address)
            self._host.emit(commands.SavePeer(peer))
        return True

    def _peer_at(self, now: float, address: IPAddress) -> Peer | None:
        """The peer that answered at an address when we called there, or that is there now."""
        peers = self._host.peers.values()
        called = (p for p in peers if address in p.identity and p.state is not PeerState.CHANGED)
        here = (p for p in peers if p.remote is not None and p.remote.host == address and p.session(now) is not None)
        present = (p for p in here if not self._host.by_way_of(p.key, p.remote))
        return next(called, None) or next(present, None)

    # -- what becomes of it -------------------------------------------------------------------------------------------

    def session_up(self, now: float, event: events.SessionUp) -> None:
        """There is a session: go on with the connections that waited for it."""
        peer = self._host.peers.get(event.key)
        if peer is None:
            return
        self._agreement.hello(now, peer, called=event.initiator)
        self._agreement.tell_again(now, event.key)
        there = not self._host.by_way_of(event.key, event.remote)
        self._host.timers.cancel(timer_kinds.Reach(peer.key))
        if there:
            self._answers(now, peer, event.remote.host, called=event.initiator)
        if event.first or event.initiator:
            # Also when it only renews keys: the peer may have lost something since, and does not know what.
            self._agreement.sync(now, peer.key)

    def _answers(self, now: float, peer: Peer, host: IPAddress, *, called: bool) -> None:
        """There is a daemon at that address: go on with what waits for it.  ``called``: we called it there."""
        waiting = []
        if called:
            cids = self._waiting.pop((host, peer.key), set()) | self._waiting.pop((host, None), set())
            waiting = self._host.table.select(cids)
        silent = self._silent.waiting(host)
        self._silent.answered(host)
        if called and (waiting or silent):
            peer.identity.add(host)
            self._host.emit(commands.SavePeer(peer))
        self.met(now, peer, [c for c in waiting if c.state is State.NEGOTIATING])
        self.negotiate(now, silent)
        self._ask_again(now)

    def failed(self, now: float, to: SockAddr, key: bytes | None, reason: str) -> None:
        """No session with that address: the connections that waited for it are not protected, for now."""
        waiting = self._host.table.select(self._waiting.pop((to.host, key), set()))
        waiting = [c for c in waiting if c.state is State.NEGOTIATING]
        if self._silent.left(to.host):
            waiting += [c for c in self._silent.waiting(to.host) if c.reason != reason]
            self._host.timers.set(timer_kinds.NegotiateAgain(to.host), now + constants.UNSUPPORTED_TIME)
        refusal = _REFUSALS.get(reason)
        for connection in waiting:
            if refusal is not None:
                self.refuse(now, connection, refusal)
                if refusal == "key-changed":  # somebody may only have been quicker
                    self._host.timers.set(timer_kinds.ClaimAgain(connection.cid), now + constants.CHANGED_POLL)
            else:
                self._unsupport(now, connection, reason)
        self._ask_again(now)
        if key is not None and self._host.table.movable(key):
            self._host.timers.set(timer_kinds.Reach(key), now + constants.REACH_PAUSE)

    def reach(self, now: float, key: bytes) -> None:
        """Protected connections have no session: contact the peer where it was last."""
        peer = self._host.peers.get(key)
        if peer is None or peer.session(now) is not None or peer.remote is None or not self._host.table.movable(key):
            return
        self._host.contact(now, peer.remote, None, key)

    def met(self, now: float, peer: Peer, connections: list[Connection]) -> None:
        """These are connections with this peer: claim them, if its key is approved."""
        for connection in connections:
            self._host.table.assign(connection, peer.key)
        if not connections:
            return
        if peer.state is PeerState.APPROVED:
            self._claims.claim(now, peer, connections)
            return
        for connection in connections:
            if peer.state is PeerState.PENDING:
                change(connection, State.PENDING, now, "approval-pending-here")
            else:
                self.refuse(now, connection, "peer-rejected" if peer.state is PeerState.REJECTED else "key-changed")

    def unanswered(self, now: float, cids: list[bytes]) -> None:
        """The peer has not answered our claims of these: leave them alone, and tell it that we have."""
        asked: dict[bytes, list[bytes]] = defaultdict(list)
        for connection in self._host.table.select(cids):
            if connection.state is State.NEGOTIATING:
                self._unsupport(now, connection, "no-answer")
                if connection.peer is not None:
                    asked[connection.peer].append(connection.cid)
        for key, unanswered in asked.items():
            # It may have taken them on: its answer was lost.
            self._agreement.tell_end(now, key, End.RELEASED, tuple(unanswered))

    def refuse(self, now: float, connection: Connection, reason: str) -> None:
        """Do not protect this connection, for this reason."""
        if connection.state is not State.CLOSED:
            self._claims.end(now, connection.cid)
            self._host.refuse(now, connection, reason)

    def release(self, now: float, connection: Connection, reason: str) -> None:
        """Do not protect this connection any more: a person has said so."""
        self._claims.end(now, connection.cid)
        self._host.release(now, connection, reason)

    def _unsupport(self, now: float, connection: Connection, reason: str) -> None:
        host = connection.remote_now
        if connection.state is State.UNSUPPORTED:  # for another reason than before
            change(connection, State.NEGOTIATING, now)
        change(connection, State.UNSUPPORTED, now, reason)
        self._silent.add(host, connection.cid)
        self._host.timers.set(timer_kinds.NegotiateAgain(host), now + constants.UNSUPPORTED_TIME)
        self._host.notice("connection.unsupported", connection, reason=reason)

    # -- who it is ----------------------------------------------------------------------------------------------------

    def on_hello(self, now: float, event: events.Received, message: messages.Hello) -> None:
        """Take in what a peer says: whether it trusts us, where it sees us, what addresses it has."""
        key, trust = event.key, message.trust
        peer = self._host.peers[key]
        peer.trust_there = trust
        if message.addresses:
            news = peer.addresses != message.addresses
            peer.addresses, peer.told = message.addresses, now
            if self._host.table.any_movable(key):
                self._places.learnt(now, message.addresses)  # now, while there is a path: later may be too late
            if news and peer.state is PeerState.APPROVED and not peer.unused:
                self._agreement.store_addresses(now, key)
        before = peer.reflexive
        if not self._host.by_way_of(key, event.source):  # there it sees the rendezvous, not us
            peer.reflexive = message.reflexive
        if peer.reflexive and before is not None and before != peer.reflexive:
            self._seen_elsewhere(now, key, before, peer.reflexive)
        if trust is Trust.REJECTED:
            for connection in self._host.table.of(key):
                if connection.state in (State.PENDING, State.NEGOTIATING):
                    self.refuse(now, connection, "rejected-there")
        elif trust is Trust.APPROVED and peer.state is PeerState.APPROVED:
            self.negotiate(now, [c for c in self._host.table.of(key) if c.state is State.PENDING])

    def _seen_elsewhere(self, now: float, key: bytes, before: SockAddr, after: SockAddr) -> None:
        """The peer sees us at another address.  It is news unless both are ours: such a change was announced."""
        if not {before.host, after.host} <= self._host.network.usable:
            self._moves.reflexive_changed(now, key, before, after)

    # -- keeping in touch ---------------------------------------------------------------------------------------------

    def update_keep(self, now: float, key: bytes | None) -> None:
        """Find out whether the session with a peer is needed, which may have changed."""
        peer = self._host.peers.get(key) if key is not None else None
        if peer is not None:
            peer.keep = self._host.table.any_movable(peer.key) or self._rendezvous.keeps(peer.key)
            if peer.keep and not self._host.timers.armed(timer_kinds.KeepAlive(peer.key)):
                self._host.timers.set(timer_kinds.KeepAlive(peer.key), now + constants.KEEPALIVE_TIME)

    def stay_alive(self, now: float, key: bytes) -> None:
        """Send a keepalive, so that a NAT does not forget a peer that connections depend on."""
        peer = self._host.peers.get(key)
        if peer is None or not peer.keep:
            return
        at = now + constants.KEEPALIVE_TIME
        if any(c.natted or c.tunnel for c in self._host.table.movable(key)):
            quiet = now - peer.last_sent if peer.last_sent is not None else constants.KEEPALIVE_TIME
            if quiet >= constants.KEEPALIVE_TIME - 1.0:  # about: two times that are equal may not be as numbers
                self._host.keep_alive(now, peer)
            else:
                at -= quiet
        self._host.timers.set(timer_kinds.KeepAlive(key), at)

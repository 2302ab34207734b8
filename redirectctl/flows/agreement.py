"""What is said to peers besides announcements and claims: who and where we are, what has ended, what is still there.

HELLO  what we think of the peer, where we see it, what addresses we have
NAME   what this host calls itself
END    these connections are not protected here any more; closed, released, or to be killed there too
SYNC   which of these connections does the peer still have?
"""

from __future__ import annotations

from typing import Final

from redirectctl.flows import commands, constants, facts, timer_kinds
from redirectctl.flows.host import Host
from redirectctl.flows.requests import Requests
from redirectctl.flows.state import State
from redirectctl.proto import events
from redirectctl.proto.constants import NAMES_SINCE
from redirectctl.proto.peer import Peer, PeerState
from redirectctl.proto.shares import Shared
from redirectctl.wire import message as messages
from redirectctl.wire.addr import IPAddress, SockAddr
from redirectctl.wire.message import End, Trust

_TRUST: Final = {PeerState.APPROVED: Trust.APPROVED, PeerState.REJECTED: Trust.REJECTED}


class Agreement:
    """Tells peers what their connections need to know besides moves and claims, and asks them what they still have."""

    def __init__(self, host: Host, requests: Requests) -> None:
        self._host = host
        self._requests = requests
        self._compared: dict[bytes, float] = {}  # peers, and when they were last asked what of a move they have
        self._told: dict[bytes, float] = {}  # peers, and when they were last told that they are elsewhere
        self._said: dict[bytes, tuple[IPAddress, ...]] = {}  # peers, and what addresses of ours they know
        self._kept: dict[bytes, float] = {}  # peers, and when what they say of their addresses was stored for that only
        self._untold: Shared[bytes, bytes, bytes] = Shared()  # killed connections, and the peer that could not be told

    def forget(self, key: bytes) -> None:
        """Forget what was said to a peer that is gone."""
        self._compared.pop(key, None)
        for of_peer in (self._told, self._said, self._kept):
            of_peer.pop(key, None)
        self._host.timers.cancel(timer_kinds.StoreAddresses(key))
        for cid in self._untold_of(key):
            self._untold.pop(cid)

    # -- HELLO --------------------------------------------------------------------------------------------------------

    def hello(
        self,
        now: float,
        peer: Peer,
        to: SockAddr | None = None,
        source: IPAddress | None = None,
        *,
        called: bool = False,
    ) -> None:
        """Tell a peer what we think of it, where we see it and what other addresses we have.

        To an address that the peer has not been proven to have (``to``), the HELLO names no addresses: it is to be no
        longer than the datagram that it answers.  ``called``: this host has called the peer just now.
        """
        at = to or peer.remote
        if at is not None:
            addresses = () if to is not None else self._host.network.for_others
            if addresses:
                self._said[peer.key] = addresses
            message = messages.Hello(_TRUST.get(peer.state, Trust.PENDING), at, addresses)
            self._host.send(now, peer.key, message, to, source)
            if to is None:
                self._say_name(now, peer, called=called or bool(peer.identity))

    def _say_name(self, now: float, peer: Peer, *, called: bool) -> None:
        """Tell a peer what this host is called: not to strangers, who may have called only to find out."""
        session, name = peer.session(now), self._host.policy.own_name
        known = called or peer.state is PeerState.APPROVED
        if session is not None and session.version >= NAMES_SINCE and known and name:
            self._host.send(now, peer.key, messages.Name.of(name))

    def named(self, now: float, key: bytes, name: str) -> None:
        """A peer says what it is called: listings show it in quotes."""
        peer = self._host.peers.get(key)
        if peer is not None and name and peer.says != name:
            peer.says = name
            self.store_addresses(now, key)

    def moved(self, now: float, peer: Peer) -> None:
        """The peer has confirmed a move: tell it our other addresses, if they are others than it knows."""
        if self._said.get(peer.key) != self._host.network.for_others:
            self.hello(now, peer)

    def heard(self, now: float, event: events.Heard) -> None:
        """A peer's datagram came from another address than before: tell the peer, which may not know of it."""
        peer = self._host.peers.get(event.key)
        if peer is not None and now - self._told.get(peer.key, float("-inf")) >= constants.TELL_PAUSE:
            self._told[peer.key] = now
            self.hello(now, peer, event.source, event.local)

    def store_addresses(self, now: float, key: bytes) -> None:
        """Store what a peer says of itself, once in KEEP_PAUSE, however often it says that."""
        peer, next_at = self._host.peers.get(key), self._kept.get(key, float("-inf")) + constants.KEEP_PAUSE
        if peer is not None and now >= next_at:
            self._kept[key] = now
            self._host.emit(commands.SavePeer(peer))
        elif peer is not None:
            self._host.timers.set(timer_kinds.StoreAddresses(key), next_at)

    # -- END ----------------------------------------------------------------------------------------------------------

    def tell_end(self, now: float, key: bytes, what: End, cids: tuple[bytes, ...]) -> None:
        """Tell a peer that this host no longer protects these, until it answers or they are protected again."""
        peer = self._host.peers.get(key)
        if peer is None or (peer.session(now) is None and peer.remote is None):
            return
        if peer.session(now) is None and peer.remote is not None:
            self._host.contact(now, peer.remote, peer.local, key)

        def build(number: int) -> messages.EndOf | None:
            if what is not End.RELEASED:
                return messages.EndOf(number, what, cids)
            again = (c.cid for c in self._host.table.select(cids) if c.movable or c.state is State.NEGOTIATING)
            left = set(cids).difference(again)
            return messages.EndOf(number, what, tuple(cid for cid in cids if cid in left)) if left else None

        def failed(_: float) -> None:
            if what is End.KILL:  # of the others, the peer finds out by itself what matters
                for cid in cids:
                    self._untold.put(constants.MAX_UNTOLD, key, cid, key)

        self._requests.ask(now, key, build, lambda *_: None, failed)

    def tell_again(self, now: float, key: bytes | None = None) -> None:
        """Tell one peer, or all, which connections were killed here while there was no path.

        Before anything else is said in a session: what the peer has asked for in vain it does not protect any more,
        and nobody may kill that.
        """
        for of in {of for of in self._untold.values() if key in (None, of)}:
            peer = self._host.peers.get(of)
            if peer is None or peer.session(now) is None:
                if peer is not None and peer.remote is not None:
                    self._host.contact(now, peer.remote, peer.local, of)
                continue
            cids = self._untold_of(of)
            for cid in cids:
                self._untold.pop(cid)
            for start in range(0, len(cids), messages.MAX_CIDS):
                self.tell_end(now, of, End.KILL, tuple(cids[start : start + messages.MAX_CIDS]))

    def _untold_of(self, key: bytes) -> list[bytes]:
        return [cid for cid in self._untold if self._untold.get(cid) == key]

    # -- SYNC ---------------------------------------------------------------------------------------------------------

    def sync(self, now: float, key: bytes, announce: bool = False) -> None:
        """Ask a peer which of our connections it still has.  ``announce``: then tell it where those are."""
        movable = [c.cid for c in self._host.table.movable(key)]
        for start in range(0, len(movable), messages.MAX_CIDS):
            cids = tuple(movable[start : start + messages.MAX_CIDS])
            doubtful = cids if announce else ()

            def synced(at: float, reply: messages.Message, doubtful: tuple[bytes, ...] = doubtful) -> None:
                if isinstance(reply, messages.SyncReply):
                    self._host.report(at, facts.Synced(key, reply, doubtful))

            self._requests.ask(
                now,
                key,
                lambda n, cids=cids: messages.Sync(n, cids),  # type: ignore[misc]
                synced,
                lambda at, doubtful=doubtful: self.announce_again(at, doubtful),  # type: ignore[misc]
            )

    def compare_soon(self, now: float, key: bytes) -> None:
        """The peer lacks connections of a move: find out which, then announce the others again."""
        pause = self._compared.get(key, float("-inf")) + constants.DOUBT_PAUSE
        self._host.timers.set(timer_kinds.Compare(key), max(now, pause))

    def compare(self, now: float, key: bytes) -> None:
        """The pause before a comparison is over: ask."""
        self._compared[key] = now
        self.sync(now, key, announce=True)

    def announce_again(self, now: float, cids: tuple[bytes, ...]) -> None:
        """Announce these again: the peer may not know where they are."""
        doubtful = self._host.table.select(cids)
        for connection in doubtful:
            connection.confirmed = None
        if doubtful:
            self._host.report(now, facts.ReviewPaths([c for c in doubtful if c.movable]))

    def on_sync(self, now: float, event: events.Received, message: messages.Sync) -> None:
        """Answer a peer that asks which of these connections this host still has."""
        known = [c for c in self._host.table.select(message.cids) if c.peer == event.key]
        mine = {c.cid for c in known if c.movable}
        unknown = tuple(cid for cid in message.cids if cid not in mine)
        self.tell_again(now, event.key)
        if released := tuple(c.cid for c in known if c.state is State.RELEASED):
            self.tell_end(now, event.key, End.RELEASED, released)  # first: else the peer would claim them anew
        self._host.send(now, event.key, messages.SyncReply(message.request, unknown), event.source, event.local)

"""The control port of this host, for sessions and handshakes: what goes out, from where and to where."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from redirectctl.proto import constants, events
from redirectctl.proto.noise import Handshake, Rng, StaticKey
from redirectctl.proto.peer import Peer, Session
from redirectctl.proto.shares import Shared
from redirectctl.proto.timers import Timers
from redirectctl.wire.addr import IPAddress, SockAddr

HandOver = Callable[[float, bytes, IPAddress | None, SockAddr, bytes], None]  # now, to whom, from, by way of, datagram


class Arrival(NamedTuple):
    """How a datagram has come."""

    source: SockAddr
    local: IPAddress  # our address that it was sent to
    port: int = 0  # number of our port
    via: bytes | None = None  # it is of this peer: the rendezvous at ``source`` has handed it over


@dataclass(frozen=True, slots=True)
class Completed:
    """A handshake that both sides have gone through."""

    handshake: Handshake
    version: int
    indices: tuple[int, int]  # ours, the peer's
    initiator: bool
    path: tuple[IPAddress, SockAddr]  # of ours, and of the peer's: there it receives
    first_contact: bool
    final: bytes | None = None  # XX initiator: see Session


@dataclass(slots=True)
class HalfOpen:
    """An XX handshake that waits for its third message."""

    handshake: Handshake
    version: int
    remote_index: int
    path: tuple[IPAddress, SockAddr]  # on which the second message went: the third shows that it was received
    since: float


class Port:
    """What sessions and handshakes share."""

    def __init__(
        self, static: StaticKey, rng: Rng, peers: dict[bytes, Peer], counter: int, versions: tuple[int, ...]
    ) -> None:
        """See Endpoint."""
        self.static = static
        self.rng = rng
        self.peers = peers
        self.versions = versions
        self.timers: Timers[tuple[Any, ...]] = Timers()
        self.sessions: dict[int, Session] = {}  # by our index
        self.half_open: Shared[bytes, int, HalfOpen] = Shared()  # of each network, by our index
        self.relays: dict[SockAddr, bytes] = {}  # rendezvous: what goes there for somebody else is handed over
        self.hand_over: HandOver = lambda *_: None
        self.is_ours: Callable[[IPAddress], bool] = lambda _: False  # this host has the address
        self.arrival: Arrival | None = None  # of the datagram that is being looked at
        self._counter = counter
        self._events: list[events.Event] = []
        self._newest = (0, float("-inf"))  # number of our newest port, and since when we have it

    def drain(self) -> list[events.Event]:
        """What has come of the calls since the last drain, in order."""
        out, self._events = self._events, []
        return out

    def emit(self, event: events.Event) -> None:
        """Queue for drain()."""
        self._events.append(event)

    def transmit(self, now: float, key: bytes | None, source: IPAddress | None, to: SockAddr, data: bytes) -> None:
        """Send to a peer; ``key``: whom, as far as that is known.  Nobody else is where we are: nothing goes there."""
        if self.is_ours(to.host):
            return
        if (whom := self.handed_to(to, key)) is not None:
            self.hand_over(now, whom, source, to, data)
            return
        peer = self.peers.get(key) if key is not None else None
        if peer is None or peer.receives_at(to) or peer.unproven.take(now, len(data)):
            self.emit(events.Transmit(source, to, data, self._port_to(to, key)))

    def locate(self, peer: Peer, remote: SockAddr, local: IPAddress | None) -> None:
        """The peer has shown that it receives what we send from ``local`` to ``remote``.

        The only place where that changes.  The source of a datagram shows nothing: whoever holds the keys can forge it.
        """
        for place in (peer.remote, remote):
            if place is not None:
                peer.proven.pop(place, None)
                peer.proven[place] = None
        while len(peer.proven) > constants.PROVEN_MAX:
            del peer.proven[next(iter(peer.proven))]
        peer.remote, peer.local = remote, local

    def handed_to(self, to: SockAddr, key: bytes | None) -> bytes | None:
        """For whom a rendezvous at ``to`` gets a datagram; None: it is for whoever is there."""
        whom = key or (self.arrival.via if self.arrival is not None else None)
        return whom if to in self.relays and whom not in (None, self.relays[to]) else None

    def port_number(self, key: bytes | None, to: SockAddr) -> int:
        """From which of our ports a peer, or the rendezvous at ``to`` that stands for it, is sent to."""
        peer = self.peers.get(self.relays.get(to, key or b""))
        return peer.port if peer is not None else 0

    def ports_in_use(self) -> set[int]:
        """Numbers of our ports that peers know, or may come to know."""
        return {port for peer in self.peers.values() for port in peer.ports}

    def try_another_port(self, now: float, key: bytes | None, asked: float) -> None:
        """A peer has not answered since it was ``asked``: what is under way between our port and its may be led astray
        by a router, for as long as we go on sending.  A fresh port makes a fresh entry there."""
        peer = self.peers.get(key) if key is not None else None
        if peer is None or (peer.last_contact is not None and peer.last_contact >= asked):
            return
        number, since = self._newest
        if number in (0, peer.port, peer.trial) and now - since >= constants.FRESH_PORT:
            number += 1
            self._newest = number, now
        peer.trial = number if number != peer.port else 0

    def new_index(self) -> int:
        """A random index that names no session and no handshake of ours."""
        while True:
            index = int.from_bytes(self.rng(4), "big")
            if index and index not in self.sessions and index not in self.half_open:
                return index

    def next_counter(self) -> int:
        """For the first message of IKpsk2; grows with every use."""
        self._counter += 1
        return self._counter

    def _port_to(self, to: SockAddr, key: bytes | None) -> int:
        """What answers goes from where the question came to; while nobody answers, one of those that may get through.

        Which of them is left to chance: what is sent in turns is always the same kind of datagram.
        """
        if self.arrival is not None and to == self.arrival.source:
            return self.arrival.port
        peer = self.peers.get(key) if key is not None else None
        ports = peer.ports if peer is not None else (0,)
        return ports[self.rng(1)[0] % len(ports)] if len(ports) > 1 else ports[0]

    def reached(self, peer: Peer) -> None:
        """A peer has answered: at a port that was tried because it did not, or at the old one after all."""
        if not peer.trial or self.arrival is None or self.arrival.via is not None:
            return
        peer.trial, before, peer.port = 0, peer.port, self.arrival.port
        if peer.port != before:
            self.emit(events.PortChanged(peer.key))

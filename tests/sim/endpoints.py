"""Endpoints without engines: sessions only, on simulated time.  `Net.filter` says what becomes of each datagram."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from redirectctl.proto import events
from redirectctl.proto.endpoint import Endpoint
from redirectctl.proto.noise import StaticKey
from redirectctl.proto.peer import Peer, PeerState
from redirectctl.wire import datagram
from redirectctl.wire import message as messages
from redirectctl.wire.addr import IPAddress, SockAddr
from redirectctl.wire.datagram import Pattern
from tests.sim.network import PORT, ip

HELLO = messages.Hello(messages.Trust.APPROVED, SockAddr(ip("192.0.2.1"), 7747))
DONE = messages.Done(7)

Filter = Callable[[SockAddr, SockAddr, bytes], Iterable[tuple[float, bytes]]]  # -> (delay, datagram)...


@dataclass
class End:
    """One endpoint at one address."""

    net: Net
    name: str
    address: IPAddress
    versions: tuple[int, ...] = (1,)
    admit: PeerState | None = PeerState.APPROVED
    events: list[events.Event] = field(default_factory=list)
    generation: int = 0

    def __post_init__(self) -> None:
        self.static = StaticKey.from_private(self.net.random.randbytes(32))
        self.start({})

    def start(self, peers: dict[bytes, Peer]) -> None:
        """Begin, with what was stored; sessions are lost."""
        self.generation += 1
        self.endpoint = Endpoint(
            self.static, self.net.random.randbytes, lambda *_: self.admit, peers, self.generation << 32, self.versions
        )

    def restart(self) -> None:
        self.start({
            k: Peer(k, p.state, p.secret, identity=set(p.identity), greatest_counter=p.greatest_counter)
            for k, p in self.endpoint.peers.items()
        })  # fmt: skip

    def at(self) -> SockAddr:
        return SockAddr(self.address, PORT)

    def peer(self, other: End) -> Peer:
        return self.endpoint.peers[other.static.public]

    def contact(self, other: End, known: bool = False) -> None:
        self.endpoint.contact(self.net.now, other.at(), self.address, other.static.public if known else None)
        self.flush()

    def say(self, other: End, what: messages.Message) -> bool:
        sent = self.endpoint.send(self.net.now, self.peer(other), what)
        self.flush()
        return sent

    def flush(self) -> None:
        for event in self.endpoint.drain():
            self.events.append(event)
            if isinstance(event, events.Transmit):
                self.net.transmit(self.at(), event.to, event.data)

    def of(self, kind: type) -> list:
        return [e for e in self.events if isinstance(e, kind)]

    def refused(self) -> list[str]:
        return [e.reason for e in self.of(events.Refused)]

    def failed(self) -> list[str]:
        return [e.reason for e in self.of(events.ContactFailed)]

    def sent(self, kind: datagram.Type) -> list[bytes]:
        return [e.data for e in self.of(events.Transmit) if e.data[0] == kind]

    def heard(self) -> list[messages.Message]:
        return [e.message for e in self.of(events.Received)]


class Net:
    """Delivers, or as `filter` says."""

    def __init__(self, seed: int = 1) -> None:
        self.random = random.Random(seed)
        self.now = 1000.0
        self.ends: list[End] = []
        self.queue: list[tuple[float, int, SockAddr, SockAddr, bytes]] = []
        self.order = 0
        self.filter: Filter = lambda source, to, data: [(0.01, data)]

    def end(self, name: str, address: str, versions: tuple[int, ...] = (1,)) -> End:
        end = End(self, name, ip(address), versions)
        self.ends.append(end)
        return end

    def transmit(self, source: SockAddr, to: SockAddr, data: bytes) -> None:
        for delay, what in self.filter(source, to, data):
            self.order += 1
            heapq.heappush(self.queue, (self.now + delay, self.order, source, to, what))

    def run(self, seconds: float) -> None:
        end_at = self.now + seconds
        while True:
            times = [self.queue[0][0]] if self.queue else []
            times += [t for e in self.ends if (t := e.endpoint.next_timer()) is not None]
            at = min(times, default=float("inf"))
            if at > end_at:
                break
            self.now = max(self.now, at)
            if self.queue and self.queue[0][0] <= self.now:
                _, _, source, to, data = heapq.heappop(self.queue)
                for end in self.ends:
                    if end.address == to.host:
                        end.endpoint.receive(self.now, data, source, to.host)
                        end.flush()
            for end in self.ends:
                end.endpoint.tick(self.now)
                end.flush()
        self.now = end_at


def lose(*kinds: datagram.Type, times: int = 1) -> Filter:
    """The first `times` datagrams of each of these types are lost."""
    left = dict.fromkeys(kinds, times)

    def filtered(source: SockAddr, to: SockAddr, data: bytes) -> Iterable[tuple[float, bytes]]:
        kind = datagram.Type(data[0])
        if left.get(kind, 0) > 0:
            left[kind] -= 1
            return []
        return [(0.01, data)]

    return filtered


def pair(seed: int = 1) -> tuple[Net, End, End]:
    net = Net(seed)
    return net, net.end("alice", "192.0.2.1"), net.end("bob", "198.51.100.2")


def met(seed: int = 1) -> tuple[Net, End, End]:
    """bob has called alice."""
    net, alice, bob = pair(seed)
    bob.contact(alice)
    net.run(1)
    assert alice.peer(bob).secret is not None
    return net, alice, bob


def talk(net: Net, a: End, b: End) -> None:
    """Both directions work."""
    before = len(a.heard()), len(b.heard())
    assert a.say(b, HELLO)
    assert b.say(a, DONE)
    net.run(1)
    assert b.heard()[before[1] :] == [HELLO]
    assert a.heard()[before[0] :] == [DONE]


def patterns(end: End) -> list[Pattern]:
    return [Pattern(data[2]) for data in end.sent(datagram.Type.INIT)]

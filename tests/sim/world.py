"""Simulated hosts, the network between them, and a clock that only we move."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass, field

from redirectctl.flows.connection import Connection
from redirectctl.flows.policy import Policy
from redirectctl.wire import message as messages
from redirectctl.wire.addr import FourTuple, IPAddress, SockAddr
from tests.sim.host import Host
from tests.sim.network import ACKNOWLEDGED, BEGINNING, KEEPALIVE, RESET, Link, Nat, Packet, ip


def acm(epoch: int, new: str, *old: str, cids: tuple[bytes, ...] = (), nonce: bytes = b"a nonce ") -> messages.Acm:
    """What was born at these addresses, and what has these ids, is at ``new``."""
    return messages.Acm(epoch, nonce, ip(new), messages.Moved(tuple(map(ip, old)), cids))


@dataclass
class World:
    """The network and the clock."""

    seed: int = 1
    link: Link = field(default_factory=Link)
    now: float = BEGINNING

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        self.hosts: list[Host] = []
        self.queue: list[tuple[float, int, Packet]] = []
        self.ends: dict[tuple[str, FourTuple], tuple[Host, FourTuple]] = {}  # of each connection: the other one
        self.segments: list[Packet] = []
        self.names: dict[bytes, list[str]] = {}  # what DNS says of a host: by its key
        self.order = 0
        self.kernel_failed = False  # some change has been refused on purpose
        self.recorded: list[tuple[SockAddr, SockAddr, bytes]] = []
        self.tap: Callable[[SockAddr, SockAddr, bytes], bool] | None = None  # False: do not deliver
        self.tap_segment: Callable[[SockAddr, SockAddr], bool] | None = None
        self.strangers: dict[IPAddress, Callable[[SockAddr, SockAddr, bytes], None]] = {}  # other machines

    def host(self, name: str, *addresses: str, policy: Policy | None = None) -> Host:
        host = Host(self, name, list(addresses), policy)
        self.hosts.append(host)
        return host

    def nat(self, public: str, *hosts: Host, filters: bool = False, symmetric: bool = False) -> Nat:
        """Put hosts behind a NAT."""
        nat = Nat(self, public, filters=filters, symmetric=symmetric)
        for host in hosts:
            host.nat = nat
        return nat

    def transmit(self, source: SockAddr, to: SockAddr, data: bytes, sender: Host | None = None) -> None:
        """A datagram into the network; whoever calls may lie about the source."""
        self.recorded.append((source, to, data))
        if self.tap is None or self.tap(source, to, data):
            self._send(Packet("udp", source, to, data, sender.nat if sender is not None else None))

    def segment(
        self,
        source: SockAddr,
        to: SockAddr,
        token: bytes,
        sender: Host | None = None,
        numbers: tuple[int, int] = (0, 0),
    ) -> None:
        """A TCP segment with a token; the same may be said."""
        seq, ack = numbers
        shifted = (seq + self.link.shift) % 2**32, (ack - self.link.shift) % 2**32
        packet = Packet("tcp", source, to, token, sender.nat if sender is not None else None, shifted)
        plain = token in (KEEPALIVE, ACKNOWLEDGED, RESET)
        if not plain:
            self.segments.append(packet)
        if self.tap_segment is not None and not self.tap_segment(source, to):
            return
        if plain or not (self.link.strips or source.host in self.link.strips_from):
            self._send(packet)

    def _send(self, packet: Packet) -> None:
        if self.link.cut or (self.link.blocked and packet.protocol == "udp"):
            return
        if self.random.random() < self.link.loss:
            return
        for _ in range(2 if self.random.random() < self.link.duplicate else 1):
            self.order += 1
            at = self.now + self.link.delay + self.random.random() * self.link.jitter
            heapq.heappush(self.queue, (at, self.order, packet))

    def _arrive(self, packet: Packet) -> None:
        """Through the NATs, to whoever has the address."""
        protocol, source, to = packet.protocol, packet.source, packet.to
        if any(h.nat is packet.nat and to.host in h.addresses for h in self.hosts):
            near = packet.nat  # it stays behind the NAT, or never was behind one
        else:
            source = packet.nat.out(protocol, source, to) if packet.nat is not None else source
            near = next((h.nat for h in self.hosts if h.nat is not None and h.nat.public == to.host), None)
            inside = near.into(protocol, to, source) if near is not None else to
            if inside is None:
                return
            to = inside
        for host in self.hosts:
            if host.nat is near and protocol == "tcp":
                host.arrive(Packet(protocol, source, to, packet.data, numbers=packet.numbers))
            elif host.nat is near:
                host.deliver(packet.data, source, to)
        if to.host in self.strangers and protocol == "udp":
            self.strangers[to.host](source, to, packet.data)

    def run(self, seconds: float) -> None:
        """Let time pass."""
        end = self.now + seconds
        while True:
            times = [self.queue[0][0]] if self.queue else []
            times += [t for h in self.hosts if h.up and (t := h.engine.next_timer()) is not None]
            times += [h.busy_until for h in self.hosts if h.busy_until is not None]
            at = min(times, default=float("inf"))
            if at > end:
                break
            self.now = max(self.now, at)
            if self.queue and self.queue[0][0] <= self.now:
                self._arrive(heapq.heappop(self.queue)[2])
            for host in self.hosts:
                if host.busy_until is not None and host.busy_until <= self.now:
                    host.run()
                due = host.engine.next_timer() if host.up else None
                if due is not None and due <= self.now:
                    host.engine.tick(self.now)
                    host.run()
        self.now = end

    def check(self) -> None:
        """Invariants that hold at every moment."""
        for host in self.hosts:
            if host.up:
                host.check()

    def check_ends(self, host: Host, c: Connection) -> None:
        """A connection is protected with the host at its other end, whose tuple is known; both ends say the same."""
        end = self.ends.get((host.name, c.socket))
        if end is None:
            return
        other, socket = end
        assert c.peer == other.static.public, f"{host.name}: {c.socket} is protected with somebody else"
        assert c.peer_tuple == socket, f"{host.name}: {c.socket} is not {c.peer_tuple} at its other end"

    def settled(self) -> None:
        """Nothing is under way."""
        for host in self.hosts:
            assert not host.listening, f"{host.name} listens for tokens"
            assert not host.engine.peers_claims._claimed
            assert not host.engine.peers_claims._awaited
            assert not host.engine.own_claims._asking
            for c in host.engine.table.movable():
                other, socket = self.ends[host.name, c.socket]
                theirs = other.engine.table.at(socket)
                assert theirs is not None
                assert theirs.movable
                assert (c.cid, c.sending, c.receiving) == (theirs.cid, theirs.receiving, theirs.sending)
                assert c.sending is not None
                assert c.integrity == theirs.integrity

    def connect(
        self, a: Host, b: Host, sport: int, dport: int = 22, *, watch: bool = True
    ) -> tuple[FourTuple, FourTuple]:
        """A TCP connection from a to b, opted in on a."""
        source, to = SockAddr(a.addresses[0], sport), SockAddr(b.addresses[0], dport)
        here, there = FourTuple(source, to), FourTuple(to, source)
        if a.nat is not b.nat:
            here = FourTuple(source, SockAddr(b.nat.public, dport) if b.nat is not None else to)
            there = FourTuple(to, a.nat.out("tcp", source, here.remote) if a.nat is not None else source)
            a.numbers[here] = b.bases(there)[::-1]
        a.sockets.add(here)
        a.began.add(here)
        b.sockets.add(there)
        self.ends[a.name, here], self.ends[b.name, there] = (b, there), (a, here)
        if watch:
            a.opened(here)
        return here, there


def agree(a: Host, b: Host, socket: FourTuple) -> bool:
    """Both kernels hold the same wire tuple."""
    mine, theirs = a.flows.get(socket), b.flows.get(socket.mirrored)
    return mine is not None and theirs is not None and mine == theirs.mirrored

"""Two hosts, a network that loses, delays, reorders, duplicates and re-addresses, and a clock that only we move.

The kernel's part is played by `Host`: it has sockets, flows (what nftables would hold) and addresses.  Every rule that
the product states as an invariant is checked after every step.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from ipaddress import ip_address

from redirectctl.flows import commands
from redirectctl.flows.connection import Connection, Flow
from redirectctl.flows.engine import Engine, Network, Policy
from redirectctl.proto.events import Transmit
from redirectctl.proto.noise import StaticKey
from redirectctl.proto.peer import Peer
from redirectctl.wire.addr import FourTuple, IPAddress, SockAddr

PORT = 7747


def ip(text: str) -> IPAddress:
    return ip_address(text)


@dataclass
class Link:
    """What the network does to datagrams."""

    delay: float = 0.01
    jitter: float = 0.0
    loss: float = 0.0
    duplicate: float = 0.0
    cut: bool = False


class Host:
    """A machine: engine, store, kernel."""

    def __init__(self, world: World, name: str, addresses: list[str], policy: Policy | None = None) -> None:
        self.world = world
        self.name = name
        self.addresses = [ip(a) for a in addresses]
        self.policy = policy or Policy(first_contact="accept-new", long_lived_after=1.0)
        self.static = StaticKey.from_private(world.random.randbytes(32))
        self.sockets: set[FourTuple] = set()
        self.flows: dict[FourTuple, FourTuple] = {}
        self.notices: list[commands.Notice] = []
        self.kicked: list[tuple[FourTuple, ...]] = []
        self.verdicts: dict[int, bool] = {}
        self.transactions: list[tuple[int, int]] = []
        self.stored_peers: dict[bytes, Peer] = {}
        self.stored: dict[bytes, Connection] = {}
        self.generation = 0
        self.kernel_error: str | None = None
        self.sent: list[tuple[SockAddr, bytes]] = []
        self.up = False
        self.start()

    # -- life ---------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """A daemon starts: from what was stored."""
        self.generation += 1
        peers = [
            Peer(p.key, p.state, p.secret, identity=set(p.identity), greatest_counter=p.greatest_counter,
                 remote=p.remote, local=p.local)
            for p in self.stored_peers.values()
        ]  # fmt: skip
        self.engine = Engine(self.static, self.world.random.randbytes, self.generation, self.policy, peers)
        self.up = True
        restored = []
        for c in self.stored.values():
            if c.socket in self.sockets:
                restored.append(
                    Connection(c.cid, c.socket, c.wire, self.world.now, c.state, peer=c.peer, initiator=c.initiator,
                               local_epoch=c.local_epoch, remote_epoch=c.remote_epoch, announced_epoch=c.remote_epoch,
                               moves=c.moves)
                )  # fmt: skip
        self.flows = {c.socket: c.wire for c in restored}
        self.engine.restore(self.world.now, restored)
        self.run()
        self.network_changed()

    def crash(self) -> None:
        """SIGKILL: memory is gone, kernel and store stay."""
        self.up = False

    # -- events -------------------------------------------------------------------------------------------------------

    def network_changed(self) -> None:
        if not self.up:
            return
        sources = {r: tuple(a for a in self.addresses if a.version == r.version) for r in self.engine.remotes()}
        self.engine.network_changed(self.world.now, Network(frozenset(self.addresses), sources))
        self.run()

    def move(self, *addresses: str) -> None:
        self.addresses = [ip(a) for a in addresses]
        self.network_changed()

    def opened(self, socket: FourTuple) -> None:
        self.engine.found(self.world.now, socket)
        self.run()

    def closed(self, socket: FourTuple) -> None:
        self.sockets.discard(socket)
        if self.up:
            self.engine.gone(self.world.now, socket)
            self.run()

    def deliver(self, data: bytes, source: SockAddr, to: SockAddr) -> None:
        if self.up and to.host in self.addresses and to.port == PORT:
            self.engine.receive(self.world.now, data, source, to.host)
            self.run()

    # -- carrying out commands ----------------------------------------------------------------------------------------

    def run(self) -> None:
        while todo := self.engine.drain():
            for command in todo:
                self.carry_out(command)
        self.world.check()

    def carry_out(self, command: commands.Command) -> None:
        now = self.world.now
        match command:
            case Transmit(source, to, data):
                if source is None:
                    source = next((a for a in self.addresses if a.version == to.host.version), None)
                self.sent.append((to, data))
                if source in self.addresses:
                    self.world.transmit(SockAddr(source, PORT), to, data)
            case commands.SavePeer(peer):
                copy = Peer(peer.key, peer.state, peer.secret, identity=set(peer.identity),
                            greatest_counter=peer.greatest_counter, remote=peer.remote, local=peer.local)  # fmt: skip
                self.stored_peers[peer.key] = copy
            case commands.DropPeer(key):
                self.stored_peers.pop(key, None)
            case commands.SaveConnections(connections):
                for c in connections:
                    self.stored[c.cid] = Connection(
                        c.cid, c.socket, c.wire, c.since, c.state, peer=c.peer, initiator=c.initiator,
                        local_epoch=c.local_epoch, remote_epoch=c.remote_epoch, moves=c.moves,
                    )  # fmt: skip
            case commands.DropConnections(cids):
                for cid in cids:
                    self.stored.pop(cid, None)
            case commands.Rewrite(token, add, remove):
                if self.kernel_error is None:
                    self.rewrite(add, remove)
                self.engine.rewritten(now, token, self.kernel_error)
            case commands.CheckSockets(token, sockets):
                self.engine.checked(now, token, frozenset(s for s in sockets if s in self.sockets))
            case commands.FindRoutes():
                self.network_changed()
            case commands.Kick(sockets):
                self.kicked.append(sockets)
            case commands.Destroy(sockets):
                for socket in sockets:
                    self.sockets.discard(socket)
            case commands.Verdict(token, accept):
                self.verdicts[token] = accept
            case commands.Notice():
                self.notices.append(command)

    def rewrite(self, add: tuple[Flow, ...], remove: tuple[Flow, ...]) -> None:
        for flow in remove:
            assert self.flows.get(flow.socket) == flow.wire, (
                f"{self.name}: removes a flow that the kernel does not have"
            )
            del self.flows[flow.socket]
        for flow in add:
            assert flow.socket not in self.flows, f"{self.name}: adds a flow twice"
            self.flows[flow.socket] = flow.wire
        self.transactions.append((len(add), len(remove)))

    # -- for assertions -----------------------------------------------------------------------------------------------

    def named(self, name: str, reason: str | None = None) -> list[commands.Notice]:
        return [n for n in self.notices if n.name == name and (reason is None or n.reason == reason)]

    def connection(self, socket: FourTuple) -> Connection:
        found = self.engine.table.at(socket)
        assert found is not None, f"{self.name} does not know {socket}"
        return found


@dataclass
class World:
    """The network and the clock."""

    seed: int = 1
    link: Link = field(default_factory=Link)
    now: float = 1000.0

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        self.hosts: list[Host] = []
        self.queue: list[tuple[float, int, SockAddr, SockAddr, bytes]] = []
        self.order = 0
        self.recorded: list[tuple[SockAddr, SockAddr, bytes]] = []
        self.spoof: Callable[[SockAddr, SockAddr, bytes], None] | None = None

    def host(self, name: str, *addresses: str, policy: Policy | None = None) -> Host:
        host = Host(self, name, list(addresses), policy)
        self.hosts.append(host)
        return host

    def transmit(self, source: SockAddr, to: SockAddr, data: bytes) -> None:
        self.recorded.append((source, to, data))
        if self.link.cut or self.random.random() < self.link.loss:
            return
        for _ in range(2 if self.random.random() < self.link.duplicate else 1):
            self.order += 1
            at = self.now + self.link.delay + self.random.random() * self.link.jitter
            heapq.heappush(self.queue, (at, self.order, source, to, data))

    def run(self, seconds: float) -> None:
        """Let time pass."""
        end = self.now + seconds
        while True:
            times = [self.queue[0][0]] if self.queue else []
            times += [t for h in self.hosts if h.up and (t := h.engine.next_timer()) is not None]
            at = min(times, default=float("inf"))
            if at > end:
                break
            self.now = max(self.now, at)
            if self.queue and self.queue[0][0] <= self.now:
                _, _, source, to, data = heapq.heappop(self.queue)
                for host in self.hosts:
                    host.deliver(data, source, to)
            for host in self.hosts:
                due = host.engine.next_timer() if host.up else None
                if due is not None and due <= self.now:
                    host.engine.tick(self.now)
                    host.run()
        self.now = end

    def check(self) -> None:
        """Invariants that hold at every moment."""
        for host in self.hosts:
            if not host.up:
                continue
            for c in host.engine.table:
                if c.guarded:
                    assert host.flows.get(c.socket) == c.wire, f"{host.name}: kernel and engine differ on {c.socket}"

    def connect(
        self, a: Host, b: Host, sport: int, dport: int = 22, *, watch: bool = True
    ) -> tuple[FourTuple, FourTuple]:
        """A TCP connection from a to b, opted in on a."""
        here = FourTuple(SockAddr(a.addresses[0], sport), SockAddr(b.addresses[0], dport))
        a.sockets.add(here)
        b.sockets.add(here.mirrored)
        if watch:
            a.opened(here)
        return here, here.mirrored


def agree(a: Host, b: Host, socket: FourTuple) -> bool:
    """Both kernels hold the same wire tuple."""
    mine, theirs = a.flows.get(socket), b.flows.get(socket.mirrored)
    return mine is not None and theirs is not None and mine == theirs.mirrored

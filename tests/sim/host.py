"""A simulated machine: its engine, and the parts of store and kernel.

`Host` has sockets, flows (what nftables would hold) and addresses.  Every rule that the product states as an invariant
is checked after every step:

- kernel and engine hold the same wire tuples; the store holds what is protected;
- what a Rewrite removes is there, what it adds is not;
- an ACM is applied only if the peer sent it, and none newer for the connection was received or applied before;
- no connection is protected with a host that is not its other end;
- the tunnel knows the connections that the kernel guards, and no others;
- a socket is changed, to live without a path, only when what it had is stored and the kernel holds back what it sends;
- tables stay bounded.

A host carries its commands out in order, one at a time.  With `kernel_delay` a Rewrite takes that long; datagrams and
timers go on meanwhile, as in the daemon.
"""

from __future__ import annotations

import zlib
from collections import deque
from operator import attrgetter
from typing import TYPE_CHECKING

from redirectctl.api.schema import EventName
from redirectctl.flows import commands
from redirectctl.flows import constants as limits
from redirectctl.flows.connection import Before, Connection, Flow
from redirectctl.flows.engine import Engine
from redirectctl.flows.kernel_state import COUNTER_BITS
from redirectctl.flows.network import Interface, Network
from redirectctl.flows.policy import Policy
from redirectctl.flows.proofs import in_place
from redirectctl.flows.rendezvous.places import DNS
from redirectctl.flows.state import State
from redirectctl.proto import constants as proto_limits
from redirectctl.proto import events
from redirectctl.proto.events import Transmit
from redirectctl.proto.noise import StaticKey
from redirectctl.proto.peer import Peer
from redirectctl.wire import message as messages
from redirectctl.wire.addr import FourTuple, IPAddress, SockAddr
from redirectctl.wire.tunnel import COUNTER_JUMP, Offer
from tests.sim.network import ACKNOWLEDGED, BEGINNING, KEEPALIVE, OTHER_PORTS, PORT, RESET, Nat, Packet, ip

if TYPE_CHECKING:
    from tests.sim.world import World

TOLD = {
    EventName.CONNECTION_FOUND: {"local", "remote", "state"},
    EventName.CONNECTION_LONG: {"local", "remote", "state"},
    EventName.CONNECTION_PROTECTED: {"local", "remote", "state", "peer"},
    EventName.CONNECTION_UNSUPPORTED: {"local", "remote", "state"},
    EventName.CONNECTION_CLOSED: {"local", "remote", "state"},
    EventName.CONNECTION_SUSPENDED: {"local", "remote", "state", "peer", "reason"},
    EventName.CONNECTION_RESUMED: {"local", "remote", "state", "peer", "reason", "duration"},
    EventName.PEER_FIRST_CONTACT: {"peer", "address", "initiator", "trust"},
    EventName.PEER_APPROVED: {"peer"},
    EventName.PEER_REJECTED: {"peer"},
    EventName.PEER_KEY_CHANGED: {"peer", "address", "known"},
    EventName.MOVE_STARTED: {"peer", "address", "reason", "connections", "epoch"},
    EventName.MOVE_FINISHED: {"peer", "address", "connections", "epoch", "duration"},
    EventName.MOVE_RECEIVED: {"peer", "address", "connections", "epoch"},
    EventName.PATH_CHANGED: {"local", "remote", "peer", "path", "wire_local", "wire_remote"},
    EventName.PACKET_REFUSED: {"source", "reason"},
    EventName.RST_HELD: {"local", "remote", "peer", "reason"},
    EventName.RENDEZVOUS_REACHED: {"peer", "address", "rendezvous"},
    EventName.RENDEZVOUS_LOST: {"rendezvous", "reason"},
}

# Of a protected connection: what is in the store as it is in memory, whenever no command waits.
STORED = attrgetter(
    "wire", "remote_epoch", "peer_tuple", "sending", "receiving", "agreed_in", "integrity", "tunnel", "proven",
    "blocked", "saved", "lost_since",
)  # fmt: skip


def copied(c: Connection) -> Connection:
    """What the store keeps of a connection."""
    return Connection(
        c.cid, c.socket, c.wire, c.since, c.state, peer=c.peer, initiator=c.initiator, local_epoch=c.local_epoch,
        remote_epoch=c.remote_epoch, moves=c.moves, peer_tuple=c.peer_tuple, sending=c.sending, receiving=c.receiving,
        integrity=c.integrity, tunnel=c.tunnel, proven=c.proven, outer_local=c.outer_local, agreed_in=c.agreed_in,
        outer_remote=c.outer_remote, reason=c.reason, lost_since=c.lost_since, blocked=c.blocked, saved=c.saved,
        device=c.device, bound=c.bound,
    )  # fmt: skip


class Host:
    """A machine: engine, store, kernel."""

    def __init__(self, world: World, name: str, addresses: list[str], policy: Policy | None = None) -> None:
        self.world = world
        self.name = name
        self.addresses = [ip(a) for a in addresses]
        self.inside: list[IPAddress] = []  # of bridges for containers: usable, but nobody else is reached from there
        self.unused: list[IPAddress] = []  # of interfaces without a carrier
        self.interfaces: dict[IPAddress, Interface] = {}  # of addresses that it has or may get
        self.policy = policy or Policy(first_contact="accept-new", long_lived_after=1.0)
        self.static = StaticKey.from_private(world.random.randbytes(32))
        self.sockets: set[FourTuple] = set()
        self.flows: dict[FourTuple, FourTuple] = {}
        self.held: set[FourTuple] = set()  # nothing that these send leaves the host, but
        self.let_out: set[FourTuple] = set()
        self.asked: list[FourTuple] = []  # keepalives that the daemon has sent
        self.resets = 0  # that have come from the network
        self.began: set[FourTuple] = set()  # connections that this host opened
        self.altered: dict[FourTuple, Before] = {}  # sockets that are not as their programs left them
        self.notices: list[commands.Notice] = []
        self.kicked: list[tuple[FourTuple, ...]] = []
        self.verdicts: dict[int, bool] = {}
        self.sought: list[float] = []  # when it looked up the name of a peer
        self.transactions: list[tuple[int, int]] = []
        self.stored_peers: dict[bytes, Peer] = {}
        self.peers_saved = 0  # how often
        self.stored: dict[bytes, Connection] = {}
        self.generation = 0
        self.kernel_error: str | None = None
        self.socket_table_fails = False
        self.kernel_delay = 0.0
        self.sent: list[tuple[SockAddr, bytes]] = []
        self.messages: list[tuple[messages.Message, SockAddr | None, IPAddress | None]] = []  # as given to sessions
        self.challenged: set[tuple[SockAddr | None, IPAddress | None]] = set()  # ways that this host has challenged
        self.announced: dict[int, set[IPAddress]] = {}  # epoch: addresses that this host's ACMs have named
        self.heard: dict[tuple[bytes, FourTuple], int] = {}  # (peer, socket): newest authentic ACM received
        self.applied: dict[tuple[bytes, FourTuple], int] = {}  # the same: newest applied
        self.nat: Nat | None = None
        self.changed = False  # since the last look at every connection; where there are many, only then
        self.listening = False
        self.carried: dict[FourTuple, commands.Carried] = {}
        self.counted: dict[Offer, tuple[int, int]] = {}  # what the peer wants to see: generation, first counter
        self.numbers: dict[FourTuple, tuple[int, int]] = {}
        self.backlog: deque[commands.Command] = deque()
        self.busy_until: float | None = None
        self.lives: int | None = None  # commands until the daemon is killed
        self.up = False
        self.servers: dict[str, tuple[SockAddr, ...]] = {}  # rendezvous, as the configuration has them
        self.relaying: dict[bytes, commands.Relays] = {}  # for whom this host is the rendezvous
        self.start()

    # -- life ---------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """A daemon starts: from what was stored."""
        self.generation += 1
        peers = [
            Peer(p.key, p.state, p.secret, identity=set(p.identity), greatest_counter=p.greatest_counter,
                 remote=p.remote, local=p.local, accepted=p.accepted, addresses=p.addresses)
            for p in self.stored_peers.values()
        ]  # fmt: skip
        self.engine = Engine(self.static, self.world.random.randbytes, self.generation, self.policy, peers)
        self._watch()
        self.up = True
        self.listening = False
        self.let_out = set()
        self.carried = {}
        self.backlog.clear()
        self.busy_until = None
        restored = []
        for c in list(self.stored.values()):
            if c.socket in self.sockets:
                restored.append(again := copied(c))
                kept = c.state in (State.REFUSED, State.RELEASED, State.SUSPENDED)
                again.state = c.state if kept else State.PROTECTED  # as daemon/records.py has it
                again.strict = c.integrity and c.tunnel
            else:
                del self.stored[c.cid]
        self.flows = {c.socket: c.flow.incoming for c in restored if c.movable or c.may_come_tunnelled}
        self.relaying = {}
        self.held = {c.socket for c in restored if c.blocked}
        self.engine.restore(self.world.now, restored)
        self.engine.rendezvous_at(self.world.now, self.servers)
        self.run()
        self.network_changed()

    def stop(self) -> None:
        """SIGTERM."""
        self.engine.stopping(self.world.now)
        self.run()
        self.crash()

    def crash(self) -> None:
        """SIGKILL: memory is gone, kernel and store stay."""
        self.up = False
        self.backlog.clear()
        self.busy_until = None

    def _watch(self) -> None:
        """See the messages that travel in sessions."""
        engine, send, moves = self.engine, self.engine.endpoint.send, self.engine.peers_moves
        on_acm, on_response = moves.on_acm, moves.on_response

        def sending(
            now: float,
            peer: Peer,
            message: messages.Message,
            to: SockAddr | None = None,
            source: IPAddress | None = None,
        ) -> bool:
            self.messages.append((message, to, source))
            if isinstance(message, messages.PathChallenge):
                self.challenged.add((to, source))
            if isinstance(message, messages.Acm):
                self.announced.setdefault(message.epoch, set()).add(message.new)
            return send(now, peer, message, to, source)

        def acm(now: float, event: events.Received, message: messages.Acm) -> None:
            if message.new == event.source.host:
                for c in moves._named(event.key, message, event.source.host):
                    which = event.key, c.socket
                    if c.movable:
                        self.heard[which] = max(self.heard.get(which, 0), message.epoch)
            on_acm(now, event, message)

        def response(now: float, event: events.Received, message: messages.PathResponse) -> None:
            self._check_receipt(event, message)
            on_response(now, event, message)

        engine.endpoint.send = sending  # type: ignore[method-assign]
        moves.on_acm = acm  # type: ignore[method-assign]
        moves.on_response = response  # type: ignore[method-assign]

    # -- events -------------------------------------------------------------------------------------------------------

    def network_changed(self) -> None:
        if not self.up:
            return
        usable, here = [*self.addresses, *self.inside], [*self.addresses, *self.inside, *self.unused]
        sources = {
            r: (r,) if r in here else tuple(a for a in self.addresses if a.version == r.version)
            for r in self.engine.remotes()
        }
        network = Network(frozenset(usable), sources, frozenset(here), self.interfaces)
        self.engine.network_changed(self.world.now, network)
        self.run()

    def move(self, *addresses: str) -> None:
        self.addresses = [ip(a) for a in addresses]
        self.network_changed()

    def meets_at(self, *servers: Host) -> None:
        """The configuration names these rendezvous."""
        self.servers = {s.name: tuple(SockAddr(a, PORT) for a in s.addresses) for s in servers}
        self.engine.rendezvous_at(self.world.now, self.servers)
        self.run()

    def opened(self, socket: FourTuple, device: str = "") -> None:
        self.engine.found(self.world.now, socket, device=device)
        self.run()

    def closed(self, socket: FourTuple) -> None:
        self.sockets.discard(socket)
        self.altered.pop(socket, None)
        if self.up:
            self.engine.gone(self.world.now, socket)
            self.run()

    def find(self) -> None:
        """The slow beat: sockets that the daemon does not know yet, and those that are gone."""
        for socket in sorted(self.sockets, key=str):
            if self.up and self.engine.table.at(socket) is None:
                self.opened(socket)
        for c in list(self.engine.table) if self.up else []:
            if c.socket not in self.sockets and self.engine.table.at(c.socket) is c:
                self.closed(c.socket)

    def deliver(self, data: bytes, source: SockAddr, to: SockAddr) -> None:
        number = 0 if to.port == PORT else to.port - OTHER_PORTS
        if self.up and to.host in self.addresses and number in (0, *self.engine.endpoint.ports_in_use()):
            self.engine.receive(self.world.now, data, source, to.host, number)
            self.run()

    def arrive(self, packet: Packet) -> None:
        """A segment."""
        if packet.data in (KEEPALIVE, ACKNOWLEDGED, RESET):
            if packet.to.host in self.addresses:
                self._kernel(packet)
            return
        if self.up and self.listening and packet.to.host in self.addresses:
            self.engine.token(self.world.now, FourTuple(packet.to, packet.source), packet.data, packet.numbers)
            self.run()

    def _kernel(self, packet: Packet) -> None:
        """What needs no daemon: a socket acknowledges a keepalive; where there is none, the answer is a RST."""
        arrived = FourTuple(packet.to, packet.source)
        socket = next((s for s, wire in self.flows.items() if wire == arrived), arrived)
        there = socket in self.sockets
        if packet.data == KEEPALIVE:
            if not there or socket not in self.held or socket in self.let_out:
                answer = ACKNOWLEDGED if there else RESET
                self.world.segment(packet.to, packet.source, answer, self)
        elif there and self.up and packet.data == RESET:
            self.resets += 1
            self.rst(socket, -self.resets, opened=socket in self.began)
        elif there and self.up and socket in self.held:
            self.engine.answered(self.world.now, [socket])
            self.run()

    def bases(self, socket: FourTuple) -> tuple[int, int]:
        """Of the sequence numbers: the same at both ends, the other way round."""
        here = zlib.crc32(str(socket).encode()), zlib.crc32(str(socket.mirrored).encode())
        return self.numbers.get(socket, here)

    # -- carrying out commands ----------------------------------------------------------------------------------------

    def rst(self, socket: FourTuple, token: int, *, opened: bool = False) -> None:
        """The kernel holds a RST for this connection."""
        self.engine.rst(self.world.now, socket, token, opened=opened)
        self.run()

    def run(self) -> None:
        self._collect()
        while self.backlog and (self.busy_until is None or self.busy_until <= self.world.now):
            command = self.backlog[0]
            if isinstance(command, commands.Rewrite) and self.kernel_delay and self.busy_until is None:
                self.busy_until = self.world.now + self.kernel_delay
                break
            self.busy_until = None
            if self.lives is not None:
                self.lives -= 1
                if self.lives < 0:
                    self.lives = None
                    self.crash()
                    return
            self.backlog.popleft()
            self.changed |= not isinstance(command, Transmit | commands.Prove | commands.CheckSockets)
            self.carry_out(command)
            self._collect()
        self.world.check()

    def _collect(self) -> None:
        for command in self.engine.drain():
            if isinstance(command, commands.Rewrite) and isinstance(command.purpose, commands.PeersMove):
                self._check_acm(command.purpose, {flow.socket for flow in command.add})
            self.backlog.append(command)

    def _check_acm(self, move: commands.PeersMove, sockets: set[FourTuple]) -> None:
        """No ACM is applied that is not the newest authentic one for the connection."""
        key, epoch, new = move.key, move.epoch, move.new
        sender = next(h for h in self.world.hosts if h.static.public == key)
        assert new in sender.announced.get(epoch, set()), f"{self.name} applies an ACM that {sender.name} never sent"
        for socket in sockets:
            assert epoch > self.applied.get((key, socket), 0), f"{self.name} applies an ACM again"
            assert epoch >= self.heard.get((key, socket), 0), f"{self.name} applies an ACM though it has a newer one"

    def _check_told(self, notice: commands.Notice) -> None:
        """An event is one of those that the API has, and tells what whoever reads the log needs."""
        every = notice.details | {"peer": notice.peer, "reason": notice.reason, "address": notice.address}
        told = {k for k, v in every.items() if v is not None}
        missing = TOLD.get(EventName(notice.name), set()) - told
        assert not missing, f"{self.name}: {notice} does not tell {missing}"
        assert notice.reason or not notice.name.endswith(".refused"), f"{self.name}: {notice} has no reason"
        assert "None" not in notice.details.values(), f"{self.name}: {notice}"
        duration = notice.details.get("duration")
        assert duration is None or 0 <= duration <= self.world.now - BEGINNING, f"{self.name}: {notice}"

    def _check_receipt(self, event: events.Received, message: messages.PathResponse) -> None:
        """What is applied has been received where it went."""
        validation = self.engine.announcements.validation(event.key, message.epoch)
        for way in validation.ways.values() if validation is not None else ():
            if way.data == message.data:
                assert (way.source, way.local) in self.challenged, f"{self.name} takes what it has not asked for"

    def _check_counters(self, carried: tuple[commands.Carried, ...]) -> None:
        """A daemon that was killed has used some of its counters, nobody knows how many: none is used again."""
        for c in carried:
            assert c.socket in self.flows, f"{self.name}: carries {c.socket}, which the kernel does not have"
            generation, first = self.counted.setdefault(c.sending, (self.generation, c.first))
            if generation < self.generation:
                assert c.first >= first + (1 << COUNTER_BITS), f"{self.name}: counters of {c.socket} are used again"
            else:
                assert c.first == first
            assert c.sending.start <= c.first < c.sending.start + COUNTER_JUMP, "the peer would refuse it"
            self.counted[c.sending] = self.generation, c.first
            stored = [s for s in self.stored.values() if s.sending == c.sending]
            assert stored, f"{self.name}: carries {c.socket}, which is not stored so"

    def carry_out(self, command: commands.Command) -> None:
        now = self.world.now
        match command:
            case Transmit(source, to, data, number):
                if source is None:
                    source = next((a for a in self.addresses if a.version == to.host.version), None)
                self.sent.append((to, data))
                if source in self.addresses:
                    port = OTHER_PORTS + number if number else PORT
                    self.world.transmit(SockAddr(source, port), to, data, self)
            case commands.SavePeer(peer):
                copy = Peer(peer.key, peer.state, peer.secret, identity=set(peer.identity),
                            greatest_counter=peer.greatest_counter, remote=peer.remote, local=peer.local,
                            accepted=peer.accepted, addresses=peer.addresses, says=peer.says)  # fmt: skip
                self.peers_saved += 1
                if peer.key in self.engine.peers:
                    self.stored_peers[peer.key] = copy
            case commands.DropPeer(key):
                self.stored_peers.pop(key, None)
            case commands.SaveConnections(connections):
                for c in connections:
                    self.stored[c.cid] = copied(c)
            case commands.DropConnections(cids):
                for cid in cids:
                    self.stored.pop(cid, None)
            case commands.Rewrite(purpose, add, remove):
                error = self.kernel_error if add else None
                if error is None:
                    error = self.rewrite(add, remove)
                if error is not None:
                    self.world.kernel_failed = True
                if isinstance(purpose, commands.PeersMove) and error is None:
                    self.applied |= {(purpose.key, flow.socket): purpose.epoch for flow in add}
                self.engine.rewritten(now, command, error)
            case commands.CheckSockets(looked_for, sockets):
                present = frozenset(s for s in sockets if s in self.sockets)
                self.engine.checked(now, looked_for, None if self.socket_table_fails else present)
            case commands.Prove(proofs):
                for socket, sent, wire in proofs:
                    there = wire or self.flows.get(socket, socket)
                    if socket in self.sockets and there.local.host in self.addresses:
                        numbers = self.bases(socket)
                        if wire is None:
                            self.engine.proved(now, socket, sent, numbers)
                        carried = sent if wire is None else in_place(sent, numbers)
                        self.world.segment(there.local, there.remote, carried, self, numbers)
            case commands.Listen(on):
                assert on != self.listening, f"{self.name} is told twice to listen, or not to"
                self.listening = on
            case commands.AskNumbers(claim, sockets):
                self.engine.numbers(now, claim, {s: self.bases(s) for s in sockets if s in self.sockets})
            case commands.FindNumbers(theirs, port, remote):
                found = [s for s in sorted(self.sockets, key=str) if (s.local.port, s.remote.host) == (port, remote)]
                self.engine.numbers(now, theirs, {s: self.bases(s) for s in found[: limits.MAX_CANDIDATES]})
            case commands.Carry(carried):
                self.carried |= {c.socket: c for c in carried}
                self._check_counters(carried)
            case commands.Uncarry(sockets):
                for socket in sockets:
                    self.carried.pop(socket, None)
            case commands.Relays(guest):
                self.relaying[guest] = command
            case commands.FindRoutes():
                self.network_changed()
            case commands.RevertBackoff(sockets):
                self.kicked.append(sockets)
            case commands.Prepare(sockets):
                self.engine.prepared(
                    now, {s: self.altered.get(s, Before(1000, 7)) for s in sockets if s in self.sockets}
                )
            case commands.Suspend(before):
                for socket, has in before.items():
                    stored = next((c for c in self.stored.values() if c.socket == socket), None)
                    assert stored is not None
                    assert stored.saved == has
                    assert socket in self.held
                    if socket in self.sockets:
                        self.altered[socket] = has
            case commands.Resume(sockets):
                assert not self.held & set(sockets)
                self.kicked.append(sockets)
                self.engine.restored(now, [s for s in sockets if self.altered.pop(s, None)])
            case commands.LetOut(sockets, on):
                self.let_out = self.let_out | set(sockets) if on else self.let_out - set(sockets)
            case commands.Ask(sockets):
                for socket in sockets:
                    assert socket in self.let_out, f"{self.name}: {socket} is asked, and not let out"
                    assert socket in self.altered, f"{self.name}: {socket} is asked, and not suspended"
                    wire = self.flows[socket]
                    assert wire.local.host in self.addresses, f"{self.name}: {socket} is asked without an address"
                    self.asked.append(socket)
                    self.world.segment(wire.local, wire.remote, KEEPALIVE, self)
            case commands.GiveBack(before):
                assert all(self.altered.get(socket, has) == has for socket, has in before.items())
                for socket in before:
                    self.altered.pop(socket, None)
                self.engine.restored(now, before)
            case commands.Forget(sockets):
                for socket in sockets:
                    self.altered.pop(socket, None)
            case commands.Destroy(sockets):
                for socket in sockets:
                    self.sockets.discard(socket)
                    self.altered.pop(socket, None)
            case commands.Seek(key):
                if key in self.world.names:
                    self.sought.append(now)
                    places = [SockAddr(ip(a), PORT) for a in self.world.names[key]]
                    self.engine.place_learnt(now, key, DNS, places, 30.0)
            case commands.Verdict(token, accept):
                assert token not in self.verdicts, f"{self.name}: two verdicts on one RST"
                self.verdicts[token] = accept
            case commands.Notice():
                self._check_told(command)
                self.notices.append(command)

    def rewrite(self, add: tuple[Flow, ...], remove: tuple[Flow, ...]) -> str | None:
        for flow in remove:
            if self.flows.get(flow.socket) != flow.incoming:
                # Behind a change that has failed, a later one fails too, as in nftables.
                assert self.world.kernel_failed, f"{self.name}: removes a flow that the kernel does not have"
                return "no such element"
        fresh = {f.incoming for f in add if f.incoming != f.socket} - {f.incoming for f in remove}
        if fresh & self.sockets:
            return "another connection of this host has that tuple"
        for flow in remove:
            del self.flows[flow.socket]
            self.held.discard(flow.socket)
        for flow in add:
            assert flow.socket not in self.flows, f"{self.name}: adds a flow twice"
            self.flows[flow.socket] = flow.incoming
            if flow.suspended:
                self.held.add(flow.socket)
        self.transactions.append((len(add), len(remove)))
        return None

    # -- for assertions -----------------------------------------------------------------------------------------------

    def named(self, name: str, reason: str | None = None) -> list[commands.Notice]:
        return [n for n in self.notices if n.name == name and (reason is None or n.reason == reason)]

    def connection(self, socket: FourTuple) -> Connection:
        found = self.engine.table.at(socket)
        assert found is not None, f"{self.name} does not know {socket}"
        return found

    def protects(self, socket: FourTuple) -> bool:
        found = self.engine.table.at(socket)
        return found is not None and found.movable

    def check(self) -> None:
        """Invariants that hold whenever no command waits."""
        engine = self.engine
        assert len(engine.table) <= limits.MAX_CONNECTIONS
        validations = sum(len(engine.announcements.validations_of(key)) for key in engine.peers)
        assert validations <= limits.MAX_VALIDATIONS * max(1, len(engine.peers)) * 2
        assert len(engine.announcements.moves()) <= len(engine.table)
        assert len(engine.requests._open) <= limits.MAX_REQUESTS
        for table in (engine.peers_claims._claimed, engine.peers_claims._done, engine.peers_claims._looking):
            assert len(table) <= limits.MAX_CLAIMED
        for peer_key in engine.peers:
            assert len([a for a in engine.own_claims._asking.values() if a.key == peer_key]) <= limits.CLAIM_WINDOW
        assert len(engine.endpoint.half_open) <= proto_limits.HALF_OPEN_MAX
        assert len(engine.endpoint.initiator._attempts) <= proto_limits.ATTEMPTS_MAX
        for peer in engine.peers.values():
            assert len(peer.sessions) <= 2 * proto_limits.SESSIONS_PER_PEER
        if self.backlog or not (self.changed or len(engine.table) < 100):
            return
        self.changed = False
        carried = {c.socket: (c.sending, c.receiving) for c in engine.table if c.guarded and c.sending is not None}
        assert {c.socket: (c.sending, c.receiving) for c in self.carried.values()} == carried
        for c in engine.table:
            if c.movable:
                self.world.check_ends(self, c)
            if c.guarded:
                there = self.flows.get(c.socket)
                assert there == c.flow.incoming, f"{self.name}: kernel and engine differ on {c.socket}"
                assert (c.socket in self.held) == c.blocked, f"{self.name}: kernel and engine differ on {c.socket}"
            if c.movable:
                stored = self.stored.get(c.cid)
                assert stored is not None, f"{self.name}: {c.socket} is protected and not stored"
                assert c.guarded, f"{self.name}: {c.socket} is protected and not guarded"
                assert stored.state is not State.REFUSED, f"{self.name}: {c.socket} is stored as {stored.state}"
                suspended = stored.state is State.SUSPENDED
                assert suspended == (c.state is State.SUSPENDED), f"{self.name}: {c.socket} is stored as {stored.state}"
                assert STORED(stored) == STORED(c), f"{self.name}: store and memory differ on {c.socket}"

"""Random histories of two hosts.  Whatever happens, when the network heals the two ends agree.

The invariants of every moment are those of pair.py.  Here is what must hold in the end: among it that nothing is
suspended any more, and that every socket has back what it had.

Both hosts moving while each other's announcements are lost leaves neither where the other looks for it.  Without a
third place to meet at, one of them has to come back: `heal` lets one do so in exactly that case.
"""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given, note
from hypothesis import strategies as st

from redirectctl.flows.policy import Policy
from redirectctl.flows.state import State
from redirectctl.wire.addr import FourTuple
from redirectctl.wire.message import Acm
from tests.sim.host import Host
from tests.sim.network import ip
from tests.sim.world import World, agree

A = [f"192.0.2.{i}" for i in range(1, 5)]
B = [f"198.51.100.{i}" for i in range(1, 5)]

who = st.sampled_from(["alice", "bob"])
pause = st.sampled_from([0.0, 0.004, 0.011, 0.03, 0.1, 0.4, 1.5, 5.0, 40.0, 130.0])
addresses = st.sampled_from([[], [0], [1], [2], [3], [0, 1], [1, 2], [2, 0], [3, 1]])
step = st.one_of(
    st.tuples(st.just("move"), who, addresses),
    st.tuples(st.just("move"), who, addresses),
    st.tuples(st.just("move"), st.just("bob"), addresses.filter(len)),
    st.tuples(st.just("open"), who, st.none()),
    st.tuples(st.just("close"), who, st.integers(0, 7)),
    st.tuples(st.just("kill"), who, st.integers(0, 7)),
    st.tuples(st.just("cut"), st.none(), st.booleans()),
    st.tuples(st.just("loss"), st.none(), st.sampled_from([0.0, 0.1, 0.4, 0.8])),
    st.tuples(st.just("jitter"), st.none(), st.sampled_from([0.0, 0.02, 0.3, 3.0])),
    st.tuples(st.just("duplicate"), st.none(), st.sampled_from([0.0, 0.5])),
    st.tuples(st.just("kernel"), who, st.sampled_from([0.0, 0.005, 0.05, 0.7])),
    st.tuples(st.just("refusing kernel"), who, st.booleans()),
    st.tuples(st.just("crash"), who, st.none()),
    st.tuples(st.just("start"), who, st.none()),
    st.tuples(st.just("announce"), who, st.none()),
    st.tuples(st.just("approve"), who, st.none()),
    st.tuples(st.just("find"), who, st.none()),
    st.tuples(st.just("replay"), st.none(), st.integers(0, 10_000)),
    st.tuples(st.just("write"), who, st.integers(0, 7)),
    st.tuples(st.just("write"), who, st.integers(0, 7)),
    st.tuples(st.just("quiet"), who, st.none()),
    st.tuples(st.just("wake"), who, st.none()),
    st.tuples(st.just("outage"), st.sampled_from(["alice", "bob", "both", "silence"]), st.sampled_from([3, 20, 400])),
    st.tuples(st.just("patience"), who, st.sampled_from([2.0, 10.0])),
)
history = st.lists(st.tuples(step, pause), min_size=3, max_size=25)


BEAT = 0.5  # seconds
BEATS = 50  # at most, of one step: longer than the patience of any host


class Story:
    """One history."""

    def __init__(self, seed: int, policy: Policy) -> None:
        self.world = World(seed=seed)
        self.alice = self.world.host("alice", A[0], policy=policy)
        self.bob = self.world.host("bob", B[0], policy=policy)
        self.sockets: list[FourTuple] = []  # as bob sees them
        self.ports = 40000
        self.protected: set[FourTuple] = set()
        self.writing: set[tuple[str, FourTuple]] = set()  # programs that write all the time

    def host(self, name: str) -> Host:
        return self.alice if name == "alice" else self.bob

    def socket(self, host: Host, number: int) -> FourTuple:
        """One of them, as the host sees it."""
        socket = self.sockets[number % len(self.sockets)]
        return socket if host is self.bob else socket.mirrored

    def do(self, what: str, name: str | None, value: object) -> None:
        world = self.world
        host = self.host(name or "bob")
        match what, value:
            case "move", list():
                pool = A if host is self.alice else B
                host.move(*[pool[i] for i in value])
            case "open", _:
                self.open(host)
            case "close", int():
                if self.sockets:
                    host.closed(self.socket(host, value))
            case "kill", int():
                c = host.engine.table.at(self.socket(host, value)) if host.up and self.sockets else None
                if c is not None:
                    host.engine.kill(world.now, c.cid)
                    host.run()
            case "cut", bool():
                world.link.cut = value
            case "loss", float():
                world.link.loss = value
            case "jitter", float():
                world.link.jitter = value
            case "duplicate", float():
                world.link.duplicate = value
            case "kernel", float():
                host.kernel_delay = value
            case "refusing kernel", bool():
                host.kernel_error = "no memory" if value else None
            case "crash", _:
                host.crash()
            case "start", _:
                if not host.up:
                    host.start()
            case "announce", _:
                if host.up:
                    host.engine.announce(world.now)
                    host.run()
            case "approve", _:
                self.approve(host)
            case "find", _:
                host.find()
            case "write", int():
                if self.sockets:
                    self.writing.add((host.name, self.socket(host, value)))
            case "quiet", _:
                self.writing = {(of, socket) for of, socket in self.writing if of != host.name}
            case "wake", _:
                if host.up:
                    host.engine.woke(world.now)
                    host.run()
            case "outage", int():
                self.outage(name or "", value)
            case "patience", float():
                host.policy = replace(host.policy, suspend_after=value)
                if host.up:
                    host.engine.policy_changed(world.now, host.policy)
                    host.run()
            case "replay", int():
                if world.recorded:
                    source, to, data = world.recorded[value % len(world.recorded)]
                    for at in (self.alice, self.bob):
                        for address in at.addresses:
                            at.deliver(data, source, to._replace(host=address))

    def open(self, host: Host) -> None:
        """TCP connects where the two reach one another."""
        alice, bob = self.alice, self.bob
        if self.world.link.cut or not alice.addresses or not bob.addresses or not host.up or len(self.sockets) >= 8:
            return
        self.ports += 1
        socket, mirrored = self.world.connect(bob, alice, self.ports, watch=False)
        self.sockets.append(socket)
        host.opened(socket if host is bob else mirrored)

    def approve(self, host: Host) -> None:
        for key in list(host.engine.peers) if host.up else []:
            host.engine.approve(self.world.now, key)
            host.run()

    def outage(self, of: str, seconds: int) -> None:
        """No path for a while, because of addresses or of the network; then as before."""
        without = [h for h in (self.alice, self.bob) if of in (h.name, "both")]
        before = [(h, list(map(str, h.addresses))) for h in without]
        cut = self.world.link.cut
        self.world.link.cut = cut or of == "silence"
        for host in without:
            host.move()
        self.run(seconds)
        for host, addresses in before:
            host.move(*addresses)
        self.world.link.cut = cut

    def look(self) -> None:
        """The beat of daemon/stalls.py: what is written gets through, or it does not."""
        for name, socket in sorted(self.writing, key=str):
            host = self.host(name)
            c = host.engine.table.at(socket) if host.up else None
            if c is None or c.state is not State.PROTECTED or socket not in host.sockets:
                continue
            other = self.bob if host is self.alice else self.alice
            there = c.local_now in host.addresses and c.remote_now in other.addresses
            (host.engine.heard if there and not self.world.link.cut else host.engine.stalled)(self.world.now, [socket])
            host.run()

    def run(self, seconds: float) -> None:
        end = self.world.now + seconds
        for _ in range(BEATS if self.writing else 0):
            if self.world.now + BEAT < end:
                self.look()
                self.world.run(BEAT)
        self.world.run(end - self.world.now)
        both = self.alice.up and self.bob.up
        self.protected |= {s for s in self.sockets if both and self.bob.protects(s) and self.alice.protects(s.mirrored)}

    def heal(self) -> None:
        """Everything works again, for as long as the longest timers."""
        world = self.world
        self.writing.clear()
        world.link.loss = world.link.duplicate = world.link.jitter = 0.0
        world.link.cut = False
        for host, home in ((self.alice, A[0]), (self.bob, B[0])):
            host.kernel_delay, host.kernel_error = 0.0, None
            if not host.up:
                host.start()
            if not host.addresses:
                host.move(home)
        self.run(10)
        for host in (self.alice, self.bob):
            self.approve(host)
            host.find()
        self.run(150)
        self.meet()
        self.run(150)

    def meet(self) -> None:
        """When each looks for the other where it is not, one comes back to where it was."""
        lost = [
            (c.wire.remote, theirs.wire.remote)
            for c in self.bob.engine.table.movable()
            if (theirs := self.alice.engine.table.at(c.socket.mirrored)) is not None and theirs.movable
            and c.wire.remote.host not in self.alice.addresses and theirs.wire.remote.host not in self.bob.addresses
        ]  # fmt: skip
        if lost:
            note("they meet")
            self.alice.addresses = list({*self.alice.addresses, *(at.host for at, _ in lost)})
            self.alice.network_changed()


@given(seed=st.integers(0, 2**32), steps=history, ask=st.booleans())
def test_the_two_ends_agree_when_the_network_heals(seed: int, steps: list, ask: bool) -> None:
    story = Story(seed, Policy(first_contact="ask" if ask else "accept-new", long_lived_after=1.0))
    alice, bob = story.alice, story.bob
    story.open(bob)
    story.run(3)
    story.approve(alice)
    story.approve(bob)
    story.run(40 if ask else 0)
    for (what, name, value), seconds in steps:
        story.do(what, name, value)
        story.run(seconds)
    story.heal()
    # Without a path announcements go out 20 times a second, whatever comes of them (constants.PROBE_PAUSE).
    announced = sum(isinstance(m, Acm) for host in (alice, bob) for m, *_ in host.messages)
    assert announced < 2000 + 25 * 2 * (story.world.now - 1000), f"{announced} announcements"
    sent = len(story.world.recorded) - announced
    assert sent < 2000 + 5 * (story.world.now - 1000), f"{sent} datagrams: they answer each other without end"
    for socket in story.sockets:
        mirrored = socket.mirrored
        if socket not in bob.sockets or mirrored not in alice.sockets:
            continue
        mine, theirs = bob.engine.table.at(socket), alice.engine.table.at(mirrored)
        if mine is None or theirs is None or not (mine.movable and theirs.movable):
            shown = [c and (c.state.value, c.reason, str(c.wire)) for c in (mine, theirs)]
            assert not any(c is not None and c.movable for c in (mine, theirs)), f"one end protects: {shown}"
            assert story.world.kernel_failed or socket not in story.protected, f"was protected: {shown}"
            continue
        assert (mine.state, theirs.state) == (State.PROTECTED, State.PROTECTED)
        assert (mine.lost_since, theirs.lost_since) == (None, None)
        assert mine.cid == theirs.cid
        assert (mine.peer_tuple, theirs.peer_tuple) == (mirrored, socket)
        assert None not in (mine.sending, mine.receiving)
        assert (mine.sending, mine.receiving) == (theirs.receiving, theirs.sending)
        assert agree(alice, bob, mirrored), f"{mine.wire} and {theirs.wire}"
        assert mine.wire.local.host in bob.addresses
        assert mine.wire.remote.host in alice.addresses
        assert mine.confirmed == mine.wire.local.host
        assert theirs.confirmed == theirs.wire.local.host
    for host, other in ((alice, bob), (bob, alice)):
        # Whose other end has ended, and whose host is nowhere to be found, is kept until it is given up.
        peer = host.engine.peers.get(other.static.public)
        lost = peer is not None and peer.remote is not None and peer.remote.host not in other.addresses
        kept = {socket for socket in host.sockets if lost and socket.mirrored not in other.sockets}
        assert not host.held & host.sockets - kept, f"{host.name}: still held back"
        assert not set(host.altered) - kept, f"{host.name}: not as it was"
        for socket in host.flows:
            assert socket in host.sockets or host.engine.table.ended(socket), f"{host.name}: a flow is left over"


@given(seed=st.integers(0, 2**32), moves=st.lists(st.tuples(who, st.integers(0, 3), pause), max_size=30))
def test_moves_alone_never_lose_a_connection(seed: int, moves: list) -> None:
    """One after the other or both alternating, quickly or slowly, over a network that only delays."""
    story = Story(seed, Policy(first_contact="accept-new", long_lived_after=1.0))
    alice, bob = story.alice, story.bob
    story.open(bob)
    story.run(3)
    (socket,) = story.sockets
    assert story.protected == {socket}
    story.world.link.jitter = 0.05
    for name, i, seconds in moves:
        story.do("move", name, [i])
        story.run(seconds)
    story.heal()
    assert agree(alice, bob, socket.mirrored)
    assert bob.protects(socket)
    assert bob.flows[socket].local.host in bob.addresses
    assert bob.flows[socket].remote.host in alice.addresses
    assert ip(A[0]) == bob.connection(socket).socket.remote.host

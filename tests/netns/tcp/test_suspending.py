"""Suspended connections outlive every limit that TCP has, on a host where minutes stand for days.

Both hosts of socket_lab.py, cut from each other: a retransmission gives up after 13 to 25 s (tcp_retries2 = 5), a
keepalive after 20 s, and some programs set TCP_USER_TIMEOUT to 15 s: who answers them is one busy process.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

import pytest

from redirectctl.flows.connection import Before, Flow
from redirectctl.kernel.constants import Queue
from redirectctl.kernel.netfilter.packet_queue import PacketQueue
from redirectctl.kernel.netfilter.rewriter import Rewriter
from redirectctl.kernel.sockets.borrow import Handle, borrow
from redirectctl.kernel.sockets.diag import CONNECTED, SockDiag, SocketInfo, Timer
from redirectctl.kernel.tcp.backoff import BackoffReverter
from redirectctl.kernel.tcp.inband import RawSender
from redirectctl.kernel.tcp.inject import RawInjector
from redirectctl.kernel.tcp.suspend import Suspender
from redirectctl.wire.addr import FourTuple
from redirectctl.wire.ip import parse_tcp, timestamps_of
from tests.netns.tcp.socket_lab import Connection, Host, Wire, inside, until_async

TCP_USER_TIMEOUT, TCP_TIMESTAMP = 18, 24
OUTAGE = 65.0  # seconds: more than twice what a connection lives otherwise
USER_TIMEOUT = 15_000  # milliseconds
DEAD = 28.0  # seconds after which a connection is dead otherwise
SETTINGS = {
    "net.ipv4.tcp_retries2": 5,
    "net.ipv4.tcp_keepalive_time": 5,
    "net.ipv4.tcp_keepalive_intvl": 3,
    "net.ipv4.tcp_keepalive_probes": 5,
}


class Sender(RawSender):
    """Remembers what it has sent."""

    def __init__(self) -> None:
        super().__init__(mark=0)
        self.sent: list[bytes] = []

    def send(self, wire: FourTuple, packet: bytes) -> None:
        self.sent.append(packet)
        super().send(wire, packet)


class Daemon:
    """What a daemon on one of the hosts has."""

    def __init__(self, host: Host, flows: Iterable[Flow] = (), *, spared: Collection[int] = ()) -> None:
        """``flows``: what it takes over; ``spared``: inodes of sockets that it may not borrow."""
        self.errors: list[Exception] = []
        self.spared = spared
        with inside(host.name):
            self.diag = SockDiag()
            self.injector = RawInjector()
            self.rewriter = Rewriter()
            self.rewriter.setup(flows)
            self.backoff = BackoffReverter(self.diag, self.injector, self.rewriter.probe)
            self.sender = Sender()
            self.answered: set[FourTuple] = set()
            self.suspender = Suspender(
                self.diag, self.injector, self.backoff, self.sender, self.lend, answered=self.answered.add
            )
            handlers = {
                Queue.PROBE: self.backoff.on_ack,
                Queue.WAIT: self.suspender.on_packet,
                Queue.ANSWER: self.suspender.on_arrival,
            }
            self.queues = [PacketQueue(n, handler, on_error=self.errors.append) for n, handler in handlers.items()]
        for queue in self.queues:
            queue.start(asyncio.get_running_loop())
        self.rewriter.drain = self.drain

    def drain(self) -> None:
        for queue in self.queues:
            queue.drain()

    def lend(self, inodes: Collection[int]) -> dict[int, Handle]:
        return borrow(set(inodes) - set(self.spared))

    async def protect(self, connections: Collection[FourTuple]) -> None:
        self.rewriter.apply(add=[Flow(one, one) for one in connections])
        assert await self.backoff.learn(connections) == []

    def hold(self, connections: Collection[FourTuple]) -> None:
        before = [Flow(one, one) for one in connections]
        self.rewriter.apply(add=[Flow(one, one, suspended=True) for one in connections], remove=before)

    async def suspend(self, connections: Collection[FourTuple]) -> dict[FourTuple, Before]:
        self.hold(connections)
        befores = await self.suspender.prepare(connections)
        await self.suspender.suspend(befores)
        return befores

    async def resume(self, connections: Collection[FourTuple]) -> None:
        suspended = [Flow(one, one, suspended=True) for one in connections]
        self.rewriter.apply(add=[Flow(one, one) for one in connections], remove=suspended)
        await self.suspender.resume(connections)

    async def settled(self) -> None:
        async with asyncio.timeout(10):
            while self.suspender._leaving:
                await self.suspender.tend()
                await asyncio.sleep(0.05)

    def look(self, connection: FourTuple) -> SocketInfo:
        found = self.diag.get(connection)
        assert found is not None
        return found

    def close(self) -> None:
        for queue in self.queues:
            queue.close()
        self.suspender.close()
        self.rewriter.close()
        self.injector.close()
        self.sender.close()
        self.diag.close()
        assert not self.errors


@contextmanager
def daemons(wire: Wire, *, spared: Collection[int] = ()) -> Iterator[tuple[Daemon, Daemon]]:
    alice, bob = Daemon(wire.alice, spared=spared), Daemon(wire.bob, spared=spared)
    try:
        yield alice, bob
    finally:
        alice.close()
        bob.close()


@pytest.fixture
def impatient(wire: Wire) -> Wire:
    for host in (wire.alice, wire.bob):
        host.run("sysctl", "-qw", *(f"{name}={value}" for name, value in SETTINGS.items()))
    return wire


class Stream:
    """One direction: what its program wrote and what arrived."""

    def __init__(self, sender: socket.socket, receiver: socket.socket) -> None:
        self.sender, self.receiver = sender, receiver
        self.sent, self.arrived = bytearray(), bytearray()
        self.ended = False

    def write(self, size: int) -> None:
        """As much of it as the socket takes."""
        with suppress(BlockingIOError):
            data = os.urandom(size)
            self.sent += data[: self.sender.send(data)]

    def read(self) -> None:
        with suppress(BlockingIOError):
            while data := self.receiver.recv(1 << 20):
                self.arrived += data
            self.ended = True


@dataclass
class Case:
    """A connection in some state."""

    name: str
    connection: Connection
    up: Stream = field(init=False)  # alice to bob
    down: Stream = field(init=False)

    def __post_init__(self) -> None:
        client, server = self.connection.client, self.connection.server
        for one in (client, server):
            one.setblocking(False)
        self.up, self.down = Stream(client, server), Stream(server, client)

    def option(self, level: int, name: int, value: int) -> None:
        for one in (self.connection.client, self.connection.server):
            one.setsockopt(level, name, value)

    @property
    def complete(self) -> bool:
        for stream in (self.up, self.down):
            if not stream.ended and stream.receiver.fileno() >= 0:
                stream.read()
        return all(len(stream.arrived) >= len(stream.sent) for stream in (self.up, self.down))


def fill(stream: Stream) -> None:
    """Until the peer has closed its window."""
    for _ in range(64):
        stream.write(1 << 16)


Act = Callable[[Case], object]


def nothing(_: Case) -> None: ...


def user_timeout(case: Case) -> None:
    case.option(socket.IPPROTO_TCP, TCP_USER_TIMEOUT, USER_TIMEOUT)


def timeout_and_full(case: Case) -> None:
    user_timeout(case)
    fill(case.up)


def end_writing(case: Case) -> None:
    case.up.write(100)
    case.connection.client.shutdown(socket.SHUT_WR)


def urgent(case: Case) -> None:
    case.option(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
    case.up.write(100)
    case.connection.client.send(b"!", socket.MSG_OOB)
    case.up.sent += b"!"


def both_write(case: Case) -> None:
    case.up.write(3000)
    case.down.write(70_000)


# Before the cut, right after it, and in the middle of the outage.
STATES: dict[str, tuple[Act, Act, Act]] = {
    "idle": (nothing, nothing, nothing),
    "in flight from the client": (nothing, lambda case: case.up.write(100), nothing),
    "in flight from the server": (nothing, lambda case: case.down.write(100), nothing),
    "in flight both ways, more behind": (nothing, both_write, both_write),
    "written during the outage": (nothing, nothing, both_write),
    "many segments in flight": (nothing, lambda case: case.up.write(1 << 20), nothing),
    "client half closed before": (end_writing, lambda case: case.down.write(100), nothing),
    "FIN in flight": (nothing, end_writing, lambda case: case.down.write(100)),
    "half closed during the outage": (nothing, nothing, end_writing),
    "window closed": (lambda case: fill(case.up), nothing, nothing),
    "window closed, read meanwhile": (lambda case: fill(case.up), nothing, lambda case: case.up.read()),
    "urgent": (nothing, urgent, nothing),
    "program ends, data in flight": (nothing, lambda case: case.up.write(100), lambda c: c.connection.client.close()),
    "user timeout, idle": (user_timeout, nothing, nothing),
    "user timeout, in flight": (user_timeout, lambda case: case.up.write(100), nothing),
    "user timeout, written": (user_timeout, nothing, both_write),
    "user timeout, window closed": (timeout_and_full, nothing, nothing),
    "not borrowed, idle": (nothing, nothing, nothing),
    "not borrowed, in flight": (nothing, lambda case: case.up.write(100), nothing),
    "not borrowed, written": (nothing, nothing, both_write),
}
UNPROTECTED = ("idle", "in flight from the client", "in flight from the server", "user timeout, in flight")


def alive(daemon: Daemon, connection: FourTuple) -> bool:
    one = daemon.diag.get(connection)
    return one is not None and one.state in CONNECTED


def timed_out(connection: Connection) -> bool:
    ends = (connection.client, connection.server)
    return any(end.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ETIMEDOUT for end in ends)


async def wait(seconds: float, *daemons: Daemon) -> None:
    end = asyncio.get_running_loop().time() + seconds
    while asyncio.get_running_loop().time() < end:
        for daemon in daemons:
            await daemon.suspender.tend()
        await asyncio.sleep(0.5)


def test_every_state_lives_through_an_outage_and_no_byte_is_lost(impatient: Wire) -> None:
    def case(name: str, version: int) -> Case:
        made = Case(name, impatient.connect(version, receive_buffer=4096 if "window closed" in name else 0))
        made.option(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        return made

    def act(step: int, among: list[Case]) -> None:
        for one in among:
            STATES[one.name][step](one)

    async def scenario() -> None:
        # A listener hands its receive buffer on: those with a small one come last.
        order = sorted((*STATES, *UNPROTECTED), key=lambda name: "window closed" in name)
        every = [case(name, version) for name in order for version in (4, 6)]
        others = [one for name in UNPROTECTED for one in [c for c in every if c.name == name][:2]]
        cases = [one for one in every if one not in others]
        tuples = [one.connection.tuple for one in cases]
        mirrored = [one.mirrored for one in tuples]
        left_alone = [one.connection for one in cases if one.name.startswith("not borrowed")]
        ends = [end for connection in left_alone for end in (connection.client, connection.server)]
        with daemons(impatient, spared={os.fstat(end.fileno()).st_ino for end in ends}) as (alice, bob):
            await alice.protect(tuples)
            await bob.protect(mirrored)
            act(0, every)
            for one in every:
                if "window closed" in one.name:
                    await until_async(lambda one=one: alice.look(one.connection.tuple).timer == Timer.PROBE)  # type: ignore[misc]
            impatient.cut()
            act(1, every)
            befores = await alice.suspend(tuples)
            await bob.suspend(mirrored)
            for one in cases:
                expected = USER_TIMEOUT if one.name.startswith("user timeout") else 0
                assert befores[one.connection.tuple].user_timeout == expected
            await wait(OUTAGE / 2, alice, bob)
            act(2, cases)
            await wait(OUTAGE / 2, alice, bob)
            assert all(timed_out(one.connection) for one in others)
            assert [one.name for one in cases if not alive(alice, one.connection.tuple)] == []
            assert [one.name for one in cases if not alive(bob, one.connection.tuple.mirrored)] == []
            impatient.mend()
            await alice.resume(tuples)
            await bob.resume(mirrored)
            await until_async(lambda: [one.name for one in cases if not one.complete] == [])
            for one in cases:
                assert one.up.arrived == one.up.sent, one.name
                assert one.down.arrived == one.down.sent, one.name
            await alice.settled()
            await bob.settled()
            for one in cases:
                if one.name.startswith("user timeout"):
                    for end in (one.connection.client, one.connection.server):
                        assert end.getsockopt(socket.IPPROTO_TCP, TCP_USER_TIMEOUT) == USER_TIMEOUT
            ended = [one for one in cases if "closed d" in one.name or "FIN" in one.name or "ends" in one.name]
            await until_async(lambda: all(one.complete and one.up.ended for one in ended))

    asyncio.run(scenario())


def count_packets(host: Host) -> Callable[[], int]:
    """How many TCP packets have come from the other host since."""
    count = f"iifname {host.device} meta l4proto tcp counter name arrived;"
    chain = f"chain c {{ type filter hook prerouting priority -450;\n{count}\n}}"
    host.nft(f"table inet seen {{\ncounter arrived {{}}\n{chain}\n}}")
    return lambda: int(host.run("nft", "list", "counter", "inet", "seen", "arrived").split("packets")[1].split()[0])


@pytest.mark.parametrize("version", [4, 6])
def test_a_daemon_that_begins_again_goes_on(impatient: Wire, version: int) -> None:
    """While there is none, nothing leaves the host either."""
    in_flight = ("in flight", "not borrowed, in flight")
    written = ("written", "not borrowed, written")

    async def scenario() -> None:
        cases = {name: Case(name, impatient.connect(version)) for name in ("idle", *in_flight, *written)}
        for case in cases.values():  # the other host is not suspended and must not mind
            client = case.connection.client
            client.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            client.setsockopt(socket.IPPROTO_TCP, TCP_USER_TIMEOUT, 0 if "not" in case.name else USER_TIMEOUT)
        tuples = [case.connection.tuple for case in cases.values()]
        left_alone = [case.connection.client for case in cases.values() if "not" in case.name]
        spared = {os.fstat(one.fileno()).st_ino for one in left_alone}
        first = Daemon(impatient.alice, spared=spared)
        await first.protect(tuples)
        first.hold(tuples)
        packets = count_packets(impatient.bob)
        for name in in_flight:
            cases[name].up.write(5000)
        befores = await first.suspend(tuples)
        await wait(2, first)
        for name in written:
            cases[name].up.write(5000)
        first.close()
        await asyncio.sleep(4)
        assert packets() == 0
        second = Daemon(impatient.alice, [Flow(one, one, suspended=True) for one in tuples], spared=spared)
        try:
            await second.suspender.suspend(befores)
            await wait(DEAD, second)
            assert [case.name for case in cases.values() if not alive(second, case.connection.tuple)] == []
            await second.resume(tuples)
            await until_async(lambda: all(case.complete for case in cases.values()))
            assert all(case.up.arrived == case.up.sent for case in cases.values())
            await second.settled()
            for case in cases.values():
                expected = 0 if "not" in case.name else USER_TIMEOUT
                assert case.connection.client.getsockopt(socket.IPPROTO_TCP, TCP_USER_TIMEOUT) == expected
        finally:
            second.close()

    asyncio.run(scenario())


@pytest.mark.parametrize("which", ["borrowed", "not borrowed"])
@pytest.mark.parametrize("version", [4, 6])
def test_one_outage_after_the_other(impatient: Wire, version: int, which: str) -> None:
    """Each longer than a connection may go on without progress; between them the path carries for a moment only."""

    async def scenario() -> None:
        cases = [Case(which, impatient.connect(version))]
        tuples = [case.connection.tuple for case in cases]
        spared = {os.fstat(cases[0].connection.client.fileno()).st_ino} if which == "not borrowed" else set()
        with daemons(impatient, spared=spared) as (alice, bob):
            await alice.protect(tuples)
            await bob.protect([one.mirrored for one in tuples])
            impatient.cut()
            for case in cases:
                case.up.write(100_000)
            for _ in range(2):
                await alice.suspend(tuples)
                await bob.suspend([one.mirrored for one in tuples])
                await wait(DEAD, alice, bob)
                # Only alice learns of a path, and there is none.
                await alice.resume(tuples)
            await alice.suspend(tuples)
            await wait(4, alice, bob)
            impatient.mend()
            await alice.resume(tuples)
            await bob.resume([one.mirrored for one in tuples])
            await until_async(lambda: all(case.complete for case in cases))
            assert all(case.up.arrived == case.up.sent for case in cases)

    asyncio.run(scenario())


@pytest.mark.parametrize("version", [4, 6])
def test_what_the_peer_sends_still_arrives(impatient: Wire, version: int) -> None:
    async def scenario() -> None:
        case = Case("one-way", impatient.connect(version))
        connection = case.connection.tuple
        with daemons(impatient) as (alice, _):
            await alice.protect([connection])
            await alice.suspend([connection])
            case.down.write(1000)
            case.up.write(1000)
            await until_async(lambda: case.complete or len(case.down.arrived) == 1000)
            await wait(2, alice)
            assert case.up.arrived == b""
            await alice.resume([connection])
            await until_async(lambda: case.complete)
            assert (case.up.arrived, case.down.arrived) == (case.up.sent, case.down.sent)
            await until_async(lambda: alice.look(connection).write_queue == 0)

    asyncio.run(scenario())


def clock_of(connection: Connection) -> int:
    """The timestamp that the client's socket would send now, give or take one (`tcp_clock_ts`)."""
    return connection.client.getsockopt(socket.IPPROTO_TCP, TCP_TIMESTAMP) & 0xFFFF_FFFF


@pytest.mark.parametrize("other", ["not suspended", "suspended", "suspended, not let out"])
@pytest.mark.parametrize("version", [4, 6])
def test_the_peers_kernel_shows_that_the_path_is_back(impatient: Wire, version: int, other: str) -> None:
    async def scenario() -> None:
        cases = [Case(name, impatient.connect(version)) for name in ("idle", "in flight", "written", "not borrowed")]
        tuples = [case.connection.tuple for case in cases]
        spared = {os.fstat(cases[-1].connection.client.fileno()).st_ino}
        with daemons(impatient, spared=spared) as (alice, bob):
            await alice.protect(tuples)
            await bob.protect([one.mirrored for one in tuples])
            impatient.cut()
            for case in cases[1:]:
                case.up.write(3000)
            alice.suspender.let_out(tuples, on=True)
            await alice.suspend(tuples)
            if other != "not suspended":
                await bob.suspend([one.mirrored for one in tuples])
            if other == "suspended":
                bob.suspender.let_out([one.mirrored for one in tuples], on=True)
            for _ in range(12):
                alice.suspender.ask(tuples)
                await wait(0.6, alice, bob)
            cases[2].up.write(3000)
            assert not alice.answered
            for sent, case in zip(alice.sender.sent[-len(cases) :], cases, strict=True):
                stamps = timestamps_of(parse_tcp(sent).options)
                assert stamps is not None
                assert 0 <= (clock_of(case.connection) + 1 - stamps.value) & 0xFFFF_FFFF < 10_000
            impatient.mend()
            if other == "suspended, not let out":
                for _ in range(4):
                    alice.suspender.ask(tuples)
                    await wait(0.6, alice, bob)
                assert not alice.answered
                bob.suspender.let_out([one.mirrored for one in tuples], on=True)
            # What is written goes through before anything is lifted.
            cases[0].up.write(3000)
            await until_async(lambda: cases[0].complete)
            left = set(tuples)
            for _ in range(30):
                if not left:
                    break
                alice.suspender.ask(left)
                end = time.monotonic() + 0.6
                while time.monotonic() < end:
                    await asyncio.sleep(0.01)
                    if answered := left & alice.answered:
                        await alice.resume(answered)
                        left -= answered
            assert not left
            await until_async(lambda: all(case.complete for case in cases))
            for case in cases:
                assert case.up.arrived == case.up.sent, case.name
            await alice.settled()

    asyncio.run(scenario())

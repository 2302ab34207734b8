"""How long programs saw nothing in a move, by what the kernel counts."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from redirectctl.daemon.gaps import OVER, PATIENCE, SAMPLE, Gaps
from redirectctl.daemon.tasks import Tasks
from redirectctl.flows.commands import Notice
from redirectctl.flows.connection import Connection, Table
from redirectctl.flows.state import State
from redirectctl.kernel.errors import KernelError
from redirectctl.kernel.sockets.diag import TcpInfo
from redirectctl.wire.addr import FourTuple, IPAddress, SockAddr

PEER = bytes(32)
ZERO = TcpInfo._make([0] * len(TcpInfo._fields))


class Kernel:
    """Sockets of one host, and a clock that the test sets."""

    def __init__(self, connections: int = 1) -> None:
        self.now = 100.0
        self.table = Table()
        self.infos: dict[FourTuple, TcpInfo] = {}
        self.usable: list[IPAddress] = []
        self.recorded: list[Notice] = []
        self.tasks = Tasks()
        self.looked = 0
        self.refuses = False
        for n in range(connections):
            socket = FourTuple(SockAddr.parse(f"192.0.2.1:{4000 + n}"), SockAddr.parse("198.51.100.2:22"))
            c = Connection(n.to_bytes(8), socket, socket, 0.0, State.PROTECTED, peer=PEER)
            self.table.add(c)
            self.infos[socket] = ZERO
            self.usable = [socket.local.host]
        self.gaps = Gaps(self.table, self.look, lambda: self.usable, lambda: self.now, self.tasks, self.recorded.append)

    def look(self, sockets: Iterable[FourTuple]) -> dict[FourTuple, TcpInfo]:
        if self.refuses:
            raise KernelError("inet_diag", "no", "")
        wanted = list(sockets)
        self.looked += len(wanted)
        return {s: self.infos[s] for s in wanted}

    def has(self, **values: int) -> None:
        """What the kernel says of each socket from now on."""
        self.infos = {s: info._replace(**values) for s, info in self.infos.items()}

    async def after(self, seconds: float) -> None:
        """Time passes, and somebody looks."""
        self.now += seconds
        self.gaps.look()

    def tell(self, name: str) -> None:
        cids = tuple(c.cid for c in self.table)
        self.gaps.take(Notice(name, peer=PEER, cids=cids))

    async def gap(self) -> float | None:
        """Of the move that has ended."""
        for _ in range(200):
            if self.recorded and self.recorded[-1].name in ("move.finished", "move.received"):
                gap: float | None = self.recorded[-1].details.get("gap")
                return gap
            await asyncio.sleep(0.01)
        raise AssertionError("not recorded")


def test_what_waits_from_the_loss_to_the_first_answer_after() -> None:
    async def move() -> float | None:
        kernel = Kernel()
        kernel.has(unacked=1, bytes_acked=5)
        kernel.usable = []
        kernel.tell("move.started")
        await kernel.after(3.0)
        kernel.tell("move.finished")
        assert kernel.recorded[-1].name == "move.started", "the end is not written down before it is known"
        kernel.now += 0.25
        kernel.has(bytes_acked=6)
        return await kernel.gap()

    assert asyncio.run(move()) == 3.25


def test_what_was_sent_in_vain_before_anybody_knew_counts() -> None:
    """Time-outs of 0.2, 0.4 and 0.8 s are over, the next is 1.6 s."""

    async def move() -> float | None:
        kernel = Kernel()
        kernel.has(unacked=1, backoff=3, rto=1_600_000)
        kernel.tell("move.started")
        await kernel.after(1.0)
        kernel.has(bytes_acked=6, unacked=0, backoff=0)
        kernel.tell("move.finished")
        return await kernel.gap()

    assert asyncio.run(move()) == 2.4


def test_silent_ones_have_the_time_without_a_path() -> None:
    async def move() -> float | None:
        kernel = Kernel()
        kernel.usable = []
        kernel.tell("move.started")
        await kernel.after(7.0)
        kernel.tell("move.finished")
        assert len(kernel.recorded) == 2, "there is nothing to wait for"
        return await kernel.gap()

    assert asyncio.run(move()) == 7.0


def test_not_known_is_not_zero() -> None:
    """The old address still carries, and nobody has said anything."""

    async def move() -> float | None:
        kernel = Kernel()
        kernel.tell("move.started")
        await kernel.after(7.0)
        kernel.tell("move.finished")
        return await kernel.gap()

    assert asyncio.run(move()) is None


def test_time_in_which_nothing_was_sent_is_no_waiting() -> None:
    async def move() -> float | None:
        kernel = Kernel()
        kernel.usable = []
        kernel.tell("move.started")
        await kernel.after(50.0)
        kernel.has(unacked=1)  # somebody types
        await kernel.after(0.0)
        await kernel.after(2.0)
        kernel.has(unacked=0, bytes_acked=1)
        kernel.tell("move.finished")
        return await kernel.gap()

    assert asyncio.run(move()) == 2.0


def test_what_is_not_answered_after_the_move_does_not_hold_it_up() -> None:
    async def move() -> float | None:
        kernel = Kernel()
        kernel.has(unacked=1)
        kernel.usable = []
        kernel.tell("move.started")
        await kernel.after(1.0)
        kernel.tell("move.finished")
        kernel.now += PATIENCE
        return await kernel.gap()

    assert asyncio.run(move()) == 1.0 + PATIENCE


def test_of_many_a_few_are_looked_at() -> None:
    async def move() -> int:
        kernel = Kernel(1000)
        kernel.usable = []
        kernel.tell("move.started")
        for c in kernel.table:
            kernel.gaps.take(Notice("connection.suspended", c.cid, PEER))
        kernel.tell("move.finished")
        await kernel.gap()
        return kernel.looked

    assert asyncio.run(move()) <= 4 * SAMPLE


def test_a_kernel_that_does_not_answer_loses_no_event() -> None:
    async def move() -> None:
        kernel = Kernel()
        kernel.refuses = True
        for name in ("move.started", "move.finished", "move.received", "path.changed"):
            kernel.tell(name)
        assert [n.name for n in kernel.recorded] == ["move.started", "move.finished", "move.received", "path.changed"]

    asyncio.run(move())


def test_what_came_back_without_a_move_is_not_watched_for_ever() -> None:
    async def comes_back() -> int:
        kernel = Kernel()
        (c,) = kernel.table
        c.lost_since = kernel.now
        kernel.gaps.take(Notice("connection.suspended", c.cid, PEER))
        await kernel.after(1000.0)
        assert kernel.gaps._watched, "it has no path yet"
        c.lost_since = None
        await kernel.after(OVER - 1)
        assert kernel.gaps._watched, "a move may still end it"
        await kernel.after(2.0)
        return len(kernel.gaps._watched)

    assert asyncio.run(comes_back()) == 0

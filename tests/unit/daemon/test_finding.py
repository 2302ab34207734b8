"""When the finder looks at the socket table, and what it tells of."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from redirectctl.config import Protect
from redirectctl.daemon.finder import SLOW, Finder
from redirectctl.flows.connection import Connection
from redirectctl.kernel.errors import KernelError
from redirectctl.kernel.sockets.bytecode import SocketFilter
from redirectctl.kernel.sockets.diag import SocketInfo, TcpState
from redirectctl.kernel.sockets.survey import Seen
from redirectctl.wire.addr import FourTuple, SockAddr


def socket(port: int) -> SocketInfo:
    tuple_ = FourTuple(SockAddr.parse(f"192.0.2.1:{port}"), SockAddr.parse("198.51.100.2:22"))
    return SocketInfo(tuple_, 2, TcpState.ESTABLISHED, 0, 0, 0, 0, 0, port, port, 0, None, False, None)


class Table:
    """Of the engine: which sockets are known."""

    def __init__(self, known: set[FourTuple]) -> None:
        self._known = known

    def at(self, tuple_: FourTuple) -> FourTuple | None:
        return tuple_ if tuple_ in self._known else None

    def __iter__(self) -> Iterator[Connection]:
        return iter(())


class Host:
    """Sockets, what the kernel counts of them, and an engine that notes what it is told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sockets: list[SocketInfo] = []
        self.opened = 0
        self.looks: list[SocketFilter] = []
        self.found: list[int] = []
        self.known: set[FourTuple] = set()
        self._before: list[SocketInfo] = []
        self.fails = False
        self.finder = finder = Finder.__new__(Finder)
        finder._engine = SimpleNamespace(table=Table(self.known), found=self._found)  # type: ignore[assignment]
        finder.settings = Protect(ports=[22])
        finder._own_addresses = frozenset
        finder._changed = lambda: None
        finder._opens = lambda: (b"%d" % self.opened,)
        finder._survey = SimpleNamespace(look=self._look)  # type: ignore[assignment]
        finder._groups, finder._tree, finder._counted, finder._wanted = {}, None, None, None
        finder._looked_anew = float("-inf")
        monkeypatch.setattr(finder, "_owners", self._owners)
        monkeypatch.setattr(finder, "present", frozenset)

    def open(self, port: int, *, counted: bool = True) -> None:
        self.sockets.append(socket(port))
        self.opened += counted

    def _look(self, wanted: SocketFilter, states: Any) -> Seen:
        self.looks.append(wanted)
        if self.fails:
            raise KernelError("listing sockets", "no memory", "try again")
        before, self._before = self._before, list(self.sockets)
        return Seen(list(self.sockets), [one for one in self.sockets if one not in before])

    async def _owners(self, inodes: Iterable[int], **_: Any) -> dict[int, Any]:
        return {}

    def _found(self, now: float, tuple_: FourTuple, **_: Any) -> None:
        self.found.append(tuple_.local.port)
        self.known.add(tuple_)

    async def beat(self, now: float) -> None:
        wanted = self.finder._what()
        assert wanted is not None
        await self.finder._look(now, wanted)


@pytest.fixture
def story(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Host], Awaitable[None]]], None]:
    def run(tell: Callable[[Host], Awaitable[None]]) -> None:
        async def inside() -> None:
            await tell(Host(monkeypatch))

        asyncio.run(inside())

    return run


Story = Callable[[Callable[[Host], Awaitable[None]]], None]


def test_a_new_connection_is_found_at_the_next_beat_and_nobody_looks_without(story: Story) -> None:
    async def tell(host: Host) -> None:
        host.open(1)
        for beat in range(5):
            await host.beat(float(beat))
        assert (host.found, len(host.looks)) == ([1], 1)
        host.open(2)
        await host.beat(5.0)
        assert (host.found, len(host.looks)) == ([1, 2], 2)

    story(tell)


def test_one_that_was_not_counted_or_is_known_no_more_is_found_a_little_later(story: Story) -> None:
    async def tell(host: Host) -> None:
        host.open(1)
        await host.beat(0.0)
        host.open(2, counted=False)
        host.known.clear()
        await host.beat(SLOW - 1)
        assert host.found == [1]
        await host.beat(SLOW)
        assert host.found == [1, 1, 2]

    story(tell)


def test_what_is_looked_for_has_changed(story: Story) -> None:
    async def tell(host: Host) -> None:
        await host.beat(0.0)
        host.finder.settings = Protect(ports=[22, 443])
        await host.beat(1.0)
        assert [sorted(look.remote_ports) for look in host.looks] == [[22], [22, 443]]

    story(tell)


def test_a_look_that_failed_is_made_again(story: Story) -> None:
    async def tell(host: Host) -> None:
        await host.beat(0.0)
        host.open(1)
        host.fails = True
        with pytest.raises(KernelError):
            await host.beat(1.0)
        host.fails = False
        await host.beat(2.0)
        assert host.found == [1]

    story(tell)

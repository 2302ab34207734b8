"""When the finder looks at the socket table, and what it tells of."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from redirectctl.config import Protect
from redirectctl.daemon import finder as module
from redirectctl.daemon.finder import SLOW, Finder
from redirectctl.kernel.diag import SocketInfo, TcpState
from redirectctl.kernel.errors import KernelError
from redirectctl.kernel.inet_filter import SocketFilter
from redirectctl.kernel.survey import Seen
from redirectctl.wire.addr import FourTuple, SockAddr


def socket(port: int) -> SocketInfo:
    tuple_ = FourTuple(SockAddr.parse(f"192.0.2.1:{port}"), SockAddr.parse("198.51.100.2:22"))
    return SocketInfo(tuple_, 2, TcpState.ESTABLISHED, 0, 0, 0, 0, 0, port, port, 0, None, False, None)


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
        table = SimpleNamespace(at=lambda tuple_: tuple_ if tuple_ in self.known else None)
        self.finder = finder = Finder.__new__(Finder)
        finder._engine = SimpleNamespace(table=table, found=self._found)  # type: ignore[assignment]
        finder.settings = Protect(ports=[22])
        finder._own_addresses = frozenset
        finder._changed = lambda: None
        finder._opens = lambda: (b"%d" % self.opened,)
        finder._survey = SimpleNamespace(look=self._look)  # type: ignore[assignment]
        finder._groups, finder._tree, finder._counted, finder._wanted = {}, None, None, None
        finder._looked_anew = float("-inf")
        monkeypatch.setattr(module.procs, "owners", lambda *_, **__: {})

    def open(self, port: int, *, counted: bool = True) -> None:
        self.sockets.append(socket(port))
        self.opened += counted

    def _look(self, wanted: SocketFilter, states: Any) -> Seen:
        self.looks.append(wanted)
        if self.fails:
            raise KernelError("listing sockets", "no memory", "try again")
        before, self._before = self._before, list(self.sockets)
        return Seen(list(self.sockets), [one for one in self.sockets if one not in before])

    def _found(self, now: float, tuple_: FourTuple, **_: Any) -> None:
        self.found.append(tuple_.local.port)
        self.known.add(tuple_)

    def beat(self, now: float) -> None:
        wanted = self.finder._what()
        assert wanted is not None
        self.finder._look(now, wanted)


@pytest.fixture
def story(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Host], None]], None]:
    def run(tell: Callable[[Host], None]) -> None:
        async def inside() -> None:
            tell(Host(monkeypatch))

        asyncio.run(inside())

    return run


Story = Callable[[Callable[[Host], None]], None]


def test_a_new_connection_is_found_at_the_next_beat_and_nobody_looks_without(story: Story) -> None:
    def tell(host: Host) -> None:
        host.open(1)
        for beat in range(5):
            host.beat(float(beat))
        assert (host.found, len(host.looks)) == ([1], 1)
        host.open(2)
        host.beat(5.0)
        assert (host.found, len(host.looks)) == ([1, 2], 2)

    story(tell)


def test_one_that_was_not_counted_or_is_known_no_more_is_found_a_little_later(story: Story) -> None:
    def tell(host: Host) -> None:
        host.open(1)
        host.beat(0.0)
        host.open(2, counted=False)
        host.known.clear()
        host.beat(SLOW - 1)
        assert host.found == [1]
        host.beat(SLOW)
        assert host.found == [1, 1, 2]

    story(tell)


def test_what_is_looked_for_has_changed(story: Story) -> None:
    def tell(host: Host) -> None:
        host.beat(0.0)
        host.finder.settings = Protect(ports=[22, 443])
        host.beat(1.0)
        assert [sorted(look.remote_ports) for look in host.looks] == [[22], [22, 443]]

    story(tell)


def test_a_look_that_failed_is_made_again(story: Story) -> None:
    def tell(host: Host) -> None:
        host.beat(0.0)
        host.open(1)
        host.fails = True
        with pytest.raises(KernelError):
            host.beat(1.0)
        host.fails = False
        host.beat(2.0)
        assert host.found == [1]

    story(tell)

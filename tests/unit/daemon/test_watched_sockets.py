"""Whose connections somebody who watches is told about."""

import asyncio
from ipaddress import IPv4Address
from pathlib import Path
from types import SimpleNamespace

import pytest

from redirectctl.daemon.finder import Finder, _Group
from redirectctl.daemon.watching import connections_of
from redirectctl.flows.connection import Connection
from redirectctl.flows.state import State
from redirectctl.kernel.processes import procfs
from redirectctl.kernel.processes.cgroup import Cgroup
from redirectctl.wire.addr import FourTuple, SockAddr

ROOT, ANNA, BERT = 0, 1000, 1001
OWNER = 4711  # the process that the cgroup was made for
BEGAN = 500  # when it was started


def socket(port: int) -> FourTuple:
    return FourTuple(SockAddr(IPv4Address("192.0.2.1"), port), SockAddr(IPv4Address("192.0.2.2"), 22))


def finder_with(owned: dict[FourTuple, int]) -> Finder:
    group = Cgroup(77, Path(f"/sys/fs/cgroup/redirectctl-{OWNER}"))
    finder = Finder.__new__(Finder)
    finder._tree = SimpleNamespace(group_of=lambda pid: group if pid < OWNER + 2 else None)  # type: ignore[assignment]
    other = _Group(Cgroup(78, Path("/other")), 0.0, None, {socket(4): ANNA})
    finder._groups = {77: _Group(group, 0.0, BEGAN, owned), 78: other}
    return finder


@pytest.mark.parametrize(
    ("pid", "uid", "began", "ports"),
    [
        (OWNER, ANNA, BEGAN, [1, 2, 3]),  # `redirect-run sudo ...`: all are of her command
        (OWNER, ANNA, BEGAN + 1, [2]),  # another process has that number by now
        (OWNER + 1, ANNA, BEGAN, [2]),  # somewhere in that cgroup: her own
        (OWNER + 1, BERT, BEGAN, [3]),  # `redirect-run su bert`: nothing of hers
        (OWNER + 1, ROOT, BEGAN, [1, 2, 3]),
        (OWNER + 2, ANNA, BEGAN, []),  # in no cgroup of ours
    ],
)
def test_sockets_with(monkeypatch: pytest.MonkeyPatch, pid: int, uid: int, began: int, ports: list[int]):
    monkeypatch.setattr(procfs, "start_time", lambda pid: began)
    finder = finder_with({socket(1): ROOT, socket(2): ANNA, socket(3): BERT})
    assert [each.local.port for each in finder.sockets_with(pid, uid)] == ports


@pytest.mark.parametrize(
    ("pid", "uid", "expected"),
    [
        (OWNER, ANNA, True),
        (OWNER, BERT, False),
        (OWNER, ROOT, True),
        (OWNER + 2, ANNA, False),
        (OWNER + 2, ROOT, False),
    ],
)
def test_whether_a_process_is_opted_in(pid: int, uid: int, expected: bool):
    """Whoever it was made for: of another user's nothing is told."""
    assert finder_with({socket(1): ROOT, socket(2): ANNA}).opted_in(pid, uid) is expected


@pytest.mark.parametrize(("uid", "ports"), [(ROOT, [1, 2]), (ANNA, [2]), (BERT, [])])
def test_of_another_process(uid: int, ports: list[int]):
    """The user's own connections of the process that is named."""
    table = [connection(1, OWNER, ROOT), connection(2, OWNER, ANNA), connection(3, OWNER + 1, ANNA)]
    closed = connection(4, OWNER, ANNA)
    closed.state = State.CLOSED
    assert [c.socket.local.port for c in connections_of([*table, closed], OWNER, uid)] == ports


def connection(port: int, pid: int, uid: int) -> Connection:
    return Connection(bytes([port] * 8), socket(port), socket(port), 0.0, pid=pid, uid=uid)


def test_a_connection_goes_over_to_the_process_that_has_it(monkeypatch: pytest.MonkeyPatch):
    """As of a ControlMaster that went into the background; nothing of another user's, or of a process that runs."""
    gone, running, master = 1, 2, 3
    theirs = {ANNA: [connection(1, gone, ANNA), connection(2, gone, ANNA), connection(3, running, ANNA)]}
    theirs[BERT] = [connection(4, gone, BERT)]
    monkeypatch.setattr(procfs, "start_time", lambda pid: None if pid == gone else BEGAN)
    monkeypatch.setattr(procfs, "users", lambda pid: frozenset({ANNA}))
    monkeypatch.setattr(procfs, "sockets_of", lambda pid: frozenset({101, 103, 104}))
    finder = Finder.__new__(Finder)
    finder._engine = SimpleNamespace(table=[c for each in theirs.values() for c in each])  # type: ignore[assignment]
    finder._walks = None  # type: ignore[assignment]
    finder.look_up = lambda sockets: {s: SimpleNamespace(inode=100 + s.local.port) for s in sockets}  # type: ignore
    asyncio.run(finder.take_over(master, BERT))
    assert [c.pid for c in finder._engine.table] == [gone, gone, running, gone]
    asyncio.run(finder.take_over(master, ANNA))
    assert [c.pid for c in finder._engine.table] == [master, gone, running, gone]

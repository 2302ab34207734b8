"""What is taken on when there is much, and in which thread it is looked for."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from ipaddress import IPv4Address
from types import SimpleNamespace
from typing import Any

import pytest

from redirectctl.daemon import finder
from redirectctl.daemon.finder import MAX_ASKED, MAX_OF_USERS, Finder, shared_out
from redirectctl.flows.connection import Connection
from redirectctl.flows.state import State
from redirectctl.kernel.processes import procfs
from redirectctl.kernel.sockets.diag import SocketInfo
from redirectctl.wire.addr import FourTuple, SockAddr

ANNA, BERT, CARL = 1000, 1001, 1002
BASE = int(IPv4Address("203.0.113.0"))


def tuple_to(host: int, port: int = 40000) -> FourTuple:
    return FourTuple(SockAddr(IPv4Address("192.0.2.1"), port), SockAddr(IPv4Address(BASE + host), 22))


def found(uid: int, sockets: list[FourTuple]) -> list[SocketInfo]:
    return [SimpleNamespace(tuple=each, uid=uid, inode=n, ifindex=0) for n, each in enumerate(sockets, 1)]  # type: ignore[misc]


def known(uid: int, socket: FourTuple, state: State, peer: bytes | None = None) -> Connection:
    return Connection(b"", socket, socket, 0.0, state=state, uid=uid, peer=peer)


def test_nobody_asks_more_hosts_than_are_left_for_others() -> None:
    table: list[Connection] = []
    shares = []
    for number, uid in enumerate((ANNA, BERT, CARL)):
        taken = shared_out(found(uid, [tuple_to(1000 * number + host) for host in range(300)]), table)
        table += [known(uid, each.tuple, State.SHORT) for each in taken]
        shares.append(len(taken))
    assert shares == [MAX_ASKED // 2, MAX_ASKED // 4, MAX_ASKED // 8]
    # Root's are not counted, nor is another connection with a host that is asked already.
    assert len(shared_out(found(0, [tuple_to(9000 + host) for host in range(300)]), table)) == 300
    assert len(shared_out(found(ANNA, [tuple_to(0, 40001 + n) for n in range(50)]), table)) == 50
    # Who is answered, or is not, leaves room.
    for one in table[: MAX_ASKED // 2]:
        one.state = State.UNSUPPORTED
    assert len(shared_out(found(ANNA, [tuple_to(5000 + host) for host in range(300)]), table)) > MAX_ASKED // 4


def test_nobody_has_more_connections_than_are_left_for_others() -> None:
    table: list[Connection] = []
    shares = Counter[int]()
    for number, uid in enumerate((ANNA, BERT)):
        wanted = found(uid, [tuple_to(number, port) for port in range(20_000)])
        taken = shared_out(wanted, table)
        table += [known(uid, each.tuple, State.PROTECTED, b"peer") for each in taken]
        shares[uid] = len(taken)
    assert shares == {ANNA: MAX_OF_USERS // 2, BERT: MAX_OF_USERS // 4}
    assert len(shared_out(found(0, [tuple_to(5, port) for port in range(100)]), table)) == 100


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> Finder:
    """One without a kernel behind it."""
    told: list[Any] = []
    engine = SimpleNamespace(found=lambda *args, **more: told.append((args[1], more)), table=[])
    monkeypatch.setattr(finder, "SockDiag", lambda: None)
    monkeypatch.setattr(finder, "DestroyWatch", lambda *_: None)
    monkeypatch.setattr(finder, "CgroupTree", lambda: None)
    made = Finder(engine, SimpleNamespace(), frozenset, lambda _: None, lambda: None, tuple)  # type: ignore[arg-type]
    made.told = told  # type: ignore[attr-defined]
    return made


def test_processes_are_looked_at_by_a_thread(bare: Finder, monkeypatch: pytest.MonkeyPatch) -> None:
    """And what has ended when that is done is not taken on."""
    threads = []

    def owners(inodes: Any, **_: Any) -> dict[int, procfs.Process]:
        threads.append(threading.current_thread())
        return {1: procfs.Process(4711, 5, ANNA, "ssh server")}

    monkeypatch.setattr(procfs, "owners", owners)
    monkeypatch.setattr(bare, "present", lambda sockets: frozenset(sockets) - {tuple_to(2)})
    asyncio.run(bare._tell(found(ANNA, [tuple_to(1), tuple_to(2), tuple_to(3)])))
    assert [(each, more["pid"], more["uid"]) for each, more in bare.told] == [  # type: ignore[attr-defined]
        (tuple_to(1), 4711, ANNA),
        (tuple_to(3), None, ANNA),
    ]
    assert threads != []
    assert threading.main_thread() not in threads

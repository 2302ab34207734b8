"""Against a socket such as systemd has."""

import asyncio
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from redirectctl.daemon.notify import keep_watchdog_quiet, notify, watchdog_timeout


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    path = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(path)
        sock.settimeout(10)
        monkeypatch.setenv("NOTIFY_SOCKET", path)
        yield sock


@pytest.fixture(autouse=True)
def no_watchdog(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WATCHDOG_USEC", "WATCHDOG_PID"):
        monkeypatch.delenv(name, raising=False)


def test_the_manager_is_told(manager: socket.socket) -> None:
    notify("READY=1")
    assert manager.recv(100) == b"READY=1"


def test_a_manager_in_the_abstract_namespace_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"redirectctl-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind("\0" + name)
        monkeypatch.setenv("NOTIFY_SOCKET", "@" + name)
        notify("READY=1")
        assert sock.recv(100) == b"READY=1"


def test_without_a_manager_nothing_happens(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    notify("READY=1")
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "gone"))
    notify("READY=1")
    assert not (tmp_path / "gone").exists()


@pytest.mark.parametrize(
    ("microseconds", "pid", "timeout"),
    [
        ("30000000", None, 30.0),
        ("30000000", "own", 30.0),
        ("30000000", "1", None),
        ("0", None, None),
        ("soon", None, None),
        (None, None, None),
    ],
)
def test_how_long_the_watchdog_waits(
    microseconds: str | None, pid: str | None, timeout: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if microseconds is not None:
        monkeypatch.setenv("WATCHDOG_USEC", microseconds)
    if pid is not None:
        monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()) if pid == "own" else pid)
    assert watchdog_timeout() == timeout


def test_signs_of_life_go_on_and_on(manager: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "3000")

    async def watched() -> list[bytes]:
        task = asyncio.create_task(keep_watchdog_quiet(list))
        signs = [await asyncio.to_thread(manager.recv, 100) for _ in range(3)]
        task.cancel()
        return signs

    assert asyncio.run(watched()) == [b"WATCHDOG=1"] * 3


def test_no_sign_of_life_while_a_part_is_dead(manager: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "3000")
    dead = ["network: no sign of life for 61 s"]

    async def watched() -> bytes:
        task = asyncio.create_task(keep_watchdog_quiet(lambda: dead))
        await asyncio.sleep(0.05)
        manager.setblocking(False)
        with pytest.raises(BlockingIOError):
            manager.recv(100)
        manager.setblocking(True)
        dead.clear()
        sign = await asyncio.to_thread(manager.recv, 100)
        task.cancel()
        return sign

    assert asyncio.run(watched()) == b"WATCHDOG=1"


def test_no_signs_of_life_where_nobody_waits_for_them(manager: socket.socket) -> None:
    asyncio.run(asyncio.wait_for(keep_watchdog_quiet(list), 10))
    manager.setblocking(False)
    with pytest.raises(BlockingIOError):
        manager.recv(100)

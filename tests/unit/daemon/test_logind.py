"""What logind says about sleep, on a real bus, with a logind of the test's."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from dbus_fast import Message
from dbus_fast.aio import MessageBus

from redirectctl.daemon import logind
from redirectctl.daemon.logind import INTERFACE, NAME, PATH, SIGNAL, SleepSignals
from redirectctl.daemon.loops import Pulse

PATIENCE = 30.0  # seconds

pytestmark = pytest.mark.skipif(shutil.which("dbus-daemon") is None, reason="dbus-daemon is not installed")


class Bus:
    """A bus that the daemon takes for the system's."""

    def __init__(self, path: Path) -> None:
        self.address = f"unix:path={path}"
        self.process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        argv = ["dbus-daemon", "--session", "--nofork", "--print-address", f"--address={self.address}"]
        self.process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        assert self.process.stdout.readline()

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.communicate()
            self.process = None


@pytest.fixture
def bus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bus]:
    made = Bus(tmp_path / "bus")
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", made.address)
    monkeypatch.setattr(logind, "RETRY", 0.05)
    yield made
    made.stop()


class Listener:
    """SleepSignals at work."""

    def __init__(self) -> None:
        self.woken = 0
        self.signals = SleepSignals(self.count)
        self._changed = asyncio.Event()

    def count(self) -> None:
        self.woken += 1
        self._changed.set()

    async def __aenter__(self) -> Listener:
        self._task = asyncio.create_task(self.signals.run(Pulse("logind")))
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def wait_found(self, what: str | None) -> None:
        end = asyncio.get_running_loop().time() + PATIENCE
        while (found := await self.signals.found()) != what and (what is None or what not in str(found)):
            assert asyncio.get_running_loop().time() < end, found
            await asyncio.sleep(0.02)

    async def wait_woken(self, count: int) -> None:
        async with asyncio.timeout(PATIENCE):
            while self.woken < count:
                self._changed.clear()
                await self._changed.wait()
        assert self.woken == count


async def connected(bus: Bus, name: str | None = None) -> MessageBus:
    connection = await MessageBus(bus_address=bus.address).connect()
    if name is not None:
        await connection.request_name(name)
    return connection


async def say(
    connection: MessageBus, asleep: object, to: str | None = None, *, path: str = PATH, kind: str = "b"
) -> None:
    signal = Message.new_signal(path, INTERFACE, SIGNAL, kind, [asleep])
    signal.destination = to
    await connection.send(signal)


def test_awake_again(bus: Bus) -> None:
    async def story() -> None:
        bus.start()
        manager = await connected(bus, NAME)
        async with Listener() as listener:
            await listener.wait_found(None)
            await say(manager, True)
            await say(manager, False)
            await listener.wait_woken(1)
            await say(manager, True)
            await say(manager, False)
            await listener.wait_woken(2)
        manager.disconnect()

    asyncio.run(story())


def test_who_is_not_logind_is_not_heard(bus: Bus) -> None:
    async def story() -> None:
        bus.start()
        manager, other = await connected(bus, NAME), await connected(bus)
        async with Listener() as listener:
            await listener.wait_found(None)
            assert listener.signals._bus is not None
            ours = listener.signals._bus.unique_name
            await say(other, False)
            await say(other, False, ours)  # comes without a rule
            await say(manager, "no", kind="s")
            await say(manager, False, path="/another")
            for _ in range(3 * logind.MAX_SIGNALS):
                await say(other, False, ours)
            await asyncio.sleep(0.2)
            assert listener.woken == 0
            await say(manager, False)
            await listener.wait_woken(1)
        manager.disconnect()
        other.disconnect()

    asyncio.run(story())


def test_bus_and_logind_may_come_and_go(bus: Bus) -> None:
    async def story() -> None:
        async with Listener() as listener:
            await listener.wait_found("no system bus")
            for number in (1, 2):
                bus.start()
                await listener.wait_found("no logind")
                manager = await connected(bus, NAME)
                await listener.wait_found(None)
                await say(manager, False)
                await listener.wait_woken(number)
                bus.stop()
                await listener.wait_found("bus")
                manager.disconnect()

    asyncio.run(story())


def test_without_the_package_the_clocks_are_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(logind.importlib, "import_module", refuse)
    signals = SleepSignals(lambda: None)

    async def story() -> str | None:
        await signals.run(Pulse("logind"))
        return await signals.found()

    assert asyncio.run(story()) == "the Python package dbus-fast is not installed"

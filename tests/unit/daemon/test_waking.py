"""Clocks of a machine that sleeps."""

from __future__ import annotations

import asyncio

import pytest

from redirectctl.daemon import waking
from redirectctl.daemon.waking import BoottimeLoop, WakeWatch


class Machine:
    """Its clocks, moved by hand."""

    def __init__(self) -> None:
        self.boottime, self.monotonic = 5000.0, 100.0
        self.woken: list[float] = []
        self.watch = WakeWatch(self.woken.append, lambda: self.boottime, lambda: self.monotonic)

    def wait(self, seconds: float) -> None:
        self.boottime += seconds
        self.monotonic += seconds
        self.watch.look()

    def sleep(self, seconds: float) -> None:
        self.boottime += seconds


def test_time_awake_is_no_sleep() -> None:
    machine = Machine()
    for _ in range(100):
        machine.wait(60)
    assert machine.woken == []


def test_each_sleep_is_noticed_once() -> None:
    machine = Machine()
    machine.wait(0.5)
    machine.sleep(3600)
    for _ in range(3):
        machine.wait(0.5)
    machine.sleep(20)
    machine.wait(0.5)
    assert machine.woken == pytest.approx([3600, 20])


def test_a_moment_is_no_sleep() -> None:
    machine = Machine()
    for _ in range(10):
        machine.sleep(waking.SLEEP / 2)
        machine.wait(0.5)
    assert machine.woken == []


def test_what_logind_says_counts_at_once_and_once() -> None:
    machine = Machine()
    machine.sleep(3600)
    machine.watch.told()
    machine.wait(0.5)
    assert machine.woken == pytest.approx([3600])
    machine.wait(60)
    machine.sleep(20)
    machine.wait(0.5)
    machine.watch.told()
    assert machine.woken == pytest.approx([3600, 20])
    machine.wait(60)
    machine.sleep(waking.SLEEP / 2)
    machine.watch.told()
    assert machine.woken == pytest.approx([3600, 20, waking.SLEEP / 2])


def test_what_was_due_in_the_sleep_happens_at_the_first_beat(monkeypatch: pytest.MonkeyPatch) -> None:
    slept = 0.0
    real = BoottimeLoop.time
    monkeypatch.setattr(BoottimeLoop, "time", lambda self: real(self) + slept)

    async def live() -> None:
        nonlocal slept
        due = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_later(3600, due.set_result, None)
        await asyncio.sleep(0.01)
        slept = 7200.0
        await asyncio.sleep(0)
        await asyncio.wait_for(due, 60)

    with asyncio.Runner(loop_factory=BoottimeLoop) as runner:
        runner.run(live())

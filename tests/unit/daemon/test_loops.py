"""Loops go on after failures, and say that they live."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from redirectctl.daemon import loops as module
from redirectctl.daemon.loops import BEAT, LATE, RECENT, Loops, Pulse
from redirectctl.daemon.tasks import Tasks


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PAUSE", 0.001)


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    """By us: on a busy machine asyncio says something too."""
    return [r.message for r in caplog.records if r.name.startswith("redirectctl")]


def story(tell: Callable[[Loops, Clock], Awaitable[None]]) -> None:
    async def run() -> None:
        tasks, clock = Tasks(), Clock()
        try:
            await asyncio.wait_for(tell(Loops(tasks, clock), clock), 30)
        finally:
            await tasks.cancel()

    asyncio.run(run())


@pytest.mark.usefixtures("quick")
def test_a_loop_that_fails_is_begun_anew_and_said_once(caplog: pytest.LogCaptureFixture) -> None:
    async def tell(loops: Loops, clock: Clock) -> None:
        runs, well = 0, asyncio.Event()

        async def run(pulse: Pulse) -> None:
            nonlocal runs
            runs += 1
            if runs < 5:
                raise OSError(24, "Too many open files")
            well.set()
            await pulse.wait(asyncio.Event())

        loops.start("finder", run)
        await well.wait()
        (pulse,) = loops.pulses
        assert (runs, pulse.failures, pulse.error) == (5, 4, "OSError: [Errno 24] Too many open files")
        assert pulse.failing
        clock.now += RECENT
        assert not pulse.failing
        assert loops.dead() == []

    story(tell)
    assert said(caplog) == ["finder failed; it starts again in 0.001 s"]


@pytest.mark.usefixtures("quick")
def test_another_failure_is_said_too(caplog: pytest.LogCaptureFixture) -> None:
    async def tell(loops: Loops, clock: Clock) -> None:
        failures = [OSError(24, "few"), OSError(24, "few"), ValueError("odd"), OSError(24, "few")]
        well = asyncio.Event()

        async def run(pulse: Pulse) -> None:
            if failures:
                raise failures.pop(0)
            well.set()
            await pulse.wait(asyncio.Event())

        loops.start("finder", run)
        await well.wait()

    story(tell)
    assert len(said(caplog)) == 3


def test_one_that_hangs_is_dead_and_others_are_not() -> None:
    async def tell(loops: Loops, clock: Clock) -> None:
        async def hang(pulse: Pulse) -> None:
            await asyncio.Event().wait()

        async def live(pulse: Pulse) -> None:
            while True:
                pulse.beat()
                await asyncio.sleep(0)

        loops.start("network", hang)
        loops.start("stalls", live)
        await asyncio.sleep(0.01)
        clock.now += LATE - 1
        await asyncio.sleep(0.01)
        assert loops.dead() == []
        clock.now += 2
        await asyncio.sleep(0.01)
        assert loops.dead() == [f"network: no sign of life for {LATE + 1:.0f} s"]

    story(tell)


def test_one_that_has_nothing_to_do_is_not_missed() -> None:
    async def tell(loops: Loops, clock: Clock) -> None:
        async def nothing(pulse: Pulse) -> None:
            return

        loops.start("logind", nothing)
        await asyncio.sleep(0.01)
        clock.now += 10 * LATE
        assert loops.dead() == []

    story(tell)


def test_a_thread_that_has_ended_is_dead() -> None:
    async def tell(loops: Loops, clock: Clock) -> None:
        alive = True
        loops.watch("tunnel", lambda: alive)
        assert loops.dead() == []
        alive = False
        assert loops.dead() == ["tunnel: has ended"]

    story(tell)


def test_whoever_waits_beats(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BEAT", 0.01)

    async def tell(loops: Loops, clock: Clock) -> None:
        pulse, event = Pulse("x", clock), asyncio.Event()
        for waiting in (pulse.wait(event), pulse.sleep(1000.0), pulse.wait(event, 1000.0)):
            task = asyncio.ensure_future(waiting)
            for _ in range(3):
                clock.now += LATE
                await asyncio.sleep(0.05)
                assert pulse.silent == 0.0
            task.cancel()

    story(tell)


def test_waiting_for_an_event_and_for_time() -> None:
    async def tell(loops: Loops, clock: Clock) -> None:
        pulse, event = Pulse("x", clock), asyncio.Event()
        assert not await pulse.wait(event, 0.01)
        event.set()
        assert await pulse.wait(event, 1000.0)
        assert await pulse.wait(event)
        began = asyncio.get_running_loop().time()
        await pulse.sleep(0.02)
        assert asyncio.get_running_loop().time() - began >= 0.02

    story(tell)
    assert BEAT < LATE

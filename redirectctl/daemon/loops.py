"""The daemon's loops.  One that fails goes on a moment later, and each says again and again that it lives.

    fails      an exception: no descriptor is left, the kernel has no memory, a mistake of ours.  Logged, told to
               `doctor`, and begun anew after PAUSE: its work is not in variables of run()
    hangs      no beat for LATE: `doctor` says so, and systemd is told nothing any more until it restarts the daemon

Who waits in a loop does it by its Pulse, which beats meanwhile.  What is awaited otherwise must end by itself in less
than LATE.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final

from redirectctl.daemon.tasks import Tasks

_log = logging.getLogger(__name__)

PAUSE: Final = 1.0  # seconds from a failure to the next attempt: what was lacking may be there, and no log is flooded
BEAT: Final = 5.0  # seconds between beats of one that waits
LATE: Final = 60.0  # seconds awake: a change of 10,000 connections takes some seconds on a small machine
RECENT: Final = 10.0  # seconds since its last failure in which a loop counts as failing

Monotonic = Callable[[], float]


class Pulse:
    """One loop's sign of life."""

    def __init__(self, name: str, monotonic: Monotonic = time.monotonic) -> None:
        """``monotonic``: must stand still while the machine sleeps, for nobody beats then."""
        self.name = name
        self.failures = 0
        self.error: str | None = None  # the last one
        self._failed_at = float("-inf")
        self._monotonic = monotonic
        self._beat = monotonic()

    def beat(self) -> None:
        """It lives."""
        self._beat = self._monotonic()

    async def sleep(self, seconds: float) -> None:
        """As asyncio.sleep()."""
        await self.wait(None, seconds)

    async def wait(self, event: asyncio.Event | None, seconds: float | None = None) -> bool:
        """Until the event is set, but at most so many seconds; whether it is."""
        loop = asyncio.get_running_loop()
        deadline = None if seconds is None else loop.time() + seconds
        self.beat()
        while event is None or not event.is_set():
            left = BEAT if deadline is None else min(BEAT, deadline - loop.time())
            if left <= 0:
                break
            if event is None:
                await asyncio.sleep(left)
            else:
                with suppress(TimeoutError):
                    async with asyncio.timeout(left):
                        await event.wait()
            self.beat()
        await asyncio.sleep(0)  # an event that is set all the time, or no time at all, keeps nobody from his turn
        return event is not None and event.is_set()

    def fail(self, error: Exception) -> bool:
        """Note a failure.  Whether it is another one than the last."""
        now, text = self._monotonic(), f"{type(error).__name__}: {error}"
        news = text != self.error or now - self._failed_at > RECENT
        self.failures += 1
        self.error, self._failed_at = text, now
        return news

    @property
    def silent(self) -> float:
        """Seconds since the last beat."""
        return self._monotonic() - self._beat

    @property
    def failing(self) -> bool:
        """Whether it has failed just now."""
        return self._monotonic() - self._failed_at < RECENT

    @property
    def since_failure(self) -> float:
        """Seconds."""
        return self._monotonic() - self._failed_at


class Loops:
    """Starts them, and knows how they are."""

    def __init__(self, tasks: Tasks, monotonic: Monotonic = time.monotonic) -> None:
        self._tasks = tasks
        self._monotonic = monotonic
        self._threads: dict[str, Callable[[], bool]] = {}
        self.pulses: list[Pulse] = []

    def start(self, name: str, run: Callable[[Pulse], Awaitable[None]]) -> None:
        """``run`` goes on until it is cancelled; one that returns has nothing to do."""
        pulse = Pulse(name, self._monotonic)
        self.pulses.append(pulse)
        self._tasks.start(self._keep(pulse, run), name)

    def watch(self, name: str, alive: Callable[[], bool]) -> None:
        """A thread, which keeps itself going: is it there?"""
        self._threads[name] = alive

    def dead(self) -> list[str]:
        """Those that hang, or have gone, in words."""
        found = [f"{p.name}: no sign of life for {p.silent:.0f} s" for p in self.pulses if p.silent > LATE]
        return found + [f"{name}: has ended" for name, alive in self._threads.items() if not alive()]

    async def _keep(self, pulse: Pulse, run: Callable[[Pulse], Awaitable[None]]) -> None:
        while True:
            pulse.beat()
            try:
                await run(pulse)
            except Exception as error:
                if pulse.fail(error):
                    _log.exception("%s failed; it starts again in %g s", pulse.name, PAUSE)
                await pulse.sleep(PAUSE)
            else:
                self.pulses.remove(pulse)
                return

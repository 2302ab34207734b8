"""Time that counts while the machine sleeps, and the moment when it wakes.

CLOCK_MONOTONIC stands still while a machine is suspended: a daemon that lived by it would take an hour of sleep for
nothing, and keep sessions, announcements and connections for alive that its peers have given up meanwhile.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final

from redirectctl.daemon.loops import Pulse

BEAT: Final = 0.5  # seconds between looks at the clocks: so long it may take until a waking is noticed
SLEEP: Final = 1.0  # seconds that the clocks must have come apart: less is nothing that a peer would notice
SAME: Final = 5.0  # seconds awake in which the clocks and logind speak of the same waking


class BoottimeLoop(asyncio.SelectorEventLoop):
    """An event loop whose time goes on while the machine sleeps.

    What was due meanwhile happens with the first event after that: epoll_wait(2) itself counts waking time only, and
    WakeWatch has such an event for it.
    """

    def time(self) -> float:
        """Seconds of CLOCK_BOOTTIME."""
        return time.clock_gettime(time.CLOCK_BOOTTIME)


class WakeWatch:
    """Compares the two clocks."""

    def __init__(
        self,
        woke: Callable[[float], None],
        boottime: Callable[[], float] = lambda: time.clock_gettime(time.CLOCK_BOOTTIME),
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """``woke`` is called with the seconds that the machine has slept."""
        self._woke = woke
        self._boottime = boottime
        self._monotonic = monotonic
        self._apart = boottime() - monotonic()
        self._said = float("-inf")  # when, in waking time

    def look(self) -> None:
        """Has the machine slept since the last look?"""
        self._look(told=False)

    def told(self) -> None:
        """Logind says that it has, however short it was."""
        self._look(told=True)

    def _look(self, *, told: bool) -> None:
        awake = self._monotonic()
        apart = self._boottime() - awake
        slept, self._apart = apart - self._apart, apart
        if slept >= SLEEP or (told and awake - self._said > SAME):
            self._said = awake
            self._woke(max(0.0, slept))

    async def run(self, pulse: Pulse) -> None:
        """The beat, until cancelled."""
        while True:
            await pulse.sleep(BEAT)
            self.look()

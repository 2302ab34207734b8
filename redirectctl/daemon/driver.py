"""The engine's clock and turn: it is told what happened, and what it wants is carried out, in order."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Concatenate, ParamSpec, TypeVar

from redirectctl.daemon.loops import Pulse
from redirectctl.flows.commands import Command
from redirectctl.flows.engine import Engine

P = ParamSpec("P")
T = TypeVar("T")


class Driver:
    """Nothing calls upward: kernel, control port and clients tell the engine, and run() does the rest."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._awake = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None

    @property
    def now(self) -> float:
        """The engine's clock."""
        return asyncio.get_running_loop().time()

    def tell(self, what: Callable[Concatenate[float, P], T], /, *args: P.args, **more: P.kwargs) -> T:
        """Call this input of the engine with the time, and carry out what comes of it a moment later."""
        answer = what(self.now, *args, **more)
        self.wake()
        return answer

    def wake(self) -> None:
        """The engine was told something."""
        self._awake.set()

    async def run(
        self, pulse: Pulse, carry_out: Callable[[Command], Awaitable[None]], settled: Callable[[], None]
    ) -> None:
        """For ever.  ``settled``: called when nothing is left to be carried out."""
        while True:
            await pulse.wait(self._awake)
            self._awake.clear()
            while todo := self.engine.drain():
                for command in todo:
                    pulse.beat()
                    await carry_out(command)
            settled()
            self._set_timer()

    def stop(self) -> None:
        """No timer any more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _set_timer(self) -> None:
        self.stop()
        at = self.engine.next_timer()
        if at is not None:
            self._timer = asyncio.get_running_loop().call_at(at, self._tick)

    def _tick(self) -> None:
        self._timer = None
        self.tell(self.engine.tick)

"""Suspended connections: from the engine's commands to kernel/tcp/suspend.py, and back what has become of them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from typing import Final, TypeVar

from redirectctl.daemon.loops import Pulse
from redirectctl.daemon.tasks import Tasks
from redirectctl.flows.connection import Before
from redirectctl.flows.engine import Engine
from redirectctl.kernel.errors import KernelError
from redirectctl.kernel.tcp.suspend import Suspender
from redirectctl.wire.addr import FourTuple

_log = logging.getLogger(__name__)

BEAT: Final = 1.0  # seconds between looks at what suspended connections need
ATTEMPTS: Final = 600  # at what the kernel refuses, a BEAT apart

T = TypeVar("T")


class Suspending:
    """Does at once what must not wait for anything else, and the rest in tasks."""

    def __init__(self, engine: Engine, suspender: Suspender, tasks: Tasks, changed: Callable[[], None]) -> None:
        """``changed`` is called after the engine was told something."""
        self._engine = engine
        self._suspender = suspender
        self._tasks = tasks
        self._changed = changed
        self._suspended: set[FourTuple] = set()  # what was asked last about them
        self._answers: list[FourTuple] = []

    def prepare(self, sockets: Iterable[FourTuple]) -> None:
        """See commands.Prepare."""
        self._tasks.start(self._prepare(list(sockets)), "prepare")

    def suspend(self, before: Mapping[FourTuple, Before]) -> None:
        """See commands.Suspend."""
        self._suspended.update(before)
        try:
            self._tasks.start(self._suspender.borrow(self._suspender.shut(before)), "suspend")
        except KernelError as error:
            _log.error("suspend: %s", error)
            self._tasks.start(self._until_done(lambda: self._suspend(before)), "suspend")

    def resume(self, sockets: Iterable[FourTuple]) -> None:
        """See commands.Resume."""
        wanted = list(sockets)
        self._suspended.difference_update(wanted)
        try:
            self._tasks.start(self._suspender.follow_up(self._suspender.wake(wanted)), "resume")
        except KernelError as error:
            _log.error("resume: %s", error)
            self._tasks.start(self._until_done(lambda: self._resume(wanted)), "resume")

    def give_back(self, before: Mapping[FourTuple, Before]) -> None:
        """See commands.GiveBack."""
        self._tasks.start(self._until_done(lambda: self._suspender.give_back(before)), "give back")

    def forget(self, sockets: Iterable[FourTuple]) -> None:
        """See commands.Forget."""
        ended = list(sockets)
        self._suspended.difference_update(ended)
        self._suspender.forget(ended)

    def let_out(self, sockets: Collection[FourTuple], *, on: bool) -> None:
        """See commands.LetOut."""
        self._suspender.let_out(sockets, on)

    def ask(self, sockets: Iterable[FourTuple]) -> None:
        """See commands.Ask."""
        self._suspender.ask(sockets)

    def answered(self, socket: FourTuple) -> None:
        """A peer's kernel has acknowledged something; told together with what else comes in this turn of the loop."""
        if not self._answers:
            asyncio.get_running_loop().call_soon(self._tell)
        self._answers.append(socket)

    def _tell(self) -> None:
        answers, self._answers = self._answers, []
        self._engine.answered(asyncio.get_running_loop().time(), answers)
        self._changed()

    async def run(self, pulse: Pulse) -> None:
        """The beat, until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            await pulse.sleep(BEAT)
            if self._suspender.busy and (restored := await self._suspender.tend()):
                self._engine.restored(loop.time(), restored)
                self._changed()

    async def _prepare(self, sockets: list[FourTuple]) -> None:
        found = await self._until_done(lambda: self._suspender.prepare(sockets))
        self._engine.prepared(asyncio.get_running_loop().time(), found)
        self._changed()

    async def _suspend(self, before: Mapping[FourTuple, Before]) -> None:
        await self._suspender.suspend({one: had for one, had in before.items() if one in self._suspended})

    async def _resume(self, sockets: list[FourTuple]) -> int:
        return await self._suspender.resume([one for one in sockets if one not in self._suspended])

    @staticmethod
    async def _until_done(attempt: Callable[[], Awaitable[T]]) -> T:
        """What the kernel refuses now is tried again: a socket with a closed window waits for ever."""
        for _ in range(ATTEMPTS - 1):
            try:
                return await attempt()
            except KernelError as error:
                _log.error("%s; again in %g s", error, BEAT)
                await asyncio.sleep(BEAT)
        return await attempt()

"""Suspended connections: from the engine's commands to kernel/suspend.py, and back what has become of them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Iterable, Mapping

from redirectctl.daemon.tasks import Tasks
from redirectctl.flows.connection import Before
from redirectctl.flows.engine import Engine
from redirectctl.kernel import suspend
from redirectctl.kernel.errors import KernelError
from redirectctl.kernel.suspend import Suspender
from redirectctl.wire.addr import FourTuple

_log = logging.getLogger(__name__)

BEAT = 1.0  # seconds between looks at what suspended connections need


class Suspending:
    """Does at once what must not wait for anything else, and the rest in tasks."""

    def __init__(self, engine: Engine, suspender: Suspender, tasks: Tasks, changed: Callable[[], None]) -> None:
        """``changed`` is called after the engine was told something."""
        self._engine = engine
        self._suspender = suspender
        self._tasks = tasks
        self._changed = changed
        self._answers: list[FourTuple] = []

    def prepare(self, sockets: Iterable[FourTuple]) -> None:
        """See commands.Prepare."""
        self._tasks.start(self._prepare(list(sockets)), "prepare")

    def suspend(self, before: Mapping[FourTuple, Before]) -> None:
        """See commands.Suspend."""
        self._tasks.start(self._suspender.borrow(self._suspender.shut(_befores(before))), "suspend")

    def resume(self, sockets: Iterable[FourTuple]) -> None:
        """See commands.Resume."""
        self._tasks.start(self._suspender.follow_up(self._suspender.wake(list(sockets))), "resume")

    def give_back(self, before: Mapping[FourTuple, Before]) -> None:
        """See commands.GiveBack."""
        self._tasks.start(self._suspender.give_back(_befores(before)), "give back")

    def forget(self, sockets: Iterable[FourTuple]) -> None:
        """See commands.Forget."""
        self._suspender.forget(sockets)

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

    async def run(self) -> None:
        """The beat, until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(BEAT)
            if not self._suspender.busy:
                continue
            try:
                restored = await self._suspender.tend()
            except KernelError as error:
                _log.error("%s", error)
                continue
            if restored:
                self._engine.restored(loop.time(), restored)
                self._changed()

    async def _prepare(self, sockets: list[FourTuple]) -> None:
        found = await self._suspender.prepare(sockets)
        has = {one.socket: Before(one.window, one.user_timeout) for one in found}
        self._engine.prepared(asyncio.get_running_loop().time(), has)
        self._changed()


def _befores(before: Mapping[FourTuple, Before]) -> list[suspend.Before]:
    return [suspend.Before(socket, one.window, one.user_timeout) for socket, one in before.items()]

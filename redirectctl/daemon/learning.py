"""What is good to know of a newly protected connection before it moves: its program, its sequence numbers."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from typing import Final

from redirectctl.daemon.finder import BUSY, Finder
from redirectctl.daemon.namebook import NameBook
from redirectctl.daemon.tasks import Tasks
from redirectctl.flows.connection import Connection, Table
from redirectctl.kernel.tcp.backoff import BackoffReverter
from redirectctl.wire.addr import FourTuple

AFTER: Final = 0.2  # seconds in which other connections become protected too: one batch for all
AGAIN: Final = (1.0, 3.0, 10.0, 30.0, 0.0)  # seconds: a busy connection may have a quiet moment


class Learning:
    """Many at a time."""

    def __init__(self, table: Table, finder: Finder, names: NameBook, backoff: BackoffReverter, tasks: Tasks) -> None:
        self._table = table
        self._finder = finder
        self._names = names
        self._backoff = backoff
        self._tasks = tasks
        self._new: set[FourTuple] = set()
        self._nameless: set[FourTuple] = set()
        self._naming: asyncio.Task[None] | None = None

    def study(self, connection: Connection) -> None:
        """It is protected now."""
        if not self._new:
            self._tasks.start(self._learn(), "learn")
        self._new.add(connection.socket)

    async def _learn(self) -> None:
        await asyncio.sleep(AFTER)
        sockets, self._new = self._new, set()
        studied = [c for socket in sockets if (c := self._table.at(socket)) is not None]
        self._names.study([c for c in studied if c.pid is not None])
        self._nameless |= {c.socket for c in studied if c.pid is None}
        if self._nameless and (self._naming is None or self._naming.done()):
            self._naming = self._tasks.start(self._name(), "name")
        busy: Collection[FourTuple] = sockets
        for pause in AGAIN:
            busy = await self._backoff.learn(busy)
            if not busy:
                break
            await asyncio.sleep(pause)

    async def _name(self) -> None:
        """Programs that have connections that peers asked for: a walk over all processes, for however many."""
        loop = asyncio.get_running_loop()
        while self._nameless:
            began = loop.time()
            sockets, self._nameless = self._nameless, set()
            connections = [c for socket in sockets if (c := self._table.at(socket)) is not None]
            await self._finder.name(connections)
            self._names.study(connections)
            await asyncio.sleep(BUSY * (loop.time() - began))  # peers ask as often as they like

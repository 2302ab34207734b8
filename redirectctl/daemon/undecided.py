"""Peers that nobody has decided about, on their way to disk.

Strangers make us write them down, as often as they like.  So they are written some time later, all together, by a
thread, and not synced to disk: after a power failure they are strangers again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from redirectctl.daemon.tasks import Tasks
from redirectctl.store.records import PeerRecord, PeerState, StoreError

LATER: Final = 2.0  # seconds in which more of them come
STATES: Final = frozenset({PeerState.PENDING, PeerState.CHANGED})

_log = logging.getLogger(__name__)

Write = Callable[[list[PeerRecord], list[bytes]], list[bytes]]  # who is to be kept, who not; gives who had to go


class Undecided:
    """What is to be written, by key; None: that nothing is kept."""

    def __init__(
        self,
        write: Write,
        thread: ThreadPoolExecutor,
        tasks: Tasks,
        current: Callable[[bytes], PeerRecord | None],
        had_to_go: Callable[[list[bytes]], None],
    ) -> None:
        """``write``: called in the thread, raises StoreError.  ``current``: what is known of a peer now."""
        self._write = write
        self._thread = thread
        self._tasks = tasks
        self._current = current
        self._had_to_go = had_to_go
        self._waiting: dict[bytes, PeerRecord | None] = {}
        self._writing: asyncio.Task[None] | None = None

    def put(self, record: PeerRecord) -> None:
        """Write it down some time."""
        self._add(record.public, record)

    def drop(self, key: bytes) -> None:
        """Do not keep it; if somebody has decided about it meanwhile, it stays."""
        self._add(key, None)

    def decided(self, key: bytes) -> None:
        """It is being written at once: what waits is out of date."""
        self._waiting.pop(key, None)

    def flush(self) -> None:
        """Write what waits now, and not in the thread, which has ended."""
        try:
            self._write(*self._take())
        except StoreError as error:
            _log.error("%s", error)

    def _add(self, key: bytes, record: PeerRecord | None) -> None:
        self._waiting[key] = record
        if self._writing is None or self._writing.done():
            self._writing = self._tasks.start(self._run(), "undecided peers")

    def _take(self) -> tuple[list[PeerRecord], list[bytes]]:
        waiting, self._waiting = self._waiting, {}
        return [each for each in waiting.values() if each is not None], [
            k for k, each in waiting.items() if each is None
        ]

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(LATER)
            if not self._waiting:
                return
            kept, dropped = self._take()
            loop = asyncio.get_running_loop()
            try:
                gone = await loop.run_in_executor(self._thread, self._write, kept, dropped)
            except (StoreError, OSError) as error:
                _log.error("%s", error)
                for record in kept:
                    self._waiting.setdefault(record.public, record)
                for key in dropped:
                    self._waiting.setdefault(key, None)
                continue
            for record in kept:  # it may be another by now, or have gone
                now = self._current(record.public)
                if now is None:
                    self._waiting.setdefault(record.public, None)
                elif now is not record and now.state in STATES:
                    self._waiting.setdefault(record.public, now)
            self._had_to_go(gone)

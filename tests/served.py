"""The real API server, in a thread of its own, with a service and a clock that are the test's."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, cast

from redirectctl.api.schema import EventName
from redirectctl.daemon.apiserver import ApiServer, Service
from redirectctl.daemon.eventlog import EventFields, EventLog

PATIENCE = 30.0


class Served:
    """A subclass has the Service's methods.  May be stopped and started; at the end close() it."""

    def __init__(self, directory: Path, time: float) -> None:
        self.socket = directory / "d.sock"
        self.time = time
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self._log = EventLog(directory, lambda: self.time)
        self._server: ApiServer | None = None

    def start(self) -> None:
        self._server = ApiServer(cast(Service, self), self._log, "0.1.0")
        self._do(self._server.start(self.socket))

    def stop(self) -> None:
        if self._server is not None:
            self._do(self._server.close())
            self._server = None

    def record(self, event: EventName, **fields: Any) -> None:
        async def record() -> None:
            self._log.record(event, **cast(EventFields, fields))

        self._do(record())

    def close(self) -> None:
        self.stop()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._log.close()

    def _do(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(PATIENCE)

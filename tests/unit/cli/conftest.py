"""A daemon for the command line to talk to: the real server with a service that answers what the test wants."""

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from redirectctl.api.schema import EventName
from redirectctl.daemon.apiserver import ApiServer, Service
from redirectctl.daemon.eventlog import EventFields, EventLog


class FakeDaemon:
    def __init__(self, directory: Path) -> None:
        self.socket = directory / "d.sock"
        self.replies: dict[str, Any] = {}
        self.asked: list[Any] = []
        self.time = 1_700_000_000.25
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self._log = EventLog(directory, lambda: self.time)
        self._server: ApiServer | None = None

    def __getattr__(self, name: str) -> Callable[[Any, Any], Coroutine[Any, Any, Any]]:
        """As the Service."""

        async def answer(request: Any, caller: Any) -> Any:
            self.asked.append(request)
            reply = self.replies[name]
            if isinstance(reply, BaseException):
                raise reply
            return reply

        return answer

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

    def followed(self) -> bool:
        """Whether somebody follows the events."""
        return bool(self._log._subscriptions)

    def close(self) -> None:
        self.stop()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._log.close()

    def _do(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(30)


@pytest.fixture
def daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeDaemon]:
    daemon = FakeDaemon(tmp_path)
    daemon.start()
    monkeypatch.setenv("REDIRECTCTL_SOCKET", str(daemon.socket))
    yield daemon
    daemon.close()

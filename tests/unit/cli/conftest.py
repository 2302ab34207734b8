"""A daemon for the command line to talk to: the real server with a service that answers what the test wants."""

from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.served import Served


class FakeDaemon(Served):
    def __init__(self, directory: Path) -> None:
        self.replies: dict[str, Any] = {}
        self.asked: list[Any] = []
        super().__init__(directory, 1_700_000_000.25)

    def __getattr__(self, name: str) -> Callable[[Any, Any], Coroutine[Any, Any, Any]]:
        """As the Service."""

        async def answer(request: Any, caller: Any) -> Any:
            self.asked.append(request)
            reply = self.replies[name]
            if isinstance(reply, BaseException):
                raise reply
            return reply

        return answer

    def followed(self) -> bool:
        """Whether somebody follows the events."""
        return bool(self._log._subscriptions)


@pytest.fixture
def daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeDaemon]:
    daemon = FakeDaemon(tmp_path)
    daemon.start()
    monkeypatch.setenv("REDIRECTCTL_SOCKET", str(daemon.socket))
    yield daemon
    daemon.close()

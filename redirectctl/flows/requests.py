"""Requests inside a session: sent until answered, for a bounded time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from redirectctl.flows import constants, timer_kinds
from redirectctl.flows.host import Host
from redirectctl.proto.shares import Shared
from redirectctl.wire import meeting
from redirectctl.wire.addr import IPAddress, SockAddr
from redirectctl.wire.message import (
    Bind,
    BindNumbers,
    Done,
    EndOf,
    Message,
    Protect,
    Protected,
    RstQuery,
    RstReply,
    Sync,
    SyncReply,
)

_ANSWERS: Final[dict[type[Message], type[Message]]] = {
    Protect: Protected,
    Bind: Protected,
    BindNumbers: Protected,
    RstQuery: RstReply,
    EndOf: Done,
    Sync: SyncReply,
    meeting.Relay: meeting.Relayed,
}

Build = Callable[[int], Message | None]
Answered = Callable[[float, Message], None]
Failed = Callable[[float], None]


@dataclass(slots=True)
class _Request:
    key: bytes
    build: Build
    path: tuple[SockAddr | None, IPAddress | None]
    answered: Answered
    failed: Failed
    message: Message | None = None  # as it was sent last
    tries: int = 0


class Requests:
    """This host's requests that are not answered yet."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._open: Shared[bytes, int, _Request] = Shared()  # of each peer
        self._last = 0

    def ask(
        self,
        now: float,
        key: bytes,
        build: Build,
        answered: Answered,
        failed: Failed,
        path: tuple[SockAddr | None, IPAddress | None] = (None, None),
    ) -> None:
        """Send ``build(request id)`` to a peer until it answers, then call ``answered``; without an answer, ``failed``.

        It is built anew each time; None: there is nothing to ask any more.
        """
        self._last = number = (self._last + 1) & 0xFFFFFFFF
        gone = self._open.put(constants.MAX_REQUESTS, key, number, _Request(key, build, path, answered, failed))
        if number in self._open:
            self.retry(now, number)
        if gone is not None:
            self._host.timers.cancel(timer_kinds.RetryRequest(gone[0]))
            gone[1].failed(now)

    def retry(self, now: float, number: int) -> None:
        """A request has not been answered in time: send it again, or give it up."""
        request = self._open.get(number)
        if request is None:
            return
        if request.tries >= len(constants.REQUEST_RETRIES):
            self._open.pop(number)
            request.failed(now)
            return
        request.message = request.build(number)
        if request.message is None:
            self._open.pop(number)
            return
        self._host.send(now, request.key, request.message, *request.path)
        self._host.timers.set(timer_kinds.RetryRequest(number), now + constants.REQUEST_RETRIES[request.tries])
        request.tries += 1

    def answer(self, now: float, key: bytes, number: int, message: Message) -> None:
        """An answer has arrived.  It counts only from the peer that was asked, and if it is of the right kind."""
        request = self._open.get(number)
        if request is None or request.message is None or request.key != key:
            return
        if type(message) is not _ANSWERS[type(request.message)]:
            return
        self._open.pop(number)
        self._host.timers.cancel(timer_kinds.RetryRequest(number))
        request.answered(now, message)

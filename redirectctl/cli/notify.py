"""redirectctl notify: tells a desktop session what happens, by org.freedesktop.Notifications on the session's D-Bus.

redirectd runs as root and has no session, so this runs in each session that wants it, as the user, until it is ended.
The daemon's configuration can silence all of them, also while they run ([desktop] notices).
"""

from __future__ import annotations

import argparse
import asyncio
import html
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from redirectctl.api.client import UnreachableError
from redirectctl.api.schema import (
    ErrorCode,
    Event,
    EventName,
    Peer,
    PeersReply,
    PeersRequest,
    RequestError,
    StatusReply,
    StatusRequest,
)
from redirectctl.cli.common import ExitCode, Failure, ask, connect
from redirectctl.cli.notices import TELLING, Notice, Notices

if TYPE_CHECKING:
    from dbus_fast.aio import MessageBus

NAME: Final = "org.freedesktop.Notifications"
PATH: Final = "/org/freedesktop/Notifications"
RETRY: Final = 1.0  # seconds between two attempts to find a daemon that is not there
GATHER: Final = 0.3  # seconds: what happens at once, as to all connections of a move, makes one notice
SERVER_DECIDES: Final = -1  # for how long a notice is shown


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """None."""


def run(args: argparse.Namespace) -> int:
    """Show notices until the session ends.  Waits for a daemon that is not there."""
    try:
        import dbus_fast  # noqa: F401
    except ImportError:
        raise Failure("notify: the Python package dbus-fast is not installed; pip install dbus-fast") from None
    try:
        return asyncio.run(_run(args))
    except UnreachableError as error:
        raise Failure(f"notify: {error}", ExitCode.UNREACHABLE) from None


async def _run(args: argparse.Namespace) -> int:
    desktop = await Desktop.connect()
    queue: asyncio.Queue[Event | BaseException] = asyncio.Queue()
    loop = asyncio.get_running_loop()

    def put(item: Event | BaseException) -> None:
        loop.call_soon_threadsafe(queue.put_nowait, item)

    threading.Thread(target=_follow, args=(args, put), daemon=True).start()
    ended = asyncio.ensure_future(desktop.ended())
    notices, wanted = Notices(), True
    while True:
        first = asyncio.ensure_future(queue.get())
        await asyncio.wait({first, ended}, return_when=asyncio.FIRST_COMPLETED)
        if ended.done():
            return ExitCode.DONE
        await asyncio.sleep(GATHER)
        batch = [first.result()] + [queue.get_nowait() for _ in range(queue.qsize())]
        events = []
        for item in batch:
            if isinstance(item, BaseException):
                raise item
            events.append(item)
        peers: list[Peer] = []  # without them the notices have addresses instead of names
        try:
            wanted = (
                await asyncio.to_thread(ask, args, StatusRequest(), StatusReply)
            ).status.desktop_notices is not False
            peers = (await asyncio.to_thread(ask, args, PeersRequest(), PeersReply)).peers
        except (UnreachableError, RequestError):
            pass
        try:
            for notice in notices.take(events, peers):
                await desktop.show(notice if wanted else Notice(notice.subject))
        except Exception:
            await asyncio.wait({ended}, timeout=GATHER)
            if not ended.done():  # else the session has just ended
                raise


def _follow(args: argparse.Namespace, put: Callable[[Event | BaseException], None]) -> None:
    """In a thread: all that is worth telling, from daemon to daemon; then what ended it."""
    since = time.time()
    try:
        while True:
            try:
                with connect(args) as client:
                    for event in client.events(follow=True, since=since):
                        since = event.time + 1e-6
                        if event.event in TELLING:
                            put(event)
                        if event.event is EventName.DAEMON_STOPPED:
                            break
            except UnreachableError:
                pass
            except RequestError as error:
                if error.error.code is not ErrorCode.FAILED:  # too many clients: that may pass
                    raise
            time.sleep(RETRY)
    except Exception as error:
        put(error)


class Desktop:
    """The notification server of the session that DBUS_SESSION_BUS_ADDRESS names."""

    def __init__(self, bus: MessageBus, markup: bool) -> None:
        self._bus = bus
        self._markup = markup
        self._shown: dict[str, int] = {}  # subject to the server's number

    @classmethod
    async def connect(cls) -> Desktop:
        """Raises Failure where there is no session or nobody who shows notices."""
        from dbus_fast.aio import MessageBus

        try:
            bus = await MessageBus().connect()
        except Exception as error:  # its own, OSError, ValueError: whatever is wrong with the address
            raise Failure(f"notify: no session bus: {error}; run it in a desktop session") from None
        desktop = cls(bus, markup=False)
        capabilities = await desktop._call("GetCapabilities", "")
        desktop._markup = "body-markup" in capabilities[0]
        return desktop

    async def ended(self) -> None:
        """Returns when the session's bus goes."""
        try:
            await self._bus.wait_for_disconnect()  # type: ignore[no-untyped-call]
        except Exception:
            return  # however it went

    async def show(self, notice: Notice) -> None:
        """Show it, or take away what is shown.  Raises Failure when the server refuses."""
        from dbus_fast import Variant

        before = self._shown.pop(notice.subject, 0)
        if not notice.title:
            if before:
                await self._call("CloseNotification", "u", before)
            return
        body = html.escape(notice.body, quote=False) if self._markup else notice.body
        hints = {
            "urgency": Variant("y", int(notice.urgency)),
            "category": Variant("s", "network"),
            "desktop-entry": Variant("s", "redirectctl-notify"),
        }
        actions: list[str] = []
        answer = await self._call(
            "Notify",
            "susssasa{sv}i",
            *("redirectctl", before, "network-wired", notice.title, body, actions, hints, SERVER_DECIDES),
        )
        self._shown[notice.subject] = answer[0]

    async def _call(self, member: str, signature: str, *body: object) -> list[Any]:
        from dbus_fast import Message, MessageType

        call = Message(destination=NAME, path=PATH, interface=NAME, member=member, signature=signature, body=list(body))
        answer = await self._bus.call(call)
        if answer is None or answer.message_type is MessageType.ERROR:
            why = answer.body[0] if answer is not None and answer.body else "no answer"
            raise Failure(f"notify: {member}: {why}; is there a notification server in this session?")
        return list(answer.body)

"""What systemd-logind says about sleep, where there is one: its signal PrepareForSleep on the system's D-Bus.

::

    true    the machine is about to sleep      nothing is to be done: all that counts is stored already
    false   it is awake again                  announce, see waking.py

The two clocks show the same half a second later; without D-Bus, its Python package or logind they are enough.
https://www.freedesktop.org/software/systemd/man/org.freedesktop.login1.html
"""

from __future__ import annotations

import asyncio
import importlib
import logging
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from redirectctl.daemon.loops import BEAT, Pulse

if TYPE_CHECKING:
    from dbus_fast import Message
    from dbus_fast.aio import MessageBus

_log = logging.getLogger(__name__)

NAME: Final = "org.freedesktop.login1"
PATH: Final = "/org/freedesktop/login1"
INTERFACE: Final = "org.freedesktop.login1.Manager"
SIGNAL: Final = "PrepareForSleep"
RULE: Final = f"type='signal',sender='{NAME}',path='{PATH}',interface='{INTERFACE}',member='{SIGNAL}'"
_BUS: Final = "org.freedesktop.DBus"
_BUS_PATH: Final = "/org/freedesktop/DBus"

PATIENCE = 10.0  # seconds for the bus to answer
RETRY = 30.0  # seconds between attempts to find a bus that is not there: at boot it may come after us
MAX_SIGNALS = 16  # that wait to be looked at; more are not of logind


class SleepSignals:
    """Listens for as long as the daemon runs."""

    def __init__(self, woke: Callable[[], None]) -> None:
        """``woke`` is called at each word of logind that the machine is awake again."""
        self._woke = woke
        self._bus: MessageBus | None = None
        self._why = "not asked yet"

    async def run(self, pulse: Pulse) -> None:
        """Until cancelled."""
        try:
            await asyncio.to_thread(importlib.import_module, "dbus_fast.aio")
        except ImportError:
            self._why = "the Python package dbus-fast is not installed"
            _log.debug("only the clocks tell redirectd of sleep: %s", self._why)
            return
        while True:
            try:
                await self._listen(pulse)
                why = "the bus has ended"
            except Exception as error:  # its own, OSError, ValueError: whatever is wrong with the bus
                why = f"no system bus: {error}" if str(error) else "the system bus does not answer"
            self._bus = None
            if why != self._why:
                self._why = why
                _log.debug("only the clocks tell redirectd of sleep: %s", why)
            await pulse.sleep(RETRY)

    async def found(self) -> str | None:
        """For doctor: None where logind tells of sleep, else why it does not."""
        if self._bus is None:
            return self._why
        try:
            return None if await self._owner(self._bus) else "no logind on the system bus"
        except Exception as error:
            return f"the system bus does not answer: {error}"

    async def _listen(self, pulse: Pulse) -> None:
        """Returns when the bus goes."""
        from dbus_fast import BusType
        from dbus_fast.aio import MessageBus

        signals: asyncio.Queue[Message] = asyncio.Queue(MAX_SIGNALS)

        def arrived(message: Message) -> None:
            if message.member == SIGNAL and message.interface == INTERFACE and message.path == PATH:
                with suppress(asyncio.QueueFull):
                    signals.put_nowait(message)

        bus = MessageBus(bus_type=BusType.SYSTEM)
        try:
            async with asyncio.timeout(PATIENCE):
                await bus.connect()
            bus.add_message_handler(arrived)
            await _call(bus, "AddMatch", RULE)
            self._bus = bus
            _log.debug("listening for %s of logind", SIGNAL)
            ended = asyncio.ensure_future(bus.wait_for_disconnect())  # type: ignore[no-untyped-call]
            ended.add_done_callback(_retrieve)  # however it goes
            while not ended.done():
                signal = asyncio.ensure_future(signals.get())
                pulse.beat()
                await asyncio.wait({signal, ended}, timeout=BEAT, return_when=asyncio.FIRST_COMPLETED)
                if not signal.done():
                    signal.cancel()
                elif signal.result().body == [False] and await self._is_logind(bus, signal.result()):
                    self._woke()
        finally:
            bus.disconnect()

    async def _is_logind(self, bus: MessageBus, signal: Message) -> bool:
        """Anybody may send us a signal that no rule of ours asks for."""
        return signal.sender is not None and signal.sender == await self._owner(bus)

    @staticmethod
    async def _owner(bus: MessageBus) -> str | None:
        found = await _call(bus, "GetNameOwner", NAME)
        return str(found[0]) if found else None


def _retrieve(ended: asyncio.Future[None]) -> None:
    if not ended.cancelled():
        ended.exception()


async def _call(bus: MessageBus, member: str, argument: str) -> list[Any]:
    """A method of the bus itself; an error's answer is [].  Raises TimeoutError."""
    from dbus_fast import Message, MessageType

    call = Message(
        destination=_BUS, path=_BUS_PATH, interface=_BUS, member=member, signature="s", body=[argument]
    )  # fmt: skip
    async with asyncio.timeout(PATIENCE):
        answer = await bus.call(call)
    return [] if answer is None or answer.message_type is MessageType.ERROR else list(answer.body)

"""Who waits for a handshake to end."""

from __future__ import annotations

import asyncio

from redirectctl.daemon.driver import Driver
from redirectctl.proto.constants import HANDSHAKE_RETRIES
from redirectctl.wire.addr import IPAddress, SockAddr

PATIENCE = sum(HANDSHAKE_RETRIES) + 1.0  # seconds for a handshake


class Contacts:
    """Handshakes that somebody has asked for."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._waiting: dict[asyncio.Future[str | None], tuple[SockAddr, IPAddress | None, bytes]] = {}
        self._meeting: dict[asyncio.Future[tuple[str | None, bytes | None]], SockAddr] = {}

    async def make(self, to: SockAddr, key: bytes, source: IPAddress | None = None) -> str | None:
        """A fresh handshake with a peer, from ``source`` if given: None when there is a session, else the named reason.

        Takes up to 9 s.
        """
        ended: asyncio.Future[str | None] = asyncio.get_running_loop().create_future()
        self._waiting[ended] = (to, source, key)
        try:
            self._driver.tell(self._driver.engine.meet, to, source, key)
            return await ended
        finally:
            del self._waiting[ended]

    async def within(self, to: SockAddr, key: bytes, source: IPAddress | None = None) -> str | None:
        """The same, but a handshake that never begins (others are under way) counts as not answered."""
        try:
            async with asyncio.timeout(PATIENCE):
                return await self.make(to, key, source)
        except TimeoutError:
            return "no-answer"

    async def meet(self, to: SockAddr) -> tuple[str | None, bytes | None]:
        """A fresh handshake with whoever is there: None and the key that has answered, else the named reason.

        Takes up to 9 s.
        """
        ended: asyncio.Future[tuple[str | None, bytes | None]] = asyncio.get_running_loop().create_future()
        self._meeting[ended] = to
        try:
            self._driver.tell(self._driver.engine.meet, to)
            return await ended
        finally:
            del self._meeting[ended]

    def ended(self, to: SockAddr, key: bytes | None, reason: str | None, source: IPAddress | None) -> None:
        """See commands.Contacted."""
        for meeting, where in self._meeting.items():
            # What comes of calling somebody else there says nothing, unless somebody has answered.
            if where == to and (key is None or reason is None) and not meeting.done():
                meeting.set_result((reason, key))
        for waiting, wanted in self._waiting.items():
            if wanted in ((to, source, key), (to, None, key)) and not waiting.done():
                waiting.set_result(reason)

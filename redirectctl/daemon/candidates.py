"""Sockets that peers' claims may mean, where only their sequence numbers can tell.

Who asks, and how often, is the peers' choice.  So all that is asked within a moment is looked for together, and looking
takes a small part of our time, however much is asked: the answer comes later then, for everybody alike.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Mapping
from itertools import islice
from typing import Final

from redirectctl.flows import constants
from redirectctl.flows.commands import PeersClaim
from redirectctl.kernel.errors import KernelError
from redirectctl.wire.addr import FourTuple, IPAddress

_log = logging.getLogger(__name__)

GATHER: Final = 0.05  # seconds
BUSY: Final = 20.0  # a look takes at most this part of our time
AT_ONCE: Final = 64  # pairs that one look is about: as many conditions as the kernel sees to quickly

Pair = tuple[int, IPAddress]  # a local port and a remote host
Numbers = tuple[int, int]


class Candidates:
    """Questions that wait for the next look."""

    def __init__(
        self,
        between: Callable[[Collection[Pair]], Mapping[Pair, list[FourTuple]]],
        numbers: Callable[[Collection[FourTuple]], Awaitable[Mapping[FourTuple, Numbers]]],
        answer: Callable[[PeersClaim, Mapping[FourTuple, Numbers]], None],
    ) -> None:
        """``between``: Finder.between; ``numbers``: Inband.numbers; ``answer`` is called once for each question."""
        self._between = between
        self._numbers = numbers
        self._answer = answer
        self._wanted: dict[PeersClaim, Pair] = {}
        self._running = False

    def want(self, claim: PeersClaim, pair: Pair) -> bool:
        """One more question.  True: run() is to be started."""
        self._wanted[claim] = pair
        started, self._running = self._running, True
        return not started

    async def run(self) -> None:
        """Until all have been answered."""
        try:
            while self._wanted:
                await asyncio.sleep(GATHER)
                await self._look()
        finally:
            self._running = False

    async def _look(self) -> None:
        loop = asyncio.get_running_loop()
        pairs = frozenset(islice(dict.fromkeys(self._wanted.values()), AT_ONCE))
        asked = {claim: pair for claim, pair in self._wanted.items() if pair in pairs}
        for claim in asked:
            del self._wanted[claim]
        known: Mapping[FourTuple, Numbers] = {}
        meant: dict[Pair, list[FourTuple]] = {}
        began = loop.time()
        took = 0.0
        try:
            found = self._between(pairs)
            meant = {pair: found[pair][: constants.MAX_CANDIDATES] for pair in pairs}
            took = loop.time() - began
            known = await self._numbers({socket for sockets in meant.values() for socket in sockets})
        except Exception as error:  # whoever asked is told that nothing was found
            _log.error("sequence numbers: %s", error, exc_info=None if isinstance(error, KernelError) else error)
        finally:
            for claim, pair in asked.items():
                self._answer(claim, {socket: known[socket] for socket in meant.get(pair, ()) if socket in known})
        await asyncio.sleep(BUSY * took)

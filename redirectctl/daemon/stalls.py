"""Connections whose packets get lost: noticed by their retransmissions and probes, before their programs notice.

A probe asks the peer whether it is still there (keepalive), or whether its window has opened; it answers each at once.

The sockets are looked at when the kernel has counted something that was sent again (kernel/sockets/counters.py), and a
few seconds apart in case that it did not: a firewall of this host that drops what it sends is not counted.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable

from redirectctl.daemon.loops import Pulse
from redirectctl.flows.engine import Engine
from redirectctl.flows.state import State
from redirectctl.kernel.sockets.counters import Count
from redirectctl.kernel.sockets.diag import SocketInfo
from redirectctl.wire.addr import FourTuple

BEAT = 0.5  # seconds: two time-outs of a quick connection have passed after 0.6 s
SLOW = 5.0  # seconds between looks without a reason: 12 ms for 10,000 sockets
BUSY = 20.0  # a look takes at most this part of our time
RETRANSMITS = 2  # of the same segment, without an answer: one is nothing unusual
PROBES = 2  # without an answer; the same


class StallWatch:
    """Looks at the protected connections."""

    def __init__(
        self,
        engine: Engine,
        look_up: Callable[[Iterable[FourTuple]], dict[FourTuple, SocketInfo]],
        changed: Callable[[], None],
        *,
        repeats: Callable[[], Count],
        repeating: Callable[[int], list[FourTuple]],
    ) -> None:
        """``changed`` is called after the engine was told something.

        ``repeats``: TcpCounters.repeats; ``repeating``: connections that have sent something so often in vain.
        """
        self._engine = engine
        self._look_up = look_up
        self._changed = changed
        self._repeats = repeats
        self._repeating = repeating
        self._counted: Count | None = None  # at the last look
        self._looked = float("-inf")
        self._asked: frozenset[bytes] = frozenset()  # peers, see questioned
        self._hint = asyncio.Event()
        self._acked: dict[FourTuple, int] = {}  # of stalled ones, when they were last looked at
        self._arrived: dict[
            FourTuple, tuple[int, int]
        ] = {}  # what the peer had acknowledged and sent, at the last look

    async def run(self, pulse: Pulse) -> None:
        """The beat, until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            began = loop.time()
            self._hint.clear()
            self.look(began)
            await pulse.wait(self._hint, max(BEAT, BUSY * (loop.time() - began)))

    def questioned(self, keys: frozenset[bytes]) -> None:
        """Does anything arrive on connections with these peers?  From now on, so look now."""
        if not keys <= self._asked:
            self._hint.set()
        self._asked = keys

    def look(self, now: float) -> None:
        """One beat.  Raises KernelError."""
        asked = [c.socket for key in self._asked for c in self._engine.table.movable(key) if not c.blocked]
        if heard := self.heard(self._look_up(asked).values() if asked else ()):
            self._engine.heard(now, heard)
            self._changed()
        if not len(self._engine.table):
            return
        counted = self._repeats()
        if counted == self._counted and not self._acked and now - self._looked < SLOW:
            return
        several = self._repeating(min(RETRANSMITS, PROBES))
        self._counted, self._looked = counted, now
        ours = [s for s in several if (c := self._engine.table.at(s)) is not None and c.state is State.PROTECTED]
        if stalled := self.stalled(self._look_up(ours).values() if ours else ()):
            self._engine.stalled(now, stalled)
            self._changed()

    def stalled(self, sockets: Collection[SocketInfo]) -> list[FourTuple]:
        """Those that have sent the same segment several times, and nothing new was acknowledged since the last look."""
        waiting = {
            one.tuple: one.info.bytes_acked
            for one in sockets
            if one.info is not None
            and ((one.info.unacked and one.info.retransmits >= RETRANSMITS) or one.info.probes >= PROBES)
        }
        found = [socket for socket, acked in waiting.items() if self._acked.get(socket) == acked]
        self._acked = waiting
        return found

    def heard(self, sockets: Collection[SocketInfo]) -> list[FourTuple]:
        """Those on which the peer has acknowledged or sent something since the last look."""
        now = {one.tuple: (one.info.bytes_acked, one.info.bytes_received) for one in sockets if one.info is not None}
        found = [socket for socket, position in now.items() if self._arrived.get(socket, position) != position]
        self._arrived = now
        return found

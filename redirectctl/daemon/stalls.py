"""Connections whose packets get lost: noticed by their retransmissions and probes, before their programs notice.

A probe asks the peer whether it is still there (keepalive), or whether its window has opened; it answers each at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable

from redirectctl.daemon.loops import Pulse
from redirectctl.flows.engine import Engine
from redirectctl.flows.state import State
from redirectctl.kernel.diag import SocketInfo
from redirectctl.wire.addr import FourTuple

BEAT = 0.5  # seconds: two time-outs of a quick connection have passed after 0.6 s
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
    ) -> None:
        """``changed`` is called after the engine was told something."""
        self._engine = engine
        self._look_up = look_up
        self._changed = changed
        self._acked: dict[FourTuple, int] = {}  # of stalled ones, when they were last looked at
        self._arrived: dict[
            FourTuple, tuple[int, int]
        ] = {}  # what the peer had acknowledged and sent, at the last look

    async def run(self, pulse: Pulse) -> None:
        """The beat, until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            began = loop.time()
            # Of those that are suspended and not held back TCP finds out by itself that they have a path again.
            left = {c.socket: c.state for c in self._engine.table.movable() if not c.held}
            found = self._look_up(left).values() if left else ()
            if heard := self.heard(found):
                self._engine.heard(began, heard)
                self._changed()
            if stalled := self.stalled([one for one in found if left[one.tuple] is State.PROTECTED]):
                self._engine.stalled(began, stalled)
                self._changed()
            await pulse.sleep(max(BEAT, BUSY * (loop.time() - began)))

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

"""How long programs saw nothing in a move: GAP, the field `gap` of `move.finished` and `move.received`.

Asked of the kernel, by what it counts for the sockets, since nothing passes through the daemon.  For each connection of
a move, a few of many:

    waits     something that it has sent is not acknowledged yet.  Its gap is the longest time in which nothing new was
              acknowledged or received, from the first look at it (or the first segment that was sent in vain before:
              retransmission time-outs tell when) until something is, after the move
    is silent it has sent nothing: nobody can tell when it would have waited.  Its gap is the time without a path, as
              far as this host knows of one: from when its address was gone, or it was suspended, to the end of the move

The gap of a move is the longest of its connections that waited, else the longest of the silent ones; without either it
is left out, since not known is not nothing.  What waits is looked at every few hundredths of a second, so a gap is that
much too long at most.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from redirectctl.daemon.tasks import Tasks
from redirectctl.flows.commands import Notice
from redirectctl.flows.connection import Table
from redirectctl.kernel.errors import KernelError
from redirectctl.kernel.sockets.diag import TcpInfo
from redirectctl.wire.addr import FourTuple, IPAddress

SAMPLE: Final = 32  # connections of one peer that are looked at: 10 us each
MOST: Final = 256  # in all
BEAT: Final = 0.02  # seconds between looks, at first
PART: Final = 0.02  # of the time that has passed, between later looks
SLOWEST: Final = 1.0  # seconds between looks
OVER: Final = 60.0  # seconds with a path after which no move ends any more what began
PATIENCE: Final = 2.0  # seconds after the end of a move in which what waits has to hear something
STARTING, ENDING = ("move.started", "connection.suspended"), ("move.finished", "move.received")

Look = Callable[[Iterable[FourTuple]], Mapping[FourTuple, TcpInfo]]


@dataclass(slots=True)
class _Watched:
    concerned: float  # the last time that a move of it began, or that it had no path
    since: float  # the last news; while it waits, at the earliest since it does
    position: tuple[int, int] | None = None  # what was acknowledged and received, at the last look
    lost: float | None = None  # no path since
    waits: bool = False  # at the last look
    longest: float | None = None  # time that it waited
    heard: bool = False  # something since the move ended


class Gaps:
    """Watches the connections of moves, and says of each move how long the gap was."""

    def __init__(
        self,
        table: Table,
        look: Look,
        usable: Callable[[], Iterable[IPAddress]],
        now: Callable[[], float],
        tasks: Tasks,
        record: Callable[[Notice], None],
    ) -> None:
        """``usable``: addresses of this host; ``record``: writes a notice down."""
        self._table = table
        self._look = look
        self._usable = usable
        self._now = now
        self._tasks = tasks
        self._record = record
        self._watched: dict[bytes, _Watched] = {}
        self._began = 0.0
        self._fresh = asyncio.Event()  # there are more to be watched: look often again
        self._looking = False

    def take(self, notice: Notice) -> None:
        """Write a notice down: at once, or if it ends a move as soon as its gap is known."""
        if notice.name in STARTING:
            self._begin(notice)
        elif notice.name in ENDING:
            self._begin(notice)
            self.look()
            for each in self._of(notice):
                each.heard = False
            if any(each.waits for each in self._of(notice)):
                self._tasks.start(self._wait(notice, self._now() + PATIENCE), "gap")
            else:
                self._end(notice)
            return
        self._record(notice)

    def look(self) -> None:
        """What has been acknowledged or received since the last look?"""
        now = self._now()
        connections = self._table.select(self._watched)
        for c in connections:
            if c.lost_since is not None:
                self._watched[c.cid].concerned = now
        going_on = {c.cid for c in connections if c.movable and now - self._watched[c.cid].concerned < OVER}
        for cid in self._watched.keys() - going_on:
            del self._watched[cid]
        try:
            infos = self._look([c.socket for c in connections])
        except KernelError:  # then the gap is not known
            return
        for c in connections:
            each, info = self._watched.get(c.cid), infos.get(c.socket)
            if each is None or info is None:
                continue
            position = info.bytes_acked, info.bytes_received
            first, each.position, before = each.position is None, position, each.position
            if not first and position != before:
                if each.waits:
                    each.longest = max(each.longest or 0.0, now - each.since)
                each.since, each.heard = now, True
            waits = bool(info.unacked or info.notsent_bytes)
            if waits and not each.waits:
                began = now - _waited(info)
                each.since = began if first else max(each.since, began)
            each.waits = waits

    def _begin(self, notice: Notice) -> None:
        now, usable = self._now(), frozenset(self._usable())
        cids = [notice.connection] if notice.connection is not None else notice.cids
        for cid in cids:
            if (known := self._watched.get(cid)) is not None:
                known.concerned = now
        fresh = [c for c in self._table.select(cids) if c.movable and c.cid not in self._watched]
        room = SAMPLE - sum(c.peer == notice.peer for c in self._table.select(self._watched))
        fresh = fresh[: max(0, min(room, MOST - len(self._watched)))]
        if not fresh:
            return
        for c in fresh:
            lost = c.lost_since if c.lost_since is not None else None if c.local_now in usable else now
            self._watched[c.cid] = _Watched(now, now, lost=lost)
        self.look()
        self._began = now
        self._fresh.set()
        if not self._looking:
            self._looking = True
            self._tasks.start(self._run(), "gaps")

    def _of(self, notice: Notice) -> list[_Watched]:
        return [each for cid in notice.cids if (each := self._watched.get(cid)) is not None]

    async def _run(self) -> None:
        try:
            while self._watched:
                with suppress(TimeoutError):
                    beat = min(SLOWEST, max(BEAT, PART * (self._now() - self._began)))
                    await asyncio.wait_for(self._fresh.wait(), beat)
                self._fresh.clear()
                self.look()
        finally:
            self._looking = False

    async def _wait(self, notice: Notice, until: float) -> None:
        """Until everything that waits has heard something."""
        try:
            while self._now() < until and any(each.waits and not each.heard for each in self._of(notice)):
                await asyncio.sleep(BEAT)
                self.look()
        finally:
            self._end(notice)

    def _end(self, notice: Notice) -> None:
        now, found = self._now(), self._of(notice)
        waited = [each.longest for each in found if each.longest is not None]
        waited += [now - each.since for each in found if each.waits and not each.heard]
        lost = [now - each.lost for each in found if each.lost is not None]
        if gap := waited or lost:
            notice.details["gap"] = round(max(gap), 3)
        for cid in notice.cids:
            self._watched.pop(cid, None)
        self._record(notice)


def _waited(info: TcpInfo) -> float:
    """Seconds since the segment was first sent that is sent again now: each time-out was twice the one before."""
    return info.rto / 1e6 * (1 - 0.5**info.backoff)

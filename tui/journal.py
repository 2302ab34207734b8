"""The event log as a person reads it: a timeline of moves, and how long they took."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from redirectctl.api.schema import Event, EventName
from redirectctl.api.text import clean
from redirectctl_tui.words import Tone, plural

KEPT: Final = 5000  # entries, and as many events of connections
RESUMED: Final = "resumed"
TOGETHER: Final = 1.0  # seconds within which the same thing, happening to many connections, is one entry


@dataclass(frozen=True)
class Entry:
    """A line of the timeline."""

    number: int  # names it
    time: float  # epoch seconds
    what: str
    tone: Tone = Tone.PLAIN
    peer: str | None = None  # fingerprint
    connections: int = 0
    recovery: float | None = None  # seconds from a usable new address to the peer's confirmation
    gap: float | None = None  # seconds without a path
    reason: str | None = None  # a named one
    detail: str = ""
    announces: int | None = None  # the epoch of a move that has not finished


@dataclass(frozen=True)
class Recovery:
    """A finished move."""

    time: float  # epoch seconds
    seconds: float
    connections: int


class Journal:
    """Takes events in, oldest first; keeps a bounded timeline."""

    def __init__(self) -> None:
        self.entries: deque[Entry] = deque(maxlen=KEPT)
        self.recoveries: deque[Recovery] = deque(maxlen=KEPT)
        self._of_connections: deque[Event] = deque(maxlen=KEPT)
        self._number = 0
        self._gap: float | None = None  # the longest that a connection was without path, before the move that ended it

    def add(self, events: Iterable[Event]) -> None:
        """What happened since."""
        for event in events:
            if event.connection is not None:
                self._of_connections.append(event)
            self._add(event)

    def of_connection(self, cid: str) -> list[Event]:
        """What happened to one connection, oldest first."""
        return [event for event in self._of_connections if event.connection == cid]

    def _add(self, event: Event) -> None:
        match event.event:
            case EventName.ADDRESS_ADDED:
                where = f" on {clean(event.interface)}" if event.interface else ""
                self._append(event, f"{clean(event.address or '?')} came{where}", Tone.DIM)
            case EventName.ADDRESS_REMOVED:
                self._append(event, f"{clean(event.address or '?')} went", Tone.DIM)
            case EventName.MOVE_STARTED:
                what = f"announcing {clean(event.address or '?')}"
                self._append(event, what, Tone.WAITING, announces=event.epoch)
            case EventName.MOVE_FINISHED:
                self._finished(event)
            case EventName.MOVE_RECEIVED:
                self._take_resumed(event)
                self._append(event, f"it moved to {clean(event.address or '?')}", Tone.GOOD, gap=self._taken_gap())
            case EventName.CONNECTION_SUSPENDED:
                self._gather(event, "suspended", Tone.WAITING)
            case EventName.CONNECTION_RESUMED:
                if event.duration is not None:
                    self._gap = max(event.duration, self._gap or 0.0)
                self._gather(event, RESUMED, Tone.GOOD)
            case EventName.CONNECTION_REFUSED:
                self._gather(event, "connection refused", Tone.BAD)
            case EventName.REDIRECT_REFUSED:
                self._append(event, "move refused", Tone.BAD)
            case EventName.RST_HELD:
                self._gather(event, "reset held back", Tone.WAITING)
            case EventName.PEER_KEY_CHANGED:
                self._append(event, "KEY CHANGED", Tone.BAD)
            case EventName.PEER_FIRST_CONTACT:
                self._append(event, "first contact", Tone.WAITING)
            case EventName.PEER_APPROVED:
                self._append(event, "approved", Tone.GOOD)
            case EventName.PEER_REJECTED:
                self._append(event, "rejected", Tone.BAD)
            case EventName.RENDEZVOUS_REACHED:
                self._append(event, "rendezvous reached", Tone.DIM)
            case EventName.RENDEZVOUS_LOST:
                self._append(event, "rendezvous lost", Tone.WAITING)
            case EventName.DAEMON_STARTED:
                self._append(event, "redirectd started", Tone.DIM)
            case EventName.DAEMON_STOPPED:
                self._append(event, "redirectd stopped", Tone.DIM)
            case EventName.KERNEL_REPAIRED:
                self._append(event, "removed by others, put back", Tone.WAITING)
            case EventName.KERNEL_CONTESTED:
                self._append(event, "removed by others again and again", Tone.BAD)
            case EventName.KERNEL_REFUSED:
                self._append(event, "not permitted, see `redirectctl doctor`", Tone.BAD)
            case EventName.DNS_UPDATED:
                self._append(event, "own name updated", Tone.DIM)
            case EventName.DNS_FAILED:
                self._append(event, "own name not updated", Tone.BAD)
            case EventName.EVENTS_MISSED:
                self._append(event, f"{plural(event.count or 0, 'event')} not shown", Tone.DIM)
            case _:
                pass  # what happens to single connections is in their details; refused packets are doctor's matter

    def _finished(self, event: Event) -> None:
        """Takes the place of its `move.started`, and of earlier tries to announce the same address."""
        announced = f"announcing {clean(event.address or '?')}"
        for entry in [e for e in self.entries if e.announces and e.peer == event.peer]:
            if entry.announces == event.epoch or entry.what == announced:
                self.entries.remove(entry)
        what = f"moved to {clean(event.address or '?')}"
        self._take_resumed(event)
        self._append(event, what, Tone.GOOD, recovery=event.duration, gap=self._taken_gap())
        if event.duration is not None:
            self.recoveries.append(Recovery(event.time, event.duration, event.connections or 0))

    def _take_resumed(self, move: Event) -> None:
        """That connections have a path again is what the move's own line says."""
        if self.entries:
            last = self.entries[-1]
            if (last.what, last.peer) == (RESUMED, move.peer) and last.connections == (move.connections or 0):
                self.entries.pop()

    def _taken_gap(self) -> float | None:
        gap, self._gap = self._gap, None
        return gap

    def _gather(self, event: Event, what: str, tone: Tone) -> None:
        """One entry for the same thing happening to many connections."""
        last = self.entries[-1] if self.entries else None
        if last is not None and (last.what, last.peer) == (what, event.peer) and event.time - last.time < TOGETHER:
            gap = max((g for g in (last.gap, event.duration) if g is not None), default=None)
            self.entries[-1] = replace(last, connections=last.connections + 1, gap=gap)
            return
        self._append(event, what, tone, gap=event.duration, connections=1)

    def _append(
        self,
        event: Event,
        what: str,
        tone: Tone = Tone.PLAIN,
        *,
        recovery: float | None = None,
        gap: float | None = None,
        connections: int | None = None,
        announces: int | None = None,
    ) -> None:
        self._number += 1
        detail = clean(event.detail) if event.detail and tone is Tone.BAD else ""
        count = connections if connections is not None else event.connections or 0
        self.entries.append(
            Entry(
                self._number, event.time, what, tone, event.peer, count, recovery, gap, event.reason, detail, announces
            )
        )


def median(values: Sequence[float]) -> float:
    """Of at least one value; of an even number the lower one."""
    return sorted(values)[(len(values) - 1) // 2]

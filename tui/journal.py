"""The event log as people read it: the stories of api/stories.py as a timeline, and how long programs saw nothing."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from redirectctl.api.schema import Event
from redirectctl.api.stories import KEPT, Line, Stories, Tone
from redirectctl.api.text import clean

EVENTS_KEPT: Final = 5000  # of connections


@dataclass(frozen=True)
class Entry:
    """A line of the timeline."""

    number: int  # names it
    time: float  # epoch seconds
    what: str
    tone: Tone = Tone.PLAIN
    peers: tuple[str, ...] = ()  # fingerprints
    connections: int = 0
    took: float | None = None  # seconds from a usable new address to the peer's confirmation
    gap: float | None = None  # seconds that programs saw nothing
    reason: str | None = None  # a named one
    detail: str = ""

    @property
    def peer(self) -> str | None:
        """The first of them."""
        return self.peers[0] if self.peers else None


class Journal:
    """Takes events in, oldest first; keeps a bounded timeline."""

    def __init__(self) -> None:
        self._stories = Stories()
        self._of_connections: deque[Event] = deque(maxlen=EVENTS_KEPT)

    def add(self, events: Iterable[Event]) -> None:
        """What happened since."""
        for event in events:
            if event.connection is not None:
                self._of_connections.append(event)
            self._stories.add(event)
        self._stories.finished()  # all lines are shown, complete or not

    def tick(self, now: float) -> None:
        """Time passes.  now: epoch seconds."""
        self._stories.tick(now)
        self._stories.finished()

    def of_connection(self, cid: str) -> list[Event]:
        """What happened to one connection, oldest first."""
        return [event for event in self._of_connections if event.connection == cid]

    @property
    def entries(self) -> list[Entry]:
        """The timeline, in the order in which things began."""
        return [_entry(line) for line in self._stories.lines if not line.minor]

    @property
    def gaps(self) -> list[float]:
        """Of moves and outages that are over, the oldest first: seconds that programs saw nothing, where known."""
        return [line.gap for line in self._stories.lines if line.move and line.over and line.gap is not None]


def _entry(line: Line) -> Entry:
    return Entry(
        line.number,
        line.time,
        clean(line.what),
        line.tone,
        line.peers,
        line.connections,
        line.took,
        line.gap if line.over else None,
        None if line.move and line.over else line.reason,
        clean(line.detail),
    )


def median(values: Sequence[float]) -> float:
    """Of at least one value; of an even number the lower one."""
    return sorted(values)[(len(values) - 1) // 2]


__all__ = ["KEPT", "Entry", "Journal", "median"]

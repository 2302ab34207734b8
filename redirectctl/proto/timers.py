"""Deadlines without a clock: the caller says what time it is."""

from __future__ import annotations

import heapq
from collections.abc import Hashable, Iterator
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)


class Timers(Generic[Key]):
    """One deadline a key; setting it again replaces it."""

    def __init__(self) -> None:
        self._deadline: dict[Key, float] = {}
        self._heap: list[tuple[float, int, Key]] = []
        self._order = 0

    def set(self, key: Key, at: float) -> None:
        """Arm or re-arm ``key`` for time ``at`` (seconds on the caller's clock)."""
        self._deadline[key] = at
        self._order += 1  # keys need not be comparable
        heapq.heappush(self._heap, (at, self._order, key))
        if len(self._heap) > 2 * len(self._deadline) + 64:  # mostly deadlines that were replaced or cancelled
            self._heap = [entry for entry in self._heap if self._deadline.get(entry[2]) == entry[0]]
            heapq.heapify(self._heap)

    def cancel(self, key: Key) -> None:
        """Disarm; unknown keys are fine."""
        self._deadline.pop(key, None)

    def armed(self, key: Key) -> bool:
        """Whether a deadline is set."""
        return key in self._deadline

    def next(self) -> float | None:
        """The earliest deadline."""
        while self._heap:
            at, _, key = self._heap[0]
            if self._deadline.get(key) == at:
                return at
            heapq.heappop(self._heap)
        return None

    def due(self, now: float) -> Iterator[Key]:
        """Keys whose time has come, earliest first, each disarmed before it is handed out."""
        while (at := self.next()) is not None and at <= now:
            key = heapq.heappop(self._heap)[2]
            del self._deadline[key]
            yield key

"""How much others may have us write, into the event log and onto standard error, so that nothing else is pushed out.

What somebody can cause at will is written at once the first time; then there is one line for each pause, with a count,
and the pauses grow (Repeats).  And of all that is written in a day nobody may have more than is left (Shares).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

FIRST_PAUSE: Final = 1.0  # seconds after the first line; twice as long after each further one
LONGEST_PAUSE: Final = 3600.0  # also: how long it has to be quiet until the next counts as the first again
MAX_PARTIES: Final = 64  # counted apart; more at a time are counted as one
MAX_KINDS: Final = 64  # of one party; more are counted as what they have in common
DAY: Final = 86400.0

T = TypeVar("T")


@dataclass(slots=True)
class _Kind(Generic[T]):
    last: T
    seen: float
    until: float = 0.0  # no line before
    pause: float = FIRST_PAUSE
    count: int = 0  # not told yet

    def quiet(self, now: float) -> bool:
        """Whether nothing is left of it to remember."""
        return not self.count and not 0 <= now - self.seen < LONGEST_PAUSE


class Repeats(Generic[T]):
    """Counts what is not written; ``T`` is what a line is made of, the last one stands for those that were left out."""

    def __init__(self) -> None:
        self._parties: dict[str | None, dict[Hashable, _Kind[T]]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._parties.values()))

    def note(
        self,
        now: float,
        who: str,
        kind: Hashable,
        last: T,
        count: int = 1,
        *,
        broad: Hashable = None,
        hold: bool = False,
    ) -> int:
        """It happened ``count`` times: how many times a line written now stands for.  0: no line now.

        ``broad``: of a closed list, what it counts as where there are too many kinds.  ``hold``: no line in any case;
        it is due() later.
        """
        entry = self._entry(now, who, kind, broad, last)
        entry.last, entry.seen = last, now
        entry.count += count
        return 0 if hold else self._told(now, entry)

    def due(
        self, now: float, may: Callable[[str | None], bool] = lambda who: True
    ) -> Iterator[tuple[str | None, T, int]]:
        """What was left out, and its pause is over: who, the last one, how many.  It has been told with this.

        ``may``: whether somebody may have a line.  To be called now and then: what has been quiet is forgotten here.
        """
        for who, kinds in list(self._parties.items()):
            for kind, entry in list(kinds.items()):
                if entry.count and may(who) and (told := self._told(now, entry)):
                    yield who, entry.last, told
                elif entry.quiet(now):
                    del kinds[kind]
            if not kinds:
                del self._parties[who]

    def _told(self, now: float, entry: _Kind[T]) -> int:
        if now < entry.until <= now + LONGEST_PAUSE:  # else the clock was set back
            return 0
        entry.until = now + entry.pause
        entry.pause = min(2 * entry.pause, LONGEST_PAUSE)
        told, entry.count = entry.count, 0
        return told

    def _entry(self, now: float, who: str, kind: Hashable, broad: Hashable, last: T) -> _Kind[T]:
        party = who if who in self._parties or len(self._parties) < MAX_PARTIES else None
        kinds = self._parties.setdefault(party, {})
        entry = kinds.get(kind)
        if entry is None:
            entry = kinds.setdefault(kind if len(kinds) < MAX_KINDS else broad, _Kind(last, now))
        if entry.quiet(now):
            entry.pause = FIRST_PAUSE
        return entry


class Shares:
    """What may be written in a day: anybody as much as is left for all others together.

    So one party gets half of it, a second one a quarter, and there is always something for the next.
    """

    def __init__(self, budget: int) -> None:
        """budget: bytes."""
        self._budget = budget
        self._day = 0.0
        self._used: dict[str | None, int] = {}
        self._left = budget

    def room(self, now: float, who: str | None) -> bool:
        """Whether it may have another line."""
        day = now // DAY
        if day != self._day:
            self._day, self._used, self._left = day, {}, self._budget
        return self._used.get(who, 0) < self._left

    def take(self, who: str | None, size: int) -> None:
        """It has got a line of this size; room() was asked before."""
        self._used[who] = self._used.get(who, 0) + size
        self._left -= size

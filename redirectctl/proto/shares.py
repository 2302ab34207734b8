"""A table that is shared, and that nobody can keep others out of.

There is one rule for all of them.  As long as there is room anybody gets some.  When there is none, the party that has
most gives way to one that has less: its oldest entry goes.  Who has most itself gets no more.  So those who fill a
table, however many they are, leave an equal share to everybody else.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from typing import Generic, TypeVar

Party = TypeVar("Party", bound=Hashable)
Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class Shared(Generic[Party, Key, Value]):
    """Values by key.  Each belongs to a party: a peer, or a source of handshakes; the caller says which."""

    def __init__(self) -> None:
        self._values: dict[Key, tuple[Party, Value]] = {}
        self._keys: dict[Party, dict[Key, None]] = {}  # of each party, oldest first
        self._with: dict[int, dict[Party, None]] = {}  # the parties that have so many
        self._most = 0

    def __len__(self) -> int:
        return len(self._values)

    def __contains__(self, key: object) -> bool:
        return key in self._values

    def __iter__(self) -> Iterator[Key]:
        return iter(self._values)

    def get(self, key: Key) -> Value | None:
        """The value, or None."""
        return self._values[key][1] if key in self._values else None

    def values(self) -> Iterator[Value]:
        """All of them, oldest first."""
        return (value for _, value in self._values.values())

    def items(self) -> Iterator[tuple[Key, Value]]:
        """The same, with their keys."""
        return ((key, value) for key, (_, value) in self._values.items())

    def keys(self, party: Party) -> list[Key]:
        """Those of this party, oldest first."""
        return list(self._keys.get(party, ()))

    def of(self, party: Party) -> int:
        """How many this party has."""
        return len(self._keys.get(party, ()))

    def put(self, limit: int, party: Party, key: Key, value: Value) -> tuple[Key, Value] | None:
        """A new key, in a table for so many.

        Returns what had to go for it; if that is the key itself, there was no room for it.
        """
        gone = None
        if len(self._values) >= limit:
            if self.of(party) >= self._most:
                return key, value
            oldest = next(iter(self._keys[next(iter(self._with[self._most]))]))
            gone = oldest, self._values[oldest][1]
            self.pop(oldest)
        self._values[key] = party, value
        keys = self._keys.setdefault(party, {})
        keys[key] = None
        self._count(party, len(keys) - 1, len(keys))
        return gone

    def pop(self, key: Key) -> Value | None:
        """The value, which is not kept any longer; None if there is none."""
        if key not in self._values:
            return None
        party, value = self._values.pop(key)
        keys = self._keys[party]
        del keys[key]
        self._count(party, len(keys) + 1, len(keys))
        if not keys:
            del self._keys[party]
        return value

    def _count(self, party: Party, before: int, after: int) -> None:
        """Kept up to date, since a full table is asked often who has most."""
        if before:
            del self._with[before][party]
            if not self._with[before]:
                del self._with[before]
        if after:
            self._with.setdefault(after, {})[party] = None
        if after > self._most or (before == self._most and before not in self._with):
            self._most = after

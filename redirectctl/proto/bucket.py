"""How much of something somebody may have: a token bucket."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Bucket:
    """A rate of something."""

    rate: float  # a second
    burst: float
    tokens: float
    at: float  # when it held them

    def level(self, now: float) -> float:
        """What may be taken."""
        return min(self.burst, self.tokens + max(0.0, now - self.at) * self.rate)

    def take(self, now: float, count: float = 1) -> bool:
        """So many more?"""
        self.tokens, self.at = self.level(now), now
        if self.tokens < count:
            return False
        self.tokens -= count
        return True

    def credit(self, now: float, count: float) -> None:
        """So many more may be taken than time gives."""
        self.tokens, self.at = min(self.burst, self.level(now) + count), now


class Buckets:
    """One for each peer; of too many the one that was used least recently goes, and is full again."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._of: dict[bytes, Bucket] = {}

    def take(self, now: float, key: bytes, rate: float, burst: float, count: int = 1) -> bool:
        """So many more for this peer?"""
        bucket = self._of.pop(key, None)
        while len(self._of) >= self._most:
            del self._of[next(iter(self._of))]
        bucket = self._of[key] = bucket or Bucket(rate, burst, burst, now)
        return bucket.take(now, count)

    def forget(self, key: bytes) -> None:
        """The peer is dropped."""
        self._of.pop(key, None)

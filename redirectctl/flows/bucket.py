"""How much of something somebody may have: a token bucket."""

from __future__ import annotations

from dataclasses import dataclass

from redirectctl.flows import constants


@dataclass(slots=True)
class Bucket:
    """A rate of something."""

    rate: float  # a second
    burst: float
    tokens: float
    at: float

    def take(self, now: float, count: int = 1) -> bool:
        """So many more?"""
        self.tokens = min(self.burst, self.tokens + (now - self.at) * self.rate)
        self.at = now
        if self.tokens < count:
            return False
        self.tokens -= count
        return True


class Buckets:
    """One for each peer; of too many the one that was used least recently goes, and is full again."""

    def __init__(self) -> None:
        self._of: dict[bytes, Bucket] = {}

    def take(self, now: float, key: bytes, rate: float, burst: float, count: int = 1) -> bool:
        """So many more for this peer?"""
        bucket = self._of.pop(key, None)
        while len(self._of) >= constants.MAX_HEARD:
            del self._of[next(iter(self._of))]
        bucket = self._of[key] = bucket or Bucket(rate, burst, burst, now)
        return bucket.take(now, count)

    def forget(self, key: bytes) -> None:
        """The peer is dropped."""
        self._of.pop(key, None)

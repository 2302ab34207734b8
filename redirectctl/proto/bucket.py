"""How much of something somebody may have: a token bucket."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Bucket:
    """A token bucket: ``rate`` tokens a second, at most ``burst`` of them at a time."""

    rate: float  # a second
    burst: float
    tokens: float
    at: float  # when it held them

    def level(self, now: float) -> float:
        """How many tokens there are now."""
        return min(self.burst, self.tokens + max(0.0, now - self.at) * self.rate)

    def take(self, now: float, count: float = 1) -> bool:
        """Take ``count`` tokens; False if there are fewer."""
        self.tokens, self.at = self.level(now), now
        if self.tokens < count:
            return False
        self.tokens -= count
        return True

    def credit(self, now: float, count: float) -> None:
        """Add ``count`` tokens, as far as the bucket has room."""
        self.tokens, self.at = min(self.burst, self.level(now) + count), now


class Buckets:
    """One bucket for each peer.  Where there is no room, the one least recently used goes, and begins full again."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._of: dict[bytes, Bucket] = {}

    def take(self, now: float, key: bytes, rate: float, burst: float, count: int = 1) -> bool:
        """Take ``count`` tokens of this peer's; False if there are fewer."""
        bucket = self._of.pop(key, None)
        while len(self._of) >= self._most:
            del self._of[next(iter(self._of))]
        bucket = self._of[key] = bucket or Bucket(rate, burst, burst, now)
        return bucket.take(now, count)

    def forget(self, key: bytes) -> None:
        """Forget a peer's bucket."""
        self._of.pop(key, None)

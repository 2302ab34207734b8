"""How much of something one peer may have: a token bucket."""

from __future__ import annotations

from dataclasses import dataclass


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

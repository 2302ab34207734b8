"""How many handshakes one source may cost us: a token bucket for each IPv4 address and each IPv6 /64.

A /64 is what one IPv6 host may fill with addresses of its own at will.  Meant for sources that have proven to receive
at their address (a good mac2): one that can be forged would fill the table with names of others.
"""

from __future__ import annotations

from redirectctl.proto.bucket import Bucket
from redirectctl.proto.constants import HANDSHAKE_BURST, HANDSHAKES_PER_SECOND, RATE_LIMIT_SOURCES
from redirectctl.wire.addr import IPAddress, unmap


class RateLimiter:
    """Bounded to RATE_LIMIT_SOURCES buckets.

    When the table is full, the bucket left alone for longest goes, if it has refilled: a full bucket and none at all
    mean the same, so nobody's limit is lost with it.  If it has not, every bucket was used within a quarter of a
    second, that is a flood from thousands of proven addresses, and a new source waits rather than evade the limit.
    """

    def __init__(self) -> None:
        self._buckets: dict[bytes, Bucket] = {}  # least recently used first

    def __len__(self) -> int:
        return len(self._buckets)

    def allow(self, source: IPAddress, now: float) -> bool:
        """Whether `source` may have one more handshake at `now` (seconds, monotonic)."""
        key = network(source)
        bucket = self._buckets.pop(key, None)
        if bucket is None:
            if not self._make_room(now):
                return False
            bucket = Bucket(HANDSHAKES_PER_SECOND, HANDSHAKE_BURST, HANDSHAKE_BURST, now)
        self._buckets[key] = bucket
        return bucket.take(now)

    def _make_room(self, now: float) -> bool:
        if len(self._buckets) < RATE_LIMIT_SOURCES:
            return True
        oldest = next(iter(self._buckets))
        if self._buckets[oldest].level(now) < HANDSHAKE_BURST:
            return False
        del self._buckets[oldest]
        return True


def network(source: IPAddress | None) -> bytes:
    """What one host may have: an IPv4 address, or an IPv6 /64."""
    if source is None:
        return b""
    source = unmap(source)
    return source.packed if source.version == 4 else source.packed[:8]

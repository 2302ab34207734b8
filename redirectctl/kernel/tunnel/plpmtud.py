"""How large the tunnel's datagrams may be on one outer path: packetization layer path MTU discovery (RFC 8899).

A path begins with what every IPv6 link passes (1280 bytes), which hardly any IPv4 link does not.  Larger sizes are
used once a probe of that size has been answered.  Nothing runs by a timer: what is sent on the path drives it, and an
idle path needs no answer.
"""

from __future__ import annotations

from typing import Final

SAFE_MTU: Final = 1280  # RFC 8200, section 5
SMALLEST_MTU: Final = {4: 576, 6: SAFE_MTU}  # where even that does not pass (RFC 1122, section 3.3.3)
LARGEST_MTU: Final = 9000
CANDIDATES: Final = (1360, 1400, 1452, 1472, 1492, 1500)
OVERHEAD: Final = {4: 28, 6: 48}  # IP and UDP header

RETRY: Final = (0.5, 1.0, 2.0)  # seconds after each round; RFC 8899 section 5.1.2: three tries
RAISE: Final = 600.0  # seconds until larger sizes are tried again (PMTU_RAISE_TIMER)
SUSPICION: Final = 3  # retransmissions, without proof that large segments arrive, that make us begin anew
PATIENCE: Final = 1.0  # seconds between two beginnings: losses have other reasons too


class Path:
    """One outer path.  All sizes are those of UDP payloads; times are on the caller's clock."""

    __slots__ = ("_candidates", "_due", "_overhead", "_smallest", "_suspected", "_tries", "safe", "size")

    def __init__(self, version: int, mtu: int) -> None:
        """``version``: of IP outside; ``mtu``: of the interface, as far as known."""
        self._overhead = OVERHEAD[version]
        self._smallest = SMALLEST_MTU[version] - self._overhead
        larger = (min(mtu, LARGEST_MTU),) if mtu > CANDIDATES[-1] else ()
        self._candidates = [each - self._overhead for each in (*CANDIDATES, *larger)]
        self.safe = self.size = SAFE_MTU - self._overhead  # what surely passes; what has been seen to pass
        self._tries = 0
        self._due = self._suspected = float("-inf")

    def due(self, now: float) -> bool:
        """Whether a round of probes should go."""
        return now >= self._due

    def round(self, now: float) -> list[int]:
        """The sizes to probe now, smallest first."""
        sizes = [size for size in self._candidates if size > self.size]
        self._due = now + (RETRY[self._tries] if self._tries < len(RETRY) and sizes else RAISE)
        self._tries = (self._tries + 1) % (len(RETRY) + 1)
        return sizes if self._tries else []

    def confirm(self, size: int) -> None:
        """A probe of this size was answered."""
        self.size = max(self.size, size)

    def too_big(self, size: int) -> bool:
        """The kernel says that this size does not fit through the interface.  False: there is nothing smaller."""
        if size <= self._smallest:
            return False
        self._candidates = [each for each in self._candidates if each < size]
        below = [each for each in (self._smallest, self.safe, *self._candidates) if each < size]
        self.size = min(self.size, max(below))
        self.safe = min(self.safe, self.size)
        return True

    def suspect(self, now: float) -> None:
        """Segments get lost: begin anew from what surely passes."""
        if now - self._suspected >= PATIENCE:
            self._suspected = self._due = now
            self._tries = 0
            self.size = self.safe

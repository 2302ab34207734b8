"""By which interface a datagram leaves that has a certain source address.

With two uplinks the main routing table sends everything by one of them, whatever its source is, and providers drop what
has a foreign source (BCP 38).  What has an address of the other one must leave by that (ip(7), IP_PKTINFO).
"""

from __future__ import annotations

from collections.abc import Mapping

from redirectctl.wire.addr import IPAddress


class Exits:
    """What is known now; read by the control port and by the tunnel's thread."""

    def __init__(self) -> None:
        self._known: Mapping[tuple[IPAddress, IPAddress], int] = {}

    def learn(self, known: Mapping[tuple[IPAddress, IPAddress], int]) -> None:
        """Of (address of ours, remote address) the interface's index, where the kernel would choose another one."""
        self._known = known

    def of(self, local: IPAddress | None, remote: IPAddress) -> int:
        """The interface's index; 0: as the kernel routes."""
        return self._known.get((local, remote), 0) if local is not None else 0

"""The network between two simulated hosts: it loses, delays, reorders, duplicates and re-addresses."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import ip_address
from typing import TYPE_CHECKING

from redirectctl.wire.addr import IPAddress, SockAddr

if TYPE_CHECKING:
    from tests.sim.host import Host
    from tests.sim.world import World

PORT = 7747
BEGINNING = 1000.0  # of the world: what time it is then
OTHER_PORTS = 50000  # plus the number that the engine has given to another port than the control port
PINNED = 30.0  # seconds for which a NAT remembers a datagram that had no answer


def ip(text: str) -> IPAddress:
    return ip_address(text)


@dataclass
class Link:
    """What the network does to datagrams."""

    delay: float = 0.01
    jitter: float = 0.0
    loss: float = 0.0
    duplicate: float = 0.0
    cut: bool = False
    blocked: bool = False  # nothing of the daemons gets through
    strips: bool = False  # TCP options that it does not know
    strips_from: frozenset[IPAddress] = frozenset()  # only of what comes from these
    shift: int = 0  # added to sequence numbers on the way (and taken away from ACKs), as a SYN proxy does


@dataclass(frozen=True)
class Packet:
    """On its way: a datagram, or a TCP segment with a token, or one of the above."""

    protocol: str
    source: SockAddr
    to: SockAddr
    data: bytes
    nat: Nat | None = None  # behind which the sender is
    numbers: tuple[int, int] = (0, 0)  # of a segment


KEEPALIVE, ACKNOWLEDGED, RESET = b"keepalive", b"acknowledged", b"reset"  # segments without a token


class Nat:
    """A router that gives hosts behind it its own address and, for each of their ports, one at random.

    ``filters``: only who was sent to may send in (RFC 4787, section 5).  ``symmetric``: that, and another port for each
    address and port that a host sends to (section 4.1).
    """

    def __init__(self, world: World, public: str, *, filters: bool = False, symmetric: bool = False) -> None:
        self.world = world
        self.public = ip(public)
        self.filters = filters or symmetric
        self.symmetric = symmetric
        self.late = False  # it does not translate yet: what goes through now goes so until it has been silent
        self._pinned: dict[tuple[str, SockAddr, SockAddr], float] = {}  # what does, and when it was last seen
        self._sent: set[tuple[str, int, SockAddr]] = set()
        self.forwarded: dict[tuple[str, int], SockAddr] = {}  # to the same port of a host behind it
        self._outside: dict[tuple[str, SockAddr, SockAddr | None], int] = {}
        self._inside: dict[tuple[str, int], SockAddr] = {}

    def out(self, protocol: str, source: SockAddr, to: SockAddr) -> SockAddr:
        """What a packet's source becomes."""
        if self.forwarded.get((protocol, source.port)) == source:
            return SockAddr(self.public, source.port)
        entry = protocol, source, to
        if self.late or self.world.now - self._pinned.get(entry, float("-inf")) < PINNED:
            self._pinned[entry] = self.world.now
            return source
        which = protocol, source, to if self.symmetric and protocol == "udp" else None
        port = self._outside.get(which)
        while port is None or self._inside.setdefault((protocol, port), source) != source:
            port = self.world.random.randrange(1024, 65536)
        self._outside[which] = port
        self._sent.add((protocol, port, to))
        return SockAddr(self.public, port)

    def into(self, protocol: str, to: SockAddr, source: SockAddr) -> SockAddr | None:
        """Where a packet to the public address goes on to."""
        if (forwarded := self.forwarded.get((protocol, to.port))) is not None:
            return forwarded
        if self.filters and protocol == "udp" and (protocol, to.port, source) not in self._sent:
            return None
        return self._inside.get((protocol, to.port))

    def forward(self, host: Host, *, port: int = 22) -> None:
        """Let others reach this TCP port of a host, and its control port."""
        for protocol, number in (("tcp", port), ("udp", PORT)):
            self.forwarded[protocol, number] = SockAddr(host.addresses[0], number)

    def rebind(self, public: str | None = None) -> None:
        """It forgets everything, and may get another address."""
        self._outside.clear()
        self._sent.clear()
        self._inside.clear()
        self.public = ip(public) if public is not None else self.public

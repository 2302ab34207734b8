"""Addresses as every layer uses them: an IP address, a socket address, a connection's four-tuple.

Text forms are those of the command line: ``192.0.2.1:22`` and ``[2001:db8::1]:22``.
"""

from __future__ import annotations

from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import NamedTuple, TypeAlias

IPAddress: TypeAlias = IPv4Address | IPv6Address
IPNetwork: TypeAlias = IPv4Network | IPv6Network


class SockAddr(NamedTuple):
    """One end of a TCP connection or of a datagram."""

    host: IPAddress
    port: int  # 0..65535

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if self.host.version == 6 else f"{self.host}:{self.port}"

    @classmethod
    def parse(cls, text: str) -> SockAddr:
        """Read ``a.b.c.d:port`` or ``[v6]:port``.  Raises ValueError that names what is wrong."""
        host, sep, port = text.rpartition(":")
        if not sep or not port.isascii() or not port.isdigit() or int(port) > 0xFFFF:
            raise ValueError(f"{text!r} is not ADDRESS:PORT")
        if host.startswith("[") and host.endswith("]"):
            return cls(IPv6Address(host[1:-1]), int(port))
        return cls(IPv4Address(host), int(port))


class _Ends(NamedTuple):
    local: SockAddr
    remote: SockAddr


class FourTuple(_Ends):
    """A TCP connection as one host sees it."""

    _hash: int

    def __hash__(self) -> int:
        # Connections are found by it all the time, and ipaddress takes a microsecond for the hash of an address.
        try:
            return self._hash
        except AttributeError:
            self._hash = tuple.__hash__(self)
            return self._hash

    @property
    def mirrored(self) -> FourTuple:
        """The same packets as the other host sees them (no NAT between)."""
        return FourTuple(self.remote, self.local)

    @property
    def version(self) -> int:
        """4 or 6."""
        return self.local.host.version

    def __str__(self) -> str:
        return f"{self.local}-{self.remote}"


@lru_cache(maxsize=65536)
def from_packed(packed: bytes) -> IPAddress:
    """Of 4 or 16 bytes, IPv4-mapped ones unmapped.

    What is asked for again is the same object: thousands of connections have a few addresses, and ipaddress compares,
    hashes and prints slowly.
    """
    return IPv4Address(packed) if len(packed) == 4 else unmap(IPv6Address(packed))


def unmap(address: IPAddress) -> IPAddress:
    """An IPv4 address that a dual-stack socket shows as ``::ffff:a.b.c.d`` is IPv4 on the wire."""
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


def is_routable(address: IPAddress) -> bool:
    """Whether it can be one of a host's by which others reach it from beyond the link."""
    return not (address.is_loopback or address.is_link_local or address.is_multicast or address.is_unspecified)


def parse_ip(text: str) -> IPAddress:
    """Like ipaddress.ip_address, IPv4-mapped addresses unmapped.  Raises ValueError."""
    return unmap(ip_address(text))

"""What routers and hosts say about datagrams that do not arrive: ICMP errors, while somebody waits for an answer."""

from __future__ import annotations

import asyncio
import socket
import struct
from ipaddress import IPv4Address, IPv6Address
from types import TracebackType
from typing import Self

from redirectctl.wire.addr import IPAddress, SockAddr

_UDP = 17
_KEPT = 8  # different reports
_PORTS = struct.Struct("!HH")

# RFC 792, RFC 1812 section 5.2.7.1, RFC 4443 section 3.1
_V4 = {
    0: "network unreachable",
    1: "host unreachable",
    3: "port unreachable",
    9: "network prohibited",
    10: "host prohibited",
    13: "administratively prohibited",
}
_V6 = {
    0: "no route",
    1: "administratively prohibited",
    3: "address unreachable",
    4: "port unreachable",
    5: "source address refused",
    6: "route rejected",
}


class IcmpWatch:
    """Collects reports about datagrams to ``target``; without CAP_NET_RAW there are none.  A context manager."""

    def __init__(self, target: SockAddr) -> None:
        self._target = target
        self._socket: socket.socket | None = None
        self.reports: dict[str, IPAddress] = {}  # what was said, and by whom first

    def __enter__(self) -> Self:
        v4 = self._target.host.version == 4
        family, protocol = (socket.AF_INET, "icmp") if v4 else (socket.AF_INET6, "ipv6-icmp")
        number = {"icmp": socket.IPPROTO_ICMP, "ipv6-icmp": socket.IPPROTO_ICMPV6}[protocol]
        try:
            self._socket = socket.socket(family, socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, number)
        except OSError:
            return self
        asyncio.get_running_loop().add_reader(self._socket.fileno(), self._read)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._socket is not None:
            asyncio.get_running_loop().remove_reader(self._socket.fileno())
            self._socket.close()

    def _read(self) -> None:
        if self._socket is None:
            return
        try:
            data, sender = self._socket.recvfrom(2048)
        except OSError:
            return
        said = report(data, self._target)
        if said is not None and len(self.reports) < _KEPT:
            host = sender[0].partition("%")[0]
            self.reports.setdefault(said, IPv4Address(host) if self._target.host.version == 4 else IPv6Address(host))


def report(data: bytes, target: SockAddr) -> str | None:
    """What an ICMP message says of a UDP datagram to ``target``; None: it is about something else.

    ``data`` as a raw socket gives it: with the IPv4 header, without the IPv6 header.
    """
    if target.host.version == 4:
        names, kind, start = _V4, 3, (data[0] & 0xF) * 4 if data else 0
    else:
        names, kind, start = _V6, 1, 0
    quoted = data[start + 8 :]
    if len(data) < start + 8 or data[start] != kind:
        return None
    if target.host.version == 4:
        length = (quoted[0] & 0xF) * 4 if quoted else 0
        protocol, destination = quoted[9:10], quoted[16:20]
    else:
        length, protocol, destination = 40, quoted[6:7], quoted[24:40]
    if protocol != bytes((_UDP,)) or destination != target.host.packed or len(quoted) < length + _PORTS.size:
        return None
    if _PORTS.unpack_from(quoted, length)[1] != target.port:
        return None
    return names.get(data[start + 1], f"unreachable, code {data[start + 1]}")

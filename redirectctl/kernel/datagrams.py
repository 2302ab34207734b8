"""Datagrams of ours: UDP sockets, from which of our addresses one goes, and to which one has come (ip(7), RFC 3542).

Also what Python's socket module has no names for (linux/in.h, linux/in6.h, linux/udp.h, asm-generic/socket.h).
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterable
from contextlib import suppress
from ipaddress import IPv4Address, IPv6Address
from typing import Final, TypeAlias

from redirectctl.kernel.constants import MARK_EXIT
from redirectctl.wire.addr import IPAddress, parse_ip

IP_MTU_DISCOVER, IP_MTU, IP_PMTUDISC_PROBE = 10, 14, 3
IPV6_MTU_DISCOVER, IPV6_MTU, IPV6_PMTUDISC_PROBE, IPV6_FREEBIND = 23, 24, 3, 78
UDP_SEGMENT, UDP_GRO = 103, 104
SO_SNDBUFFORCE, SO_RCVBUFFORCE = 32, 33  # beyond net.core.rmem_max, with CAP_NET_ADMIN
NO_SEGMENTATION: Final = (errno.EIO, errno.EINVAL)  # no checksum offload; a size that does not fit (older kernels)

Ancillary: TypeAlias = list[tuple[int, int, bytes]]

_IP_PKTINFO = 8
_IN_PKTINFO = struct.Struct("=I4s4s")  # ipi_ifindex, ipi_spec_dst, ipi_addr
_IN6_PKTINFO = struct.Struct("=16sI")  # ipi6_addr, ipi6_ifindex
PKTINFO_SPACE: Final = socket.CMSG_SPACE(max(_IN_PKTINFO.size, _IN6_PKTINFO.size))


def udp_socket(family: int, receive_buffer: int, send_buffer: int) -> socket.socket:
    """Not bound yet; it says to which address each datagram has come.  Buffers in bytes.  Raises OSError."""
    sock = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    with suppress(PermissionError):  # without the right the system's default has to do
        sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, receive_buffer)
        sock.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, send_buffer)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, struct.pack("=I", MARK_EXIT))
    if family == socket.AF_INET:
        sock.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)
    else:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
    return sock


def socket_for(to: IPAddress, local: IPAddress | None, sockets: Iterable[socket.socket]) -> socket.socket | None:
    """Which of ours sends there: the one that is bound to the address ``local``, else any of that IP version."""
    family = socket.AF_INET if to.version == 4 else socket.AF_INET6
    ours = [sock for sock in sockets if sock.family == family]
    exact = [sock for sock in ours if parse_ip(sock.getsockname()[0]) == local]
    return next(iter(exact or ours), None)


def sent_from(local: IPAddress) -> tuple[int, int, bytes]:
    """Ancillary data that makes a datagram come from this address of ours."""
    if isinstance(local, IPv4Address):
        return socket.IPPROTO_IP, _IP_PKTINFO, _IN_PKTINFO.pack(0, local.packed, bytes(4))
    return socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, _IN6_PKTINFO.pack(local.packed, 0)


def arrived_at(ancillary: Iterable[tuple[int, int, bytes]]) -> IPAddress | None:
    """The address of ours that a datagram has come to; None: the kernel has not said."""
    for level, kind, data in ancillary:
        if level == socket.IPPROTO_IP and kind == _IP_PKTINFO and len(data) >= _IN_PKTINFO.size:
            return IPv4Address(_IN_PKTINFO.unpack_from(data)[2])
        if level == socket.IPPROTO_IPV6 and kind == socket.IPV6_PKTINFO and len(data) >= _IN6_PKTINFO.size:
            return IPv6Address(_IN6_PKTINFO.unpack_from(data)[0])
    return None

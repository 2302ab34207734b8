"""Messages and attributes of netlink (linux/netlink.h), for the modules that read and write them by hand.

    length (32) | type | flags (16 each) | sequence | port id (32 each) | body | padding to 4 bytes      nlmsghdr
    length | type (16 each) | value | padding to 4 bytes                                                 nlattr

Lengths are of all but the padding.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator

from redirectctl.kernel.datagrams import SO_RCVBUFFORCE

ERROR, DONE = 2, 3  # NLMSG_*
REQUEST, ACK, DUMP_INTR, DUMP, CREATE = 0x1, 0x4, 0x10, 0x300, 0x400  # NLM_F_*
NESTED = 0x8000  # NLA_F_NESTED
SOL_NETLINK, ADD_MEMBERSHIP, DROP_MEMBERSHIP = 270, 1, 2
CAP_ACK = 10  # NETLINK_CAP_ACK: errors do not quote the whole request

HEADER = struct.Struct("=IHHII")
ATTRIBUTE = struct.Struct("=HH")
_CODE = struct.Struct("=i")
_TYPE_MASK = 0x3FFF  # without NLA_F_NESTED and NLA_F_NET_BYTEORDER


def request(kind: int, flags: int, sequence: int, body: bytes) -> bytes:
    """A message to the kernel."""
    return HEADER.pack(HEADER.size + len(body), kind, REQUEST | flags, sequence & 0xFFFF_FFFF, 0) + body


def errno_in(data: bytes, body: int, end: int) -> int:
    """What an ERROR or DONE message says; 0: it is an acknowledgement, or the end of a list."""
    return max(0, -_CODE.unpack_from(data, body)[0]) if end - body >= _CODE.size else 0


def set_receive_buffer(sock: socket.socket, size: int) -> None:
    """In bytes, above net.core.rmem_max where we may.  Raises OSError."""
    try:
        sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, size)
    except PermissionError:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size)


def split(data: bytes) -> Iterator[tuple[int, int, int, int, int]]:
    """The messages of a datagram: type, flags, sequence number, and where its body begins and ends.

    A length that makes no sense ends it: nothing behind can be found.
    """
    at, unpack, size = 0, HEADER.unpack_from, HEADER.size
    while at + size <= len(data):
        length, kind, flags, sequence, _ = unpack(data, at)
        if length < size:
            return
        yield kind, flags, sequence, at + size, at + length
        at += (length + 3) & ~3


def attributes(data: bytes, at: int = 0) -> Iterator[tuple[int, bytes]]:
    """Type and value of each attribute from ``at`` on."""
    while at + ATTRIBUTE.size <= len(data):
        length, kind = ATTRIBUTE.unpack_from(data, at)
        if length < ATTRIBUTE.size:
            return
        yield kind & _TYPE_MASK, data[at + ATTRIBUTE.size : at + length]
        at += (length + 3) & ~3


def attribute(kind: int, value: bytes) -> bytes:
    """One, padded."""
    return ATTRIBUTE.pack(ATTRIBUTE.size + len(value), kind) + value + b"\0" * (-len(value) % 4)

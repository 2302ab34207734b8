"""Messages and attributes of netlink (linux/netlink.h), for the modules that read and write them by hand.

    length (32) | type | flags (16 each) | sequence | port id (32 each) | body | padding to 4 bytes      nlmsghdr
    length | type (16 each) | value | padding to 4 bytes                                                 nlattr

Lengths are of all but the padding.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

HEADER = struct.Struct("=IHHII")
ATTRIBUTE = struct.Struct("=HH")
_TYPE_MASK = 0x3FFF  # without NLA_F_NESTED and NLA_F_NET_BYTEORDER


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

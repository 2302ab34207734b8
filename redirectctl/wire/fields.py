"""Fields that messages of a session have in common."""

from __future__ import annotations

from ipaddress import IPv4Address
from typing import Final

from redirectctl.wire.addr import IPAddress, from_packed
from redirectctl.wire.datagram import MalformedError

ANY: Final = b"\0" * 16
_V4_MAPPED: Final = b"\0" * 10 + b"\xff\xff"


def pack_ip(address: IPAddress | None) -> bytes:
    """16 bytes; None is all zeros (any)."""
    if address is None:
        return ANY
    return _V4_MAPPED + address.packed if isinstance(address, IPv4Address) else address.packed


def unpack_ip(field: bytes) -> IPAddress | None:
    """Reverse of pack_ip."""
    return None if field == ANY else from_packed(bytes(field))


def need_ip(field: bytes) -> IPAddress:
    """The same where zeros make no sense.  Raises MalformedError."""
    address = unpack_ip(field)
    if address is None:
        raise MalformedError("no-address")
    return address

"""Messages between a host and a rendezvous, inside their session.  Network byte order.

    tag: 16 bytes, names a pair of hosts to one rendezvous; only the two can work it out (flows/rendezvous/client.py)

    REGISTER (32)    | request (4) | proof (8) | n (1) | n x address (16) | m (1) | m x tag (16) |
    REGISTERED (33)  | request (4) | status (1) | reflexive (16) | port (2) | data (8) |
    LOOKUP (34)      | tag (16) |
    FOUND (35)       | tag (16) | reflexive (16) | port (2) | n (1) | n x address (16) |
    FORWARD (36)     | tag (16) | datagram |
    FORWARDED (37)   | tag (16) | datagram |
    RELAY (38)       | request (4) | tag (16) | n (1) | n x flow (4) |
    RELAYED (39)     | request (4) | n (2) |

Each starts with its type (1).  A datagram in FORWARD and FORWARDED is one of the control port's, of the two hosts'
own session or handshake: to the rendezvous it is only bytes.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import ClassVar, Final, Self, TypeAlias

from redirectctl.wire.addr import IPAddress, SockAddr
from redirectctl.wire.datagram import MalformedError
from redirectctl.wire.fields import counted, exact, need_ip, pack_ip

TAG_LEN: Final = 16
MAX_ADDRESSES: Final = 8
MAX_TAGS: Final = 60  # of one REGISTER
MAX_FLOWS: Final = 250  # of one RELAY
MAX_FORWARDED: Final = 1200 - 1 - TAG_LEN  # bytes of the datagram: all that hosts send each other are shorter

_REGISTER = struct.Struct("!I8sB")
_REGISTERED = struct.Struct("!IB16sH8s")
_LOOKUP = struct.Struct("!16s")
_FOUND = struct.Struct("!16s16sHB")
_RELAY = struct.Struct("!I16sB")
_RELAYED = struct.Struct("!IH")
_ADDRESS = struct.Struct("!16s")
_TAG = struct.Struct("!16s")
_FLOW = struct.Struct("!I")
_N = struct.Struct("!B")


class Registration(IntEnum):
    """Answer to REGISTER."""

    OK = 0
    PENDING = 1  # a person must approve first
    NOT_SERVING = 2
    FULL = 3  # some of it did not fit
    PROVE = 4  # it comes from elsewhere than before: once more, with the data as proof that the host is there


NO_PROOF: Final = bytes(8)


@dataclass(frozen=True, slots=True)
class Register:
    """The sender has these addresses, and may be found by whoever shares one of these tags, for a while."""

    TYPE: ClassVar[int] = 32
    request: int
    addresses: tuple[IPAddress, ...]
    tags: tuple[bytes, ...]
    proof: bytes = NO_PROOF  # the data of the answer before

    def pack(self) -> bytes:
        """Body without the type byte."""
        head = _REGISTER.pack(self.request, self.proof, len(self.addresses))
        return b"".join((head, *map(pack_ip, self.addresses), bytes((len(self.tags),)), *self.tags))

    @classmethod
    def unpack(cls, body: bytes) -> Register:
        """Raises MalformedError."""
        if len(body) < _REGISTER.size:
            raise MalformedError("bad-length")
        request, proof, n = _REGISTER.unpack_from(body)
        end = _REGISTER.size + n * _ADDRESS.size
        if n > MAX_ADDRESSES or len(body) < end:
            raise MalformedError("bad-length")
        addresses = tuple(need_ip(a) for (a,) in _ADDRESS.iter_unpack(body[_REGISTER.size : end]))
        _, rest = counted(_N, body[end:], _TAG, MAX_TAGS)
        return cls(request, addresses, tuple(tag for (tag,) in _TAG.iter_unpack(rest)), proof)


@dataclass(frozen=True, slots=True)
class Registered:
    """Answer to REGISTER."""

    TYPE: ClassVar[int] = 33
    request: int
    status: Registration
    reflexive: SockAddr  # where the rendezvous sees the host
    data: bytes = NO_PROOF  # with PROVE

    def pack(self) -> bytes:
        """Body without the type byte."""
        host, port = self.reflexive
        return _REGISTERED.pack(self.request, self.status, pack_ip(host), port, self.data)

    @classmethod
    def unpack(cls, body: bytes) -> Registered:
        """Raises MalformedError."""
        request, status, host, port, data = exact(_REGISTERED, body)
        return cls(request, Registration(status), SockAddr(need_ip(host), port), data)


@dataclass(frozen=True, slots=True)
class Lookup:
    """Where is the other host that has registered this tag?  Both are told of each other, or nothing is answered."""

    TYPE: ClassVar[int] = 34
    tag: bytes

    def pack(self) -> bytes:
        """Body without the type byte."""
        return self.tag

    @classmethod
    def unpack(cls, body: bytes) -> Lookup:
        """Raises MalformedError."""
        return cls(*exact(_LOOKUP, body))


@dataclass(frozen=True, slots=True)
class Found:
    """The other host that has registered this tag is here; it is told the same of the receiver."""

    TYPE: ClassVar[int] = 35
    tag: bytes
    reflexive: SockAddr  # where the rendezvous sees it
    addresses: tuple[IPAddress, ...]  # what it says it has

    def pack(self) -> bytes:
        """Body without the type byte."""
        host, port = self.reflexive
        head = _FOUND.pack(self.tag, pack_ip(host), port, len(self.addresses))
        return head + b"".join(map(pack_ip, self.addresses))

    @classmethod
    def unpack(cls, body: bytes) -> Found:
        """Raises MalformedError."""
        (tag, host, port, _), rest = counted(_FOUND, body, _ADDRESS, MAX_ADDRESSES)
        return cls(tag, SockAddr(need_ip(host), port), tuple(need_ip(a) for (a,) in _ADDRESS.iter_unpack(rest)))


@dataclass(frozen=True, slots=True)
class _WithDatagram:
    TYPE: ClassVar[int]
    tag: bytes
    datagram: bytes

    def pack(self) -> bytes:
        """Body without the type byte."""
        return self.tag + self.datagram

    @classmethod
    def unpack(cls, body: bytes) -> Self:
        """Raises MalformedError."""
        if not TAG_LEN < len(body) <= TAG_LEN + MAX_FORWARDED:
            raise MalformedError("bad-length")
        return cls(body[:TAG_LEN], body[TAG_LEN:])


class Forward(_WithDatagram):
    """Hand this datagram to the other host that has registered this tag."""

    TYPE: ClassVar[int] = 36


class Forwarded(_WithDatagram):
    """A datagram of the other host that has registered this tag."""

    TYPE: ClassVar[int] = 37


@dataclass(frozen=True, slots=True)
class Relay:
    """Tunnel datagrams of these flows that come from the sender go to the other host with this tag, for a while."""

    TYPE: ClassVar[int] = 38
    request: int
    tag: bytes
    flows: tuple[int, ...]

    def pack(self) -> bytes:
        """Body without the type byte."""
        head = _RELAY.pack(self.request, self.tag, len(self.flows))
        return head + b"".join(map(_FLOW.pack, self.flows))

    @classmethod
    def unpack(cls, body: bytes) -> Relay:
        """Raises MalformedError."""
        (request, tag, _), rest = counted(_RELAY, body, _FLOW, MAX_FLOWS)
        return cls(request, tag, tuple(flow for (flow,) in _FLOW.iter_unpack(rest)))


@dataclass(frozen=True, slots=True)
class Relayed:
    """Answer to RELAY: so many of the flows."""

    TYPE: ClassVar[int] = 39
    request: int
    flows: int

    def pack(self) -> bytes:
        """Body without the type byte."""
        return _RELAYED.pack(self.request, self.flows)

    @classmethod
    def unpack(cls, body: bytes) -> Relayed:
        """Raises MalformedError."""
        return cls(*exact(_RELAYED, body))


Message: TypeAlias = Register | Registered | Lookup | Found | Forward | Forwarded | Relay | Relayed
MESSAGES: Final = (Register, Registered, Lookup, Found, Forward, Forwarded, Relay, Relayed)

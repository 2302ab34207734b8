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

from dataclasses import dataclass
from enum import IntEnum
from typing import ClassVar, Final, Self, TypeAlias

from redirectctl.wire.addr import IPAddress, SockAddr
from redirectctl.wire.datagram import MalformedError
from redirectctl.wire.layout import IP, SOCKADDR, Body, Layout, Many, one_of, plain

TAG_LEN: Final = 16
MAX_ADDRESSES: Final = 8
MAX_TAGS: Final = 60  # of one REGISTER
MAX_FLOWS: Final = 250  # of one RELAY
MAX_FORWARDED: Final = 1200 - 1 - TAG_LEN  # bytes of the datagram: all that hosts send each other are shorter

_REQUEST: Final = plain("I")
_TAG: Final = plain("16s")
_EIGHT: Final = plain("8s")


class Registration(IntEnum):
    """Answer to REGISTER."""

    OK = 0
    PENDING = 1  # a person must approve first
    NOT_SERVING = 2
    FULL = 3  # some of it did not fit
    PROVE = 4  # it comes from elsewhere than before: once more, with the data as proof that the host is there


NO_PROOF: Final = bytes(8)


@dataclass(frozen=True, slots=True)
class Register(Body):
    """The sender has these addresses, and may be found by whoever shares one of these tags, for a while."""

    TYPE: ClassVar[int] = 32
    LAYOUT: ClassVar[Layout] = Layout(
        request=_REQUEST, proof=_EIGHT, addresses=Many(IP, MAX_ADDRESSES), tags=Many(_TAG, MAX_TAGS)
    )
    request: int
    addresses: tuple[IPAddress, ...]
    tags: tuple[bytes, ...]
    proof: bytes = NO_PROOF  # the data of the answer before


@dataclass(frozen=True, slots=True)
class Registered(Body):
    """Answer to REGISTER."""

    TYPE: ClassVar[int] = 33
    LAYOUT: ClassVar[Layout] = Layout(request=_REQUEST, status=one_of(Registration), reflexive=SOCKADDR, data=_EIGHT)
    request: int
    status: Registration
    reflexive: SockAddr  # where the rendezvous sees the host
    data: bytes = NO_PROOF  # with PROVE


@dataclass(frozen=True, slots=True)
class Lookup(Body):
    """Where is the other host that has registered this tag?  Both are told of each other, or nothing is answered."""

    TYPE: ClassVar[int] = 34
    LAYOUT: ClassVar[Layout] = Layout(tag=_TAG)
    tag: bytes


@dataclass(frozen=True, slots=True)
class Found(Body):
    """The other host that has registered this tag is here; it is told the same of the receiver."""

    TYPE: ClassVar[int] = 35
    LAYOUT: ClassVar[Layout] = Layout(tag=_TAG, reflexive=SOCKADDR, addresses=Many(IP, MAX_ADDRESSES))
    tag: bytes
    reflexive: SockAddr  # where the rendezvous sees it
    addresses: tuple[IPAddress, ...]  # what it says it has


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
class Relay(Body):
    """Tunnel datagrams of these flows that come from the sender go to the other host with this tag, for a while."""

    TYPE: ClassVar[int] = 38
    LAYOUT: ClassVar[Layout] = Layout(request=_REQUEST, tag=_TAG, flows=Many(plain("I"), MAX_FLOWS))
    request: int
    tag: bytes
    flows: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Relayed(Body):
    """Answer to RELAY: so many of the flows."""

    TYPE: ClassVar[int] = 39
    LAYOUT: ClassVar[Layout] = Layout(request=_REQUEST, flows=plain("H"))
    request: int
    flows: int


Message: TypeAlias = Register | Registered | Lookup | Found | Forward | Forwarded | Relay | Relayed
MESSAGES: Final = (Register, Registered, Lookup, Found, Forward, Forwarded, Relay, Relayed)

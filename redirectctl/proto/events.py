"""What the endpoint tells its owner.  In order: what must be sent, and what happened."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from redirectctl.wire.addr import IPAddress, SockAddr
from redirectctl.wire.message import Message


@dataclass(frozen=True, slots=True)
class Transmit:
    """Send a datagram from our control port."""

    source: IPAddress | None  # None: as the kernel routes
    to: SockAddr
    data: bytes
    port: int = 0  # number of our port; 0: the control port


@dataclass(frozen=True, slots=True)
class SessionUp:
    """Keys are agreed and the peer was heard from ``remote``."""

    key: bytes
    remote: SockAddr
    first: bool  # there was no usable session before
    initiator: bool  # we contacted it there
    local: IPAddress | None = None  # our address that it was heard at


@dataclass(frozen=True, slots=True)
class Received:
    """An authentic, fresh message."""

    key: bytes
    message: Message
    source: SockAddr
    local: IPAddress  # our address that it was sent to


@dataclass(frozen=True, slots=True)
class Heard:
    """Something authentic came from elsewhere than where the peer was proven to be; not for every datagram that did."""

    key: bytes
    source: SockAddr
    local: IPAddress


@dataclass(frozen=True, slots=True)
class ContactFailed:
    """A handshake got no answer, or none that could be accepted."""

    to: SockAddr
    key: bytes | None  # whom we expected there
    reason: str
    source: IPAddress | None = None  # our address that it was tried from; None: as the kernel routes


@dataclass(frozen=True, slots=True)
class PeerMet:
    """A host that we did not know has proven to hold this key."""

    key: bytes
    at: SockAddr
    initiator: bool  # we contacted it


@dataclass(frozen=True, slots=True)
class PeerChanged:
    """A peer's record must be stored."""

    key: bytes


@dataclass(frozen=True, slots=True)
class PortChanged:
    """A peer has answered at another of our ports than before: it is sent to from that one now."""

    key: bytes


@dataclass(frozen=True, slots=True)
class PeerDropped:
    """A stranger that waited for a person made room for another: its record goes."""

    key: bytes


@dataclass(frozen=True, slots=True)
class KeyChanged:
    """Another key answers at an address where we know a peer."""

    at: SockAddr
    known: bytes
    seen: bytes


@dataclass(frozen=True, slots=True)
class Refused:
    """A datagram was not accepted."""

    source: SockAddr
    reason: str
    key: bytes | None = None


Event: TypeAlias = (
    Transmit
    | SessionUp
    | Received
    | Heard
    | ContactFailed
    | PeerMet
    | PeerChanged
    | PortChanged
    | PeerDropped
    | KeyChanged
    | Refused
)

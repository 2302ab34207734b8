"""What the engine asks of the shell, in order.  Transmit (proto.events) is one of them too."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, TypeAlias

from redirectctl.flows.connection import Connection, Flow
from redirectctl.proto.events import Transmit
from redirectctl.proto.peer import Peer
from redirectctl.wire.addr import FourTuple, IPAddress, SockAddr


@dataclass(frozen=True, slots=True)
class SavePeer:
    """Store before anything that follows."""

    peer: Peer


@dataclass(frozen=True, slots=True)
class DropPeer:
    """Delete from the store."""

    key: bytes


@dataclass(frozen=True, slots=True)
class SaveConnections:
    """Store before anything that follows.."""

    connections: tuple[Connection, ...]


@dataclass(frozen=True, slots=True)
class DropConnections:
    """Delete from the store."""

    cids: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Rewrite:
    """Change the kernel's flows in one transaction, then call rewritten(token)."""

    token: tuple[Any, ...]
    add: tuple[Flow, ...] = ()
    remove: tuple[Flow, ...] = ()


@dataclass(frozen=True, slots=True)
class FindRoutes:
    """Look up routes to all of remotes(), then call network_changed()."""


@dataclass(frozen=True, slots=True)
class Kick:
    """The path is there again: undo the back-off of these sockets."""

    sockets: tuple[FourTuple, ...]


@dataclass(frozen=True, slots=True)
class Hasten:
    """The path will be there in a moment: undo the back-off of those of these sockets that a Kick would not help."""

    sockets: tuple[FourTuple, ...]


@dataclass(frozen=True, slots=True)
class CheckSockets:
    """Are these open TCP connections of this host?  Then call checked(token, those that are)."""

    token: tuple[Any, ...]
    sockets: tuple[FourTuple, ...]


@dataclass(frozen=True, slots=True)
class Destroy:
    """Close these sockets (SOCK_DESTROY): their programs get ECONNABORTED."""

    sockets: tuple[FourTuple, ...]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What becomes of a held RST."""

    token: int
    accept: bool


@dataclass(frozen=True, slots=True)
class Contacted:
    """A handshake that we started has ended."""

    to: SockAddr
    key: bytes | None  # who answered, or whom we expected there
    reason: str | None  # why there is no session; None: there is one


@dataclass(frozen=True, slots=True)
class Notice:
    """For the event log; names as in the interface document."""

    name: str
    connection: bytes | None = None
    peer: bytes | None = None
    reason: str | None = None
    address: IPAddress | None = None
    details: dict[str, Any] = field(default_factory=dict)


Command: TypeAlias = (
    Transmit
    | SavePeer
    | DropPeer
    | SaveConnections
    | DropConnections
    | Rewrite
    | FindRoutes
    | Kick
    | Hasten
    | CheckSockets
    | Destroy
    | Verdict
    | Contacted
    | Notice
)

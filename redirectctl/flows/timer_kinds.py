"""What timers of the engine are for.  engine.py says who handles each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from redirectctl.flows.connection import Route
from redirectctl.wire.addr import IPAddress, SockAddr


@dataclass(frozen=True, slots=True)
class _OfConnection:
    cid: bytes


@dataclass(frozen=True, slots=True)
class _OfPeer:
    key: bytes


@dataclass(frozen=True, slots=True)
class _OfMove:
    epoch: int


@dataclass(frozen=True, slots=True)
class RetryRequest:
    """A request has not been answered."""

    number: int


class LongLived(_OfConnection):
    """A connection is as old as those that are protected."""


class ClaimAgain(_OfConnection):
    """A connection was refused, and may not be the next time."""


@dataclass(frozen=True, slots=True)
class NegotiateAgain:
    """A host did not answer, and may now."""

    host: IPAddress


class Undecided(_OfConnection):
    """The peer has neither taken our claim on nor made its own."""


class Linger(_OfConnection):
    """Nothing of a closed connection is under way any more."""


class Bury(_OfConnection):
    """A closed connection has been listed for long enough."""


class Reach(_OfPeer):
    """There are protected connections, and no session."""


class KeepAlive(_OfPeer):
    """A NAT may forget the peer."""


class StoreAddresses(_OfPeer):
    """What a peer says of its addresses may be stored again."""


class Compare(_OfPeer):
    """The peer has not all the connections of a move: ask which."""


class RetryClaim(_OfConnection):
    """Nothing came of a try to prove a claim."""


class SendBind(_OfPeer):
    """All tokens that came within a moment go in one BIND."""


@dataclass(frozen=True, slots=True)
class ClaimExpired:
    """The peer has not proven its claim."""

    key: bytes
    cid: bytes


class RepeatAnnouncement(_OfMove):
    """An announcement has not been acknowledged."""


class ChoosePair(_OfMove):
    """A better pair has had its time to answer."""


@dataclass(frozen=True, slots=True)
class ReleaseTunnel:
    """The peer has had its time to get ready for what the tunnel holds."""

    cids: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class RepeatChallenge:
    """A challenge has not been answered."""

    key: bytes
    epoch: int


class FollowHint(_OfPeer):
    """There may be a better address."""


@dataclass(frozen=True, slots=True)
class ProbeAddress:
    """An address that did not carry may carry again."""

    key: bytes
    address: IPAddress


@dataclass(frozen=True, slots=True)
class ProbeSuspect:
    """An address may not carry."""

    key: bytes
    address: IPAddress


@dataclass(frozen=True, slots=True)
class TryPlain:
    """Try the plain way once more."""

    route: Route


@dataclass(frozen=True, slots=True)
class OpenTuples:
    """Tuples on which tokens have come may be received."""


@dataclass(frozen=True, slots=True)
class StopListening:
    """Nobody proves anything any more."""


class RefusePlain(_OfPeer):
    """The peer has had its time to go into the tunnel too."""


class SuspendInKernel(_OfPeer):
    """There has been no path for long enough."""


class PeerSilent(_OfPeer):
    """The peer owes an answer."""


@dataclass(frozen=True, slots=True)
class GiveUp:
    """It has been too long for some."""


class AskPlainly(_OfPeer):
    """Ask the kernels of peers."""


@dataclass(frozen=True, slots=True)
class PlaceExpired:
    """What was said of a place is old."""

    key: bytes
    origin: str


@dataclass(frozen=True, slots=True)
class FindRoutes:
    """Routes may be looked up again."""


class SeekAgain(_OfPeer):
    """There is still no route to the peer."""


@dataclass(frozen=True, slots=True)
class Register:
    """Time for the next registration."""

    name: str


@dataclass(frozen=True, slots=True)
class Punch:
    """Once more to where the peer may be."""

    key: bytes
    to: SockAddr


class TryDirect(_OfPeer):
    """Is there a way without the rendezvous?"""


class GuestExpired(_OfPeer):
    """A registration has not been renewed."""


Timer: TypeAlias = (
    RetryRequest
    | LongLived
    | ClaimAgain
    | NegotiateAgain
    | Undecided
    | Linger
    | Bury
    | Reach
    | KeepAlive
    | StoreAddresses
    | Compare
    | RetryClaim
    | SendBind
    | ClaimExpired
    | RepeatAnnouncement
    | ChoosePair
    | ReleaseTunnel
    | RepeatChallenge
    | FollowHint
    | ProbeAddress
    | ProbeSuspect
    | TryPlain
    | OpenTuples
    | StopListening
    | RefusePlain
    | SuspendInKernel
    | PeerSilent
    | GiveUp
    | AskPlainly
    | PlaceExpired
    | FindRoutes
    | SeekAgain
    | Register
    | Punch
    | TryDirect
    | GuestExpired
)

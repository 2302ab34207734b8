"""What timers of the engine are for.  engine.py says who handles each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from redirectctl.flows.connection import Route
from redirectctl.wire.addr import IPAddress, SockAddr


@dataclass(frozen=True, slots=True)
class RetryRequest:
    """A request has not been answered."""

    number: int


@dataclass(frozen=True, slots=True)
class LongLived:
    """A connection is as old as those that are protected."""

    cid: bytes


@dataclass(frozen=True, slots=True)
class ClaimAgain:
    """A connection was refused, and may not be the next time."""

    cid: bytes


@dataclass(frozen=True, slots=True)
class NegotiateAgain:
    """A host did not answer, and may now."""

    host: IPAddress


@dataclass(frozen=True, slots=True)
class Undecided:
    """The peer has neither taken our claim on nor made its own."""

    cid: bytes


@dataclass(frozen=True, slots=True)
class Linger:
    """Nothing of a closed connection is under way any more."""

    cid: bytes


@dataclass(frozen=True, slots=True)
class Bury:
    """A closed connection has been listed for long enough."""

    cid: bytes


@dataclass(frozen=True, slots=True)
class Reach:
    """There are protected connections, and no session."""

    key: bytes


@dataclass(frozen=True, slots=True)
class KeepAlive:
    """A NAT may forget the peer."""

    key: bytes


@dataclass(frozen=True, slots=True)
class StoreAddresses:
    """What a peer says of its addresses may be stored again."""

    key: bytes


@dataclass(frozen=True, slots=True)
class Compare:
    """The peer has not all the connections of a move: ask which."""

    key: bytes


@dataclass(frozen=True, slots=True)
class RetryClaim:
    """Nothing came of a try to prove a claim."""

    cid: bytes


@dataclass(frozen=True, slots=True)
class SendBind:
    """All tokens that came within a moment go in one BIND."""

    key: bytes


@dataclass(frozen=True, slots=True)
class ClaimExpired:
    """The peer has not proven its claim."""

    key: bytes
    cid: bytes


@dataclass(frozen=True, slots=True)
class RepeatAnnouncement:
    """An announcement has not been acknowledged."""

    epoch: int


@dataclass(frozen=True, slots=True)
class ChoosePair:
    """A better pair has had its time to answer."""

    epoch: int


@dataclass(frozen=True, slots=True)
class ReleaseTunnel:
    """The peer has had its time to get ready for what the tunnel holds."""

    cids: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class RepeatChallenge:
    """A challenge has not been answered."""

    key: bytes
    epoch: int


@dataclass(frozen=True, slots=True)
class FollowHint:
    """There may be a better address."""

    key: bytes


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


@dataclass(frozen=True, slots=True)
class RefusePlain:
    """The peer has had its time to go into the tunnel too."""

    key: bytes


@dataclass(frozen=True, slots=True)
class SuspendInKernel:
    """There has been no path for long enough."""

    key: bytes


@dataclass(frozen=True, slots=True)
class PeerSilent:
    """The peer owes an answer."""

    key: bytes


@dataclass(frozen=True, slots=True)
class GiveUp:
    """It has been too long for some."""


@dataclass(frozen=True, slots=True)
class AskPlainly:
    """Ask the kernels of peers."""

    key: bytes


@dataclass(frozen=True, slots=True)
class PlaceExpired:
    """What was said of a place is old."""

    key: bytes
    origin: str


@dataclass(frozen=True, slots=True)
class FindRoutes:
    """Routes may be looked up again."""


@dataclass(frozen=True, slots=True)
class SeekAgain:
    """There is still no route to the peer."""

    key: bytes


@dataclass(frozen=True, slots=True)
class Register:
    """Time for the next registration."""

    name: str


@dataclass(frozen=True, slots=True)
class Punch:
    """Once more to where the peer may be."""

    key: bytes
    to: SockAddr


@dataclass(frozen=True, slots=True)
class TryDirect:
    """Is there a way without the rendezvous?"""

    key: bytes


@dataclass(frozen=True, slots=True)
class GuestExpired:
    """A registration has not been renewed."""

    key: bytes


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

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
    """A request has not been answered in time."""

    number: int


class LongLived(_OfConnection):
    """A connection is old enough to be protected."""


class ClaimAgain(_OfConnection):
    """A connection that was refused, or waits for approval, may be tried again."""


class ExpectNoMore(_OfPeer):
    """A person has not met the peer whose key was named, in the time for that."""


@dataclass(frozen=True, slots=True)
class NegotiateAgain:
    """A host that did not answer may be tried again."""

    host: IPAddress


class Undecided(_OfConnection):
    """The peer has neither answered our claim nor made its own."""


class Linger(_OfConnection):
    """No packet of a closed connection is under way any more."""


class Bury(_OfConnection):
    """A closed connection has been listed for LISTED."""


class Reach(_OfPeer):
    """Protected connections are without a session: contact the peer again."""


class KeepAlive(_OfPeer):
    """A NAT may be about to forget the peer."""


class StoreAddresses(_OfPeer):
    """The addresses that a peer names may be stored again."""


class Compare(_OfPeer):
    """A peer lacks connections of a move: it may be asked again which."""


class RetryClaim(_OfConnection):
    """A try to prove a claim has brought no answer in time."""


class SendBind(_OfPeer):
    """Tokens have been gathered for GATHER_TIME: they go in one BIND."""


@dataclass(frozen=True, slots=True)
class ClaimExpired:
    """A peer has not proven its claim in time."""

    key: bytes
    cid: bytes


class RepeatAnnouncement(_OfMove):
    """An announcement has not been acknowledged in time."""


class ChoosePair(_OfMove):
    """Better pairs have had PATIENCE to answer."""


@dataclass(frozen=True, slots=True)
class ReleaseTunnel:
    """The peer has had READY_TIME to get ready for what the tunnel holds."""

    cids: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class RepeatChallenge:
    """A challenge has not been answered in time."""

    key: bytes
    epoch: int


class FollowHint(_OfPeer):
    """The pause after a hint at a better address is over."""


@dataclass(frozen=True, slots=True)
class ProbeAddress:
    """An address that failed may be probed."""

    key: bytes
    address: IPAddress


@dataclass(frozen=True, slots=True)
class ProbeSuspect:
    """A probe of an address that the peer has left has not been answered in time."""

    key: bytes
    address: IPAddress


@dataclass(frozen=True, slots=True)
class TryPlain:
    """Plain packets may be tried on a route again."""

    route: Route


@dataclass(frozen=True, slots=True)
class OpenTuples:
    """Plain packets may be received on further tuples."""


@dataclass(frozen=True, slots=True)
class StopListening:
    """Peers have had their time to prove plain packets."""


class RefusePlain(_OfPeer):
    """The peer has had its time to go into the tunnel too: plain packets are refused from now on."""


class SuspendInKernel(_OfPeer):
    """There has been no path for long enough: the kernel has to hold connections back."""


class PeerSilent(_OfPeer):
    """A peer has owed an answer for suspend_after."""


@dataclass(frozen=True, slots=True)
class GiveUp:
    """Connections may have been without a path for give_up_after."""


class AskPlainly(_OfPeer):
    """The kernel of a peer may be asked."""


@dataclass(frozen=True, slots=True)
class PlaceExpired:
    """What somebody said of a peer's place is too old to be tried."""

    key: bytes
    origin: str


@dataclass(frozen=True, slots=True)
class FindRoutes:
    """Routes may be looked up again."""


class SeekAgain(_OfPeer):
    """There may still be no route to the peer: ask again."""


@dataclass(frozen=True, slots=True)
class Register:
    """The next registration at a rendezvous is due."""

    name: str


@dataclass(frozen=True, slots=True)
class Punch:
    """The next keepalive to where a peer may be is due."""

    key: bytes
    to: SockAddr


class TryDirect(_OfPeer):
    """A peer of relayed connections may be tried without the rendezvous."""


class GuestExpired(_OfPeer):
    """A guest has not renewed its registration."""


Timer: TypeAlias = (
    RetryRequest
    | LongLived
    | ClaimAgain
    | ExpectNoMore
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

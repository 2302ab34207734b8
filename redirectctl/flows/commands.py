"""What the engine asks of the shell, in order.  Transmit (proto.events) is one of them too."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

from redirectctl.flows.connection import Before, Connection, Flow, Pair
from redirectctl.proto.events import Transmit
from redirectctl.proto.peer import Peer
from redirectctl.wire.addr import FourTuple, IPAddress, SockAddr
from redirectctl.wire.tunnel import Offer


@dataclass(frozen=True, slots=True)
class _OfSockets:
    sockets: tuple[FourTuple, ...]


@dataclass(frozen=True, slots=True)
class SavePeer:
    """Store before anything that follows; where that fails, what follows is done all the same."""

    peer: Peer


@dataclass(frozen=True, slots=True)
class DropPeer:
    """Delete a peer from the store."""

    key: bytes


@dataclass(frozen=True, slots=True)
class SaveConnections:
    """Store these connections before anything that follows; where that fails, what follows is done all the same."""

    connections: tuple[Connection, ...]


@dataclass(frozen=True, slots=True)
class DropConnections:
    """Delete connections from the store."""

    cids: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Guarding:
    """Why flows are rewritten: connections begin to be guarded, or are not any more."""

    cids: tuple[bytes, ...] = ()  # those that begin
    claim: int | None = None  # whose claims are to be answered then


@dataclass(frozen=True, slots=True)
class OurMove:
    """Why flows are rewritten: the peer has challenged our announcement along this pair."""

    epoch: int
    pair: Pair


@dataclass(frozen=True, slots=True)
class PeersMove:
    """Why flows are rewritten: a peer has proven that it is at a new address."""

    key: bytes
    epoch: int
    new: IPAddress


@dataclass(frozen=True, slots=True)
class ChangePath:
    """Why flows are rewritten: what sockets send goes into the tunnel from now on, or plainly."""

    tunnel: bool


@dataclass(frozen=True, slots=True)
class ReceivePlainly:
    """Why flows are rewritten: these tokens have come on the tuples of these connections."""

    tokens: tuple[tuple[bytes, bytes], ...]  # cid, token


@dataclass(frozen=True, slots=True)
class Suspending:
    """Why flows are rewritten: there is no path to this peer, and what sockets send is held back."""

    key: bytes


@dataclass(frozen=True, slots=True)
class Lifting:
    """Why flows are rewritten: what sockets send is let through again."""


Purpose: TypeAlias = Guarding | OurMove | PeersMove | ChangePath | ReceivePlainly | Suspending | Lifting


@dataclass(frozen=True, slots=True)
class Rewrite:
    """Change the kernel's flows in one transaction, then call rewritten(this, why not)."""

    purpose: Purpose
    add: tuple[Flow, ...] = ()
    remove: tuple[Flow, ...] = ()


@dataclass(frozen=True, slots=True)
class FindRoutes:
    """Look up routes to all of remotes(), then call network_changed()."""


class RevertBackoff(_OfSockets):
    """The path is there again: undo the back-off of these sockets."""


class RevertBackoffEarly(_OfSockets):
    """The path will be there in a moment: undo the back-off of those that RevertBackoff would not help then."""


class Prepare(_OfSockets):
    """Find out what these sockets have that suspending them changes, then call prepared({socket: Before})."""


@dataclass(frozen=True, slots=True)
class Suspend:
    """The kernel holds back what these sockets send, and what they had is stored: keep them alive."""

    before: dict[FourTuple, Before]


class Resume(_OfSockets):
    """The path is there again, also for the kernel: as RevertBackoff, of sockets that are, or were to be, suspended.

    When they have been given back what they had, call restored().
    """


@dataclass(frozen=True, slots=True)
class LetOut:
    """The kernel lets what these suspended sockets send leave the host (``on``), or holds it back again."""

    sockets: tuple[FourTuple, ...]
    on: bool


class Ask(_OfSockets):
    """Send a keepalive on each of these sockets, which are let out, then call answered() with those acknowledged."""


@dataclass(frozen=True, slots=True)
class GiveBack:
    """An earlier run resumed these, and did not get to giving them back what they had.  Then call restored()."""

    before: dict[FourTuple, Before]


class Forget(_OfSockets):
    """Forget these suspended sockets: they have ended, or are left to themselves."""


@dataclass(frozen=True, slots=True)
class PeersReset:
    """Why sockets are looked up: a peer asks whether one is gone."""

    number: int


@dataclass(frozen=True, slots=True)
class PeersClaim:
    """Why sockets are looked up: a peer claims one."""

    number: int


@dataclass(frozen=True, slots=True)
class OwnClaim:
    """Why a socket is looked up: we claim its connection."""

    cid: bytes


@dataclass(frozen=True, slots=True)
class CheckSockets:
    """Find out which of these are open TCP connections here, then call checked(purpose, those or None: not known)."""

    purpose: PeersReset | PeersClaim
    sockets: tuple[FourTuple, ...]


class Proof(NamedTuple):
    """A token that has to reach the other host inside the connection (kernel/tcp/inband.py)."""

    socket: FourTuple
    token: bytes  # 8 random bytes
    wire: FourTuple | None = None  # plainly on this wire tuple, as large as a segment can be; None: as the socket sends


@dataclass(frozen=True, slots=True)
class Prove:
    """Make these sockets send an acknowledgement each, with a token in a TCP option."""

    proofs: tuple[Proof, ...]


@dataclass(frozen=True, slots=True)
class Listen:
    """Begin, or end, to look at segments for tokens; each token leads to a call of token()."""

    on: bool


@dataclass(frozen=True, slots=True)
class AskNumbers:
    """Find out the sequence number bases of these sockets, then call numbers(purpose, {socket: (send, receive)})."""

    purpose: OwnClaim
    sockets: tuple[FourTuple, ...]


@dataclass(frozen=True, slots=True)
class FindNumbers:
    """The same for all sockets with this local port and remote host, at most MAX_CANDIDATES."""

    purpose: PeersClaim
    port: int
    remote: IPAddress


class Carried(NamedTuple):
    """A connection as the tunnel carries it.  Datagrams are received whether we send by the tunnel or not."""

    socket: FourTuple
    sending: Offer  # what the peer wants to see in datagrams to it
    receiving: Offer  # what we want to see
    first: int  # counter of the first datagram that we send; in no run of this daemon used before
    integrity: bool  # every datagram has a tag
    local: IPAddress | None  # datagrams go from here
    remote: SockAddr | None  # to here; None: what the socket sends is held for a moment
    port: int = 0  # number of our port that datagrams go from


@dataclass(frozen=True, slots=True)
class Carry:
    """Have the tunnel carry these connections, in this way from now on."""

    carried: tuple[Carried, ...]


class Uncarry(_OfSockets):
    """Have the tunnel forget these connections."""


@dataclass(frozen=True, slots=True)
class Relays:
    """Tunnel datagrams of a guest of our rendezvous, which come from ``source``, go on as ``routes`` says; others do
    not.  What was said of this guest before counts no more."""

    guest: bytes
    source: SockAddr | None  # None: it has left
    routes: dict[int, tuple[SockAddr, IPAddress]]  # by flow: to where, from which address of ours


@dataclass(frozen=True, slots=True)
class Seek:
    """This peer does not answer: does somebody know where it is?  Repeated, ever more slowly, while that is so."""

    key: bytes


class Destroy(_OfSockets):
    """Close these sockets (SOCK_DESTROY): their programs get ECONNABORTED."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What becomes of a held RST."""

    packet: int  # number of the RST
    accept: bool


@dataclass(frozen=True, slots=True)
class Contacted:
    """A handshake that we started has ended."""

    to: SockAddr
    key: bytes | None  # who answered, or whom we expected there
    reason: str | None  # why there is no session; None: there is one
    source: IPAddress | None  # our address between which and ``to`` it was


@dataclass(frozen=True, slots=True)
class Notice:
    """An event for the log, with the names of the interface document."""

    name: str
    connection: bytes | None = None
    peer: bytes | None = None
    reason: str | None = None
    address: IPAddress | None = None
    details: dict[str, Any] = field(default_factory=dict)
    cids: tuple[bytes, ...] = ()  # the connections of a move


Command: TypeAlias = (
    Transmit
    | SavePeer
    | DropPeer
    | SaveConnections
    | DropConnections
    | Rewrite
    | FindRoutes
    | RevertBackoff
    | RevertBackoffEarly
    | Prepare
    | Suspend
    | Resume
    | LetOut
    | Ask
    | GiveBack
    | Forget
    | CheckSockets
    | Prove
    | Listen
    | AskNumbers
    | FindNumbers
    | Carry
    | Uncarry
    | Relays
    | Seek
    | Destroy
    | Verdict
    | Contacted
    | Notice
)

"""Messages inside a session (the plaintext of a TRANSPORT datagram).  Network byte order.

    address: 16 bytes, IPv4 as ::ffff:a.b.c.d
    tuple: address (16), port (2), address (16), port (2); the sender's end first
    offer: flow (4), key (16), start (8)

    HELLO (1)           | trust (1) | reflexive (16) | port (2) | n (1) | n x address (16) |
    PROTECT (2)         | request (4) | n (1)
                        |     n x { cid (8), epoch (8), tuple (36), token's digest (8), offer (28), flags (1) } |
    PROTECTED (3)       | request (4) | n (1)
                        |     n x { cid (8), epoch (8), status (1), tuple (36), offer (28), proof (8) } |
    ACM (4)             | epoch (8) | nonce (8) | new (16) | flags (1) | m (1) | n (1)
                        |     m x old (16) | n x cid (8) |
    ACM_ACK (5)         | epoch (8) | nonce (8) | status (1) | connections (4) | reflexive (16) | port (2) |
    PATH_CHALLENGE (6)  | epoch (8) | nonce (8) | data (8) |
    PATH_RESPONSE (7)   | epoch (8) | data (8) |
    RST_QUERY (8)       | request (4) | cid (8) |
    RST_REPLY (9)       | request (4) | alive (1) |
    END (10)            | request (4) | what (1) | n (1) | n x cid (8) |
    DONE (11)           | request (4) |
    SYNC (12)           | request (4) | n (1) | n x cid (8) |
    SYNC_REPLY (13)     | request (4) | n (1) | n x cid (8) |
    BIND (14)           | request (4) | n (1) | n x { cid (8), token (8), seq (4), ack (4) } |
    BIND_NUMBERS (15)   | request (4) | n (1) | n x { cid (8), proof (8) } |
    SEEN (16)           | n (1) | n x token (8) |
    BYE (17)            |
    PATH_PROBE (18)     | nonce (8) |
    PATH_PROBED (19)    | nonce (8) |
    NAME (20)           | n (1) | n x byte |
    from 32 on          meeting.py

Each starts with its type (1).  The ACM has what the paper's figure 2 has, but names connections by the ids that both
hosts know; its authentication is the AEAD tag of the TRANSPORT datagram, that datagram's counter and the epoch keep it
from being used twice.  Its nonce is another in each datagram: whoever returns it has received what went to one target.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, ClassVar, Final, NamedTuple, Self, TypeAlias

from redirectctl.wire import meeting
from redirectctl.wire.addr import FourTuple, IPAddress, SockAddr
from redirectctl.wire.datagram import MalformedError
from redirectctl.wire.fields import ANY, need_ip, pack_ip
from redirectctl.wire.layout import FLAG, FOUR_TUPLE, IP, SOCKADDR, Body, Field, Layout, Many, one_of, plain, record
from redirectctl.wire.tunnel import Offer

MAX_PLAINTEXT: Final = 1200  # with header and tag it fits MAX_DATAGRAM
MAX_ADDRESSES: Final = 8
MAX_PROTECT: Final = 12  # also of what comes of it: PROTECTED and BIND
MAX_OLD: Final = 8  # addresses of which an ACM moves all connections
MAX_MOVED: Final = 100  # connections that an ACM names one by one
MAX_CIDS: Final = 128
MAX_TOKENS: Final = 64
MAX_NAME: Final = 64  # bytes
MAX_START: Final = 2**62  # of the counters of an offer


class Trust(IntEnum):
    """What the sender of a HELLO thinks of the receiver."""

    PENDING = 0
    APPROVED = 1
    REJECTED = 2


class Status(IntEnum):
    """Answer to one connection of a PROTECT."""

    OK = 0
    PENDING = 1  # a person must approve first
    REJECTED = 2  # the peer is refused
    NO_SOCKET = 3  # there is no such connection here
    NOT_YOURS = 4  # the connection's other end is not where this peer is
    PORT = 5  # accept_ports does not list the port
    LIMIT = 6  # too many connections protected already
    CONFLICT = 7  # another peer has this connection
    FAILED = 8  # the kernel refused
    PROVE = 9  # show on the connection itself that it is yours; to a BIND: there is no such claim, begin anew
    INTEGRITY = 10  # one end insists on integrity, the other will not
    NUMBERS = 11  # something on the way changes the connection's sequence numbers


class AcmStatus(IntEnum):
    """Answer to an ACM."""

    APPLIED = 0
    STALE = 1  # every connection that it names has moved on since
    NO_CONNECTION = 2  # it names none that we protect with this peer
    UNUSABLE = 3  # an address that no host can have, or of the wrong family
    FAILED = 4  # the kernel refused


class End(IntEnum):
    """Why a connection is no longer protected."""

    CLOSED = 0
    RELEASED = 1
    KILL = 2  # and close it over there too


def _offer(flow: int, key: bytes, start: int) -> Offer:
    if not flow or start >= MAX_START:
        raise MalformedError("bad-offer")
    return Offer(flow, key, start)


_EIGHT: Final = plain("8s")
_REQUEST: Final = plain("I")
_EPOCH: Final = plain("Q")
_OFFER: Final = Field("I16sQ", lambda offer: (offer.flow, offer.key, offer.start), _offer)


@dataclass(frozen=True, slots=True)
class Hello(Body):
    """First message of a session, and again when trust changes."""

    TYPE: ClassVar[int] = 1
    LAYOUT: ClassVar[Layout] = Layout(trust=one_of(Trust), reflexive=SOCKADDR, addresses=Many(IP, MAX_ADDRESSES))
    trust: Trust
    reflexive: SockAddr  # where the sender sees the receiver's datagrams come from
    addresses: tuple[IPAddress, ...] = ()  # the sender's own, of global scope; none: it does not say


@dataclass(frozen=True, slots=True)
class Claim:
    """One connection of a PROTECT: its id, the claimant's epoch, its tuple as the claimant sees it."""

    cid: bytes
    epoch: int
    tuple: FourTuple
    digest: bytes  # 8 bytes, of the token that will come on the connection
    offer: Offer
    integrity: bool = False  # wanted


_CLAIM: Final = record(Claim, cid=_EIGHT, epoch=_EPOCH, tuple=FOUR_TUPLE, digest=_EIGHT, offer=_OFFER, integrity=FLAG)


@dataclass(frozen=True, slots=True)
class Protect(Body):
    """Ask the peer to protect connections."""

    TYPE: ClassVar[int] = 2
    LAYOUT: ClassVar[Layout] = Layout(request=_REQUEST, claims=Many(_CLAIM, MAX_PROTECT))
    request: int
    claims: tuple[Claim, ...]


_NO_PROOF: Final = bytes(8)


@dataclass(frozen=True, slots=True)
class Verdict:
    """Answer to one claim; epoch is that of the answering host when it took the connection on.

    With any status but OK, the rest is left out: zeros.
    """

    cid: bytes
    epoch: int
    status: Status
    there: FourTuple | None = None  # the answering host's socket tuple
    offer: Offer | None = None
    proof: bytes = _NO_PROOF  # 8 bytes: the claimant's token, or what shows knowledge of the same sequence numbers


def _pack_verdict(v: Verdict) -> tuple[Any, ...]:
    there = FOUR_TUPLE.pack(v.there) if v.there is not None else (ANY, 0, ANY, 0)
    offer = _OFFER.pack(v.offer) if v.offer is not None else (0, bytes(16), 0)
    return v.cid, v.epoch, v.status, *there, *offer, v.proof


def _verdict(cid: bytes, epoch: int, number: int, *parts: Any) -> Verdict:
    status, (four, offer, proof) = Status(number), (parts[:4], parts[4:7], parts[7])
    if status is Status.OK:
        return Verdict(cid, epoch, status, FOUR_TUPLE.unpack(*four), _OFFER.unpack(*offer), proof)
    if parts != (ANY, 0, ANY, 0, 0, bytes(16), 0, bytes(8)):
        raise MalformedError("bad-value")
    return Verdict(cid, epoch, status)


_VERDICT: Final = Field("8sQB16sH16sHI16sQ8s", _pack_verdict, _verdict)


@dataclass(frozen=True, slots=True)
class Protected(Body):
    """Answer to PROTECT, BIND, BIND_NUMBERS."""

    TYPE: ClassVar[int] = 3
    LAYOUT: ClassVar[Layout] = Layout(request=_REQUEST, verdicts=Many(_VERDICT, MAX_PROTECT))
    request: int
    verdicts: tuple[Verdict, ...]


class TokenArrival(NamedTuple):
    """A token that has come on the connection of a claim."""

    cid: bytes
    token: bytes
    seq: int  # of the segment that had it, as it arrived
    ack: int


_ARRIVAL: Final = record(TokenArrival, cid=_EIGHT, token=_EIGHT, seq=plain("I"), ack=plain("I"))
_PROOF: Final = Field("8s8s", lambda both: both, lambda *both: both)


@dataclass(frozen=True, slots=True)
class Bind(Body):
    """These tokens have come on the connections of these claims."""

    TYPE: ClassVar[int] = 14
    LAYOUT: ClassVar[Layout] = Layout(request=_REQUEST, tokens=Many(_ARRIVAL, MAX_PROTECT))
    request: int
    tokens: tuple[TokenArrival, ...]


@dataclass(frozen=True, slots=True)
class BindNumbers(Body):
    """No token gets through: the claimant knows the connections' sequence numbers."""

    TYPE: ClassVar[int] = 15
    LAYOUT: ClassVar[Layout] = Layout(request=_REQUEST, proofs=Many(_PROOF, MAX_PROTECT))
    request: int
    proofs: tuple[tuple[bytes, bytes], ...]  # cid, proof


class Moved(NamedTuple):
    """Which connections an ACM moves: all that were born at these addresses of its sender, and those with these ids."""

    old: tuple[IPAddress, ...] = ()
    cids: tuple[bytes, ...] = ()


_ACM: Final = struct.Struct("!Q8s16sBBB")


@dataclass(frozen=True, slots=True)
class Acm:
    """Address Change Message (paper, figure 2): from this epoch on my end of these connections is at ``new``."""

    TYPE: ClassVar[int] = 4
    epoch: int
    nonce: bytes  # 8 bytes, for this datagram only
    new: IPAddress
    moved: Moved
    stalled: bool = False  # plain packets do not get through

    def pack(self) -> bytes:
        """Body without the type byte."""
        old, cids = self.moved
        head = _ACM.pack(self.epoch, self.nonce, pack_ip(self.new), self.stalled, len(old), len(cids))
        return b"".join((head, *map(pack_ip, old), *cids))

    @classmethod
    def unpack(cls, body: bytes) -> Acm:
        """Raises MalformedError."""
        if len(body) < _ACM.size:
            raise MalformedError("bad-length")
        epoch, nonce, new, flags, m, n = _ACM.unpack_from(body)
        if m > MAX_OLD or n > MAX_MOVED:
            raise MalformedError("bad-length")
        rest = _ACM.size + m * 16
        if len(body) != rest + n * 8:
            raise MalformedError("bad-length")
        if not m and not n:
            raise MalformedError("empty")
        if flags > 1:
            raise MalformedError("bad-value")
        old = tuple(need_ip(body[at : at + 16]) for at in range(_ACM.size, rest, 16))
        cids = tuple(body[at : at + 8] for at in range(rest, len(body), 8))
        return cls(epoch, nonce, need_ip(new), Moved(old, cids), bool(flags))


@dataclass(frozen=True, slots=True)
class AcmAck(Body):
    """Answer to an ACM, after the new address has been validated."""

    TYPE: ClassVar[int] = 5
    LAYOUT: ClassVar[Layout] = Layout(
        epoch=_EPOCH, nonce=_EIGHT, status=one_of(AcmStatus), connections=plain("I"), reflexive=SOCKADDR
    )
    epoch: int
    nonce: bytes  # of the ACM that came the way that counts from now on; of the one that is refused
    status: AcmStatus
    connections: int
    reflexive: SockAddr  # where the ACM, or the answer to the challenge, came from


@dataclass(frozen=True, slots=True)
class PathChallenge(Body):
    """Sent to the address that an ACM announces (after RFC 9000, section 8.2)."""

    TYPE: ClassVar[int] = 6
    LAYOUT: ClassVar[Layout] = Layout(epoch=_EPOCH, nonce=_EIGHT, data=_EIGHT)
    epoch: int
    nonce: bytes  # of the ACM that came this way
    data: bytes  # for this way only


@dataclass(frozen=True, slots=True)
class PathResponse(Body):
    """The challenge's data, from the announced address."""

    TYPE: ClassVar[int] = 7
    LAYOUT: ClassVar[Layout] = Layout(epoch=_EPOCH, data=_EIGHT)
    epoch: int
    data: bytes


@dataclass(frozen=True, slots=True)
class RstQuery(Body):
    """A RST came for this connection: is your socket gone?"""

    TYPE: ClassVar[int] = 8
    LAYOUT: ClassVar[Layout] = Layout(request=_REQUEST, cid=_EIGHT)
    request: int
    cid: bytes


@dataclass(frozen=True, slots=True)
class RstReply(Body):
    """Whether the socket is still there."""

    TYPE: ClassVar[int] = 9
    LAYOUT: ClassVar[Layout] = Layout(request=_REQUEST, alive=FLAG)
    request: int
    alive: bool


@dataclass(frozen=True, slots=True)
class EndOf(Body):
    """These connections are no longer protected here."""

    TYPE: ClassVar[int] = 10
    LAYOUT: ClassVar[Layout] = Layout(request=_REQUEST, what=one_of(End), cids=Many(_EIGHT, MAX_CIDS))
    request: int
    what: End
    cids: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Done(Body):
    """Acknowledges an END."""

    TYPE: ClassVar[int] = 11
    LAYOUT: ClassVar[Layout] = Layout(request=_REQUEST)
    request: int


@dataclass(frozen=True, slots=True)
class _OfConnections(Body):
    TYPE: ClassVar[int]
    LAYOUT: ClassVar[Layout] = Layout(request=_REQUEST, cids=Many(_EIGHT, MAX_CIDS))
    request: int
    cids: tuple[bytes, ...]


class Sync(_OfConnections):
    """After a restart: these connections are protected here."""

    TYPE: ClassVar[int] = 12


class SyncReply(_OfConnections):
    """Those of them that are not protected over here."""

    TYPE: ClassVar[int] = 13


@dataclass(frozen=True, slots=True)
class Seen(Body):
    """These tokens have come plainly on a connection of ours; with none: the sender is about to send some."""

    TYPE: ClassVar[int] = 16
    LAYOUT: ClassVar[Layout] = Layout(tokens=Many(_EIGHT, MAX_TOKENS))
    tokens: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class _WithNonce(Body):
    TYPE: ClassVar[int]
    LAYOUT: ClassVar[Layout] = Layout(nonce=_EIGHT)
    nonce: bytes


class PathProbe(_WithNonce):
    """Does this way carry?"""

    TYPE: ClassVar[int] = 18


class PathProbed(_WithNonce):
    """Answer to PATH_PROBE, back the same way."""

    TYPE: ClassVar[int] = 19


@dataclass(frozen=True, slots=True)
class Name(Body):
    """What the sender calls itself: UTF-8, and not to be believed.  In sessions of version 3 and later."""

    TYPE: ClassVar[int] = 20
    LAYOUT: ClassVar[Layout] = Layout(text=Many(plain("B"), MAX_NAME))
    text: tuple[int, ...]

    @classmethod
    def of(cls, name: str) -> Self:
        """For a name, of which what is too long is left out."""
        return cls(tuple(name.encode(errors="replace")[:MAX_NAME]))

    @property
    def name(self) -> str:
        """As people can be shown it: printable, without quotes, as they are put around it."""
        shown = bytes(self.text).decode(errors="ignore")
        return "".join(c for c in shown if c.isprintable() and c not in "\"'`\\").strip()


@dataclass(frozen=True, slots=True)
class Bye(Body):
    """The sender's daemon ends now."""

    TYPE: ClassVar[int] = 17
    LAYOUT: ClassVar[Layout] = Layout()


Message: TypeAlias = (
    Hello
    | Protect
    | Protected
    | Acm
    | AcmAck
    | PathChallenge
    | PathResponse
    | RstQuery
    | RstReply
    | EndOf
    | Done
    | Sync
    | SyncReply
    | Bind
    | BindNumbers
    | Seen
    | PathProbe
    | PathProbed
    | Bye
    | Name
    | meeting.Message
)

_TYPES: Final = {
    cls.TYPE: cls
    for cls in (
        Hello,
        Protect,
        Protected,
        Acm,
        AcmAck,
        PathChallenge,
        PathResponse,
        RstQuery,
        RstReply,
        EndOf,
        Done,
        Sync,
        SyncReply,
        Bind,
        BindNumbers,
        Seen,
        PathProbe,
        PathProbed,
        Bye,
        Name,
        *meeting.MESSAGES,
    )
}


def encode(message: Message) -> bytes:
    """The plaintext of a TRANSPORT datagram."""
    return bytes((message.TYPE,)) + message.pack()


def decode(plaintext: bytes) -> Message:
    """Raises MalformedError with a named reason; never anything else."""
    if not plaintext:
        raise MalformedError("empty")
    cls = _TYPES.get(plaintext[0])
    if cls is None:
        raise MalformedError("unknown-message")
    try:
        return cls.unpack(plaintext[1:])
    except MalformedError:
        raise
    except ValueError:  # an enum value that we do not know
        raise MalformedError("bad-value") from None

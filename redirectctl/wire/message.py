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
    from 32 on          meeting.py

Each starts with its type (1).  The ACM has what the paper's figure 2 has, but names connections by the ids that both
hosts know; its authentication is the AEAD tag of the TRANSPORT datagram, that datagram's counter and the epoch keep it
from being used twice.  Its nonce is another in each datagram: whoever returns it has received what went to one target.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import ClassVar, Final, NamedTuple, Self, TypeAlias

from redirectctl.wire import meeting
from redirectctl.wire.addr import FourTuple, IPAddress, SockAddr
from redirectctl.wire.datagram import MalformedError
from redirectctl.wire.fields import ANY, counted, exact, need_ip, pack_ip
from redirectctl.wire.tunnel import Offer

MAX_PLAINTEXT: Final = 1200  # with header and tag it fits MAX_DATAGRAM
MAX_ADDRESSES: Final = 8
MAX_PROTECT: Final = 12  # also of what comes of it: PROTECTED and BIND
MAX_OLD: Final = 8  # addresses of which an ACM moves all connections
MAX_MOVED: Final = 100  # connections that an ACM names one by one
MAX_CIDS: Final = 128
MAX_TOKENS: Final = 64
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


def _pack_tuple(four: FourTuple) -> tuple[bytes, int, bytes, int]:
    (local, lport), (remote, rport) = four
    return pack_ip(local), lport, pack_ip(remote), rport


def _need_tuple(local: bytes, lport: int, remote: bytes, rport: int) -> FourTuple:
    here, there = need_ip(local), need_ip(remote)
    if here.version != there.version or not lport or not rport:
        raise MalformedError("bad-tuple")
    return FourTuple(SockAddr(here, lport), SockAddr(there, rport))


def _pack_offer(offer: Offer) -> tuple[int, bytes, int]:
    return offer.flow, offer.key, offer.start


def _need_offer(flow: int, key: bytes, start: int) -> Offer:
    if not flow or start >= MAX_START:
        raise MalformedError("bad-offer")
    return Offer(flow, key, start)


_REQ_N = struct.Struct("!IB")
_HELLO = struct.Struct("!B16sHB")
_ADDRESS = struct.Struct("!16s")
_PROTECT = struct.Struct("!8sQ16sH16sH8sI16sQB")
_PROTECTED = struct.Struct("!8sQB16sH16sHI16sQ8s")
_BIND = struct.Struct("!8s8sII")
_PROOF = struct.Struct("!8s8s")
_ACM = struct.Struct("!Q8s16sBBB")
_ACM_ACK = struct.Struct("!Q8sBI16sH")
_CHALLENGE = struct.Struct("!Q8s8s")
_RESPONSE = struct.Struct("!Q8s")
_RST_QUERY = struct.Struct("!I8s")
_REQ_U8 = struct.Struct("!IB")
_END = struct.Struct("!IBB")
_REQ = struct.Struct("!I")
_N = struct.Struct("!B")


@dataclass(frozen=True, slots=True)
class Hello:
    """First message of a session, and again when trust changes."""

    TYPE: ClassVar[int] = 1
    trust: Trust
    reflexive: SockAddr  # where the sender sees the receiver's datagrams come from
    addresses: tuple[IPAddress, ...] = ()  # the sender's own, of global scope; none: it does not say

    def pack(self) -> bytes:
        """Body without the type byte."""
        host, port = self.reflexive
        head = _HELLO.pack(self.trust, pack_ip(host), port, len(self.addresses))
        return head + b"".join(map(pack_ip, self.addresses))

    @classmethod
    def unpack(cls, body: bytes) -> Hello:
        """Raises MalformedError."""
        (trust, host, port, _), rest = counted(_HELLO, body, _ADDRESS, MAX_ADDRESSES)
        addresses = tuple(need_ip(address) for (address,) in _ADDRESS.iter_unpack(rest))
        return cls(Trust(trust), SockAddr(need_ip(host), port), addresses)


@dataclass(frozen=True, slots=True)
class Claim:
    """One connection of a PROTECT: its id, the claimant's epoch, its tuple as the claimant sees it."""

    cid: bytes
    epoch: int
    tuple: FourTuple
    digest: bytes  # 8 bytes, of the token that will come on the connection
    offer: Offer
    integrity: bool = False  # wanted


@dataclass(frozen=True, slots=True)
class Protect:
    """Ask the peer to protect connections."""

    TYPE: ClassVar[int] = 2
    request: int
    claims: tuple[Claim, ...]

    def pack(self) -> bytes:
        """Body without the type byte."""
        parts = [_REQ_N.pack(self.request, len(self.claims))]
        for c in self.claims:
            offer = _pack_offer(c.offer)
            parts.append(_PROTECT.pack(c.cid, c.epoch, *_pack_tuple(c.tuple), c.digest, *offer, c.integrity))
        return b"".join(parts)

    @classmethod
    def unpack(cls, body: bytes) -> Protect:
        """Raises MalformedError."""
        (request, _), rest = counted(_REQ_N, body, _PROTECT, MAX_PROTECT)
        claims = []
        for cid, epoch, local, lport, remote, rport, digest, flow, key, start, flags in _PROTECT.iter_unpack(rest):
            four, offer = _need_tuple(local, lport, remote, rport), _need_offer(flow, key, start)
            if flags > 1:
                raise MalformedError("bad-value")
            claims.append(Claim(cid, epoch, four, digest, offer, bool(flags)))
        return cls(request, tuple(claims))


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


@dataclass(frozen=True, slots=True)
class Protected:
    """Answer to PROTECT, BIND, BIND_NUMBERS."""

    TYPE: ClassVar[int] = 3
    request: int
    verdicts: tuple[Verdict, ...]

    def pack(self) -> bytes:
        """Body without the type byte."""
        parts = [_REQ_N.pack(self.request, len(self.verdicts))]
        for v in self.verdicts:
            there = _pack_tuple(v.there) if v.there is not None else (ANY, 0, ANY, 0)
            offer = _pack_offer(v.offer) if v.offer is not None else (0, bytes(16), 0)
            parts.append(_PROTECTED.pack(v.cid, v.epoch, v.status, *there, *offer, v.proof))
        return b"".join(parts)

    @classmethod
    def unpack(cls, body: bytes) -> Protected:
        """Raises MalformedError."""
        (request, _), rest = counted(_REQ_N, body, _PROTECTED, MAX_PROTECT)
        verdicts = []
        for cid, epoch, number, local, lport, remote, rport, flow, key, start, proof in _PROTECTED.iter_unpack(rest):
            status = Status(number)
            if status is Status.OK:
                four, offer = _need_tuple(local, lport, remote, rport), _need_offer(flow, key, start)
                verdicts.append(Verdict(cid, epoch, status, four, offer, proof))
            elif any((*local, lport, *remote, rport, flow, *key, start, *proof)):
                raise MalformedError("bad-value")
            else:
                verdicts.append(Verdict(cid, epoch, status))
        return cls(request, tuple(verdicts))


class TokenArrival(NamedTuple):
    """A token that has come on the connection of a claim."""

    cid: bytes
    token: bytes
    seq: int  # of the segment that had it, as it arrived
    ack: int


@dataclass(frozen=True, slots=True)
class Bind:
    """These tokens have come on the connections of these claims."""

    TYPE: ClassVar[int] = 14
    request: int
    tokens: tuple[TokenArrival, ...]

    def pack(self) -> bytes:
        """Body without the type byte."""
        return _REQ_N.pack(self.request, len(self.tokens)) + b"".join(_BIND.pack(*item) for item in self.tokens)

    @classmethod
    def unpack(cls, body: bytes) -> Bind:
        """Raises MalformedError."""
        (request, _), rest = counted(_REQ_N, body, _BIND, MAX_PROTECT)
        return cls(request, tuple(TokenArrival(*item) for item in _BIND.iter_unpack(rest)))


@dataclass(frozen=True, slots=True)
class BindNumbers:
    """No token gets through: the claimant knows the connections' sequence numbers."""

    TYPE: ClassVar[int] = 15
    request: int
    proofs: tuple[tuple[bytes, bytes], ...]  # cid, proof

    def pack(self) -> bytes:
        """Body without the type byte."""
        return _REQ_N.pack(self.request, len(self.proofs)) + b"".join(_PROOF.pack(*item) for item in self.proofs)

    @classmethod
    def unpack(cls, body: bytes) -> BindNumbers:
        """Raises MalformedError."""
        (request, _), rest = counted(_REQ_N, body, _PROOF, MAX_PROTECT)
        return cls(request, tuple(_PROOF.iter_unpack(rest)))


class Moved(NamedTuple):
    """Which connections an ACM moves: all that were born at these addresses of its sender, and those with these ids."""

    old: tuple[IPAddress, ...] = ()
    cids: tuple[bytes, ...] = ()


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
        rest = _ACM.size + m * _ADDRESS.size
        if len(body) != rest + n * _CID.size:
            raise MalformedError("bad-length")
        if not m and not n:
            raise MalformedError("empty")
        if flags > 1:
            raise MalformedError("bad-value")
        old = tuple(need_ip(address) for (address,) in _ADDRESS.iter_unpack(body[_ACM.size : rest]))
        return cls(epoch, nonce, need_ip(new), Moved(old, _split_cids(body[rest:])), bool(flags))


@dataclass(frozen=True, slots=True)
class AcmAck:
    """Answer to an ACM, after the new address has been validated."""

    TYPE: ClassVar[int] = 5
    epoch: int
    nonce: bytes  # of the ACM that came the way that counts from now on; of the one that is refused
    status: AcmStatus
    connections: int
    reflexive: SockAddr  # where the ACM, or the answer to the challenge, came from

    def pack(self) -> bytes:
        """Body without the type byte."""
        host, port = self.reflexive
        return _ACM_ACK.pack(self.epoch, self.nonce, self.status, self.connections, pack_ip(host), port)

    @classmethod
    def unpack(cls, body: bytes) -> AcmAck:
        """Raises MalformedError."""
        epoch, nonce, status, connections, host, port = exact(_ACM_ACK, body)
        return cls(epoch, nonce, AcmStatus(status), connections, SockAddr(need_ip(host), port))


@dataclass(frozen=True, slots=True)
class PathChallenge:
    """Sent to the address that an ACM announces (after RFC 9000, section 8.2)."""

    TYPE: ClassVar[int] = 6
    epoch: int
    nonce: bytes  # of the ACM that came this way
    data: bytes  # for this way only

    def pack(self) -> bytes:
        """Body without the type byte."""
        return _CHALLENGE.pack(self.epoch, self.nonce, self.data)

    @classmethod
    def unpack(cls, body: bytes) -> PathChallenge:
        """Raises MalformedError."""
        return cls(*exact(_CHALLENGE, body))


@dataclass(frozen=True, slots=True)
class PathResponse:
    """The challenge's data, from the announced address."""

    TYPE: ClassVar[int] = 7
    epoch: int
    data: bytes

    def pack(self) -> bytes:
        """Body without the type byte."""
        return _RESPONSE.pack(self.epoch, self.data)

    @classmethod
    def unpack(cls, body: bytes) -> PathResponse:
        """Raises MalformedError."""
        return cls(*exact(_RESPONSE, body))


@dataclass(frozen=True, slots=True)
class RstQuery:
    """A RST came for this connection: is your socket gone?"""

    TYPE: ClassVar[int] = 8
    request: int
    cid: bytes

    def pack(self) -> bytes:
        """Body without the type byte."""
        return _RST_QUERY.pack(self.request, self.cid)

    @classmethod
    def unpack(cls, body: bytes) -> RstQuery:
        """Raises MalformedError."""
        return cls(*exact(_RST_QUERY, body))


@dataclass(frozen=True, slots=True)
class RstReply:
    """Whether the socket is still there."""

    TYPE: ClassVar[int] = 9
    request: int
    alive: bool

    def pack(self) -> bytes:
        """Body without the type byte."""
        return _REQ_U8.pack(self.request, self.alive)

    @classmethod
    def unpack(cls, body: bytes) -> RstReply:
        """Raises MalformedError."""
        request, alive = exact(_REQ_U8, body)
        if alive > 1:
            raise MalformedError("bad-value")
        return cls(request, bool(alive))


@dataclass(frozen=True, slots=True)
class EndOf:
    """These connections are no longer protected here."""

    TYPE: ClassVar[int] = 10
    request: int
    what: End
    cids: tuple[bytes, ...]

    def pack(self) -> bytes:
        """Body without the type byte."""
        return _END.pack(self.request, self.what, len(self.cids)) + b"".join(self.cids)

    @classmethod
    def unpack(cls, body: bytes) -> EndOf:
        """Raises MalformedError."""
        (request, what, _), rest = counted(_END, body, _CID, MAX_CIDS)
        return cls(request, End(what), _split_cids(rest))


@dataclass(frozen=True, slots=True)
class Done:
    """Acknowledges an END."""

    TYPE: ClassVar[int] = 11
    request: int

    def pack(self) -> bytes:
        """Body without the type byte."""
        return _REQ.pack(self.request)

    @classmethod
    def unpack(cls, body: bytes) -> Done:
        """Raises MalformedError."""
        return cls(*exact(_REQ, body))


@dataclass(frozen=True, slots=True)
class _OfConnections:
    TYPE: ClassVar[int]
    request: int
    cids: tuple[bytes, ...]

    def pack(self) -> bytes:
        """Body without the type byte."""
        return _REQ_N.pack(self.request, len(self.cids)) + b"".join(self.cids)

    @classmethod
    def unpack(cls, body: bytes) -> Self:
        """Raises MalformedError."""
        (request, _), rest = counted(_REQ_N, body, _CID, MAX_CIDS)
        return cls(request, _split_cids(rest))


class Sync(_OfConnections):
    """After a restart: these connections are protected here."""

    TYPE: ClassVar[int] = 12


class SyncReply(_OfConnections):
    """Those of them that are not protected over here."""

    TYPE: ClassVar[int] = 13


@dataclass(frozen=True, slots=True)
class Seen:
    """These tokens have come plainly on a connection of ours; with none: the sender is about to send some."""

    TYPE: ClassVar[int] = 16
    tokens: tuple[bytes, ...]

    def pack(self) -> bytes:
        """Body without the type byte."""
        return bytes((len(self.tokens),)) + b"".join(self.tokens)

    @classmethod
    def unpack(cls, body: bytes) -> Seen:
        """Raises MalformedError."""
        _, rest = counted(_N, body, _CID, MAX_TOKENS)
        return cls(_split_cids(rest))


@dataclass(frozen=True, slots=True)
class _WithNonce:
    TYPE: ClassVar[int]
    nonce: bytes

    def pack(self) -> bytes:
        """Body without the type byte."""
        return self.nonce

    @classmethod
    def unpack(cls, body: bytes) -> Self:
        """Raises MalformedError."""
        return cls(*exact(_CID, body))


class PathProbe(_WithNonce):
    """Does this way carry?"""

    TYPE: ClassVar[int] = 18


class PathProbed(_WithNonce):
    """Answer to PATH_PROBE, back the same way."""

    TYPE: ClassVar[int] = 19


@dataclass(frozen=True, slots=True)
class Bye:
    """The sender's daemon ends now."""

    TYPE: ClassVar[int] = 17

    def pack(self) -> bytes:
        """Body without the type byte."""
        return b""

    @classmethod
    def unpack(cls, body: bytes) -> Bye:
        """Raises MalformedError."""
        exact(_NOTHING, body)
        return cls()


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
    | meeting.Message
)

_CID = struct.Struct("!8s")
_NOTHING = struct.Struct("!")
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


def _split_cids(rest: bytes) -> tuple[bytes, ...]:
    return tuple(cid for (cid,) in _CID.iter_unpack(rest))

"""Requests, replies and events of the Unix socket: one JSON document a line, UTF-8, no line break inside.

The daemon speaks first (`Hello`).  Then each request line is answered by one reply line, in order; `EventsRequest` is
answered by any number of `EventReply` lines and, when it does not follow, one `EventsEnd`; `WatchRequest` by any number
of `WatchReply` lines.  After an `Error` that says
the request was not understood the daemon closes the connection.

``type`` names the message.  Unknown fields and unknown types are refused on both sides.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final, TypeAlias

import msgspec
from msgspec import UNSET, UnsetType

from redirectctl.api.optin import API_VERSION

MAX_REQUEST: Final = 64 * 1024  # bytes of one request line; the longest real one, a protect target, has some hundred
MAX_REPLY: Final = 64 * 1024 * 1024  # bytes of one reply line: some 100,000 connections


# ---------------------------------------------------------------------------------------------------- what is shown


class ConnectionState(StrEnum):
    """Where a connection stands."""

    SHORT = "short"  # opted in, younger than the threshold
    NEGOTIATING = "negotiating"  # handshake or bind under way
    PENDING = "pending"  # waits for a person to approve the peer
    UNSUPPORTED = "unsupported"  # the other host does not answer; not protected
    REFUSED = "refused"  # peer rejected, key changed, or claim refused; not protected; see `reason`
    PROTECTED = "protected"  # would survive a move
    SUSPENDED = "suspended"  # no path now; held
    RELEASED = "released"  # a person ended its protection, here or there; lives on as any other
    CLOSED = "closed"  # ended (kept in listings for a minute)


class PathName(StrEnum):
    """How a connection's packets travel."""

    ORIGINAL = "original"
    REWRITTEN = "rewritten"
    TUNNEL = "tunnel"
    SETTLED = "settled"


class PeerState(StrEnum):
    """What was decided about a peer's key."""

    PENDING = "pending"
    APPROVED = "approved"
    REJECTED = "rejected"
    CHANGED = "changed"  # an address of a known peer presented this other key


class EventName(StrEnum):
    """Every event there is."""

    DAEMON_STARTED = "daemon.started"
    DAEMON_STOPPED = "daemon.stopped"
    ADDRESS_ADDED = "address.added"
    ADDRESS_REMOVED = "address.removed"
    CONNECTION_FOUND = "connection.found"
    CONNECTION_LONG = "connection.long"
    CONNECTION_PROTECTED = "connection.protected"
    CONNECTION_UNSUPPORTED = "connection.unsupported"
    CONNECTION_REFUSED = "connection.refused"
    CONNECTION_RELEASED = "connection.released"
    CONNECTION_SUSPENDED = "connection.suspended"
    CONNECTION_RESUMED = "connection.resumed"
    CONNECTION_CLOSED = "connection.closed"
    PEER_FIRST_CONTACT = "peer.first_contact"
    PEER_APPROVED = "peer.approved"
    PEER_REJECTED = "peer.rejected"
    PEER_KEY_CHANGED = "peer.key_changed"
    MOVE_STARTED = "move.started"
    MOVE_FINISHED = "move.finished"
    MOVE_RECEIVED = "move.received"
    PATH_CHANGED = "path.changed"
    REDIRECT_REFUSED = "redirect.refused"
    PACKET_REFUSED = "packet.refused"
    RST_HELD = "rst.held"
    DNS_UPDATED = "dns.updated"  # our own name leads to our addresses of now
    DNS_FAILED = "dns.failed"
    RENDEZVOUS_REACHED = "rendezvous.reached"  # a host that we have registered with; `detail` says which
    RENDEZVOUS_LOST = "rendezvous.lost"  # it does not answer, or does not have us
    KERNEL_REPAIRED = "kernel.repaired"  # somebody had removed it: put back
    KERNEL_CONTESTED = "kernel.contested"  # it is removed again and again: left alone for a while
    KERNEL_REFUSED = "kernel.refused"  # what suspended connections need
    STORE_FAILED = "store.failed"  # nothing can be stored, `detail` says why; connections go on and move
    STORE_RESTORED = "store.restored"  # all is stored again
    EVENTS_MISSED = "events.missed"  # to one follower that read too slowly: `count` were left out.  Never in the log


class Counters(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, gc=False):
    """What the kernel says of a connection's socket."""

    rtt: float  # seconds, smoothed
    sent: int  # bytes that the other host has acknowledged
    received: int  # bytes
    retransmitted: int  # segments


class Step(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A change of a connection's state."""

    time: float  # epoch seconds
    state: ConnectionState  # from then on


class Connection(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, gc=False):
    """A connection.  `local` and `remote` are the socket tuple and never change.

    Lists of thousands come every second, so the garbage collector is spared (`gc`): there can be no cycles.
    """

    id: str
    state: ConnectionState
    path: PathName
    local: str  # "addr:port" or "[addr]:port", as the other three
    remote: str
    wire_local: str
    wire_remote: str
    age: float  # seconds
    peer: str | None  # fingerprint
    pid: int | None
    command: str | None
    moves: int
    integrity: bool
    suspended_for: float | None  # seconds
    reason: str | None
    counters: Counters | UnsetType = UNSET  # only when asked for, and while there is a socket
    history: list[Step] | UnsetType = UNSET  # the latest 32; only in the answer to ConnectionRequest


class Network(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where a usable address of this host is."""

    address: str
    prefix: int  # bits of the address that name the network
    interface: str


class Status(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The daemon in a few numbers."""

    version: str
    uptime: float  # seconds
    identity: str  # own fingerprint
    addresses: list[str]  # usable ones of this host
    control_port: int
    connections: dict[ConnectionState, int]  # states without a connection may be left out
    peers: int
    pid: int
    long_lived_after: float | UnsetType = UNSET  # seconds after which a connection is taken on
    networks: list[Network] | UnsetType = UNSET  # of `addresses`
    waiting: list[str] | UnsetType = UNSET  # fingerprints of peers that a person has to decide about
    config: str | UnsetType = UNSET  # path of the configuration that was named at the start; unset: the default one
    desktop_notices: bool | UnsetType = UNSET  # whether desktop sessions are to be told what happens


class Peer(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Another host's daemon."""

    fingerprint: str
    name: str | None
    state: PeerState
    addresses: list[str]  # latest first
    first_seen: float  # epoch seconds
    last_contact: float | None  # epoch seconds
    connections: int
    names: list[str] | UnsetType = UNSET  # under which it is looked for in DNS when it does not answer
    observed: str | UnsetType = UNSET  # "addr:port" where it sees this host: another address than ours means NAT
    says: str | UnsetType = UNSET  # what it calls itself; nobody has confirmed that, and it is no name for requests
    contacted: bool | UnsetType = UNSET  # this host has called it, for a connection; False: only it called this host


class Event(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    """Something that happened.  Fields that do not apply are left out of the JSON."""

    time: float  # epoch seconds
    event: EventName
    connection: str | None = None  # id
    peer: str | None = None  # fingerprint
    reason: str | None = None  # a named reason, stable
    state: ConnectionState | None = None  # of the connection, after it
    path: PathName | None = None
    address: str | None = None  # that came or went, or that a peer moved to
    interface: str | None = None
    source: str | None = None  # "addr:port" that a refused datagram or packet came from, or where a moved peer is seen
    local: str | None = None  # socket tuple
    remote: str | None = None
    wire_local: str | None = None  # wire tuple
    wire_remote: str | None = None
    command: str | None = None
    pid: int | None = None
    duration: float | None = None  # seconds; of a move: usable new address to the peer's confirmation
    gap: float | None = None  # seconds; of a move: how long programs saw nothing (daemon/gaps.py); None: not known
    previous: str | None = None  # of a move: the address before it; of a peer's: as it was seen
    connections: int | None = None  # how many took part
    epoch: int | None = None  # of the host that moved
    count: int | None = None  # how many times, where one event stands for several
    detail: str | None = None  # for people


class Watched(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    """A connection that there is something to tell about: whether it is protected has been decided."""

    id: str
    remote: str  # "addr:port"
    state: ConnectionState
    reason: str | None = None  # as of Connection
    peer: str | None = None  # fingerprint of the other host's key
    name: str | None = None  # what people call that host
    lost_for: float | None = None  # seconds without a path until now
    lasted: float | None = None  # seconds that the last time without a path took; it is over


class Question(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A peer that a connection waits for, and that a person has to decide about."""

    fingerprint: str
    picture: str  # of its key, lines of text
    addresses: list[str]  # latest first
    known: list[str]  # fingerprints known at these addresses; with any of them the key has changed
    may_decide: bool  # whether who watches has the right to approve and reject
    says: str | None = None  # what it calls itself


class Meeting(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    """How a handshake with a host at one address ended."""

    address: str
    reason: str | None = None  # why there is no session; None: the key that was named has answered there
    known: str | None = None  # fingerprint of another key, which is approved for this address: so it was not called


class CheckStatus(StrEnum):
    """Outcome of one check of doctor."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"
    SKIP = "skip"


class Check(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One check of doctor."""

    name: str  # stable, e.g. "kernel.nftables"
    status: CheckStatus
    found: str  # what is the case
    hint: str | None = None  # what to do about it


# ---------------------------------------------------------------------------------------------------------- requests


class _Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type"):
    pass


class StatusRequest(_Message, frozen=True, tag="status"):
    """Answered by StatusReply.  Anybody may ask."""


class ConnectionsRequest(_Message, frozen=True, tag="connections", omit_defaults=True):
    """Answered by ConnectionsReply."""

    counters: bool = False


class ConnectionRequest(_Message, frozen=True, tag="connection"):
    """Answered by ConnectionReply, with counters and history; ended connections too."""

    connection: str  # as in ReleaseRequest


class PeersRequest(_Message, frozen=True, tag="peers"):
    """Answered by PeersReply."""


class PeerRequest(_Message, frozen=True, tag="peer"):
    """Answered by PeerReply with the picture of its key."""

    peer: str  # as in ApproveRequest


class IdentityRequest(_Message, frozen=True, tag="identity"):
    """Answered by IdentityReply.  Anybody may ask: StatusReply has the same fingerprint."""


class ProveRequest(_Message, frozen=True, tag="prove"):
    """Answered by ProofsReply: what the two hosts of a pairing show each other (proto/pairing.py)."""

    key: bytes  # 32 bytes, the other host's public key
    nonce_asks: bytes  # 32 bytes, of the host that began
    nonce_answers: bytes  # 32 bytes, of the other
    asks: bool  # whether this host has begun


class MeetRequest(_Message, frozen=True, tag="meet"):
    """Answered by MeetReply: for a minute the host with this key may be met, and it is called at these addresses."""

    key: bytes  # 32 bytes, its public key
    addresses: list[str]  # may be none
    port: int  # its control port


class ApproveRequest(_Message, frozen=True, tag="approve"):
    """Answered by PeerReply."""

    peer: str  # fingerprint, unique prefix of it, name or address; so below
    name: str | None = None  # to call it from now on


class RejectRequest(_Message, frozen=True, tag="reject"):
    """Answered by PeerReply."""

    peer: str


class ForgetRequest(_Message, frozen=True, tag="forget"):
    """Answered by PeerReply: the peer as it was."""

    peer: str


class RenameRequest(_Message, frozen=True, tag="rename"):
    """Answered by PeerReply."""

    peer: str
    name: str | None  # to call it from now on; None: nothing


class ProtectRequest(_Message, frozen=True, tag="protect"):
    """Answered by ConnectionsReply: what is opted in now because of it (a process may have none yet)."""

    target: str  # PID or LOCAL-REMOTE


class ReleaseRequest(_Message, frozen=True, tag="release"):
    """Answered by ConnectionReply."""

    connection: str  # id, unique prefix of it, or LOCAL-REMOTE; so below


class KillRequest(_Message, frozen=True, tag="kill"):
    """Answered by ConnectionReply."""

    connection: str


class AnnounceRequest(_Message, frozen=True, tag="announce"):
    """Answered by AnnounceReply."""


class RetryRequest(_Message, frozen=True, tag="retry", omit_defaults=True):
    """Answered by RetryReply: hosts that did not answer are asked again now."""

    host: str | None = None  # a peer as in ApproveRequest, or any name or address; None: all


class EventsRequest(_Message, frozen=True, tag="events"):
    """Answered by EventReply lines; see the top of this file."""

    follow: bool = False
    since: float | None = None  # epoch seconds; None: everything logged, or with `follow` only what comes


class OptInRequest(_Message, frozen=True, tag="opt-in"):
    """Answered by OptedIn.  Anybody may ask, for the process that asks."""


class WatchRequest(_Message, frozen=True, tag="watch", omit_defaults=True):
    """Answered by a WatchReply at once and at every change, until the client sends something or goes away.

    Anybody may ask, for the command that was opted in together with the process that asks.
    """

    process: int = 0  # also about the connections that this process of the same user has


class DoctorRequest(_Message, frozen=True, tag="doctor"):
    """Answered by DoctorReply."""

    peer: str | None = None  # as in ApproveRequest, or any name or address; None: this host


Request: TypeAlias = (
    StatusRequest
    | ConnectionsRequest
    | ConnectionRequest
    | PeersRequest
    | PeerRequest
    | IdentityRequest
    | ProveRequest
    | MeetRequest
    | ApproveRequest
    | RejectRequest
    | ForgetRequest
    | RenameRequest
    | ProtectRequest
    | ReleaseRequest
    | KillRequest
    | AnnounceRequest
    | RetryRequest
    | EventsRequest
    | OptInRequest
    | WatchRequest
    | DoctorRequest
)


# ----------------------------------------------------------------------------------------------------------- replies


class ErrorCode(StrEnum):
    """Kind of an error; the command line's exit codes follow it."""

    FAILED = "failed"  # understood, but it cannot be done
    USAGE = "usage"  # not understood
    DENIED = "denied"  # the caller lacks the right


class Hello(_Message, frozen=True, tag="hello"):
    """What the daemon says first."""

    version: str  # of the daemon
    api: int = API_VERSION


class StatusReply(_Message, frozen=True, tag="status"):
    """To StatusRequest."""

    status: Status


class ConnectionsReply(_Message, frozen=True, tag="connections"):
    """To ConnectionsRequest and ProtectRequest."""

    connections: list[Connection]


class ConnectionReply(_Message, frozen=True, tag="connection"):
    """To ConnectionRequest, ReleaseRequest and KillRequest."""

    connection: Connection


class PeersReply(_Message, frozen=True, tag="peers"):
    """To PeersRequest."""

    peers: list[Peer]


class PeerReply(_Message, frozen=True, tag="peer"):
    """To PeerRequest, ApproveRequest, RejectRequest, ForgetRequest and RenameRequest."""

    peer: Peer
    picture: str | UnsetType = UNSET  # of its key, lines of text; to PeerRequest


class IdentityReply(_Message, frozen=True, tag="identity"):
    """To IdentityRequest."""

    fingerprint: str
    picture: str  # lines of text
    public: bytes | UnsetType = UNSET  # 32 bytes, the key itself


class ProofsReply(_Message, frozen=True, tag="proofs"):
    """To ProveRequest."""

    asks: bytes  # 32 bytes, what the host that began shows
    answers: bytes  # 32 bytes, what the other shows


class MeetReply(_Message, frozen=True, tag="met"):
    """To MeetRequest."""

    fingerprint: str  # of the key
    meetings: list[Meeting]  # one for each address, in order


class AnnounceReply(_Message, frozen=True, tag="announce"):
    """To AnnounceRequest."""

    peers: int  # told


class RetryReply(_Message, frozen=True, tag="retry"):
    """To RetryRequest."""

    hosts: list[str]  # addresses that are being asked: unsupported connections wait for them


class OptedIn(_Message, frozen=True, tag="opted-in", omit_defaults=True):
    """To OptInRequest: the process and the children it makes from now on are opted in."""

    asks: bool = False  # whether a person is asked about hosts that are met for the first time


class WatchReply(_Message, frozen=True, tag="watch", omit_defaults=True):
    """To WatchRequest, any number of times: all that there is to tell at this moment."""

    connections: list[Watched]
    questions: list[Question]
    identity: str | None = None  # fingerprint of this host's own key, where another host has to approve it
    process: bool = False  # whether connections of the process that was named are opted in


class DoctorReply(_Message, frozen=True, tag="doctor"):
    """To DoctorRequest."""

    checks: list[Check]


class EventReply(_Message, frozen=True, tag="event"):
    """One of the answers to EventsRequest."""

    event: Event


class EventsEnd(_Message, frozen=True, tag="events-end"):
    """Last answer to an EventsRequest that does not follow."""


class Error(_Message, frozen=True, tag="error"):
    """Instead of any reply."""

    code: ErrorCode
    what: str
    why: str
    hint: str  # what to do; may be empty


Reply: TypeAlias = (
    Hello
    | StatusReply
    | ConnectionsReply
    | ConnectionReply
    | PeersReply
    | PeerReply
    | IdentityReply
    | ProofsReply
    | MeetReply
    | AnnounceReply
    | RetryReply
    | OptedIn
    | WatchReply
    | DoctorReply
    | EventReply
    | EventsEnd
    | Error
)


class RequestError(Exception):
    """A request that was not carried out: handlers in the daemon raise it, the client raises it again."""

    def __init__(self, what: str, why: str, hint: str = "", code: ErrorCode = ErrorCode.FAILED) -> None:
        super().__init__("; ".join(part for part in (f"{what}: {why}", hint) if part))
        self.error = Error(code=code, what=what, why=why, hint=hint)


_encoder = msgspec.json.Encoder()
_requests: msgspec.json.Decoder[Request] = msgspec.json.Decoder(Request)
_replies: msgspec.json.Decoder[Reply] = msgspec.json.Decoder(Reply)


def encode(message: Request | Reply) -> bytes:
    """One line, line break included."""
    return _encoder.encode(message) + b"\n"


def decode_request(line: bytes) -> Request:
    """Raises RequestError (usage) that says what is wrong with it."""
    try:
        return _requests.decode(line)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise RequestError("request", str(error), "see the protocol of the Unix socket", ErrorCode.USAGE) from None


def decode_reply(line: bytes) -> Reply:
    """Raises ValueError."""
    try:
        return _replies.decode(line)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise ValueError(str(error)) from None

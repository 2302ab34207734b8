"""What we know of another host, and the sessions that we have with it."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum, IntEnum

from redirectctl.proto import constants
from redirectctl.proto.bucket import Bucket
from redirectctl.proto.cipher import TransportCipher
from redirectctl.proto.replay import ReplayWindow
from redirectctl.wire.addr import IPAddress, SockAddr
from redirectctl.wire.message import Trust


class PeerState(Enum):
    """As in listings."""

    PENDING = "pending"  # met, waits for a person
    APPROVED = "approved"
    REJECTED = "rejected"
    CHANGED = "changed"  # answered at an address where we know another key


class Accepted(IntEnum):
    """Whether a peer that has called us is approved only because everybody is.  The numbers are stored."""

    NO = 0
    UNUSED = 1  # and no connection was ever protected with it, nor was it a guest of the rendezvous here
    USED = 2


def _budget() -> Bucket:
    """Bytes that may go to addresses at which a peer has never answered: all of them together, so nobody is flooded.

    As many as have come from such an address may go back (RFC 9000, section 8).
    """
    return Bucket(constants.UNPROVEN_RATE, constants.UNPROVEN_BURST, constants.UNPROVEN_BURST, float("-inf"))


@dataclass(slots=True)
class Session:
    """Keys agreed with a peer, for at most REJECT_AFTER_TIME."""

    key: bytes  # the peer's static public key
    version: int
    initiator: bool
    local_index: int
    remote_index: int
    sealing: TransportCipher
    opening: TransportCipher
    created: float
    usable: bool  # the responder may send only when the initiator has shown that it holds the keys
    path: tuple[IPAddress, SockAddr]  # of ours that has, and of the peer's that was sent, what proves it has the keys
    heard: bool = False  # a message has been received
    confirms: int = 0  # how often the initiator has shown that it holds the keys
    counter: int = 0  # of the next message that we send
    window: ReplayWindow = field(default_factory=ReplayWindow)
    final: bytes | None = None  # XX initiator: third handshake message, repeated until the peer is heard

    def expired(self, now: float) -> bool:
        """No message may be sent or accepted any more."""
        return now - self.created >= constants.REJECT_AFTER_TIME or self.counter >= constants.REJECT_AFTER_MESSAGES

    def old(self, now: float) -> bool:
        """Time for a new handshake.  The responder waits longer, so that usually one side only starts one."""
        limit = constants.REKEY_AFTER_TIME if self.initiator else constants.REKEY_AFTER_TIME_RESPONDER
        return now - self.created >= limit or self.counter >= constants.REKEY_AFTER_MESSAGES


@dataclass(slots=True)
class Peer:
    """A host that we have met, known by its static public key."""

    key: bytes
    state: PeerState
    secret: bytes | None = None  # pairwise, from the first contact; the PSK of later handshakes
    shared: bytes | None = None  # of both long-term keys (StaticKey.shared), once it was needed
    secret_rank: tuple[float, bytes] = (float("-inf"), b"")  # when and by which handshake it was made
    identity: set[IPAddress] = field(default_factory=set)  # addresses that we contacted and where it answered
    greatest_counter: int = -1  # of its IKpsk2 initiations: a replayed one is not greater
    remote: SockAddr | None = None  # where its control port was last proven to be; changed by Endpoint.locate() only
    proven: dict[SockAddr, None] = field(default_factory=dict)  # where else it was, newest last
    unproven: Bucket = field(default_factory=_budget)  # of what is sent to where it was not
    local: IPAddress | None = None  # the address that we used for that
    port: int = 0  # number of our port that it is sent to from; 0: the control port
    trial: int = 0  # of another one, which is tried besides while it does not answer; 0: none
    last_contact: float | None = None
    last_sent: float | None = None
    trust_there: Trust | None = None  # what it last said of us
    reflexive: SockAddr | None = None  # where it said it sees us
    addresses: tuple[IPAddress, ...] = ()  # what it last said it has: where it may be tried
    told: float | None = None  # when it last said so
    says: str | None = None  # what it calls itself: nobody has confirmed that
    sessions: list[Session] = field(default_factory=list)  # newest first
    keep: bool = False  # renew sessions before they end
    accepted: Accepted = Accepted.NO
    listed: bool = False  # approved because the policy lists its key, and only as long as it does

    @property
    def chosen(self) -> bool:
        """A person has approved it, or this host has called it."""
        return not self.accepted or bool(self.identity)

    @property
    def unused(self) -> bool:
        """It is here only because everybody is accepted, and has never been of use."""
        return self.accepted is Accepted.UNUSED and not self.identity

    @property
    def seen_at(self) -> IPAddress | None:
        """Where it is, or was met."""
        if self.remote is not None:
            return self.remote.host
        return self.sessions[0].path[1].host if self.sessions else None

    @property
    def ports(self) -> tuple[int, ...]:
        """Numbers of our ports of which any may get through to it."""
        return tuple(dict.fromkeys((self.trial, self.port, 0))) if self.trial else (self.port,)

    def receives_at(self, to: SockAddr) -> bool:
        """It has shown, some time, that it receives what is sent there."""
        return to == self.remote or to in self.proven or to.host in self.identity

    def was_at(self, host: IPAddress) -> bool:
        """It has answered there, whoever may have said that it does."""
        return host in self.identity or any(place.host == host for place in self.proven)

    def session(self, now: float) -> Session | None:
        """The newest one that may be used for sending."""
        return next((s for s in self.sessions if s.usable and not s.expired(now)), None)

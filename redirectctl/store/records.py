"""What the store keeps, as values."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, TypeAlias

from redirectctl.wire.addr import FourTuple, IPAddress, SockAddr
from redirectctl.wire.tunnel import Offer

Unsigned64: TypeAlias = Annotated[int, "64 bits without sign, where SQLite's integers have one"]
CommandLine: TypeAlias = Annotated[str, "may hold bytes that are not UTF-8, which SQLite refuses"]


class StoreError(Exception):
    """The state directory cannot be used, or SQLite failed: ``what: why; what to do``."""

    def __init__(self, what: str, why: str, hint: str) -> None:
        super().__init__(f"{what}: {why}; {hint}")
        self.what = what
        self.why = why
        self.hint = hint


class RecordError(StoreError):
    """The database refuses a record for what is in it: trying again is no use."""


class PeerState(StrEnum):
    """What was decided about a peer's key."""

    PENDING = "pending"
    APPROVED = "approved"
    REJECTED = "rejected"
    CHANGED = "changed"  # an address of a known peer presented this other key


@dataclass(frozen=True, slots=True)
class PeerAddress:
    """An address at which a peer was met."""

    address: IPAddress
    first_seen: float  # epoch seconds, as all times here that are not said to be others
    last_seen: float
    identity: bool = False  # we contacted the peer at it: another key there is a changed key


@dataclass(frozen=True, slots=True)
class PeerRecord:
    """One line of known peers."""

    public: bytes  # static key, 32 bytes
    fingerprint: str
    state: PeerState
    first_seen: float
    name: str | None = None
    secret: bytes | None = None  # pairwise, 32 bytes, from first contact
    addresses: tuple[PeerAddress, ...] = ()  # latest first
    last_contact: float | None = None
    handshake_timestamp: int = 0  # greatest seen, 64 bits without sign; only grows
    accepted: int = 0  # approved only because everybody is: 1, and never of use; 2, and of use before; 0: not so
    listed: bool = False  # approved because a file of known peers lists it
    met: float = 0.0  # seconds that the daemon had run, all its lives together, when it was met last
    told: tuple[IPAddress, ...] = ()  # addresses that it said it has
    says: str | None = None  # what it calls itself


@dataclass(frozen=True, slots=True)
class ConnectionRecord:
    """A protected connection, as needed to take it up after a restart.  columns.py derives the table from it."""

    cid: bytes  # 8 bytes
    peer: bytes  # public key of a stored peer
    socket: FourTuple
    wire: FourTuple
    initiator: bool
    local_epoch: Unsigned64
    remote_epoch: Unsigned64
    opened_at: float  # since the boot, plus what Store.booted() says, as lost_at
    moves: int = 0
    state: str = "protected"
    command: CommandLine | None = None
    pid: int | None = None
    there: FourTuple | None = None  # the other host's socket tuple; None: not known, taken for the same
    sending: Offer | None = None  # how the peer wants to see tunnel datagrams
    receiving: Offer | None = None  # how we want to
    integrity: bool = False
    tunnel: bool = False
    outer_local: IPAddress | None = None
    outer_remote: SockAddr | None = None
    born: int = 0  # start of this daemon (own.epoch) from which the counters of its datagrams count
    lost_at: float | None = None  # suspended: there has been no path since
    reason: str | None = None  # why it is suspended
    held: bool = False  # the kernel lets nothing of it leave the host
    window: int | None = None  # of the socket, before it was suspended: the peer's window in bytes
    user_timeout: int | None = None  # and TCP_USER_TIMEOUT in milliseconds
    device: str = ""  # the interface or VRF that it does not leave
    bound: bool = False  # its program has bound the socket to that
    proven: bool = False  # its wire tuple leads to the peer's socket

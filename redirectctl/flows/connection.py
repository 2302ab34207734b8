"""A connection that redirectctl knows of, and the table of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import Enum
from ipaddress import IPv4Address
from typing import NamedTuple

from redirectctl.flows.state import TRANSITIONS, State
from redirectctl.wire.addr import FourTuple, IPAddress, SockAddr
from redirectctl.wire.tunnel import Offer


class Path(Enum):
    """How a connection's packets travel from here.  Names as in listings."""

    ORIGINAL = "original"
    REWRITTEN = "rewritten"
    TUNNEL = "tunnel"


class Flow(NamedTuple):
    """What the kernel must know of a protected connection.  Equal tuples: not rewritten, only guarded.

    With ``tunnel`` what the socket sends goes into the tunnel; packets with the wire tuple are still received, unless
    it has ``integrity`` or is ``closed``: then they may be somebody else's.  With ``suspended`` nothing that it sends
    leaves the host.
    """

    socket: FourTuple
    wire: FourTuple
    tunnel: bool = False
    integrity: bool = False
    suspended: bool = False
    closed: bool = False

    @property
    def incoming(self) -> FourTuple:
        """The tuple of plain packets that are received, besides those with the socket's own."""
        return self.socket if self.closed else self.wire


class Route(NamedTuple):
    """Connections with the same peer and the same two addresses: networks on the way treat them alike."""

    peer: bytes
    local: IPAddress
    remote: IPAddress


class Pair(NamedTuple):
    """A way between the two hosts' control ports."""

    local: IPAddress
    remote: SockAddr


class Before(NamedTuple):
    """What a suspended connection's socket had before, and gets back."""

    window: int  # bytes, as the peer last said
    user_timeout: int  # TCP_USER_TIMEOUT in milliseconds; 0: none


_UNKNOWN = FourTuple(SockAddr(IPv4Address(0), 0), SockAddr(IPv4Address(0), 0))


# Looked at for each connection: the hash of an Enum's member, and its name in the class, are calls.
_PROTECTED, _SUSPENDED = State.PROTECTED, State.SUSPENDED


@dataclass(slots=True)
class Connection:
    """State of one connection on this host.  Times are on the caller's clock."""

    cid: bytes  # 8 random bytes, the same on both hosts
    socket: FourTuple
    wire: FourTuple
    since: float  # when it was found
    state: State = State.SHORT
    reason: str | None = None  # why it is not protected, or why it ended
    peer_tuple: FourTuple = (
        _UNKNOWN  # the other host's socket tuple, as it sees it; given none: there is no NAT between
    )
    sending: Offer | None = None  # how the peer wants to see tunnel datagrams; None: it has not said
    receiving: Offer | None = None  # how we want to see them
    agreed_in: int = 0  # generation of this host's daemon in which `sending` was agreed
    integrity: bool = False  # always in the tunnel, each datagram with a tag
    strict: bool = False  # nothing plain is accepted any more: the peer has had time to go into the tunnel too
    tunnel: bool = False  # what the socket sends goes into the tunnel
    proven: bool = False  # a token has come, or has arrived, plainly on this wire tuple: it leads to the peer's socket
    outer_local: IPAddress | None = None  # our end of the tunnel
    outer_remote: SockAddr | None = None  # the peer's
    tunnel_waits: bool = False  # what goes into the tunnel waits there, until the peer knows where we are
    peer: bytes | None = None  # static public key
    initiator: bool = True  # we asked the peer, not the peer us
    local_epoch: int = 0  # our epoch when the connection was taken on
    remote_epoch: int = 0  # the peer's newest epoch that has been applied; older ACMs change nothing
    announced_epoch: int = 0  # the newest that it has announced with proof of who it is
    unproven: int = 0  # claims of ours that could not be proven
    moves: int = 0
    lost_since: float | None = None  # no path since
    blocked: bool = False  # suspended in the kernel too: what the socket sends stays here
    saved: Before | None = None  # what is to be given back to its socket; None: nothing has been changed
    peer_closed: bool = False  # the peer's socket is gone
    pid: int | None = None
    uid: int | None = None  # the user of this host whose socket it is; None: not known
    command: str | None = None
    guarded: bool = False  # the kernel holds a Flow for it, or has been asked to
    installed: Flow | None = None  # what the kernel has said it holds
    device: str = ""  # the interface or VRF that it does not leave (devices.py); empty: nothing keeps it
    bound: bool = False  # its program has bound the socket to that interface
    confirmed: IPAddress | None = None  # where the peer has last said it sends to; None: not known, after a restart
    history: list[tuple[float, State]] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.peer_tuple is _UNKNOWN:
            self.peer_tuple = self.socket.mirrored

    @property
    def flow(self) -> Flow:
        """The connection as the kernel has to treat it."""
        closed = self.tunnel and not self.proven and self.wire != self.socket
        return Flow(self.socket, self.wire, self.tunnel, self.strict and self.tunnel, self.blocked, closed)

    @property
    def natted(self) -> bool:
        """Whether the two hosts know different addresses or ports of it: a NAT has been between them from the start."""
        return self.peer_tuple != self.socket.mirrored

    @property
    def moved(self) -> bool:
        """Whether its packets travel in another way than at the start: rewritten, or in the tunnel."""
        return self.wire != self.socket or self.tunnel

    @property
    def may_come_tunnelled(self) -> bool:
        """Whether the peer may send by the tunnel: one of the two hosts has announced itself."""
        return self.moved or self.outer_remote is not None or self.announced_epoch > self.remote_epoch

    @property
    def path(self) -> Path:
        """How the socket's packets travel from here."""
        if self.tunnel:
            return Path.TUNNEL
        return Path.REWRITTEN if self.wire != self.socket else Path.ORIGINAL

    def on_wire(self, control_port: int) -> FourTuple:
        """The addresses and ports that a packet capture would show; in the tunnel, those of its datagrams."""
        if self.tunnel and self.outer_local is not None and self.outer_remote is not None:
            return FourTuple(SockAddr(self.outer_local, control_port), self.outer_remote)
        return self.wire

    @property
    def local_now(self) -> IPAddress:
        """Our address from which its packets go now."""
        return self.outer_local if self.tunnel and self.outer_local is not None else self.wire.local.host

    @property
    def remote_now(self) -> IPAddress:
        """The peer's address to which its packets go now."""
        return self.outer_remote.host if self.tunnel and self.outer_remote is not None else self.wire.remote.host

    @property
    def movable(self) -> bool:
        """Whether it is protected, with a path or suspended."""
        return self.state is _PROTECTED or self.state is _SUSPENDED

    def rewired(self, local: SockAddr | None = None, remote: SockAddr | None = None) -> Flow:
        """Its flow, with one end of the wire tuple at another address."""
        wire = FourTuple(local or self.wire.local, remote or self.wire.remote)
        return self.flow._replace(wire=wire)


class InvalidTransitionError(RuntimeError):
    """The table of states does not have this change of state: a bug in the engine."""


def change(connection: Connection, state: State, now: float, reason: str | None = None) -> None:
    """Change a connection's state.  Nothing else does.  Raises InvalidTransitionError."""
    if state not in TRANSITIONS[connection.state]:
        raise InvalidTransitionError(f"{connection.cid.hex()}: {connection.state.value} -> {state.value}")
    connection.state = state
    connection.reason = reason
    connection.history = [*connection.history[-31:], (now, state)]


def by_peer(connections: Iterable[Connection]) -> Counter[bytes]:
    """How many of these there are with each peer."""
    return Counter(c.peer for c in connections if c.peer is not None)


class Table:
    """Connections by id, by socket tuple and by peer."""

    def __init__(self) -> None:
        self._by_cid: dict[bytes, Connection] = {}
        self._by_socket: dict[FourTuple, Connection] = {}
        self._by_peer: dict[bytes, dict[bytes, Connection]] = {}
        self._ended: dict[FourTuple, Connection] = {}
        self._by_there: dict[FourTuple, list[Connection]] = {}
        self._moved: dict[FourTuple, Connection] | None = None  # by wire tuple; None: to be looked up anew
        self.looked = 0  # how many connections were looked at one by one, since the beginning

    def __len__(self) -> int:
        return len(self._by_cid)

    def __iter__(self) -> Iterator[Connection]:
        return iter(self._by_cid.values())

    def get(self, cid: bytes) -> Connection | None:
        """The connection with this id, ended ones included."""
        return self._by_cid.get(cid)

    def at(self, socket: FourTuple) -> Connection | None:
        """The connection with this socket tuple; ended ones are not found."""
        return self._by_socket.get(socket)

    def ended(self, socket: FourTuple) -> Connection | None:
        """The latest connection that has had this socket tuple, ended, and is still listed."""
        return self._ended.get(socket)

    def add(self, connection: Connection) -> None:
        """Add a connection."""
        self._by_cid[connection.cid] = connection
        self._by_socket[connection.socket] = connection
        self.meet(connection, connection.peer_tuple)
        self._moved = None
        if connection.peer is not None:
            self._by_peer.setdefault(connection.peer, {})[connection.cid] = connection

    def rename(self, connection: Connection, cid: bytes) -> None:
        """Give a connection the other id, when both hosts have claimed it and the other id wins."""
        self._leave_peer(connection)
        del self._by_cid[connection.cid]
        connection.cid = cid
        self._by_cid[cid] = connection
        if connection.peer is not None:
            self._by_peer.setdefault(connection.peer, {})[cid] = connection

    def assign(self, connection: Connection, peer: bytes) -> None:
        """Set which peer has the other end.  Nothing else sets that."""
        if connection.peer != peer:
            self._leave_peer(connection)
            connection.peer = peer
        self._by_peer.setdefault(peer, {})[connection.cid] = connection

    def meet(self, connection: Connection, there: FourTuple) -> None:
        """Set the socket tuple of the other end.  Nothing else sets that."""
        self._part(connection)
        connection.peer_tuple = there
        self._by_there.setdefault(there, []).append(connection)

    def opposite(self, peer: bytes, there: FourTuple) -> list[Connection]:
        """The connections with this peer whose other end has this socket tuple."""
        return [c for c in self._by_there.get(there, ()) if c.peer == peer]

    def rewired(self) -> None:
        """To be called when wire tuples have changed: the index by wire tuple is made again."""
        self._moved = None

    def on_wire(self, wire: FourTuple) -> Connection | None:
        """The protected connection with this wire tuple."""
        found = self._by_socket.get(wire)
        if found is None or found.wire != wire or not found.movable:
            if self._moved is None:
                self._moved = {c.wire: c for c in self._by_cid.values() if c.movable and c.wire != c.socket}
            found = self._moved.get(wire)
        return found if found is not None and found.movable and found.wire == wire else None

    def end(self, connection: Connection) -> None:
        """The connection's socket is gone: a new connection may have the same tuple."""
        if self._by_socket.get(connection.socket) is connection:
            del self._by_socket[connection.socket]
            self._ended[connection.socket] = connection

    def bury(self, connection: Connection) -> None:
        """Remove a connection from the listings."""
        self.end(connection)
        self._leave_peer(connection)
        self._part(connection)
        self._by_cid.pop(connection.cid, None)
        if self._ended.get(connection.socket) is connection:
            del self._ended[connection.socket]

    def of(self, peer: bytes) -> list[Connection]:
        """All connections with this peer, in any state."""
        found = list(self._by_peer.get(peer, {}).values())
        self.looked += len(found)
        return found

    def count(self, peer: bytes) -> int:
        """How many connections there are with this peer, in any state."""
        return len(self._by_peer.get(peer, ()))

    def any_movable(self, peer: bytes) -> bool:
        """Whether there are protected connections with this peer."""
        return any(c.movable for c in self._by_peer.get(peer, {}).values())

    def movable(self, peer: bytes | None = None) -> list[Connection]:
        """Protected connections, with all peers or with one."""
        every = self._by_cid.values() if peer is None else self._by_peer.get(peer, {}).values()
        self.looked += len(every)
        return [c for c in every if c.movable]

    def select(self, cids: Iterable[bytes]) -> list[Connection]:
        """The connections with these ids, as far as they are there."""
        return [c for cid in cids if (c := self._by_cid.get(cid)) is not None]

    def sockets(self, sockets: Iterable[FourTuple]) -> list[Connection]:
        """The connections with these socket tuples, as far as they are there or still listed."""
        found = (self._by_socket.get(socket) or self._ended.get(socket) for socket in sockets)
        return [c for c in found if c is not None]

    def _part(self, connection: Connection) -> None:
        if left := [c for c in self._by_there.pop(connection.peer_tuple, ()) if c is not connection]:
            self._by_there[connection.peer_tuple] = left

    def _leave_peer(self, connection: Connection) -> None:
        if connection.peer is not None and (of_peer := self._by_peer.get(connection.peer)) is not None:
            of_peer.pop(connection.cid, None)
            if not of_peer:
                del self._by_peer[connection.peer]

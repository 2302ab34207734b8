"""What all parts of the engine share: this host as it is now, its peers and connections, and what goes out.

Parts write commands here, in the order in which they are to be carried out.  A part calls only parts below it; what
concerns parts above it is told as a fact.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from redirectctl.flows import commands
from redirectctl.flows.commands import Command, Notice
from redirectctl.flows.connection import Connection, Table, change
from redirectctl.flows.facts import Fact
from redirectctl.flows.network import Network
from redirectctl.flows.policy import Policy
from redirectctl.flows.state import State
from redirectctl.flows.timer_kinds import Timer
from redirectctl.proto import events
from redirectctl.proto.endpoint import Endpoint
from redirectctl.proto.fingerprint import fingerprint
from redirectctl.proto.noise import Rng, StaticKey
from redirectctl.proto.peer import Accepted, Peer, PeerState
from redirectctl.proto.timers import Timers
from redirectctl.wire import message as messages
from redirectctl.wire.addr import IPAddress, SockAddr


class Listening:
    """The reasons for which tokens may arrive in TCP segments.  The shell looks at segments while there is one."""

    def __init__(self, emit: Callable[[Command], None]) -> None:
        self._emit = emit
        self._reasons: set[object] = set()

    def add(self, reason: object) -> None:
        """Add a reason; the first one starts the listening."""
        if not self._reasons:
            self._emit(commands.Listen(on=True))
        self._reasons.add(reason)

    def discard(self, reason: object) -> None:
        """Remove a reason; with the last one the listening ends."""
        if reason in self._reasons:
            self._reasons.discard(reason)
            if not self._reasons:
                self._emit(commands.Listen(on=False))


class Host:
    """What all parts of the engine share."""

    def __init__(
        self,
        static: StaticKey,
        rng: Rng,
        generation: int,
        policy: Policy,
        peers: Iterable[Peer],
        report: Callable[[float, Fact], None],
    ) -> None:
        """``generation``: see Engine.  ``report``: who handles facts."""
        self.policy = policy
        self.rng = rng
        self.epoch = generation << 32
        self.generation = generation
        self.table = Table()
        self.network = Network()
        self.timers: Timers[Timer] = Timers()
        self.report = report
        self.expected: set[bytes] = set()  # keys that a person has named, whose hosts may be met whatever the policy
        self.unmet: frozenset[SockAddr] = frozenset()  # rendezvous whose key is not known: no peer is sought there
        self._out: list[Command] = []
        self._pending: list[events.Event] = []  # of the endpoint's, until take_events()
        self.endpoint = Endpoint(static, rng, self._admit, {p.key: p for p in peers}, counter=generation << 32)
        self.listen = Listening(self.emit)

    @property
    def peers(self) -> dict[bytes, Peer]:
        """All known peers, by static public key."""
        return self.endpoint.peers

    def by_way_of(self, key: bytes | None, to: SockAddr | None) -> bool:
        """Whether ``to`` is a rendezvous that forwards to this peer, and not an address of the peer itself."""
        return to is not None and self.endpoint.relays.get(to, key) != key

    def relayed(self, connection: Connection) -> bool:
        """Whether a rendezvous relays what the connection's socket sends."""
        to = connection.outer_remote if connection.tunnel else None
        return to is not None and self.by_way_of(connection.peer, to)

    def next_epoch(self) -> int:
        """A new epoch: greater than all that this host has used."""
        self.epoch += 1
        return self.epoch

    # -- what goes out ------------------------------------------------------------------------------------------------

    def drain(self) -> list[Command]:
        """Commands since the last drain, in order."""
        out, self._out = self._out, []
        return out

    def emit(self, command: Command) -> None:
        """Queue for drain(), behind what the endpoint has queued."""
        self._out.append(command)

    def notice(
        self,
        name: str,
        connection: Connection | None = None,
        *,
        peer: bytes | None = None,
        reason: str | None = None,
        address: IPAddress | None = None,
        cids: tuple[bytes, ...] = (),
        **details: Any,
    ) -> None:
        """Queue an event for the log."""
        if connection is not None:
            peer = peer or connection.peer
            details.setdefault("local", str(connection.socket.local))
            details.setdefault("remote", str(connection.socket.remote))
            details.setdefault("state", connection.state.value)
        self.emit(Notice(name, connection.cid if connection else None, peer, reason, address, details, cids))

    def send(
        self,
        now: float,
        key: bytes,
        message: messages.Message,
        to: SockAddr | None = None,
        source: IPAddress | None = None,
    ) -> bool:
        """Send a message to a peer in its session.  False if there is none."""
        peer = self.peers.get(key)
        if peer is None:
            return False
        sent = self.endpoint.send(now, peer, message, to, source)
        self._transmit()
        return sent

    def keep_alive(self, now: float, peer: Peer) -> None:
        """Send a keepalive to a peer."""
        self.endpoint.keep_alive(now, peer)
        self._transmit()

    def punch(self, now: float, peer: Peer, to: SockAddr) -> None:
        """Send a keepalive to an address where a peer may be, so that NATs let its answers through (RFC 5128)."""
        self.endpoint.punch(now, peer, to)
        self._transmit()

    def contact(
        self,
        now: float,
        to: SockAddr,
        source: IPAddress | None = None,
        key: bytes | None = None,
        *,
        again: bool = False,
    ) -> None:
        """Start a handshake.  ``again``: if it is under way, send its first message once more, now."""
        if key is not None and to in self.unmet:
            return
        self.endpoint.contact(now, to, source, key, again=again)
        self._transmit()

    def take_events(self) -> list[events.Event]:
        """The endpoint's events since the last call."""
        taken, self._pending = [*self._pending, *self.endpoint.drain()], []
        return taken

    def _transmit(self) -> None:
        """Queue the endpoint's datagrams among the commands; keep its other events for take_events()."""
        for event in self.endpoint.drain():
            if isinstance(event, events.Transmit):
                self.emit(event)
            elif isinstance(event, events.PeerChanged):
                self.save_peer(event.key)
            else:
                self._pending.append(event)

    def save_peer(self, key: bytes) -> None:
        """Store a peer's record."""
        peer = self.peers.get(key)
        if peer is not None:
            self.emit(commands.SavePeer(peer))

    # -- states of connections and peers ------------------------------------------------------------------------------

    def finish(self, now: float, connection: Connection, reason: str | None) -> None:
        """Set a connection that has ended to CLOSED, and log it."""
        if connection.state is not State.CLOSED:
            change(connection, State.CLOSED, now, reason)
            self.notice("connection.closed", connection, reason=reason)

    def refuse(self, now: float, connection: Connection, reason: str) -> None:
        """Set a connection that is not to be protected to REFUSED, and log it."""
        if connection.state is not State.CLOSED:
            change(connection, State.REFUSED, now, reason)
            self.notice("connection.refused", connection, reason=reason)

    def release(self, now: float, connection: Connection, reason: str) -> None:
        """Set a connection whose protection a person ended to RELEASED, and log it."""
        if connection.state not in (State.RELEASED, State.CLOSED):
            change(connection, State.RELEASED, now, reason)
            self.notice("connection.released", connection, reason=reason)

    def used(self, key: bytes | None) -> None:
        """Note that a peer is of use: where room is short, peers without use go before it."""
        peer = self.peers.get(key) if key is not None else None
        if peer is not None and peer.accepted is Accepted.UNUSED:
            peer.accepted = Accepted.USED
            self.emit(commands.SavePeer(peer))

    def _admit(self, key: bytes, at: SockAddr, initiator: bool) -> PeerState | None:
        """The state with which a new peer begins, as the policy says; None: it is refused."""
        if fingerprint(key) in self.policy.listed:
            return PeerState.APPROVED
        match self.policy.first_contact:
            case "accept-new":
                # As with ssh: a new host is accepted, not another key where one is known.
                known = any(at.host in p.identity for p in self.peers.values())
                return PeerState.PENDING if known else PeerState.APPROVED
            case "refuse" if key not in self.expected:
                return None
        return PeerState.PENDING

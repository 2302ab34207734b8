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
from redirectctl.proto.noise import Rng, StaticKey
from redirectctl.proto.peer import Accepted, Peer, PeerState
from redirectctl.proto.timers import Timers
from redirectctl.wire import message as messages
from redirectctl.wire.addr import IPAddress, SockAddr


class Listening:
    """Why tokens in TCP segments may come: the shell looks at segments while there is a reason."""

    def __init__(self, emit: Callable[[Command], None]) -> None:
        self._emit = emit
        self._reasons: set[object] = set()

    def add(self, reason: object) -> None:
        """One more reason."""
        if not self._reasons:
            self._emit(commands.Listen(on=True))
        self._reasons.add(reason)

    def discard(self, reason: object) -> None:
        """One less."""
        if reason in self._reasons:
            self._reasons.discard(reason)
            if not self._reasons:
                self._emit(commands.Listen(on=False))


class Host:
    """This host, for its parts."""

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
        self.unmet: frozenset[SockAddr] = frozenset()  # rendezvous whose key is not known: no peer is sought there
        self._out: list[Command] = []
        self._pending: list[events.Event] = []  # of the endpoint's, until take_events()
        self.endpoint = Endpoint(static, rng, self._admit, {p.key: p for p in peers}, counter=generation << 32)
        self.listen = Listening(self.emit)

    @property
    def peers(self) -> dict[bytes, Peer]:
        """By static public key."""
        return self.endpoint.peers

    def by_way_of(self, key: bytes | None, to: SockAddr | None) -> bool:
        """Whether ``to`` is a rendezvous that stands for this peer, not where the peer itself is."""
        return to is not None and self.endpoint.relays.get(to, key) != key

    def relayed(self, connection: Connection) -> bool:
        """What the connection's socket sends goes by way of a rendezvous."""
        to = connection.outer_remote if connection.tunnel else None
        return to is not None and self.by_way_of(connection.peer, to)

    def next_epoch(self) -> int:
        """A number greater than all that this host has used."""
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
        **details: Any,
    ) -> None:
        """Queue an event for the log."""
        if connection is not None:
            peer = peer or connection.peer
            details.setdefault("local", str(connection.socket.local))
            details.setdefault("remote", str(connection.socket.remote))
            details.setdefault("state", connection.state.value)
        self.emit(Notice(name, connection.cid if connection else None, peer, reason, address, details))

    def send(
        self,
        now: float,
        key: bytes,
        message: messages.Message,
        to: SockAddr | None = None,
        source: IPAddress | None = None,
    ) -> bool:
        """To a peer, if there is a session."""
        peer = self.peers.get(key)
        if peer is None:
            return False
        sent = self.endpoint.send(now, peer, message, to, source)
        self._transmit()
        return sent

    def keep_alive(self, now: float, peer: Peer) -> None:
        """A sign of life."""
        self.endpoint.keep_alive(now, peer)
        self._transmit()

    def punch(self, now: float, peer: Peer, to: SockAddr) -> None:
        """A sign of life to where it may be: NATs on the way let its answers through (RFC 5128)."""
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
        """What the endpoint has reported since."""
        taken, self._pending = [*self._pending, *self.endpoint.drain()], []
        return taken

    def _transmit(self) -> None:
        """Move what the endpoint wants sent into our order; keep its other events for take_events()."""
        for event in self.endpoint.drain():
            if isinstance(event, events.Transmit):
                self.emit(event)
            elif isinstance(event, events.PeerChanged):
                self.save_peer(event.key)
            else:
                self._pending.append(event)

    def save_peer(self, key: bytes) -> None:
        """Store what is known of it."""
        peer = self.peers.get(key)
        if peer is not None:
            self.emit(commands.SavePeer(peer))

    # -- states of connections and peers ------------------------------------------------------------------------------

    def finish(self, now: float, connection: Connection, reason: str | None) -> None:
        """A connection has ended."""
        if connection.state is not State.CLOSED:
            change(connection, State.CLOSED, now, reason)
            self.notice("connection.closed", connection, reason=reason)

    def refuse(self, now: float, connection: Connection, reason: str) -> None:
        """It is not to be protected."""
        if connection.state is not State.CLOSED:
            change(connection, State.REFUSED, now, reason)
            self.notice("connection.refused", connection, reason=reason)

    def used(self, key: bytes | None) -> None:
        """A peer is of use: others that were accepted because everybody is go before it."""
        peer = self.peers.get(key) if key is not None else None
        if peer is not None and peer.accepted is Accepted.UNUSED:
            peer.accepted = Accepted.USED
            self.emit(commands.SavePeer(peer))

    def _admit(self, key: bytes, at: SockAddr, initiator: bool) -> PeerState | None:
        """What a host is that is met for the first time; None: nothing."""
        match self.policy.first_contact:
            case "accept-new":
                # As with ssh: a new host is accepted, not another key where one is known.
                known = any(at.host in p.identity for p in self.peers.values())
                return PeerState.PENDING if known else PeerState.APPROVED
            case "refuse":
                return None
        return PeerState.PENDING

"""One host: what happens to its connections.  No I/O, no clock.

The shell tells the engine what happened (a datagram, a timer, a socket found or gone, addresses changed, a person's
decision), and after each call carries out drain(): commands in order.  The work is in

    protection.py   taking connections on: threshold, contact, trust, ending
    binding.py      claims of ours, and how both ends prove that a connection is theirs
    claims.py       what peers ask us to protect
    mobility.py     our address changes
    better.py       which of our addresses is best
    redirects.py    those that peers announce
    devices.py      which interfaces a connection may use
    choosing.py     the tunnel, or rewritten addresses
    places.py       where else a peer may be: DNS, and what a rendezvous says
    meeting.py      at a rendezvous with peers that cannot be reached otherwise
    rendezvous.py   being one, for others
    resets.py       RSTs that may not be the peer's
    holding.py      connections without a path
    asking.py       of these, what may get through plainly all the same
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import islice, zip_longest
from typing import Any, NamedTuple

from redirectctl.flows import commands, constants
from redirectctl.flows.asking import Asking
from redirectctl.flows.better import Better
from redirectctl.flows.binding import Binding
from redirectctl.flows.choosing import Choosing
from redirectctl.flows.claims import Claims
from redirectctl.flows.commands import Carried, Command, Notice
from redirectctl.flows.connection import Before, Connection, Table, change
from redirectctl.flows.devices import Interface
from redirectctl.flows.holding import Holding
from redirectctl.flows.meeting import Meeting
from redirectctl.flows.mobility import Mobility
from redirectctl.flows.offers import Offers
from redirectctl.flows.places import Places
from redirectctl.flows.proofs import Numbers
from redirectctl.flows.protection import Protection
from redirectctl.flows.redirects import Redirects
from redirectctl.flows.rendezvous import Rendezvous
from redirectctl.flows.requests import Requests
from redirectctl.flows.resets import Resets
from redirectctl.flows.state import State
from redirectctl.proto import events
from redirectctl.proto.endpoint import Endpoint
from redirectctl.proto.noise import Rng, StaticKey
from redirectctl.proto.peer import Peer, PeerState
from redirectctl.proto.timers import Timers
from redirectctl.wire import meeting
from redirectctl.wire import message as messages
from redirectctl.wire.addr import FourTuple, IPAddress, IPNetwork, SockAddr

# Of tunnel datagrams: so many in one run of the daemon, or 90 TB, never repeat a counter.  A thousand runs within the
# life of a connection stay below COUNTER_JUMP.
COUNTER_BITS = 36


# Of one who is not approved (yet): who it is, what it thinks of us, and a claim, to which we say that it has to wait.
# Answers count only if we have asked.
_OF_STRANGERS = (
    messages.Hello,
    messages.Protect,
    messages.Protected,
    messages.Done,
    messages.SyncReply,
    messages.RstReply,
    *meeting.MESSAGES,  # rendezvous.py and meeting.py have rules of their own
)


@dataclass(frozen=True, slots=True)
class Policy:
    """The part of the configuration that the engine needs."""

    control_port: int = constants.CONTROL_PORT
    first_contact: str = "ask"  # ask | accept-new | refuse
    long_lived_after: float = 10.0
    close_short_lived: bool = True
    accept_ports: frozenset[int] = frozenset()  # empty: all
    integrity: bool = False  # protected connections go through the tunnel, each datagram with a tag
    prefer: str = "rewritten"  # auto | rewritten | tunnel
    serve: bool = False  # as a rendezvous, for other hosts
    suspend_after: float = 10.0  # seconds of silence
    give_up_after: float = 14 * 86400.0  # seconds without a path
    leave_vpn: bool = False  # what began over a VPN, in a VRF or bound to an interface may go elsewhere
    last: tuple[str, ...] = ()  # interfaces, by patterns (devices.named), for when no other carries
    never: tuple[str, ...] = ()  # interfaces that connections are not moved to
    accept_from: tuple[IPNetwork, ...] = ()  # from where peers may move their connections here; empty: from anywhere


class Network(NamedTuple):
    """Where this host is now."""

    usable: frozenset[IPAddress] = frozenset()  # not tentative, link up
    sources: Mapping[IPAddress, tuple[IPAddress, ...]] = {}  # remote address: ours from which it is routed, best first
    own: frozenset[IPAddress] = frozenset()  # all of ours, on whatever interface, usable or not
    interfaces: Mapping[IPAddress, Interface] = {}  # of the usable ones

    def is_ours(self, address: IPAddress) -> bool:
        """What is sent there comes back to us: whatever a peer says, it cannot be reached there."""
        return address in self.usable or address in self.own


class Listening:
    """Why tokens in TCP segments may come: the shell looks at segments while there is a reason."""

    def __init__(self, engine: Engine) -> None:
        self._e = engine
        self._reasons: set[object] = set()

    def add(self, reason: object) -> None:
        """One more reason."""
        if not self._reasons:
            self._e.emit(commands.Listen(on=True))
        self._reasons.add(reason)

    def discard(self, reason: object) -> None:
        """One less."""
        if reason in self._reasons:
            self._reasons.discard(reason)
            if not self._reasons:
                self._e.emit(commands.Listen(on=False))


class Engine:
    """Everything about one host that needs no I/O."""

    def __init__(
        self,
        static: StaticKey,
        rng: Rng,
        generation: int,
        policy: Policy,
        peers: Iterable[Peer] = (),
    ) -> None:
        """``generation``: how often this host's daemon has started, stored before it is used.

        Epochs and handshake counters begin at generation * 2**32, so they never repeat after a crash.
        """
        self.policy = policy
        self.rng = rng
        self.epoch = generation << 32
        self.generation = generation
        self.table = Table()
        self.network = Network()
        self.timers: Timers[tuple[Any, ...]] = Timers()
        self._out: list[Command] = []
        self._pending: list[events.Event] = []  # of the endpoint's, until _relay
        self._heard: dict[bytes, tuple[float, float]] = {}  # what each peer has used of its rate, and when that was so
        self.endpoint = Endpoint(static, rng, self._admit, {p.key: p for p in peers}, counter=generation << 32)
        self.listen = Listening(self)
        self.offers = Offers(self)
        self.places = Places(self)
        self.meeting = Meeting(self)
        self.rendezvous = Rendezvous(self)
        self.requests = Requests(self)
        self.protection = Protection(self)
        self.binding = Binding(self)
        self.claims = Claims(self)
        self.better = Better(self)
        self.mobility = Mobility(self)
        self.redirects = Redirects(self)
        self.choosing = Choosing(self)
        self.resets = Resets(self)
        self.holding = Holding(self)
        self.asking = Asking(self)

    @property
    def peers(self) -> dict[bytes, Peer]:
        """By static public key."""
        return self.endpoint.peers

    # -- what happened ------------------------------------------------------------------------------------------------

    def receive(self, now: float, data: bytes, source: SockAddr, local: IPAddress, port: int = 0) -> None:
        """A datagram on the control port, or on another port of ours (Transmit.port)."""
        self.endpoint.receive(now, data, source, local, port=port)
        self._relay(now)

    def tick(self, now: float) -> None:
        """A timer is due."""
        self.endpoint.tick(now)
        self._relay(now)
        for kind, *rest in self.timers.due(now):
            match kind:
                case "request":
                    self.requests.retry(now, *rest)
                case "acm" | "challenge" | "patience" | "ready":
                    self.mobility.timer(now, kind, *rest)
                case "hint" | "better" | "suspect":
                    self.better.timer(now, kind, *rest)
                case "bind" | "gather":
                    self.binding.timer(now, kind, *rest)
                case "claim":
                    self.claims.expired(now, *rest)
                case "hold" | "silent" | "give-up":
                    self.holding.timer(now, kind, *rest)
                case "ask":
                    self.asking.timer(now, *rest)
                case "plain" | "open" | "unlisten" | "strict":
                    self.choosing.timer(now, kind, *rest)
                case "place":
                    self.places.expired(*rest)
                case "routes":
                    self.places.find_routes(now)
                case "seek":
                    self.places.look_again(now, *rest)
                case "meet" | "knock" | "direct":
                    self.meeting.timer(now, kind, *rest)
                case "guest":
                    self.rendezvous.expired(now, *rest)
                case _:
                    self.protection.timer(now, kind, *rest)
        self._relay(now)

    def remotes(self) -> tuple[IPAddress, ...]:
        """The remote addresses to which network_changed() must know the routes.

        First those where connections are or were and the rendezvous, then, of every peer in turn, those where it may
        be as well, as many as UNPROVEN_ROUTES: who names them is not to keep us from a move.
        """
        proven = dict.fromkeys(c.socket.remote.host for c in self.table if c.state is State.SHORT)
        proven |= dict.fromkeys(self.meeting.hosts())
        named: dict[bytes | None, dict[IPAddress, None]] = {}
        for c in self.table.movable():
            been = (c.there_now, c.wire.remote.host, c.socket.remote.host)
            for remote in self.mobility.remotes(c):
                (proven if remote in been else named.setdefault(c.peer, {}))[remote] = None
        in_turn = (a for rank in zip_longest(*named.values()) for a in rank if a is not None and a not in proven)
        return (*proven, *islice(dict.fromkeys(in_turn), constants.UNPROVEN_ROUTES))

    def next_timer(self) -> float | None:
        """When tick() is due."""
        times = [t for t in (self.endpoint.next_timer(), self.timers.next()) if t is not None]
        return min(times, default=None)

    def found(
        self,
        now: float,
        socket: FourTuple,
        *,
        age: float = 0.0,
        pid: int | None = None,
        command: str | None = None,
        uid: int | None = None,
        device: str = "",
        unfit: str | None = None,
    ) -> None:
        """An opted-in connection exists.

        ``device``: the interface that its socket is bound to; ``unfit``: why it cannot be protected.
        """
        self.protection.found(now, socket, age, pid, command, uid, device, unfit)
        self._relay(now)

    def bound(self, sockets: Mapping[FourTuple, str]) -> None:
        """These sockets are bound to interfaces; told before a Rewrite that guards them is done."""
        for socket, device in sockets.items():
            if (connection := self.table.at(socket)) is not None:
                connection.device, connection.bound = device, True

    def gone(self, now: float, socket: FourTuple) -> None:
        """A connection's socket no longer exists."""
        self.protection.gone(now, socket)
        self._relay(now)

    def network_changed(self, now: float, network: Network) -> None:
        """Addresses or routes changed, or may have."""
        before, self.network = self.network, network
        self.better.network_changed(before, network)
        self.endpoint.is_ours = network.is_ours
        self.holding.network_changed(now, before)
        self.mobility.forget_ways(before)
        self.meeting.network_changed(now)
        self.mobility.network_changed(now)
        self.choosing.network_changed(now, before)
        if network.usable:
            self.protection.tell_again(now)
        self._relay(now)

    def rewritten(self, now: float, token: tuple[Any, ...], error: str | None = None) -> None:
        """A Rewrite is done, or the kernel refused."""
        owner = self.protection if token[0] == "guard" else self.mobility
        owner.rewritten(now, token, error)
        self._relay(now)

    def checked(self, now: float, token: tuple[Any, ...], present: frozenset[FourTuple] | None) -> None:
        """Answer to CheckSockets; None: the kernel could not be asked."""
        if token[0] == "rst":
            self.resets.checked(now, token, present)
        else:
            self.claims.checked(now, token, present)
        self._relay(now)

    def rst(self, now: float, socket: FourTuple, token: int, *, opened: bool = False) -> None:
        """A RST is held for this connection; a Verdict follows.  ``opened``: this host is known to have begun it."""
        self.resets.held(now, socket, token, opened=opened)
        self._relay(now)

    def token(self, now: float, arrived: FourTuple, token: bytes, numbers: Numbers) -> None:
        """A segment with a token has come in, on this tuple as the wire has it, with this sequence number and ACK."""
        if not self.claims.token(now, arrived, token) and not self.binding.token(now, arrived, token, numbers):
            self.choosing.token(now, arrived, token, numbers)
        self._relay(now)

    def proved(self, now: float, socket: FourTuple, token: bytes, numbers: Numbers) -> None:
        """A token of a Prove leaves on a connection as it is, in a segment with this sequence number and ACK."""
        self.claims.sent(socket, token, numbers)
        self._relay(now)

    def numbers(self, now: float, token: tuple[Any, ...], found: Mapping[FourTuple, Numbers]) -> None:
        """Answer to AskNumbers and FindNumbers: for each socket its sequence number bases, sent and received."""
        if token[0] == "bind":
            self.binding.numbers(now, token[1], found)
        else:
            self.claims.numbers(now, token[1], found)
        self._relay(now)

    def stalled(self, now: float, sockets: Iterable[FourTuple]) -> None:
        """These retransmit, or probe, in vain."""
        self.choosing.stalled(now, sockets)
        self._relay(now)

    def told(self, now: float, key: bytes, origin: str, places: Iterable[SockAddr], lasts: float) -> None:
        """Somebody says where a peer may be."""
        self.places.tell(now, key, origin, places, lasts)
        self._relay(now)

    def rendezvous_at(self, now: float, servers: Mapping[str, tuple[SockAddr, ...]]) -> None:
        """The configuration names these rendezvous; their names lead to these addresses, as far as is known now."""
        self.meeting.configured(now, servers)
        self._relay(now)

    def seek(self, now: float, key: bytes) -> None:
        """Ask every rendezvous for a peer: what it says is a place."""
        self.meeting.seek(now, key)
        self._relay(now)

    def questioned(self) -> frozenset[bytes]:
        """Peers, on connections with which heard() is to be told of what arrives."""
        return frozenset(self.holding.questioned() | self.choosing.questioned())

    def heard(self, now: float, sockets: Iterable[FourTuple]) -> None:
        """Something of the peers' programs has arrived on these."""
        connections = [c for s in sockets if (c := self.table.at(s)) is not None]
        self.holding.heard(now, connections)
        self.choosing.heard(now, connections)
        self._relay(now)

    def prepared(self, now: float, found: Mapping[FourTuple, Before]) -> None:
        """Answer to Prepare, for the sockets that are there."""
        self.holding.prepared(now, found)
        self._relay(now)

    def answered(self, now: float, sockets: Iterable[FourTuple]) -> None:
        """After LetOut and Ask: the peers' kernels have acknowledged something on these."""
        self.asking.answered(now, sockets)
        self._relay(now)

    def restored(self, now: float, sockets: Iterable[FourTuple]) -> None:
        """After Resume and GiveBack: these have what they had before."""
        self.holding.restored(sockets)
        self._relay(now)

    def policy_changed(self, now: float, policy: Policy) -> None:
        """The configuration has been read again."""
        self.policy = policy
        self.rendezvous.policy_changed(now)
        self.choosing.policy_changed(now)
        self.holding.policy_changed(now)
        self.mobility.reconsider(now)
        self._relay(now)

    def restore(self, now: float, connections: Iterable[Connection]) -> None:
        """At start: what an earlier run protected and whose sockets still exist, with its rules in the kernel."""
        self.protection.restore(now, connections)
        self._relay(now)

    # -- what a person decided ----------------------------------------------------------------------------------------

    def approve(self, now: float, key: bytes) -> None:
        """Trust this peer."""
        self.protection.approve(now, key)
        self.meeting.trust(now, key)
        self._relay(now)

    def reject(self, now: float, key: bytes) -> None:
        """Refuse this peer."""
        self.protection.reject(now, key)
        self.rendezvous.forget(now, key)
        self._relay(now)

    def forget(self, now: float, key: bytes) -> None:
        """As if never met."""
        self.protection.forget(now, key)
        self.rendezvous.forget(now, key)
        self.meeting.forget(now, key)
        self._relay(now)

    def release(self, now: float, cid: bytes) -> None:
        """Stop protecting a connection."""
        self.protection.release(now, cid)
        self._relay(now)

    def kill(self, now: float, cid: bytes) -> None:
        """Close a connection on both hosts."""
        self.protection.kill(now, cid)
        self._relay(now)

    def announce(self, now: float) -> int:
        """Tell all peers of protected connections where we are.  Returns how many peers."""
        count = self.mobility.announce(now)
        self._relay(now)
        return count

    def woke(self, now: float) -> None:
        """The machine has slept: nobody knows what has become of the path, and peers may have given us up."""
        self.holding.woke(now)
        self.mobility.announce(now, "woke")
        self._relay(now)

    def stopping(self, now: float) -> None:
        """This daemon ends: those that it protects connections with are told."""
        for key in {c.peer for c in self.table.movable() if c.peer is not None}:
            self.send(now, key, messages.Bye())

    # -- for the parts ------------------------------------------------------------------------------------------------

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

    def knock(self, now: float, peer: Peer, to: SockAddr) -> None:
        """A sign of life to where it may be."""
        self.endpoint.knock(now, peer, to)
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
        if self.meeting.strange(to, key):
            return
        self.endpoint.contact(now, to, source, key, again=again)
        self._transmit()

    def carry(self, connections: Iterable[Connection]) -> None:
        """Let the tunnel have these, as they are now."""
        carried = tuple(
            Carried(
                c.socket,
                c.sending,
                c.receiving,
                c.sending.start + (self.generation - c.born << COUNTER_BITS),
                c.integrity,
                c.outer_local,
                None if c.holding else c.outer_remote,
                self.endpoint.port_number(c.peer, c.outer_remote) if c.outer_remote is not None else 0,
            )
            for c in connections
            if c.sending is not None and c.receiving is not None
        )
        if carried:
            self.emit(commands.Carry(carried))
            self.meeting.carried()

    def next_epoch(self) -> int:
        """A number greater than all that this host has used."""
        self.epoch += 1
        return self.epoch

    def finish(self, now: float, connection: Connection, reason: str | None) -> None:
        """A connection has ended."""
        if connection.state is not State.CLOSED:
            change(connection, State.CLOSED, now, reason)
            self.notice("connection.closed", connection, reason=reason)

    # -- inside -------------------------------------------------------------------------------------------------------

    def _transmit(self) -> None:
        """Move what the endpoint wants sent into our order; keep its other events for _relay."""
        for event in self.endpoint.drain():
            if isinstance(event, events.Transmit):
                self.emit(event)
            elif isinstance(event, events.PeerChanged):
                self._save_peer(event.key)
            else:
                self._pending.append(event)

    def _save_peer(self, key: bytes) -> None:
        peer = self.peers.get(key)
        if peer is not None:
            self.emit(commands.SavePeer(peer))

    def _relay(self, now: float) -> None:
        """Handle what the endpoint reports, and what comes of that, until it is quiet."""
        while pending := [*self._pending, *self.endpoint.drain()]:
            self._pending.clear()
            for event in pending:
                self._handle(now, event)
        self.meeting.flush(now)

    def _handle(self, now: float, event: events.Event) -> None:
        match event:
            case events.Transmit():
                self.emit(event)
            case events.PeerChanged(key):
                self._save_peer(key)
            case events.PortChanged(key):
                theirs = (c for c in self.table.movable() if c.peer == key or self.meeting.relayed(c))
                self.carry(c for c in theirs if c.installed is not None)
            case events.Received():
                self._received(now, event)
            case events.Heard():
                self.protection.heard(now, event)
            case events.SessionUp():
                self.protection.session_up(now, event)
                self.meeting.session_up(now, event)
                self.mobility.session_up(now, event.key)
                if event.initiator:
                    self.emit(commands.Contacted(event.remote, event.key, None, event.local))
            case events.ContactFailed(to, key, reason, source):
                self.protection.contact_failed(now, to, key, reason)
                self.meeting.failed(now, to, key, reason)
                self.emit(commands.Contacted(to, key, reason, source))
            case events.PeerMet(key, at, initiator):
                state = self.peers[key].state
                self.notice("peer.first_contact", peer=key, address=at.host, initiator=initiator, trust=state.value)
                if state is PeerState.APPROVED:
                    self.notice("peer.approved", peer=key, reason="accept-new")
            case events.PeerDropped(key):
                self._heard.pop(key, None)
                self.claims.forget(key)
                self.choosing.forget(key)
                self.rendezvous.forget(now, key)
                self.protection.had_to_go(now, key)
                self.emit(commands.DropPeer(key))
            case events.KeyChanged(at, known, seen) if not self._was_at(known, at) or self._is_other(known, at, seen):
                # Names are often out of date, and a peer can name any address as its own: whoever is there is no danger
                # to the key that we know, and that host's key no change of this one.
                self.notice("redirect.refused", peer=known, reason="another-host-there", address=at.host)
            case events.KeyChanged(at, known, seen):
                self.protection.key_changed(now, at, known, seen)
            case events.Refused(source, reason, key):
                name = "redirect.refused" if reason in ("replayed", "too-old") else "packet.refused"
                self.notice(name, peer=key, reason=reason, address=source.host, source=str(source))

    def _was_at(self, known: bytes, at: SockAddr) -> bool:
        peer = self.peers.get(known)
        return peer is not None and peer.was_at(at.host)

    def _is_other(self, known: bytes, at: SockAddr, seen: bytes) -> bool:
        """A host that we know answers where another was thought to be, not where that one was ever called."""
        return seen in self.peers and known in self.peers and at.host not in self.peers[known].identity

    def _received(self, now: float, event: events.Received) -> None:
        key, message = event.key, event.message
        if (reason := self._unheard(now, key, message)) is not None:
            self.notice("packet.refused", peer=key, reason=reason, source=str(event.source))
            return
        looked = self.table.looked
        self._hear(now, event)
        used, at = self._heard[key]
        self._heard[key] = used + (self.table.looked - looked) / constants.LOOKED_AT, at

    def _hear(self, now: float, event: events.Received) -> None:
        key, message = event.key, event.message
        match message:
            case meeting.Register() | meeting.Lookup() | meeting.Forward() | meeting.Relay():
                self.rendezvous.received(now, event)
            case meeting.Registered() | meeting.Found() | meeting.Forwarded():
                self.meeting.received(now, event)
            case meeting.Relayed():
                self.requests.answer(now, key, message.request, message)
            case messages.Hello() | messages.EndOf() | messages.Sync():
                self.protection.received(now, event)
                if isinstance(message, messages.Hello):
                    self.meeting.on_hello(now, event, message)
            case messages.Protect() | messages.Bind() | messages.BindNumbers():
                self.claims.received(now, event)
            case messages.Acm() | messages.AcmAck() | messages.PathChallenge() | messages.PathResponse():
                self.mobility.received(now, event)
            case messages.Bye():
                self.holding.left(now, key)
            case messages.Seen():
                self.choosing.received(now, event)
            case messages.PathProbe() | messages.PathProbed():
                self.better.received(now, event)
            case messages.RstQuery():
                self.resets.asked(now, event)
            case messages.Protected() | messages.RstReply() | messages.Done() | messages.SyncReply():
                self.requests.answer(now, key, message.request, message)

    def _unheard(self, now: float, key: bytes, message: messages.Message) -> str | None:
        """Why a message is not looked at, or None.

        Before a person has approved its sender nobody looks at more than who it is, and says that he has to wait.
        """
        peer = self.peers.get(key)
        stranger = peer is None or peer.state is not PeerState.APPROVED
        if stranger and not isinstance(message, _OF_STRANGERS):
            return "not-approved"
        rate, burst = constants.MESSAGES_RATE, constants.MESSAGES_BURST
        if stranger or (peer is not None and peer.unused):
            rate, burst = constants.STRANGERS_RATE, constants.STRANGERS_BURST
        used, at = self._heard.get(key, (0.0, now))
        used = max(0.0, used - (now - at) * rate)
        if key not in self._heard and len(self._heard) >= constants.MAX_HEARD:
            del self._heard[next(iter(self._heard))]
        allowed = used + 1.0 <= burst
        self._heard[key] = (used + 1.0 if allowed else used, now)
        return None if allowed else "rate-limited"

    def _admit(self, key: bytes, at: SockAddr, initiator: bool) -> PeerState | None:
        match self.policy.first_contact:
            case "accept-new":
                # As with ssh: a new host is accepted, not another key where one is known.
                known = any(at.host in p.identity for p in self.peers.values())
                return PeerState.PENDING if known else PeerState.APPROVED
            case "refuse":
                return None
        return PeerState.PENDING

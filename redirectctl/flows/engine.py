"""One host: what happens to its connections.  No I/O, no clock.

The shell tells the engine what happened (a datagram, a timer, a socket found or gone, addresses changed, a person's
decision), and after each call carries out drain(): commands in order.  This is where every input, message, timer,
completion and fact finds the part whose it is.  The parts, each of which calls only those below it:

    trust.py         what people decide about peers
    lifecycle.py     connections from being found to being gone
    contact.py       finding the peer of a connection, and keeping in touch with it; silent.py those that do not answer
    claims/          how both ends prove that a connection is theirs: outgoing.py ours, incoming.py those of peers
    moves/           address changes: outgoing.py ours, incoming.py those of peers
    resets.py        RSTs that may not be the peer's
    paths/           choice.py tunnel or rewritten addresses, suspension.py no path, liveness.py what lives all the same
    rendezvous/      client.py our registrations, server.py being one, places.py where else a peer may be
    agreement.py     what is said to peers besides
    announcements.py what is being announced
    kernel_state.py  what the kernel and the tunnel are told
    requests.py, offers.py
    host.py          what all parts share
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from itertools import islice, zip_longest
from typing import Final

from redirectctl.flows import commands, constants, facts, timer_kinds
from redirectctl.flows.agreement import Agreement
from redirectctl.flows.announcements import Announcements
from redirectctl.flows.claims.incoming import PeersClaims
from redirectctl.flows.claims.outgoing import OwnClaims
from redirectctl.flows.commands import Command, Rewrite
from redirectctl.flows.connection import Before, Connection, Table
from redirectctl.flows.contact import Contact
from redirectctl.flows.host import Host
from redirectctl.flows.kernel_state import KernelState
from redirectctl.flows.lifecycle import Lifecycle
from redirectctl.flows.moves.addresses import Addresses
from redirectctl.flows.moves.incoming import PeersMoves
from redirectctl.flows.moves.outgoing import OwnMoves
from redirectctl.flows.moves.reach import Reach
from redirectctl.flows.moves.rerouting import Rerouting
from redirectctl.flows.network import Network
from redirectctl.flows.offers import Offers
from redirectctl.flows.paths.choice import Choice
from redirectctl.flows.paths.liveness import Liveness
from redirectctl.flows.paths.suspension import Suspension
from redirectctl.flows.policy import Policy
from redirectctl.flows.proofs import Numbers
from redirectctl.flows.rendezvous.client import Client
from redirectctl.flows.rendezvous.places import Places
from redirectctl.flows.rendezvous.server import Server
from redirectctl.flows.requests import Requests
from redirectctl.flows.resets import Resets
from redirectctl.flows.state import State
from redirectctl.flows.timer_kinds import Timer
from redirectctl.flows.trust import Trusting
from redirectctl.proto import events
from redirectctl.proto.endpoint import Endpoint
from redirectctl.proto.noise import Rng, StaticKey
from redirectctl.proto.peer import Peer, PeerState
from redirectctl.wire import meeting
from redirectctl.wire import message as messages
from redirectctl.wire.addr import FourTuple, IPAddress, SockAddr

# Of one who is not approved (yet): who it is, what it thinks of us, and a claim, to which we say that it has to wait.
# Answers count only if we have asked.
_OF_STRANGERS: Final = (
    messages.Hello,
    messages.Name,
    messages.Protect,
    messages.Protected,
    messages.Done,
    messages.SyncReply,
    messages.RstReply,
    *meeting.MESSAGES,  # rendezvous/ has rules of its own
)


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
        self.host = host = Host(static, rng, generation, policy, peers, self._handle_fact)
        self._heard: dict[bytes, tuple[float, float]] = {}  # what each peer has used of its rate, and when that was so
        requests, offers, kernel = Requests(host), Offers(host), KernelState(host)
        announcements = Announcements(host)
        agreement = Agreement(host, requests)
        self.requests, self.offers, self.kernel = requests, offers, kernel
        self.announcements, self.agreement = announcements, agreement
        self.places = places = Places(host)
        self.rendezvous_server = Server(host)
        self.rendezvous = client = Client(host, requests, kernel, announcements, places)
        self.liveness = liveness = Liveness(host)
        self.suspension = suspension = Suspension(host, kernel, agreement, announcements, liveness)
        self.choice = choice = Choice(host, kernel, liveness, suspension)
        self.resets = Resets(host, requests, liveness, suspension)
        self.reach = reach = Reach(host, places, choice)
        self.addresses = addresses = Addresses(host, reach)
        rerouting = Rerouting(host, kernel, suspension, choice)
        self.own_moves = moves = OwnMoves(
            host, agreement, announcements, places, client, suspension, choice, reach, addresses, rerouting, kernel
        )
        self.peers_moves = PeersMoves(
            host, kernel, announcements, places, suspension, choice, addresses, rerouting, moves
        )
        self.own_claims = claims = OwnClaims(host, requests, offers, kernel, agreement)
        self.peers_claims = PeersClaims(host, offers, kernel, suspension, choice, moves, claims)
        self.contacts = contact = Contact(host, agreement, places, client, moves, claims)
        self.lifecycle = lifecycle = Lifecycle(
            host, kernel, offers, agreement, client, suspension, choice, moves, claims, self.peers_claims, contact
        )
        self.trust = Trusting(host, agreement, places, addresses, moves, contact, lifecycle)

    @property
    def policy(self) -> Policy:
        """The part of the configuration that the engine needs."""
        return self.host.policy

    @property
    def table(self) -> Table:
        """All connections that this host knows."""
        return self.host.table

    @property
    def network(self) -> Network:
        """The addresses and routes that this host has now."""
        return self.host.network

    @property
    def endpoint(self) -> Endpoint:
        """The protocol of sessions with peers."""
        return self.host.endpoint

    @property
    def peers(self) -> dict[bytes, Peer]:
        """All known peers, by static public key."""
        return self.host.peers

    def drain(self) -> list[Command]:
        """Commands since the last drain, in order."""
        return self.host.drain()

    # -- what happened ------------------------------------------------------------------------------------------------

    def receive(self, now: float, data: bytes, source: SockAddr, local: IPAddress, port: int = 0) -> None:
        """A datagram has arrived on the control port, or on another port of ours (Transmit.port)."""
        self.host.endpoint.receive(now, data, source, local, port=port)
        self._relay(now)

    def meet(self, now: float, to: SockAddr, source: IPAddress | None = None, key: bytes | None = None) -> None:
        """Start a handshake with the host at an address, to find out who is there."""
        self.host.contact(now, to, source, key)

    def expect(self, now: float, key: bytes, seconds: float) -> None:
        """For so long a host with this key may be met, even where no new host may: a person has named the key."""
        self.contacts.expect(now, key, seconds)

    def answered_at(self, now: float, key: bytes, address: IPAddress) -> bool:
        """Whether we have called an address that a person named, and this key has answered there; now that is known."""
        return self.contacts.answered_at(now, key, address)

    def tick(self, now: float) -> None:
        """A timer is due."""
        self.host.endpoint.tick(now)
        self._relay(now)
        for timer in self.host.timers.due(now):
            self._fire(now, timer)
        self._relay(now)

    def remotes(self) -> tuple[IPAddress, ...]:
        """The remote addresses to which network_changed() must know the routes.

        First those where connections are or were and the rendezvous, then, of every peer in turn, those where it may
        be as well, as many as UNPROVEN_ROUTES: who names them is not to keep us from a move.
        """
        proven = dict.fromkeys(c.socket.remote.host for c in self.table if c.state is State.SHORT)
        proven |= dict.fromkeys(self.rendezvous.hosts())
        named: dict[bytes | None, dict[IPAddress, None]] = {}
        for c in self.table.movable():
            been = (c.remote_now, c.wire.remote.host, c.socket.remote.host)
            for remote in self.reach.remotes(c):
                (proven if remote in been else named.setdefault(c.peer, {}))[remote] = None
        in_turn = (a for rank in zip_longest(*named.values()) for a in rank if a is not None and a not in proven)
        return (*proven, *islice(dict.fromkeys(in_turn), constants.UNPROVEN_ROUTES))

    def next_timer(self) -> float | None:
        """When tick() is to be called; None: no timer is set."""
        times = [t for t in (self.host.endpoint.next_timer(), self.host.timers.next()) if t is not None]
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
        asked: bool = False,
    ) -> None:
        """An opted-in connection exists.

        ``device``: the interface that its socket is bound to; ``unfit``: why it cannot be protected.  ``asked``: a
        person names this connection, or its process, now.
        """
        self.lifecycle.found(now, socket, age, pid, command, uid, device, unfit, asked)
        self._relay(now)

    def bound(self, sockets: Mapping[FourTuple, str]) -> None:
        """These sockets are bound to interfaces; told before a Rewrite that guards them is done."""
        for socket, device in sockets.items():
            if (connection := self.table.at(socket)) is not None:
                connection.device, connection.bound = device, True

    def gone(self, now: float, socket: FourTuple) -> None:
        """A connection's socket no longer exists."""
        self.lifecycle.gone(now, socket)
        self._relay(now)

    def network_changed(self, now: float, network: Network) -> None:
        """Addresses or routes changed, or may have."""
        before, self.host.network = self.host.network, network
        self.addresses.network_changed(before, network)
        self.host.endpoint.is_ours = network.is_ours
        self.suspension.network_changed(now, before)
        self.own_moves.forget_ways(before)
        self.rendezvous.network_changed(now)
        self.own_moves.network_changed(now)
        self.choice.network_changed(now, before)
        if network.usable:
            self.agreement.tell_again(now)
        if network.usable and (network.usable, network.interfaces) != (before.usable, before.interfaces):
            self.contacts.retry(now)
        self._relay(now)

    def rewritten(self, now: float, rewrite: Rewrite, error: str | None = None) -> None:
        """A Rewrite is done, or the kernel refused."""
        self._complete(now, rewrite, error)
        self._relay(now)

    def checked(
        self, now: float, purpose: commands.PeersReset | commands.PeersClaim, present: frozenset[FourTuple] | None
    ) -> None:
        """Answer to CheckSockets: those that exist; None: the kernel could not be asked."""
        match purpose:
            case commands.PeersReset(number):
                self.resets.checked(now, number, present)
            case commands.PeersClaim(number):
                self.peers_claims.checked(now, number, present)
        self._relay(now)

    def rst(self, now: float, socket: FourTuple, token: int, *, opened: bool = False) -> None:
        """A RST is held for this connection; a Verdict follows.  ``opened``: this host is known to have begun it."""
        self.resets.held(now, socket, token, opened=opened)
        self._relay(now)

    def token(self, now: float, arrived: FourTuple, token: bytes, numbers: Numbers) -> None:
        """A segment with a token has arrived, with this tuple on the wire, this sequence number and this ACK."""
        claimed = self.peers_claims.token(now, arrived, token)
        if not claimed and not self.own_claims.token(now, arrived, token, numbers):
            self.choice.token(now, arrived, token, numbers)
        self._relay(now)

    def proved(self, now: float, socket: FourTuple, token: bytes, numbers: Numbers) -> None:
        """A token of a Prove leaves in a segment with this sequence number and ACK."""
        self.peers_claims.sent(socket, token, numbers)
        self._relay(now)

    def numbers(
        self, now: float, purpose: commands.OwnClaim | commands.PeersClaim, found: Mapping[FourTuple, Numbers]
    ) -> None:
        """Answer to AskNumbers and FindNumbers: for each socket its sequence number bases, sent and received."""
        match purpose:
            case commands.OwnClaim(cid):
                self.own_claims.numbers(now, cid, found)
            case commands.PeersClaim(number):
                self.peers_claims.numbers(now, number, found)
        self._relay(now)

    def stalled(self, now: float, sockets: Iterable[FourTuple]) -> None:
        """These sockets retransmit, or probe, without an answer."""
        self.choice.stalled(now, sockets)
        self._relay(now)

    def place_learnt(self, now: float, key: bytes, origin: str, places: Iterable[SockAddr], lasts: float) -> None:
        """Somebody says where a peer may be."""
        self.places.add(now, key, origin, places, lasts)
        self._relay(now)

    def rendezvous_at(self, now: float, servers: Mapping[str, tuple[SockAddr, ...]]) -> None:
        """The configuration names these rendezvous; their names lead to these addresses, as far as is known now."""
        self.rendezvous.configured(now, servers)
        self._relay(now)

    def seek(self, now: float, key: bytes) -> None:
        """Ask every rendezvous for a peer: what it says is a place."""
        self.rendezvous.seek(now, key)
        self._relay(now)

    def questioned(self) -> frozenset[bytes]:
        """The peers for whose connections the shell has to call heard(): an arrival there tells something now."""
        return frozenset(self.suspension.questioned() | self.choice.questioned())

    def heard(self, now: float, sockets: Iterable[FourTuple]) -> None:
        """Something from the peers' programs has arrived on these sockets."""
        connections = [c for s in sockets if (c := self.table.at(s)) is not None]
        self.suspension.heard(now, connections)
        self.choice.heard(now, connections)
        self._relay(now)

    def prepared(self, now: float, found: Mapping[FourTuple, Before]) -> None:
        """Answer to Prepare, for the sockets that are there."""
        self.suspension.prepared(now, found)
        self._relay(now)

    def answered(self, now: float, sockets: Iterable[FourTuple]) -> None:
        """After LetOut and Ask: the peers' kernels have acknowledged something on these sockets."""
        self.suspension.answered(now, sockets)
        self._relay(now)

    def restored(self, now: float, sockets: Iterable[FourTuple]) -> None:
        """After Resume and GiveBack: these sockets have back what they had."""
        self.suspension.restored(sockets)
        self._relay(now)

    def policy_changed(self, now: float, policy: Policy) -> None:
        """The configuration has been read again."""
        self.host.policy = policy
        self.rendezvous_server.policy_changed(now)
        self.choice.policy_changed(now)
        self.suspension.policy_changed(now)
        self.own_moves.reconsider(now)
        self._accept_waiting(now)
        self._relay(now)

    def restore(self, now: float, connections: Iterable[Connection]) -> None:
        """At start: what an earlier run protected and whose sockets still exist, with its rules in the kernel."""
        self.lifecycle.restore(now, connections)
        self._accept_waiting(now)
        self._relay(now)

    def _accept_waiting(self, now: float) -> None:
        for key in self.trust.accept_waiting(now):
            self.rendezvous.trust(now, key)

    # -- what a person decided ----------------------------------------------------------------------------------------

    def approve(self, now: float, key: bytes) -> None:
        """Trust this peer."""
        self.trust.approve(now, key)
        self.rendezvous.trust(now, key)
        self._relay(now)

    def published(self, now: float, key: bytes, at: IPAddress) -> bool:
        """The name that led to this address has this key in DNS, validated: trust it, if a person is asked about it."""
        if not self.trust.published(now, key, at):
            return False
        self.rendezvous.trust(now, key)
        self._relay(now)
        return True

    def reject(self, now: float, key: bytes) -> None:
        """Refuse this peer, and end the protection of its connections."""
        self.trust.reject(now, key)
        self.rendezvous_server.forget(now, key)
        self._relay(now)

    def forget(self, now: float, key: bytes) -> None:
        """Forget this peer as if this host had never met it."""
        self.trust.forget(now, key)
        self.rendezvous_server.forget(now, key)
        self.rendezvous.forget(now, key)
        self._relay(now)

    def release(self, now: float, cid: bytes) -> None:
        """Stop protecting a connection; it goes on as any other."""
        self.lifecycle.release(now, cid)
        self._relay(now)

    def kill(self, now: float, cid: bytes) -> None:
        """Close a connection on both hosts."""
        self.lifecycle.kill(now, cid)
        self._relay(now)

    def announce(self, now: float) -> int:
        """Announce where this host is to all peers of protected connections.  Returns the number of peers."""
        count = self.own_moves.announce(now)
        self._relay(now)
        return count

    def retry(self, now: float, hosts: Collection[IPAddress] | None = None) -> list[IPAddress]:
        """Ask hosts that did not answer again, all or these.  Returns those for which connections wait."""
        found = self.contacts.retry(now, hosts)
        self._relay(now)
        return found

    def woke(self, now: float) -> None:
        """The machine has slept: paths may be gone, and peers may have given this host up."""
        self.suspension.woke(now)
        self.own_moves.announce(now, "woke")
        self.contacts.retry(now)
        self._relay(now)

    def stopping(self, now: float) -> None:
        """This daemon ends: tell the peers of protected connections."""
        for key in {c.peer for c in self.table.movable() if c.peer is not None}:
            self.host.send(now, key, messages.Bye())

    # -- whose it is --------------------------------------------------------------------------------------------------

    def _relay(self, now: float) -> None:
        """Handle the endpoint's events, and what follows from them, until there are no more."""
        while pending := self.host.take_events():
            for event in pending:
                self._handle(now, event)
        self.rendezvous.flush(now)

    def _fire(self, now: float, timer: Timer) -> None:
        match timer:
            case timer_kinds.RetryRequest(number):
                self.requests.retry(now, number)
            case timer_kinds.LongLived(cid):
                self.lifecycle.long_lived(now, cid)
            case timer_kinds.ClaimAgain(cid):
                self.contacts.claim_again(now, cid)
            case timer_kinds.ExpectNoMore(key):
                self.contacts.expect_no_more(key)
            case timer_kinds.NegotiateAgain(host):
                self.contacts.negotiate_again(now, host)
            case timer_kinds.Undecided(cid):
                self.contacts.unanswered(now, [cid])
            case timer_kinds.Linger(cid):
                self.lifecycle.linger_over(cid)
            case timer_kinds.Bury(cid):
                self.lifecycle.bury(cid)
            case timer_kinds.Reach(key):
                self.contacts.reach(now, key)
            case timer_kinds.KeepAlive(key):
                self.contacts.stay_alive(now, key)
            case timer_kinds.StoreAddresses(key):
                self.agreement.store_addresses(now, key)
            case timer_kinds.Compare(key):
                self.agreement.compare(now, key)
            case timer_kinds.RetryClaim(cid):
                self.own_claims.retry(now, cid)
            case timer_kinds.SendBind(key):
                self.own_claims.bind(now, key)
            case timer_kinds.ClaimExpired(key, cid):
                self.peers_claims.expired(now, key, cid)
            case timer_kinds.RepeatAnnouncement(epoch):
                self.own_moves.repeat(now, epoch)
            case timer_kinds.ChoosePair(epoch):
                self.own_moves.patience_over(now, epoch)
            case timer_kinds.ReleaseTunnel(cids):
                self.own_moves.ready_anyway(cids)
            case timer_kinds.RepeatChallenge(key, epoch):
                self.peers_moves.repeat_challenge(now, key, epoch)
            case timer_kinds.FollowHint(key):
                self.addresses.follow_hint(now, key)
            case timer_kinds.ProbeAddress(key, address):
                self.addresses.probe(now, key, address)
            case timer_kinds.ProbeSuspect(key, address):
                self.addresses.probe_suspect(now, key, address)
            case timer_kinds.TryPlain(route):
                self.choice.attempt(now, route)
            case timer_kinds.OpenTuples():
                self.choice.open(now)
            case timer_kinds.StopListening():
                self.choice.stop_listening()
            case timer_kinds.RefusePlain(key):
                self.choice.be_strict(key)
            case timer_kinds.SuspendInKernel(key):
                self.suspension.suspend_in_kernel(now, key)
            case timer_kinds.PeerSilent(key):
                self.suspension.silent(now, key)
            case timer_kinds.GiveUp():
                self.suspension.give_up(now)
            case timer_kinds.AskPlainly(key):
                self.liveness.ask(now, key)
            case timer_kinds.PlaceExpired(key, origin):
                self.places.expired(key, origin)
            case timer_kinds.FindRoutes():
                self.places.find_routes(now)
            case timer_kinds.SeekAgain(key):
                self.places.look_again(now, key)
            case timer_kinds.Register(name):
                self.rendezvous.register(now, name)
            case timer_kinds.Punch(key, to):
                self.rendezvous.punch(now, key, to)
            case timer_kinds.TryDirect(key):
                self.rendezvous.try_direct(now, key)
            case timer_kinds.GuestExpired(key):
                self.rendezvous_server.expired(now, key)

    def _handle_fact(self, now: float, fact: facts.Fact) -> None:
        match fact:
            case facts.Ended(connection, reason):
                self.lifecycle.end(now, connection, reason)
            case facts.GivenUp():
                self.own_moves.forget_idle()
            case facts.ReviewPaths(connections):
                self.own_moves.reconsider(now, connections)
            case facts.PeerSilent(connections):
                self.choice.silent(connections)
            case facts.Stalled(key, connections):
                self.own_moves.stalled(now, key, connections)
            case facts.PlacesLearnt(key, news):
                self.own_moves.places_learnt(now, key, news=news)
            case facts.PeerSought(key):
                self.rendezvous.seek(now, key)
            case facts.DirectWanted(key, connections):
                self.own_moves.try_direct(now, key, connections)
            case facts.Synced(key, reply, doubtful):
                self.lifecycle.synced(now, key, reply, doubtful)
            case facts.ClaimFailed(cids):
                self.contacts.unanswered(now, cids)

    def _complete(self, now: float, rewrite: Rewrite, error: str | None) -> None:
        match rewrite.purpose:
            case commands.Guarding() as guarding:
                self.lifecycle.guarded(now, guarding, error)
                return
        self.kernel.rewritten(rewrite, error)
        match rewrite.purpose:
            case commands.OurMove(epoch, pair):
                self.own_moves.rewritten(now, epoch, pair, error)
            case commands.PeersMove(key, epoch, _):
                self.peers_moves.rewritten(now, key, epoch, error)
            case commands.ChangePath():
                self.choice.rewritten(now, rewrite.add, error)
            case commands.ReceivePlainly(tokens):
                self.choice.opened(now, tokens, error)
            case commands.Suspending(key):
                self.suspension.rewritten(now, key, rewrite.add, error)

    def _handle(self, now: float, event: events.Event) -> None:
        match event:
            case events.Transmit():
                self.host.emit(event)
            case events.PeerChanged(key):
                self.host.save_peer(key)
            case events.PortChanged(key):
                theirs = (c for c in self.table.movable() if c.peer == key or self.host.relayed(c))
                self.kernel.carry(c for c in theirs if c.installed is not None)
            case events.Received():
                self._received(now, event)
            case events.Heard():
                self.agreement.heard(now, event)
            case events.SessionUp():
                self.contacts.session_up(now, event)
                self.rendezvous.session_up(now, event)
                self.own_moves.session_up(now, event.key)
                if event.initiator:
                    self.host.emit(commands.Contacted(event.remote, event.key, None, event.local))
            case events.ContactFailed(to, key, reason, source):
                self.contacts.failed(now, to, key, reason)
                self.rendezvous.failed(now, to, key, reason)
                self.host.emit(commands.Contacted(to, key, reason, source))
            case events.PeerMet(key, at, initiator):
                state = self.peers[key].state
                trust = state.value
                self.host.notice("peer.first_contact", peer=key, address=at.host, initiator=initiator, trust=trust)
                if approved := self.trust.met(self.peers[key]):
                    self.host.notice("peer.approved", peer=key, reason=approved)
            case events.PeerDropped(key):
                self._heard.pop(key, None)
                self.peers_claims.forget(key)
                self.choice.forget(key)
                self.rendezvous_server.forget(now, key)
                self.trust.had_to_go(now, key)
                self.host.emit(commands.DropPeer(key))
            case events.KeyChanged(at, known, seen):
                self.trust.another_key(now, at, known, seen)
            case events.Refused(source, reason, key):
                name = "redirect.refused" if reason in ("replayed", "too-old") else "packet.refused"
                self.host.notice(name, peer=key, reason=reason, address=source.host, source=str(source))

    def _received(self, now: float, event: events.Received) -> None:
        key, message = event.key, event.message
        if (reason := self._unheard(now, key, message)) is not None:
            self.host.notice("packet.refused", peer=key, reason=reason, source=str(event.source))
            return
        looked = self.table.looked
        self._hear(now, event)
        used, at = self._heard[key]
        self._heard[key] = used + (self.table.looked - looked) / constants.LOOKED_AT, at

    def _hear(self, now: float, event: events.Received) -> None:
        key, message = event.key, event.message
        match message:
            case meeting.Register() | meeting.Lookup() | meeting.Forward() | meeting.Relay():
                self.rendezvous_server.received(now, event)
            case meeting.Registered() | meeting.Found() | meeting.Forwarded():
                self.rendezvous.received(now, event)
            case messages.Hello():
                self.contacts.on_hello(now, event, message)
                self.rendezvous.on_hello(now, event, message)
            case messages.Name():
                self.agreement.named(now, key, message.name)
            case messages.EndOf():
                self.lifecycle.on_end(now, event, message)
            case messages.Sync():
                self.agreement.on_sync(now, event, message)
            case messages.Protect() | messages.Bind() | messages.BindNumbers():
                self.peers_claims.received(now, event)
            case messages.Acm():
                self.peers_moves.on_acm(now, event, message)
            case messages.AcmAck():
                self.own_moves.on_ack(now, event, message)
            case messages.PathChallenge():
                self.own_moves.on_challenge(now, event, message)
            case messages.PathResponse():
                self.peers_moves.on_response(now, event, message)
            case messages.Bye():
                self.suspension.left(now, key)
            case messages.Seen():
                self.choice.received(now, event)
            case messages.PathProbe() | messages.PathProbed():
                self.addresses.received(now, event)
            case messages.RstQuery():
                self.resets.asked(now, event)
            case (
                messages.Protected() | messages.RstReply() | messages.Done() | messages.SyncReply() | meeting.Relayed()
            ):
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

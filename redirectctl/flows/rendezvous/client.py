"""Meeting at a rendezvous: hosts that both have moved, or that cannot reach each other, find one another there.

    this host                        rendezvous                        peer
      REGISTER (addresses, tags) ──►            ◄── REGISTER (addresses, tags)
                                 ◄── FOUND ──►       once both have a tag in common, and whenever one of them moves
      announcements to where the peer was found ──────────────────────►   and the other way round: NATs open
      FORWARD (a datagram)       ──► FORWARDED ──►   when that does not get through
      RELAY (flows)              ──► tunnel datagrams of these flows go on to the peer

A tag names a pair of hosts to one rendezvous: it is derived from the long-term keys of all three, by Diffie-Hellman of
the pair's.  So the rendezvous learns who knows whom only of those who both come, another rendezvous cannot use what it
has learnt, and nobody else can ask.  The pair's secret would not do: when one of two hosts is killed in the middle of a
first contact they have different ones, and those that both have moved could never find each other to agree anew.

A rendezvous is a peer like others: its key is known and approved by a person, or as the configuration says.  What it
says is a hint (places.py), what it hands over is sealed by the peer.  For everybody above, a peer that is reached by
way of a rendezvous is at the rendezvous's address; the endpoint hands over what goes there for somebody else.

server.py is the other side.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from redirectctl.flows import commands, constants, facts, timer_kinds
from redirectctl.flows.announcements import Announcements
from redirectctl.flows.host import Host
from redirectctl.flows.kernel_state import KernelState
from redirectctl.flows.rendezvous.places import Places
from redirectctl.flows.requests import Requests
from redirectctl.proto import events
from redirectctl.proto.bucket import Bucket
from redirectctl.proto.peer import Peer, PeerState
from redirectctl.wire import meeting as wire
from redirectctl.wire import message as messages
from redirectctl.wire.addr import IPAddress, SockAddr
from redirectctl.wire.message import Trust

ORIGIN: Final = "rendezvous "  # of places that one has told; its name follows
_LABEL: Final = b"rd meet"


def tag_of(shared: bytes, server: bytes) -> bytes:
    """The tag that names the pair of hosts with this secret (StaticKey.shared) to the rendezvous with this key."""
    return hashlib.blake2s(server, key=shared, digest_size=wire.TAG_LEN, person=_LABEL).digest()


class Standing(StrEnum):
    """How we stand with a rendezvous.  Names as in events."""

    UNRESOLVED = "unresolved"  # no address found for its name
    NO_ANSWER = "no-answer"
    PENDING_HERE = "approval-pending-here"
    REJECTED = "peer-rejected"
    KEY_CHANGED = "key-changed"
    PENDING_THERE = "approval-pending-there"
    NOT_SERVING = "not-serving"
    FULL = "rendezvous-full"
    REGISTERED = "registered"


_REFUSED: Final = {
    wire.Registration.PENDING: Standing.PENDING_THERE,
    wire.Registration.NOT_SERVING: Standing.NOT_SERVING,
    wire.Registration.FULL: Standing.FULL,
}


@dataclass(slots=True)
class Server:
    """A rendezvous that the configuration names."""

    name: str  # "host:port"
    addresses: tuple[SockAddr, ...] = ()  # what that leads to
    at: SockAddr | None = None  # the one in use
    key: bytes | None = None
    standing: Standing = Standing.UNRESOLVED
    local: IPAddress | None = None  # our address that it sees, so to speak
    reflexive: SockAddr | None = None  # as it sees it
    request: int = 0  # of the latest REGISTER
    tries: int = 0  # since its last answer
    proofs: int = 0  # that it has asked for since the last beat
    tags: dict[bytes, bytes] = field(default_factory=dict)  # peer by tag

    @property
    def usable(self) -> bool:
        """Whether it answers and this host is registered there."""
        return self.standing in (Standing.REGISTERED, Standing.FULL)


class Client:
    """Registers this host at its rendezvous, finds peers there, and has it relay."""

    def __init__(
        self, host: Host, requests: Requests, kernel: KernelState, announcements: Announcements, places: Places
    ) -> None:
        self._host = host
        self._requests = requests
        self._kernel = kernel
        self._announcements = announcements
        self._places = places
        self._servers: dict[str, Server] = {}
        self._flows: dict[tuple[str, bytes], set[int]] = {}  # what a rendezvous relays for us, by peer
        self._dirty = False
        self._tunnel_changes = 0  # as of the last flush()
        self._acted: dict[tuple[str, bytes], Bucket] = {}  # words about a peer that may be acted on
        self._punches: dict[bytes, int] = {}
        self._direct: dict[bytes, int] = {}  # peers that we reach by relay, and how often the direct way was tried
        self._request = 0
        host.endpoint.hand_over = self._forward

    # -- for listings -------------------------------------------------------------------------------------------------

    @property
    def servers(self) -> tuple[Server, ...]:
        """The rendezvous that the configuration names."""
        return tuple(self._servers.values())

    # -- registering --------------------------------------------------------------------------------------------------

    def configured(self, now: float, servers: Mapping[str, tuple[SockAddr, ...]]) -> None:
        """The configuration names these rendezvous, whose names have these addresses now."""
        for name in set(self._servers) - set(servers):
            self._leave(self._servers.pop(name))
        for name, addresses in servers.items():
            server = self._servers.setdefault(name, Server(name))
            if addresses and addresses != server.addresses:
                server.addresses = addresses
                self._note_unmet()
                self._host.emit(commands.FindRoutes())
                if server.at not in addresses:
                    self._settle(server, addresses[0])
                self._register_now(now, server)

    def _settle(self, server: Server, at: SockAddr) -> None:
        """Use this address of a rendezvous from now on."""
        self._leave(server)
        server.at, server.local, server.reflexive = at, None, None
        server.standing = Standing.NO_ANSWER
        known = (p for p in self._host.peers.values() if at.host in p.identity and p.state is not PeerState.CHANGED)
        peer = next(known, None)
        if peer is not None:
            self._recognise(server, at, peer)

    def _recognise(self, server: Server, at: SockAddr, peer: Peer) -> None:
        server.key = peer.key
        self._note_unmet()
        peer.keep = True
        self._host.endpoint.relays[at] = peer.key
        self._dirty = True  # connections may be relayed there already

    def _leave(self, server: Server) -> None:
        self._host.timers.cancel(timer_kinds.Register(server.name))
        if server.at is not None:
            self._host.endpoint.relays.pop(server.at, None)
        for known in [k for k in self._flows if k[0] == server.name]:
            del self._flows[known]
        peer, server.key = self._peer(server), None
        self._note_unmet()
        if peer is not None:
            peer.keep = self.keeps(peer.key) or bool(self._host.table.movable(peer.key))

    def keeps(self, key: bytes) -> bool:
        """Whether this peer is a rendezvous of ours: the session with it is needed."""
        return any(s.key == key for s in self._servers.values())

    def forget(self, now: float, key: bytes) -> None:
        """A person has forgotten this peer: if it is a rendezvous, meet it again, whatever key it has then."""
        self._acted = {which: bucket for which, bucket in self._acted.items() if which[1] != key}
        for server in self._servers.values():
            if server.key == key and server.at is not None:
                at = server.at
                self._leave(server)
                server.at = at
                server.standing = Standing.NO_ANSWER
                self._register_now(now, server)

    def _note_unmet(self) -> None:
        """Note the addresses of rendezvous whose key is not known: no peer is sought there."""
        self._host.unmet = frozenset(a for s in self._servers.values() if s.key is None for a in s.addresses)

    def _register_now(self, now: float, server: Server) -> None:
        server.tries = 0
        self._register_or_contact(now, server)

    def network_changed(self, now: float) -> None:
        """Register again where the rendezvous knows an address of ours that is gone."""
        for server in self._servers.values():
            peer = self._peer(server)
            moved = server.local not in self._host.network.usable
            if server.at is not None and (moved or not server.usable or (peer is not None and peer.local is None)):
                server.local = None if moved else server.local
                self._register_now(now, server)

    def trust(self, now: float, key: bytes) -> None:
        """A person has decided about this peer: if it is a rendezvous, register there now."""
        for server in self._servers.values():
            if server.key == key and not server.usable:
                self._register_now(now, server)

    def protected(self, now: float) -> None:
        """New connections are protected: register again, so that peers which are new can find this host."""
        for server in self._servers.values():
            if server.usable and set(self._tags(server)) - set(server.tags):
                self._register_now(now, server)

    def register(self, now: float, name: str) -> None:
        """It is time for the next registration."""
        if name in self._servers:
            self._register_or_contact(now, self._servers[name])

    def _peer(self, server: Server) -> Peer | None:
        return self._host.peers.get(server.key) if server.key is not None else None

    def _register_or_contact(self, now: float, server: Server) -> None:
        """Register, or begin a session for that.  Without an answer, more slowly each time."""
        if server.at is None:
            return
        if server.tries == constants.MEET_LOST and server.usable:
            self._set_standing(server, Standing.NO_ANSWER)
        lost = server.tries and server.tries % constants.MEET_ELSEWHERE == 0 and not server.usable
        if lost and server.addresses != (server.at,):
            places = server.addresses
            self._settle(server, places[(places.index(server.at) + 1) % len(places) if server.at in places else 0])
        delays = constants.MEET_RETRIES
        self._host.timers.set(timer_kinds.Register(server.name), now + delays[min(server.tries, len(delays) - 1)])
        server.tries += 1
        server.proofs = 0
        peer, source, at = self._peer(server), self._source(server), server.at
        if peer is not None and peer.state is not PeerState.APPROVED:
            pending = peer.state is PeerState.PENDING
            self._set_standing(server, Standing.PENDING_HERE if pending else Standing.REJECTED)
            return
        if peer is None or peer.session(now) is None or server.tries > constants.MEET_REHANDSHAKE:
            self._host.contact(now, at, source, server.key)
        if peer is not None:
            self._register(now, server, peer, source)

    def _source(self, server: Server) -> IPAddress | None:
        """Our address that the rendezvous is to see: that of relayed connections, else routed ones in turn."""
        usable = self._host.network.usable
        relayed = (c.outer_local for c in self._host.table.movable() if c.tunnel and c.outer_remote == server.at)
        for local in (*relayed, server.local):
            if local in usable and server.tries <= 1:
                return local
        routed = self._host.network.sources.get(server.at.host, ()) if server.at is not None else ()
        choices = [a for a in routed if a in usable]
        return choices[max(0, server.tries - 1) % len(choices)] if choices else None

    def hosts(self) -> Iterable[IPAddress]:
        """The addresses of the rendezvous: the engine needs routes to them."""
        return (s.at.host for s in self._servers.values() if s.at is not None)

    def _tags(self, server: Server) -> dict[bytes, bytes]:
        """The tags of the peers of protected connections."""
        peers = {c.peer for c in self._host.table.movable() if c.peer not in (None, server.key)}
        known = [p for key in sorted(filter(None, peers)) if (p := self._host.peers.get(key)) is not None]
        some = known[: constants.MAX_TAGS] if server.key is not None else []
        return {tag_of(self._shared(p), server.key or b""): p.key for p in some}

    def _shared(self, peer: Peer) -> bytes:
        if peer.shared is None:
            peer.shared = self._host.endpoint.static.shared(peer.key)
        return peer.shared

    def _register(
        self, now: float, server: Server, peer: Peer, source: IPAddress | None, proof: bytes = wire.NO_PROOF
    ) -> None:
        server.tags = self._tags(server)
        tags = list(server.tags)
        addresses = self._host.network.for_others
        for start in range(0, max(1, len(tags)), wire.MAX_TAGS):
            self._request = server.request = (self._request + 1) & 0xFFFFFFFF
            some = tuple(tags[start : start + wire.MAX_TAGS])
            self._host.send(now, peer.key, wire.Register(server.request, addresses, some, proof), server.at, source)
        for (name, key), flows in self._flows.items():
            if name == server.name:
                self._ask_relay(now, server, key, flows)

    def session_up(self, now: float, event: events.SessionUp) -> None:
        """There is a session: if it is with a rendezvous, register there."""
        peer = self._host.peers[event.key]
        for server in self._servers.values():
            # Who is met by way of a rendezvous is not the rendezvous.
            if server.at == event.remote and event.initiator and server.key in (None, event.key):
                fresh = server.key is None or event.first
                if server.key is None:
                    self._recognise(server, server.at, peer)
                    peer.identity.add(event.remote.host)
                if fresh:
                    self._register_now(now, server)
                # It may have restarted; if it never answers, ever fewer are sent.
                elif peer.state is PeerState.APPROVED:
                    self._register(now, server, peer, event.local)

    def failed(self, now: float, to: SockAddr, key: bytes | None, reason: str) -> None:
        """An address could not be contacted: if it is a rendezvous's, note how this host stands with it."""
        for server in self._servers.values():
            if server.at == to and key == server.key and not server.usable:
                changed = reason == "key-changed"
                self._set_standing(server, Standing.KEY_CHANGED if changed else Standing.NO_ANSWER)

    def _set_standing(self, server: Server, standing: Standing) -> None:
        if standing is server.standing:
            return
        server.standing = standing
        name = "rendezvous.reached" if standing is Standing.REGISTERED else "rendezvous.lost"
        reason = None if standing is Standing.REGISTERED else standing.value
        host = server.at.host if server.at is not None else None
        self._host.notice(name, peer=server.key, reason=reason, address=host, rendezvous=server.name)

    # -- what a rendezvous says ---------------------------------------------------------------------------------------

    def received(self, now: float, event: events.Received) -> None:
        """Handle REGISTERED, FOUND or FORWARDED, if one of our rendezvous sent it."""
        server = next((s for s in self._servers.values() if s.key == event.key), None)
        if server is None:
            self._host.notice("packet.refused", peer=event.key, reason="not-our-rendezvous", source=str(event.source))
            return
        match event.message:
            case wire.Registered():
                self._registered(now, server, event, event.message)
            case wire.Found():
                self._found(now, server, event, event.message)
            case wire.Forwarded():
                self._forwarded(now, server, event, event.message)

    def _registered(self, now: float, server: Server, event: events.Received, message: wire.Registered) -> None:
        if message.request != server.request or event.source != server.at:
            return  # late, perhaps of where we were before
        if message.status is wire.Registration.PROVE:
            peer = self._peer(server)
            if peer is not None and server.proofs < constants.MEET_PROOFS:
                server.proofs += 1
                self._register(now, server, peer, event.local, message.data)
            return
        server.tries, server.reflexive, server.local = 0, message.reflexive, event.local
        self._set_standing(server, _REFUSED.get(message.status, Standing.REGISTERED))
        beat = constants.MEET_BEAT if server.usable else constants.MEET_REFUSED
        self._host.timers.set(timer_kinds.Register(server.name), now + beat)

    def _may_act(self, now: float, server: Server, key: bytes) -> bool:
        """Whether to act on what a rendezvous says about a peer: each time this host sends datagrams to an address."""
        full = Bucket(constants.FOUND_RATE, constants.FOUND_BURST, constants.FOUND_BURST, now)
        return self._acted.setdefault((server.name, key), full).take(now)

    def _found(self, now: float, server: Server, event: events.Received, message: wire.Found) -> None:
        key = server.tags.get(message.tag)
        if key is None or not self._host.table.movable(key):
            self._host.notice("packet.refused", peer=event.key, reason="unknown-tag", source=str(event.source))
            return
        if not self._may_act(now, server, key):
            return
        port = self._host.policy.control_port
        places = [message.reflexive, *(SockAddr(a, port) for a in message.addresses)]
        before = self._places.of(key)
        self._places.add(now, key, ORIGIN + server.name, places, constants.MEET_TIME)
        if key in self._direct and message.reflexive not in before:
            self._direct[key] = 0  # it has moved: there may be a direct way now
            self._host.timers.set(timer_kinds.TryDirect(key), now + constants.DIRECT_SOON)
        peer = self._host.peers.get(key)
        if peer is not None and peer.session(now) is None and server.at is not None:
            # Keys that were agreed before a long outage are gone; either way will do.
            self._host.contact(now, message.reflexive, None, key)
            self._host.contact(now, server.at, server.local, key)
        if self._announcements.announcing(key):
            return  # the announcement opens what NATs there are
        if message.reflexive in self._places.of(key):
            self._punches[key] = 0
            self.punch(now, key, message.reflexive)

    def punch(self, now: float, key: bytes, to: SockAddr) -> None:
        """Send a keepalive to where a peer may be, so that a NAT on this side lets its datagrams in."""
        peer, number = self._host.peers.get(key), self._punches.get(key, 0)
        if peer is None or number >= len(constants.PUNCHES):
            self._punches.pop(key, None)
            return
        self._host.punch(now, peer, to)
        self._punches[key] = number + 1
        self._host.timers.set(timer_kinds.Punch(key, to), now + constants.PUNCHES[number])

    def _forwarded(self, now: float, server: Server, event: events.Received, message: wire.Forwarded) -> None:
        key = server.tags.get(message.tag)
        if key is None or server.at is None:
            self._host.notice("packet.refused", peer=event.key, reason="unknown-tag", source=str(event.source))
            return
        self._host.endpoint.receive(now, message.datagram, server.at, event.local, via=key)

    # -- asking for a peer --------------------------------------------------------------------------------------------

    def seek(self, now: float, key: bytes) -> None:
        """A peer does not answer: have each rendezvous tell both hosts where the other one is."""
        for server, tag in self._with(key):
            self._host.send(now, server.key or b"", wire.Lookup(tag), server.at, server.local)

    def _with(self, key: bytes) -> Iterable[tuple[Server, bytes]]:
        for server in self._servers.values():
            if server.usable and (tag := self._tag(server, key)) is not None:
                yield server, tag

    @staticmethod
    def _tag(server: Server, key: bytes) -> bytes | None:
        return next((tag for tag, peer in server.tags.items() if peer == key), None)

    def ways(self, key: bytes) -> tuple[SockAddr, ...]:
        """The rendezvous that forward datagrams to this peer."""
        return tuple(dict.fromkeys(server.at for server, _ in self._with(key) if server.at is not None))

    def seen_from(self, to: SockAddr) -> IPAddress | None:
        """Our address that the rendezvous at ``to`` knows; None: there is no rendezvous, or any address will do."""
        return next((s.local for s in self._servers.values() if s.at == to and s.usable), None)

    def _forward(self, now: float, key: bytes, source: IPAddress | None, to: SockAddr, data: bytes) -> None:
        for server, tag in self._with(key):
            if server.at == to and server.key is not None and len(data) <= wire.MAX_FORWARDED:
                self._host.send(now, server.key, wire.Forward(tag, data), to, source or server.local)

    # -- the relay ----------------------------------------------------------------------------------------------------

    def flush(self, now: float) -> None:
        """Tell each rendezvous which flows it has to relay, and set timers to try without it."""
        changed, self._tunnel_changes = self._tunnel_changes != self._kernel.tunnel_changes, self._kernel.tunnel_changes
        if not (self._dirty or (changed and self._servers)):
            return
        self._dirty = False
        wanted: dict[tuple[str, bytes], set[int]] = defaultdict(set)
        by_place = {s.at: s for s in self._servers.values() if s.at is not None}
        for c in self._host.table.movable():
            if self._host.relayed(c) and c.peer is not None and c.sending is not None and c.outer_remote in by_place:
                wanted[by_place[c.outer_remote].name, c.peer].add(c.sending.flow)
        for which, flows in wanted.items():
            if self._flows.get(which, set()) != flows:
                self._flows[which] = flows
                self._ask_relay(now, self._servers[which[0]], which[1], flows)
        for which in set(self._flows) - set(wanted):
            del self._flows[which]
        for key in {key for _, key in wanted} - set(self._direct):
            self._direct[key] = 0
            self._host.timers.set(timer_kinds.TryDirect(key), now + constants.DIRECT_PAUSES[0])

    def _ask_relay(self, now: float, server: Server, key: bytes, flows: Iterable[int]) -> None:
        tag = self._tag(server, key)
        if tag is None or server.key is None:
            return
        numbers = sorted(flows)
        for start in range(0, len(numbers), wire.MAX_FLOWS):
            part = tuple(numbers[start : start + wire.MAX_FLOWS])

            def answered(at: float, reply: messages.Message, part: tuple[int, ...] = part) -> None:
                if isinstance(reply, wire.Relayed) and reply.flows < len(part):
                    self._host.notice("redirect.refused", peer=key, reason="relay-limit", rendezvous=server.name)

            self._requests.ask(
                now,
                server.key,
                lambda n, part=part: wire.Relay(n, tag, part),  # type: ignore[misc]
                answered,
                lambda _: None,
                (server.at, server.local),
            )

    def try_direct(self, now: float, key: bytes) -> None:
        """Try to reach a peer of relayed connections without the rendezvous."""
        if not any(self._host.relayed(c) for c in self._host.table.movable(key)):
            self._direct.pop(key, None)
            return
        self._direct[key] += 1
        pauses = constants.DIRECT_PAUSES
        self._host.timers.set(timer_kinds.TryDirect(key), now + pauses[min(self._direct[key], len(pauses) - 1)])
        self.seek(now, key)
        relayed = [c for c in self._host.table.movable(key) if self._host.relayed(c)]
        self._host.report(now, facts.DirectWanted(key, relayed))

    def on_hello(self, now: float, event: events.Received, message: messages.Hello) -> None:
        """A rendezvous where a person had to approve this host now trusts it: register."""
        for server in self._servers.values():
            if message.trust is Trust.APPROVED and (server.key, server.standing) == (event.key, Standing.PENDING_THERE):
                self._register_now(now, server)

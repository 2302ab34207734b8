"""The rendezvous: what this host does for two others that cannot find each other (client.py is their side).

It holds, for a minute and in memory only: which approved hosts are registered, where they say they are and where they
are seen, and their tags.  It tells two hosts of each other if both have registered the same tag, hands over datagrams
between them, and has the shell relay tunnel datagrams of flows that the sender named.  All of that is sealed for the
other host: nothing can be altered here, and nothing that is said here moves a connection.

Where a guest is has been proven: by the handshake, or by data that it was sent there.  Else whoever forges a source
could have relayed traffic sent to a victim.

A tag has room for two hosts.  All tables are bounded, and so is the rate of what one host can make us send.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass, field

from redirectctl.flows import commands, constants, timer_kinds
from redirectctl.flows.host import Host
from redirectctl.proto import events
from redirectctl.proto.bucket import Bucket
from redirectctl.proto.peer import PeerState
from redirectctl.proto.shares import Shared
from redirectctl.wire import meeting as wire
from redirectctl.wire.addr import IPAddress, SockAddr


@dataclass(slots=True)
class Guest:
    """A host that has registered."""

    key: bytes
    reflexive: SockAddr
    local: IPAddress  # our address that it knows
    until: float
    forwards: Bucket
    founds: Bucket
    addresses: tuple[IPAddress, ...] = ()
    tags: dict[bytes, float] = field(default_factory=dict)  # until when
    flows: dict[int, tuple[bytes, float]] = field(default_factory=dict)  # tag, and until when
    relays: bool = False  # the shell knows of flows


class Server:
    """Keeps the guests of this rendezvous, tells them of each other, and forwards and relays for them."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._guests: dict[bytes, Guest] = {}
        self._asked: dict[bytes, tuple[SockAddr, bytes]] = {}  # by key: where it has to prove to be, and by what
        self._pairs: dict[bytes, list[bytes]] = {}  # by tag: one or two guests
        self._tags: Shared[bytes, tuple[bytes, bytes], None] = Shared()  # of all guests
        self._flows: Shared[bytes, tuple[bytes, int], None] = Shared()

    @property
    def guests(self) -> int:
        """How many hosts are registered."""
        return len(self._guests)

    @property
    def relayed(self) -> int:
        """How many flows are relayed."""
        return len(self._flows)

    def received(self, now: float, event: events.Received) -> None:
        """Handle REGISTER, LOOKUP, FORWARD or RELAY."""
        message = event.message
        if isinstance(message, wire.Register):
            self._register(now, event, message)
            return
        guest = self._guests.get(event.key)
        if guest is None or guest.until <= now:
            self._refuse(event, "not-registered")
            return
        match message:
            case wire.Lookup(tag):
                other = self._other(now, guest, tag)
                if other is not None:
                    self._introduce(now, guest, other, tag)
            case wire.Forward(tag, datagram):
                self._forward(now, event, guest, tag, datagram)
            case wire.Relay():
                self._relay(now, event, guest, message)

    def _refuse(self, event: events.Received, reason: str) -> None:
        self._host.notice("packet.refused", peer=event.key, reason=reason, source=str(event.source))

    def policy_changed(self, now: float) -> None:
        """The configuration has been read again: without [rendezvous] serve, drop all guests."""
        if not self._host.policy.serve:
            for guest in list(self._guests.values()):
                self._drop(now, guest)

    def forget(self, now: float, key: bytes) -> None:
        """This peer is no longer trusted: it is no guest any more."""
        self._asked.pop(key, None)
        if (guest := self._guests.get(key)) is not None:
            self._drop(now, guest)

    # -- registrations ------------------------------------------------------------------------------------------------

    def _register(self, now: float, event: events.Received, message: wire.Register) -> None:
        status = self._take(now, event, message)
        data = self._asked[event.key][1] if status is wire.Registration.PROVE else wire.NO_PROOF
        answer = wire.Registered(message.request, status, event.source, data)
        self._host.send(now, event.key, answer, event.source, event.local)
        guest = self._guests.get(event.key)
        if guest is not None and status in (wire.Registration.OK, wire.Registration.FULL):
            self._host.timers.set(timer_kinds.GuestExpired(guest.key), guest.until)

    def _take(self, now: float, event: events.Received, message: wire.Register) -> wire.Registration:
        if not self._host.policy.serve:
            return wire.Registration.NOT_SERVING
        if self._host.peers[event.key].state is not PeerState.APPROVED:
            return wire.Registration.PENDING
        if not self._proven(event, message.proof):
            return wire.Registration.PROVE
        guest = self._guests.get(event.key)
        if guest is None:
            if len(self._guests) >= constants.MAX_GUESTS:
                return wire.Registration.FULL
            forwards = Bucket(constants.FORWARD_RATE, constants.FORWARD_BURST, constants.FORWARD_BURST, now)
            founds = Bucket(constants.INTRODUCE_RATE, constants.INTRODUCE_BURST, constants.INTRODUCE_BURST, now)
            guest = Guest(event.key, event.source, event.local, now, forwards, founds)
            self._guests[event.key] = guest
            self._host.used(event.key)
        moved = (guest.reflexive, guest.local, guest.addresses) != (event.source, event.local, message.addresses)
        guest.reflexive, guest.local, guest.addresses = event.source, event.local, message.addresses
        guest.until = now + constants.MEET_TIME
        self._drop_old_flows(now, guest)
        for tag in [tag for tag, until in guest.tags.items() if until <= now]:
            self._drop_tag(guest, tag)
        fresh = [tag for tag in message.tags if tag not in guest.tags]
        fits = sum(self._add_tag(now, guest, tag) for tag in message.tags) == len(message.tags)
        for tag in guest.tags if moved else fresh:
            other = self._other(now, guest, tag)
            if other is not None:
                self._introduce(now, guest, other, tag)
        if moved:
            self._moved(now, guest)
        return wire.Registration.OK if fits else wire.Registration.FULL

    def _proven(self, event: events.Received, proof: bytes) -> bool:
        """Whether the host receives at the address that it sends from.  If not known, the proof is asked for."""
        peer = self._host.peers[event.key]
        if event.source == peer.remote:
            return True
        asked = self._asked.get(event.key)
        if asked is not None and asked[0] == event.source and hmac.compare_digest(asked[1], proof):
            del self._asked[event.key]
            self._host.endpoint.locate(peer, event.source, event.local)
            return True
        if asked is None or asked[0] != event.source:
            while len(self._asked) >= constants.MAX_GUESTS:
                del self._asked[next(iter(self._asked))]
            self._asked[event.key] = event.source, self._host.rng(len(wire.NO_PROOF))
        return False

    def _add_tag(self, now: float, guest: Guest, tag: bytes) -> bool:
        if tag not in guest.tags:
            pair = self._pairs.get(tag, [])
            if len(pair) >= 2 or len(guest.tags) >= constants.MAX_TAGS:
                return False
            gone = self._tags.put(constants.MAX_ALL_TAGS, guest.key, (guest.key, tag), None)
            if gone is not None:
                (key, old), _ = gone
                if key == guest.key:
                    return False
                self._drop_tag(self._guests[key], old)
                pair = self._pairs.get(tag, [])
            self._pairs[tag] = [*pair, guest.key]
        guest.tags[tag] = now + constants.MEET_TIME
        return True

    def _drop_tag(self, guest: Guest, tag: bytes) -> None:
        del guest.tags[tag]
        self._tags.pop((guest.key, tag))
        left = [key for key in self._pairs.get(tag, ()) if key != guest.key]
        if left:
            self._pairs[tag] = left
        else:
            self._pairs.pop(tag, None)

    def _drop(self, now: float, guest: Guest) -> None:
        pairs = [self._guests[k] for tag in guest.tags for k in self._pairs[tag] if k != guest.key]
        for tag in list(guest.tags):
            self._drop_tag(guest, tag)
        for flow in guest.flows:
            self._flows.pop((guest.key, flow))
        guest.flows.clear()
        del self._guests[guest.key]
        self._host.timers.cancel(timer_kinds.GuestExpired(guest.key))
        self._host.emit(commands.Relays(guest.key, None, {}))
        for other in pairs:
            self._tell_shell(now, other)

    def expired(self, now: float, key: bytes) -> None:
        """A guest has not renewed its registration: drop it."""
        guest = self._guests.get(key)
        if guest is not None and guest.until <= now:
            self._drop(now, guest)

    # -- between two --------------------------------------------------------------------------------------------------

    def _other(self, now: float, guest: Guest, tag: bytes) -> Guest | None:
        """The other guest with this tag, which the asking guest must have registered itself."""
        if guest.tags.get(tag, 0.0) <= now:
            return None
        others = (self._guests[key] for key in self._pairs[tag] if key != guest.key)
        return next((o for o in others if o.until > now and o.tags.get(tag, 0.0) > now), None)

    def _introduce(self, now: float, guest: Guest, other: Guest, tag: bytes) -> None:
        """Tell both guests where the other one is: both send at once, and so open the NATs on their sides."""
        if guest.founds.take(now):
            for to, about in ((guest, other), (other, guest)):
                found = wire.Found(tag, about.reflexive, about.addresses)
                self._host.send(now, to.key, found, to.reflexive, to.local)

    def _forward(self, now: float, event: events.Received, guest: Guest, tag: bytes, datagram: bytes) -> None:
        other = self._other(now, guest, tag)
        if other is None:
            return  # it is not here; whoever asks tries again
        if not guest.forwards.take(now):
            self._refuse(event, "forward-limit")
            return
        self._host.send(now, other.key, wire.Forwarded(tag, datagram), other.reflexive, other.local)

    def _relay(self, now: float, event: events.Received, guest: Guest, message: wire.Relay) -> None:
        accepted = 0
        self._drop_old_flows(now, guest)
        if guest.tags.get(message.tag, 0.0) > now:
            for flow in message.flows:
                if flow not in guest.flows and not self._add_flow(now, guest, flow):
                    break
                guest.flows[flow] = (message.tag, now + constants.MEET_TIME)
                accepted += 1
        self._host.send(now, guest.key, wire.Relayed(message.request, accepted), event.source, event.local)
        self._tell_shell(now, guest)
        if (other := self._other(now, guest, message.tag)) is not None:
            self._tell_shell(now, other)

    def _drop_old_flows(self, now: float, guest: Guest) -> None:
        for flow in [flow for flow, (_, until) in guest.flows.items() if until <= now]:
            del guest.flows[flow]
            self._flows.pop((guest.key, flow))

    def _add_flow(self, now: float, guest: Guest, flow: int) -> bool:
        if len(guest.flows) >= constants.MAX_RELAYED:
            return False
        gone = self._flows.put(constants.MAX_RELAYED_ALL, guest.key, (guest.key, flow), None)
        if gone is not None and gone[0][0] != guest.key:
            greedy = self._guests[gone[0][0]]
            del greedy.flows[gone[0][1]]
            self._tell_shell(now, greedy)
        return (guest.key, flow) in self._flows

    def _moved(self, now: float, guest: Guest) -> None:
        """A guest has another address: the relay has to know, for what it sends and for what is sent to it."""
        self._tell_shell(now, guest)
        for tag in guest.tags:
            other = self._other(now, guest, tag)
            if other is not None:
                self._tell_shell(now, other)

    def _tell_shell(self, now: float, guest: Guest) -> None:
        if not guest.flows and not guest.relays:
            return
        routes = {}
        for flow, (tag, until) in guest.flows.items():
            other = self._other(now, guest, tag) if until > now else None
            # Both must have asked: whoever wants no relayed traffic, gets none.
            if other is not None and any(t == tag for t, _ in other.flows.values()):
                routes[flow] = (other.reflexive, other.local)
        guest.relays = bool(routes)
        self._host.emit(commands.Relays(guest.key, guest.reflexive, routes))

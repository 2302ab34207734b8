"""`redirectctl doctor PEER`: can this host and that one protect connections with each other, and if not, why."""

from __future__ import annotations

import asyncio
import time
from collections import Counter

from redirectctl.api.reasons import advice, explain
from redirectctl.api.schema import Check, Event, EventName
from redirectctl.daemon.runtime import Runtime
from redirectctl.doctor import keys, names, reached, rendezvous, ways
from redirectctl.doctor.icmp import IcmpWatch
from redirectctl.doctor.outcome import count, fail, merged, ok, several, skip, warn
from redirectctl.doctor.reached import Way
from redirectctl.flows.connection import Connection
from redirectctl.flows.rendezvous.client import ORIGIN
from redirectctl.flows.state import State
from redirectctl.proto.peer import Peer, PeerState
from redirectctl.wire.addr import IPAddress, SockAddr

POLL = 0.05  # seconds between looks whether the peer has said what it thinks of us
HELLO_LOOKS = 30
MOST_WAYS = 3  # between addresses of connections that are tried, the most used first
REFUSALS_SINCE = 600.0  # seconds
LOG_EVENTS = 100_000  # read at most: those of a log that is rotated at its usual size

_REFUSALS = {EventName.PACKET_REFUSED, EventName.REDIRECT_REFUSED, EventName.CONNECTION_REFUSED}


class PeerCheck:
    """All checks about one peer, which is known."""

    def __init__(self, runtime: Runtime, key: bytes) -> None:
        self._r = runtime
        self._key = key
        self._record = runtime.peers.records[key]
        self._peer: Peer | None = runtime.engine.peers.get(key)
        self._told = False  # the peer has said where it is, and where it sees us, since we asked

    async def examine(self) -> list[Check]:
        """In the order in which things can go wrong."""
        addresses = [a.address for a in self._record.addresses]
        tried = self._tried()
        wall = await reached.firewall(self._r.port.port)
        if not tried:
            return [self._addresses(addresses), self._trust(), wall, self._connections()]
        routes = [await reached.routed(way) for way in tried]
        pairs = zip(tried, routes, strict=True)
        contacts = await asyncio.gather(*(self._contact(way, route, wall) for way, route in pairs))
        return [
            self._addresses(addresses),
            merged(routes),
            wall,
            merged(contacts),
            self._last_contact(),
            self._trust(),
            self._connections(),
            await names.peer(self._r, self._key, addresses),
            *self._ways(addresses),
            await self._rendezvous(),
            await self._refusals(addresses),
        ]

    @property
    def _here(self) -> ways.Here:
        engine = self._r.engine
        return ways.Here(engine.network.usable, self._r.port.port, engine.policy.integrity)

    def _ways(self, addresses: list[IPAddress]) -> list[Check]:
        """What lies between, and what it means for the connections."""
        if self._peer is None:
            return []
        engine, here = self._r.engine, self._here
        protected = engine.table.movable(self._key)
        others = [c for c in engine.table if c.peer == self._key and not c.movable]
        seen = [self._peer.remote.host] if self._peer.remote is not None else []
        return [
            ways.nat(here, self._peer, protected, self._r.now, answers=self._told)
            if not engine.host.by_way_of(self._key, self._peer.remote)
            else skip(ways.NAT, "the hosts do not reach each other: see peer.rendezvous"),
            ways.families(here, [*addresses, *self._peer.addresses, *seen]),
            ways.addresses(here, engine.addresses.failed(self._peer.key), self._r.now),
            ways.path_of_each(protected, engine.choice.why_tunnel, behind_nat=ways.behind_nat(here, self._peer)),
            ways.tunnel_size(protected, self._r.carrier.mtu),
            ways.integrity(here, protected, others),
        ]

    async def _rendezvous(self) -> Check:
        """Ask those that we have whether the peer is there."""
        engine = self._r.engine
        engine.seek(self._r.now, self._key)
        self._r.wake()
        for _ in range(HELLO_LOOKS):
            if (found := engine.places.said(self._key, ORIGIN)) or not engine.rendezvous.ways(self._key):
                break
            await asyncio.sleep(POLL)
        relayed = [c for c in engine.table.movable(self._key) if engine.host.relayed(c)]
        return rendezvous.with_peer(engine.rendezvous.servers, self._key, found, relayed)

    def _tried(self) -> list[Way]:
        """Where the connections are, from their own addresses: another may well get through where theirs does not.

        Without any: where the peer was last.
        """
        ways = Counter(self._way(c) for c in self._r.engine.table.movable(self._key))
        if ways:
            return [way for way, _ in ways.most_common(MOST_WAYS)]
        if self._peer is not None and self._peer.remote is not None:
            return [Way(self._peer.remote, None)]
        latest = next((a.address for a in self._record.addresses), None)
        return [Way(SockAddr(latest, self._r.port.port), None)] if latest is not None else []

    def _way(self, c: Connection) -> Way:
        remote = self._peer.remote if self._peer is not None else None
        if c.tunnel and c.outer_remote is not None:
            to = c.outer_remote
        elif remote is not None and remote.host == c.remote_now:
            to = remote
        else:
            to = SockAddr(c.remote_now, self._r.port.port)
        here = c.local_now
        return Way(to, here) if here in self._r.engine.network.usable else Way(to, None, here)

    def _addresses(self, addresses: list[IPAddress]) -> Check:
        name = "peer.addresses"
        label = f"{self._record.name}: " if self._record.name else ""
        if not addresses:
            return warn(name, f"{label}none known", "the next connection with that host makes contact again")
        return ok(name, f"{label}{several([str(a) for a in addresses], ', ')}")

    async def _contact(self, way: Way, route: Check, wall: Check) -> Check:
        """A handshake: datagrams get there, and answers come back."""
        name, to = reached.CONTACT, way.to
        if self._peer is None or self._peer.state in (PeerState.REJECTED, PeerState.CHANGED):
            return skip(name, "not tried: its key is not trusted here")
        began = self._r.now
        with IcmpWatch(to) as watch:
            reason = await self._r.contacts.within(to, self._key, way.source)
            taken = self._r.now - began
        if reason is None:
            await self._hello(began)
            answered = f"answered {way.source or 'us'} after {taken * 1000:.0f} ms"
            if self._r.engine.host.by_way_of(self._key, to):
                return ok(name, f"{answered} by way of the rendezvous at {to}")
            return ok(name, f"UDP {to} {answered}: open in both directions")
        if reason != "no-answer":
            return fail(name, f"UDP {to}: {explain(reason)}", advice(reason) or "see `redirectctl events`")
        return reached.silence(way, watch.reports, route, wall, known=True)

    async def _hello(self, began: float) -> None:
        """Wait until it has said where it is and what it thinks of us: the first thing that it says in a session."""
        for _ in range(HELLO_LOOKS):
            if self._peer is None or (self._peer.told is not None and self._peer.told >= began):
                self._told = True
                return
            await asyncio.sleep(POLL)

    def _last_contact(self) -> Check:
        """When it was last heard, and whether it ever came to us by itself."""
        name = "peer.session"
        now = self._r.now
        peer = self._peer
        session = peer.session(now) if peer is not None else None
        if peer is None or session is None:
            last = self._record.last_contact
            when = f"last met {_ago(time.time() - last)}" if last is not None else "never met"
            return warn(name, f"none; {when}", "moves cannot be announced to it now")
        heard = f", last heard {_ago(now - peer.last_contact)}" if peer.last_contact is not None else ""
        theirs = any(not each.initiator for each in peer.sessions)
        began = "; it has also called this host itself" if theirs else ""
        return ok(name, f"keys agreed {_ago(now - session.created)}{heard}{began}")

    def _trust(self) -> Check:
        if self._peer is None:
            return fail(keys.NAME, "forgotten", "the next connection with that host makes contact again")
        own, everybody = self._r.engine.endpoint.static.public, self._r.peers.records.values()
        return keys.check(own, self._r.peers.records[self._key], self._peer.trust_there, everybody)

    def _connections(self) -> Check:
        """Those with it, and why some are not protected."""
        name = "peer.connections"
        known = {a.address for a in self._record.addresses}
        alive = [c for c in self._r.engine.table if c.state is not State.CLOSED]
        with_it = [c for c in alive if c.peer == self._key or (c.peer is None and c.socket.remote.host in known)]
        if not with_it:
            return ok(name, "none")
        movable = sum(c.movable for c in with_it)
        waiting = [c for c in with_it if c.state in (State.SHORT, State.NEGOTIATING)]
        left = [c for c in with_it if not c.movable and c.state not in (State.SHORT, State.NEGOTIATING)]
        text = f"{movable} of {count(len(with_it), 'connection')} protected"
        if waiting:
            text += f", {len(waiting)} not yet: too young, or in negotiation"
        if not left:
            return ok(name, text)
        lines = Counter(explain(c.reason) for c in left)
        text += "; not protected: " + several([f"{number}: {line}" for line, number in lines.items()])
        if all(c.state is State.RELEASED for c in left):
            return ok(name, text)
        return warn(name, text, _advice(left) or "see `redirectctl connections`")

    async def _refusals(self, addresses: list[IPAddress]) -> Check:
        """What was not accepted from it lately, by its named reason."""
        name = "peer.refusals"
        found = await asyncio.to_thread(self._read_refusals, [str(a) for a in addresses])
        if not found:
            return ok(name, "none in the last 10 minutes")
        lines = Counter(f"{event.event}, {explain(event.reason)}" for event in found)
        text = several([f"{number}x {line}" if number > 1 else line for line, number in lines.items()])
        hints = dict.fromkeys(hint for event in found if (hint := advice(event.reason)))
        return warn(name, f"in the last 10 minutes: {text}", several([*hints, "see `redirectctl events --since 10m`"]))

    def _read_refusals(self, addresses: list[str]) -> list[Event]:
        with self._r.log.history(time.time() - REFUSALS_SINCE) as history:
            events = history.read(LOG_EVENTS)
        return [
            event
            for event in events
            if event.event in _REFUSALS and (event.peer == self._record.fingerprint or event.address in addresses)
        ]


def _advice(connections: list[Connection]) -> str:
    return several([*dict.fromkeys(hint for c in connections if (hint := advice(c.reason)))])


def _ago(seconds: float) -> str:
    if seconds < 1:
        return "just now"
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit} ago"
    return f"{seconds:.0f} s ago"

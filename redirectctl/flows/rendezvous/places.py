"""Where else a peer may be, as somebody says whom nobody needs to trust: DNS, a rendezvous.

A place is a further target for announcements and handshakes, no more: the key decides who answers there, and traffic
follows a proven answer only.  Whoever lies can draw a few small datagrams to an address, within the limits below.

Who misses a peer with which there is something to save calls seek(); whoever knows more says tell().
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from redirectctl.flows import commands, constants, facts, timer_kinds
from redirectctl.flows.host import Host
from redirectctl.flows.state import State
from redirectctl.proto.peer import PeerState
from redirectctl.wire.addr import IPAddress, SockAddr

DNS: Final = "dns"  # who says it: each replaces what it said before, and nothing else
SEEN: Final = "seen"  # the peer itself, by an announcement that came from there


class Places:
    """Where each peer may be, by peer and by who said it."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._said: dict[bytes, dict[str, tuple[SockAddr, ...]]] = {}
        self._expired: set[tuple[bytes, str]] = set()
        self._looked_at = float("-inf")  # when routes to such places were last looked up
        self._no_route: dict[bytes, int] = {}  # peers to which no address of ours has a route, and how often we asked

    def of(self, key: bytes) -> tuple[SockAddr, ...]:
        """The control ports at which this peer may be."""
        said = (s for origin, s in self._said.get(key, {}).items() if (key, origin) not in self._expired)
        return tuple(dict.fromkeys(place for places in said for place in places))

    def said(self, key: bytes, origin: str) -> tuple[SockAddr, ...]:
        """The places of this peer that are named by those whose names begin with ``origin``."""
        heard = self._said.get(key, {}).items()
        places = (s for who, s in heard if who.startswith(origin) and (key, who) not in self._expired)
        return tuple(dict.fromkeys(place for some in places for place in some))

    def seek(self, now: float, key: bytes) -> None:
        """A peer of protected connections does not answer: ask all who may know where it is."""
        peer = self._host.peers.get(key)
        if peer is not None and peer.state is PeerState.APPROVED:
            self._host.emit(commands.Seek(key))
            self._host.report(now, facts.PeerSought(key))

    def no_route(self, now: float, key: bytes) -> None:
        """No address of ours has a route to where the peer was: ask whether it is anywhere else."""
        if self._host.network.usable and key not in self._no_route:
            self._no_route[key] = 0
            self.look_again(now, key)

    def look_again(self, now: float, key: bytes) -> None:
        """Ask again, more slowly each time, while a suspended connection has no route."""
        if not (self._host.network.usable and any(c.state is State.SUSPENDED for c in self._host.table.movable(key))):
            self._no_route.pop(key, None)
            return
        delays = constants.ACM_RETRIES[constants.ACM_WIDEN :]
        self._host.timers.set(timer_kinds.SeekAgain(key), now + delays[min(self._no_route[key], len(delays) - 1)])
        self._no_route[key] += 1
        self.seek(now, key)

    def add(self, now: float, key: bytes, origin: str, places: Iterable[SockAddr], lasts: float) -> None:
        """``origin`` says that the peer may be at these places, and will hold that for ``lasts`` seconds."""
        if key not in self._host.peers:
            return
        said = self._said.setdefault(key, {})
        before = said.get(origin, ())
        usable = tuple(dict.fromkeys(p for p in places if self._usable(p.host)))[: constants.MAX_TOLD]
        said[origin] = usable
        renewed = bool(usable) and (key, origin) in self._expired
        self._expired.discard((key, origin))
        self._host.timers.set(timer_kinds.PlaceExpired(key, origin), now + max(lasts, constants.PLACE_TIME))
        fresh = [p for p in usable if p not in before]
        self.learnt(now, (place.host for place in fresh))
        if fresh or renewed:
            self._host.report(now, facts.PlacesLearnt(key, news=bool(fresh)))

    def learnt(self, now: float, hosts: Iterable[IPAddress]) -> None:
        """A peer may be at these addresses: have the shell look up the routes.

        At once, and then not for a while: with them all connections are looked at, and anybody can name places.
        """
        if all(host in self._host.network.sources for host in hosts):
            return
        if now - self._looked_at >= constants.ROUTES_PAUSE:
            self.find_routes(now)
        elif not self._host.timers.armed(timer_kinds.FindRoutes()):
            self._host.timers.set(timer_kinds.FindRoutes(), self._looked_at + constants.ROUTES_PAUSE)

    def find_routes(self, now: float) -> None:
        """The pause between two look-ups of routes is over."""
        self._looked_at = now
        self._host.emit(commands.FindRoutes())

    def _usable(self, host: IPAddress) -> bool:
        """Whether another host can have this address."""
        nobody = host.is_multicast or host.is_unspecified or host.is_loopback or host.is_link_local or host.is_reserved
        return not nobody and not self._host.network.is_ours(host)

    def expired(self, key: bytes, origin: str) -> None:
        """What ``origin`` said is too old to be tried.  If it says the same again, that is no news."""
        self._expired.add((key, origin))

    def forget(self, key: bytes) -> None:
        """Forget a peer."""
        self._no_route.pop(key, None)
        self._host.timers.cancel(timer_kinds.SeekAgain(key))
        for origin in self._said.pop(key, {}):
            self._expired.discard((key, origin))
            self._host.timers.cancel(timer_kinds.PlaceExpired(key, origin))

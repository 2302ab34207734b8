"""Where this host is: addresses that can be used, and routes from them to the peers."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping

from redirectctl.api.schema import EventName
from redirectctl.daemon.eventlog import EventLog
from redirectctl.daemon.loops import Pulse
from redirectctl.flows.network import Interface, Network
from redirectctl.kernel.errors import KernelError
from redirectctl.kernel.routing.exits import Wanted
from redirectctl.kernel.routing.lookup import Question, Route
from redirectctl.kernel.routing.monitor import Link, NetChange, NetState, NetWatch
from redirectctl.wire.addr import IPAddress

Remotes = Callable[[], Collection[IPAddress]]
OnNetwork = Callable[[float, Network], None]
Leave = Callable[[Wanted], Awaitable[None]]

_log = logging.getLogger(__name__)

# What these are given is wrapped up, most often encrypted, before it leaves the host.  Not ppp, which is a DSL line as
# often as a VPN; nor can the flag IFF_POINTOPOINT tell them: modems (qmi_wwan) have it too.
VPN_KINDS = frozenset({"tun", "wireguard", "amneziawg", "ovpn", "xfrm", "vti", "vti6"})
VRF = "vrf"


class NetworkView:
    """Turns netlink's events into Network, computed when something changed and not before."""

    def __init__(
        self,
        log: EventLog,
        remotes: Remotes,
        on_network: OnNetwork,
        on_loss: Callable[[], None],
        leave: Leave | None = None,
    ) -> None:
        """``on_loss``: something that redirectctl had put into the kernel's routing has gone.

        ``leave`` has the kernel send what is from an address by the interface of that.
        """
        self._log = log
        self._remotes = remotes
        self._on_network = on_network
        self._leave = leave
        self._watch = NetWatch(self._changed, on_loss)
        self._wanted: Wanted | None = None  # None: an earlier run may have left some
        self._dirty = asyncio.Event()
        self._since: float | None = None  # when the oldest change came that has not been reported

    async def start(self) -> None:
        """Read everything once.  Raises KernelError."""
        await self._watch.start()
        self.refresh()

    def close(self) -> None:
        """Stop."""
        self._watch.close()

    def addresses(self) -> list[IPAddress]:
        """Usable addresses of this host."""
        return sorted({a.ip for a in self._watch.state.candidates}, key=lambda a: (a.version, a))

    def places(self) -> list[tuple[IPAddress, int, str]]:
        """Usable addresses, the length of their networks' prefixes, and their interfaces."""
        state = self._watch.state
        names = {index: link.name for index, link in state.links.items()}
        found = {(a.ip, a.prefixlen, names.get(a.ifindex, "?")) for a in state.candidates}
        return sorted(found, key=lambda place: (place[0].version, place[0], place[2]))

    def all_addresses(self) -> frozenset[IPAddress]:
        """Every address that the system (not redirectctl) has."""
        state = self._watch.state
        return frozenset(a.ip for a in state.addresses if not state.ours(a))

    def interface(self, index: int) -> Interface | None:
        """What is known of an interface, by its index."""
        state = self._watch.state
        return _interface(state, link) if (link := state.links.get(index)) is not None else None

    async def interface_to(self, remote: IPAddress, local: IPAddress) -> int | None:
        """The interface by which packets from ``local`` to ``remote`` leave."""
        route = await self._watch.route(remote, source=local)
        return route.ifindex if route is not None else None

    def refresh(self) -> None:
        """Look up routes again: the remotes are others now."""
        self._dirty.set()

    async def run(self, pulse: Pulse) -> None:
        """Report each change, until cancelled."""
        while True:
            await pulse.wait(self._dirty)
            self._dirty.clear()
            since, self._since = self._since, None
            try:
                network = await self._look()
            except BaseException:
                self._dirty.set()  # it is not reported yet
                self._since = since if since is not None else self._since
                raise
            self._on_network(since if since is not None else asyncio.get_running_loop().time(), network)

    async def _look(self) -> Network:
        interfaces = interfaces_of(self._watch.state)
        usable = frozenset(interfaces)
        sources = await self._sources(list(self._remotes()), interfaces)
        return Network(usable, sources, self.all_addresses(), interfaces)

    async def _sources(
        self, remotes: list[IPAddress], interfaces: Mapping[IPAddress, Interface]
    ) -> dict[IPAddress, tuple[IPAddress, ...]]:
        """Of each, ours with a route to it; first the one that the kernel would choose itself."""
        deprecated = {a.ip for a in self._watch.state.addresses if a.deprecated}
        ours: dict[int, list[IPAddress]] = {4: [], 6: []}
        at = {a: interface.ifindex for a, interface in interfaces.items()}
        usable = frozenset(interfaces)
        # On their way out (RFC 4862, section 5.5.4): the last resort.
        for address in sorted(usable, key=lambda a: (a in deprecated, a.version, a)):
            ours[address.version].append(address)
        preferred = await self._watch.routes([Question(remote) for remote in remotes])
        sources: dict[IPAddress, list[IPAddress]] = {}
        others: list[Question] = []
        for remote, route in zip(remotes, preferred, strict=True):
            first = route.source if route is not None and route.source in usable else None
            sources[remote] = [first] if first is not None else []
            others += [Question(remote, a) for a in ours[remote.version] if a != first]
        routed = dict(zip(others, await self._watch.routes(others), strict=True))
        # What the kernel would send by another interface, where its source may be unknown, leaves by its own.
        astray = {
            q.source
            for q, route in routed.items()
            if q.source is not None and (route is None or route.ifindex != at[q.source])
        }
        own = await self._own_routes(remotes, {at[a] for a in astray})
        exits = frozenset((a, at[a]) for a in astray)
        for (remote, source, *_), route in routed.items():
            if source is not None and (route is not None or (source in astray and (remote, at[source]) in own)):
                sources[remote].append(source)
        await self._let_leave(Wanted(exits, frozenset(own.values())))
        return {remote: tuple(found) for remote, found in sources.items()}

    async def _own_routes(
        self, remotes: Iterable[IPAddress], indices: Iterable[int]
    ) -> dict[tuple[IPAddress, int], Route]:
        """By which of these interfaces each of the remotes could be reached, if the host had no others."""
        questions = [Question(remote, None, ifindex=index) for remote in remotes for index in indices]
        found = zip(questions, await self._watch.routes(questions), strict=True)
        return {(q.target, q.ifindex): route._replace(source=None) for q, route in found
                if route is not None and route.ifindex == q.ifindex}  # fmt: skip

    async def _let_leave(self, wanted: Wanted) -> None:
        if self._leave is None or wanted == self._wanted == Wanted():
            return
        self._wanted = wanted
        try:
            await self._leave(wanted)
        except KernelError as error:  # packets leave as the host routes them
            _log.warning("%s", error)

    def _changed(self, change: NetChange) -> None:
        if self._since is None:
            self._since = asyncio.get_running_loop().time()
        interfaces = interfaces_of(change.state)  # not redirect0, on which we may keep it still
        for address in sorted(change.unusable, key=str):
            self._log.record(EventName.ADDRESS_REMOVED, address=str(address))
        for address in sorted(change.usable, key=str):
            self._log.record(EventName.ADDRESS_ADDED, address=str(address), interface=interfaces[address].name)
        self._dirty.set()


def interfaces_of(state: NetState) -> dict[IPAddress, Interface]:
    """The interface of each usable address; of one that several have, the first's."""
    found = {}
    for address in sorted(state.candidates, key=lambda a: -a.ifindex):
        found[address.ip] = _interface(state, state.links[address.ifindex])
    return found


def _interface(state: NetState, link: Link) -> Interface:
    master = state.links.get(link.master)
    vrf = link.name if link.kind == VRF else master.name if master is not None and master.kind == VRF else ""
    return Interface(link.name, link.index, link.kind, link.kind in VPN_KINDS, vrf)

"""What moved connections need of the kernel besides the nftables maps: kept addresses, fallback routes, ports.

Everything here is a function of the set of flows, so that a restarted daemon arrives at the same.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Iterable
from ipaddress import IPv4Address
from pathlib import Path

from redirectctl.flows.connection import Flow
from redirectctl.kernel.errors import KernelError
from redirectctl.kernel.netfilter.elements import rules
from redirectctl.kernel.netfilter.rewriter import Rewriter
from redirectctl.kernel.routing.needs import needs
from redirectctl.kernel.routing.old_addresses import Keeper
from redirectctl.kernel.sockets.reserved_ports import ReservedPorts
from redirectctl.wire.addr import FourTuple, IPAddress

_log = logging.getLogger(__name__)

InterfaceTo = Callable[[IPAddress, IPAddress], Awaitable[int | None]]
Present = Callable[[Collection[FourTuple]], Collection[FourTuple]]


class Rewriting:
    """Makes the kernel equal to a set of flows, one change at a time."""

    def __init__(self, state: Path, interface_to: InterfaceTo, present: Present) -> None:
        """``state``: the directory where reserved ports are noted; ``present``: which of these tuples have a socket.

        Raises KernelError.
        """
        self._interface_to = interface_to
        self._present = present
        self._noted = state / "reserved-ports"
        self.rewriter = Rewriter()
        self.keeper = Keeper()
        self._ports = ReservedPorts(self._read_noted(), self._note)
        self._changing = asyncio.Lock()
        self._kept: Counter[IPAddress] = Counter()
        self._fallbacks: Counter[IPAddress] = Counter()
        self._reserved: Counter[int] = Counter()
        self._late = False  # what is reserved is not what is to be
        self._arrivals: dict[IPv4Address, int] = {}
        self._sockets: dict[FourTuple, FourTuple] = {}  # by wire tuple, of rewritten connections

    @property
    def reserved_ports(self) -> frozenset[int]:
        """Ports that are reserved because of us alone."""
        return self._ports.ours

    def socket_of(self, wire: FourTuple) -> FourTuple | None:
        """Which connection sends with this tuple; None: none that is rewritten."""
        return self._sockets.get(wire)

    def restore_ports(self) -> set[int]:
        """Reserve again what somebody has set free, and return it.  Raises KernelError, OSError.

        Besides, do what could not be done when it was due.
        """
        if self._changing.locked():  # it may be about to reserve them
            return set()
        if self._late:
            self._ports.reconcile(self._reserved)
            self._late = False
            return set()
        return self._ports.restore(self._reserved) if self._reserved else set()

    async def missing(self) -> dict[str, list[str]]:
        """What somebody has taken out of the kernel's routing, by kind (Keeper).  Raises KernelError."""
        return await self.keeper.missing(+self._kept, +self._fallbacks, self._arrivals)

    async def restore_routing(self) -> dict[str, list[str]]:
        """Put it back, and return what was missing.  Raises KernelError."""
        async with self._changing:
            missing = await self.missing()
            if missing:
                await self.keeper.reconcile(+self._kept, +self._fallbacks, self._arrivals)
            return missing

    def close(self) -> None:
        """Let go; what the kernel has stays and goes on working."""
        self.rewriter.close()
        self.keeper.close()

    async def take_over(self, flows: Iterable[Flow]) -> None:
        """At start: exactly these flows, without a gap for those that are there already.  Raises KernelError."""
        flows = list(flows)
        self._count(flows, 1)
        await self.keeper.setup()
        arrivals: dict[IPv4Address, int] = {}
        for flow in flows:
            await self._find_arrival(flow, arrivals)
        await self.keeper.reconcile(+self._kept, +self._fallbacks, arrivals)
        self._arrivals = arrivals
        self._reserve(lambda: self._ports.reconcile(+self._reserved))
        self.rewriter.setup(map(rules, flows))
        self._index(flows, ())

    async def apply(self, add: Iterable[Flow], remove: Iterable[Flow]) -> None:
        """One change: what packets need comes before the maps, what they needed goes after.  Raises KernelError."""
        async with self._changing:
            await self._apply(list(add), list(remove))

    async def _apply(self, add: list[Flow], remove: list[Flow]) -> None:
        fresh = {f.incoming for f in add if f.incoming != f.socket} - {f.incoming for f in remove}
        if fresh and (others := self._present(fresh)):
            # A peer may say that it is where somebody else is, whose packets these would be.
            local, remote = min(others)
            why = "another connection of this host has that tuple"
            raise KernelError(f"rewrite packets of {remote} to {local}", why, "close that connection, or move again")
        before = self._needed()
        self._count(add, 1)
        try:
            for address in set(self._kept) - before[0]:
                await self.keeper.keep(address)
            for address in set(self._fallbacks) - before[1]:
                await self.keeper.fallback(address)
            # Most are the same objects; to compare those that are not takes longer than to look twice.
            for flow in {(id(f.socket.remote.host), id(f.wire.remote.host)): f for f in add}.values():
                await self._arrive(flow)
            if new := set(self._reserved) - before[2]:
                self._reserve(lambda: self._ports.reserve(new))
            self.rewriter.apply(map(rules, add), map(rules, remove))
        except BaseException:
            await self._release(add)
            raise
        self._index(add, remove)
        try:
            await self._release(remove)
        except (KernelError, OSError) as error:  # the packets of these travel as they should
            _log.error("what no connection needs any more could not be removed and stays for now: %s", error)
            self._late = True

    def _reserve(self, change: Callable[[], None]) -> None:
        """A move does not wait for it: until then chain `out` refuses a new connection with one of them."""
        try:
            change()
        except (KernelError, OSError) as error:
            _log.error("ports of moved connections are reserved later: %s", error)
            self._late = True

    async def _release(self, flows: Iterable[Flow]) -> None:
        held = self._needed()
        self._count(flows, -1)
        await self._tidy(*held)

    def _needed(self) -> tuple[set[IPAddress], set[IPAddress], set[int]]:
        return set(self._kept), set(self._fallbacks), set(self._reserved)

    async def _tidy(self, kept: set[IPAddress], fallbacks: set[IPAddress], reserved: set[int]) -> None:
        """Give back what no flow needs any more, of what was there a moment ago."""
        for address in kept - set(self._kept):
            await self.keeper.drop(address)
        for address in fallbacks - set(self._fallbacks):
            await self.keeper.drop_fallback(address)
            if isinstance(address, IPv4Address) and (interface := self._arrivals.pop(address, None)) is not None:
                await self.keeper.drop_arrival(address, interface)
        if gone := reserved - set(self._reserved):
            self._ports.release(gone)

    def _count(self, flows: Iterable[Flow], by: int) -> None:
        for flow in flows:
            kept, fallbacks, ports = needs(flow)
            for address in kept:
                self._kept[address] += by
            for address in fallbacks:
                self._fallbacks[address] += by
            for port in ports:
                self._reserved[port] += by
        for counter in (self._kept, self._fallbacks, self._reserved):
            for key in [k for k, n in counter.items() if n <= 0]:
                del counter[key]

    def _index(self, add: Iterable[Flow], remove: Iterable[Flow]) -> None:
        for socket, wire, *_ in remove:
            if self._sockets.get(wire) == socket:
                del self._sockets[wire]
        self._sockets.update({wire: socket for socket, wire, tunnel, *_ in add if wire != socket and not tunnel})

    async def _arrive(self, flow: Flow) -> None:
        found: dict[IPv4Address, int] = {}
        await self._find_arrival(flow, found)
        for address, interface in found.items():
            previous = self._arrivals.get(address)
            if previous == interface:
                continue
            if previous is not None:
                await self.keeper.drop_arrival(address, previous)
            await self.keeper.arrive(address, interface)
            self._arrivals[address] = interface

    async def _find_arrival(self, flow: Flow, found: dict[IPv4Address, int]) -> None:
        """Rewritten packets seem to come from the old address: by another interface than its route (rp_filter)."""
        old = flow.socket.remote.host
        if isinstance(old, IPv4Address) and flow.wire.remote.host != old:
            interface = await self._interface_to(flow.wire.remote.host, flow.wire.local.host)
            if interface is not None:
                found[old] = interface

    def _read_noted(self) -> list[int]:
        try:
            return [int(word) for word in self._noted.read_text().split()]
        except (FileNotFoundError, ValueError):
            return []

    def _note(self, ports: Collection[int]) -> None:
        """A daemon that takes over must know which reserved ports are ours to release."""
        temporary = self._noted.with_suffix(".new")
        temporary.write_text(" ".join(map(str, sorted(ports))))
        os.replace(temporary, self._noted)

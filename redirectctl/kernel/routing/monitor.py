"""Addresses, links and routes of this host: a picture of them, its changes as they happen, and route lookups."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Any

from pyroute2 import AsyncIPRoute
from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.rtnl.marshal import MarshalRtnl

from redirectctl.kernel.constants import RULE_PRIORITY, TUN_DEVICE
from redirectctl.kernel.errors import KernelError
from redirectctl.kernel.netlink import HEADER, set_receive_buffer, split
from redirectctl.kernel.routing.exits import is_exit, is_exit_table
from redirectctl.kernel.routing.lookup import AT_ONCE, DELROUTE, NEWROUTE, RTMSG, Question, Route, RouteTable
from redirectctl.kernel.routing.rule_priority import OUR_TABLES, is_ours, priority_of
from redirectctl.wire.addr import IPAddress, is_routable

_log = logging.getLogger(__name__)

# RTMGRP_LINK, IPV4_IFADDR, IPV4_ROUTE, IPV6_IFADDR, IPV6_ROUTE, IPV4_RULE and RTNLGRP_IPV6_RULE (19)
_GROUPS = 0x1 | 0x10 | 0x40 | 0x100 | 0x400 | 0x80 | 1 << 18
_RECEIVE_BUFFER = 1 << 20  # bytes: some thousand events; what does not fit costs one new snapshot
_AGAIN = 1.0  # seconds until a snapshot that failed is tried again
_DATAGRAMS_A_TURN = 256  # then others on the event loop have their turn

_NEWLINK, _DELLINK, _NEWADDR, _DELADDR = 16, 17, 20, 21
_NEWRULE, _DELRULE = 32, 33
_TABLE_COMPAT, _TABLE_LOCAL, _ROUTE_CLONED = 252, 255, 0x200

_IFF_UP, _IFF_LOOPBACK = 0x1, 0x8
_RUNNING = {"UP", "UNKNOWN"}  # IFLA_OPERSTATE; tunnels and lo have no carrier to report: UNKNOWN
_TENTATIVE, _DADFAILED, _DEPRECATED, _TEMPORARY, _OPTIMISTIC = 0x40, 0x08, 0x20, 0x01, 0x04


@dataclass(frozen=True, slots=True)
class Link:
    """A network interface."""

    index: int
    name: str
    up: bool  # by the administrator
    running: bool  # carries packets
    loopback: bool
    kind: str = ""  # IFLA_INFO_KIND: "wireguard", "tun", "vlan", "vrf" ...; of hardware empty
    master: int = 0  # index of the bridge, bond or VRF that it belongs to


@dataclass(frozen=True, slots=True)
class Address:
    """An address of this host."""

    ip: IPAddress
    prefixlen: int
    ifindex: int
    tentative: bool = False  # duplicate address detection is not over
    dadfailed: bool = False  # another host has it
    deprecated: bool = False  # not for new connections
    temporary: bool = False  # IPv6 privacy address, or a secondary IPv4 address


@dataclass(frozen=True, slots=True)
class NetState:
    """The host's links by index and its addresses."""

    links: dict[int, Link] = field(default_factory=dict)
    addresses: frozenset[Address] = frozenset()

    def ours(self, address: Address) -> bool:
        """Whether it is an old address that redirectctl keeps."""
        link = self.links.get(address.ifindex)
        return link is not None and link.name == TUN_DEVICE

    def candidate(self, address: Address) -> bool:
        """Whether connections may move to it: on a running link, unique, not loopback, link-local or kept by us."""
        link = self.links.get(address.ifindex)
        if link is None or not (link.up and link.running) or link.loopback or link.name == TUN_DEVICE:
            return False
        return not (address.tentative or address.dadfailed) and is_routable(address.ip)

    @property
    def candidates(self) -> frozenset[Address]:
        """The addresses that connections may move to."""
        return frozenset(address for address in self.addresses if self.candidate(address))


@dataclass(frozen=True, slots=True)
class NetChange:
    """What changed since the last NetChange; many kernel events at once are one."""

    state: NetState
    added: frozenset[IPAddress]  # addresses that this host did not have, on any link
    removed: frozenset[IPAddress]  # addresses that it does not have any more
    usable: frozenset[IPAddress]  # addresses that have become candidates
    unusable: frozenset[IPAddress]  # addresses that are not candidates any more
    routes: bool  # a route came or went, or a link changed: ask for routes anew


class NetWatch:
    """Watches rtnetlink in the network namespace and event loop in which `start` is called.

    ``on_change`` is called in the event loop, within a millisecond of the kernel's event.  Nothing is lost: when the
    kernel's buffer overflows (ENOBUFS) all is read anew and the difference reported.  Raises KernelError.

    ``on_loss`` is called when a rule, a route, an address or the device of redirectctl has gone, also by ourselves.
    """

    def __init__(
        self,
        on_change: Callable[[NetChange], None],
        on_loss: Callable[[], None] = lambda: None,
        *,
        receive_buffer: int = _RECEIVE_BUFFER,
    ) -> None:
        self._on_change = on_change
        self._on_loss = on_loss
        self._receive_buffer = receive_buffer
        self._state = NetState()
        self._events: socket.socket | None = None
        self._table: RouteTable | None = None
        self._requests: Any = None
        self._resync: asyncio.Task[None] | None = None
        self._marshal = MarshalRtnl()

    @property
    def state(self) -> NetState:
        """What was last seen."""
        return self._state

    async def start(self) -> NetState:
        """Begin to watch; the picture that the first NetChange refers to."""
        try:
            self._events = socket.socket(
                socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, socket.NETLINK_ROUTE
            )
            set_receive_buffer(self._events, self._receive_buffer)
            self._events.bind((0, _GROUPS))
            self._table = RouteTable()
            self._requests = AsyncIPRoute()
        except OSError as error:
            raise _failure("watch the network", error) from error
        self._state = await self.snapshot()
        self._watch(True)
        return self._state

    def close(self) -> None:
        """Stop watching."""
        if self._resync is not None:
            self._resync.cancel()
        if self._events is not None:
            self._watch(False)
            self._events.close()
            self._events = None
        if self._table is not None:
            self._table.close()
            self._table = None
        if self._requests is not None:
            self._requests.close()
            self._requests = None

    async def snapshot(self) -> NetState:
        """Ask the kernel for all links and addresses: 2 round trips, some milliseconds."""
        try:
            links = [_link(message) async for message in await self._requests.link("dump")]
            addresses = [_address(message) async for message in await self._requests.addr("dump")]
        except (NetlinkError, OSError) as error:
            raise _failure("list links and addresses", error) from error
        return NetState({link.index: link for link in links}, frozenset(addresses))

    async def route(self, target: IPAddress, source: IPAddress | None = None, mark: int | None = None) -> Route | None:
        """The route to ``target`` for packets from ``source`` with ``mark``; None if there is none but our own.

        Some 20 microseconds.
        """
        (found,) = await self.routes([Question(target, source, mark or 0)])
        return found

    async def routes(self, questions: Sequence[Question]) -> list[Route | None]:
        """The same for many: some 15 microseconds each, and others on the event loop have their turn."""
        if self._table is None:
            raise KernelError("look up routes", "nobody watches the network", "`systemctl start redirectd`")
        found: list[Route | None] = []
        for start in range(0, len(questions), AT_ONCE):
            if start:
                await asyncio.sleep(0)
            found += self._table.look_up(questions[start : start + AT_ONCE])
        ours = {link.index for link in self._state.links.values() if link.name == TUN_DEVICE}
        # FALLBACK_TABLE leads there: no real route.
        return [None if route is not None and route.ifindex in ours else route for route in found]

    async def usable(self, local: IPAddress, peer: IPAddress) -> bool:
        """Whether ``local`` is a candidate and packets from it have a route to ``peer``."""
        if local.version != peer.version or all(address.ip != local for address in self._state.candidates):
            return False
        return await self.route(peer, source=local) is not None

    def _watch(self, on: bool) -> None:
        loop = asyncio.get_running_loop()
        if self._events is not None:
            if on:
                loop.add_reader(self._events.fileno(), self._read)
            else:
                loop.remove_reader(self._events.fileno())

    def _read(self) -> None:
        """Take what the kernel has queued and report it as one change."""
        links, addresses, routes, lost = dict(self._state.links), set(self._state.addresses), False, False
        if self._events is None:
            return
        try:
            for _ in range(_DATAGRAMS_A_TURN):
                data = self._events.recv(1 << 16)
                for kind, _, _, start, end in split(data):
                    message = data[start - HEADER.size : end]  # as pyroute2 parses it
                    if kind in (NEWROUTE, DELROUTE):
                        table = self._table_of(message)
                        ours = table in OUR_TABLES
                        made = kind == NEWROUTE and is_exit_table(table)
                        routes = routes or not (ours or made or not self._matters(message))
                        lost = lost or (ours and kind == DELROUTE)
                    elif kind in (_NEWRULE, _DELRULE):
                        for parsed in self._marshal.parse(message):
                            ours = is_ours(parsed)
                            made = kind == _NEWRULE and is_exit(parsed)
                            routes = routes or not (ours or made)
                            # Ours have to be elsewhere when others come before them, or no longer do.
                            before = not ours and priority_of(parsed) <= RULE_PRIORITY
                            lost = lost or before or (ours and kind == _DELRULE)
                    elif kind in (_NEWLINK, _DELLINK, _NEWADDR, _DELADDR):
                        for parsed in self._marshal.parse(message):
                            lost = lost or _takes_ours(self._state, kind, parsed)
                            routes |= _update(links, addresses, kind, parsed)
        except BlockingIOError:
            pass
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise
            self._drain(self._events)
            self._watch(False)
            self._resync = asyncio.get_running_loop().create_task(self._read_anew(), name="netlink resync")
            self._resync.add_done_callback(_report)
            return
        self._become(NetState(links, frozenset(addresses)), routes)
        if lost:
            self._on_loss()

    def _drain(self, events: socket.socket) -> None:
        """Forget what is queued, before all is read anew.

        Until the queue has been empty once the kernel drops further events without saying so again
        (`netlink_overrun`, NETLINK_S_CONGESTED).  What comes from now on is read after the new snapshot, and ends in
        the same state.
        """
        while True:
            try:
                events.recv(1 << 16)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise

    async def _read_anew(self) -> None:
        while True:
            try:
                state = await self.snapshot()
                break
            except KernelError as error:
                _log.error("%s; again in %g s", error, _AGAIN)
                await asyncio.sleep(_AGAIN)
        self._watch(True)
        self._become(state, routes=True)
        self._on_loss()

    def _become(self, state: NetState, routes: bool) -> None:
        old, self._state = self._state, state
        before, after = {address.ip for address in old.addresses}, {address.ip for address in state.addresses}
        could, can = {address.ip for address in old.candidates}, {address.ip for address in state.candidates}
        if old != state or routes:
            self._on_change(
                NetChange(
                    state,
                    added=frozenset(after - before),
                    removed=frozenset(before - after),
                    usable=frozenset(can - could),
                    unusable=frozenset(could - can),
                    routes=routes,
                )
            )

    def _matters(self, message: bytes) -> bool:
        """Whether a route's coming or going can change where packets of connections go."""
        _, _, _, _, table, _, _, _, flags = RTMSG.unpack_from(message, HEADER.size)
        return table != _TABLE_LOCAL and not flags & _ROUTE_CLONED

    def _table_of(self, message: bytes) -> int:
        """Of a route.  All of redirectctl's tables have numbers that do not fit into 8 bits."""
        table: int = RTMSG.unpack_from(message, HEADER.size)[4]
        if table != _TABLE_COMPAT:
            return table
        (parsed,) = self._marshal.parse(message)
        return parsed.get("table") or table


def _takes_ours(state: NetState, kind: int, message: Any) -> bool:
    """Whether an event of a link or an address says that redirect0 has gone, is down, or has lost an address."""
    link = state.links.get(message["index"])
    if link is None or link.name != TUN_DEVICE:
        return False
    return kind in (_DELLINK, _DELADDR) or (kind == _NEWLINK and not message["flags"] & _IFF_UP)


def _update(links: dict[int, Link], addresses: set[Address], kind: int, message: Any) -> bool:
    """Apply one event; whether routes may be others now."""
    if kind in (_NEWLINK, _DELLINK):
        if message.get("family"):  # AF_BRIDGE: a bridge's port, not the link itself
            return False
        link = _link(message)
        before = links.pop(link.index, None)
        if kind == _NEWLINK:
            links[link.index] = link
        else:
            addresses -= {address for address in addresses if address.ifindex == link.index}
        return before != links.get(link.index)
    address = _address(message)
    addresses -= {
        other
        for other in addresses
        if (other.ip, other.ifindex, other.prefixlen) == (address.ip, address.ifindex, address.prefixlen)
    }
    if kind == _NEWADDR:
        addresses.add(address)
    return False


def _link(message: Any) -> Link:
    flags = message["flags"]
    return Link(
        index=message["index"],
        name=message.get("ifname"),
        up=bool(flags & _IFF_UP),
        running=message.get("operstate") in _RUNNING,
        loopback=bool(flags & _IFF_LOOPBACK),
        kind=(message.get("linkinfo") or {}).get("kind") or "",
        master=message.get("master") or 0,
    )


def _address(message: Any) -> Address:
    flags = message.get("flags") or 0
    tentative = bool(flags & _TENTATIVE) and not flags & _OPTIMISTIC
    # IFA_LOCAL is this host's end of a point-to-point link, IFA_ADDRESS the other
    return Address(
        ip=ip_address(message.get("local") or message.get("address")),
        prefixlen=message["prefixlen"],
        ifindex=message["index"],
        tentative=tentative,
        dadfailed=bool(flags & _DADFAILED),
        deprecated=bool(flags & _DEPRECATED),
        temporary=bool(flags & _TEMPORARY),
    )


def _report(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        task.get_loop().call_exception_handler({"message": "netlink resync failed", "exception": error})


def _failure(what: str, error: NetlinkError | OSError) -> KernelError:
    code = error.code if isinstance(error, NetlinkError) else error.errno
    return KernelError(what, os.strerror(code or 0), "redirectctl needs root and rtnetlink")

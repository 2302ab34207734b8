"""Everything of ours that the kernel has, each with the command that removes it (names: kernel/constants.py)."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable, Mapping
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any, NamedTuple

from pyroute2 import AsyncIPRoute
from pyroute2.netlink.exceptions import NetlinkError

from redirectctl.doctor.host import has_ipv6
from redirectctl.doctor.outcome import several
from redirectctl.flows.connection import Flow
from redirectctl.kernel.constants import (
    FALLBACK_PRIORITY,
    FALLBACK_TABLE,
    NFT_TABLE,
    ROUTE_TABLE,
    TUN_DEVICE,
    TUNNEL_TABLE,
)
from redirectctl.kernel.errors import KernelError
from redirectctl.kernel.netfilter.elements import flows_in
from redirectctl.kernel.netfilter.libnftables import Command
from redirectctl.kernel.netfilter.queue_rules import QUEUE_RULES, IptablesQueues, programs
from redirectctl.kernel.processes.cgroup import CgroupTree, populated
from redirectctl.kernel.routing.exits import is_exit
from redirectctl.kernel.routing.needs import Needs
from redirectctl.kernel.routing.rule_priority import first_priorities
from redirectctl.kernel.sockets.reserved_ports import ReservedPorts
from redirectctl.wire.addr import IPAddress

_ELEMENTS = "nft elements for"
_LOCAL = 255  # RT_TABLE_LOCAL
_IFF_UP = 0x1
_TABLES = (ROUTE_TABLE, FALLBACK_TABLE, TUNNEL_TABLE)
_DEFAULT: dict[int, IPAddress] = {4: IPv4Address(0), 6: IPv6Address(0)}  # where the default route leads


class Trace(NamedTuple):
    """One thing."""

    what: str  # for a person; the same thing is always called the same
    remove: str  # the command

    @property
    def is_cgroup(self) -> bool:
        """Of the machine, whatever the network namespace."""
        return self.what.startswith("cgroup ")


def listed(found: Iterable[Trace]) -> str:
    """A line each; of connections only the first."""
    found = list(found)
    flows = [trace.what for trace in found if trace.what.startswith(_ELEMENTS)]
    first = several(flows, "\n") if flows else ""
    return "\n".join([first, *(trace.what for trace in found if trace.what not in flows)]).strip()


def commands(found: Iterable[Trace]) -> str:
    """The commands that remove them, a line each."""
    return "\n".join(dict.fromkeys(trace.remove for trace in found))


def own_table(listed: Iterable[Command]) -> list[Command]:
    """Our part of a listed ruleset; empty if our table is not there."""
    found = []
    for item in listed:
        (value, *_) = item.values()
        if value.get("family") == "inet" and value.get("table", value.get("name")) == NFT_TABLE:
            found.append(item)
    return found


def filter_traces(listed: Iterable[Command]) -> list[Trace]:
    """The table, and what is in it for connections."""
    own = own_table(listed)
    return [table_trace(), *map(flow_trace, sorted(flows_in(own), key=str))] if own else []


def table_trace() -> Trace:
    """Of the table itself."""
    return Trace(f"nft table inet {NFT_TABLE}", f"nft delete table inet {NFT_TABLE}")


def flow_trace(flow: Flow) -> Trace:
    """Of a connection's elements in the table."""
    moved = "" if flow.wire == flow.socket else f" as {flow.wire}"
    tunnel = " through the tunnel" if flow.tunnel else ""
    integrity = " with integrity" if flow.integrity else ""
    return Trace(f"{_ELEMENTS} {flow.socket}{moved}{tunnel}{integrity}", f"nft delete table inet {NFT_TABLE}")


def queue_traces() -> list[Trace]:
    """Rules of iptables.  Raises KernelError."""
    return [Trace(line, line.replace(" -A ", " -D ", 1)) for line in IptablesQueues().leftovers()]


def wanted_queues() -> int:
    """How many of them there are while they are in use."""
    return len(QUEUE_RULES) * len(programs())


def port_traces(ports: Iterable[int]) -> list[Trace]:
    """Those of ``ports`` that are reserved now."""
    try:
        current = ReservedPorts().current()
    except KernelError:
        return []
    key = "net.ipv4.ip_local_reserved_ports"
    remove = f"set {key} without it (sysctl {key}, then sysctl -w)"
    return [Trace(f"reserved port {port}", remove) for port in sorted(current & set(ports))]


def empty_cgroups() -> list[Trace]:
    """Cgroups of opted-in commands in which nothing runs any more, of any daemon on this machine."""
    try:
        found = CgroupTree().find_all()
    except KernelError:
        return []
    return [Trace(f"cgroup {each.path}", f"rmdir {each.path}") for each in found if not populated(each.path)]


def swept_cgroups() -> list[Trace]:
    """Empty cgroups that cannot be removed: the others are, as the daemon does every half minute."""
    try:
        CgroupTree().sweep()
    except KernelError:
        return []
    return empty_cgroups()


class Routing(NamedTuple):
    """Our device, addresses, rules and routes as they are."""

    traces: list[Trace]
    device: bool
    up: bool
    exits: list[Trace]  # of where packets from certain addresses leave
    hiding: list[Trace]  # kept addresses that the kernel takes for its own: nobody else can be reached there
    first: dict[int, dict[int, int]]  # by address family and table, priorities of rules that come before others'

    @property
    def all(self) -> list[Trace]:
        """What is ours."""
        return [*self.traces, *self.exits]


async def routing() -> Routing:
    """Ask the kernel.  Raises KernelError."""
    netlink: Any = AsyncIPRoute()
    try:
        return await _routing(netlink)
    except NetlinkError as error:
        raise KernelError("ask for routes", os.strerror(error.code or 0), "redirectctl needs rtnetlink") from error
    finally:
        netlink.close()


async def _routing(netlink: Any) -> Routing:
    traces: list[Trace] = []
    hiding: list[Trace] = []
    exits: list[Trace] = []
    index = next((number for number, name in socket.if_nameindex() if name == TUN_DEVICE), None)
    up = False
    if index is not None:
        (link,) = await netlink.link("get", index=index)
        up = bool(link["flags"] & _IFF_UP)
        traces.append(device_trace())
        messages = await netlink.addr("dump", index=index)
        found = [ip_address(m.get("local") or m.get("address")) async for m in messages]
        traces += [address_trace(address) for address in found if not address.is_link_local]
        for route in await _routes(netlink, _LOCAL, socket.AF_INET):
            if route.get("oif") == index:
                what = f"route to {_target(route)} in table local"
                hiding.append(Trace(what, f"ip route del table local local {_target(route)} dev {TUN_DEVICE}"))
    first = {}
    for family in families():
        rules = [rule async for rule in await netlink.rule("dump", family=family)]
        first[family] = first_priorities(rules)
        for rule in rules:
            if rule.get("table") in _TABLES:
                traces.append(rule_trace(family, rule.get("priority"), rule.get("table")))
            elif is_exit(rule):
                exits.append(exit_trace(family, rule.get("src"), rule.get("table")))
        for table in _TABLES:
            traces += [route_trace(_target(route), table) for route in await _routes(netlink, table, family)]
    return Routing(traces, index is not None, up, exits, hiding, first)


def families() -> tuple[int, ...]:
    """Address families of this host."""
    return (socket.AF_INET, socket.AF_INET6) if has_ipv6() else (socket.AF_INET,)


def skeleton_traces(first: Mapping[int, Mapping[int, int]]) -> list[Trace]:
    """What is there while the daemon runs, connections or not.  ``first``: see Routing."""
    return [
        device_trace(),
        *(rule_trace(family, number, table) for family, those in first.items() for table, number in those.items()),
        *(rule_trace(family, FALLBACK_PRIORITY, FALLBACK_TABLE) for family in first),
        *(route_trace(_DEFAULT[4 if family == socket.AF_INET else 6], TUNNEL_TABLE) for family in families()),
    ]


def wanted_traces(wanted: Needs) -> list[Trace]:
    """What is there for connections that have moved."""
    return [
        *(address_trace(address) for address in wanted.kept if address.version == 4),
        *(route_trace(address, ROUTE_TABLE) for address in wanted.kept),
        *(route_trace(address, FALLBACK_TABLE) for address in wanted.fallbacks),
    ]


def device_trace() -> Trace:
    """Of redirect0."""
    return Trace(f"device {TUN_DEVICE}", f"ip link del {TUN_DEVICE}")


def address_trace(address: IPAddress) -> Trace:
    """Of an old address on it."""
    return Trace(f"address {address} on {TUN_DEVICE}", f"ip addr del {address}/32 dev {TUN_DEVICE}")


def rule_trace(family: int, priority: int | None, table: int | None) -> Trace:
    """Of a routing rule."""
    version = 4 if family == socket.AF_INET else 6
    return Trace(
        f"IPv{version} rule {priority} to table {table}", f"ip -{version} rule del priority {priority} table {table}"
    )


def exit_trace(family: int, source: str, table: int) -> Trace:
    """Of the rule for packets from an address, and of the table that it leads to."""
    version = 4 if family == socket.AF_INET else 6
    remove = f"ip -{version} rule del from {source} table {table}; ip -{version} route flush table {table}"
    return Trace(f"IPv{version} rule from {source} to table {table}", remove)


def route_trace(target: IPAddress, table: int) -> Trace:
    """Of a route."""
    where = f"default IPv{target.version} route" if target in _DEFAULT.values() else f"route to {target}"
    return Trace(f"{where} in table {table}", f"ip -{target.version} route flush table {table}")


async def _routes(netlink: Any, table: int, family: int) -> list[Any]:
    messages = await netlink.route("dump", table=table, family=family)
    return [route async for route in messages if route.get("table") == table]


def _target(route: Any) -> IPAddress:
    return ip_address(route.get("dst") or str(_DEFAULT[4 if route["family"] == socket.AF_INET else 6]))

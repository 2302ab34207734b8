"""By which interface something leaves that has one of our addresses as its source.

With two uplinks the main routing table sends everything by one of them, whatever its source is, and providers drop what
has a foreign source (BCP 38).  So for each address of the other uplinks there is a rule, before main and after those of
the host:

    from ADDRESS fwmark MARK_EXIT  ->  table EXIT_TABLES + index of its interface

and that table has the routes by which the main table would reach our peers if it had this interface only.  MARK_EXIT
is on our own datagrams, and on packets of connections that have moved; nobody else's go another way than without us.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import Any, NamedTuple

from redirectctl.kernel.constants import EXIT_PRIORITY, EXIT_TABLES, MARK_EXIT, MOST_EXIT_TABLES
from redirectctl.kernel.routing.lookup import Route
from redirectctl.kernel.routing.rtnetlink import RouteNetlink
from redirectctl.wire.addr import IPAddress

_UNIVERSE, _LINK = 0, 253  # scopes: of a route by a gateway, and without one


class Wanted(NamedTuple):
    """What the kernel is to have."""

    addresses: frozenset[tuple[IPAddress, int]] = frozenset()  # of ours, and the index of their interface
    routes: frozenset[Route] = frozenset()


def table_of(ifindex: int) -> int:
    """The number of the table of an interface."""
    return EXIT_TABLES + ifindex % MOST_EXIT_TABLES


def is_exit_table(number: int) -> bool:
    """Whether a table is one of these."""
    return 0 <= number - EXIT_TABLES < MOST_EXIT_TABLES


def is_exit(rule: Any) -> bool:
    """Whether a rule that netlink has listed leads to one."""
    return rule.get("priority") == EXIT_PRIORITY and is_exit_table(rule.get("table") or 0)


class Exits:
    """Keeps these rules and tables.  All methods raise KernelError."""

    def __init__(self) -> None:
        self._rtnl = RouteNetlink()

    def close(self) -> None:
        """Let go of netlink; rules and routes stay."""
        self._rtnl.close()

    async def reconcile(self, wanted: Wanted) -> None:
        """Make the kernel have exactly these."""
        for family in families():
            version = 4 if family == socket.AF_INET else 6
            rules = {(a, i) for a, i in wanted.addresses if a.version == version}
            present = {(ip_address(r.get("src")), r.get("table")): r for r in await self.rules(family)}
            tables = {table_of(i) for _, i in rules} | {table for _, table in present}
            routes = {r for r in wanted.routes if r.target.version == version}
            for table in tables:  # before a rule leads there
                await self._fill(family, table, {r for r in routes if table_of(r.ifindex) == table})
            for address, ifindex in rules:
                if (address, table_of(ifindex)) not in present:
                    await self._rtnl.request("rule", "add", **_rule(family, address, table_of(ifindex)))
            gone = present.keys() - {(a, table_of(i)) for a, i in rules}
            for address, table in gone:
                await self._rtnl.request("rule", "del", **_rule(family, address, table))

    async def _fill(self, family: int, table: int, wanted: Iterable[Route]) -> None:
        needed = {_key(route): route for route in wanted}
        for message in await self._rtnl.routes(table, family):
            here = message.get("dst"), message["dst_len"], message.get("gateway"), message.get("oif")
            if here in needed:
                del needed[here]
            else:
                spec = {"dst": f"{here[0] or _zero(family)}/{here[1]}", "oif": here[3], "table": table}
                await self._rtnl.request("route", "del", family=family, **spec)
        for route in needed.values():
            where = {"gateway": str(route.gateway)} if route.gateway is not None else {}
            scope = {"scope": _UNIVERSE if route.gateway is not None else _LINK} if family == socket.AF_INET else {}
            # The gateway may be known in the main table only.
            flags = {"flags": ["onlink"]} if route.gateway is not None else {}
            await self._rtnl.request(
                "route", "replace", family=family, dst=f"{route.target}/{route.length}", oif=route.ifindex, table=table,
                **where, **scope, **flags,
            )  # fmt: skip

    async def rules(self, family: int) -> list[Any]:
        """Ours, as netlink lists them."""
        return [rule for rule in await self._rtnl.request("rule", "dump", family=family) if is_exit(rule)]


def _rule(family: int, address: IPAddress, table: int) -> dict[str, Any]:
    return {
        "family": family, "priority": EXIT_PRIORITY, "table": table, "src": str(address),
        "src_len": address.max_prefixlen, "fwmark": MARK_EXIT, "fwmask": MARK_EXIT,
    }  # fmt: skip


def _key(route: Route) -> tuple[str | None, int, str | None, int]:
    gateway = str(route.gateway) if route.gateway is not None else None
    return (str(route.target) if route.length else None), route.length, gateway, route.ifindex


def _zero(family: int) -> IPAddress:
    return IPv4Address(0) if family == socket.AF_INET else IPv6Address(0)


def families() -> tuple[int, ...]:
    """Address families of this host."""
    return (socket.AF_INET, socket.AF_INET6) if Path("/proc/sys/net/ipv6").exists() else (socket.AF_INET,)

"""What the kernel's routing needs so that connections live on under addresses that this host or its peers have lost.

All on TUN device `redirect0`, in routing tables 7747, 7748 and 7749 with one rule each (rule_priority.py says where):

keep(L)      this host's old address L.  IPv4 sends only from addresses it has (`__ip_dev_find` in
             `ip_route_output_key_hash_rcu`): L/32 on redirect0.  The `local` route that the kernel adds with it would
             hide the new owner of L, so it moves to table 7747, where only packets with MARK_MOVED look.  IPv6 has no
             such check and needs only the route.
fallback(R)  a peer's old address R: a route in table 7748, after main and default, so that a packet to R gets as far
             as the output hook, which rewrites it.
arrive(R)    rewritten packets say they are from R, which the route to R may contradict: strict rp_filter
             (`__fib_validate_source`) drops them.  A route to R in table 7747 through the interface they come in by,
             and `src_valid_mark` there so that the check looks at the mark.  Only where rp_filter is 1.
the tunnel   what has MARK_TUNNEL and is sent from here finds default routes to redirect0 in table 7749.  The rule says
             `iif lo`: so it also answers the reverse path check of what comes from redirect0 (with `src_valid_mark`
             there), but does not send that back.  `redirect0` may have any MTU (tunnel/device.py), which must not
             become the segment size of a socket whose only route is the fallback: that route has a PMTU of its own.
"""

from __future__ import annotations

import fcntl
import socket
import struct
from collections.abc import Iterable, Mapping
from contextlib import suppress
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import Any

from redirectctl.kernel.constants import (
    FALLBACK_PRIORITY,
    FALLBACK_TABLE,
    MARK_MOVED,
    MARK_TUNNEL,
    ROUTE_TABLE,
    TUN_DEVICE,
    TUNNEL_TABLE,
)
from redirectctl.kernel.errors import KernelError
from redirectctl.kernel.routing.rtnetlink import RouteNetlink
from redirectctl.kernel.routing.rule_priority import first_priorities, is_ours, priority_of
from redirectctl.wire.addr import IPAddress

_TUNSETIFF, _TUNSETPERSIST = 0x400454CA, 0x400454CB
_IFF_TUN, _IFF_NO_PI = 0x0001, 0x1000
_IFF_UP, _IFF_MULTICAST = 0x1, 0x1000
_RT_TABLE_LOCAL, _RT_TABLE_MAIN = 255, 254
_SCOPE_HOST, _SCOPE_LINK = 254, 253
_IFA_F_NOPREFIXROUTE = 0x200
_FOREVER = 0xFFFF_FFFF
_LOOPBACK = 1  # the ifindex of lo in every network namespace
_PROTO_STATIC = 4  # rtm_protocol of our routes
_PROTO_SWITCHED = 177  # the same, and src_valid_mark of the route's interface was switched on by us
_STRICT = 1  # rp_filter
_FALLBACK_MTU = 1500  # what Ethernet carries; the way that the packets really take tells when it is less
_TABLES = (ROUTE_TABLE, FALLBACK_TABLE, TUNNEL_TABLE)
_MARKS: dict[int, dict[str, Any]] = {
    ROUTE_TABLE: {"fwmark": MARK_MOVED, "fwmask": MARK_MOVED},
    TUNNEL_TABLE: {"fwmark": MARK_TUNNEL, "fwmask": MARK_TUNNEL, "iifname": "lo"},
    FALLBACK_TABLE: {},
}
_SIOCGIFFLAGS = 0x8913
_CONF = Path("/proc/sys/net")
_FAMILIES = (socket.AF_INET, socket.AF_INET6)


class Keeper:
    """Keeps old addresses.  Everything may be repeated (a restarted daemon) and is found again in the kernel.

    It works in the network namespace of the thread, and in the event loop, in which it is made.  All methods raise
    KernelError; keep, drop and the like take about 0.5 ms a netlink request, three of them for an IPv4 address.
    """

    def __init__(self) -> None:
        self._rtnl = RouteNetlink()
        self._request = self._rtnl.request
        self._device = 0

    def close(self) -> None:
        """Let go of netlink; what is kept stays kept."""
        self._rtnl.close()

    async def setup(self) -> None:
        """Make device and rules."""
        if TUN_DEVICE not in _interfaces():
            _create_device()
        self._device = socket.if_nametoindex(TUN_DEVICE)
        # No link-local address, router solicitation or multicast group: nothing of its own goes there.
        _write(_CONF / "ipv6/conf" / TUN_DEVICE / "addr_gen_mode", "1")
        # A host may have switched IPv6 off for all interfaces; no route could be made.
        _write(_CONF / "ipv6/conf" / TUN_DEVICE / "disable_ipv6", "0")
        _write(_CONF / "ipv4/conf" / TUN_DEVICE / "src_valid_mark", "1")
        await self._request("link", "set", index=self._device, flags=_IFF_UP, change=_IFF_UP | _IFF_MULTICAST)
        for family in self._families():
            await self._place_rules(family)
            await self._request("route", "add", **self._tunnel_route(family))

    async def _place_rules(self, family: int) -> None:
        rules = await self._request("rule", "dump", family=family)
        wanted = _wanted_rules(rules)
        for table, priority in wanted.items():
            await self._request("rule", "add", family=family, priority=priority, table=table, **_MARKS[table])
        for rule in filter(_is_of_keeper, rules):
            if priority_of(rule) != wanted[rule.get("table")]:
                await self._request("rule", "del", family=family, priority=priority_of(rule), table=rule.get("table"))

    async def keep(self, old: IPAddress) -> None:
        """Let connections of this host go on using ``old``; whoever else has the address can be reached."""
        if old.version == 4:
            await self._request(
                "addr",
                "add",
                index=self._device,
                address=str(old),
                prefixlen=32,
                scope=_SCOPE_HOST,  # inet_select_addr never picks it
                preferred_lft=0,
                valid_lft=_FOREVER,
                flags=_IFA_F_NOPREFIXROUTE,
            )
            await self._request("route", "del", **self._kernel_route(old))
        await self._request("route", "add", **_local_route(old))

    async def drop(self, old: IPAddress) -> None:
        """Undo keep.  An address or route of the same name elsewhere stays."""
        await self._request("route", "del", **_local_route(old))
        if old.version == 4:
            fallbacks = await self._fallbacks()
            await self._request("addr", "del", index=self._device, address=str(old), prefixlen=32)
            # With the last address of a device go all its IPv4 routes (`fib_inetaddr_event`).
            if socket.AF_INET not in {route["family"] for route in await self._routes(TUNNEL_TABLE, socket.AF_INET)}:
                await self._request("route", "add", **self._tunnel_route(socket.AF_INET))
                for peer in fallbacks:
                    await self.fallback(peer)

    async def fallback(self, peer: IPAddress) -> None:
        """Let packets to ``peer`` be routed even if there is no route to it."""
        await self._request("route", "add", **self._fallback_route(peer), metrics={"mtu": _FALLBACK_MTU})

    async def drop_fallback(self, peer: IPAddress) -> None:
        """Undo fallback."""
        await self._request("route", "del", **self._fallback_route(peer))

    async def arrive(self, peer: IPv4Address, ifindex: int) -> None:
        """Let rewritten packets from ``peer`` come in by an interface even where reverse path filtering is strict."""
        if not strict_rp_filter(ifindex):
            return
        name = socket.if_indextoname(ifindex)
        switched = not any(_read(_CONF / "ipv4/conf" / conf / "src_valid_mark") for conf in ("all", name))
        # A second address on an interface that we have switched already must not make us forget that we did.
        switched = switched or any(
            route["proto"] == _PROTO_SWITCHED and route.get("oif") == ifindex
            for route in await self._routes(ROUTE_TABLE, socket.AF_INET)
        )
        proto = _PROTO_SWITCHED if switched else _PROTO_STATIC
        # The route first: it says who has switched, also to a daemon that takes over from one killed in between.
        await self._request("route", "add", **_arrival_route(peer, ifindex), proto=proto)
        if proto == _PROTO_SWITCHED:
            _write(_CONF / "ipv4/conf" / name / "src_valid_mark", "1")

    async def drop_arrival(self, peer: IPv4Address, ifindex: int) -> None:
        """Undo arrive; the last one of an interface restores its src_valid_mark."""
        before = await self._switched()
        await self._request("route", "del", **_arrival_route(peer, ifindex))
        for index in before - await self._switched():
            _switch_back(index)

    async def reconcile(
        self,
        keep: Iterable[IPAddress],
        fallback: Iterable[IPAddress] = (),
        arrivals: Mapping[IPv4Address, int] | None = None,
    ) -> None:
        """Make the kernel have exactly these old addresses, fallbacks and arrivals (peer: ifindex)."""
        await self.setup()
        wanted, wanted_fallback, wanted_arrivals = set(keep), set(fallback), set((arrivals or {}).items())
        for old in await self.kept() - wanted:
            await self.drop(old)
        for peer in await self._fallbacks() - wanted_fallback:
            await self.drop_fallback(peer)
        for peer_address, ifindex in await self._arrivals() - wanted_arrivals:
            await self.drop_arrival(peer_address, ifindex)
        for old in wanted:
            await self.keep(old)
        for peer in wanted_fallback:
            await self.fallback(peer)
        for peer_address, ifindex in wanted_arrivals:
            await self.arrive(peer_address, ifindex)

    async def missing(
        self, keep: Iterable[IPAddress], fallback: Iterable[IPAddress], arrivals: Mapping[IPv4Address, int]
    ) -> dict[str, list[str]]:
        """What of this somebody has taken out, by kind: device, rules, addresses, routes; reconcile() puts it back."""
        if not self._device_is_up():
            return {"device": [TUN_DEVICE]}
        found: dict[str, list[str]] = {"rules": [], "addresses": [], "routes": []}
        wanted, wanted_fallbacks = set(keep), set(fallback)
        for family in self._families():
            version = 4 if family == socket.AF_INET else 6
            rules = await self._request("rule", "dump", family=family)
            there = {(rule.get("table"), priority_of(rule)) for rule in rules}
            found["rules"] += [
                f"IPv{version} rule {priority} to table {table}"
                for table, priority in _wanted_rules(rules).items()
                if (table, priority) not in there
            ]
            if not any(route.get("oif") == self._device for route in await self._routes(TUNNEL_TABLE, family)):
                found["routes"].append(f"default IPv{version} route in table {TUNNEL_TABLE}")
            local = {_target(route) for route in await self._routes(ROUTE_TABLE, family, "local")}
            lost = [(a, ROUTE_TABLE) for a in wanted if a.version == version and a not in local]
            if wanted_fallbacks:
                routed = {_target(route) for route in await self._routes(FALLBACK_TABLE, family)}
                lost += [(a, FALLBACK_TABLE) for a in wanted_fallbacks if a.version == version and a not in routed]
            found["routes"] += [f"route to {target} in table {table}" for target, table in lost]
        if any(address.version == 4 for address in wanted):
            messages = await self._request("addr", "dump", index=self._device, family=socket.AF_INET)
            remote_now = {ip_address(message.get("local")) for message in messages}
            found["addresses"] += [str(a) for a in wanted if a.version == 4 and a not in remote_now]
            # Which comes back with the device, and hides whoever has the address now.
            hiding = await self._routes(_RT_TABLE_LOCAL, socket.AF_INET, "local")
            hidden = [route.get("dst") for route in hiding if route.get("oif") == self._device]
            found["routes"] += [f"{address} moved out of table local" for address in hidden]
        present = await self._arrivals() if arrivals else set()
        found["routes"] += [
            f"route to {peer} in table {ROUTE_TABLE}"
            for peer, interface in arrivals.items()
            if strict_rp_filter(interface) and (peer, interface) not in present
        ]
        return {kind: what for kind, what in found.items() if what}

    def _device_is_up(self) -> bool:
        """Whether the device is there, up, and the one that setup() has seen."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
            try:
                answer = fcntl.ioctl(sock, _SIOCGIFFLAGS, struct.pack("16s24x", TUN_DEVICE.encode()))
                flags: int = struct.unpack_from("16xH", answer)[0]
                return bool(flags & _IFF_UP) and socket.if_nametoindex(TUN_DEVICE) == self._device
            except OSError:
                return False

    async def kept(self) -> set[IPAddress]:
        """The old addresses that are kept now, whole or in part."""
        found = {
            _target(route) for family in self._families() for route in await self._routes(ROUTE_TABLE, family, "local")
        }
        if TUN_DEVICE in _interfaces():
            index = socket.if_nametoindex(TUN_DEVICE)
            messages = await self._request("addr", "dump", index=index, family=socket.AF_INET)
            found |= {ip_address(message.get("local")) for message in messages}
        return found

    async def leftovers(self) -> list[str]:
        """Everything of ours in the kernel, a line each, for doctor."""
        lines = [f"device {TUN_DEVICE}"] if TUN_DEVICE in _interfaces() else []
        for family in self._families():
            lines += [f"rule {rule.get('priority')} to table {rule.get('table')}" for rule in await self._rules(family)]
            for table in _TABLES:
                lines += [f"route to {_target(route)} in table {table}" for route in await self._routes(table, family)]
        return lines

    async def rp_filter_conflicts(self, arrivals: Mapping[IPv4Address, int]) -> list[str]:
        """For doctor: what of ``arrivals`` (peer: ifindex) strict rp_filter may drop, a line each."""
        present = await self._arrivals()
        return [
            f"rp_filter is strict on {socket.if_indextoname(ifindex)}: it may drop packets of connections with {peer}"
            for peer, ifindex in arrivals.items()
            if strict_rp_filter(ifindex) and (peer, ifindex) not in present
        ]

    async def teardown(self) -> None:
        """Remove all of it; what is not there is no error."""
        switched = await self._switched()
        for family in self._families():
            for rule in await self._rules(family):
                table, priority = rule.get("table"), rule.get("priority")
                await self._request("rule", "del", family=family, table=table, priority=priority)
            for table in _TABLES:
                for route in await self._routes(table, family):
                    kind = {"type": route["type"], "scope": route["scope"], "dst_len": route["dst_len"]}
                    await self._request("route", "del", **_route(_target(route), table, route.get("oif")), **kind)
        for index in switched:
            _switch_back(index)
        if TUN_DEVICE in _interfaces():
            await self._request("link", "del", index=socket.if_nametoindex(TUN_DEVICE))
        self._device = 0

    def _kernel_route(self, old: IPAddress) -> dict[str, Any]:
        """The route that `fib_add_ifaddr` adds with the address."""
        return {**_route(old, _RT_TABLE_LOCAL, self._device), "type": "local", "scope": _SCOPE_HOST}

    def _fallback_route(self, peer: IPAddress) -> dict[str, Any]:
        scope = {"scope": _SCOPE_LINK} if peer.version == 4 else {}
        return {**_route(peer, FALLBACK_TABLE, self._device), **scope}

    def _tunnel_route(self, family: int) -> dict[str, Any]:
        scope = {"scope": _SCOPE_LINK} if family == socket.AF_INET else {}
        return {"dst": "default", "family": family, "table": TUNNEL_TABLE, "oif": self._device, **scope}

    def _families(self) -> tuple[int, ...]:
        return _FAMILIES if (_CONF / "ipv6").exists() else _FAMILIES[:1]

    async def _fallbacks(self) -> set[IPAddress]:
        return {_target(route) for family in self._families() for route in await self._routes(FALLBACK_TABLE, family)}

    async def _arrivals(self) -> set[tuple[IPv4Address, int]]:
        routes = await self._routes(ROUTE_TABLE, socket.AF_INET, "unicast")
        return {(IPv4Address(route.get("dst")), route.get("oif")) for route in routes}

    async def _switched(self) -> set[int]:
        """Interfaces whose src_valid_mark we have switched on."""
        routes = await self._routes(ROUTE_TABLE, socket.AF_INET, "unicast")
        return {route.get("oif") for route in routes if route["proto"] == _PROTO_SWITCHED}

    async def _rules(self, family: int) -> list[Any]:
        return [rule for rule in await self._request("rule", "dump", family=family) if _is_of_keeper(rule)]

    async def _routes(self, table: int, family: int, kind: str | None = None) -> list[Any]:
        return await self._rtnl.routes(table, family, {None: None, "unicast": 1, "local": 2}[kind])


def _is_of_keeper(rule: Any) -> bool:
    """Made by us, at whatever priority; others may lead to our tables, too."""
    return is_ours(rule) and rule.get("fwmark") == _MARKS[rule.get("table")].get("fwmark")


def _wanted_rules(rules: Iterable[Any]) -> dict[int, int]:
    """Of each table of ours, the priority that its rule is to have among all rules of a family."""
    return {**first_priorities(rules), FALLBACK_TABLE: FALLBACK_PRIORITY}


def strict_rp_filter(ifindex: int) -> bool:
    """Whether reverse path filtering is strict on an interface: the greater of `all` and its own value is 1."""
    try:
        name = socket.if_indextoname(ifindex)
    except OSError:
        return False
    return max(_read(_CONF / "ipv4/conf" / conf / "rp_filter") for conf in ("all", name)) == _STRICT


def _local_route(old: IPAddress) -> dict[str, Any]:
    scope = {"scope": _SCOPE_HOST} if old.version == 4 else {}
    return {**_route(old, ROUTE_TABLE, _LOOPBACK), "type": "local", **scope}


def _arrival_route(peer: IPv4Address, ifindex: int) -> dict[str, Any]:
    return {**_route(peer, ROUTE_TABLE, ifindex), "scope": _SCOPE_LINK}


def _route(target: IPAddress, table: int, ifindex: int) -> dict[str, Any]:
    family = socket.AF_INET if target.version == 4 else socket.AF_INET6
    return {"dst": _prefix(target), "family": family, "table": table, "oif": ifindex}


def _prefix(target: IPAddress) -> str:
    return f"{target}/{target.max_prefixlen}"


def _target(route: Any) -> IPAddress:
    """Where a route leads; the default route has no RTA_DST."""
    zero: IPAddress = IPv4Address(0) if route["family"] == socket.AF_INET else IPv6Address(0)
    return ip_address(route.get("dst") or str(zero))


def _interfaces() -> set[str]:
    return {name for _, name in socket.if_nameindex()}


def _create_device() -> None:
    what = f"create TUN device {TUN_DEVICE}"
    try:
        with open("/dev/net/tun", "r+b", buffering=0) as tun:
            fcntl.ioctl(tun, _TUNSETIFF, struct.pack("16sH22x", TUN_DEVICE.encode(), _IFF_TUN | _IFF_NO_PI))
            fcntl.ioctl(tun, _TUNSETPERSIST, 1)
    except FileNotFoundError as error:
        raise KernelError(what, "there is no /dev/net/tun", "load the kernel module: modprobe tun") from error
    except OSError as error:
        raise KernelError(what, error.strerror or str(error), "redirectctl needs root and CAP_NET_ADMIN") from error


def _switch_back(ifindex: int) -> None:
    with suppress(OSError):  # the interface went
        _write(_CONF / "ipv4/conf" / socket.if_indextoname(ifindex) / "src_valid_mark", "0")


def _read(path: Path) -> int:
    try:
        return int(path.read_text())
    except OSError:
        return 0


def _write(path: Path, text: str) -> None:
    """Write a sysctl; a kernel without it has nothing to switch off."""
    try:
        path.write_text(text)
    except FileNotFoundError:
        return
    except OSError as error:
        raise KernelError(f"write {path}", error.strerror or str(error), "redirectctl needs root") from error

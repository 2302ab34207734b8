"""The way to another host, as the kernel sees it now."""

from __future__ import annotations

import os
import socket
from ipaddress import ip_address
from typing import Any, NamedTuple

from pyroute2 import AsyncIPRoute
from pyroute2.netlink.exceptions import NetlinkError

from redirectctl.kernel.constants import TUN_DEVICE
from redirectctl.wire.addr import IPAddress


class Path(NamedTuple):
    """A route."""

    interface: str
    source: IPAddress | None  # what the kernel would choose
    gateway: IPAddress | None
    mtu: int  # of the interface, or less where the kernel has learned it (RFC 1191, RFC 8201)
    up: bool


async def look_up(target: IPAddress, source: IPAddress | None = None) -> Path | str:
    """The route to ``target``, for packets from ``source`` if given, or why there is none."""
    netlink: Any = AsyncIPRoute()
    try:
        family = socket.AF_INET if target.version == 4 else socket.AF_INET6
        ours = {"src": str(source), "src_len": source.max_prefixlen} if source is not None else {}
        (route,) = await netlink.route("get", dst=str(target), family=family, **ours)
        (link,) = await netlink.link("get", index=route.get("oif"))
    except NetlinkError as error:
        return os.strerror(error.code or 0)
    finally:
        netlink.close()
    if link.get("ifname") == TUN_DEVICE:
        return "the only route there is redirectctl's own, for an old address"
    metrics = route.get("metrics")
    learned = metrics.get("mtu") if metrics is not None else None
    chosen, gateway = route.get("prefsrc"), route.get("gateway")
    return Path(
        link.get("ifname"),
        source or (ip_address(chosen) if chosen else None),
        ip_address(gateway) if gateway else None,
        min(learned or link.get("mtu"), link.get("mtu")),
        link.get("operstate") in ("UP", "UNKNOWN"),
    )

"""Requests to rtnetlink that may be repeated."""

from __future__ import annotations

import asyncio
import errno
import os
from typing import Any

from pyroute2 import AsyncIPRoute
from pyroute2.netlink.exceptions import NetlinkError

from redirectctl.kernel.constants import TUN_DEVICE
from redirectctl.kernel.errors import KernelError

# What is there already, or is not there.  ENODEV: the interface went, and its routes with it.
_DONE = {"add": {errno.EEXIST}, "del": {errno.ESRCH, errno.ENOENT, errno.EADDRNOTAVAIL, errno.ENODEV}}


class RouteNetlink:
    """One at a time, in the network namespace of the thread, and in the event loop, in which it is made."""

    def __init__(self) -> None:
        self._netlink: Any = AsyncIPRoute()
        self._one = asyncio.Lock()  # request at a time: during a dump the kernel refuses others (EBUSY)

    def close(self) -> None:
        """Close the socket."""
        self._netlink.close()

    async def request(self, kind: str, verb: str, **arguments: Any) -> Any:
        """Takes about 0.5 ms.  To add what is there and to delete what is not is no error.  Raises KernelError."""
        try:
            async with self._one:
                answer = await getattr(self._netlink, kind)(verb, **arguments)
                return [message async for message in answer] if verb == "dump" else answer
        except NetlinkError as error:
            if error.code in _DONE.get(verb, set()):
                return ()
            subject = arguments.get("dst") or arguments.get("address") or arguments.get("table") or TUN_DEVICE
            raise KernelError(
                f"{verb} {kind} {subject}",
                os.strerror(error.code),
                "redirectctl needs root; is a network manager changing what it made?",
            ) from error

    async def routes(self, table: int, family: int, kind: int | None = None) -> list[Any]:
        """Those of a table; ``kind``: RTN_UNICAST or RTN_LOCAL only."""
        routes = await self.request("route", "dump", table=table, family=family)
        return [r for r in routes if r.get("table") == table and (kind is None or r["type"] == kind)]

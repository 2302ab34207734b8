"""Sockets that their programs have bound to an interface (SO_BINDTODEVICE, VRFs aside).

Such a socket takes only what comes in by its interface, and looks there alone for routes: neither rewritten packets on
another interface nor the tunnel's, which come from redirect0, would reach it.  So the binding is lifted for as long as
the connection travels, or waits, otherwise than its socket believes, and put back afterwards.  Which interfaces the
connection may use meanwhile is the engine's business (flows/devices.py).

Nothing is to leave by another interface unnoticed: the binding is lifted after the kernel's rules are there, and put
back before they go.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from typing import NamedTuple

from redirectctl.flows.connection import Connection, Flow
from redirectctl.flows.engine import Engine
from redirectctl.kernel.sockets.borrow import Borrow, Handle
from redirectctl.kernel.sockets.diag import SocketInfo
from redirectctl.wire.addr import FourTuple

_log = logging.getLogger(__name__)

LookUp = Callable[[Iterable[FourTuple]], dict[FourTuple, SocketInfo]]


class _Lent(NamedTuple):
    socket: FourTuple
    handle: Handle
    device: str  # that it is to be bound to; empty: none


class Bindings:
    """Those of the connections that the engine knows."""

    def __init__(self, engine: Engine, look_up: LookUp, borrow: Borrow) -> None:
        self._engine = engine
        self._look_up = look_up
        self._borrow = borrow

    @asynccontextmanager
    async def follow(self, add: Iterable[Flow], remove: Iterable[Flow] = ()) -> AsyncIterator[None]:
        """While the kernel's rules are changed so, by the body: bindings of the sockets of these follow."""
        add, remove = list(add), list(remove)
        found = (self._engine.table.at(flow.socket) for flow in (*add, *remove))
        if not any(c.bound for c in found if c is not None):
            yield
            return
        after: dict[FourTuple, Flow | None] = {flow.socket: None for flow in remove}
        lent = await self._lend(after | {flow.socket: flow for flow in add})
        try:
            _bind([one for one in lent if one.device])
            try:
                yield
            except BaseException:
                _bind([one._replace(device="") for one in lent if one.device])
                raise
            _bind([one for one in lent if not one.device])
        finally:
            for one in lent:
                one.handle.close()

    async def _lend(self, after: dict[FourTuple, Flow | None]) -> list[_Lent]:
        """Those whose binding is not as it is to be."""
        found = ((flow, self._engine.table.at(socket)) for socket, flow in after.items())
        wanted = {c.socket: self._device(c, flow) for flow, c in found if c is not None and c.bound}
        sockets = self._look_up(wanted) if wanted else {}
        inodes = {info.inode: socket for socket, info in sockets.items() if bool(info.ifindex) != bool(wanted[socket])}
        handles = await asyncio.to_thread(self._borrow, inodes) if inodes else {}
        for inode in inodes.keys() - handles.keys():
            _log.warning("%s is bound to an interface, and cannot be borrowed", inodes[inode])
        return [_Lent(inodes[inode], handle, wanted[inodes[inode]]) for inode, handle in handles.items()]

    def _device(self, c: Connection, flow: Flow | None) -> str:
        if flow is not None and (flow.tunnel or flow.suspended or flow.wire != flow.socket):
            return ""
        # It may have come back to its address on another interface, where policy lets it.
        here = self._engine.network.interfaces.get(c.socket.local.host)
        return c.device if here is None or here.name == c.device else ""


def _bind(lent: Iterable[_Lent]) -> None:
    for socket, handle, device in lent:
        try:
            handle.bind(device)
        except OSError as error:
            _log.warning("%s cannot be bound to %s: %s", socket, device or "no interface", error.strerror)

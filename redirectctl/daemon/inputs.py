"""What kernel and network tell the engine."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Final

from redirectctl.api import schema
from redirectctl.daemon import notices
from redirectctl.daemon.driver import Driver
from redirectctl.daemon.eventlog import EventLog
from redirectctl.daemon.held import HeldResets
from redirectctl.flows.commands import Notice
from redirectctl.kernel.errors import KernelError
from redirectctl.kernel.netfilter.packet_queue import QueuedPacket
from redirectctl.kernel.tcp.backoff import BackoffReverter
from redirectctl.kernel.tunnel.carrier import Report, Sight
from redirectctl.wire.addr import FourTuple, IPAddress, SockAddr
from redirectctl.wire.ip import PacketError, parse_tcp

_log = logging.getLogger(__name__)

REFUSED_AGAIN: Final = 60.0  # seconds between two times that the event log is told that sockets cannot be borrowed


class Inputs:
    """Callbacks.  Those of other threads come by way of the event loop."""

    def __init__(self, driver: Driver, log: EventLog, held: HeldResets, device_gone: Callable[[], None]) -> None:
        self._driver = driver
        self._engine = driver.engine
        self._log = log
        self._held = held
        self._device_gone = device_gone
        self._loop: asyncio.AbstractEventLoop | None = None
        self._refused_at = float("-inf")  # when the event log was last told that sockets cannot be borrowed

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """From now on other threads are heard."""
        self._loop = loop

    def datagram(self, data: bytes, source: SockAddr, local: IPAddress, port: int) -> None:
        """On one of our ports."""
        self._driver.tell(self._engine.receive, data, source, local, port)

    def servers(self, servers: Mapping[str, tuple[SockAddr, ...]]) -> None:
        """Where names of rendezvous lead."""
        self._driver.tell(self._engine.rendezvous_at, servers)

    def reset(self, packet: QueuedPacket, backoff: BackoffReverter) -> None:
        """A RST for a protected connection."""
        try:
            segment = parse_tcp(packet.payload)
        except PacketError:
            packet.drop()  # a RST that cannot be read cannot be asked about
            return
        here = FourTuple(segment.destination, segment.source)
        numbers = backoff.known([here]).get(here)
        opened = numbers is not None and numbers.opened
        self._driver.tell(self._engine.rst, here, self._held.hold(packet), opened=opened)

    def token(self, wire: FourTuple, token: bytes, numbers: tuple[int, int]) -> None:
        """In a segment that has arrived."""
        self._driver.tell(self._engine.token, wire, token, numbers)

    def token_sent(self, socket: FourTuple, token: bytes, numbers: tuple[int, int]) -> None:
        """In a segment that leaves."""
        self._driver.tell(self._engine.proved, socket, token, numbers)

    def no_token(self, reason: str, connection: FourTuple | None) -> None:
        """A segment carries none, or none that is of use."""
        _log.debug("no token for or from %s: %s", connection, reason)

    # -- of other threads ---------------------------------------------------------------------------------------------

    def report_in_thread(self, report: Report) -> None:
        """The carrier has something to tell."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._report, report)

    def _report(self, report: Report) -> None:
        if report.what is Sight.RETRANSMISSION:
            return  # StallWatch looks at all connections, not at those in the tunnel only
        if isinstance(report.what, Sight):
            _log.log(logging.ERROR if report.what is Sight.DEVICE_GONE else logging.DEBUG, "tunnel: %s", report.what)
            if report.what is Sight.DEVICE_GONE:
                self._device_gone()
            return
        table = self._engine.table
        connection = table.at(report.socket) if report.socket is not None else None
        notice = Notice(
            "packet.refused",
            connection.cid if connection is not None else None,
            connection.peer if connection is not None else None,
            str(report.what),
            report.source.host if report.source is not None else None,
            {"source": str(report.source), "count": report.count},
        )
        notices.record(self._log, table, notice)

    def refused_in_thread(self, error: KernelError) -> None:
        """A socket could not be borrowed."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self.refused, error)

    def refused(self, error: KernelError) -> None:
        """Sockets cannot be borrowed: what is suspended may not live for long, and nothing else would tell."""
        _log.error("%s", error)
        if self._driver.now - self._refused_at >= REFUSED_AGAIN:
            self._refused_at = self._driver.now
            self._log.record(schema.EventName.KERNEL_REFUSED, reason="borrowing", detail=str(error))

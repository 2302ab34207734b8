"""The rendezvous's part of the tunnel: datagrams between two of its guests go on as they came.

A chunk is what UDP_GRO puts together: datagrams of one sender, all of one size but the last.  Nothing of a datagram is
looked at but its flow; a run of datagrams for one host goes on with one system call.
"""

from __future__ import annotations

import logging
import socket
import struct
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from redirectctl.kernel.datagrams import NO_SEGMENTATION, UDP_SEGMENT, Ancillary, sent_from, socket_for
from redirectctl.kernel.tunnel.reports import Source
from redirectctl.kernel.tunnel.segments import LARGEST_SEND, MOST_AT_ONCE
from redirectctl.proto.bucket import Bucket
from redirectctl.wire.addr import IPAddress, SockAddr
from redirectctl.wire.tunnel import HEAD, VERSION, Type

_log = logging.getLogger(__name__)

BURST_SECONDS: Final = 0.25  # of its rate that a guest may send at once: TCP sends in bursts of a round trip
LEAST_BURST: Final = 1 << 18  # bytes

_KINDS = (int(Type.TUNNEL), int(Type.PROBE))


@dataclass(slots=True)
class Relayed:
    """What has been relayed of one guest."""

    datagrams: int = 0
    bytes: int = 0
    dropped: int = 0  # datagrams beyond its rate, or that the kernel did not take


class _Hop:
    """Where a flow goes on to."""

    __slots__ = ("address", "ancillary", "sock")

    def __init__(self, sock: socket.socket, to: SockAddr, local: IPAddress) -> None:
        self.sock = sock
        self.address = (str(to.host), to.port)
        self.ancillary = [sent_from(local)]


class _Guest:
    __slots__ = ("bytes", "hops", "relayed")

    def __init__(self, hops: dict[int, _Hop], rate: float) -> None:
        self.hops = hops
        self.bytes = Bucket(rate, _burst(rate), _burst(rate), time.monotonic())
        self.relayed = Relayed()

    def limit(self, rate: float) -> None:
        self.bytes.rate, self.bytes.burst = rate, _burst(rate)


def _burst(rate: float) -> float:
    return max(LEAST_BURST, rate * BURST_SECONDS)


class Relays:
    """By where datagrams come from.  Calls replace single references; the carrier's thread reads them."""

    def __init__(self, sockets: Sequence[socket.socket]) -> None:
        self._sockets = list(sockets)
        self._by_source: dict[Source, _Guest] = {}
        self._source_of: dict[bytes, Source] = {}

    def set(
        self, key: bytes, source: SockAddr | None, routes: Mapping[int, tuple[SockAddr, IPAddress]], rate: float
    ) -> None:
        """What comes from ``source`` goes on as ``routes`` says, at most ``rate`` bytes a second; None: nothing."""
        guests = dict(self._by_source)
        old = guests.pop(self._source_of.pop(key), None) if key in self._source_of else None
        if source is not None and routes:
            hops: dict[tuple[SockAddr, IPAddress], _Hop | None] = {}
            for way in set(routes.values()):
                hops[way] = self._hop(*way)
            table = {flow: hop for flow, way in routes.items() if (hop := hops[way]) is not None}
            guest = old or _Guest(table, rate)
            guest.hops = table
            guest.limit(rate)
            self._source_of[key] = str(source.host), source.port
            guests[self._source_of[key]] = guest
        self._by_source = guests

    def counters(self, key: bytes) -> Relayed:
        """What has been relayed of a guest."""
        guest = self._by_source.get(self._source_of.get(key, ("", 0)))
        return guest.relayed if guest is not None else Relayed()

    def pass_on(self, chunk: memoryview, size: int, source: Source) -> list[memoryview]:
        """Relay what is to be relayed of a chunk; returns the rest of it."""
        guest = self._by_source.get((source[0], source[1]))
        if guest is None:
            return [chunk]
        rest: list[memoryview] = []
        start, current = 0, guest.hops.get(_flow(chunk, 0))
        for at in range(size, len(chunk), size):
            hop = guest.hops.get(_flow(chunk, at))
            if hop is not current:
                self._go(guest, current, chunk[start:at], size, rest)
                start, current = at, hop
        self._go(guest, current, chunk[start:], size, rest)
        return rest

    def _hop(self, to: SockAddr, local: IPAddress) -> _Hop | None:
        sock = socket_for(to.host, local, self._sockets)
        return _Hop(sock, to, local) if sock is not None else None

    def _go(self, guest: _Guest, hop: _Hop | None, run: memoryview, size: int, rest: list[memoryview]) -> None:
        if hop is None:
            rest.append(run)
            return
        step = min(MOST_AT_ONCE, LARGEST_SEND // size) * size
        for at in range(0, len(run), step):
            some = run[at : at + step]
            count = -(-len(some) // size)
            if not guest.bytes.take(time.monotonic(), len(some)) or not _send(hop, some, size):
                guest.relayed.dropped += count
                continue
            guest.relayed.datagrams += count
            guest.relayed.bytes += len(some)


def _flow(chunk: memoryview, at: int) -> int:
    """Of the datagram that begins there; 0, which no flow is, if it is none of the tunnel's."""
    if len(chunk) - at < HEAD.size:
        return 0
    kind, version, _, _, flow, _ = HEAD.unpack_from(chunk, at)
    return int(flow) if kind in _KINDS and version == VERSION else 0


def _send(hop: _Hop, run: memoryview, size: int) -> bool:
    ancillary: Ancillary = hop.ancillary
    if len(run) > size:
        ancillary = [*ancillary, (socket.SOL_UDP, UDP_SEGMENT, struct.pack("=H", size))]
    try:
        hop.sock.sendmsg([run], ancillary, 0, hop.address)
    except OSError as error:
        if error.errno not in NO_SEGMENTATION or len(run) <= size:
            _log.debug("relay to %s: %s", hop.address, error)
            return False
        return sum(_send(hop, run[at : at + size], size) for at in range(0, len(run), size)) > 0
    return True

"""Path MTU discovery for moved connections (RFC 1191, RFC 8201).

A router that cannot forward a segment answers with an ICMP error that quotes it as it was on the wire.  The kernel
looks for a socket with those addresses, finds none if the connection has moved, and goes on sending what does not fit.
So such errors are read here as well, and handed to the local stack once more with the socket tuple in them; TCP checks
the quoted sequence number as it always does (`tcp_v4_err`).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
from collections.abc import Callable
from typing import Protocol

from redirectctl.kernel.errors import KernelError
from redirectctl.wire.addr import FourTuple
from redirectctl.wire.ip import PacketError, parse_ip, parse_too_big

_SOL_RAW, _ICMP_FILTER, _ICMP6_FILTER = 255, 1, 1
_ONLY_UNREACHABLE = struct.pack("=I", ~(1 << 3) & 0xFFFFFFFF)  # bits that are set are kept from us (icmp(7))
_ONLY_TOO_BIG = struct.pack("=8I", ~(1 << 2) & 0xFFFFFFFF, *[0xFFFFFFFF] * 7)  # RFC 3542, section 3.2
_BATCH = 64  # messages before the event loop gets its turn
_RECEIVE = 1500


class TooBigInjector(Protocol):
    """What is needed of RawInjector."""

    def too_big(self, connection: FourTuple, seq: int, mtu: int) -> None:
        """Tell the local stack."""


class MtuWatch:
    """Reads ICMP errors of the current network namespace."""

    def __init__(self, socket_of: Callable[[FourTuple], FourTuple | None], injector: TooBigInjector) -> None:
        """``socket_of``: the socket tuple of a moved connection by its wire tuple.  Raises KernelError."""
        self._socket_of = socket_of
        self._injector = injector
        self._sockets: list[tuple[socket.socket, int]] = []
        kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
        try:
            icmp = socket.socket(socket.AF_INET, kind, socket.IPPROTO_ICMP)
            self._sockets.append((icmp, 4))
            icmp.setsockopt(_SOL_RAW, _ICMP_FILTER, _ONLY_UNREACHABLE)
            if os.path.exists("/proc/thread-self/net/if_inet6"):
                icmp6 = socket.socket(socket.AF_INET6, kind, socket.IPPROTO_ICMPV6)
                self._sockets.append((icmp6, 6))
                icmp6.setsockopt(socket.IPPROTO_ICMPV6, _ICMP6_FILTER, _ONLY_TOO_BIG)
        except OSError as error:
            self.close()
            why = os.strerror(error.errno or 0)
            raise KernelError("reading ICMP errors", why, "it needs CAP_NET_RAW") from error

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin."""
        for sock, version in self._sockets:
            loop.add_reader(sock.fileno(), self.read, sock, version)

    def close(self) -> None:
        """Stop."""
        for sock, _ in self._sockets:
            if sock.fileno() >= 0:
                with contextlib.suppress(RuntimeError):  # never started
                    asyncio.get_running_loop().remove_reader(sock.fileno())
                sock.close()
        self._sockets = []

    def read(self, sock: socket.socket, version: int) -> None:
        """Handle what has arrived; never blocks."""
        for _ in range(_BATCH):
            try:
                packet = sock.recv(_RECEIVE)
            except OSError:
                return
            try:
                # A raw ICMP socket delivers the IP header too, a raw ICMPv6 socket does not (raw(7), RFC 3542).
                too_big = parse_too_big(parse_ip(packet).payload if version == 4 else packet, version)
            except PacketError:
                continue
            connection = self._socket_of(too_big.connection)
            if connection is not None:
                self._injector.too_big(connection, too_big.seq, too_big.mtu)

"""Packets made here for a socket of this host, as if they came from the network.

They come in by the loopback device and never reach the wire: the address of the socket is first seen to be delivered
locally. MARK_MOVED lets the routing rules find old addresses that only moved connections still use.

IPv4 goes there through a raw socket: the route that the output side found stays with the packet, so that reverse-path
filters do not see it. IPv6, which has no such filter in its routing, is put on the device directly. A raw IPv6 socket
makes a copy of the route for the packet (FLOWI_FLAG_KNOWN_NH in `ip6_pol_route`), which the connection keeps as
`sk_rx_dst`. `rt6_uncached_list_flush_dev` does not let go of the `from` in it, so the interface could not be removed
until something else arrives on the connection ("unregister_netdevice: waiting for eth0 to become free").

A socket that is bound to an interface takes only what says that it came in there. What has a route of the output side
says so in IPv6 too (`ip6_rcv_core`: the interface of the address, not the loopback device). So for such sockets the
kernel makes the header, and no copy of the route then.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable
from typing import Protocol

from redirectctl.kernel.constants import MARK_MOVED
from redirectctl.kernel.datagrams import IPV6_FREEBIND, sent_from
from redirectctl.kernel.errors import KernelError
from redirectctl.kernel.netlink import HEADER
from redirectctl.kernel.routing.lookup import NEWROUTE, RTMSG, Question, question_to_kernel
from redirectctl.wire.addr import FourTuple, IPAddress
from redirectctl.wire.ip import TcpFlags, build_tcp, build_too_big, build_unreachable

_RTN_LOCAL = 2
_IPV6_HEADER = 40  # bytes
_FLAGS = socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
_ETH_P_IPV6 = 0x86DD
_LOOPBACK = ("lo", _ETH_P_IPV6, 0, 0, bytes(6))


class Injector(Protocol):
    """What others use of RawInjector: tests give a fake of this."""

    def delivered_here(self, addresses: Iterable[IPAddress]) -> set[IPAddress]:
        """Those of the addresses for which an injected packet stays on this host."""

    def syn(self, connection: FourTuple, *, bound: bool = False) -> None:
        """Ask the socket to say where it is.  ``bound``: it is bound to an interface."""

    def ack(self, connection: FourTuple, *, seq: int, ack: int, window: int) -> None:
        """Repeat the peer's last acknowledgement."""

    def unreachable(self, connection: FourTuple, seq: int, times: int) -> None:
        """Say that a segment found no way."""


class RawInjector:
    """Raw sockets of the current network namespace.  Each packet costs some 10 microseconds, sending never blocks."""

    def __init__(self, *, mark: int = MARK_MOVED) -> None:
        """Raises KernelError without CAP_NET_RAW and CAP_NET_ADMIN.  A host without IPv6 is fine."""
        self._mark = mark
        self._raw: dict[int, socket.socket] = {}
        self._bound: socket.socket | None = None
        try:
            self._netlink = socket.socket(
                socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE
            )
            # IPPROTO_RAW: the header is ours (raw(7)); protocol 0: a packet socket that receives nothing (packet(7)).
            self._open(4, socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
            if os.path.exists("/proc/thread-self/net/if_inet6"):
                self._open(6, socket.AF_PACKET, socket.SOCK_DGRAM, 0)
        except OSError as error:
            self.close()
            why = os.strerror(error.errno or 0)
            raise KernelError("opening raw sockets", why, "it needs CAP_NET_RAW and CAP_NET_ADMIN") from error

    def _open(self, version: int, family: int, kind: int, protocol: int) -> None:
        raw = socket.socket(family, kind | _FLAGS, protocol)
        self._raw[version] = raw
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, self._mark)
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 0)  # neither receives anything

    def close(self) -> None:
        """Close the sockets."""
        for raw in (*self._raw.values(), *([self._bound] if self._bound is not None else [])):
            raw.close()
        self._netlink.close()

    def delivered_here(self, addresses: Iterable[IPAddress]) -> set[IPAddress]:
        """Those of ``addresses`` that the routing rules call local for a packet with our mark (RTM_GETROUTE)."""
        return {address for address in set(addresses) if address.version in self._raw and self._is_local(address)}

    def _is_local(self, address: IPAddress) -> bool:
        self._netlink.send(question_to_kernel(0, Question(address, mark=self._mark)))
        reply = self._netlink.recv(65536)
        if len(reply) < HEADER.size + RTMSG.size or HEADER.unpack_from(reply)[1] != NEWROUTE:
            return False
        return bool(RTMSG.unpack_from(reply, HEADER.size)[7] == _RTN_LOCAL)

    def syn(self, connection: FourTuple, *, bound: bool = False) -> None:
        """A SYN as if from the peer: the socket answers with an ACK that carries its snd_nxt and rcv_nxt.

        RFC 5961 section 4 (`tcp_validate_incoming`): whatever its sequence number, a SYN for a connection that exists
        is thrown away and answered with a challenge ACK, at most one each 500 ms (net.ipv4.tcp_invalid_ratelimit).
        Any other segment needs a sequence number outside the window, or its data would be taken for the peer's.
        """
        packet = build_tcp(connection.remote, connection.local, seq=0, flags=TcpFlags.SYN)
        if bound and connection.version == 6 and 6 in self._raw:
            self._send_by_address(connection, packet)
        else:
            self._send(connection, packet)

    def ack(self, connection: FourTuple, *, seq: int, ack: int, window: int) -> None:
        """A pure ACK as if from the peer.  ``window``: as it stands in the header."""
        packet = build_tcp(connection.remote, connection.local, seq=seq, ack=ack, flags=TcpFlags.ACK, window=window)
        self._send(connection, packet)

    def unreachable(self, connection: FourTuple, seq: int, times: int) -> None:
        """So many ICMP host unreachable (ICMPv6: no route) about the socket's segment with number ``seq``."""
        packet = build_unreachable(connection, seq)
        for _ in range(times):
            self._send(connection, packet)

    def too_big(self, connection: FourTuple, seq: int, mtu: int) -> None:
        """An ICMP fragmentation needed (ICMPv6: packet too big) about the socket's segment with number ``seq``."""
        self._send(connection, build_too_big(connection, seq, mtu))

    def _send_by_address(self, connection: FourTuple, packet: bytes) -> None:
        """IPv6, as if it had come in by the interface that has the local address."""
        try:
            if self._bound is None:
                self._bound = self._open_bound()
            about = sent_from(connection.remote.host)
            self._bound.sendmsg([packet[_IPV6_HEADER:]], [about], 0, (str(connection.local.host), 0))
        except OSError as error:
            why = os.strerror(error.errno or 0)
            raise KernelError(f"injecting a packet for {connection}", why, "does a firewall refuse it?") from error

    def _open_bound(self) -> socket.socket:
        raw = socket.socket(socket.AF_INET6, socket.SOCK_RAW | _FLAGS, socket.IPPROTO_TCP)
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, self._mark)
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 0)
        raw.setsockopt(socket.IPPROTO_IPV6, IPV6_FREEBIND, 1)  # the source is the peer's address
        raw.bind(("::1", 0))  # else it would be handed a copy of each TCP segment of the host
        return raw

    def _send(self, connection: FourTuple, packet: bytes) -> None:
        raw = self._raw.get(connection.version)
        if raw is None:
            raise KernelError("injecting a packet", "this host has no IPv6", "enable it")
        try:
            raw.sendto(packet, (str(connection.local.host), 0) if connection.version == 4 else _LOOPBACK)
        except OSError as error:
            why = os.strerror(error.errno or 0)
            hint = "does a firewall refuse packets on the loopback device?"
            raise KernelError(f"injecting a packet for {connection}", why, hint) from error

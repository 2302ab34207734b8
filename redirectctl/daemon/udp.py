"""The control port: UDP over both families, with a say in the source address of every datagram (RFC 3542, ip(7)).

And other ports of ours, which the kernel chooses, for peers that do not answer: by number, as the engine counts them.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import socket
from collections.abc import Callable, Container, Iterable
from pathlib import Path

from redirectctl.api.text import shortened
from redirectctl.kernel.datagrams import PKTINFO_SPACE, arrived_at, sent_from, udp_socket
from redirectctl.kernel.errors import KernelError
from redirectctl.kernel.processes import procfs
from redirectctl.kernel.tunnel.reuseport import share_port
from redirectctl.wire.addr import IPAddress, SockAddr, parse_ip

_log = logging.getLogger(__name__)

_RECEIVE = 2048  # longer ones are cut, and refused as too long
_BUFFER = 4 << 20  # bytes, of which a small datagram takes 768: some thousand connections may end at once
_BATCH = 64  # datagrams before the event loop gets its turn

_NO_IPV6 = (errno.EAFNOSUPPORT, errno.EPROTONOSUPPORT, errno.EADDRNOTAVAIL)
OTHERS = 32  # such ports at a time

OnDatagram = Callable[[bytes, SockAddr, IPAddress, int], None]
Bound = list[tuple[socket.socket, IPAddress | None]]  # sockets of one port, and their addresses; None: all


class ControlPortError(Exception):
    """The port cannot be had: ``what: why; what to do``."""


class ControlPort:
    """Sends and receives datagrams; calls ``on_datagram(data, source, our address, number of our port)``."""

    def __init__(self, port: int, listen: Iterable[str], on_datagram: OnDatagram) -> None:
        """Bind; an empty ``listen`` is all addresses.  Raises ControlPortError."""
        self.port = port
        self._on_datagram = on_datagram
        self._loop: asyncio.AbstractEventLoop | None = None
        self._sockets: Bound = []
        self._others: dict[int, Bound] = {}
        wanted: list[IPAddress | None] = [parse_ip(a) for a in listen]
        try:
            if wanted:
                for address in wanted:
                    if address is not None:
                        self._bind(address.version, str(address), address)
            else:
                self._bind(4, "0.0.0.0", None)
                if socket.has_ipv6:
                    self._bind_v6_if_there_is()
        except OSError as error:
            self.close()
            raise ControlPortError(f"control port {port}/udp: {_why(port, error)}") from error

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin to call back."""
        self._loop = loop
        self._listen(self._sockets, 0)

    def has(self, number: int) -> bool:
        """Whether that port of ours is open."""
        return number == 0 or number in self._others

    def open(self, number: int, used: Container[int]) -> list[socket.socket] | None:
        """One more port, like the control port in all but its number; those that are not used any more are closed.

        Returns sockets for the tunnel on it; None: it cannot be had.
        """
        for old in [n for n in self._others if n not in used]:
            self._close(self._others.pop(old))
        if len(self._others) >= OTHERS:
            return None
        bound: Bound = []
        shared = []
        try:
            for sock, address in self._sockets:
                host = sock.getsockname()[0]
                bound.append((self._socket(_version(sock), host, 0), address))
                shared.append(share_port(bound[-1][0]))
        except OSError as error:
            _log.info("no other UDP port for a peer that does not answer: %s", error)
            for tunnel in shared:
                tunnel.close()
            self._close(bound)
            return None
        self._others[number] = bound
        self._listen(bound, number)
        return shared

    def _listen(self, bound: Bound, number: int) -> None:
        if self._loop is not None:
            for sock, address in bound:
                self._loop.add_reader(sock.fileno(), self._read, sock, address, number)

    def shared(self) -> list[socket.socket]:
        """Sockets for the tunnel on the same port.  Raises KernelError."""
        try:
            return [share_port(sock) for sock, _ in self._sockets]
        except OSError as error:
            raise KernelError(
                f"sharing port {self.port}/udp with the tunnel", error.strerror or str(error), "Linux 4.6 or later can"
            ) from error

    def close(self) -> None:
        """Give the ports free."""
        for bound in (self._sockets, *self._others.values()):
            self._close(bound)
        self._sockets = []
        self._others = {}

    def _close(self, bound: Bound) -> None:
        for sock, _ in bound:
            if sock.fileno() >= 0:
                if self._loop is not None:
                    self._loop.remove_reader(sock.fileno())
                sock.close()

    def send(self, source: IPAddress | None, to: SockAddr, data: bytes, number: int = 0) -> None:
        """Send, from ``source`` where given.  What cannot be sent is lost, as on any network."""
        version = to.host.version
        sockets = self._others.get(number, self._sockets)
        sock = next((s for s, a in sockets if _version(s) == version and a in (None, source)), None)
        sock = sock or next((s for s, _ in sockets if _version(s) == version), None)
        if sock is None:
            return
        try:
            sock.sendmsg([data], [] if source is None else [sent_from(source)], 0, (str(to.host), to.port))
        except OSError as error:
            _log.debug("datagram to %s from %s: %s", to, source, error)

    def _bind(self, version: int, host: str, address: IPAddress | None) -> None:
        self._sockets.append((self._socket(version, host, self.port), address))

    @staticmethod
    def _socket(version: int, host: str, port: int) -> socket.socket:
        sock = udp_socket(socket.AF_INET if version == 4 else socket.AF_INET6, _BUFFER, _BUFFER)
        try:
            sock.bind((host, port))
        except OSError:
            sock.close()
            raise
        return sock

    def _bind_v6_if_there_is(self) -> None:
        try:
            self._bind(6, "::", None)
        except OSError as error:
            if error.errno not in _NO_IPV6:  # there is IPv6, and somebody else would have the port
                raise
            _log.info("no IPv6 control port: %s", error)

    def _read(self, sock: socket.socket, bound: IPAddress | None, number: int) -> None:
        for _ in range(_BATCH):
            try:
                data, ancillary, _, sender = sock.recvmsg(_RECEIVE, PKTINFO_SPACE)
            except BlockingIOError:
                return
            except OSError as error:  # an ICMP error about an earlier datagram
                _log.debug("control port: %s", error)
                continue
            local = bound or arrived_at(ancillary)
            if local is not None:
                host = sender[0].partition("%")[0]  # link-local addresses carry their interface
                self._on_datagram(data, SockAddr(parse_ip(host), sender[1]), local, number)


def _why(port: int, error: OSError) -> str:
    """Why it cannot be bound, and what to do."""
    why = error.strerror or str(error)
    if error.errno != errno.EADDRINUSE:
        return f"{why}; see control.listen, and `ip address`"
    hint = "end it, or set another control.port on all hosts"
    holders = holders_of(port)
    if not holders:
        return f"{why}; is another redirectd running? else set control.port or control.listen"
    if any("redirectd" in one.command for one in holders):
        hint = "`systemctl stop redirectd` first, or end that process"
    said = " and ".join(f"process {one.pid} of user {one.uid} ({shortened(one.command, 80)})" for one in holders)
    return f"{said} has it; {hint}"


def holders_of(port: int, *, proc: Path = procfs.PROC) -> list[procfs.Process]:
    """Processes that have a UDP port of this network namespace; those that cannot be found are left out."""
    inodes = set()
    for name in ("udp", "udp6"):
        with contextlib.suppress(OSError):
            for line in (proc / "thread-self/net" / name).read_text().splitlines()[1:]:
                # sl local_address rem_address st tx:rx tr:when retrnsmt uid timeout inode ...
                fields = line.split()
                if int(fields[1].rpartition(":")[2], 16) == port:
                    inodes.add(int(fields[9]))
    found = procfs.owners(inodes, proc=proc) if inodes else {}
    return sorted(set(found.values()))


def _version(sock: socket.socket) -> int:
    return 4 if sock.family == socket.AF_INET else 6

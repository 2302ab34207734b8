"""TCP sockets of this network namespace: sock_diag(7) by raw netlink and ``struct``.

pyroute2's DiagSocket takes 1 s for 20,000 sockets, this a few hundredths: the records are unpacked by offset, and the
kernel leaves out what nobody asked for (`inet_diag_bc_run`).

::

    request: nlmsghdr (16) | inet_diag_req_v2 (56) | attribute INET_DIAG_REQ_BYTECODE
    reply:   nlmsghdr (16) | inet_diag_msg (72)    | attributes INET_DIAG_INFO, INET_DIAG_CGROUP_ID, ...
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import struct
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from enum import IntEnum
from typing import NamedTuple, Protocol

from redirectctl.kernel import netlink
from redirectctl.kernel.errors import KernelError
from redirectctl.kernel.sockets.bytecode import EVERYTHING, SocketFilter
from redirectctl.wire.addr import FourTuple, SockAddr, from_packed

NETLINK_SOCK_DIAG = 4
SOCK_DIAG_BY_FAMILY = 20
SOCK_DESTROY = 21
GROUP_TCP_DESTROY = 1  # SKNLGRP_INET_TCP_DESTROY
GROUP_TCP6_DESTROY = 3  # SKNLGRP_INET6_TCP_DESTROY

_REQUEST = struct.Struct("=BBBxI")  # family, protocol, extensions, states; then the socket id
_SOCKET_ID = struct.Struct("!HH16s16s")  # ports and addresses; then interface and cookie in host order
_SOCKET_ID_TAIL = struct.Struct("=IQ")
_NO_COOKIE = 0xFFFF_FFFF_FFFF_FFFF
_MESSAGE = struct.Struct("=BBBB4s16s16sIQIIIII")
ENDS = slice(4, 40)  # of that: ports and addresses
IDENTITY = slice(4, 52)  # with the interface, and a cookie that no other socket of this boot has
_MAPPED = bytes(10) + b"\xff\xff"  # ::ffff:0:0/96
_PORTS = struct.Struct("!HH")
_U64 = struct.Struct("=Q")
_LENGTH = struct.Struct("=I")
_SAME = (0, 1, 2, 3, 4, 5, 8, 9, 10, 11)  # bytes of nlmsghdr: length, type, sequence number
_ANY_SOCKET = _SOCKET_ID.pack(0, 0, b"", b"") + _SOCKET_ID_TAIL.pack(0, _NO_COOKIE)

_ATTR_BYTECODE = 1
_ATTR_INFO = 2
_ATTR_CGROUP_ID = 21
_ATTR_SOCKOPT = 22
_EXT_INFO = 1 << (_ATTR_INFO - 1)
_SOCKOPT_RECVERR = 0x01 if sys.byteorder == "little" else 0x80  # a bit field

_RECEIVE_SIZE = 256 * 1024
_INTERFACES = 256  # that are asked for when a socket is not found
_MAX_BOUND = 65536  # sockets whose interface is remembered
_DUMP_ATTEMPTS = 4
_EACH = 16  # sockets that are listed, and passed over, in the time that one takes that is asked for


class TcpState(IntEnum):
    """States of include/net/tcp_states.h."""

    ESTABLISHED = 1
    SYN_SENT = 2
    SYN_RECV = 3
    FIN_WAIT1 = 4
    FIN_WAIT2 = 5
    TIME_WAIT = 6
    CLOSE = 7
    CLOSE_WAIT = 8
    LAST_ACK = 9
    LISTEN = 10
    CLOSING = 11
    NEW_SYN_RECV = 12


_STATES = {state.value: state for state in TcpState}

# What has two ends and may carry data.
CONNECTED = frozenset(
    {
        TcpState.ESTABLISHED,
        TcpState.FIN_WAIT1,
        TcpState.FIN_WAIT2,
        TcpState.CLOSE_WAIT,
        TcpState.LAST_ACK,
        TcpState.CLOSING,
    }
)


class Timer(IntEnum):
    """What ``idiag_timer`` says is running (`inet_diag_msg_attrs_fill`, `inet_sk_diag_fill`)."""

    NONE = 0
    RETRANSMIT = 1  # also: early retransmit, tail loss probe
    KEEPALIVE = 2
    TIME_WAIT = 3
    PROBE = 4  # window probe: something to send, nothing in flight


class TcpInfo(NamedTuple):
    """What we use of ``struct tcp_info``; fields an older kernel does not have are 0."""

    state: int
    retransmits: int  # time-outs since the last progress
    probes: int
    backoff: int  # times the retransmission time-out was doubled
    options: int  # bits, see has_timestamps
    scales: int  # two bit fields of four bits
    rto: int  # microseconds
    send_mss: int
    unacked: int  # segments in flight
    last_data_received: int  # milliseconds ago
    rtt: int  # microseconds, smoothed
    total_retransmits: int
    bytes_acked: int  # snd_una minus a constant of the connection
    bytes_received: int  # rcv_nxt minus a constant of the connection
    notsent_bytes: int
    min_rtt: int  # microseconds
    delivery_rate: int  # bytes a second
    bytes_sent: int  # with retransmissions
    bytes_retransmitted: int
    send_window: int  # bytes, as the peer last said; 0 before Linux 5.4
    receive_window: int  # bytes, as we last said; 0 before Linux 6.2

    @property
    def has_timestamps(self) -> bool:
        """Both ends put timestamps into each segment (TCPI_OPT_TIMESTAMPS)."""
        return bool(self.options & 1)

    @property
    def send_scale(self) -> int:
        """The peer's window scale: a window field of its packets counts units of 2 to this power."""
        return self.scales & 0xF if sys.byteorder == "little" else self.scales >> 4

    @property
    def receive_scale(self) -> int:
        """The same of our packets."""
        return self.scales >> 4 if sys.byteorder == "little" else self.scales & 0xF


_TCP_INFO = struct.Struct("=BxBBBBBxI4xI4xI24xI12xI28xI16xQQ8xII8xQ32xQQ12xII")
_TCP_INFO_ZEROS = bytes(_TCP_INFO.size)
_TCP_INFO_WHOLE = netlink.ATTRIBUTE.size + _TCP_INFO.size


class SocketInfo(NamedTuple):
    """One TCP socket."""

    tuple: FourTuple  # IPv4-mapped addresses unmapped
    family: int  # AF_INET6 also for a dual-stack socket that speaks IPv4
    state: TcpState
    timer: int  # of Timer
    timer_retransmits: int  # of what the timer counts: idiag_retrans
    receive_queue: int  # bytes the program has not read
    write_queue: int  # bytes written and not acknowledged, FIN included: write_seq - snd_una
    uid: int
    inode: int  # 0: no program has it any more
    cookie: int  # unique among the sockets of this boot
    ifindex: int  # bound to this interface; 0: none
    cgroup_id: int | None
    wants_errors: bool  # IP_RECVERR: every ICMP error is an error to the program
    info: TcpInfo | None

    @property
    def opened(self) -> bool:
        """This end began the connection: only its SYN counts as acknowledged (`tcp_snd_una_update`).

        A segment that could not be sent counts as sent: later a connection may look as if the other end had begun it.
        """
        if self.info is None:
            return False
        fin = self.state not in (TcpState.ESTABLISHED, TcpState.CLOSE_WAIT)
        once = self.info.bytes_sent - self.info.bytes_retransmitted
        return self.info.bytes_acked + self.in_flight - fin > once

    @property
    def in_flight(self) -> int:
        """Bytes sent and not acknowledged, FIN included: snd_nxt - snd_una."""
        return self.write_queue - (self.info.notsent_bytes if self.info else 0)


class Sockets(Protocol):
    """What others use of SockDiag: tests give a fake of this."""

    def dump(
        self,
        wanted: SocketFilter = EVERYTHING,
        *,
        states: Iterable[TcpState] = CONNECTED,
        only: Collection[FourTuple] | None = None,
    ) -> list[SocketInfo]:
        """As SockDiag.dump."""

    def get(self, connection: FourTuple, *, ifindex: int | None = None) -> SocketInfo | None:
        """One socket."""

    def destroy(self, target: FourTuple | SocketInfo) -> bool:
        """Close a socket."""


class SockDiag:
    """A netlink socket that asks for TCP sockets; it belongs to the network namespace it was opened in.

    All methods block: some 20 microseconds for one socket, 10 microseconds for each socket of a dump.
    """

    def __init__(self) -> None:
        try:
            self._netlink = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_SOCK_DIAG)
        except OSError as error:
            raise KernelError(
                "sock_diag", os.strerror(error.errno or 0), "the kernel needs CONFIG_INET_DIAG (module tcp_diag)"
            ) from error
        self._netlink.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        self._netlink.bind((0, 0))
        self._sequence = 0
        self._listed = 0  # sockets, the last time
        self._bound: dict[FourTuple, int] = {}  # interfaces of the sockets that are bound to one

    def close(self) -> None:
        """Close the netlink socket."""
        self._netlink.close()

    def dump(
        self,
        wanted: SocketFilter = EVERYTHING,
        *,
        states: Iterable[TcpState] = CONNECTED,
        only: Collection[FourTuple] | None = None,
    ) -> list[SocketInfo]:
        """All the TCP sockets in ``states`` that pass ``wanted``, both families.  Raises KernelError.

        ``only``: of these connections; those of others are not unpacked, which is most of the work, nor listed where
        there are far more of them.
        """
        states = frozenset(states)
        if only is not None and len(only) * _EACH < self._listed:
            each = (self.get(connection) for connection in dict.fromkeys(only))
            return [one for one in each if one and one.state in states and wanted.passes(one.tuple, one.cgroup_id)]
        mask = sum(1 << state for state in states)
        bytecode = wanted.bytecode()
        known = None if only is None else frozenset(each for connection in only for each in ends(connection))
        found: list[SocketInfo] = []
        self._listed = 0
        for family in (socket.AF_INET, socket.AF_INET6):
            body = _request(family, mask, _ANY_SOCKET)
            if bytecode:
                body += netlink.attribute(_ATTR_BYTECODE, bytecode)
            found += self._dump(body, known)
        for one in found:
            self.seen(one)
        return found if wanted.in_kernel else [one for one in found if wanted.passes(one.tuple, one.cgroup_id)]

    def records(self, wanted: SocketFilter, states: Iterable[TcpState]) -> list[tuple[bytes, Sequence[int]]]:
        """What the kernel says of the sockets in ``states``, without TCP_INFO: datagrams, and where records begin.

        A range: all are of the same length.  What ``wanted`` says is seen to as far as the kernel can (in_kernel).
        Raises KernelError.
        """
        mask = sum(1 << state for state in set(states))
        bytecode = wanted.bytecode()
        found: list[tuple[bytes, Sequence[int]]] = []
        for family in (socket.AF_INET, socket.AF_INET6):
            body = _request(family, mask, _ANY_SOCKET, extensions=0)
            if bytecode:
                body += netlink.attribute(_ATTR_BYTECODE, bytecode)
            for _ in range(_DUMP_ATTEMPTS):
                self._send(SOCK_DIAG_BY_FAMILY, netlink.DUMP, body)
                try:
                    found += self._datagrams()
                    break
                except InterruptedError:
                    continue
                except OSError as error:
                    raise _refused("listing sockets", error) from error
            else:
                raise KernelError("listing sockets", "the list changed while it was read, every time", "try again")
        return found

    def _datagrams(self) -> list[tuple[bytes, Sequence[int]]]:
        found: list[tuple[bytes, Sequence[int]]] = []
        while True:
            data = self._netlink.recv(_RECEIVE_SIZE)
            if step := _step(data, self._sequence & 0xFFFF_FFFF):
                found.append((data, range(netlink.HEADER.size, len(data), step)))
                continue
            places, done = [], False
            for kind, flags, sequence, body, end in netlink.split(data):
                if sequence == self._sequence & 0xFFFF_FFFF:
                    if kind in (netlink.ERROR, netlink.DONE):
                        _check_end(data, flags, body, end)
                        done = True
                        break
                    places.append(body)
            if places:
                found.append((data, places))
            if done:
                return found

    def get(self, connection: FourTuple, *, ifindex: int | None = None) -> SocketInfo | None:
        """The socket of ``connection``, in whatever state it is.

        ``ifindex``: the interface that it is bound to, as a message about it said, 0 for none; not given: whichever,
        which costs a question for each interface of the host where there is no such socket.
        Raises KernelError when the kernel refuses the question.
        """
        if ifindex is not None:
            return self._get(connection, ifindex)
        known = self._bound.get(connection, 0)
        # One that is not bound is found whatever the interface (`inet_bound_dev_eq`).
        found = self._get(connection, known)
        if found is None:
            others = (index for index, _ in socket.if_nameindex()[:_INTERFACES] if index != known)
            found = next((one for index in others if (one := self._get(connection, index)) is not None), None)
        self._note(connection, found.ifindex if found is not None else 0)
        return found

    def bound(self, connection: FourTuple) -> int:
        """The index of the interface that a socket was bound to when it was last seen; 0: none."""
        return self._bound.get(connection, 0)

    def seen(self, one: SocketInfo) -> None:
        """Remember what interface it is bound to."""
        if one.ifindex:
            self._note(one.tuple, one.ifindex)

    def _note(self, connection: FourTuple, ifindex: int) -> None:
        self._bound.pop(connection, None)
        if ifindex:
            while len(self._bound) >= _MAX_BOUND:
                del self._bound[next(iter(self._bound))]
            self._bound[connection] = ifindex

    def _get(self, connection: FourTuple, ifindex: int) -> SocketInfo | None:
        self._send(SOCK_DIAG_BY_FAMILY, 0, _exact(connection, ifindex, _NO_COOKIE))
        try:
            found = [_parse(data, at, end) for data, at, end in self._replies(dump=False)]
        except OSError as error:
            if error.errno == errno.ENOENT:
                return None
            raise _refused("asking for a socket", error) from error
        # Without a connection the kernel answers with the listener (`inet_lookup`).
        return next((one for one in found if one.tuple == connection), None)

    def destroy(self, target: FourTuple | SocketInfo) -> bool:
        """Close a socket as tcp_abort does: the program gets ECONNABORTED, the peer an RST.

        False: there is no such socket.  A SocketInfo means exactly that socket, not one that took its place.
        Raises KernelError.
        """
        if isinstance(target, SocketInfo):
            body = _exact(target.tuple, target.ifindex, target.cookie)
        else:
            found = self.get(target)
            if found is None:
                return False
            body = _exact(target, found.ifindex, _NO_COOKIE)
        self._send(SOCK_DESTROY, netlink.ACK, body)
        try:
            list(self._replies(dump=False))
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ESTALE):
                return False
            if error.errno == errno.EOPNOTSUPP:
                raise KernelError(
                    "closing a socket", "SOCK_DESTROY is not supported", "the kernel needs CONFIG_INET_DIAG_DESTROY"
                ) from error
            raise _refused("closing a socket", error) from error
        return True

    def _dump(self, body: bytes, known: frozenset[bytes] | None) -> list[SocketInfo]:
        for _ in range(_DUMP_ATTEMPTS):
            self._send(SOCK_DIAG_BY_FAMILY, netlink.DUMP, body)
            try:
                replies = list(self._replies(dump=True))
                self._listed += len(replies)
                return [
                    _parse(data, at, end)
                    for data, at, end in replies
                    if known is None or data[at + ENDS.start : at + ENDS.stop] in known
                ]
            except InterruptedError:
                continue
            except OSError as error:
                raise _refused("listing sockets", error) from error
        raise KernelError("listing sockets", "the list changed while it was read, every time", "try again")

    def _send(self, kind: int, flags: int, body: bytes) -> None:
        self._sequence += 1
        self._netlink.send(netlink.request(kind, flags, self._sequence, body))

    def _replies(self, *, dump: bool) -> Iterator[tuple[bytes, int, int]]:
        """Bodies of the messages that answer the last request.  OSError: what the kernel refused it with."""
        while True:
            data = self._netlink.recv(_RECEIVE_SIZE)
            for kind, flags, sequence, body, end in netlink.split(data):
                if sequence != self._sequence & 0xFFFF_FFFF:
                    continue
                if kind in (netlink.ERROR, netlink.DONE):
                    _check_end(data, flags, body, end)
                    return
                yield data, body, end
                if not dump:
                    return


def _step(data: bytes, sequence: int) -> int:
    """The length of the messages of a datagram, if they are all of the same, and records of this answer; else 0."""
    length, kind, _, number, _ = netlink.HEADER.unpack_from(data)
    step = (length + 3) & ~3
    count, rest = divmod(len(data), step or 1)
    if kind != SOCK_DIAG_BY_FAMILY or number != sequence or rest:
        return 0
    same = (data[byte::step] == data[byte : byte + 1] * count for byte in _SAME)
    return step if all(same) else 0


def _check_end(data: bytes, flags: int, body: int, end: int) -> None:
    """The last message of an answer.  OSError: what the kernel refused the request with."""
    if code := netlink.errno_in(data, body, end):
        raise OSError(code, os.strerror(code))
    if flags & netlink.DUMP_INTR:
        raise InterruptedError(errno.EINTR, "dump interrupted")


def _request(family: int, states: int, socket_id: bytes, extensions: int = _EXT_INFO) -> bytes:
    return _REQUEST.pack(family, socket.IPPROTO_TCP, extensions, states) + socket_id


def _exact(connection: FourTuple, ifindex: int, cookie: int) -> bytes:
    local, remote = connection
    family = socket.AF_INET if connection.version == 4 else socket.AF_INET6
    ends = _SOCKET_ID.pack(local.port, remote.port, local.host.packed, remote.host.packed)
    return _request(family, 0xFFFF_FFFF, ends + _SOCKET_ID_TAIL.pack(ifindex, cookie))


def ends(connection: FourTuple) -> Iterator[bytes]:
    """As they are in a message about its socket; a socket of IPv6 may have a connection of IPv4."""
    (local, local_port), (remote, remote_port) = connection
    ports = _PORTS.pack(local_port, remote_port)
    if connection.version == 4:
        yield ports + local.packed.ljust(16, b"\0") + remote.packed.ljust(16, b"\0")
        yield ports + _MAPPED + local.packed + _MAPPED + remote.packed
    else:
        yield ports + local.packed + remote.packed


def _refused(what: str, error: OSError) -> KernelError:
    hint = "it needs CAP_NET_ADMIN" if error.errno in (errno.EPERM, errno.EACCES) else "see dmesg"
    return KernelError(what, error.strerror or str(error), hint)


def ends_of(data: bytes, at: int) -> FourTuple:
    """Which connection the record there is of."""
    family, _, _, _, ports, source, destination, *_ = _MESSAGE.unpack_from(data, at)
    return _ends(family, ports, source, destination)


def _ends(family: int, ports: bytes, source: bytes, destination: bytes) -> FourTuple:
    sport, dport = _PORTS.unpack(ports)
    if family == socket.AF_INET:
        source, destination = source[:4], destination[:4]
    return FourTuple(SockAddr(from_packed(source), sport), SockAddr(from_packed(destination), dport))


def parse(data: bytes, at: int) -> SocketInfo:
    """The record there, in its netlink message."""
    (length,) = _LENGTH.unpack_from(data, at - netlink.HEADER.size)
    return _parse(data, at, at - netlink.HEADER.size + length)


def _parse(data: bytes, at: int, end: int) -> SocketInfo:
    # One call for each socket of the host: written for speed.
    (family, state, timer, retransmits, ports, source, destination, ifindex, cookie, _, rqueue, wqueue, uid, inode) = (
        _MESSAGE.unpack_from(data, at)
    )
    info: TcpInfo | None = None
    cgroup_id: int | None = None
    wants_errors = False
    at += _MESSAGE.size
    unpack = netlink.ATTRIBUTE.unpack_from
    while at < end:
        length, kind = unpack(data, at)
        if kind == _ATTR_INFO:
            if length >= _TCP_INFO_WHOLE:
                info = TcpInfo._make(_TCP_INFO.unpack_from(data, at + 4))
            else:  # an older kernel
                info = TcpInfo._make(_TCP_INFO.unpack_from(data[at + 4 : at + length] + _TCP_INFO_ZEROS))
        elif kind == _ATTR_CGROUP_ID:
            (cgroup_id,) = _U64.unpack_from(data, at + 4)
        elif kind == _ATTR_SOCKOPT:
            wants_errors = data[at + 4] & _SOCKOPT_RECVERR != 0
        at += (length + 3) & ~3 or end
    return SocketInfo(
        _ends(family, ports, source, destination),
        family,
        _STATES[state],
        timer,
        retransmits,
        rqueue,
        wqueue,
        uid,
        inode,
        cookie,
        ifindex,
        cgroup_id,
        wants_errors,
        info,
    )


class Destroyed(NamedTuple):
    """A TCP socket that ceased to exist, or lives on in TIME_WAIT only."""

    tuple: FourTuple
    cookie: int
    ifindex: int  # that it was bound to; 0: none


class DestroyWatch:
    """Calls back when a TCP socket of this network namespace is destroyed (`sock_diag_broadcast_destroy`).

    ``on_lost``: notifications were lost, ask for the sockets anew.
    """

    _BATCH = 64  # messages before the event loop gets its turn

    def __init__(
        self,
        on_destroyed: Callable[[Destroyed], None],
        on_lost: Callable[[], None],
        *,
        receive_buffer: int = 1 << 20,
    ) -> None:
        """``receive_buffer``: bytes, some 1,000 for each notification not yet read.  Raises KernelError."""
        self._on_destroyed = on_destroyed
        self._on_lost = on_lost
        self._loop: asyncio.AbstractEventLoop | None = None
        # A first question makes the kernel load tcp_diag, without which nothing is announced.
        diag = SockDiag()
        diag.dump(states=[TcpState.CLOSE])
        diag.close()
        self._netlink = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, NETLINK_SOCK_DIAG
        )
        try:
            self._netlink.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
            self._netlink.bind((0, 0))
            for group in (GROUP_TCP_DESTROY, GROUP_TCP6_DESTROY):
                self._netlink.setsockopt(netlink.SOL_NETLINK, netlink.ADD_MEMBERSHIP, group)
        except OSError as error:
            self._netlink.close()
            raise _refused("watching for closed sockets", error) from error

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin to call back from ``loop``."""
        self._loop = loop
        loop.add_reader(self._netlink.fileno(), self.read)

    def close(self) -> None:
        """Stop; no callback comes after this."""
        if self._loop is not None:
            self._loop.remove_reader(self._netlink.fileno())
            self._loop = None
        self._netlink.close()

    def read(self) -> None:
        """Hand over what has arrived; never blocks."""
        for _ in range(self._BATCH):
            try:
                data = self._netlink.recv(_RECEIVE_SIZE)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                self._on_lost()
                continue
            for kind, _, _, start, end in netlink.split(data):
                if kind == SOCK_DIAG_BY_FAMILY and end - start >= _MESSAGE.size:
                    gone = _parse(data, start, end)
                    self._on_destroyed(Destroyed(gone.tuple, gone.cookie, gone.ifindex))

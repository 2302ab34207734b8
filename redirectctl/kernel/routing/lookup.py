"""Where the kernel would send packets: RTM_GETROUTE, many questions in one datagram.

One question after the other by pyroute2 took 2 ms each, 12.8 s for a host with connections to 4,000 others; so they
take some 15 microseconds each, most of them the kernel's.

::

    question: nlmsghdr (16) | rtmsg (12) | attributes RTA_DST, RTA_SRC, RTA_OIF, RTA_MARK
    answer:   nlmsghdr (16) | rtmsg (12) | attributes RTA_OIF, RTA_GATEWAY, RTA_PREFSRC, ...
              nlmsghdr (16) | nlmsgerr: -errno (4) | header of the question

The kernel answers before send(2) returns (`netlink_rcv_skb`), in order.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv6Address
from typing import Final, NamedTuple, overload

from redirectctl.kernel import netlink
from redirectctl.kernel.errors import KernelError
from redirectctl.wire.addr import IPAddress

AT_ONCE: Final = 64  # questions in a datagram: a millisecond of work

NEWROUTE, DELROUTE, _GETROUTE = 24, 25, 26  # RTM_*
RTMSG = struct.Struct("=BBBBBBBBI")  # family, lengths of destination and source, tos, table, ..., type, flags
_TYPE = 7  # of its bytes
_REFUSING = frozenset({6, 7, 8, 9})  # RTN_BLACKHOLE, UNREACHABLE, PROHIBIT, THROW
_FIB_MATCH = 0x2000  # RTM_F_FIB_MATCH: the route that is in a table, or an error
_DST, _SRC, _OIF, _GATEWAY, _PREFSRC, _MARK = 1, 2, 4, 5, 7, 16
_U32 = struct.Struct("=I")
_RECEIVE_BUFFER = 1 << 20  # bytes: an answer takes a thousand of them
_RECEIVE = 1 << 16
_ATTEMPTS = 3  # at questions whose answers were lost for want of memory

# What the kernel says when packets cannot go there (from that source address).  EOPNOTSUPP: it was started with
# ipv6.disable=1, and nobody answers about IPv6 (`rtnetlink_rcv_msg`).
_NO_ROUTE = {
    errno.ENETUNREACH,
    errno.EHOSTUNREACH,
    errno.EINVAL,
    errno.EACCES,
    errno.ENODEV,
    errno.EADDRNOTAVAIL,
    errno.EOPNOTSUPP,
    errno.EAFNOSUPPORT,
}


class Question(NamedTuple):
    """Where would a packet go?"""

    target: IPAddress
    source: IPAddress | None = None  # with this source address; None: the kernel chooses one
    mark: int = 0
    ifindex: int = 0  # by this interface; 0: by any


class Route(NamedTuple):
    """Where the kernel would send a packet.

    Target and length are those of the route in the table, if the question was about an interface.
    """

    ifindex: int
    source: IPAddress | None  # what it would choose as source address
    gateway: IPAddress | None
    target: IPAddress = IPv4Address(0)
    length: int = 0  # of the prefix, in bits


class RouteTable:
    """Asks the network namespace in which it was made."""

    def __init__(self) -> None:
        """Raises OSError."""
        self._netlink = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, socket.NETLINK_ROUTE
        )
        netlink.set_receive_buffer(self._netlink, _RECEIVE_BUFFER)
        self._netlink.setsockopt(netlink.SOL_NETLINK, netlink.CAP_ACK, 1)
        self._netlink.bind((0, 0))
        self._sequence = 0

    def close(self) -> None:
        """Close the socket."""
        self._netlink.close()

    def look_up(self, questions: Sequence[Question]) -> list[Route | None]:
        """The routes, in that order; None where there is none.  Raises KernelError."""
        found: dict[int, Route | None] = {}
        for _ in range(_ATTEMPTS):
            missing = [number for number in range(len(questions)) if number not in found]
            for start in range(0, len(missing), AT_ONCE):
                part = missing[start : start + AT_ONCE]
                try:
                    found |= self._ask([(number, questions[number]) for number in part])
                except OSError as error:
                    what = f"look up the route to {questions[part[0]].target}"
                    why = os.strerror(error.errno or 0)
                    raise KernelError(what, why, "redirectctl needs root and rtnetlink") from error
            if len(found) == len(questions):
                return [found[number] for number in range(len(questions))]
        raise KernelError("look up routes", "the kernel does not answer", "has it no memory left?  see dmesg")

    def _ask(self, questions: list[tuple[int, Question]]) -> dict[int, Route | None]:
        base, self._sequence = self._sequence, (self._sequence + len(questions)) & 0xFFFF_FFFF
        wanted = dict(questions)
        numbers = {(base + place) & 0xFFFF_FFFF: number for place, (number, _) in enumerate(questions)}
        messages = zip(numbers, (question for _, question in questions), strict=True)
        self._netlink.send(b"".join(question_to_kernel(sequence, question) for sequence, question in messages))
        found: dict[int, Route | None] = {}
        while len(found) < len(questions):
            try:
                data = self._netlink.recv(_RECEIVE)
            except BlockingIOError:
                break  # all has come that will
            except OSError as error:
                if error.errno == errno.ENOBUFS:
                    continue  # some answers were lost
                raise
            for kind, _, sequence, body, end in netlink.split(data):
                if (number := numbers.get(sequence)) is not None:  # else an answer that was given up
                    by_interface = bool(wanted[number].ifindex)
                    found[number] = None if kind == netlink.ERROR else _parse(data, body, end, prefix=by_interface)
                    if kind == netlink.ERROR and (code := netlink.errno_in(data, body, end)) not in _NO_ROUTE:
                        raise OSError(code, os.strerror(code))
        return found


def question_to_kernel(sequence: int, question: Question) -> bytes:
    """As a message of rtnetlink."""
    target, source, mark, ifindex = question
    family, bits = (socket.AF_INET, 32) if target.version == 4 else (socket.AF_INET6, 128)
    # Without it everything would be on the link of an interface that has no route (ip_route_output_key_hash_rcu).
    flags = _FIB_MATCH if ifindex else 0
    body = RTMSG.pack(family, bits, bits if source is not None else 0, 0, 0, 0, 0, 0, flags)
    body += netlink.attribute(_DST, target.packed)
    if source is not None:
        body += netlink.attribute(_SRC, source.packed)
    if ifindex:
        body += netlink.attribute(_OIF, _U32.pack(ifindex))
    if mark:
        body += netlink.attribute(_MARK, _U32.pack(mark))
    return netlink.request(_GETROUTE, 0, sequence, body)


def _parse(data: bytes, at: int, end: int, *, prefix: bool) -> Route | None:
    if data[at + _TYPE] in _REFUSING:
        return None
    index, source, gateway = 0, None, None
    family, length = data[at], data[at + 1]
    target: bytes = bytes(4 if family == socket.AF_INET else 16)
    at += RTMSG.size
    unpack = netlink.ATTRIBUTE.unpack_from
    while at + netlink.ATTRIBUTE.size <= end:
        size, kind = unpack(data, at)
        if kind == _OIF:
            (index,) = _U32.unpack_from(data, at + netlink.ATTRIBUTE.size)
        elif kind == _PREFSRC:
            source = data[at + netlink.ATTRIBUTE.size : at + size]
        elif kind == _GATEWAY:
            gateway = data[at + netlink.ATTRIBUTE.size : at + size]
        elif kind == _DST:
            target = data[at + netlink.ATTRIBUTE.size : at + size]
        at += (size + 3) & ~3 or end
    if not index:
        return None
    to = (_address(target), length) if prefix else ()
    return Route(index, _address(source), _address(gateway), *to)


@overload
def _address(packed: bytes) -> IPAddress: ...


@overload
def _address(packed: None) -> None: ...


def _address(packed: bytes | None) -> IPAddress | None:
    if packed is None:
        return None
    return IPv4Address(packed) if len(packed) == 4 else IPv6Address(packed)

"""The hot path of the tunnel: a super-segment of one connection <-> a run of datagrams (wire/tunnel.py), no I/O.

Whatever is done for each segment is done by struct, zip, join and comparisons of whole tuples: 64 KiB are some 45
segments, and an interpreted loop over them costs more than the kernel's copying.  Buffers of packets are passed on as
memoryviews and copied by the kernel.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from functools import lru_cache
from hmac import compare_digest
from typing import Final, TypeAlias

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from redirectctl.kernel.tunnel.device import GSO_NONE, GSO_TCPV4, GSO_TCPV6, NEEDS_CSUM, VNET_HEADER
from redirectctl.wire.addr import FourTuple
from redirectctl.wire.ip import HOP_LIMIT, SEQ_MASK, Protocol
from redirectctl.wire.tunnel import COUNTER_JUMP, SEGMENT, TAG_LEN, VERSION, Offer, Refused, Type

Buffer: TypeAlias = bytes | memoryview

MOST_AT_ONCE: Final = 64  # UDP_MAX_SEGMENTS of older kernels (udp.h)
LARGEST_SEND: Final = 65507
WINDOW: Final = 8192  # counters behind the highest that can be told apart: 20 ms at 5 Gbit/s

_TCP = struct.Struct("!HHIIHHHH")
_TAIL = struct.Struct("!IHHH")  # acknowledgement, offset and flags, window, urgent pointer
_NEXT = struct.Struct("!4xIIHH")  # sequence number, acknowledgement, offset and flags, window
_NONCE = struct.Struct("!4xQ")
_HEAD = struct.Struct("!BBBBI")
_IPV4 = struct.Struct("!BBHHHBBH")
_IPV6 = struct.Struct("!IHBB")
_CHECKSUM_AT = 16  # in a TCP header

_FIN, _SYN, _RST, _PSH, _URG, _CWR = 0x01, 0x02, 0x04, 0x08, 0x20, 0x80
_ENDING = _FIN | _PSH  # only the last segment of a run has them
_ALONE = _ENDING | _SYN | _RST | _URG  # a segment that has one of them begins no run
_SEEN_MASK = (1 << WINDOW) - 1


class Window:
    """Which counters have been seen, as RFC 6479 has it, for runs of consecutive ones.  Not for more than WINDOW."""

    __slots__ = ("_jump", "_next", "_seen", "_start")

    def __init__(self, start: int, jump: int | None) -> None:
        """``jump``: how far ahead of the highest seen the next may be; None: as far as it likes."""
        self._start = self._next = start
        self._jump = jump
        self._seen = 0  # bit i: counter _next - 1 - i

    def check(self, first: int, count: int) -> Refused | None:
        """None if all of ``count`` counters from ``first`` are fresh.  Changes nothing."""
        ahead = first - self._next
        if ahead >= 0:
            return Refused.COUNTER_JUMP if self._jump is not None and ahead >= self._jump else None
        if first < self._start or -ahead > WINDOW:
            return Refused.TOO_OLD
        end = min(first + count, self._next)
        known = self._seen >> (self._next - end) & ((1 << (end - first)) - 1)
        return Refused.REPLAYED if known else None

    def commit(self, first: int, count: int) -> None:
        """Remember counters that check() has let pass, whose datagrams were authentic."""
        end = first + count
        moved = end - self._next
        if moved > 0:
            self._seen = self._seen << moved & _SEEN_MASK if moved < WINDOW else 0
            self._next = end
        self._seen |= ((1 << count) - 1) << (self._next - end)


def continues(packet: memoryview, tcp: int, header: memoryview) -> bool:
    """Whether ``header``, of a packet without its data, goes on where ``packet`` ends, so that they can be cut as one.

    ``header`` is known to be as long as that of ``packet``.
    """
    seq, ack, offset, window = _NEXT.unpack_from(packet, tcp)
    other_seq, other_ack, other_offset, other_window = _NEXT.unpack_from(header, tcp)
    start = tcp + (offset >> 12) * 4
    return (
        other_seq == (seq + len(packet) - start) & SEQ_MASK
        and other_ack == ack
        and other_window == window
        and not (offset ^ other_offset) & ~_ENDING
        and not offset & (_ALONE ^ _PSH)
        and start == len(header)
        and header[tcp + _TCP.size :] == packet[tcp + _TCP.size : start]
    )


def ending(header: memoryview, tcp: int) -> int:
    """PSH and FIN of a TCP header."""
    return header[tcp + 13] & _ENDING


class Outbound:
    """One connection's datagrams to the peer."""

    __slots__ = ("_head", "_key", "_tag", "counter", "offer")

    def __init__(self, offer: Offer, first: int, integrity: bool) -> None:
        """``first``: counter of the first datagram."""
        self.offer = offer
        self.counter = first
        self._key = AESGCM(offer.key) if integrity else None
        self._tag = TAG_LEN if integrity else 0
        self._head = lru_cache(256)(lambda traffic: _HEAD.pack(Type.TUNNEL, VERSION, traffic, 0, offer.flow))

    def sealed(self, datagram: bytes, counter: int) -> bytes:
        """A single datagram with its tag, if it has one."""
        return datagram + self._key.encrypt(_NONCE.pack(counter), b"", datagram) if self._key else datagram

    def cut(
        self, packet: memoryview, tcp: int, traffic: int, room: int, *, cwr_once: bool
    ) -> tuple[list[Buffer], int, int]:
        """Datagrams of at most ``room`` bytes for an IP packet whose TCP header begins at ``tcp``.

        Returns buffers, how many of them are one datagram, and the size in bytes of all datagrams but the last, which
        may be shorter.  ``traffic``: traffic class.  ``cwr_once``: the packet was to be cut by the network card, which
        would leave CWR on the first segment only (`tcp_gso_segment`).
        """
        _, _, seq, ack, offset, window, _, urgent = _TCP.unpack_from(packet, tcp)
        start = tcp + (offset >> 12) * 4
        options, data = bytes(packet[tcp + _TCP.size : start]), packet[start:]
        fixed = SEGMENT.size + len(options) + self._tag
        most = room - fixed
        count = -(-len(data) // most) or 1
        counters = range(self.counter, self.counter + count)
        self.counter += count
        head, pack = self._head(traffic), _header(len(options)).pack
        if count == 1:
            headers = [pack(head, counters[0], seq, _TAIL.pack(ack, offset, window, urgent) + options)]
            parts: list[Buffer] = [data]
        else:
            seqs = range(seq, seq + count * most, most)
            inner = offset & ~_ENDING
            rest = inner & ~_CWR if cwr_once else inner
            tail = _TAIL.pack(ack, rest, window, 0) + options
            headers = [pack(head, counter, number & SEQ_MASK, tail) for counter, number in zip(counters, seqs)]  # noqa: B905
            last = rest | offset & _ENDING
            for index, flags in ((0, inner), (count - 1, last)):
                tail = _TAIL.pack(ack, flags, window, 0) + options
                headers[index] = pack(head, counters[index], seqs[index] & SEQ_MASK, tail)
            if offset & _URG:  # the pointer is an offset from the segment's own number
                for index in range(count):
                    flags = (inner if index == 0 else last if index == count - 1 else rest) & ~_URG
                    pointer = max(0, urgent - index * most)
                    tail = _TAIL.pack(ack, flags | (_URG if pointer else 0), window, pointer) + options
                    headers[index] = pack(head, counters[index], seqs[index] & SEQ_MASK, tail)
            parts = [data[at : at + most] for at in range(0, len(data), most)]
        buffers: list[Buffer] = [b""] * (2 * count)
        if self._key is None:
            buffers[::2] = headers
            buffers[1::2] = parts
        else:
            whole = [header + part for header, part in zip(headers, parts)]  # noqa: B905
            seal = self._key.encrypt
            buffers[::2] = whole
            buffers[1::2] = [seal(_NONCE.pack(c), b"", each) for c, each in zip(counters, whole)]  # noqa: B905
        return buffers, 2, fixed + (most if count > 1 else len(data))


class Inbound:
    """One connection's datagrams from the peer."""

    __slots__ = (
        "_gso",
        "_ip_sum",
        "_key",
        "_local",
        "_ports",
        "_remote",
        "_tag",
        "acked",
        "offer",
        "socket",
        "window",
    )

    def __init__(self, offer: Offer, integrity: bool, socket: FourTuple) -> None:
        self.offer = offer
        self.acked = 0  # acknowledgement number of the datagram that came last
        self.window = Window(offer.start, None if integrity else COUNTER_JUMP)
        self._key = AESGCM(offer.key) if integrity else None
        self._tag = TAG_LEN if integrity else 0
        local, remote = socket
        self._ports = remote.port, local.port
        self._remote, self._local = remote.host.packed, local.host.packed
        self._gso = GSO_TCPV4 if socket.version == 4 else GSO_TCPV6
        self._ip_sum = int(remote.host) % 0xFFFF + int(local.host) % 0xFFFF

    def authentic(self, datagram: Buffer, counter: int) -> bool:
        """Whether the tag at its end is right, if there must be one.  The datagram is at least as long as a tag."""
        if self._key is None:
            return True
        end = len(datagram) - TAG_LEN
        tag = self._key.encrypt(_NONCE.pack(counter), b"", datagram[:end])
        return compare_digest(tag, bytes(datagram[end:]))

    @property
    def tag_length(self) -> int:
        """Bytes of a datagram that are tag."""
        return self._tag

    def take(self, chunk: memoryview, size: int, refuse: Callable[[Refused], None]) -> tuple[list[list[Buffer]], int]:
        """TUNNEL datagrams that begin with one of this flow: ``size`` bytes each, the last may be shorter.

        Returns the buffers of each packet that is to be written to the TUN device, which refer to ``chunk``, and how
        many bytes of it have been dealt with: up to another flow's datagram.  Those that are refused are left out,
        and ``refuse`` is called for each.
        """
        writes: list[list[Buffer]] = []
        at = 0
        while True:
            taken, write, reason = self._run(chunk[at:], size)
            if write is not None:
                writes.append(write)
            if reason is not None:
                for single in range(at, min(at + taken * size, len(chunk)), size):
                    one = chunk[single : single + size]
                    _, write, why = self._run(one, len(one)) if taken > 1 else (1, None, reason)
                    if write is not None:
                        writes.append(write)
                    if why is not None:
                        refuse(why)
            at += taken * size
            if at >= len(chunk) or chunk[at] != Type.TUNNEL or chunk[at + 4 : at + 8] != chunk[4:8]:
                return writes, at

    def _run(self, chunk: memoryview, size: int) -> tuple[int, list[Buffer] | None, Refused | None]:
        """The run that a chunk begins with: number of datagrams, and the packet or why they are refused."""
        length = min(size, len(chunk))
        if length < SEGMENT.size + self._tag:
            return 1, None, Refused.TRUNCATED
        _, version, traffic, reserved, _, counter, seq, ack, offset, window, urgent = SEGMENT.unpack_from(chunk)
        if version != VERSION:
            return 1, None, Refused.UNKNOWN_VERSION
        if reserved:
            return 1, None, Refused.RESERVED
        options = (offset >> 12) * 4 - _TCP.size
        data = length - SEGMENT.size - options - self._tag
        if options < 0 or data < 0:
            return 1, None, Refused.BAD_OFFSET
        if offset & _SYN:
            return 1, None, Refused.BAD_SEGMENT
        rows: list[tuple[bytes, int, int, bytes, bytes, bytes]] = []
        count = 1
        if data and len(chunk) > size and not offset & _ALONE:
            rows = self._rows(chunk, size, options, data)
            count = _alike(rows, data)
        refusal = self.window.check(counter, count)
        if refusal is not None:
            return count, None, refusal
        if self._key is not None:
            if count == 1:
                right = self.authentic(chunk[:length], counter)
            else:
                ends = [*range(size - TAG_LEN, (count - 1) * size, size), min(count * size, len(chunk)) - TAG_LEN]
                seal, starts = self._key.encrypt, range(0, count * size, size)
                tags = [
                    seal(_NONCE.pack(number), b"", chunk[start:end])
                    for number, start, end in zip(range(counter, counter + count), starts, ends)  # noqa: B905
                ]
                right = compare_digest(b"".join(tags), b"".join([row[5] for row in rows[:count]]))
            if not right:
                return count, None, Refused.FORGED
        self.window.commit(counter, count)
        self.acked = ack
        at = SEGMENT.size + options
        total = data
        buffers: list[Buffer]
        if count == 1:
            buffers = [b"", chunk[at : at + data]] if data else [b""]
        else:
            buffers = [row[4] for row in rows[:count]]
            total = (count - 1) * data + len(buffers[-1])
            offset |= rows[count - 1][3][5] & _ENDING  # the low byte of its flags
            buffers.insert(0, b"")
        buffers[0] = self._headers(
            traffic, seq, ack, offset, window, urgent, bytes(chunk[SEGMENT.size : at]), total, data if count > 1 else 0
        )
        return count, buffers, None

    def _rows(
        self, chunk: memoryview, size: int, options: int, data: int
    ) -> list[tuple[bytes, int, int, bytes, bytes, bytes]]:
        """Head, counter, sequence number, rest of the header, data and tag of each, if all are like the first."""
        full = len(chunk) - len(chunk) % size
        rows = list(_whole(options, data, self._tag).iter_unpack(chunk[:full]))
        short = data - size + len(chunk) - full
        if full < len(chunk) and short >= 0:
            rows.append(_whole(options, short, self._tag).unpack(chunk[full:]))
        return rows

    def _headers(
        self,
        traffic: int,
        seq: int,
        ack: int,
        offset: int,
        window: int,
        urgent: int,
        options: bytes,
        length: int,
        segment: int,
    ) -> bytes:
        """virtio, IP and TCP header of a packet with ``length`` bytes of data; ``segment``: of a run, else 0."""
        tcp = _TCP.size + len(options)
        # Over the pseudo header only, not complemented: the rest is left to whoever sends the packet on.
        check = (self._ip_sum + Protocol.TCP + tcp + length) % 0xFFFF
        if self._gso == GSO_TCPV4:
            whole = 20 + tcp + length
            fields = (0x45, traffic, whole, 0, 0x4000, HOP_LIMIT, Protocol.TCP)
            total = 0x4500 + traffic + whole + 0x4000 + (HOP_LIMIT << 8) + Protocol.TCP + self._ip_sum
            ip = _IPV4.pack(*fields, 0xFFFF - (total % 0xFFFF or 0xFFFF))
        else:
            ip = _IPV6.pack(6 << 28 | traffic << 20, tcp + length, Protocol.TCP, HOP_LIMIT)
        start = len(ip) + 2 * len(self._remote)
        gso = self._gso if segment else GSO_NONE
        return b"".join(
            (
                VNET_HEADER.pack(NEEDS_CSUM, gso, start + tcp, segment, start, _CHECKSUM_AT),
                ip,
                self._remote,
                self._local,
                _TCP.pack(*self._ports, seq, ack, offset, window, check, urgent),
                options,
            )
        )


def _alike(rows: list[tuple[bytes, int, int, bytes, bytes, bytes]], data: int) -> int:
    """How many datagrams from the first one go on where the one before ends, with equal headers."""
    heads, counters, seqs, tails, _, _ = zip(*rows, strict=True)
    counter, seq, tail = counters[0], seqs[0], tails[0]
    count = len(rows)
    ends = tail[:5] + bytes([tail[5] | _ENDING]) + tail[6:]
    if (
        heads.count(heads[0]) == count
        and counters == tuple(range(counter, counter + count))
        and seqs == tuple(range(seq, seq + count * data, data))
        and tails[:-1].count(tail) == count - 1
        and tails[-1][:5] + bytes([tails[-1][5] | _ENDING]) + tails[-1][6:] == ends
    ):
        return count
    for index in range(1, count):
        head, number, at, other, _, _ = rows[index]
        if head != heads[0] or number != counter + index or at != (seq + index * data) & SEQ_MASK:
            return index
        if other != tail:  # with PSH or FIN it is the last of the run
            return index + 1 if other[:5] + bytes([other[5] | _ENDING]) + other[6:] == ends else index
    return count


@lru_cache(16)
def _header(options: int) -> struct.Struct:
    return struct.Struct(f"!8sQI{_TAIL.size + options}s")


@lru_cache(1024)
def _whole(options: int, data: int, tag: int) -> struct.Struct:
    return struct.Struct(f"!8sQI{_TAIL.size + options}s{data}s{tag}s")

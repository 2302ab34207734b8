"""Datagrams of the tunnel path: each carries one TCP segment of one connection, and stands alone.

    TUNNEL (8) | type (1) | version (1) | traffic class (1) | 0 (1) | flow (4) | counter (8)
               | sequence number (4) | acknowledgement (4) | offset, flags (2) | window (2) | urgent pointer (2)
               | TCP options | data | tag (16), with integrity only |

What the receiver knows is left out: the IP header, the ports and the checksum.

    PROBE (9)  | type (1) | version (1) | kind (1) | 0 (1) | flow (4) | counter (8)
               | counter of the probe that is answered, or 0 (8) | zeros | tag (16), with integrity only |

A probe (kind 0) finds out whether a datagram of its size arrives (RFC 8899); its answer (kind 1) has no zeros.
Both types take their counters from one sequence, and have their tag computed over everything before it.

The forms here are for single datagrams; kernel/tunnel/segments.py does the same for runs of them.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum, StrEnum
from typing import Final

VERSION: Final = 1
TAG_LEN: Final = 16  # AES-128-GCM without plaintext, nonce: 4 zero bytes and the counter
COUNTER_JUMP: Final = 1 << 46  # without integrity a counter may be ahead of the highest seen by less than this

HEAD: Final = struct.Struct("!BBBBIQ")
SEGMENT: Final = struct.Struct("!BBBBIQIIHHH")
PROBE: Final = struct.Struct("!BBBBIQQ")

_TCP_HEADER = 20
_SYN = 0x002


class Type(IntEnum):
    """First byte; those of the control protocol are in datagram.py."""

    TUNNEL = 8
    PROBE = 9


class Kind(IntEnum):
    """Of a PROBE."""

    QUESTION = 0
    ANSWER = 1


class Refused(StrEnum):
    """Why a datagram of the tunnel was dropped."""

    TRUNCATED = "truncated"
    UNKNOWN_TYPE = "unknown-type"
    UNKNOWN_VERSION = "unknown-version"
    RESERVED = "reserved-not-zero"
    UNKNOWN_FLOW = "unknown-flow"
    BAD_OFFSET = "bad-offset"
    BAD_SEGMENT = "bad-segment"  # a SYN has no place in a connection
    FORGED = "forged"
    REPLAYED = "replayed"
    TOO_OLD = "too-old"
    COUNTER_JUMP = "counter-jump"
    UNASKED = "unasked"  # answers no probe of ours


class TunnelError(ValueError):
    """A datagram that cannot be used; ``reason`` says why."""

    def __init__(self, reason: Refused) -> None:
        super().__init__(reason.value)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Offer:
    """How a host wants to see the datagrams of one connection that are sent to it."""

    flow: int  # 32 bits, chosen at random by the host, not 0
    key: bytes  # 16 bytes, AES-128-GCM
    start: int  # counters begin here; below 2**62, random: it takes more than a guessed flow to forge a datagram


@dataclass(frozen=True, slots=True)
class Segment:
    """A TUNNEL datagram, tag left out."""

    flow: int
    counter: int
    seq: int
    ack: int
    flags: int  # the lower twelve bits of TCP's fourth word: nine flags, and three that are reserved
    window: int
    urgent: int = 0
    traffic_class: int = 0
    options: bytes = b""  # a multiple of 4 bytes, at most 40
    data: bytes = b""


@dataclass(frozen=True, slots=True)
class Probe:
    """A PROBE datagram, tag left out."""

    flow: int
    counter: int
    answers: int | None = None  # counter of the probe that is answered; None: a question
    padding: int = 0  # zeros


def encode(message: Segment | Probe) -> bytes:
    """Bytes without a tag.  Raises ValueError for options of a wrong length."""
    if isinstance(message, Probe):
        kind = Kind.QUESTION if message.answers is None else Kind.ANSWER
        head = PROBE.pack(Type.PROBE, VERSION, kind, 0, message.flow, message.counter, message.answers or 0)
        return head + bytes(message.padding)
    if len(message.options) % 4 or len(message.options) > 40:
        raise ValueError(f"{len(message.options)} bytes of TCP options")
    offset = _TCP_HEADER + len(message.options) << 10
    return (
        SEGMENT.pack(
            Type.TUNNEL,
            VERSION,
            message.traffic_class,
            0,
            message.flow,
            message.counter,
            message.seq,
            message.ack,
            offset | message.flags,
            message.window,
            message.urgent,
        )
        + message.options
        + message.data
    )


def decode(data: bytes) -> Segment | Probe:
    """Read a datagram without its tag.  Raises TunnelError.

    What is known of its flow (window, key) is for the caller to check.
    """
    if len(data) < HEAD.size:
        raise TunnelError(Refused.TRUNCATED)
    kind, version, third, reserved, flow, counter = HEAD.unpack_from(data)
    if kind not in (Type.TUNNEL, Type.PROBE):
        raise TunnelError(Refused.UNKNOWN_TYPE)
    if version != VERSION:
        raise TunnelError(Refused.UNKNOWN_VERSION)
    if reserved:
        raise TunnelError(Refused.RESERVED)
    if kind == Type.PROBE:
        return _decode_probe(data, third, flow, counter)
    if len(data) < SEGMENT.size:
        raise TunnelError(Refused.TRUNCATED)
    *_, seq, ack, offset, window, urgent = SEGMENT.unpack_from(data)
    options = (offset >> 12) * 4 - _TCP_HEADER
    if not 0 <= options <= len(data) - SEGMENT.size:
        raise TunnelError(Refused.BAD_OFFSET)
    if offset & _SYN:
        raise TunnelError(Refused.BAD_SEGMENT)
    at = SEGMENT.size + options
    return Segment(flow, counter, seq, ack, offset & 0xFFF, window, urgent, third, data[SEGMENT.size : at], data[at:])


def _decode_probe(data: bytes, kind: int, flow: int, counter: int) -> Probe:
    if len(data) < PROBE.size:
        raise TunnelError(Refused.TRUNCATED)
    if kind not in (Kind.QUESTION, Kind.ANSWER):
        raise TunnelError(Refused.UNKNOWN_TYPE)
    answers = PROBE.unpack_from(data)[-1]
    return Probe(flow, counter, answers if kind == Kind.ANSWER else None, len(data) - PROBE.size)

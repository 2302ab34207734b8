"""Datagrams of the tunnel, one at a time."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from redirectctl.wire.tunnel import PROBE, SEGMENT, Probe, Refused, Segment, TunnelError, decode, encode

MESSAGES = {
    "a pure acknowledgement": (
        Segment(flow=0xA1B2C3D4, counter=0x0102030405060708, seq=1, ack=2, flags=0x010, window=0xFFFF),
        "08010000 a1b2c3d4 0102030405060708 00000001 00000002 5010 ffff 0000",
    ),
    "data with a traffic class, options, PSH and the pointer of urgent data": (
        Segment(
            flow=1,
            counter=2,
            seq=0xFFFFFFFF,
            ack=0x80000000,
            flags=0x038,
            window=3,
            urgent=4,
            traffic_class=0xB9,
            options=bytes.fromhex("0101080a0000000500000006"),
            data=b"data",
        ),
        "0801b900 00000001 0000000000000002 ffffffff 80000000 8038 0003 0004 0101080a0000000500000006 64617461",
    ),
    "all twelve bits of flags": (
        Segment(flow=1, counter=0, seq=0, ack=0, flags=0xFFD, window=0),
        "08010000 00000001 0000000000000000 00000000 00000000 5ffd 0000 0000",
    ),
    "a probe": (Probe(flow=7, counter=8, padding=4), "09010000 00000007 0000000000000008 0000000000000000 00000000"),
    "an answer": (Probe(flow=7, counter=9, answers=8), "09010100 00000007 0000000000000009 0000000000000008"),
}


@pytest.mark.parametrize(("message", "text"), MESSAGES.values(), ids=MESSAGES)
def test_a_message_has_this_layout(message: Segment | Probe, text: str) -> None:
    data = bytes.fromhex(text)
    assert encode(message) == data
    assert decode(data) == message


ACK = bytes.fromhex(MESSAGES["a pure acknowledgement"][1])
QUESTION = bytes.fromhex(MESSAGES["a probe"][1])
REFUSALS = {
    "nothing": (b"", Refused.TRUNCATED),
    "a head cut short": (ACK[:15], Refused.TRUNCATED),
    "a header cut short": (ACK[: SEGMENT.size - 1], Refused.TRUNCATED),
    "a probe cut short": (QUESTION[: PROBE.size - 1], Refused.TRUNCATED),
    "a datagram of the control protocol": (b"\x05" + ACK[1:], Refused.UNKNOWN_TYPE),
    "another version": (ACK[:1] + b"\x02" + ACK[2:], Refused.UNKNOWN_VERSION),
    "something in the reserved byte": (ACK[:3] + b"\x01" + ACK[4:], Refused.RESERVED),
    "a header shorter than TCP's": (ACK[:24] + b"\x40\x10" + ACK[26:], Refused.BAD_OFFSET),
    "a header longer than the datagram": (ACK[:24] + b"\x60\x10" + ACK[26:], Refused.BAD_OFFSET),
    "a SYN": (ACK[:24] + b"\x50\x02" + ACK[26:], Refused.BAD_SEGMENT),
    "a probe of an unknown kind": (QUESTION[:2] + b"\x02" + QUESTION[3:], Refused.UNKNOWN_TYPE),
}


@pytest.mark.parametrize(("data", "reason"), REFUSALS.values(), ids=REFUSALS)
def test_what_makes_no_sense_is_refused_by_name(data: bytes, reason: Refused) -> None:
    with pytest.raises(TunnelError) as refusal:
        decode(data)
    assert refusal.value.reason is reason


def test_options_of_a_length_that_tcp_does_not_have_are_not_encoded() -> None:
    for length in (1, 44):
        with pytest.raises(ValueError, match=f"{length} bytes of TCP options"):
            encode(Segment(1, 1, 0, 0, 0x10, 0, options=bytes(length)))


@given(data=st.binary(max_size=120) | st.binary(max_size=100).map(lambda tail: b"\x08\x01\0\0" + tail))
def test_whatever_arrives_is_read_or_refused(data: bytes) -> None:
    try:
        message = decode(data)
    except TunnelError:
        return
    again = encode(message)
    assert len(again) == len(data)
    assert decode(again) == message

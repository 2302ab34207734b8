"""Datagrams: the bytes of each, the reason for each refusal, and that nothing else ever comes out of decode."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from redirectctl.wire import datagram as d

_A, _B = bytes(range(32)), bytes(range(32, 64))

TABLE = [
    (
        d.Init(1, d.Pattern.XX, 0x01020304, (1,), _A, b"m" * 16, b"n" * 16),
        "01010000 01020304 01000000" + _A.hex() + "6d" * 16 + "6e" * 16,
    ),
    (
        d.Init(2, d.Pattern.IKPSK2, 0xFFFFFFFF, (3, 2, 1), _A + _B, b"m" * 16, bytes(16)),
        "01020100 ffffffff 03020100" + (_A + _B).hex() + "6d" * 16 + "00" * 16,
    ),
    (d.Response(1, d.Pattern.IKPSK2, 5, 6, _A + b"z"), "02010100 00000005 00000006" + _A.hex() + "7a"),
    (d.FinalMessage(1, 7, b"f" * 64), "03010000 00000007" + "66" * 64),
    (d.Cookie(1, 8, b"o" * 24, b"s" * 32), "04010000 00000008" + "6f" * 24 + "73" * 32),
    (d.Transport(1, 9, 2**64 - 1, b"t" * 16), "05010000 00000009 ffffffffffffffff" + "74" * 16),
    (d.Versions(10, (2, 1)), "06000000 0000000a 02010000"),
    (d.Unknown(1, 11), "07010000 0000000b"),
]


@pytest.mark.parametrize(("message", "hexed"), TABLE, ids=lambda v: type(v).__name__ if not isinstance(v, str) else "")
def test_bytes(message: d.Datagram, hexed: str) -> None:
    assert message.encode() == bytes.fromhex(hexed)
    assert d.decode(bytes.fromhex(hexed)) == message


REFUSED = [
    ("", "too-short"),
    ("01010000 000000", "too-short"),
    ("05" + "00" * d.MAX_DATAGRAM, "too-long"),
    ("00010000 00000001", "unknown-type"),
    ("08010000 00000001", "unknown-type"),
    ("01010001 00000001", "reserved-not-zero"),
    ("05010100 00000001", "reserved-not-zero"),
    ("01010000 00000001 01000000" + "00" * 63, "too-short"),
    ("01010200 00000001 01000000" + "00" * 64, "unknown-pattern"),
    ("02010900 00000001 00000002" + "00" * 32, "unknown-pattern"),
    ("01010000 00000001 00000000" + "00" * 64, "bad-version-list"),
    ("01010000 00000001 01020000" + "00" * 64, "bad-version-list"),  # ascending
    ("01010000 00000001 02020000" + "00" * 64, "bad-version-list"),  # twice the same
    ("01010000 00000001 02000100" + "00" * 64, "bad-version-list"),  # a hole
    ("02010000 00000001 00000002" + "00" * 31, "too-short"),
    ("03010000 00000001" + "00" * 15, "too-short"),
    ("04010000 00000001" + "00" * 55, "bad-length"),
    ("04010000 00000001" + "00" * 57, "bad-length"),
    ("05010000 00000001 0000000000000000" + "00" * 15, "too-short"),
    ("06000000 00000001 010000", "bad-length"),
    ("06010000 00000001 01000000", "reserved-not-zero"),
    ("06000000 00000001 00000000", "bad-version-list"),
    ("07010000 00000001 00", "bad-length"),
]


@pytest.mark.parametrize(("hexed", "reason"), REFUSED)
def test_refused(hexed: str, reason: str) -> None:
    with pytest.raises(d.MalformedError) as refused:
        d.decode(bytes.fromhex(hexed))
    assert refused.value.reason == reason


_index = st.integers(0, 2**32 - 1)
_version = st.integers(0, 255)
_list = st.lists(st.integers(1, 255), min_size=1, max_size=4, unique=True).map(lambda v: tuple(sorted(v, reverse=True)))
_mac = st.binary(min_size=16, max_size=16)
any_datagram = st.one_of(
    st.builds(d.Init, _version, st.sampled_from(d.Pattern), _index, _list, st.binary(min_size=32, max_size=300), _mac,
              _mac),
    st.builds(d.Response, _version, st.sampled_from(d.Pattern), _index, _index, st.binary(min_size=32, max_size=300)),
    st.builds(d.FinalMessage, _version, _index, st.binary(min_size=16, max_size=300)),
    st.builds(d.Cookie, _version, _index, st.binary(min_size=24, max_size=24), st.binary(min_size=32, max_size=32)),
    st.builds(d.Transport, _version, _index, st.integers(0, 2**64 - 1), st.binary(min_size=16, max_size=1216)),
    st.builds(d.Versions, _index, _list),
    st.builds(d.Unknown, _version, _index),
)  # fmt: skip


@given(any_datagram)
def test_round_trip(message: d.Datagram) -> None:
    assert d.decode(message.encode()) == message


@given(st.one_of(st.binary(max_size=1300), st.binary(max_size=80).map(lambda b: bytes((len(b) % 9,)) + b)))
@example(b"")
def test_any_bytes_are_a_datagram_or_refused(data: bytes) -> None:
    try:
        message = d.decode(data)
    except d.MalformedError:
        return
    assert message.encode() == data


@given(any_datagram, st.integers(0), st.integers(1, 255))
def test_a_changed_byte_is_refused_or_another_datagram(message: d.Datagram, at: int, change: int) -> None:
    data = bytearray(message.encode())
    data[at % len(data)] ^= change
    with suppress(d.MalformedError):
        assert d.decode(bytes(data)) != message


def test_the_header_of_a_transport_datagram_is_all_but_the_ciphertext() -> None:
    message = d.Transport(1, 9, 3, b"c" * 20)
    assert message.encode() == message.header + b"c" * 20


def test_macs_cover_all_of_an_init_before_them() -> None:
    message = d.Init(1, d.Pattern.XX, 1, (1,), _A, b"m" * 16, b"n" * 16)
    assert message.encode() == message.body() + b"m" * 16 + b"n" * 16

"""Netlink messages and attributes: what the kernel may send, and what makes no sense."""

from __future__ import annotations

import struct

import pytest

from redirectctl.kernel.netlink import HEADER, attribute, attributes, split


def message(kind: int, body: bytes, *, length: int | None = None) -> bytes:
    size = HEADER.size + len(body) if length is None else length
    return HEADER.pack(size, kind, 2, 7, 0) + body + b"\0" * (-len(body) % 4)


def test_messages_of_any_length_one_behind_the_other() -> None:
    data = message(16, b"abcde") + message(17, b"") + message(18, b"xyzw")
    found = [(kind, flags, sequence, data[start:end]) for kind, flags, sequence, start, end in split(data)]
    assert found == [(16, 2, 7, b"abcde"), (17, 2, 7, b""), (18, 2, 7, b"xyzw")]


@pytest.mark.parametrize("length", [0, 1, HEADER.size - 1])
def test_a_length_below_the_headers_ends_it(length: int) -> None:
    data = message(16, b"abcd") + message(17, b"abcd", length=length) + message(18, b"abcd")
    assert [kind for kind, *_ in split(data)] == [16]


def test_a_header_that_is_cut_short_is_none() -> None:
    assert list(split(message(16, b"")[:-1])) == []


def test_attributes_as_they_were_written() -> None:
    data = b"head" + attribute(1, b"abcde") + attribute(2 | 0x8000, b"") + attribute(3 | 0x4000, b"xyzw")
    assert len(data) == 4 + 12 + 4 + 8
    assert list(attributes(data, 4)) == [(1, b"abcde"), (2, b""), (3, b"xyzw")]


@pytest.mark.parametrize("length", [0, 3])
def test_an_attributes_length_that_makes_no_sense_ends_it(length: int) -> None:
    assert list(attributes(attribute(1, b"abcd") + struct.pack("=HH", length, 2) + attribute(3, b""))) == [(1, b"abcd")]

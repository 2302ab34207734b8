"""What finds a number that comes twice must be able to."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from redirectctl.lab.counters import Counters, Ranges

FLOW, INDEX = 7, 7


def tunnel(counter: int, flow: int = FLOW, kind: int = 8, size: int = 40) -> bytes:
    return struct.pack("!BBBBIQ", kind, 1, 0, 0, flow, counter).ljust(size, b"x")


def take(counters: Counters, *datagrams: bytes) -> int:
    counters.take(memoryview(b"".join(datagrams)), len(datagrams[0]))
    return counters.again


def test_a_number_that_comes_again() -> None:
    counters = Counters()
    assert take(counters, tunnel(1), tunnel(2), tunnel(3), tunnel(4, size=20)) == 0
    assert take(counters, tunnel(5)) == 0
    assert take(counters, tunnel(5, kind=5)) == 0  # of a session
    assert take(counters, tunnel(5, flow=8), tunnel(9), tunnel(3, flow=9)) == 0
    assert counters.datagrams == 9
    assert take(counters, tunnel(3)) == 1
    assert take(counters, tunnel(10, kind=9), tunnel(9, kind=9)) == 2
    assert take(counters, tunnel(2, kind=1), tunnel(2, kind=1)) == 2  # handshakes have none


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(1, 8))))
def test_ranges(added: list[tuple[int, int]]) -> None:
    ranges, known = Ranges(), set[int]()
    for start, length in added:
        numbers = set(range(start, start + length))
        assert ranges.add(start, start + length) == known.isdisjoint(numbers)
        if known.isdisjoint(numbers):
            known |= numbers


@pytest.mark.parametrize("size", [41, 1200])
def test_of_one_super_segment(size: int) -> None:
    counters = Counters()
    assert take(counters, *(tunnel(number, size=size) for number in range(30))) == 0
    assert len(counters.seen) == 1
    assert take(counters, tunnel(29, size=size)) == 1

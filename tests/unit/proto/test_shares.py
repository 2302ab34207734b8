"""Tables that are shared."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from redirectctl.proto.shares import Shared

LIMIT = 12


def table() -> Shared[str, object, str]:
    return Shared()


def fill(shared: Shared[str, object, str], party: str, many: int) -> list[object]:
    gone = [shared.put(LIMIT, party, (party, n), party) for n in range(many)]
    return [each[0] for each in gone if each is not None]


def test_one_alone_may_have_all_and_gives_way() -> None:
    shared = table()
    assert fill(shared, "a", LIMIT + 2) == [("a", LIMIT), ("a", LIMIT + 1)], "who has most gets no more"
    assert fill(shared, "b", 8) == [*(("a", n) for n in range(6)), ("b", 6), ("b", 7)], "its oldest go, until even"
    assert (shared.of("a"), shared.of("b"), len(shared)) == (6, 6, LIMIT)


def test_many_together_keep_nobody_out() -> None:
    shared = table()
    for party in "abcdef":
        fill(shared, party, LIMIT)
    assert {shared.of(party) for party in "abcdef"} <= {2, 3}
    assert fill(shared, "last", 1) != [("last", 0)]
    assert shared.of("last") == 1


def test_there_are_more_parties_than_places() -> None:
    shared = table()
    for n in range(LIMIT):
        fill(shared, f"party {n}", 1)
    assert fill(shared, "one more", 1) == [("party 0", 0)], "who has had it for longest"


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 30), st.booleans()), max_size=200))
def test_it_is_what_it_says(steps: list[tuple[int, int, bool]]) -> None:
    shared: Shared[int, tuple[int, int], int] = Shared()
    kept: dict[tuple[int, int], int] = {}  # oldest first
    for party, number, add in steps:
        key = party, number
        if not add:
            assert shared.pop(key) == kept.pop(key, None)
        elif key not in kept:
            have = Counter(p for p, _ in kept)
            gone = shared.put(LIMIT, party, key, number)
            if len(kept) < LIMIT:
                assert gone is None
            elif have[party] >= max(have.values()):
                assert gone == (key, number)
            else:
                assert gone is not None
                assert have[gone[0][0]] == max(have.values())
                assert gone[0] == next(k for k in kept if k[0] == gone[0][0])
                del kept[gone[0]]
            if gone is None or gone[0] != key:
                kept[key] = number
        assert list(shared) == list(kept)
        assert list(shared.values()) == list(kept.values())
        assert all(shared.get(k) == v and k in shared for k, v in kept.items())
        assert [shared.of(p) for p in range(5)] == [sum(k[0] == p for k in kept) for p in range(5)]


@pytest.mark.parametrize("key", [1, "x"])
def test_what_is_not_there(key: object) -> None:
    shared = table()
    assert (shared.get(key), shared.pop(key), key in shared, len(shared)) == (None, None, False, 0)

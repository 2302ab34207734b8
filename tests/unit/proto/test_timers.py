"""Deadlines without a clock."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from redirectctl.proto.timers import Timers


def test_earliest_first_and_each_once() -> None:
    timers: Timers[str] = Timers()
    for key, at in (("c", 3.0), ("a", 1.0), ("b", 2.0)):
        timers.set(key, at)
    assert timers.next() == 1.0
    assert list(timers.due(2.0)) == ["a", "b"]
    assert list(timers.due(2.0)) == []
    assert timers.next() == 3.0


def test_setting_again_replaces() -> None:
    timers: Timers[str] = Timers()
    timers.set("a", 1.0)
    timers.set("a", 5.0)
    assert timers.next() == 5.0
    assert list(timers.due(4.0)) == []
    timers.set("a", 2.0)
    assert list(timers.due(9.0)) == ["a"]
    assert timers.next() is None


def test_cancelled() -> None:
    timers: Timers[str] = Timers()
    timers.set("a", 1.0)
    assert timers.armed("a")
    timers.cancel("a")
    timers.cancel("never set")
    assert not timers.armed("a")
    assert timers.next() is None


def test_keys_need_not_be_comparable() -> None:
    timers: Timers[object] = Timers()
    timers.set(("a", 1), 1.0)
    timers.set(("a", None), 1.0)
    assert list(timers.due(1.0)) == [("a", 1), ("a", None)]


def test_one_that_is_set_for_now_while_the_due_ones_are_handed_out_is_due_too() -> None:
    timers: Timers[str] = Timers()
    timers.set("a", 1.0)
    seen = []
    for key in timers.due(1.0):
        seen.append(key)
        if key == "a":
            timers.set("b", 1.0)
    assert seen == ["a", "b"]


def test_replaced_deadlines_do_not_pile_up() -> None:
    timers: Timers[str] = Timers()
    timers.set("first", 0.0)
    for i in range(10_000):
        timers.set("again", 1e6 + i)
        timers.set(str(i), 1e6)
        timers.cancel(str(i))
    assert len(timers._heap) < 200
    assert list(timers.due(1.0)) == ["first"]
    assert timers.next() == 1e6 + 9_999


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.none() | st.integers(0, 20)), max_size=300))
def test_against_a_dictionary(changes: list[tuple[str, int | None]]) -> None:
    timers: Timers[str] = Timers()
    model: dict[str, int] = {}
    for key, at in changes:
        if at is None:
            timers.cancel(key)
            model.pop(key, None)
        else:
            timers.set(key, at)
            model[key] = at
        assert timers.next() == min(model.values(), default=None)
    due = list(timers.due(10))
    assert sorted(due) == sorted(k for k, at in model.items() if at <= 10)
    assert [model[k] for k in due] == sorted(model[k] for k in due)

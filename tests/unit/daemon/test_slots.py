"""Who gets a slot."""

from __future__ import annotations

import itertools

import pytest

from redirectctl.daemon.slots import ROOT, Slot, Slots

CLOCK = itertools.count()


def fill(slots: Slots, uid: int, *, idle: bool = True) -> list[Slot]:
    """All that a user gets while he is busy; then they are idle."""
    got = [slot for slot, _ in iter(lambda: slots.enter(uid), (None, None)) if slot is not None]
    for slot in got:
        slot.idle_since = float(next(CLOCK)) if idle else None
    return got


def test_root_has_slots_whoever_else_has_taken_some() -> None:
    slots = Slots(256, 64)
    for uid in range(1000, 1100):
        fill(slots, uid, idle=False)
    assert len(fill(slots, ROOT, idle=False)) == 64
    assert len(slots) == 256 + 64


def test_nobody_has_more_than_are_left_for_others() -> None:
    slots = Slots(256, 64)
    assert [len(fill(slots, uid, idle=False)) for uid in range(1000, 1007)] == [64, 64, 64, 32, 16, 8, 4]


@pytest.mark.parametrize("users", [4, 100])
def test_a_second_party_gets_in_however_many_are_idle(users: int) -> None:
    slots = Slots(256, 64)
    taken = {uid: fill(slots, uid) for uid in range(1000, 1000 + users)}
    slot, ended = slots.enter(7747)
    assert slot is not None
    if ended is not None:  # none was left: it is of whoever has most
        assert len(taken[ended.uid]) > 32
    assert len(slots) <= 256


def test_the_one_that_has_been_idle_for_longest_goes() -> None:
    slots = Slots(256, 3)
    mine = fill(slots, 1000)
    mine[0].idle_since = float(next(CLOCK))  # used again
    others = fill(slots, 1001)
    slot, ended = slots.enter(1000)
    assert (slot is not None, ended) == (True, mine[1])
    assert all(other in slots._taken for other in others)


def test_who_is_busy_is_not_ended() -> None:
    slots = Slots(2, 64)
    busy = fill(slots, 1000, idle=False) + fill(slots, 1001, idle=False)
    assert len(busy) == 2
    assert slots.enter(1002) == (None, None)
    busy[0].idle_since = 1.0
    slot, ended = slots.enter(1002)
    assert (slot is not None, ended) == (True, busy[0])
    slots.leave(busy[0])  # its client ends later
    assert len(slots) == 2

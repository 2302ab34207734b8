"""Putting back, and leaving alone what somebody wants otherwise."""

from __future__ import annotations

from redirectctl.daemon.repair import PAUSE, TIMES, WITHIN, Contest


def test_what_is_removed_now_and_then_is_always_put_back() -> None:
    contest = Contest()
    for time in range(1000):
        now = time * WITHIN / (TIMES - 2)
        assert not contest.left_alone("rules", now)
        assert not contest.count("rules", now)


def test_what_is_removed_again_and_again_is_left_alone_for_a_while_and_nothing_else_is() -> None:
    contest = Contest()
    assert [contest.count("rules", float(i)) for i in range(TIMES)] == [False] * (TIMES - 1) + [True]
    now = float(TIMES)
    assert contest.left_alone("rules", now)
    assert not contest.left_alone("device", now)
    assert not contest.count("device", now)
    later = TIMES - 1 + PAUSE
    assert contest.left_alone("rules", later - 0.1)
    assert not contest.left_alone("rules", later)
    assert [contest.count("rules", later + i) for i in range(TIMES)] == [False] * (TIMES - 1) + [True]

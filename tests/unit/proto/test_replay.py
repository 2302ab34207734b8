"""RFC 6479's window against a set that forgets nothing."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from redirectctl.proto.constants import REJECT_AFTER_MESSAGES, REPLAY_BLOCK_BITS, REPLAY_BLOCKS, REPLAY_WINDOW
from redirectctl.proto.errors import MisuseError, Reason
from redirectctl.proto.replay import ReplayWindow


class Model:
    """Every counter ever committed."""

    def __init__(self) -> None:
        self.seen: set[int] = set()

    def check(self, counter: int) -> Reason | None:
        if counter >= REJECT_AFTER_MESSAGES:
            return Reason.COUNTER_LIMIT
        if max(self.seen, default=-1) - counter >= REPLAY_WINDOW:
            return Reason.TOO_OLD
        return Reason.REPLAYED if counter in self.seen else None


steps = st.one_of(
    st.integers(-3, 3),
    st.integers(-200, 200),
    st.integers(-REPLAY_WINDOW - 70, REPLAY_WINDOW + 70),
    st.sampled_from([n + d for n in (REPLAY_WINDOW, 8192, 16384) for d in (-64, -1, 0, 1, 63, 64)]),
    st.sampled_from([-REPLAY_WINDOW - 1, -REPLAY_WINDOW, -REPLAY_WINDOW + 1, -64, -63, 63, 64, 65]),
    st.integers(0, 2**62),
)


@settings(deadline=None)
@given(
    start=st.sampled_from([0, 1, 63, 64, REPLAY_WINDOW, 2**32 - 5, 2**63, REJECT_AFTER_MESSAGES - 20000]),
    moves=st.lists(st.tuples(steps, st.booleans()), max_size=120),
)
def test_same_answers_as_a_set_that_forgets_nothing(start: int, moves: list[tuple[int, bool]]) -> None:
    """Counters near the highest so far; some messages turn out forged and are not committed."""
    window, model = ReplayWindow(), Model()
    highest = start
    for step, authentic in moves:
        counter = min(max(highest + step, 0), 2**64 - 1)
        answer = window.check(counter)
        assert answer is model.check(counter)
        if answer is None and authentic:
            window.commit(counter)
            model.seen.add(counter)
            highest = max(model.seen)
    for counter in range(max(0, highest - REPLAY_WINDOW - 3), highest + 3):
        assert window.check(counter) is model.check(counter)


def test_nothing_is_left_of_the_last_time_round_the_ring() -> None:
    window = ReplayWindow()
    for block in range(3 * REPLAY_BLOCKS):
        for bit in (2, 1, REPLAY_BLOCK_BITS - 1):
            counter = block * REPLAY_BLOCK_BITS + bit
            assert window.check(counter) is None
            window.commit(counter)
            assert window.check(counter) is Reason.REPLAYED


def test_a_forged_counter_does_not_move_the_window() -> None:
    window = ReplayWindow()
    window.commit(5)
    assert window.check(10**9) is None
    assert window.check(4) is None
    assert window.check(5) is Reason.REPLAYED


def test_counter_zero_counts_once() -> None:
    window = ReplayWindow()
    assert window.check(0) is None
    window.commit(0)
    assert window.check(0) is Reason.REPLAYED


def test_commit_of_a_refused_counter_is_misuse() -> None:
    window = ReplayWindow()
    window.commit(REPLAY_WINDOW)
    for counter in (REPLAY_WINDOW, 0, REJECT_AFTER_MESSAGES, -1):
        with pytest.raises(MisuseError):
            window.commit(counter)
    window.commit(1)


def test_a_window_is_wide_enough() -> None:
    assert REPLAY_WINDOW >= 2048

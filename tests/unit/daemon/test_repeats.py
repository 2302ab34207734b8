"""What is written how often."""

from __future__ import annotations

from redirectctl.daemon.repeats import DAY, LONGEST_PAUSE, MAX_KINDS, MAX_PARTIES, Repeats, Shares


def told(repeats: Repeats[str], now: float) -> list[tuple[str | None, str, int]]:
    return list(repeats.due(now))


def test_pauses_grow_and_nothing_is_lost() -> None:
    repeats: Repeats[str] = Repeats()
    lines = []
    for tenth in range(10 * 86400):
        if count := repeats.note(tenth / 10, "mallory", "replayed", str(tenth)):
            lines.append((tenth / 10, count))
    assert [at for at, _ in lines[:5]] == [0.0, 1.0, 3.0, 7.0, 15.0]
    assert len(lines) < 40
    assert sum(count for _, count in lines) + sum(count for _, _, count in told(repeats, float("inf"))) == 864_000


def test_the_first_after_an_hour_of_quiet_counts_as_the_first() -> None:
    repeats: Repeats[str] = Repeats()
    for second in range(100):
        repeats.note(second, "mallory", "replayed", "")
    assert told(repeats, 100 + LONGEST_PAUSE) != []
    at = 100 + 2 * LONGEST_PAUSE
    assert [repeats.note(at + step, "mallory", "replayed", "") for step in (0.0, 0.5, 1.0)] == [1, 0, 2]


def test_a_clock_that_is_set_back_silences_nothing() -> None:
    repeats: Repeats[str] = Repeats()
    assert repeats.note(1e9, "mallory", "replayed", "") == 1
    assert repeats.note(1e6, "mallory", "replayed", "") == 1


def test_tables_are_bounded_and_others_are_told_of() -> None:
    repeats: Repeats[str] = Repeats()
    for kind in range(10 * MAX_KINDS):
        repeats.note(0.0, "mallory", kind, "", broad="broad")
    assert len(repeats) == MAX_KINDS + 1
    assert repeats.note(0.0, "bob", "replayed", "") == 1
    for party in range(10 * MAX_PARTIES):
        repeats.note(0.0, f"minion {party}", "forged", "")
    assert len(repeats) <= (MAX_KINDS + 1) + MAX_PARTIES
    assert repeats.note(0.0, "bob", "replayed", "") == 0
    assert repeats.note(0.0, "anna", "forged", "hers") == 0  # one of too many: told of with them, and the last is named
    assert (None, "hers", 10 * MAX_PARTIES - (MAX_PARTIES - 2)) in told(repeats, 1.0)
    told(repeats, 3 * LONGEST_PAUSE)
    told(repeats, 6 * LONGEST_PAUSE)
    assert len(repeats) == 0


def test_there_is_always_something_left_for_the_next() -> None:
    shares = Shares(1000)
    used = []
    for who in "abcd":
        before = shares._left
        while shares.room(0.0, who):
            shares.take(who, 1)
        used.append(before - shares._left)
    assert used == [500, 250, 125, 63]
    assert shares.room(0.0, "e")
    assert not shares.room(0.0, "a")
    assert shares.room(DAY, "a")

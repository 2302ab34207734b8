"""What a peer can have sent to addresses at which it has never answered: 8 KiB, then 100 bytes a second."""

from __future__ import annotations

from redirectctl.proto.bucket import Bucket
from redirectctl.proto.peer import Peer, PeerState


def taken(budget: Bucket, now: float, length: int = 64, at_most: int = 1000) -> int:
    """How many datagrams of this length may go."""
    return next((n for n in range(at_most) if not budget.take(now, length)), at_most)


def test_it_is_spent_and_comes_back_slowly() -> None:
    budget = Peer(b"key", PeerState.APPROVED).unproven
    assert taken(budget, 1000.0) == 8192 // 64
    assert taken(budget, 1000.5) == 0
    assert taken(budget, 1064.0) == 100
    assert taken(budget, 1_000_000.0) == 8192 // 64  # and no more, however long nothing was sent


def test_what_comes_from_there_may_be_answered_by_as_much() -> None:
    budget = Peer(b"key", PeerState.APPROVED).unproven
    taken(budget, 1000.0)
    budget.credit(1000.0, 640)
    assert taken(budget, 1000.0) == 10
    budget.credit(1000.0, 10**6)
    assert taken(budget, 1000.0) == 8192 // 64


def test_what_is_too_long_now_takes_nothing() -> None:
    budget = Peer(b"key", PeerState.APPROVED).unproven
    assert not budget.take(1000.0, 8193)
    assert budget.take(1000.0, 8192)
    assert not budget.take(1000.0, 1)


def test_a_clock_that_goes_back_gives_nothing() -> None:
    budget = Peer(b"key", PeerState.APPROVED).unproven
    taken(budget, 1000.0)
    assert taken(budget, 900.0) == 0

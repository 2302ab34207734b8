"""Of many connections everything takes longer, at both ends: what is waited for is waited for that much longer."""

from __future__ import annotations

import pytest

from redirectctl.flows import constants
from redirectctl.flows.connection import Path
from redirectctl.flows.policy import Policy
from redirectctl.wire.addr import FourTuple
from tests.sim.host import Host
from tests.sim.world import World

POLICY = Policy(first_contact="accept-new", long_lived_after=1.0, prefer="auto")
COUNT = 20


@pytest.fixture
def like_thousands(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if each of the connections were some hundred."""
    monkeypatch.setattr(constants, "EACH", 0.25)


def crowd() -> tuple[World, Host, Host, list[FourTuple]]:
    world = World()
    alice, bob = world.host("alice", "192.0.2.1", policy=POLICY), world.host("bob", "198.51.100.2", policy=POLICY)
    sockets = [world.connect(bob, alice, 40000 + n)[0] for n in range(COUNT)]
    world.run(10)
    assert all(bob.protects(socket) for socket in sockets)
    for host in (alice, bob):
        host.kernel_delay = 3.5  # more than challenges are repeated, and than a choice counts
        host.notices.clear()
    return world, alice, bob, sockets


@pytest.mark.usefixtures("like_thousands")
@pytest.mark.parametrize("who", ["alice", "bob"])
@pytest.mark.parametrize("away", [0.0, 3.0])
def test_a_move_that_takes_its_time_is_made_once(who: str, away: float) -> None:
    world, alice, bob, sockets = crowd()
    mover, stayer = (alice, bob) if who == "alice" else (bob, alice)
    its = sockets if stayer is bob else [s.mirrored for s in sockets]
    mover.move()
    world.run(away)
    mover.move("203.0.113.9")
    for _ in range(30):
        world.run(0.5)
        if any(c.path is Path.ORIGINAL for c in stayer.engine.table):
            stayer.engine.stalled(world.now, its)  # what it sends is not answered meanwhile
            stayer.run()
    for host in (alice, bob):
        assert all(c.movable and c.confirmed is not None for c in host.engine.table)
        assert not host.named("connection.suspended", "peer-silent")
        assert not host.held
        assert not host.named("redirect.refused", "path-challenge-failed")
    assert len(mover.named("move.started")) == 1
    assert len(stayer.named("move.started")) <= (away > 0)
    assert len(mover.named("move.finished")) == 1


@pytest.mark.usefixtures("like_thousands")
def test_a_stall_right_after_a_move_is_not_announced_before_all_are_set_going() -> None:
    world, alice, bob, sockets = crowd()
    alice.kernel_delay = bob.kernel_delay = 0.0
    bob.move("203.0.113.9")
    world.run(1)
    assert bob.named("move.finished")
    for announced in (False, True):
        for host, ends in ((alice, [s.mirrored for s in sockets]), (bob, sockets)):
            host.engine.stalled(world.now, ends)
            host.run()
            assert bool(host.named("move.started", "retransmitting")) is announced
        world.run(constants.EACH_MAX)

"""Hosts whose keys a person has named: pairing."""

import pytest

from redirectctl.flows.policy import Policy
from redirectctl.proto.peer import PeerState
from redirectctl.wire.addr import SockAddr
from tests.sim.host import Host
from tests.sim.network import ip
from tests.sim.world import World

ALICE, BOB, MALLORY = "192.0.2.1", "198.51.100.2", "203.0.113.3"
PORT = 7747


def two_hosts(first_contact: str) -> tuple[World, Host, Host]:
    world = World(seed=13)
    policy = Policy(first_contact=first_contact)
    return world, world.host("alice", ALICE, policy=policy), world.host("bob", BOB, policy=policy)


def meet(world: World, bob: Host, alice: Host, at: str = ALICE) -> None:
    bob.engine.meet(world.now, SockAddr(ip(at), PORT), None, alice.static.public)
    world.run(10)


@pytest.mark.parametrize("first_contact", ["ask", "refuse"])
def test_who_is_expected_waits_for_approval(first_contact: str) -> None:
    world, alice, bob = two_hosts(first_contact)
    alice.engine.expect(world.now, bob.static.public, 60)
    bob.engine.expect(world.now, alice.static.public, 60)
    meet(world, bob, alice)
    assert bob.engine.peers[alice.static.public].state is PeerState.PENDING
    assert alice.engine.peers[bob.static.public].state is PeerState.PENDING
    assert bob.engine.answered_at(world.now, alice.static.public, ip(ALICE))
    assert ip(ALICE) in bob.engine.peers[alice.static.public].identity


def test_nobody_else_is_met_meanwhile() -> None:
    world, alice, bob = two_hosts("refuse")
    mallory = world.host("mallory", MALLORY)
    alice.engine.expect(world.now, bob.static.public, 60)
    mallory.engine.meet(world.now, SockAddr(ip(ALICE), PORT), None, alice.static.public)
    world.run(10)
    assert not alice.engine.peers


def test_after_its_time_it_is_refused_as_others_are() -> None:
    world, alice, bob = two_hosts("refuse")
    for one, other in ((alice, bob), (bob, alice)):
        one.engine.expect(world.now, other.static.public, 5)
    world.run(6)
    meet(world, bob, alice)
    assert not alice.engine.peers
    assert not bob.engine.peers


def test_another_key_that_answers_there_is_not_met() -> None:
    world, alice, bob = two_hosts("ask")
    mallory = world.host("mallory", MALLORY)
    bob.engine.expect(world.now, alice.static.public, 60)
    meet(world, bob, alice, at=MALLORY)
    assert alice.static.public not in bob.engine.peers
    assert mallory.static.public not in bob.engine.peers
    assert not bob.engine.answered_at(world.now, alice.static.public, ip(MALLORY))


def test_who_has_called_us_has_not_answered_there() -> None:
    world, alice, bob = two_hosts("ask")
    meet(world, bob, alice)
    assert alice.engine.peers[bob.static.public].session(world.now) is not None
    assert not alice.engine.answered_at(world.now, bob.static.public, ip(BOB))
    assert not alice.engine.peers[bob.static.public].identity


def test_a_place_counts_only_where_it_answered() -> None:
    world, alice, bob = two_hosts("ask")
    meet(world, bob, alice)
    assert not bob.engine.answered_at(world.now, alice.static.public, ip(MALLORY))
    assert not bob.engine.answered_at(world.now, b"\x01" * 32, ip(ALICE))

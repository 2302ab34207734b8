"""Hosts for whose keys DNS vouches: the engine is told so, with the address that the name has."""

from dataclasses import replace

from redirectctl.flows.policy import Policy
from redirectctl.flows.state import State
from redirectctl.proto.peer import PeerState
from tests.sim.host import Host
from tests.sim.network import ip
from tests.sim.world import World

ALICE, BOB, ELSEWHERE = "192.0.2.1", "198.51.100.2", "203.0.113.99"
ASK, ANYBODY = Policy(first_contact="ask"), Policy(first_contact="accept-new")


def waiting() -> tuple[World, Host, Host]:
    """bob has called alice, and waits for a person."""
    world = World(seed=16)
    alice, bob = world.host("alice", ALICE, policy=ANYBODY), world.host("bob", BOB, policy=ASK)
    return world, alice, bob


def test_nobody_is_asked_about_a_host_whose_key_is_published() -> None:
    world, alice, bob = waiting()
    socket, _ = world.connect(bob, alice, 40000)
    world.run(20)
    assert bob.connection(socket).state is State.PENDING
    assert bob.engine.published(world.now, alice.static.public, ip(ALICE))
    world.run(20)
    assert bob.protects(socket)
    assert bob.named("peer.approved", "dns-key")


def test_the_key_must_have_answered_at_the_address_of_the_name() -> None:
    world, alice, bob = waiting()
    socket, _ = world.connect(bob, alice, 40000)
    world.run(20)
    assert not bob.engine.published(world.now, alice.static.public, ip(ELSEWHERE))
    world.run(20)
    assert not bob.protects(socket)


def test_who_has_only_called_is_not_approved() -> None:
    """Whatever address it called from."""
    world, alice, bob = waiting()
    world.connect(alice, bob, 40000)
    world.run(20)
    assert bob.engine.peers[alice.static.public].state is PeerState.PENDING
    assert not bob.engine.published(world.now, alice.static.public, ip(ALICE))


def test_whom_a_person_has_rejected_stays_rejected() -> None:
    world, alice, bob = waiting()
    world.connect(bob, alice, 40000)
    world.run(20)
    bob.engine.reject(world.now, alice.static.public)
    assert not bob.engine.published(world.now, alice.static.public, ip(ALICE))
    assert bob.engine.peers[alice.static.public].state is PeerState.REJECTED


def test_where_another_key_is_known_a_person_decides() -> None:
    world, alice, bob = waiting()
    world.connect(bob, alice, 40000)
    world.run(20)
    bob.engine.approve(world.now, alice.static.public)
    world.run(20)
    anew = world.host("anew", ELSEWHERE, policy=replace(ANYBODY))
    anew.addresses = alice.addresses
    world.hosts.remove(alice)
    world.connect(bob, anew, 42000)
    world.run(60)
    assert bob.engine.peers[anew.static.public].state is PeerState.CHANGED
    assert not bob.engine.published(world.now, anew.static.public, ip(ALICE))


def test_a_key_that_waits_is_not_approved_where_another_one_has_answered_too() -> None:
    world, alice, bob = waiting()
    world.connect(bob, alice, 40000)
    world.run(20)
    other = world.host("other", ELSEWHERE, policy=ANYBODY)
    world.connect(bob, other, 40001)
    world.run(20)
    bob.engine.peers[other.static.public].identity.add(ip(ALICE))
    assert not bob.engine.published(world.now, alice.static.public, ip(ALICE))


def test_nothing_is_known_of_a_key_that_was_never_met() -> None:
    world, alice, bob = waiting()
    assert not bob.engine.published(world.now, alice.static.public, ip(ALICE))

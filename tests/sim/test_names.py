"""What hosts tell each other that they are called."""

from __future__ import annotations

import dataclasses

import pytest

from redirectctl.flows import constants
from redirectctl.flows.policy import Policy
from redirectctl.proto.peer import PeerState
from redirectctl.wire import message as messages
from redirectctl.wire.addr import SockAddr
from tests.sim.host import Host
from tests.sim.world import World

OPEN = Policy(first_contact="accept-new", long_lived_after=1.0)
ASK = dataclasses.replace(OPEN, first_contact="ask")


def pair(alice: Policy = OPEN, bob: Policy = OPEN) -> tuple[World, Host, Host]:
    world = World(seed=3)
    return (
        world,
        world.host("alice", "192.0.2.1", policy=dataclasses.replace(alice, own_name="server")),
        world.host("bob", "198.51.100.2", policy=dataclasses.replace(bob, own_name="laptop")),
    )


def says(host: Host, other: Host) -> str | None:
    return host.engine.peers[other.static.public].says


def older(host: Host) -> None:
    """The version before, which knows no NAME."""
    endpoint = host.engine.host.endpoint
    for part in (endpoint, endpoint.initiator, endpoint.responder):
        port = getattr(part, "_port", part)
        port.versions = (2,)


def test_both_say_what_they_are_called_and_it_is_stored() -> None:
    world, alice, bob = pair()
    world.connect(bob, alice, 40000)
    world.run(5)
    assert says(alice, bob) == "laptop"
    assert says(bob, alice) == "server"
    world.run(constants.KEEP_PAUSE + 1)
    assert alice.stored_peers[bob.static.public].says == "laptop"


def test_a_person_who_is_asked_sees_who_calls_but_strangers_learn_nothing() -> None:
    """bob has called alice; nobody has approved anybody."""
    world, alice, bob = pair(ASK, ASK)
    world.connect(bob, alice, 40000)
    world.run(5)
    assert alice.engine.peers[bob.static.public].state is PeerState.PENDING
    assert says(alice, bob) == "laptop"
    assert says(bob, alice) is None
    alice.engine.approve(world.now, bob.static.public)
    alice.run()
    world.run(2)
    assert says(bob, alice) == "server"


def test_who_has_no_name_says_none() -> None:
    world, alice, bob = pair()
    bob.engine.policy_changed(world.now, OPEN)
    world.connect(bob, alice, 40000)
    world.run(5)
    assert says(alice, bob) is None
    assert not any(isinstance(m, messages.Name) for m, _, _ in bob.messages)


@pytest.mark.parametrize("old", ["alice", "bob"])
def test_a_peer_of_the_version_before(old: str) -> None:
    """It is protected and moves as ever, is told no name, and refuses nothing but the new version."""
    world, alice, bob = pair()
    older(alice if old == "alice" else bob)
    socket, _ = world.connect(bob, alice, 40000)
    world.run(5)
    assert bob.protects(socket)
    bob.move("203.0.113.9")
    world.run(5)
    assert bob.protects(socket)
    alice.move("192.0.2.7")
    world.run(300)  # new keys, more than once
    assert bob.protects(socket)
    assert alice.protects(socket.mirrored)
    assert (says(alice, bob), says(bob, alice)) == (None, None)
    for host in (alice, bob):
        assert not any(isinstance(m, messages.Name) for m, _, _ in host.messages)
        assert {n.reason for n in host.named("packet.refused")} <= {"unknown-version"}


def test_a_name_that_changes_all_the_time_is_not_stored_all_the_time() -> None:
    world, alice, bob = pair()
    world.connect(bob, alice, 40000)
    world.run(constants.KEEP_PAUSE + 5)
    before = alice.peers_saved
    for n in range(100):
        bob.engine.host.send(world.now, alice.static.public, messages.Name.of(f"name-{n}"))
        bob.run()
        world.run(0.05)
    assert says(alice, bob) == "name-99"
    assert alice.peers_saved - before <= 3


def test_a_name_moves_nothing() -> None:
    """Nor does an empty one take away what is known."""
    world, alice, bob = pair()
    world.connect(bob, alice, 40000)
    world.run(5)
    bob.engine.host.send(world.now, alice.static.public, messages.Name.of("\n\x1b"))
    bob.run()
    world.run(1)
    assert says(alice, bob) == "laptop"
    assert alice.engine.peers[bob.static.public].remote == SockAddr(bob.addresses[0], 7747)

"""A switch of the policy to accept-new: hosts that wait for a person are accepted, as new ones are."""

from __future__ import annotations

import pytest

from redirectctl.flows.policy import Policy
from redirectctl.flows.state import State
from redirectctl.proto.peer import Accepted, PeerState
from redirectctl.wire.addr import FourTuple, SockAddr
from tests.sim.host import Host
from tests.sim.network import PORT, ip
from tests.sim.world import World

ALICE, BOB, CAROL = "192.0.2.1", "198.51.100.2", "203.0.113.3"
ASK = Policy(first_contact="ask", long_lived_after=1.0)
ACCEPT = Policy(first_contact="accept-new", long_lived_after=1.0)


def waiting() -> tuple[World, Host, Host, FourTuple]:
    """Bob has called alice, each of whom asks."""
    world = World()
    alice, bob = world.host("alice", ALICE, policy=ASK), world.host("bob", BOB, policy=ASK)
    socket, _ = world.connect(bob, alice, 40000)
    world.run(5)
    assert bob.connection(socket).state is State.PENDING
    return world, alice, bob, socket


def switch(world: World, host: Host, policy: Policy) -> None:
    host.engine.policy_changed(world.now, policy)
    host.run()


@pytest.mark.parametrize("restart", [False, True])
def test_who_waits_is_accepted(restart: bool) -> None:
    """By SIGHUP, or at the next start."""
    world, alice, bob, socket = waiting()
    for host in (alice, bob):
        if restart:
            host.policy = ACCEPT
            host.crash()
            host.start()
        else:
            switch(world, host, ACCEPT)
    world.run(60)
    assert len(bob.named("peer.approved", "accept-new")) == len(alice.named("peer.approved", "accept-new")) == 1
    assert alice.engine.peers[bob.static.public].accepted is not Accepted.NO  # as one who called
    assert bob.engine.peers[alice.static.public].accepted is Accepted.NO
    if not restart:
        assert bob.protects(socket)
        assert alice.protects(socket.mirrored)
        world.settled()


@pytest.mark.parametrize("policy", [ASK, Policy(first_contact="refuse", long_lived_after=1.0)])
def test_any_other_change_accepts_nobody(policy: Policy) -> None:
    world, alice, bob, _ = waiting()
    switch(world, bob, policy)
    world.run(5)
    assert bob.engine.peers[alice.static.public].state is PeerState.PENDING


def test_what_a_person_has_rejected_stays_rejected() -> None:
    world, alice, bob, _ = waiting()
    bob.engine.reject(world.now, alice.static.public)
    bob.run()
    switch(world, bob, ACCEPT)
    world.run(5)
    assert bob.engine.peers[alice.static.public].state is PeerState.REJECTED


def test_another_key_where_one_is_known_still_waits() -> None:
    """As with ssh: a new host is accepted, not a stranger in the place of a known one."""
    world, alice, bob, _ = waiting()
    bob.engine.approve(world.now, alice.static.public)
    bob.run()
    carol = world.host("carol", CAROL, policy=ASK)
    alice.addresses, carol.addresses = [ip(CAROL)], [ip(ALICE)]
    carol.engine.meet(world.now, SockAddr(ip(BOB), PORT))
    carol.run()
    world.run(5)
    switch(world, bob, ACCEPT)
    world.run(5)
    assert bob.engine.peers[carol.static.public].state is PeerState.PENDING

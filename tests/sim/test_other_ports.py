"""A way that is dead for one port of ours, for a router has an entry for it that leads nowhere, is not for others."""

from __future__ import annotations

import pytest

from redirectctl.flows.policy import Policy
from redirectctl.flows.state import State
from redirectctl.proto.noise import StaticKey
from redirectctl.proto.peer import Peer, PeerState
from redirectctl.wire.addr import FourTuple, SockAddr
from tests.sim.host import Host
from tests.sim.network import OTHER_PORTS, PORT, Nat, ip
from tests.sim.world import World

AUTO = Policy(first_contact="accept-new", long_lived_after=1.0, prefer="auto")
PRIVATE = "10.0.0.2"


def started() -> tuple[World, Host, Host, FourTuple]:
    world = World()
    alice = world.host("alice", "192.0.2.1", policy=AUTO)
    bob = world.host("bob", "198.51.100.2", policy=AUTO)
    socket, _ = world.connect(bob, alice, 40000)
    world.run(5)
    assert bob.protects(socket)
    return world, alice, bob, socket


def moved_behind(world: World, bob: Host, *, late: float) -> Nat:
    """Bob moves behind a NAT that begins to translate so much later."""
    nat = world.nat("203.0.113.1", bob)
    nat.late = True
    bob.move(PRIVATE)
    world.run(late)
    nat.late = False
    return nat


def ports_of(world: World, host: Host, since: int) -> set[int]:
    """From which ports a host has sent since the so-many-th datagram."""
    return {source.port for source, _, _ in world.recorded[since:] if source.host in host.addresses}


@pytest.mark.parametrize("late", [0.2, 2.0, 10.0, 40.0])
def test_another_port_gets_through_and_the_old_one_is_silent(late: float) -> None:
    world, alice, bob, socket = started()
    moved_behind(world, bob, late=late)
    world.run(max(6.0, late))
    number = bob.engine.peers[alice.static.public].port
    assert number
    assert bob.connection(socket).state is State.PROTECTED
    assert alice.connection(socket.mirrored).remote_now == ip("203.0.113.1")
    assert {c.port for c in bob.carried.values()} == {number}
    count = len(world.recorded)
    world.run(120)
    assert ports_of(world, bob, count) == {OTHER_PORTS + number}
    assert ports_of(world, alice, 0) == {PORT}


def test_what_has_ended_or_is_not_taken_on_yet_is_not_carried_because_of_it() -> None:
    world, alice, bob, _ = started()
    ended, _ = world.connect(bob, alice, 40001)
    world.run(5)
    nat = world.nat("203.0.113.1", bob)
    nat.late = True
    bob.move(PRIVATE)
    bob.closed(ended)
    fresh, _ = world.connect(bob, alice, 40002)
    world.run(4)
    nat.late = False
    world.run(10)
    assert bob.engine.peers[alice.static.public].port
    assert ended not in bob.carried or ended in bob.flows
    assert bob.engine.table.at(fresh) is not None


def test_after_a_restart_too() -> None:
    world, _, bob, socket = started()
    nat = world.nat("203.0.113.1", bob)
    nat.late = True
    bob.move(PRIVATE)
    world.run(2)
    bob.crash()
    bob.start()
    world.run(2)
    nat.late = False
    world.run(10)
    assert bob.connection(socket).state is State.PROTECTED
    assert bob.connection(socket).confirmed == ip(PRIVATE)


def test_on_another_network_it_is_the_control_port_again() -> None:
    world, alice, bob, socket = started()
    moved_behind(world, bob, late=1.0)
    world.run(6)
    assert bob.engine.peers[alice.static.public].port
    bob.nat = None
    count = len(world.recorded)
    bob.move("198.51.100.77")
    world.run(60)
    assert ports_of(world, bob, count) == {PORT}
    assert bob.connection(socket).local_now == ip("198.51.100.77")
    assert {c.port for c in bob.carried.values()} == {0}


def test_where_all_is_well_no_other_port_is_used() -> None:
    world, alice, bob, socket = started()
    world.nat("203.0.113.1", bob)
    bob.move(PRIVATE)
    world.run(60)
    bob.nat = None
    bob.move("198.51.100.3")
    world.run(60)
    alice.move("192.0.2.77")
    world.run(60)
    assert ports_of(world, bob, 0) | ports_of(world, alice, 0) == {PORT}
    assert bob.protects(socket)


@pytest.mark.parametrize("outage", [5.0, 60.0, 4000.0])
def test_a_firewall_that_lets_the_control_port_only_in_is_no_obstacle_after_an_outage(outage: float) -> None:
    world, _, bob, socket = started()
    world.link.cut = True
    bob.move("198.51.100.3")
    world.run(outage)
    world.link.cut = False
    world.tap = lambda source, to, _data: {source.port, to.port} == {PORT}
    world.run(10)
    assert bob.connection(socket).state is State.PROTECTED
    count = len(world.recorded)
    world.run(60)
    assert ports_of(world, bob, count) <= {PORT}
    assert bob.engine.endpoint.ports_in_use() == {0}


def test_a_port_that_was_proven_is_given_up_when_it_is_dead_in_turn() -> None:
    world, alice, bob, socket = started()
    nat = moved_behind(world, bob, late=1.0)
    world.run(6)
    first = bob.engine.peers[alice.static.public].port
    nat.rebind()
    nat.late = True
    bob.engine.stalled(world.now, [socket])
    bob.run()
    world.run(2)
    while not any(source.port == OTHER_PORTS + first for _, source, _ in nat._pinned):
        world.run(1)
    nat.late = False
    world.run(60)
    assert bob.engine.peers[alice.static.public].port != first
    count = len(alice.messages)
    bob.engine.announce(world.now)
    bob.run()
    world.run(1)
    assert len(alice.messages) > count, "and answers come"


def test_many_peers_that_do_not_answer_share_few_ports() -> None:
    world = World()
    bob = world.host("bob", "198.51.100.2", policy=AUTO)
    for number in range(100):
        key = StaticKey.from_private(world.random.randbytes(32)).public
        bob.engine.peers[key] = Peer(key, PeerState.APPROVED, world.random.randbytes(32))
        to = SockAddr(ip(f"192.0.2.{number + 1}"), PORT)
        bob.engine.meet(world.now, to, None, key)
        bob.run()
        world.run(0.05)
    most = 0
    for _ in range(60):
        world.run(0.5)
        most = max(most, len(bob.engine.endpoint.ports_in_use()))
    assert 1 < most <= 6

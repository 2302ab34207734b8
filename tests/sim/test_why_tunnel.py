"""Why a connection is in the tunnel, as doctor PEER tells it."""

from __future__ import annotations

import dataclasses

from redirectctl.flows.paths.choice import TunnelReason
from tests.sim.host import Host
from tests.sim.network import ip
from tests.sim.test_choice import AUTO, started
from tests.sim.test_rendezvous import relayed_trio
from tests.sim.world import World

NEW = "203.0.113.9"


def why(host: Host) -> set[TunnelReason | None]:
    return {host.engine.choice.why_tunnel(c) for c in host.engine.table.movable()}


def test_what_is_not_in_the_tunnel_has_no_reason_to_be() -> None:
    world, alice, bob, _, _ = started()
    assert why(alice) == why(bob) == {None}
    bob.move(NEW)
    world.run(2)
    assert why(alice) == why(bob) == {None}


def test_plain_packets_that_do_not_arrive_are_told_once_they_have_been_tried() -> None:
    world, alice, bob, _, tokens = started()
    tokens.plain = False
    bob.move(NEW)
    world.run(0.5)
    assert why(bob) == {TunnelReason.BEING_TRIED}
    world.run(20)
    assert why(alice) == why(bob) == {TunnelReason.NOT_SEEN}


def test_a_way_that_stalled_is_told_apart_from_one_that_was_never_open() -> None:
    world, _, bob, (socket,), tokens = started()
    bob.move(NEW)
    world.run(2)
    tokens.plain = False
    bob.engine.stalled(world.now, [socket])
    bob.run()
    world.run(1)
    assert why(bob) == {TunnelReason.STALLED}
    world.run(100)  # tried again, in vain
    assert why(bob) == {TunnelReason.NOT_SEEN}


def test_another_address_family() -> None:
    world, alice, bob, _, _ = started()
    alice.addresses.append(ip("2001:db8::1"))
    alice.network_changed()
    bob.engine.peers[alice.static.public].addresses = (ip("2001:db8::1"),)
    bob.move("2001:db8:9::7")
    world.run(2)
    assert why(alice) == why(bob) == {TunnelReason.OTHER_FAMILY}


def test_the_configuration_and_integrity() -> None:
    for policy, reason in (
        (dataclasses.replace(AUTO, prefer="tunnel"), TunnelReason.PREFERRED),
        (dataclasses.replace(AUTO, integrity=True), TunnelReason.INTEGRITY),
    ):
        world = World()
        alice = world.host("alice", "192.0.2.1", policy=policy)
        bob = world.host("bob", "198.51.100.2", policy=policy)
        world.connect(bob, alice, 40000)
        world.run(5)
        bob.move(NEW)
        world.run(5)
        assert why(alice) == why(bob) == {reason}


def behind_a_nat() -> tuple[World, Host, Host]:
    """A connection of bob's, who is."""
    world = World()
    alice = world.host("alice", "192.0.2.1", policy=AUTO)
    bob = world.host("bob", "10.0.0.2", policy=AUTO)
    world.nat("198.51.100.2", bob)
    world.connect(bob, alice, 40000)
    world.run(5)
    return world, alice, bob


def test_a_nat() -> None:
    world, alice, bob = behind_a_nat()
    world.nat("203.0.113.7", bob)
    bob.move("10.0.0.3")
    world.run(20)
    assert why(alice) == why(bob) == {TunnelReason.NAT}


def test_another_address_behind_the_same_nat() -> None:
    """From outside nothing has changed, but the NAT sends plain packets to where nobody is any more."""
    world, alice, bob = behind_a_nat()
    bob.move("10.0.0.3")
    world.run(0.5)
    assert why(alice) == {TunnelReason.BEING_TRIED}
    assert why(bob) == {TunnelReason.NAT}
    world.run(20)
    assert why(alice) == {TunnelReason.NOT_SEEN}
    bob.move("10.0.0.2")
    world.run(20)
    assert why(bob) == {None}


def test_no_path() -> None:
    world, _, bob, _, tokens = started()
    tokens.plain = False
    bob.move(NEW)
    world.run(1)
    bob.move()
    world.run(1)
    assert why(bob) == {TunnelReason.NO_PATH}


def test_what_a_rendezvous_passes_on() -> None:
    trio = relayed_trio()
    for host in trio.ends:
        host.engine.policy_changed(trio.world.now, AUTO)
        host.run()
        assert why(host) == {TunnelReason.RELAYED}

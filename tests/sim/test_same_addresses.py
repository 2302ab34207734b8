"""An address of ours is never a place of the peer: bridges for containers have the same one on every host."""

from __future__ import annotations

import pytest

from redirectctl.flows.policy import Policy
from redirectctl.flows.rendezvous.places import DNS
from redirectctl.flows.state import State
from redirectctl.wire.addr import FourTuple, SockAddr
from tests.sim.host import Host
from tests.sim.network import PORT, ip
from tests.sim.world import World, agree

BRIDGE = ip("172.17.0.1")
AUTO = Policy(first_contact="accept-new", long_lived_after=1.0, prefer="auto")


def started(*, unused: bool) -> tuple[World, Host, Host, FourTuple]:
    """Alice says that she is at BRIDGE too, which bob has himself."""
    world = World()
    alice = world.host("alice", "192.0.2.1", policy=AUTO)
    bob = world.host("bob", "198.51.100.2", policy=AUTO)
    alice.inside = [BRIDGE]
    (bob.unused if unused else bob.inside).append(BRIDGE)
    for host in (alice, bob):
        host.network_changed()
    socket, _ = world.connect(bob, alice, 40000)
    world.run(5)
    assert bob.protects(socket)
    assert BRIDGE in bob.engine.peers[alice.static.public].addresses
    return world, alice, bob, socket


@pytest.mark.parametrize("unused", [False, True])
def test_a_host_without_a_path_sees_it_at_once_and_does_not_talk_to_itself(unused: bool) -> None:
    world, alice, bob, socket = started(unused=unused)
    bob.sent.clear()
    bob.move()
    assert (bob.connection(socket).state, bob.connection(socket).reason) == (State.SUSPENDED, "no-path")
    world.names[alice.static.public] = [str(BRIDGE), "192.0.2.1"]  # a name may say it as well
    bob.engine.place_learnt(world.now, alice.static.public, DNS, [SockAddr(BRIDGE, PORT)], 30.0)
    world.run(60)
    assert BRIDGE not in {to.host for to, _ in bob.sent}
    bob.move("203.0.113.9")
    world.run(2)
    assert bob.connection(socket).state is State.PROTECTED
    assert BRIDGE not in {to.host for to, _ in bob.sent}
    assert agree(alice, bob, socket.mirrored)


def test_the_peer_has_the_address_alone_and_is_found_there() -> None:
    """The same address, when it is not ours any more."""
    world, alice, bob, socket = started(unused=False)
    bob.inside.clear()
    bob.move()
    alice.inside.clear()
    alice.move(str(BRIDGE))  # on a network that they have in common
    bob.move("172.17.0.9")
    world.run(10)
    assert bob.connection(socket).remote_now == BRIDGE
    assert bob.connection(socket).state is State.PROTECTED


def test_we_have_taken_the_address_where_the_peer_was() -> None:
    """Bob is where alice was; she is elsewhere, and bob's datagrams do not come back to him."""
    world, alice, bob, socket = started(unused=False)
    alice.move()
    bob.move("192.0.2.1")
    bob.sent.clear()
    world.run(5)
    assert bob.sent == []
    assert bob.connection(socket).reason == "no-path"
    alice.move("192.0.2.77")
    world.names[bob.static.public] = ["192.0.2.1"]
    world.run(2)
    assert bob.connection(socket).remote_now == ip("192.0.2.77")
    assert bob.connection(socket).state is State.PROTECTED

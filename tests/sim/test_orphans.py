"""Suspended connections whose other end may never come back: listed, released, killed, and not too many."""

from __future__ import annotations

import pytest

from redirectctl.daemon.records import listed_connection
from redirectctl.flows import commands, constants
from redirectctl.flows.policy import Policy
from redirectctl.flows.state import State
from redirectctl.wire.addr import FourTuple
from tests.sim.host import Host
from tests.sim.network import ip
from tests.sim.world import World


def suspended(policy: Policy | None = None) -> tuple[World, Host, Host, FourTuple]:
    """Bob has no network."""
    world = World()
    alice = world.host("alice", "192.0.2.1", policy=policy)
    bob = world.host("bob", "198.51.100.2", policy=policy)
    socket, _ = world.connect(bob, alice, 40000)
    world.run(5)
    bob.move()
    world.run(100)
    assert bob.connection(socket).state is State.SUSPENDED
    return world, alice, bob, socket


def test_it_is_listed_with_how_long_and_why() -> None:
    world, _, bob, socket = suspended()
    listed = listed_connection(bob.connection(socket), world.now, 7747)
    assert listed.state.value == "suspended"
    assert listed.reason == "no-path"
    assert listed.suspended_for == pytest.approx(100, abs=1)


def test_killed_while_the_peer_cannot_be_told() -> None:
    """Here at once, and nothing is kept."""
    world, _, bob, socket = suspended()
    destroyed: list[FourTuple] = []
    carry_out = bob.carry_out

    def watch(command: commands.Command) -> None:
        if isinstance(command, commands.Destroy):
            destroyed.extend(command.sockets)
        carry_out(command)

    bob.carry_out = watch  # type: ignore[method-assign]
    cid = bob.connection(socket).cid
    bob.engine.kill(world.now, cid)
    bob.run()
    assert destroyed == [socket]
    assert bob.engine.table.at(socket) is None
    assert (bob.engine.table.get(cid).state, bob.engine.table.get(cid).reason) == (State.CLOSED, "killed")  # type: ignore[union-attr]
    world.run(2 * constants.LISTED)
    assert len(bob.engine.table) == 0
    assert not bob.flows
    assert not bob.stored


@pytest.mark.parametrize("others", [0, 1])
@pytest.mark.parametrize("address", ["198.51.100.2", "198.51.100.3"])
def test_killed_while_the_peer_cannot_be_told_it_is_when_the_path_is_back(others: int, address: str) -> None:
    world = World()
    alice, bob = world.host("alice", "192.0.2.1"), world.host("bob", "198.51.100.2")
    sockets = [world.connect(bob, alice, 40000 + n)[0] for n in range(1 + others)]
    world.run(5)
    bob.move()
    for _ in range(40):
        alice.engine.stalled(world.now, [s.mirrored for s in sockets])
        alice.run()
        world.run(0.5)
    assert all(alice.connection(s.mirrored).state is State.SUSPENDED for s in sockets)
    bob.engine.kill(world.now, bob.connection(sockets[0]).cid)
    bob.run()
    world.run(300)
    assert alice.connection(sockets[0].mirrored).state is State.SUSPENDED
    bob.move(address)
    world.run(30)
    assert [n.reason for n in alice.named("connection.closed")] == ["killed-there"]
    assert alice.sockets == {s.mirrored for s in sockets[1:]}
    assert not bob.engine.agreement._untold
    for socket in sockets[1:]:
        assert bob.connection(socket).state is alice.connection(socket.mirrored).state is State.PROTECTED


def test_killed_while_the_peer_cannot_be_told_it_is_from_the_address_that_reaches_it() -> None:
    """This host has got another one meanwhile, which the kernel would choose, and from which nothing arrives."""
    world = World()
    alice, bob = world.host("alice", "192.0.2.1"), world.host("bob", "198.51.100.2")
    socket, mirrored = world.connect(bob, alice, 40000)
    world.run(5)
    world.link.cut = True
    bob.engine.kill(world.now, bob.connection(socket).cid)
    bob.run()
    world.run(300)
    world.link.cut = False
    world.tap = lambda source, to, data: source.host != ip("203.0.113.7")
    bob.move("203.0.113.7", "198.51.100.2")
    world.run(15)
    assert [n.reason for n in alice.named("connection.closed")] == ["killed-there"]
    assert mirrored not in alice.sockets


def test_what_could_not_be_told_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "MAX_UNTOLD", 3)
    world = World()
    alice, bob = world.host("alice", "192.0.2.1"), world.host("bob", "198.51.100.2")
    sockets = [world.connect(bob, alice, 40000 + n)[0] for n in range(5)]
    world.run(5)
    bob.move()
    for socket in sockets:
        bob.engine.kill(world.now, bob.connection(socket).cid)
    bob.run()
    world.run(60)
    assert len(bob.engine.agreement._untold) == 3
    bob.engine.forget(world.now, alice.static.public)
    assert not bob.engine.agreement._untold


def test_released_while_the_peer_cannot_be_told() -> None:
    """The peer is told when it asks, and does not claim the connection again."""
    world, alice, bob, socket = suspended()
    bob.engine.release(world.now, bob.connection(socket).cid)
    bob.run()
    assert bob.connection(socket).state is State.RELEASED
    assert bob.connection(socket).reason == "released"
    assert not bob.engine.table.movable()
    bob.move("198.51.100.2")
    world.run(200)
    assert not bob.protects(socket)
    assert alice.connection(socket.mirrored).state is State.RELEASED


def test_there_are_not_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    """In all, and with one peer: what is suspended counts like everything else."""
    monkeypatch.setattr(constants, "MAX_CONNECTIONS", 30)
    monkeypatch.setattr(constants, "MAX_PER_PEER", 20)
    world = World()
    alice = world.host("alice", "192.0.2.1")
    bob = world.host("bob", "198.51.100.2")
    carol = world.host("carol", "203.0.113.3")
    for n in range(25):
        world.connect(bob, alice, 40000 + n)
    world.run(15)
    assert len(alice.engine.table.movable()) == 15, "no more than are left for all others"
    for n in range(25):
        world.connect(carol, alice, 50000 + n)
    world.run(15)
    assert len(alice.engine.table) <= 30
    for host in (bob, carol):
        host.move()
    alice.move()
    world.run(60)
    assert len(alice.engine.table) <= 30
    assert all(c.state is State.SUSPENDED for c in alice.engine.table.movable())
    assert ip("192.0.2.1") not in alice.addresses

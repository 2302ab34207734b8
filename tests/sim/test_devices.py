"""What began over a VPN, or on a socket bound to an interface, does not leave that, unless policy lets it."""

from __future__ import annotations

import pytest

from redirectctl.flows.network import Interface
from redirectctl.flows.policy import Policy
from redirectctl.flows.state import State
from redirectctl.wire.addr import FourTuple
from tests.sim.host import Host
from tests.sim.network import ip
from tests.sim.world import World, agree

STAYS = Policy(first_contact="accept-new", long_lived_after=1.0, prefer="auto")
LEAVES = Policy(first_contact="accept-new", long_lived_after=1.0, prefer="auto", leave_vpn=True)
HERE, HERE_TOO, ELSEWHERE = "10.8.0.2", "10.8.0.7", "203.0.113.9"


def started(policy: Policy = STAYS, device: str = "") -> tuple[World, Host, Host, FourTuple]:
    """Bob's connection is over wg0, or, where ``device`` says so, on a socket bound to that."""
    world = World()
    alice = world.host("alice", "192.0.2.1", policy=policy)
    bob = world.host("bob", HERE, policy=policy)
    first = Interface(device, 3) if device else Interface("wg0", 3, "wireguard", vpn=True)
    bob.interfaces = {ip(HERE): first, ip(HERE_TOO): first, ip(ELSEWHERE): Interface("wlan0", 2)}
    bob.network_changed()
    socket, _ = world.connect(bob, alice, 40000, watch=not device)
    if device:
        bob.opened(socket, device)
    world.run(5)
    assert bob.protects(socket)
    return world, alice, bob, socket


KINDS = pytest.mark.parametrize("device", ["", "eth1"], ids=["over a VPN", "bound"])


@KINDS
def test_it_is_held_while_there_is_another_interface_only(device: str) -> None:
    world, alice, bob, socket = started(device=device)
    bob.move(ELSEWHERE)
    world.run(30)
    assert (bob.connection(socket).state, bob.connection(socket).reason) == (State.SUSPENDED, "stays-on-device")
    assert not bob.named("move.started")
    bob.move(ELSEWHERE, HERE)
    world.run(2)
    assert bob.connection(socket).state is State.PROTECTED
    assert bob.connection(socket).local_now == ip(HERE)
    assert agree(alice, bob, socket.mirrored)


@KINDS
def test_it_moves_to_another_address_of_its_interface(device: str) -> None:
    world, alice, bob, socket = started(device=device)
    bob.move(HERE_TOO, ELSEWHERE)
    world.run(3)
    assert bob.connection(socket).local_now == ip(HERE_TOO)
    assert alice.connection(socket.mirrored).remote_now == ip(HERE_TOO)
    assert bob.connection(socket).state is State.PROTECTED


@KINDS
def test_policy_lets_it_leave(device: str) -> None:
    world, alice, bob, socket = started(LEAVES, device)
    bob.move(ELSEWHERE)
    world.run(3)
    assert bob.connection(socket).local_now == ip(ELSEWHERE)
    assert agree(alice, bob, socket.mirrored)


def test_policy_that_is_changed_meanwhile_lets_it_go() -> None:
    world, _, bob, socket = started()
    bob.move(ELSEWHERE)
    world.run(30)
    assert bob.connection(socket).reason == "stays-on-device"
    bob.engine.policy_changed(world.now, LEAVES)
    bob.run()
    world.run(3)
    assert bob.connection(socket).local_now == ip(ELSEWHERE)
    assert bob.connection(socket).state is State.PROTECTED


def test_the_reason_follows_the_network() -> None:
    world, _, bob, socket = started()
    bob.move()
    assert bob.connection(socket).reason == "no-path"
    bob.move(ELSEWHERE)
    assert bob.connection(socket).reason == "stays-on-device"
    bob.move()
    assert bob.connection(socket).reason == "no-path"
    world.run(1)


def test_others_beside_it_move() -> None:
    world, alice, bob, socket = started()
    bob.addresses.append(ip(ELSEWHERE))
    bob.network_changed()
    bob.addresses.reverse()
    other, _ = world.connect(bob, alice, 40001)
    world.run(5)
    assert other.local.host == ip(ELSEWHERE)
    bob.interfaces[ip("203.0.113.77")] = Interface("eth0", 4)
    bob.move("203.0.113.77")
    world.run(3)
    assert bob.connection(other).local_now == ip("203.0.113.77")
    assert bob.connection(socket).state is State.SUSPENDED


def test_a_peer_that_moves_finds_us_by_the_interface_only() -> None:
    """Alice's announcement comes to both of bob's addresses, first to the one that his connection must not use."""
    world, alice, bob, socket = started()
    bob.move(ELSEWHERE, HERE)
    world.run(1)
    alice.engine.peers[bob.static.public].addresses = (ip(ELSEWHERE), ip(HERE))
    alice.move("192.0.2.77")
    world.run(5)
    assert bob.connection(socket).remote_now == ip("192.0.2.77")
    assert bob.connection(socket).local_now == ip(HERE)
    assert alice.connection(socket.mirrored).remote_now == ip(HERE)


def test_a_peer_that_reaches_us_by_another_interface_only_is_refused() -> None:
    world, alice, bob, socket = started()
    bob.move(ELSEWHERE, HERE)
    world.run(1)
    world.tap = lambda source, to, _data: ip(HERE) not in (source.host, to.host)
    alice.engine.peers[bob.static.public].addresses = (ip(ELSEWHERE),)
    alice.move("192.0.2.77")
    world.run(30)
    assert bob.named("redirect.refused", "stays-on-device")
    assert bob.connection(socket).local_now == ip(HERE)
    assert bob.connection(socket).remote_now == ip("192.0.2.1")


def write(world: World, hosts: tuple[Host, ...], socket: FourTuple, seconds: float, *, lost: bool) -> None:
    """Both programs write, and daemon/stalls.py looks at what has come of it."""
    end = world.now + seconds
    while world.now < end:
        for host in hosts:
            own = socket if socket in {c.socket for c in host.engine.table} else socket.mirrored
            if host.connection(own).state is State.PROTECTED:
                (host.engine.stalled if lost else host.engine.heard)(world.now, [own])
                host.run()
        world.run(0.5)


@KINDS
def test_it_is_held_while_its_interface_exists_and_does_not_carry(device: str) -> None:
    """The two daemons hear each other by another interface."""
    world, alice, bob, socket = started(device=device)
    bob.move(HERE, ELSEWHERE)
    world.run(1)
    alice.engine.peers[bob.static.public].addresses = (ip(ELSEWHERE), ip(HERE))
    world.tap = lambda source, to, _data: ip(HERE) not in (source.host, to.host)
    world.tap_segment = lambda source, to: ip(HERE) not in (source.host, to.host)
    write(world, (alice, bob), socket, 40, lost=True)
    mine, theirs = bob.connection(socket), alice.connection(socket.mirrored)
    assert (mine.state, mine.reason) == (State.SUSPENDED, "stays-on-device")
    assert (theirs.state, theirs.reason) == (State.SUSPENDED, "unusable-there")
    assert mine.local_now == theirs.remote_now == ip(HERE)
    start = len(world.recorded)
    world.run(60)
    assert len(world.recorded) - start < 2 * 60 * 30, "what each of them announces, and few answers"
    world.tap = world.tap_segment = None
    world.run(3)
    assert mine.state is theirs.state is State.PROTECTED
    assert (mine.local_now, theirs.remote_now) == (ip(HERE), ip(HERE))
    assert agree(alice, bob, socket.mirrored)


def test_where_the_daemons_hear_each_other_elsewhere_only_and_it_carries_it_is_left_alone() -> None:
    world, alice, bob, socket = started()
    bob.move(HERE, ELSEWHERE)
    world.run(1)
    world.tap = lambda source, to, _data: ip(HERE) not in (source.host, to.host)
    bob.engine.announce(world.now)
    bob.run()
    write(world, (alice, bob), socket, 40, lost=False)
    assert bob.connection(socket).state is alice.connection(socket.mirrored).state is State.PROTECTED


def test_it_still_stays_after_a_restart() -> None:
    world, _, bob, socket = started(device="eth1")
    world.run(1)
    bob.crash()
    bob.start()
    world.run(2)
    assert (bob.connection(socket).device, bob.connection(socket).bound) == ("eth1", True)
    bob.move(ELSEWHERE)
    world.run(5)
    assert bob.connection(socket).reason == "stays-on-device"


def test_a_socket_that_its_program_binds_after_it_was_found_stays_too() -> None:
    world = World()
    alice, bob = world.host("alice", "192.0.2.1", policy=STAYS), world.host("bob", HERE, policy=STAYS)
    bob.interfaces = {ip(HERE): Interface("eth1", 3), ip(ELSEWHERE): Interface("wlan0", 2)}
    socket, other = (world.connect(bob, alice, port)[0] for port in (40000, 40001))
    gone, _ = world.connect(bob, alice, 40002, watch=False)
    bob.engine.bound({socket: "eth1", gone: "eth1"})
    world.run(5)
    bob.move(ELSEWHERE)
    world.run(5)
    assert (bob.connection(socket).state, bob.connection(socket).reason) == (State.SUSPENDED, "stays-on-device")
    assert bob.connection(other).local_now == ip(ELSEWHERE)
    bob.crash()
    bob.start()
    world.run(2)
    assert (bob.connection(socket).state, bob.connection(socket).reason) == (State.SUSPENDED, "stays-on-device")
    assert bob.connection(socket).bound


def test_what_cannot_be_protected_is_refused_at_once() -> None:
    world = World()
    alice = world.host("alice", "192.0.2.1")
    bob = world.host("bob", HERE)
    socket, _ = world.connect(bob, alice, 40000, watch=False)
    bob.engine.found(world.now, socket, device="red", unfit="bound-to-vrf")
    bob.run()
    assert (bob.connection(socket).state, bob.connection(socket).reason) == (State.REFUSED, "bound-to-vrf")
    assert bob.named("connection.refused", "bound-to-vrf")
    bob.engine.found(world.now, socket, device="red", unfit="bound-to-vrf")  # it is seen again
    world.run(60)
    assert len(bob.named("connection.refused")) == 1
    assert not bob.sent

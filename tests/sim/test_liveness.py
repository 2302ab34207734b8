"""Suspended connections that would live without redirectctl: without the daemon at the other end they live too."""

from __future__ import annotations

import pytest

from redirectctl.flows import constants
from redirectctl.flows.connection import Path
from redirectctl.flows.policy import Policy
from redirectctl.flows.state import State
from redirectctl.wire.addr import FourTuple
from tests.sim.host import Host
from tests.sim.network import ip
from tests.sim.test_suspension import as_before, started, wait_in_vain
from tests.sim.world import World, agree

INTEGRITY = Policy(first_contact="accept-new", long_lived_after=1.0, prefer="auto", integrity=True)


def went(world: World, bob: Host, socket: FourTuple, seconds: float = 15) -> None:
    """Nothing gets through for a while, and bob's program writes."""
    world.link.cut = True
    wait_in_vain(world, bob, socket, seconds)
    assert bob.connection(socket).state is State.SUSPENDED
    assert socket in bob.altered


def lives(bob: Host, *sockets: FourTuple) -> None:
    as_before(bob.world, *((bob, socket) for socket in sockets))
    assert not bob.let_out


@pytest.mark.parametrize("how", ["stopped", "killed", "blocked"])
def test_a_silent_path_comes_back_and_the_peers_daemon_does_not(how: str) -> None:
    world, alice, bob, socket = started()
    {"stopped": alice.stop, "killed": alice.crash, "blocked": lambda: None}[how]()
    world.link.blocked = True
    went(world, bob, socket)
    assert bob.let_out == {socket}
    world.run(30)
    world.link.cut = False
    world.run(constants.ASK_PAUSE + 0.1)
    lives(bob, socket)
    assert bob.kicked[-1] == (socket,)
    assert bob.named("connection.resumed", "peer-silent")[0].details["duration"] > 30
    assert bob.connection(socket).path is Path.ORIGINAL
    world.link.blocked = False
    if how != "blocked":
        alice.start()
    world.run(40)
    as_before(world, (alice, socket.mirrored), (bob, socket))
    assert agree(alice, bob, socket.mirrored)


def test_both_are_suspended_and_hear_nothing_of_each_other() -> None:
    """Each lets out what answers the other's keepalive."""
    world, alice, bob, socket = started()
    world.link.blocked = True
    went(world, bob, socket)
    wait_in_vain(world, alice, socket.mirrored, 15)
    assert alice.held
    assert bob.held
    world.link.cut = False
    world.run(constants.ASK_PAUSE + 0.1)
    as_before(world, (alice, socket.mirrored), (bob, socket))


@pytest.mark.parametrize("back", [False, True], ids=["moved", "home again"])
def test_what_had_gone_plainly_and_fell_back_into_the_tunnel_is_asked_plainly(back: bool) -> None:
    """Both have stalled in an outage, and nothing of the daemons gets through any more."""
    world, alice, bob, socket = started()
    places = ["203.0.113.9", *(["198.51.100.2"] if back else [])]
    for place in places:
        bob.move(place)
        world.run(20)
    paths = {host.connection(s).path for host, s in ((alice, socket.mirrored), (bob, socket))}
    assert paths == {Path.ORIGINAL if back else Path.REWRITTEN}
    world.link.blocked = world.link.cut = True
    for _ in range(3):
        for host, s in ((alice, socket.mirrored), (bob, socket)):
            host.engine.stalled(world.now, [s])
            host.run()
        world.run(0.5)
    assert bob.connection(socket).path is alice.connection(socket.mirrored).path is Path.TUNNEL
    wait_in_vain(world, bob, socket, 15)
    wait_in_vain(world, alice, socket.mirrored, 15)
    world.link.cut = False
    world.run(constants.ASK_PAUSE + 0.1)
    as_before(world, (alice, socket.mirrored), (bob, socket))
    assert {host.connection(s).path for host, s in ((alice, socket.mirrored), (bob, socket))} == paths
    world.link.blocked = False
    world.run(40)
    as_before(world, (alice, socket.mirrored), (bob, socket))
    assert {host.connection(s).path for host, s in ((alice, socket.mirrored), (bob, socket))} == paths


def test_without_a_route_to_the_peer_nothing_is_let_out() -> None:
    """The address is there, and what leaves it would take another way, or none."""
    world, alice, bob, socket = started()
    alice.crash()
    went(world, bob, socket)
    assert bob.let_out == {socket}
    network = bob.engine.network
    bob.engine.network_changed(world.now, network._replace(sources=dict.fromkeys(network.sources, ())))
    bob.run()
    world.run(5)
    assert not bob.let_out


def test_the_same_address_comes_back_and_the_peers_daemon_does_not() -> None:
    world, alice, bob, socket = started()
    alice.crash()
    bob.move()
    world.run(3)
    assert bob.held == set(bob.altered) == {socket}
    assert not bob.let_out
    bob.move("198.51.100.2")
    world.run(constants.ASK_AFTER + 0.1)
    lives(bob, socket)
    assert bob.named("connection.resumed", "no-path")
    alice.start()
    world.run(40)
    as_before(world, (alice, socket.mirrored), (bob, socket))


def test_an_address_that_comes_back_at_once_leaves_it_to_tcp() -> None:
    """It is not held back as long as TCP may find out by itself, and looked at no more when something arrives."""
    world, alice, bob, socket = started()
    idle, _ = world.connect(bob, alice, 40001)
    world.run(5)
    alice.crash()
    bob.move()
    world.run(0.2)
    bob.move("198.51.100.2")
    world.run(bob.policy.suspend_after - 0.5)
    assert not bob.held
    assert not bob.asked
    bob.engine.heard(world.now, [socket])
    bob.run()
    assert bob.connection(socket).state is State.PROTECTED
    assert bob.connection(idle).state is State.SUSPENDED
    world.run(1)
    assert bob.asked == [idle]
    lives(bob, socket, idle)


def test_an_address_that_goes_again_is_held_back_as_soon_as_ever() -> None:
    world, alice, bob, socket = started()
    alice.crash()
    bob.move()
    world.run(0.5)
    bob.move("198.51.100.2")
    world.run(0.2)
    bob.move()
    world.run(constants.HOLD_AFTER + 0.1)
    assert bob.held == {socket}
    assert not bob.let_out
    assert not bob.asked
    bob.move("198.51.100.2")
    world.run(constants.ASK_AFTER + 0.1)
    lives(bob, socket)


def test_an_address_that_is_back_without_a_path_is_held_back_later() -> None:
    world, _, bob, socket = started()
    bob.move()
    world.link.cut = True
    world.run(0.2)
    bob.move("198.51.100.2")
    world.run(bob.policy.suspend_after + 0.5)
    assert bob.held == set(bob.altered) == bob.let_out == {socket}
    world.link.cut = False
    world.run(1)
    lives(bob, socket)


def test_where_there_is_no_way_nothing_is_let_out() -> None:
    world, alice, bob, socket = started()
    alice.crash()
    bob.move()
    world.run(3)
    bob.move("203.0.113.7")  # another network, from which it would be somebody else's address
    world.run(60)
    assert bob.held == {socket}
    assert not bob.let_out
    assert not bob.asked


def test_a_rewritten_connection_is_asked_where_it_is_on_the_wire() -> None:
    world, alice, bob, socket = started()
    bob.move("203.0.113.9")
    world.run(5)
    assert bob.connection(socket).path is Path.REWRITTEN
    alice.crash()
    bob.move()
    world.run(3)
    assert bob.held == {socket}
    bob.move("203.0.113.9")
    world.run(constants.ASK_AFTER + 0.1)
    lives(bob, socket)
    assert bob.connection(socket).path is Path.REWRITTEN


def test_what_is_in_the_tunnel_is_not_asked_plainly() -> None:
    world, alice, bob, socket = started()
    world.link.strips = True
    bob.move("203.0.113.9")
    world.run(5)
    assert bob.connection(socket).path is Path.TUNNEL
    alice.crash()
    bob.move()
    world.run(3)
    bob.move("203.0.113.9")
    world.run(60)
    assert bob.held == {socket}
    assert not bob.asked
    alice.start()
    world.run(40)
    as_before(world, (alice, socket.mirrored), (bob, socket))


def test_with_integrity_nothing_is_asked_plainly() -> None:
    world, alice, bob, socket = started(INTEGRITY)
    assert bob.connection(socket).integrity
    alice.crash()
    went(world, bob, socket)
    bob.move()
    world.run(3)
    bob.move("198.51.100.2")
    world.link.cut = False
    world.run(60)
    assert bob.held == {socket}
    assert not bob.let_out
    assert not bob.asked
    alice.start()
    world.run(40)
    as_before(world, (alice, socket.mirrored), (bob, socket))


def test_where_both_daemons_are_there_they_are_as_quick_as_ever() -> None:
    world, alice, bob, socket = started()
    went(world, bob, socket)
    world.run(100)
    world.link.cut = False
    world.run(0.2)
    as_before(world, (alice, socket.mirrored), (bob, socket))
    bob.asked.clear()
    bob.move("203.0.113.9")
    world.run(30)
    bob.move()
    world.run(0.5)
    bob.move("198.51.100.2")
    world.run(30)
    as_before(world, (alice, socket.mirrored), (bob, socket))
    assert not bob.asked
    assert not alice.asked


def test_a_daemon_that_begins_again_while_they_are_suspended() -> None:
    world, alice, bob, socket = started()
    alice.crash()
    went(world, bob, socket)
    bob.crash()
    world.run(20)
    bob.start()
    assert bob.held == {socket} == bob.let_out
    world.run(20)
    world.link.cut = False
    world.run(2)
    lives(bob, socket)


def test_a_daemon_that_stops_lets_go_what_may_get_through() -> None:
    world, _, bob, socket = started()
    went(world, bob, socket)
    ((before, meanwhile),) = bob.engine.choice.unread_from_now()
    assert before.suspended
    assert meanwhile == before._replace(suspended=False)
    bob.move()
    assert bob.engine.choice.unread_from_now() == []
    assert socket in bob.held


def test_few_keepalives_and_ever_fewer() -> None:
    world, _, bob, socket = started()
    went(world, bob, socket)
    for seconds, least, most in ((30, 45, 51), (570, 100, 600), (3600, 119, 200)):
        bob.asked.clear()
        world.run(seconds)
        assert least <= len(bob.asked) <= most


def test_some_stand_for_all_and_then_all_are_asked() -> None:
    world, alice, bob, socket = started()
    others = [world.connect(bob, alice, 40001 + i)[0] for i in range(49)]
    world.run(10)
    alice.crash()
    went(world, bob, socket)
    bob.asked.clear()
    world.run(constants.ASK_PAUSE * 4)
    assert set(bob.asked) == {socket, *others}  # in turns
    assert len(bob.asked) <= 5 * constants.ASKED
    world.link.cut = False
    world.run(constants.ASK_PAUSE + 0.1)
    lives(bob, socket, *others)


def test_one_that_has_ended_there_does_not_keep_the_others() -> None:
    world, alice, bob, socket = started()
    other, _ = world.connect(bob, alice, 40001)
    world.run(5)
    alice.crash()
    went(world, bob, socket)
    alice.sockets.discard(other.mirrored)
    world.link.cut = False
    world.run(constants.ASK_PAUSE + 0.1)
    assert bob.connection(socket).state is State.PROTECTED
    assert bob.held == {other}
    assert set(bob.verdicts.values()) == {True}
    bob.closed(other)
    world.run(0.1)
    lives(bob, socket)


def test_the_kernel_answers_before_the_daemon_and_both_are_content() -> None:
    """What the daemon says then finds the connection where it is: it is not sent into the tunnel."""
    world, alice, bob, socket = started()
    world.link.blocked = True
    bob.move()
    world.run(3)
    bob.move("198.51.100.2")
    world.run(constants.ASK_AFTER + 0.1)
    lives(bob, socket)
    world.link.blocked = False
    for _ in range(100):
        world.run(0.01)
        assert {bob.connection(socket).path, alice.connection(socket.mirrored).path} == {Path.ORIGINAL}
    assert bob.named("move.finished")
    world.run(60)
    as_before(world, (alice, socket.mirrored), (bob, socket))
    assert {bob.connection(socket).path, alice.connection(socket.mirrored).path} == {Path.ORIGINAL}


# -- a RST from where the peer was -------------------------------------------------------------------------------------


def rebooted(alice: Host, socket: FourTuple) -> None:
    """The machine has its address, and nothing else of what it had."""
    alice.crash()
    alice.sockets.discard(socket.mirrored)
    alice.flows.clear()
    alice.held.clear()


def accepted(host: Host) -> set[bool]:
    found = set(host.verdicts.values())
    host.verdicts.clear()
    return found


def test_a_server_that_was_restarted_without_a_daemon_ends_the_connection() -> None:
    world, alice, bob, socket = started()
    rebooted(alice, socket)
    went(world, bob, socket)
    world.link.cut = False
    world.run(1)
    assert accepted(bob) == {True}


def test_the_same_before_it_is_suspended() -> None:
    """When the question to the daemon there has been in vain."""
    world, alice, bob, socket = started()
    rebooted(alice, socket)
    bob.rst(socket, 1, opened=True)
    world.run(5)
    assert not bob.verdicts
    world.run(5)
    assert accepted(bob) == {True}


@pytest.mark.parametrize("heard", [True, False])
def test_the_same_after_this_host_was_elsewhere_for_a_moment(heard: bool) -> None:
    """It must have heard of the peer since: the address may be another host's by now."""
    world, alice, bob, socket = started()
    bob.move()
    world.run(0.5)
    alice.crash()
    if heard:
        alice.start()
    bob.move("198.51.100.2")
    world.run(10)
    rebooted(alice, socket)
    bob.rst(socket, 1, opened=True)
    world.run(15)
    assert accepted(bob) == {heard}


def stranger(world: World, *addresses: str) -> Host:
    return world.host("stranger", *addresses)


def test_whoever_has_the_address_of_the_one_who_began_it_is_not_believed() -> None:
    """A laptop sleeps, and its address is given to another, or its router has forgotten it: the server keeps it all."""
    world, alice, bob, socket = started()
    bob.move()
    bob.crash()
    stranger(world, "198.51.100.2")
    world.link.cut = True
    wait_in_vain(world, alice, socket.mirrored, 15)
    assert alice.held
    world.link.cut = False
    world.run(3600)
    assert accepted(alice) == {False}
    assert socket.mirrored in alice.sockets
    assert alice.connection(socket.mirrored).state is State.SUSPENDED
    # It is left alone, ever longer.
    alice.asked.clear()
    world.run(12 * 3600)
    assert len(alice.asked) <= 13
    assert len(alice.named("rst.held")) < 40
    bob.start()
    bob.move("203.0.113.9")
    world.run(40)
    as_before(world, (alice, socket.mirrored), (bob, socket))


def test_after_a_move_no_rst_is_believed() -> None:
    world, alice, bob, socket = started()
    bob.move("203.0.113.9")
    world.run(5)
    alice.crash()
    went(world, bob, socket)
    for _ in range(3):
        bob.rst(socket, len(bob.verdicts) + 1, opened=True)
    assert accepted(bob) == {False}


def test_nor_while_our_address_is_gone_or_was_gone_since_the_peer_was_heard() -> None:
    world, alice, bob, socket = started()
    alice.crash()
    bob.move()
    world.run(5)
    bob.rst(socket, 1, opened=True)
    assert accepted(bob) == {False}
    world.link.cut = True
    bob.move("198.51.100.2")  # is it the same network?
    world.run(60)
    bob.rst(socket, 2, opened=True)
    assert accepted(bob) == {False}


def test_nor_after_the_machine_has_slept() -> None:
    world, alice, bob, socket = started()
    alice.crash()
    went(world, bob, socket)
    bob.engine.woke(world.now)
    bob.run()
    bob.rst(socket, 1, opened=True)
    assert accepted(bob) == {False}


def test_nor_when_the_peer_was_last_elsewhere() -> None:
    world, alice, bob, socket = started()
    alice.move("192.0.2.77")
    world.run(5)
    alice.crash()
    went(world, bob, socket)
    bob.rst(socket, 1, opened=True)
    assert accepted(bob) == {False}


# -- a daemon that says that it ends -----------------------------------------------------------------------------------


def test_without_a_daemon_a_rst_from_there_is_as_good_as_without_ours() -> None:
    world, alice, bob, socket = started()
    bob.rst(socket, 1)
    world.run(1)
    assert accepted(bob) == {False}
    alice.stop()
    world.run(1)
    bob.rst(socket, 2)
    assert accepted(bob) == {True}


def test_of_a_moved_connection_it_is_not() -> None:
    world, alice, bob, socket = started()
    bob.move("203.0.113.9")
    world.run(5)
    alice.stop()
    world.run(1)
    bob.rst(socket, 1)
    world.run(20)
    assert accepted(bob) == {False}


def test_a_daemon_that_is_back_counts_again() -> None:
    world, alice, bob, socket = started()
    alice.stop()
    world.run(1)
    alice.start()
    world.run(5)
    bob.rst(socket, 1)
    world.run(1)
    assert accepted(bob) == {False}
    assert bob.named("rst.held", "peer-alive")


def test_what_stalls_in_the_tunnel_leaves_it_at_once_when_the_daemon_there_has_gone() -> None:
    world, alice, bob, socket = started()
    world.link.strips_from = frozenset({ip("203.0.113.9")})  # what he sends is not proven, what he gets is
    bob.move("203.0.113.9")
    world.run(2)
    assert bob.connection(socket).path is Path.TUNNEL
    alice.stop()
    world.run(0.5)
    assert bob.connection(socket).path is Path.TUNNEL
    bob.engine.stalled(world.now, [socket])
    bob.run()
    assert bob.connection(socket).path is Path.REWRITTEN


def test_who_has_no_connection_with_us_says_nothing_by_leaving() -> None:
    world, alice, bob, socket = started()
    bob.closed(socket)
    alice.closed(socket.mirrored)
    world.run(1)
    alice.stop()
    world.run(1)
    assert not bob.engine.suspension._left

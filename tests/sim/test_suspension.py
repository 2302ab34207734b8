"""Connections without a path: suspended, resumed, given up, across restarts."""

from __future__ import annotations

import dataclasses

import pytest

from redirectctl.flows import commands, constants
from redirectctl.flows.connection import Path
from redirectctl.flows.policy import Policy
from redirectctl.flows.state import State
from redirectctl.wire import message as messages
from redirectctl.wire.addr import FourTuple
from tests.sim.host import Host
from tests.sim.shell import told
from tests.sim.world import World, agree

DAY = 86400.0
POLICY = Policy(first_contact="accept-new", long_lived_after=1.0, prefer="auto")


def started(policy: Policy = POLICY) -> tuple[World, Host, Host, FourTuple]:
    world = World()
    alice, bob = world.host("alice", "192.0.2.1", policy=policy), world.host("bob", "198.51.100.2", policy=policy)
    socket, _ = world.connect(bob, alice, 40000)
    world.run(5)
    assert bob.connection(socket).state is State.PROTECTED
    return world, alice, bob, socket


def wait_in_vain(world: World, host: Host, socket: FourTuple, seconds: float) -> None:
    """What the host's socket sends is not answered; its daemon looks every half second."""
    for _ in range(int(seconds * 2)):
        if host.up and host.connection(socket).state is State.PROTECTED:
            host.engine.stalled(world.now, [socket])
            host.run()
        world.run(0.5)


def silent(policy: Policy = POLICY) -> tuple[World, Host, Host, FourTuple]:
    """Both hosts are where they were, and do not hear each other any more; bob's program writes."""
    world, alice, bob, socket = started(policy)
    world.link.cut = True
    wait_in_vain(world, bob, socket, 15)
    assert bob.connection(socket).state is State.SUSPENDED
    assert bob.connection(socket).reason == "peer-silent"
    assert socket in bob.held
    assert socket in bob.altered
    return world, alice, bob, socket


def as_before(world: World, *ends: tuple[Host, FourTuple]) -> None:
    for host, socket in ends:
        assert host.connection(socket).state is State.PROTECTED
        assert host.connection(socket).lost_since is None
        assert not host.held
        assert not host.altered
        assert all(c.saved is None for c in host.stored.values())


@pytest.mark.parametrize("prefer", ["auto", "tunnel", "rewritten"])
def test_a_silent_peer_is_suspended_and_both_go_on_when_it_answers(prefer: str) -> None:
    world, alice, bob, socket = silent(Policy(first_contact="accept-new", long_lived_after=1.0, prefer=prefer))
    assert 10 <= world.now - (bob.connection(socket).lost_since or 0) <= 16
    world.run(100)
    world.link.cut = False
    world.run(0.3)
    as_before(world, (alice, socket.mirrored), (bob, socket))
    assert bob.named("connection.resumed", "peer-silent")[0].details["duration"] > 100
    assert (socket,) in bob.kicked
    world.run(10)
    assert agree(alice, bob, socket.mirrored)
    wanted = Path.TUNNEL if prefer == "tunnel" else Path.ORIGINAL
    assert {bob.connection(socket).path, alice.connection(socket.mirrored).path} == {wanted}
    assert bob.connection(socket).moves == 0


def test_what_is_silent_is_held_back_at_once() -> None:
    """It has waited for long enough already; an address that goes may be back in a moment."""
    world, _, bob, socket = started()
    world.link.cut = True
    while bob.connection(socket).state is State.PROTECTED:
        bob.engine.stalled(world.now, [socket])
        bob.run()
        world.run(0.1)
    world.run(0.1)
    assert bob.held == {socket}


def test_after_the_keys_have_ended_the_return_is_noticed_as_soon() -> None:
    world, alice, bob, socket = silent()
    world.run(300)
    world.link.cut = False
    world.run(0.3)
    as_before(world, (alice, socket.mirrored), (bob, socket))


def test_a_peer_whose_daemon_alone_is_silent_is_not_suspended() -> None:
    """Something arrives on a connection with it: the path is there."""
    world, alice, bob, socket = started()
    other, _ = world.connect(bob, alice, 40001)
    world.run(5)
    alice.crash()
    for _ in range(40):
        bob.engine.stalled(world.now, [socket])
        bob.engine.heard(world.now, [other])
        bob.run()
        world.run(0.5)
    assert not bob.named("connection.suspended")


def test_a_peer_that_answers_is_not_suspended() -> None:
    world, _, bob, socket = started()
    wait_in_vain(world, bob, socket, 30)
    assert not bob.named("connection.suspended")


def test_traffic_is_looked_at_while_the_peer_owes_an_answer_or_there_is_no_path() -> None:
    world, alice, bob, socket = started()
    key = alice.static.public
    assert not bob.engine.questioned()
    world.link.cut = True
    bob.engine.stalled(world.now, [socket])
    bob.run()
    world.run(1)
    assert bob.engine.questioned() == {key}
    world.link.cut = False
    world.run(2)
    assert not bob.engine.questioned()
    bob.move()
    assert bob.engine.questioned() == {key}
    world.run(20)
    assert bob.engine.questioned() == {key}
    bob.move("198.51.100.2")
    world.run(5)
    assert not bob.engine.questioned()


def test_an_idle_connection_is_suspended_with_the_others_of_the_peer() -> None:
    world, alice, bob, socket = started()
    other, _ = world.connect(bob, alice, 40001)
    world.run(5)
    world.link.cut = True
    wait_in_vain(world, bob, socket, 15)
    assert bob.connection(other).state is State.SUSPENDED
    assert bob.held == {socket, other}


def test_a_short_time_without_an_address_leaves_sockets_alone() -> None:
    world, alice, bob, socket = started()
    bob.move()
    assert bob.connection(socket).state is State.SUSPENDED
    world.run(constants.HOLD_AFTER - 0.1)
    bob.move("198.51.100.3")
    world.run(1)
    assert not bob.held
    assert not bob.altered
    bob.move()
    world.run(constants.HOLD_AFTER + 0.1)
    assert bob.held == set(bob.altered) == {socket}
    bob.move("198.51.100.4")
    world.run(1)
    as_before(world, (alice, socket.mirrored), (bob, socket))


def test_many_sockets_are_left_alone_for_longer() -> None:
    """To move them takes longer, and to suspend them longer still."""
    world, alice, bob, socket = started()
    others = [world.connect(bob, alice, 41000 + n)[0] for n in range(200)]
    world.run(30)
    assert all(bob.protects(other) for other in others)
    bob.move()
    world.run(constants.HOLD_AFTER + 0.05)
    assert not bob.held
    world.run(201 * constants.EACH)
    assert bob.held == {socket, *others}


@pytest.mark.parametrize("who", ["alice", "bob", "both"])
def test_a_daemon_that_begins_again_goes_on(who: str) -> None:
    world, alice, bob, socket = silent()
    wait_in_vain(world, alice, socket.mirrored, 15)
    lost = bob.connection(socket).lost_since
    hosts = [h for h in (alice, bob) if who in (h.name, "both")]
    for host in hosts:
        host.crash()
    world.run(50)
    for host in hosts:
        host.start()
    assert bob.held == set(bob.altered) == {socket}
    assert bob.connection(socket).state is State.SUSPENDED
    assert bob.connection(socket).reason == "peer-silent"
    assert bob.connection(socket).lost_since == lost
    world.run(50)
    assert bob.held == set(bob.altered) == {socket}
    world.link.cut = False
    world.run(35)
    as_before(world, (alice, socket.mirrored), (bob, socket))


def test_killed_before_all_was_given_back() -> None:
    """The store still has what the socket is to get back."""
    world, alice, bob, socket = silent()
    bob.engine.restored = lambda *_: None  # type: ignore[method-assign]
    carry_out = bob.carry_out

    def slow(command: commands.Command) -> None:
        if not isinstance(command, commands.Resume):
            carry_out(command)

    bob.carry_out = slow  # type: ignore[method-assign]
    world.link.cut = False
    world.run(5)
    assert bob.connection(socket).state is State.PROTECTED
    assert bob.altered
    bob.crash()
    bob.carry_out = carry_out  # type: ignore[method-assign]
    bob.start()
    world.run(5)
    as_before(world, (alice, socket.mirrored), (bob, socket))


def test_what_was_given_back_at_the_start_is_not_given_back_again() -> None:
    """Killed in between, and once more without a path: the program may have changed its socket meanwhile."""
    world, _, bob, socket = silent()
    carry_out = bob.carry_out
    told(bob, commands.Resume, done=False)
    world.link.cut = False
    world.run(5)
    bob.crash()
    bob.carry_out = carry_out  # type: ignore[method-assign]
    given = told(bob, commands.GiveBack)
    world.link.cut = True
    for _ in range(2):
        bob.start()
        assert [set(command.before) for command in given] == [{socket}]
        bob.crash()


def test_killed_before_it_was_known_what_the_socket_had() -> None:
    """The kernel holds it back already: the next daemon finds out, and keeps the socket alive."""
    world, alice, bob, socket = started()
    carry_out = bob.carry_out
    told(bob, commands.Prepare, done=False)
    bob.move()
    world.run(constants.HOLD_AFTER + 0.1)
    assert bob.held == {socket}
    assert not bob.altered
    bob.crash()
    bob.carry_out = carry_out  # type: ignore[method-assign]
    bob.start()
    assert set(bob.altered) == {socket}
    bob.move("198.51.100.4")
    world.run(5)
    as_before(world, (alice, socket.mirrored), (bob, socket))


def test_what_is_given_up_is_told_in_one_message() -> None:
    world, alice, bob, socket = started(dataclasses.replace(POLICY, give_up_after=60.0))
    sockets = [socket, *(world.connect(bob, alice, port)[0] for port in (40001, 40002))]
    world.run(5)
    cids = {bob.connection(s).cid for s in sockets}
    bob.move()
    world.run(100)
    assert len(bob.named("connection.closed", "given-up")) == 3
    told = {m.request: m for m, _, _ in bob.messages if isinstance(m, messages.EndOf)}
    assert [set(m.cids) for m in told.values()] == [cids]


def test_each_is_given_up_after_its_own_time() -> None:
    world, alice, bob, socket = started(dataclasses.replace(POLICY, give_up_after=600.0))
    carol = world.host("carol", "192.0.2.3", policy=POLICY)
    with_carol, _ = world.connect(bob, carol, 40001)
    world.run(5)
    alice.crash()
    world.link.cut = True  # nor does her kernel answer
    wait_in_vain(world, bob, socket, 15)
    world.link.cut = False
    world.tap_segment = lambda source, to: False
    world.run(300)
    carol.crash()
    wait_in_vain(world, bob, with_carol, 15)
    assert {bob.connection(s).state for s in (socket, with_carol)} == {State.SUSPENDED}
    world.run(350)
    assert len(bob.named("connection.closed", "given-up")) == 1
    assert socket not in bob.sockets
    assert bob.connection(with_carol).state is State.SUSPENDED


@pytest.mark.parametrize("days", [13, 15])
@pytest.mark.parametrize("restarted", [False, True])
def test_thirteen_days_are_borne_and_fifteen_are_not(
    days: float, restarted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "PROBE_PART", 20.0)  # each announcement has handshakes, which take real time
    monkeypatch.setattr(constants, "PROBE_PAUSE_MAX", DAY / 8)
    monkeypatch.setattr(constants, "ACM_RETRIES", (*constants.ACM_RETRIES, DAY / 8))
    monkeypatch.setattr(constants, "REACH_PAUSE", DAY)
    monkeypatch.setattr(constants, "KEEPALIVE_TIME", DAY)
    world, alice, bob, socket = started()
    bob.move()
    world.link.cut = True
    wait_in_vain(world, alice, socket.mirrored, 15)
    assert alice.connection(socket.mirrored).state is State.SUSPENDED
    world.run(7 * DAY)
    if restarted:
        for host in (alice, bob):
            host.crash()
            world.run(60)
            host.start()
    world.run((days - 7) * DAY)
    if days > 14:
        for host, end in ((alice, socket.mirrored), (bob, socket)):
            assert host.named("connection.closed", "given-up")
            assert end not in host.sockets
            assert host.engine.table.at(end) is None
            assert not host.stored
            world.run(100)
            assert not host.flows
            assert not host.held
        return
    world.link.cut = False
    bob.move("198.51.100.7")
    world.run(DAY)
    as_before(world, (alice, socket.mirrored), (bob, socket))
    assert bob.named("connection.resumed", "no-path")[-1].details["duration"] > 12.9 * DAY
    assert alice.named("connection.resumed", "peer-silent")[-1].details["duration"] > 12.9 * DAY


def test_giving_up_sooner_after_the_configuration_changed() -> None:
    world, _, bob, socket = started()
    bob.move()
    world.run(100)
    bob.engine.policy_changed(world.now, Policy(first_contact="accept-new", prefer="auto", give_up_after=60.0))
    bob.run()
    world.run(1)
    assert bob.named("connection.closed", "given-up")
    assert socket not in bob.sockets


def test_kill_and_release_of_a_suspended_connection() -> None:
    world, _, bob, socket = silent()
    bob.engine.kill(world.now, bob.connection(socket).cid)
    bob.run()
    assert socket not in bob.sockets
    assert not bob.altered
    world, _, bob, socket = silent()
    bob.engine.release(world.now, bob.connection(socket).cid)
    bob.run()
    assert socket in bob.sockets
    assert not bob.held
    assert not bob.altered
    assert bob.connection(socket).state is State.RELEASED
    assert bob.connection(socket).lost_since is None


def test_a_reset_for_a_suspended_connection_is_dropped() -> None:
    _, _, bob, socket = silent()
    bob.rst(socket, 1)
    assert bob.verdicts == {1: False}
    assert bob.named("rst.held", "no-path")


def test_a_program_that_ends_while_its_connection_is_suspended() -> None:
    _, _, bob, socket = silent()
    bob.closed(socket)
    assert bob.named("connection.closed", "closed")
    assert not bob.altered


def test_a_kernel_that_refuses_is_asked_again() -> None:
    world, alice, bob, socket = started()
    bob.kernel_error = "no memory"
    bob.move()
    world.run(10)
    assert bob.connection(socket).state is State.SUSPENDED
    assert not bob.held
    bob.kernel_error = None
    world.run(5)
    assert bob.held == set(bob.altered) == {socket}
    bob.move("198.51.100.2")
    world.run(1)
    as_before(world, (alice, socket.mirrored), (bob, socket))


def test_a_path_that_carries_too_little_to_be_proven_leaves_them_suspended() -> None:
    """Announcements arrive, and challenges, but nothing after that."""
    world, alice, bob, socket = started()
    bob.move()
    world.run(5)
    seen = 0

    def tap(*_: object) -> bool:
        nonlocal seen
        seen += 1
        return seen <= 3

    world.tap = tap
    bob.move("198.51.100.3")
    world.run(2)
    world.run(constants.HOLD_AGAIN + 1)
    assert bob.connection(socket).state is State.SUSPENDED
    assert bob.held == set(bob.altered) == {socket}
    world.tap = None
    world.run(10)
    as_before(world, (alice, socket.mirrored), (bob, socket))


def test_not_more_announcements_than_a_silent_path_bears() -> None:
    world, _, bob, _ = silent()
    for seconds, most in ((60, 1400), (120, 2800), (600, 12000)):
        bob.sent.clear()
        world.run(seconds)
        assert seconds < len(bob.sent) < most
        assert all(len(data) < 250 for _, data in bob.sent)
    (key,) = bob.engine.peers
    assert bob.engine.suspension.pause(world.now + DAY, key) == pytest.approx(DAY / constants.PROBE_PART, rel=0.1)
    assert bob.engine.suspension.pause(world.now + 10 * DAY, key) == constants.PROBE_PAUSE_MAX


def test_a_peer_that_does_not_know_the_connection_any_more_says_that_it_is_gone() -> None:
    world, alice, bob, socket = started()
    world.tap = lambda source, to, data: (
        source.host not in bob.addresses or not isinstance(bob.messages[-1][0], messages.EndOf)
    )
    bob.closed(socket)
    world.run(constants.LISTED + 1)  # it is not listed any more, and alice has not heard of it
    assert alice.protects(socket.mirrored)
    alice.rst(socket.mirrored, 1)
    world.run(1)
    assert alice.verdicts == {1: True}


def test_what_comes_to_be_known_of_a_socket_that_goes_on_already_is_given_back() -> None:
    """The path is back before the kernel has said what the socket had."""
    world, _, bob, socket = started()
    carry_out = bob.carry_out
    asked = told(bob, commands.Prepare, done=False)
    bob.move()
    world.run(constants.HOLD_AFTER + 0.1)
    bob.move("198.51.100.2")
    world.run(1)
    assert bob.connection(socket).state is State.PROTECTED
    bob.carry_out = carry_out  # type: ignore[method-assign]
    resumed, suspended = told(bob, commands.Resume), told(bob, commands.Suspend)
    bob.carry_out(asked[0])
    bob.run()
    assert [command.sockets for command in resumed] == [(socket,)]
    assert not suspended
    assert not bob.altered
    assert bob.connection(socket).saved is None


def test_a_socket_table_that_cannot_be_read_ends_nothing() -> None:
    """bob cannot say whether his socket is there: alice keeps the RST back, as if he had not answered."""
    world, alice, bob, socket = started()
    bob.socket_table_fails = True
    alice.rst(socket.mirrored, 1)
    world.run(30)
    assert alice.verdicts == {1: False}
    bob.socket_table_fails = False
    bob.sockets.discard(socket)
    alice.rst(socket.mirrored, 2)
    world.run(30)
    assert alice.verdicts == {1: False, 2: True}

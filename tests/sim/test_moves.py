"""Two hosts and their address changes, on simulated time."""

from __future__ import annotations

import pytest

from redirectctl.flows import commands
from redirectctl.flows.policy import Policy
from redirectctl.flows.state import State
from tests.sim.host import Host
from tests.sim.network import ip
from tests.sim.shell import told
from tests.sim.world import World, agree


def started(world: World, n: int = 1) -> tuple[Host, Host, list]:
    alice = world.host("alice", "192.0.2.1")
    bob = world.host("bob", "198.51.100.2")
    sockets = [world.connect(bob, alice, 40000 + i)[0] for i in range(n)]
    world.run(5)
    return alice, bob, sockets


def test_a_connection_becomes_protected_on_both_hosts() -> None:
    world = World()
    alice, bob, (socket,) = started(world)
    assert bob.connection(socket).state is State.PROTECTED
    assert alice.connection(socket.mirrored).state is State.PROTECTED
    assert bob.connection(socket).cid == alice.connection(socket.mirrored).cid
    assert agree(alice, bob, socket.mirrored)


def test_the_client_moves() -> None:
    world = World()
    alice, bob, (socket,) = started(world)
    bob.move("203.0.113.9")
    world.run(1)
    assert bob.flows[socket].local.host == ip("203.0.113.9")
    assert agree(alice, bob, socket.mirrored)
    finished = bob.named("move.finished")
    assert len(finished) == 1
    assert finished[0].details["connections"] == 1
    assert alice.named("move.received")
    assert bob.kicked == [(socket,)]
    assert alice.kicked == [(socket.mirrored,)]
    for host in (alice, bob):
        assert not host.named("packet.refused")
        assert not host.named("redirect.refused")


def test_what_is_told_of_a_move() -> None:
    world = World()
    alice, bob, _ = started(world, 3)
    bob.move("203.0.113.9")
    world.run(1)
    (began,), (ended,), (heard,) = bob.named("move.started"), bob.named("move.finished"), alice.named("move.received")
    assert (began.peer, ended.peer, heard.peer) == (alice.static.public, alice.static.public, bob.static.public)
    assert began.reason == "address-changed"
    for notice in (began, ended, heard):
        assert notice.address == ip("203.0.113.9")
        assert (notice.details["connections"], notice.details["epoch"]) == (3, began.details["epoch"])
    assert ended.details["duration"] == pytest.approx(4 * world.link.delay)
    for host, wire in ((bob, "203.0.113.9:{} 192.0.2.1:22"), (alice, "192.0.2.1:22 203.0.113.9:{}")):
        changed = host.named("path.changed")
        assert {n.connection for n in changed} == {c.cid for c in host.engine.table}
        assert {n.details["path"] for n in changed} == {"rewritten"}
        assert sorted(f"{n.details['wire_local']} {n.details['wire_remote']}" for n in changed) == [
            wire.format(port) for port in (40000, 40001, 40002)
        ]


def test_what_is_told_of_an_outage() -> None:
    world = World()
    _, bob, (socket,) = started(world)
    bob.move()
    world.run(20)
    bob.move("203.0.113.9")
    world.run(1)
    (lost,), (back,) = bob.named("connection.suspended"), bob.named("connection.resumed")
    assert (lost.reason, back.reason) == ("no-path", "no-path")
    assert back.details["duration"] == pytest.approx(20 + 4 * world.link.delay)
    assert bob.connection(socket).history[-2:] == [(1005.0, State.SUSPENDED), (pytest.approx(1025.04), State.PROTECTED)]


def test_the_server_moves_and_then_the_client() -> None:
    world = World()
    alice, bob, (socket,) = started(world)
    alice.move("192.0.2.77")
    world.run(1)
    bob.move("203.0.113.9")
    world.run(1)
    assert bob.flows[socket].local.host == ip("203.0.113.9")
    assert bob.flows[socket].remote.host == ip("192.0.2.77")
    assert agree(alice, bob, socket.mirrored)


def test_moving_back_is_the_original_path() -> None:
    world = World()
    alice, bob, (socket,) = started(world)
    bob.move("203.0.113.9")
    world.run(1)
    bob.move("198.51.100.2")
    world.run(1)
    assert bob.flows[socket] == socket
    assert alice.flows[socket.mirrored] == socket.mirrored


def test_no_address_for_an_hour() -> None:
    world = World()
    alice, bob, (socket,) = started(world)
    bob.move()
    world.run(3600)
    assert bob.connection(socket).state is State.SUSPENDED
    bob.move("203.0.113.9")
    world.run(2)
    assert bob.connection(socket).state is State.PROTECTED
    assert agree(alice, bob, socket.mirrored)
    assert bob.named("connection.suspended")
    assert bob.named("connection.resumed")


def test_the_same_address_comes_back_after_an_outage_and_both_ends_are_kicked() -> None:
    world = World()
    alice, bob, (socket,) = started(world)
    bob.move()
    world.run(30)
    bob.move("198.51.100.2")
    world.run(1)
    assert bob.connection(socket).state is State.PROTECTED
    assert bob.kicked == [(socket,)]
    assert alice.kicked == [(socket.mirrored,)]


@pytest.mark.parametrize("prefer", ["rewritten", "tunnel"])
def test_what_goes_plainly_is_hastened_when_the_new_way_is_about_to_open(prefer: str) -> None:
    """What waits in the tunnel need not be: its back-off is undone at once."""
    world = World()
    policy = Policy(first_contact="accept-new", long_lived_after=1.0, prefer=prefer)
    alice, bob = (world.host(name, at, policy=policy) for name, at in (("alice", "192.0.2.1"), ("bob", "198.51.100.2")))
    socket, _ = world.connect(bob, alice, 40000)
    world.run(5)
    hastened = told(bob, commands.RevertBackoffEarly)
    bob.move("203.0.113.9")
    while not bob.named("move.finished"):
        assert bob.named("move.started")
        before = [s for command in hastened for s in command.sockets]
        world.run(0.001)
    assert before == ([socket] if prefer == "rewritten" else []), "before the peer has said that it is ready"


def test_one_acm_and_one_transaction_move_a_thousand_connections() -> None:
    world = World()
    alice, bob, sockets = started(world, 1000)
    assert all(bob.connection(s).state is State.PROTECTED for s in sockets)
    before = len(alice.transactions), len(bob.transactions)
    bob.move("203.0.113.9")
    world.run(1)
    assert alice.transactions[before[0] :] == [(1000, 1000)]
    assert bob.transactions[before[1] :] == [(1000, 1000)]
    assert all(agree(alice, bob, s.mirrored) for s in sockets)
    assert len(bob.named("move.started")) == 1


def test_short_lived_connections_cost_nothing_and_are_dropped() -> None:
    world = World()
    alice = world.host("alice", "192.0.2.1")
    bob = world.host("bob", "198.51.100.2", policy=Policy(first_contact="accept-new", long_lived_after=10.0))
    socket, _ = world.connect(bob, alice, 40000)
    world.run(5)
    bob.move("203.0.113.9")
    world.run(60)
    assert socket not in bob.sockets
    assert not bob.sent
    assert not bob.transactions
    assert bob.named("connection.closed", "address-gone")


def test_short_lived_connections_stay_as_long_as_their_address_does() -> None:
    world = World()
    alice = world.host("alice", "192.0.2.1")
    bob = world.host("bob", "198.51.100.2", policy=Policy(first_contact="accept-new", long_lived_after=10.0))
    socket, _ = world.connect(bob, alice, 40000)
    world.run(5)
    bob.move("203.0.113.9", "198.51.100.2")
    world.run(1)
    assert socket in bob.sockets
    bob.move("198.51.100.2")
    world.run(1)
    assert socket in bob.sockets
    bob.move()  # no other either: nobody knows yet whether it comes back
    world.run(1)
    assert socket in bob.sockets


def test_without_redirectctl_on_the_other_host_the_connection_is_left_alone() -> None:
    world = World()
    alice = world.host("alice", "192.0.2.1")
    bob = world.host("bob", "198.51.100.2")
    alice.crash()
    socket, _ = world.connect(bob, alice, 40000)
    world.run(30)
    assert bob.connection(socket).state is State.UNSUPPORTED
    assert not bob.transactions
    sent = len(bob.sent)
    assert sent == 5
    world.connect(bob, alice, 40001)
    world.run(30)
    assert len(bob.sent) == 2 * sent, "both connections share the handshake that the new one has asked for"


@pytest.mark.parametrize("loss", [0.1, 0.3])
def test_moves_over_a_lossy_link(loss: float) -> None:
    world = World(seed=7)
    alice, bob, (socket,) = started(world)
    world.link.loss = loss
    world.link.jitter = 0.05
    for i in range(20):
        bob.move(f"203.0.113.{i + 1}")
        world.run(60)
        assert agree(alice, bob, socket.mirrored), f"after move {i}"


def test_quick_moves_end_at_the_last_address() -> None:
    world = World(seed=3)
    alice, bob, (socket,) = started(world)
    world.link.delay = 0.05
    for i in range(10):
        bob.move(f"203.0.113.{i + 1}")
        world.run(0.06)
    world.run(5)
    assert bob.flows[socket].local.host == ip("203.0.113.10")
    assert agree(alice, bob, socket.mirrored)


def test_a_restarted_daemon_moves_what_it_had() -> None:
    world = World()
    alice, bob, (socket,) = started(world)
    bob.move("203.0.113.9")
    world.run(1)
    bob.crash()
    world.run(10)
    bob.start()
    world.run(3)
    bob.move("203.0.113.10")
    world.run(3)
    assert agree(alice, bob, socket.mirrored)
    assert bob.flows[socket].local.host == ip("203.0.113.10")


def test_the_address_changed_while_the_daemon_was_down() -> None:
    world = World()
    alice, bob, (socket,) = started(world)
    alice.crash()
    bob.crash()
    bob.addresses = [ip("203.0.113.9")]
    world.run(200)
    alice.start()
    bob.start()
    world.run(20)
    assert agree(alice, bob, socket.mirrored)


def test_closing_leaves_nothing() -> None:
    world = World()
    alice, bob, (socket,) = started(world)
    bob.move("203.0.113.9")
    world.run(1)
    alice.closed(socket.mirrored)
    bob.closed(socket)
    world.run(120)
    assert not alice.flows
    assert not bob.flows
    assert not len(alice.engine.table)
    assert not len(bob.engine.table)
    assert not bob.stored
    assert not alice.stored


def test_both_hosts_opt_the_same_connection_in() -> None:
    world = World()
    alice = world.host("alice", "192.0.2.1")
    bob = world.host("bob", "198.51.100.2")
    socket, mirrored = world.connect(bob, alice, 40000)
    alice.opened(mirrored)
    world.run(10)
    assert bob.connection(socket).cid == alice.connection(mirrored).cid
    assert bob.connection(socket).state is State.PROTECTED
    assert alice.connection(mirrored).state is State.PROTECTED
    bob.move("203.0.113.9")
    world.run(1)
    assert agree(alice, bob, mirrored)


def test_a_kernel_that_refuses_leaves_everything_as_it_was() -> None:
    world = World()
    alice, bob, (socket,) = started(world)
    alice.kernel_error = "no space"
    bob.move("203.0.113.9")
    world.run(1)
    assert alice.flows[socket.mirrored] == socket.mirrored
    assert alice.named("redirect.refused", "kernel")


def test_both_families_announced_again_and_again_without_an_answer() -> None:
    """Addresses of two families have no order."""
    world = World()
    policy = Policy(first_contact="accept-new", long_lived_after=1.0, prefer="auto")
    alice = world.host("alice", "192.0.2.1", "2001:db8:a::1", policy=policy)
    bob = world.host("bob", "198.51.100.2", policy=policy)
    sockets = [world.connect(bob, alice, 40000 + i)[0] for i in range(2)]
    world.run(5)
    world.tap = lambda source, to, data: source.host not in alice.addresses  # no challenge arrives
    bob.move("203.0.113.9", "2001:db8:b::9")
    world.run(1.5)
    ways = [way for v in alice.engine.announcements.validations_of(bob.static.public) for way in v.ways.values()]
    assert {way.new.version for way in ways} == {4, 6}
    bob.engine.stalled(world.now, sockets[:1])  # announced once more, by itself
    bob.run()
    world.run(0.1)
    world.tap = None
    world.run(20)
    for socket in sockets:
        assert agree(alice, bob, socket.mirrored)
        assert bob.connection(socket).local_now == ip("203.0.113.9")

"""SIGKILL after the first command of whatever a host does, after the second, and so on: started again, it ends as if
nothing had been.

The commands of a host are everything that it does to its store, its kernel, its tunnel and the network, so all that
can be between two of them is met: stored and not yet in the kernel, in the kernel and not acknowledged.  That no
counter is used twice is checked by pair.py at each Carry.
"""

from __future__ import annotations

import pytest

from redirectctl.flows.connection import Path
from redirectctl.flows.kernel_state import COUNTER_BITS
from redirectctl.flows.policy import Policy
from redirectctl.flows.state import State
from redirectctl.wire.addr import FourTuple
from redirectctl.wire.tunnel import COUNTER_JUMP
from tests.sim.host import Host
from tests.sim.network import ip
from tests.sim.world import World, agree

NEW, OLD = "203.0.113.9", "198.51.100.2"
COMMANDS = 120  # more than any of these makes
WAYS = {
    "rewritten": Policy(first_contact="accept-new", long_lived_after=1.0),
    "auto": Policy(first_contact="accept-new", long_lived_after=1.0, prefer="auto"),
    "tunnel": Policy(first_contact="accept-new", long_lived_after=1.0, prefer="tunnel"),
    "integrity": Policy(first_contact="accept-new", long_lived_after=1.0, prefer="auto", integrity=True),
}
ENDS_AS = {"rewritten": Path.REWRITTEN, "auto": Path.REWRITTEN, "tunnel": Path.TUNNEL, "integrity": Path.TUNNEL}


def pair(way: str) -> tuple[World, Host, Host, FourTuple]:
    world = World(seed=2)
    alice, bob = world.host("alice", "192.0.2.1", policy=WAYS[way]), world.host("bob", OLD, policy=WAYS[way])
    socket, _ = world.connect(bob, alice, 40000)
    return world, alice, bob, socket


def act(world: World, bob: Host, what: str, socket: FourTuple) -> None:
    """What is under way when a host is killed."""
    match what:
        case "move":
            bob.move(NEW)
        case "move-back":
            bob.move(OLD)
        case "stall":
            bob.engine.stalled(world.now, [socket])
            bob.run()
        case "outage":  # long enough for both hosts to suspend it
            bob.move()
            world.run(30)
            bob.move(NEW)
        case "move-stall":  # one connection of two sends, and is announced once more
            bob.move(NEW)
            world.run(1)
            bob.engine.stalled(world.now, [socket])
            bob.run()
    world.run(3)


@pytest.mark.parametrize("who", ["alice", "bob", "both"])
@pytest.mark.parametrize(
    ("way", "what"),
    [(way, what) for way in WAYS for what in ("open", "move", "move-back")]
    + [
        ("auto", "stall"),
        ("auto", "outage"),
        ("integrity", "outage"),
        ("auto", "move-stall"),
        ("integrity", "move-stall"),
    ],
)
def test_killed_after_any_command(who: str, what: str, way: str) -> None:
    for lives in range(COMMANDS):
        world, alice, bob, socket = pair(way)
        beside = world.connect(bob, alice, 40001)[0] if what == "move-stall" else socket
        killed = {"alice": [alice], "bob": [bob], "both": [alice, bob]}[who]
        if what != "open":
            world.run(6)
        if what in ("move-back", "stall"):
            bob.move(NEW)
            world.run(6)
        for host in killed:
            host.lives = lives
        act(world, bob, what, socket)
        died = [host for host in killed if host.lives is None]
        for host in died:
            host.start()
            host.find()
        for host in killed:
            host.lives = None
        world.run(100)
        for end in (alice, bob):
            end.find()
        world.run(100)
        where = f"killed after {lives} commands"
        here, there = bob.connection(socket), alice.connection(socket.mirrored)
        assert agree(alice, bob, socket.mirrored), where
        assert here.state is there.state is State.PROTECTED, where
        assert here.cid == there.cid, where
        assert set(bob.stored) == set(alice.stored) == {bob.connection(s).cid for s in (socket, beside)}, where
        assert [c for host in (alice, bob) for c in host.engine.table if c.tunnel_waits and c.tunnel] == [], where
        at = ip(OLD if what in ("open", "move-back") else NEW)
        assert here.local_now == there.remote_now == at, where
        assert here.flow.integrity is there.flow.integrity is (way == "integrity"), where
        if what != "open" and (what, way) not in (("move-back", "auto"), ("move-back", "rewritten")):
            assert here.path is there.path is ENDS_AS[way], where
        elif what == "open":
            assert here.path is there.path is (Path.TUNNEL if way == "integrity" else Path.ORIGINAL), where
        if not died:
            break
    else:
        pytest.fail("it never came to the end")


def test_a_peer_that_was_killed_when_one_connection_stalled_hears_of_the_others() -> None:
    """They wait in the tunnel until the peer knows where we are, which it hears by announcing itself."""
    world, alice, bob, socket = pair("integrity")
    beside, _ = world.connect(bob, alice, 40001)
    world.run(6)
    world.tap = lambda source, to, data: (
        not (alice.up and source.host == ip(NEW) and bob.carried[socket].remote is None)
    )
    bob.move(NEW)
    world.run(0.2)
    assert {bob.carried[s].remote for s in (socket, beside)} == {None}
    alice.crash()
    world.run(1)
    bob.engine.stalled(world.now, [socket])
    bob.run()
    alice.start()
    world.tap = None
    world.run(20)
    for s in (socket, beside):
        assert bob.carried[s].remote == alice.carried[s.mirrored].remote._replace(host=ip("192.0.2.1"))  # type: ignore[union-attr]
        assert alice.connection(s.mirrored).remote_now == ip(NEW)
        assert bob.connection(s).confirmed == ip(NEW)


@pytest.mark.parametrize("restarts", [300])
def test_counters_after_many_restarts(restarts: int) -> None:
    """However often the daemon has started before, and within the life of a connection some hundred times."""
    world, alice, bob, socket = pair("tunnel")
    for host in (alice, bob):
        host.crash()
        host.generation = 10_000_000
        host.start()
        host.find()
    world.run(6)
    bob.move(NEW)
    world.run(6)
    for _ in range(restarts):
        bob.crash()
        bob.start()
    carried = bob.carried[socket]
    assert carried.first == carried.sending.start + (restarts << COUNTER_BITS)
    assert carried.first < carried.sending.start + COUNTER_JUMP, "a peer that has just restarted takes it"

"""The other host's daemon comes back with another key while our session with it is still there."""

from redirectctl.flows.state import State
from redirectctl.proto.peer import PeerState
from tests.sim.pair import World

ALICE, BOB, ELSEWHERE = "192.0.2.1", "198.51.100.2", "203.0.113.99"


def test_changed_key_refuses_connections_that_are_asked_for_in_the_old_session() -> None:
    world = World(seed=5)
    alice, bob = world.host("alice", ALICE), world.host("bob", BOB)
    before, _ = world.connect(bob, alice, 40000)
    world.run(5)
    assert bob.connection(before).state is State.PROTECTED
    bob.closed(before)
    alice.closed(before.mirrored)
    world.run(5)

    impostor = world.host("impostor", ELSEWHERE)
    impostor.addresses = alice.addresses
    world.hosts.remove(alice)
    assert bob.engine.peers[alice.static.public].session(world.now) is not None
    for port in (42000, 42001):
        socket, _ = world.connect(bob, impostor, port)
        world.run(30)
        assert (bob.connection(socket).state, bob.connection(socket).reason) == (State.REFUSED, "key-changed")
        assert bob.named("connection.refused", "key-changed")
        assert socket not in bob.flows
    assert bob.named("peer.key_changed", "key-changed")[0].peer == impostor.static.public
    assert bob.engine.peers[impostor.static.public].state is PeerState.CHANGED

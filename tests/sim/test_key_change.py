"""The other host's daemon comes back with another key while our session with it is still there."""

from redirectctl.flows import constants
from redirectctl.flows.state import State
from redirectctl.proto.peer import PeerState
from tests.sim.host import Host
from tests.sim.network import ip
from tests.sim.world import World

ALICE, BOB, ELSEWHERE = "192.0.2.1", "198.51.100.2", "203.0.113.99"


def met(seed: int) -> tuple[World, Host, Host]:
    """Two hosts that have had a connection with each other."""
    world = World(seed=seed)
    alice, bob = world.host("alice", ALICE), world.host("bob", BOB)
    socket, _ = world.connect(bob, alice, 40000)
    world.run(5)
    assert bob.connection(socket).state is State.PROTECTED
    bob.closed(socket)
    alice.closed(socket.mirrored)
    world.run(5)
    return world, alice, bob


def in_place_of(world: World, host: Host, first: str = ELSEWHERE) -> Host:
    """Another one, with another key, where this one was."""
    impostor = world.host("impostor", first)
    impostor.addresses = host.addresses
    world.hosts.remove(host)
    return impostor


def test_changed_key_refuses_connections_that_are_asked_for_in_the_old_session() -> None:
    world, alice, bob = met(5)
    impostor = in_place_of(world, alice)
    assert bob.engine.peers[alice.static.public].session(world.now) is not None
    for port in (42000, 42001):
        socket, _ = world.connect(bob, impostor, port)
        world.run(30)
        assert (bob.connection(socket).state, bob.connection(socket).reason) == (State.REFUSED, "key-changed")
        assert bob.named("connection.refused", "key-changed")
        assert socket not in bob.flows
    assert bob.named("peer.key_changed", "key-changed")[0].peer == impostor.static.public
    assert bob.engine.peers[impostor.static.public].state is PeerState.CHANGED


def test_a_changed_key_where_the_peer_had_moved_to_is_settled_by_forgetting_the_known_one() -> None:
    """Nobody had ever called the peer there: it had announced itself.  The two keys belong together all the same."""
    world = World(seed=6)
    alice, bob = world.host("alice", ALICE), world.host("bob", BOB)
    world.connect(bob, alice, 40000)
    world.run(5)
    alice.move(ELSEWHERE)
    world.run(5)
    known = alice.static.public
    assert ip(ELSEWHERE) not in bob.engine.peers[known].identity

    impostor = in_place_of(world, alice, "192.0.2.9")
    socket, _ = world.connect(bob, impostor, 42000)
    world.run(30)
    assert bob.connection(socket).reason == "key-changed"
    new = impostor.static.public
    assert bob.engine.peers[new].identity & bob.engine.peers[known].identity == {ip(ELSEWHERE)}
    assert ip(ELSEWHERE) in bob.stored_peers[known].identity

    bob.engine.forget(world.now, known)
    bob.run()
    again, _ = world.connect(bob, impostor, 42001)
    world.run(10)
    assert bob.connection(again).state is State.PROTECTED


def test_a_connection_that_was_refused_for_a_changed_key_is_tried_again_later() -> None:
    world, alice, bob = met(7)
    world.run(200)
    impostor = in_place_of(world, alice)
    socket, _ = world.connect(bob, alice, 42000)
    world.run(30)
    assert bob.connection(socket).reason == "key-changed"
    world.hosts.remove(impostor)
    world.hosts.append(alice)
    world.run(constants.CHANGED_POLL)
    assert bob.connection(socket).state is State.PROTECTED


def test_a_host_whose_key_waits_to_be_looked_at_is_not_met_at_another_address_either() -> None:
    world, alice, bob = met(8)
    world.run(200)
    impostor = in_place_of(world, alice)
    world.connect(bob, impostor, 42000)
    world.run(30)
    assert bob.engine.peers[impostor.static.public].state is PeerState.CHANGED
    impostor.addresses = [ip(ELSEWHERE)]
    elsewhere, _ = world.connect(bob, impostor, 42001)
    world.run(10)
    assert (bob.connection(elsewhere).state, bob.connection(elsewhere).reason) == (State.REFUSED, "key-changed")
    assert not any(impostor.engine.table.movable())

"""Both hosts move at once: what somebody says of the other's place leads them together again, and nowhere else."""

from __future__ import annotations

from redirectctl.flows import constants
from redirectctl.flows.policy import Policy
from redirectctl.flows.rendezvous.places import DNS
from redirectctl.flows.state import State
from redirectctl.wire import datagram
from redirectctl.wire.addr import FourTuple, SockAddr
from redirectctl.wire.message import Hello, Trust
from tests.sim.host import Host
from tests.sim.network import PORT, ip
from tests.sim.world import World, agree

TUNNELLING = Policy(first_contact="accept-new", long_lived_after=1.0, prefer="auto")


def started(policy: Policy | None = None) -> tuple[World, Host, Host, FourTuple]:
    world = World()
    alice = world.host("alice", "192.0.2.1", policy=policy)
    bob = world.host("bob", "198.51.100.2", policy=policy)
    socket, _ = world.connect(bob, alice, 40000)
    world.run(5)
    assert bob.protects(socket)
    return world, alice, bob, socket


def both_away(policy: Policy | None = None) -> tuple[World, Host, Host, FourTuple]:
    """Both have moved in the same moment; neither knows where the other is."""
    world, alice, bob, socket = started(policy)
    alice.move("192.0.2.77")
    bob.move("203.0.113.9")
    return world, alice, bob, socket


def test_after_a_move_the_peer_knows_all_addresses_and_knows_them_after_a_restart() -> None:
    world, alice, bob, _ = started(TUNNELLING)
    alice.addresses[:] = [ip("192.0.2.77"), ip("2001:db8::77")]
    alice.network_changed()
    world.run(constants.KEEP_PAUSE)
    there = alice.static.public
    assert set(bob.engine.peers[there].addresses) == set(alice.addresses)
    bob.crash()
    bob.start()
    assert set(bob.engine.peers[there].addresses) == set(alice.addresses)


def test_what_a_peer_says_of_its_addresses_is_not_stored_as_often_as_it_likes() -> None:
    world, alice, bob, _ = started(TUNNELLING)
    before = bob.peers_saved
    for number in range(100):
        hello = Hello(Trust.APPROVED, SockAddr(ip("198.51.100.2"), PORT), (ip(f"192.0.2.{number}"),))
        alice.engine.host.send(world.now, bob.static.public, hello)
        alice.run()
        world.run(0.2)
    assert 1 <= bob.peers_saved - before <= 20 / constants.KEEP_PAUSE + 1


def test_without_a_place_they_do_not_meet() -> None:
    world, _, bob, socket = both_away()
    world.run(60)
    assert not bob.named("move.finished")
    assert bob.protects(socket)
    assert not bob.sought


def test_a_name_leads_them_together() -> None:
    world, alice, bob, socket = both_away()
    world.names[alice.static.public] = ["192.0.2.77"]
    world.run(2)
    assert bob.named("move.finished")
    assert bob.flows[socket].remote.host == ip("192.0.2.77")
    assert agree(alice, bob, socket.mirrored)
    assert bob.connection(socket).state is State.PROTECTED


def test_in_the_tunnel_too() -> None:
    world, alice, bob, socket = both_away(TUNNELLING)
    world.names[alice.static.public] = ["192.0.2.77"]
    world.run(2)
    assert bob.connection(socket).remote_now == ip("192.0.2.77")
    assert alice.connection(socket.mirrored).remote_now == ip("203.0.113.9")


def test_a_name_that_is_changed_late_leads_them_together_later() -> None:
    world, alice, bob, socket = both_away()
    world.names[alice.static.public] = ["192.0.2.1"]
    world.run(130)
    assert not bob.named("move.finished")
    first, later = [[t for t in bob.sought if (t - world.now + 130 < 60) is early] for early in (True, False)]
    assert len(first) > 5
    assert len(later) <= 4, "asked ever more slowly"
    world.names[alice.static.public] = ["192.0.2.77"]
    world.run(31)
    assert agree(alice, bob, socket.mirrored)


def test_a_place_where_the_peer_was_not_yet_is_tried_again() -> None:
    world, alice, bob, _ = both_away()
    alice.move()  # its name is right, and it is away once more
    world.names[alice.static.public] = ["192.0.2.77"]
    world.run(70)
    assert not bob.named("move.finished")
    alice.addresses = [ip("192.0.2.77")]  # and says nothing of its own accord
    world.run(31)
    assert bob.named("move.finished")


def test_after_the_sessions_have_ended_a_name_leads_them_together() -> None:
    world, alice, bob, socket = both_away()
    world.run(200)  # keys last for 180 s
    world.names[alice.static.public] = ["192.0.2.77"]
    world.run(40)
    assert agree(alice, bob, socket.mirrored)


def test_a_name_of_the_other_family_leads_them_together() -> None:
    world = World()
    alice = world.host("alice", "192.0.2.1", policy=TUNNELLING)
    bob = world.host("bob", "198.51.100.2", policy=TUNNELLING)
    socket, _ = world.connect(bob, alice, 40000)
    world.run(5)
    alice.move("2001:db8:1::77")
    bob.move("2001:db8:2::9")
    world.names[alice.static.public] = ["2001:db8:1::77"]
    for _ in range(20):  # the shell looks for routes when it is asked to
        bob.network_changed()
        world.run(1)
    assert bob.connection(socket).remote_now == ip("2001:db8:1::77")
    assert alice.connection(socket.mirrored).remote_now == ip("2001:db8:2::9")


def test_nobody_is_asked_while_the_peer_answers() -> None:
    world = World()
    alice = world.host("alice", "192.0.2.1")
    bob = world.host("bob", "198.51.100.2")
    socket, _ = world.connect(bob, alice, 40000)
    world.names = {alice.static.public: ["192.0.2.66"], bob.static.public: ["192.0.2.66"]}
    world.run(5)
    bob.move("203.0.113.9")
    world.run(600)
    assert agree(alice, bob, socket.mirrored)
    assert bob.sought == alice.sought == []


def test_a_name_that_lies_redirects_nothing() -> None:
    """It leads to a host that nobody knows, then to one with another key: announcements go there, traffic does not."""
    world, alice, bob, socket = both_away()
    world.names[alice.static.public] = ["192.0.2.66"]
    received: list[bytes] = []
    world.strangers[ip("192.0.2.66")] = lambda source, to, data: received.append(data)
    world.run(60)
    assert received
    assert bob.flows[socket].remote.host == ip("192.0.2.1")
    mallory = world.host("mallory", "192.0.2.67")
    world.names[alice.static.public] = ["192.0.2.67"]
    world.run(190)  # beyond the end of the session: handshakes too
    assert bob.named("redirect.refused", "another-host-there")
    assert not bob.named("peer.key_changed")
    assert mallory.static.public not in bob.engine.peers
    assert bob.static.public not in mallory.engine.peers
    assert not mallory.engine.table.movable()
    assert bob.flows[socket].remote.host == ip("192.0.2.1")
    assert bob.connection(socket).remote_now == ip("192.0.2.1")
    world.names[alice.static.public] = ["192.0.2.77"]
    world.run(40)
    assert agree(alice, bob, socket.mirrored)


def test_what_a_lie_draws_is_small() -> None:
    world, alice, bob, _ = both_away()
    victims = [f"192.0.2.{n}" for n in range(100, 200)]
    world.names[alice.static.public] = victims
    bob.sent.clear()
    world.run(60)
    drawn = [(to, data) for to, data in bob.sent if str(to.host) in victims]
    assert {str(to.host) for to, _ in drawn} == set(victims[: constants.MAX_TOLD])
    for victim in victims[: constants.MAX_TOLD]:
        mine = [data for to, data in drawn if str(to.host) == victim]
        assert len(mine) < 60
        assert all(isinstance(datagram.decode(data), datagram.Init | datagram.Transport) for data in mine)
        assert sum(map(len, mine)) < 12_000


def test_places_that_no_other_host_can_have_are_left_out() -> None:
    world, alice, bob, _ = both_away()
    key = alice.static.public
    nobody = ["127.0.0.1", "224.0.0.1", "0.0.0.0", "169.254.1.1", "::1", "ff02::1", "255.255.255.255", "203.0.113.9"]
    bob.engine.place_learnt(world.now, key, DNS, [SockAddr(ip(a), PORT) for a in nobody], 30.0)
    assert bob.engine.places.of(key) == ()
    bob.engine.place_learnt(world.now, b"x" * 32, DNS, [SockAddr(ip("192.0.2.5"), PORT)], 30.0)
    assert bob.engine.places.of(b"x" * 32) == ()


def test_what_was_said_is_forgotten_in_time_and_with_the_peer() -> None:
    world, alice, bob, _ = both_away()
    key, place = alice.static.public, SockAddr(ip("192.0.2.5"), PORT)
    bob.engine.place_learnt(world.now, key, DNS, [place], 100.0)
    world.run(99)
    assert bob.engine.places.of(key) == (place,)
    world.run(2)
    assert bob.engine.places.of(key) == ()
    bob.engine.place_learnt(world.now, key, DNS, [place], 100.0)
    bob.engine.forget(world.now, key)
    assert bob.engine.places.of(key) == ()
    bob.run()
    world.run(200)

"""Hosts whose keys a file of known peers lists."""

from dataclasses import replace

from redirectctl.flows.policy import Policy
from redirectctl.flows.state import State
from redirectctl.proto.fingerprint import fingerprint
from redirectctl.proto.peer import PeerState
from tests.sim.host import Host
from tests.sim.network import ip
from tests.sim.world import World

ALICE, BOB, ELSEWHERE = "192.0.2.1", "198.51.100.2", "203.0.113.99"
ASK = Policy(first_contact="ask")


def listing(policy: Policy, **hosts: Host) -> Policy:
    return replace(policy, listed={fingerprint(host.static.public): name for name, host in hosts.items()})


def two_hosts(policy: Policy = ASK) -> tuple[World, Host, Host]:
    world = World(seed=14)
    return world, world.host("alice", ALICE, policy=policy), world.host("bob", BOB, policy=policy)


def list_each_other(world: World, alice: Host, bob: Host) -> None:
    alice.engine.policy_changed(world.now, listing(alice.engine.policy, bob=bob))
    bob.engine.policy_changed(world.now, listing(bob.engine.policy, alice=alice))


def test_nobody_is_asked_about_a_host_that_is_listed() -> None:
    for first_contact in ("ask", "refuse", "accept-new"):
        world, alice, bob = two_hosts(replace(ASK, first_contact=first_contact))
        list_each_other(world, alice, bob)
        socket, _ = world.connect(bob, alice, 40000)
        world.run(20)
        assert bob.protects(socket)
        assert bob.named("peer.approved", "known-peers")


def test_another_host_waits_as_ever() -> None:
    world, alice, bob = two_hosts()
    alice.engine.policy_changed(world.now, listing(alice.engine.policy, alice=alice))
    socket, _ = world.connect(bob, alice, 40000)
    world.run(20)
    assert not bob.protects(socket)
    assert alice.engine.peers[bob.static.public].state is PeerState.PENDING


def test_who_waits_is_approved_when_its_line_comes() -> None:
    world, alice, bob = two_hosts()
    socket, _ = world.connect(bob, alice, 40000)
    world.run(20)
    assert not bob.protects(socket)
    list_each_other(world, alice, bob)
    world.run(20)
    assert bob.protects(socket)


def test_with_its_line_goes_the_approval() -> None:
    world, alice, bob = two_hosts()
    list_each_other(world, alice, bob)
    socket, _ = world.connect(bob, alice, 40000)
    world.run(20)
    bob.engine.policy_changed(world.now, ASK)
    world.run(5)
    assert not bob.protects(socket)
    assert bob.named("peer.rejected", "known-no-more")
    again, _ = world.connect(bob, alice, 40001)
    world.run(20)
    assert bob.connection(again).state is State.PENDING


def test_whom_a_person_has_approved_stays() -> None:
    world, alice, bob = two_hosts()
    list_each_other(world, alice, bob)
    socket, _ = world.connect(bob, alice, 40000)
    world.run(20)
    bob.engine.approve(world.now, alice.static.public)
    bob.engine.policy_changed(world.now, ASK)
    world.run(5)
    assert bob.protects(socket)


def test_whom_a_person_has_rejected_stays_rejected() -> None:
    world, alice, bob = two_hosts()
    socket, _ = world.connect(bob, alice, 40000)
    world.run(20)
    bob.engine.reject(world.now, alice.static.public)
    list_each_other(world, alice, bob)
    world.run(20)
    assert not bob.protects(socket)
    assert bob.engine.peers[alice.static.public].state is PeerState.REJECTED


def set_up_anew(world: World, alice: Host) -> Host:
    """Another key where alice was."""
    anew = world.host("anew", ELSEWHERE, policy=alice.engine.policy)
    anew.addresses = alice.addresses
    world.hosts.remove(alice)
    return anew


def test_a_host_that_changes_to_another_key_under_its_name() -> None:
    world, alice, bob = two_hosts()
    list_each_other(world, alice, bob)
    world.connect(bob, alice, 40000)
    world.run(20)
    anew = set_up_anew(world, alice)
    names = {fingerprint(host.static.public): "alice" for host in (alice, anew)}
    bob.engine.policy_changed(world.now, replace(ASK, listed=names))
    anew.engine.policy_changed(world.now, listing(ASK, bob=bob))
    socket, _ = world.connect(bob, anew, 42000)
    world.run(200)
    assert bob.protects(socket)
    assert not bob.named("peer.key_changed")
    assert ip(ALICE) not in bob.engine.peers[alice.static.public].identity


def test_a_host_of_another_name_is_a_changed_key() -> None:
    """It is listed, so it is good for its own name, and for no other."""
    world, alice, bob = two_hosts()
    list_each_other(world, alice, bob)
    world.connect(bob, alice, 40000)
    world.run(20)
    anew = set_up_anew(world, alice)
    bob.engine.policy_changed(world.now, listing(ASK, alice=alice, mallory=anew))
    anew.engine.policy_changed(world.now, listing(ASK, bob=bob))
    socket, _ = world.connect(bob, anew, 42000)
    world.run(60)
    assert not bob.protects(socket)
    assert bob.named("peer.key_changed")

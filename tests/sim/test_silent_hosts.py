"""Hosts that do not answer are asked again for as long as a connection waits for them; bob is the client."""

from __future__ import annotations

from collections import Counter

import pytest

from redirectctl.flows import constants
from redirectctl.flows.policy import Policy
from redirectctl.flows.state import State
from redirectctl.proto.constants import HANDSHAKE_RETRIES
from redirectctl.wire.addr import FourTuple, IPAddress, SockAddr
from redirectctl.wire.datagram import Type
from tests.sim.host import Host
from tests.sim.network import PORT, ip
from tests.sim.world import World

ALICE, BOB = "192.0.2.1", "198.51.100.2"
POLICY = Policy(first_contact="accept-new", long_lived_after=1.0)
SOON = 30.0  # seconds: the promise
ANNA, BERT = 1001, 1002  # users of bob's


def unanswered() -> tuple[World, Host, Host, FourTuple]:
    """Alice's port is closed, and bob has given up for now."""
    world = World()
    alice, bob = world.host("alice", ALICE, policy=POLICY), world.host("bob", BOB, policy=POLICY)
    world.link.blocked = True
    socket, _ = world.connect(bob, alice, 40000)
    world.run(1 + sum(HANDSHAKE_RETRIES) + 0.5)
    assert (bob.connection(socket).state, bob.connection(socket).reason) == (State.UNSUPPORTED, "no-answer")
    return world, alice, bob, socket


def asked(host: Host, since: int = 0) -> Counter[IPAddress]:
    """First messages of handshakes, by where they went."""
    return Counter(to.host for to, data in host.sent[since:] if data[0] == Type.INIT)


@pytest.mark.parametrize("after", [0.0, 10.0, 24.0, 30.0, 300.0, 4000.0])
def test_a_port_that_is_opened_later_protects_within_half_a_minute(after: float) -> None:
    world, alice, bob, socket = unanswered()
    world.run(after)
    assert bob.connection(socket).state is State.UNSUPPORTED
    world.link.blocked = False
    world.run(SOON + 3)
    assert bob.protects(socket)
    assert alice.protects(socket.mirrored)
    world.settled()


def test_being_asked_again_is_seen_nowhere_until_it_succeeds() -> None:
    """Nobody who looks at the listing or the log sees it flicker."""
    world, _, bob, socket = unanswered()
    history = list(bob.connection(socket).history)
    world.run(600)
    assert bob.connection(socket).history == history
    assert len(bob.named("connection.unsupported")) == 1
    assert asked(bob)[ip(ALICE)] > 10 * len(HANDSHAKE_RETRIES)


def test_another_reason_is_told() -> None:
    world, _, bob, socket = unanswered()
    world.run(constants.UNSUPPORTED_TIME + 1)
    bob.engine.contacts.failed(world.now, SockAddr(ip(ALICE), PORT), None, "no-common-version")
    bob.run()
    assert (bob.connection(socket).state, bob.connection(socket).reason) == (State.UNSUPPORTED, "no-common-version")


def test_nobody_asks_where_nobody_waits() -> None:
    world, alice, bob, socket = unanswered()
    bob.closed(socket)
    alice.closed(socket.mirrored)
    world.run(constants.UNSUPPORTED_TIME)
    before = len(bob.sent)
    world.run(3600)
    assert asked(bob, before) == Counter()


def test_what_a_person_has_released_waits_for_nothing() -> None:
    world, _, bob, socket = unanswered()
    bob.engine.release(world.now, bob.connection(socket).cid)
    bob.run()
    world.link.blocked = False
    world.run(100)
    assert bob.connection(socket).reason == "released"


def test_a_new_connection_asks_at_once_and_takes_the_old_ones_with_it() -> None:
    world, alice, bob, socket = unanswered()
    world.link.blocked = False
    other, _ = world.connect(bob, alice, 40001)
    world.run(3)
    assert bob.protects(other)
    assert bob.protects(socket)


@pytest.mark.parametrize("whom", ["all", "her"])
def test_a_person_may_have_it_asked_at_once(whom: str) -> None:
    world, _, bob, socket = unanswered()
    world.link.blocked = False
    assert bob.engine.retry(world.now, None if whom == "all" else [ip(ALICE)]) == [ip(ALICE)]
    bob.run()
    world.run(2)
    assert bob.protects(socket)
    assert bob.engine.retry(world.now) == []


def test_another_host_is_not_asked_for_hers() -> None:
    world, _, bob, _ = unanswered()
    before = len(bob.sent)
    assert bob.engine.retry(world.now, [ip("192.0.2.9")]) == []
    bob.run()
    assert asked(bob, before) == Counter()


def test_a_new_network_asks_at_once() -> None:
    world, _, bob, socket = unanswered()
    world.link.blocked = False
    bob.move(BOB, "203.0.113.9")
    world.run(2)
    assert bob.protects(socket)


def test_an_answer_to_anybody_is_one_to_all() -> None:
    """Doctor has made a handshake with that address."""
    world, _, bob, socket = unanswered()
    world.link.blocked = False
    bob.engine.meet(world.now, SockAddr(ip(ALICE), PORT))
    bob.run()
    world.run(2)
    assert bob.protects(socket)


def test_a_person_decides_about_a_key_that_answers_later() -> None:
    world = World()
    alice = world.host("alice", ALICE, policy=POLICY)
    bob = world.host("bob", BOB, policy=Policy(first_contact="ask", long_lived_after=1.0))
    world.link.blocked = True
    socket, _ = world.connect(bob, alice, 40000)
    world.run(15)
    world.link.blocked = False
    world.run(SOON)
    assert (bob.connection(socket).state, bob.connection(socket).reason) == (State.PENDING, "approval-pending-here")


def test_many_silent_hosts_cost_little_and_each_user_has_his_turn() -> None:
    """Anna has connections with hundreds, bert with one."""
    world = World()
    alice, bob = world.host("alice", ALICE, policy=POLICY), world.host("bob", BOB, policy=POLICY)
    world.link.blocked = True
    for number in range(300):
        to = SockAddr(ip(f"203.0.{113 + number // 200}.{1 + number % 200}"), 22)
        bob.engine.found(world.now, FourTuple(SockAddr(ip(BOB), 10000 + number), to), uid=ANNA)
        bob.run()
        if number % 30 == 29:
            world.run(12)  # daemon/finder.py gives her so many at a time
    socket, mirrored = world.connect(bob, alice, 40000, watch=False)
    bob.engine.found(world.now, socket, uid=BERT)
    bob.run()
    world.run(60)
    assert {c.state for c in bob.engine.table} == {State.UNSUPPORTED}
    before = len(bob.sent)
    world.run(90)
    told = asked(bob, before)
    assert sum(told.values()) <= (90 / sum(HANDSHAKE_RETRIES) + 1) * constants.ASKED_AGAIN * len(HANDSHAKE_RETRIES)
    world.link.blocked = False
    world.run(SOON + 15)
    assert bob.protects(socket)
    assert alice.protects(mirrored)


def test_all_silent_hosts_have_their_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ASKED_AGAIN", 2)
    world = World()
    bob = world.host("bob", BOB, policy=POLICY)
    for number in range(9):
        to = SockAddr(ip(f"203.0.113.{1 + number}"), 22)
        bob.engine.found(world.now, FourTuple(SockAddr(ip(BOB), 10000 + number), to), uid=ANNA)
    bob.run()
    world.run(15)
    before = len(bob.sent)
    world.run(120)
    assert len(asked(bob, before)) == 9

"""Taking connections on and letting them go; restarts; kernels that are slow or refuse."""

from __future__ import annotations

import dataclasses

import pytest

from redirectctl.flows import commands, constants
from redirectctl.flows.connection import Path
from redirectctl.flows.policy import Policy
from redirectctl.flows.state import State
from redirectctl.proto.constants import HANDSHAKE_RETRIES, REKEY_AFTER_TIME
from redirectctl.proto.peer import PeerState
from redirectctl.wire import message as messages
from redirectctl.wire.addr import FourTuple, SockAddr
from redirectctl.wire.datagram import Type
from tests.sim.host import Host
from tests.sim.network import PORT, ip
from tests.sim.shell import told
from tests.sim.world import World, agree

ASK = Policy(first_contact="ask", long_lived_after=1.0)
NEW, LATER = "203.0.113.9", "203.0.113.10"


def pair(alice_policy: Policy | None = None, bob_policy: Policy | None = None) -> tuple[World, Host, Host]:
    world = World(seed=2)
    return (
        world,
        world.host("alice", "192.0.2.1", policy=alice_policy),
        world.host("bob", "198.51.100.2", policy=bob_policy),
    )


def protected(n: int = 1) -> tuple[World, Host, Host, list[FourTuple]]:
    world, alice, bob = pair()
    sockets = [world.connect(bob, alice, 40000 + i)[0] for i in range(n)]
    world.run(5)
    assert all(bob.protects(s) and alice.protects(s.mirrored) for s in sockets)
    return world, alice, bob, sockets


def decide(host: Host, what: str, other: Host) -> None:
    getattr(host.engine, what)(host.world.now, other.static.public)
    host.run()


def differing() -> tuple[World, Host, Host, FourTuple]:
    """At its first address again bob sends by the tunnel, and alice plainly as at first."""
    auto = Policy(first_contact="accept-new", long_lived_after=1.0, prefer="auto")
    world, alice, bob = pair(auto, dataclasses.replace(auto, prefer="tunnel"))
    socket, mirrored = world.connect(bob, alice, 40000)
    world.run(5)
    for address in (NEW, "198.51.100.2"):
        bob.move(address)
        world.run(3)
    assert (alice.connection(mirrored).path, bob.connection(socket).path) == (Path.ORIGINAL, Path.TUNNEL)
    return world, alice, bob, socket


def test_whose_a_connection_is_stays_with_it() -> None:
    """Users see and release their own; what a second look finds out is added."""
    world, _, bob, _ = protected()
    socket = FourTuple(SockAddr(bob.addresses[0], 41000), SockAddr(ip("192.0.2.1"), 22))
    bob.engine.found(world.now, socket, uid=1000)
    bob.engine.found(world.now, socket, uid=0, pid=7, command="ssh")
    c = bob.connection(socket)
    assert (c.uid, c.pid, c.command) == (1000, 7, "ssh")


def test_what_became_of_a_connection_is_told_from_its_beginning() -> None:
    """With times: `redirectctl show` and the terminal UI have it."""
    world, _, bob, (socket,) = protected()
    began = world.now - 5
    connection = bob.connection(socket)
    bob.closed(socket)
    times, states = zip(*connection.history, strict=True)
    assert states == (State.SHORT, State.NEGOTIATING, State.PROTECTED, State.CLOSED)
    assert times[:2] == (began, began + 1.0)  # found, and long-lived
    assert times[2] < times[3] == world.now


# -- trust -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", ["alice", "bob"])
@pytest.mark.parametrize("pause", [0.0, 10.0, 400.0])
def test_both_people_approve(first: str, pause: float) -> None:
    """In either order, at once or much later: soon after the second one the connection is protected."""
    world, alice, bob = pair(ASK, ASK)
    socket, mirrored = world.connect(bob, alice, 40000)
    world.run(5)
    assert bob.connection(socket).state is State.PENDING
    assert bob.connection(socket).reason == "approval-pending-here"
    order = [(alice, bob), (bob, alice)] if first == "alice" else [(bob, alice), (alice, bob)]
    decide(order[0][0], "approve", order[0][1])
    world.run(pause)
    assert not bob.protects(socket)
    decide(order[1][0], "approve", order[1][1])
    world.run(constants.PENDING_POLL + 10)
    assert bob.protects(socket)
    assert agree(alice, bob, mirrored)


@pytest.mark.parametrize("first_contact", ["accept-new", "ask"])
def test_whoever_is_trusted_without_a_person_is_told_so(first_contact: str) -> None:
    world, alice, bob = pair(dataclasses.replace(ASK, first_contact=first_contact), ASK)
    world.connect(bob, alice, 40000)
    world.run(5)
    (met,) = alice.named("peer.first_contact")
    assert met.details["trust"] == {"accept-new": "approved", "ask": "pending"}[first_contact]
    assert len(alice.named("peer.approved", "accept-new")) == (first_contact == "accept-new")


def test_the_reason_of_waiting_tells_where() -> None:
    world, alice, bob = pair(ASK)
    socket, _ = world.connect(bob, alice, 40000)
    world.run(5)
    assert bob.connection(socket).reason == "approval-pending-there"
    assert alice.named("peer.first_contact")


def test_rejecting_ends_protection_on_both_hosts() -> None:
    world, alice, bob, (socket,) = protected()
    decide(alice, "reject", bob)
    world.run(5)
    assert alice.connection(socket.mirrored).reason == "peer-rejected"
    assert alice.connection(socket.mirrored).state is State.REFUSED
    assert bob.connection(socket).state is State.RELEASED
    assert bob.connection(socket).reason == "released-there"
    assert not alice.flows
    assert not bob.flows
    assert not alice.stored
    assert [c.state for c in bob.stored.values()] == [State.RELEASED], "a restart does not take it up again"
    world.connect(bob, alice, 40001)
    world.run(60)
    assert not alice.flows
    assert not bob.flows


def test_a_connection_to_a_rejected_peer_is_refused_and_nothing_is_sent() -> None:
    world, alice, bob, _ = protected()
    world.run(1)
    decide(bob, "reject", alice)
    world.run(200)
    sent = len(bob.sent)
    socket, _ = world.connect(bob, alice, 40001)
    world.run(30)
    assert bob.connection(socket).state is State.REFUSED
    assert bob.connection(socket).reason == "peer-rejected"
    assert len(bob.sent) == sent


def test_where_first_contact_is_refused_the_connection_is_too() -> None:
    world, alice, bob = pair(None, Policy(first_contact="refuse", long_lived_after=1.0))
    socket, _ = world.connect(bob, alice, 40000)
    world.run(30)
    assert bob.connection(socket).state is State.REFUSED
    assert bob.connection(socket).reason == "first-contact-refused"


def test_forgetting_and_meeting_again() -> None:
    world, alice, bob, (socket,) = protected()
    decide(bob, "forget", alice)
    assert alice.static.public not in bob.engine.peers
    assert alice.static.public not in bob.stored_peers
    assert bob.connection(socket).reason == "peer-forgotten"
    world.run(5)
    assert not alice.flows
    again, mirrored = world.connect(bob, alice, 40001)
    world.run(10)
    assert agree(alice, bob, mirrored)
    assert bob.protects(again)


# -- claims ------------------------------------------------------------------------------------------------------------


def test_a_port_that_is_not_accepted() -> None:
    world, alice, bob = pair(Policy(first_contact="accept-new", accept_ports=frozenset({443})))
    ssh, _ = world.connect(bob, alice, 40000, 22)
    https, _ = world.connect(bob, alice, 40001, 443)
    world.run(10)
    assert bob.connection(ssh).reason == "port-not-accepted"
    assert bob.protects(https)
    assert alice.named("connection.refused", "port-not-accepted")


def test_no_such_connection() -> None:
    """For instance since a proxy in between ends TCP there."""
    world, alice, bob = pair()
    socket, mirrored = world.connect(bob, alice, 40000)
    alice.sockets.discard(mirrored)
    world.run(10)
    assert bob.connection(socket).reason == "no-such-connection-there"
    assert not alice.flows


def test_more_connections_than_are_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "MAX_PER_PEER", 3)
    world, alice, bob = pair()
    for i in range(3):
        world.connect(bob, alice, 40000 + i)
    world.run(10)
    one_more, _ = world.connect(bob, alice, 40003)
    world.run(10)
    assert bob.connection(one_more).reason == "too-many-connections"
    assert len(alice.flows) == 3


def test_our_own_table_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "MAX_CONNECTIONS", 3)
    world, alice, bob = pair()
    for i in range(5):
        world.connect(bob, alice, 40000 + i)
    world.run(10)
    assert len(bob.engine.table) == 3
    here = [n for n in bob.named("connection.refused", "too-many-connections") if n.peer is None]
    assert len(here) == 2


def test_a_claim_that_the_peer_passes_over() -> None:
    world, alice, bob = pair()
    send = alice.engine.host.send

    def passing_over(now: float, key: bytes, message: messages.Message, *path: object) -> bool:
        if isinstance(message, messages.Protected):
            message = messages.Protected(message.request, ())
        return send(now, key, message, *path)  # type: ignore[arg-type]

    alice.engine.host.send = passing_over  # type: ignore[method-assign, assignment]
    socket, _ = world.connect(bob, alice, 40000)
    world.run(30)
    assert bob.connection(socket).state is State.UNSUPPORTED
    assert bob.connection(socket).reason == "no-answer"


@pytest.mark.parametrize("delay", [0.0, 0.2, 0.7])
def test_both_hosts_claim_the_same_connections(delay: float) -> None:
    """With a slow kernel too, many times over: one id wins on both, the kernel is asked once."""
    for gap in (0.0, 0.005, 0.01, 0.02, 0.03, 0.5):
        world, alice, bob = pair()
        alice.kernel_delay = bob.kernel_delay = delay
        pairs = [world.connect(bob, alice, 40000 + i) for i in range(3)]
        world.run(gap)
        for _, mirrored in pairs:
            alice.opened(mirrored)
        world.run(60)
        for socket, mirrored in pairs:
            assert bob.connection(socket).cid == alice.connection(mirrored).cid
            assert bob.protects(socket)
            assert agree(alice, bob, mirrored)


@pytest.mark.parametrize("end", ["closed", "released"])
def test_a_contact_in_vain_is_of_no_account_for_what_has_ended_meanwhile(end: str) -> None:
    world, alice, bob = pair()
    alice.crash()
    ended, _ = world.connect(bob, alice, 40000)
    other, _ = world.connect(bob, alice, 40001)
    world.run(3)
    if end == "closed":
        bob.closed(ended)
    else:
        bob.engine.release(world.now, bob.connection(ended).cid)
        bob.run()
    world.run(15)
    (notice,) = bob.named("connection.unsupported")
    assert notice.connection == bob.connection(other).cid


def test_a_connection_to_an_address_that_is_left_alone_does_not_keep_the_others_of_the_peer_waiting() -> None:
    """It has two, one of which is dead by the time that a person decides."""
    world, alice, bob = pair(bob_policy=ASK)
    dead, other = alice.addresses[0], ip("192.0.2.2")
    alice.addresses = [dead, other]
    first, _ = world.connect(bob, alice, 40000)
    alice.addresses = [other, dead]
    second, _ = world.connect(bob, alice, 40001)
    world.run(5)
    assert bob.connection(first).state is bob.connection(second).state is State.PENDING
    world.run(200)
    world.tap = lambda source, to, data: dead not in (source.host, to.host)
    alice.addresses = [dead, other]
    third, _ = world.connect(bob, alice, 40002)
    world.run(15)
    assert bob.connection(third).reason == "no-answer"
    decide(bob, "approve", alice)
    world.run(5)
    assert bob.protects(second)
    world.run(10)
    assert (bob.connection(first).state, bob.connection(first).reason) == (State.UNSUPPORTED, "no-answer")


def test_what_is_not_known_is_not_decided_about() -> None:
    world, alice, bob, (socket,) = protected()
    for engine in (alice.engine, bob.engine):
        engine.drain()
        for decide_about in (engine.approve, engine.reject):
            decide_about(world.now, b"nobody" + bytes(26))
        for end in (engine.release, engine.kill):
            end(world.now, b"no such!")
        assert engine.drain() == []
    bob.engine.kill(world.now, bob.connection(socket).cid)
    bob.run()
    world.run(1)
    (ended,) = bob.engine.table
    for end in (bob.engine.release, bob.engine.kill):  # and what has ended is not ended again
        end(world.now, ended.cid)
        assert bob.engine.drain() == []


def test_an_address_without_redirectctl_is_tried_again_later() -> None:
    world, alice, bob = pair()
    alice.crash()
    world.connect(bob, alice, 40000)
    world.run(30)
    alice.start()
    world.run(constants.UNSUPPORTED_TIME)
    socket, _ = world.connect(bob, alice, 40001)
    world.run(10)
    assert bob.protects(socket)


def test_an_address_is_left_alone_only_until_its_host_calls() -> None:
    world, alice, bob = pair()
    alice.crash()
    first, _ = world.connect(bob, alice, 40000)
    world.run(60)
    assert bob.connection(first).reason == "no-answer"
    alice.start()
    world.connect(alice, bob, 41000)
    world.run(5)
    second, _ = world.connect(bob, alice, 40001)
    world.run(5)
    assert bob.protects(second)


def test_a_known_peer_that_was_away_is_tried_again_soon() -> None:
    world, alice, bob, _ = protected()
    alice.crash()
    world.run(200)
    socket, mirrored = world.connect(bob, alice, 40001)
    world.run(20)
    assert bob.connection(socket).state is State.UNSUPPORTED
    alice.start()
    world.run(constants.UNSUPPORTED_TIME + 20)
    assert agree(alice, bob, mirrored)


def test_connections_that_wait_for_the_same_contact_share_a_handshake() -> None:
    world, alice, bob, (socket,) = protected()
    bob.closed(socket)
    alice.closed(socket.mirrored)
    world.run(200)
    alice.crash()
    before = len(bob.sent)
    for number in range(10):
        world.connect(bob, alice, 41000 + number)
        world.run(0.25)
    world.run(20)
    assert len(bob.named("connection.unsupported", "no-answer")) == 10
    assert len([data for _, data in bob.sent[before:] if data[0] == Type.INIT]) == len(HANDSHAKE_RETRIES)


def test_while_nothing_happens_little_is_said() -> None:
    """Keys are renewed, and both ask each other then what they still have; nobody announces anything."""
    world, alice, bob, (socket,) = protected()
    before = {host.name: (len(host.messages), len(host.notices)) for host in (alice, bob)}
    sent = len(world.recorded)
    world.run(3600)
    for host in (alice, bob):
        messages_before, notices_before = before[host.name]
        kinds = {type(m) for m, _, _ in host.messages[messages_before:]}
        assert kinds <= {messages.Hello, messages.Sync, messages.SyncReply}
        assert host.notices[notices_before:] == []
    assert len(world.recorded) - sent < 3600 / REKEY_AFTER_TIME * 12
    assert bob.protects(socket)


@pytest.mark.parametrize("known", [False, True])
def test_how_a_contact_ended_is_told(known: bool) -> None:
    """Of those that we called, not of those who called us."""
    world, alice, bob = pair()
    if known:
        world.connect(bob, alice, 40000)
        world.run(3)
    ended, others = told(bob, commands.Contacted), told(alice, commands.Contacted)
    there, nobody, here = SockAddr(ip("192.0.2.1"), PORT), SockAddr(ip("192.0.2.99"), PORT), ip("198.51.100.2")
    key = alice.static.public if known else None
    for to in (there, nobody):
        bob.engine.meet(world.now, to, here, key)
        bob.run()
        world.run(15)
    assert ended == [
        commands.Contacted(there, alice.static.public, None, here),
        commands.Contacted(nobody, key, "no-answer", here),
    ]
    assert others == []


def test_what_is_said_to_where_a_datagram_came_from_is_short() -> None:
    """Nobody has proven to be there: the answer is to be no longer than the question."""
    world, alice, bob, _ = protected()
    world.nat("203.0.113.50", bob)
    bob.engine.announce(world.now)
    bob.run()
    world.run(3)
    said = [(m.addresses, to, source) for m, to, source in alice.messages if isinstance(m, messages.Hello)]
    assert {addresses for addresses, to, _ in said if to is None} == {tuple(alice.addresses)}
    assert {(addresses, source) for addresses, to, source in said if to is not None} == {((), alice.addresses[0])}


# -- ending ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("moved", [False, True])
def test_release(moved: bool) -> None:
    """A moved connection stays rewritten, since it would die without; it is not protected any more."""
    world, alice, bob, (socket,) = protected()
    if moved:
        bob.move(NEW)
        world.run(2)
    bob.engine.release(world.now, bob.connection(socket).cid)
    bob.run()
    world.run(5)
    assert bob.connection(socket).reason == "released"
    assert alice.connection(socket.mirrored).reason == "released-there"
    assert bob.connection(socket).state is alice.connection(socket.mirrored).state is State.RELEASED
    assert not bob.named("connection.refused")
    assert not alice.named("connection.refused")
    assert (socket in bob.flows) == moved
    assert (socket.mirrored in alice.flows) == moved
    decide(alice, "approve", bob)
    world.run(120)
    assert bob.connection(socket).state is State.RELEASED
    bob.closed(socket)
    alice.closed(socket.mirrored)
    world.run(120)
    for host in (alice, bob):
        assert not host.flows
        assert not host.stored


@pytest.mark.parametrize("moved", [False, True])
@pytest.mark.parametrize("again", ["bob", "alice"])
def test_what_was_released_is_taken_up_only_when_somebody_asks(moved: bool, again: str) -> None:
    """Not by a restart of either daemon, nor by being found again; by `protect`, on either host."""
    world, alice, bob, (socket,) = protected()
    if moved:
        bob.move(NEW)
        world.run(2)
    bob.engine.release(world.now, bob.connection(socket).cid)
    bob.run()
    world.run(2)
    for host in (alice, bob):
        host.crash()
        host.start()
        world.run(60)
    bob.engine.found(world.now, socket)
    bob.run()
    world.run(60)
    assert bob.connection(socket).state is State.RELEASED
    assert alice.connection(socket.mirrored).state is State.RELEASED
    asking, here = (bob, socket) if again == "bob" else (alice, socket.mirrored)
    asking.engine.found(world.now, here, asked=True)
    asking.run()
    world.run(10)
    assert bob.protects(socket)
    assert alice.protects(socket.mirrored)
    bob.move(LATER)
    world.run(3)
    assert agree(alice, bob, socket.mirrored)


def test_forgetting_a_peer_releases_its_connections() -> None:
    world, alice, bob, (socket,) = protected()
    bob.engine.policy_changed(world.now, ASK)
    decide(bob, "forget", alice)
    world.run(5)
    for host, here, reason in ((bob, socket, "peer-forgotten"), (alice, socket.mirrored, "released-there")):
        assert (host.connection(here).state, host.connection(here).reason) == (State.RELEASED, reason)
        assert host.named("connection.released", reason)
        assert not host.named("connection.refused")
    world.run(600)
    assert bob.connection(socket).state is State.RELEASED


@pytest.mark.parametrize("who", ["alice", "bob"])
@pytest.mark.parametrize("how", ["forget", "release", "release and restart"])
def test_what_has_moved_is_heard_on_every_way_until_its_socket_is_gone(who: str, how: str) -> None:
    world, alice, bob, socket = differing()
    letting_go, end = (alice, socket.mirrored) if who == "alice" else (bob, socket)
    if how == "forget":
        decide(letting_go, "forget", bob if letting_go is alice else alice)
    else:
        letting_go.engine.release(world.now, letting_go.connection(end).cid)
        letting_go.run()
    world.run(3)
    if how == "release and restart":
        letting_go.crash()
        letting_go.start()
    world.run(300)
    for host, here in ((alice, socket.mirrored), (bob, socket)):
        assert host.connection(here).state is State.RELEASED
        assert here in host.carried
        assert host.flows[here] == here
    assert bob.carried[socket].sending == alice.carried[socket.mirrored].receiving
    for host, here in ((alice, socket.mirrored), (bob, socket)):
        host.closed(here)
    world.run(constants.LINGER + 1)
    for host in (alice, bob):
        assert (host.flows, host.carried, host.stored) == ({}, {}, {})


@pytest.mark.parametrize("tokens", [True, False])
@pytest.mark.parametrize("who", ["alice", "bob"])
@pytest.mark.parametrize("pause", [0.05, 3.0])  # the end that was told is told again meanwhile, or no more
def test_a_key_that_is_approved_again_takes_up_its_own_connections(who: str, tokens: bool, pause: float) -> None:
    world, alice, bob, socket = differing()
    forgetting, other = (alice, bob) if who == "alice" else (bob, alice)
    world.link.strips = not tokens  # then sequence numbers prove it
    decide(forgetting, "forget", other)
    forgetting.engine.policy_changed(world.now, dataclasses.replace(forgetting.policy, first_contact="ask"))
    world.run(pause)
    forgetting.engine.meet(world.now, SockAddr(other.addresses[0], 7747))
    forgetting.run()
    world.run(pause)
    decide(forgetting, "approve", other)
    world.run(10)
    assert bob.protects(socket)
    assert alice.protects(socket.mirrored)
    assert not alice.named("connection.refused", "claimed-by-another")
    bob.move(LATER)
    world.run(3)
    assert agree(alice, bob, socket.mirrored)
    world.link.strips = False
    world.run(30)
    world.settled()


def test_a_moved_connection_that_its_peer_has_lost_at_the_other_end_is_taken_on_anew() -> None:
    """The peer forgets us, and we never hear of it: it claims what is protected here."""
    world, alice, bob, socket = differing()
    world.link.cut = True
    decide(alice, "forget", bob)
    world.link.cut = False
    alice.engine.policy_changed(world.now, dataclasses.replace(alice.policy, first_contact="ask"))
    world.run(1)
    assert bob.protects(socket)
    alice.engine.meet(world.now, SockAddr(bob.addresses[0], 7747))
    alice.run()
    world.run(3)
    decide(alice, "approve", bob)
    world.run(20)
    assert alice.protects(socket.mirrored)
    assert bob.protects(socket)
    bob.move(LATER)
    world.run(3)
    assert agree(alice, bob, socket.mirrored)


def test_kill_closes_on_both_hosts() -> None:
    world, alice, bob, (socket,) = protected()
    bob.engine.kill(world.now, bob.connection(socket).cid)
    bob.run()
    world.run(5)
    assert socket not in bob.sockets
    assert socket.mirrored not in alice.sockets
    assert alice.named("connection.closed", "killed-there")
    world.run(120)
    assert not bob.flows
    assert not alice.flows
    assert not bob.stored
    assert not alice.stored


def test_a_peer_cannot_kill_what_is_not_protected_any_more() -> None:
    world, alice, bob, (socket,) = protected()
    cid = alice.connection(socket.mirrored).cid
    alice.engine.release(world.now, cid)
    alice.run()
    world.run(2)
    bob.engine.host.send(world.now, alice.static.public, messages.EndOf(99, messages.End.KILL, (cid,)))
    bob.run()
    world.run(2)
    assert socket.mirrored in alice.sockets


def test_rewriting_ends_also_when_the_other_end_never_says_that_it_has_closed() -> None:
    """The rules of a moved connection outlive its socket by a little more than a minute, and not for ever."""
    world, alice, bob, (socket,) = protected()
    bob.move(NEW)
    world.run(2)
    alice.closed(socket.mirrored)
    world.run(constants.LINGER - 1)
    assert socket.mirrored in alice.flows
    world.run(10)
    assert not alice.flows
    assert not len(alice.engine.table)


@pytest.mark.parametrize("before", [0.5, 1.5])
def test_rewriting_ends_also_when_the_other_end_closes_at_the_last_moment(before: float) -> None:
    world, alice, bob, (socket,) = protected()
    bob.move(NEW)
    world.run(2)
    alice.closed(socket.mirrored)
    world.run(constants.LINGER - before)
    bob.closed(socket)
    world.run(120)
    assert not alice.flows
    assert not bob.flows


def test_a_new_connection_with_the_tuple_of_a_moved_one_that_has_ended() -> None:
    """The old one's rewriting must not touch it."""
    world, alice, bob, (socket,) = protected()
    bob.move(NEW)
    world.run(2)
    bob.closed(socket)
    alice.closed(socket.mirrored)
    bob.move("198.51.100.2")
    again, mirrored = world.connect(bob, alice, socket.local.port)
    assert again == socket
    world.run(1.5)
    assert bob.flows.get(socket, socket) == socket
    world.run(200)
    assert agree(alice, bob, mirrored)
    assert bob.flows[socket] == socket


# -- restarts ----------------------------------------------------------------------------------------------------------


def test_a_restart_takes_up_what_never_moved() -> None:
    world, alice, bob, (socket,) = protected()
    bob.crash()
    bob.start()
    assert bob.protects(socket)
    world.run(5)
    assert len(bob.named("move.started", "not-confirmed")) == 1
    assert bob.connection(socket).moves == 0, "telling the peer where we are is no move"
    assert not bob.named("path.changed")
    bob.move(NEW)
    world.run(2)
    assert agree(alice, bob, socket.mirrored)
    assert bob.connection(socket).moves == 1


def test_a_flow_of_an_earlier_run_is_not_another_connections_after_a_restart() -> None:
    world, alice, bob, (socket,) = protected()
    bob.crash()
    bob.start()
    offered = bob.connection(socket).receiving
    assert offered is not None
    random, again = bob.engine.host.rng, [offered.flow.to_bytes(4), bytes(4)]  # 0 stands for no flow
    bob.engine.host.rng = lambda count: again.pop(0) if count == 4 and again else random(count)
    second, _ = world.connect(bob, alice, 40001)
    world.run(5)
    assert not again
    fresh = bob.connection(second).receiving
    assert fresh is not None
    assert fresh.flow not in (0, offered.flow)


def test_a_peer_that_has_lost_its_store_takes_an_unmoved_connection_on_again() -> None:
    world, alice, bob, (socket,) = protected()
    alice.crash()
    alice.stored.clear()
    alice.start()
    world.run(150)
    assert agree(alice, bob, socket.mirrored)
    assert bob.protects(socket)


def test_a_peer_that_has_lost_a_moved_connection_is_told_and_leaves_it() -> None:
    world, alice, bob, (socket,) = protected()
    bob.move(NEW)
    world.run(2)
    alice.crash()
    alice.stored.clear()
    alice.start()
    world.run(150)
    assert bob.connection(socket).reason == "lost-there"
    assert bob.flows[socket].local.host == ip(NEW)


@pytest.mark.parametrize("lost", ["connection", "epochs"])
def test_an_announcement_that_the_peer_can_never_apply_is_not_repeated(lost: str) -> None:
    """The peer has no such connection, or (this host's state comes from a backup) knows newer announcements of it."""
    world, alice, bob, _ = protected()
    bob.move(NEW)
    world.run(2)
    if lost == "connection":
        alice.crash()
        alice.stored.clear()
        alice.start()
    else:
        bob.engine.host.epoch -= 1000
    reason = {"connection": "no-connection-there", "epochs": "stale-there"}[lost]
    bob.move(LATER)
    while not (refused := bob.named("redirect.refused", reason)):
        world.run(0.05)
    epoch = refused[0].details["epoch"]
    if lost == "connection":
        assert {n.address for n in alice.named("redirect.refused", "no-connection")} == {ip(LATER)}
    said = len(bob.messages)
    world.run(60)
    later = [m for m, _, _ in bob.messages[said:]]
    assert [m for m in later if isinstance(m, messages.Acm) and m.epoch == epoch] == []


def test_after_an_outage_that_their_keys_have_not_outlived_idle_hosts_agree_on_new_ones() -> None:
    """They have nothing to announce, and nothing has been lost yet."""
    world, alice, bob, (socket,) = protected()
    world.link.cut = True
    world.run(400)
    peers = alice.engine.peers[bob.static.public], bob.engine.peers[alice.static.public]
    assert [peer.session(world.now) for peer in peers] == [None, None]
    world.link.cut = False
    world.run(constants.REACH_PAUSE + 10)
    assert None not in [peer.session(world.now) for peer in peers]
    assert bob.protects(socket)


def test_no_connection_no_more_attempts_to_reach_the_peer() -> None:
    world, alice, bob, (socket,) = protected()
    world.link.cut = True
    world.run(200)
    for host, end in ((alice, socket.mirrored), (bob, socket)):
        host.closed(end)
    world.run(60)
    before = len(world.recorded)
    world.run(1000)
    assert len(world.recorded) == before


# -- kernels -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("who", ["alice", "bob"])
def test_a_kernel_that_refuses_for_a_while(who: str) -> None:
    world, alice, bob, (socket,) = protected()
    host = alice if who == "alice" else bob
    host.kernel_error = "no memory"
    bob.move(NEW)
    world.run(10)
    assert alice.flows[socket.mirrored] == socket.mirrored
    assert host.named("redirect.refused", "kernel")
    host.kernel_error = None
    world.run(40)
    assert agree(alice, bob, socket.mirrored)
    assert bob.flows[socket].local.host == ip(NEW)


@pytest.mark.parametrize("who", ["alice", "bob"])
def test_a_kernel_that_refuses_while_the_next_move_is_under_way(who: str) -> None:
    for delay in (0.0, 0.03, 0.2):
        for gap in (0.01, 0.05, 0.1, 0.3):
            world, alice, bob, (socket,) = protected()
            host = alice if who == "alice" else bob
            host.kernel_delay = delay
            host.kernel_error = "busy"
            bob.move(NEW)
            world.run(gap)
            bob.move(LATER)
            world.run(gap)
            host.kernel_error = None
            world.run(60)
            assert agree(alice, bob, socket.mirrored)
            assert bob.flows[socket].local.host == ip(LATER)


def test_a_kernel_that_refuses_for_hours_is_no_storm() -> None:
    world, alice, bob, _ = protected()
    alice.kernel_error = "no memory"
    bob.move(NEW, LATER)
    world.run(60)
    before = len(world.recorded)
    world.run(3600)
    assert len(world.recorded) - before < 3600, "less than one a second"


@pytest.mark.parametrize("refusing", [0.1, 0.2, 0.3, 0.5])
def test_a_challenge_repeated_while_the_kernel_is_about_to_refuse(refusing: float) -> None:
    """What was asked for twice, and refused once, is not done."""
    world, alice, bob, (socket,) = protected()
    bob.kernel_delay, bob.kernel_error = 0.15, "busy"
    bob.move(NEW)
    world.run(refusing)
    bob.kernel_error = None
    world.run(40)
    assert agree(alice, bob, socket.mirrored)
    assert bob.flows[socket].local.host == ip(NEW)


@pytest.mark.parametrize("seconds", [0.15, 0.7, 2.0])
def test_slow_kernels_are_asked_once(seconds: float) -> None:
    """ACMs and challenges are repeated meanwhile."""
    world, alice, bob, (socket,) = protected()
    alice.kernel_delay = bob.kernel_delay = seconds
    before = len(alice.transactions), len(bob.transactions)
    bob.move(NEW)
    world.run(3 * seconds + 1)
    assert agree(alice, bob, socket.mirrored)
    assert bob.connection(socket).confirmed == ip(NEW)
    assert (len(alice.transactions) - before[0], len(bob.transactions) - before[1]) == (1, 1)
    assert not alice.named("redirect.refused")


def test_a_response_that_comes_twice_has_the_kernel_asked_once() -> None:
    world, alice, bob, _ = protected()
    alice.kernel_delay = 0.3
    before = len(alice.transactions)
    bob.move(NEW)
    while alice.busy_until is None:
        world.run(0.01)
    for message, to, source in list(bob.messages):
        if isinstance(message, messages.PathResponse):
            bob.engine.host.send(world.now, alice.static.public, message, to, source)
    bob.run()
    world.run(2)
    assert alice.transactions[before:] == [(1, 1)]


def test_a_kernel_that_refuses_the_guard_leaves_nothing_stored() -> None:
    world, alice, bob = pair()
    alice.kernel_error = "no space"
    socket, mirrored = world.connect(bob, alice, 40000)
    world.run(10)
    assert alice.connection(mirrored).reason == "kernel: no space"
    assert bob.connection(socket).reason == "kernel-refused-there"
    assert not alice.stored
    assert not bob.flows


def test_our_own_kernel_refuses_the_guard_when_the_peer_has_it() -> None:
    world, alice, bob = pair()
    bob.kernel_error = "no space"
    socket, mirrored = world.connect(bob, alice, 40000)
    world.run(10)
    assert bob.connection(socket).reason == "kernel: no space"
    assert alice.connection(mirrored).reason == "released-there"
    assert not bob.stored
    assert [c.state for c in alice.stored.values()] == [State.RELEASED]
    for host in (alice, bob):
        assert not host.flows


def test_a_claim_that_comes_late_does_not_take_on_again_what_was_released() -> None:
    world, alice, bob = pair()
    socket, mirrored = world.connect(bob, alice, 40000)
    claims: list[bytes] = []
    send = bob.engine.endpoint.send

    def sending(now: float, peer: object, message: messages.Message, *path: object) -> bool:
        if isinstance(message, messages.Protect) and not claims:
            claims.append(messages.encode(message))
        return send(now, peer, message, *path)  # type: ignore[arg-type]

    bob.engine.endpoint.send = sending  # type: ignore[method-assign, assignment]
    world.run(5)
    assert bob.protects(socket)
    bob.engine.release(world.now, bob.connection(socket).cid)
    bob.run()
    world.run(2)
    bob.engine.host.send(world.now, alice.static.public, messages.decode(claims[0]))
    bob.run()
    world.run(5)
    assert alice.connection(mirrored).reason == "released-there"
    assert not alice.flows


def says_ok(host: Host) -> bool:
    message = host.messages[-1][0]
    return isinstance(message, messages.Protected) and any(v.status is messages.Status.OK for v in message.verdicts)


def test_a_move_while_the_answer_to_a_claim_is_under_way() -> None:
    """The peer acknowledges the move of what it has; the one that it takes on right after is announced once more."""
    for late in (0.02, 0.06, 0.15, 0.25):
        world, alice, bob, (socket,) = protected()
        second, mirrored = world.connect(bob, alice, 40001)
        world.tap = lambda source, to, data: source.host != ip("192.0.2.1") or not says_ok(alice)  # noqa: B023
        world.run(1.2)
        assert alice.protects(mirrored)
        assert not bob.protects(second)
        alice.move("192.0.2.77", "192.0.2.1")
        world.run(0.1)
        alice.move("192.0.2.77")
        world.run(late)
        world.tap = None
        world.run(200)
        assert agree(alice, bob, socket.mirrored)
        assert bob.protects(second) == alice.protects(mirrored)
        assert not bob.protects(second) or agree(alice, bob, mirrored)


def test_what_a_peer_does_not_say_of_the_connections_of_a_move_is_announced_once_more() -> None:
    """It has acknowledged one of two; which, the moved host asks in vain.  Meanwhile it gets to know the other one."""
    world, alice, bob, _ = protected()
    second, mirrored = world.connect(bob, alice, 40001)

    def asks() -> bool:
        return isinstance(alice.messages[-1][0], messages.Sync)

    ours = ip("192.0.2.1"), ip("192.0.2.77")
    world.tap = lambda source, to, data: source.host not in ours or not (says_ok(alice) or asks())
    world.run(1.2)
    assert alice.protects(mirrored)
    alice.move("192.0.2.77")
    world.run(0.3)
    assert alice.named("move.finished")
    assert not any(isinstance(m, messages.SyncReply) for m, _, _ in bob.messages)
    world.tap = lambda source, to, data: source.host not in ours or not asks()
    world.run(sum(constants.REQUEST_RETRIES) - 1)
    assert bob.protects(second)
    assert not agree(alice, bob, mirrored)
    world.run(2)
    assert agree(alice, bob, mirrored)


def test_a_peer_that_has_more_or_less_than_was_moved_is_no_storm() -> None:
    """One end has closed a connection, and the other has not heard of it, or a person has released it there."""
    for who in (0, 1):
        world, alice, bob, sockets = protected(3)
        ends = (alice, sockets[0].mirrored), (bob, sockets[0])
        world.tap = lambda source, to, data: len(data) not in (32 + 15, 32 + 5)  # END of one, DONE
        ends[who][0].closed(ends[who][1])
        bob.move(NEW)
        world.run(60)
        start = len(world.recorded)
        world.run(600)
        assert len(world.recorded) - start < 300
        world.tap = None
        world.run(200)
        for socket in sockets[1:]:
            assert agree(alice, bob, socket.mirrored)
            assert bob.protects(socket)


# -- moves with several addresses --------------------------------------------------------------------------------------


def test_an_acknowledgement_for_another_candidate_decides() -> None:
    """Two new addresses; the answer for the first is lost, the second answers the next challenge.  Both ends agree on
    what the stationary host has applied."""
    for seed in range(40):
        world = World(seed=seed)
        alice, bob = world.host("alice", "192.0.2.1"), world.host("bob", "198.51.100.2")
        socket, mirrored = world.connect(bob, alice, 40000)
        world.run(5)
        world.link.loss, world.link.jitter = 0.5, 1.5
        bob.move(NEW, LATER)
        world.run(20)
        world.link.loss, world.link.jitter = 0.0, 0.0
        world.run(60)
        assert agree(alice, bob, mirrored)
        assert bob.protects(socket)


def test_back_to_where_the_peer_never_stopped_sending() -> None:
    """A move is rewritten here, its confirmation is lost, and the old address is back."""
    world, alice, bob, (socket,) = protected()
    world.tap = lambda source, to, data: to.host != ip("192.0.2.1") or source.host != ip(NEW) or len(data) > 60
    bob.move(NEW)
    world.run(0.3)
    assert bob.flows[socket].local.host == ip(NEW)
    assert alice.flows[socket.mirrored] == socket.mirrored
    bob.move("198.51.100.2")
    world.tap = None
    world.run(5)
    assert agree(alice, bob, socket.mirrored)
    assert bob.flows[socket] == socket


def test_recovery_does_not_wait_for_the_next_try_when_the_address_comes_back() -> None:
    """Tries are half a minute apart after a long time without answer; an address that returns is announced at once."""
    world, alice, bob, (socket,) = protected()
    world.link.cut = True
    bob.move(NEW)
    world.run(300)
    bob.move()
    world.run(1)
    world.link.cut = False
    bob.move(NEW)
    world.run(0.5)
    assert agree(alice, bob, socket.mirrored)


def test_announce() -> None:
    world, alice, bob, (socket,) = protected()
    assert bob.engine.announce(world.now) == 1
    bob.run()
    world.run(1)
    assert bob.named("move.started", "announced")
    assert bob.named("move.finished")
    assert bob.connection(socket).moves == 0
    assert alice.engine.peers[bob.static.public].state is PeerState.APPROVED


@pytest.mark.parametrize("hours", [0.01, 10])
def test_a_host_that_wakes_announces_itself_at_once(hours: float) -> None:
    world, alice, bob, (socket,) = protected()
    world.link.cut = True  # asleep: nothing of it is heard, and to it nothing gets through
    bob.up = False
    world.run(hours * 3600)
    world.link.cut = False
    bob.up = True
    bob.engine.woke(world.now)
    bob.run()
    world.run(2)
    assert bob.named("move.started", "woke")
    assert bob.named("move.finished")
    assert bob.protects(socket)
    assert alice.protects(socket.mirrored)
    assert not bob.named("connection.suspended")

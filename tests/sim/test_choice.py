"""Two hosts that move, with the tunnel: how each connection's packets travel."""

from __future__ import annotations

import dataclasses

import pytest

from redirectctl.flows.connection import Path
from redirectctl.flows.constants import PLAIN_FORGIVEN, PLAIN_PAUSES, PLAIN_RETRIES
from redirectctl.flows.policy import Policy
from redirectctl.flows.proofs import in_place
from redirectctl.wire import message as messages
from redirectctl.wire.addr import FourTuple, SockAddr
from tests.sim.host import Host
from tests.sim.network import ip
from tests.sim.world import World

AUTO = Policy(prefer="auto", first_contact="accept-new", long_lived_after=1.0)


class Tokens:
    """Whether tokens on plain packets get through."""

    def __init__(self, world: World) -> None:
        self._world = world

    @property
    def plain(self) -> bool:
        return not self._world.link.strips

    @plain.setter
    def plain(self, through: bool) -> None:
        self._world.link.strips = not through

    @property
    def sent(self) -> int:
        return len(self._world.segments)


def started(n: int = 1) -> tuple[World, Host, Host, list[FourTuple], Tokens]:
    world = World()
    alice = world.host("alice", "192.0.2.1", policy=AUTO)
    bob = world.host("bob", "198.51.100.2", policy=AUTO)
    sockets = [world.connect(bob, alice, 40000 + i)[0] for i in range(n)]
    world.run(5)
    tokens = Tokens(world)
    return world, alice, bob, sockets, tokens


def paths(host: Host) -> set[Path]:
    return {c.path for c in host.engine.table.movable()}


def stall(world: World, host: Host, socket: FourTuple, then: float = 0.0) -> None:
    """This connection retransmits in vain; then so many seconds pass."""
    host.engine.stalled(world.now, [socket])
    host.run()
    world.run(then)


def test_a_move_begins_in_the_tunnel_and_goes_on_plainly_when_that_is_proven() -> None:
    world, alice, bob, sockets, tokens = started(3)
    tokens.plain = False
    bob.move("203.0.113.9")
    world.run(0.15)
    assert paths(alice) == paths(bob) == {Path.TUNNEL}
    assert bob.named("move.finished")
    tokens.plain = True
    world.run(1)
    assert paths(alice) == paths(bob) == {Path.REWRITTEN}
    for socket in sockets:
        assert bob.flows[socket].local.host == ip("203.0.113.9")
        assert alice.flows[socket.mirrored] == bob.flows[socket].mirrored


def test_what_is_sent_before_the_peer_is_ready_waits_for_a_moment_only() -> None:
    """TCP would learn the wait as its round-trip time."""
    world, _, bob, (socket,), _ = started()
    world.tap = lambda source, to, data: source.host != ip("203.0.113.9") or paths(bob) != {Path.TUNNEL}
    bob.move("203.0.113.9")
    world.run(0.15)  # it is challenged, and what it sends then is lost
    assert paths(bob) == {Path.TUNNEL}
    assert bob.carried[socket].remote is None
    world.run(0.2)
    assert bob.carried[socket].remote == SockAddr(ip("192.0.2.1"), 7747)
    before = len(bob.kicked)
    world.tap = None
    world.run(2)
    assert bob.named("move.finished")
    assert (socket,) in bob.kicked[before:]  # what it sent in vain at the challenge


def test_where_plain_packets_do_not_get_through_the_tunnel_stays_and_few_tokens_are_sent() -> None:
    world, alice, bob, _, tokens = started(3)
    tokens.plain = False
    bob.move("203.0.113.9")
    world.run(3600)
    assert paths(alice) == paths(bob) == {Path.TUNNEL}
    assert tokens.sent < 200
    tokens.plain = True
    world.run(7300)
    assert paths(alice) == paths(bob) == {Path.REWRITTEN}


def test_where_sequence_numbers_are_changed_on_the_way_the_tunnel_stays() -> None:
    """Tokens arrive, and plain segments would be of no use to the other end's socket."""
    world, alice, bob, _, tokens = started(3)
    world.link.shift = 77
    bob.move("203.0.113.9")
    world.run(60)
    assert tokens.sent
    assert paths(alice) == paths(bob) == {Path.TUNNEL}
    assert not [n for host in (alice, bob) for n in host.named("path.changed") if n.details["path"] == "rewritten"]
    world.link.shift = 0
    bob.move("203.0.113.10")
    world.run(1)
    assert paths(alice) == paths(bob) == {Path.REWRITTEN}


def test_the_tokens_that_are_not_seen_are_few_before_the_way_is_left_alone() -> None:
    world, _, bob, _, tokens = started()
    tokens.plain = False
    bob.move("203.0.113.9")
    moved = world.now
    sent: list[float] = []
    while world.now < moved + 9:
        before = [s for s in world.segments if s.source.host == ip("203.0.113.9")]
        world.run(0.05)
        if len([s for s in world.segments if s.source.host == ip("203.0.113.9")]) > len(before):
            sent.append(world.now - moved)
    assert sent == pytest.approx([0.0, 0.2, 0.7, 1.7, 3.7, 7.7], abs=0.1)


def test_a_way_that_was_never_seen_to_carry_is_left_alone_for_longer_each_time() -> None:
    """The peer hears beforehand that tokens will come."""
    world, _, bob, _, tokens = started()
    tokens.plain = False
    bob.move("203.0.113.9")
    moved, said = world.now, len(bob.messages)
    tried: list[float] = []
    while len(tried) < 5:
        world.run(0.05)
        tried += [world.now - moved for m, _, _ in bob.messages[said:] if m == messages.Seen(())]
        said = len(bob.messages)
    expected = [sum(PLAIN_RETRIES) + PLAIN_PAUSES[0]]
    for pause in PLAIN_PAUSES[1:5]:
        expected.append(expected[-1] + PLAIN_RETRIES[0] + sum(PLAIN_RETRIES) + pause)
    assert tried == pytest.approx(expected, abs=0.2)


def test_a_stall_leads_back_into_the_tunnel_and_the_way_is_tried_again_later() -> None:
    world, alice, bob, (socket,), tokens = started()
    bob.move("203.0.113.9")
    world.run(2)
    assert paths(bob) == {Path.REWRITTEN}
    tokens.plain = False
    stall(world, bob, socket, 1)
    assert paths(bob) == {Path.TUNNEL}
    assert paths(alice) == {Path.TUNNEL}  # told by the announcement
    tokens.plain = True
    world.run(1)
    assert paths(bob) == {Path.TUNNEL}
    world.run(10)
    assert paths(bob) == paths(alice) == {Path.REWRITTEN}


def test_a_way_that_stalls_each_time_is_left_alone_for_longer_each_time() -> None:
    world, _, bob, (socket,), _ = started()
    bob.move("203.0.113.9")
    world.run(2)
    plain = 0
    for _ in range(7200):
        plain += paths(bob) == {Path.REWRITTEN}
        if paths(bob) == {Path.REWRITTEN}:
            stall(world, bob, socket)
        world.run(0.5)
    assert plain < 10


def test_one_peer_to_which_no_plain_way_leads_keeps_no_other_in_the_tunnel() -> None:
    world, alice, bob, (to_alice,), _ = started()
    carol = world.host("carol", "192.0.2.77", policy=AUTO)
    to_carol, _ = world.connect(bob, carol, 41000)
    world.run(5)
    for address, blocked in (("203.0.113.9", alice), ("203.0.113.10", carol)):
        world.tap_segment = lambda source, to, blocked=blocked: to.host not in blocked.addresses  # type: ignore[misc]
        bob.move(address)
        world.run(2)
        there = {alice: bob.connection(to_alice).path, carol: bob.connection(to_carol).path}
        assert there.pop(blocked) is Path.TUNNEL
        assert list(there.values()) == [Path.REWRITTEN]


def test_an_outage_is_no_fault_of_the_plain_way() -> None:
    """The one that stays sees nothing but retransmissions, and its announcement is not answered either."""
    world, alice, bob, (socket,), _ = started()
    for number in range(5):
        for address, path in (("203.0.113.9", Path.REWRITTEN), ("198.51.100.2", Path.ORIGINAL)):
            bob.move()
            world.run(1)
            stall(world, alice, socket.mirrored, 3)
            bob.move(address)
            world.run(2)
            assert paths(alice) == paths(bob) == {path}, number


def test_an_outage_at_the_same_address_is_none_either() -> None:
    world, alice, bob, (socket,), _ = started()
    bob.move("203.0.113.9")
    world.run(2)
    for number in range(10):
        world.link.cut = True
        world.run(1)
        for host, end in ((alice, socket.mirrored), (bob, socket)):
            stall(world, host, end)
        world.run(30)
        world.link.cut = False
        world.run(20)
        assert paths(alice) == paths(bob) == {Path.REWRITTEN}, number


def closed(world: World, bob: Host, tokens: Tokens) -> None:
    """Plain packets have not got through for so long that they are tried once in some minutes, when they do again."""
    tokens.plain = False
    bob.move("203.0.113.9")
    world.run(300)
    tokens.plain = True
    world.run(2)
    assert paths(bob) == {Path.TUNNEL}


def test_what_is_not_seen_at_first_is_tried_again_soon() -> None:
    world, alice, bob, _, tokens = started()
    tokens.plain = False
    bob.move("203.0.113.9")
    world.run(9)
    assert paths(alice) == paths(bob) == {Path.TUNNEL}
    tokens.plain = True
    world.run(5)
    assert paths(alice) == paths(bob) == {Path.REWRITTEN}


def test_a_way_that_failed_is_tried_again_when_its_host_comes_back_to_it() -> None:
    world, alice, bob, _, tokens = started()
    closed(world, bob, tokens)
    bob.move("203.0.113.10")
    world.run(2)
    bob.move("203.0.113.9")
    world.run(2)
    assert paths(alice) == paths(bob) == {Path.REWRITTEN}


def test_a_way_that_failed_is_tried_again_when_there_is_traffic_after_a_silence() -> None:
    world, alice, bob, (socket,), tokens = started()
    closed(world, bob, tokens)
    for host, end in ((alice, socket.mirrored), (bob, socket)):
        host.engine.heard(world.now, [end])
        host.run()
    world.run(1)
    assert paths(alice) == paths(bob) == {Path.REWRITTEN}


def test_a_way_that_failed_is_tried_again_when_the_network_changes() -> None:
    world, alice, bob, _, tokens = started()
    closed(world, bob, tokens)
    for host in (alice, bob):
        host.addresses.append(ip(f"192.168.7.{len(host.name)}"))
        host.network_changed()
    world.run(1)
    assert paths(alice) == paths(bob) == {Path.REWRITTEN}


def test_traffic_is_looked_at_where_a_way_has_failed_and_not_while_it_is_tried() -> None:
    world, alice, bob, _, tokens = started()
    closed(world, bob, tokens)
    tokens.plain = False
    assert bob.engine.questioned() == {alice.static.public}
    before = tokens.sent
    while bob.engine.questioned():
        world.run(0.05)
    assert tokens.sent == before, "the peer is told before the first token"
    for _ in range(int(sum(PLAIN_RETRIES[:-1]) / 0.05)):
        assert not bob.engine.questioned()
        world.run(0.05)
    assert tokens.sent > before
    world.run(PLAIN_RETRIES[-1] + PLAIN_RETRIES[0])
    assert bob.engine.questioned() == {alice.static.public}


def test_neither_traffic_nor_changes_of_the_network_make_many_tokens() -> None:
    world, _, bob, (socket,), tokens = started()
    tokens.plain = False
    bob.move("203.0.113.9")
    world.run(300)
    before = tokens.sent
    for second in range(600):
        bob.engine.heard(world.now, [socket])
        bob.run()
        world.run(1)
        if second % 2:
            bob.addresses.append(ip("192.168.7.7"))
        else:
            bob.addresses.remove(ip("192.168.7.7")) if second else None
        bob.network_changed()
    assert tokens.sent - before < 600


def half_proven() -> tuple[World, Host, Host, FourTuple]:
    """Plain packets of Alice have reached Bob where he is now; of his own nobody knows."""
    world, alice, bob, (socket,), _ = started()
    world.link.strips_from = frozenset({ip("203.0.113.9")})
    bob.move("203.0.113.9")
    world.run(1)
    assert (paths(alice), paths(bob)) == ({Path.REWRITTEN}, {Path.TUNNEL})
    return world, alice, bob, socket


def test_what_stalls_in_the_tunnel_is_sent_plainly_if_no_daemon_reads_it_there() -> None:
    world, alice, bob, socket = half_proven()
    alice.crash()
    for _ in range(3):  # a stall alone says nothing about the daemon there
        assert paths(bob) == {Path.TUNNEL}
        stall(world, bob, socket, 1.1)
    assert paths(bob) == {Path.REWRITTEN}
    assert bob.kicked[-1] == (socket,)
    for _ in range(4):  # TCP may not have tried for some seconds
        assert paths(bob) == {Path.REWRITTEN}
        stall(world, bob, socket, 1.1)
    assert paths(bob) == {Path.TUNNEL}  # no better
    world.run(1.1)
    assert paths(bob) == {Path.TUNNEL}
    stall(world, bob, socket)
    assert paths(bob) == {Path.TUNNEL}  # not again in the same silence
    world.run(2)
    assert bob.named("connection.suspended", "peer-silent")
    assert paths(bob) == {Path.REWRITTEN}  # to ask alice's kernel
    alice.start()
    world.link.strips_from = frozenset()
    world.run(130)
    assert paths(alice) == paths(bob) == {Path.REWRITTEN}


def test_where_nothing_plain_has_come_from_the_peer_it_stays_in_the_tunnel() -> None:
    """Its tuple may be that of somebody else's connection, behind the same NAT."""
    world, alice, bob, (socket,), tokens = started()
    tokens.plain = False
    bob.move("203.0.113.9")
    world.run(1)
    alice.crash()
    for _ in range(6):
        stall(world, bob, socket, 1.1)
        assert paths(bob) == {Path.TUNNEL}
        assert bob.flows[socket] == socket


def test_the_answer_of_a_daemon_leads_back_into_the_tunnel() -> None:
    world, alice, bob, socket = half_proven()
    alice.crash()
    for _ in range(3):
        stall(world, bob, socket, 1.1)
    assert paths(bob) == {Path.REWRITTEN}
    alice.start()
    world.run(10)
    assert paths(bob) == {Path.TUNNEL}


def test_one_that_stalls_while_its_host_is_announced_does_not_hinder_the_others() -> None:
    world, alice, bob, sockets, _ = started(3)
    bob.move("203.0.113.9")
    world.run(2)
    alice.crash()
    bob.move("203.0.113.10")
    world.run(1.5)
    started_before = len(bob.named("move.started"))
    stall(world, bob, sockets[0], 2)
    assert len(bob.named("move.started")) == started_before
    alice.start()
    world.run(20)
    assert paths(alice) == paths(bob) == {Path.REWRITTEN}
    for socket in sockets:
        assert bob.flows[socket].local.host == ip("203.0.113.10")


def test_after_a_kernel_has_refused_a_move_tokens_count_on_the_tuple_of_before() -> None:
    world, alice, bob, (socket,), _ = started()
    bob.move("203.0.113.9")
    world.run(3)
    before = bob.flows[socket].mirrored
    assert alice.connection(socket.mirrored).wire == before
    alice.kernel_delay, alice.kernel_error = 0.5, "no memory"
    bob.move("203.0.113.10")
    while alice.busy_until is None:
        world.run(0.01)
    world.link.cut = True
    refused = alice.connection(socket.mirrored).wire
    assert refused.remote.host == ip("203.0.113.10")
    for _ in range(20):  # while the kernel is at it, and afterwards
        alice.engine.token(world.now, refused, b"too soon", (0, 0))
        alice.run()
        world.run(0.1)
    alice.engine.token(world.now, before, b"8 random", (0, 0))
    alice.run()
    world.run(0.1)
    seen = [m.tokens for m, _, _ in alice.messages if isinstance(m, messages.Seen)]
    assert seen[-1] == (in_place(b"8 random", (0, 0)),)


def test_one_that_has_ended_meanwhile_keeps_no_other_that_stalls_from_the_tunnel() -> None:
    world, _, bob, sockets, tokens = started(2)
    bob.move("203.0.113.9")
    world.run(3)
    assert paths(bob) == {Path.REWRITTEN}
    tokens.plain = False
    bob.closed(sockets[0])
    bob.engine.stalled(world.now, sockets)
    bob.run()
    world.run(0.5)
    assert bob.connection(sockets[1]).path is Path.TUNNEL


def test_moving_back_ends_on_the_original_path() -> None:
    world, alice, bob, (socket,), _ = started()
    bob.move("203.0.113.9")
    world.run(2)
    bob.move("198.51.100.2")
    world.run(2)
    assert paths(alice) == paths(bob) == {Path.ORIGINAL}
    assert bob.flows[socket] == socket


def test_a_daemon_that_begins_again_leaves_what_never_moved_where_it_is() -> None:
    """It says where it is; nothing has been lost there."""
    world, alice, bob, _, _ = started()
    bob.crash()
    bob.start()
    for _ in range(100):
        assert paths(alice) == paths(bob) == {Path.ORIGINAL}
        world.run(0.01)
    assert bob.named("move.finished")


def test_from_ipv4_to_ipv6_and_back() -> None:
    world, alice, bob, (socket,), _ = started()
    alice.addresses.append(ip("2001:db8::1"))
    alice.network_changed()
    bob.engine.peers[alice.static.public].addresses = (ip("2001:db8::1"),)
    bob.move("2001:db8:9::7")
    world.run(2)
    assert paths(alice) == paths(bob) == {Path.TUNNEL}
    assert alice.connection(socket.mirrored).remote_now == ip("2001:db8:9::7")
    bob.move("198.51.100.2")
    world.run(2)
    assert paths(alice) == paths(bob) == {Path.ORIGINAL}


def test_both_move_one_after_the_other() -> None:
    world, alice, bob, (socket,), _ = started()
    bob.move("203.0.113.9")
    world.run(0.3)
    alice.move("192.0.2.77")
    world.run(8)
    assert paths(alice) == paths(bob) == {Path.REWRITTEN}
    assert bob.flows[socket].remote.host == ip("192.0.2.77")
    assert alice.flows[socket.mirrored] == bob.flows[socket].mirrored


def test_the_configuration_leads_into_the_tunnel_and_out_of_it() -> None:
    world, alice, bob, _, _ = started()
    bob.move("203.0.113.9")
    world.run(2)
    for prefer, path in (("tunnel", Path.TUNNEL), ("auto", Path.REWRITTEN), ("tunnel", Path.TUNNEL)):
        for host in (alice, bob):
            host.engine.policy_changed(world.now, dataclasses.replace(AUTO, prefer=prefer))
            host.run()
        world.run(2)
        assert paths(alice) == paths(bob) == {path}


def test_with_integrity_a_connection_goes_into_the_tunnel_when_it_is_protected_and_stays_there() -> None:
    world = World()
    strict = dataclasses.replace(AUTO, integrity=True)
    alice = world.host("alice", "192.0.2.1", policy=strict)
    bob = world.host("bob", "198.51.100.2", policy=strict)
    world.connect(bob, alice, 40000)
    world.run(2)
    assert paths(alice) == paths(bob) == {Path.TUNNEL}
    assert not any(c.flow.integrity for host in (alice, bob) for c in host.engine.table)  # some may be under way yet
    world.run(3)
    bob.move("203.0.113.9")
    world.run(60)
    for host in (alice, bob):
        assert paths(host) == {Path.TUNNEL}
        assert [c.flow.integrity for c in host.engine.table] == [True]
        assert all(carried.integrity for carried in host.carried.values())


def test_what_goes_into_the_tunnel_without_a_move_waits_for_nobody() -> None:
    world = World()
    strict = dataclasses.replace(AUTO, integrity=True)
    alice = world.host("alice", "192.0.2.1", policy=strict)
    bob = world.host("bob", "198.51.100.2", policy=strict)
    world.connect(bob, alice, 40000)
    while paths(bob) != {Path.TUNNEL}:
        world.run(0.01)
    assert [carried.remote for carried in bob.carried.values()] == [SockAddr(ip("192.0.2.1"), 7747)]


def test_the_other_family_is_not_taken_although_its_challenges_come_first() -> None:
    world, alice, bob, (socket,), _ = started()
    alice.addresses.append(ip("2001:db8::1"))
    alice.network_changed()
    bob.engine.peers[alice.static.public].addresses = (ip("192.0.2.1"), ip("2001:db8::1"))
    world.link.cut = True
    bob.move("203.0.113.9", "2001:db8:9::7")
    world.run(3)  # both families are announced by now
    world.link.cut = False
    bob.addresses.reverse()
    world.run(8)
    assert paths(alice) == paths(bob) == {Path.REWRITTEN}
    assert alice.connection(socket.mirrored).remote_now == ip("203.0.113.9")


def test_an_address_of_the_own_family_that_comes_a_moment_later_is_taken() -> None:
    world, alice, bob, (socket,), _ = started()
    alice.addresses.append(ip("2001:db8::1"))
    alice.network_changed()
    bob.engine.peers[alice.static.public].addresses = (ip("192.0.2.1"), ip("2001:db8::1"))
    bob.move("2001:db8:9::7")
    world.run(2)
    assert bob.connection(socket).local_now == ip("2001:db8:9::7")
    bob.move("2001:db8:9::7", "203.0.113.9")
    world.run(8)
    assert paths(alice) == paths(bob) == {Path.REWRITTEN}
    assert alice.connection(socket.mirrored).remote_now == ip("203.0.113.9")


def test_what_a_peer_has_not_proven_is_received_by_the_tunnel_only() -> None:
    world, alice, bob, (socket,), tokens = started()
    tokens.plain = False
    bob.move("203.0.113.9")
    world.run(1)
    assert alice.flows[socket.mirrored] == socket.mirrored
    tokens.plain = True
    world.run(5)
    assert alice.flows[socket.mirrored].remote.host == ip("203.0.113.9")
    tokens.plain = False
    bob.move("203.0.113.10")  # what was proven there says nothing of here
    world.run(1)
    assert alice.flows[socket.mirrored] == socket.mirrored


def test_a_tuple_of_another_connection_is_not_taken_for_a_peers() -> None:
    """A neighbour behind the NAT that the peer says is its own address has a connection with the same ports."""
    world, alice, bob, (one, two), _ = started(2)
    new = ip("203.0.113.9")
    theirs = FourTuple(one.remote, SockAddr(new, one.local.port))
    alice.sockets.add(theirs)
    bob.move(str(new))
    world.run(3)
    assert alice.flows[one.mirrored] == one.mirrored
    assert alice.named("redirect.refused", "kernel")
    assert bob.connection(one).path is Path.TUNNEL  # which goes on
    assert bob.connection(two).path is Path.REWRITTEN  # not taken along
    assert alice.flows[two.mirrored].remote == SockAddr(new, two.local.port)
    tried = len(alice.named("redirect.refused", "kernel"))
    world.run(60)
    assert len(alice.named("redirect.refused", "kernel")) - tried < 20
    alice.sockets.discard(theirs)
    world.run(600)
    assert bob.connection(one).path is Path.REWRITTEN
    assert alice.connection(one.mirrored).path is Path.REWRITTEN


def test_of_many_tuples_that_are_proven_at_once_one_that_is_taken_keeps_no_other_from_being_received() -> None:
    """Tokens come on all of them while the kernel is busy with the first: the others are asked for together."""
    world, alice, bob, sockets, tokens = started(4)
    tokens.plain = False
    new = ip("203.0.113.9")
    bob.move(str(new))
    world.run(1)
    alice.sockets.add(FourTuple(sockets[2].remote, SockAddr(new, sockets[2].local.port)))
    alice.kernel_delay = 0.1
    for socket in sockets:
        arrived = FourTuple(socket.remote, SockAddr(new, socket.local.port))
        alice.engine.token(world.now, arrived, b"8 random", (0, 0))
        alice.run()
    world.run(1)
    assert alice.flows[sockets[2].mirrored] == sockets[2].mirrored
    for socket in (sockets[0], sockets[1], sockets[3]):
        assert alice.flows[socket.mirrored].remote.host == new


def test_of_many_that_are_to_leave_the_tunnel_at_once_one_whose_tuple_is_taken_keeps_no_other() -> None:
    """A connection of this host itself has it.  Nothing plain has come from the peer yet."""
    world, _, bob, sockets, _ = started(6)
    world.link.strips_from = frozenset({ip("192.0.2.1")})
    new = ip("203.0.113.9")
    bob.move(str(new))
    waiting = sockets
    while len(waiting) > 4:
        world.run(0.005)
        waiting = [s for s in sockets if bob.connection(s).path is not Path.REWRITTEN]
    taken = waiting[:2]
    bob.sockets |= {FourTuple(SockAddr(new, s.local.port), s.remote) for s in taken}
    world.run(3)
    for socket in sockets:
        assert bob.connection(socket).path is (Path.TUNNEL if socket in taken else Path.REWRITTEN)


def test_failures_of_a_way_that_has_carried_for_long_since_are_forgotten() -> None:
    world, _, bob, (socket,), _ = started()
    bob.move("203.0.113.9")
    world.run(2)
    for _ in range(4):  # each time it is left alone for longer
        stall(world, bob, socket)
        while paths(bob) != {Path.REWRITTEN}:
            world.run(1)
    for silence, at_once in ((60, False), (PLAIN_FORGIVEN, True)):
        world.run(silence)
        stall(world, bob, socket, 1)
        assert paths(bob) == {Path.TUNNEL}
        world.run(PLAIN_PAUSES[0] + 1)
        assert (paths(bob) == {Path.REWRITTEN}) is at_once
        while paths(bob) != {Path.REWRITTEN}:
            world.run(1)


def test_each_connection_proves_its_own_tuple() -> None:
    """A NAT changes the port of one: the others are not taken for it."""
    world, alice, bob, sockets, _ = started(80)
    new = ip("203.0.113.9")
    changed = {sockets[0], sockets[50]}
    # What the network does to these: they arrive with another port, and so on no connection.
    world.tap_segment = lambda *ends: {SockAddr(new, s.local.port) for s in changed}.isdisjoint(ends)
    bob.move(str(new))
    world.run(20)
    for socket in sockets:
        expected = Path.TUNNEL if socket in changed else Path.REWRITTEN
        assert bob.connection(socket).path is expected
        assert (alice.flows[socket.mirrored] == socket.mirrored) == (socket in changed)


def test_a_token_that_is_seen_twice_stands_for_its_own_connection_only() -> None:
    """The peer says so again of one that has left the tunnel already; another one is still to be proven."""
    world, alice, bob, sockets, _ = started(3)
    late = sockets[2]
    world.tap_segment = lambda *ends: all(end.port != late.local.port for end in ends)
    bob.move("203.0.113.9")
    world.run(2)
    assert [bob.connection(s).path for s in sockets] == [Path.REWRITTEN, Path.REWRITTEN, Path.TUNNEL]
    (trial,) = bob.engine.choice._trials.values()
    trial.tokens[b"once more"[:8]] = bob.connection(sockets[0]).cid
    alice.engine.host.send(world.now, bob.static.public, messages.Seen((b"once more"[:8],)))
    alice.run()
    world.run(1)
    world.tap_segment = None
    world.run(60)
    assert bob.connection(late).path is Path.REWRITTEN


def test_a_daemon_that_ends_takes_nothing_out_of_the_tunnel_that_is_not_proven() -> None:
    world, alice, bob, (socket,), tokens = started()
    tokens.plain = False
    bob.move("203.0.113.9")
    world.run(1)
    assert alice.engine.choice.unread_from_now() == []
    _, _, bob, socket = half_proven()
    assert [flow.wire for _, flow in bob.engine.choice.unread_from_now()] == [bob.connection(socket).wire]


def test_what_was_proven_is_so_after_a_restart() -> None:
    _, _, bob, socket = half_proven()
    bob.crash()
    bob.start()
    assert bob.flows[socket].local.host == ip("203.0.113.9")

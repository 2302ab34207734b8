"""Two hosts and a rendezvous: both move at once, or stand behind NATs; the rendezvous dies, or lies.

alice serves, bob called; rita is the rendezvous, and where two are needed, ruth is the other.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from redirectctl.flows import constants as limits
from redirectctl.flows.connection import Path
from redirectctl.flows.policy import Policy
from redirectctl.flows.rendezvous.client import Standing
from redirectctl.flows.rendezvous.places import DNS
from redirectctl.proto.constants import SECRET_RACE
from redirectctl.wire import datagram
from redirectctl.wire import meeting as wire
from redirectctl.wire.addr import FourTuple, SockAddr
from redirectctl.wire.message import Acm
from tests.sim.host import Host
from tests.sim.network import PORT, Link, ip
from tests.sim.world import World

ALICE, BOB, RITA, RUTH = "192.0.2.1", "198.51.100.2", "203.0.113.200", "203.0.113.201"
TUNNEL = Policy(first_contact="accept-new", long_lived_after=1.0, prefer="tunnel")
SERVING = replace(TUNNEL, serve=True)


class Trio:
    """alice and bob with a protected connection, and a rendezvous or two where both are registered."""

    def __init__(self, link: Link | None = None, *, second: bool = False, seed: int = 5) -> None:
        self.world = World(seed=seed, link=link or Link())
        self.alice = self.world.host("alice", ALICE, policy=TUNNEL)
        self.bob = self.world.host("bob", BOB, policy=TUNNEL)
        self.rita = self.world.host("rita", RITA, policy=SERVING)
        self.servers = [self.rita]
        if second:
            self.servers.append(self.world.host("ruth", RUTH, policy=SERVING))
        for host in self.ends:
            host.meets_at(*self.servers)
        self.socket, self.mirrored = self.world.connect(self.bob, self.alice, 40000)
        self.world.run(5)
        for host in self.ends:
            assert [s.standing for s in host.engine.rendezvous.servers] == [Standing.REGISTERED] * len(self.servers)

    @property
    def ends(self) -> tuple[Host, Host]:
        return self.alice, self.bob

    def met(self) -> bool:
        """Each end sends to where the other is, and the other knows."""
        for host, other, socket in ((self.alice, self.bob, self.mirrored), (self.bob, self.alice, self.socket)):
            c = host.connection(socket)
            if c.local_now not in host.addresses or c.remote_now not in other.addresses:
                return False
            if c.confirmed != c.local_now:
                return False
        return True

    def relayed(self) -> bool:
        """Each end sends to a rendezvous, which relays it to the other end."""
        a, b = self.alice.connection(self.mirrored), self.bob.connection(self.socket)
        server = next((s for s in self.servers if s.addresses[0] == a.remote_now == b.remote_now), None)
        if server is None or not a.tunnel or not b.tunnel or a.sending is None or b.sending is None:
            return False
        routes = {r.source: set(r.routes) for r in server.relaying.values() if r.source is not None}
        flows = [flow for some in routes.values() for flow in some]
        return set(flows) >= {a.sending.flow, b.sending.flow}


@pytest.mark.parametrize("killed", [["alice"], ["bob"], ["alice", "bob"]], ids="+".join)
def test_both_move_at_once_while_they_have_different_secrets(killed: list[str]) -> None:
    """One was killed in the middle of a first contact; now there is no session, and each is where the other does not
    know it: the rendezvous must bring them together all the same."""
    trio = Trio()
    trio.world.run(SECRET_RACE)
    trio.alice.stored_peers[trio.bob.static.public].secret = b"f" * 32
    trio.alice.engine.peers[trio.bob.static.public].secret = b"f" * 32
    hosts = [host for host in trio.ends if host.name in killed]
    for host in (*hosts, trio.rita):  # the rendezvous too: it remembers what was registered before
        host.crash()
    trio.alice.move("192.0.2.10")
    trio.bob.move("198.51.100.10")
    trio.rita.start()
    for host in hosts:
        host.start()
        host.meets_at(*trio.servers)
    trio.world.run(5)
    assert trio.met()
    alice, bob = (trio.alice.engine.peers[trio.bob.static.public], trio.bob.engine.peers[trio.alice.static.public])
    assert alice.secret == bob.secret


@pytest.mark.parametrize("loss", [0.0, 0.2])
def test_both_move_at_once(loss: float) -> None:
    trio = Trio()
    trio.world.link.loss = loss
    for number in range(10, 20):
        trio.alice.move(f"192.0.2.{number}")
        trio.bob.move(f"198.51.100.{number}")
        trio.world.run(30 if loss else 1)
        assert trio.met(), f"move {number}"
    assert trio.alice.connection(trio.mirrored).path.value == "tunnel"


def test_the_peer_is_reached_directly_after_it_was_by_way_of_the_rendezvous() -> None:
    """Of one host's announcement the challenge comes by way of the rendezvous; only directly does its answer arrive.
    Both must go the same way then: a rendezvous relays for none of two if only one asks."""
    trio = Trio()
    direct = True
    trio.world.tap = lambda source, to, data: (trio.rita.addresses[0] in (source.host, to.host)) is not direct
    trio.world.run(1)
    direct = False
    trio.bob.move("198.51.100.10")
    while trio.bob.connection(trio.socket).outer_remote != SockAddr(trio.rita.addresses[0], PORT):
        trio.world.run(0.01)
    direct = True
    while not trio.bob.named("move.finished"):
        trio.world.run(0.01)
    assert trio.met()


def test_without_a_rendezvous_both_are_lost() -> None:
    trio = Trio()
    for host in trio.ends:
        host.meets_at()
    trio.alice.move("192.0.2.10")
    trio.bob.move("198.51.100.10")
    trio.world.run(300)
    assert not trio.met()


@pytest.mark.parametrize("seconds", [60, 1000])
def test_the_rendezvous_is_dead_while_they_move_and_comes_back(seconds: int) -> None:
    trio = Trio()
    trio.rita.crash()
    trio.world.run(30)
    trio.alice.move("192.0.2.10")
    trio.bob.move("198.51.100.10")
    trio.world.run(seconds)
    assert not trio.met()
    assert trio.alice.named("rendezvous.lost", "no-answer")
    trio.rita.start()
    trio.world.run(15)
    assert trio.met()
    assert len(trio.alice.named("rendezvous.reached")) == 2


@pytest.mark.parametrize("seconds", [60, 1000])
def test_relayed_hosts_lose_the_rendezvous_for_longer_than_keys_last(seconds: int) -> None:
    trio = relayed_trio()
    trio.rita.crash()
    trio.world.run(seconds)
    trio.rita.start()
    trio.world.run(20)
    assert trio.relayed()


def test_the_rendezvous_restarts_between_two_moves() -> None:
    trio = Trio()
    trio.rita.crash()
    trio.rita.start()
    trio.alice.move("192.0.2.10")
    trio.bob.move("198.51.100.10")
    trio.world.run(5)
    assert trio.met()


def test_one_of_two_is_dead() -> None:
    trio = Trio(second=True)
    trio.rita.crash()
    trio.alice.move("192.0.2.10")
    trio.bob.move("198.51.100.10")
    trio.world.run(2)
    assert trio.met()


def test_both_move_behind_nats_that_can_be_punched() -> None:
    trio = Trio()
    trio.world.nat("192.0.2.100", trio.alice, filters=True)
    trio.world.nat("198.51.100.100", trio.bob, filters=True)
    trio.alice.move("10.0.1.2")
    trio.bob.move("10.0.2.2")
    trio.world.run(5)
    a, b = trio.alice.connection(trio.mirrored), trio.bob.connection(trio.socket)
    assert (a.remote_now, b.remote_now) == (ip("198.51.100.100"), ip("192.0.2.100"))
    assert not trio.rita.relaying.values() or not any(r.routes for r in trio.rita.relaying.values())


def relayed_trio(**options: bool) -> Trio:
    """Both have moved behind NATs that cannot be punched."""
    trio = Trio(**options)  # type: ignore[arg-type]
    trio.world.nat("192.0.2.100", trio.alice, symmetric=True)
    trio.world.nat("198.51.100.100", trio.bob, symmetric=True)
    trio.alice.move("10.0.1.2")
    trio.bob.move("10.0.2.2")
    trio.world.run(5)
    assert trio.relayed()
    return trio


def test_both_behind_nats_that_cannot_be_punched_are_relayed() -> None:
    trio = relayed_trio()
    for host in trio.ends:
        assert host.named("path.changed", "relayed")
    assert trio.bob.connection(trio.socket).on_wire(PORT).remote == SockAddr(ip(RITA), PORT)
    trio.world.run(600)
    assert trio.relayed(), "it goes on for as long as they need it"
    trio.bob.move("10.0.2.3")
    trio.world.run(5)
    assert trio.relayed(), "one moves behind its NAT"


def test_a_peer_that_is_reached_by_relay_is_not_stored_as_being_there() -> None:
    trio = relayed_trio()
    trio.world.run(200)
    assert trio.alice.engine.host.by_way_of(
        trio.bob.static.public, trio.alice.engine.peers[trio.bob.static.public].remote
    )
    for host, other in (trio.ends, trio.ends[::-1]):
        host.crash()
        host.start()
        trio.world.run(90)
        assert trio.relayed(), f"{host.name} restarts"
        assert not host.named("peer.key_changed")
        assert not other.named("peer.key_changed")


def test_the_relay_restarts() -> None:
    trio = relayed_trio()
    trio.rita.crash()
    trio.rita.start()
    trio.world.run(25)
    assert trio.relayed()


def test_another_relay_takes_over() -> None:
    trio = relayed_trio(second=True)
    used = trio.alice.connection(trio.mirrored).remote_now
    dead = next(s for s in trio.servers if s.addresses == [used])
    dead.crash()
    trio.world.run(3)
    for host, socket in ((trio.alice, trio.mirrored), (trio.bob, trio.socket)):
        host.engine.stalled(trio.world.now, [socket])
        host.run()
    trio.world.run(30)
    assert trio.relayed()
    assert trio.alice.connection(trio.mirrored).remote_now != used


def test_a_relayed_connection_goes_directly_when_that_is_possible() -> None:
    trio = relayed_trio()
    trio.bob.nat = None
    trio.bob.move("198.51.100.30")
    trio.world.run(5)
    a, b = trio.alice.connection(trio.mirrored), trio.bob.connection(trio.socket)
    assert (a.remote_now, b.remote_now) == (ip("198.51.100.30"), ip("192.0.2.100"))


def test_a_relayed_peer_that_is_found_elsewhere_has_a_moment_to_announce_itself_first() -> None:
    """Then the direct way is tried, and again soon: it did not wait for the next attempt, which is a minute later."""
    trio = relayed_trio()
    trio.world.run(100)
    trio.bob.move("10.0.2.3")
    before = len(trio.alice.messages)
    tries: list[float] = []
    moved = trio.world.now
    while trio.world.now < moved + 20:
        trio.world.run(0.1)
        tries += [trio.world.now - moved for m, _, _ in trio.alice.messages[before:] if isinstance(m, Acm)]
        before = len(trio.alice.messages)
    first = limits.DIRECT_SOON
    assert first <= tries[0] < first + 0.5
    again = first + limits.DIRECT_PAUSES[1]
    assert again <= min(t for t in tries if t > first + 5) < again + 0.5
    assert trio.relayed()


def test_a_relayed_connection_goes_directly_without_a_move() -> None:
    trio = Trio()
    trio.world.tap = lambda source, to, _: ip(RITA) in (source.host, to.host)  # firewalls
    trio.alice.move("192.0.2.10")
    trio.bob.move("198.51.100.10")
    trio.world.run(100)
    assert trio.relayed()
    trio.world.tap = None
    trio.world.run(70)
    assert trio.met()
    assert trio.bob.named("path.changed", "direct-again") or trio.alice.named("path.changed", "direct-again")


def test_a_person_approves_the_rendezvous_and_it_the_host() -> None:
    world = World()
    ask = replace(TUNNEL, first_contact="ask")
    bob, rita = world.host("bob", BOB, policy=ask), world.host("rita", RITA, policy=replace(ask, serve=True))
    bob.meets_at(rita)
    world.run(5)
    (server,) = bob.engine.rendezvous.servers
    assert server.standing is Standing.PENDING_HERE
    bob.engine.approve(world.now, rita.static.public)
    bob.run()
    world.run(5)
    assert server.standing is Standing.PENDING_THERE
    assert rita.engine.rendezvous_server.guests == 0
    rita.engine.approve(world.now, bob.static.public)
    rita.run()
    world.run(1)
    assert server.standing is Standing.REGISTERED
    assert rita.engine.rendezvous_server.guests == 1


def test_a_host_that_does_not_serve_says_so() -> None:
    world = World()
    bob, rita = world.host("bob", BOB), world.host("rita", RITA)
    bob.meets_at(rita)
    world.run(5)
    assert [s.standing for s in bob.engine.rendezvous.servers] == [Standing.NOT_SERVING]
    assert bob.named("rendezvous.lost", "not-serving")


def test_a_host_that_does_not_serve_is_asked_once_a_minute() -> None:
    world = World()
    bob, rita = world.host("bob", BOB), world.host("rita", RITA)
    bob.meets_at(rita)

    def asked(seconds: float) -> int:
        before = len(bob.messages)
        world.run(seconds)
        return sum(isinstance(m, wire.Register) for m, _, _ in bob.messages[before:])

    assert asked(5) > 0
    assert asked(50) == 0
    assert asked(10) == 1
    rita.engine.policy_changed(world.now, SERVING)
    rita.run()
    assert asked(61) > 0
    assert [s.standing for s in bob.engine.rendezvous.servers] == [Standing.REGISTERED]


@pytest.mark.parametrize("fits", [True, False])
def test_more_flows_than_the_rendezvous_relays_are_told_of(fits: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    trio = Trio()
    for port in range(41000, 41003):
        trio.world.connect(trio.bob, trio.alice, port)
    trio.world.run(5)
    monkeypatch.setattr(limits, "MAX_RELAYED", 4 if fits else 3)
    trio.world.nat("192.0.2.100", trio.alice, symmetric=True)
    trio.world.nat("198.51.100.100", trio.bob, symmetric=True)
    trio.alice.move("10.0.1.2")
    trio.bob.move("10.0.2.2")
    trio.world.run(5)
    for host in trio.ends:
        assert bool(host.named("redirect.refused", "relay-limit")) is not fits
        assert len(trio.rita.relaying[host.static.public].routes) == (4 if fits else 3)


@pytest.mark.parametrize("way", ["direct", "relayed"])
def test_hosts_that_stand_still_agree_on_keys_anew_once_the_rendezvous_is_back(
    way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After an outage that their keys have not outlived they have nothing to announce."""
    trio = Trio()
    nats = [
        trio.world.nat("192.0.2.100", trio.alice, filters=True, symmetric=way == "relayed"),
        trio.world.nat("198.51.100.100", trio.bob, filters=True, symmetric=way == "relayed"),
    ]
    trio.alice.move("10.0.1.2")
    trio.bob.move("10.0.2.2")
    trio.world.run(5)
    trio.world.link.cut = True
    trio.world.run(400)
    for nat in nats:
        nat.rebind()
    if way == "direct":
        monkeypatch.setattr(trio.rita.engine.rendezvous_server, "_forward", lambda *_: None)
    trio.world.link.cut = False
    while not all(host.engine.rendezvous.servers[0].usable for host in trio.ends):
        trio.world.run(0.1)
    trio.world.run(10)
    for host, other in (trio.ends, trio.ends[::-1]):
        assert host.engine.peers[other.static.public].session(trio.world.now) is not None


def test_a_connection_to_the_rendezvous_itself_is_not_its_guests() -> None:
    trio = relayed_trio()
    to_rita, _ = trio.world.connect(trio.bob, trio.rita, 41000)
    trio.world.run(10)
    c = trio.bob.connection(to_rita)
    assert (c.peer, c.movable) == (trio.rita.static.public, True)
    trio.bob.move("10.0.2.3")
    trio.world.run(10)
    assert trio.relayed()
    assert (c.outer_remote, c.confirmed) == (SockAddr(ip(RITA), PORT), ip("10.0.2.3"))
    bob, rita = trio.bob.engine.peers[trio.rita.static.public], trio.rita.engine.peers[trio.bob.static.public]
    assert bob.reflexive == rita.remote
    assert not trio.bob.named("peer.key_changed")


def with_rita(*, second: bool = False, rita: tuple[str, ...] = (RITA,)) -> tuple[World, Host, Host, FourTuple]:
    """bob has a protected connection with rita, at whom (by her last address) he is registered too."""
    world = World(seed=5)
    auto = replace(TUNNEL, prefer="auto")
    bob, server = world.host("bob", BOB, policy=auto), world.host("rita", *rita, policy=replace(auto, serve=True))
    servers = {"rita": (SockAddr(ip(rita[-1]), PORT),)}
    if second:
        ruth = world.host("ruth", RUTH, policy=replace(auto, serve=True))
        server.meets_at(ruth)
        servers["ruth"] = (SockAddr(ip(RUTH), PORT),)
    bob.servers = servers
    bob.engine.rendezvous_at(world.now, servers)
    bob.run()
    world.run(2)
    socket, _ = world.connect(bob, server, 41000)
    world.run(5)
    assert bob.connection(socket).peer == server.static.public
    assert bob.protects(socket)
    assert all(s.standing is Standing.REGISTERED for s in bob.engine.rendezvous.servers)
    return world, bob, server, socket


def test_a_connection_to_the_rendezvous_itself_leaves_an_address_that_does_not_carry() -> None:
    """It is not bound to the address from which this host has registered."""
    world, bob, _, socket = with_rita()
    bob.move(BOB, "203.0.113.9")
    world.run(1)
    world.tap = lambda source, to, _: ip(BOB) not in (source.host, to.host)
    bob.engine.stalled(world.now, [socket])
    bob.run()
    world.run(1)
    assert bob.connection(socket).local_now == ip("203.0.113.9")


def test_a_connection_to_the_rendezvous_itself_is_announced_as_often_as_others_without_a_path() -> None:
    world, bob, _, socket = with_rita()
    world.link.cut = True
    for _ in range(30):
        bob.engine.stalled(world.now, [socket])
        bob.run()
        world.run(0.5)
    assert bob.connection(socket).reason == "peer-silent"
    before = len(bob.messages)
    world.run(2)
    assert sum(isinstance(m, Acm) for m, _, _ in bob.messages[before:]) > 20


def test_a_connection_to_the_rendezvous_itself_travels_plainly_to_another_address_of_it() -> None:
    """Where it answers there it is, and nobody in its place."""
    world, bob, rita, socket = with_rita(rita=(RITA, "203.0.113.205"))
    world.tap = lambda source, to, _: ip(RITA) not in (source.host, to.host)
    bob.move("203.0.113.9")
    world.run(5)
    assert bob.flows[socket].remote.host == rita.flows[socket.mirrored].local.host == ip("203.0.113.205")
    assert {bob.connection(socket).path, rita.connection(socket.mirrored).path} == {Path.REWRITTEN}


def test_where_the_rendezvous_itself_sees_this_host_is_known_from_its_acknowledgement() -> None:
    """It says so in a HELLO too, but not twice within a moment."""
    world, bob, rita, _ = with_rita()
    for public, private in (("203.0.113.1", "10.0.0.2"), ("203.0.113.2", "10.0.0.3")):
        finished = len(bob.named("move.finished"))
        world.nat(public, bob)
        bob.move(private)
        while len(bob.named("move.finished")) == finished:
            world.run(0.01)
    seen = bob.engine.peers[rita.static.public].reflexive
    assert seen == rita.engine.peers[bob.static.public].remote
    assert seen is not None
    assert seen.host == ip("203.0.113.2")


def test_a_connection_to_one_rendezvous_that_another_has_relayed_goes_directly_when_that_is_possible() -> None:
    world, bob, rita, socket = with_rita(second=True)
    world.tap = lambda source, to, _: ip(RUTH) in (source.host, to.host)
    bob.move("203.0.113.9")
    world.run(15)
    assert bob.connection(socket).remote_now == ip(RUTH)
    world.tap = None
    world.run(70)
    assert bob.connection(socket).remote_now == ip(RITA)
    assert rita.connection(socket.mirrored).remote_now == ip("203.0.113.9")
    assert bob.named("path.changed", "direct-again")


def test_a_rendezvous_that_is_not_configured_any_more_is_left() -> None:
    trio = relayed_trio()
    peer = trio.bob.engine.peers[trio.rita.static.public]
    assert peer.keep
    trio.bob.meets_at()
    assert not peer.keep
    assert trio.bob.engine.endpoint.relays == {}
    trio.world.run(60)
    assert not trio.bob.named("peer.key_changed")


def test_nothing_is_held_for_those_who_have_left() -> None:
    trio = relayed_trio()
    for host in trio.ends:
        host.meets_at()
        host.crash()
    trio.world.run(limits.MEET_TIME + 1)
    rendezvous = trio.rita.engine.rendezvous_server
    assert (rendezvous.guests, rendezvous.relayed, rendezvous._pairs) == (0, 0, {})
    assert not any(r.routes for r in trio.rita.relaying.values())


def test_another_address_of_its_name_is_tried() -> None:
    trio = Trio()
    dead, alive = SockAddr(ip("203.0.113.250"), PORT), SockAddr(ip(RITA), PORT)
    trio.rita.crash()
    trio.world.run(60)
    for host in trio.ends:
        host.engine.rendezvous_at(trio.world.now, {"rita": (dead, alive)})
        host.run()
    trio.rita.start()
    trio.world.run(60)
    assert [server.at for server in trio.bob.engine.rendezvous.servers] == [alive]
    trio.alice.move("192.0.2.10")
    trio.bob.move("198.51.100.10")
    trio.world.run(2)
    assert trio.met()


@pytest.mark.parametrize("place", [0, 1, 2])
def test_each_address_of_its_name_has_its_turn(place: int) -> None:
    world = World()
    bob, rita = world.host("bob", BOB, policy=TUNNEL), world.host("rita", RITA, policy=SERVING)
    addresses = [SockAddr(ip("203.0.113.250"), PORT), SockAddr(ip("203.0.113.251"), PORT)]
    addresses.insert(place, alive := SockAddr(rita.addresses[0], PORT))
    bob.engine.rendezvous_at(world.now, {"rita": tuple(addresses)})
    bob.run()
    world.run(1 + place * limits.MEET_ELSEWHERE * limits.MEET_RETRIES[-1])
    (server,) = bob.engine.rendezvous.servers
    assert (server.at, server.standing) == (alive, Standing.REGISTERED)
    assert not bob.named("peer.key_changed")


def test_no_peer_is_sought_where_a_rendezvous_is_to_be_whose_key_is_not_known() -> None:
    """Whoever answers there is the rendezvous, not the peer: its key would be another one's."""
    world = World()
    alice, bob = world.host("alice", ALICE, policy=TUNNEL), world.host("bob", BOB, policy=TUNNEL)
    world.connect(bob, alice, 40000)
    world.run(5)
    bob.engine.rendezvous_at(world.now, {"rita": (SockAddr(ip(RITA), PORT),)})
    bob.run()
    alice.crash()
    bob.move("198.51.100.10")
    bob.engine.place_learnt(
        world.now, alice.static.public, DNS, [SockAddr(ip(RITA), PORT), SockAddr(ip(RUTH), PORT)], 300.0
    )
    bob.run()
    world.run(200)
    inits = [(to.host, datagram.decode(data).pattern) for to, data in bob.sent if data[0] == datagram.Type.INIT]  # type: ignore[union-attr]
    assert {pattern for host, pattern in inits if host == ip(RITA)} == {datagram.Pattern.XX}
    assert datagram.Pattern.IKPSK2 in {pattern for host, pattern in inits if host == ip(RUTH)}


def test_a_peer_is_asked_for_at_each_rendezvous() -> None:
    trio = Trio(second=True)
    before = len(trio.bob.messages)
    trio.bob.engine.seek(trio.world.now, trio.alice.static.public)
    trio.bob.run()
    asked = {to.host for m, to, _ in trio.bob.messages[before:] if isinstance(m, wire.Lookup) and to is not None}
    assert asked == {ip(RITA), ip(RUTH)}
    trio.world.run(1)
    told = {SockAddr(ip(ALICE), PORT)}
    assert set(trio.bob.engine.places.said(trio.alice.static.public, "rendezvous ")) == told


def test_the_rendezvous_knows_at_once_where_a_host_is_that_had_to_use_another_port() -> None:
    """That port was for the network where it was: it is closed in the new one, and no answer comes to it."""
    trio = Trio()
    trio.rita.crash()
    trio.world.run(60)
    trio.rita.start()
    trio.world.run(60)
    for host, address in ((trio.alice, "192.0.2.10"), (trio.bob, "198.51.100.10")):
        assert host.engine.endpoint.ports_in_use()
        host.move(address)
    trio.world.run(0.1)
    for host in trio.ends:
        assert [s.reflexive for s in host.engine.rendezvous.servers] == [SockAddr(host.addresses[0], PORT)]


def test_a_rendezvous_that_moves_is_found_by_its_name() -> None:
    trio = Trio()
    trio.rita.move("203.0.113.202")
    trio.world.run(60)
    for host in trio.ends:
        assert host.named("rendezvous.lost", "no-answer")
        host.engine.rendezvous_at(trio.world.now, {"rita": (SockAddr(ip("203.0.113.202"), PORT),)})
        host.run()
    trio.world.run(5)
    trio.alice.move("192.0.2.10")
    trio.bob.move("198.51.100.10")
    trio.world.run(2)
    assert trio.met()
    assert not trio.alice.named("peer.key_changed")


def test_another_key_at_the_rendezvous_is_loud() -> None:
    trio = Trio()
    trio.rita.crash()
    trio.rita.static = trio.world.host("other", "203.0.113.210").static
    trio.rita.start()
    trio.world.run(60)
    for host in trio.ends:
        assert host.named("peer.key_changed")
        assert host.named("rendezvous.lost", "key-changed") or host.named("rendezvous.lost", "no-answer")
        assert not host.engine.rendezvous.servers[0].usable
    assert trio.rita.engine.rendezvous_server.guests == 0


@pytest.mark.parametrize("changed", [False, True])
def test_a_rendezvous_that_a_person_has_forgotten_is_met_anew(changed: bool) -> None:
    """With whatever key it has now."""
    trio = Trio()
    before = trio.rita.static.public
    if changed:
        trio.rita.crash()
        trio.rita.static = trio.world.host("other", "203.0.113.210").static
        trio.rita.start()
        trio.world.run(60)
        assert not trio.bob.engine.rendezvous.servers[0].usable
    trio.bob.engine.forget(trio.world.now, before)
    trio.bob.run()
    trio.world.run(2)
    (server,) = trio.bob.engine.rendezvous.servers
    assert (server.key, server.standing) == (trio.rita.static.public, Standing.REGISTERED)
    assert (server.key == before) is not changed
    assert trio.rita.engine.rendezvous_server.guests >= 1


def test_a_host_with_many_peers_registers_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server with more peers than one REGISTER has room for."""
    monkeypatch.setattr(wire, "MAX_TAGS", 2)
    world = World()
    alice, rita = world.host("alice", ALICE, policy=TUNNEL), world.host("rita", RITA, policy=SERVING)
    alice.meets_at(rita)
    clients = [world.host(f"client{n}", f"198.51.100.{n}", policy=TUNNEL) for n in range(1, 6)]
    for number, client in enumerate(clients):
        client.meets_at(rita)
        world.connect(client, alice, 40000 + number)
    world.run(30)
    assert len(rita.engine.rendezvous_server._pairs) == len(clients)
    alice.move("192.0.2.10")
    clients[-1].move("198.51.100.200")
    clients[0].move("198.51.100.201")
    world.run(5)
    for number in (0, 4):
        (c,) = clients[number].engine.table
        assert (c.remote_now, c.confirmed) == (ip("192.0.2.10"), clients[number].addresses[0])

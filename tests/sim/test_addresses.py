"""An address is good while it carries: silence and hints lead to another, and back when it carries again."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_network
from typing import ClassVar

import pytest

from redirectctl.flows import constants
from redirectctl.flows.network import Interface, Network
from redirectctl.flows.policy import Policy
from redirectctl.flows.state import State
from redirectctl.wire.addr import IPAddress, SockAddr
from redirectctl.wire.message import Acm, PathProbe, PathProbed
from tests.sim.host import Host
from tests.sim.network import PORT, ip
from tests.sim.world import World

WIFI, ETHERNET, SERVER = "198.51.100.2", "203.0.113.9", "192.0.2.1"
SERVER6, WIFI6 = "2001:db8:a::1", "2001:db8:b::2"
AUTO = Policy(first_contact="accept-new", long_lived_after=1.0, prefer="auto")


class Scene:
    """bob, with one uplink at first, and a connection to alice; what comes from ``dead`` addresses gets lost."""

    def __init__(
        self, policy: Policy = AUTO, bob: tuple[str, ...] = (WIFI,), alice: tuple[str, ...] = (SERVER,)
    ) -> None:
        self.world = World(seed=3)
        self.alice: Host = self.world.host("alice", *alice, policy=AUTO)
        self.bob: Host = self.world.host("bob", *bob, policy=policy)
        self.dead: set[tuple[IPAddress, IPAddress] | IPAddress] = set()
        self.socket, self.mirrored = self.world.connect(self.bob, self.alice, 40000)
        self.world.run(5)
        self.world.tap = lambda source, to, data: not self.dead & {source.host, to.host, (source.host, to.host)}

    def types(self, seconds: float) -> None:
        """The program on bob writes, and daemon/stalls.py looks at what has come of it."""
        end = self.world.now + seconds
        while self.world.now < end:
            c = self.bob.connection(self.socket)
            lost = self.dead & {c.local_now, c.remote_now, (c.local_now, c.remote_now)}
            if c.state is State.PROTECTED:
                (self.bob.engine.stalled if lost else self.bob.engine.heard)(self.world.now, [self.socket])
                self.bob.run()
            self.world.run(0.5)

    def here(self) -> IPAddress:
        return self.bob.connection(self.socket).local_now

    def both_agree(self) -> bool:
        mine, theirs = self.bob.connection(self.socket), self.alice.connection(self.mirrored)
        return (mine.local_now, mine.remote_now) == (theirs.remote_now, theirs.local_now)


def test_silence_of_the_present_address_leads_to_another() -> None:
    scene = Scene(bob=(WIFI, ETHERNET))
    scene.dead = {ip(WIFI)}
    scene.types(3)
    assert scene.here() == ip(ETHERNET)
    assert scene.both_agree()
    assert scene.bob.connection(scene.socket).state is State.PROTECTED


def test_the_dead_one_is_not_announced_again() -> None:
    scene = Scene(bob=(WIFI, ETHERNET))
    scene.dead = {ip(WIFI)}
    scene.types(60)
    assert scene.here() == ip(ETHERNET)
    assert len(scene.bob.named("path.changed")) <= 4
    assert scene.bob.connection(scene.socket).state is State.PROTECTED


def test_those_that_say_nothing_follow() -> None:
    """One of two connections finds out that their address carries no more."""
    scene = Scene(bob=(WIFI, ETHERNET))
    quiet, _ = scene.world.connect(scene.bob, scene.alice, 40001)
    scene.world.run(5)
    scene.dead = {ip(WIFI)}
    scene.types(3)
    assert scene.here() == ip(ETHERNET)
    assert scene.bob.connection(quiet).local_now == ip(ETHERNET)
    assert scene.alice.connection(quiet.mirrored).remote_now == ip(ETHERNET)
    assert not scene.bob.named("connection.suspended")


def test_those_that_say_nothing_follow_by_the_other_family() -> None:
    scene = Scene(bob=(WIFI, WIFI6), alice=(SERVER, SERVER6))
    quiet, _ = scene.world.connect(scene.bob, scene.alice, 40001)
    scene.world.run(5)
    scene.dead = {ip(WIFI)}
    scene.types(3)
    assert scene.here() == scene.bob.connection(quiet).local_now == ip(WIFI6)


def led_away(scene: Scene) -> None:
    """alice notices first that nothing comes, and announces herself wherever bob may be."""
    scene.alice.engine.stalled(scene.world.now, [scene.mirrored])
    scene.alice.run()
    scene.world.run(0.5)
    assert scene.here() == ip(ETHERNET)
    assert scene.bob.named("move.received")
    assert not scene.bob.named("move.started")


def test_an_address_that_the_peer_has_led_away_from_is_asked_and_has_failed() -> None:
    scene = Scene(bob=(WIFI, ETHERNET))
    scene.dead = {ip(WIFI)}
    led_away(scene)
    key = scene.alice.static.public
    assert not scene.bob.engine.addresses.failed(key)  # not known yet
    scene.world.run(constants.PROOFS * constants.PROBE_TIME)
    (failed,) = scene.bob.engine.addresses.failed(key)
    assert failed == ip(WIFI)


def test_an_address_that_goes_while_it_is_asked_is_not_asked_any_more() -> None:
    scene = Scene(bob=(WIFI, ETHERNET))
    scene.dead = {ip(WIFI)}
    led_away(scene)
    scene.bob.move(ETHERNET)
    asked = sum(isinstance(m, PathProbe) for m, _, _ in scene.bob.messages)
    scene.bob.move(ETHERNET, WIFI)
    scene.world.run(constants.PROOFS * constants.PROBE_TIME)
    assert sum(isinstance(m, PathProbe) for m, _, _ in scene.bob.messages) == asked
    assert not scene.bob.engine.addresses.failed(scene.alice.static.public)


def test_an_address_that_is_gone_is_not_asked_whether_it_carries() -> None:
    """The peer leads away from it before it has heard our own announcement."""
    scene = Scene(bob=(WIFI, ETHERNET))
    endpoint = scene.bob.engine.endpoint
    send = endpoint.send
    endpoint.send = lambda now, peer, message, *path: isinstance(message, Acm) or send(now, peer, message, *path)  # type: ignore[method-assign, misc, assignment]
    scene.bob.move(ETHERNET)
    scene.alice.engine.stalled(scene.world.now, [scene.mirrored])
    scene.alice.run()
    scene.world.run(5)
    assert scene.bob.named("move.received")
    assert scene.here() == ip(ETHERNET)
    assert not any(isinstance(m, PathProbe) for m, _, _ in scene.bob.messages)
    assert not scene.bob.engine.addresses.failed(scene.alice.static.public)


def test_not_more_addresses_are_asked_at_a_time_than_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two peers lead away from an address: what the first of them noticed makes room for the second."""
    monkeypatch.setattr(constants, "MAX_FAILURES", 1)
    scene = Scene(bob=(WIFI, ETHERNET))
    carol = scene.world.host("carol", "192.0.2.3", policy=AUTO)
    with_carol, _ = scene.world.connect(scene.bob, carol, 40001)
    scene.world.run(5)
    scene.dead = {ip(WIFI)}
    for host, socket in ((scene.alice, scene.mirrored), (carol, with_carol.mirrored)):
        host.engine.stalled(scene.world.now, [socket])
        host.run()
        scene.world.run(0.5)
    scene.world.run(constants.PROOFS * constants.PROBE_TIME)
    asked = [to for m, to, _ in scene.bob.messages if isinstance(m, PathProbe)]
    assert [to.host for to in asked if to is not None] == [ip(SERVER), *[ip("192.0.2.3")] * constants.PROOFS]


def test_an_address_that_is_asked_already_is_not_asked_anew_when_more_is_led_away_from_it() -> None:
    scene = Scene(bob=(WIFI, ETHERNET))
    quiet, mirrored = scene.world.connect(scene.bob, scene.alice, 40001)
    scene.world.run(5)
    scene.dead = {ip(WIFI)}
    led_away(scene)
    assert scene.bob.connection(quiet).local_now == ip(WIFI)
    scene.alice.engine.announce(scene.world.now)
    scene.alice.run()
    scene.world.run(0.5)
    assert scene.alice.connection(mirrored).remote_now == ip(ETHERNET)
    scene.world.run(constants.PROOFS * constants.PROBE_TIME)
    assert sum(isinstance(m, PathProbe) for m, _, _ in scene.bob.messages) == constants.PROOFS
    assert set(scene.bob.engine.addresses.failed(scene.alice.static.public)) == {ip(WIFI)}


def test_not_more_failures_are_remembered_than_there_is_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest is forgotten."""
    monkeypatch.setattr(constants, "MAX_FAILURES", 1)
    scene = Scene(bob=(WIFI, ETHERNET))
    carol = scene.world.host("carol", "192.0.2.3", policy=AUTO)
    with_carol, _ = scene.world.connect(scene.bob, carol, 40001)
    scene.world.run(5)
    scene.dead = {ip(WIFI)}
    for socket in (scene.socket, with_carol):
        scene.bob.engine.stalled(scene.world.now, [socket])
        scene.bob.run()
        scene.world.run(1)
        assert scene.bob.connection(socket).local_now == ip(ETHERNET)
    failed = scene.bob.engine.addresses.failed
    assert not failed(scene.alice.static.public)
    assert set(failed(carol.static.public)) == {ip(WIFI)}


def test_an_address_that_cannot_be_asked_again_has_failed_again() -> None:
    """The peer has been silent for longer than keys last."""
    scene = Scene(bob=(WIFI, ETHERNET))
    scene.dead = {ip(WIFI)}
    scene.types(5)
    scene.bob.move(ETHERNET, WIFI)
    scene.bob.move(WIFI, ETHERNET)  # the kernel prefers it
    scene.world.link.cut = True
    scene.world.run(300)
    (failure,) = scene.bob.engine.addresses.failed(scene.alice.static.public).values()
    assert failure.times > 3
    assert failure.until > scene.world.now


def test_one_that_answers_has_not_failed() -> None:
    """The peer noticed an outage that was over when it announced itself; the other address answered first."""
    scene = Scene(bob=(WIFI, ETHERNET))
    scene.dead = {ip(WIFI)}
    scene.alice.engine.stalled(scene.world.now, [scene.mirrored])
    scene.alice.run()
    while scene.here() != ip(ETHERNET):
        scene.world.run(0.01)
    scene.dead = set()
    scene.world.run(2 * constants.PROOFS * constants.PROBE_TIME)
    assert scene.here() == ip(ETHERNET)
    assert not scene.bob.engine.addresses.failed(scene.alice.static.public)


def test_one_that_has_carried_again_is_not_told_of_any_more() -> None:
    scene = Scene(bob=(WIFI, ETHERNET))
    scene.dead = {ip(WIFI)}
    scene.types(5)
    key = scene.alice.static.public
    assert scene.bob.engine.addresses.failed(key)
    scene.bob.move(ETHERNET, WIFI)
    scene.bob.move(WIFI, ETHERNET)
    scene.dead = set()
    scene.types(120)
    assert scene.here() == ip(WIFI)
    assert not scene.bob.engine.addresses.failed(key)


def test_back_to_the_better_one_when_it_carries_again() -> None:
    scene = Scene(bob=(WIFI, ETHERNET))
    scene.dead = {ip(WIFI)}
    scene.types(5)
    scene.bob.move(ETHERNET, WIFI)  # the kernel has noticed too
    scene.bob.move(WIFI, ETHERNET)  # and prefers it again, too early
    scene.types(20)
    assert scene.here() == ip(ETHERNET)
    scene.dead = set()
    scene.types(120)
    assert scene.here() == ip(WIFI)
    assert scene.both_agree()


def test_a_better_address_has_to_answer_some_times_before_it_is_taken_again() -> None:
    scene = Scene(bob=(WIFI, ETHERNET))
    scene.dead = {ip(WIFI)}
    scene.types(5)
    scene.bob.move(ETHERNET, WIFI)
    scene.bob.move(WIFI, ETHERNET)
    scene.types(1)
    scene.dead = set()
    answered = len(scene.alice.messages)
    while scene.here() != ip(WIFI):
        scene.types(0.5)
    answers = [(to, source) for m, to, source in scene.alice.messages[answered:] if isinstance(m, PathProbed)]
    assert answers == [(SockAddr(ip(WIFI), PORT), ip(SERVER))] * constants.PROOFS


def test_an_address_that_fails_again_and_again_is_asked_ever_later() -> None:
    scene = Scene(bob=(WIFI, ETHERNET))
    scene.bob.move(ETHERNET, WIFI)
    scene.world.run(1)
    scene.bob.move(WIFI, ETHERNET)
    moves = []
    for _ in range(8):
        scene.dead = {ip(WIFI)}
        scene.types(5)
        began = scene.world.now
        scene.dead = set()
        while scene.here() != ip(WIFI) and scene.world.now - began < 2000:
            scene.types(5)
        moves.append(scene.world.now - began)
    assert moves[-1] > 8 * moves[0]
    assert moves[-1] <= constants.FAILURE_PAUSE_MAX + 60


def test_a_hint_is_followed_before_anything_is_lost() -> None:
    """Ethernet is plugged in beside Wi-Fi: the kernel prefers it, and Wi-Fi still carries."""
    scene = Scene()
    scene.bob.move(ETHERNET, WIFI)
    scene.world.run(0.5)
    assert scene.here() == ip(ETHERNET)
    assert scene.both_agree()
    assert not scene.bob.named("connection.suspended")
    assert scene.bob.named("move.started", "better-address")


def test_a_move_that_is_announced_anew_before_it_has_arrived_is_one_move() -> None:
    """While the peer is being told of the better address the old one goes, and one more comes."""
    scene = Scene()
    scene.dead = set()
    scene.bob.addresses.insert(0, ip(ETHERNET))
    scene.bob.network_changed()
    while scene.here() != ip(ETHERNET):
        scene.world.run(0.005)
    assert scene.bob.engine.announcements.announcing(scene.alice.static.public)
    scene.bob.addresses.remove(ip(WIFI))
    scene.bob.addresses.append(ip("203.0.113.10"))
    scene.bob.network_changed()
    scene.world.run(3)
    assert scene.both_agree()
    assert scene.bob.connection(scene.socket).moves == scene.alice.connection(scene.mirrored).moves == 1


def test_an_address_that_comes_while_another_is_announced_in_vain_is_announced_too() -> None:
    scene = Scene()
    scene.dead = {ip("203.0.113.10")}
    scene.bob.move("203.0.113.10")
    scene.world.run(5)
    assert not scene.bob.named("move.finished")
    scene.bob.move("203.0.113.10", ETHERNET)
    scene.world.run(0.5)
    assert scene.here() == ip(ETHERNET)
    assert scene.both_agree()


def test_a_hint_that_leads_nowhere_changes_nothing() -> None:
    """The new uplink is dead upstream."""
    scene = Scene()
    scene.dead = {ip(ETHERNET)}
    scene.bob.move(ETHERNET, WIFI)
    scene.types(30)
    assert scene.here() == ip(WIFI)
    assert scene.both_agree()
    assert not scene.bob.named("connection.suspended")


def test_a_prefix_that_is_renumbered() -> None:
    """The old IPv6 address is still there, deprecated, and carries no more."""
    old, new = "2001:db8:b::2", "2001:db8:c::2"
    scene = Scene(bob=(old,), alice=(SERVER6,))
    scene.dead = {ip(old)}
    scene.bob.move(new, old)
    scene.world.run(1)
    assert scene.here() == ip(new)
    assert scene.both_agree()


@pytest.mark.parametrize("writer", ["bob", "alice"])
def test_a_family_that_is_dead_upstream(writer: str) -> None:
    scene = Scene(bob=(WIFI, WIFI6), alice=(SERVER, SERVER6))
    scene.dead = {ip(WIFI)}
    for _ in range(8):
        host, socket = (scene.bob, scene.socket) if writer == "bob" else (scene.alice, scene.mirrored)
        c = host.connection(socket)
        if c.state is State.PROTECTED and scene.dead & {c.local_now, c.remote_now}:
            host.engine.stalled(scene.world.now, [socket])
            host.run()
        scene.world.run(0.5)
    assert scene.here() == ip(WIFI6)
    assert scene.both_agree()
    scene.types(60)
    assert scene.here() == ip(WIFI6), "IPv4 is still dead"
    scene.dead = set()
    scene.types(120)
    assert scene.here() == ip(WIFI)


def test_the_other_family_where_only_the_peer_has_said_that_it_has_an_address_there() -> None:
    """bob is behind a NAT in IPv6: no announcement of alice's comes from where she is now, only her HELLO names it."""
    scene = Scene(bob=(WIFI, WIFI6), alice=(SERVER, SERVER6))
    opened: set[IPAddress] = set()

    def passes(source: SockAddr, to: SockAddr, data: bytes) -> bool:
        if source.host == ip(WIFI6):
            opened.add(to.host)
        behind = to.host == ip(WIFI6) and source.host not in opened
        return not behind and not scene.dead & {source.host, to.host}

    scene.world.tap = passes
    scene.alice.move("192.0.2.77", "2001:db8:a::77")
    scene.world.run(5)
    assert scene.bob.connection(scene.socket).remote_now == ip("192.0.2.77")
    scene.dead = {ip(WIFI)}
    scene.types(20)
    assert scene.here() == ip(WIFI6)
    assert scene.both_agree()


def test_two_hosts_that_race_meet_on_a_pair() -> None:
    for seed in range(40):
        scene = Scene(bob=(WIFI, ETHERNET, WIFI6), alice=(SERVER, SERVER6))
        scene.world.random.seed(seed)
        scene.world.link.jitter = 0.08
        scene.dead = {(ip(WIFI), ip(SERVER)), (ip(SERVER), ip(WIFI))}
        for host, socket in ((scene.bob, scene.socket), (scene.alice, scene.mirrored)):
            host.engine.stalled(scene.world.now, [socket])
            host.run()
            scene.world.run(scene.world.random.random() * 0.05)
        scene.types(10)
        assert scene.both_agree(), seed
        assert scene.here() != ip(WIFI), seed


def on(network: Network, names: dict[str, str]) -> Network:
    return network._replace(interfaces={ip(a): Interface(name) for a, name in names.items()})


class Named(Scene):
    """The addresses of bob are on named interfaces."""

    names: ClassVar = {WIFI: "wlan0", ETHERNET: "wwan0"}

    def join(self, *addresses: str) -> None:
        bob = self.bob
        bob.addresses = [ip(a) for a in addresses]
        sources = {r: tuple(a for a in bob.addresses if a.version == r.version) for r in bob.engine.remotes()}
        bob.engine.network_changed(self.world.now, on(Network(frozenset(bob.addresses), sources), self.names))
        bob.run()


def test_what_comes_last_is_used_only_when_nothing_else_carries() -> None:
    scene = Named(replace(AUTO, last=("wwan*",)))
    scene.join(ETHERNET, WIFI)
    scene.types(10)
    assert scene.here() == ip(WIFI), "the kernel prefers the metered one, the configuration does not"
    scene.join(ETHERNET)
    scene.types(5)
    assert scene.here() == ip(ETHERNET)
    scene.join(ETHERNET, WIFI)
    scene.types(5)
    assert scene.here() == ip(WIFI)


def test_what_is_never_to_be_used_is_not_moved_to() -> None:
    scene = Named(replace(AUTO, never=("wwan*",)))
    scene.join(ETHERNET)
    scene.types(15)
    assert scene.here() == ip(WIFI)
    assert scene.bob.connection(scene.socket).state is State.SUSPENDED
    scene.join(ETHERNET, WIFI)
    scene.types(5)
    assert scene.here() == ip(WIFI)
    assert scene.bob.connection(scene.socket).state is State.PROTECTED


def test_peers_move_their_connections_here_from_networks_that_are_accepted() -> None:
    scene = Scene()
    scene.alice.engine.policy_changed(scene.world.now, replace(AUTO, accept_from=(ip_network("198.51.100.0/24"),)))
    scene.bob.move(ETHERNET)
    scene.world.run(5)
    assert scene.alice.named("redirect.refused", "not-accepted-from-there")
    assert scene.alice.connection(scene.mirrored).remote_now == ip(WIFI)
    scene.bob.move("198.51.100.77")
    scene.world.run(15)
    assert scene.alice.connection(scene.mirrored).remote_now == ip("198.51.100.77")


def test_who_is_told_to_announce_does_so_from_everywhere_also_without_a_path() -> None:
    """Otherwise an announcement goes from one address at a time then."""
    scene = Scene(bob=(WIFI, ETHERNET))
    scene.world.link.cut = True
    scene.dead = {ip(WIFI), ip(ETHERNET)}
    scene.types(20)
    assert scene.bob.connection(scene.socket).state is State.SUSPENDED
    for _ in range(3):
        before = len(scene.bob.messages)
        assert scene.bob.engine.announce(scene.world.now) == 1
        scene.bob.run()
        assert {source for _, _, source in scene.bob.messages[before:]} == {ip(WIFI), ip(ETHERNET)}


def test_an_address_that_has_failed_is_not_waited_for_although_the_kernel_prefers_it() -> None:
    scene = Scene(bob=(WIFI, ETHERNET))
    scene.dead = {ip(WIFI)}
    scene.types(5)
    scene.bob.move(ETHERNET, WIFI)
    scene.bob.move(WIFI, ETHERNET)
    scene.types(1)
    scene.bob.engine.announce(scene.world.now)
    scene.bob.run()
    scene.world.run(1)
    assert scene.bob.named("move.started", "announced")[-1].address == ip(ETHERNET)
    assert scene.bob.named("move.finished")[-1].details["duration"] < constants.PATIENCE


def test_many_addresses_share_one_budget_of_datagrams() -> None:
    """200 addresses of one host, no path: what is sent does not grow with them."""
    many = [f"203.0.113.{n}" for n in range(1, 201)]
    scene = Scene(bob=(WIFI, *many))
    scene.dead = {ip(SERVER)}
    scene.world.link.cut = True
    scene.types(15)
    assert scene.bob.connection(scene.socket).state is State.SUSPENDED
    start = len(scene.world.recorded)
    scene.world.run(60)
    sent = scene.world.recorded[start:]
    assert len(sent) < 60 * 30, "20 announcements a second, and some handshakes"
    assert len({source.host for source, _, _ in sent}) == 201, "each has had its turn"

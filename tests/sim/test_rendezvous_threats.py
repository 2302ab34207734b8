"""What a hostile guest of a rendezvous may try, and what a hostile rendezvous.

docs/threat-model.md lists these tests by name.  alice and bob meet at rita; mallory is another host, approved by rita
and by bob.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from redirectctl.flows import constants as limits
from redirectctl.flows.policy import Policy
from redirectctl.flows.rendezvous.client import tag_of
from redirectctl.proto import events
from redirectctl.proto.peer import PeerState
from redirectctl.wire import datagram
from redirectctl.wire import meeting as wire
from redirectctl.wire import message as messages
from redirectctl.wire.addr import SockAddr
from tests.sim.host import Host
from tests.sim.network import PORT, ip
from tests.sim.test_rendezvous import ALICE, TUNNEL, Trio, relayed_trio
from tests.sim.world import acm

MALLORY, VICTIM = "203.0.113.66", "203.0.113.99"


def say(host: Host, other: Host, message: messages.Message) -> None:
    """Anything, in the session that the two have."""
    world = host.world
    endpoint = host.engine.endpoint
    assert endpoint.send(world.now, endpoint.peers[other.static.public], message)
    for event in endpoint.drain():
        source = event.source or host.addresses[0]
        world.transmit(SockAddr(source, PORT), event.to, event.data, host)


class Scene(Trio):
    """With mallory, who has a session with rita and a protected connection with bob."""

    def __init__(self) -> None:
        super().__init__()
        self.mallory = self.world.host("mallory", MALLORY, policy=TUNNEL)
        self.mallory.meets_at(self.rita)
        self.world.connect(self.mallory, self.bob, 50000)
        self.world.run(5)
        self.heard: list[messages.Message] = []  # by mallory, of rita
        received = self.mallory.engine.rendezvous.received

        def listen(now: float, event: object) -> None:
            self.heard.append(event.message)  # type: ignore[attr-defined]
            received(now, event)  # type: ignore[arg-type]

        self.mallory.engine.rendezvous.received = listen  # type: ignore[assignment, method-assign]
        self.tag = tag_of(self.alice.static.shared(self.bob.static.public), self.rita.static.public)

    def of_alice(self) -> list[messages.Message]:
        """What mallory was told that has alice's tag."""
        return [m for m in self.heard if getattr(m, "tag", None) == self.tag]

    def assert_nothing_moved(self) -> None:
        for host, socket in ((self.alice, self.mirrored), (self.bob, self.socket)):
            assert host.flows[socket] == socket
            assert host.connection(socket).moves == 0
            assert not host.connection(socket).tunnel


@pytest.fixture
def scene() -> Scene:
    return Scene()


# -- guests ------------------------------------------------------------------------------------------------------------


def test_registering_in_anothers_place(scene: Scene) -> None:
    tags = tuple(bytes((n,)) * wire.TAG_LEN for n in range(wire.MAX_TAGS))
    say(scene.mallory, scene.rita, wire.Register(77, (ip(ALICE),), tags))
    scene.world.run(1)
    scene.alice.move("192.0.2.10")
    scene.bob.move("198.51.100.10")
    scene.world.run(1)
    assert scene.met()
    assert scene.of_alice() == []


def test_who_shares_no_tag_finds_nobody(scene: Scene) -> None:
    """Not even one who knows the tag, and has not registered it."""
    for tag in (scene.tag, bytes(wire.TAG_LEN)):
        say(scene.mallory, scene.rita, wire.Lookup(tag))
        say(scene.mallory, scene.rita, wire.Forward(tag, bytes(64)))
    scene.world.run(1)
    assert scene.of_alice() == []
    assert not scene.alice.named("packet.refused")


def test_a_tag_has_room_for_two(scene: Scene) -> None:
    say(scene.mallory, scene.rita, wire.Register(77, (), (scene.tag,)))
    say(scene.mallory, scene.rita, wire.Lookup(scene.tag))
    scene.world.run(1)
    answers = [m for m in scene.heard if isinstance(m, wire.Registered) and m.request == 77]
    assert [m.status for m in answers] == [wire.Registration.FULL]
    assert scene.of_alice() == []
    shared = scene.alice.static.shared(scene.bob.static.public)
    assert tag_of(shared, scene.mallory.static.public) != scene.tag, "at another rendezvous it is another"


def test_who_is_not_approved_gets_nothing() -> None:
    scene = Scene()
    scene.rita.engine.peers[scene.mallory.static.public].state = PeerState.PENDING
    scene.rita.engine.rendezvous_server.forget(scene.world.now, scene.mallory.static.public)
    scene.rita.run()
    scene.heard.clear()
    say(scene.mallory, scene.rita, wire.Register(77, (), (scene.tag,)))
    for message in (wire.Lookup(scene.tag), wire.Forward(scene.tag, bytes(64)), wire.Relay(1, scene.tag, (5,))):
        say(scene.mallory, scene.rita, message)
    scene.world.run(1)
    assert [m.status for m in scene.heard if isinstance(m, wire.Registered)] == [wire.Registration.PENDING]
    assert len(scene.rita.named("packet.refused", "not-registered")) == 3
    assert scene.of_alice() == []


def test_floods_of_registrations_are_bounded(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    rendezvous = scene.rita.engine.rendezvous_server
    before = len(rendezvous._pairs)
    for n in range(100):
        tags = tuple((n * wire.MAX_TAGS + m).to_bytes(wire.TAG_LEN) for m in range(wire.MAX_TAGS))
        say(scene.mallory, scene.rita, wire.Register(1000 + n, (), tags))
        flows = tuple(range(n * wire.MAX_FLOWS + 1, (n + 1) * wire.MAX_FLOWS + 1))
        say(scene.mallory, scene.rita, wire.Relay(1000 + n, bytes(wire.TAG_LEN), flows))
    scene.world.run(1)
    assert len(rendezvous._pairs) <= before + limits.MAX_TAGS
    assert rendezvous.relayed <= limits.MAX_RELAYED
    assert {m.status for m in scene.heard if isinstance(m, wire.Registered)} == {
        wire.Registration.OK,
        wire.Registration.FULL,
    }
    scene.world.run(limits.MEET_TIME + limits.MEET_BEAT)
    assert len(rendezvous._pairs) == before
    monkeypatch.setattr(limits, "MAX_GUESTS", rendezvous.guests)
    late = scene.world.host("late", "203.0.113.67", policy=TUNNEL)
    late.meets_at(scene.rita)
    scene.world.run(5)
    assert [s.standing.value for s in late.engine.rendezvous.servers] == ["rendezvous-full"]


def test_forwarding_without_end_is_bounded(scene: Scene) -> None:
    tag = tag_of(scene.mallory.static.shared(scene.bob.static.public), scene.rita.static.public)
    start = len(scene.world.recorded)
    for _ in range(20):
        for _ in range(100):
            say(scene.mallory, scene.rita, wire.Forward(tag, bytes(600)))
        scene.world.run(0.1)
    to_bob = [d for _, to, d in scene.world.recorded[start:] if to.host in scene.bob.addresses and len(d) > 600]
    assert 100 < len(to_bob) <= limits.FORWARD_BURST + limits.FORWARD_RATE * 3
    assert scene.rita.named("packet.refused", "forward-limit")


def test_relayed_to_nobody_who_has_not_asked(scene: Scene) -> None:
    tag = tag_of(scene.mallory.static.shared(scene.bob.static.public), scene.rita.static.public)
    say(scene.mallory, scene.rita, wire.Relay(1, tag, (1, 2, 3)))
    say(scene.mallory, scene.rita, wire.Relay(1, scene.tag, (1, 2, 3)))
    scene.world.run(1)
    assert not any(r.routes for r in scene.rita.relaying.values())


def test_registering_from_a_victims_address() -> None:
    """bob, who is relayed, says with a forged source that he is at a victim's."""
    trio = relayed_trio()
    world, key = trio.world, trio.bob.static.public
    before = trio.rita.relaying[key].source
    endpoint = trio.bob.engine.endpoint
    tags = tuple(trio.bob.engine.rendezvous.servers[0].tags)
    start = len(world.recorded)
    for n in range(10):
        message = wire.Register(900 + n, (), tags, n.to_bytes(8))
        assert endpoint.send(world.now, endpoint.peers[trio.rita.static.public], message)
        for event in endpoint.drain():
            world.transmit(SockAddr(ip(VICTIM), PORT), event.to, event.data)
        world.run(0.1)
    to_victim = [d for _, to, d in world.recorded[start:] if to.host == ip(VICTIM)]
    assert 0 < len(to_victim) <= 11  # an answer each, and a word that the host is seen elsewhere
    assert max(map(len, to_victim)) < 100
    assert trio.rita.relaying[key].source == before
    routes = [way for r in trio.rita.relaying.values() for way in r.routes.values()]
    assert routes
    assert not [to for to, _ in routes if to.host == ip(VICTIM)]
    world.run(30)
    assert trio.relayed()


# -- the rendezvous ----------------------------------------------------------------------------------------------------


def test_forged_places_draw_a_few_small_datagrams(scene: Scene) -> None:
    """alice is told that bob is at a victim's address, again and again, while she has moved and is looking for him."""
    scene.world.link.cut = True
    scene.alice.move("192.0.2.10")
    scene.world.run(3)
    scene.world.link.cut = False
    lost = scene.bob.addresses[0]
    scene.world.tap = lambda _, to, __: to.host != lost  # bob is not to be reached
    start, seconds = len(scene.world.recorded), 60
    for n in range(seconds * 10):
        addresses = tuple(ip(f"203.0.113.{100 + (n + m) % 8}") for m in range(8))
        say(
            scene.rita, scene.alice, wire.Found(scene.tag, SockAddr(ip(VICTIM), 1000 + n), (ip(VICTIM), *addresses[1:]))
        )
        scene.world.run(0.1)
    victim = [
        d for source, to, d in scene.world.recorded[start:] if to.host == ip(VICTIM) and source.host != ip(VICTIM)
    ]
    words = limits.FOUND_BURST + limits.FOUND_RATE * seconds
    assert 0 < len(victim) <= words * 12
    assert max(map(len, victim)) <= datagram.MAX_DATAGRAM
    assert sum(map(len, victim)) < 600 * seconds * 10, "fewer bytes than were sent to have it so"
    assert not scene.alice.connection(scene.mirrored).tunnel
    assert scene.alice.connection(scene.mirrored).wire.remote.host == lost


def test_replayed_datagrams_move_nothing() -> None:
    trio = relayed_trio()
    rita, forwarded = trio.rita, [m for m, *_ in trio.rita.messages if isinstance(m, wire.Forwarded)]
    assert len(forwarded) > 4
    before = [(host.connection(s).remote_epoch, host.connection(s).moves) for host, s in
              ((trio.alice, trio.mirrored), (trio.bob, trio.socket))]  # fmt: skip
    for wait in (0.0, 300.0):
        trio.world.run(wait)
        for message in forwarded:
            for host in trio.ends:
                say(rita, host, message)
        trio.world.run(5)
    refused = {n.reason for host in trio.ends for n in host.notices if n.name.endswith(".refused")}
    assert {"replayed", "unknown-session"} <= refused
    after = [(host.connection(s).remote_epoch, host.connection(s).moves) for host, s in
             ((trio.alice, trio.mirrored), (trio.bob, trio.socket))]  # fmt: skip
    assert [moves for _, moves in after] == [moves for _, moves in before]
    assert trio.relayed()


def test_altered_datagrams_move_nothing(scene: Scene) -> None:
    """The ACM of a move, every byte of which is changed in turn; then the true one counts."""
    taken: list[bytes] = []

    def tap(source: SockAddr, to: SockAddr, data: bytes) -> bool:
        if source.host == ip("198.51.100.10") and data[0] == datagram.Type.TRANSPORT and to.host == ip(ALICE):
            taken.append(data)
        return False

    scene.world.tap = tap
    scene.bob.move("198.51.100.10")
    scene.world.run(0.2)
    scene.world.tap = None
    scene.bob.crash()
    assert taken
    for at in range(8, len(taken[0])):
        altered = bytearray(taken[0])
        altered[at] ^= 1
        say(scene.rita, scene.alice, wire.Forwarded(scene.tag, bytes(altered)))
        scene.world.run(0.02)
    scene.world.run(5)
    assert scene.alice.named("packet.refused", "forged")
    assert scene.alice.flows[scene.mirrored] == scene.mirrored
    assert scene.alice.connection(scene.mirrored).moves == 0


def test_a_rendezvous_speaks_for_nobody_else(scene: Scene) -> None:
    """A message of its own session with alice, handed over as bob's; then a handshake of its own."""
    session = next(s for s in scene.rita.engine.peers[scene.alice.static.public].sessions if s.usable)
    shell = datagram.Transport(session.version, session.remote_index, session.counter, b"")
    session.counter += 1
    announced = acm(2**40, VICTIM, str(scene.socket.local.host))
    sealed = session.sealing.seal(shell.counter, messages.encode(announced), shell.header)
    say(scene.rita, scene.alice, wire.Forwarded(scene.tag, shell.header + sealed))
    scene.world.run(5)
    assert scene.alice.named("packet.refused", "wrong-pair")
    scene.assert_nothing_moved()


def test_a_rendezvous_announces_no_moves_of_others(scene: Scene) -> None:
    say(scene.rita, scene.alice, acm(2**40, str(scene.rita.addresses[0]), str(scene.socket.local.host)))
    scene.world.run(5)
    assert scene.alice.named("redirect.refused", "no-connection")
    scene.assert_nothing_moved()


def test_a_rendezvous_that_is_never_content_draws_few_registrations(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It wants to see that the host is where it is, again and again."""
    rendezvous, bob = scene.rita.engine.rendezvous_server, scene.bob
    key = bob.static.public

    def never(event: events.Received, proof: bytes) -> bool:
        rendezvous._asked[event.key] = event.source, bytes(8)
        return event.key != key

    monkeypatch.setattr(rendezvous, "_proven", never)
    scene.world.run(60)
    messages_before, datagrams_before = len(bob.messages), len(bob.sent)
    scene.world.run(60)
    asked = [m for m, _, _ in bob.messages[messages_before:] if isinstance(m, wire.Register)]
    assert 0 < len(asked) < 40
    assert len([to for to, _ in bob.sent[datagrams_before:] if to.host == scene.rita.addresses[0]]) < 80


def test_a_rendezvous_that_finds_a_peer_everywhere_is_seldom_believed(scene: Scene) -> None:
    """Each time draws some datagrams to an address that it chooses."""
    scene.world.run(60)
    before = len(scene.bob.sent)
    for n in range(40):
        say(scene.rita, scene.bob, wire.Found(scene.tag, SockAddr(ip(f"203.0.113.{100 + n}"), PORT), ()))
        scene.world.run(0.01)
    scene.world.run(5)
    victims = {to.host for to, _ in scene.bob.sent[before:]} & {ip(f"203.0.113.{100 + n}") for n in range(40)}
    assert 0 < len(victims) <= limits.FOUND_BURST + 1


def test_a_rendezvous_that_knows_of_others_than_we_have_asked_for_is_not_heard(scene: Scene) -> None:
    """A tag that we have not registered; then one of a peer with which there is no connection any more."""
    start = len(scene.world.recorded)
    found = wire.Found(bytes(wire.TAG_LEN), SockAddr(ip(VICTIM), PORT), (ip(VICTIM),))
    say(scene.rita, scene.bob, found)
    say(scene.rita, scene.bob, wire.Forwarded(bytes(wire.TAG_LEN), bytes(64)))
    scene.world.run(1)
    assert len(scene.bob.named("packet.refused", "unknown-tag")) == 2
    scene.bob.closed(scene.socket)
    say(scene.rita, scene.bob, replace(found, tag=scene.tag))
    scene.world.run(1)
    assert len(scene.bob.named("packet.refused", "unknown-tag")) == 3
    assert not [to for _, to, _ in scene.world.recorded[start:] if to.host == ip(VICTIM)]


def test_who_is_not_our_rendezvous_is_not_heard(scene: Scene) -> None:
    start = len(scene.world.recorded)
    say(scene.mallory, scene.bob, wire.Found(scene.tag, SockAddr(ip(VICTIM), PORT), (ip(VICTIM),)))
    say(scene.mallory, scene.bob, wire.Forwarded(scene.tag, bytes(64)))
    scene.world.run(5)
    assert len(scene.bob.named("packet.refused", "not-our-rendezvous")) == 2
    assert not [to for _, to, _ in scene.world.recorded[start:] if to.host == ip(VICTIM)]
    scene.assert_nothing_moved()


def test_without_serve_a_host_holds_nothing_for_others() -> None:
    trio = Trio()
    trio.rita.engine.policy_changed(trio.world.now, replace(TUNNEL, serve=False))
    trio.rita.run()
    assert trio.rita.engine.rendezvous_server.guests == 0
    assert isinstance(trio.rita.engine.policy, Policy)

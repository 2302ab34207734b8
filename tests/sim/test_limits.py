"""Whoever fills a table, with however many keys, keeps nobody out: each limit with a second party that must get in.

alice serves, and accepts everybody.  The tables are small here; docs/threat-model.md has the true numbers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Final

import pytest

from redirectctl.flows import constants as limits
from redirectctl.flows.connection import Path
from redirectctl.flows.engine import Engine
from redirectctl.flows.policy import Policy
from redirectctl.flows.proofs import digest
from redirectctl.flows.rendezvous.client import tag_of
from redirectctl.flows.state import State
from redirectctl.proto import constants as proto_limits
from redirectctl.proto import events
from redirectctl.proto.bucket import Buckets
from redirectctl.proto.noise import Pattern, StaticKey
from redirectctl.proto.peer import Accepted, PeerState
from redirectctl.proto.shares import Shared
from redirectctl.wire import meeting as wire
from redirectctl.wire import message as messages
from redirectctl.wire.addr import IPAddress, SockAddr
from redirectctl.wire.datagram import Type, Unknown
from redirectctl.wire.tunnel import Offer
from tests.sim.host import Host
from tests.sim.network import PORT, ip
from tests.sim.test_threats import ALICE, BOB, NEW, Scene, stranger_init
from tests.sim.world import World, acm, agree

ALL: Final = Policy(first_contact="accept-new", long_lived_after=1.0)
AUTO: Final = Policy(first_contact="accept-new", long_lived_after=1.0, prefer="auto")


class Crowd:
    """alice, bob who has a connection with her already, and attackers with a session each."""

    def __init__(self, attackers: int, policy: Policy = ALL, *, used: bool = False, others: Policy = ALL) -> None:
        self.world = World(seed=7)
        self.others = others
        self.alice = self.world.host("alice", ALICE, policy=policy)
        self.bob = self.world.host("bob", BOB, policy=others)
        self.socket, self.mirrored = self.world.connect(self.bob, self.alice, 40000)
        self.world.run(5)
        self.attackers = [self.stranger(f"203.0.113.{n + 1}") for n in range(attackers)]
        for attacker in self.attackers if used else ():
            self.world.connect(attacker, self.alice, 50000)
        self.world.run(5)

    def stranger(self, address: str) -> Host:
        """A host that calls alice."""
        host = self.world.host(address, address, policy=self.others)
        host.engine.meet(self.world.now, SockAddr(ip(ALICE), PORT))
        host.run()
        self.world.run(0.3)
        return host

    def say(self, who: Host, message: messages.Message, source: IPAddress | None = None) -> None:
        """To alice, in its session; from one of its addresses."""
        peer = who.engine.peers[self.alice.static.public]
        assert who.engine.endpoint.send(self.world.now, peer, message)
        for event in who.engine.endpoint.drain():
            self.world.transmit(SockAddr(source or who.addresses[0], PORT), event.to, event.data, who)

    def assert_bob_is_served(self) -> None:
        """A new connection, and a move of all."""
        socket, mirrored = self.world.connect(self.bob, self.alice, 41000)
        self.world.run(6)
        assert self.alice.protects(mirrored)
        self.bob.move(NEW)
        self.world.run(1)
        assert agree(self.alice, self.bob, mirrored)
        assert agree(self.alice, self.bob, self.mirrored)
        assert self.bob.flows[socket].local.host == ip(NEW)


def claims(first: int, many: int = messages.MAX_PROTECT) -> tuple[messages.Claim, ...]:
    """Of connections that nobody has."""
    socket = messages.FourTuple(SockAddr(ip("203.0.113.1"), 1), SockAddr(ip(ALICE), 2))
    cids = [n.to_bytes(8) for n in range(first, first + many)]
    return tuple(messages.Claim(cid, 2**40, socket, digest(cid), Offer(1, bytes(16), 0)) for cid in cids)


@pytest.mark.parametrize("attackers", [1, 8, 40])
def test_claims(attackers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_CLAIMED", 100)
    crowd = Crowd(attackers)
    for n in range(max(20, attackers * 2)):
        crowd.say(crowd.attackers[n % attackers], messages.Protect(n, claims(1 + n * 12)))
    crowd.world.run(0.1)
    assert len(crowd.alice.engine.peers_claims._claimed) == 100
    crowd.assert_bob_is_served()

    # Neither do they keep each other out: who comes last is as good as the others.
    late = crowd.stranger("203.0.113.250")
    _, mirrored = crowd.world.connect(late, crowd.alice, 42000)
    for n in range(40):
        crowd.say(crowd.attackers[n % attackers], messages.Protect(900 + n, claims(10**6 + n * 12)))
        crowd.world.run(0.1)
    crowd.world.run(5)
    assert crowd.alice.protects(mirrored)


@pytest.mark.parametrize("attackers", [1, 8])
def test_requests_to_peers_that_do_not_answer(attackers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_REQUESTS", 60)
    crowd = Crowd(attackers, used=True)
    for attacker in crowd.attackers:
        attacker.crash()
    requests = crowd.alice.engine.requests
    for n in range(200):
        attacker = crowd.attackers[n % attackers]
        crowd.alice.engine.agreement.tell_end(
            crowd.world.now, attacker.static.public, messages.End.RELEASED, (n.to_bytes(8),)
        )
    crowd.alice.run()
    assert len(requests._open) == 60
    answered: list[object] = []
    requests.ask(
        crowd.world.now, crowd.bob.static.public, lambda n: messages.Sync(n, ()), lambda _, m: answered.append(m),
        lambda _: answered.append(None),
    )  # fmt: skip
    crowd.alice.run()
    crowd.world.run(1)
    assert [type(m) for m in answered] == [messages.SyncReply]
    crowd.assert_bob_is_served()


def test_held_resets(monkeypatch: pytest.MonkeyPatch) -> None:
    """A peer that has its own connections reset, and does not answer: bob's connection that has ended is not kept."""
    monkeypatch.setattr(limits, "MAX_RST_QUESTIONS", 10)
    crowd = Crowd(1)
    (mallory,) = crowd.attackers
    own = [crowd.world.connect(mallory, crowd.alice, 50000 + n)[1] for n in range(15)]
    crowd.world.run(6)
    assert all(crowd.alice.protects(socket) for socket in own)
    mallory.crash()
    for n, socket in enumerate(own):
        crowd.alice.engine.rst(crowd.world.now, socket, n)
    crowd.bob.sockets.discard(crowd.socket)  # its daemon has not noticed yet
    crowd.alice.engine.rst(crowd.world.now, crowd.mirrored, 99)
    crowd.alice.run()
    assert len(crowd.alice.engine.resets._held) == 10
    crowd.world.run(1)
    assert crowd.alice.verdicts[99] is True
    crowd.world.run(20)
    assert {crowd.alice.verdicts[n] for n in range(15)} == {False}


@pytest.mark.parametrize("attackers", [1, 3])
def test_connections(attackers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody has more than are left, and an eighth is left to those whom a person has approved, or whom alice calls."""
    monkeypatch.setattr(limits, "MAX_CONNECTIONS", 40)
    crowd = Crowd(attackers)
    crowd.alice.engine.approve(crowd.world.now, crowd.bob.static.public)
    crowd.alice.run()
    for attacker in crowd.attackers:
        for n in range(40):
            crowd.world.connect(attacker, crowd.alice, 50000 + n)
        crowd.world.run(10)
    have = Counter(c.peer for c in crowd.alice.engine.table)
    first = have[crowd.attackers[0].static.public]
    assert first == 20
    assert len(crowd.alice.engine.table) <= 40 - 40 // limits.CHOSEN_PART
    crowd.assert_bob_is_served()


def test_many_keys_with_a_connection_each_leave_some_to_those_that_a_person_has_approved(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(limits, "MAX_CONNECTIONS", 24)
    crowd = Crowd(40, used=True)
    assert len(crowd.alice.engine.table) == 24 - 24 // limits.CHOSEN_PART
    crowd.alice.engine.approve(crowd.world.now, crowd.bob.static.public)
    crowd.alice.run()
    crowd.assert_bob_is_served()


# -- plain packets -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("attackers", [1, 3])
def test_ways_that_are_tried(attackers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Peers that are at many addresses, each with a connection, to none of which anything gets plainly."""
    monkeypatch.setattr(limits, "MAX_TRIALS", 8)
    crowd = Crowd(attackers, AUTO, others=AUTO)
    alice, bob, world = crowd.alice, crowd.bob, crowd.world
    trials = alice.engine.choice._trials
    world.tap_segment = lambda source, to: ip(NEW) in (to.host, source.host)  # nothing gets plainly to the others
    for n, attacker in enumerate(crowd.attackers):
        own = [world.connect(attacker, alice, 50000 + m)[1] for m in range(12)]
        world.tap_segment, only_bob = None, world.tap_segment
        world.run(5)
        world.tap_segment = only_bob
        spread(crowd, attacker, own, f"192.88.{n}")
    assert len(trials) == 8
    assert all(trials.of(a.static.public) for a in crowd.attackers)
    bob.move(NEW)
    world.run(3)
    assert alice.connection(crowd.mirrored).path is Path.REWRITTEN
    assert agree(alice, bob, crowd.mirrored)
    assert len(trials) <= 8
    assert {c.path for a in crowd.attackers for c in alice.engine.table.of(a.static.public)} == {Path.TUNNEL}


def test_rates_of_more_peers_than_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whose rate is forgotten has its whole allowance again."""
    monkeypatch.setattr(limits, "MAX_HEARD", 1)
    crowd = Crowd(2)
    monkeypatch.setattr(limits, "STRANGERS_BURST", 5.0)
    monkeypatch.setattr(limits, "STRANGERS_RATE", 0.0)
    crowd.world.run(1)

    def heard(who: Host, times: int) -> int:
        before = len(crowd.alice.messages)
        for n in range(times):
            crowd.say(who, messages.PathProbe(n.to_bytes(8)))
        crowd.world.run(0.1)
        return sum(isinstance(m, messages.PathProbed) for m, _, _ in crowd.alice.messages[before:])

    first, second = crowd.attackers
    heard(second, 1)
    assert heard(first, 10) == 5
    assert heard(first, 1) == 0
    assert heard(second, 3) == 3
    assert heard(first, 10) == 5
    assert heard(second, 10) == 5


def test_ways_of_one_announcement(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of more than are challenged the oldest goes."""
    monkeypatch.setattr(limits, "MAX_WAYS", 2)
    crowd = Crowd(0, AUTO, others=AUTO)
    new = ["203.0.113.11", "203.0.113.12", "203.0.113.13"]
    crowd.bob.move(*new)
    crowd.bob.crash()
    challenged: list[list[IPAddress]] = []
    for _ in range(60):
        before = len(crowd.alice.messages)
        crowd.world.run(0.05)
        sent = [to.host for m, to, _ in crowd.alice.messages[before:] if isinstance(m, messages.PathChallenge) and to]
        challenged += [sent] if sent else []
    assert sorted(challenged[0]) == [ip(a) for a in new], "as they come"
    assert len(challenged) == len(limits.CHALLENGE_RETRIES)
    assert [sorted(hosts) for hosts in challenged[1:]] == [challenged[0][1:]] * len(challenged[1:])


def test_announcements_of_one_peer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of more than are challenged the one with the oldest epoch goes."""
    monkeypatch.setattr(limits, "MAX_VALIDATIONS", 2)
    crowd = Crowd(0, AUTO, others=AUTO)
    sockets = [crowd.world.connect(crowd.bob, crowd.alice, 41000 + n)[0] for n in range(3)]
    crowd.world.run(5)
    for epoch, socket in zip((2**40 + 1, 2**40 + 3, 2**40 + 2), sockets, strict=True):
        cid = crowd.bob.connection(socket).cid
        crowd.say(crowd.bob, acm(epoch, BOB, cids=(cid,)))
        crowd.world.run(0.02)
    crowd.world.run(0.02)
    before = len(crowd.alice.messages)
    crowd.world.run(2)
    repeated = {m.epoch for m, _, _ in crowd.alice.messages[before:] if isinstance(m, messages.PathChallenge)}
    assert repeated == {2**40 + 3, 2**40 + 2}


def spread(crowd: Crowd, attacker: Host, own: list[messages.FourTuple], network: str) -> None:
    """Each of its connections is at another of its addresses now.  It does no more than that."""

    def deliver(data: bytes, source: SockAddr, to: SockAddr) -> None:
        attacker.engine.endpoint.receive(crowd.world.now, data, source, to.host)
        for event in attacker.engine.endpoint.drain():
            if isinstance(event, events.Received) and isinstance(event.message, messages.PathChallenge):
                back = messages.PathResponse(event.message.epoch, event.message.data)
                crowd.say(attacker, back, source=to.host)

    attacker.crash()
    attacker.deliver = deliver  # type: ignore[method-assign]
    for n, socket in enumerate(own):
        at = f"{network}.{n + 1}"
        attacker.addresses.append(ip(at))
        cid = crowd.alice.connection(socket).cid
        crowd.say(attacker, acm(attacker.engine.host.next_epoch(), at, cids=(cid,)), source=ip(at))
    crowd.world.run(1)
    assert {crowd.alice.connection(socket).remote_now for socket in own} == set(attacker.addresses[1:])


@pytest.mark.parametrize("attackers", [1, 3])
def test_tokens_on_connections_of_another(attackers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_TOKENS_LOOKED_UP", 30)
    crowd = Crowd(attackers, AUTO, others=AUTO)
    own = [crowd.world.connect(a, crowd.alice, 50000 + n)[0] for a in crowd.attackers for n in range(40)]
    crowd.world.run(8)
    assert all(crowd.alice.protects(socket.mirrored) for socket in own)
    crowd.say(crowd.attackers[0], messages.Seen(()))  # alice listens
    for n in range(40):
        if n == 5:
            crowd.bob.move(NEW)
        for socket in own:
            crowd.world.segment(*socket, crowd.world.random.randbytes(8))
        crowd.world.run(0.04)
    assert crowd.bob.connection(crowd.socket).path is Path.REWRITTEN
    told = [m for m, *_ in crowd.alice.messages if isinstance(m, messages.Seen)]
    assert sum(len(m.tokens) for m in told) <= (attackers + 1) * 30 * 4 + 10, "and what it draws is bounded"


def test_forged_tokens_on_one_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    """By somebody who knows its addresses and ports: it stays in the tunnel, the others of the same peer do not."""
    monkeypatch.setattr(limits, "MAX_TOKENS_LOOKED_UP", 50)
    crowd = Crowd(0, AUTO, others=AUTO)
    more = [crowd.world.connect(crowd.bob, crowd.alice, 41000 + n)[0] for n in range(3)]
    crowd.world.run(8)
    crowd.bob.move(NEW)
    crowd.world.run(0.05)
    to = crowd.socket.remote
    for _ in range(300):
        for _ in range(10):
            crowd.world.segment(SockAddr(ip(NEW), 40000), to, crowd.world.random.randbytes(8))
        crowd.world.run(0.01)
    assert {crowd.bob.connection(socket).path for socket in more} == {Path.REWRITTEN}


# -- peers -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("one_network", [True, False])
def test_strangers_that_wait_for_a_person(one_network: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """From one network they push out each other; from as many as there are places, whoever was silent for longest."""
    monkeypatch.setattr(proto_limits, "PENDING_MAX", 10)
    crowd = Crowd(0, Policy(first_contact="ask", long_lived_after=1.0))
    carol = crowd.stranger("198.51.100.77")
    peers = crowd.alice.engine.peers
    for n in range(9 if not one_network else 30):
        address = "203.0.113.1" if one_network else f"203.0.113.{n + 1}"
        crowd.stranger(address).crash()
        crowd.world.hosts.pop()
    assert peers[carol.static.public].state is PeerState.PENDING
    assert sum(p.state is PeerState.PENDING for p in peers.values()) == 10
    late = crowd.stranger("198.51.100.78")
    assert peers[late.static.public].state is PeerState.PENDING, "and who comes after them is met"


def test_strangers_that_are_accepted_and_never_of_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proto_limits, "UNUSED_MAX", 10)
    crowd = Crowd(0)
    carol = crowd.stranger("198.51.100.77")
    for _ in range(40):
        crowd.stranger("203.0.113.1").crash()
        crowd.world.hosts.pop()
    unused = [p.key for p in crowd.alice.engine.peers.values() if p.accepted is Accepted.UNUSED]
    assert len(unused) == 10
    assert carol.static.public in unused, "she was there first, but from another network"
    assert crowd.alice.engine.peers[crowd.bob.static.public].accepted is Accepted.USED
    assert set(crowd.alice.stored_peers) == set(crowd.alice.engine.peers)
    assert crowd.alice.named("packet.refused", "too-many-unused")
    crowd.assert_bob_is_served()


def test_the_table_of_peers_is_full(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who was never of use goes first, then who has no connection; who has one, or was approved, stays."""
    crowd = Crowd(0)
    carol, dave, erin = (crowd.stranger(f"198.51.100.{n}") for n in (71, 72, 73))
    crowd.alice.engine.approve(crowd.world.now, carol.static.public)
    crowd.alice.run()
    socket, mirrored = crowd.world.connect(erin, crowd.alice, 43000)
    crowd.world.run(5)
    assert crowd.alice.protects(mirrored)
    erin.closed(socket)
    crowd.alice.closed(mirrored)
    for host in (carol, dave, erin):
        host.crash()
    monkeypatch.setattr(proto_limits, "PEERS_MAX", 4)
    peers = crowd.alice.engine.peers
    assert {h.static.public for h in (crowd.bob, carol, dave, erin)} == set(peers)
    first, second, third = (crowd.stranger(f"203.0.113.{n}") for n in (1, 2, 3))
    assert len(peers) == 4
    assert dave.static.public not in peers, "never of use"
    assert first.static.public not in peers
    assert second.static.public not in peers
    assert erin.static.public in peers, "of use once"
    assert third.static.public in peers
    crowd.world.connect(third, crowd.alice, 44000)
    crowd.world.run(5)
    assert peers[third.static.public].accepted is Accepted.USED
    fourth = crowd.stranger("203.0.113.4")
    assert fourth.static.public in peers
    assert erin.static.public not in peers
    assert {h.static.public for h in (crowd.bob, carol, third)} < set(peers)
    assert set(crowd.alice.stored_peers) == set(peers)
    crowd.assert_bob_is_served()


def test_a_peer_that_has_to_go_while_the_kernel_takes_its_connection_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proto_limits, "UNUSED_MAX", 1)
    crowd = Crowd(1)
    (stranger,) = crowd.attackers
    finals: list[bytes] = []
    crowd.world.tap = lambda source, to, data: data[0] != Type.FINAL or finals.append(data) is not None
    crowd.stranger("203.0.113.9").crash()
    crowd.world.tap = None
    crowd.alice.kernel_delay = 2.0
    socket, mirrored = crowd.world.connect(stranger, crowd.alice, 50000)
    for _ in range(40):
        crowd.world.run(0.1)
        c = crowd.alice.engine.table.at(mirrored)
        if c is not None and c.state is State.NEGOTIATING:
            break
    else:
        pytest.fail("it is not taken on")
    stranger.crash()
    crowd.world.transmit(SockAddr(ip("203.0.113.9"), PORT), SockAddr(ip(ALICE), PORT), finals[0])
    crowd.world.run(0.1)
    assert stranger.static.public not in crowd.alice.engine.peers
    crowd.world.run(5)
    assert not crowd.alice.protects(mirrored)
    assert mirrored not in crowd.alice.flows
    stranger.start()
    stranger.find()
    crowd.world.run(30)
    assert crowd.alice.protects(mirrored), "met anew, it is served like anybody"
    assert stranger.protects(socket)
    crowd.alice.kernel_delay = 0.0
    crowd.assert_bob_is_served()


def test_those_that_a_person_has_approved_fill_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody is pushed out for a stranger.  Whom alice calls is met all the same."""
    crowd = Crowd(3)
    for attacker in crowd.attackers:
        crowd.alice.engine.approve(crowd.world.now, attacker.static.public)
    crowd.alice.run()
    known = set(crowd.alice.engine.peers)
    monkeypatch.setattr(proto_limits, "PEERS_MAX", len(known))
    crowd.stranger("203.0.113.99")
    assert set(crowd.alice.engine.peers) == known
    assert crowd.alice.named("packet.refused", "too-many-peers")
    called = crowd.world.host("called", "198.51.100.90", policy=ALL)
    _, mirrored = crowd.world.connect(crowd.alice, called, 45000)
    crowd.world.run(5)
    assert called.protects(mirrored)
    crowd.assert_bob_is_served()


def test_who_was_rejected_is_not_forgotten_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    crowd = Crowd(1)
    (mallory,) = crowd.attackers
    crowd.alice.engine.reject(crowd.world.now, mallory.static.public)
    crowd.alice.run()
    monkeypatch.setattr(proto_limits, "UNUSED_MAX", 1)
    monkeypatch.setattr(proto_limits, "PEERS_MAX", 3)
    for n in range(5):
        crowd.stranger(f"203.0.113.{n + 100}")
    assert crowd.alice.engine.peers[mallory.static.public].state is PeerState.REJECTED


def test_guests_of_the_rendezvous_are_of_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proto_limits, "UNUSED_MAX", 2)
    crowd = Crowd(0, Policy(first_contact="accept-new", long_lived_after=1.0, serve=True))
    guests = []
    for n in range(6):
        guests.append(crowd.stranger(f"203.0.113.{n + 1}"))
        crowd.say(guests[-1], wire.Register(1, (), ()))
        crowd.world.run(0.1)
    assert {g.static.public for g in guests} < set(crowd.alice.engine.peers)
    assert crowd.alice.engine.rendezvous_server.guests == 6


@pytest.mark.parametrize("policy", [ALL, Policy(first_contact="ask", long_lived_after=1.0)])
def test_strangers_say_less_than_others(policy: Policy) -> None:
    """So that many keys are not as much work as as many peers; once it is approved, it is as good as others."""
    crowd = Crowd(0, policy)
    stranger = crowd.stranger("203.0.113.1")
    for n in range(500):
        crowd.say(stranger, messages.Protect(n, claims(1 + n * 12, 1)))
    crowd.world.run(0.5)
    assert len(crowd.alice.named("packet.refused", "rate-limited")) == 500 - limits.STRANGERS_BURST
    crowd.alice.engine.approve(crowd.world.now, stranger.static.public)
    crowd.alice.run()
    crowd.world.run(10)
    seen = len(crowd.alice.named("packet.refused", "rate-limited"))
    for n in range(500):
        crowd.say(stranger, messages.Protect(n, claims(10**6 + n * 12, 1)))
    crowd.world.run(0.5)
    assert len(crowd.alice.named("packet.refused", "rate-limited")) == seen


def test_one_with_many_connections_is_served_at_its_first_contact() -> None:
    crowd = Crowd(0)
    many = crowd.world.host("many", "198.51.100.70", policy=ALL)
    mirrored = [crowd.world.connect(many, crowd.alice, 20000 + n)[1] for n in range(600)]
    crowd.world.run(20)
    assert all(crowd.alice.protects(socket) for socket in mirrored)
    assert not crowd.alice.named("packet.refused", "rate-limited")


def test_that_a_peer_is_accepted_as_all_are_outlives_a_restart() -> None:
    crowd = Crowd(1)
    (stranger,) = crowd.attackers
    for _ in range(2):
        peers = crowd.alice.engine.peers
        assert peers[stranger.static.public].accepted is Accepted.UNUSED
        assert peers[crowd.bob.static.public].accepted is Accepted.USED
        crowd.alice.crash()
        crowd.alice.start()
        crowd.world.run(5)


# -- handshakes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("networks", [1, 4, 40])
def test_half_open_handshakes(networks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """First messages from networks that have proven their addresses, a table full in less than a round trip."""
    monkeypatch.setattr(proto_limits, "HALF_OPEN_MAX", 60)
    scene = Scene()
    responder = scene.alice.engine.endpoint.responder
    responder._cookies.verify_mac2 = lambda *_: True  # type: ignore[method-assign]
    key = StaticKey.from_private(b"f" * 32)

    def flood(times: int, pause: float = 0.0) -> None:
        for n in range(times):
            scene.inject(stranger_init(scene, key, Pattern.XX), f"203.0.{n % networks}.1")
            scene.world.run(pause)

    flood(120, 0.01)
    carol = scene.world.host("carol", "198.51.100.77")
    carol.engine.meet(scene.world.now, SockAddr(ip(ALICE), PORT))
    carol.run()
    scene.world.run(0.005)
    flood(100)  # all of it comes before her third message
    scene.world.run(0.05)
    assert len(scene.alice.engine.endpoint.half_open) <= 60
    assert carol.static.public in scene.alice.engine.peers


def test_our_own_handshakes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Peers that are silent, each asked along as many pairs of addresses as one may be."""
    monkeypatch.setattr(proto_limits, "ATTEMPTS_MAX", 30)
    crowd = Crowd(5, used=True)
    endpoint = crowd.alice.engine.endpoint
    for attacker in crowd.attackers:
        attacker.crash()
        for n in range(proto_limits.ATTEMPTS_OF_PEER):
            to = SockAddr(attacker.addresses[0], 1000 + n)
            endpoint.contact(crowd.world.now, to, None, attacker.static.public)
    assert len(endpoint.initiator._attempts) == 30
    assert {sum(a.key == h.static.public for a in endpoint.initiator._attempts.values()) for h in crowd.attackers} == {
        6
    }
    crowd.bob.crash()
    crowd.bob.start()
    endpoint.contact(crowd.world.now, SockAddr(ip(BOB), PORT), None, crowd.bob.static.public)
    crowd.alice.run()
    assert endpoint.initiator.under_way(crowd.bob.static.public)
    crowd.assert_bob_is_served()


# -- the rendezvous ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("attackers", [1, 8])
def test_tags_and_flows_at_a_rendezvous(attackers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_ALL_TAGS", 60)
    monkeypatch.setattr(limits, "MAX_RELAYED_ALL", 60)
    crowd = Crowd(attackers, Policy(first_contact="accept-new", long_lived_after=1.0, serve=True))
    alice, bob, world = crowd.alice, crowd.bob, crowd.world
    for n, attacker in enumerate(crowd.attackers):
        tags = tuple((n * 100 + m + 1).to_bytes(wire.TAG_LEN) for m in range(wire.MAX_TAGS))
        crowd.say(attacker, wire.Register(n, (), tags))
        world.run(0.1)
        crowd.say(attacker, wire.Relay(n, tags[-1], tuple(range(n * 1000 + 1, n * 1000 + 1 + wire.MAX_FLOWS))))
    world.run(0.1)
    rendezvous = alice.engine.rendezvous_server
    assert len(rendezvous._tags) == rendezvous.relayed == 60
    carol = crowd.stranger("198.51.100.60")
    tag = tag_of(bob.static.shared(carol.static.public), alice.static.public)
    for host in (bob, carol):
        crowd.say(host, wire.Register(1, (), (tag,)))
        world.run(0.1)
        crowd.say(host, wire.Relay(2, tag, (7_000_000,)))
    world.run(0.1)
    for host in (bob, carol):
        guest = rendezvous._guests[host.static.public]
        assert tag in guest.tags
        assert 7_000_000 in guest.flows
        assert 7_000_000 in alice.relaying[host.static.public].routes
    for greedy in rendezvous._guests.values():
        assert set(greedy.tags) == {t for t, keys in rendezvous._pairs.items() if greedy.key in keys}
    world.run(limits.MEET_TIME + 1)
    assert not rendezvous._tags
    assert not rendezvous.relayed
    assert not rendezvous._pairs


def test_who_is_dropped_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever it has said: keys are free, and would fill whatever is kept by key."""
    crowd = Crowd(0, Policy(first_contact="accept-new", long_lived_after=1.0, serve=True, prefer="auto"), others=AUTO)
    monkeypatch.setattr(proto_limits, "PEERS_MAX", 2)
    strangers = []
    for n in range(10):
        stranger = crowd.stranger(f"203.0.113.{n + 1}")
        strangers.append(stranger.static.public)
        for message in (
            wire.Register(1, (), (bytes(15) + bytes((n,)),)),
            messages.Protect(2, claims(1 + 100 * n)),
            messages.Hello(messages.Trust.APPROVED, SockAddr(ip("192.0.2.77"), 9), (ip("203.0.113.99"),)),
            messages.Hello(messages.Trust.APPROVED, SockAddr(ip("192.0.2.78"), 9), (ip("203.0.113.98"),)),
            acm(2**40, f"203.0.113.{n + 1}", f"203.0.113.{n + 1}"),
            messages.BindNumbers(3, ((bytes(8), bytes(8)),)),
            messages.Seen(()),
            messages.PathProbe(bytes(8)),
            messages.Bye(),
        ):
            crowd.say(stranger, message)
        session = stranger.engine.peers[crowd.alice.static.public].sessions[0]
        crowd.world.transmit(
            SockAddr(stranger.addresses[0], PORT),
            SockAddr(ip(ALICE), PORT),
            Unknown(session.version, session.local_index).encode(),
        )
        if n % 2:
            socket, mirrored = crowd.world.connect(stranger, crowd.alice, 50000)
            crowd.world.run(4)
            assert crowd.alice.protects(mirrored)
            crowd.alice.move("192.0.2.9", ALICE)
            crowd.world.run(1)
            crowd.alice.move(ALICE)
            crowd.world.run(1)
            stranger.closed(socket)
            crowd.alice.closed(mirrored)
        crowd.world.run(0.1)
    engine = crowd.alice.engine
    assert len(engine.peers) == 2
    dropped = set(strangers) - set(engine.peers)
    crowd.world.run(120)
    assert not {where for where, key in kept(engine) if key in dropped}
    assert crowd.alice.connection(crowd.mirrored).state is State.PROTECTED


def kept(engine: Engine) -> Iterator[tuple[str, bytes]]:
    """All keys of peers by which something is kept, and where."""
    for part in (engine, engine.endpoint, engine.endpoint.initiator, engine.endpoint.responder, *vars(engine).values()):
        for name, value in vars(part).items() if hasattr(part, "__dict__") else ():
            inner = value._of if isinstance(value, Buckets) else value
            for key in inner if isinstance(inner, dict | set | Shared | Counter) else ():
                for each in key if isinstance(key, tuple) else (key,):
                    if isinstance(each, bytes):
                        yield f"{type(part).__name__}.{name}", each

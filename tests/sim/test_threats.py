"""What an attacker may try.  Each test names the reason that the event log gives, and that nothing moved.

docs/threat-model.md lists these tests by name.

alice serves, bob moves.  mallory is another host; where a test says so, alice has approved it, and it has a connection
of its own to alice.
"""

from __future__ import annotations

import random

import pytest

from redirectctl.flows import constants as limits
from redirectctl.flows.policy import Policy
from redirectctl.flows.proofs import digest
from redirectctl.flows.state import State
from redirectctl.proto import constants as proto_limits
from redirectctl.proto.fingerprint import fingerprint
from redirectctl.proto.noise import Handshake, Pattern, StaticKey
from redirectctl.proto.peer import PeerState
from redirectctl.wire import datagram
from redirectctl.wire import message as messages
from redirectctl.wire.addr import FourTuple, SockAddr
from redirectctl.wire.tunnel import Offer
from tests.sim.host import Host
from tests.sim.network import PORT, ip
from tests.sim.world import World, acm, agree

ALICE, BOB, MALLORY, VICTIM = "192.0.2.1", "198.51.100.2", "203.0.113.66", "203.0.113.99"
NEW, LATER = "203.0.113.9", "203.0.113.10"


def claim(cid: bytes, epoch: int, socket: FourTuple) -> messages.Claim:
    """Its token is its id."""
    return messages.Claim(cid, epoch, socket, digest(cid), Offer(1, bytes(16), 0))


class Scene:
    """alice and bob with a protected connection, and mallory with another."""

    def __init__(self, policy: Policy | None = None) -> None:
        self.world = World(seed=11)
        self.alice = self.world.host("alice", ALICE, policy=policy)
        self.bob = self.world.host("bob", BOB)
        self.mallory = self.world.host("mallory", MALLORY)
        self.socket, self.mirrored = self.world.connect(self.bob, self.alice, 40000)
        self.own, _ = self.world.connect(self.mallory, self.alice, 50000)
        self.world.run(5)

    def as_mallory(self, message: messages.Message, source: str = MALLORY) -> None:
        """mallory sends anything it likes in its session with alice, from where it says it is."""
        endpoint = self.mallory.engine.endpoint
        peer = endpoint.peers[self.alice.static.public]
        assert endpoint.send(self.world.now, peer, message, SockAddr(ip(ALICE), PORT), ip(source))
        for event in endpoint.drain():
            self.world.transmit(SockAddr(ip(source), PORT), SockAddr(ip(ALICE), PORT), event.data)

    def as_claimant(self, claims: list[tuple[bytes, FourTuple]]) -> None:
        """mallory claims, and proves what it can: it sends on every connection, and receives on its own."""
        self.as_mallory(messages.Protect(81, tuple(claim(cid, 5, socket) for cid, socket in claims)))
        self.world.run(0.1)
        start = len(self.world.segments)
        for cid, socket in claims:
            self.world.segment(*socket, cid)
        self.world.run(0.1)
        mine = [p for p in self.world.segments[start:] if p.source.host == ip(ALICE) and p.to.host == ip(MALLORY)]
        bind = [
            messages.TokenArrival(cid, p.data, *p.numbers)
            for cid, socket in claims
            for p in mine
            if p.to == socket.local
        ]
        for number, one in enumerate(bind):
            self.as_mallory(messages.Bind(82 + number, (one,)))
        self.world.run(0.1)

    def bob_moves(self) -> list[bytes]:
        """To NEW; the datagrams that bob sent to alice meanwhile, the ACM among them."""
        start = len(self.world.recorded)
        self.bob.move(NEW)
        self.world.run(1)
        sent = [d for source, to, d in self.world.recorded[start:] if to.host == ip(ALICE)]
        assert sent
        return sent

    def inject(self, data: bytes, source: str) -> None:
        self.world.transmit(SockAddr(ip(source), PORT), SockAddr(ip(ALICE), PORT), data)

    def assert_nothing_moved(self) -> None:
        assert self.alice.flows[self.mirrored] == self.mirrored
        assert self.bob.flows[self.socket] == self.socket
        assert self.alice.connection(self.mirrored).moves == 0


@pytest.fixture
def scene() -> Scene:
    return Scene()


# -- ACMs --------------------------------------------------------------------------------------------------------------


def test_forged_acm(scene: Scene) -> None:
    """An ACM sealed without the keys of the session, in a datagram that is otherwise right."""
    session = scene.bob.engine.peers[scene.alice.static.public].sessions[0]
    plaintext = messages.encode(acm(2**40, MALLORY, BOB))
    for counter in (session.counter, session.counter + 5):
        forged = datagram.Transport(session.version, session.remote_index, counter, plaintext + bytes(16))
        scene.inject(forged.encode(), MALLORY)
        scene.inject(forged.encode(), BOB)
    scene.world.run(30)
    assert len(scene.alice.named("packet.refused", "forged")) == 4
    scene.assert_nothing_moved()
    scene.bob.move(NEW)
    scene.world.run(1)
    assert agree(scene.alice, scene.bob, scene.mirrored), "forged counters do not shut out the honest ones"


@pytest.mark.parametrize("source", [NEW, BOB, MALLORY])
def test_replayed_acm(scene: Scene, source: str) -> None:
    """The very datagrams of a move, once more, from anywhere, at once and later."""
    sent = scene.bob_moves()
    scene.bob.move(BOB)
    scene.world.run(1)
    assert scene.alice.flows[scene.mirrored] == scene.mirrored
    transactions = len(scene.alice.transactions)
    for reason, wait in (("replayed", 0), ("unknown-session", 400)):
        scene.world.run(wait)
        for data in sent:
            scene.inject(data, source)
        scene.world.run(10)
        assert scene.alice.named("redirect.refused", reason) or scene.alice.named("packet.refused", reason)
    assert len(scene.alice.transactions) == transactions
    assert scene.alice.flows[scene.mirrored] == scene.mirrored


def test_forced_dhcp_replay(scene: Scene) -> None:
    """The paper's section 2: an address change is forced, its ACM recorded; a second change moves the host on; the
    attacker takes the address that it has given back, and sends the ACM again."""
    recorded = scene.bob_moves()
    scene.bob.move(LATER)
    scene.world.run(1)
    here = scene.alice.flows[scene.mirrored]
    assert here.remote.host == ip(LATER)
    scene.mallory.crash()  # its own connection stays where it is
    scene.mallory.addresses = [ip(NEW)]
    transactions = len(scene.alice.transactions)
    for data in recorded:
        scene.inject(data, NEW)
    scene.world.run(30)
    assert scene.alice.named("redirect.refused", "replayed")

    # The same when the session of the recording is gone, and again after a restart of the daemon.
    for restart in (False, True):
        if restart:
            scene.alice.crash()
            scene.world.run(1)
            scene.alice.start()
        else:
            scene.world.run(2 * proto_limits.REJECT_AFTER_TIME)
        scene.world.run(5)
        seen = len(scene.alice.named("packet.refused", "unknown-session"))
        for data in recorded:
            scene.inject(data, NEW)
        scene.world.run(30)
        assert len(scene.alice.named("packet.refused", "unknown-session")) > seen
        assert scene.alice.flows[scene.mirrored] == here
    assert not [t for t in scene.alice.transactions[transactions:] if t != (0, 0)]
    assert agree(scene.alice, scene.bob, scene.mirrored)


def test_withheld_acm(scene: Scene) -> None:
    """As before, but the recorded ACM never arrived: its counter is fresh, its epoch is not."""
    withheld: list[bytes] = []

    def tap(source: SockAddr, to: SockAddr, data: bytes) -> bool:
        if source.host == ip(NEW):
            withheld.append(data)
            return False
        return True

    scene.world.tap = tap
    scene.bob.move(NEW)
    scene.world.run(0.05)
    scene.bob.move(LATER)
    scene.world.run(1)
    scene.world.tap = None
    here = scene.alice.flows[scene.mirrored]
    assert here.remote.host == ip(LATER)
    assert withheld
    for data in withheld:
        scene.inject(data, NEW)
    scene.world.run(30)
    assert scene.alice.named("redirect.refused", "stale-epoch")
    assert scene.alice.flows[scene.mirrored] == here


def test_withheld_acm_before_the_next_one(scene: Scene) -> None:
    """It is the newest that alice knows of, but nobody at that address can answer the challenge."""
    withheld: list[bytes] = []
    scene.world.tap = lambda source, to, data: withheld.append(data) or False  # type: ignore[func-returns-value]
    scene.bob.move(NEW)
    scene.world.run(0.05)
    scene.bob.crash()
    scene.world.tap = None
    scene.world.strangers[ip(NEW)] = lambda source, to, data: scene.inject(data, NEW)
    for data in withheld:
        scene.inject(data, NEW)
    scene.world.run(30)
    assert scene.alice.named("redirect.refused", "path-challenge-failed")
    assert scene.alice.flows[scene.mirrored] == scene.mirrored


def test_acm_that_comes_after_a_newer_one(scene: Scene) -> None:
    """The newer one has not been applied yet.  The older one does not even draw a challenge."""
    scene.mallory.addresses.append(ip(LATER))
    own = MALLORY
    scene.as_mallory(acm(2**40 + 1, LATER, own), source=LATER)
    scene.world.run(0.05)
    scene.as_mallory(acm(2**40, MALLORY, own))
    scene.world.run(0.05)
    challenged = {m.epoch for m, *_ in scene.alice.messages if isinstance(m, messages.PathChallenge)}
    assert challenged == {2**40 + 1}
    assert scene.alice.named("redirect.refused", "stale-epoch")
    assert scene.alice.connection(scene.own.mirrored).announced_epoch == 2**40 + 1


def test_acm_from_elsewhere_than_it_announces(scene: Scene) -> None:
    scene.as_mallory(acm(2**40, VICTIM, MALLORY))
    scene.world.run(10)
    assert scene.alice.named("redirect.refused", "announced-from-elsewhere")
    scene.assert_nothing_moved()


@pytest.mark.parametrize("address", ["127.0.0.1", "224.0.0.1", "255.255.255.255", "169.254.1.1", "0.0.0.0"])
def test_acm_to_no_host_address(scene: Scene, address: str) -> None:
    scene.as_mallory(acm(2**40, address, MALLORY), source=address)
    scene.world.run(10)
    refused = scene.alice.named("redirect.refused", "no-host-address")
    malformed = scene.alice.named("packet.refused", "no-address")
    assert refused or malformed
    scene.assert_nothing_moved()


def test_acm_to_our_own_address(scene: Scene) -> None:
    scene.as_mallory(acm(2**40, ALICE, MALLORY), source=ALICE)
    scene.world.run(10)
    assert scene.alice.named("redirect.refused", "our-own-address")
    scene.assert_nothing_moved()


# -- an approved peer that wants more than its own ---------------------------------------------------------------------


def test_wrong_peer_acm(scene: Scene) -> None:
    """mallory announces a move of bob's address."""
    scene.as_mallory(acm(2**40, MALLORY, BOB, cids=(scene.alice.connection(scene.mirrored).cid,)))
    scene.world.run(10)
    assert scene.alice.named("redirect.refused", "no-connection")
    scene.assert_nothing_moved()


@pytest.mark.parametrize("what", list(messages.End))
def test_wrong_peer_end(scene: Scene, what: messages.End) -> None:
    """mallory knows the id of bob's connection, and ends it."""
    cid = scene.alice.connection(scene.mirrored).cid
    scene.as_mallory(messages.EndOf(77, what, (cid,)))
    scene.world.run(10)
    assert scene.alice.named("redirect.refused", "not-your-connection")
    assert scene.alice.connection(scene.mirrored).state is State.PROTECTED
    assert scene.mirrored in scene.alice.sockets
    assert not scene.alice.connection(scene.mirrored).peer_closed
    scene.assert_nothing_moved()


def test_wrong_peer_rst_question(scene: Scene) -> None:
    """mallory asks about bob's connection: not even whether there is a socket is told."""
    answers = len(scene.alice.messages)
    scene.as_mallory(messages.RstQuery(78, scene.alice.connection(scene.mirrored).cid))
    scene.world.run(10)
    assert scene.alice.named("redirect.refused", "not-your-connection")
    assert not [m for m, *_ in scene.alice.messages[answers:] if isinstance(m, messages.RstReply)]


def test_wrong_peer_claims_a_protected_connection(scene: Scene) -> None:
    """From its own address, and with bob's as forged source; with its own id and with bob's."""
    cid = scene.alice.connection(scene.mirrored).cid
    for claimed in (b"mallory!", cid):
        for source in (MALLORY, BOB):
            scene.as_mallory(messages.Protect(79, (claim(claimed, 2**40, scene.socket),)), source=source)
            scene.world.run(30)
    assert scene.alice.named("connection.refused", "not-proven")
    assert scene.alice.named("connection.refused", "claimed-by-another")
    assert scene.alice.connection(scene.mirrored).peer == scene.bob.static.public
    assert scene.alice.connection(scene.mirrored).cid == cid
    scene.assert_nothing_moved()


def test_wrong_peer_claims_with_a_forged_source(scene: Scene) -> None:
    """A connection of another host that is not protected yet.  The claim comes from the right address, it seems; but
    nobody there answers for mallory."""
    victims, there = scene.world.connect(scene.bob, scene.alice, 41000, watch=False)
    transactions = len(scene.alice.transactions)
    for _ in range(3):
        scene.as_mallory(messages.Protect(80, (claim(b"mallory!", 2**40, victims),)), source=BOB)
        scene.world.run(5)
    scene.world.run(30)
    assert scene.alice.named("connection.refused", "not-proven")
    assert scene.alice.engine.table.at(there) is None
    assert len(scene.alice.transactions) == transactions
    scene.as_mallory(acm(2**41, MALLORY, BOB))
    scene.world.run(10)
    assert scene.alice.named("redirect.refused", "no-connection")
    scene.assert_nothing_moved()


def test_wrong_peer_claims_one_connection_twice(scene: Scene) -> None:
    """Two ids for one socket, one id for two sockets: the first counts, and the kernel is asked once."""
    first, _ = scene.world.connect(scene.mallory, scene.alice, 51000, watch=False)
    second, _ = scene.world.connect(scene.mallory, scene.alice, 51001, watch=False)
    third, _ = scene.world.connect(scene.mallory, scene.alice, 51002, watch=False)
    claims = [(b"aaaaaaaa", first), (b"bbbbbbbb", first), (b"cccccccc", second), (b"cccccccc", third)]
    scene.as_claimant(claims)
    scene.world.run(10)
    table = scene.alice.engine.table
    assert table.at(first.mirrored) is table.get(b"aaaaaaaa")
    assert table.at(second.mirrored) is table.get(b"cccccccc")
    assert table.at(third.mirrored) is None
    assert table.get(b"bbbbbbbb") is None
    assert scene.alice.named("connection.refused", "claimed-by-another")
    assert scene.alice.transactions.count((1, 0)) == 2 + 2, "the kernel is asked once for each"


def test_wrong_peer_answers_what_others_were_asked(scene: Scene) -> None:
    """mallory answers alice's question to bob, whose number it guesses: the RST stays held."""
    scene.bob.crash()
    scene.alice.rst(scene.mirrored, 1)
    for number in range(1, 20):
        scene.as_mallory(messages.RstReply(number, alive=False))
    scene.world.run(30)
    assert scene.alice.verdicts == {1: False}


def test_redirect_at_a_victim(scene: Scene) -> None:
    """mallory, approved, announces its own connection to be at the victim's address, seemingly from there: a few small
    datagrams reach the victim, and no traffic."""
    reached: list[bytes] = []
    scene.world.strangers[ip(VICTIM)] = lambda source, to, data: reached.append(data)
    scene.as_mallory(acm(2**40, VICTIM, MALLORY), source=VICTIM)
    scene.world.run(60)
    assert 0 < len(reached) <= len(limits.CHALLENGE_RETRIES) + 1, "challenges, and one HELLO: it is seen elsewhere"
    assert max(map(len, reached)) < 64
    assert scene.alice.named("redirect.refused", "path-challenge-failed")
    assert scene.alice.flows[scene.own.mirrored] == scene.own.mirrored
    assert not scene.alice.named("move.received")

    # And not more for more announcements than mallory spends itself.
    reached.clear()
    start = len(scene.world.recorded)
    for i in range(200):
        scene.as_mallory(acm(2**40 + 1 + i, VICTIM, MALLORY), source=VICTIM)
        scene.world.run(0.05)
    scene.world.run(60)
    spent = [data for source, _, data in scene.world.recorded[start:] if source.host == ip(VICTIM)]
    assert sum(map(len, reached)) <= sum(map(len, spent)) + 5 * 64
    assert scene.alice.flows[scene.own.mirrored] == scene.own.mirrored


# -- strangers and changed keys ----------------------------------------------------------------------------------------


def stranger_init(scene: Scene, key: StaticKey, pattern: Pattern, counter: int = 1) -> bytes:
    """A well-formed first message from a key that alice does not know."""
    from redirectctl.proto.cookie import CookieJar
    from redirectctl.proto.initiate import prologue

    known = pattern is Pattern.IKPSK2
    wire = datagram.Pattern.IKPSK2 if known else datagram.Pattern.XX
    alice = scene.alice.static.public
    handshake = Handshake(
        pattern, True, key, scene.world.random.randbytes, prologue(2, wire, (2,)),
        remote_static=alice if known else None, psk=bytes(32) if known else None,
    )  # fmt: skip
    payload = counter.to_bytes(8, "big") if known else bytes(proto_limits.XX_PADDING)
    init = datagram.Init(2, wire, scene.world.random.getrandbits(32), (2,), handshake.write_message(payload))
    return CookieJar(alice if known else None).stamp(init.body(), scene.world.now)


def test_unknown_peer(scene: Scene) -> None:
    """A key that was never met, with the pattern of known peers: no session, only the hint to introduce itself."""
    key = StaticKey.from_private(b"u" * 32)
    scene.inject(stranger_init(scene, key, Pattern.IKPSK2), MALLORY)
    scene.world.run(5)
    assert scene.alice.named("packet.refused", "unknown-peer")
    assert key.public not in scene.alice.engine.peers


def test_unknown_peer_waits_for_a_person() -> None:
    """Met, it is told that it has to wait, and nothing about our sockets."""
    scene = Scene(Policy(first_contact="ask", long_lived_after=1.0))
    peer = scene.alice.engine.peers[scene.mallory.static.public]
    assert peer.state is PeerState.PENDING
    assert scene.alice.named("peer.first_contact")
    assert not scene.alice.flows
    assert not scene.alice.stored
    answers = [m for m, *_ in scene.alice.messages if isinstance(m, messages.Protected)]
    assert answers
    assert {v.status for m in answers for v in m.verdicts} == {messages.Status.PENDING}
    scene.as_mallory(acm(2**40, MALLORY, MALLORY))
    scene.world.run(5)
    assert scene.alice.named("packet.refused", "not-approved")


def test_unknown_peer_where_first_contact_is_refused() -> None:
    scene = Scene(Policy(first_contact="refuse", long_lived_after=1.0))
    assert scene.alice.named("packet.refused", "unknown-peer")
    assert not scene.alice.engine.peers
    assert not scene.alice.stored_peers


def test_rejected_peer(scene: Scene) -> None:
    key = scene.mallory.static.public
    scene.alice.engine.reject(scene.world.now, key)
    scene.alice.run()
    scene.world.run(400)
    scene.mallory.engine.meet(scene.world.now, SockAddr(ip(ALICE), PORT))
    scene.mallory.run()
    scene.world.run(10)
    assert scene.alice.named("packet.refused", "rejected-peer")
    assert not scene.alice.engine.peers[key].sessions
    assert not scene.alice.protects(scene.own.mirrored)
    assert scene.alice.protects(scene.mirrored)


def test_changed_key_is_loud(scene: Scene) -> None:
    """Another key answers at alice's address: an event, a peer to look at, and no protection, on any new connection."""
    scene.alice.crash()
    scene.bob.crash()
    scene.world.run(1)
    scene.bob.start()
    impostor = scene.world.host("impostor", VICTIM)
    impostor.addresses = [ip(ALICE)]
    scene.world.hosts.remove(scene.alice)
    socket, _ = scene.world.connect(scene.bob, impostor, 42000)
    scene.world.run(30)
    (event,) = scene.bob.named("peer.key_changed", "key-changed")[:1]
    assert event.address == ip(ALICE)
    assert event.peer == impostor.static.public
    assert event.details["known"] == scene.alice.static.public.hex()
    assert scene.bob.engine.peers[impostor.static.public].state is PeerState.CHANGED
    assert scene.bob.engine.peers[scene.alice.static.public].state is PeerState.APPROVED
    assert scene.bob.connection(socket).state is State.REFUSED
    assert scene.bob.connection(socket).reason == "key-changed"
    assert socket not in scene.bob.flows
    assert scene.bob.flows[scene.socket] == scene.socket

    # Only when a person forgets the old key is the new one met, like any other.
    scene.bob.engine.forget(scene.world.now, scene.alice.static.public)
    scene.bob.run()
    another, _ = scene.world.connect(scene.bob, impostor, 42001)
    scene.world.run(10)
    assert scene.bob.connection(another).state is State.PROTECTED


def test_changed_key_is_not_accepted_as_new(scene: Scene) -> None:
    """first_contact = "accept-new" accepts new hosts; not one that calls from where another key is known."""
    impostor = scene.world.host("impostor", VICTIM)
    scene.alice.crash()
    impostor.addresses = [ip(ALICE)]
    impostor.network_changed()
    impostor.engine.meet(scene.world.now, SockAddr(ip(BOB), PORT))
    impostor.run()
    scene.world.run(5)
    assert scene.bob.engine.peers[impostor.static.public].state is PeerState.PENDING


def test_many_changed_keys_are_bounded(scene: Scene) -> None:
    for i in range(limits.MAX_CHANGED + 20):
        scene.bob.engine.trust.another_key(
            scene.world.now + i, SockAddr(ip(ALICE), PORT), scene.alice.static.public, bytes((i,)) * 32
        )
    scene.bob.run()
    changed = [p for p in scene.bob.engine.peers.values() if p.state is PeerState.CHANGED]
    assert len(changed) == limits.MAX_CHANGED
    assert set(scene.bob.stored_peers) == set(scene.bob.engine.peers)


def test_man_in_the_middle_at_first_contact() -> None:
    """mallory answers as alice to bob and as bob to alice: each is shown mallory's fingerprint, not the other's."""
    world = World(seed=5)
    ask = Policy(first_contact="ask", long_lived_after=1.0)
    alice, bob = world.host("alice", ALICE, policy=ask), world.host("bob", BOB, policy=ask)
    towards_bob, towards_alice = world.host("mallory-1", VICTIM), world.host("mallory-2", VICTIM)
    towards_alice.static = towards_bob.static
    towards_bob.addresses, towards_alice.addresses = [], []
    for host in (towards_bob, towards_alice):
        host.start()

    def tap(source: SockAddr, to: SockAddr, data: bytes) -> bool:
        if source.host == ip(BOB) and to.host == ip(ALICE):
            towards_bob.addresses = [ip(ALICE)]
            towards_bob.deliver(data, source, to)
            return False
        return True

    world.tap = tap
    world.hosts.remove(alice)  # nothing of bob's reaches alice
    world.connect(bob, alice, 40000)
    world.run(5)
    world.tap = None
    world.hosts.append(alice)
    world.hosts.remove(bob)
    towards_bob.addresses, towards_alice.addresses = [], [ip(BOB)]
    towards_alice.engine.meet(world.now, SockAddr(ip(ALICE), PORT), ip(BOB))
    towards_alice.run()
    world.run(5)
    (at_bob,) = bob.named("peer.first_contact")
    (at_alice,) = alice.named("peer.first_contact")
    assert at_bob.peer is not None
    assert at_alice.peer is not None
    assert fingerprint(at_bob.peer) != fingerprint(alice.static.public)
    assert fingerprint(at_alice.peer) != fingerprint(bob.static.public)
    assert not bob.flows, "and nothing is protected before a person has compared"
    assert not alice.flows


def test_man_in_the_middle_after_first_contact(scene: Scene) -> None:
    """He changes any byte of any datagram between hosts that know each other: at worst they do not hear each other."""
    rng = random.Random(3)

    def tap(source: SockAddr, to: SockAddr, data: bytes) -> bool:
        changed = bytearray(data)
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
        for host in (scene.alice, scene.bob):
            host.deliver(bytes(changed), source, to)
        return False

    scene.world.tap = tap
    scene.bob.move(NEW)
    scene.world.run(60)
    assert scene.alice.flows[scene.mirrored] == scene.mirrored
    assert not scene.alice.named("peer.key_changed")
    scene.world.tap = None
    scene.world.run(60)
    assert agree(scene.alice, scene.bob, scene.mirrored)


# -- handshakes --------------------------------------------------------------------------------------------------------


def test_first_message_of_ik_replayed_moves_nothing(scene: Scene) -> None:
    """It can be recorded and sent again by anyone, so no address is learnt from it, first or second time."""
    inits: list[bytes] = []

    def tap(source: SockAddr, to: SockAddr, data: bytes) -> bool:
        if data[0] == datagram.Type.INIT and to.host == ip(ALICE):
            assert data[2] == datagram.Pattern.IKPSK2
            inits.append(data)
            return False
        return True

    scene.world.tap = tap
    scene.bob.engine.meet(scene.world.now, SockAddr(ip(ALICE), PORT), ip(BOB), scene.alice.static.public)
    scene.bob.run()
    scene.world.run(0.05)
    scene.bob.crash()
    scene.world.tap = None
    peer = scene.alice.engine.peers[scene.bob.static.public]
    before = peer.remote, peer.local, peer.session(scene.world.now), peer.secret
    for _ in range(3):
        for data in inits:
            scene.inject(data, MALLORY)
        scene.world.run(1)
    assert inits
    assert scene.alice.named("packet.refused", "replayed-handshake")
    assert (peer.remote, peer.local, peer.session(scene.world.now), peer.secret) == before
    assert len(scene.alice.named("packet.refused", "replayed-handshake")) == 2 * len(inits)
    scene.assert_nothing_moved()


def test_first_message_of_ik_replayed_after_a_restart(scene: Scene) -> None:
    """The greatest counter seen is stored: a restart forgets no replay."""
    sent: list[bytes] = []
    scene.world.tap = lambda source, to, data: (
        sent.append(data) or True if data[0] == datagram.Type.INIT and to.host == ip(ALICE) else True
    )
    scene.bob.engine.meet(scene.world.now, SockAddr(ip(ALICE), PORT), ip(BOB), scene.alice.static.public)
    scene.bob.run()
    scene.world.run(1)
    scene.bob.crash()
    scene.alice.crash()
    scene.alice.start()
    scene.world.tap = None
    for data in sent:
        scene.inject(data, MALLORY)
    scene.world.run(1)
    assert scene.alice.named("packet.refused", "replayed-handshake")


@pytest.mark.parametrize("spoofed", [True, False])
def test_handshake_flood(scene: Scene, spoofed: bool) -> None:
    """Thousands of first messages in a second.  What is held is bounded, answers are no larger than questions, and bob,
    who moves right then, is heard."""
    rng = random.Random(9)
    keys = [StaticKey.from_private(rng.randbytes(32)) for _ in range(3)]
    reached: dict[str, int] = {"in": 0, "out": 0}

    def count(source: SockAddr, to: SockAddr, data: bytes) -> bool:
        if source.host == ip(ALICE) and to.host != ip(BOB) and to.host != ip(NEW):
            reached["out"] += len(data)
        return True

    scene.world.tap = count
    for i in range(1500):
        data = stranger_init(scene, keys[i % 3], Pattern.XX if i % 2 else Pattern.IKPSK2, counter=i)
        reached["in"] += len(data)
        scene.inject(data, f"203.0.{rng.randrange(256)}.{rng.randrange(200)}" if spoofed else VICTIM)
        if i == 700:
            scene.bob.move(NEW)
        if i % 10 == 0:
            scene.world.run(0.006)
    scene.world.run(3)
    assert scene.alice.named("packet.refused", "cookie-required")
    assert len(scene.alice.engine.endpoint.half_open) <= proto_limits.HALF_OPEN_MAX
    assert len(scene.alice.engine.endpoint.responder._hints._buckets) <= proto_limits.RATE_LIMIT_SOURCES
    assert reached["out"] < reached["in"]
    assert {p.key for p in scene.alice.engine.peers.values()} == {scene.bob.static.public, scene.mallory.static.public}
    assert agree(scene.alice, scene.bob, scene.mirrored)

    # A stranger who is honest gets in as well: it answers the cookie.
    carol = scene.world.host("carol", "198.51.100.77")
    for i in range(300):
        scene.inject(stranger_init(scene, keys[0], Pattern.XX), f"203.0.{i % 256}.{i % 200}" if spoofed else VICTIM)
    scene.world.run(0.02)
    carol.engine.meet(scene.world.now, SockAddr(ip(ALICE), PORT))
    carol.run()
    scene.world.run(3)
    assert carol.static.public in scene.alice.engine.peers


def test_many_strangers_that_complete_first_contact_are_bounded() -> None:
    """What they can make alice keep, in memory and on disk; and a host that alice called herself is not pushed out."""
    scene = Scene(Policy(first_contact="ask", long_lived_after=1.0))
    called = scene.world.host("called", "198.51.100.80")
    mine, _ = scene.world.connect(scene.alice, called, 43000)
    scene.world.run(5)
    assert scene.alice.connection(mine).state is State.PENDING
    for i in range(proto_limits.PENDING_MAX + 30):
        stranger = scene.world.host(f"stranger-{i}", f"203.0.113.{i + 100}")
        stranger.engine.meet(scene.world.now, SockAddr(ip(ALICE), PORT))
        stranger.run()
        scene.world.run(0.3)
        endpoint = stranger.engine.endpoint
        endpoint.keep_alive(scene.world.now, endpoint.peers[scene.alice.static.public])
        for sent in endpoint.drain():
            scene.inject(sent.data, "203.0.113.99")  # it is told that it is seen elsewhere
        scene.world.run(0.1)
        scene.world.hosts.remove(stranger)
    engine = scene.alice.engine
    assert len(engine.peers) <= proto_limits.PENDING_MAX
    assert set(engine.agreement._told) <= set(engine.peers)
    assert set(scene.alice.stored_peers) == set(engine.peers)
    assert called.static.public in engine.peers
    assert scene.alice.named("packet.refused", "too-many-pending")


def test_strangers_are_bounded_where_all_are_accepted(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proto_limits, "PEERS_MAX", 5)
    for i in range(10):
        stranger = scene.world.host(f"stranger-{i}", f"203.0.113.{i + 100}")
        stranger.engine.meet(scene.world.now, SockAddr(ip(ALICE), PORT))
        stranger.run()
        scene.world.run(1)
    assert len(scene.alice.engine.peers) == 5
    assert scene.alice.named("packet.refused", "too-many-peers")


# -- garbage -----------------------------------------------------------------------------------------------------------


def test_truncated_datagrams(scene: Scene) -> None:
    """Every datagram of an opening and a move, cut at every length."""
    scene.bob.engine.meet(scene.world.now, SockAddr(ip(ALICE), PORT), ip(BOB), scene.alice.static.public)
    scene.bob.run()
    recorded = {d[0]: d for _, to, d in scene.world.recorded if to.host == ip(ALICE)}
    assert {datagram.Type.INIT, datagram.Type.FINAL, datagram.Type.TRANSPORT} <= set(recorded)
    known = set(scene.alice.engine.peers)
    for data in recorded.values():
        for length in range(len(data)):
            scene.alice.deliver(data[:length], SockAddr(ip(MALLORY), PORT), SockAddr(ip(ALICE), PORT))
    assert scene.alice.named("packet.refused", "too-short")
    reasons = {n.reason for n in scene.alice.notices if n.name in ("packet.refused", "redirect.refused")}
    assert reasons <= {"too-short", "bad-mac1", "no-such-handshake", "replayed", "forged", "unknown-session",
                       "bad-length"}  # fmt: skip
    assert set(scene.alice.engine.peers) == known
    scene.assert_nothing_moved()


def test_oversized_datagrams(scene: Scene) -> None:
    """Every datagram of an opening, and more after it, up to what UDP can carry."""
    scene.bob.engine.meet(scene.world.now, SockAddr(ip(ALICE), PORT), ip(BOB), scene.alice.static.public)
    scene.bob.run()
    recorded = {d[0]: d for _, to, d in scene.world.recorded if to.host == ip(ALICE)}
    sizes = (datagram.MAX_DATAGRAM + 1, 1500, 9000, 65507)
    for data in recorded.values():
        for size in sizes:
            scene.alice.deliver(data + bytes(size - len(data)), SockAddr(ip(MALLORY), PORT), SockAddr(ip(ALICE), PORT))
    assert len(recorded) >= 3
    assert len(scene.alice.named("packet.refused", "too-long")) == len(recorded) * len(sizes)
    scene.assert_nothing_moved()


def test_random_datagrams(scene: Scene) -> None:
    """Noise, and noise that begins as a datagram does."""
    rng = random.Random(4)
    indices = [s.local_index for p in scene.alice.engine.peers.values() for s in p.sessions]
    for i in range(3000):
        data = bytearray(rng.randbytes(rng.randrange(200)))
        if len(data) > 8 and i % 3:
            data[:4] = bytes((rng.randrange(9), 1, rng.randrange(2), 0))
            if i % 2:
                data[4:8] = rng.choice(indices).to_bytes(4, "big")
        scene.alice.deliver(bytes(data), SockAddr(ip(MALLORY), PORT), SockAddr(ip(ALICE), PORT))
    scene.world.run(5)
    refused = [n for n in scene.alice.notices if n.name in ("packet.refused", "redirect.refused")]
    assert len(refused) > 2500
    assert all(n.reason for n in refused)
    scene.assert_nothing_moved()


def test_garbage_inside_a_session(scene: Scene) -> None:
    """An approved peer sends what is no message."""
    rng = random.Random(6)
    endpoint = scene.mallory.engine.endpoint
    session = endpoint.peers[scene.alice.static.public].sessions[0]
    for i in range(500):
        garbage = bytes((i % 16,)) + rng.randbytes(rng.randrange(100))
        endpoint._seal(scene.world.now, session, garbage, SockAddr(ip(ALICE), PORT), ip(MALLORY))
        for event in endpoint.drain():
            scene.inject(event.data, MALLORY)
    scene.world.run(20)
    assert scene.alice.named("packet.refused", "unknown-message")
    assert scene.alice.named("packet.refused", "bad-length")
    assert all(n.peer == scene.mallory.static.public for n in scene.alice.named("packet.refused", "unknown-message"))
    scene.assert_nothing_moved()


# -- RSTs --------------------------------------------------------------------------------------------------------------


def held(scene: Scene, token: int, host: Host | None = None, socket: FourTuple | None = None) -> None:
    host, socket = host or scene.alice, socket or scene.mirrored
    host.rst(socket, token)


def test_rst_while_the_peer_is_alive_is_dropped(scene: Scene) -> None:
    held(scene, 1)
    assert scene.alice.verdicts == {}, "it waits for the answer"
    scene.world.run(1)
    assert scene.alice.verdicts == {1: False}
    assert scene.alice.named("rst.held", "peer-alive")
    for token in range(2, 20):
        held(scene, token)
        scene.world.run(0.1)
    assert not any(scene.alice.verdicts.values())
    assert len(scene.alice.named("rst.held")) == 1, "one event stands for many"


def test_rst_of_a_socket_that_is_gone_is_accepted(scene: Scene) -> None:
    scene.bob.sockets.discard(scene.socket)  # its daemon has not noticed yet
    held(scene, 1)
    scene.world.run(1)
    assert scene.alice.verdicts == {1: True}
    assert not scene.alice.named("rst.held")


def test_rst_of_a_connection_that_the_peer_has_closed_is_accepted(scene: Scene) -> None:
    scene.bob.closed(scene.socket)
    held(scene, 1)
    scene.world.run(1)
    assert scene.alice.verdicts == {1: True}


def test_rst_while_the_peer_is_unreachable_is_dropped(scene: Scene) -> None:
    scene.world.link.cut = True
    held(scene, 1)
    held(scene, 2)
    assert scene.alice.verdicts == {2: False}, "one question is enough"
    scene.world.run(20)
    assert scene.alice.verdicts == {1: False, 2: False}
    assert scene.alice.named("rst.held", "being-asked") or scene.alice.named("rst.held", "peer-unreachable")


def test_rst_while_there_is_no_path_is_dropped(scene: Scene) -> None:
    scene.bob.move()
    held(scene, 1, scene.bob, scene.socket)
    assert scene.bob.verdicts == {1: False}
    assert scene.bob.named("rst.held", "no-path")


def test_rst_of_an_unprotected_connection_is_accepted_at_once(scene: Scene) -> None:
    other, there = scene.world.connect(scene.bob, scene.alice, 44000, watch=False)
    held(scene, 1, scene.alice, there)
    held(scene, 2, scene.bob, other)
    assert scene.alice.verdicts == {1: True}
    assert scene.bob.verdicts == {2: True}


# -- eavesdroppers -----------------------------------------------------------------------------------------------------


def test_an_eavesdropper_reads_no_addresses_ports_or_ids(scene: Scene) -> None:
    """Who is protected with whom, and that a host moves, are in no datagram; nor are static keys of those who call."""
    scene.bob_moves()
    scene.alice.rst(scene.mirrored, 1)
    scene.world.run(1)
    scene.bob.closed(scene.socket)
    scene.world.run(1)
    everything = [data for _, _, data in scene.world.recorded]
    sent = [m for h in scene.world.hosts for m, *_ in h.messages]
    assert {messages.Protect, messages.Acm, messages.RstQuery, messages.EndOf} <= {type(m) for m in sent}
    secrets = [messages.encode(m)[:24] for m in sent if len(messages.encode(m)) >= 10]
    secrets += [ip(a).packed for a in (ALICE, BOB, NEW)]
    secrets += [c.cid for h in (scene.alice, scene.bob) for c in h.engine.table]
    secrets += [h.static.public for h in scene.world.hosts]
    assert len(everything) > 20
    for secret in secrets:
        assert not any(secret in data for data in everything), secret.hex()


# -- floods inside a session -------------------------------------------------------------------------------------------


def pending_scene() -> Scene:
    """alice asks a person about each new host, and nobody has answered about mallory."""
    scene = Scene(Policy(first_contact="ask", long_lived_after=1.0))
    scene.alice.engine.approve(scene.world.now, scene.bob.static.public)
    scene.alice.run()
    scene.world.run(60)
    assert scene.alice.connection(scene.mirrored).state is State.PROTECTED
    assert scene.alice.engine.peers[scene.mallory.static.public].state is PeerState.PENDING
    return scene


@pytest.mark.parametrize(
    "message",
    [
        acm(2**40, MALLORY, BOB),
        messages.Sync(1, (bytes(8),) * messages.MAX_CIDS),
        messages.Seen((bytes(8),)),
        messages.Bind(1, (messages.TokenArrival(bytes(8), bytes(8), 0, 0),)),
        messages.BindNumbers(1, ((bytes(8), bytes(8)),)),
        messages.RstQuery(1, bytes(8)),
        messages.EndOf(1, messages.End.KILL, (bytes(8),)),
        messages.PathProbe(bytes(8)),
        messages.PathChallenge(1, bytes(8), bytes(8)),
        messages.AcmAck(1, bytes(8), messages.AcmStatus.APPLIED, 1, SockAddr(ip(ALICE), PORT)),
    ],
    ids=lambda m: type(m).__name__,
)
def test_before_a_person_has_approved_only_a_greeting_is_heard(message: messages.Message) -> None:
    scene = pending_scene()
    answers = len(scene.alice.messages)
    looked: list[object] = []
    table = scene.alice.engine.table
    table.of = table.movable = lambda *_: looked.append(_) or []  # type: ignore[method-assign, func-returns-value]
    scene.as_mallory(message)
    scene.world.run(0.05)
    del table.of, table.movable
    assert not looked, "the table is not walked for a stranger"
    assert scene.alice.named("packet.refused", "not-approved")
    assert len(scene.alice.messages) == answers
    scene.assert_nothing_moved()


def test_a_flood_inside_a_session_does_not_stall_the_move_of_another(scene: Scene) -> None:
    for n in range(6000):
        scene.as_mallory(messages.Sync(n, ()))
    scene.world.run(0.02)
    assert scene.alice.named("packet.refused", "rate-limited")
    scene.bob.move(NEW)
    scene.world.run(1)
    assert agree(scene.alice, scene.bob, scene.mirrored)
    assert scene.alice.connection(scene.mirrored).remote_now == ip(NEW)

"""Claims proven on the connection itself: through NATs, with losses, without options, and who must not succeed.

bob, the client, claims; alice serves.
"""

from __future__ import annotations

import pytest

from redirectctl.flows import commands, constants
from redirectctl.flows.policy import Policy
from redirectctl.flows.proofs import CLAIMANT, Numbers, digest, proof_of_numbers
from redirectctl.flows.state import State
from redirectctl.wire import message as messages
from redirectctl.wire.addr import FourTuple, SockAddr
from redirectctl.wire.tunnel import Offer
from tests.sim.host import Host
from tests.sim.network import PORT, Link, ip
from tests.sim.shell import told
from tests.sim.world import World

ALICE, BOB, NEIGHBOUR = "192.0.2.1", "198.51.100.2", "198.51.100.3"
POLICY = Policy(first_contact="accept-new", long_lived_after=1.0)


def pair(seed: int = 1, link: Link | None = None, policy: Policy = POLICY) -> tuple[World, Host, Host]:
    world = World(seed=seed, link=link or Link())
    return world, world.host("alice", ALICE, policy=policy), world.host("bob", BOB, policy=policy)


def test_both_ends_know_each_others_tuple_and_offer() -> None:
    world, alice, bob = pair()
    socket, there = world.connect(bob, alice, 40000)
    world.run(20)
    mine, theirs = bob.connection(socket), alice.connection(there)
    assert mine.state is theirs.state is State.PROTECTED
    assert mine.peer_tuple == there
    assert not mine.natted
    assert mine.sending == theirs.receiving != mine.receiving == theirs.sending
    assert (mine.initiator, theirs.initiator) == (True, False)
    world.settled()


def test_tokens_are_listened_for_no_longer_than_a_claim_takes() -> None:
    world, alice, bob = pair()
    socket, there = world.connect(bob, alice, 40000)
    while not (bob.protects(socket) and alice.protects(there)):
        world.run(0.1)
    world.run(1)
    assert not alice.listening
    assert not bob.listening


@pytest.mark.parametrize("who", ["client", "server", "both"])
def test_behind_a_nat(who: str) -> None:
    world, alice, bob = pair()
    if who != "client":
        alice.addresses = [ip("10.0.0.1")]
        world.nat("203.0.113.1", alice).forward(alice)
    if who != "server":
        bob.addresses = [ip("10.0.0.1")]
        world.nat("203.0.113.2", bob)
    socket, there = world.connect(bob, alice, 40000)
    world.run(20)
    assert bob.connection(socket).peer_tuple == there != socket.mirrored
    assert alice.connection(there).peer_tuple == socket
    assert bob.connection(socket).natted
    assert alice.connection(there).natted
    world.settled()


def test_two_users_of_one_nat() -> None:
    world, alice, bob = pair()
    neighbour = world.host("neighbour", NEIGHBOUR)
    world.nat("203.0.113.2", bob, neighbour)
    _, there = world.connect(bob, alice, 40000)
    _, elsewhere = world.connect(neighbour, alice, 40000)
    world.run(20)
    assert alice.connection(there).peer == bob.static.public
    assert alice.connection(elsewhere).peer == neighbour.static.public
    world.settled()


@pytest.mark.parametrize("seed", range(8))
def test_lost_datagrams_and_tokens(seed: int) -> None:
    world, alice, bob = pair(seed, Link(loss=0.3, jitter=0.05, duplicate=0.1))
    sockets = [world.connect(bob, alice, 40000 + i) for i in range(20)]
    world.run(200)
    assert all(bob.protects(socket) == alice.protects(there) for socket, there in sockets)
    world.link = Link()
    world.run(100)
    assert all(bob.protects(socket) for socket, _ in sockets)
    world.settled()


@pytest.mark.parametrize("off", [(0, 0), (1, 0), (0, -1), (-1, 1)])
def test_stripped_options_fall_back_to_numbers(off: tuple[int, int]) -> None:
    world, alice, bob = pair(link=Link(strips=True))
    world.nat("203.0.113.2", bob)
    for port in range(5):
        world.connect(bob, alice, 40001 + port, watch=False)  # others that it could be
    socket, there = world.connect(bob, alice, 40000)
    ours, theirs = alice.bases(there)
    alice.numbers[there] = ours + off[0], theirs + off[1]
    world.run(20)
    assert bob.connection(socket).peer_tuple == there
    assert alice.protects(there)
    world.run(20)
    world.settled()


@pytest.mark.parametrize("lost", [False, True])
@pytest.mark.parametrize("kernel_delay", [0.0, 0.5])
def test_numbers_that_are_found_after_the_question_has_come_again(
    kernel_delay: float, lost: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a busy machine: it is one claim all the same, and what was answered first holds."""
    world, alice, bob = pair(link=Link(strips=True))
    alice.kernel_delay = kernel_delay
    socket, there = world.connect(bob, alice, 40000)
    late: list[commands.Command] = []
    carry_out = alice.carry_out

    def slow(command: commands.Command) -> None:
        if isinstance(command, commands.FindNumbers):
            late.append(command)
        else:
            carry_out(command)

    monkeypatch.setattr(alice, "carry_out", slow)
    while len(late) < 3:
        world.run(0.1)
    monkeypatch.undo()
    for number, command in enumerate(late):
        world.link.cut = lost and number == 0
        alice.carry_out(command)
        alice.run()
        world.run(0.2)
    world.link.cut = False
    world.run(20)
    assert bob.protects(socket)
    assert alice.protects(there)
    world.settled()


def test_numbers_that_wrap_are_proven_by_them_too() -> None:
    """One end counts a SYN that the other does not, and the base is the last of all numbers there."""
    world, alice, bob = pair(link=Link(strips=True))
    socket, there = world.connect(bob, alice, 40000)
    bob.numbers[socket] = 0, 2**32 - 1
    alice.numbers[there] = 0, 2**32 - 1
    world.run(20)
    assert bob.protects(socket)
    assert alice.protects(there)


def test_a_claim_that_expires_while_its_sockets_are_looked_up_is_not_taken_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """The claimant has given up meanwhile: nobody would be at the other end of what is taken on."""
    world, alice, bob = pair(link=Link(strips=True))
    _, there = world.connect(bob, alice, 40000)
    late: list[commands.Command] = []
    carry_out = alice.carry_out
    monkeypatch.setattr(
        alice, "carry_out", lambda c: late.append(c) if isinstance(c, commands.FindNumbers) else carry_out(c)
    )
    while not late:
        world.run(0.1)
    bob.crash()
    world.run(constants.CLAIM_TIME + 1)
    monkeypatch.undo()
    for command in late:
        alice.carry_out(command)
        alice.run()
    assert not alice.protects(there)
    assert there not in alice.flows


def test_numbers_are_compared_when_no_token_of_three_got_through() -> None:
    world, alice, bob = pair(link=Link(strips=True))
    socket, _ = world.connect(bob, alice, 40000)
    asked = told(bob, commands.AskNumbers)
    while not world.segments:
        world.run(0.01)
    first = world.now
    while not asked:
        world.run(0.01)
    assert world.now - first == pytest.approx(sum(constants.PROVE_RETRIES), abs=0.03)
    assert not bob.listening
    assert [p.source for p in world.segments] == [socket.local] * len(constants.PROVE_RETRIES)


@pytest.mark.parametrize("off", [(2, 0), (0, -2), (10**9, 10**9)])
def test_wrong_numbers(off: tuple[int, int]) -> None:
    world, alice, bob = pair(link=Link(strips=True))
    socket, there = world.connect(bob, alice, 40000)
    ours, theirs = alice.bases(there)
    alice.numbers[there] = (ours + off[0]) % 2**32, (theirs + off[1]) % 2**32
    world.run(20)
    assert bob.connection(socket).reason == "not-proven"
    assert alice.named("connection.refused", "not-proven")
    assert not alice.protects(there)
    world.settled()


def test_where_sequence_numbers_are_changed_on_the_way_the_claim_is_refused() -> None:
    """A SYN proxy: after a move neither end would accept what the other sends."""
    world, alice, bob = pair(link=Link(shift=10**9))
    socket, there = world.connect(bob, alice, 40000)
    world.run(5)
    assert (bob.connection(socket).state, bob.connection(socket).reason) == (State.REFUSED, "sequence-numbers-changed")
    assert alice.named("connection.refused", "sequence-numbers-changed")
    assert not alice.protects(there)
    assert there not in alice.flows


def test_what_could_not_be_proven_is_claimed_again() -> None:
    world, alice, bob = pair(link=Link(strips=True))
    socket, there = world.connect(bob, alice, 40000)
    true = alice.bases(there)
    alice.numbers[there] = 1, 2
    world.run(20)
    assert bob.connection(socket).reason == "not-proven"
    alice.numbers[there] = true
    world.run(40)
    assert bob.protects(socket)
    assert alice.protects(there)
    world.settled()


@pytest.mark.parametrize(("ours", "theirs"), [(True, False), (False, True), (True, True)])
def test_integrity(ours: bool, theirs: bool) -> None:
    world = World()
    alice = world.host("alice", ALICE, policy=Policy(integrity=theirs, first_contact="accept-new"))
    bob = world.host("bob", BOB, policy=Policy(integrity=ours, first_contact="accept-new"))
    socket, there = world.connect(bob, alice, 40000)
    world.run(40)
    if ours and theirs:
        assert bob.connection(socket).integrity
        assert alice.connection(there).integrity
    else:
        assert bob.connection(socket).reason == f"integrity-{'refused' if ours else 'required'}-there"
        assert alice.named("connection.refused", f"integrity-{'refused' if ours else 'required'}-here")
    world.settled()


def test_many_connections_are_claimed_some_at_a_time() -> None:
    world, alice, bob = pair()
    sockets = [world.connect(bob, alice, 40000 + i) for i in range(300)]
    assert len(sockets) > constants.CLAIM_WINDOW
    world.run(30)
    assert all(alice.protects(there) and bob.protects(socket) for socket, there in sockets)
    world.settled()


@pytest.mark.parametrize("how", ["closed", "released"])
@pytest.mark.parametrize("which", [0, 1])
def test_one_that_has_ended_before_its_turn_does_not_keep_the_others_from_theirs(
    which: int, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "CLAIM_WINDOW", 1)
    world, alice, bob = pair()
    sockets = [world.connect(bob, alice, 40000 + i)[0] for i in range(3)]
    while not (
        asked := {claim.cid for m, _, _ in bob.messages if isinstance(m, messages.Protect) for claim in m.claims}
    ):
        world.run(0.01)
    ended = [s for s in sockets if bob.connection(s).cid not in asked][which]
    if how == "closed":
        bob.closed(ended)
    else:
        bob.engine.release(world.now, bob.connection(ended).cid)
        bob.run()
    world.run(5)
    assert all(bob.protects(s) for s in sockets if s != ended)
    assert not alice.protects(ended.mirrored)
    world.settled()


def test_a_peer_that_restarts_again_and_again_while_claims_are_proven_is_left_alone_for_a_while() -> None:
    """It knows nothing of the claim each time that it is asked; tokens do not get through."""
    world, alice, bob = pair(link=Link(strips=True))
    socket, there = world.connect(bob, alice, 40000)

    def asked() -> int:
        return sum(isinstance(m, messages.Protect) for m, _, _ in bob.messages)

    for number in range(1, constants.CLAIM_TRIES + 1):
        while asked() < number:
            world.run(0.05)
        world.run(1)
        alice.crash()
        alice.start()
    world.run(10)
    assert (bob.connection(socket).state, bob.connection(socket).reason) == (State.UNSUPPORTED, "no-answer")
    assert asked() == constants.CLAIM_TRIES
    world.run(constants.UNSUPPORTED_TIME + 20)
    assert bob.protects(socket)
    assert alice.protects(there)


@pytest.mark.parametrize("answer", [None, {}], ids=["no answer", "not to be found out"])
def test_where_neither_tokens_nor_numbers_are_to_be_had_it_is_not_proven(answer: dict[FourTuple, Numbers]) -> None:
    world, alice, bob = pair(link=Link(strips=True))
    socket, there = world.connect(bob, alice, 40000)
    asked = told(bob, commands.AskNumbers, done=False)
    while not asked:
        world.run(0.1)
    assert asked[0].sockets == (socket,)
    if answer is not None:
        bob.engine.numbers(world.now, asked[0].purpose, answer)
        bob.run()
        assert bob.connection(socket).reason == "not-proven"
    world.run(constants.CLAIM_TIME + 0.1)
    assert (bob.connection(socket).state, bob.connection(socket).reason) == (State.REFUSED, "not-proven")
    assert not alice.protects(there)


def test_numbers_that_come_when_the_connection_has_ended_are_of_no_use() -> None:
    world, alice, bob = pair(link=Link(strips=True))
    socket, there = world.connect(bob, alice, 40000)
    asked = told(bob, commands.AskNumbers, done=False)
    while not asked:
        world.run(0.1)
    bob.closed(socket)
    sent = len(bob.messages)
    bob.engine.numbers(world.now, asked[0].purpose, {socket: bob.bases(socket)})
    bob.run()
    world.run(5)
    assert not any(isinstance(m, messages.BindNumbers) for m, _, _ in bob.messages[sent:])
    assert not alice.protects(there)


def test_a_socket_table_that_cannot_be_read_for_a_moment_costs_a_token() -> None:
    world, alice, bob = pair()
    socket, there = world.connect(bob, alice, 40000)
    alice.socket_table_fails = True
    world.run(1.3)
    assert not bob.protects(socket)
    assert not [p for p in world.segments if p.source == there.local], "nothing goes back on what is not there"
    alice.socket_table_fails = False
    world.run(1)
    assert bob.protects(socket)
    assert alice.protects(there)


@pytest.mark.parametrize("stripped", [False, True], ids=["of a token", "of numbers"])
def test_a_refusal_that_was_lost_is_said_again(stripped: bool) -> None:
    """Sequence numbers are changed on the way, or wrong; the answer that says so gets lost."""
    world, alice, bob = pair(link=Link(strips=True) if stripped else Link(shift=10**9))
    socket, there = world.connect(bob, alice, 40000)
    status, reason = messages.Status.NUMBERS, "sequence-numbers-changed"
    if stripped:
        alice.numbers[there] = 1, 2
        status, reason = messages.Status.NOT_YOURS, "not-proven"

    def says_so() -> bool:
        message = alice.messages[-1][0] if alice.messages else None
        return isinstance(message, messages.Protected) and message.verdicts[0].status is status

    lost: list[bytes] = []
    world.tap = lambda source, to, data: (
        source.host != ip(ALICE) or not says_so() or bool(lost) or lost.append(data) is not None
    )
    world.run(8)
    assert lost
    assert bob.connection(socket).reason == reason
    assert len(alice.named("connection.refused", reason)) == 1


def test_a_restart_while_claims_are_proven() -> None:
    """Whoever restarts has forgotten the claim: it is begun anew."""
    for who in range(2):
        for after in (1.05, 1.09, 1.11, 1.13, 1.2):
            hosts = world, alice, bob = pair()
            socket, there = world.connect(bob, alice, 40000)
            world.run(after)
            crashing = hosts[1 + who]
            assert isinstance(crashing, Host)
            crashing.crash()
            world.run(0.5)
            crashing.start()
            for _ in range(20):
                bob.find()
                world.run(10)
            assert bob.protects(socket)
            assert alice.protects(there)
            world.settled()


def test_a_datagram_from_elsewhere_is_answered_with_where_it_came_from() -> None:
    """The NAT gives bob another port, which bob cannot see."""
    world, alice, bob = pair()
    nat = world.nat("203.0.113.2", bob)
    world.connect(bob, alice, 40000)
    world.run(5)
    peer = bob.engine.peers[alice.static.public]
    before = peer.reflexive
    nat.rebind("203.0.113.3")
    world.run(60)  # a keepalive is due
    assert before is not None
    assert before.host == ip("203.0.113.2")
    assert peer.reflexive is not None
    assert peer.reflexive.host == ip("203.0.113.3")
    assert bob.named("move.started", "observed-address-changed")
    assert alice.engine.peers[bob.static.public].addresses == (ip(BOB),)


@pytest.mark.parametrize("natted", [True, False])
def test_nats_are_kept_alive_where_there_are_some(natted: bool) -> None:
    world, alice, bob = pair()
    if natted:
        world.nat("203.0.113.2", bob)
    socket, _ = world.connect(bob, alice, 40000)
    world.run(130)
    start = len(world.recorded)
    world.run(100)
    sent = [data for source, *_, data in world.recorded[start:] if source.host == ip(BOB)]
    assert bob.protects(socket)
    assert bool([data for data in sent if len(data) == 32]) == natted


# -- who must not succeed ----------------------------------------------------------------------------------------------


class Thief:
    """mallory, approved by alice, wants bob's connection, which is not protected yet."""

    def __init__(self, *addresses: str, bobs: str = BOB, public: str | None = None) -> None:
        self.world = World(seed=3)
        self.alice = self.world.host("alice", ALICE)
        self.bob = self.world.host("bob", bobs)
        self.mallory = self.world.host("mallory", *addresses)
        if public is not None:
            self.world.nat(public, self.bob, self.mallory)
        self.world.connect(self.mallory, self.alice, 50000)
        self.socket, self.there = self.world.connect(self.bob, self.alice, 40000, watch=False)
        self.world.run(5)
        assert self.mallory.engine.peers[self.alice.static.public].session(self.world.now)

    def say(self, message: messages.Message) -> None:
        endpoint = self.mallory.engine.endpoint
        peer = endpoint.peers[self.alice.static.public]
        endpoint.send(self.world.now, peer, message, SockAddr(ip(ALICE), PORT), self.mallory.addresses[0])
        self.mallory.run()
        for event in endpoint.drain():
            source = SockAddr(self.mallory.addresses[0], PORT)
            self.world.transmit(source, SockAddr(ip(ALICE), PORT), event.data, self.mallory)  # type: ignore[union-attr]

    def claim(self, cid: bytes = b"mallory!", token: bytes = b"T" * 8) -> None:
        offer = Offer(1, bytes(16), 0)
        self.say(messages.Protect(9, (messages.Claim(cid, 2**40, self.socket, digest(token), offer),)))
        self.world.run(0.1)

    def spoof(self, token: bytes = b"T" * 8) -> None:
        """As if bob had sent it; a NAT treats it as bob's."""
        self.world.segment(*self.socket, token, self.bob)
        self.world.run(0.1)

    def answers(self) -> list[bytes]:
        """Tokens that mallory receives."""
        mine = self.mallory.addresses
        return [p.data for p in self.world.segments if p.source.host == ip(ALICE) and p.to.host in mine]

    def assert_in_vain(self, *reasons: str) -> None:
        self.world.run(60)
        for reason in reasons:
            assert self.alice.named("connection.refused", reason)
        assert not self.alice.protects(self.there)
        self.bob.opened(self.socket)
        self.world.run(30)
        assert self.alice.connection(self.there).peer == self.bob.static.public
        assert self.bob.protects(self.socket)
        self.world.settled()


SAME_NAT = {"addresses": ("10.0.0.3",), "bobs": "10.0.0.2", "public": "203.0.113.2"}
SAME_LAN = {"addresses": (NEIGHBOUR,)}


@pytest.fixture(params=[SAME_NAT, SAME_LAN], ids=["same NAT", "same LAN"])
def thief(request: pytest.FixtureRequest) -> Thief:
    where = dict(request.param)
    return Thief(*where.pop("addresses"), **where)


def test_claim_of_anothers_connection_without_a_token(thief: Thief) -> None:
    thief.claim()
    thief.say(messages.Bind(10, (messages.TokenArrival(b"mallory!", b"T" * 8, 0, 0),)))
    thief.assert_in_vain("not-proven")


def test_claim_of_anothers_connection_with_a_forged_segment(thief: Thief) -> None:
    """The token arrives; the one that goes back reaches bob, who knows of no claim."""
    known = len(thief.answers())
    thief.claim()
    thief.spoof()
    assert [p for p in thief.world.segments if p.source == thief.there.local and p.to == thief.there.remote]
    assert len(thief.answers()) == known
    for guess in range(200):
        thief.say(messages.Bind(100 + guess, (messages.TokenArrival(b"mallory!", guess.to_bytes(8), 0, 0),)))
        thief.world.run(0.01)
    thief.assert_in_vain("not-proven")


def test_claim_of_anothers_connection_by_guessed_numbers(thief: Thief) -> None:
    thief.claim()
    for guess in range(100):
        proof = proof_of_numbers(CLAIMANT, digest(b"T" * 8), guess, guess)
        thief.say(messages.BindNumbers(100 + guess, ((b"mallory!", proof),)))
        thief.world.run(0.01)
    looked = [m for m, *_ in thief.alice.messages if isinstance(m, messages.Protected)]
    assert looked
    thief.assert_in_vain("not-proven")


@pytest.mark.parametrize("strips", [True, False])
def test_guessing_without_end_does_not_keep_others_from_being_proven(
    strips: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each guess of mallory's costs a look at the sockets; bob's connection may have to be proven in the same way."""
    thief = Thief(NEIGHBOUR)
    thief.world.link = Link(strips=strips)
    looks: list[commands.FindNumbers] = []
    carry_out = thief.alice.carry_out

    def counting(command: commands.Command) -> None:
        if isinstance(command, commands.FindNumbers):
            looks.append(command)
        carry_out(command)

    monkeypatch.setattr(thief.alice, "carry_out", counting)
    began = thief.world.now
    size = messages.MAX_PROTECT
    thief.bob.opened(thief.socket)
    for number in range(300):
        cids = [(number % 40 * size + n + 1).to_bytes(8) for n in range(size)]
        offer = Offer(1, bytes(16), 0)
        claims = tuple(
            messages.Claim(c, 2**40 + number, thief.socket, digest(c + bytes([number // 40])), offer) for c in cids
        )
        thief.say(messages.Protect(1000 + 2 * number, claims))
        thief.say(messages.BindNumbers(1001 + 2 * number, tuple((cid, b"guessed!") for cid in cids)))
        thief.world.run(0.05)
    mallorys = [each for each in looks if each.remote == ip(NEIGHBOUR)]
    assert len(mallorys) <= constants.NUMBERED_BURST + (thief.world.now - began) * constants.NUMBERED_RATE
    assert len(mallorys) >= constants.NUMBERED_BURST
    assert thief.alice.named("packet.refused", "rate-limited")
    thief.world.run(20)
    assert thief.bob.protects(thief.socket)
    assert thief.alice.connection(thief.there).peer == thief.bob.static.public


def test_claim_of_anothers_connection_on_the_same_host() -> None:
    """mallory is another user there, with a daemon of its own on another port: it cannot read bob's connection."""
    thief = Thief(BOB, bobs=BOB)
    thief.world.hosts.remove(thief.mallory)
    claim = messages.Claim(b"mallory!", 2**40, thief.socket, digest(b"T" * 8), Offer(1, bytes(16), 0))
    endpoint = thief.mallory.engine.endpoint
    endpoint.send(thief.world.now, endpoint.peers[thief.alice.static.public], messages.Protect(9, (claim,)))
    for event in endpoint.drain():
        source = SockAddr(ip(BOB), 7748)
        thief.world.transmit(source, SockAddr(ip(ALICE), PORT), event.data)  # type: ignore[union-attr]
    thief.world.run(60)
    assert thief.alice.named("connection.refused", "not-proven")
    assert not thief.alice.protects(thief.there)


def test_a_recorded_token_replayed(thief: Thief) -> None:
    """The token that protected bob's connection, on mallory's, for a claim of mallory's with the same digest."""
    thief.bob.opened(thief.socket)
    thief.world.run(30)
    tokens = [p.data for p in thief.world.segments if p.to == thief.there.local and p.data]
    for token in tokens:
        thief.claim(token=token)
        thief.spoof(token)
    thief.world.run(60)
    assert thief.alice.named("connection.refused", "claimed-by-another")
    assert thief.alice.connection(thief.there).peer == thief.bob.static.public
    thief.world.settled()


def test_a_token_replayed_on_another_connection_does_not_help_or_hinder(thief: Thief) -> None:
    """mallory reads bob's token on the LAN and sends it on a connection of its own: that is not what bob claims."""
    own = next(s for s in thief.mallory.sockets)
    thief.bob.opened(thief.socket)
    thief.world.run(0.9)
    while not [p for p in thief.world.segments if p.source == thief.socket.local]:
        thief.world.run(0.001)
    token = thief.world.segments[-1].data
    thief.world.segment(*own, token, thief.mallory)
    thief.world.run(40)
    assert thief.bob.protects(thief.socket)
    assert thief.alice.connection(thief.there).peer == thief.bob.static.public
    thief.world.settled()


def test_forged_tokens_do_not_keep_a_claim_from_being_proven(thief: Thief) -> None:
    """Segments with tokens of no claim, to both ends, while bob's is under way."""
    thief.bob.opened(thief.socket)
    thief.world.run(0.9)
    for i in range(60):
        thief.world.segment(*thief.there, i.to_bytes(8), thief.alice)
        thief.spoof(i.to_bytes(8))
    thief.world.run(40)
    assert thief.bob.protects(thief.socket)
    assert thief.alice.connection(thief.there).peer == thief.bob.static.public


def test_a_forged_token_that_the_claimant_has_passed_on_does_not_keep_the_true_one_from_counting() -> None:
    """It comes before the true one, which takes its time."""
    world, alice, bob = pair()
    socket, there = world.connect(bob, alice, 40000)
    forging = False
    world.tap_segment = lambda source, to: forging or source != there.local
    while not world.segments:
        world.run(0.01)
    forging = True
    world.segment(*there, b"forged!!", alice)
    forging = False
    world.run(0.1)
    passed_on = [m.tokens for m, _, _ in bob.messages if isinstance(m, messages.Bind)]
    assert [one.token for tokens in passed_on for one in tokens] == [b"forged!!"]
    world.tap_segment = None
    world.run(2)
    assert bob.protects(socket)
    assert alice.protects(there)


@pytest.mark.parametrize("released", [False, True])
def test_a_connection_that_has_moved_is_not_taken_on_by_who_has_its_old_address(released: bool) -> None:
    """mallory gets the address that bob has left, and claims what began there; it may have overheard a lot."""
    world, alice, bob = pair()
    socket, there = world.connect(bob, alice, 40000)
    mallory = world.host("mallory", NEIGHBOUR)
    world.connect(mallory, alice, 50000)
    world.run(5)
    bob.move("203.0.113.9")
    world.run(2)
    if released:  # it stays as it is, and is not protected any more
        alice.engine.release(world.now, alice.connection(there).cid)
        alice.run()
    mallory.move(BOB)
    world.run(2)
    for cid, claimed in ((b"mallory!", socket), (bob.connection(socket).cid, socket)):
        claim = messages.Claim(cid, 2**50, claimed, digest(b"T" * 8), Offer(1, bytes(16), 0))
        mallory.engine.host.send(world.now, alice.static.public, messages.Protect(9, (claim,)))
        mallory.run()
        world.run(0.1)
        before = len(world.segments)
        world.segment(*socket, b"T" * 8, mallory)
        world.run(0.1)
        assert not [p for p in world.segments[before:] if p.source.host == ip(ALICE)]
        assert alice.named("connection.refused", "claimed-by-another")
        alice.notices.clear()
    assert alice.connection(there).peer == bob.static.public
    assert alice.flows[there].remote.host == ip("203.0.113.9")


def test_only_so_many_places_are_looked_up_for_one_token(thief: Thief) -> None:
    """mallory sends it from ever other ports."""
    looked = told(thief.alice, commands.CheckSockets)
    thief.claim()
    for port in range(10):
        there = SockAddr(thief.socket.local.host, 1000 + port)
        thief.world.segment(there, thief.socket.remote, b"T" * 8, thief.bob)
        thief.world.run(0.1)
    assert len(looked) == constants.MAX_PLACES


def test_only_so_many_tokens_go_back_for_one_claim() -> None:
    world, alice, bob = pair()
    socket, there = world.connect(bob, alice, 40000)
    sent = told(alice, commands.Prove)
    world.tap = lambda source, to, data: not (source.host == ip(BOB) and any(sent))  # it is never bound
    while not sent:
        world.run(0.01)
    token = world.segments[0].data
    for _ in range(20):
        world.segment(*socket, token, bob)
        world.run(0.05)
    assert len(sent) == constants.MAX_ANSWERS
    assert {proof.socket for command in sent for proof in command.proofs} == {there}
    assert not alice.protects(there)


def test_only_so_many_proofs_by_numbers_are_looked_at_for_one_claim() -> None:
    world, alice, bob = pair(link=Link(strips=True))
    socket, there = world.connect(bob, alice, 40000)
    asked = told(alice, commands.FindNumbers, done=False)
    while not asked:
        world.run(0.1)
    cid = bob.connection(socket).cid
    said = len(alice.messages)
    for number in range(5):
        bob.engine.host.send(world.now, alice.static.public, messages.BindNumbers(1000 + number, ((cid, bytes(8)),)))
        bob.run()
        world.run(0.02)
    assert len(asked) == constants.MAX_NUMBERED
    refused = [v.status for m, _, _ in alice.messages[said:] if isinstance(m, messages.Protected) for v in m.verdicts]
    assert refused == [messages.Status.NOT_YOURS] * (5 - constants.MAX_NUMBERED + 1)
    assert not alice.protects(there)


def test_only_so_many_forged_tokens_are_passed_on_by_a_claimant() -> None:
    """Each costs it a try; then numbers are compared."""
    world, alice, bob = pair()
    _, there = world.connect(bob, alice, 40000)
    true = world.segment
    world.tap_segment = lambda source, to: source != there.local or forging
    forging = False
    while not world.segments:
        world.run(0.01)
    for number in range(10):
        forging = True
        true(*there, number.to_bytes(8), alice)
        forging = False
        world.run(0.2)
    passed_on = {one.token for m, _, _ in bob.messages if isinstance(m, messages.Bind) for one in m.tokens}
    assert len(passed_on) == len(constants.PROVE_RETRIES)


def test_one_token_for_two_claims_is_good_for_the_first_only() -> None:
    thief = Thief(NEIGHBOUR)
    own = next(iter(thief.mallory.sockets))
    offer = Offer(1, bytes(16), 0)
    said = len(thief.alice.messages)
    claims = [messages.Claim(cid, 2**40, own, digest(b"T" * 8), offer) for cid in (b"claim  1", b"claim  2")]
    thief.say(messages.Protect(9, tuple(claims)))
    thief.world.run(0.1)
    (answer,) = [m for m, _, _ in thief.alice.messages[said:] if isinstance(m, messages.Protected)]
    assert [(v.cid, v.status) for v in answer.verdicts] == [(b"claim  1", messages.Status.PROVE)]
    assert thief.alice.named("connection.refused", "claimed-by-another")


def test_an_id_of_another_connection_is_refused_even_where_both_are_the_claimants() -> None:
    """An id names one connection."""
    world, alice, bob = pair()
    first, _ = world.connect(bob, alice, 40000)
    second, there = world.connect(bob, alice, 40001, watch=False)
    world.run(5)
    cid = bob.connection(first).cid
    claim = messages.Claim(cid, 2**40, second, digest(b"T" * 8), Offer(1, bytes(16), 0))
    bob.engine.host.send(world.now, alice.static.public, messages.Protect(9, (claim,)))
    bob.run()
    world.run(0.1)
    world.segment(*second, b"T" * 8, bob)
    world.run(0.1)
    assert alice.named("connection.refused", "claimed-by-another")
    assert alice.engine.table.at(there) is None
    assert not [p for p in world.segments if p.source == there.local and p.to == second.local]
    assert bob.protects(first)
    assert alice.connection(first.mirrored).cid == cid


def test_a_peer_that_says_yes_without_having_seen_the_token() -> None:
    """mallory has the control port of the address at which bob's server is: it is no end of the connection."""
    world, alice, bob = pair()
    socket, _ = world.connect(bob, alice, 40000)
    say = alice.engine.endpoint.send

    def lying(now, peer, message, *path):  # type: ignore[no-untyped-def]
        if isinstance(message, messages.Protected):
            verdicts = tuple(
                messages.Verdict(v.cid, 5, messages.Status.OK, socket.mirrored, Offer(1, bytes(16), 0), b"guessed!")
                for v in message.verdicts
            )
            message = messages.Protected(message.request, verdicts)
        return say(now, peer, message, *path)

    alice.engine.endpoint.send = lying  # type: ignore[method-assign]
    world.run(40)
    assert bob.connection(socket).reason == "not-proven"
    assert not bob.flows
    world.settled()


def test_claims_without_end_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "MAX_CLAIMED", 512)
    thief = Thief(NEIGHBOUR)
    for i in range(100):
        claims = tuple(
            messages.Claim(n.to_bytes(8), 2**40, thief.socket, digest(n.to_bytes(8)), Offer(1, bytes(16), 0))
            for n in range(i * 12 + 1, i * 12 + 13)
        )
        thief.say(messages.Protect(1000 + i, claims))
        thief.world.run(0.02)
    assert thief.alice.named("connection.refused", "too-many-claims")
    thief.assert_in_vain("not-proven")

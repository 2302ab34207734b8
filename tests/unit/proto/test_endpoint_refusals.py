"""What an endpoint refuses, how much strangers can make it do and hold, and versions."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from redirectctl.proto import constants, events
from redirectctl.proto.cookie import CookieJar
from redirectctl.proto.initiate import prologue
from redirectctl.proto.noise import Handshake, StaticKey
from redirectctl.proto.noise import Pattern as NoisePattern
from redirectctl.proto.peer import PeerState
from redirectctl.wire import datagram
from redirectctl.wire.addr import SockAddr
from redirectctl.wire.datagram import Pattern, Type
from tests.sim.endpoints import DONE, HELLO, End, Net, lose, met, pair, patterns, talk
from tests.sim.network import ip

MALLORY = SockAddr(ip("203.0.113.66"), 7747)


def deliver(end: End, data: bytes, source: SockAddr = MALLORY) -> list[str]:
    """The reasons for which it is refused."""
    before = len(end.refused())
    end.endpoint.receive(end.net.now, data, source, end.address)
    end.flush()
    return end.refused()[before:]


def xx_init(net: Net, version: int = 1, versions: tuple[int, ...] = (1,), jar: CookieJar | None = None) -> bytes:
    """A stranger's first message."""
    key = StaticKey.from_private(net.random.randbytes(32))
    handshake = Handshake(NoisePattern.XX, True, key, net.random.randbytes, prologue(version, Pattern.XX, versions))
    noise = handshake.write_message(bytes(constants.XX_PADDING))
    init = datagram.Init(version, Pattern.XX, net.random.getrandbits(32), versions, noise)
    return (jar or CookieJar(None)).stamp(init.body(), net.now)


# -- keys --------------------------------------------------------------------------------------------------------------


def test_our_own_key() -> None:
    """A connection to ourselves, or our messages thrown back at us."""
    net, alice, _ = pair()
    alice.contact(alice)
    net.run(1)
    assert alice.failed() == ["own-key"]
    assert "own-key" in alice.refused()
    assert not alice.endpoint.peers


def test_our_own_key_in_the_last_message() -> None:
    """Another host has it too, from a backup, and does not mind."""
    net, alice, _ = pair()
    theirs = prologue(1, Pattern.XX, (1,))
    handshake = Handshake(NoisePattern.XX, True, alice.static, net.random.randbytes, theirs)
    init = datagram.Init(1, Pattern.XX, 77, (1,), handshake.write_message(bytes(constants.XX_PADDING)))
    assert deliver(alice, CookieJar(None).stamp(init.body(), net.now)) == []
    response = datagram.decode(alice.sent(Type.RESPONSE)[-1])
    assert isinstance(response, datagram.Response)
    handshake.read_message(response.noise)
    final = datagram.FinalMessage(1, response.sender, handshake.write_message())
    assert deliver(alice, final.encode()) == ["own-key"]
    assert not alice.endpoint.peers
    assert deliver(alice, final.encode()) == ["no-such-handshake"]


@pytest.mark.parametrize(("length", "reasons"), [(7, ["bad-length"]), (8, []), (9, ["bad-length"])])
def test_a_known_peer_counts_its_first_messages_in_eight_bytes(length: int, reasons: list[str]) -> None:
    net, alice, bob = met()
    secret = bob.peer(alice).secret
    handshake = Handshake(
        NoisePattern.IKPSK2, True, bob.static, net.random.randbytes, prologue(1, Pattern.IKPSK2, (1,)),
        remote_static=alice.static.public, psk=secret,
    )  # fmt: skip
    noise = handshake.write_message((2**40).to_bytes(length, "big"))
    init = datagram.Init(1, Pattern.IKPSK2, 77, (1,), noise)
    answers = len(alice.sent(Type.RESPONSE))
    assert deliver(alice, CookieJar(alice.static.public).stamp(init.body(), net.now)) == reasons
    assert len(alice.sent(Type.RESPONSE)) - answers == (not reasons)


def test_an_answer_in_another_pattern_than_the_question_is_none() -> None:
    net, alice, bob = pair()
    bob.contact(alice)
    deliver(alice, bob.sent(Type.INIT)[0], bob.at())
    answer = bytearray(alice.sent(Type.RESPONSE)[0])
    net.queue.clear()
    answer[2] = Pattern.IKPSK2
    assert deliver(bob, bytes(answer), alice.at()) == ["no-such-handshake"]
    answer[2] = Pattern.XX
    assert deliver(bob, bytes(answer), alice.at()) == []
    assert bob.peer(alice).sessions


def test_a_rejected_peer_gets_no_session() -> None:
    net, alice, bob = met()
    net.run(200)
    alice.peer(bob).state = PeerState.REJECTED
    bob.contact(alice, known=True)
    net.run(20)
    assert "rejected-peer" in alice.refused()
    assert set(alice.refused()) <= {"rejected-peer", "unknown-session", "no-such-handshake"}, "the last try is XX"
    assert not alice.peer(bob).sessions
    assert not alice.heard()


def test_whom_we_reject_we_do_not_talk_to_either() -> None:
    net, alice, bob = met()
    net.run(200)
    bob.peer(alice).state = PeerState.REJECTED
    bob.contact(alice, known=True)
    net.run(5)
    assert bob.failed() == ["rejected-peer"]
    assert not bob.peer(alice).sessions


def test_first_contact_refused() -> None:
    net, alice, bob = pair()
    alice.admit = None
    bob.contact(alice)
    net.run(5)
    assert "unknown-peer" in alice.refused()
    assert not alice.endpoint.peers
    bob2 = net.end("bob2", "198.51.100.3")
    bob2.admit = None
    bob2.contact(bob)
    net.run(5)
    assert bob2.failed() == ["unknown-peer"], "whoever waits for this contact learns of it"


def test_a_changed_key() -> None:
    net, alice, bob = met()
    bob.restart()
    net.ends.remove(alice)
    impostor = net.end("impostor", "192.0.2.1")
    bob.contact(alice, known=True)
    net.run(5)
    assert bob.of(events.KeyChanged) == [
        events.KeyChanged(alice.at(), alice.static.public, impostor.static.public)
    ]  # fmt: skip
    assert bob.failed() == ["key-changed"]
    assert impostor.static.public not in bob.endpoint.peers
    assert not bob.peer(alice).sessions


def test_who_makes_us_ask_without_the_secret_and_answers_first_changes_no_key() -> None:
    """He reads what we send, and says in the peer's place that it does not know us; then he is the quicker one."""
    net, alice, bob = met()
    bob.restart()
    net.run(200)
    mallory = net.end("mallory", "203.0.113.66")

    def unknown_then_answer(source: SockAddr, to: SockAddr, data: bytes) -> Iterable[tuple[float, bytes]]:
        init = datagram.decode(data) if data[0] == Type.INIT else None
        if to != alice.at() or not isinstance(init, datagram.Init):
            return [(0.01, data)]
        if init.pattern is Pattern.XX:
            mallory.endpoint.receive(net.now, data, source, mallory.address)
            mallory.flush()
        else:
            bob.endpoint.receive(net.now, datagram.Unknown(init.version, init.sender).encode(), alice.at(), bob.address)
            bob.flush()
        return [(0.2, data)]

    net.filter = unknown_then_answer
    bob.contact(alice, known=True)
    net.run(10)
    assert not bob.of(events.KeyChanged)
    assert not bob.failed()
    assert bob.peer(alice).sessions


def test_attempts_for_different_keys_at_one_address_do_not_share_an_answer() -> None:
    net, alice, bob = met()
    bob.restart()
    net.run(200)
    other = net.end("other", "203.0.113.7")
    bob.contact(other)
    net.run(1)
    net.run(200)
    before = bob.failed()
    assert not bob.peer(alice).sessions
    bob.endpoint.contact(net.now, alice.at(), bob.address, other.static.public)  # somebody has named that address
    bob.flush()
    bob.contact(alice, known=True)
    net.run(20)
    assert bob.peer(alice).sessions
    assert bob.failed()[len(before) :] == ["key-changed"]
    assert bob.of(events.KeyChanged)[-1].known == other.static.public


def test_what_the_answer_of_a_stranger_comes_from_is_not_where_the_peer_is() -> None:
    """Somebody on the path changes the source of the answer: we go on talking to where we sent the question."""
    net, alice, bob = pair()
    bob.contact(alice)
    init = bob.sent(Type.INIT)[0]
    net.queue.clear()
    deliver(alice, init, bob.at())
    deliver(bob, alice.sent(Type.RESPONSE)[0], MALLORY)
    assert bob.peer(alice).remote == alice.at()


# -- repeated and forged -----------------------------------------------------------------------------------------------


def test_a_first_message_of_ik_counts_once_and_moves_nothing() -> None:
    net, alice, bob = met()
    bob.contact(alice, known=True)
    init = bob.sent(Type.INIT)[-1]
    net.run(1)
    before = alice.peer(bob).remote, alice.peer(bob).session(net.now)
    for _ in range(3):
        assert deliver(alice, init) == ["replayed-handshake"]
    assert (alice.peer(bob).remote, alice.peer(bob).session(net.now)) == before
    assert not alice.endpoint.half_open


def test_a_first_message_of_ik_that_another_delivers_first_moves_nothing() -> None:
    """An address is only learnt from a message in the session that the answer made."""
    net, alice, bob = met()
    net.filter = lambda source, to, data: []
    bob.contact(alice, known=True)
    before = alice.peer(bob).remote, alice.peer(bob).session(net.now)
    assert deliver(alice, bob.sent(Type.INIT)[-1]) == []
    assert alice.sent(Type.RESPONSE)
    net.run(1)
    assert (alice.peer(bob).remote, alice.peer(bob).session(net.now)) == before
    assert len(alice.of(events.SessionUp)) == 1


def test_unconfirmed_sessions_push_no_others_out() -> None:
    """Recorded first messages that were never delivered make sessions that nobody can use."""
    net, alice, bob = met()
    held: list[bytes] = []
    net.filter = lambda source, to, data: held.append(data) or [] if data[0] == Type.INIT else [(0.01, data)]
    for _ in range(10):
        bob.contact(alice, known=True)
        net.run(1)
    usable = alice.peer(bob).session(net.now)
    for data in held:
        deliver(alice, data)
    assert alice.peer(bob).session(net.now) is usable is not None
    assert len(alice.peer(bob).sessions) <= 2 * constants.SESSIONS_PER_PEER
    net.filter = lambda source, to, data: [(0.01, data)]
    talk(net, alice, bob)
    alice.peer(bob).keep = True
    net.run(160)
    assert alice.peer(bob).session(net.now) is not None, "and do not keep the good one from being renewed"


@pytest.mark.parametrize("kind", [Type.RESPONSE, Type.FINAL])
def test_altered_handshake_messages_leave_the_honest_ones_their_chance(kind: Type) -> None:
    net, alice, bob = pair()

    def altered(source: SockAddr, to: SockAddr, data: bytes) -> Iterable[tuple[float, bytes]]:
        if data[0] != kind:
            return [(0.01, data)]
        return [(0.005, data[:-1] + bytes((data[-1] ^ 1,))), (0.01, data)]

    net.filter = altered
    bob.contact(alice)
    net.run(2)
    talk(net, alice, bob)
    assert {"forged-response", "forged-final"} & {*alice.refused(), *bob.refused()}


def test_an_answer_with_an_unreadable_version_list_twice() -> None:
    """It is well sealed, so it has been read: the second one must not find the handshake in a state it cannot be in."""
    net, alice, bob = pair()
    net.filter = lambda source, to, data: []
    bob.contact(alice)
    init = datagram.decode(bob.sent(Type.INIT)[0])
    assert isinstance(init, datagram.Init)
    handshake = Handshake(
        NoisePattern.XX, False, alice.static, net.random.randbytes, prologue(1, Pattern.XX, init.versions)
    )
    handshake.read_message(init.noise)
    bad = datagram.Response(1, Pattern.XX, 99, init.sender, handshake.write_message(b"\0\1")).encode()
    assert deliver(bob, bad) == ["bad-version-list"]
    assert deliver(bob, bad) == ["no-such-handshake"]
    net.filter = lambda source, to, data: [(0.01, data)]
    net.run(5)
    talk(net, alice, bob)


def test_forged_transport_messages() -> None:
    net, alice, bob = met()
    session = bob.peer(alice).sessions[0]
    shell = datagram.Transport(1, session.remote_index, 5, bytes(40))
    assert deliver(alice, shell.encode()) == ["forged"]
    assert deliver(alice, datagram.Transport(2, session.remote_index, 5, bytes(40)).encode()) == ["unknown-version"]
    assert deliver(alice, datagram.Transport(1, 1234, 5, bytes(40)).encode()) == ["unknown-session"]
    limit = datagram.Transport(1, session.remote_index, constants.REJECT_AFTER_MESSAGES, bytes(40))
    assert deliver(alice, limit.encode()) == ["counter-limit"]
    talk(net, alice, bob)


def test_a_message_that_is_none_is_told_with_the_name_of_the_peer() -> None:
    net, alice, bob = met()
    bob.endpoint._seal(net.now, bob.peer(alice).sessions[0], b"\xff", alice.at(), bob.address)
    bob.flush()
    net.run(1)
    assert alice.of(events.Refused) == [events.Refused(bob.at(), "unknown-message", bob.static.public)]


# -- UNKNOWN -----------------------------------------------------------------------------------------------------------


def test_a_forged_unknown_costs_one_handshake_in_a_while_and_no_session() -> None:
    net, alice, bob = met()
    session = bob.peer(alice).sessions[0]
    forged = datagram.Unknown(1, session.remote_index).encode()
    for _ in range(100):
        deliver(bob, forged)
        net.run(0.1)
    assert len(patterns(bob)) - 1 == 10 / constants.UNKNOWN_HINT_PAUSE
    assert session in bob.peer(alice).sessions
    talk(net, alice, bob)


def test_a_forged_unknown_to_a_handshake_leads_to_one_in_which_the_known_key_is_proven() -> None:
    net, alice, bob = met()
    bob.restart()
    net.filter = lose(Type.INIT)
    bob.contact(alice, known=True)
    index = datagram.decode(bob.sent(Type.INIT)[-1])
    assert isinstance(index, datagram.Init)
    for _ in range(5):
        deliver(bob, datagram.Unknown(1, index.sender).encode())
    assert patterns(bob)[1:] == [Pattern.IKPSK2, Pattern.XX]
    net.run(1)
    talk(net, alice, bob)


@pytest.mark.parametrize("later", [False, True])
def test_another_peer_with_the_same_number_does_not_hide_that_one_has_restarted(later: bool) -> None:
    """Numbers of sessions are in the clear, and everybody chooses his own."""
    net, alice, bob = met()
    number = alice.peer(bob).sessions[0].remote_index
    mallory = net.end("mallory", "203.0.113.66")
    mallory.endpoint.new_index = lambda: number  # type: ignore[method-assign]
    mallory.contact(alice)
    net.run(1)
    assert alice.peer(mallory).sessions[0].remote_index == number
    if later:  # its session has ended
        alice.endpoint.forget(mallory.static.public)
    bob.restart()
    alice.say(bob, DONE)
    net.run(1)
    talk(net, alice, bob)


def test_an_unknown_that_names_nothing() -> None:
    _, _, bob = met()
    assert deliver(bob, datagram.Unknown(1, 12345).encode()) == ["no-such-session"]


def test_hints_are_limited_for_each_source() -> None:
    net, alice, _ = pair()
    for i in range(200):
        deliver(alice, datagram.Transport(1, 1000 + i, 0, bytes(16)).encode())
    assert len(alice.sent(Type.UNKNOWN)) == constants.HANDSHAKE_BURST
    net.now += 1
    for i in range(200):
        deliver(alice, datagram.Transport(1, 1000 + i, 0, bytes(16)).encode())
    assert len(alice.sent(Type.UNKNOWN)) == 2 * constants.HANDSHAKE_BURST


def test_forged_sources_do_not_use_up_the_rate_of_others() -> None:
    """A crowd of datagrams seems to come from bob.  He calls, and is answered."""
    net, alice, bob = met()
    for i in range(500):
        deliver(alice, datagram.Transport(1, 1000 + i, 0, bytes(16)).encode(), bob.at())
    for _ in range(30):
        deliver(alice, xx_init(net), bob.at())
    bob.restart()
    bob.contact(alice, known=True)
    net.run(0.3)
    talk(net, alice, bob)


# -- load --------------------------------------------------------------------------------------------------------------


def test_under_load_a_cookie_is_asked_for_and_answered() -> None:
    net, alice, bob = pair()
    for i in range(constants.LOAD_HANDSHAKES):
        assert deliver(alice, xx_init(net), SockAddr(ip(f"203.0.113.{i}"), 7747)) == []
    answers = len(alice.sent(Type.RESPONSE))
    bob.contact(alice)
    net.run(0.1)
    assert len(alice.sent(Type.COOKIE)) == 1
    assert alice.refused() == ["cookie-required"]
    assert len(alice.sent(Type.RESPONSE)) == answers + 1
    talk(net, alice, bob)


def test_known_peers_get_in_under_load_too() -> None:
    net, alice, bob = met()
    bob.restart()
    for i in range(constants.LOAD_HANDSHAKES):
        deliver(alice, xx_init(net), SockAddr(ip(f"203.0.113.{i}"), 7747))
    bob.contact(alice, known=True)
    net.run(0.1)
    assert alice.sent(Type.COOKIE)
    talk(net, alice, bob)


def test_one_proven_source_gets_so_many_handshakes() -> None:
    """Under load, with good cookies."""
    net, alice, _ = pair()
    for i in range(constants.LOAD_HANDSHAKES):
        deliver(alice, xx_init(net), SockAddr(ip(f"203.0.113.{i}"), 7747))
    jar = CookieJar(None)
    assert deliver(alice, xx_init(net, jar=jar)) == ["cookie-required"]
    cookie = datagram.decode(alice.sent(Type.COOKIE)[-1])
    assert isinstance(cookie, datagram.Cookie)
    jar.consume_reply(cookie.nonce + cookie.sealed, net.now)
    results = [deliver(alice, xx_init(net, jar=jar)) for _ in range(20)]
    assert results == [[]] * int(constants.HANDSHAKE_BURST) + [["rate-limited"]] * (20 - int(constants.HANDSHAKE_BURST))
    other = SockAddr(ip("203.0.113.77"), 7747)
    assert deliver(alice, xx_init(net, jar=jar), other) == ["cookie-required"], "a cookie is worth nothing elsewhere"


def test_half_open_handshakes_are_bounded_and_forgotten() -> None:
    net, alice, bob = pair()
    for i in range(2000):
        deliver(alice, xx_init(net), SockAddr(ip(f"203.{i % 100}.113.{i % 200}"), 7747))
        net.now += 1 / (constants.LOAD_HANDSHAKES - 2)
    half_open = alice.endpoint.half_open
    assert 100 < len(half_open) <= constants.HALF_OPEN_MAX
    assert "cookie-required" in alice.refused()
    net.now += constants.HALF_OPEN_TIME + 1
    seen = len(alice.sent(Type.COOKIE))
    bob.contact(alice)
    net.run(1)
    talk(net, alice, bob)
    assert len(alice.sent(Type.COOKIE)) == seen, "when it is over, it is over: no cookie is asked for any more"
    assert len(half_open) < 3


def test_cookies_that_never_please_are_no_ping_pong() -> None:
    """The peer answers every message with a cookie, for instance since our source port changes with each."""
    net, alice, bob = pair()
    alice.endpoint.responder._loaded = lambda now: True  # type: ignore[method-assign]
    alice.endpoint.responder._cookies.verify_mac2 = lambda *_: False  # type: ignore[method-assign]
    bob.contact(alice)
    net.run(60)
    assert bob.failed() == ["no-answer"]
    assert len(bob.sent(Type.INIT)) <= 2 * len(constants.HANDSHAKE_RETRIES) + 1


def test_a_cookie_that_was_not_asked_for() -> None:
    net, alice, bob = pair()
    net.filter = lambda source, to, data: []
    bob.contact(alice)
    init = datagram.decode(bob.sent(Type.INIT)[0])
    assert isinstance(init, datagram.Init)
    assert deliver(bob, datagram.Cookie(1, init.sender, bytes(24), bytes(32)).encode()) == ["forged-cookie"]
    assert deliver(bob, datagram.Cookie(1, 77, bytes(24), bytes(32)).encode()) == ["no-such-handshake"]
    assert len(bob.sent(Type.INIT)) == 1


def test_our_own_handshakes_are_bounded() -> None:
    net, _, bob = pair()
    for i in range(constants.ATTEMPTS_MAX + 1):
        bob.endpoint.contact(net.now, SockAddr(ip("203.0.113.1"), 1000 + i), bob.address, None)
    bob.flush()
    assert bob.failed() == ["too-many-handshakes"]


def test_strangers_waiting_for_a_person_are_bounded() -> None:
    net, alice, _ = pair()
    alice.admit = PeerState.PENDING
    for i in range(constants.PENDING_MAX + 5):
        stranger = net.end(f"s{i}", f"203.0.113.{i}")
        stranger.contact(alice)
        net.run(0.2)
        net.ends.remove(stranger)
    assert len(alice.endpoint.peers) == constants.PENDING_MAX
    assert alice.refused().count("too-many-pending") == 5
    assert len(alice.of(events.PeerDropped)) == 5


# -- versions ----------------------------------------------------------------------------------------------------------


def versions(of_alice: tuple[int, ...], of_bob: tuple[int, ...]) -> tuple[Net, End, End]:
    net = Net()
    return net, net.end("alice", "192.0.2.1", of_alice), net.end("bob", "198.51.100.2", of_bob)


@pytest.mark.parametrize(
    ("of_alice", "of_bob", "used"),
    [((1,), (2, 1), 1), ((2, 1), (1,), 1), ((2, 1), (2, 1), 2), ((3, 1), (3, 2, 1), 3), ((2, 1), (3, 2), 2)],
)
def test_the_highest_common_version_is_used(of_alice: tuple[int, ...], of_bob: tuple[int, ...], used: int) -> None:
    net, alice, bob = versions(of_alice, of_bob)
    bob.contact(alice)
    net.run(2)
    assert bob.peer(alice).sessions[0].version == used
    assert alice.peer(bob).sessions[0].version == used
    talk(net, alice, bob)
    bob.restart()
    bob.contact(alice, known=True)
    net.run(2)
    assert bob.peer(alice).sessions[0].version == used
    talk(net, alice, bob)


def test_no_common_version() -> None:
    net, alice, bob = versions((1,), (3, 2))
    bob.contact(alice)
    net.run(2)
    assert bob.failed() == ["no-common-version"]
    assert "unknown-version" in alice.refused()


def both_speak_2(known: bool) -> tuple[Net, End, End]:
    """known: they have met, and have no session any more."""
    net, alice, bob = versions((2, 1), (2, 1))
    if known:
        bob.contact(alice)
        net.run(1)
        alice.restart()
        bob.restart()
    return net, alice, bob


@pytest.mark.parametrize("known", [False, True])
def test_a_forged_answer_that_only_the_old_version_is_spoken(known: bool) -> None:
    """Both speak 2; somebody on the path says that alice does not.  There is no session in version 1."""
    net, alice, bob = both_speak_2(known)

    def forging(source: SockAddr, to: SockAddr, data: bytes) -> Iterable[tuple[float, bytes]]:
        init = datagram.decode(data)
        if isinstance(init, datagram.Init) and init.version == 2:
            bob.endpoint.receive(net.now, datagram.Versions(init.sender, (1,)).encode(), to, bob.address)
            return []
        return [(0.01, data)]

    net.filter = forging
    bob.contact(alice, known=known)
    bob.flush()
    net.run(30)
    assert bob.failed() == ["version-downgrade"]
    assert "version-downgrade" in bob.refused()
    assert not any(s.version == 1 for s in (bob.peer(alice).sessions if known else []))
    assert known or not bob.endpoint.peers


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("strip", [True, False])
def test_what_is_offered_cannot_be_changed_on_the_way(known: bool, strip: bool) -> None:
    """The list of versions is cut to the old one, and the message's own version with it or not."""
    net, alice, bob = both_speak_2(known)

    def changing(source: SockAddr, to: SockAddr, data: bytes) -> Iterable[tuple[float, bytes]]:
        init = datagram.decode(data)
        if isinstance(init, datagram.Init):
            version = 1 if strip else init.version
            changed = datagram.Init(version, init.pattern, init.sender, (1,), init.noise)
            data = CookieJar(alice.static.public if init.pattern is Pattern.IKPSK2 else None).stamp(
                changed.body(), net.now
            )
        return [(0.01, data)]

    net.filter = changing
    bob.contact(alice, known=known)
    net.run(30)
    assert bob.failed() == ["no-answer"]
    assert "forged-init" in alice.refused() or {"forged-response", "no-such-handshake"} & set(bob.refused())
    assert not alice.heard()


def test_a_versions_hint_that_names_nothing() -> None:
    _, _, bob = met()
    assert deliver(bob, datagram.Versions(4, (1,)).encode()) == ["no-such-handshake"]


def test_peers_of_the_old_version_keep_their_session_when_the_new_one_is_forged() -> None:
    net, alice, bob = met()
    deliver(bob, datagram.Versions(bob.peer(alice).sessions[0].local_index, (1,)).encode())
    assert bob.say(alice, HELLO)
    net.run(1)
    assert alice.heard() == [HELLO]

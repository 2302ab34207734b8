import random
from hashlib import blake2s
from ipaddress import IPv4Address, IPv6Address

import pytest
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from redirectctl.proto.cookie import CookieChecker, CookieJar
from redirectctl.proto.errors import CookieError, Reason
from redirectctl.proto.initiate import prologue
from redirectctl.proto.noise import StaticKey
from redirectctl.wire.addr import SockAddr
from redirectctl.wire.datagram import Pattern

BOB = StaticKey.from_private(bytes(range(32))).public
CAROL = StaticKey.from_private(bytes(range(1, 33))).public
SOURCE = SockAddr(IPv4Address("192.0.2.7"), 7747)
BODY = b"a handshake message" * 5


def checker(public: bytes = BOB, seed: int = 0) -> CookieChecker:
    return CookieChecker(public, random.Random(seed).randbytes)


def reason(jar: CookieJar, reply: bytes, now: float = 0.0) -> Reason:
    with pytest.raises(CookieError) as caught:
        jar.consume_reply(reply, now)
    return caught.value.reason


def with_cookie(bob: CookieChecker, now: float = 0.0, source: SockAddr = SOURCE) -> CookieJar:
    jar = CookieJar(BOB)
    jar.consume_reply(bob.make_reply(jar.stamp(BODY, now), source, now), now)
    return jar


@pytest.mark.parametrize("first_contact", [False, True])
def test_round_trip(first_contact: bool) -> None:
    bob, jar = checker(), CookieJar(None if first_contact else BOB)
    message = jar.stamp(BODY, 0.0)
    assert message[: len(BODY)] == BODY
    assert message[-16:] == bytes(16)
    assert bob.verify_mac1(message, first_contact)
    assert not bob.verify_mac1(message, not first_contact)
    assert not bob.verify_mac2(message, SOURCE, 0.0)

    reply = bob.make_reply(message, SOURCE, 0.0, first_contact)
    assert len(reply) == 56 < len(message)
    jar.consume_reply(reply, 0.0)
    message = jar.stamp(BODY + b"again", 0.0)
    assert bob.verify_mac1(message, first_contact)
    assert bob.verify_mac2(message, SOURCE, 0.0)


def test_every_altered_byte_breaks_a_mac() -> None:
    bob = checker()
    message = with_cookie(bob).stamp(BODY, 0.0)
    assert bob.verify_mac2(message, SOURCE, 0.0)
    for index in range(len(message)):
        forged = bytearray(message)
        forged[index] ^= 1 << index % 8
        assert bob.verify_mac1(bytes(forged)) == (index >= len(message) - 16)
        assert not bob.verify_mac2(bytes(forged), SOURCE, 0.0)
    for length in (*range(34), len(message) - 1):
        assert not bob.verify_mac1(message[:length])
        assert not bob.verify_mac2(message[:length], SOURCE, 0.0)


def test_mac1_for_another_host_is_refused() -> None:
    message = CookieJar(CAROL).stamp(BODY, 0.0)
    assert not checker().verify_mac1(message)
    assert not checker().verify_mac1(message, first_contact=True)
    assert checker(CAROL).verify_mac1(message)


@pytest.mark.parametrize(
    "thief",
    [
        SockAddr(IPv4Address("192.0.2.8"), 7747),
        SockAddr(IPv4Address("192.0.2.7"), 7748),
        SockAddr(IPv6Address("2001:db8::7"), 7747),
        SockAddr(IPv6Address("::c000:207"), 7747),
    ],
    ids=str,
)
def test_a_cookie_counts_only_from_the_source_it_was_made_for(thief: SockAddr) -> None:
    bob = checker()
    message = with_cookie(bob).stamp(BODY, 0.0)
    assert not bob.verify_mac2(message, thief, 0.0)
    assert not bob.verify_mac2(with_cookie(bob, source=thief).stamp(BODY, 0.0), SOURCE, 0.0)


def test_a_dual_stack_socket_shows_the_same_source() -> None:
    bob = checker()
    mapped = SockAddr(IPv6Address("::ffff:192.0.2.7"), 7747)
    assert bob.verify_mac2(with_cookie(bob, source=mapped).stamp(BODY, 0.0), SOURCE, 0.0)


@pytest.mark.parametrize("made", [0.0, 60.0, 119.9, 120.0, 1e6 + 7])
def test_a_cookie_is_good_while_the_initiator_uses_it_and_dead_after_240_s(made: float) -> None:
    bob = checker()
    jar = with_cookie(bob, made)
    for age in (0.0, 60.0, 119.5):
        assert bob.verify_mac2(jar.stamp(BODY, made + age), SOURCE, made + age)
    assert jar.stamp(BODY, made + 120.0)[-16:] == bytes(16)

    hoarded = with_cookie(bob, made).stamp(BODY, made)
    assert not bob.verify_mac2(hoarded, SOURCE, made + 240.0)


def test_a_cookie_of_one_responder_is_nothing_to_another() -> None:
    """Also not to another daemon, or the same one restarted, that has the same key: the secret is drawn anew."""
    message = with_cookie(checker()).stamp(BODY, 0.0)
    restarted = checker(seed=1)
    assert restarted.verify_mac1(message)
    assert not restarted.verify_mac2(message, SOURCE, 0.0)


def test_forged_replies_are_refused_and_the_genuine_one_is_then_taken() -> None:
    bob, jar = checker(), CookieJar(BOB)
    message = jar.stamp(BODY, 0.0)
    reply = bob.make_reply(message, SOURCE, 0.0)
    for index in range(len(reply)):
        forged = bytearray(reply)
        forged[index] ^= 1 << index % 8
        assert reason(jar, bytes(forged)) is Reason.FORGED
    assert reason(jar, reply[:-1]) is Reason.TRUNCATED
    assert reason(jar, b"") is Reason.TRUNCATED
    assert reason(jar, reply + b"\0") is Reason.TOO_LONG
    assert reason(jar, checker(CAROL).make_reply(message, SOURCE, 0.0)) is Reason.FORGED
    assert reason(jar, bob.make_reply(message, SOURCE, 0.0, first_contact=True)) is Reason.FORGED
    assert jar.stamp(BODY, 0.0) == message
    jar.consume_reply(reply, 0.0)
    assert bob.verify_mac2(jar.stamp(BODY, 0.0), SOURCE, 0.0)


def test_a_reply_counts_once_and_only_for_the_last_message() -> None:
    bob, jar = checker(), CookieJar(BOB)
    reply = bob.make_reply(jar.stamp(BODY, 0.0), SOURCE, 0.0)
    jar.consume_reply(reply, 0.0)
    assert reason(jar, reply) is Reason.UNEXPECTED
    assert reason(CookieJar(BOB), reply) is Reason.UNEXPECTED

    jar.stamp(BODY + b"another", 1.0)
    assert reason(jar, reply, 1.0) is Reason.FORGED


def test_replies_to_the_same_message_differ_but_carry_the_same_cookie() -> None:
    bob = checker()
    message = CookieJar(BOB).stamp(BODY, 0.0)
    replies = [bob.make_reply(message, SOURCE, 0.0) for _ in range(2)]
    assert replies[0] != replies[1]
    stamped = []
    for reply in replies:
        jar = CookieJar(BOB)
        jar.stamp(BODY, 0.0)
        jar.consume_reply(reply, 0.0)
        stamped.append(jar.stamp(BODY, 0.0))
    assert stamped[0] == stamped[1]


@pytest.mark.parametrize("first_contact", [False, True])
def test_the_bytes_are_those_of_the_protocol(first_contact: bool) -> None:
    """docs/protocol.md has the formulas: another implementation must work out the same."""
    receiver = bytes(32) if first_contact else BOB
    jar, bob = CookieJar(None if first_contact else BOB), checker()
    message = jar.stamp(BODY, 0.0)
    mac1 = blake2s(BODY, key=blake2s(b"redirectctl v1 mac1" + receiver).digest(), digest_size=16).digest()
    assert message == BODY + mac1 + bytes(16)
    reply = bob.make_reply(message, SOURCE, 0.0, first_contact)
    nonce, sealed = reply[:24], reply[24:]
    key = blake2s(b"redirectctl v1 cookie" + receiver + nonce).digest()
    cookie = ChaCha20Poly1305(key).decrypt(bytes(12), sealed, mac1)
    jar.consume_reply(reply, 0.0)
    mac2 = blake2s(BODY + mac1, key=cookie, digest_size=16).digest()
    assert jar.stamp(BODY, 0.0) == BODY + mac1 + mac2


def test_what_both_ends_bind_a_handshake_to() -> None:
    expected = b"redirectctl handshake" + bytes((2, 1)) + bytes((2, 1, 0, 0))
    assert prologue(2, Pattern.IKPSK2, (2, 1)) == expected

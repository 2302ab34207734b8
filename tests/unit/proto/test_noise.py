"""What the handshakes refuse, that they survive it, and what they hand out."""

import random
from collections.abc import Callable, Iterator
from typing import NamedTuple

import pytest

from redirectctl.proto.errors import HandshakeError, MisuseError, Reason
from redirectctl.proto.noise import Handshake, Pattern, StaticKey

ALICE = StaticKey.from_private(bytes(range(32)))
BOB = StaticKey.from_private(bytes(range(32, 64)))
EVE = StaticKey.from_private(bytes(range(64, 96)))
PSK = b"K" * 32
PROLOGUE = b"redirectctl"
PAYLOADS = [b"first", b"second payload", b"third"]

# RFC 7748 section 6.1 and https://cr.yp.to/ecdh.html#validate: the points of small order, also as values of 2^255-19
# and above, and with the top bit set that X25519 ignores.
LOW_ORDER = [
    bytes(32),
    bytes([1]) + bytes(31),
    bytes.fromhex("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800"),
    bytes.fromhex("5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157"),
    bytes.fromhex("ec" + "ff" * 30 + "7f"),
    bytes.fromhex("ed" + "ff" * 30 + "7f"),
    bytes.fromhex("ee" + "ff" * 30 + "7f"),
    bytes(31) + bytes([0x80]),
    bytes.fromhex("ee" + "ff" * 31),
]


class Pair(NamedTuple):
    initiator: Handshake
    responder: Handshake


def pair(pattern: Pattern, psk: bytes = PSK, prologue: bytes = PROLOGUE, seed: int = 0) -> Pair:
    """Alice calls Bob; `psk` and `prologue` are what Bob has."""
    rng = random.Random(seed).randbytes
    known = pattern is Pattern.IKPSK2
    return Pair(
        Handshake(
            pattern, True, ALICE, rng, PROLOGUE, remote_static=BOB.public if known else None, psk=PSK if known else None
        ),
        Handshake(pattern, False, BOB, rng, prologue, psk=psk if known else None),
    )


def run(ends: Pair, start: int = 0, stop: int | None = None) -> list[bytes]:
    """Pass messages number start..stop on, and check their payloads; returns them."""
    messages = []
    for number in range(start, 3 if stop is None else stop):
        if ends.initiator.finished:
            break
        writer, reader = ends if number % 2 == 0 else reversed(ends)
        message = writer.write_message(PAYLOADS[number])
        assert reader.read_message(message) == PAYLOADS[number]
        messages.append(message)
    return messages


def assert_agree(ends: Pair) -> None:
    one, two = ends
    assert one.finished
    assert two.finished
    assert one.split().send == two.split().recv
    assert one.split().recv == two.split().send
    assert one.split().send != one.split().recv
    assert one.handshake_hash == two.handshake_hash
    assert one.export_secret(b"pairwise") == two.export_secret(b"pairwise")
    assert (one.remote_static, two.remote_static) == (BOB.public, ALICE.public)


def altered(message: bytes) -> Iterator[bytes]:
    """`message` with one bit flipped, once for each of its bytes; every bit position has its turn."""
    for index in range(len(message)):
        copy = bytearray(message)
        copy[index] ^= 1 << index % 8
        yield bytes(copy)


def refused(action: Callable[[], bytes]) -> Reason:
    with pytest.raises(HandshakeError) as caught:
        action()
    return caught.value.reason


@pytest.mark.parametrize("pattern", Pattern)
def test_both_ends_agree(pattern: Pattern) -> None:
    ends = pair(pattern)
    run(ends)
    assert_agree(ends)


@pytest.mark.parametrize(
    ("pattern", "number"), [(Pattern.XX, 1), (Pattern.XX, 2), (Pattern.IKPSK2, 0), (Pattern.IKPSK2, 1)]
)
def test_every_altered_byte_is_refused_and_the_honest_message_then_completes(pattern: Pattern, number: int) -> None:
    ends = pair(pattern)
    run(ends, stop=number)
    writer, reader = ends if number % 2 == 0 else reversed(ends)
    message = writer.write_message(PAYLOADS[number])
    known_before = reader.remote_static
    for forged in altered(message):
        assert refused(lambda forged=forged: reader.read_message(forged)) is Reason.FORGED
        assert reader.remote_static == known_before
    for length in range(len(message)):
        assert refused(lambda length=length: reader.read_message(message[:length])) in (
            Reason.TRUNCATED,
            Reason.FORGED,
        )
    assert refused(lambda: reader.read_message(message + b"\0")) is Reason.FORGED
    assert refused(lambda: reader.read_message(bytes(65536))) is Reason.TOO_LONG

    assert reader.read_message(message) == PAYLOADS[number]
    run(ends, start=number + 1)
    assert_agree(ends)


def test_altered_first_message_of_xx_is_found_out_by_the_answer_and_an_honest_answer_completes() -> None:
    initiator, responder = pair(Pattern.XX)
    message = initiator.write_message(PAYLOADS[0])
    for forged in altered(message):
        deceived = pair(Pattern.XX, seed=1).responder
        deceived.read_message(forged)
        answer = deceived.write_message(PAYLOADS[1])
        assert refused(lambda answer=answer: initiator.read_message(answer)) is Reason.FORGED
    assert refused(lambda: responder.read_message(message[:31])) is Reason.TRUNCATED
    assert responder.read_message(message) == PAYLOADS[0]
    run(Pair(initiator, responder), start=1)
    assert_agree(Pair(initiator, responder))


@pytest.mark.parametrize("point", LOW_ORDER, ids=lambda point: point.hex()[:8] + ".." + point.hex()[-2:])
def test_low_order_keys_are_refused(point: bytes) -> None:
    xx = pair(Pattern.XX)
    xx.responder.read_message(point)
    assert refused(xx.responder.write_message) is Reason.LOW_ORDER_KEY

    xx = pair(Pattern.XX)
    run(xx, stop=1)
    answer = xx.responder.write_message(PAYLOADS[1])
    assert refused(lambda: xx.initiator.read_message(point + answer[32:])) is Reason.LOW_ORDER_KEY
    assert xx.initiator.read_message(answer) == PAYLOADS[1]

    ik = pair(Pattern.IKPSK2)
    message = ik.initiator.write_message(PAYLOADS[0])
    assert refused(lambda: ik.responder.read_message(point + message[32:])) is Reason.LOW_ORDER_KEY
    assert ik.responder.read_message(message) == PAYLOADS[0]
    answer = ik.responder.write_message(PAYLOADS[1])
    assert refused(lambda: ik.initiator.read_message(point + answer[32:])) is Reason.LOW_ORDER_KEY
    assert ik.initiator.read_message(answer) == PAYLOADS[1]
    assert_agree(ik)

    rng = random.Random(0).randbytes
    calling = Handshake(Pattern.IKPSK2, True, ALICE, rng, PROLOGUE, remote_static=point, psk=PSK)
    assert refused(calling.write_message) is Reason.LOW_ORDER_KEY


def test_a_different_psk_is_refused_and_the_right_one_then_completes() -> None:
    ends = pair(Pattern.IKPSK2, psk=b"X" * 32)
    message = ends.initiator.write_message(PAYLOADS[0])
    ends.responder.read_message(message)
    answer = ends.responder.write_message(PAYLOADS[1])
    assert refused(lambda: ends.initiator.read_message(answer)) is Reason.FORGED

    honest = pair(Pattern.IKPSK2, seed=2).responder
    honest.read_message(message)
    assert ends.initiator.read_message(honest.write_message(PAYLOADS[1])) == PAYLOADS[1]
    assert_agree(Pair(ends.initiator, honest))


@pytest.mark.parametrize(("pattern", "found_in"), [(Pattern.XX, 1), (Pattern.IKPSK2, 0)])
def test_a_different_prologue_is_refused(pattern: Pattern, found_in: int) -> None:
    ends = pair(pattern, prologue=PROLOGUE + b"2")
    run(ends, stop=found_in)
    writer, reader = ends if found_in % 2 == 0 else reversed(ends)
    message = writer.write_message()
    assert refused(lambda: reader.read_message(message)) is Reason.FORGED


def test_a_first_message_for_another_host_is_refused() -> None:
    message = pair(Pattern.IKPSK2).initiator.write_message()
    eve = Handshake(Pattern.IKPSK2, False, EVE, random.Random(0).randbytes, PROLOGUE)
    assert refused(lambda: eve.read_message(message)) is Reason.FORGED
    assert eve.remote_static is None


def test_an_answer_by_another_host_is_refused() -> None:
    """Eve knows the PSK and reads Alice's ephemeral key from the wire, but is not Bob."""
    alice = pair(Pattern.IKPSK2).initiator
    alice.write_message()
    rng = random.Random(3).randbytes
    to_eve = Handshake(Pattern.IKPSK2, True, ALICE, rng, PROLOGUE, remote_static=EVE.public, psk=PSK)
    eve = Handshake(Pattern.IKPSK2, False, EVE, rng, PROLOGUE, psk=PSK)
    eve.read_message(to_eve.write_message())
    answer = eve.write_message()
    assert refused(lambda: alice.read_message(answer)) is Reason.FORGED


def test_at_first_contact_anybody_can_answer_but_only_under_their_own_key() -> None:
    alice, bob = pair(Pattern.XX)
    eve = Handshake(Pattern.XX, False, EVE, random.Random(4).randbytes, PROLOGUE)
    eve.read_message(alice.write_message())
    assert alice.remote_static is None
    alice.read_message(eve.write_message())
    assert alice.remote_static == EVE.public != BOB.public
    bob.read_message(pair(Pattern.XX).initiator.write_message())
    bob.write_message()
    meant_for_eve = alice.write_message()
    assert refused(lambda: bob.read_message(meant_for_eve)) is Reason.FORGED


def test_an_answer_is_not_accepted_by_another_handshake_of_the_same_host() -> None:
    ends = pair(Pattern.IKPSK2)
    run(ends, stop=1)
    answer = ends.responder.write_message()
    again = pair(Pattern.IKPSK2, seed=9).initiator
    again.write_message()
    assert refused(lambda: again.read_message(answer)) is Reason.FORGED


def test_the_responder_learns_who_calls_before_it_needs_the_psk() -> None:
    initiator = pair(Pattern.IKPSK2).initiator
    responder = Handshake(Pattern.IKPSK2, False, BOB, random.Random(5).randbytes, PROLOGUE)
    responder.read_message(initiator.write_message(PAYLOADS[0]))
    assert responder.remote_static == ALICE.public
    with pytest.raises(MisuseError, match="PSK is due"):
        responder.write_message()
    responder.set_psk(PSK)
    initiator.read_message(responder.write_message())
    assert_agree(Pair(initiator, responder))


@pytest.mark.parametrize("pattern", Pattern)
def test_every_handshake_has_keys_of_its_own(pattern: Pattern) -> None:
    seen: set[bytes] = set()
    for seed in range(4):
        ends = pair(pattern, seed=seed)
        run(ends)
        one = ends.initiator
        seen |= {*one.split(), one.handshake_hash, one.export_secret(b"a"), one.export_secret(b"b")}
    assert len(seen) == 4 * 5


@pytest.mark.parametrize("pattern", Pattern)
def test_out_of_turn_is_misuse(pattern: Pattern) -> None:
    initiator, responder = pair(pattern)
    for action in (
        responder.write_message,
        lambda: initiator.read_message(bytes(200)),
        initiator.split,
        lambda: initiator.handshake_hash,
        lambda: initiator.export_secret(b"label"),
    ):
        with pytest.raises(MisuseError):
            action()
    run(Pair(initiator, responder))
    for end in (initiator, responder):
        with pytest.raises(MisuseError, match="not due"):
            end.write_message()
        with pytest.raises(MisuseError, match="not due"):
            end.read_message(bytes(200))


def test_wrong_arguments_are_misuse() -> None:
    rng = random.Random(0).randbytes
    for attempt in (
        lambda: StaticKey.from_private(bytes(31)),
        lambda: Handshake(Pattern.XX, True, ALICE, rng, b"", remote_static=BOB.public),
        lambda: Handshake(Pattern.IKPSK2, True, ALICE, rng, b""),
        lambda: Handshake(Pattern.IKPSK2, False, ALICE, rng, b"", remote_static=BOB.public),
        lambda: Handshake(Pattern.IKPSK2, True, ALICE, rng, b"", remote_static=bytes(31)),
        lambda: Handshake(Pattern.IKPSK2, True, ALICE, rng, b"", remote_static=BOB.public, psk=bytes(31)),
        lambda: Handshake(Pattern.XX, True, ALICE, rng, b"", psk=PSK),
        lambda: Handshake(Pattern.XX, True, ALICE, lambda _: bytes(16), b"").write_message(),
        lambda: pair(Pattern.XX).initiator.write_message(bytes(65536 - 32)),
    ):
        with pytest.raises(MisuseError):
            attempt()
    assert len(pair(Pattern.XX).initiator.write_message(bytes(65535 - 32))) == 65535

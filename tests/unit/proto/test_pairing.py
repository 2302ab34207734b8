"""The proofs of a pairing."""

from __future__ import annotations

import pytest

from redirectctl.proto.errors import MisuseError
from redirectctl.proto.noise import StaticKey
from redirectctl.proto.pairing import NONCE_LEN, PROOF_LEN, proofs

ALICE, BOB, MALLORY = (StaticKey.from_private(bytes([n]) * 32) for n in (1, 2, 3))
ONE, TWO = b"\x01" * NONCE_LEN, b"\x02" * NONCE_LEN


def test_both_hosts_work_out_the_same():
    mine = proofs(ALICE, BOB.public, ONE, TWO, asks=True)
    assert mine == proofs(BOB, ALICE.public, ONE, TWO, asks=False)
    assert len(mine.asks) == len(mine.answers) == PROOF_LEN


def test_who_gets_one_proof_cannot_send_it_back():
    mine = proofs(ALICE, BOB.public, ONE, TWO, asks=True)
    assert mine.asks != mine.answers
    assert mine.asks not in proofs(ALICE, BOB.public, ONE, TWO, asks=False)


@pytest.mark.parametrize("nonces", [(ONE, ONE), (TWO, TWO), (TWO, ONE)])
def test_another_pairing_has_other_proofs(nonces: tuple[bytes, bytes]):
    assert set(proofs(ALICE, BOB.public, ONE, TWO, asks=True)).isdisjoint(proofs(ALICE, BOB.public, *nonces, asks=True))


def test_whoever_names_another_hosts_key_has_no_proof():
    wanted = proofs(ALICE, BOB.public, ONE, TWO, asks=True)
    assert set(wanted).isdisjoint(proofs(MALLORY, BOB.public, ONE, TWO, asks=True))
    assert set(wanted).isdisjoint(proofs(MALLORY, ALICE.public, ONE, TWO, asks=False))


@pytest.mark.parametrize("key", [b"", b"\x01" * 31, bytes(32), b"\x01" + bytes(31), b"\x01" * 33])
def test_what_is_no_key_is_refused(key: bytes):
    with pytest.raises(MisuseError):
        proofs(ALICE, key, ONE, TWO, asks=True)


@pytest.mark.parametrize("nonce", [b"", b"\x01" * 31, b"\x01" * 33])
def test_a_nonce_is_whole(nonce: bytes):
    with pytest.raises(MisuseError):
        proofs(ALICE, BOB.public, nonce, TWO, asks=True)
    with pytest.raises(MisuseError):
        proofs(ALICE, BOB.public, ONE, nonce, asks=True)

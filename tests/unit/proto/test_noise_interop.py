"""Against an independent implementation (noiseprotocol) as the other end, in both roles."""

import hashlib
import hmac
import random

import pytest
from noise.connection import Keypair, NoiseConnection
from noise.state import SymmetricState

from redirectctl.proto.cipher import TransportCipher
from redirectctl.proto.noise import Handshake, Pattern, StaticKey

PROLOGUE = b"interoperability"
PSK = bytes(range(32))


def other(pattern: Pattern, initiator: bool, private: bytes, remote_public: bytes) -> NoiseConnection:
    end = NoiseConnection.from_name(f"Noise_{pattern.value}_25519_ChaChaPoly_BLAKE2s".encode())
    end.set_prologue(PROLOGUE)
    end.set_keypair_from_private_bytes(Keypair.STATIC, private)
    if pattern is Pattern.IKPSK2:
        end.set_psks(PSK)
        if initiator:
            end.set_keypair_from_public_bytes(Keypair.REMOTE_STATIC, remote_public)
    end.set_as_initiator() if initiator else end.set_as_responder()
    end.start_handshake()
    return end


def keep_chaining_keys(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The chaining keys that the other implementation splits; it keeps none itself."""
    kept: list[bytes] = []
    split = SymmetricState.split

    def split_and_keep(state: SymmetricState) -> object:
        kept.append(bytes(state.ck))
        return split(state)

    monkeypatch.setattr(SymmetricState, "split", split_and_keep)
    return kept


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("we_initiate", [True, False], ids=["initiator", "responder"])
@pytest.mark.parametrize("pattern", Pattern)
def test_handshake_and_transport(
    pattern: Pattern, we_initiate: bool, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    chaining_keys = keep_chaining_keys(monkeypatch)
    rng = random.Random(seed).randbytes
    ours = StaticKey.from_private(rng(32))
    theirs = StaticKey.from_private(rng(32))
    us = Handshake(
        pattern,
        we_initiate,
        ours,
        rng,
        PROLOGUE,
        remote_static=theirs.public if we_initiate and pattern is Pattern.IKPSK2 else None,
        psk=PSK if pattern is Pattern.IKPSK2 else None,
    )
    them = other(pattern, not we_initiate, theirs.private, ours.public)

    writing = we_initiate
    while not us.finished:
        payload = rng(seed * 7)
        if writing:
            assert them.read_message(us.write_message(payload)) == payload
        else:
            assert us.read_message(bytes(them.write_message(payload))) == payload
        writing = not writing

    assert them.handshake_finished
    assert them.get_handshake_hash() == us.handshake_hash
    assert us.remote_static == theirs.public
    # What both hosts store as their pairwise secret; another derivation would lock out every peer that is known.
    (chaining_key,) = chaining_keys
    temp = hmac.new(chaining_key, b"pairwise" + them.get_handshake_hash(), hashlib.blake2s).digest()
    assert us.export_secret(b"pairwise") == hmac.new(temp, b"\x01", hashlib.blake2s).digest()

    send, recv = (TransportCipher(key) for key in us.split())
    for counter in range(20):
        payload = rng(counter * 11)
        assert them.decrypt(send.seal(counter, payload)) == payload
        assert recv.open(counter, them.encrypt(payload)) == payload

"""How two hosts show each other, over a channel that is not ours, that each holds the key which it names.

The channel (ssh) says which host and which person it is; it does not say whose key somebody names over it.  Both hosts
send a fresh nonce.  Each then sends a MAC that takes its own private key or the other's: the key of the MAC is the
Diffie-Hellman secret of both long-term keys (StaticKey.shared).  Who names a third party's key cannot make it.
"""

from __future__ import annotations

import hashlib
from typing import Final, NamedTuple

from redirectctl.proto.constants import KEY_LEN
from redirectctl.proto.errors import MisuseError
from redirectctl.proto.noise import StaticKey

NONCE_LEN: Final = 32  # bytes
PROOF_LEN: Final = 32  # bytes

_PERSON: Final = b"rd pair"  # what a MAC with this secret is for (BLAKE2's personalization, RFC 7693 section 2.5)
_ASKS, _ANSWERS = b"\x00", b"\x01"


class Proofs(NamedTuple):
    """What each of the two hosts shows, PROOF_LEN bytes."""

    asks: bytes  # of the host that began
    answers: bytes


def proofs(static: StaticKey, other: bytes, nonce_asks: bytes, nonce_answers: bytes, *, asks: bool) -> Proofs:
    """Both proofs of one pairing; ``asks``: ``static`` is the key of the host that began, ``other`` of the other one.

    Raises MisuseError: a nonce has NONCE_LEN bytes, a key KEY_LEN, and a public key is not of small order.
    """
    if len(nonce_asks) != NONCE_LEN or len(nonce_answers) != NONCE_LEN:
        raise MisuseError(f"a nonce has {NONCE_LEN} bytes")
    if len(other) != KEY_LEN:
        raise MisuseError(f"a public key has {KEY_LEN} bytes")
    try:
        secret = static.shared(other)
    except ValueError:  # RFC 7748, section 6.1: the result is all zeros
        raise MisuseError("this is no public key") from None
    keys = (static.public + other) if asks else (other + static.public)
    both = keys + nonce_asks + nonce_answers
    return Proofs(*(_mac(secret, side + both) for side in (_ASKS, _ANSWERS)))


def _mac(secret: bytes, data: bytes) -> bytes:
    return hashlib.blake2s(data, key=secret, digest_size=PROOF_LEN, person=_PERSON).digest()

"""The AEAD of Noise's ChaChaPoly: 32-byte key, 64-bit counter as nonce, associated data.

nonce (12)  = 00 00 00 00 || counter, little-endian 64 bits          Noise rev 34, section 12.3
sealed      = ChaCha20(plaintext) || Poly1305 tag (16)               RFC 8439, section 2.8
"""

from __future__ import annotations

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from redirectctl.proto.constants import REJECT_AFTER_MESSAGES, TAG_LEN
from redirectctl.proto.errors import AuthError, MisuseError, Reason


class TransportCipher:
    """One direction of a session.  Whoever seals must never use a counter twice under one key."""

    __slots__ = ("_aead",)

    def __init__(self, key: bytes) -> None:
        self._aead = ChaCha20Poly1305(key)

    def seal(self, counter: int, plaintext: bytes, ad: bytes = b"") -> bytes:
        """Ciphertext and tag, 16 bytes longer than the plaintext.

        Raises MisuseError when the counter is spent: the session should have been replaced long ago.
        """
        if not 0 <= counter < REJECT_AFTER_MESSAGES:
            raise MisuseError(f"counter {counter} is outside 0..REJECT_AFTER_MESSAGES")
        return self._aead.encrypt(_nonce(counter), plaintext, ad)

    def open(self, counter: int, ciphertext: bytes, ad: bytes = b"") -> bytes:
        """The plaintext.  Raises AuthError: COUNTER_LIMIT, TRUNCATED or FORGED."""
        if not 0 <= counter < REJECT_AFTER_MESSAGES:
            raise AuthError(Reason.COUNTER_LIMIT)
        if len(ciphertext) < TAG_LEN:
            raise AuthError(Reason.TRUNCATED)
        try:
            return self._aead.decrypt(_nonce(counter), ciphertext, ad)
        except InvalidTag as error:
            raise AuthError(Reason.FORGED) from error


def _nonce(counter: int) -> bytes:
    return bytes(4) + counter.to_bytes(8, "little")

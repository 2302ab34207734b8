"""Handshake floods: MACs on handshake messages and stateless cookies, after WireGuard (white paper, section 5.4.7).

A handshake message M is sent with two MACs behind it::

    0                   len(M)        +16           +32
    +--------- … ---------+-------------+-------------+
    |          M          |    mac1     |    mac2     |
    +--------- … ---------+-------------+-------------+

    mac1 = MAC(key BLAKE2s(LABEL_MAC1 || P), M)            P: static public key of who receives M, or 32 zero bytes
    mac2 = MAC(key cookie, M || mac1), or 16 zero bytes       while the sender does not know it (first contact)

Under load the receiver answers a good mac1 without a good mac2 by a cookie reply and forgets the message::

    0                   24                                56
    +---------- … --------+------------------ … ------------+
    |     random nonce    |  cookie (16), sealed, tag (16)  |
    +---------- … --------+------------------ … ------------+

    cookie = MAC(secret of this 120 s, source address || port, big-endian)
    sealed = ChaCha20-Poly1305(key BLAKE2s(LABEL_COOKIE || P || nonce), nonce 0, associated data mac1 of the message)

MAC is BLAKE2s in its keyed mode with 16 bytes of output.  WireGuard seals with XChaCha20-Poly1305; here a key of its
own for every random nonce serves the same purpose.  P is no secret: sealing keeps the cookie from those who do not know
it, and ties the reply to a message that the initiator sent.  Who cannot see that message cannot hand the initiator a
wrong cookie; who can, costs it one more cookie reply.
"""

from __future__ import annotations

import hashlib
import hmac

from redirectctl.proto.cipher import TransportCipher
from redirectctl.proto.constants import (
    COOKIE_LIFETIME,
    COOKIE_NONCE_LEN,
    COOKIE_REPLY_LEN,
    KEY_LEN,
    LABEL_COOKIE,
    LABEL_MAC1,
    LABEL_SOURCE,
    MAC_LEN,
    UNKNOWN_PUBLIC,
)
from redirectctl.proto.errors import AuthError, CookieError, Reason
from redirectctl.proto.noise import Rng
from redirectctl.wire.addr import SockAddr, unmap

MACS_LEN = 2 * MAC_LEN
_NO_MAC2 = bytes(MAC_LEN)


class CookieChecker:
    """The receiving end.  Holds one secret and nothing about anybody.

    `message` is everywhere the whole of M || mac1 || mac2.  `first_contact` says that M is of a kind whose sender does
    not know our key yet.
    """

    def __init__(self, static_public: bytes, rng: Rng) -> None:
        self._static_public = static_public
        self._rng = rng
        self._root = rng(KEY_LEN)
        self._mac1_keys = {first: _mac1_key(self._public(first)) for first in (False, True)}

    def verify_mac1(self, message: bytes, first_contact: bool = False) -> bool:
        """The message was made for us, complete, by someone who knows our key (or for first contact: this protocol)."""
        body, mac1, _ = _parts(message)
        return hmac.compare_digest(_mac(self._mac1_keys[first_contact], body), mac1)

    def verify_mac2(self, message: bytes, source: SockAddr, now: float) -> bool:
        """The sender receives what is sent to `source`: it holds a cookie that we made for that address.

        A cookie counts for the 120 s beat it was made in and the next one: 120 to 240 s.
        """
        body, mac1, mac2 = _parts(message)
        beat = _beat(now)
        return any(
            hmac.compare_digest(_mac(self._cookie(source, made), body + mac1), mac2) for made in (beat, beat - 1)
        )

    def make_reply(self, message: bytes, source: SockAddr, now: float, first_contact: bool = False) -> bytes:
        """The 56 bytes that give `source` its cookie; call it only after verify_mac1()."""
        _, mac1, _ = _parts(message)
        nonce = self._rng(COOKIE_NONCE_LEN)
        return nonce + _reply_cipher(self._public(first_contact), nonce).seal(0, self._cookie(source, _beat(now)), mac1)

    def _public(self, first_contact: bool) -> bytes:
        return UNKNOWN_PUBLIC if first_contact else self._static_public

    def _cookie(self, source: SockAddr, beat: int) -> bytes:
        secret = hashlib.blake2s(LABEL_SOURCE + beat.to_bytes(8, "big", signed=True), key=self._root).digest()
        return _mac(secret, unmap(source.host).packed + source.port.to_bytes(2, "big"))


class CookieJar:
    """The sending end, towards one receiver."""

    def __init__(self, remote_static: bytes | None) -> None:
        """`remote_static` is None while the receiver's key is not known: first contact."""
        self._public = UNKNOWN_PUBLIC if remote_static is None else remote_static
        self._mac1_key = _mac1_key(self._public)
        self._last_mac1: bytes | None = None
        self._cookie: bytes | None = None
        self._cookie_until = 0.0

    def stamp(self, body: bytes, now: float) -> bytes:
        """`body` with its two MACs behind it, 32 bytes more."""
        mac1 = _mac(self._mac1_key, body)
        self._last_mac1 = mac1
        if self._cookie is None or now >= self._cookie_until:
            return body + mac1 + _NO_MAC2
        return body + mac1 + _mac(self._cookie, body + mac1)

    def consume_reply(self, reply: bytes, now: float) -> None:
        """Keep the cookie for what is stamped in the next 120 s.

        Raises CookieError: UNEXPECTED (nothing was stamped since the last good reply), TRUNCATED, TOO_LONG, or FORGED,
        which includes a reply to an earlier message.
        """
        if self._last_mac1 is None:
            raise CookieError(Reason.UNEXPECTED)
        if len(reply) != COOKIE_REPLY_LEN:
            raise CookieError(Reason.TRUNCATED if len(reply) < COOKIE_REPLY_LEN else Reason.TOO_LONG)
        nonce, sealed = reply[:COOKIE_NONCE_LEN], reply[COOKIE_NONCE_LEN:]
        try:
            self._cookie = _reply_cipher(self._public, nonce).open(0, sealed, self._last_mac1)
        except AuthError as error:
            raise CookieError(error.reason) from error
        self._cookie_until = now + COOKIE_LIFETIME
        self._last_mac1 = None


def _parts(message: bytes) -> tuple[bytes, bytes, bytes]:
    """Body, mac1, mac2; of a message too short for them something that verifies nowhere."""
    return message[:-MACS_LEN], message[-MACS_LEN:-MAC_LEN], message[-MAC_LEN:]


def _beat(now: float) -> int:
    """Number of the 120 s beat that `now` lies in."""
    return int(now // COOKIE_LIFETIME)


def _mac(key: bytes, data: bytes) -> bytes:
    return hashlib.blake2s(data, key=key, digest_size=MAC_LEN).digest()


def _mac1_key(public: bytes) -> bytes:
    return hashlib.blake2s(LABEL_MAC1 + public).digest()


def _reply_cipher(public: bytes, nonce: bytes) -> TransportCipher:
    return TransportCipher(hashlib.blake2s(LABEL_COOKIE + public + nonce).digest())

"""Noise handshakes (Noise Protocol Framework, revision 34): XX and IKpsk2 with 25519, ChaChaPoly and BLAKE2s.

    XX       first contact: neither end knows the other       IKpsk2   known peers: responder's key and a PSK are stored
      -> e                                                      <- s        (beforehand)
      <- e, ee, s, es                                           -> e, es, s, ss
      -> s, se                                                  <- e, ee, se, psk

Every message is worked out on a copy of the state, which replaces the state only when all of it was good: after a
forged message the genuine one still completes the handshake.

What this cannot tell the caller: the first message of IKpsk2 may be an old one replayed, so the responder knows that
the initiator is there only from the message after its own; and anybody may answer the first message of XX with a key of
their own, so `remote_static` has to be compared with what is known or confirmed by a person.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Final, NamedTuple

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from redirectctl.proto.cipher import TransportCipher
from redirectctl.proto.constants import KEY_LEN, MAX_NOISE_MESSAGE, TAG_LEN
from redirectctl.proto.errors import AuthError, HandshakeError, MisuseError, Reason

Rng = Callable[[int], bytes]


class Pattern(Enum):
    """A handshake pattern; the value is its name in Noise."""

    XX = "XX"
    IKPSK2 = "IKpsk2"


class _Shape(NamedTuple):
    responder_known: bool  # pre-message "<- s"
    messages: tuple[str, ...]  # tokens, the initiator's message first


_SHAPES: Final = {
    Pattern.XX: _Shape(False, ("e", "e ee s es", "s se")),
    Pattern.IKPSK2: _Shape(True, ("e es s ss", "e ee se psk")),
}


class TransportKeys(NamedTuple):
    """32-byte keys, as our role uses them."""

    send: bytes
    recv: bytes


class StaticKey:
    """A host's long-term X25519 key pair."""

    __slots__ = ("_key", "private", "public")

    def __init__(self, key: X25519PrivateKey) -> None:
        self._key = key
        self.private = key.private_bytes_raw()
        self.public = key.public_key().public_bytes_raw()

    @classmethod
    def from_private(cls, private: bytes) -> StaticKey:
        """Any 32 random bytes are a private key (RFC 7748, section 5).  Raises MisuseError on another length."""
        return cls(_private_key(private))

    @property
    def key(self) -> X25519PrivateKey:
        """For Diffie-Hellman: parsed once."""
        return self._key

    def shared(self, public: bytes) -> bytes:
        """Diffie-Hellman with another host's long-term key: the same on both hosts, at any time, without a message."""
        return self._key.exchange(X25519PublicKey.from_public_bytes(public))


@dataclass
class _State:
    """Noise's SymmetricState and CipherState (sections 5.1, 5.2) with the keys met so far, by token letter."""

    h: bytes
    ck: bytes
    local: dict[str, X25519PrivateKey]
    remote: dict[str, bytes] = field(default_factory=dict)
    cipher: TransportCipher | None = None  # None: nothing is encrypted yet
    nonce: int = 0
    step: int = 0  # messages done

    def copy(self) -> _State:
        return replace(self, local=dict(self.local), remote=dict(self.remote))

    def mix_hash(self, data: bytes) -> None:
        self.h = hashlib.blake2s(self.h + data).digest()

    def mix_key(self, material: bytes) -> None:
        self.ck, key = _hkdf(self.ck, material, 2)
        self.cipher, self.nonce = TransportCipher(key), 0

    def mix_key_and_hash(self, material: bytes) -> None:
        self.ck, to_hash, key = _hkdf(self.ck, material, 3)
        self.mix_hash(to_hash)
        self.cipher, self.nonce = TransportCipher(key), 0

    def encrypt_and_hash(self, plaintext: bytes) -> bytes:
        sealed = plaintext
        if self.cipher is not None:
            sealed = self.cipher.seal(self.nonce, plaintext, self.h)
            self.nonce += 1
        self.mix_hash(sealed)
        return sealed

    def decrypt_and_hash(self, sealed: bytes) -> bytes:
        plaintext = sealed
        if self.cipher is not None:
            try:
                plaintext = self.cipher.open(self.nonce, sealed, self.h)
            except AuthError as error:
                raise HandshakeError(error.reason) from error
            self.nonce += 1
        self.mix_hash(sealed)
        return plaintext


class Handshake:
    """One end of one handshake.

    Alternate write_message and read_message (initiator writes first) until `finished`, then take split().
    A caller that keeps the object keeps the means to compute the session's keys: drop it after split().
    """

    def __init__(
        self,
        pattern: Pattern,
        initiator: bool,
        static: StaticKey,
        rng: Rng,
        prologue: bytes,
        *,
        remote_static: bytes | None = None,
        psk: bytes | None = None,
    ) -> None:
        """`rng(n)` gives n random bytes, asked for 32 whenever an ephemeral key is made.

        Raises MisuseError: an initiator of IKPSK2 needs `remote_static`, everyone else learns it; lengths are 32.
        """
        self._pattern = pattern
        self._shape = _SHAPES[pattern]
        self._initiator = initiator
        self._rng = rng
        self._psk: bytes | None = None
        if (remote_static is not None) != (initiator and self._shape.responder_known):
            raise MisuseError("remote_static is for the initiator of IKPSK2, and it must have it")
        if psk is not None:
            self.set_psk(psk)

        # Both names are longer than a hash, so they are hashed (section 5.2, InitializeSymmetric).
        start = hashlib.blake2s(f"Noise_{pattern.value}_25519_ChaChaPoly_BLAKE2s".encode()).digest()
        self._state = _State(h=start, ck=start, local={"s": static.key})
        self._state.mix_hash(prologue)
        if remote_static is not None:
            if len(remote_static) != KEY_LEN:
                raise MisuseError("a public key has 32 bytes")
            self._state.remote["s"] = remote_static
            self._state.mix_hash(remote_static)
        elif self._shape.responder_known:
            self._state.mix_hash(static.public)

    def set_psk(self, psk: bytes) -> None:
        """Give the pairwise secret once it is known whose it is: an IKPSK2 responder learns that from message 1."""
        if "psk" not in self._shape.messages[-1]:
            raise MisuseError(f"{self._pattern.value} uses no PSK")
        if len(psk) != KEY_LEN:
            raise MisuseError("a PSK has 32 bytes")
        self._psk = psk

    @property
    def remote_static(self) -> bytes | None:
        """The other end's public key, from the moment that it is known.

        Proven to be the sender's own by the message that carried it, except that a first message of IKPSK2 may be an
        old one replayed.
        """
        return self._state.remote.get("s")

    @property
    def finished(self) -> bool:
        """All messages are done."""
        return self._state.step == len(self._shape.messages)

    @property
    def handshake_hash(self) -> bytes:
        """32 bytes that name this session: the same at both ends, different in every handshake (section 11.2)."""
        self._require_finished()
        return self._state.h

    def write_message(self, payload: bytes = b"") -> bytes:
        """The next message.

        Raises MisuseError out of turn, without the PSK where it is due, or above 65,535 bytes; HandshakeError
        (LOW_ORDER_KEY) where a key that came earlier in the clear is first used now.
        """
        state, tokens = self._next(writing=True)
        message = b""
        for token in tokens:
            if token == "e":
                ephemeral = _private_key(self._rng(KEY_LEN))
                state.local["e"] = ephemeral
                message += self._mix_ephemeral(state, ephemeral.public_key().public_bytes_raw())
            elif token == "s":
                message += state.encrypt_and_hash(state.local["s"].public_key().public_bytes_raw())
            else:
                self._mix_token(state, token)
        message += state.encrypt_and_hash(payload)
        if len(message) > MAX_NOISE_MESSAGE:
            raise MisuseError("the payload does not fit into a Noise message")
        self._state = state
        return message

    def read_message(self, message: bytes) -> bytes:
        """The payload of the other end's next message.

        Raises HandshakeError (TRUNCATED, TOO_LONG, LOW_ORDER_KEY, FORGED) and is then ready for another attempt;
        MisuseError out of turn or without the PSK where it is due.
        """
        state, tokens = self._next(writing=False)
        if len(message) > MAX_NOISE_MESSAGE:
            raise HandshakeError(Reason.TOO_LONG)
        rest = message
        for token in tokens:
            if token == "e":
                public, rest = _take(rest, KEY_LEN)
                state.remote["e"] = self._mix_ephemeral(state, public)
            elif token == "s":
                sealed, rest = _take(rest, KEY_LEN + (TAG_LEN if state.cipher is not None else 0))
                state.remote["s"] = state.decrypt_and_hash(sealed)
            else:
                self._mix_token(state, token)
        payload = state.decrypt_and_hash(rest)
        self._state = state
        return payload

    def split(self) -> TransportKeys:
        """The session's two keys (section 5.2, Split).  Raises MisuseError before the handshake has finished."""
        self._require_finished()
        first, second = _hkdf(self._state.ck, b"", 2)
        return TransportKeys(first, second) if self._initiator else TransportKeys(second, first)

    def export_secret(self, label: bytes) -> bytes:
        """32 bytes that only the two ends of this handshake can know, independent of the session's keys.

        First output of Noise's HKDF(ck, label || h), where ck and h are the chaining key and the hash at the end; h
        ties the secret to the whole handshake, both static keys and the prologue included.  split() uses the same ck
        with no input at all, so the two never meet.  Raises MisuseError before the handshake has finished.
        """
        self._require_finished()
        return _hkdf(self._state.ck, label + self._state.h, 1)[0]

    def _require_finished(self) -> None:
        if not self.finished:
            raise MisuseError("the handshake has not finished")

    def _next(self, *, writing: bool) -> tuple[_State, list[str]]:
        """A copy of the state, counted as one message on, and the tokens of that message."""
        step = self._state.step
        if self.finished or writing != ((step % 2 == 0) == self._initiator):
            raise MisuseError(f"{'writing' if writing else 'reading'} message {step + 1} is not due")
        state = self._state.copy()
        state.step += 1
        return state, self._shape.messages[step].split()

    def _mix_ephemeral(self, state: _State, public: bytes) -> bytes:
        state.mix_hash(public)
        if self._shape.messages[-1].endswith("psk"):
            state.mix_key(public)  # section 9.2: randomises the key before the PSK is used
        return public

    def _mix_token(self, state: _State, token: str) -> None:
        """PSK, or the Diffie-Hellman of the initiator's key `token[0]` with the responder's `token[1]`."""
        if token == "psk":
            if self._psk is None:
                raise MisuseError("the PSK is due: set_psk() first")
            state.mix_key_and_hash(self._psk)
            return
        ours, theirs = (token[0], token[1]) if self._initiator else (token[1], token[0])
        try:
            # An all-zero result, that is a key of low order, is refused by exchange() itself (RFC 7748, section 6.1).
            shared = state.local[ours].exchange(X25519PublicKey.from_public_bytes(state.remote[theirs]))
        except ValueError as error:
            raise HandshakeError(Reason.LOW_ORDER_KEY) from error
        state.mix_key(shared)


def _take(data: bytes, length: int) -> tuple[bytes, bytes]:
    if len(data) < length:
        raise HandshakeError(Reason.TRUNCATED)
    return data[:length], data[length:]


def _private_key(private: bytes) -> X25519PrivateKey:
    if len(private) != KEY_LEN:
        raise MisuseError("a private key has 32 bytes")
    return X25519PrivateKey.from_private_bytes(private)


def _hkdf(chaining_key: bytes, material: bytes, outputs: int) -> list[bytes]:
    """Noise's HKDF (section 4.3): HMAC-BLAKE2s, not BLAKE2s's own keyed mode."""
    temp = hmac.digest(chaining_key, material, "blake2s")
    result = [hmac.digest(temp, b"\x01", "blake2s")]
    while len(result) < outputs:
        result.append(hmac.digest(temp, result[-1] + bytes([len(result) + 1]), "blake2s"))
    return result

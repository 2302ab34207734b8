"""Datagrams of the control port.  All integers in network byte order; docs/protocol.md tells what they are for.

    INIT (1)       | head | sender index (4) | versions (4) | Noise message 1 | mac1 (16) | mac2 (16) |
    RESPONSE (2)   | head | sender index (4) | receiver index (4) | Noise message 2 |
    FINAL (3)      | head | receiver index (4) | Noise message 3 |                      (pattern XX only)
    COOKIE (4)     | head | receiver index (4) | nonce (24) | sealed cookie (32) |
    TRANSPORT (5)  | head | receiver index (4) | counter (8) | ciphertext |
    VERSIONS (6)   | head | receiver index (4) | versions (4) |
    UNKNOWN (7)    | head | receiver index (4) |

    head: | type (1) | version (1) | pattern (1) | 0 (1) |
          pattern is 0 but in INIT and RESPONSE, version is 0 in VERSIONS

``versions`` lists what its sender speaks, highest first, padded with zeros.  COOKIE, VERSIONS and UNKNOWN are
answers that cost no state and prove nothing: they are hints, which the receiver of a matching index may follow.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Final, TypeAlias

MAC: Final = 16
MAX_DATAGRAM: Final = 1232  # IPv6 minimum MTU 1280 less IPv6 and UDP headers (RFC 8200 section 5, RFC 768)


class Type(IntEnum):
    """First byte of a datagram."""

    INIT = 1
    RESPONSE = 2
    FINAL = 3
    COOKIE = 4
    TRANSPORT = 5
    VERSIONS = 6
    UNKNOWN = 7


class Pattern(IntEnum):
    """Noise handshake pattern, third byte of INIT and RESPONSE."""

    XX = 0
    IKPSK2 = 1


class MalformedError(ValueError):
    """Bytes that are not what they claim to be.  ``reason`` is a name for the event log."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


_HEAD = struct.Struct("!BBBB")
_INIT = struct.Struct("!BBBBI4s")
_RESPONSE = struct.Struct("!BBBBII")
_INDEXED = struct.Struct("!BBBBI")
_COOKIE = struct.Struct("!BBBBI24s32s")
_TRANSPORT = struct.Struct("!BBBBIQ")
_VERSIONS = struct.Struct("!BBBBI4s")

_NOISE_MIN: Final = 32  # every first or second handshake message starts with an ephemeral key
_TAG: Final = 16


@dataclass(frozen=True, slots=True)
class Init:
    """First handshake message."""

    version: int
    pattern: Pattern
    sender: int
    versions: tuple[int, ...]
    noise: bytes
    mac1: bytes = bytes(MAC)
    mac2: bytes = bytes(MAC)

    def body(self) -> bytes:
        """What mac1 covers."""
        head = _INIT.pack(Type.INIT, self.version, self.pattern, 0, self.sender, pack_versions(self.versions))
        return head + self.noise

    def encode(self) -> bytes:
        """The datagram."""
        return self.body() + self.mac1 + self.mac2


@dataclass(frozen=True, slots=True)
class Response:
    """Second handshake message."""

    version: int
    pattern: Pattern
    sender: int
    receiver: int
    noise: bytes

    def encode(self) -> bytes:
        """The datagram."""
        return _RESPONSE.pack(Type.RESPONSE, self.version, self.pattern, 0, self.sender, self.receiver) + self.noise


@dataclass(frozen=True, slots=True)
class FinalMessage:
    """Third handshake message of XX."""

    version: int
    receiver: int
    noise: bytes

    def encode(self) -> bytes:
        """The datagram."""
        return _INDEXED.pack(Type.FINAL, self.version, 0, 0, self.receiver) + self.noise


@dataclass(frozen=True, slots=True)
class Cookie:
    """Answer to an INIT under load: try again with this cookie."""

    version: int
    receiver: int
    nonce: bytes
    sealed: bytes

    def encode(self) -> bytes:
        """The datagram."""
        return _COOKIE.pack(Type.COOKIE, self.version, 0, 0, self.receiver, self.nonce, self.sealed)


@dataclass(frozen=True, slots=True)
class Transport:
    """An encrypted message of a session."""

    version: int
    receiver: int
    counter: int
    ciphertext: bytes

    @property
    def header(self) -> bytes:
        """The 16 bytes that are authenticated with the ciphertext."""
        return _TRANSPORT.pack(Type.TRANSPORT, self.version, 0, 0, self.receiver, self.counter)

    def encode(self) -> bytes:
        """The datagram."""
        return self.header + self.ciphertext


@dataclass(frozen=True, slots=True)
class Versions:
    """Answer to an INIT of a version that we do not speak."""

    receiver: int
    versions: tuple[int, ...]

    def encode(self) -> bytes:
        """The datagram."""
        return _VERSIONS.pack(Type.VERSIONS, 0, 0, 0, self.receiver, pack_versions(self.versions))


@dataclass(frozen=True, slots=True)
class Unknown:
    """Answer to a message whose sender or session we do not know: begin with a full handshake."""

    version: int
    receiver: int

    def encode(self) -> bytes:
        """The datagram."""
        return _INDEXED.pack(Type.UNKNOWN, self.version, 0, 0, self.receiver)


Datagram: TypeAlias = Init | Response | FinalMessage | Cookie | Transport | Versions | Unknown


def pack_versions(versions: tuple[int, ...]) -> bytes:
    """Four bytes, zero-padded."""
    return bytes(versions).ljust(4, b"\0")


def unpack_versions(field: bytes) -> tuple[int, ...]:
    """Raises MalformedError when empty, out of order, or not padded at the end."""
    versions = tuple(field.rstrip(b"\0"))
    if not versions or 0 in versions or list(versions) != sorted(set(versions), reverse=True):
        raise MalformedError("bad-version-list")
    return versions


def decode(data: bytes) -> Datagram:
    """Take a datagram apart.  Checks lengths and reserved bytes only; raises MalformedError."""
    if len(data) < _INDEXED.size:
        raise MalformedError("too-short")
    if len(data) > MAX_DATAGRAM:
        raise MalformedError("too-long")
    kind, version, third, fourth = _HEAD.unpack_from(data)
    if fourth != 0 or (third != 0 and kind not in (Type.INIT, Type.RESPONSE)):
        raise MalformedError("reserved-not-zero")
    decoder = _DECODERS.get(kind)
    if decoder is None:
        raise MalformedError("unknown-type")
    return decoder(data, version)


def _pattern(value: int) -> Pattern:
    try:
        return Pattern(value)
    except ValueError:
        raise MalformedError("unknown-pattern") from None


def _init(data: bytes, version: int) -> Init:
    if len(data) < _INIT.size + _NOISE_MIN + 2 * MAC:
        raise MalformedError("too-short")
    _, _, pattern, _, sender, versions = _INIT.unpack_from(data)
    noise, mac1, mac2 = data[_INIT.size : -2 * MAC], data[-2 * MAC : -MAC], data[-MAC:]
    return Init(version, _pattern(pattern), sender, unpack_versions(versions), noise, mac1, mac2)


def _response(data: bytes, version: int) -> Response:
    if len(data) < _RESPONSE.size + _NOISE_MIN:
        raise MalformedError("too-short")
    _, _, pattern, _, sender, receiver = _RESPONSE.unpack_from(data)
    return Response(version, _pattern(pattern), sender, receiver, data[_RESPONSE.size :])


def _final(data: bytes, version: int) -> FinalMessage:
    if len(data) < _INDEXED.size + _TAG:
        raise MalformedError("too-short")
    return FinalMessage(version, _INDEXED.unpack_from(data)[4], data[_INDEXED.size :])


def _cookie(data: bytes, version: int) -> Cookie:
    if len(data) != _COOKIE.size:
        raise MalformedError("bad-length")
    *_, receiver, nonce, sealed = _COOKIE.unpack(data)
    return Cookie(version, receiver, nonce, sealed)


def _transport(data: bytes, version: int) -> Transport:
    if len(data) < _TRANSPORT.size + _TAG:
        raise MalformedError("too-short")
    *_, receiver, counter = _TRANSPORT.unpack_from(data)
    return Transport(version, receiver, counter, data[_TRANSPORT.size :])


def _versions(data: bytes, version: int) -> Versions:
    if len(data) != _VERSIONS.size:
        raise MalformedError("bad-length")
    if version:
        raise MalformedError("reserved-not-zero")
    *_, receiver, versions = _VERSIONS.unpack(data)
    return Versions(receiver, unpack_versions(versions))


def _unknown(data: bytes, version: int) -> Unknown:
    if len(data) != _INDEXED.size:
        raise MalformedError("bad-length")
    return Unknown(version, _INDEXED.unpack(data)[4])


_DECODERS: Final[dict[int, Callable[[bytes, int], Datagram]]] = {
    Type.INIT: _init,
    Type.RESPONSE: _response,
    Type.FINAL: _final,
    Type.COOKIE: _cookie,
    Type.TRANSPORT: _transport,
    Type.VERSIONS: _versions,
    Type.UNKNOWN: _unknown,
}

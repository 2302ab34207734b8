"""What the two programs of a pairing say to each other over ssh: one JSON document a line, behind PREFIX.

    this host (asks)                              the other host (answers)
    Open: key, nonce, port, name, addresses  ──►
                                             ◄──  Ready: key, nonce, port, proof of its key
    Proven: proof of our key                 ──►
                                             ◄──  Expecting: its daemon lets ours in
    Met, or Unmet: our daemon reached its    ──►
                                             ◄──  CalledBack (after Unmet): its daemon reached ours
    Met                                      ──►
                                             ◄──  Approved: our key, by its daemon

Sorry takes the place of any answer, with a reason of a closed list.  Lines without PREFIX are what the login shell of
the other host prints of its own accord: they are skipped, up to NOISE_MAX bytes, and never shown.
"""

from __future__ import annotations

import os
import select
import time
from enum import StrEnum
from typing import Annotated, Final, TypeAlias, TypeVar

import msgspec

from redirectctl.api.schema import CheckStatus

PREFIX: Final = b"redirectctl-pair:1 "
LINE_MAX: Final = 4096  # bytes
NOISE_MAX: Final = 64 * 1024  # bytes, of a whole pairing
NAME_MAX: Final = 64  # characters, of a host
ADDRESSES_MAX: Final = 8

_Bytes = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
_Port = Annotated[int, msgspec.Meta(ge=1, le=65535)]


class Why(StrEnum):
    """Why the other host does not go on."""

    NO_DAEMON = "no-daemon"  # redirectd does not run there
    DENIED = "denied"  # the user there may not approve keys
    VERSION = "version"  # what was said is not understood
    OWN_KEY = "own-key"  # both programs ask the same daemon, or one was copied with its key
    PROOF = "proof"  # we did not prove our key
    REJECTED = "rejected"  # our key was rejected there
    CHANGED = "changed"  # our key answered there where another is known
    UNMET = "unmet"  # neither daemon has reached the other
    FAILED = "failed"  # the daemon there failed


class _Line(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="says"):
    pass


class Open(_Line, frozen=True, tag="open"):
    """Who asks."""

    key: _Bytes
    nonce: _Bytes
    port: _Port  # of its control port
    name: Annotated[str, msgspec.Meta(max_length=NAME_MAX)]  # of its host; may be empty
    addresses: Annotated[list[Annotated[str, msgspec.Meta(max_length=45)]], msgspec.Meta(max_length=ADDRESSES_MAX)]


class Proven(_Line, frozen=True, tag="proven"):
    """The key is its own."""

    proof: _Bytes


class Met(_Line, frozen=True, tag="met"):
    """The daemons have a session, at an address of the host that ssh leads to."""


class Unmet(_Line, frozen=True, tag="unmet"):
    """There the daemon does not answer."""


class Ready(_Line, frozen=True, tag="ready"):
    """Who answers."""

    key: _Bytes
    nonce: _Bytes
    port: _Port
    proof: _Bytes


class Expecting(_Line, frozen=True, tag="expecting"):
    """The daemon lets the other one in."""

    firewall: CheckStatus  # of the packet filter there: whether it lets the control port in


class CalledBack(_Line, frozen=True, tag="called-back"):
    """The daemon there has reached ours."""


class Approved(_Line, frozen=True, tag="approved"):
    """The key of the host that asks is approved."""

    name: Annotated[str, msgspec.Meta(max_length=NAME_MAX)]  # what it is called there; may be empty


class Sorry(_Line, frozen=True, tag="sorry"):
    """It does not go on."""

    why: Why


Line: TypeAlias = Open | Proven | Met | Unmet | Ready | Expecting | CalledBack | Approved | Sorry
LineT = TypeVar("LineT", bound=Line)

_decoder: Final[msgspec.json.Decoder[Line]] = msgspec.json.Decoder(Line)


class ExchangeError(Exception):
    """The other end has gone, is late, or says what is none of these lines."""


class EndedError(ExchangeError):
    """It has gone."""


class LateError(ExchangeError):
    """It says nothing."""


class NotUnderstoodError(ExchangeError):
    """It says something else, or too much."""


class SorryError(ExchangeError):
    """It does not go on."""

    def __init__(self, why: Why) -> None:
        super().__init__(str(why))
        self.why = why


class Channel:
    """Lines in and out of two file descriptors, which the caller closes."""

    def __init__(self, read: int, write: int) -> None:
        self._read, self._write = read, write
        self._buffer = b""
        self._noise = 0

    def send(self, line: Line) -> None:
        """Raises EndedError."""
        # What a shell has printed before may not end its line.
        rest = b"\n" + PREFIX + msgspec.json.encode(line) + b"\n"
        while rest:
            try:
                rest = rest[os.write(self._write, rest) :]
            except OSError as error:
                raise EndedError(str(error)) from None

    def receive(self, kind: type[LineT] | tuple[type[LineT], ...], seconds: float) -> LineT:
        """The next line, which must be of that kind.  Raises ExchangeError; SorryError if it is Sorry."""
        until = time.monotonic() + seconds
        while True:
            line, found, self._buffer = self._buffer.partition(b"\n")
            if not found:
                self._buffer = line
                if len(line) > LINE_MAX:
                    self._skip(line)
                    self._buffer = b""  # the rest of that line does not begin with PREFIX either
                self._fill(until)
            elif line.startswith(PREFIX) and len(line) <= LINE_MAX:
                return _decode(line[len(PREFIX) :], kind)
            else:
                self._skip(line)

    def _skip(self, line: bytes) -> None:
        self._noise += len(line) + 1
        if self._noise > NOISE_MAX:
            raise NotUnderstoodError(f"more than {NOISE_MAX} bytes of something else")

    def _fill(self, until: float) -> None:
        left = until - time.monotonic()
        if left <= 0 or not select.select([self._read], [], [], left)[0]:
            raise LateError("nothing was said in time")
        try:
            data = os.read(self._read, LINE_MAX)
        except OSError as error:
            raise EndedError(str(error)) from None
        if not data:
            raise EndedError("the other end has gone")
        self._buffer += data


def _decode(document: bytes, kind: type[LineT] | tuple[type[LineT], ...]) -> LineT:
    try:
        line = _decoder.decode(document)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise NotUnderstoodError(str(error)) from None
    if isinstance(line, Sorry):
        raise SorryError(line.why)
    if not isinstance(line, kind):
        raise NotUnderstoodError(f"{type(line).__name__} out of turn")
    return line

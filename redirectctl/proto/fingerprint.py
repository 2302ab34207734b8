"""How people compare keys: ssh's notation of a SHA-256 digest, and ssh's picture of it.

The picture is the "drunken bishop" of OpenSSH (sshkey.c, fingerprint_randomart): a piece on a 17 by 9 board is moved
diagonally by two bits of the digest at a time, and each field shows how often it was visited.
"""

from __future__ import annotations

import hashlib
import re
from base64 import b64decode, b64encode

PREFIX = "SHA256:"
_DIGEST_LEN = 32
_WIDTH, _HEIGHT = 17, 9
_VISITS = " .o+=*BOX@%&#/^"  # more visits than these show as the last
_START, _END = "S", "E"


def fingerprint(public: bytes) -> str:
    """``SHA256:`` and 43 characters of base64 without padding, of the digest of a 32-byte public key."""
    return PREFIX + b64encode(_digest(public)).decode().rstrip("=")


def parse(text: str) -> str:
    """A whole fingerprint as fingerprint() writes it, from one with or without ``SHA256:``.  Raises ValueError."""
    encoded = text.removeprefix(PREFIX)
    try:
        digest = b64decode(encoded + "=", validate=True)
    except ValueError:  # not ASCII, not base64, or not a multiple of four characters
        digest = b""
    canonical = b64encode(digest).decode().rstrip("=")
    if len(digest) != _DIGEST_LEN or canonical != encoded:
        raise ValueError(f"{text!r} is not a fingerprint: SHA256: and 43 characters of base64")
    return PREFIX + canonical


def matches(full: str, prefix: str) -> bool:
    """Whether `prefix`, with or without ``SHA256:``, begins the fingerprint `full`.  Nothing at all begins none."""
    wanted = prefix.removeprefix(PREFIX)
    return wanted != "" and full.removeprefix(PREFIX).startswith(wanted)


def is_like_fingerprint(text: str) -> bool:
    """Whether a person meant a fingerprint, or the beginning of one, and no name or address."""
    return text.startswith(PREFIX) or re.fullmatch(r"[A-Za-z0-9+/]{20,}", text) is not None


def picture(public: bytes, title: str) -> str:
    """Eleven lines of 19 characters, no newline at the end, `title` (15 characters at most) in the upper border.

    The same for everyone who has the key.  Raises ValueError on a title that does not fit.
    """
    return draw(_digest(public), title)


def draw(digest: bytes, title: str) -> str:
    """The picture of any digest; see picture()."""
    if len(title) > _WIDTH - 2:
        raise ValueError(f"{title!r} is too long for the border")
    visits = [[0] * _WIDTH for _ in range(_HEIGHT)]
    x, y = _WIDTH // 2, _HEIGHT // 2
    for byte in digest:
        for shift in (0, 2, 4, 6):
            step = byte >> shift
            x = min(max(x + (1 if step & 1 else -1), 0), _WIDTH - 1)
            y = min(max(y + (1 if step & 2 else -1), 0), _HEIGHT - 1)
            visits[y][x] += 1
    board = [[_VISITS[min(count, len(_VISITS) - 1)] for count in row] for row in visits]
    board[_HEIGHT // 2][_WIDTH // 2] = _START
    board[y][x] = _END
    return "\n".join([_border(title), *(f"|{''.join(row)}|" for row in board), _border(PREFIX.rstrip(":"))])


def _border(title: str) -> str:
    label = f"[{title}]"
    left = (_WIDTH - len(label)) // 2
    return "+" + "-" * left + label + "-" * (_WIDTH - left - len(label)) + "+"


def _digest(public: bytes) -> bytes:
    return hashlib.sha256(public).digest()

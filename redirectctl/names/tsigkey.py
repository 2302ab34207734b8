"""The file with the key that permits updates, as tsig-keygen(8) and ddns-confgen(8) write it.

``key "laptop" { algorithm hmac-sha256; secret "c2VjcmV0"; };``
"""

from __future__ import annotations

import base64
import binascii
import os
import re
import stat
from pathlib import Path
from typing import Final, NamedTuple

MAX_FILE: Final = 64 * 1024  # bytes
ALGORITHMS: Final = frozenset({"hmac-sha256", "hmac-sha384", "hmac-sha512", "hmac-sha224", "hmac-sha1"})
_COMMENT: Final = re.compile(r"/\*.*?\*/|//[^\n]*|#[^\n]*", re.DOTALL)
_KEY: Final = re.compile(r'\bkey\s+"?([A-Za-z0-9._-]+)"?\s*\{([^}]*)\}')
_SETTING: Final = re.compile(r'\b(algorithm|secret)\s+"?([A-Za-z0-9+/=._-]+)"?\s*;')


class KeyFileError(Exception):
    """``what: why; what to do``."""

    def __init__(self, path: Path, why: str, hint: str) -> None:
        super().__init__(f"{path}: {why}; {hint}")


class TsigKey(NamedTuple):
    """RFC 8945."""

    name: str
    algorithm: str
    secret: bytes

    def __repr__(self) -> str:
        return f"TsigKey({self.name!r}, {self.algorithm!r})"  # never the secret


def read(path: Path) -> TsigKey:
    """The first key of the file.  Raises KeyFileError, also when others could read it."""
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            content = file.read(MAX_FILE)
    except OSError as error:
        raise KeyFileError(path, error.strerror or str(error), "make one with tsig-keygen(8)") from None
    if status.st_mode & (stat.S_IRWXO | stat.S_IWGRP) or status.st_uid not in (0, os.geteuid()):
        raise KeyFileError(path, "others can read or change it", f"chown root {path}; chmod 600 {path}")
    return parse(content.decode(errors="replace"), path)


def parse(text: str, path: Path = Path("key")) -> TsigKey:
    """The first key in the text.  Raises KeyFileError."""
    # A secret may contain "//": what is quoted is no comment.
    quoted = re.split(r'("[^"\n]*")', text)
    bare = _COMMENT.sub(" ", "".join(part if n % 2 == 0 else part.replace("/", "\0") for n, part in enumerate(quoted)))
    found = _KEY.search(bare.replace("\0", "/"))
    if found is None:
        raise KeyFileError(path, 'no key "NAME" { ... } in it', "make one with tsig-keygen(8)")
    settings = dict(_SETTING.findall(found[2]))
    algorithm = settings.get("algorithm", "").lower().removesuffix(".")
    if algorithm not in ALGORITHMS:
        raise KeyFileError(path, f"algorithm {algorithm or 'missing'}", f"use one of {', '.join(sorted(ALGORITHMS))}")
    try:
        secret = base64.b64decode(settings.get("secret", ""), validate=True)
    except binascii.Error:
        secret = b""
    if not secret:
        raise KeyFileError(path, "no secret in base64", "make one with tsig-keygen(8)")
    return TsigKey(found[1], algorithm, secret)

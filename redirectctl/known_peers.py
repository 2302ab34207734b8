"""Files of fingerprints and names: `[trust] known_peers`, which `redirectctl peers export` writes.

A line is a fingerprint and, behind a blank, a name.  `#` begins a comment.  Whose key is listed is approved without a
person, as with ssh's known_hosts; of one name there may be several keys, while a host changes to another.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from redirectctl.config import ConfigError, read_trusted
from redirectctl.proto.fingerprint import parse

_COMMENT = re.compile(r"(?:^|\s)#")
LONGEST_NAME = 64  # characters, as of any peer


def read(files: Iterable[str]) -> dict[str, str]:
    """Names by fingerprint; "" where there is none.  Raises ConfigError about the first wrong line."""
    found: dict[str, tuple[str, str]] = {}  # where it was listed first, and the name
    for file in files:
        for number, line in enumerate(read_trusted(Path(file)).split("\n"), start=1):
            words = _COMMENT.split(line, maxsplit=1)[0].split(maxsplit=1)
            if not words:
                continue
            key, name = words[0], words[1].strip() if len(words) > 1 else ""
            try:
                key = parse(key)
            except ValueError as error:
                raise ConfigError(file, number, "", str(error), "see `redirectctl identity` on that host") from None
            if len(name) > LONGEST_NAME or not name.isprintable():
                why = f"a name has at most {LONGEST_NAME} printable characters"
                raise ConfigError(file, number, "", why, "choose another name")
            where, other = found.setdefault(key, (f"{file}:{number}", name))
            if other != name:
                why = f"the same key is called {other or 'nothing'} in {where}"
                raise ConfigError(file, number, "", why, "leave one of the two lines")
    return {key: name for key, (_, name) in found.items()}


def write(peers: Iterable[tuple[str, str]]) -> str:
    """The text of a file with these fingerprints and names."""
    return "".join(f"{key} {name}".rstrip() + "\n" for key, name in peers)

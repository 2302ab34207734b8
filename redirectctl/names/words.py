"""Which words of a command line may be the name of a host that it talks to.

A word is looked up to find out, so others see it: what cannot be a name, or is meant as something else, is left out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Final
from urllib.parse import urlsplit

from redirectctl.config import is_host_name

MAX_WORDS: Final = 8  # of one command line: the host comes early, or the line is about something else
_SSH_TAKES: Final = frozenset("BbcDEeFIiJLlmOoPpQRSWw")  # options of ssh with a value
_NAME: Final = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,62}[A-Za-z0-9_])?", re.ASCII)
_ADDRESS: Final = re.compile(r"[0-9.]+")
_OPTIONS: Final = ("host", "hostname", "server", "hostaddr")  # whose value is a host


def host_words(argv: Sequence[str]) -> list[str]:
    """In the order in which they should be tried: whole names first, then names without a dot."""
    found = dict.fromkeys(word.lower() for word in _candidates(argv[1:]) if is_host_name(word))
    return sorted(found, key=lambda word: "." not in word)[:MAX_WORDS]


def destination(argv: Sequence[str]) -> str | None:
    """What the user of ssh calls the host: a name of DNS, or one that ssh's configuration explains.

    None: it is another program, or names the host by an address.
    """
    if not argv or argv[0].rpartition("/")[2] not in ("ssh", "ssh.exe"):
        return None
    words = iter(argv[1:])
    for word in words:
        if not word.startswith("-"):
            return _called(_host_of_url(word) if "://" in word else word.rpartition("@")[2])
        if word == "--":
            return _called(next(words, "").rpartition("@")[2])
        # ssh(1): one letter each, of which the last may take the rest, or the next word.
        takes = next((n for n, letter in enumerate(word[1:]) if letter in _SSH_TAKES), None)
        if takes is not None and takes == len(word) - 2:
            next(words, None)
    return None


def _called(word: str) -> str | None:
    return word.lower() if _NAME.fullmatch(word) and not _ADDRESS.fullmatch(word) else None


def _candidates(words: Sequence[str]) -> Iterator[str]:
    for word in words:
        if "://" in word:
            yield _host_of_url(word)
        elif word.startswith("-"):
            option, _, value = word.lstrip("-").partition("=")
            if option.lower() in _OPTIONS:
                yield value
        elif "=" in word:  # libpq's "host=db.example port=5432"
            for setting in word.split():
                key, _, value = setting.partition("=")
                if key.lower() in _OPTIONS:
                    yield value
        else:  # host, user@host, host:path, host:port, host/path
            yield word.rpartition("@")[2].partition(":")[0].partition("/")[0]


def _host_of_url(word: str) -> str:
    try:
        return urlsplit(word).hostname or ""
    except ValueError:
        return ""

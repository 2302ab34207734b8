"""Which words of a command line may be the name of a host that it talks to.

A word is looked up to find out, so others see it: what cannot be a name, or is meant as something else, is left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final
from urllib.parse import urlsplit

from redirectctl.config import is_host_name

MAX_WORDS: Final = 8  # of one command line: the host comes early, or the line is about something else
_OPTIONS: Final = ("host", "hostname", "server", "hostaddr")  # whose value is a host


def host_words(argv: Sequence[str]) -> list[str]:
    """In the order in which they should be tried: whole names first, then names without a dot."""
    found = dict.fromkeys(word.lower() for word in _candidates(argv[1:]) if is_host_name(word))
    return sorted(found, key=lambda word: "." not in word)[:MAX_WORDS]


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

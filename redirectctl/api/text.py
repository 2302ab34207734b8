"""Text for people, the same in all programs.

What the daemon says may come from other hosts and other users' programs (names, commands): whatever could steer a
terminal is shown escaped.
"""

from __future__ import annotations

import codecs
import time
import unicodedata
from typing import Final

HIDDEN: Final = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}  # control, direction, surrogate, private, separators

# Looked up now: Python reads it from a file, and clean() is needed most where none can be opened.
_escaped: Final = codecs.lookup("unicode_escape").encode


def clean(text: str) -> str:
    """Text that cannot steer a terminal: control characters and their like escaped as in Python."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        _escaped(character)[0].decode() if unicodedata.category(character) in HIDDEN else character
        for character in text
    )


def shortened(text: str, longest: int) -> str:
    """At most so many characters."""
    return text if len(text) <= longest else text[: longest - 1] + "…"


def duration(seconds: float) -> str:
    """For people: the two greatest units."""
    if seconds < 60:
        return f"{seconds:.1f}s" if seconds < 10 else f"{int(seconds)}s"
    rest = int(seconds)
    for unit, size, below, smaller in (("d", 86400, "h", 3600), ("h", 3600, "m", 60), ("m", 60, "s", 1)):
        if rest >= size:
            count, left = divmod(rest, size)
            return f"{count}{unit} {left // smaller}{below}" if left >= smaller else f"{count}{unit}"
    return f"{rest}s"


def moment(epoch: float | None) -> str:
    """Local date and time for people."""
    return "never" if epoch is None else time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(epoch))

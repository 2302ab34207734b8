"""stdout: one JSON document, or plain aligned tables for people.

What could steer a terminal is shown escaped (api/text.py).
"""

from __future__ import annotations

import os
import sys
import textwrap
import unicodedata
from collections.abc import Iterable, Sequence
from enum import Enum
from typing import Any, Final, NamedTuple

import msgspec

from redirectctl.api.text import HIDDEN, clean

ELLIPSIS: Final = "…"
MIN_WIDTH: Final = 8  # below this a column is not shortened
GAP: Final = "  "  # between columns
INDENT: Final = "  "  # of what is below a row


class Colour(Enum):
    """How a value is meant; the number is the terminal's (ECMA-48 SGR)."""

    GOOD = 32
    WAITING = 33
    BAD = 31
    PLAIN = 0


COLOUR_OF: Final = {
    "protected": Colour.GOOD,
    "approved": Colour.GOOD,
    "negotiating": Colour.WAITING,
    "pending": Colour.WAITING,
    "suspended": Colour.WAITING,
    "unsupported": Colour.WAITING,
    "refused": Colour.BAD,
    "rejected": Colour.BAD,
    "changed": Colour.BAD,
    "ok": Colour.GOOD,
    "warn": Colour.WAITING,
    "fail": Colour.BAD,
}


class Column(NamedTuple):
    """Of a table."""

    title: str
    shorten: bool = False  # when the terminal is narrow
    middle: bool = False  # and then in the middle: the end tells most, as in `ssh -o ... host`
    right: bool = False
    optional: bool = False  # left out when no row has anything there
    below: bool = False  # in lines below its row, with its title, when the terminal is too narrow for all


def print_json(value: Any) -> None:
    """One document on one line.  JSON escapes C0 controls itself; the others are escaped here."""
    text = msgspec.json.encode(value).decode()
    if not (text.isascii() and text.isprintable()):
        text = "".join(_json_escape(c) if unicodedata.category(c) in HIDDEN else c for c in text)
    print(text, flush=True)


def print_done(value: Any, text: str, *, json: bool) -> None:
    """What was done to something: a line for people."""
    if json:
        print_json(value)
    else:
        print(clean(text))


def print_table(columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> None:
    """An aligned table with a line of titles, no wider than the terminal if that can be."""
    cells = [[clean(text) for text in row] for row in rows]
    shown = [n for n, column in enumerate(columns) if not column.optional or any(row[n] for row in cells)]
    limit = _terminal_width()
    below: list[int] = []
    if limit is not None and _total(_shortest(columns, cells, shown)) > limit:
        below = [n for n in shown if columns[n].below]
        shown = [n for n in shown if n not in below]
    widths = _widths(columns, cells, shown)
    _fit([columns[n] for n in shown], widths, limit)
    titles = [column.title for column in columns]
    for number, row in enumerate([titles, *cells]):
        parts = []
        for n, width in zip(shown, widths, strict=True):
            short = _shortened(row[n], width, middle=columns[n].middle)
            padding = " " * (width - _width(short))
            coloured = paint(short) if number else short
            parts.append(padding + coloured if columns[n].right else coloured + padding)
        print(GAP.join(parts).rstrip())
        if number:
            for line in _titled([(titles[n].lower(), row[n]) for n in below if row[n]], limit):
                print(line)


def _widths(columns: Sequence[Column], cells: Sequence[Sequence[str]], shown: Sequence[int]) -> list[int]:
    return [max(_width(text) for text in (columns[n].title, *(row[n] for row in cells))) for n in shown]


def _shortest(columns: Sequence[Column], cells: Sequence[Sequence[str]], shown: Sequence[int]) -> list[int]:
    """Widths when everything that may be shortened is."""
    widths = zip(shown, _widths(columns, cells, shown), strict=True)
    return [min(width, MIN_WIDTH) if columns[n].shorten else width for n, width in widths]


def _total(widths: Sequence[int]) -> int:
    """Of a line of the table."""
    return sum(widths) + len(GAP) * (len(widths) - 1)


def _titled(values: Sequence[tuple[str, str]], limit: int | None) -> list[str]:
    """Lines of titles and values, as many to a line as go in; one that is too long has lines of its own."""
    lines: list[str] = []
    for title, value in values:
        text = f"{title} {value}"
        if lines and limit is not None and _width(lines[-1]) + len(GAP) + _width(text) <= limit:
            lines[-1] += GAP + text
        elif limit is None:
            lines.append(INDENT + text)
        else:
            lines += textwrap.wrap(text, max(limit, MIN_WIDTH), initial_indent=INDENT, subsequent_indent=2 * INDENT)
    return lines


def print_pairs(pairs: Iterable[tuple[str, str]]) -> None:
    """Lines of a name and a value."""
    pairs = list(pairs)
    width = max(len(name) for name, _ in pairs)
    for name, value in pairs:
        print(f"{name:<{width}}  {clean(value)}")


def paint(text: str) -> str:
    """Text in the colour of the state that it names, where colour is wanted."""
    return tinted(text, COLOUR_OF.get(text, Colour.PLAIN))


def tinted(text: str, colour: Colour) -> str:
    """Text in a colour, where colour is wanted."""
    if colour is Colour.PLAIN or not _colours():
        return text
    return f"\x1b[{colour.value}m{text}\x1b[0m"


def _colours() -> bool:
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def _terminal_width() -> int | None:
    if not sys.stdout.isatty():
        return None
    columns = os.environ.get("COLUMNS", "")
    if columns.isascii() and columns.isdigit() and int(columns) > 0:
        return int(columns)
    try:
        return os.get_terminal_size(sys.stdout.fileno()).columns or None
    except OSError:
        return None


def _fit(columns: Sequence[Column], widths: list[int], limit: int | None) -> None:
    """Take from the widest column that may be shortened until the table fits, or nothing more can be taken."""
    if limit is None:
        return
    excess = _total(widths) - limit
    while excess > 0:
        candidates = [n for n, column in enumerate(columns) if column.shorten and widths[n] > MIN_WIDTH]
        if not candidates:
            return
        widest = max(candidates, key=widths.__getitem__)
        widths[widest] -= 1
        excess -= 1


def _width(text: str) -> int:
    """Cells of a terminal: wide characters take two, combining ones none."""
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(character) else 2 if unicodedata.east_asian_width(character) in "WF" else 1
        for character in text
    )


def _shortened(text: str, width: int, *, middle: bool = False) -> str:
    if _width(text) <= width:
        return text
    end = _last(text, (width - 1) // 2) if middle else ""
    return _first(text, width - 1 - _width(end)) + ELLIPSIS + end


def _first(text: str, width: int) -> str:
    while _width(text) > width:
        text = text[:-1]
    return text


def _last(text: str, width: int) -> str:
    while _width(text) > width:
        text = text[1:]
    return text


def _json_escape(character: str) -> str:
    code = ord(character)
    if code <= 0xFFFF:
        return f"\\u{code:04x}"
    code -= 0x10000
    return f"\\u{0xD800 + (code >> 10):04x}\\u{0xDC00 + (code & 0x3FF):04x}"

"""The written account of a demonstration: what is said as it happens, and the table at its end."""

from __future__ import annotations

import os
import shutil
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TextIO

WIDTH = 80  # columns at most
BOLD, GREEN, RED = 1, 32, 31  # ECMA-48 SGR


@dataclass(frozen=True)
class Move:
    """One address change, and what the programs saw of it."""

    what: str
    old: str
    new: str
    offline: float  # seconds without an address
    gap: float | None  # seconds from the usable new address to the first byte in either direction; None: none came
    answer: float | None  # the same, to the answer to a command typed in the ssh session while it was offline
    resets: int  # sent meanwhile by the stranger at the old address


class Narrator:
    """Writes the account, in colour on a terminal."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._width = min(shutil.get_terminal_size().columns, WIDTH)
        self._coloured = out.isatty() and "NO_COLOR" not in os.environ
        self._chapter = 0

    def chapter(self, title: str) -> None:
        """Begin a numbered step."""
        self._chapter += 1
        self._print(f"\n{self._colour(f'{self._chapter}. {title}', BOLD)}")

    def say(self, text: str, colour: int | None = None) -> None:
        """Say something in plain words."""
        filled = textwrap.fill(text, self._width, initial_indent="   ", subsequent_indent="   ", break_on_hyphens=False)
        self._print(filled if colour is None else self._colour(filled, colour))

    def show(self, text: str) -> None:
        """Show something as it is: a command, its output, a table."""
        self._print(textwrap.indent(text.rstrip("\n"), "     "))

    def item(self, text: str) -> None:
        """Say something as an item of a list."""
        self._print(textwrap.fill(text, self._width, initial_indent="   - ", subsequent_indent="     "))

    def _colour(self, text: str, number: int) -> str:
        return f"\033[{number}m{text}\033[0m" if self._coloured else text

    def _print(self, text: str) -> None:
        print(text, file=self._out, flush=True)


def milliseconds(seconds: float | None) -> str:
    """A gap in words."""
    return "never" if seconds is None else f"{seconds * 1000:.0f} ms"


def table(moves: Sequence[Move]) -> str:
    """What moved, the gap that the application saw, the verdict."""
    columns: list[tuple[str, Callable[[Move], str]]] = [
        ("what moved", lambda move: move.what),
        ("offline", lambda move: f"{move.offline:.1f} s"),
        ("gap", lambda move: milliseconds(move.gap)),
        ("ssh answers", lambda move: milliseconds(move.answer)),
        ("verdict", lambda move: "died" if move.answer is None else "lived"),
    ]
    rows = [[title for title, _ in columns], *([cell(move) for _, cell in columns] for move in moves)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = zip(columns, row, widths, strict=True)
        lines.append("  ".join(text.rjust(n) if title in _FIGURES else text.ljust(n) for (title, _), text, n in cells))
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(line.rstrip() for line in lines)


_FIGURES = ("offline", "gap", "ssh answers")

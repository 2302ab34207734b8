"""What the marks mean and which keys there are."""

from __future__ import annotations

from typing import ClassVar, Final

from rich.text import Text
from textual.binding import Binding, BindingType

from redirectctl_tui.screens.dialogs import Page
from redirectctl_tui.words import STATES

KEYS: Final = (
    ("1 2 3 4", "Connections, Peers, Moves, Network"),
    ("↑ ↓ PgUp PgDn", "move; Enter or double click: details"),
    ("/", "filter: show only rows with these words"),
    ("s  S", "sort by the next column; the other way round"),
    ("p", "protect a running process, or an open connection"),
    ("r  k", "release: stop protecting; kill: close on both hosts"),
    ("w", "the host that waits for your decision"),
    ("Ctrl+P", "everything by name"),
    ("d  F5", "doctor of a peer, from here to there; of this host, again"),
    ("Ctrl+L", "draw the screen again"),
    ("q", "quit; connections go on without this program"),
)
PATHS: Final = (
    ("original", "packets travel as without redirectctl"),
    ("rewritten", "the kernel changes addresses in the packets"),
    ("tunnel", "packets travel in UDP between the two daemons"),
    ("settled", "reserved: no connection has this path yet"),
)


class Help(Page):
    """Shown by ? on top of everything."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("question_mark,f1", "dismiss('')", "Close", show=False)]

    def __init__(self) -> None:
        super().__init__("Help", _text())


def _text() -> Text:
    text = Text()
    for title, lines in (
        ("Keys", KEYS),
        ("States of a connection", tuple((f"{mark} {state}", what) for state, (mark, _, what) in STATES.items())),
        ("Paths", PATHS),
    ):
        text.append(f"{title}\n", "bold")
        for name, what in lines:
            text.append(f"  {name:<15}{what}\n")
        text.append("\n")
    text.append("A program is opted in by starting it with `redirect-run PROGRAM`")
    return text

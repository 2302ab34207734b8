"""The timeline of moves and outages, and plots of how long programs saw nothing and of what is carried."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import ClassVar, Final

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical

from redirectctl.api.naming import short_fingerprint
from redirectctl.api.stories import Tone
from redirectctl.api.text import clean, moment
from redirectctl_tui.journal import Entry, Journal, median
from redirectctl_tui.model import View
from redirectctl_tui.screens.dialogs import Page, pairs_text
from redirectctl_tui.widgets.lines import Column, Lines
from redirectctl_tui.widgets.plot import Bars
from redirectctl_tui.words import Cell, amount, explained_fully, in_short, rate, took

COLUMNS: Final = (
    Column("time", "TIME", 8, below=110),
    Column("time", "TIME", 12, above=110),
    Column("what", "WHAT", 32, grow=8),  # both addresses of a move in IPv6, on 120 columns
    Column("peer", "PEER", 13, grow=1),
    Column("connections", "CONNS", 5, right=True),
    Column("gap", "GAP", 6, right=True),
    Column("note", "NOTE", 7, grow=2, below=110),
    Column("note", "NOTE", 20, grow=2, above=110),
)
LATEST: Final = 40  # moves whose median is said


class MovesPane(Vertical):
    """Timeline above, plots below."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("a", "app.announce", "Announce our addresses")]

    def __init__(self, id: str) -> None:
        super().__init__(id=id)
        self._view: View | None = None

    def compose(self) -> ComposeResult:
        """Timeline above, plots below."""
        empty = "No address has changed yet."
        yield Lines[Entry](COLUMNS, lambda entry: str(entry.number), self._cells, empty=empty, id="timeline")
        with Horizontal(id="plots"):
            gaps = Bars(took, logarithmic=True, id="gaps")
            gaps.border_title = "Programs saw nothing (GAP), move by move"
            yield gaps
            throughput = Bars(rate, id="throughput")
            throughput.border_title = "Throughput, second by second"
            yield throughput

    @property
    def table(self) -> Lines[Entry]:
        """The timeline."""
        return self.query_one("#timeline", Lines)

    def show(self, view: View | None, journal: Journal, throughput: Sequence[tuple[float, float]]) -> None:
        """throughput: received and sent, bytes a second, oldest first."""
        self._view = view
        self.table.show(list(reversed(journal.entries)))
        seconds = journal.gaps
        caption = "no gap yet"
        if seconds:
            latest = seconds[-LATEST:]
            caption = f"last {took(seconds[-1])}  median {took(median(latest))}  max {took(max(latest))}"
        self.query_one("#gaps", Bars).show(seconds, caption)
        received, sent = throughput[-1] if throughput else (0.0, 0.0)
        caption = f"now {amount(received)}/s in, {amount(sent)}/s out"
        self.query_one("#throughput", Bars).show([a + b for a, b in throughput], caption)

    def on_resize(self) -> None:
        """Low screens: the timeline is worth more than tall bars."""
        self.query_one("#plots").set_class(self.size.height < 26, "low")

    def on_lines_chosen(self, event: Lines.Chosen) -> None:
        """The whole of a line, which may have been cut."""
        event.stop()
        if (entry := self.table.current) is not None:
            self.app.push_screen(Page("What happened", self._whole(entry)))

    def _called(self, fingerprint: str) -> str:
        return (self._view.labels.get(fingerprint) if self._view else None) or short_fingerprint(fingerprint)

    def _whole(self, entry: Entry) -> Text:
        return pairs_text(
            [
                ("time", f"{moment(entry.time)}.{int(entry.time % 1 * 1000):03d}"),
                ("what", entry.what),
                ("peer", "\n".join(f"{self._called(peer)}\n{peer}" for peer in entry.peers)),
                ("connections", str(entry.connections or "")),
                ("gap", f"programs saw nothing for {took(entry.gap)}" if entry.gap is not None else ""),
                (
                    "took",
                    f"{took(entry.took)} from a usable address to the peer's confirmation" if entry.took else "",
                ),
                ("because", explained_fully(entry.reason)),
                ("detail", entry.detail),
            ]
        )

    def _cells(self, entry: Entry) -> tuple[Cell, ...]:
        at = time.localtime(entry.time)
        today = self._view is None or time.localtime(self._view.at)[:3] == at[:3]
        return (
            Cell(time.strftime("%H:%M:%S" if today else "%b %d", at)),
            Cell(time.strftime("%H:%M:%S" if today else "%b %d %H:%M", at)),
            Cell(entry.what, entry.tone),
            Cell(", ".join(map(self._called, entry.peers))),
            Cell(str(entry.connections) if entry.connections else ""),
            Cell(took(entry.gap) if entry.gap is not None else ""),
            Cell(_note(clean(entry.reason or ""), entry), Tone.DIM),
            Cell(_note(in_short(entry.reason), entry), Tone.DIM),
        )


def _note(reason: str, entry: Entry) -> str:
    return "; ".join(part for part in (reason, entry.detail) if part)

"""The live table of connections."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import ClassVar, Final

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.message import Message
from textual.widgets import Input, Static

from redirectctl.api.schema import Event, PathName
from redirectctl.api.stories import Tone
from redirectctl.api.text import clean
from redirectctl_tui.model import SORTS, Row, Selection, View
from redirectctl_tui.screens.details import summary_text, timeline_text
from redirectctl_tui.widgets.lines import Column, Lines
from redirectctl_tui.words import Cell, brief, in_short, plural, program_name, rate, state_cell, took

WIDE: Final = 110  # cells, from which on there is room for more columns
WIDER: Final = 170  # and for reasons in words
COLUMNS: Final = (
    Column("host", "HOST", 13, grow=2),
    Column("command", "COMMAND", 10, grow=6),
    Column("state", "STATE", 15),
    Column("path", "PATH", 11, below=WIDE),
    Column("path", "PATH", 9, above=WIDE),
    Column("age", "AGE", 4, right=True),
    Column("rtt", "RTT", 6, right=True),
    Column("rate", "RATE", 7, right=True, below=WIDE),
    Column("rate", "IN", 8, right=True, above=WIDE),
    Column("rate", "OUT", 8, right=True, above=WIDE),
    Column("moves", "MOVES", 5, right=True, above=WIDE),
    Column("note", "NOTE", 12, grow=2, above=WIDE, below=WIDER),
    Column("note", "NOTE", 46, grow=1, above=WIDER),
)
TALL: Final = 28  # lines of the pane, from which on there is room for a preview
NOTHING: Final = "No connections yet. Start a program with redirect-run, or protect one with p."


class ConnectionsPane(Vertical):
    """Filter, table, a line of what is shown."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("slash", "filter", "Filter", key_display="/"),
        Binding("s", "sort", "Sort"),
        Binding("S", "reverse", "Reverse", show=False),
        Binding("p", "app.protect", "Protect"),
        Binding("r", "do('release')", "Release"),
        Binding("k", "do('kill')", "Kill"),
        Binding("escape", "clear", "Clear", show=False),
    ]

    class Act(Message):
        """Do something to a connection."""

        def __init__(self, verb: str, row: Row) -> None:
            """verb: details, release or kill."""
            super().__init__()
            self.verb = verb
            self.row = row

    def __init__(self, id: str) -> None:
        super().__init__(id=id)
        self.selection = Selection()
        self._view: View | None = None
        self._rows: list[Row] = []
        self._shown = ""
        self._events: Callable[[str], Sequence[Event]] = lambda _: ()

    def compose(self) -> ComposeResult:
        """Filter, table, a line of what is shown."""
        yield Input(placeholder="filter: show only rows with these words", id="filter", compact=True)
        yield Lines[Row](COLUMNS, lambda row: row.connection.id, self._cells, empty=NOTHING, id="table")
        with Horizontal(id="preview", classes="preview"):
            yield Static("", id="facts-of-row", markup=False)
            yield Static("", id="timeline-of-row", markup=False)
        yield Static("", id="shown", markup=False)

    def on_mount(self) -> None:
        """No filter to begin with."""
        self.query_one("#filter").display = False
        self._mark_sort()

    @property
    def table(self) -> Lines[Row]:
        """The table."""
        return self.query_one("#table", Lines)

    def show(self, view: View, events: Callable[[str], Sequence[Event]]) -> None:
        """A new view.  events: what is known to have happened to the connection with an id."""
        self._view = view
        self._rows = view.rows()
        self._events = events
        self._refresh()
        self._show_preview()

    def on_resize(self) -> None:
        """Where there is room, the row with the cursor is told more about."""
        self.query_one("#preview").display = self.size.height >= TALL
        self._show_preview()

    def on_lines_pointed(self) -> None:
        """Another row."""
        self._show_preview()

    def _show_preview(self) -> None:
        preview = self.query_one("#preview")
        row = self.table.current
        if not preview.display or self._view is None:
            self._show_foot()
            return
        preview.visible = row is not None
        if row is None:
            return
        preview.border_title = Text(program_name(row.connection.command) or row.connection.remote)
        facts, timeline = (self.query_one(name, Static) for name in ("#facts-of-row", "#timeline-of-row"))
        facts.update(summary_text(row.connection, self._view, max(40, facts.size.width)))
        lines = max(1, timeline.size.height)
        timeline.update(timeline_text(row.connection, self._events(row.connection.id), lines))

    def _refresh(self) -> None:
        rows = self.selection.apply(self._rows)
        words = self.selection.words
        self.table.show(rows, f"Nothing matches “{words}”. Esc shows all." if words and self._rows else NOTHING)
        whole = plural(len(self._rows), "connection")
        order = f"sorted by {self.selection.sort}{', reversed' if self.selection.reverse else ''}"
        some = f"{len(rows):,} of {whole}" if len(rows) != len(self._rows) else whole
        self._shown = f" {some}, {order}"
        self._show_foot()

    def _show_foot(self) -> None:
        """How many rows, and, without a preview, why the row with the cursor is not protected."""
        text, row = self._shown, self.table.current
        if row is not None and row.connection.reason and not self.query_one("#preview").display:
            text = f" {row.connection.state.value}: {in_short(row.connection.reason)}"
        self.query_one("#shown", Static).update(text)

    def _cells(self, row: Row) -> tuple[Cell, ...]:
        c, counters = row.connection, row.counters
        received, sent = row.rates
        tone = Tone.DIM if c.path is PathName.ORIGINAL else Tone.PLAIN
        return (
            Cell(row.host),
            Cell(program_name(c.command)),
            state_cell(c, self._view.threshold if self._view else 10.0),
            Cell(f"{c.path.value} {c.moves or ''}", tone),
            Cell(c.path.value, tone),
            Cell(brief(c.age)),
            Cell(took(counters.rtt) if counters and counters.rtt else ""),
            Cell(rate(received + sent)),
            Cell(rate(received)),
            Cell(rate(sent)),
            Cell(str(c.moves) if c.moves else ""),
            Cell(clean(c.reason or ""), Tone.DIM),
            Cell(in_short(c.reason), Tone.DIM),
        )

    # -- what a person does -------------------------------------------------------------------------------------------

    def action_filter(self) -> None:
        """Type words."""
        line = self.query_one("#filter", Input)
        line.display = True
        line.focus()

    def action_clear(self) -> None:
        """All rows again."""
        line = self.query_one("#filter", Input)
        line.value = ""
        line.display = False
        self.table.focus()

    def on_input_changed(self, event: Input.Changed) -> None:
        """Filter while it is typed."""
        self.selection = replace(self.selection, words=clean(event.value))
        self._refresh()

    def on_input_submitted(self) -> None:
        """Back to the table."""
        self.query_one("#filter").display = bool(self.selection.words)
        self.table.focus()

    def action_sort(self) -> None:
        """By the next column."""
        names = list(SORTS)
        self._sort(names[(names.index(self.selection.sort) + 1) % len(names)])

    def action_reverse(self) -> None:
        """The other way round."""
        self._sort(self.selection.sort)

    def on_lines_titled(self, event: Lines.Titled) -> None:
        """A click on a title sorts; another one the other way round."""
        if event.column in SORTS:
            self._sort(event.column)

    def _sort(self, column: str) -> None:
        reverse = column == self.selection.sort and not self.selection.reverse
        self.selection = replace(self.selection, sort=column, reverse=reverse)
        self._mark_sort()
        self._refresh()

    def _mark_sort(self) -> None:
        self.table.titles = {self.selection.sort: "▴" if self.selection.reverse else "▾"}
        self.table.retitle()

    def on_lines_chosen(self, event: Lines.Chosen) -> None:
        """Details."""
        event.stop()
        self.action_do("details")

    def action_do(self, verb: str) -> None:
        """Something to the row that has the cursor."""
        if (row := self.table.current) is not None:
            self.post_message(self.Act(verb, row))

"""A table of many rows by the line API: only what is seen is made, only lines that changed are drawn.

Textual's DataTable takes 0.7 s to be refilled with 5,000 rows of 8 columns; this one's cost is that of the lines seen.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar, Final, Generic, NamedTuple, TypeVar

from rich.cells import cell_len, set_cell_size
from rich.segment import Segment
from rich.style import Style
from textual import events
from textual.binding import Binding, BindingType
from textual.geometry import Region, Size
from textual.message import Message
from textual.scroll_view import ScrollView
from textual.strip import Strip

from redirectctl.api.stories import Tone
from redirectctl_tui.words import Cell

CURSOR: Final = "▸"
ELLIPSIS: Final = "…"

RowT = TypeVar("RowT")


class Column(NamedTuple):
    """Of a table."""

    name: str  # names it in messages
    title: str
    width: int  # cells at least
    grow: int = 0  # its share of what is left
    right: bool = False
    above: int = 0  # shown from this width of the table on
    below: int = 10_000  # and up to this one


class Lines(ScrollView, Generic[RowT], can_focus=True):
    """Rows with a cursor.  A row is known by its key: the cursor stays with it, wherever it goes."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up", "move(-1)", "Up", show=False),
        Binding("down", "move(1)", "Down", show=False),
        Binding("pageup", "page(-1)", "Page up", show=False),
        Binding("pagedown", "page(1)", "Page down", show=False),
        Binding("home", "jump(0)", "First", show=False),
        Binding("end", "jump(-1)", "Last", show=False),
        Binding("enter", "choose", "Details"),
    ]
    COMPONENT_CLASSES: ClassVar[set[str]] = {"lines--header", "lines--cursor", *(f"lines--{tone}" for tone in Tone)}

    class Chosen(Message):
        """Enter, or a click on the row that has the cursor."""

        def __init__(self, key: str) -> None:
            super().__init__()
            self.key = key

    class Pointed(Message):
        """The cursor is on another row, or the table has been filled or emptied."""

    class Titled(Message):
        """A click on a title."""

        def __init__(self, column: str) -> None:
            super().__init__()
            self.column = column

    def __init__(
        self,
        columns: Sequence[Column],
        key: Callable[[RowT], str],
        cells: Callable[[RowT], Sequence[Cell]],
        *,
        empty: str,
        id: str | None = None,
    ) -> None:
        """cells: of a row, one a column, with text that cannot steer a terminal.  empty: said instead of rows."""
        super().__init__(id=id)
        self._columns = columns
        self._key = key
        self._cells = cells
        self._rows: Sequence[RowT] = ()
        self._cursor = 0
        self._drawn: dict[int, tuple[Cell, ...]] = {}  # what is on the screen, by line
        self._empty = empty
        self.titles: dict[str, str] = {}  # by column: what stands behind its title

    # -- what is shown ------------------------------------------------------------------------------------------------

    @property
    def rows(self) -> Sequence[RowT]:
        """As shown."""
        return self._rows

    @property
    def current(self) -> RowT | None:
        """The row that has the cursor."""
        return self._rows[self._cursor] if self._rows else None

    def show(self, rows: Sequence[RowT], empty: str | None = None) -> None:
        """Show these.  The cursor stays with its row, or where it is if that row is gone; so does what is in sight."""
        before = self.current
        had = self._key(before) if before is not None else None
        offset = self._cursor - self.scroll_offset.y
        self._rows = rows
        if empty is not None:
            self._empty = empty
        self._cursor = min(self._cursor, max(0, len(rows) - 1))
        if had is not None and rows and self._key(rows[self._cursor]) != had:
            self._cursor = next((n for n, row in enumerate(rows) if self._key(row) == had), self._cursor)
        if had != (self._key(rows[self._cursor]) if rows else None):
            self.post_message(self.Pointed())
        size = Size(self._width, len(rows) + 1)
        if size != self.virtual_size:
            self.virtual_size = size
            self._drawn.clear()
            self.refresh()
        if self.has_focus and self._cursor - offset != self.scroll_offset.y and self._cursor:
            self.scroll_to(y=max(0, self._cursor - offset), animate=False)
        self._refresh_changed()

    @property
    def _width(self) -> int:
        return self.scrollable_content_region.width

    def retitle(self) -> None:
        """`titles` has changed."""
        self.refresh(Region(0, 0, self._width, 1))

    def _refresh_changed(self) -> None:
        for line, drawn in list(self._drawn.items()):
            number = line - 1 + self.scroll_offset.y
            row = self._rows[number] if number < len(self._rows) else None
            if (self._made(row) if row is not None else ()) != drawn:
                del self._drawn[line]
                self.refresh(Region(0, line, self._width, 1))

    def _made(self, row: RowT) -> tuple[Cell, ...]:
        return tuple(self._cells(row))

    # -- drawing ------------------------------------------------------------------------------------------------------

    def on_resize(self) -> None:
        """The columns have other widths."""
        self.virtual_size = Size(self._width, len(self._rows) + 1)
        self._drawn.clear()
        self.refresh()  # lines may have been drawn already

    def watch_scroll_y(self, old_value: float, new_value: float) -> None:
        """Other rows are on the lines."""
        self._drawn.clear()
        super().watch_scroll_y(old_value, new_value)

    def render_line(self, y: int) -> Strip:
        """Line 0 is the titles, which do not scroll."""
        width = self._width
        shown, widths = self._widths(width)
        if y == 0:
            style = self.get_component_rich_style("lines--header")
            titles = [Cell(c.title + self.titles.get(c.name, "")) for c in self._columns]
            return self._strip(" ", titles, shown, widths, width).apply_style(style)
        number = y - 1 + self.scroll_offset.y
        base = self.rich_style
        if number >= len(self._rows):
            text = f"  {self._empty}" if not self._rows and y == 2 else ""
            self._drawn[y] = ()
            style = self.get_component_rich_style(f"lines--{Tone.DIM}")
            return Strip([Segment(set_cell_size(text, width), style)], width).apply_style(base)
        cells = self._drawn[y] = self._made(self._rows[number])
        at = number == self._cursor
        strip = self._strip(CURSOR if at else " ", cells, shown, widths, width)
        if at:
            names = ("lines--cursor",) if self.has_focus else ()
            style = self.get_component_rich_style(*names) if names else base
            # The cursor's style is laid over the tones where there is focus: legible in every theme.
            return Strip([Segment(s.text, (s.style or base) + style) for s in strip], width)
        return strip.apply_style(base)

    def _widths(self, width: int) -> tuple[list[int], list[int]]:
        """Which columns are shown, and how wide each is."""
        shown = [n for n, c in enumerate(self._columns) if c.above <= width < c.below]
        widths = [self._columns[n].width for n in shown]
        left = width - 1 - sum(widths) - (len(widths) - 1)
        shares = sum(self._columns[n].grow for n in shown)
        if left > 0 and shares:
            for place, n in enumerate(shown):
                share = left * self._columns[n].grow // shares
                left -= share
                shares -= self._columns[n].grow
                widths[place] += share
                if not shares:
                    break
        return shown, widths

    def _strip(
        self, mark: str, cells: Sequence[Cell], shown: Sequence[int], widths: Sequence[int], width: int
    ) -> Strip:
        segments = [Segment(mark)]
        for place, (n, cell_width) in enumerate(zip(shown, widths, strict=True)):
            text, tone = cells[n]
            style = None if tone is Tone.PLAIN else self._tone(tone)
            if place:
                segments.append(Segment(" "))
            segments.append(Segment(fitted(text, cell_width, right=self._columns[n].right), style))
        return Strip(segments).adjust_cell_length(width)

    def _tone(self, tone: Tone) -> Style:
        whole = self.get_component_rich_style(f"lines--{tone}")
        return Style(color=whole.color, bold=whole.bold)

    # -- cursor -------------------------------------------------------------------------------------------------------

    def move_to(self, number: int) -> None:
        """Put the cursor on a row, counted from 0, and scroll there."""
        number = min(max(number, 0), max(0, len(self._rows) - 1))
        for changed in (self._cursor, number):
            self.refresh(Region(0, changed + 1 - self.scroll_offset.y, self._width, 1))
        if number != self._cursor:
            self._cursor = number
            self.post_message(self.Pointed())
        top, height = self.scroll_offset.y, max(1, self.size.height - 1)
        if number < top:
            self.scroll_to(y=number, animate=False)
        elif number >= top + height:
            self.scroll_to(y=number - height + 1, animate=False)

    def action_move(self, by: int) -> None:
        """Up or down."""
        self.move_to(self._cursor + by)

    def action_page(self, by: int) -> None:
        """A screenful."""
        self.move_to(self._cursor + by * max(1, self.size.height - 2))

    def action_jump(self, to: int) -> None:
        """To the first row, or with -1 to the last."""
        self.move_to(to if to >= 0 else len(self._rows) + to)

    def action_choose(self) -> None:
        """Enter."""
        if (row := self.current) is not None:
            self.post_message(self.Chosen(self._key(row)))

    def on_click(self, event: events.Click) -> None:
        """A title, or a row."""
        offset = event.get_content_offset(self)
        if offset is None:
            return
        if offset.y == 0:
            if (name := self._column_at(offset.x)) is not None:
                self.post_message(self.Titled(name))
            return
        number = offset.y - 1 + self.scroll_offset.y
        if number >= len(self._rows):
            return
        if number == self._cursor and event.chain == 2:
            self.action_choose()
        self.move_to(number)

    def _column_at(self, x: int) -> str | None:
        shown, widths = self._widths(self._width)
        edge = 1
        for n, width in zip(shown, widths, strict=True):
            if edge <= x < edge + width:
                return self._columns[n].name
            edge += width + 1
        return None

    def on_focus(self) -> None:
        """The cursor looks different."""
        self.refresh()

    def on_blur(self) -> None:
        """The cursor looks different."""
        self.refresh()


def fitted(text: str, width: int, *, right: bool = False) -> str:
    """Exactly so many cells, cut with an ellipsis."""
    length = len(text) if text.isascii() else cell_len(text)
    if length > width:
        return set_cell_size(text, width - 1) + ELLIPSIS if width > 0 else ""
    padding = " " * (width - length)
    return padding + text if right else text + padding

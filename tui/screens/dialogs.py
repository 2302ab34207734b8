"""Small dialogs: yes or no, a line of text."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterable
from typing import ClassVar, Final, TypeVar

from rich.cells import cell_len
from rich.console import RenderableType
from rich.text import Text
from textual.actions import SkipAction
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import Button, Input, Label, Static

WIDTH: Final = 70  # cells inside a box, without the scroll bar; redirect.tcss has the box's
INDENT: Final = 13  # where values begin


ResultT = TypeVar("ResultT")


class Modal(ModalScreen[ResultT]):
    """Over a pane.  Ctrl-C quits from here too: what the app itself does by a key does not work below a dialog."""

    def action_copy_text(self) -> None:
        """Ctrl-C: copy what is selected, if something is."""
        try:
            super().action_copy_text()
        except SkipAction:
            self.app.exit()


class Dialog(Modal[str]):
    """A box with buttons.  Dismissed with the pressed button's id, or "" by Escape; arrows go from button to button."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "dismiss('')", "Close"),
        Binding("left,up", "app.focus_previous", "Previous", show=False),
        Binding("right,down", "app.focus_next", "Next", show=False),
    ]

    def on_button_pressed(self, event: Button.Pressed) -> None:
        """A decision."""
        self.dismiss(event.button.id or "")


class Page(Dialog):
    """A text that can be scrolled."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("enter", "dismiss('')", "Close", show=False)]

    def __init__(self, title: str, text: RenderableType) -> None:
        super().__init__()
        self._title = title
        self._text = text

    def compose(self) -> ComposeResult:
        """The box."""
        with VerticalScroll(classes="box", can_focus=True) as box:
            box.border_title = Text(self._title)
            box.border_subtitle = "Esc Close"
            yield Static(self._text)

    def update(self, what: RenderableType) -> None:
        """Another text.  It may come before there is anything to show it in, or after that has gone."""
        self._text = what
        for place in self.query(Static):
            place.update(what)


def pairs_text(pairs: Iterable[tuple[str, str]], width: int = WIDTH, indent: int = INDENT) -> Text:
    """Names and values in two columns of so many cells together; what has no value is left out."""
    text = Text()
    for name, value in pairs:
        if value:
            first, *others = [line for part in value.split("\n") for line in _wrapped(part, width - indent)]
            text.append(f"{name:<{indent}}", "dim")
            text.append(f"{first}\n")
            for line in others:
                text.append(f"{'':<{indent}}{line}\n")
    text.rstrip()
    return text


def _wrapped(line: str, width: int) -> list[str]:
    """At blanks where that can be; text with wide characters is left to the terminal."""
    narrow = cell_len(line) == len(line)
    return textwrap.wrap(line, width, break_on_hyphens=False) if narrow and len(line) > width else [line]


class Confirm(Dialog):
    """Whether to do what cannot be undone.  Dismissed with "yes" or not; the focus is on the harmless button."""

    def __init__(self, title: str, text: str, yes: str) -> None:
        """yes: on the button that does it."""
        super().__init__()
        self._title = title
        self._text = text
        self._yes = yes

    def compose(self) -> ComposeResult:
        """The box."""
        with Vertical(classes="box danger") as box:
            box.border_title = Text(self._title)
            yield Label(Text(self._text))
            with Horizontal(classes="buttons"):
                yield Button("Cancel", id="cancel", compact=True)
                yield Button(Text(self._yes), id="yes", variant="error", compact=True)


class Ask(Modal[str | None]):
    """A line of text; None by Escape."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "dismiss(None)", "Close")]

    def __init__(
        self, title: str, text: str, value: str = "", error: Callable[[str], str | None] | None = None
    ) -> None:
        """value: to begin with.  error: what is wrong with a text, None if nothing is."""
        super().__init__()
        self._title = title
        self._text = text
        self._value = value
        self._error = error or (lambda _: None)

    def compose(self) -> ComposeResult:
        """The box."""
        with Vertical(classes="box") as box:
            box.border_title = Text(self._title)
            yield Label(Text(self._text))
            yield Input(self._value, id="line", compact=True)
            yield Label("", id="wrong")

    def on_input_changed(self) -> None:
        """Whatever was wrong has been seen."""
        self.query_one("#wrong", Label).update("")

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Done, or wrong."""
        text = event.value.strip()
        if (wrong := self._error(text)) is not None:
            self.query_one("#wrong", Label).update(Text(wrong))
        else:
            self.dismiss(text)

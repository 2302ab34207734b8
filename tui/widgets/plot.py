"""Plots of a few lines, in eighths of a cell; the numbers that matter stand beside them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Final

from rich.text import Text
from textual.widget import Widget

_EIGHTHS: Final = " ▁▂▃▄▅▆▇█"
LABEL: Final = 8  # cells


class Bars(Widget):
    """Values from left to right, the newest at the right, as bars over a line of text."""

    def __init__(self, label: Callable[[float], str], *, logarithmic: bool = False, id: str | None = None) -> None:
        """label: of a value, for the scale.  logarithmic: from a hundredth of the greatest value on."""
        super().__init__(id=id)
        self._label = label
        self._logarithmic = logarithmic
        self._values: Sequence[float] = ()
        self._caption = ""

    def show(self, values: Sequence[float], caption: str) -> None:
        """Values of at least 0, oldest first.  caption: what they are, and the numbers that matter."""
        if (values, caption) != (self._values, self._caption):
            self._values, self._caption = values, caption
            self.refresh()

    def render(self) -> Text:
        """Bars, and the caption below."""
        height, width = max(1, self.size.height - 1), max(1, self.size.width - LABEL - 1)
        values = list(self._values[-width:])
        lines = bars(values, height, logarithmic=self._logarithmic)
        labels = [""] * height
        if values and max(values) > 0:
            labels[0] = self._label(max(values))
            labels[-1] = labels[-1] or (self._label(max(values) / 100) if self._logarithmic else "0")
        body = (f"{label:>{LABEL}} {line:>{width}}" for label, line in zip(labels, lines, strict=True))
        return Text("\n".join([*body, self._caption]), no_wrap=True, overflow="ellipsis")


def bars(values: Sequence[float], height: int, *, logarithmic: bool = False) -> list[str]:
    """Lines from the top, one cell a value.  What is more than 0 is seen."""
    greatest = max(values, default=0.0)
    if greatest <= 0:
        return [" " * len(values)] * height
    eighths = [
        0 if value <= 0 else max(1, round(_part(value / greatest, logarithmic=logarithmic) * height * 8))
        for value in values
    ]
    return ["".join(_EIGHTHS[min(8, max(0, e - 8 * line))] for e in eighths) for line in range(height - 1, -1, -1)]


def _part(value: float, *, logarithmic: bool) -> float:
    return max(0.0, 1 + math.log10(value) / 2) if logarithmic else value

"""The README's recording of the demo: what is drawn is what was recorded."""

from __future__ import annotations

import re
from html import unescape
from pathlib import Path

from tests.tui.recorded import FOLDER
from tests.tui.recording import READING, SGR, WAITING, Line, draw, lines, pace

CAST = (FOLDER / "demo.cast").read_text()
PICTURE = (Path(__file__).parents[2] / "docs" / "demo.svg").read_text()


def test_the_picture_is_drawn_from_the_recording() -> None:
    assert draw(lines(CAST)) == PICTURE


def test_it_has_every_line_of_the_recording_and_no_other() -> None:
    shown = [unescape(text) for text in re.findall(r"<text [^>]*>([^<]*)</text>", PICTURE)]
    assert shown == [SGR.sub("", line.text).strip() for line in lines(CAST) if line.text]
    assert shown[-1].startswith("Everything lived.")


def test_lines_that_come_in_pieces_are_put_together() -> None:
    cast = '{"version": 2}\n[0.5, "o", "one\\r\\ntw"]\n[1.5, "o", "o\\r\\n\\r\\n"]\n'
    assert lines(cast) == [Line(0.5, "one"), Line(1.5, "two"), Line(1.5, "")]


def test_the_pace_leaves_time_to_read_and_does_not_wait_long() -> None:
    assert pace([Line(3.0, "a"), Line(3.0, "b"), Line(3.0, ""), Line(90.0, "c")]) == [
        0,
        READING,
        READING,
        READING + WAITING,
    ]

"""Records `make demo` on a terminal, and draws the recording as an animated SVG.

    python -m tests.tui.recording record FILE.cast     as root; runs `make demo`, a minute
    python -m tests.tui.recording draw FILE.cast FILE.svg

The recording is an asciicast (version 2: a line of JSON about the terminal, then one for each piece of output), which
`asciinema play` shows too.  The picture has every line of it and nothing else.  Only the pace is another: no line comes
sooner than READING after the one before, so that a person can read it, nor later than WAITING.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple
from xml.sax.saxutils import escape

import pexpect

COLUMNS, ROWS = 80, 24
READING = 0.3  # seconds
WAITING = 2.0
END = 10.0  # seconds for which the last lines stay
CHARACTER, LINE, MARGIN = 8.4, 18.0, 12.0  # pixels
COLOURS = {"31": "#f7768e", "32": "#9ece6a"}  # ECMA-48 SGR, as redirectctl.lab.account uses it
SGR = re.compile(r"\x1b\[([\d;]*)m")


class Line(NamedTuple):
    """A line of output, and when it was complete (seconds from the beginning)."""

    time: float
    text: str


def record() -> str:
    """Run `make demo`; its output as an asciicast.  Raises SystemExit if it fails."""
    env = {**os.environ, "TERM": "xterm-256color"}
    child = pexpect.spawn(
        "make", ["--no-print-directory", "demo"], encoding="utf-8", dimensions=(ROWS, COLUMNS), env=env, timeout=None
    )
    head = {"version": 2, "width": COLUMNS, "height": ROWS, "title": "make demo"}
    began, pieces = time.monotonic(), [json.dumps(head)]
    while True:
        try:
            output = child.read_nonblocking(4096)
        except pexpect.EOF:
            break
        sys.stderr.write(output)
        pieces.append(json.dumps([round(time.monotonic() - began, 3), "o", output], ensure_ascii=False))
    child.close()
    if child.exitstatus != 0:
        sys.exit(f"make demo: exit status {child.exitstatus}")
    return "\n".join(pieces) + "\n"


def lines(cast: str) -> list[Line]:
    """The lines of an asciicast whose program writes one after the other."""
    found, rest = [], ""
    for piece in cast.splitlines()[1:]:
        at, _, output = json.loads(piece)
        *complete, rest = (rest + output).replace("\r\n", "\n").split("\n")
        found += [Line(at, text) for text in complete]
    return found


def pace(recorded: list[Line]) -> list[float]:
    """When each line is shown."""
    shown = [0.0]
    for before, line in pairwise(recorded):
        shortest = READING if line.text else 0.0
        shown.append(shown[-1] + min(max(line.time - before.time, shortest), WAITING))
    return shown


def draw(recorded: list[Line]) -> str:
    """The SVG.  Where animations are not shown, or not wanted, it shows the last lines."""
    width, height = COLUMNS * CHARACTER + 2 * MARGIN, ROWS * LINE + 2 * MARGIN
    times = pace(recorded)
    total = times[-1] + END
    steps = "".join(
        f"{at / total * 100:.3f}%{{transform:translateY({(ROWS - number) * LINE:g}px)}}"
        for number, at in enumerate(times, 1)
    )
    last = (ROWS - len(times)) * LINE
    rows = "\n".join(_row(number, line.text) for number, line in enumerate(recorded) if line.text)
    return f"""\
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" width="{width:g}" height="{height:g}">
<title>make demo: an ssh session lives through address changes</title>
<style>
text {{ font: 14px ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace;
  fill: #c0caf5; white-space: pre }}
.bold {{ font-weight: bold; fill: #ffffff }}
#lines {{ animation: scroll {total:.2f}s step-end infinite }}
@media (prefers-reduced-motion) {{ #lines {{ animation: none }} }}
@keyframes scroll {{{steps}}}
</style>
<rect width="100%" height="100%" rx="8" fill="#1a1b26"/>
<svg x="{MARGIN:g}" y="{MARGIN:g}" width="{COLUMNS * CHARACTER:g}" height="{ROWS * LINE:g}">
<g id="lines" transform="translate(0 {last:g})" xml:space="preserve">
{rows}
</g>
</svg>
</svg>
"""


def _row(number: int, text: str) -> str:
    codes = {code for group in SGR.findall(text) for code in group.split(";")}
    plain = SGR.sub("", text)
    colours = [f' style="fill: {colour}"' for code, colour in COLOURS.items() if code in codes]
    style = ' class="bold"' if "1" in codes else "".join(colours)
    indent = len(plain) - len(plain.lstrip())
    x, y, length = indent * CHARACTER, number * LINE + 14, (len(plain) - indent) * CHARACTER
    return f'<text x="{x:g}" y="{y:g}" textLength="{length:g}"{style}>{escape(plain[indent:])}</text>'


def main() -> int:
    """See above."""
    match sys.argv[1:]:
        case ["record", file]:
            Path(file).write_text(record())
        case ["draw", cast, file]:
            Path(file).write_text(draw(lines(Path(cast).read_text())))
        case _:
            sys.exit(__doc__)
    return 0


if __name__ == "__main__":
    sys.exit(main())

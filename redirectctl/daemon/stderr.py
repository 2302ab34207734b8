"""What the daemon says on standard error, for people and for journald.

Peers and users of this host choose parts of what is said.  So it is cleaned here, where all of it passes: nothing
steers a terminal, and only we begin a line.  A failure that repeats itself fills no journal.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable
from typing import Final

from redirectctl.api.text import clean, shortened
from redirectctl.daemon.repeats import Repeats

MAX_MESSAGE: Final = 2000  # characters
NAME: Final = "redirectd"


class OneLine(logging.Formatter):
    """A line for each message; the lines of a traceback follow indented."""

    def format(self, record: logging.LogRecord) -> str:
        """Cleaned text."""
        text = f"{NAME}: {record.levelname}: {shortened(clean(record.getMessage()), MAX_MESSAGE)}"
        if record.exc_info:
            text += _indented(self.formatException(record.exc_info))
        if record.stack_info:
            text += _indented(self.formatStack(record.stack_info))
        return text


class Rarely(logging.Filter):
    """The same warning or error again and again: one line for each pause, which says how often, and the pauses grow."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._monotonic = monotonic
        self._repeats: Repeats[None] = Repeats()

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether it is said now."""
        if record.levelno < logging.WARNING:
            return True
        text = record.getMessage()
        count = self._repeats.note(self._monotonic(), record.name, text, None, broad=record.msg)
        if count > 1:
            record.msg, record.args = f"{text} ({count} times)", ()
        return count > 0


def _indented(trace: str) -> str:
    return "".join(f"\n    {shortened(clean(line), MAX_MESSAGE)}" for line in trace.split("\n"))


def start_logging(level: str) -> None:
    """To standard error, from this level on."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(OneLine())
    handler.addFilter(Rarely())
    logging.basicConfig(level=level.upper(), handlers=[handler])
    logging.getLogger("pyroute2").setLevel(logging.INFO)  # else each netlink message is several lines


def complain(text: object) -> None:
    """The last words of a daemon that does not start."""
    print(f"{NAME}: {shortened(clean(str(text)), MAX_MESSAGE)}", file=sys.stderr)

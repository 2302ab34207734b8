"""What the daemon says on standard error."""

from __future__ import annotations

import logging
import subprocess
import sys

from redirectctl.daemon.repeats import FIRST_PAUSE
from redirectctl.daemon.stderr import OneLine, Rarely

WITHOUT_DESCRIPTORS = """
import logging, os, resource
from redirectctl.daemon.stderr import start_logging
start_logging("info")
resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))
logging.error("no more\\nthan this")
"""


class Said(logging.Handler):
    """Lines, as they would be written."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.lines: list[str] = []
        self.addFilter(Rarely(lambda: self.now))
        self.setFormatter(OneLine())
        self.log = logging.Logger("a part")
        self.log.addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))


def test_a_failure_that_repeats_itself_is_counted() -> None:
    said = Said()
    for _ in range(1000):
        said.log.error("accept: %s", "no descriptor")
    assert said.lines == ["redirectd: ERROR: accept: no descriptor"]
    said.now += FIRST_PAUSE
    said.log.error("accept: %s", "no descriptor")
    assert said.lines[1:] == ["redirectd: ERROR: accept: no descriptor (1000 times)"]


def test_another_failure_is_said_at_once() -> None:
    said = Said()
    for what in ("a", "b", "a"):
        said.log.error("cannot open %s", what)
    assert len(said.lines) == 2


def test_what_is_no_failure_is_said_each_time() -> None:
    said = Said()
    for _ in range(3):
        said.log.info("a datagram")
    assert len(said.lines) == 3


def test_failures_with_ever_other_words_end_as_one_kind() -> None:
    said = Said()
    for number in range(1000):
        said.log.error("cannot open %s", number)
    assert len(said.lines) < 100


def test_a_line_is_written_where_no_file_can_be_opened() -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_DESCRIPTORS], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stderr == "redirectd: ERROR: no more\\nthan this\n"

"""What a terminal is doing, against tables and against a parser that looks at every byte."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from redirectctl_wrappers.scanner import MAX_LINE, MAX_TITLE, Scanner


def after(*pieces: bytes) -> Scanner:
    scanner = Scanner()
    for piece in pieces:
        scanner.feed(piece)
    return scanner


@pytest.mark.parametrize(
    ("output", "safe"),
    [
        (b"", True),
        (b"text", True),
        (b"text\x1b", False),
        (b"text\x1b[", False),
        (b"text\x1b[31;1", False),
        (b"text\x1b[31;1m", True),
        (b"\x1b[?25", False),
        (b"\x1b[3\x18", True),  # cancelled
        (b"\x1b(", False),
        (b"\x1b(B", True),
        (b"\x1b7", True),
        (b"\x1b]0;title", False),
        (b"\x1b]0;title\x07", True),
        (b"\x1b]0;title\x1b", False),
        (b"\x1b]0;title\x1b\\", True),
        (b"\x1b]52;c;" + b"A" * 9000, False),
        (b"\x1b]52;c;" + b"A" * 9000 + b"\x07", True),
        (b"\x1bPq#0", False),
        (b"\x1bPq#0\x07", False),  # BEL ends OSC only
        (b"\x1bPq#0\x1b\\", True),
        (b"\x1b_Gf=100;", False),
        ("ä".encode(), True),
        ("ä".encode()[:1], False),
        ("€".encode()[:1], False),
        ("€".encode()[:2], False),
        ("𝄞".encode()[:3], False),
        ("𝄞".encode(), True),
        (b"\xff\xfe", True),  # no UTF-8
        (b"\x80\x80\x80\x80", True),
    ],
)
def test_when_it_is_safe(output: bytes, safe: bool):
    assert after(output).safe() is safe
    assert after(*(output[i : i + 1] for i in range(len(output)))).safe() is safe


@pytest.mark.parametrize(
    ("output", "alternate", "hidden"),
    [
        (b"\x1b[?1049h", True, False),
        (b"\x1b[?1049h\x1b[?1049l", False, False),
        (b"\x1b[?47h", True, False),
        (b"\x1b[?1;1049;2004h", True, False),
        (b"\x1b[?1049h\x1bc", False, False),
        (b"\x1b[?1049;25l", False, True),
        (b"\x1b[?25l\x1b[?25h", False, False),
        (b"\x1b[1049h", False, False),
        (b"\x1b[?10490h", False, False),
        (b"\x1b[?1049$p", False, False),  # asks for the mode
    ],
)
def test_screens(output: bytes, alternate: bool, hidden: bool):
    for scanner in (after(output), after(*(output[i : i + 1] for i in range(len(output))))):
        assert (scanner.alternate, scanner.cursor_hidden) == (alternate, hidden)


def test_titles():
    assert after(b"no title").title is None
    assert after(b"\x1b]0;one\x07 text \x1b]2;two\x1b\\").title == b"two"
    assert after(b"\x1b]2;th", b"ree", b"\x07").title == b"three"
    assert after(b"\x1b]2;fo", b"ur\x1b", b"\\").title == b"four"
    assert after(b"\x1b]2;one\x07\x1b]10;?\x07\x1b]1;icon\x07").title == b"one"
    assert after(b"\x1b]2;" + b"x" * (MAX_TITLE + 1) + b"\x07").title is None


@pytest.mark.parametrize(
    ("output", "line"),
    [
        (b"one\r\n", b""),
        (b"one\r\n$ ls", b"$ ls"),
        (b"$ \x1b[32mls\x1b[0m", b"$ \x1b[32mls\x1b[0m"),
        (b"10 %\r20 %", b"20 %"),
        (b"$ ab\x08\x1b[K", b"$ ab\x08\x1b[K"),
        (b"\x1b[H\x1b[2J$ ", None),  # somewhere on the screen
        (b"a\x1b[Ab", None),
        (b"\x1b[?2004h$ ", b"\x1b[?2004h$ "),
        (b"\x1b7\x1b[1;1Hclock\x1b8", None),
        (b"a\x0bb", None),
        (b"$ \x1b[", None),
        (b"x" * MAX_LINE, b"x" * MAX_LINE),
        (b"x" * (MAX_LINE + 1), None),
        (b"x" * (MAX_LINE + 1) + b"\n$ ", b"$ "),
    ],
)
def test_current_line(output: bytes, line: bytes | None):
    assert after(output).line() == line
    assert after(*(output[i : i + 1] for i in range(len(output)))).line() == line


class Reference:
    """The same by looking at each byte, as the parser of the VT500 does."""

    def __init__(self) -> None:
        self.state = "ground"
        self.parameters = b""
        self.alternate = False

    def feed(self, data: bytes) -> None:
        for byte in data:
            self._byte(byte)

    def _byte(self, byte: int) -> None:
        if byte == 0x1B:
            self.state = "escape"
        elif byte in (0x18, 0x1A):
            self.state = "ground"
        elif self.state == "escape":
            kind = chr(byte)
            self.parameters = b""
            if kind == "c":
                self.alternate = False
            self.state = {"[": "csi", "]": "osc", "P": "string", "_": "string", "^": "string", "X": "string"}.get(
                kind, "intermediate" if 0x20 <= byte <= 0x2F else "ground"
            )
        elif self.state == "csi":
            if 0x40 <= byte <= 0x7E:
                if byte in b"hl" and self.parameters in (b"?1049", b"?47"):
                    self.alternate = byte == ord("h")
                self.state = "ground"
            self.parameters += bytes([byte])
        elif self.state == "intermediate":
            if byte >= 0x30:
                self.state = "ground"
        elif self.state == "osc" and byte == 0x07:
            self.state = "ground"


PIECES = st.sampled_from(
    [
        b"text",
        b"\n",
        b"\x1b",
        b"[",
        b"\x1b[31m",
        b"\x1b[?1049h",
        b"\x1b[?1049l",
        b"\x1b[?47h",
        b"\x1b[?47l",
        b"\x1b]2;t",
        b"\x07",
        b"\x1b\\",
        b"\x1bP",
        b"\x1b(",
        b"B",
        b";",
        b"1",
        b"\x1bc",
        b"\x18",
    ]
)


@given(st.lists(PIECES, max_size=30), st.data())
def test_as_the_reference_however_it_is_cut(pieces: list[bytes], data: st.DataObject):
    output = b"".join(pieces)
    cuts = data.draw(st.lists(st.integers(0, len(output)), max_size=6).map(sorted))
    scanner, reference = Scanner(), Reference()
    for start, end in zip([0, *cuts], [*cuts, len(output)], strict=True):
        if start != end:
            scanner.feed(output[start:end])
    reference.feed(output)
    assert scanner.safe() == (reference.state == "ground")
    assert scanner.alternate == reference.alternate


@given(st.lists(st.binary(min_size=1, max_size=80), max_size=20))
def test_nothing_breaks_it(pieces: list[bytes]):
    scanner = after(*pieces)
    assert scanner.safe() in (True, False)
    scanner.line()
    scanner.feed(b"\x1b\\\n")
    assert scanner.safe()
    assert scanner.line() == b""

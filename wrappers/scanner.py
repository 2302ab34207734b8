"""What a terminal that was sent this output is doing: enough to know when something else may be written, and what.

No terminal emulator: a command's output passes at full speed, so only what is needed is looked at, with the searches
that bytes have.  A sequence is never begun before the last one was cut short by its ESC (the parser of the VT500, as
Paul Williams drew it), so the last ESC alone says whether one is unfinished.  8-bit control characters are not looked
for: they are parts of UTF-8.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

MAX_SEQUENCE: Final = 64  # bytes of a CSI sequence; a longer one is none
MAX_TITLE: Final = 1024  # bytes of an OSC string that are kept
MAX_LINE: Final = 1024  # bytes of the current line that are kept

_ESC: Final = b"\x1b"
_CANCEL: Final = (0x18, 0x1A)  # CAN and SUB end any sequence
_ALTERNATE: Final = (b"47", b"1047", b"1049")
_STRINGS: Final = b"PX^_"  # DCS, SOS, PM, APC: until ST, which is ESC and a backslash
# CSI sequences after which a line looks the same when all of it is sent again: colours, erasing and moving within it.
_WITHIN_A_LINE: Final = b"mKCDGPX@hl"


class Scanner:
    """Is fed all output, in order, in pieces of any size."""

    def __init__(self) -> None:
        self.alternate = False  # the alternate screen is shown: a full-screen program runs
        self.cursor_hidden = False
        self.title: bytes | None = None  # set last; None: none since the beginning
        self._open = b""  # a sequence that has not ended
        self._in_string = b""  # the kind of a string of which nothing is kept
        self._tail = b""  # the last bytes, for what may be an unfinished character
        self._line: bytes | None = b""  # since the last line break; None: too long

    def feed(self, fresh: bytes) -> None:
        """The next piece."""
        self._tail = fresh[-4:] if len(fresh) >= 4 else (self._tail + fresh)[-4:]
        self._follow_line(fresh)
        data = self._open + fresh if self._open else fresh
        last = data.rfind(_ESC)
        if last < 0:
            if self._in_string and _string_ends(self._in_string, data):
                self._in_string = b""
            return
        self._in_string = b""
        # A search for one byte takes a tenth of the time that one for two or three takes.
        if b"?" in data and b"\x1b[?" in data:
            self._modes(data)
        if b"]" in data and (b"\x07" in data or b"\\" in data or data.endswith(_ESC)) and b"\x1b]" in data:
            self._titles(data)
        if (self.alternate or self.cursor_hidden) and b"\x1bc" in data:  # RIS
            self.alternate = self.cursor_hidden = False
        self._open = self._unfinished(data[last:])

    def safe(self) -> bool:
        """Whether the terminal is between characters and sequences."""
        return not self._open and not self._in_string and not _cut_character(self._tail)

    def line(self) -> bytes | None:
        """What to send to see the current line once more on an empty line; None where that would not be the same."""
        if self._line is None or not self.safe():
            return None
        return self._line if _stays_in_line(self._line) else None

    def _follow_line(self, fresh: bytes) -> None:
        start = max(fresh.rfind(b"\n"), fresh.rfind(b"\r")) + 1
        if len(fresh) - start > MAX_LINE:
            self._line = None
        elif start:
            self._line = fresh[start:]
        elif self._line is not None:
            self._line = self._line + fresh if len(self._line) + len(fresh) <= MAX_LINE else None

    def _modes(self, data: bytes) -> None:
        at = data.find(b"\x1b[?")
        while at >= 0:
            end = at + 3
            while end < len(data) and (0x30 <= data[end] <= 0x39 or data[end] == 0x3B):
                end += 1
            final = data[end : end + 1]
            if final in (b"h", b"l"):
                for number in data[at + 3 : end].split(b";"):
                    if number in _ALTERNATE:
                        self.alternate = final == b"h"
                        self._line = b""  # the cursor is back where it was before, as a rule at the beginning of a line
                        self._follow_line(data[end + 1 :])
                    elif number == b"25":
                        self.cursor_hidden = final == b"l"
            at = data.find(b"\x1b[?", end)

    def _titles(self, data: bytes) -> None:
        at = data.find(b"\x1b]")
        while at >= 0:
            ends = [end for end in (data.find(b"\x07", at), data.find(_ESC, at + 2)) if end >= 0]
            if not ends:
                return
            text = data[at + 2 : min(ends)]
            if text[:2] in (b"0;", b"2;") and len(text) <= MAX_TITLE:
                self.title = text[2:]
            at = data.find(b"\x1b]", at + 2)

    def _unfinished(self, sequence: bytes) -> bytes:
        """The sequence if more of it has to come."""
        kind = sequence[1:2]
        if not kind:
            return sequence
        if kind == b"]":
            if _string_ends(kind, sequence):
                return b""
            if len(sequence) <= MAX_TITLE:
                return sequence
            self._in_string = kind
        elif kind in _STRINGS:
            if not _string_ends(kind, sequence):
                self._in_string = kind
        elif kind == b"[":
            ended = any(0x40 <= byte <= 0x7E or byte in _CANCEL for byte in sequence[2:MAX_SEQUENCE])
            return b"" if ended or len(sequence) > MAX_SEQUENCE else sequence
        elif 0x20 <= kind[0] <= 0x2F:  # intermediate characters, then a final one
            ended = any(byte >= 0x30 or byte in _CANCEL for byte in sequence[2:MAX_SEQUENCE])
            return b"" if ended or len(sequence) > MAX_SEQUENCE else sequence
        return b""


def _string_ends(kind: bytes, data: bytes) -> bool:
    """Whether a string ends in data without ESC: OSC also by BEL, as in xterm."""
    return (kind == b"]" and b"\x07" in data) or b"\x18" in data or b"\x1a" in data


def _cut_character(tail: bytes) -> bool:
    """Whether these last bytes end within a character of UTF-8."""
    for back in range(1, min(len(tail), 3) + 1):
        byte = tail[-back]
        if byte >= 0xC0:
            return back < (2 if byte < 0xE0 else 3 if byte < 0xF0 else 4 if byte < 0xF8 else 1)
        if byte < 0x80:
            return False
    return False


def _stays_in_line(line: bytes) -> bool:
    first, *sequences = line.split(_ESC)
    if b"\x0b" in first or b"\x0c" in first:
        return False
    for sequence in sequences:
        kind = sequence[:1]
        if kind == b"[":
            final = next((byte for byte in sequence[1:] if 0x40 <= byte <= 0x7E), 0)
            if final not in _WITHIN_A_LINE:
                return False
        elif kind not in (b"]", b"\\", b"(", b"=", b">"):  # OSC, ST, a character set, the keypad's mode
            return False
        if b"\x0b" in sequence or b"\x0c" in sequence:
            return False
    return True

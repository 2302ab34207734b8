"""The question about a host that is met for the first time, and the warning about one whose key is another now.

Pure: keys go in, an answer and what to draw come out.  First there is only a line, which names the key that opens the
question (announced): whatever else is typed then is the command's.  As with ssh only a whole word decides;
the words are others, so that an answer meant for ssh is none here.
"""

from __future__ import annotations

from redirectctl.api.text import clean
from redirectctl_wrappers.terminal import KEY_NAME, KEYS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any, Final

APPROVE, REJECT, LATER, BACK = "approve", "reject", "later", "back"  # the words of redirectctl and its UI, not ssh's
LONGEST: Final = 64  # characters of an answer; a fingerprint has 50
_ROWS_WITH_PICTURE: Final = 24


def announced(question: Mapping[str, Any]) -> list[str]:
    """Lines that say that there is a question, and which key opens it."""
    host = clean(str(question["addresses"][0])) if question["addresses"] else "another host"
    if question["known"]:
        return [f"WARNING: the key of {host} has changed", f"press {KEY_NAME} to see it"]
    return [
        f"first contact with {host}: nothing is protected yet",
        f"press {KEY_NAME} to see the key and to answer",
    ]


class Prompt:
    """One question on the whole screen, drawn by absolute positions: a scroll region of the command's does no harm."""

    def __init__(self, question: Mapping[str, Any], command: str) -> None:
        """question: schema.Question.  command: what was started, for people."""
        self.fingerprint = str(question["fingerprint"])
        self._addresses = ", ".join(clean(str(each)) for each in question["addresses"][:3]) or "unknown address"
        self._known = [clean(str(each)) for each in question["known"][:2]]
        self._picture = [clean(line) for line in str(question["picture"]).splitlines()]
        self._says = clean(str(question.get("says") or ""))
        self._may_decide = question["may_decide"] is True
        self._command = clean(command)
        self._typed = ""
        self._note = ""
        self._keys = _Keys()

    @property
    def changed(self) -> bool:
        """Another key was known there."""
        return bool(self._known)

    def press(self, data: bytes) -> str | None:
        """What was typed: an answer when that is one; BACK when the question is only put away."""
        if data in KEYS:
            return BACK
        for key in self._keys.feed(data):
            if key in ("\x03", "\x04"):  # Ctrl-C, Ctrl-D
                return LATER
            if key == "\x1d":
                return BACK
            if key in ("\r", "\n"):
                typed, self._typed = self._typed.strip(), ""
                answer = self._understood(typed)
                if answer is not None:
                    return answer
                self._note = self._not_understood(typed)
            elif key in ("\x7f", "\b"):
                self._typed = self._typed[:-1]
            elif key == "\x15":  # Ctrl-U
                self._typed = ""
            elif key.isprintable() and len(self._typed) < LONGEST:
                self._typed += key
        return None

    def complain(self, text: str) -> None:
        """The answer could not be carried out."""
        self._note = clean(text)

    def draw(self, rows: int, columns: int) -> bytes:
        """The whole screen, with the cursor behind what has been typed."""
        body = self._changed() if self.changed else self._first(rows)
        answers = self._answers()
        lines = [_cut(line, columns - 1) for line in body[: max(0, rows - 3)]]
        if self._note:
            lines.append(_cut(self._note, columns - 1))
        asked = f"{answers} "
        if len(asked) > columns - len(APPROVE) - 1:
            lines.append(_cut(asked, columns - 1))
            asked = "> "
        shown = asked + self._typed[-max(1, columns - len(asked) - 1) :]
        drawn = [b"\x1b[0m\x1b[?25h\x1b[2J"]
        for row, line in enumerate([*lines, shown], 1):
            drawn.append(b"\x1b[%d;1H" % row + line.encode(errors="replace"))
        return b"".join(drawn)

    def plain(self) -> bytes:
        """For a terminal without an alternate screen: lines."""
        body = self._changed() if self.changed else self._first(2 * _ROWS_WITH_PICTURE)
        return "".join(f"{line}\r\n" for line in body).encode(errors="replace") + self.plain_question()

    def plain_question(self) -> bytes:
        """Its last line, with what has been typed."""
        return f"\r\x1b[K{self._note} {self._answers()} ".encode(errors="replace") + self._typed.encode()

    def _understood(self, typed: str) -> str | None:
        word = typed.lower()
        if word == LATER or (not word and not self._may_decide):
            return LATER
        if not self._may_decide:
            return None
        if word == REJECT:
            return REJECT
        if not self.changed and (word == APPROVE or _encoded(typed) == _encoded(self.fingerprint)):
            return APPROVE
        return None

    def _not_understood(self, typed: str) -> str:
        if len(_encoded(typed)) == len(_encoded(self.fingerprint)):
            return "This fingerprint does not match: the host has another key than the one that you typed."
        return f"{typed[:20]!r} is not one of the answers." if typed else ""

    def _answers(self) -> str:
        if not self._may_decide:
            return "Enter goes on."
        if self.changed:
            return "redirectctl: reject it (for good), or later:"
        return "redirectctl: approve, reject (for good), later, or the fingerprint:"

    def _first(self, rows: int) -> list[str]:
        lines = [
            f"redirect-run: first contact with another host ({KEY_NAME} puts this away)",
            "",
            f"  host     {self._addresses}" + (f', which calls itself "{self._says}"' if self._says else ""),
            f"  for      {self._command}",
            f"  its key  {clean(self.fingerprint)}",
            "",
        ]
        if rows >= _ROWS_WITH_PICTURE + (0 if self._may_decide else 3):  # what to run is more important
            lines += [f"  {line}" for line in self._picture] + [""]
        lines.append("Compare it with what `redirectctl identity` says there.  Until it is approved")
        lines.append("the connection goes on, but would not survive a change of address.")
        if not self._may_decide:
            lines += [
                "",
                "You may not decide this.  The administrator of this machine can run:",
                self._by_hand("approve"),
            ]
        return [*lines, ""]

    def _changed(self) -> list[str]:
        lines = [
            "@" * 75,
            f"@  WARNING: THE KEY OF {self._addresses} HAS CHANGED",
            "@" * 75,
            "Somebody may be answering in that host's place.  Or it was installed anew.",
            "",
            *(f"  known  {known}" for known in self._known),
            f"  now    {clean(self.fingerprint)}",
            "",
            f"  for    {self._command}",
            "",
            "The connection goes on, and is not protected.  Ask whoever runs that host,",
            "not over this network, what `redirectctl identity` says there.",
            "Not the new key: reject it.  Really the new key: forget the known one, then",
            "connect again, and you are asked as at first contact:",
            f"  sudo redirectctl forget {self._known[0]}",
        ]
        if not self._may_decide:
            lines += ["", "To reject it:", self._by_hand("reject")]
        return [*lines, ""]

    def _by_hand(self, verb: str) -> str:
        return f"  sudo redirectctl {verb} {clean(self.fingerprint)}"


def _encoded(text: str) -> str:
    """A fingerprint's digest, with or without what says of which kind it is."""
    return text.removeprefix("SHA256:")


def _cut(line: str, width: int) -> str:
    return line if len(line) <= width else line[: max(0, width - 1)] + "…"[: max(0, width)]


class _Keys:
    """Characters of what a keyboard sends; whatever is a sequence (arrows, mouse, pasting) is left out."""

    def __init__(self) -> None:
        self._rest = b""
        self._state = ""

    def feed(self, data: bytes) -> list[str]:
        plain = bytearray()
        for byte in data:
            if byte == 0x1B:
                self._state = "esc"
            elif self._state == "esc":
                self._state = "csi" if byte == 0x5B else "one" if byte == 0x4F else ""
            elif self._state == "csi":
                if 0x40 <= byte <= 0x7E:
                    self._state = ""
            elif self._state == "one":
                self._state = ""
            else:
                plain.append(byte)
        text = self._rest + bytes(plain)
        for cut in range(4):  # the end may be a part of a character
            try:
                decoded = text[: len(text) - cut].decode()
            except UnicodeDecodeError:
                continue
            self._rest = text[len(text) - cut :]
            return list(decoded)
        self._rest = b""
        return list(text.decode(errors="replace"))

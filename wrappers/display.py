"""What is shown to the person besides the command's output: notices, questions.  All bytes to the terminal go through.

Notices are written only between characters and sequences, and never change the screen of a full-screen program: a title
is none of the screen's, a line is written only where the current line can be shown again below it.

A question is such a line too, until the key that it names has been pressed.
"""

from __future__ import annotations

from redirectctl_wrappers.scanner import Scanner
from redirectctl_wrappers.terminal import KEY_NAME

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any, Final

    from redirectctl_wrappers.notices import Notices
    from redirectctl_wrappers.prompt import Prompt

BEAT: Final = 1.0  # seconds between changes of a title
HELD: Final = 256 * 1024  # bytes of output that may wait for an answer; then the command is more important
NAME: Final = "redirectctl"

_PUSH_TITLE: Final = b"\x1b[22;2t"  # xterm; others ignore it
_POP_TITLE: Final = b"\x1b[23;2t"
_TO_ALTERNATE: Final = b"\x1b[?1049h"  # saves the cursor with its colours
_FROM_ALTERNATE: Final = b"\x1b[?1049l"


class Display:
    """Knows what the terminal shows.  Methods return the bytes to send to it."""

    def __init__(self, notify: str, command: list[str], path: str | None, simple: bool) -> None:
        """notify: as --notify says.  path: of the daemon's socket.  simple: no titles, no alternate screen."""
        self._notify = "inline" if simple and notify == "title" else notify
        self._simple = simple
        self._command = command
        self._ends_after = 0
        self._master = 0
        self._path = path
        self._scanner = Scanner()
        self._notices: Notices | None = None
        self._title = ""  # ours that is shown
        self._title_at = 0.0
        self._questions: list[Mapping[str, Any]] = []
        self._announced: set[str] = set()  # of which a line has been written
        self._answered: set[str] = set()
        self._prompt: Prompt | None = None
        self._held = bytearray()
        self._rows, self._columns = 24, 80

    @property
    def asking(self) -> bool:
        """A question is open: keys are for it."""
        return self._prompt is not None

    @property
    def waiting(self) -> bool:
        """There is a question to open: it has been said how, and no full-screen program runs."""
        if self._prompt is not None or not self._questions or self._scanner.alternate:
            return False
        return not self.unannounced

    @property
    def unannounced(self) -> bool:
        """There is a question, and nothing has been said about it."""
        return bool(self._questions) and str(self._questions[0]["fingerprint"]) not in self._announced

    def open(self) -> bytes:
        """The key was pressed."""
        return self._ask(self._questions[0]) if self.waiting and self._scanner.safe() else b""

    def has_room(self) -> bool:
        """Whether more output may come; while a question is shown some is held back."""
        return len(self._held) < HELD

    def resize(self, winsize: bytes) -> bytes:
        """The terminal's size (struct winsize) is known or has changed."""
        import sys

        self._rows = int.from_bytes(winsize[0:2], sys.byteorder) or 24
        self._columns = int.from_bytes(winsize[2:4], sys.byteorder) or 80
        return self._drawn() if self._prompt is not None and not self._simple else b""

    def pass_on(self, output: bytes) -> bytes:
        """Output of the command."""
        if self._prompt is None:
            self._scanner.feed(output)
            return output
        self._held += output
        return b"" if self.has_room() else self.withdraw()  # nobody is there, and the command has much to say

    def update(self, now: float, reply: Mapping[str, Any], *, secret: bool = False) -> bytes:
        """What the daemon says.  secret: a password is being typed."""
        nothing = not reply["connections"] and not reply["questions"]
        if self._notices is None and nothing and not self._master:
            return b""
        self._remembered(now).update(now, reply)
        self._questions = [each for each in reply["questions"] if str(each["fingerprint"]) not in self._answered]
        if self._prompt is not None and not any(
            each["fingerprint"] == self._prompt.fingerprint for each in self._questions
        ):
            return self.withdraw() + self.tick(now, secret=secret)  # somebody else has answered
        return self.tick(now, secret=secret)

    def forget(self, now: float, *, stopped: bool = True) -> bytes:
        """The daemon is gone.  stopped: as far as can be seen it does not run."""
        self._questions = []
        if stopped or self._notices is not None:
            self._remembered(now).forget(now, stopped=stopped)
        return self.withdraw() + self._end_title()

    def learn(self, now: float, *, ends_after: int, master: int) -> bytes:
        """What ssh does in an outage, and whose connection it uses (limits.py)."""
        self._master = master
        if ends_after != self._ends_after:
            self._ends_after = ends_after
            if self._notices is not None:
                self._notices.limit(now, ends_after)
        if self._notices is not None:
            self._notices.master(master)
        return self.tick(now) if self._notices is not None else b""

    def _remembered(self, now: float) -> Notices:
        if self._notices is None:
            from redirectctl_wrappers.notices import Notices

            self._notices = Notices(self._command[0])
            self._notices.limit(now, self._ends_after)
            self._notices.master(self._master)
        return self._notices

    def next_at(self, now: float) -> float | None:
        """When to call tick() at the latest."""
        if self._prompt is not None:
            return None
        waiting = self._questions or self._title or (self._notices is not None and self._notices.waiting())
        return now + BEAT if waiting else None

    def tick(self, now: float, *, secret: bool = False) -> bytes:
        """Show what is to be shown now, if the terminal can take it.  secret: a password is being typed."""
        if self._prompt is not None or not self._scanner.safe():
            return b""
        announced = b"" if secret else self._announce()
        if self._notify == "none" and not self._questions:
            return self._end_title()
        if self._notices is None:
            return announced
        self._notices.expire(now)
        if self._notify == "inline":
            plain = not self._scanner.alternate and self._scanner.line() is not None
            return announced + self._inline(now) + self._titled(now, plain)
        self._notices.lines(now)  # titles say it
        return announced + self._titled(now, plain=False)

    def withdraw(self) -> bytes:
        """No question is open any more, and what was held back is shown; it can be opened again."""
        if self._prompt is None:
            return b""
        self._prompt = None
        held, self._held = bytes(self._held), bytearray()
        shown = b"\r\n" + (self._scanner.line() or b"") if self._simple else _FROM_ALTERNATE
        if self._scanner.cursor_hidden:
            shown += b"\x1b[?25l"
        self._scanner.feed(held)
        return shown + held

    def press(self, now: float, keys: bytes) -> tuple[bytes, bytes]:
        """What was typed while a question is open.  Also what of it came behind an answer: that is the command's."""
        written = b""
        lines = keys.splitlines(keepends=True)
        while lines and self._prompt is not None:
            written += self._pressed(now, self._prompt, lines.pop(0))
        return written, b"".join(lines)

    def _pressed(self, now: float, prompt: Prompt, keys: bytes) -> bytes:
        from redirectctl_wrappers.prompt import BACK, LATER

        answer = prompt.press(keys)
        if answer is None:
            return prompt.plain_question() if self._simple else self._drawn()
        if answer == BACK:
            return self.withdraw()
        if answer != LATER:
            from redirectctl.api.optin import OptInError, decide

            try:
                decide(answer, prompt.fingerprint, self._path)
            except OptInError as error:
                prompt.complain(f"{error}.")
                return prompt.plain_question() if self._simple else self._drawn()
        self._answered.add(prompt.fingerprint)
        self._questions = [each for each in self._questions if str(each["fingerprint"]) not in self._answered]
        return self.withdraw() + self.tick(now)

    def end(self) -> bytes:
        """The command has ended."""
        return self.withdraw() + self._end_title()

    def last_words(self, now: float, status: int, *, by_hand: bool = False) -> list[str]:
        """Lines for stderr after the command has ended; as Notices.ended."""
        if self._notify == "none" or self._notices is None:
            return []
        return self._notices.ended(now, status, by_hand=by_hand)

    @property
    def within_a_line(self) -> bool:
        """Whether the cursor stands behind some text of the command's."""
        return self._scanner.line() != b""

    # -- questions ----------------------------------------------------------------------------------------------------

    def _announce(self) -> bytes:
        """Lines about the first question, once."""
        if not self.unannounced or self._scanner.alternate or self._scanner.line() is None:
            return b""
        from redirectctl_wrappers.prompt import announced

        self._announced.add(str(self._questions[0]["fingerprint"]))
        return self._lines(announced(self._questions[0]))

    def _ask(self, question: Mapping[str, Any]) -> bytes:
        from redirectctl_wrappers.prompt import Prompt

        self._prompt = Prompt(question, " ".join(self._command))
        ended = self._end_title()
        if self._simple:
            return ended + b"\r\n" + self._prompt.plain()
        return ended + _TO_ALTERNATE + self._drawn()

    def _drawn(self) -> bytes:
        return self._prompt.draw(self._rows, self._columns) if self._prompt is not None else b""

    # -- notices ------------------------------------------------------------------------------------------------------

    def _inline(self, now: float) -> bytes:
        if self._notices is None or self._scanner.alternate or self._scanner.line() is None:
            return b""
        return self._lines(self._notices.lines(now))

    def _lines(self, texts: list[str]) -> bytes:
        """Above the current line, which can be shown again."""
        line = self._scanner.line() or b""
        if not texts:
            return b""
        named = [text if text.startswith(" ") else f"{NAME}: {text}" for text in texts]
        shown = [part for text in named for part in wrapped(text, self._columns - 1)]
        written = "".join(f"{text}\r\n" for text in shown).encode(errors="replace")
        return (b"\r\n" if line else b"\r") + written + line

    def _titled(self, now: float, plain: bool) -> bytes:
        """Set or take away a title; plain: lines say it, so none is needed."""
        text = ""
        if self._questions:
            verb = "has another key" if self._questions[0]["known"] else "is new"
            how = f"press {KEY_NAME}" if self.waiting else "see redirectctl peers"
            text = f"host {', '.join(self._questions[0]['addresses'][:1])} {verb}: {how}"
        elif not plain and self._notices is not None:
            text = self._notices.title(now) or ""
        if self._simple or not text:
            return self._end_title()
        if self._title == text and now - self._title_at < 5 * BEAT:
            return b""  # said again now and then: the command may have set its own
        first = b"" if self._title else _PUSH_TITLE
        self._title, self._title_at = text, now
        from redirectctl.api.text import clean

        return first + b"\x1b]2;" + f"{NAME}: {clean(text)}".encode(errors="replace") + b"\x07"

    def _end_title(self) -> bytes:
        """The command's own title, if it has set one since; else what the terminal remembers; else none."""
        if not self._title:
            return b""
        self._title = ""
        own = b"" if self._scanner.title is None else b"\x1b]2;" + self._scanner.title + b"\x07"
        return b"\x1b]2;\x07" + _POP_TITLE + own


def wrapped(text: str, width: int) -> list[str]:
    """At words, with the further lines indented.  A word that is longer is cut by nobody: it may be a fingerprint."""
    if len(text) <= width:
        return [text]
    lines = [""]
    for word in text.split(" "):
        longer = f"{lines[-1]} {word}" if lines[-1] or not word else word
        if len(longer) > width and lines[-1].strip():
            lines.append(f"  {word}")
        else:
            lines[-1] = longer
    return lines

"""The person's terminal: whether a command can be attended on it, and its modes and size."""

from __future__ import annotations

import os

TYPE_CHECKING = False  # as typing's: importing that takes 5 ms
if TYPE_CHECKING:
    from typing import Any, Final

# Terminals without a title and without an alternate screen: the kernel's console, and hardware.
SIMPLE: Final = ("linux", "vt", "cons", "ansi")
# The key that opens a question.  It leaves a session for the program on this side, as in telnet(1); few programs use
# it, and every keyboard has it (Ctrl-5 where the bracket is out of reach).  Also as terminals send it that have been
# asked, by a shell for instance, to tell all keys apart.
KEYS: Final = (b"\x1d", b"\x1b[93;5u", b"\x1b[27;5;93~")
KEY_NAME: Final = "Ctrl-]"


def can_attend() -> bool:
    """Whether this process is in the foreground of its own terminal, and that takes escape sequences.

    Standard input and output must both be that terminal.  In the background, or where TERM says that no sequence is
    understood (the shells of editors), a command is left alone.
    """
    if os.environ.get("TERM", "dumb") in {"", "dumb", "unknown"}:
        return False
    try:
        if not (os.isatty(0) and os.isatty(1)) or os.fstat(0).st_rdev != os.fstat(1).st_rdev:
            return False
        return os.tcgetpgrp(0) == os.getpgrp()  # fails when it is not the controlling terminal
    except OSError:
        return False


def is_simple() -> bool:
    """Whether the terminal has no title that could be set and no alternate screen."""
    return os.environ.get("TERM", "").startswith(SIMPLE)


def raw(modes: list[Any]) -> list[Any]:
    """The same modes with every byte passed on as it is, as cfmakeraw(3) makes them."""
    import termios as t

    iflag, oflag, cflag, lflag, ispeed, ospeed, characters = modes
    iflag &= ~(t.IGNBRK | t.BRKINT | t.PARMRK | t.ISTRIP | t.INLCR | t.IGNCR | t.ICRNL | t.IXON | t.IXOFF | t.INPCK)
    oflag &= ~t.OPOST
    cflag = cflag & ~(t.CSIZE | t.PARENB) | t.CS8
    lflag &= ~(t.ECHO | t.ECHONL | t.ICANON | t.ISIG | t.IEXTEN)
    characters = list(characters)
    characters[t.VMIN], characters[t.VTIME] = 1, 0
    return [iflag, oflag, cflag, lflag, ispeed, ospeed, characters]


def size(fd: int) -> bytes:
    """Rows, columns and pixels as the kernel's struct winsize."""
    import fcntl
    import termios

    return fcntl.ioctl(fd, termios.TIOCGWINSZ, bytes(8))


def set_size(fd: int, winsize: bytes) -> None:
    """To one that size() gave; the foreground process group hears of it by SIGWINCH if it is another."""
    import fcntl
    import termios

    fcntl.ioctl(fd, termios.TIOCSWINSZ, winsize)

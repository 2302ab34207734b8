"""What ssh itself does about an outage, and whose connection it uses: from `ssh -G`, beside the command.

ssh ends a session by itself when the other host has not answered for some time (ServerAliveInterval), whatever becomes
of the connection; and it may use the connection of another ssh (ControlPath), which is protected only if that one is.
Both are asked of ssh itself, with the arguments of the command, while the command runs already: nothing waits for it.
"""

from __future__ import annotations

import os
import stat
import time

TYPE_CHECKING = False  # as typing's: importing that takes 5 ms
if TYPE_CHECKING:
    from typing import Final

PATIENCE: Final = 10.0  # seconds for ssh to answer; a `Match exec` may take its time
MAX_ANSWER: Final = 64 * 1024  # bytes; real ones have some thousand
KEEPS: Final = ("ssh", "scp", "sftp")  # take -o OPTION behind their name
KEEP: Final = ("-o", "ServerAliveInterval=0")
_IGNORED_BY_PYTHON: Final = (13, 25)  # SIGPIPE, SIGXFSZ


def kept(command: list[str]) -> list[str] | None:
    """The command, told never to give up in an outage; None where there is no way to tell it.

    ssh takes the first value that it finds for an option, and the command line before its files.
    """
    return [command[0], *KEEP, *command[1:]] if os.path.basename(command[0]) in KEEPS else None


def ends_after(config: dict[str, str]) -> int:
    """Seconds without an answer after which ssh ends the session; 0: never (clientloop.c, server_alive_check).

    It may take one interval more.
    """
    interval, count = (_number(config.get(key, "")) for key in ("serveraliveinterval", "serveralivecountmax"))
    return interval * max(1, count)


def master_socket(config: dict[str, str]) -> str | None:
    """Where ssh would find the socket of a master whose connection it then uses (ssh.c, muxclient)."""
    path = config.get("controlpath", "none")
    return path if path != "none" and config.get("controlmaster", "no") not in ("yes", "true") else None


def master_process(answer: str) -> int:
    """Of what `ssh -O check` says; 0: there is no master."""
    return _number(answer.partition("Master running (pid=")[2].partition(")")[0])


def parse(answer: str) -> dict[str, str]:
    """What `ssh -G` prints."""
    return dict(line.partition(" ")[::2] for line in answer.splitlines())


def _number(text: str) -> int:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else 0


class Inquiry:
    """Asks ssh; never waits."""

    def __init__(self, command: list[str]) -> None:
        self.fd: int | None = None  # to wait for
        self.deadline: float | None = None  # of time.monotonic
        self.ends_after = 0
        self.master = 0  # process whose connection the command uses
        self._pid = 0
        self._answer = b""
        self._ssh = _program(command[0]) if os.path.basename(command[0]) == "ssh" else None
        self._asks_master = False
        if self._ssh is not None:
            self._ask([command[0], "-G", *command[1:]], 1)

    def read(self) -> bool:
        """Something can be read, or the time is over.  Whether ends_after or master has become known."""
        if self.fd is None or self.deadline is None:
            return False
        try:
            data = os.read(self.fd, MAX_ANSWER)
        except BlockingIOError:
            if time.monotonic() >= self.deadline:
                self.close()
            return False
        self._answer += data
        if data and len(self._answer) <= MAX_ANSWER:
            return False
        self.close()
        answer = self._answer.decode(errors="replace")
        if self._asks_master:
            self.master = master_process(answer)
            if self.master:
                self.ends_after = 0  # the master's own setting counts
            return self.master > 0
        config = parse(answer)
        self.ends_after = ends_after(config)
        self._ask_master(master_socket(config))
        return self.ends_after > 0

    def close(self) -> None:
        """Ask no more."""
        if self.fd is not None:
            os.close(self.fd)
            os.kill(self._pid, 9)
            os.waitpid(self._pid, 0)
        self.fd = self.deadline = None

    def _ask_master(self, path: str | None) -> None:
        try:
            there = path is not None and stat.S_ISSOCK(os.stat(path).st_mode)
        except (OSError, ValueError):
            return
        if there and path is not None:
            self._asks_master = True
            self._ask(["ssh", "-F", "/dev/null", "-S", path, "-O", "check", "localhost"], 2)

    def _ask(self, argv: list[str], output: int) -> None:
        """Without a terminal, so that nothing can be asked there."""
        if self._ssh is None:
            return
        reading, writing = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(reading, False)
        files = [(os.POSIX_SPAWN_OPEN, fd, "/dev/null", os.O_RDWR, 0) for fd in (0, 3 - output)]
        try:
            self._pid = os.posix_spawn(
                self._ssh,
                argv,
                os.environ,
                file_actions=[*files, (os.POSIX_SPAWN_DUP2, writing, output)],
                setsid=True,
                setsigdef=_IGNORED_BY_PYTHON,
            )
        except (OSError, NotImplementedError):
            os.close(reading)
            return
        finally:
            os.close(writing)
        self.fd, self._answer, self.deadline = reading, b"", time.monotonic() + PATIENCE


def _program(name: str) -> str | None:
    """Where the command is, if it is a program: a script of that name may do anything when it is asked."""
    directories = [""] if "/" in name else os.get_exec_path()
    for path in (os.path.join(directory, name) for directory in directories):
        if os.access(path, os.X_OK) and os.path.isfile(path):
            with open(path, "rb") as file:
                return path if file.read(4) == b"\x7fELF" else None
    return None

"""A person at a terminal: an interactive shell, local or through ssh, that is typed into and read."""

from __future__ import annotations

import itertools
import os
import signal
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from typing import NamedTuple

import pexpect

from redirectctl.lab.namespaces import LabError, uninterrupted
from redirectctl.lab.topology import Host

START_PATIENCE = 60.0  # seconds until the shell answers


class Answer(NamedTuple):
    """What a command typed into a terminal came to."""

    time: float  # time.monotonic() when its output was complete
    status: int
    output: str


class Terminal:
    """A command with a Bourne-like shell behind it, on a pseudo-terminal of a host.

    Raises LabError when the shell does not answer.
    """

    def __init__(self, host: Host, argv: Sequence[str]) -> None:
        arguments = host.inside(argv)
        self._numbers = itertools.count(1)
        # TERM=dumb: readline puts no escape sequences (bracketed paste) around what is typed
        env = os.environ | {"TERM": "dumb"}
        with uninterrupted:
            self._child = pexpect.spawn(arguments[0], arguments[1:], encoding="utf-8", env=env)
            host.sandbox.killers.append(self.kill)
        self._child.sendline("PS1= PS2=; stty -echo")
        self.run("true", START_PATIENCE)

    @property
    def pid(self) -> int:
        """Of the command."""
        return int(self._child.pid)

    def run(self, command: str, timeout: float = START_PATIENCE) -> str:
        """Type a command and return what it printed.  Raises LabError if it fails or the shell does not answer."""
        self.type(command)
        status, output = self.read(timeout)
        if status != 0:
            raise LabError(f"{command!r} in the terminal: status {status}: {output}")
        return output

    def type(self, command: str) -> None:
        """Type a command without waiting; read() then gives its outcome."""
        self._mark = f"<{next(self._numbers)}:"
        self._child.sendline(f"{command}; echo '{self._mark}'$?'>'")

    def read(self, timeout: float = START_PATIENCE) -> tuple[int, str]:
        """Exit status and output of the command typed last.  Raises LabError if it does not come in time."""
        try:
            self._child.expect(self._mark + r"(\d+)>\r\n", timeout=timeout)
        except pexpect.ExceptionPexpect as error:
            reason = "ended" if isinstance(error, pexpect.EOF) else f"does not answer within {timeout:g} s"
            raise LabError(f"the terminal {reason}; it said last: {self._child.before!r}") from error
        return int(self._child.match.group(1)), self._child.before.replace("\r\n", "\n")

    def read_later(self, timeout: float = START_PATIENCE) -> Future[Answer]:
        """read() in the background, so that the moment of the answer is known whatever the caller does meanwhile."""
        answer: Future[Answer] = Future()

        def wait() -> None:
            try:
                status, output = self.read(timeout)
                answer.set_result(Answer(time.monotonic(), status, output))
            except LabError as error:
                answer.set_exception(error)

        threading.Thread(target=wait, name="terminal", daemon=True).start()
        return answer

    def alive(self) -> bool:
        """Whether the command runs still."""
        return bool(self._child.isalive())

    def leave(self, timeout: float = START_PATIENCE) -> int:
        """Type exit and wait for the end.  Returns the exit status, 128 + number for a signal."""
        self._child.sendline("exit")
        try:
            self._child.expect(pexpect.EOF, timeout=timeout)
        except pexpect.TIMEOUT as error:
            raise LabError("the terminal does not end") from error
        self._child.close()
        signal_status = self._child.signalstatus
        return int(self._child.exitstatus) if signal_status is None else 128 + int(signal_status)

    def kill(self) -> None:
        """End the command at once; its shell hears nothing."""
        if self._child.isalive():
            os.kill(self.pid, signal.SIGKILL)
            self._child.wait()

    def close(self) -> None:
        """Hang up."""
        self._child.close(force=True)

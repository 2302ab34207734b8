"""redirect-run on a terminal, under an interactive bash: as the command alone, in each test both."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator

import pexpect
import pytest
from fake_daemon import FakeDaemon

PROMPT = "ready> "


class Shell:
    """An interactive bash in a terminal of its own."""

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        environment = os.environ | {"PS1": PROMPT, "TERM": "dumb", "LC_ALL": "C"}
        self.terminal = pexpect.spawn(
            "bash", ["--norc", "--noprofile", "--noediting"], env=environment, timeout=60, encoding="utf-8"
        )
        self.terminal.expect_exact(PROMPT)

    def start(self, command: str) -> None:
        self.terminal.sendline(f"{self.prefix} {command}")
        self.terminal.expect_exact("\n")  # the echoed line

    def prompt(self) -> str:
        """What is printed until the next prompt."""
        self.terminal.expect_exact(PROMPT)
        text: str = self.terminal.before
        return text

    def ask(self, line: str) -> str:
        self.terminal.sendline(line)
        self.terminal.expect_exact("\n")
        return self.prompt().strip()


@pytest.fixture(params=["redirect-run", "alone"])
def shell(request: pytest.FixtureRequest, redirect_run: str, daemon: FakeDaemon) -> Iterator[Shell]:
    shell = Shell(redirect_run if request.param == "redirect-run" else "command")
    yield shell
    shell.terminal.close(force=True)
    assert bool(daemon.callers) == (request.param == "redirect-run")


def test_stop_and_continue(shell: Shell) -> None:
    shell.start("cat")
    shell.terminal.sendline("one")
    shell.terminal.expect_exact("one\r\none\r\n")
    shell.terminal.sendcontrol("z")
    assert "Stopped" in shell.prompt()
    assert shell.ask("echo status=$?") == f"status={128 + signal.SIGTSTP}"
    assert "Stopped" in shell.ask("jobs")
    shell.terminal.sendline("fg")
    shell.terminal.sendline("two")
    shell.terminal.expect_exact("two\r\ntwo\r\n")
    shell.terminal.sendeof()
    shell.prompt()
    assert shell.ask("echo status=$?") == "status=0"


def test_background_job_that_reads_is_stopped(shell: Shell) -> None:
    shell.start("cat &")
    shell.prompt()
    assert shell.ask("wait %1; echo status=$?").endswith(f"status={128 + signal.SIGTTIN}")
    assert "Stopped" in shell.ask("jobs")
    shell.ask("kill -9 %1")


def test_interrupt(shell: Shell) -> None:
    shell.start("cat")
    shell.terminal.sendline("one")
    shell.terminal.expect_exact("one\r\none\r\n")
    shell.terminal.sendintr()
    assert "Traceback" not in shell.prompt()
    assert shell.ask("echo status=$?") == "status=130"


def test_interrupt_that_the_command_handles(shell: Shell) -> None:
    shell.start("sh -c 'trap \"echo caught; exit 3\" INT; echo go; read x'")
    shell.terminal.expect_exact("go\r\n")
    shell.terminal.sendintr()
    assert "caught" in shell.prompt()
    assert shell.ask("echo status=$?") == "status=3"


WATCH_SIZE = """
import os, signal, sys
def show(*_):
    print("size", *os.get_terminal_size(), flush=True)
signal.signal(signal.SIGWINCH, show)
show()
sys.stdin.readline()
"""


def test_terminal_size_changes(shell: Shell) -> None:
    shell.terminal.setwinsize(24, 80)
    shell.start(f"{sys.executable} -c '{WATCH_SIZE.strip()}'".replace("\n", "'$'\\n''"))
    shell.terminal.expect_exact("size 80 24")
    for rows, columns in ((50, 132), (10, 40)):
        shell.terminal.setwinsize(rows, columns)
        shell.terminal.expect_exact(f"size {columns} {rows}")
    shell.terminal.sendline("")
    shell.prompt()
    assert shell.ask("echo status=$?") == "status=0"


def test_terminal_itself_is_passed_on(shell: Shell) -> None:
    shell.start("sh -c 'tty; test -t 0 && test -t 1 && test -t 2 && ps -o pid=,pgid=,tpgid= -p $$; echo $$'")
    name, numbers, pid = shell.prompt().split("\r\n")[:3]
    assert name == shell.ask("tty")
    assert numbers.split() == [pid] * 3  # a job of its own, in the foreground


def test_interrupt_while_the_daemon_hangs(redirect_run: str, daemon: FakeDaemon) -> None:
    def interrupt_and_hang(sock: socket.socket, pid: int) -> None:
        os.kill(pid, signal.SIGINT)
        daemon.stopping.wait()

    daemon.behaviour = interrupt_and_hang
    result = subprocess.run([redirect_run, "echo", "hi"], capture_output=True, timeout=60, check=False)
    assert (result.returncode, result.stdout, result.stderr) == (-signal.SIGINT, b"", b"")

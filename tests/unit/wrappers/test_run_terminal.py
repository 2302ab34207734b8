"""redirect-run on a terminal, under an interactive bash: as the command alone, in each test all ways to run it.

"attended": with notices, on a terminal of its own.  "plain": where TERM says that nothing can be shown.
"""

from __future__ import annotations

import base64
import hashlib
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pexpect
import pytest
from fake_daemon import FakeDaemon

PROMPT = "ready> "


class Shell:
    """An interactive bash in a terminal of its own."""

    def __init__(self, prefix: str, term: str = "dumb") -> None:
        self.prefix = prefix
        environment = os.environ | {"PS1": PROMPT, "TERM": term, "LC_ALL": "C"}
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


@pytest.fixture(params=["attended", "plain", "alone"])
def shell(request: pytest.FixtureRequest, redirect_run: str, daemon: FakeDaemon) -> Iterator[Shell]:
    alone = request.param == "alone"
    shell = Shell("command" if alone else redirect_run, "xterm" if request.param == "attended" else "dumb")
    yield shell
    shell.terminal.close(force=True)
    assert bool(daemon.callers) == (not alone)


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


def test_terminal(shell: Shell, request: pytest.FixtureRequest) -> None:
    shell.start("sh -c 'tty; test -t 0 && test -t 1 && test -t 2 && ps -o pid=,pgid=,tpgid= -p $$; echo $$'")
    name, numbers, pid = shell.prompt().split("\r\n")[:3]
    attended = "attended" in request.node.name
    assert (name == shell.ask("tty")) == (not attended)
    assert name.startswith("/dev/pts/")
    assert numbers.split() == [pid] * 3  # a job of its own, in the foreground


def test_stopped_in_the_foreground_and_continued_in_the_background(shell: Shell) -> None:
    shell.start("sh -c 'echo begin; read x; echo got $x'")
    shell.terminal.expect_exact("begin\r\n")
    shell.terminal.sendcontrol("z")
    assert "Stopped" in shell.prompt()
    shell.ask("bg")
    # It reads, and is stopped again: the terminal is the shell's.
    for _ in range(600):
        if "Stopped" in shell.ask("jobs"):
            break
    else:
        pytest.fail("it goes on in the background")
    shell.terminal.sendline("fg")
    shell.terminal.sendline("word")
    shell.terminal.expect_exact("got word\r\n")
    shell.prompt()
    assert shell.ask("jobs") == ""


UNTIL_DONE = """
import os, time
print("begin", flush=True)
while not os.path.exists("done"):
    time.sleep(0.01)
print("got", input())
"""


def test_brought_into_the_foreground_while_it_runs(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "wait.py").write_text(UNTIL_DONE)
    shell.ask(f"cd {tmp_path}")
    shell.start(f"{sys.executable} wait.py")
    shell.terminal.expect_exact("begin\r\n")
    shell.terminal.sendcontrol("z")
    assert "Stopped" in shell.prompt()
    shell.ask("bg")
    assert "Running" in shell.ask("jobs")
    shell.terminal.sendline("fg")  # no signal comes with that: the job runs
    shell.terminal.expect_exact("wait.py")
    (tmp_path / "done").touch()
    shell.terminal.sendline("word")
    shell.terminal.expect_exact("got word\r\n")
    shell.prompt()


def test_modes_and_size_that_the_command_sets_stay(shell: Shell) -> None:
    shell.terminal.setwinsize(24, 80)
    shell.start("stty -echo")
    shell.prompt()
    shell.terminal.sendline("stty -a | grep -ow -e -echo; echo done")
    assert "-echo" in shell.prompt().split()
    shell.terminal.sendline(f"{shell.prefix} stty echo; echo")
    shell.prompt()
    shell.start("stty rows 33 cols 99")
    shell.prompt()
    assert shell.ask("stty size") == "33 99"


SLOW = """
import os, sys, time
from redirectctl_wrappers import leader, run
close, wrapper = leader.close_all_but, os.getpid()
def late(kept):  # it has started the command, and does not get a processor
    while os.getpid() == wrapper and not os.path.exists("done"):
        time.sleep(0.01)
    close(kept)
leader.close_all_but = late
sys.exit(run.main())
"""


def test_modes_and_size_that_the_command_sets_at_once_stay(daemon: FakeDaemon, tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(SLOW)
    shell = Shell(f"{sys.executable} slow.py", "xterm")
    shell.ask(f"cd {tmp_path}")
    shell.start("sh -c 'stty rows 33 cols 99 -ixon; touch done'")
    shell.prompt()
    assert shell.ask("stty size") == "33 99"
    assert "-ixon" in shell.ask("stty -a").split()
    shell.terminal.close(force=True)
    assert daemon.callers


def test_what_children_write_after_the_command_has_ended(shell: Shell) -> None:
    shell.start("sh -c '(sleep 1; echo later) & exit 3'; echo status=$?")
    assert "status=3" in shell.prompt()
    shell.terminal.expect_exact("later\r\n")


def test_children_in_the_background_are_not_hung_up(shell: Shell, tmp_path: Path) -> None:
    witness = tmp_path / "witness"
    shell.start(f"sh -c '(sleep 1; echo $? > {witness}) < /dev/null > /dev/null 2>&1 &'")
    shell.prompt()
    for _ in range(600):
        if witness.exists():
            break
        time.sleep(0.1)
    assert witness.exists()


def test_typed_ahead(shell: Shell) -> None:
    """What the command does not read is the shell's."""
    if Path("/proc/sys/dev/tty/legacy_tiocsti").read_text() == "0\n" and os.geteuid() != 0:
        pytest.skip("this system does not let anybody put back what was typed")
    shell.start("sh -c 'echo go; sleep 1'")
    shell.terminal.expect_exact("go\r\n")
    shell.terminal.sendline("echo ahe''ad")
    shell.terminal.expect_exact("ahead\r\n")


def test_password_without_echo(shell: Shell) -> None:
    shell.start(f"{sys.executable} -c 'import getpass; print(len(getpass.getpass()))'")
    shell.terminal.expect_exact("Password: ")
    shell.terminal.waitnoecho()
    shell.terminal.sendline("secret")
    shown = shell.prompt()
    assert "6\r\n" in shown
    assert "secret" not in shown


def test_what_was_not_found(shell: Shell) -> None:
    for command, status in (("/nonexistent", 127), ("/etc/passwd", 126)):
        shell.start(command)
        assert command in shell.prompt()
        assert shell.ask("echo status=$?") == f"status={status}"


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGKILL, signal.SIGHUP, signal.SIGUSR1, signal.SIGQUIT])
def test_ended_by_a_signal(shell: Shell, signum: signal.Signals) -> None:
    shell.start(f"sh -c 'kill -{signum} $$'")
    shell.prompt()
    assert shell.ask("echo status=$?") == f"status={128 + signum}"


def test_signal_from_outside(shell: Shell) -> None:
    shell.start("sh -c 'trap \"echo caught; exit 9\" USR1; echo $PPID; while :; do sleep 0.1; done'")
    shell.terminal.expect(r"(\d+)\r\n")
    job = subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(shell.terminal.pid)], capture_output=True, text=True, check=True
    )
    os.kill(int(job.stdout.split()[0]), signal.SIGUSR1)
    shell.terminal.expect_exact("caught\r\n")
    shell.prompt()
    assert shell.ask("echo status=$?") == "status=9"


def test_hang_up(shell: Shell, tmp_path: Path) -> None:
    witness = tmp_path / "witness"
    shell.start(f"sh -c 'trap \"echo hup > {witness}; exit\" HUP; echo go; while :; do sleep 0.1; done'")
    shell.terminal.expect_exact("go\r\n")
    shell.terminal.close(force=True)
    for _ in range(600):
        if witness.exists() and witness.read_text():
            break
        time.sleep(0.1)
    assert witness.read_text() == "hup\n"


def test_everything_that_is_written_arrives(shell: Shell, tmp_path: Path) -> None:
    file = tmp_path / "text"
    file.write_bytes(base64.b64encode(random.Random(7).randbytes(3 << 20)) + b"\n")
    shell.start(f"cat {file}")
    assert (
        hashlib.sha256(shell.prompt().rstrip().encode()).digest() == hashlib.sha256(file.read_bytes().rstrip()).digest()
    )


def test_interrupt_while_the_daemon_hangs(redirect_run: str, daemon: FakeDaemon) -> None:
    def interrupt_and_hang(sock: socket.socket, pid: int) -> None:
        os.kill(pid, signal.SIGINT)
        daemon.stopping.wait()

    daemon.behaviour = interrupt_and_hang
    result = subprocess.run([redirect_run, "echo", "hi"], capture_output=True, timeout=60, check=False)
    assert (result.returncode, result.stdout, result.stderr) == (-signal.SIGINT, b"", b"")

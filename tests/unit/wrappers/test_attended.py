"""Notices and questions on a terminal, with a daemon's part played by the test."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pexpect
import pytest
from fake_daemon import FakeDaemon

FINGERPRINT = "SHA256:Zmh6rfhivXdsj8GLjp+OIAiXFIVu4jOzkCpZHQ1fKSU"
NEW: dict[str, object] = {
    "fingerprint": FINGERPRINT,
    "picture": "+--[redirectctl]--+\n|     o+=+o       |\n+----[SHA256]-----+",
    "addresses": ["192.0.2.7"],
    "known": [],
    "may_decide": True,
}
LOST: dict[str, object] = {"id": "c", "remote": "192.0.2.7:22", "state": "suspended", "lost_for": 61.0}
BACK: dict[str, object] = {"id": "c", "remote": "192.0.2.7:22", "state": "protected", "lasted": 75.0}
PATIENCE = 60


@pytest.fixture
def asking(daemon: FakeDaemon) -> FakeDaemon:
    daemon.behaviour = daemon.accept_and_ask
    return daemon


@pytest.fixture
def start(redirect_run: str) -> Iterator[Any]:
    """Starts a command through redirect-run on a terminal, in a session of its own."""
    started: list[pexpect.spawn] = []

    def spawn(*arguments: str, **environment: str) -> pexpect.spawn:
        env = os.environ | {"TERM": "xterm", "LC_ALL": "C.UTF-8"} | environment
        child = pexpect.spawn(redirect_run, list(arguments), env=env, timeout=PATIENCE, encoding="utf-8")
        started.append(child)
        return child

    yield spawn
    for child in started:
        child.close(force=True)


def decisions(daemon: FakeDaemon) -> list[dict[str, object]]:
    said = [json.loads(request) for request in daemon.requests]
    return [each for each in said if each["type"] in ("approve", "reject")]


KEY = "\x1d"


def opened(child: pexpect.spawn) -> None:
    """A question has come up, and its key opens it."""
    child.expect_exact("press Ctrl-] to see")
    child.send(KEY)
    child.expect_exact("\x1b[?1049h")


def cat(child: pexpect.spawn) -> None:
    """The command is there."""
    child.sendline("begin")
    child.expect_exact("begin\r\nbegin\r\n")


@pytest.mark.parametrize(("word", "verb"), [("approve", "approve"), (FINGERPRINT, "approve"), ("reject", "reject")])
def test_first_contact(asking: FakeDaemon, start: Any, word: str, verb: str) -> None:
    child = start("cat")
    cat(child)
    asking.tell(questions=[NEW])
    opened(child)
    for text in ("first contact", "192.0.2.7", "cat", FINGERPRINT, "|     o+=+o       |", "approve, reject"):
        child.expect_exact(text)
    child.sendline("ls -l")  # somebody was typing
    child.expect_exact("'ls -l' is not one of the answers")
    assert decisions(asking) == []
    child.sendline(word)
    child.expect_exact("\x1b[?1049l")
    child.sendline("end")
    child.expect_exact("end\r\nend\r\n")
    assert "ls -l" not in child.before
    assert decisions(asking) == [{"type": verb, "peer": FINGERPRINT}]


def test_typed_ahead_of_an_answer(asking: FakeDaemon, start: Any) -> None:
    """What comes in one piece with the answer is the command's from there on."""
    child = start("cat")
    cat(child)
    asking.tell(questions=[NEW])
    opened(child)
    child.send("later\rgoes on\r")
    child.expect_exact("goes on\r\ngoes on\r\n")
    assert decisions(asking) == []


def test_later(asking: FakeDaemon, start: Any) -> None:
    child = start("cat")
    cat(child)
    asking.tell(questions=[NEW])
    opened(child)
    child.expect_exact("approve, reject")
    child.sendcontrol("c")
    child.expect_exact("\x1b[?1049l")
    asking.tell(LOST, questions=[NEW])
    child.expect_exact("no path")  # and not asked again
    assert "first contact" not in child.before
    child.sendcontrol("c")
    child.expect(pexpect.EOF)
    assert decisions(asking) == []


@pytest.mark.parametrize("typed", ["yes", "approve", "reject", FINGERPRINT, "later", ""])
def test_what_is_typed_for_the_command_answers_nothing(asking: FakeDaemon, start: Any, typed: str) -> None:
    """The question comes up under somebody's fingers."""
    child = start("cat")
    cat(child)
    asking.tell(questions=[NEW])
    child.expect_exact("press Ctrl-] to see")
    child.sendline(typed)
    child.expect_exact(f"{typed}\r\n{typed}\r\n")
    child.send(f"{KEY}approve\r")  # a part of what is pasted, and not pressed
    child.expect_exact("approve\r\n")
    child.sendline("end")
    child.expect_exact("end\r\n")
    assert "\x1b[?1049h" not in child.before
    assert decisions(asking) == []
    child.send(KEY)
    child.expect_exact("\x1b[?1049h")
    child.sendline("approve")
    child.expect_exact("\x1b[?1049l")
    assert decisions(asking) == [{"type": "approve", "peer": FINGERPRINT}]


# Two lines are read without echo: while the second is awaited, the first has been, and nothing may be asked yet.
PASSWORD = (
    "stty -echo; printf 'password: '; read -r x; echo; echo got $x; read -r z; stty echo; echo shown; "
    "read -r y; echo got $y"
)


def test_a_password_is_the_commands_alone(asking: FakeDaemon, start: Any) -> None:
    """No question before it is there: neither its line nor its key, nor a letter of it on the screen."""
    child = start("sh", "-c", PASSWORD)
    child.expect_exact("password: ")
    asking.tell(questions=[NEW])
    child.expect_exact("is new")  # the title may say so
    child.send("se")
    child.send(KEY)
    child.send("cret\r")
    child.expect_exact(f"got se{KEY}cret\r\n")
    for text in ("Ctrl-]", "\x1b[?1049h", "SHA256:", "se\x1d"):
        assert text not in child.before
    assert decisions(asking) == []
    child.sendline("")
    opened(child)  # now it can be asked
    child.sendline("later")
    child.expect_exact("\x1b[?1049l")
    child.sendline("two")
    child.expect_exact("got two\r\n")


def test_an_open_question_gives_way_to_a_password(asking: FakeDaemon, start: Any) -> None:
    child = start("sh", "-c", f"echo go; read -r a; sleep 2; {PASSWORD}")
    child.expect_exact("go\r\n")
    child.sendline("")
    asking.tell(questions=[NEW])
    opened(child)
    child.expect_exact("approve, reject")
    child.expect_exact("\x1b[?1049l")  # by itself
    child.expect_exact("password: ")
    child.sendline("approve")
    child.expect_exact("got approve\r\n")
    assert decisions(asking) == []
    child.sendline("")
    child.expect_exact("shown\r\n")
    child.send(KEY)
    child.expect_exact("\x1b[?1049h")


def test_the_key_puts_the_question_away_and_brings_it_back(asking: FakeDaemon, start: Any) -> None:
    child = start("cat")
    cat(child)
    asking.tell(questions=[NEW])
    for _ in range(2):
        child.send(KEY)
        child.expect_exact("\x1b[?1049h")
        child.expect_exact("approve, reject")
        child.send(KEY)
        child.expect_exact("\x1b[?1049l")
    child.sendline("two")
    child.expect_exact("two\r\ntwo\r\n")
    assert decisions(asking) == []


def test_without_a_question_the_key_is_the_commands(daemon: FakeDaemon, start: Any) -> None:
    child = start("sh", "-c", "stty raw -echo; echo go; head -c 1 | od -An -tx1")
    child.expect_exact("go")
    daemon.tell(LOST)
    child.send(KEY)
    child.expect_exact("1d")


def test_answered_by_somebody_else(asking: FakeDaemon, start: Any) -> None:
    child = start("sh", "-c", "while read x; do echo got $x; done")
    child.sendline("one")
    child.expect_exact("got one\r\n")
    asking.tell(questions=[NEW])
    opened(child)
    child.expect_exact("approve, reject")
    asking.tell()
    child.expect_exact("\x1b[?1049l")
    child.sendline("two")
    child.expect_exact("got two\r\n")


def test_changed_key(asking: FakeDaemon, start: Any) -> None:
    child = start("cat")
    cat(child)
    asking.tell(questions=[NEW | {"known": ["SHA256:known"]}])
    child.expect_exact("WARNING: the key of 192.0.2.7 has changed")
    opened(child)
    for text in ("WARNING", "HAS CHANGED", "SHA256:known", FINGERPRINT):
        child.expect_exact(text)
    child.sendline("approve")
    child.expect_exact("is not one of the answers")
    child.sendline("reject")
    child.expect_exact("\x1b[?1049l")
    assert decisions(asking) == [{"type": "reject", "peer": FINGERPRINT}]


def test_output_goes_on_when_nobody_answers(asking: FakeDaemon, start: Any) -> None:
    child = start("sh", "-c", "read x; head -c 600000 /dev/zero | tr '\\0' x; echo; echo end")
    asking.tell(questions=[NEW])
    opened(child)
    child.expect_exact("approve, reject")
    asking.tell()
    child.expect_exact("\x1b[?1049l")
    child.sendline("")
    child.expect_exact("\r\nend\r\n")


def test_a_command_that_ends_under_a_question(asking: FakeDaemon, start: Any) -> None:
    child = start("sh", "-c", "echo go; sleep 2; echo gone; exit 5")
    child.expect_exact("go\r\n")
    asking.tell(questions=[NEW])
    opened(child)
    child.expect_exact("approve, reject")
    child.expect_exact("\x1b[?1049l")
    child.expect_exact("gone\r\n")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 5


def test_lost_and_back_in_the_title(daemon: FakeDaemon, start: Any) -> None:
    child = start("sh", "-c", "printf '\\033]2;mine\\007'; cat")
    child.expect_exact("\x1b]2;mine\x07")
    cat(child)
    daemon.tell(LOST)
    child.expect_exact("\x1b[22;2t\x1b]2;redirectctl: no path to 192.0.2.7 for 1m 1s\x07")
    child.expect_exact("no path to 192.0.2.7 for 1m 2s")
    child.expect_exact("no path to 192.0.2.7 for 1m 3s")
    daemon.tell(BACK)
    child.expect_exact("path to 192.0.2.7 is back after 1m 15s\x07")
    child.expect_exact("\x1b]2;\x07\x1b[23;2t\x1b]2;mine\x07")


def test_lost_and_back_inline(daemon: FakeDaemon, start: Any) -> None:
    child = start("--notify", "inline", "sh", "-c", "printf 'name: '; read x; echo got $x")
    child.expect_exact("name: ")
    daemon.tell(LOST)
    child.expect_exact("\r\nredirectctl: no path to 192.0.2.7; suspended until there is one\r\nname: ")
    child.send("ab")
    child.expect_exact("ab")
    daemon.tell(BACK)
    child.expect_exact("\r\nredirectctl: path to 192.0.2.7 is back after 1m 15s\r\nname: ab")
    child.sendline("c")
    child.expect_exact("got abc\r\n")


BARE: dict[str, object] = {"id": "c", "remote": "192.0.2.7:22", "state": "unsupported", "reason": "no-answer"}
SAFE: dict[str, object] = {"id": "c", "remote": "192.0.2.7:22", "state": "protected", "peer": FINGERPRINT}
UNPROTECTED = (
    "redirect-run: sh was not protected: 192.0.2.7: the other host's redirectd does not answer; "
    "sudo redirectctl doctor 192.0.2.7"
)


def test_protected_in_the_title(daemon: FakeDaemon, start: Any) -> None:
    child = start("cat")
    cat(child)
    daemon.tell(SAFE)
    child.expect_exact("\x1b]2;redirectctl: protected: 192.0.2.7 (SHA256:Zmh6rfhivXds…)\x07")
    child.expect_exact("\x1b]2;\x07")
    child.sendeof()
    child.expect(pexpect.EOF)
    assert "redirect-run" not in child.before


@pytest.mark.parametrize(
    ("last", "shown", "status"),
    [
        ("printf half; exit 3", f"half\r\n{UNPROTECTED}\r\n", (3, None)),
        ("echo whole", f"whole\r\n{UNPROTECTED}\r\n", (0, None)),
        ("printf half; kill -KILL $$", f"half\r\n{UNPROTECTED}\r\n", (None, 9)),
    ],
)
def test_it_ended_unprotected(daemon: FakeDaemon, start: Any, last: str, shown: str, status: tuple[Any, Any]) -> None:
    child = start("--notify", "inline", "sh", "-c", f"read x; {last}")
    daemon.tell(BARE)
    child.expect_exact("  sudo redirectctl doctor 192.0.2.7\r\n")
    child.sendline("")
    child.expect_exact(shown)
    child.expect(pexpect.EOF)
    assert child.before == ""
    child.close()
    assert (child.exitstatus, child.signalstatus) == status


def test_it_ended_unprotected_and_stderr_is_a_file(redirect_run: str, daemon: FakeDaemon, tmp_path: Path) -> None:
    script = f"{redirect_run} --notify inline sh -c 'echo go; read x; printf half; echo own >&2' 2> {tmp_path}/errors"
    child = pexpect.spawn("sh", ["-c", script], env=os.environ | {"TERM": "xterm"}, timeout=PATIENCE, encoding="utf-8")
    try:
        child.expect_exact("go\r\n")
        daemon.tell(BARE)
        child.expect_exact("sudo redirectctl doctor")
        child.sendline("")
        child.expect(pexpect.EOF)
    finally:
        child.close(force=True)
    assert child.before.endswith("half")
    assert (tmp_path / "errors").read_text() == f"own\n{UNPROTECTED}\n"


def test_it_ended_unprotected_and_nobody_reads_stderr(redirect_run: str, daemon: FakeDaemon, tmp_path: Path) -> None:
    """A pipe that is full: the command has ended, and its exit status is not kept back for a remark."""
    os.mkfifo(tmp_path / "errors")
    pipe = os.open(tmp_path / "errors", os.O_RDWR | os.O_NONBLOCK)
    with suppress(BlockingIOError):
        while True:
            os.write(pipe, b"x" * 4096)
    script = f"{redirect_run} --notify inline sh -c 'echo go; read x; exit 3' 2> {tmp_path}/errors; echo ended $?"
    child = pexpect.spawn("sh", ["-c", script], env=os.environ | {"TERM": "xterm"}, timeout=20, encoding="utf-8")
    try:
        child.expect_exact("go\r\n")
        daemon.tell(BARE)
        child.expect_exact("sudo redirectctl doctor")
        child.sendline("")
        child.expect_exact("ended 3\r\n")
    finally:
        child.close(force=True)
        os.close(pipe)


def test_a_daemon_that_has_stopped(daemon: FakeDaemon, start: Any) -> None:
    child = start("--notify", "inline", "cat")
    cat(child)
    daemon.tell(SAFE)
    child.expect_exact("redirectctl: protected: ")
    daemon.close()
    child.expect_exact("redirectctl: redirectd has stopped; nothing is protected until it runs again:\r\n")
    child.sendeof()
    child.expect_exact("redirect-run: cat ended unprotected: redirectd has stopped; sudo systemctl start redirectd\r\n")


@pytest.mark.parametrize("options", [["--plain"], ["--notify", "none"]])
def test_nothing_to_tell_or_ask_costs_nothing(daemon: FakeDaemon, start: Any, options: list[str]) -> None:
    child = start(*options, "sh", "-c", "echo $$ $(tty)")
    child.expect(r"(\d+) (\S+)\r\n")
    assert int(child.match.group(1)) == child.pid  # it is the command itself
    child.expect(pexpect.EOF)
    assert b'{"type":"watch"}\n' not in daemon.requests


def test_no_notices_but_questions(asking: FakeDaemon, start: Any) -> None:
    child = start("--notify", "none", "cat")
    cat(child)
    asking.tell(LOST)
    asking.tell(LOST, questions=[NEW])
    child.expect_exact("first contact")
    assert "no path" not in child.before
    opened(child)


def test_the_daemon_stops_and_comes_back(asking: FakeDaemon, start: Any) -> None:
    child = start("cat")
    cat(child)
    asking.tell(questions=[NEW])
    opened(child)
    child.expect_exact("approve, reject")
    asking.tell()
    asking.forget_watchers()
    child.expect_exact("\x1b[?1049l")
    asking.tell(LOST)  # to whoever asks from now on
    child.expect_exact("no path to 192.0.2.7")
    child.sendline("two")
    child.expect_exact("two\r\n")


@pytest.mark.parametrize("nonsense", [b"{}\n", b"\xff\n", b'{"type":"watch"}\n', b'{"type":"error","code":"denied"}\n'])
def test_a_daemon_that_talks_nonsense(daemon: FakeDaemon, start: Any, nonsense: bytes) -> None:
    child = start("cat")
    cat(child)
    for watcher in daemon.watchers:
        watcher.sendall(nonsense)
    child.sendline("two")
    child.expect_exact("two\r\ntwo\r\n")


def test_gpg_asks_on_the_terminal_that_the_command_has(redirect_run: str, daemon: FakeDaemon) -> None:
    script = f"tty; GPG_TTY=$(tty) {redirect_run} sh -c 'echo $GPG_TTY; tty'"
    child = pexpect.spawn("bash", ["-ic", script], env=os.environ | {"TERM": "xterm"}, timeout=PATIENCE)
    try:
        child.expect(rb"(/dev/pts/\d+)\r\n(/dev/pts/\d+)\r\n(/dev/pts/\d+)\r\n")
        outer, named, own = child.match.groups()
        assert named == own != outer
    finally:
        child.close(force=True)


def test_other_files_are_not_held_open(redirect_run: str, daemon: FakeDaemon, tmp_path: Path) -> None:
    """Who waits for the end of a file that was handed to the command waits for the command only."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    script = f"{redirect_run} sh -c 'echo told >&9; exec 9>&-; echo go; read x' 9> {fifo}"
    child = pexpect.spawn("bash", ["-ic", script], env=os.environ | {"TERM": "xterm"}, timeout=PATIENCE)
    try:
        reader = os.open(fifo, os.O_RDONLY)
        child.expect_exact("go\r\n")
        os.set_blocking(reader, False)  # while somebody has it open for writing there is no end but an error
        with open(reader, "rb") as file:
            assert file.read() == b"told\n"
        child.sendline("")
        child.expect(pexpect.EOF)
    finally:
        child.close(force=True)


class Screen:
    """A terminal of tmux's, 80x24."""

    def __init__(self, directory: Path, *command: str) -> None:
        self._socket = str(directory / "tmux")
        argv = ["-f", "/dev/null", "new-session", "-d", "-s", "s", "-x", "80", "-y", "24", *command]
        self._tmux(*argv)

    def type(self, *keys: str) -> None:
        self._tmux("send-keys", "-t", "s", *keys)

    def shown(self) -> str:
        """With colours, and where the cursor is."""
        cursor = self._tmux("display", "-p", "-t", "s", "#{cursor_x},#{cursor_y}")
        return self._tmux("capture-pane", "-p", "-e", "-t", "s") + cursor

    def title(self) -> str:
        return self._tmux("display", "-p", "-t", "s", "#{pane_title}").strip()

    def wait(self, text: str, *, title: bool = False) -> None:
        deadline = time.monotonic() + PATIENCE
        while text not in (self.title() if title else self.shown()):
            assert time.monotonic() < deadline, (text, self.title(), self.shown())
            time.sleep(0.05)

    def settled(self) -> str:
        """The screen when it has stopped changing."""
        last, same = self.shown(), 0
        while same < 6:
            time.sleep(0.05)
            now = self.shown()
            same = same + 1 if now == last else 0
            last = now
        return last

    def close(self) -> None:
        subprocess.run(["tmux", "-S", self._socket, "kill-server"], capture_output=True, timeout=10, check=False)

    def _tmux(self, *arguments: str) -> str:
        argv = ["tmux", "-S", self._socket, *arguments]
        return subprocess.run(argv, check=True, capture_output=True, text=True, timeout=10).stdout


PROGRAMS = {
    "vim": ["vim", "-u", "NONE", "-N", "-i", "NONE", "text"],
    "tmux": ["env", "-u", "TMUX", "tmux", "-L", "INNER", "-f", "/dev/null", "new-session", "env PS1='in> ' sh"],
}


KEYS = {"vim": (["G"], ["Escape"], ["C-l"]), "tmux": (["echo one", "Enter"], ["seq 30", "Enter"])}


@pytest.mark.parametrize(("program", "notify"), [("vim", "title"), ("vim", "inline"), ("tmux", "title")])
def test_full_screen_programs(redirect_run: str, asking: FakeDaemon, tmp_path: Path, program: str, notify: str) -> None:
    """The same keys with notices and a question, and without redirect-run: the same screens."""
    for needed in ("tmux", program):
        if shutil.which(needed) is None:
            pytest.skip(f"not installed: {needed}")
    (tmp_path / "text").write_text("".join(f"line {n} " + "ä€x" * (n % 20) + "\n" for n in range(200)))
    screens: list[list[str]] = []
    for through in (True, False):
        inner = f"rc-{os.getpid()}-{program}-{notify}-{through}"
        command = [part.replace("INNER", inner) for part in PROGRAMS[program]]
        wrap = [redirect_run, "--notify", notify, "--"] if through else []
        directory = tmp_path / str(through)
        directory.mkdir()
        asking.tell()
        shell = f"cd {tmp_path}; {' '.join([*wrap, *(_quoted(part) for part in command)])}; PS1='back>' exec sh"
        screen = Screen(directory, "env", f"REDIRECTCTL_SOCKET={asking.path}", "sh", "-c", shell)
        try:
            screen.wait("in>" if program == "tmux" else "line 1")
            seen = [screen.settled()]
            if through:
                asking.tell(LOST)
                screen.wait("no path to 192.0.2.7 for 1m 2s", title=True)
                seen.append(screen.settled())
                asking.tell(LOST, questions=[NEW])
                screen.wait("is new", title=True)
            else:
                seen.append(screen.settled())
            for keys in KEYS[program]:
                screen.type(*keys)
                seen.append(screen.settled())
            subprocess.run(["tmux", "-S", str(directory / "tmux"), "resize-window", "-x", "61", "-y", "17"], check=True)
            seen.append(screen.settled())
            if through:
                asking.tell(BACK)
                screen.wait("back after", title=True)
                seen.append(screen.settled())
                asking.tell()
            else:
                seen.append(screen.settled())
            screen.type(*{"vim": [":q!", "Enter"], "tmux": ["exit", "Enter"]}[program])
            screen.wait("back>")
            screens.append(seen)
        finally:
            screen.close()
            subprocess.run(["tmux", "-L", inner, "kill-server"], capture_output=True, check=False)
    for number, (with_notices, without) in enumerate(zip(*screens, strict=True)):
        assert _without_names(with_notices) == _without_names(without), number


def _quoted(part: str) -> str:
    return "'" + part.replace("'", "'\\''") + "'"


def _without_names(screen: str) -> str:
    """tmux shows the pane's title, the time and the session's number in its status line, the last one; not compared."""
    lines = screen.splitlines()
    status = [n for n, line in enumerate(lines) if "[0] 0:" in line]
    return "\n".join(line for n, line in enumerate(lines) if n not in status)


def test_question_after_a_full_screen_program(redirect_run: str, asking: FakeDaemon, tmp_path: Path) -> None:
    if shutil.which("tmux") is None:
        pytest.skip("not installed: tmux")
    environment = ["env", f"REDIRECTCTL_SOCKET={asking.path}", "PS1=in> "]
    screen = Screen(tmp_path, *environment, redirect_run, "bash", "--norc", "--noprofile")
    try:
        screen.wait("in>")
        screen.type("echo some text; echo 'half")
        screen.wait("'half")
        asking.tell(questions=[NEW])
        screen.wait("press Ctrl-] to see the key and to answer\nin> echo some text; echo 'half")
        screen.type("e")  # the command's still
        screen.wait("'halfe")
        screen.type("BSpace")
        before = screen.settled()
        screen.type("C-]")
        screen.wait("SHA256:Zmh6")
        screen.wait("redirectctl: approve, reject (for good), later, or the fingerprint:")
        screen.type("later", "Enter")
        screen.wait("'half")
        assert screen.settled() == before
        screen.type(" done'", "Enter")
        screen.wait("half done")
    finally:
        screen.close()

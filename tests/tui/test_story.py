"""A person at a terminal (tmux), real daemons, real ssh: from first contact to the end of a connection.

The person has two windows on the laptop: the terminal UI in one, in the other a shell, from which ssh is started.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from collections.abc import Callable, Iterator

import pytest

from redirectctl.lab.daemons import Daemon
from redirectctl.lab.namespaces import program
from redirectctl.lab.sshd import SshServer
from redirectctl.lab.streams import wait_until
from redirectctl.lab.topology import Host, Lab

PATIENCE = 60.0
CLIENT = '[trust]\nfirst_contact = "ask"\n[protect]\nlong_lived_after = "6s"\n'
SERVER = '[trust]\nfirst_contact = "accept-new"\n'
PROMPT = "server> "
ASKED = "first contact with another host"  # the open question in the session's terminal

pytestmark = [
    pytest.mark.netns,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
    pytest.mark.skipif(shutil.which("tmux") is None, reason="not installed: tmux"),
    pytest.mark.skipif(not os.path.exists("/usr/sbin/sshd"), reason="not installed: /usr/sbin/sshd"),
]


class Terminal:
    """80x24, in a host's network namespace."""

    def __init__(self, host: Host, name: str, argv: list[str]) -> None:
        """name: of this one among the host's."""
        self._socket = str(host.sandbox.directory / "tmux")
        self._name = name
        command = ["nsenter", f"--net=/run/netns/{host.full_name}", "env", "-u", "NO_COLOR", *argv]
        self._tmux("-f", "/dev/null", "new-session", "-d", "-s", name, "-x", "80", "-y", "24", *command)

    def press(self, *keys: str) -> None:
        self._tmux("send-keys", "-t", self._name, *keys)

    def type(self, line: str) -> None:
        self._tmux("send-keys", "-t", self._name, "-l", line)
        self.press("Enter")

    def wait(self, *texts: str, gone: str = "") -> str:
        """Until all of them are in sight, and `gone` is not; the screen."""

        def seen(screen: str) -> bool:
            return all(text in screen for text in texts) and not (gone and gone in screen)

        return self._wait(seen, self.screen, f"{texts} on the screen of {self._name}, without {gone!r}")

    def wait_title(self, text: str) -> None:
        """Until the terminal's title has it."""
        self._wait(lambda title: text in title, self.title, f"{text} in the title")

    def screen(self) -> str:
        return self._tmux("capture-pane", "-p", "-t", self._name)

    def title(self) -> str:
        return self._tmux("display", "-p", "-t", self._name, "#{pane_title}").strip()

    def gone(self) -> bool:
        found = subprocess.run(["tmux", "-S", self._socket, "has-session", "-t", self._name], capture_output=True)
        return found.returncode != 0

    def close(self) -> None:
        subprocess.run(["tmux", "-S", self._socket, "kill-session", "-t", self._name], capture_output=True)

    def _wait(self, wanted: Callable[[str], bool], look: Callable[[], str], what: str) -> str:
        last = ""

        def found() -> bool:
            nonlocal last
            last = look()
            return wanted(last)

        try:
            wait_until(found, PATIENCE, what, poll=0.1)
        except Exception as error:
            raise AssertionError(f"{error}:\n{last}") from error
        return last

    def _tmux(self, *arguments: str) -> str:
        argv = ["tmux", "-S", self._socket, *arguments]
        return subprocess.run(argv, check=True, capture_output=True, text=True, timeout=10).stdout


class Person:
    """Two terminals on the client; its daemon, and that of the server, run."""

    def __init__(self, lab: Lab) -> None:
        self.client, self.server = Daemon(lab.client, CLIENT), Daemon(lab.server, SERVER)
        for daemon in (self.client, self.server):
            daemon.start()
        self.sshd = SshServer(lab.server)
        self.identity = self.server.ctl("identity")
        folders = {os.path.dirname(program(name)) for name in ("redirectctl", "redirect-run")}
        environment = [
            f"REDIRECTCTL_SOCKET={self.client.socket}",
            f"PATH={':'.join([*sorted(folders), os.environ['PATH']])}",
            "PS1=laptop$ ",
        ]
        self.ui = Terminal(lab.client, "ui", ["env", *environment, "redirectctl", "tui"])
        self.shell = Terminal(lab.client, "shell", ["env", *environment, "sh"])
        self.ui.wait("No connections yet")
        self.shell.wait("laptop$")

    def open_ssh(self) -> None:
        """As far as the question, which both terminals show by themselves."""
        session = self.sshd.ssh("-t", f"PS1='{PROMPT}' sh")
        self.shell.type(f"redirect-run {shlex.join(session)}; echo status $?")
        self.ui.wait("○ short ━")  # for seconds only: before anything else is waited for
        self.shell.wait(f"\n{PROMPT.strip()}")
        picture = self.identity["picture"].splitlines()
        asked = self.ui.wait("First contact", self.identity["fingerprint"], "wanted by", "ssh -F", *picture)
        assert "Approve" in asked
        said = f"first contact with {self.server.host.address()}: "
        self.shell.wait(said, f"\nredirectctl: press Ctrl-] to see the key and to answer\n{PROMPT.strip()}")

    def open_question(self) -> None:
        """In the session's own terminal."""
        self.shell.press("C-]")
        self.shell.wait(ASKED, self.identity["fingerprint"], *self.identity["picture"].splitlines())
        self.shell.wait("redirectctl: approve, reject (for good), later")

    def says(self, word: str) -> None:
        """The session answers."""
        self.shell.type(f"echo {word}-$((6 * 7))")
        self.shell.wait(f"\n{word}-42")

    def close(self) -> None:
        for terminal in (self.ui, self.shell):
            terminal.close()


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab() as lab:
        yield lab
    assert lab.sandbox.left() == []


@pytest.fixture
def person(lab: Lab) -> Iterator[Person]:
    person = Person(lab)
    yield person
    person.close()


def test_from_first_contact_to_the_end(lab: Lab, person: Person) -> None:
    ui, shell = person.ui, person.shell
    person.open_ssh()
    person.open_question()
    ui.press("a", "Enter")
    ui.wait("● protected", "original", gone="First contact")
    shell.wait(PROMPT.strip(), gone=ASKED)  # the other question is over too, and the screen as it was
    person.says("approved")

    lab.client.move(lab.cafe, 20)
    ui.wait("● protected", "rewritten 1")
    person.says("moved")
    ui.press("3")
    ui.wait("moved to 198.51.100.20", "Programs saw nothing", "last ")
    ui.press("1")

    lab.client.leave()
    ui.wait("‖ suspended ")
    shell.wait_title(f"redirectctl: no path to {lab.server.address()} for ")
    shell.type("echo typed-in-the-outage-$((6 * 7))")
    lab.client.join(lab.home, 44)
    ui.wait("● protected", "rewritten 2")
    shell.wait("\ntyped-in-the-outage-42")
    shell.wait_title(" is back after ")
    ui.press("3")
    ui.wait("moved to 192.0.2.44")
    ui.press("1")

    person.client.stop()
    ui.wait("No answer from redirectd")
    person.says("without-a-daemon")
    person.client.start()
    ui.wait("redirectd is back")

    ui.press("Enter")
    ui.wait("socket       192.0.2.10:", "on the wire  192.0.2.44:", "Timeline")
    ui.press("Escape")
    ui.wait("HOST  ")  # a key that follows Escape at once is another key
    ui.press("4")
    ui.wait("192.0.2.44/24 on eth0", "UDP 7747", "doctor: ", "kernel.nftables")
    ui.press("2")
    ui.wait("● approved")
    ui.press("n")
    ui.wait("What to call this host")
    ui.press("attic", "Enter")
    ui.wait("renamed to attic", "▸attic ")
    assert person.client.ctl("peers")[0]["name"] == "attic"
    ui.press("1")
    ui.wait("▸attic", "ms")
    ui.press("k")
    ui.wait("closed on both hosts")
    ui.press("Right", "Enter")
    ui.wait("· closed")
    shell.wait("\nstatus 255", "laptop$")  # ssh's, and the shell has its terminal back
    ui.press("q")
    wait_until(ui.gone, PATIENCE, "the end of the UI", poll=0.1)


def test_the_question_is_answered_where_the_session_is(person: Person) -> None:
    person.open_ssh()
    person.shell.type("read -r word; echo got-$word")
    person.shell.type("yes")  # the question is there, and nobody has opened it
    person.shell.wait("\ngot-yes")
    assert "First contact" in person.ui.screen()
    assert [peer["state"] for peer in person.client.ctl("peers")] == ["pending"]
    person.open_question()
    person.shell.type("approve")
    person.ui.wait("is approved: decided", gone="First contact")  # for five seconds
    person.ui.wait("● protected")
    person.shell.wait(PROMPT.strip(), gone=ASKED)
    person.says("approved")

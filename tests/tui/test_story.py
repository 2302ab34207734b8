"""A person at a terminal (tmux), real daemons, real ssh: from first contact to the end of a connection."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator

import pytest

from redirectctl.lab.daemons import Daemon
from redirectctl.lab.namespaces import program
from redirectctl.lab.sshd import SshServer
from redirectctl.lab.streams import wait_until
from redirectctl.lab.topology import Host, Lab

PATIENCE = 60.0
CLIENT = '[trust]\nfirst_contact = "ask"\n[protect]\nlong_lived_after = "3s"\n'
SERVER = '[trust]\nfirst_contact = "accept-new"\n'

pytestmark = [
    pytest.mark.netns,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
    pytest.mark.skipif(shutil.which("tmux") is None, reason="not installed: tmux"),
    pytest.mark.skipif(not os.path.exists("/usr/sbin/sshd"), reason="not installed: /usr/sbin/sshd"),
]


class Terminal:
    """80x24, in a host's network namespace."""

    def __init__(self, host: Host, argv: list[str]) -> None:
        self._socket = str(host.sandbox.directory / "tmux")
        command = ["nsenter", f"--net=/run/netns/{host.full_name}", "env", "-u", "NO_COLOR", *argv]
        self._tmux("-f", "/dev/null", "new-session", "-d", "-s", "ui", "-x", "80", "-y", "24", *command)

    def press(self, *keys: str) -> None:
        self._tmux("send-keys", "-t", "ui", *keys)

    def wait(self, *texts: str) -> str:
        """Until all of them are in sight; the screen."""
        seen = ""

        def all_seen() -> bool:
            nonlocal seen
            seen = self._tmux("capture-pane", "-p", "-t", "ui")
            return all(text in seen for text in texts)

        try:
            wait_until(all_seen, PATIENCE, f"{texts} on the screen", poll=0.1)
        except Exception as error:
            raise AssertionError(f"{error}:\n{seen}") from error
        return seen

    def gone(self) -> bool:
        return (
            subprocess.run(["tmux", "-S", self._socket, "has-session"], capture_output=True, timeout=10).returncode != 0
        )

    def close(self) -> None:
        subprocess.run(["tmux", "-S", self._socket, "kill-server"], capture_output=True, timeout=10)

    def _tmux(self, *arguments: str) -> str:
        argv = ["tmux", "-S", self._socket, *arguments]
        return subprocess.run(argv, check=True, capture_output=True, text=True, timeout=10).stdout


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab() as lab:
        yield lab
    assert lab.sandbox.left() == []


def test_from_first_contact_to_the_end(lab: Lab):
    client, server = Daemon(lab.client, CLIENT), Daemon(lab.server, SERVER)
    for daemon in (client, server):
        daemon.start()
    sshd = SshServer(lab.server)
    terminal = Terminal(lab.client, [program("redirectctl"), "--socket", str(client.socket), "tui"])
    try:
        terminal.wait("No connections yet")
        nowhere = subprocess.DEVNULL
        ssh = lab.client.popen(
            [*client.opted_in(), *sshd.ssh("sleep", "1000")], stdin=nowhere, stdout=nowhere, stderr=nowhere
        )
        terminal.wait("○ short ━")
        # It comes up by itself, with the very fingerprint and picture that the other host shows.
        identity = server.ctl("identity")
        shown = terminal.wait("First contact", identity["fingerprint"], "sleep 1000", *identity["picture"].splitlines())
        assert "Approve" in shown
        terminal.press("a", "Enter")
        terminal.wait("● protected", "original")

        lab.client.move(lab.cafe, 20)
        terminal.wait("● protected", "rewritten 1")
        terminal.press("3")
        terminal.wait("moved to 198.51.100.20", "suspended", "Recovery", "last ")
        terminal.press("1")

        lab.client.leave()
        terminal.wait("‖ suspended 2s")
        lab.client.join(lab.home, 44)
        terminal.wait("● protected", "rewritten 2")

        client.stop()
        terminal.wait("No answer from redirectd")
        client.start()
        terminal.wait("redirectd is back")

        terminal.press("Enter")
        terminal.wait("socket       192.0.2.10:", "on the wire  192.0.2.44:", "Timeline")
        terminal.press("Escape")
        terminal.wait("HOST  ")  # a key that follows Escape at once is another key
        terminal.press("4")
        terminal.wait("192.0.2.44/24 on eth0", "UDP 7747", "doctor: ", "kernel.nftables")
        terminal.press("2")
        terminal.wait("● approved")
        terminal.press("n")
        terminal.wait("What to call this host")
        terminal.press("attic", "Enter")
        terminal.wait("renamed to attic", "▸attic ")
        assert client.ctl("peers")[0]["name"] == "attic"
        terminal.press("1")
        terminal.wait("▸attic", "ms")
        terminal.press("k")
        terminal.wait("closed on both hosts")
        terminal.press("Right", "Enter")
        terminal.wait("· closed")
        assert ssh.wait(PATIENCE) == 255
        terminal.press("q")
        wait_until(terminal.gone, PATIENCE, "the end of the UI", poll=0.1)
    finally:
        terminal.close()

"""What a person sees: a terminal of tmux's on a host of the lab."""

from __future__ import annotations

import shlex
import shutil
import subprocess
from collections.abc import Sequence

import pytest

from redirectctl.lab.streams import wait_until
from redirectctl.lab.topology import Host

PATIENCE = 60.0  # seconds


class Screen:
    """A shell with the prompt `$ ` in a terminal of tmux's; close() it."""

    def __init__(self, host: Host, *, columns: int = 80, rows: int = 24) -> None:
        if shutil.which("tmux") is None:
            pytest.skip("not installed: tmux")
        self._socket = host.sandbox.directory / "tmux"
        shell = ["env", "-u", "TMUX", "PS1=$ ", "HISTFILE=", "bash", "--norc", "--noprofile"]
        size = ["-x", str(columns), "-y", str(rows)]
        self._tmux("-f", "/dev/null", "new-session", "-d", "-s", "s", *size, *host.inside(shell))
        self.wait("$ ")

    def run(self, argv: Sequence[object]) -> None:
        """Type a command."""
        self.type(shlex.join(map(str, argv)))
        self.press("Enter")

    def type(self, text: str) -> None:
        """As it is."""
        self._tmux("send-keys", "-t", "s", "-l", text)

    def press(self, *keys: str) -> None:
        """By tmux's names: Enter, C-c."""
        self._tmux("send-keys", "-t", "s", *keys)

    def text(self) -> str:
        """All lines, also those that have left the screen; long ones whole, without colours."""
        return self._tmux("capture-pane", "-p", "-J", "-S", "-", "-t", "s")

    def title(self) -> str:
        """Of the terminal."""
        return self._tmux("display", "-p", "-t", "s", "#{pane_title}").strip()

    def wait(self, text: str) -> None:
        """Until it is shown."""
        wait_until(lambda: text in self.text(), PATIENCE, f"{text!r} on the screen", poll=0.1)

    def wait_title(self, text: str) -> None:
        """Until the title has it."""
        wait_until(lambda: text in self.title(), PATIENCE, f"{text!r} in the title", poll=0.1)

    def close(self) -> None:
        """End everything in it."""
        subprocess.run(["tmux", "-S", self._socket, "kill-server"], capture_output=True, timeout=30, check=False)

    def _tmux(self, *arguments: str) -> str:
        argv = ["tmux", "-S", self._socket, *arguments]
        return subprocess.run(argv, check=True, capture_output=True, text=True, timeout=30).stdout

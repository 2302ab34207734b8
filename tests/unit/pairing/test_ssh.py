"""What is left of a pairing's ssh when somebody ends the pairing: nothing that reads the terminal, and no file."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from redirectctl.lab.streams import wait_until

# As ssh at its question for a password: it looks at neither of its pipes.
WAITING = """#!/bin/sh
echo $$ > "$PID_FILE.new" && mv "$PID_FILE.new" "$PID_FILE"
exec sleep 600
"""
PAIRING = """
from redirectctl.cli.pair import ended_by_signals
from redirectctl.pairing import exchange, ssh
settings = ssh.Settings("server", "root", False, None, True)
with ended_by_signals(), ssh.Ssh("server", (), ("true",), settings) as link:
    link.channel.receive(exchange.Open, 150)
"""


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_who_ends_the_pairing_ends_its_ssh(tmp_path: Path, signum: signal.Signals) -> None:
    (tmp_path / "ssh").write_text(WAITING)
    (tmp_path / "ssh").chmod(0o755)
    (tmp_path / "files").mkdir()
    noted = tmp_path / "pid"
    env = os.environ | {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "PID_FILE": str(noted),
        "TMPDIR": str(tmp_path / "files"),
    }
    with subprocess.Popen([sys.executable, "-c", PAIRING], env=env, stderr=subprocess.DEVNULL) as pairing:
        wait_until(noted.exists, 60, "ssh is begun")
        ssh = int(noted.read_text())
        pairing.send_signal(signum)
        try:
            assert pairing.wait(60) != 0
            with pytest.raises(ProcessLookupError):
                os.kill(ssh, 0)
            assert list((tmp_path / "files").iterdir()) == []
        finally:
            with suppress(ProcessLookupError):
                os.kill(ssh, signal.SIGKILL)

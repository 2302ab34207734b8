"""Programs of a user without rights, for `python -c`."""

from __future__ import annotations

import subprocess
import sys

from daemon_pair import PATIENCE

from redirectctl.lab.streams import wait_until
from redirectctl.lab.topology import Host

NOBODY = 65534
ECHO_PORT = 9000
AS_NOBODY = f"""
import os, socket, sys, time
os.setgroups([]); os.setgid({NOBODY}); os.setuid({NOBODY})
"""
# A connection to the daemon whose socket is the first argument.
TALK = """
s = socket.socket(socket.AF_UNIX)
s.connect(sys.argv[1])
lines = s.makefile()
"""


def start_echo(host: Host) -> subprocess.Popen[str]:
    """On ECHO_PORT, for whatever connects to it."""
    echo = host.popen([sys.executable, "-m", "redirectctl.lab.traffic", "echo", "--listen", str(ECHO_PORT)])
    wait_listening(host)
    return echo


def wait_listening(host: Host) -> None:
    """Until somebody listens on ECHO_PORT."""
    listed = ["ss", "-tlnH", f"sport = :{ECHO_PORT}"]
    wait_until(lambda: host.run(listed).stdout, PATIENCE, f"a listener on {host.name}", poll=0.1)

"""What peers claim makes the daemon look through all processes for the programs: seldom, however often they do."""

from __future__ import annotations

import sys
import time

from daemon_pair import FAST, PATIENCE, Pair

from redirectctl.lab.daemons import Daemon
from redirectctl.lab.streams import start_idle, wait_until
from redirectctl.lab.topology import Lab

CLAIMS = 12
WALK = 0.3  # seconds that each look takes here: a host with many processes
PART = 20  # a twentieth of the time
# Looks are slow, and noted in a file.
WALKS = f"""
import sys, time
from redirectctl.kernel.processes import procfs
owners, file = procfs.owners, sys.argv.pop(1)
def slow(*arguments, **more):
    with open(file, "a") as log:
        log.write("walk\\n")
    time.sleep({WALK})
    return owners(*arguments, **more)
procfs.owners = slow
from redirectctl.redirectd import main
sys.exit(main())
"""


def test_processes_are_looked_through_for_a_part_of_the_time(lab: Lab) -> None:
    walks = lab.sandbox.directory / "walks"
    server = Daemon(lab.server, FAST, command=[sys.executable, "-c", WALKS, str(walks)])
    pair = Pair(lab, daemons=(Daemon(lab.client, FAST), server))
    began = time.monotonic()
    idle = [start_idle(lab.server, lab.client, 1, wrap=pair.wrap) for _ in range(CLAIMS)]
    pair.wait_protected(CLAIMS)
    took = time.monotonic() - began
    assert 0 < len(walks.read_text().splitlines()) <= 1 + took / (WALK * PART)

    def named() -> bool:
        return all(c["pid"] is not None for c in server.ctl("connections") if c["state"] == "protected")

    wait_until(named, PATIENCE, "all programs are found in the end", poll=0.5)
    for each in idle:
        each.stop()

"""A part of the daemon fails as no test of it has foreseen: what connections need is done a moment later."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest
from daemon_pair import FAST, PATIENCE, Pair

from redirectctl.lab.daemons import Daemon
from redirectctl.lab.streams import start_idle, start_ticker, wait_until
from redirectctl.lab.topology import Host, Lab

# Calls of a function fail, so many times from the moment that a file is there.
FAULTY = """
import importlib, os, sys
from pathlib import Path
from redirectctl.redirectd import main

def fail(where, what, times):
    module, name = where.rsplit(".", 1)
    owner = getattr(importlib.import_module(module), name)
    real, begun, done = getattr(owner, what), Path(os.environ["FAULT_FILE"]), Path(os.environ["FAULT_FILE"] + ".done")
    def wrapped(*given, **named):
        nonlocal times
        if times and begun.exists():
            times -= 1
            if not times:
                done.touch()
            raise OSError(5, "as the test wants it")
        return real(*given, **named)
    setattr(owner, what, wrapped)

where, what, times = os.environ["FAULT"].split()
fail(where, what, int(times))
sys.exit(main())
"""


class Faulty:
    """A daemon one of whose functions fails."""

    def __init__(self, host: Host, fault: str) -> None:
        self._file = host.sandbox.directory / f"fault-{host.name}"
        command = ["env", f"FAULT={fault}", f"FAULT_FILE={self._file}", sys.executable, "-c", FAULTY]
        self.daemon = Daemon(host, FAST, command=command)

    def begin(self) -> None:
        self._file.touch()

    @property
    def over(self) -> bool:
        return Path(f"{self._file}.done").exists()


FAULTS = [
    "redirectctl.kernel.tunnel.carrier.Carrier carry 3",
    "redirectctl.daemon.rewriting.Rewriting apply 3",
    "redirectctl.kernel.sockets.diag.SockDiag records 3",
    "redirectctl.daemon.network.NetworkView _look 2",
    "redirectctl.daemon.stalls.StallWatch stalled 2",
    "redirectctl.daemon.finder.Finder _look 2",
    "redirectctl.kernel.tcp.suspend.Suspender tend 1",
    "redirectctl.daemon.repair.Repairs _look 2",
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.split(".")[-1].replace(" ", "-"))
def test_it_goes_on_after(lab: Lab, fault: str) -> None:
    faulty = [Faulty(host, fault) for host in (lab.client, lab.server)]
    pair = Pair(lab, daemons=(faulty[0].daemon, faulty[1].daemon))
    ticker = start_ticker(lab.server, lab.client, wrap=pair.wrap)
    idle = start_idle(lab.server, lab.client, 2, wrap=pair.wrap)
    pair.wait_protected(3)
    for each in faulty:
        each.begin()
    lab.client.leave()
    time.sleep(2.0)  # long enough to be suspended
    link = lab.client.join(lab.cafe, 20)
    ticker.wait_both(link.usable_at, PATIENCE)
    link = lab.server.move(lab.dc2, 21)
    ticker.wait_both(link.usable_at, PATIENCE)
    assert idle.ask(PATIENCE) == {}
    wait_until(lambda: any(each.over for each in faulty), PATIENCE, "it has failed", poll=0.2)
    for daemon in pair.daemons:
        wait_until(lambda d=daemon: d.doctor() == {}, PATIENCE, f"well again: {daemon.doctor()}", poll=1.0)
    verdict = ticker.stop()
    assert verdict.ok, verdict
    idle.stop()
    pair.stop_without_a_trace()

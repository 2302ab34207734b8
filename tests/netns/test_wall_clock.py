"""Somebody sets the clock, or it was never set: nothing is given up or forgotten because of that."""

from __future__ import annotations

import time

import pytest
from daemon_pair import FAST, PATIENCE, Pair

from redirectctl.lab.daemons import Daemon
from redirectctl.lab.streams import start_idle, start_ticker
from redirectctl.lab.topology import Lab
from tests.netns.clocks import Clock

DAY = 86400.0
AWHILE = 3.0  # seconds without a path


@pytest.mark.parametrize("off", [20 * DAY, -20 * DAY])
@pytest.mark.parametrize("when", ["while it runs", "while it is stopped"])
def test_a_connection_that_waits_for_a_path_goes_on(lab: Lab, off: float, when: str) -> None:
    clocks = [Clock(lab.client), Clock(lab.server)]
    pair = Pair(lab, daemons=(clocks[0].daemon(FAST), clocks[1].daemon(FAST)))
    ticker = start_ticker(lab.server, lab.client, wrap=pair.wrap)
    pair.wait_protected(1)
    lab.client.leave()
    for daemon in pair.daemons:
        daemon.wait_connections("suspended", timeout=PATIENCE)
    time.sleep(AWHILE)
    for clock, daemon in zip(clocks, pair.daemons, strict=True):
        if when == "while it runs":
            clock.set(off)
        daemon.stop()
        clock.set(off)
        daemon.start()
    for daemon in pair.daemons:
        (connection,) = daemon.wait_connections("suspended", timeout=PATIENCE)
        assert AWHILE <= connection["suspended_for"] < DAY
        assert connection["age"] < DAY
    link = lab.client.join(lab.cafe, 20)
    ticker.wait_both(link.usable_at, PATIENCE)
    pair.end(ticker)


def test_decisions_about_keys_stay(lab: Lab) -> None:
    """Two years ahead, at two starts: the approved peer moves as before, the rejected one is refused as before."""
    clock = Clock(lab.server)
    pair = Pair(lab, daemons=(Daemon(lab.client, FAST), clock.daemon(FAST)))
    lab.stranger.join(lab.office, 40)
    other = Daemon(lab.stranger, FAST)
    other.start()
    idle = start_idle(lab.server, lab.client, 1, wrap=pair.wrap)
    pair.wait_protected(1)
    rejected = other.ctl("identity")["fingerprint"]
    started = start_idle(lab.server, lab.stranger, 1, wrap=other.opted_in())
    other.wait_connections("protected", timeout=PATIENCE)
    pair.server.ctl("reject", rejected)
    idle.stop()
    started.stop()
    for off in (730 * DAY, 1460 * DAY):
        pair.server.stop()
        clock.set(off)
        pair.server.start()
        known = {peer["fingerprint"]: peer["state"] for peer in pair.server.ctl("peers")}
        assert known == {pair.client.ctl("identity")["fingerprint"]: "approved", rejected: "rejected"}

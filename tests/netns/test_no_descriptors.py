"""The daemon can open nothing for a while: connections move all the same, and every part of it goes on afterwards."""

from __future__ import annotations

import time

import pytest
from daemon_pair import FAST, PATIENCE, Pair

from redirectctl.lab.namespaces import program
from redirectctl.lab.streams import start_idle, start_ticker, wait_until
from redirectctl.lab.topology import Lab
from tests.netns.scarce import Descriptors

COUNT = 3
PORT = 5001
TIMED_OUT = 124  # timeout(1)
AWHILE = 4.0  # seconds: each loop comes to its turn


@pytest.mark.parametrize("version", [4, 6])
def test_moves_go_on_without_descriptors_and_all_parts_go_on_after(lab: Lab, version: int) -> None:
    pair = Pair(lab, FAST + f"ports = [{PORT}]\n")
    ticker = start_ticker(lab.server, lab.client, version=version, wrap=pair.wrap)
    idle = start_idle(lab.server, lab.client, COUNT, version=version, wrap=pair.wrap)
    pair.wait_protected(COUNT + 1)
    descriptors = [Descriptors(daemon) for daemon in pair.daemons]
    for each in descriptors:
        each.deny()
    for host, network, number in ((lab.client, lab.cafe, 20), (lab.server, lab.dc2, 21), (lab.client, lab.office, 22)):
        link = host.move(network, number)
        ticker.wait_both(link.usable_at, PATIENCE)
        assert idle.ask(PATIENCE) == {}
    for each in descriptors:
        each.deny()  # those too that the moves have given back
    argv = ["timeout", "3", program("redirectctl"), "--socket", str(pair.client.socket), "status"]
    assert lab.client.run(argv, check=False).returncode == TIMED_OUT  # there are none left indeed
    # A whole outage, found out by both ends for themselves.
    lab.client.links[-1].network.cut()
    time.sleep(AWHILE)
    restored = time.monotonic()
    lab.client.links[-1].network.restore()
    ticker.wait_both(restored, PATIENCE)
    later = start_idle(lab.server, lab.client, 1, version=version, port=PORT)
    time.sleep(AWHILE)

    for each in descriptors:
        each.allow()
    for daemon in pair.daemons:
        wait_until(lambda d=daemon: d.doctor() == {}, PATIENCE, f"{daemon.doctor()}", poll=1.0)
    fresh = start_idle(lab.server, lab.client, 1, version=version, wrap=pair.wrap)
    pair.wait_protected(COUNT + 3)
    since = time.time()
    link = lab.client.move(lab.cafe, 23)
    ticker.wait_both(link.usable_at, PATIENCE)
    for each in (idle, fresh, later):
        assert each.ask(PATIENCE) == {}
    assert pair.wait_moved(pair.client, since)
    assert len([c for c in pair.client.ctl("connections") if c["pid"] is not None]) >= COUNT + 2
    verdict = ticker.stop()
    assert verdict.ok, verdict
    for each in (idle, fresh, later):
        each.stop()
    pair.stop_without_a_trace()

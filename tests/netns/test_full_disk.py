"""The disk that the state is on is full: connections move all the same, and what was not stored is stored later."""

from __future__ import annotations

import time

import pytest
from daemon_pair import PATIENCE

from redirectctl.lab.streams import start_idle, start_ticker
from redirectctl.lab.topology import Lab
from tests.netns.scarce import SmallDisks

COUNT = 3


@pytest.mark.parametrize("version", [4, 6])
def test_moves_go_on_while_the_disk_is_full_and_after(lab: Lab, version: int) -> None:
    pair = SmallDisks(lab)
    ticker = start_ticker(lab.server, lab.client, version=version, wrap=pair.wrap)
    idle = start_idle(lab.server, lab.client, COUNT, version=version, wrap=pair.wrap)
    pair.wait_protected(COUNT + 1)
    full = time.time()
    for disk in pair.disks:
        disk.fill()
    for host, network, number in ((lab.client, lab.cafe, 20), (lab.server, lab.dc2, 21), (lab.client, lab.office, 22)):
        link = host.move(network, number)
        ticker.wait_both(link.usable_at, PATIENCE)
        assert idle.ask(PATIENCE) == {}
    later = start_idle(lab.server, lab.client, 1, version=version, wrap=pair.wrap)  # taken on meanwhile
    pair.wait_protected(COUNT + 2)
    for daemon in pair.daemons:
        assert "daemon.state" in daemon.doctor()
        assert len(daemon.events("store.failed", since=full)) == 1

    for disk in pair.disks:
        disk.clear()
    for daemon in pair.daemons:
        daemon.wait_event("store.restored", since=full, timeout=PATIENCE)
        assert "daemon.state" not in daemon.doctor()
    for end, stop in (("stop", (lab.cafe, 23)), ("kill", (lab.home, 24))):
        for daemon in pair.daemons:
            getattr(daemon, end)()
        pair.start()
        ticker.wait_both(time.monotonic(), PATIENCE)
        link = lab.client.move(*stop)
        ticker.wait_both(link.usable_at, PATIENCE)
        assert idle.ask(PATIENCE) == {}
        assert later.ask(PATIENCE) == {}
    verdict = ticker.stop()
    assert verdict.ok, verdict
    idle.stop()
    later.stop()
    pair.stop_without_a_trace()


def test_killed_while_the_disk_is_full(lab: Lab) -> None:
    """What the store has is older than what the kernel and the other host have: the next move is like any other."""
    pair = SmallDisks(lab)
    ticker = start_ticker(lab.server, lab.client, wrap=pair.wrap)
    pair.wait_protected(1)
    for disk in pair.disks:
        disk.fill()
    link = lab.client.move(lab.cafe, 20)
    ticker.wait_both(link.usable_at, PATIENCE)
    pair.kill()
    for disk in pair.disks:
        disk.clear()
    pair.start()
    ticker.wait_both(time.monotonic(), PATIENCE)
    link = lab.client.move(lab.office, 21)
    ticker.wait_both(link.usable_at, PATIENCE)
    pair.end(ticker)


def test_a_disk_that_works_is_not_spoken_of(lab: Lab) -> None:
    """The same with room: each move is in the store before the next begins, and nothing is said."""
    pair = SmallDisks(lab)
    ticker = start_ticker(lab.server, lab.client, wrap=pair.wrap)
    pair.wait_protected(1)
    for network, number in ((lab.cafe, 20), (lab.office, 21)):
        link = lab.client.move(network, number)
        ticker.wait_both(link.usable_at, PATIENCE)
        pair.wait_moved(pair.client, 0.0, 1)
        for disk in pair.disks:
            assert disk.stored("SELECT wire_local || wire_remote FROM connections").count(str(link.addresses.v4)) == 1
    for daemon in pair.daemons:
        assert not [event for event in daemon.events() if event["event"].startswith("store.")]
        assert {"daemon", "daemon.state"}.isdisjoint(daemon.doctor())
    pair.end(ticker)

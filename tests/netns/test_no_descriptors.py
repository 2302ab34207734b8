"""The daemon can open nothing for a while: connections move all the same, and every part of it goes on afterwards."""

from __future__ import annotations

import sys
import time

import pytest
from daemon_pair import FAST, PATIENCE, Pair

from redirectctl.lab.daemons import Daemon
from redirectctl.lab.namespaces import program
from redirectctl.lab.streams import start_idle, start_ticker, wait_until
from redirectctl.lab.topology import Lab
from tests.netns.scarce import Descriptors

COUNT = 3
PORT = 5001
TIMED_OUT = 124  # timeout(1)
AWHILE = 4.0  # seconds: each loop comes to its turn
# Its tunnel takes nothing on while there is a file.
REFUSES = """
import errno, os, sys
from redirectctl.kernel.tunnel.carrier import Carrier
carry = Carrier.carry
def refuse(self, carried, routes=None):
    if os.path.exists(os.environ["NONE_LEFT"]):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
    carry(self, carried, routes)
Carrier.carry = refuse
from redirectctl.redirectd import main
sys.exit(main())
"""


@pytest.mark.parametrize("version", [4, 6])
def test_moves_go_on_without_descriptors_and_all_parts_go_on_after(lab: Lab, version: int) -> None:
    pair = Pair(lab, FAST + f"ports = [{PORT}]\n")
    ticker = start_ticker(lab.server, lab.client, version=version, wrap=pair.wrap)
    idle = start_idle(lab.server, lab.client, COUNT, version=version, wrap=pair.wrap)
    pair.wait_protected(COUNT + 1)
    descriptors = [Descriptors(daemon) for daemon in pair.daemons]
    for host, network, number in ((lab.client, lab.cafe, 20), (lab.server, lab.dc2, 21), (lab.client, lab.office, 22)):
        for each in descriptors:
            each.deny()  # what the daemon has closed since may not be opened again
        link = host.move(network, number)
        ticker.wait_both(link.usable_at, PATIENCE)
        assert idle.ask(PATIENCE) == {}
    for each in descriptors:
        each.deny()
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


def test_what_the_tunnel_does_not_take_on_is_not_led_into_it(lab: Lab) -> None:
    """It would be a black hole; so the move has failed, and is tried again."""
    none_left = lab.sandbox.directory / "none-left"
    server = Daemon(lab.server, FAST, command=["env", f"NONE_LEFT={none_left}", sys.executable, "-c", REFUSES])
    pair = Pair(lab, daemons=(Daemon(lab.client, FAST), server))
    ticker = start_ticker(lab.server, lab.client, wrap=pair.wrap)
    pair.wait_protected(1)
    none_left.touch()
    since = time.time()
    lab.client.move(lab.cafe, 20)
    pair.client.wait_event("redirect.refused", since=since, timeout=PATIENCE, reason="failed-there")
    assert {c["path"] for c in server.ctl("connections")} == {"original"}
    none_left.unlink()
    ticker.wait_both(time.monotonic(), PATIENCE)
    assert pair.wait_moved(pair.client, since)
    verdict = ticker.stop()
    assert verdict.ok, verdict

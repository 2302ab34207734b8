"""A host comes back to an address where its connections have been before: packets are plain again, soon."""

from __future__ import annotations

import time

from daemon_pair import FAST, PATIENCE, Pair

from redirectctl.lab.streams import start_idle, start_ticker, wait_until
from redirectctl.lab.topology import FIRST_HOST, Lab

CONFIG = FAST + "ports = [5001, 5002]\n"
SOON = 30.0  # seconds on a machine that has much else to do; what failed for good was left alone for a minute at least
CLOSED = 75.0  # seconds: four times in vain, and the next is more than SOON away
STALLED = 3.0  # seconds: longer than the host that stays needs to see that nothing is acknowledged


def wait_plain(pair: Pair, path: str) -> None:
    for daemon in pair.daemons:
        wait_until(lambda d=daemon: {c["path"] for c in d.ctl("connections")} == {path}, SOON,
                   f"{path} on {daemon.host.name}", poll=0.1)  # fmt: skip


def test_outages_are_no_fault_of_the_way_that_packets_took_before(lab: Lab) -> None:
    """The host that stays sees its packets get lost where they went plainly, and may not hold that against the way."""
    pair = Pair(lab, CONFIG, CONFIG)
    ticker = start_ticker(lab.server, lab.client, port=5001, interval=0.05)
    pair.wait_protected(1)
    for _ in range(3):
        for network, number, path in ((lab.cafe, FIRST_HOST + 1, "rewritten"), (lab.home, FIRST_HOST, "original")):
            began = time.time()
            lab.client.leave()
            time.sleep(STALLED)
            lab.client.join(network, number)
            pair.wait_moved(pair.client, began)
            wait_plain(pair, path)
    pair.end(ticker)


def test_a_way_that_opens_is_found_when_it_is_used_again(lab: Lab) -> None:
    """Where options are stripped, a token is never seen.  A connection without traffic is the hard case."""
    pair = Pair(lab, CONFIG, CONFIG)
    idle = start_idle(lab.server, lab.client, 1, port=5002)
    pair.wait_protected(1)
    lab.cafe.strip_options()
    lab.client.move(lab.cafe, FIRST_HOST + 1)
    pair.wait_moved(pair.client, 0.0)
    time.sleep(CLOSED)
    assert {c["path"] for d in pair.daemons for c in d.ctl("connections")} == {"tunnel"}
    lab.cafe.strips_options = False
    lab.filter()
    assert idle.ask(PATIENCE) == {}
    wait_plain(pair, "rewritten")
    idle.stop()
    pair.stop_without_a_trace()

"""A firewall on the way that makes sequence numbers random: a SYN proxy, or one that hides its hosts' own choice.

::

    client ── home ── firewall ── router ── dc1 ── server        client and server with redirectd
       └───── cafe ─────────────────┘

What either end's socket knows of a connection's numbers is good only on the far side of that firewall.
"""

from __future__ import annotations

import time

import pytest
from daemon_pair import FAST, PATIENCE, Pair

from redirectctl.lab.renumbering import Renumbering
from redirectctl.lab.streams import start_bulk, start_ticker, wait_until
from redirectctl.lab.topology import Lab
from tests.netns.test_uplinks import echoes

both_families = pytest.mark.parametrize("version", [4, 6])
CHANGED = "sequence-numbers-changed"


@both_families
def test_what_it_has_seen_begin_is_refused_and_no_worse_off(lab: Lab, version: int) -> None:
    Renumbering(lab.home)
    pair = Pair(lab, FAST, FAST)
    wrapped = start_ticker(lab.server, lab.client, version=version, wrap=pair.wrap, interval=0.05)
    plain = start_ticker(lab.server, lab.client, version=version, interval=0.05)
    refused = pair.client.wait_event("connection.refused", timeout=PATIENCE)
    assert (refused["local"], refused["reason"]) == (wrapped.local, CHANGED)
    for ticker in (wrapped, plain):
        ticker.wait_both(time.monotonic(), PATIENCE)
    lab.home.cut()
    time.sleep(3.0)
    restored = time.monotonic()
    lab.home.restore()
    for ticker in (wrapped, plain):
        ticker.wait_both(restored, PATIENCE)
    peer = pair.server.ctl("identity")["fingerprint"]
    (check,) = [c for c in pair.client.ctl("doctor", peer) if c["name"] == "peer.connections"]
    assert "changes sequence numbers" in check["found"]
    # Nothing can help it where no such firewall is; what begins there is protected.
    lab.client.move(lab.cafe, 20)
    other = start_ticker(lab.server, lab.client, version=version, wrap=pair.wrap, interval=0.05)
    pair.wait_protected(1)
    moved = time.monotonic()
    assert not echoes(wrapped, moved, 3.0)
    assert not echoes(plain, moved, 3.0)
    since = time.time()
    lab.client.move(lab.office, 21)
    pair.wait_moved(pair.client, since)
    other.wait_both(time.monotonic(), PATIENCE)
    assert other.stop().ok


@both_families
@pytest.mark.parametrize("loose", [False, True], ids=["leaves the rest alone", "changes the rest too"])
def test_a_connection_moves_behind_it(lab: Lab, version: int, loose: bool) -> None:
    """It has not seen that begin: it leaves it alone, and plain packets get through; or it changes its numbers too."""
    Renumbering(lab.cafe, loose=loose)
    pair = Pair(lab, FAST, FAST)
    ticker = start_ticker(lab.server, lab.client, version=version, wrap=pair.wrap, interval=0.05)
    bulk = start_bulk(lab.server, lab.client, version=version, wrap=pair.wrap, pace=1_000_000)
    plain = start_ticker(lab.server, lab.client, version=version, interval=0.05)
    pair.wait_protected(2)
    since = time.time()
    lab.client.move(lab.cafe, 20)
    pair.wait_moved(pair.client, since)
    arrived = time.monotonic()
    ticker.wait_both(arrived, PATIENCE)
    assert not echoes(plain, arrived, 3.0)
    wanted = "tunnel" if loose else "rewritten"

    def all_go_by(path: str) -> bool:
        return all(c["path"] == path for daemon in pair.daemons for c in daemon.ctl("connections")
                   if c["state"] == "protected")  # fmt: skip

    wait_until(lambda: all_go_by(wanted), PATIENCE, wanted, poll=0.2)
    settled = time.time()
    for _ in range(20):  # not only at first
        ticker.wait_both(time.monotonic(), PATIENCE)
        before = bulk.received()
        wait_until(lambda before=before: bulk.received() > before, PATIENCE, "more data")
        time.sleep(0.5)
    assert not pair.client.events("connection.suspended", since=settled)
    back = time.time()
    lab.client.move(lab.home, 10)
    pair.wait_moved(pair.client, back)
    ticker.wait_both(time.monotonic(), PATIENCE)
    for stream in (ticker, bulk):
        verdict = stream.stop()
        assert verdict.ok, verdict.why
    pair.stop_without_a_trace()

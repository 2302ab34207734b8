"""A smaller path MTU after a move: no black hole.

client ── home, café ── router ── dc1 ── server          the router's way into the café takes 1,300 bytes only
"""

from __future__ import annotations

import pytest
from daemon_pair import FAST, PATIENCE

from redirectctl.lab.daemons import Daemon
from redirectctl.lab.streams import start_bulk, wait_until
from redirectctl.lab.topology import Lab

CONFIG = FAST + "ports = [5001]\n"


@pytest.mark.parametrize("version", [4, 6])
def test_bulk_goes_on_when_the_new_path_takes_smaller_packets_only(lab: Lab, version: int) -> None:
    lab.router.ip(f"link set {lab.cafe.bridge} mtu 1300")
    bulk = start_bulk(lab.client, lab.server, version=version, port=5001)
    daemons = [Daemon(host, CONFIG) for host in (lab.client, lab.server)]
    for daemon in daemons:
        daemon.start()
    daemons[1].wait_connections("protected", 1, timeout=PATIENCE)
    lab.client.move(lab.cafe, 11)
    daemons[1].wait_event("move.received", address=str(lab.client.address(version)), timeout=PATIENCE)
    before = bulk.received()
    wait_until(lambda: bulk.received() > before + 20_000_000, PATIENCE, "20 MB through the smaller path")
    verdict = bulk.stop()
    assert verdict.ok, verdict.why

"""Both hosts have a bridge for containers, with the same address: what the peer says it has may be ours.

::

    client (home) ── router ── server (dc1)        each with redirectd
      docker0                    docker0           172.17.0.1/16 on both
"""

from __future__ import annotations

import time

import pytest
from daemon_pair import FAST, PATIENCE, Pair

from redirectctl.lab.streams import start_ticker
from redirectctl.lab.topology import Host, Lab

BRIDGE = "172.17.0.1"


def add_bridge(host: Host, *, used: bool) -> None:
    """As docker makes it; ``used``: a container is on it, else it has no carrier."""
    host.ip(
        "link add docker0 type bridge",
        f"address add {BRIDGE}/16 dev docker0",
        "link add container0 type veth peer name inside0",
        "link set container0 master docker0 up",
        "link set docker0 up",
        *(["link set inside0 up"] if used else []),
    )


@pytest.mark.parametrize("used", [True, False], ids=["with a container", "without"])
def test_no_path_is_seen_at_once(lab: Lab, used: bool) -> None:
    """The client leaves its network: nothing is left but an address that the server has too."""
    add_bridge(lab.client, used=used)
    add_bridge(lab.server, used=True)
    pair = Pair(lab, FAST, FAST)
    ticker = start_ticker(lab.server, lab.client, wrap=pair.wrap)
    pair.wait_protected(1)
    since = time.time()
    lab.client.leave()
    lost = pair.client.wait_event("connection.suspended", since=since, timeout=PATIENCE)
    assert lost["reason"] == "no-path"
    lab.client.join(lab.cafe, 20)
    pair.wait_moved(pair.client, since)
    assert ticker.stop().ok
    refused = [e for d in pair.daemons for e in d.events("packet.refused", since=since)]
    assert [e for e in refused if e.get("address") == BRIDGE] == []

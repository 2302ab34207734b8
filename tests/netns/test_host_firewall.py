"""Hosts that let nothing in but what conntrack calls established, and filter by reverse path strictly.

client ── home, café ── router ── dc1, dc2 ── server
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
from daemon_pair import FAST, PATIENCE

from redirectctl.lab.daemons import Daemon
from redirectctl.lab.streams import start_idle, start_ticker
from redirectctl.lab.topology import Host, Lab

CONFIG = FAST + "ports = [5001]\n"

FIREWALL = """
table inet host {
    chain input {
        type filter hook input priority 0; policy drop;
        ct state invalid counter drop
        ct state established,related accept
        iifname lo accept
        udp dport 7747 accept
        icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert, nd-router-advert } accept
        %s
    }
    chain output {
        type filter hook output priority 0; policy accept;
        ct state invalid counter drop
    }
}
"""


def close(host: Host, extra: str = "") -> None:
    host.run(["nft", "-f", "-"], stdin=FIREWALL % extra)


def closed(make_lab: Callable[..., Lab]) -> tuple[Lab, Daemon, Daemon]:
    """Both hosts are, and their daemons run."""
    lab = make_lab(rp_filter=1)
    close(lab.client)
    close(lab.server, "tcp dport 5001 ct state new accept")
    client, server = (Daemon(host, CONFIG) for host in (lab.client, lab.server))
    client.start()
    server.start()
    return lab, client, server


def invalid(host: Host) -> int:
    """How many packets it has dropped that are of no connection, as conntrack sees it."""
    lines = host.run(["nft", "list", "table", "inet", "host"]).stdout.splitlines()
    return sum(int(line.split()[5]) for line in lines if "ct state invalid" in line)


@pytest.mark.parametrize("version", [4, 6])
def test_connections_move_between_closed_hosts(make_lab: Callable[..., Lab], version: int) -> None:
    lab, client, server = closed(make_lab)
    ticker = start_ticker(lab.server, lab.client, version=version, port=5001, interval=0.02)
    client.wait_connections("protected", 1, timeout=PATIENCE)
    for host, network, number in ((lab.client, lab.cafe, 11), (lab.server, lab.dc2, 12), (lab.client, lab.home, 10)):
        host.leave()
        (client if host is lab.client else server).wait_connections("suspended", 1, timeout=PATIENCE)
        link = host.join(network, number)
        ticker.wait_both(link.usable_at, PATIENCE)
        client.wait_connections("protected", 1, timeout=PATIENCE)
        server.wait_connections("protected", 1, timeout=PATIENCE)
    verdict = ticker.stop()
    assert verdict.ok, verdict.why


@pytest.mark.parametrize("version", [4, 6])
def test_a_connection_that_says_nothing_is_protected_behind_a_firewall(
    make_lab: Callable[..., Lab], version: int
) -> None:
    """Its socket has to be asked: what we put in for that is of no connection that conntrack knows."""
    lab, client, server = closed(make_lab)
    idle = start_idle(lab.server, lab.client, 1, version=version, port=5001)
    for daemon in (client, server):
        daemon.wait_connections("protected", 1, timeout=PATIENCE)
    assert [event["reason"] for event in client.events("connection.refused")] == []
    lab.client.move(lab.cafe, 11)
    assert idle.ask(PATIENCE) == {}
    assert (invalid(lab.client), invalid(lab.server)) == (0, 0)
    idle.stop()

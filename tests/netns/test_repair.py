"""Others take out of the kernel what moved connections need: it is put back while they go on."""

from __future__ import annotations

import time
from typing import NamedTuple

import pytest

from redirectctl.kernel.constants import FALLBACK_TABLE, ROUTE_TABLE, TUN_DEVICE, TUNNEL_TABLE
from redirectctl.lab.daemons import Daemon
from redirectctl.lab.streams import Ticker, start_ticker, wait_until
from redirectctl.lab.topology import Lab
from tests.netns.daemon_pair import FAST, PATIENCE, Pair
from tests.netns.test_restart import ways

# `ip rule flush` takes the system's own rules too.  Whoever does it has others to put in their place.
DEFAULTS = "ip {0} rule add priority 32766 table main; ip {0} rule add priority 32767 table default; true"
TUNNEL = FAST + '[path]\nprefer = "tunnel"\n'


class Damage(NamedTuple):
    """A command, and as what it is repaired; "" if it took nothing out there."""

    command: str
    moved: str  # on the host that has moved
    stationary: str  # on its peer, without the tunnel
    tunnelled: str  # on its peer, in the tunnel


DAMAGE = (
    Damage("nft flush ruleset", "nft-table", "nft-table", "nft-table"),
    Damage("nft delete table inet redirectctl", "nft-table", "nft-table", "nft-table"),
    Damage("nft flush table inet redirectctl", "nft-table", "nft-table", "nft-table"),
    Damage("nft flush set inet redirectctl hold{version}", "nft-table", "nft-table", "nft-table"),
    Damage("{iptables} -t raw -F", "queue-rules", "queue-rules", "queue-rules"),
    Damage(f"ip {{family}} rule flush; {DEFAULTS.replace('{0}', '{family}')}", "rules", "rules", "rules"),
    Damage(f"ip route flush table {ROUTE_TABLE}; ip -6 route flush table {ROUTE_TABLE}", "routes", "", "routes"),
    Damage(f"ip {{family}} route flush table {FALLBACK_TABLE}", "routes", "routes", "routes"),
    Damage(f"ip {{family}} route flush table {TUNNEL_TABLE}", "routes", "routes", "routes"),
    Damage(f"ip link set {TUN_DEVICE} down", "device", "device", "device"),
    Damage(f"ip link set {TUN_DEVICE} down; ip link set {TUN_DEVICE} up", "routes", "routes", "routes"),
    Damage(f"ip link del {TUN_DEVICE}", "device", "device", "device"),
    Damage("sysctl -qw net.ipv4.ip_local_reserved_ports=", "reserved-ports", "", ""),
)
ADDRESSES = Damage(f"ip addr flush dev {TUN_DEVICE}", "addresses", "", "addresses")  # IPv6 needs none


def damage(pair: Pair, daemon: Daemon, ticker: Ticker, each: Damage, kind: str, version: int) -> None:
    """Do it, see it repaired, and see that the connection goes on."""
    values = {"version": version, "family": f"-{version}", "iptables": "iptables" if version == 4 else "ip6tables"}
    command = each.command.format(**values)
    since = time.time()
    daemon.host.run(["sh", "-c", command])
    if kind:
        daemon.wait_event("kernel.repaired", since=since, reason=kind, timeout=PATIENCE)
    try:
        ticker.wait_both(time.monotonic(), PATIENCE)
        pair.wait_protected(1)
    except Exception as error:
        raise AssertionError(f"{command} on {daemon.host.name}") from error


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("path", ["rewritten", "tunnel"])
def test_what_is_removed_is_put_back_while_a_moved_connection_goes_on(lab: Lab, path: str, version: int) -> None:
    config = TUNNEL if path == "tunnel" else FAST
    pair = Pair(lab, config, config)
    ticker = start_ticker(lab.server, lab.client, version=version, wrap=pair.wrap)
    pair.wait_protected(1)
    link = lab.client.move(lab.cafe, 20)
    there = {(path, str(link.addresses.of(version)))}
    if path == "rewritten":
        wait_until(lambda: ways(pair) == there, PATIENCE * 3, f"plain packets, not {ways(pair)}", poll=0.1)
    else:
        wait_until(lambda: {way for way, _ in ways(pair)} == {path}, PATIENCE, "the tunnel", poll=0.1)
    for daemon in pair.daemons:
        for each in (*DAMAGE, *((ADDRESSES,) if version == 4 else ())):
            here = each.moved if daemon is pair.client else each.tunnelled if path == "tunnel" else each.stationary
            damage(pair, daemon, ticker, each, here, version)
    for daemon in pair.daemons:
        assert not daemon.events("kernel.contested")
        wait_until(lambda daemon=daemon: daemon.doctor() == {}, PATIENCE, f"{daemon.doctor()}", poll=0.1)
    # It can move again.
    link = lab.client.move(lab.office, 21)
    ticker.wait_both(link.usable_at, PATIENCE)
    pair.end(ticker)

"""Sockets that their programs have bound to an interface (`curl --interface`, a socket unit's BindToDevice=), and VPNs.

::

    client  eth0 home, eth1 cafe ── router ── server  eth0 dc1        each with redirectd

Such a connection does not leave its interface, unless `[path] leave_vpn` lets it.
"""

from __future__ import annotations

import time
from typing import Any

import pytest
from daemon_pair import FAST, PATIENCE, Pair

from redirectctl.lab.daemons import Daemon
from redirectctl.lab.streams import Ticker, start_ticker, wait_until
from redirectctl.lab.topology import Host, Lab
from redirectctl.lab.vpn import Vpn

LEAVES = f"{FAST}[path]\nleave_vpn = true\n"


QUIET = 20.0  # seconds


def bound_to(host: Host, ticker: Ticker) -> str:
    """The interface that ss shows for a ticker's connection at one of its ends; empty: none."""
    port = ticker.local.rpartition(":")[2]
    (line,) = [
        line
        for line in host.run(["ss", "-Htn", "state", "established"]).stdout.splitlines()
        if any(end.rpartition(":")[2] == port for end in line.split()[2:4])
    ]
    return line.split()[2].rpartition(":")[0].partition("%")[2]


def listed(daemon: Daemon, ticker: Ticker) -> dict[str, Any]:
    (found,) = [c for c in daemon.ctl("connections") if ticker.local in (c["local"], c["remote"])]
    return dict(found)


def goes_on(ticker: Ticker) -> None:
    ticker.wait_both(time.monotonic(), PATIENCE)


def test_a_bound_connection_is_protected_held_and_goes_on_by_its_interface(lab: Lab) -> None:
    """While there is another network; one that is not bound goes there, a plain one that is bound hears nothing."""
    pair = Pair(lab)
    bound = start_ticker(lab.server, lab.client, wrap=pair.wrap, devices=("", "eth0"))
    free = start_ticker(lab.server, lab.client, wrap=pair.wrap)
    pair.wait_protected(2)
    assert bound_to(lab.client, bound) == "eth0"
    since = time.time()
    lab.client.join(lab.cafe, 20)
    lab.client.leave(lab.home)
    lost = pair.client.wait_event("connection.suspended", since=since, reason="stays-on-device", timeout=PATIENCE)
    assert (lost["local"], lost["interface"]) == (bound.local, "eth0")
    wait_until(lambda: listed(pair.client, free)["moves"] == 1, PATIENCE, "the free one moves", poll=0.1)
    goes_on(free)
    assert listed(pair.client, bound)["state"] == "suspended"
    lab.client.join(lab.home, 10)
    wait_until(lambda: listed(pair.client, bound)["state"] == "protected", PATIENCE, "it is back", poll=0.1)
    goes_on(bound)
    wait_until(lambda: bound_to(lab.client, bound) == "eth0", PATIENCE, "it is bound again", poll=0.2)
    for ticker in (bound, free):
        assert ticker.stop().ok
    assert [e for e in pair.client.events("connection.refused") if e["reason"] == "not-proven"] == []


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("end", ["client", "server"])
def test_one_that_says_nothing_is_protected(lab: Lab, version: int, end: str) -> None:
    """Its socket has to be asked, and takes only what comes by its interface."""
    pair = Pair(lab)
    devices = ("", "eth0") if end == "client" else ("eth0", "")
    ticker = start_ticker(lab.server, lab.client, version=version, wrap=pair.wrap, devices=devices, interval=QUIET)
    pair.wait_protected(1)
    assert bound_to(lab.client if end == "client" else lab.server, ticker) == "eth0"
    since = time.time()
    (lab.client if end == "client" else lab.server).readdress(30)
    pair.wait_moved(pair.client if end == "client" else pair.server, since)
    goes_on(ticker)
    lab.client.leave()  # and nothing keeps an interface
    lab.client.join(lab.cafe, 20)


@pytest.mark.parametrize("version", [4, 6])
def test_it_moves_on_its_interface_and_back(lab: Lab, version: int) -> None:
    pair = Pair(lab)
    ticker = start_ticker(lab.server, lab.client, version=version, wrap=pair.wrap, devices=("", "eth0"))
    pair.wait_protected(1)
    for number, device in ((30, ""), (10, "eth0")):
        since = time.time()
        link = lab.client.readdress(number)
        pair.wait_moved(pair.client, since)
        assert str(link.addresses.of(version)) in listed(pair.client, ticker)["wire_local"]
        goes_on(ticker)
        wait_until(lambda device=device: bound_to(lab.client, ticker) == device, PATIENCE, f"bound: {device}", poll=0.2)
    assert ticker.stop().ok


def test_policy_lets_it_leave(lab: Lab) -> None:
    pair = Pair(lab, LEAVES)
    ticker = start_ticker(lab.server, lab.client, wrap=pair.wrap, devices=("", "eth0"))
    pair.wait_protected(1)
    since = time.time()
    lab.client.move(lab.cafe, 20, make_before_break=True)
    pair.wait_moved(pair.client, since)
    goes_on(ticker)
    assert bound_to(lab.client, ticker) == ""
    pair.client.restart()
    goes_on(ticker)
    assert listed(pair.client, ticker)["wire_local"].startswith(str(lab.client.address()))
    assert ticker.stop().ok


def test_accepted_sockets_of_a_bound_listener(lab: Lab) -> None:
    """Their host stays; what comes from where the peer has moved to must reach them."""
    pair = Pair(lab)
    ticker = start_ticker(lab.server, lab.client, wrap=pair.wrap, devices=("eth0", ""))
    pair.wait_protected(1)
    assert bound_to(lab.server, ticker) == "eth0"
    since = time.time()
    lab.client.move(lab.cafe, 20)
    pair.wait_moved(pair.client, since)
    goes_on(ticker)
    assert listed(pair.server, ticker)["state"] == "protected"
    since = time.time()
    lab.server.readdress(40)
    pair.wait_moved(pair.server, since)
    goes_on(ticker)
    assert ticker.stop().ok


def up(vpn: Vpn, lab: Lab, number: int = 2) -> str:
    """The client reaches the server's network by its VPN; the client's address in it."""
    address = str(vpn.up(number).v4)
    lab.client.ip(f"route add {lab.dc1.v4} dev {vpn.device} src {address}")
    return address


def test_what_began_over_a_vpn_does_not_leave_it(lab: Lab) -> None:
    """It is held while the VPN is down, and goes on by it, also from another address there."""
    vpn = Vpn(lab, lab.client, translates=False)
    address = up(vpn, lab)
    pair = Pair(lab)
    ticker = start_ticker(lab.server, lab.client, wrap=pair.wrap)
    assert ticker.local.startswith(f"{address}:")
    pair.wait_protected(1)
    since = time.time()
    vpn.down()
    lost = pair.client.wait_event("connection.suspended", since=since, timeout=PATIENCE)
    assert (lost["reason"], lost["interface"]) == ("stays-on-device", vpn.device)
    plain = start_ticker(lab.server, lab.client, wrap=pair.wrap)  # begun now, outside: it may
    assert plain.local.startswith(f"{lab.client.address()}:")
    for number in (2, 7):
        address = up(vpn, lab, number)
        wait_until(lambda: listed(pair.client, ticker)["state"] == "protected", PATIENCE, "it is back", poll=0.1)
        goes_on(ticker)
        assert listed(pair.client, ticker)["wire_local"].startswith(f"{address}:")
        since = time.time()
        vpn.down()
        pair.client.wait_event("connection.suspended", since=since, reason="stays-on-device", timeout=PATIENCE)
    up(vpn, lab, 7)
    goes_on(ticker)
    for each in (ticker, plain):
        assert each.stop().ok


def test_policy_lets_it_leave_a_vpn(lab: Lab) -> None:
    vpn = Vpn(lab, lab.client, translates=False)
    up(vpn, lab)
    pair = Pair(lab, LEAVES)
    ticker = start_ticker(lab.server, lab.client, wrap=pair.wrap)
    pair.wait_protected(1)
    since = time.time()
    vpn.down()
    pair.wait_moved(pair.client, since)
    goes_on(ticker)
    assert listed(pair.client, ticker)["wire_local"].startswith(f"{lab.client.address()}:")
    assert ticker.stop().ok

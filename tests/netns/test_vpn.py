"""A VPN comes up, and goes, on a host with connections that began without it, or over it.

::

              router ── dc1 ── server        client and server with redirectd; the VPN's other end is the router, which
             /     \\                         drops what comes out of it with a source of another network
    home  eth0    vpnN  10.8.N.2
             \\     /
             client

A plain connection that nobody protects is beside the protected one.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
from daemon_pair import FAST, PATIENCE, Pair, answer_of

from redirectctl.lab.namespaces import Namespace
from redirectctl.lab.streams import Ticker, start_ticker, wait_until
from redirectctl.lab.topology import FIRST_HOST, Host, Lab
from redirectctl.lab.vpn import ROUTES, RULES, TABLE, Vpn
from redirectctl.wire.tunnel import Type
from tests.netns.test_uplinks import SOON, echoes

OUTSIDE = f"""
table inet seen {{
    chain c {{
        type filter hook forward priority -10
        iifname br-home meta l4proto tcp counter
        iifname br-home udp dport 7747 @th,64,8 {int(Type.TUNNEL)} counter
    }}
}}
"""
both_ways = pytest.mark.parametrize("how", [ROUTES, RULES])
both_families = pytest.mark.parametrize("version", [4, 6])


def leaves_by(host: Namespace, address: object) -> str:
    """The interface by which a host would send to an address."""
    words = host.run(["ip", "route", "get", str(address)]).stdout.split()
    return words[words.index("dev") + 1]


def session(lab: Lab, version: int) -> tuple[Pair, Ticker, Ticker]:
    """A protected connection and a plain one."""
    pair = Pair(lab, FAST, FAST)
    protected = start_ticker(lab.server, lab.client, version=version, wrap=pair.wrap, interval=0.05)
    plain = start_ticker(lab.server, lab.client, version=version, interval=0.05)
    pair.wait_protected(1)
    return pair, protected, plain


def goes_on(ticker: Ticker) -> None:
    ticker.wait_both(time.monotonic(), PATIENCE)


@both_families
@both_ways
@pytest.mark.parametrize("where", ["client", "server"])
def test_a_vpn_comes_up_and_goes(lab: Lab, where: str, how: str, version: int) -> None:
    pair, protected, plain = session(lab, version)
    host: Host = lab.client if where == "client" else lab.server
    daemon = pair.client if where == "client" else pair.server
    other = lab.server if where == "client" else lab.client
    vpn = Vpn(lab, host)
    began = time.monotonic()
    vpn.up(default=how)
    assert leaves_by(host, other.address(version)) == vpn.device
    assert echoes(protected, began + 1.0, SOON)
    assert not echoes(plain, began + 1.0, 5.0), "it still has the old address, and the VPN's provider drops that"
    assert answer_of(lab.client, lab.server.address(version), 9).endswith("refused") == (where == "client")
    pair.wait_protected(1)
    assert not daemon.events("connection.suspended")
    down = time.monotonic()
    vpn.down()
    assert leaves_by(host, other.address(version)) == "eth0"
    assert echoes(protected, down + 1.0, SOON)
    pair.wait_protected(1)
    assert daemon.doctor().keys() <= {"state.path"}
    assert protected.stop().ok
    plain.stop()
    pair.stop_without_a_trace()


def test_the_network_of_the_host_stays_in_reach(lab: Lab) -> None:
    """wg-quick's rules have no priority: they go before the host's first, which must not be at the very beginning."""
    pair, protected, _ = session(lab, 4)
    lab.stranger.join(lab.home, FIRST_HOST + 1)
    for _ in range(3):
        vpn = Vpn(lab, lab.client)
        began = time.time()
        vpn.up(default=RULES)
        assert leaves_by(lab.client, lab.stranger.address()) == "eth0"
        assert leaves_by(lab.client, lab.server.address()) == vpn.device
        pair.client.wait_event("kernel.repaired", since=began, reason="rules", timeout=PATIENCE)
        goes_on(protected)
        rules = lab.client.run(["ip", "rule"]).stdout.splitlines()
        ours = [number for number, rule in enumerate(rules) if " lookup 774" in rule][:2]
        assert ours == [1, 2], rules  # after table local only
        assert [rule for rule in rules if f" lookup {TABLE}" in rule]
        assert pair.client.doctor().keys() <= {"state.path"}
        vpn.down()
        goes_on(protected)
    assert protected.stop().ok
    pair.stop_without_a_trace()


@both_families
def test_what_began_over_it_stays_when_it_carries_no_more(lab: Lab, version: int) -> None:
    """The address is there, and the host's own network would carry: what is in the connection may be plain."""
    vpn = Vpn(lab, lab.client)
    address = vpn.up(default=ROUTES).of(version)
    pair, protected, plain = session(lab, version)
    (connection,) = pair.wait_protected(1)
    assert str(address) in connection["local"]
    began = time.time()
    vpn.cut()
    pair.client.wait_connections("suspended", 1, timeout=PATIENCE)
    lab.router.run(["nft", "-f", "-"], stdin=OUTSIDE)
    time.sleep(5.0)
    (connection,) = [c for c in pair.client.ctl("connections") if c["state"] == "suspended"]
    assert str(address) in connection["wire_local"]
    assert not pair.client.events("move.finished", since=began)
    # The daemons may speak; what is in the connection goes by the VPN only.
    assert lab.router.run(["nft", "list", "table", "inet", "seen"]).stdout.count("packets 0 ") == 2
    restored = time.monotonic()
    vpn.restore()
    for ticker in (protected, plain):
        ticker.wait_both(restored, PATIENCE)
    assert protected.stop().ok


def test_policy_lets_it_leave_when_it_carries_no_more(lab: Lab) -> None:
    vpn = Vpn(lab, lab.client)
    vpn.up(default=ROUTES)
    pair = Pair(lab, FAST + "[path]\nleave_vpn = true\n")
    protected = start_ticker(lab.server, lab.client, wrap=pair.wrap, interval=0.05)
    pair.wait_protected(1)
    began = time.monotonic()
    vpn.cut()
    assert echoes(protected, began + 1.0, SOON)
    wait_until(
        lambda: str(lab.client.address()) in pair.client.ctl("connections")[0]["wire_local"], PATIENCE, "out of it",
        poll=0.2,
    )  # fmt: skip
    assert protected.stop().ok


def test_a_vpn_that_leads_nowhere(make_lab: Callable[..., Lab]) -> None:
    """Its routes are preferred; nothing comes out of it.  New plain connections do not work either."""
    lab = make_lab()
    pair, protected, plain = session(lab, 4)
    vpn = Vpn(lab, lab.client)
    vpn.up()
    vpn.cut()
    began = time.monotonic()
    lab.client.ip(f"route add 0.0.0.0/1 dev {vpn.device}", f"route add 128.0.0.0/1 dev {vpn.device}")
    assert echoes(protected, began + 1.0, SOON)
    assert not echoes(plain, began + 1.0, 3.0)
    (connection,) = pair.wait_protected(1)
    assert str(vpn.addresses().v4) not in connection["wire_local"]
    vpn.down()
    goes_on(protected)
    assert protected.stop().ok

"""An address that exists and does not carry: the most frequent situation of all.

::

    client ── cafe (Wi-Fi, the connection's) ──┐
       └───── office (Ethernet) ───────────────┴ router ── dc1 ── server         each host with redirectd

The router drops what comes in with a source of another network, as providers do (BCP 38).  A plain connection that
nobody protects is beside the other: where it lives, the other is not to be worse off; where it dies, a new one works.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from ipaddress import ip_address

import pytest
from daemon_pair import FAST, PATIENCE, Pair, answer_of

from redirectctl.lab.middlebox import Gateway
from redirectctl.lab.streams import Ticker, start_idle, start_ticker, wait_until
from redirectctl.lab.topology import FIRST_HOST, Lab
from redirectctl.lab.uplinks import family_dies, on_both, on_wifi, prefix_is_renumbered

SOON = 20.0  # seconds in which a protected one has to: many times what it takes


def session(make_lab: Callable[..., Lab]) -> tuple[Lab, Pair, Ticker, Ticker]:
    """The client is in the café, with a protected and a plain connection."""
    lab = make_lab()
    on_wifi(lab)
    pair = Pair(lab, FAST, FAST)
    protected = start_ticker(lab.server, lab.client, wrap=pair.wrap, interval=0.05)
    plain = start_ticker(lab.server, lab.client, interval=0.05)
    pair.wait_protected(1)
    return lab, pair, protected, plain


def echoes(ticker: Ticker, since: float, patience: float) -> bool:
    """Whether both ends hear one another within so many seconds."""
    end = time.monotonic() + patience
    while time.monotonic() < end:
        if not ticker.alive():
            return False
        if all(ticker.first_after(since, each) is not None for each in ticker.ends):
            return True
        time.sleep(0.1)
    return False


def test_ethernet_beside_wifi(make_lab: Callable[..., Lab]) -> None:
    """The default route moves, the Wi-Fi address stays: nothing is lost before the protected one has moved."""
    lab, pair, protected, plain = session(make_lab)
    began = time.time()
    lab.client.join(lab.office, FIRST_HOST + 1)
    after = time.monotonic() + 1.0
    pair.wait_moved(pair.client, began)
    assert echoes(protected, after, SOON)
    assert not echoes(plain, after, 5.0), "what has the café's address leaves by Ethernet, and is dropped"
    assert answer_of(lab.client, lab.server.address(), 9).endswith("refused"), "a new one gets through"
    (connection,) = pair.client.ctl("connections")
    assert connection["wire_local"].startswith(str(lab.office.v4[FIRST_HOST + 1]))
    assert not list(pair.client.events("connection.suspended", since=began))
    assert protected.stop().ok


def test_upstream_of_the_used_uplink_dies(make_lab: Callable[..., Lab]) -> None:
    """Both uplinks are there from the beginning; the one in use carries no more, and nothing here shows it."""
    lab, pair, protected, plain = session(make_lab)
    lab.client.join(lab.office, FIRST_HOST + 1)
    wifi = f"default via {lab.cafe.v4[1]} dev {lab.client.links[0].interface}"
    lab.client.ip(f"route replace {wifi} metric 10")
    time.sleep(3)  # wherever it is now
    (connection,) = pair.wait_protected(1)
    used = lab.cafe if connection["wire_local"].startswith(str(lab.cafe.v4[FIRST_HOST])) else lab.office
    other = lab.office if used is lab.cafe else lab.cafe
    cut = time.monotonic()
    used.cut()
    assert echoes(protected, cut + 1.0, SOON)
    (connection,) = pair.client.ctl("connections")
    assert connection["state"] == "protected"
    assert other.name in (lab.office.name, lab.cafe.name)
    time.sleep(10)
    assert echoes(protected, time.monotonic(), SOON), "the dead one is not taken again"
    if used is lab.cafe:
        assert not echoes(plain, cut + 1.0, 5.0)
    used.restore()
    time.sleep(8)
    assert echoes(protected, time.monotonic(), SOON)
    assert protected.stop().ok


def test_an_uplink_that_leads_nowhere_comes_up(make_lab: Callable[..., Lab]) -> None:
    """Its default route is preferred; packets with the café's address are dropped there, and so are its own."""
    lab, pair, protected, plain = session(make_lab)
    lab.office.cut()
    began = time.monotonic()
    lab.client.join(lab.office, FIRST_HOST + 1)
    assert echoes(protected, began + 1.0, SOON)
    assert not echoes(plain, began + 1.0, 3.0)
    (connection,) = pair.client.ctl("connections")
    assert connection["state"] == "protected"
    assert protected.stop().ok


@pytest.mark.parametrize("dead", [4, 6])
def test_a_family_is_dead_upstream(make_lab: Callable[..., Lab], dead: int) -> None:
    lab = make_lab()
    pair = Pair(lab, FAST, FAST)
    protected = start_ticker(lab.server, lab.client, version=dead, wrap=pair.wrap, interval=0.05)
    plain = start_ticker(lab.server, lab.client, version=dead, interval=0.05)
    pair.wait_protected(1)
    began = time.monotonic()
    with family_dies(lab, dead):
        assert echoes(protected, began + 1.0, SOON)
        assert not echoes(plain, began + 1.0, 3.0)
        (connection,) = pair.client.ctl("connections")
        assert (connection["state"], connection["path"]) == ("protected", "tunnel")
        time.sleep(10)
        assert echoes(protected, time.monotonic(), SOON), "it stays with the family that carries"
    assert echoes(protected, time.monotonic() + 10, 2 * SOON)
    assert protected.stop().ok


def test_a_family_dies_while_the_daemon_behind_a_nat_is_down(make_lab: Callable[..., Lab]) -> None:
    """It alone can make the first step, and to where the server is in the other family: that it was told before."""
    lab = make_lab()
    gateway = Gateway(lab, lab.home)
    lab.client.move(gateway.private, FIRST_HOST)
    pair = Pair(lab, FAST, FAST)
    protected = start_ticker(lab.server, lab.client, wrap=pair.wrap, interval=0.05)
    plain = start_ticker(lab.server, lab.client, interval=0.05)
    pair.wait_protected(1)
    pair.client.kill()
    with family_dies(lab, 4):
        pair.client.start()
        began = time.monotonic()
        assert echoes(protected, began, SOON)
        assert not echoes(plain, began, 3.0)
    assert protected.stop().ok


def test_a_prefix_is_renumbered(make_lab: Callable[..., Lab]) -> None:
    """The provider gives another prefix; the old address is deprecated, still there, and dropped upstream."""
    lab = make_lab()
    pair = Pair(lab, FAST, FAST)
    protected = start_ticker(lab.server, lab.client, version=6, wrap=pair.wrap, interval=0.05)
    plain = start_ticker(lab.server, lab.client, version=6, interval=0.05)
    pair.wait_protected(1)
    began = time.monotonic()
    with prefix_is_renumbered(lab):
        assert echoes(protected, began + 1.0, SOON)
        assert not echoes(plain, began + 1.0, 3.0)
        assert protected.stop().ok


@pytest.mark.parametrize("version", [4, 6])
def test_each_address_leaves_by_its_own_interface(make_lab: Callable[..., Lab], version: int) -> None:
    """The better uplink's upstream dies, its default route stays preferred: plain packets leave by the other."""
    lab = make_lab()
    on_both(lab)
    pair = Pair(lab, FAST, FAST)
    protected = start_ticker(lab.server, lab.client, version=version, wrap=pair.wrap, interval=0.05)
    plain = start_ticker(lab.server, lab.client, version=version, interval=0.05)
    pair.wait_protected(1)
    (connection,) = pair.client.ctl("connections")
    assert lab.office.addresses(FIRST_HOST + 1).of(version) == ip_address(
        connection["local"].rpartition(":")[0].strip("[]")
    )
    lab.office.cut()
    cut = time.monotonic()
    assert echoes(protected, cut + 1.0, SOON)
    assert not echoes(plain, cut + 1.0, 3.0)
    wait_until(lambda: pair.client.ctl("connections")[0]["path"] == "rewritten", SOON, "plain packets", poll=0.2)
    shown = lab.client.run(["ip", f"-{version}", "rule"]).stdout
    assert f"from {lab.cafe.addresses(FIRST_HOST).of(version)} fwmark" in shown
    assert echoes(protected, time.monotonic(), SOON)
    # Whatever is not ours goes as the host's routing says.
    route = lab.client.run(["ip", f"-{version}", "route", "get", str(lab.server.address(version)), "from",
                            str(lab.cafe.addresses(FIRST_HOST).of(version))]).stdout  # fmt: skip
    assert lab.client.links[-1].interface in route
    assert protected.stop().ok
    pair.stop_without_a_trace()


def uplinks(pair: Pair) -> str:
    """What doctor says on the client of its addresses."""
    checks = pair.client.ctl("doctor", pair.server.ctl("identity")["fingerprint"])
    return str(next(check["found"] for check in checks if check["name"] == "peer.uplinks"))


def test_doctor_names_what_the_peer_has_noticed_first(make_lab: Callable[..., Lab]) -> None:
    """Only the server writes: the client has nothing unanswered, and is led from the dead address to the other."""
    lab = make_lab()
    on_both(lab)
    pair = Pair(lab, FAST, FAST)
    dead, other = (network.addresses(number).v4 for network, number in
                   ((lab.office, FIRST_HOST + 1), (lab.cafe, FIRST_HOST)))  # fmt: skip
    idle = start_idle(lab.client, lab.server, 1, wrap=pair.server.opted_in())
    pair.wait_protected(1)
    assert str(dead) not in uplinks(pair)
    since = time.time()
    lab.office.cut()
    idle.begin(PATIENCE)
    wait_until(idle.echoed, PATIENCE, "an echo")
    assert pair.client.wait_event("move.received", since=since, timeout=PATIENCE)
    assert not pair.client.events("move.started", since=since)
    (connection,) = pair.client.ctl("connections")
    assert str(other) in connection["wire_local"]
    wait_until(lambda: f"{dead} did not carry" in uplinks(pair), PATIENCE, "doctor names it", poll=0.5)
    assert str(other) not in uplinks(pair)
    idle.stop()

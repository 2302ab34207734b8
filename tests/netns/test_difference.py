"""The two hosts are not of one mind about a connection: one sends by the tunnel, one plainly; then one lets it go."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import TypeVar

import pytest
from daemon_pair import PATIENCE, Pair

from redirectctl.lab.daemons import Daemon
from redirectctl.lab.streams import Ticker, start_idle, start_ticker, wait_until
from redirectctl.lab.topology import FIRST_HOST, Lab

T = TypeVar("T")
CONFIG = """
[trust]
first_contact = "{first_contact}"
[protect]
long_lived_after = "1s"
ports = [5001, 5002]
[path]
prefer = "{prefer}"
"""

SILENT = """
table inet silent {{
    chain forward {{
        type filter hook forward priority 0
        iifname {server} drop
    }}
}}
"""


def path_of(daemon: Daemon, port: int = 5001) -> str:
    listed = [c for c in daemon.ctl("connections") if f":{port}" in c["local"] + c["remote"] and c["state"] != "closed"]
    return str(listed[0]["path"]) if listed else ""


def differ(lab: Lab, start: Callable[..., T], first_contact: str = "accept-new") -> tuple[Pair, T]:
    """At its first address again, the server sends plainly as at first, the client by the tunnel."""
    configs = [CONFIG.format(first_contact=first_contact, prefer=prefer) for prefer in ("tunnel", "auto")]
    pair = Pair(lab, *configs)
    program = start(lab.server, lab.client, port=5001)
    if first_contact == "ask":
        approve(pair)
    pair.wait_protected(1)
    for network, number in ((lab.cafe, FIRST_HOST + 1), (lab.home, FIRST_HOST)):
        began = time.time()
        lab.client.move(network, number)
        pair.wait_moved(pair.client, began)
    wait_until(lambda: path_of(pair.server) == "original", PATIENCE, "plain packets from the server", poll=0.1)
    assert path_of(pair.client) == "tunnel"
    return pair, program


def approve(pair: Pair) -> None:
    for daemon, other in (pair.daemons, pair.daemons[::-1]):
        fingerprint = other.ctl("identity")["fingerprint"]
        wait_until(lambda d=daemon, f=fingerprint: f in [p["fingerprint"] for p in d.ctl("peers")], PATIENCE,
                   "they have met", poll=0.1)  # fmt: skip
        daemon.ctl("approve", fingerprint)


def sockets(lab: Lab, port: int) -> list[str]:
    """Not in TIME-WAIT, on either host."""
    argv = ["ss", "-tanH", "state", "connected", "exclude", "time-wait", f"( sport = :{port} or dport = :{port} )"]
    return [line for host in (lab.client, lab.server) for line in host.run(argv).stdout.splitlines()]


def ends_well(lab: Lab, pair: Pair, *tickers: Ticker) -> None:
    """Programs end, and nothing is left of their connections."""
    for ticker in tickers:
        verdict = ticker.stop()
        assert verdict.ok, verdict.why
    for port in (5001, 5002):
        wait_until(lambda port=port: not sockets(lab, port), PATIENCE, f"no sockets: {sockets(lab, port)}", poll=0.1)
    pair.stop_without_a_trace()


@pytest.mark.parametrize("who", ["client", "server"])
@pytest.mark.parametrize("how", ["forget", "release"])
def test_one_that_is_let_go_goes_on_as_each_host_sends_it(lab: Lab, who: str, how: str) -> None:
    pair, ticker = differ(lab, start_ticker)
    daemon, other = (pair.client, pair.server) if who == "client" else (pair.server, pair.client)
    (listed,) = daemon.ctl("connections")
    daemon.ctl(*([how, listed["id"]] if how == "release" else [how, other.ctl("identity")["fingerprint"], "--yes"]))
    wait_until(lambda: other.ctl("connections")[0]["reason"] == "released-there", PATIENCE, "it is told", poll=0.1)
    for _ in range(3):
        ticker.wait_both(time.monotonic(), PATIENCE)
        time.sleep(1.0)
    ends_well(lab, pair, ticker)


@pytest.mark.parametrize("who", ["client", "server"])
def test_a_key_that_is_approved_again_takes_up_its_connections(lab: Lab, who: str) -> None:
    pair, ticker = differ(lab, start_ticker, "ask")
    daemon, other = (pair.client, pair.server) if who == "client" else (pair.server, pair.client)
    fingerprint = other.ctl("identity")["fingerprint"]
    daemon.ctl("forget", fingerprint, "--yes")
    another = start_ticker(lab.server, lab.client, port=5002, interval=0.05)
    daemon.wait_peer("pending", timeout=PATIENCE)
    daemon.ctl("approve", fingerprint)
    pair.wait_protected(2)
    ticker.wait_both(time.monotonic(), PATIENCE)
    began = time.time()
    lab.client.move(lab.cafe, FIRST_HOST + 2)
    pair.wait_moved(pair.client, began, 2)
    for each in (ticker, another):
        each.wait_both(time.monotonic(), PATIENCE)
    ends_well(lab, pair, ticker, another)


def test_the_last_packets_of_one_are_heard_by_whatever_way_they_come(lab: Lab) -> None:
    """The host that sends plainly closes first; the FIN of the other comes by the tunnel, when its socket has gone."""
    pair, idle = differ(lab, partial(start_idle, count=1))
    assert idle.ask(PATIENCE) == {}
    idle.server.kill()
    wait_until(lambda: "FIN-WAIT-2" in str(sockets(lab, 5001)), PATIENCE, "the server has closed", poll=0.1)
    lab.router.run(["nft", "-f", "-"], stdin=SILENT.format(server=lab.dc1.bridge))
    idle.client.kill()
    wait_until(lambda: pair.server.ctl("connections")[0]["state"] == "closed", PATIENCE, "gone there", poll=0.1)
    time.sleep(1.0)
    lab.router.run(["nft", "delete", "table", "inet", "silent"])
    ends_well(lab, pair)

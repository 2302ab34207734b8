"""A router that forwards before its masquerade rule is there.

::

    client ── gateway ── router ── server        each end with redirectd
              (its rule comes late)

What the client sends meanwhile makes an entry of conntrack without an address of the gateway's, whose answers go
nowhere; rules are asked only for new entries, and the control port's own repeats keep the old one alive.
"""

from __future__ import annotations

import json
import time

import pytest
from daemon_pair import FAST, PATIENCE, Pair

from redirectctl.lab.middlebox import Gateway
from redirectctl.lab.streams import Ticker, start_ticker, wait_until
from redirectctl.lab.topology import Lab

PORT = 7747


class LateGateway(Gateway):
    """Whose masquerade rule comes when told, and which counts datagrams of the client; for IPv4 only."""

    def __init__(self, lab: Lab) -> None:
        super().__init__(lab, lab.cafe)
        self.private.only(4)
        self.count()

    def forget_rule(self) -> None:
        """Nothing is translated any more; what is under way stays as it is."""
        self.run(["nft", "flush", "chain", "inet", "gateway", "postrouting"])

    def remember_rule(self) -> None:
        """Translate new connections from now on."""
        rule = f"oifname {self.links[0].interface} masquerade random"
        self.run(["nft", "add", "rule", "inet", "gateway", "postrouting", *rule.split()])

    def count(self) -> None:
        """From now on, see seen()."""
        script = (
            "table inet seen {\ncounter old {}\ncounter others {}\n"
            "chain forward {\ntype filter hook forward priority -10\n"
            f'iifname "inside" udp dport {PORT} udp sport {PORT} counter name old\n'
            f'iifname "inside" udp dport {PORT} udp sport != {PORT} counter name others\n}}\n}}\n'
        )
        self.run(["nft", "-f", "-"], stdin=script)

    def seen(self) -> dict[str, int]:
        """Datagrams to the peer's control port: from the client's own ("old"), and from its other ports."""
        listed = json.loads(self.run(["nft", "-j", "list", "counters", "table", "inet", "seen"]).stdout)["nftables"]
        found = [entry["counter"] for entry in listed if "counter" in entry]
        return {counter["name"]: counter["packets"] for counter in found}


def moved_behind(lab: Lab, gateway: LateGateway) -> tuple[Pair, Ticker, float]:
    """A protected connection whose client goes to the gateway's network; the time of that."""
    pair = Pair(lab, FAST, FAST)
    ticker = start_ticker(lab.server, lab.client, wrap=pair.wrap)
    pair.wait_protected(1)
    since = time.time()
    lab.client.move(gateway.private, 10)
    return pair, ticker, since


def goes_on(ticker: Ticker) -> None:
    ticker.wait_both(time.monotonic(), PATIENCE)


def unanswered(gateway: LateGateway) -> int:
    """So many datagrams have gone through it untranslated that there is no doubt about the entry."""
    return int(gateway.seen()["old"] >= 5)


@pytest.mark.parametrize("restarted", [False, True], ids=["", "restarted"])
def test_another_port_gets_through(lab: Lab, restarted: bool) -> None:
    gateway = LateGateway(lab)
    gateway.forget_rule()
    pair, ticker, since = moved_behind(lab, gateway)
    wait_until(lambda: unanswered(gateway), PATIENCE, "the entry is there", poll=0.1)
    if restarted:
        pair.client.restart()
    gateway.remember_rule()
    pair.wait_moved(pair.client, since)
    goes_on(ticker)
    before = gateway.seen()
    wait_until(lambda: gateway.seen()["others"] > before["others"], PATIENCE, "the tunnel by another port", poll=0.1)
    goes_on(ticker)
    after = gateway.seen()
    assert after["old"] == before["old"], "and nothing more to the peer by the old one"
    since = time.time()
    lab.client.move(lab.office, 11)
    pair.wait_moved(pair.client, since)
    goes_on(ticker)
    listed = pair.server.ctl("connections")
    (connection,) = [c for c in listed if c["state"] == "protected"]
    assert f"{lab.client.address()}:" in connection["wire_remote"]
    assert ticker.stop().ok


def test_a_rule_that_comes_even_later(lab: Lab) -> None:
    """The first other port has an entry without translation, too: the next ones do not."""
    gateway = LateGateway(lab)
    gateway.forget_rule()
    pair, ticker, since = moved_behind(lab, gateway)
    wait_until(lambda: gateway.seen()["others"] >= 5, PATIENCE, "another port is tried", poll=0.1)
    gateway.remember_rule()
    pair.wait_moved(pair.client, since)
    goes_on(ticker)
    assert ticker.stop().ok


def test_where_all_is_well_there_is_one_port_only(lab: Lab) -> None:
    gateway = LateGateway(lab)
    pair, ticker, since = moved_behind(lab, gateway)
    pair.wait_moved(pair.client, since)
    goes_on(ticker)
    assert gateway.seen()["others"] == 0
    assert ticker.stop().ok

"""A thousand connections move as one."""

from __future__ import annotations

import itertools
import sys
import time
from pathlib import Path

import pytest
from daemon_pair import PATIENCE, Pair

from redirectctl.lab.namespaces import Namespace, call
from redirectctl.lab.streams import start_idle, wait_until
from redirectctl.lab.topology import Lab
from redirectctl.wire.addr import SockAddr

COUNT = 1000
DATAGRAMS = COUNT // 4  # most that a host sends: three each, and on a slow machine 20 a second for some seconds


class Monitor:
    """What `nft monitor` tells of a namespace: for each transaction, how often it changed an element of which set."""

    def __init__(self, host: Namespace) -> None:
        self.path: Path = host.sandbox.directory / f"monitor-{host.name}"
        with self.path.open("w") as out:
            host.popen(["nft", "monitor"], stdout=out, stderr=out)
        # It is listening once it tells of a change that has nothing to do with us.
        mark = "add table ip lab-mark"
        wait_until(
            lambda: call(host.inside(["nft", f"{mark}; delete table ip lab-mark"])) or mark in self.path.read_text(),
            PATIENCE, "nft monitor", poll=0.2,
        )  # fmt: skip

    def transactions(self) -> list[dict[str, int]]:
        """Changes of elements by transaction, for example {"add osrc4": 1000}."""
        found: list[dict[str, int]] = [{}]
        for line in self.path.read_text().splitlines():
            words = line.split()
            if line.startswith("# new generation"):
                found.append({})
            elif words[1:2] == ["element"] and words[3] == "redirectctl":
                what = f"{words[0]} {words[4]}"
                found[-1][what] = found[-1].get(what, 0) + 1
        return [each for each in found if each]


def count_datagrams(lab: Lab) -> None:
    """Let the router count datagrams on the control port, but not those of the tunnel (types 8 and 9)."""
    lab.router.run(["nft", "-f", "-"], stdin="""
        table inet counted {
            counter from-client { }
            counter from-server { }
            chain forward {
                type filter hook forward priority -10
                udp dport 7747 @th,64,8 < 8 iifname { "br-home", "br-cafe" } counter name from-client
                udp dport 7747 @th,64,8 < 8 iifname "br-dc1" counter name from-server
            }
        }
    """)  # fmt: skip


def datagrams(lab: Lab) -> dict[str, int]:
    listed = lab.router.run(["nft", "list", "counters", "table", "inet", "counted"]).stdout.split()
    names = [word for before, word in itertools.pairwise(listed) if before == "counter"]
    counts = [int(word) for before, word in itertools.pairwise(listed) if before == "packets"]
    return dict(zip(names, counts, strict=True))


@pytest.mark.parametrize("version", [4, 6])
def test_one_acm_moves_a_thousand_connections_in_one_transaction(lab: Lab, version: int) -> None:
    pair = Pair(lab)
    idle = start_idle(lab.server, lab.client, COUNT, version=version, wrap=pair.wrap)
    wait_until(lambda: pair.protected(COUNT), PATIENCE * 4, f"{COUNT} connections protected on both hosts", poll=1.0)
    monitors = {daemon: Monitor(daemon.host) for daemon in pair.daemons}
    count_datagrams(lab)
    began = time.time()
    lab.client.move(lab.cafe, 20)
    finished = pair.wait_moved(pair.client, began)
    sent = datagrams(lab)
    assert idle.ask(PATIENCE) == {}

    assert finished["connections"] == COUNT
    (started,) = pair.client.events("move.started", since=began)
    assert started["connections"] == COUNT
    (received,) = pair.server.events("move.received", since=began)
    assert received["connections"] == COUNT
    assert 0 < sent["from-client"] <= DATAGRAMS
    assert 0 < sent["from-server"] <= DATAGRAMS
    wait_until(lambda: ways(pair) == {("rewritten", 1)}, PATIENCE, "plain packets", poll=0.5)
    changed = {daemon: monitor.transactions() for daemon, monitor in monitors.items()}
    # One transaction leads all into the tunnel.  Each is received, and sent, plainly when it has proven its tuple: many
    # in a transaction.
    for daemon, incoming, outgoing in ((pair.client, "dst", "osrc"), (pair.server, "src", "odst")):
        into, lets_in, out = (f"add {name}{version}" for name in ("tun", incoming, outgoing))
        moves = [each for each in changed[daemon] if not {into, lets_in, out}.isdisjoint(each)]
        assert [each[into] for each in moves if into in each] == [COUNT]
        assert into in moves[0]
        for what in (lets_in, out):
            assert sum(each.get(what, 0) for each in moves) == COUNT
        assert len(moves) < COUNT // 5

    idle.stop()
    pair.stop_without_a_trace()


def ways(pair: Pair) -> set[tuple[str, int]]:
    """How the connections travel, and how often they have moved."""
    return {(c["path"], c["moves"]) for d in pair.daemons for c in d.ctl("connections") if c["state"] == "protected"}


INJECT = """
import itertools
import sys
from redirectctl.kernel.tcp.inject import RawInjector
from redirectctl.wire.addr import FourTuple, SockAddr
injector = RawInjector()
for local in sys.argv[2:]:
    injector.syn(FourTuple(SockAddr.parse(local), SockAddr.parse(sys.argv[1])))
"""


@pytest.mark.parametrize("version", [4, 6])
def test_what_we_inject_does_not_hold_the_interface(lab: Lab, version: int) -> None:
    """A route kept by a silent connection must not stop the kernel from removing the interface."""
    idle = start_idle(lab.server, lab.client, 20, version=version)
    remote = SockAddr(lab.server.address(version), int(idle.server.printed()[0]["port"]))
    lab.client.run([sys.executable, "-c", INJECT, str(remote), *idle.locals])
    removing = lab.client.popen(["ip", "link", "delete", lab.client.links[-1].interface])
    assert removing.wait(PATIENCE) == 0  # `ip` waits for the kernel to let go

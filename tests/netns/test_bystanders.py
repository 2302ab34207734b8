"""What redirectctl leaves alone: hosts without it, connections that nobody opted in, and young ones."""

from __future__ import annotations

import errno
import json
import sys
import time
from collections.abc import Sequence

import pytest
from daemon_pair import FAST, PATIENCE, Pair, held

from redirectctl.flows.constants import UNSUPPORTED_TIME
from redirectctl.lab.daemons import CommandError, Daemon
from redirectctl.lab.streams import Ticker, start_idle, start_ticker, wait_until
from redirectctl.lab.topology import Host, Lab, Network

SLOW = FAST.replace("1s", "10s")  # long enough for a connection to end before
BUDGET = 9.0  # seconds: proto/constants.py, HANDSHAKE_RETRIES
BOTH_FAMILIES = pytest.mark.parametrize("version", [4, 6])


def watch(lab: Lab, network: Network) -> None:
    """Let the router count what passes between the client and the control port of hosts on a network."""
    lab.router.run(["nft", "-f", "-"], stdin=f"""
        table inet watch-{network.name} {{
            counter control {{ }}
            chain forward {{
                type filter hook forward priority -20
                udp dport 7747 iifname "{network.bridge}" counter name control
                udp dport 7747 oifname "{network.bridge}" counter name control
            }}
        }}
    """)  # fmt: skip


def seen(lab: Lab, network: Network) -> int:
    listed = lab.router.run(["nft", "-j", "list", "counters", "table", "inet", f"watch-{network.name}"]).stdout
    (packets,) = (entry["counter"]["packets"] for entry in json.loads(listed)["nftables"] if "counter" in entry)
    return int(packets)


def mentions(host: Host, ticker: Ticker) -> bool:
    """Whether the host's nftables rules know the client's port of a connection."""
    return ticker.local.rpartition(":")[2] in host.run(["nft", "list", "ruleset"]).stdout


@BOTH_FAMILIES
def test_without_redirectctl_there_the_connection_is_left_alone(lab: Lab, version: int) -> None:
    daemon = Daemon(lab.client, FAST)
    daemon.start()
    watch(lab, lab.dc1)
    ticker = start_ticker(lab.server, lab.client, version=version, wrap=daemon.opted_in())
    (listed,) = daemon.wait_connections("unsupported", timeout=PATIENCE)
    assert listed["reason"] == "no-answer"
    assert listed["path"] == "original"
    (long,) = daemon.events("connection.long")
    (unsupported,) = daemon.events("connection.unsupported")
    assert unsupported["time"] - long["time"] < BUDGET * 2  # twice: others use the machine, too
    assert held(lab.client) == []
    tries = seen(lab, lab.dc1)
    assert 0 < tries <= 5

    another = start_ticker(lab.server, lab.client, version=version, wrap=daemon.opted_in())
    daemon.wait_connections("unsupported", 2, timeout=PATIENCE)
    (_, unsupported) = daemon.events("connection.unsupported")  # one a connection, however often the host is asked
    handshakes = 2 + (unsupported["time"] - long["time"]) / UNSUPPORTED_TIME
    assert tries < seen(lab, lab.dc1) <= 5 * handshakes
    assert held(lab.client) == []
    for each in (ticker, another):
        verdict = each.stop()
        assert verdict.ok, verdict


# redirectd that does not ask again by itself.
PATIENT = """
import sys
from redirectctl.flows import constants
constants.UNSUPPORTED_TIME = 3600.0
from redirectctl.redirectd import main
sys.exit(main())
"""


class Closed:
    """Both hosts have a daemon, and the server's firewall drops what comes to the control port; a connection waits."""

    def __init__(self, lab: Lab, command: Sequence[str] = ()) -> None:
        """command: instead of the client's redirectd."""
        self.lab = lab
        self.pair = Pair(lab, daemons=(Daemon(lab.client, FAST, command=command), Daemon(lab.server, FAST)))
        wall = "table inet guard { chain input { type filter hook input priority 0; udp dport 7747 drop; }\n}\n"
        lab.server.run(["nft", "-f", "-"], stdin=wall)
        self.ticker = start_ticker(lab.server, lab.client, wrap=self.pair.wrap)
        self.pair.client.wait_connections("unsupported", timeout=PATIENCE)

    def open(self) -> None:
        """Somebody lets UDP 7747 through."""
        self.lab.server.run(["nft", "delete", "table", "inet", "guard"])


def test_a_port_that_is_opened_later_protects_what_waits_without_a_word(lab: Lab) -> None:
    closed = Closed(lab)
    closed.open()
    closed.pair.wait_protected(1)
    closed.pair.end(closed.ticker)


@pytest.mark.parametrize("how", ["retry", "protect", "doctor"])
def test_a_person_need_not_wait(lab: Lab, how: str) -> None:
    closed = Closed(lab, [sys.executable, "-c", PATIENT])
    client, there = closed.pair.client, str(lab.server.address())
    closed.open()
    match how:
        case "retry":
            assert client.ctl("retry", there) == {"hosts": [there]}
        case "protect":
            client.ctl("protect", str(closed.ticker.ends["client"].process.pid))
        case "doctor":
            assert client.ctl("doctor", there)
    closed.pair.wait_protected(1)
    with pytest.raises(CommandError, match="no connection waits") as told:
        client.ctl("retry", there)
    assert told.value.status == 1
    assert client.ctl("retry") == {"hosts": []}
    assert closed.ticker.stop().ok


@BOTH_FAMILIES
def test_connections_that_nobody_opted_in_and_young_ones_are_not_touched(lab: Lab, version: int) -> None:
    """The stranger's network shows it: nothing is said to its control port, whatever happens to others."""
    pair = Pair(lab, client=SLOW)
    lab.stranger.join(lab.dc2, 50)
    watch(lab, lab.dc2)
    protected = start_ticker(lab.server, lab.client, version=version, wrap=pair.wrap)
    plain = start_ticker(lab.server, lab.client, version=version)
    plain_there = start_ticker(lab.stranger, lab.client, version=version)
    young_there = start_ticker(lab.stranger, lab.client, version=version, wrap=pair.wrap)
    pair.client.wait_event("connection.found", local=young_there.local, timeout=PATIENCE)
    assert not mentions(lab.client, young_there)
    verdict = young_there.stop()
    assert verdict.ok, verdict
    pair.wait_protected(1)
    pair.client.wait_event("connection.closed", local=young_there.local, timeout=PATIENCE)
    assert not pair.client.events("connection.long", since=0.0)[1:]  # only that of the protected one
    assert seen(lab, lab.dc2) == 0
    for host in (lab.client, lab.server):
        assert mentions(host, protected)
        assert not mentions(host, plain)
        assert not mentions(host, plain_there)
    assert {c["local"] for c in pair.client.ctl("connections") if c["state"] != "closed"} == {protected.local}

    link = lab.client.move(lab.cafe, 20)
    protected.wait_both(link.usable_at, PATIENCE)
    settled = time.monotonic()
    protected.wait_both(settled + 1, PATIENCE)
    for each in (plain, plain_there):
        assert not mentions(lab.client, each)
        assert each.alive()  # it hangs, as it would without redirectctl
        assert each.first_after(settled, "client") is None
    assert seen(lab, lab.dc2) == 0


@BOTH_FAMILIES
def test_young_connections_learn_that_their_address_is_gone(lab: Lab, version: int) -> None:
    pair = Pair(lab, client=FAST.replace("1s", "1h"))
    young = start_idle(lab.server, lab.client, 3, version=version, wrap=pair.wrap)
    plain = start_idle(lab.server, lab.client, 1, version=version)
    pair.client.wait_connections("short", 3, timeout=PATIENCE)
    began = time.time()
    lab.client.move(lab.cafe, 20)
    wait_until(
        lambda: len(pair.client.events("connection.closed", since=began)) == 3, PATIENCE, "connections closed", poll=0.1
    )
    assert {event["reason"] for event in pair.client.events("connection.closed", since=began)} == {"address-gone"}
    assert set(young.ask(1).values()) == {"ECONNABORTED"}
    assert set(plain.ask(1).values()) == {"ETIMEDOUT"}  # nobody asked us to close this one
    assert not pair.client.events("move.started")


PORTS = range(40000, 40004)
FILL = """
import socket, sys
held, taken = [], []
try:
    while len(taken) < 4:
        held.append(socket.create_connection((sys.argv[1], int(sys.argv[2])), 10))
        taken.append(held[-1].getsockname()[1])
except OSError as error:
    print(error.errno, *taken)
"""
INSIST = """
import socket, sys
target, port, source, wanted = sys.argv[1], int(sys.argv[2]), sys.argv[3], int(sys.argv[4])
s = socket.socket(socket.AF_INET6 if ":" in target else socket.AF_INET)
s.bind((source, wanted))
s.settimeout(30)
print(s.connect_ex((target, port)))
"""
LISTENER = """
import socket, sys
listener = socket.create_server(("::", int(sys.argv[1])), family=socket.AF_INET6, dualstack_ipv6=True, reuse_port=False)
kept = []
while True:
    kept.append(listener.accept()[0])
"""


NO_TOKENS = "table inet tokens { chain c { type filter hook forward priority -10; tcp option 253 exists drop; }; }"


@BOTH_FAMILIES
@pytest.mark.parametrize("proven", [True, False], ids=["proven", "not proven"])
def test_no_new_connection_takes_the_port_of_a_moved_one(lab: Lab, version: int, proven: bool) -> None:
    """With four ports to choose from, and one of them used on the wire under another address than the socket's.

    Also before that is proven: the tuple would be the new connection's then.
    """
    lab.client.sysctl({"net.ipv4.ip_local_port_range": f"{PORTS[0]} {PORTS[-1]}"})
    pair = Pair(lab)
    moved = start_ticker(lab.server, lab.client, version=version, wrap=pair.wrap)
    port = int(moved.local.rpartition(":")[2])
    assert port in PORTS
    pair.wait_protected(1)
    if not proven:
        lab.router.run(["nft", "-f", "-"], stdin=NO_TOKENS)
    link = lab.client.move(lab.cafe, 20)
    moved.wait_both(link.usable_at, PATIENCE)
    if proven:
        wait_until(lambda: ways(pair) == {"rewritten"}, PATIENCE, "plain packets", poll=0.1)
    address, target_port = str(lab.server.address(version)), str(moved.ends["server"].wait_line(1)["port"])
    # A ticker takes one connection and closes its listening socket: another one answers those that are made now.
    lab.server.popen([sys.executable, "-c", LISTENER, target_port])
    wait_until(lambda: _listens(lab.server, target_port), PATIENCE, "the listener")
    error, *taken = map(int, lab.client.run([sys.executable, "-c", FILL, address, target_port]).stdout.split())
    assert error == errno.EADDRNOTAVAIL
    assert sorted(taken) == [each for each in PORTS if each != port]
    if proven:
        arguments = [address, target_port, str(lab.client.address(version)), str(port)]
        refused = lab.client.run([sys.executable, "-c", INSIST, *arguments]).stdout
        assert int(refused) in {errno.EACCES, errno.EPERM, errno.ECONNREFUSED, errno.EHOSTUNREACH}
    verdict = moved.stop()
    assert verdict.ok, verdict
    pair.stop_without_a_trace()


def ways(pair: Pair) -> set[str]:
    """How the client's connections travel."""
    return {c["path"] for c in pair.client.ctl("connections")}


def _listens(host: Host, port: str) -> bool:
    return bool(host.run(["ss", "-tlnH", f"sport = :{port}"]).stdout.strip())

"""redirectctl doctor on hosts of a lab: well, with a firewall, with what a killed daemon left, and after a whole life.

::

    client (home) ── router ── server (dc1)        each with redirectd; topology.py has the picture
"""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from redirectctl.daemon.repair import BEAT
from redirectctl.kernel.constants import ROUTE_TABLE, TUN_DEVICE
from redirectctl.kernel.netfilter.queue_rules import QUEUE_RULES
from redirectctl.lab.daemons import Daemon
from redirectctl.lab.middlebox import Gateway
from redirectctl.lab.namespaces import Namespace, program
from redirectctl.lab.sshd import SshServer
from redirectctl.lab.streams import Ticker, start_ticker, wait_until
from redirectctl.lab.topology import Host, Lab, Network
from tests.netns.daemon_pair import PATIENCE, Pair, held, traces

HANDSHAKE = 30.0  # seconds that one doctor may take, generously: a peer that does not answer costs ten


def doctor(daemon: Daemon, *arguments: str) -> tuple[int, dict[str, dict[str, Any]]]:
    """Exit code, and the checks by name."""
    done = _run(daemon, "--json", *arguments)
    found = json.loads(done.stdout)
    assert len({each["name"] for each in found}) == len(found)
    assert all(each["hint"] for each in found if each["status"] in ("fail", "warn"))
    return done.returncode, {each["name"]: each for each in found}


def _run(daemon: Daemon, *arguments: str) -> subprocess.CompletedProcess[str]:
    argv = [program("redirectctl"), "--socket", str(daemon.socket), "doctor", *arguments]
    return daemon.host.run(argv, check=False, timeout=HANDSHAKE)


def not_ok(checks: dict[str, dict[str, Any]]) -> dict[str, str]:
    """But for what the machine's own programs are set to."""
    found = {name: each["found"] for name, each in checks.items() if each["status"] not in ("ok", "skip")}
    return {name: text for name, text in found.items() if not name.startswith("programs.")}


def move(pair: Pair, daemon: Daemon, network: Network) -> None:
    """Move a host and wait until the other one has agreed."""
    began = time.time()
    daemon.host.move(network, 11)
    pair.wait_moved(daemon, began)


def sh(host: Namespace, command: str) -> None:
    host.run(command.split())


def drop(host: Namespace, rule: str, hook: str = "input") -> None:
    script = f"table inet guard {{ chain {hook} {{ type filter hook {hook} priority 0; {rule}; }}\n}}\n"
    host.run(["nft", "-f", "-"], stdin=script)


@pytest.fixture
def pair(lab: Lab) -> Pair:
    return Pair(lab)


@pytest.fixture
def ticking(pair: Pair) -> Iterator[Ticker]:
    """A protected connection."""
    ticker = start_ticker(pair.lab.server, pair.lab.client, wrap=pair.wrap)
    pair.wait_protected(1)
    yield ticker
    for end in ticker.ends.values():
        end.kill()


def paths(daemon: Daemon) -> set[str]:
    return {connection["path"] for connection in daemon.ctl("connections")}


def server_address(pair: Pair) -> str:
    return str(pair.lab.server.address())


class TestHealthy:
    def test_daemons_that_have_nothing_to_do(self, pair: Pair):
        for daemon in pair.daemons:
            code, checks = doctor(daemon)
            assert not_ok(checks) == {}
            assert code == 0
            assert {"privileges", "kernel.nftables", "control.firewall", "state.table", "leftovers"} <= checks.keys()

    def test_before_and_after_moves(self, pair: Pair, ticking: Ticker):
        lab = pair.lab
        for daemon in pair.daemons:
            assert not_ok(doctor(daemon)[1]) == {}
        old = str(lab.client.address())
        move(pair, pair.client, lab.cafe)
        move(pair, pair.server, lab.dc2)
        for daemon in pair.daemons:
            assert not_ok(doctor(daemon)[1]) == {}
        assert old in doctor(pair.client)[1]["state.routing"]["found"]

    def test_a_peer(self, pair: Pair, ticking: Ticker):
        for daemon, other in ((pair.client, pair.lab.server), (pair.server, pair.lab.client)):
            code, checks = doctor(daemon, str(other.address()))
            assert not_ok(checks) == {}
            assert code == 0
            assert "open in both directions" in checks["peer.control-port"]["found"]
            assert "approved here, and we there" in checks["peer.trust"]["found"]
            assert "MTU 1500" in checks["peer.route"]["found"]
            assert f"from {daemon.host.address()}" in checks["peer.route"]["found"]
            assert checks["peer.connections"]["found"] == "1 of 1 connection protected"

    def test_text_fits_a_terminal(self, pair: Pair):
        done = _run(pair.client)
        assert done.returncode == 0
        assert re.fullmatch(r"\d+ checks: \d+ ok(, \d+ skipped)?", done.stdout.splitlines()[-1])
        tall = [line for line in done.stdout.splitlines() if len(line) > 80 and " " in line.strip()]
        assert [line for line in tall if str(pair.client.directory) not in line] == []


WITH_ITS_SSHD = """
mount -n -t tmpfs -o mode=755 lab /run
mkdir -m 755 /run/sshd
mount -n --bind "$1/sshd_config" /etc/ssh/sshd_config
shift
exec "$@"
"""


class TestPrograms:
    @pytest.mark.parametrize(
        ("extra", "status"),
        [("ClientAliveInterval 15", "warn"), ("ClientAliveInterval 0", "ok"), ("Match User a\nX11Forwarding no", "ok")],
    )
    def test_a_real_sshd(self, lab: Lab, extra: str, status: str):
        """Without a daemon, in the mount namespace of a host with that sshd."""
        sshd = SshServer(lab.server, extra=extra)
        argv = [program("redirectctl"), "--socket", "/nonexistent", "--json", "doctor"]
        enter = ["unshare", "--mount", "--propagation", "private", "sh", "-e", "-c", WITH_ITS_SSHD, "sh"]
        done = lab.server.run([*enter, sshd.directory, *argv], check=False)
        (check,) = [each for each in json.loads(done.stdout) if each["name"] == "programs.sshd"]
        assert check["status"] == status, check
        assert ("after 45s without an answer" in check["found"]) is (status == "warn")


class TestWithoutAPath:
    def test_what_a_suspended_connection_needs_is_no_leftover(self, pair: Pair, ticking: Ticker):
        lab = pair.lab
        lab.client.leave()
        for daemon in pair.daemons:
            daemon.wait_event("connection.suspended", timeout=PATIENCE)
            what = f"held in the kernel of {daemon.host.name}"
            wait_until(lambda host=daemon.host: any("wait4" in line for line in held(host)), PATIENCE, what, poll=0.2)
            assert not_ok(doctor(daemon)[1]) == {}
        lab.client.join(lab.home, 10)
        wait_until(lambda: pair.protected(1), PATIENCE, "resumed", poll=0.2)
        for daemon in pair.daemons:
            assert not_ok(doctor(daemon)[1]) == {}
        assert ticking.stop().ok

    def test_addresses_from_before_a_move_are_no_nat(self, pair: Pair, ticking: Ticker):
        lab = pair.lab
        move(pair, pair.client, lab.cafe)
        lab.cafe.cut()
        for daemon in pair.daemons:
            checks = doctor(daemon, daemon.wait_peer("approved")["fingerprint"])[1]
            assert checks["peer.control-port"]["status"] == "fail"
            assert checks["peer.nat"]["status"] == "skip"
        lab.client.leave()
        pair.client.wait_event("connection.suspended", timeout=PATIENCE)
        checks = doctor(pair.client, pair.client.wait_peer("approved")["fingerprint"])[1]
        assert checks["peer.nat"]["status"] == "skip"
        assert checks["peer.route"]["status"] == "fail"


class TestTwoUplinks:
    def test_a_way_is_tried_from_where_the_connection_is(self, pair: Pair, ticking: Ticker):
        """Not from where the kernel would start: the network that was joined last."""
        lab = pair.lab
        lab.client.join(lab.cafe, 20)
        key = pair.client.wait_peer("approved")["fingerprint"]
        drop(lab.client, f"ip saddr {lab.client.links[0].addresses.v4} udp dport 7747 drop", "output")

        def where() -> str:
            (connection,) = pair.client.ctl("connections")
            return str(connection["wire_local"].rpartition(":")[0])

        def examined() -> tuple[str, dict[str, dict[str, Any]]] | None:
            before, checks = where(), doctor(pair.client, key)[1]
            return (before, checks) if where() == before else None

        here, checks = wait_until(examined, PATIENCE, "the connection stays for a moment")
        assert f", from {here}, " in checks["peer.route"]["found"]
        reached = here != str(lab.client.links[0].addresses.v4)
        assert checks["peer.control-port"]["status"] == ("ok" if reached else "fail")
        assert f"{'answered' if reached else 'does not answer'} {here}" in checks["peer.control-port"]["found"]


class TestTrust:
    def test_who_has_not_approved_whom(self, lab: Lab):
        ask = '[protect]\nlong_lived_after = "1s"\n'
        pair = Pair(lab, ask, ask)
        ticker = start_ticker(lab.server, lab.client, wrap=pair.wrap)
        key = pair.client.wait_peer("pending")["fingerprint"]
        pair.server.wait_peer("pending")
        code, checks = doctor(pair.client)
        assert (code, checks["peers"]["status"]) == (0, "warn")
        assert key in checks["peers"]["found"]
        checks = doctor(pair.client, key)[1]
        assert "waits for approval here" in checks["peer.trust"]["found"]
        assert "approval-pending-here" in checks["peer.connections"]["found"]
        pair.client.ctl("approve", key)
        checks = doctor(pair.client, key)[1]
        assert checks["peer.trust"]["status"] == "warn"
        assert "approval there" in checks["peer.trust"]["found"]
        pair.server.ctl("approve", pair.server.wait_peer("pending")["fingerprint"])
        pair.wait_protected(1)
        assert not_ok(doctor(pair.client, key)[1]) == {}
        pair.server.ctl("reject", pair.server.wait_peer("approved")["fingerprint"])
        code, checks = doctor(pair.server, str(lab.client.address()))
        assert code == 1
        assert "rejected here" in checks["peer.trust"]["found"]
        assert ticker.alive()


class TestFirewall:
    @pytest.mark.parametrize(
        ("hook", "rule", "direction"),
        [("input", "udp dport 7747 drop", "in"), ("output", "udp dport 7747 counter reject", "out")],
    )
    def test_our_own(self, pair: Pair, ticking: Ticker, hook: str, rule: str, direction: str):
        drop(pair.lab.client, rule, hook)
        code, checks = doctor(pair.client, server_address(pair))
        assert code == 1
        # What comes in on this port is dropped, but the daemon gets an answer on another one (see proto/endpoint.py).
        reached = {"peer.control-port"} - set(not_ok(checks))
        assert not reached or direction == "in"
        assert set(not_ok(checks)) | reached == {"peer.control-port", "control.firewall"}
        for name in {"peer.control-port", "control.firewall"} - reached:
            assert f"datagrams {direction} are dropped by: nft table inet guard, chain {hook}" in checks[name]["found"]
            assert f"nft insert rule inet guard {hook} udp dport 7747 accept" in checks[name]["hint"]
        code, checks = doctor(pair.client)
        assert (code, checks["control.firewall"]["status"]) == (1, "fail")
        pair.lab.client.run(checks["control.firewall"]["hint"].partition("`sudo ")[2].rstrip("`").split())
        assert doctor(pair.client)[1]["control.firewall"]["status"] == "ok"
        assert not_ok(doctor(pair.client, server_address(pair))[1]) == {}

    def test_iptables(self, pair: Pair):
        host = pair.lab.client
        sh(host, "iptables -A INPUT -p udp -m multiport --dports 53,7000:8000 -j REJECT")
        code, checks = doctor(pair.client)
        assert code == 1
        assert "IPv4 datagrams in are dropped by: iptables -A INPUT" in checks["control.firewall"]["found"]
        sh(host, "iptables -F INPUT")
        sh(host, "iptables -A INPUT -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT")
        sh(host, "iptables -P INPUT DROP")
        checks = doctor(pair.client)[1]
        assert checks["control.firewall"]["status"] == "warn"
        assert "unless this host spoke first" in checks["control.firewall"]["found"]

    def test_elsewhere(self, pair: Pair, ticking: Ticker):
        """Rules on the other host, silence in between, no daemon there."""
        lab, server = pair.lab, server_address(pair)
        drop(lab.server, "udp dport 7747 reject with icmp type admin-prohibited")
        code, checks = doctor(pair.client, server)
        assert (code, set(not_ok(checks))) == (1, {"peer.control-port"})
        assert f"{server} says administratively prohibited" in checks["peer.control-port"]["found"]
        sh(lab.server, "nft delete table inet guard")

        drop(lab.router, "udp dport 7747 drop", "forward")
        code, checks = doctor(pair.client, server)
        assert (code, set(not_ok(checks))) == (1, {"peer.control-port"})
        assert "without an ICMP error" in checks["peer.control-port"]["found"]
        sh(lab.router, "nft delete table inet guard")

        assert not_ok(doctor(pair.client, server)[1]) == {}
        pair.server.kill()
        code, checks = doctor(pair.client, server)
        assert code == 1
        assert f"{server} says port unreachable" in checks["peer.control-port"]["found"]
        assert "does not run there" in checks["peer.control-port"]["hint"]

    def test_no_route(self, pair: Pair, ticking: Ticker):
        server = server_address(pair)
        pair.lab.client.leave()
        code, checks = doctor(pair.client, server)
        assert code == 1
        assert checks["peer.route"]["status"] == "fail"
        assert checks["peer.control-port"]["status"] == "fail"


class TestBetween:
    """What lies between the hosts, and which way connections take because of it."""

    def test_nothing_does(self, pair: Pair, ticking: Ticker):
        checks = doctor(pair.client, server_address(pair))[1]
        assert checks["peer.nat"]["found"].startswith(f"none: it sees this host at {pair.lab.client.address()}:7747")
        assert checks["peer.families"]["found"] == "IPv4 and IPv6 here and there"
        assert checks["peer.paths"]["found"] == "1 plain, unchanged"
        assert checks["peer.tunnel"]["found"] == "not in use"
        assert checks["peer.integrity"]["found"] == "off here and there"

    def test_nat(self, lab: Lab):
        gateway = Gateway(lab, lab.home)
        lab.client.move(gateway.private, 10)
        public = str(gateway.address())
        pair = Pair(lab)
        ticker = start_ticker(lab.server, lab.client, wrap=pair.wrap)
        pair.wait_protected(1)
        checks = doctor(pair.client, server_address(pair))[1]
        assert not_ok(checks) == {}
        assert f"NAT: this host at {lab.client.address()} is seen at {public}:" in checks["peer.nat"]["found"]
        assert f"{ticker.local} is {public}:" in checks["peer.nat"]["found"]
        there = doctor(pair.server, pair.server.wait_peer("approved")["fingerprint"])[1]
        assert f"the peer at {lab.client.address()}" in there["peer.nat"]["found"]
        assert f"is seen at {public}:" in there["peer.nat"]["found"]
        move(pair, pair.client, lab.cafe)
        checks = doctor(pair.client, server_address(pair))[1]
        assert not_ok(checks) == {}
        assert checks["peer.paths"]["found"] == "1 through the tunnel: NAT changes plain packets on the way"
        assert f"to {server_address(pair)}:7747" in checks["peer.tunnel"]["found"]
        assert ticker.stop().ok

    def test_a_firewall_that_lets_no_plain_packets_through(self, pair: Pair, ticking: Ticker):
        lab = pair.lab
        drop(lab.router, f"ip saddr {lab.cafe.addresses(11).v4} meta l4proto tcp drop", "forward")
        move(pair, pair.client, lab.cafe)
        server = server_address(pair)
        blocked = wait_until(
            lambda: found if (found := doctor(pair.client, server)[1]["peer.paths"])["status"] == "warn" else None,
            PATIENCE,
            "the plain way is given up",
            poll=0.5,
        )
        assert "1 through the tunnel: plain TCP from here did not arrive" in blocked["found"]
        where = f"blocked: TCP from {lab.client.address()} to {server}, "
        assert re.search(re.escape(where) + r"(to|from) port \d+", blocked["found"])  # which of two random ones is less
        assert doctor(pair.server, str(lab.client.address()))[1]["peer.paths"]["status"] == "ok"  # its own direction
        assert ticking.alive()

    def test_integrity_that_only_one_end_wants(self, lab: Lab):
        common = '[protect]\nlong_lived_after = "1s"\n[trust]\nfirst_contact = "accept-new"\n'
        pair = Pair(lab, common + '[integrity]\nmode = "on"\n', common)
        ticker = start_ticker(lab.server, lab.client, wrap=pair.wrap)
        pair.client.wait_event("connection.refused", reason="integrity-refused-there", timeout=PATIENCE)
        code, checks = doctor(pair.client, server_address(pair))
        assert (code, checks["peer.integrity"]["status"]) == (1, "fail")
        assert checks["peer.integrity"]["found"].startswith("on here, off there")
        assert ticker.alive()


DAMAGE = (
    ("ip -6 rule del priority 7747", "rules", "state.routing", "IPv6 rule 7747 to table 7747"),
    (f"ip link set {TUN_DEVICE} down", "device", "state.routing", "down"),
    (f"ip route flush table {ROUTE_TABLE}", "routes", "state.routing", "in table 7747"),
    (
        "iptables -t raw -F",
        "queue-rules",
        "state.queues",
        f"{len(QUEUE_RULES)} of {2 * len(QUEUE_RULES)} iptables rules",
    ),
    ("nft flush chain inet redirectctl rst4", "nft-table", "state.table", "rule of chain rst4"),
    ("sysctl -w net.ipv4.ip_local_reserved_ports=", "reserved-ports", "state.ports", "not reserved"),
)
STRAY = (
    ("ip rule add fwmark 1 priority 99 table 7747", "IPv4 rule 99 to table 7747"),
    (f"ip addr add 192.0.2.77/32 dev {TUN_DEVICE}", f"address 192.0.2.77 on {TUN_DEVICE}"),
    (f"ip route add 192.0.2.78/32 dev {TUN_DEVICE} table 7748", "route to 192.0.2.78 in table 7748"),
    (
        "nft add element inet redirectctl ask4 { 192.0.2.79 . 22 . 192.0.2.80 . 1000 }",
        "nft elements for 192.0.2.80:1000-192.0.2.79:22",
    ),
)


class TestDamage:
    """Somebody else changes what is ours."""

    def test_what_is_removed_again_and_again_is_found_and_a_restart_mends_it(self, pair: Pair, ticking: Ticker):
        """It is put back, until it is clear that somebody wants it otherwise."""
        move(pair, pair.client, pair.lab.cafe)
        nfqueue = doctor(pair.client)[1]["kernel.nfqueue"]["found"]
        host = pair.lab.client
        for command, kind, name, found in DAMAGE:
            if command.startswith("iptables") and "iptables" not in nfqueue:
                continue
            since = time.time()
            pause = 0.3 if kind != "reserved-ports" else BEAT + 0.1  # until it is there again
            script = f"for i in 1 2 3 4 5 6; do {command}; sleep {pause}; done 2>/dev/null"

            def contested(script: str = script, since: float = since, kind: str = kind) -> bool:
                host.run(["sh", "-c", script], check=False)
                return any(e["reason"] == kind for e in pair.client.events("kernel.contested", since=since))

            wait_until(contested, PATIENCE * 2, f"{command}: contested", poll=0)
            host.run(["sh", "-c", f"{command} 2>/dev/null"], check=False)
            code, checks = doctor(pair.client)
            assert name in checks, not_ok(checks)
            assert (command, code, checks[name]["status"]) == (command, 1, "fail")
            assert found in checks[name]["found"]
            assert "restart redirectd" in checks[name]["hint"]
            pair.client.restart()
            assert (command, not_ok(doctor(pair.client)[1])) == (command, {})
        assert ticking.alive()

    def test_what_belongs_to_no_connection_is_named_and_a_restart_removes_it(self, pair: Pair):
        for command, _ in STRAY:
            sh(pair.lab.client, command)
        code, checks = doctor(pair.client)
        assert (code, set(not_ok(checks))) == (1, {"leftovers", "state.routing"})
        assert "192.0.2.77 in table local" in checks["state.routing"]["found"]  # nobody else can be reached there
        assert {found for _, found in STRAY} <= set(checks["leftovers"]["found"].splitlines())
        pair.client.restart()
        assert not_ok(doctor(pair.client)[1]) == {"leftovers": "IPv4 rule 99 to table 7747"}
        sh(pair.lab.client, checks["leftovers"]["hint"].splitlines()[1])

    def test_others_rules_are_not_ours(self, pair: Pair):
        host = pair.lab.client
        sh(host, "ip rule add fwmark 2 priority 7746 table 100")
        sh(host, "ip route add 192.0.2.81/32 dev eth0 table 100")
        sh(host, "sysctl -w net.ipv4.ip_local_reserved_ports=8080,9000-9010")
        sh(host, "iptables -t raw -A PREROUTING -p udp -j NFQUEUE --queue-num 5 --queue-bypass")
        host.run(["nft", "add table inet other"])
        assert not_ok(doctor(pair.client)[1]) == {}


class TestWithoutADaemon:
    def test_never_started(self, lab: Lab):
        daemon = Daemon(lab.client)
        code, checks = doctor(daemon)
        assert code == 3
        assert set(not_ok(checks)) - {"leftovers.cgroups"} == {"daemon"}
        done = _run(daemon)
        assert done.stderr.startswith("redirectctl: doctor: ")
        assert "only the checks that need no daemon were made" in done.stderr

    def test_killed_while_a_moved_connection_lives(self, pair: Pair, ticking: Ticker):
        lab = pair.lab
        old = str(lab.client.address())
        move(pair, pair.client, lab.cafe)
        for daemon in pair.daemons:  # in the tunnel, where a move begins, nothing goes on without a daemon
            wait_until(lambda daemon=daemon: paths(daemon) == {"rewritten"}, PATIENCE, "rewritten on both hosts")
        pair.client.kill()
        code, checks = doctor(pair.client)
        assert (code, checks["leftovers"]["status"]) == (3, "warn")
        assert checks["leftovers"]["found"].startswith("1 connection still uses")
        assert ticking.stop().ok  # in order: without a daemon the RST of a killed program would be held back
        code, checks = wait_until(lambda: _failed(pair.client), PATIENCE, "the connection is over", poll=0.5)
        found = checks["leftovers"]["found"].splitlines()
        port = ticking.local.rpartition(":")[2]
        assert {
            "nft table inet redirectctl",
            f"device {TUN_DEVICE}",
            f"address {old} on {TUN_DEVICE}",
            f"route to {old} in table 7747",
            "IPv4 rule 7747 to table 7747",
            "IPv6 rule 40000 to table 7748",
            "IPv4 rule 7746 to table 7749",
            "default IPv4 route in table 7749",
            f"reserved port {port}",
        } <= set(found)
        assert sum(line.startswith(("iptables ", "ip6tables ")) for line in found) in (0, 2 * len(QUEUE_RULES))
        pair.client.start()  # as the hint says: it removes what no connection needs
        assert doctor(pair.client)[1]["leftovers"]["status"] == "ok"
        assert pair.client.stop() < 5
        assert traces(lab.client) == []
        code, checks = doctor(pair.client)
        assert (code, checks["leftovers"]["status"]) == (3, "ok")

    def test_by_hand(self, lab: Lab):
        """The commands that doctor gives remove everything."""
        daemon = Daemon(lab.client)
        daemon.start()
        daemon.kill()
        assert traces(lab.client) != []
        code, checks = doctor(daemon)
        assert (code, checks["leftovers"]["status"]) == (1, "fail")
        for command in checks["leftovers"]["hint"].splitlines()[1:]:
            lab.client.run(command.split())
        assert traces(lab.client) == []
        assert doctor(daemon)[0] == 3


def _failed(daemon: Daemon) -> tuple[int, dict[str, dict[str, Any]]] | None:
    code, checks = doctor(daemon)
    return (code, checks) if checks["leftovers"]["status"] == "fail" else None


def test_after_a_whole_life(pair: Pair):
    """Connect, move, close, wait: no leftover on both hosts; stop: nothing of ours in the namespaces."""
    lab = pair.lab
    ticker = start_ticker(lab.server, lab.client, wrap=pair.wrap)
    pair.wait_protected(1)
    move(pair, pair.client, lab.cafe)
    move(pair, pair.server, lab.dc2)
    # A chain that looks for probes stays until the next change if connections end while a probe is out.
    wait_until(
        lambda: not [line for d in pair.daemons for line in held(d.host) if "elements in probe" in line],
        PATIENCE,
        "probes",
    )
    assert ticker.stop().ok
    pair.wait_nothing_held()
    for each in pair.daemons:
        assert not_ok(doctor(each)[1]) == {}
    pair.stop_without_a_trace()
    for each in pair.daemons:
        code, checks = doctor(each)
        assert (code, checks["leftovers"]["status"]) == (3, "ok")
        assert _raw(each.host) == {"rule": 3, "rule6": 2, "links": 0, "tables": [], "queues": 0, "ports": ""}


def _raw(host: Host) -> dict[str, object]:
    """The same by the kernel's own tools: rules that every host has (3 of IPv4, 2 of IPv6), and nothing else."""
    text: Callable[[str], str] = lambda command: host.run(command.split()).stdout  # noqa: E731
    return {
        "rule": len(text("ip rule").splitlines()),
        "rule6": len(text("ip -6 rule").splitlines()),
        "links": text("ip -o link").count(TUN_DEVICE),
        "tables": [line for line in text("nft list tables").splitlines() if "redirectctl" in line],
        "queues": text("iptables-save").count("NFQUEUE") + text("ip6tables-save").count("NFQUEUE"),
        "ports": text("sysctl -n net.ipv4.ip_local_reserved_ports").strip(),
    }

"""`redirectctl doctor --clean`: ours goes, what is somebody else's stays."""

from __future__ import annotations

import json
import subprocess
import sys

from daemon_pair import FAST, PATIENCE, Pair, traces

from redirectctl.lab.daemons import Daemon
from redirectctl.lab.namespaces import program
from redirectctl.lab.streams import start_ticker, wait_until
from redirectctl.lab.topology import Host, Lab

# Near to ours in name and number.
OTHERS = """
nft add table inet redirectctl2
nft 'add chain inet redirectctl2 in { type filter hook prerouting priority -310; }'
nft 'add rule inet redirectctl2 in meta mark and 0x10000000 == 0x10000000 counter'
nft add table ip redirectctl
nft 'add set ip redirectctl in { type ipv4_addr; }'
ip link add redirect1 type bridge
ip tuntap add redirect00 mode tun
ip rule add fwmark 0x10000000/0x10000000 priority 7746 table 7746
ip rule add fwmark 0x1 priority 7747 table 100
ip -6 rule add fwmark 0x1 priority 40000 table 100
ip route add 192.0.2.81/32 dev eth0 table 7746
ip route add local 192.0.2.82 dev lo table 7750
sysctl -qw net.ipv4.ip_local_reserved_ports=8080,9000-9010
sysctl -qw net.ipv4.conf.lo.src_valid_mark=1
iptables -t raw -A PREROUTING -p udp -j NFQUEUE --queue-num 5 --queue-bypass
iptables -t raw -A OUTPUT -p udp -j ACCEPT
ip6tables -t raw -A OUTPUT -p udp -j ACCEPT
ip6tables -t raw -A PREROUTING -p udp -j ACCEPT
iptables -t raw -A PREROUTING -m mark --mark 0x10000000/0x10000000 -j NFQUEUE --queue-num 7746 --queue-bypass
ip6tables -t mangle -A OUTPUT -m mark --mark 0x2000000/0x2000000 -j NFQUEUE --queue-num 7747 --queue-bypass
"""
AS_NOBODY = """
import os, sys
import redirectctl.cli.doctor, redirectctl.doctor.clean
from redirectctl.cli.main import main
os.setgid(65534)
os.setuid(65534)
sys.argv[1:] = ["--socket", "/nonexistent/s", "doctor", "--clean"]
sys.exit(main())
"""
SHOWN = (
    "nft list ruleset",
    "ip -br link | cut -d ' ' -f 1",
    "ip -o address",
    "ip rule",
    "ip -6 rule",
    "ip route show table all",
    "ip -6 route show table all",
    "iptables-save",
    "ip6tables-save",
    "sysctl -n net.ipv4.ip_local_reserved_ports",
    "sysctl -a --pattern src_valid_mark",
)


def everything(host: Host) -> str:
    """What there is, without counts of packets and times."""
    parts = [host.run(["sh", "-c", command]).stdout for command in SHOWN]
    lines = "\n".join(parts).splitlines()
    lines = [line.partition(" packets")[0].replace(" linkdown", "") for line in lines]
    return "\n".join(line for line in lines if not line.startswith(("#", ":")))


def clean(daemon: Daemon, *options: str) -> subprocess.CompletedProcess[str]:
    argv = [program("redirectctl"), "--socket", str(daemon.socket), "doctor", "--clean", *options]
    return daemon.host.run([*argv, "--state-dir", daemon.state], check=False)


def test_ours_goes_and_what_is_somebody_elses_stays(lab: Lab) -> None:
    for line in OTHERS.strip().splitlines():
        lab.client.run(["sh", "-c", line])
    pair = Pair(lab)
    ticker = start_ticker(lab.server, lab.client, wrap=pair.wrap)
    pair.wait_protected(1)
    lab.client.move(lab.cafe, 20)
    pair.wait_moved(pair.client, 0.0)

    refused = clean(pair.client)
    assert refused.returncode == 1
    assert "redirectd runs" in refused.stderr
    pair.kill()
    held = everything(lab.client)
    refused = clean(pair.client)
    assert refused.returncode == 1
    assert "1 connection still uses" in refused.stderr
    assert everything(lab.client) == held
    for end in ticker.ends.values():
        end.kill()
    argv = ["ss", "-K", "-tn", "state", "connected"]
    wait_until(lambda: not _sockets(lab.client, argv), PATIENCE, "the connection has ended", poll=1.0)

    port = ticker.local.rpartition(":")[2]
    done = clean(pair.client)
    assert (done.returncode, done.stderr) == (0, "")
    for what in ("nft table inet redirectctl", "device redirect0", "IPv4 rule 3873 to table 7747", f"port {port}"):
        assert what in done.stdout
    assert "redirectctl2" not in done.stdout
    # The addresses of the move are other ones than at the beginning; all else is as if redirectd had never been there.
    for line in everything(lab.client).splitlines():
        assert line in [*held.splitlines(), "8080,9000-9010"]
    gone = [line for line in held.splitlines() if line not in everything(lab.client).splitlines()]
    ours = ("redirect0", "redirectctl", "7747", "7748", "7749", "7750", "7751", "7752", port)
    strange = [line for line in gone if not any(each in line for each in ours)]
    assert [line for line in strange if line.startswith(("ip", "local", "default"))] == []
    for line in ("table inet redirectctl2 {", "table ip redirectctl {", "8080,9000-9010"):
        assert line in everything(lab.client)
    assert "net.ipv4.conf.lo.src_valid_mark = 1" in everything(lab.client)
    # Cgroups are the machine's: commands of other tests may have ended meanwhile.
    after = clean(pair.client, "--json")
    assert after.returncode == 0
    (told, *cgroups) = json.loads(after.stdout)
    assert [line for line in told["found"].splitlines()[1:] if not line.startswith("cgroup ")] == []
    assert [each["name"] for each in cgroups if each["status"] != "warn"] == []


def _sockets(host: Host, argv: list[str]) -> str:
    host.run(argv, check=False)
    return host.run(["ss", "-tnH", "state", "connected", "exclude", "time-wait"]).stdout


def test_everything_is_as_before_the_first_start(lab: Lab) -> None:
    for line in OTHERS.strip().splitlines():
        lab.client.run(["sh", "-c", line])
    before = everything(lab.client)
    daemon = Daemon(lab.client, FAST)
    daemon.start()
    daemon.kill()
    assert everything(lab.client) != before
    done = clean(daemon)
    assert (done.returncode, done.stderr) == (0, "")
    assert everything(lab.client) == before


def test_not_while_another_daemon_serves_in_the_namespace(lab: Lab) -> None:
    """One with another socket: the one that is asked for does not answer."""
    daemon = Daemon(lab.client, FAST)
    daemon.start()
    there = everything(lab.client)
    argv = [program("redirectctl"), "--socket", str(daemon.directory / "none.sock"), "doctor", "--clean"]
    done = lab.client.run(argv, check=False)
    assert done.returncode == 1
    assert "a redirectd runs in this network namespace" in done.stderr
    assert everything(lab.client) == there
    daemon.kill()
    assert lab.client.run(argv, check=False).returncode == 0
    assert traces(lab.client) == []


def test_another_kind_of_device_with_our_name_stays(lab: Lab) -> None:
    lab.client.ip("link add redirect0 type bridge")
    daemon = Daemon(lab.client, FAST)
    done = clean(daemon)
    assert done.returncode == 1
    assert "redirect0 is no TUN device" in done.stderr
    assert "redirect0" in lab.client.run(["ip", "link"]).stdout


def test_not_by_somebody_else(lab: Lab) -> None:
    daemon = Daemon(lab.client, FAST)
    daemon.start()
    daemon.kill()
    there = everything(lab.client)
    done = lab.client.run([sys.executable, "-c", AS_NOBODY], check=False)
    assert done.returncode == 4, done.stderr
    assert "run it as root" in done.stderr
    assert everything(lab.client) == there


def test_force_also_removes_what_may_be_somebody_elses(lab: Lab) -> None:
    """A rule of another priority that leads to one of our tables, a rule to one of our queues, and the device."""
    host = lab.client
    before = everything(host)
    host.ip("rule add fwmark 1 priority 99 table 7747")
    host.ip("link add redirect0 type bridge")
    daemon = Daemon(host, FAST)
    kept = clean(daemon)
    assert kept.returncode == 1
    assert "--force" in kept.stderr
    host.ip("link del redirect0")
    host.ip("link add redirect0 type bridge")
    done = clean(daemon, "--force")
    assert (done.returncode, done.stderr) == (0, "")
    for what in ("IPv4 rule 99 to table 7747", "device redirect0"):
        assert what in done.stdout
    assert everything(host) == before


def test_force_is_refused_while_a_daemon_runs(lab: Lab) -> None:
    daemon = Daemon(lab.client, FAST)
    daemon.start()
    lab.client.ip("rule add fwmark 1 priority 99 table 7747")
    there = everything(lab.client)
    for socket in (daemon.socket, daemon.directory / "none.sock"):
        argv = [program("redirectctl"), "--socket", str(socket), "doctor", "--clean", "--force"]
        done = lab.client.run(argv, check=False)
        assert done.returncode == 1
        assert "redirectd runs" in done.stderr
    assert everything(lab.client) == there

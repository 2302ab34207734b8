"""The lab does what its users rely on, and without redirectctl an address change does kill a connection."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from redirectctl.kernel.constants import TUN_DEVICE
from redirectctl.lab import namespaces
from redirectctl.lab.middlebox import Gateway
from redirectctl.lab.namespaces import LabError, Namespace, Sandbox
from redirectctl.lab.sshd import SshServer
from redirectctl.lab.streams import Program, Ticker, start_bulk, start_idle, start_ticker, wait_until
from redirectctl.lab.terminal import Terminal
from redirectctl.lab.topology import Addresses, Host, Lab
from redirectctl.lab.traffic import RECORD

BOTH_FAMILIES = pytest.mark.parametrize("version", [4, 6])
CONNECT = "import socket,sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), 2)"


def answer_of(host: Host, address: object, port: int = 9) -> str:
    """How an address answers a connection attempt: the last line of a Python traceback."""
    done = host.run([sys.executable, "-c", CONNECT, str(address), str(port)], check=False)
    return done.stderr.strip().splitlines()[-1] if done.returncode else "connected"


@BOTH_FAMILIES
def test_ssh_scp_rsync(lab: Lab, version: int) -> None:
    server = SshServer(lab.server)
    shown = lab.client.run(server.ssh("echo $SSH_CONNECTION; pwd", version=version)).stdout.splitlines()
    assert shown[0].split()[0] == str(lab.client.address(version))
    assert shown[0].split()[2:] == [str(lab.server.address(version)), "22"]
    assert Path(shown[1]) == server.home  # not that of the machine's root
    file = lab.sandbox.directory / "file"
    file.write_bytes(os.urandom(3_000_000))
    lab.client.run(server.scp(str(file), "server:by-scp", version))
    lab.client.run(server.rsync("-a", str(file), "server:by-rsync", version=version))
    assert (server.home / "by-scp").read_bytes() == (server.home / "by-rsync").read_bytes() == file.read_bytes()


def test_terminal_session_leaves_no_trace_on_the_machine(lab: Lab) -> None:
    watched = [Path(name) for name in ("/root/.bash_history", "/var/log/wtmp", "/var/log/lastlog", "/run/utmp")]
    before = [path.read_bytes() if path.exists() else None for path in watched]
    mounts = Path("/proc/self/mounts").read_text()
    server = SshServer(lab.server)
    terminal = Terminal(lab.client, server.ssh())
    assert terminal.run("test -t 0 && tty").startswith("/dev/pts/")
    assert terminal.run("echo 'a  b'; echo c") == "a  b\nc\n"
    with pytest.raises(LabError, match="status 3"):
        terminal.run("(exit 3)")
    terminal.type("read answer; exit $answer")
    assert terminal.leave() == 2  # "exit" is not a number
    assert [path.read_bytes() if path.exists() else None for path in watched] == before
    assert Path("/proc/self/mounts").read_text().count(" /run ") == mounts.count(" /run ")


@BOTH_FAMILIES
def test_move_makes_the_old_address_go(lab: Lab, version: int) -> None:
    old = lab.client.address(version)
    assert lab.client.has_address(old)
    assert "refused" in answer_of(lab.server, old)
    link = lab.client.move(lab.cafe, 20)
    assert lab.client.address(version) == link.addresses.of(version)
    assert lab.client.assigned() == {link.interface: [str(link.addresses.v4), str(link.addresses.v6)]}
    assert not lab.client.has_address(old)
    assert "refused" not in answer_of(lab.server, old)
    assert "refused" in answer_of(lab.server, link.addresses.of(version))


@BOTH_FAMILIES
def test_make_before_break_and_readdress_keep_a_route(lab: Lab, version: int) -> None:
    home = lab.client.links[0]
    lab.client.join(lab.cafe, 20)
    assert {each.network.name for each in lab.client.links} == {"home", "cafe"}
    assert lab.client.has_address(home.addresses.of(version))
    lab.client.move(lab.office, 30, make_before_break=True)
    assert [each.network.name for each in lab.client.links] == ["office"]
    assert not lab.client.has_address(home.addresses.of(version))
    interface = lab.client.links[0].interface
    before = lab.client.address(version)
    lab.client.readdress(31)
    assert lab.client.assigned() == {interface: ["203.0.113.31", "2001:db8:3::1f"]}
    assert not lab.client.has_address(before)
    assert "refused" in answer_of(lab.client, lab.server.address(version))


def test_address_on_redirectctls_own_device_does_not_count(lab: Lab) -> None:
    kept = lab.client.address()
    lab.client.move(lab.cafe, 20)
    lab.client.ip(f"tuntap add {TUN_DEVICE} mode tun", f"address add {kept}/32 dev {TUN_DEVICE}")
    assert str(kept) in lab.client.assigned()[TUN_DEVICE]
    assert not lab.client.has_address(kept)


def test_journeys_never_use_an_address_twice(lab: Lab) -> None:
    start = [lab.home.addresses(10), lab.dc1.addresses(10)]
    stops = [stop for journey in (lab.client_journey(), lab.server_journey()) for stop in journey]
    addresses = start + [stop.network.addresses(stop.number) for stop in stops]
    assert len(set(addresses)) == len(addresses) > 400


def test_cut_lose_restore(lab: Lab) -> None:
    ticker = start_ticker(lab.server, lab.client)
    lab.home.cut()
    cut_at = time.monotonic()
    with pytest.raises(LabError, match="in vain"):
        ticker.wait_gap(cut_at + 0.05, 0.5)
    lab.home.restore()
    ticker.wait_both(cut_at + 0.05, 20)
    lab.dc1.lose(30)
    lossy_from = time.monotonic()
    wait_until(lambda: time.monotonic() > lossy_from + 1, 5, "a second of losses")
    lab.dc1.restore()
    verdict = ticker.stop()
    assert verdict.ok, verdict
    assert ticker.longest_pause(cut_at) >= 0.5
    retransmitted = lab.client.run(["nstat", "-az", "TcpRetransSegs"]).stdout
    assert int(retransmitted.split()[-2]) > 0


@BOTH_FAMILIES
def test_without_redirectctl_a_session_stalls_when_the_client_moves(lab: Lab, version: int) -> None:
    terminal = Terminal(lab.client, SshServer(lab.server).ssh(version=version))
    assert terminal.run("echo works") == "works\n"
    lab.client.move(lab.cafe, 20)
    terminal.type("echo still works")
    with pytest.raises(LabError, match="does not answer"):
        terminal.read(3)


@BOTH_FAMILIES
@pytest.mark.parametrize("mover", ["client", "server"])
def test_without_redirectctl_the_strangers_rst_kills(lab: Lab, version: int, mover: str) -> None:
    moving, staying = (lab.client, "server") if mover == "client" else (lab.server, "client")
    network, other = (lab.home, lab.cafe) if mover == "client" else (lab.dc1, lab.dc2)
    ticker = start_ticker(lab.server, lab.client, version=version)
    (old,) = moving.leave()
    lab.stranger.take(old, network)
    assert lab.stranger.has_address(old.of(version))
    moving.join(other, 20)
    wait_until(lambda: staying in ticker.errors(), 60, "an error")
    assert ticker.errors()[staying] == "ECONNRESET"
    verdict = ticker.stop()
    assert not verdict.ok
    assert f"{staying}: ECONNRESET" in verdict.why


def test_stranger_takes_several_addresses(lab: Lab) -> None:
    taken: list[tuple[Addresses, object]] = []
    for network in (lab.home, lab.home, lab.cafe):
        (old,) = lab.client.leave()
        lab.stranger.take(old, network)
        taken.append((old, network))
        lab.client.join(lab.cafe if len(taken) == 2 else lab.home, 40 + len(taken))
    for addresses, _ in taken:
        assert "refused" in answer_of(lab.server, addresses.v4)
        assert "refused" in answer_of(lab.server, addresses.v6)


@BOTH_FAMILIES
def test_ticker_measures_the_pause_and_finds_everything_in_order(lab: Lab, version: int) -> None:
    ticker = start_ticker(lab.server, lab.client, version=version, interval=0.005)
    before = time.monotonic()
    lab.home.cut()
    wait_until(lambda: time.monotonic() > before + 0.5, 5, "the outage")
    lab.home.restore()
    restored = time.monotonic()
    gap = ticker.wait_both(restored, 20)
    assert ticker.longest_pause(before) > restored - before - 0.1
    assert 0 < ticker.wait_gap(restored, 1) <= gap
    verdict = ticker.stop()
    assert verdict.ok, verdict
    records = ticker.records("server")
    assert [each.number for each in records] == list(range(verdict.figures["client"]["sent"]))
    assert all(each.sent <= each.received for each in records)


def test_ticker_end_tells_of_disordered_records(lab: Lab) -> None:
    script = (
        "import socket,sys,time\n"
        "c = socket.create_connection((sys.argv[1], int(sys.argv[2])))\n"
        "c.sendall(bytes.fromhex(sys.argv[3]))\n"
        "c.shutdown(socket.SHUT_WR)\n"
        "while c.recv(65536): pass\n"
    )
    disordered = b"".join(RECORD.pack(number, 0) for number in (0, 2, 1))
    log = lab.sandbox.directory / "ticker.log"
    server = Program(lab.server, "ticker", "--listen", "0", "--log", str(log))
    port = str(server.wait_line(1)["port"])
    client = lab.client.popen([sys.executable, "-c", script, str(lab.server.address()), port, disordered.hex()])
    figures = server.finish()
    client.wait(10)
    assert (figures["ordered"], figures["received"], figures["error"]) == (False, 3, None)
    assert Ticker(server, server, {"client": log, "server": log}, "").records("server")[2].number == 1


@BOTH_FAMILIES
def test_bulk_and_idle(lab: Lab, version: int) -> None:
    bulk = start_bulk(lab.server, lab.client, version=version)
    idle = start_idle(lab.server, lab.client, 50, version=version)
    assert len(set(idle.locals)) == 50
    assert idle.ask(5) == {}
    wait_until(lambda: bulk.received() > 50_000_000, 30, "50 MB")
    verdict = bulk.stop()
    assert verdict.ok, verdict
    assert verdict.figures["server"]["bytes"] > 50_000_000
    lab.home.cut()
    assert set(idle.ask(0.5).values()) == {"ETIMEDOUT"}
    lab.home.restore()
    assert idle.ask(10) == {}  # the late echoes are what was sent, too
    lab.client.leave()
    assert len(idle.ask(0.5)) == 50


def test_duplicate_address_detection_is_real_when_asked_for(make_lab: Callable[..., Lab]) -> None:
    lab = make_lab(dad=True)
    lab.client.move(lab.cafe, 20)
    assert "tentative" in lab.client.run(["ip", "-6", "address", "show", "to", str(lab.client.address(6))]).stdout
    settled = lab.client.run(["ip", "-6", "address", "show", "dev", lab.client.links[0].interface]).stdout
    wait_until(
        lambda: "tentative" not in lab.client.run(["ip", "-6", "address", "show", "scope", "global"]).stdout,
        10,
        f"duplicate address detection: {settled}",
    )


def test_closing_ends_processes_that_have_left_their_group() -> None:
    lab = Lab()
    lab.client.popen(["setsid", "-f", "sh", "-c", "trap '' TERM HUP; exec sleep 1000"]).wait(10)
    (sleeper,) = wait_until(lab.client.processes, 5, "the process")
    assert f"process {sleeper}" in lab.sandbox.left()
    lab.close()
    assert lab.sandbox.left() == []
    assert not Path(f"/proc/{sleeper}/ns/net").exists()


CHILD = """
import sys, time
from redirectctl.lab.namespaces import ended_by_signals
from redirectctl.lab.topology import Lab
with ended_by_signals(), Lab() as lab:
    lab.client.popen(["sleep", "1000"])
    print(lab.sandbox.tag, lab.sandbox.directory, flush=True)
    time.sleep(1000)
"""


@pytest.fixture
def child() -> Iterator[subprocess.Popen[str]]:
    """A process with a lab of its own; it printed the lab's tag and directory."""
    process = subprocess.Popen([sys.executable, "-c", CHILD], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.terminate()
        process.communicate(timeout=20)


def printed(child: subprocess.Popen[str]) -> tuple[str, Path]:
    assert child.stdout is not None
    tag, directory = child.stdout.readline().split()
    assert list(namespaces.NETNS_DIRECTORY.glob(f"{tag}-*"))
    return tag, Path(directory)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_nothing_is_left_after_a_signal(child: subprocess.Popen[str], number: signal.Signals) -> None:
    tag, directory = printed(child)
    child.send_signal(number)
    child.wait(20)
    assert child.returncode in (128 + number, -number)
    assert list(namespaces.NETNS_DIRECTORY.glob(f"{tag}-*")) == []
    assert not directory.exists()


def test_sweep_removes_what_a_killed_one_left(child: subprocess.Popen[str], lab: Lab) -> None:
    tag, directory = printed(child)
    sandbox = Sandbox()
    sandbox.tag = tag
    (process,) = wait_until(Namespace(sandbox, "client").processes, 10, "the process")
    child.kill()
    child.wait(20)
    namespaces.sweep()  # other tests at the same time may have begun to
    wait_until(lambda: not [*namespaces.NETNS_DIRECTORY.glob(f"{tag}-*"), *directory.parent.glob(directory.name)], 10,
               "nothing left of the killed one")  # fmt: skip
    assert not Path(f"/proc/{process}/ns/net").exists()
    assert lab.sandbox.left()  # that of a living process is not touched
    sandbox.close()


def counted(host: Namespace, words: str) -> int:
    """Packets counted by the rules of a host whose text has these words."""
    rules = [line for line in host.run(["nft", "list", "ruleset"]).stdout.splitlines() if words in line]
    assert rules, words
    return sum(int(line.split("counter packets ")[1].split()[0]) for line in rules)


def peers_of(host: Host) -> list[str]:
    """The addresses, without ports, of those that a host has TCP connections with."""
    lines = host.run(["ss", "-tnH", "state", "established"]).stdout.splitlines()
    return [line.split()[3].rpartition(":")[0].removeprefix("[::ffff:").strip("[]") for line in lines]


@BOTH_FAMILIES
def test_behind_a_gateway_the_server_sees_its_public_address_and_another_port(lab: Lab, version: int) -> None:
    gateway = Gateway(lab, lab.home)
    lab.client.move(gateway.private, 10)
    ticker = start_ticker(lab.server, lab.client, version=version)
    assert peers_of(lab.server) == [str(gateway.address(version))]
    port = ticker.local.rpartition(":")[2]
    assert f":{port} " not in lab.server.run(["ss", "-tnH", "state", "established"]).stdout
    assert "refused" not in answer_of(lab.server, gateway.private.addresses(10).of(version))


def test_a_gateway_that_dials_again_forgets_its_connections(lab: Lab) -> None:
    gateway = Gateway(lab, lab.home)
    lab.client.move(gateway.private, 10)
    ticker = start_ticker(lab.server, lab.client)
    private, old = lab.client.address(), gateway.address()
    gateway.rebind()
    wait_until(lambda: not ticker.alive(), 20, "a RST for a port that the server does not know")
    assert lab.client.address() == private
    assert not gateway.has_address(old)
    start_ticker(lab.server, lab.client)
    assert str(gateway.address()) in peers_of(lab.server)


@BOTH_FAMILIES
def test_a_gateway_lets_in_only_what_is_forwarded(lab: Lab, version: int) -> None:
    gateway = Gateway(lab, lab.dc1)
    lab.server.move(gateway.private, 10)
    gateway.forward({("tcp", 9): 10})
    assert "refused" in answer_of(lab.client, gateway.address(version))  # by the server: nobody listens
    SshServer(lab.server)
    assert "connected" not in answer_of(lab.client, gateway.address(version), 22)
    gateway.forward({("tcp", 22): 10})
    assert answer_of(lab.client, gateway.address(version), 22) == "connected"


@BOTH_FAMILIES
def test_a_firewall_drops_connections_that_it_has_not_seen_begin(lab: Lab, version: int) -> None:
    ticker = start_ticker(lab.server, lab.client, version=version)
    lab.home.firewall()
    wait_until(lambda: counted(lab.router, "ct state invalid") > 0, 60, "a packet in the middle", poll=0.05)
    before = {end: len(ticker.records(end)) for end in ticker.ends}
    dropped = counted(lab.router, "ct state invalid")
    wait_until(lambda: counted(lab.router, "ct state invalid") > dropped + 3, 60, "packets in the middle", poll=0.05)
    assert {end: len(ticker.records(end)) for end in ticker.ends} == before
    assert "refused" in answer_of(lab.client, lab.server.address(version))
    start_ticker(lab.server, lab.client, version=version)


OPTION = """
import sys
from scapy.all import IP, TCP, send
send(IP(dst=sys.argv[1]) / TCP(dport=9, flags="S", options=[(253, bytes(10))]), verbose=False)
"""
COUNT_OPTIONS = """
table inet count {
    chain input {
        type filter hook input priority -300
        tcp dport 9 counter
        tcp option 253 exists counter
    }
}
"""


def test_a_router_strips_our_option(lab: Lab) -> None:
    lab.server.run(["nft", "-f", "-"], stdin=COUNT_OPTIONS)
    send = [sys.executable, "-c", OPTION, str(lab.server.address())]
    lab.client.run(send)
    assert (counted(lab.server, "dport 9"), counted(lab.server, "option 253")) == (1, 1)
    lab.home.strip_options()
    lab.client.run(send)
    assert (counted(lab.server, "dport 9"), counted(lab.server, "option 253")) == (2, 1)


PROBE = """
import errno, socket, sys
family = socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET
level, discover, probe = (41, 23, 3) if family == socket.AF_INET6 else (0, 10, 3)
probing = socket.socket(family, socket.SOCK_DGRAM)
probing.setsockopt(level, discover, probe)
probing.setsockopt(level, 25 if level else 11, 1)
probing.connect((sys.argv[1], 9))
probing.settimeout(1)
try:
    probing.send(bytes(int(sys.argv[2]) - (48 if level else 28)))
    probing.recv(1)
except OSError as error:
    print(errno.errorcode.get(error.errno, "silence"))
"""


@BOTH_FAMILIES
@pytest.mark.parametrize("mtu", [1280, 1400])
def test_a_small_link_drops_what_is_too_large_and_says_nothing(lab: Lab, mtu: int, version: int) -> None:
    lab.home.shrink(mtu)
    for host, other in ((lab.client, lab.server), (lab.server, lab.client)):
        for size, said in ((mtu, "ECONNREFUSED"), (mtu + 4, "silence")):  # the answer of a host: nobody listens
            probe = [sys.executable, "-c", PROBE, str(other.address(version)), str(size)]
            assert host.run(probe).stdout.split() == [said]
    assert counted(lab.router, "destination-unreachable" if version == 4 else "packet-too-big") == 2


def test_hosts_on_a_network_of_one_family_have_no_other_address(lab: Lab) -> None:
    lab.home.only(4)
    lab.cafe.only(6)
    for network, version in ((lab.home, 4), (lab.cafe, 6)):
        link = lab.client.move(network, 20)
        assert lab.client.assigned()[link.interface] == [str(link.addresses.of(version))]
        assert "refused" in answer_of(lab.client, lab.server.address(version))
        assert "unreachable" in answer_of(lab.client, lab.server.address(10 - version))

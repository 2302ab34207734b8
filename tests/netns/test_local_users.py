"""What another user of the machine may try with the daemon's socket and port, against a real daemon."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from daemon_pair import PATIENCE, Pair
from other_users import AS_NOBODY, ECHO_PORT, NOBODY, TALK, start_echo, wait_listening

from redirectctl.kernel.constants import CGROUP_PREFIX
from redirectctl.lab.daemons import Daemon
from redirectctl.lab.namespaces import LabError, Namespace, program
from redirectctl.lab.streams import start_ticker, wait_until
from redirectctl.lab.topology import Lab

HOSTS = 400
LAST_PID = Path("/proc/sys/kernel/ns_last_pid")
# Connects, and leaves the connection to a child; the process that the kernel has noted ends.
HAND_ON = (
    AS_NOBODY
    + TALK
    + """
lines.readline()  # hello
if os.fork():
    os._exit(0)
os.setsid()  # a number is free when it names no group and no session either
print("handed on", flush=True)
for request in sys.stdin:
    s.sendall(request.encode())
    print(lines.readline().strip(), flush=True)
"""
)
OPT_IN = (
    AS_NOBODY
    + TALK
    + """
lines.readline()
s.sendall(b'{"type":"opt-in"}\\n')
print(lines.readline().strip())
"""
)
IDLE = """
import os, socket, sys
uid = int(sys.argv[2])
os.setgroups([]); os.setgid(uid); os.setuid(uid)
kept = [socket.socket(socket.AF_UNIX) for _ in range(int(sys.argv[3]))]
for each in kept:
    each.connect(sys.argv[1])
print("connected", flush=True)
sys.stdin.read()
"""
LISTEN = f"""
import socket
server = socket.create_server(("::", {ECHO_PORT}), family=socket.AF_INET6, backlog=1000)
kept = []
while True:
    kept.append(server.accept())
"""
MANY = (
    AS_NOBODY
    + TALK
    + """
lines.readline()
s.sendall(b'{"type":"opt-in"}\\n')
assert "opted-in" in lines.readline()
kept = [socket.socket(socket.AF_INET6) for _ in sys.argv[3:]]
for each, address in zip(kept, sys.argv[3:]):
    each.connect((address, int(sys.argv[2])))
print("connected", flush=True)
sys.stdin.read()
"""
)
HOLD_PORT = """
s = socket.socket(socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET, socket.SOCK_DGRAM)
if ":" in sys.argv[1]:
    s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
s.bind((sys.argv[1], 7747))
print("bound", flush=True)
sys.stdin.read()
"""
CONNECTED = """
import socket, sys
s = socket.create_connection((sys.argv[1], int(sys.argv[2])), 30)
print("connected", flush=True)
sys.stdin.read()
"""


def start_as(host: Namespace, pid: int, argv: Sequence[str]) -> subprocess.Popen[str]:
    """Start a command that gets a number which another process had before."""
    for _ in range(2000):  # others of this machine start processes too
        LAST_PID.write_text(str(pid - 1))
        process = host.popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        if process.pid == pid:
            return process
        process.kill()
        process.communicate()
        host.sandbox.processes.remove(process)
    raise AssertionError(f"no process got number {pid}")


def opted_in(pid: int) -> bool:
    """Whether a process is in a cgroup of redirectctl's."""
    return CGROUP_PREFIX in Path(f"/proc/{pid}/cgroup").read_text()


@pytest.mark.skipif(not os.access(LAST_PID, os.W_OK), reason="this kernel lets nobody choose process numbers")
def test_a_number_that_is_another_process_by_now(open_to_all: Lab) -> None:
    """Somebody's connection to the daemon outlives its process, whose number goes to one of root's."""
    lab = open_to_all
    pair = Pair(lab)
    pair.client.socket.parent.chmod(0o755)
    start_echo(lab.server)
    attacker = lab.client.popen(
        [sys.executable, "-c", HAND_ON, str(pair.client.socket)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert attacker.stdin is not None
    assert attacker.stdout is not None
    attacker.stdout.readline()
    attacker.wait(PATIENCE)
    roots = start_as(
        lab.client, attacker.pid, [sys.executable, "-c", CONNECTED, str(lab.server.address()), str(ECHO_PORT)]
    )
    assert roots.stdout is not None
    assert roots.stdout.readline() == "connected\n"

    def ask(request: str) -> dict[str, object]:
        attacker.stdin.write(json.dumps({"type": request}) + "\n")
        attacker.stdin.flush()
        return json.loads(attacker.stdout.readline())

    told = ask("opt-in")
    assert (told["type"], opted_in(roots.pid)) == ("error", False), told
    assert "has ended" in str(told["why"])
    # Root opts it in; whose number that was hears nothing of it.
    pair.client.ctl("protect", str(roots.pid))
    assert opted_in(roots.pid)
    pair.wait_protected(1)
    lab.client.leave()
    pair.client.wait_connections("suspended")
    told = ask("watch")
    assert told["type"] == "error", told
    # A second party with a process of its own is opted in as ever.
    done = lab.client.run([sys.executable, "-c", OPT_IN, str(pair.client.socket)])
    assert json.loads(done.stdout.splitlines()[-1])["type"] == "opted-in"


@pytest.mark.parametrize("users", [4, 20])
def test_idle_clients_of_some_users_shut_nobody_out(open_to_all: Lab, users: int) -> None:
    lab = open_to_all
    daemon = Daemon(lab.client)
    daemon.start()
    daemon.socket.parent.chmod(0o755)
    for uid in range(2000, 2000 + users):
        hoarder = lab.client.popen(
            [sys.executable, "-c", IDLE, str(daemon.socket), str(uid), "64"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert hoarder.stdout is not None
        assert hoarder.stdout.readline() == "connected\n"
    assert daemon.ctl("status")["pid"]
    done = lab.client.run([sys.executable, "-c", OPT_IN, str(daemon.socket)])
    assert json.loads(done.stdout.splitlines()[-1])["type"] == "opted-in"


def test_connections_to_many_hosts_keep_nobody_elses_from_being_protected(open_to_all: Lab) -> None:
    """Somebody has connections with 400 addresses at which no daemon answers, each of which is asked for 9 s."""
    lab = open_to_all
    pair = Pair(lab)
    pair.client.socket.parent.chmod(0o755)
    lab.stranger.join(lab.cafe, 20)
    prefix = lab.cafe.addresses(20).v6.exploded.rpartition(":")[0]
    interface = lab.stranger.links[0].interface
    addresses = [f"{prefix}:{number:x}" for number in range(0x1000, 0x1000 + HOSTS)]
    lab.stranger.ip(*(f"address add {each}/64 dev {interface} nodad" for each in addresses))
    lab.stranger.run(["nft", "add table inet t"])
    lab.stranger.run(["nft", "add chain inet t i { type filter hook input priority 0; }"])
    lab.stranger.run(["nft", "add rule inet t i udp dport 7747 drop"])  # nothing says that nobody is there
    lab.stranger.popen([sys.executable, "-c", LISTEN])
    wait_listening(lab.stranger)
    many = lab.client.popen(
        [sys.executable, "-c", MANY, str(pair.client.socket), str(ECHO_PORT), *addresses],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert many.stdout is not None
    assert many.stdout.readline() == "connected\n"

    def asking() -> int:
        return sum(c["state"] == "negotiating" for c in pair.client.ctl("connections"))

    wait_until(lambda: asking() > HOSTS // 8, PATIENCE, "hosts are being asked", poll=0.1)
    ticker = start_ticker(lab.server, lab.client, wrap=pair.wrap)
    (listed,) = pair.wait_protected(1)
    assert listed["remote"].startswith(str(lab.server.address()))
    assert many.poll() is None
    verdict = ticker.stop()
    assert verdict.ok, verdict.why


@pytest.mark.parametrize("address", ["0.0.0.0", "::"])
def test_a_user_on_the_control_port_is_named_and_his_end_is_enough(open_to_all: Lab, address: str) -> None:
    lab = open_to_all
    daemon = Daemon(lab.client)
    holder = lab.client.popen(
        [sys.executable, "-c", AS_NOBODY + HOLD_PORT, address], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "bound\n"
    with pytest.raises(LabError, match=f"process {holder.pid} of user {NOBODY} .* has it; end it, or set another"):
        daemon.start()
    assert daemon.process is not None
    assert daemon.process.returncode == 1
    holder.communicate("")
    daemon.start()
    assert daemon.ctl("status")["control_port"] == 7747


def test_too_few_files_are_told_as_such(lab: Lab) -> None:
    daemon = Daemon(lab.client)
    limited = ["sh", "-c", 'ulimit -n "$1"; shift; exec "$@"', "sh"]
    argv = [program("redirectd"), "--state-dir", daemon.state, "--socket", daemon.socket, "--config", daemon.config]
    seen = set()
    for files in range(5, 40, 3):
        done = lab.client.run([*limited, str(files), "timeout", "20", *argv], check=False)
        if done.returncode == 124:  # it ran
            break
        said = [line for line in done.stderr.splitlines() if line.startswith("redirectd: ")]
        if said:  # else Python itself has not started
            assert done.returncode == 1
            assert "CAP_" not in said[-1], (files, said)
            assert "limit of open files" in said[-1].rpartition(";")[2], (files, said)
            seen.add(said[-1])
    assert len(seen) > 2, seen

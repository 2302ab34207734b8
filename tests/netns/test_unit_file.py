"""The daemon with the capabilities, system calls and rights that its unit file leaves it: everything still works."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from daemon_pair import FAST, PATIENCE, give_away

from redirectctl.kernel.processes.cgroup import find_mount
from redirectctl.kernel.processes.procfs import sockets_of
from redirectctl.kernel.sockets.borrow import NEVER, borrow
from redirectctl.lab.daemons import Daemon
from redirectctl.lab.namespaces import program
from redirectctl.lab.streams import Ticker, start_ticker, wait_until
from redirectctl.lab.topology import Lab
from tests.unit_file import confine, filter_of, read, without_filter

UNIT = Path(__file__).parents[2] / "systemd" / "redirectd.service"
NOBODY = 65534
AS_NOBODY = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
STAY_CONNECTED = """
exec 3<>/dev/tcp/$0/$1 && echo connected
while read -r line; do echo "$line" >&3; read -r answer <&3; echo "$answer"; done
"""
ECHO = """
import socket, sys
listener = socket.create_server(("", int(sys.argv[1])))
print("listening", flush=True)
sock, _ = listener.accept()
while data := sock.recv(100):
    sock.sendall(data)
"""

LOGIND = """
import asyncio, sys
from dbus_fast import Message
from dbus_fast.aio import MessageBus

async def main():
    bus = await MessageBus(bus_address=sys.argv[1]).connect()
    await bus.request_name("org.freedesktop.login1")
    print("ready", flush=True)
    while await asyncio.to_thread(sys.stdin.readline):
        for asleep in (True, False):
            await bus.send(Message.new_signal("/org/freedesktop/login1", "org.freedesktop.login1.Manager",
                                              "PrepareForSleep", "b", [asleep]))
        print("said", flush=True)

asyncio.run(main())
"""


def confined(*forbidden: str) -> list[str]:
    """As the unit has it, without these system calls."""
    unit = read(UNIT.read_text())
    left = [name for name in unit["SystemCallFilter"].split() if name not in forbidden]
    assert len(left) == len(unit["SystemCallFilter"].split()) - len(forbidden)
    code = filter_of(" ".join(left)) if forbidden else None
    return confine(unit, sys.executable, [program("redirectd")], code=code)


def examined(daemon: Daemon, name: str) -> str:
    """Status of one of doctor's checks."""
    argv = [program("redirectctl"), "--socket", str(daemon.socket), "--json", "doctor"]
    checks = {check["name"]: check for check in json.loads(daemon.host.run(argv, check=False).stdout)}
    return str(checks[name]["status"])


def user_timeout(ticker: Ticker, end: str) -> int:
    """TCP_USER_TIMEOUT of a ticker's connection, in milliseconds."""
    inodes = sockets_of(ticker.ends[end].process.pid)
    handles = borrow(inodes).values()
    try:
        return max(handle.user_timeout for handle in handles)
    finally:
        for handle in handles:
            handle.close()


@pytest.fixture
def cgroup_of_a_user() -> Iterator[Path]:
    """A cgroup that belongs to somebody else than root, as in a user's session."""
    path = find_mount()[0] / f"test-user-{os.getpid()}"
    path.mkdir()
    for each in (path, path / "cgroup.procs"):
        os.chown(each, NOBODY, NOBODY)
    yield path
    for each in (*path.glob("redirectctl-*"), path):
        with suppress(FileNotFoundError):  # the lab removes cgroups that its processes were in
            each.rmdir()


def test_another_users_connection_is_opted_in_named_and_moved(cgroup_of_a_user: Path, lab: Lab) -> None:
    client, server = (Daemon(host, FAST, command=confined()) for host in (lab.client, lab.server))
    for daemon in (client, server):
        daemon.start()
        assert daemon.process is not None
        status = Path(f"/proc/{daemon.process.pid}/status").read_text()
        assert "NoNewPrivs:\t1\n" in status
        assert "CapEff:\t000001ffffffffff" not in status
    echo = lab.server.popen([sys.executable, "-c", ECHO, "7"], stdout=subprocess.PIPE)
    assert echo.stdout is not None
    assert echo.stdout.readline() == "listening\n"
    user = lab.client.popen(
        [*AS_NOBODY, "bash", "-c", STAY_CONNECTED, str(lab.server.address()), "7"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert user.stdin is not None
    assert user.stdout is not None
    assert user.stdout.readline() == "connected\n"
    (cgroup_of_a_user / "cgroup.procs").write_text(str(user.pid))
    (found,) = client.ctl("protect", str(user.pid))
    assert f"{cgroup_of_a_user.name}/redirectctl-{user.pid}" in Path(f"/proc/{user.pid}/cgroup").read_text()
    (protected,) = client.wait_connections("protected", timeout=PATIENCE)
    assert (protected["id"], protected["pid"]) == (found["id"], user.pid)
    since = time.time()
    give_away(lab, lab.client)
    lab.client.join(lab.cafe, 20)
    client.wait_event("move.finished", since=since, timeout=PATIENCE)
    user.stdin.write("still here\n")
    user.stdin.flush()
    assert user.stdout.readline() == "still here\n"
    checks = {check["name"]: check for check in client.ctl("doctor")}
    assert [check for check in checks.values() if check["status"] == "fail"] == []
    user.stdin.close()
    assert user.wait(PATIENCE) == 0
    assert "Traceback" not in client.report() + server.report()


@pytest.mark.skipif(bool(without_filter()), reason=without_filter())
def test_sockets_of_suspended_connections_are_borrowed(lab: Lab) -> None:
    """Else they live no longer than TCP does by itself."""
    client, server = (Daemon(host, FAST, command=confined()) for host in (lab.client, lab.server))
    for daemon in (client, server):
        daemon.start()
        assert daemon.process is not None
        assert "Seccomp:\t2\n" in Path(f"/proc/{daemon.process.pid}/status").read_text()
        assert examined(daemon, "kernel.borrowing") == "ok"
    ticker = start_ticker(lab.server, lab.client, wrap=client.opted_in())
    client.wait_connections("protected", timeout=PATIENCE)
    before = user_timeout(ticker, "client"), user_timeout(ticker, "server")
    lab.client.leave()
    for end in ("client", "server"):
        wait_until(lambda end=end: user_timeout(ticker, end) == NEVER, PATIENCE, f"borrowed at the {end}", poll=0.2)
    lab.client.join(lab.cafe, 20)
    for end, value in zip(("client", "server"), before, strict=True):
        what = f"given back at the {end}"
        wait_until(lambda end=end, value=value: user_timeout(ticker, end) == value, PATIENCE, what, poll=0.2)
    assert ticker.stop().ok
    assert client.events("kernel.refused") == server.events("kernel.refused") == []


@pytest.mark.skipif(bool(without_filter()), reason=without_filter())
def test_a_filter_that_forbids_borrowing_is_told_at_once(lab: Lab) -> None:
    client = Daemon(lab.client, FAST, command=confined("pidfd_getfd"))
    server = Daemon(lab.server, FAST)
    for daemon in (client, server):
        daemon.start()
    refused = client.wait_event("kernel.refused", timeout=PATIENCE)
    assert refused["reason"] == "borrowing"
    assert "SystemCallFilter" in refused["detail"]
    assert "SystemCallFilter" in client.report()
    assert examined(client, "kernel.borrowing") == "fail"
    ticker = start_ticker(lab.server, lab.client, wrap=client.opted_in())
    client.wait_connections("protected", timeout=PATIENCE)
    lab.client.leave()
    client.wait_event("connection.suspended", timeout=PATIENCE)
    lab.client.join(lab.cafe, 20)
    client.wait_event("connection.resumed", timeout=PATIENCE)  # a short outage does not need it
    assert ticker.stop().ok


@pytest.mark.skipif(shutil.which("dbus-daemon") is None, reason="dbus-daemon is not installed")
def test_what_logind_says_reaches_the_daemon(lab: Lab, tmp_path: Path) -> None:
    address = f"unix:path={tmp_path / 'bus'}"
    bus = lab.client.popen(
        ["dbus-daemon", "--session", "--nofork", "--print-address", f"--address={address}"], stdout=subprocess.PIPE
    )
    assert bus.stdout is not None
    assert bus.stdout.readline().startswith(address)
    manager = lab.client.popen([sys.executable, "-c", LOGIND, address], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert manager.stdin is not None
    assert manager.stdout is not None
    assert manager.stdout.readline() == "ready\n"
    client = Daemon(lab.client, FAST, command=["env", f"DBUS_SYSTEM_BUS_ADDRESS={address}", *confined()])
    server = Daemon(lab.server, FAST)
    for daemon in (client, server):
        daemon.start()
    ticker = start_ticker(lab.server, lab.client, wrap=client.opted_in())
    client.wait_connections("protected", timeout=PATIENCE)

    def found() -> str:
        return next(check["found"] for check in client.ctl("doctor") if check["name"] == "daemon.sleep")

    wait_until(lambda: found().startswith("logind"), PATIENCE, "logind", poll=0.2)
    since = time.time()
    manager.stdin.write("awake\n")
    manager.stdin.flush()
    assert manager.stdout.readline() == "said\n"
    started = client.wait_event("move.started", since=since, timeout=PATIENCE)
    assert started["reason"] == "woke"
    client.wait_event("move.finished", since=since, timeout=PATIENCE)
    assert ticker.stop().ok

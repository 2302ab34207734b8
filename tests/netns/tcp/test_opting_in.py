"""Opting in with real cgroups and sockets."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from redirectctl.kernel.constants import CGROUP_PREFIX
from redirectctl.kernel.errors import KernelError
from redirectctl.kernel.processes import procfs
from redirectctl.kernel.processes.cgroup import Cgroup, CgroupTree, populated
from redirectctl.kernel.processes.pidfd import Pidfd
from redirectctl.kernel.sockets.bytecode import SocketFilter
from redirectctl.kernel.sockets.diag import SockDiag
from tests.netns.tcp.socket_lab import Wire, inside, until

# Waits for a line, connects, and has a child connect that lives until its standard input is closed.
PROGRAM = """
import os, socket, sys
family = socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET
sys.stdin.readline()
mine = socket.create_connection((sys.argv[1], int(sys.argv[2])))
if os.fork() == 0:
    childs = socket.create_connection((sys.argv[1], int(sys.argv[2])))
    print("connected", flush=True)
    sys.stdin.read()
    os._exit(0)
if len(sys.argv) > 3:
    os._exit(0)
os.wait()
"""

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def tree() -> CgroupTree:
    return CgroupTree()


@pytest.fixture
def start(wire: Wire, tree: CgroupTree) -> Iterator[Start]:
    started: list[subprocess.Popen[str]] = []
    before = set(tree.find_all())

    def begin(*arguments: str) -> subprocess.Popen[str]:
        wire.connect().close()  # makes bob listen
        host, port = wire.listeners[4].getsockname()
        command = [sys.executable, "-S", "-c", PROGRAM, host, str(port), *arguments]
        started.append(
            subprocess.Popen(
                ["nsenter", f"--net=/run/netns/{wire.alice.name}", *command],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        )
        return started[-1]

    yield begin
    for process in started:
        process.communicate(timeout=20)
    ours = {one for one in tree.find_all() if one not in before}
    until(lambda: not any(populated(one.path) for one in ours))
    for one in sorted(ours, key=lambda c: len(c.path.parts), reverse=True):
        if one.path.exists():
            one.path.rmdir()


def connect(process: subprocess.Popen[str]) -> None:
    assert process.stdin
    assert process.stdout
    process.stdin.write("go\n")
    process.stdin.flush()
    assert process.stdout.readline() == "connected\n"


def found_by(wire: Wire, cgroup: Cgroup) -> list[int]:
    with inside(wire.alice.name):
        diag = SockDiag()
    try:
        return [one.inode for one in diag.dump(SocketFilter(cgroups=frozenset({cgroup.id})))]
    finally:
        diag.close()


def test_exactly_the_sockets_of_the_command_and_its_children(wire: Wire, tree: CgroupTree, start: Start) -> None:
    opted_in, other = start(), start()
    bystander = wire.connect()
    held = Pidfd.open(opted_in.pid)
    cgroup = tree.opt_in(opted_in.pid, process=held)
    held.close()
    assert cgroup.path.name == f"{CGROUP_PREFIX}{opted_in.pid}"
    assert cgroup in tree.find_all()
    connect(opted_in)
    connect(other)
    inodes = found_by(wire, cgroup)
    assert len(inodes) == 2
    members = tree.processes(cgroup)
    assert len(members) == 2
    # The child inherited its parent's socket, so both may be named for that one.
    owners = procfs.owners(inodes, likely=members)
    assert set(owners) == set(inodes)
    assert {owner.pid for owner in owners.values()} <= set(members)
    assert os.fstat(bystander.client.fileno()).st_ino not in inodes


def test_opting_in_twice_is_once(tree: CgroupTree, start: Start) -> None:
    process = start()
    first = tree.opt_in(process.pid)
    assert tree.opt_in(process.pid) == first
    assert sum(one.path.name == first.path.name for one in tree.find_all()) == 1


def test_only_empty_ones_are_swept(wire: Wire, tree: CgroupTree, start: Start) -> None:
    process = start("leave-the-child")
    cgroup = tree.opt_in(process.pid)
    connect(process)
    process.wait(timeout=20)
    # The command has ended, its child has not (as with ssh -f).
    assert populated(cgroup.path)
    assert cgroup not in tree.sweep()
    assert found_by(wire, cgroup)
    assert process.stdin
    process.stdin.close()
    process.stdin = None
    until(lambda: not populated(cgroup.path))
    assert cgroup in tree.sweep()
    assert not cgroup.path.exists()
    assert cgroup not in tree.find_all()


def test_one_inside_another(tree: CgroupTree, start: Start) -> None:
    outer, inner = start(), start()
    first = tree.opt_in(outer.pid)
    below = first.path / "scope"
    below.mkdir()
    (below / "cgroup.procs").write_text(str(inner.pid))
    second = tree.opt_in(inner.pid)
    assert second.path == below / f"{CGROUP_PREFIX}{inner.pid}"
    assert second.id != first.id
    assert {first, second} <= set(tree.find_all())
    for process in (outer, inner):
        process.communicate(timeout=20)
    until(lambda: not populated(first.path))
    assert second in tree.sweep()
    below.rmdir()
    assert first in tree.sweep()


def test_another_process_with_the_number_is_refused(tree: CgroupTree, start: Start) -> None:
    meant = subprocess.Popen(["sleep", "100"])
    held = Pidfd.open(meant.pid)
    meant.kill()
    meant.wait()
    process = start()
    held.pid = process.pid  # as if the kernel had given it the same one
    with pytest.raises(KernelError, match="the process has ended"):
        tree.opt_in(process.pid, process=held)
    held.close()
    assert not any(one.path.name == f"{CGROUP_PREFIX}{process.pid}" for one in tree.find_all())
    assert not procfs.users(meant.pid)


def test_a_process_that_has_ended_is_refused(tree: CgroupTree) -> None:
    process = subprocess.Popen(["true"])
    process.wait()
    with pytest.raises(KernelError, match="no such process"):
        tree.opt_in(process.pid)


def test_a_zombie_is_refused_and_leaves_nothing(tree: CgroupTree) -> None:
    process = subprocess.Popen(["true"])
    stat = Path(f"/proc/{process.pid}/stat")
    until(lambda: stat.read_bytes().rpartition(b") ")[2].startswith(b"Z"))
    with pytest.raises(KernelError, match="ended"):
        tree.opt_in(process.pid)
    process.wait()
    assert not any(one.path.name == f"{CGROUP_PREFIX}{process.pid}" for one in tree.find_all())


def test_a_full_hierarchy_is_named(tree: CgroupTree, start: Start) -> None:
    process = start()
    full = tree.mount / f"full-{process.pid}"
    full.mkdir()
    try:
        (full / "cgroup.max.descendants").write_text("0")
        (full / "cgroup.procs").write_text(str(process.pid))
        with pytest.raises(KernelError, match=r"cgroup\.max\.descendants"):
            tree.opt_in(process.pid)
    finally:
        (tree.mount / "cgroup.procs").write_text(str(process.pid))
        full.rmdir()


def test_the_namespace_of_a_process(wire: Wire, start: Start) -> None:
    process = start()
    # nsenter enters just before it becomes the program.
    until(lambda: procfs.in_our_network(process.pid) is False)
    assert procfs.in_our_network(os.getpid()) is True
    with inside(wire.alice.name):
        assert procfs.in_our_network(process.pid) is True
    assert procfs.in_our_network(2**22) is None


def test_sockets_of_this_process() -> None:
    with socket.socket() as one:
        inode = os.fstat(one.fileno()).st_ino
        assert inode in procfs.sockets_of(os.getpid())
        owner = procfs.owners([inode])[inode]
        assert owner.pid == os.getpid()
        assert owner.start_time == procfs.start_time(os.getpid())
        assert owner.uid == os.getuid()
    assert procfs.owners([inode], max_descriptors=0) == {}
    assert procfs.owners([inode, 0]) == {}


def test_start_time_is_in_ticks_since_boot() -> None:
    ticks = procfs.start_time(os.getpid())
    assert ticks is not None
    assert 0 < ticks / os.sysconf("SC_CLK_TCK") <= time.clock_gettime(time.CLOCK_BOOTTIME)


def test_init_stays_where_it_is(tree: CgroupTree) -> None:
    with pytest.raises(KernelError, match="it is init"):
        tree.opt_in(1)
    assert not any(one.path.name == f"{CGROUP_PREFIX}1" for one in tree.find_all())

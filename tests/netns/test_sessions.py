"""Real sessions: a terminal, scp, rsync and idle connections live through moves of client and server.

In every move the old address is really gone, every copy is running, and in half of them a stranger has the old
address and sends RST.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from daemon_pair import PATIENCE, Pair, answer_of, cgroups, give_away, held, resets_sent

from redirectctl.lab.sshd import SshServer
from redirectctl.lab.streams import start_idle, wait_until
from redirectctl.lab.terminal import Terminal
from redirectctl.lab.topology import Addresses, Host, Lab, Stop

GIB = 1 << 30
SCP_KBIT = 140_000  # so that a copy of 1 GiB goes on for about a minute
RSYNC_KBYTES = 10_000
IDLE = 50
NEARLY_DONE = 0.75  # what is left takes a quarter of a minute


@pytest.fixture(scope="module")
def big(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A file of 1 GiB no two blocks of which are equal."""
    path = tmp_path_factory.mktemp("big") / "big"
    block = os.urandom(1 << 20)
    with path.open("wb") as file:
        for number in range(1024):
            file.write(number.to_bytes(8, "big") + block[8:])
    assert path.stat().st_size == GIB
    yield path
    path.unlink()


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digests(tree: Path) -> dict[str, str]:
    return {str(path.relative_to(tree)): digest(path) for path in sorted(tree.rglob("*")) if path.is_file()}


def make_tree(at: Path) -> int:
    """Many small files and some large ones; returns their bytes."""
    total = 0
    for number in range(600):
        path = at / f"directory {number % 20}" / f"file-{number}"
        path.parent.mkdir(parents=True, exist_ok=True)
        data = os.urandom(5_000_000 if number % 20 == 7 else 3_000)
        path.write_bytes(data)
        total += len(data)
    return total


class Copy:
    """A copy that is made again whenever it is done, and compared each time."""

    def __init__(self, host: Host, command: Callable[[Path], list[str]], into: Path, size: int) -> None:
        self._host = host
        self._command = command
        self._parent = into
        self._size = size
        self._numbers = itertools.count(1)
        self.hits = 0  # moves of the copy that is running
        self.whole: list[int] = []  # of each copy that is complete: moves while it was running
        self.target = into
        self._process: subprocess.Popen[str]
        self.start()

    def start(self) -> None:
        self.hits = 0
        self.target = self._parent / f"copy{next(self._numbers)}"
        self._process = self._host.popen(self._command(self.target), stderr=subprocess.PIPE)

    def copied(self) -> int:
        size = 0
        for path in self.target.rglob("*") if self.target.is_dir() else [self.target]:
            with suppress(FileNotFoundError):  # rsync gives a file its name when it is whole
                size += path.stat().st_size if path.is_file() else 0
        return size

    def nearly_done(self) -> bool:
        return self.copied() > NEARLY_DONE * self._size or self._process.poll() is not None

    def hit(self) -> None:
        """A move happens now."""
        assert self._process.poll() is None, self._process.stderr and self._process.stderr.read()
        self.hits += 1

    def wait_progress(self) -> None:
        before = self.copied()
        wait_until(lambda: self.copied() != before or self._process.poll() is not None, PATIENCE, f"{self.target}")

    def finish(self) -> Path:
        _, complaints = self._process.communicate(timeout=PATIENCE * 3)
        assert (self._process.returncode, complaints) == (0, "")
        self.whole.append(self.hits)
        return self.target

    def abandon(self) -> None:
        self._process.kill()
        self._process.communicate()


class Work:
    """Everything that a person does at once between client and server."""

    def __init__(self, lab: Lab, version: int, big: Path) -> None:
        self.lab, self.version = lab, version
        self.pair = Pair(lab)
        self.sshd = SshServer(lab.server)
        self._big, self._big_digest = big, digest(big)
        self._tree = self.sshd.home / "tree"
        size = make_tree(self._tree)
        self._tree_digests = digests(self._tree)
        wrap = self.pair.wrap
        self.terminal = Terminal(lab.client, [*wrap, *self.sshd.ssh(version=version)])
        self.idle = start_idle(lab.server, lab.client, IDLE, version=version, wrap=wrap)
        self.scp = Copy(lab.client, self._scp, self.sshd.home, GIB)
        self.rsync = Copy(lab.client, self._rsync, lab.sandbox.directory, size)
        self.count = 0

    def _scp(self, target: Path) -> list[str]:
        command, *rest = self.sshd.scp(str(self._big), f"server:{target.name}", self.version)
        return [*self.pair.wrap, command, "-l", str(SCP_KBIT), *rest]

    def _rsync(self, target: Path) -> list[str]:
        limit = f"--bwlimit={RSYNC_KBYTES}"
        return [*self.pair.wrap, *self.sshd.rsync("-a", limit, "server:tree/", f"{target}/", version=self.version)]

    def compare_scp(self) -> None:
        target = self.scp.finish()
        assert digest(target) == self._big_digest
        target.unlink()

    def compare_rsync(self) -> None:
        assert digests(self.rsync.finish()) == self._tree_digests

    def prepare(self) -> list[dict[str, Any]]:
        """Both copies have some way to go, and all is protected; as the client lists it."""

        def prepared() -> list[dict[str, Any]]:
            for copy, compare in ((self.scp, self.compare_scp), (self.rsync, self.compare_rsync)):
                if copy.nearly_done():
                    compare()
                    copy.start()
            return self.pair.protected(IDLE + 3)

        return wait_until(prepared, PATIENCE * 2, "everything protected", poll=0.1)

    def _all_plain(self) -> bool:
        return not any(c["path"] == "tunnel" for d in self.pair.daemons for c in d.ctl("connections"))

    def move(self, mover: Host, stop: Stop, *, stranger: bool) -> None:
        """One move in the middle of everything, and all of it goes on."""
        if stranger:
            # A datagram of the tunnel would draw no RST from it.  A way that failed is tried again after a minute.
            wait_until(self._all_plain, PATIENCE * 3, "plain packets", poll=0.1)
        self.prepare()
        stationary = self.lab.server if mover is self.lab.client else self.lab.client
        self.count += 1
        if stranger:
            before = resets_sent(self.lab.stranger)
            old, _ = give_away(self.lab, mover)
            self._hit()
            wait_until(lambda: resets_sent(self.lab.stranger) > before, PATIENCE, "a RST", poll=0.02)
            mover.join(*stop)
        else:
            old = mover.links[-1].addresses
            if self.count % 4 == 1:
                mover.move(*stop, make_before_break=True)
                self._hit()
            else:
                mover.leave()
                self._hit()
                mover.join(*stop)
        self._lives(self.count)
        self._assert_gone(mover, old)
        if stranger:
            for host in (mover, stationary):
                assert "refused" in answer_of(host, old.of(self.version)), f"{host.name} cannot reach its new owner"

    def _hit(self) -> None:
        self.scp.hit()
        self.rsync.hit()

    def _lives(self, number: int) -> None:
        assert self.terminal.run(f"echo $(({number} + 1000))", PATIENCE) == f"{number + 1000}\n"
        assert self.idle.ask(PATIENCE) == {}
        for copy in (self.scp, self.rsync):
            copy.wait_progress()

    def _assert_gone(self, mover: Host, old: Addresses) -> None:
        assert not mover.has_address(old.v4)
        assert not mover.has_address(old.v6)

    def end(self) -> None:
        """Each copy that was hit by moves and came to its end is whole; then all closes."""
        for copy, compare in ((self.scp, self.compare_scp), (self.rsync, self.compare_rsync)):
            if copy.whole:
                copy.abandon()
            else:
                compare()
            assert sum(copy.whole) > 0
        assert self.terminal.leave() == 0
        self.idle.stop()


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("version", [4, 6])
def test_sessions_and_copies_live_through_forty_moves(lab: Lab, big: Path, version: int) -> None:
    work = Work(lab, version, big)
    client, server = lab.client_journey(), lab.server_journey()
    began = time.time()
    for number in range(20):
        work.move(lab.client, next(client), stranger=number % 2 == 1)
    for number in range(10):
        work.move(lab.server, next(server), stranger=number % 2 == 1)
    for number in range(10):
        mover, journey = ((lab.client, client), (lab.server, server))[number % 2]
        work.move(mover, next(journey), stranger=number % 4 < 2)
    shown = {c["moves"] for c in work.prepare()}
    assert max(shown) == 40  # of those that were there from the beginning
    for daemon in work.pair.daemons:
        assert daemon.events("rst.held", since=began)
        assert not daemon.events("redirect.refused", since=began)
    work.prepare()
    groups = cgroups(lab.client.processes())
    assert len(groups) == 4
    work.end()
    work.pair.wait_nothing_held()
    assert held(lab.client) == held(lab.server) == []
    work.pair.stop_without_a_trace()
    assert not [path for path in groups if path.exists()]


HOLD = """
import socket, sys
listener = socket.create_server(("::", 9000), family=socket.AF_INET6, dualstack_ipv6=True)
held = listener.accept()[0]
sys.stdin.read()
"""
CONNECT = "import socket,sys; held = socket.create_connection((sys.argv[1], 9000), 30); sys.stdin.read()"


@pytest.mark.parametrize("version", [4, 6])
def test_a_program_that_ends_first_ends_the_connection(lab: Lab, version: int) -> None:
    """The other end has not closed yet, and its FIN comes to a socket that is no more than a memory."""
    pair = Pair(lab)
    holding = lab.server.popen([sys.executable, "-c", HOLD], stdin=subprocess.PIPE)
    wait_until(lambda: lab.server.run(["ss", "-tlnH", "sport = :9000"]).stdout, PATIENCE, "a listener", poll=0.1)
    argv = [*pair.wrap, sys.executable, "-c", CONNECT, str(lab.server.address(version))]
    program = lab.client.popen(argv, stdin=subprocess.PIPE)
    pair.wait_protected(1)
    program.kill()
    # The kernel forgets it after tcp_fin_timeout, 60 s; the program ended now.
    pair.client.wait_event("connection.closed", timeout=45)
    assert [c["state"] for c in pair.server.ctl("connections")] == ["protected"]
    holding.kill()
    pair.server.wait_event("connection.closed", timeout=PATIENCE)
    pair.stop_without_a_trace()

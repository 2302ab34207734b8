"""What the terminal UI costs with many connections: python tests/bench/tui.py [--connections 5000] [--changes 0.02]

A daemon's real server answers from a made-up table, in which every second some connections change their state and as
many carry data.  The UI runs on a terminal of its own, 120x40.  Printed: its CPU share; how long a view takes to get
into the table, and a frame to be made; for how long the event loop was held up; and how long after a key the terminal
gets the cursor's new place.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import fcntl
import gc
import json
import os
import pty
import random
import resource
import select
import signal
import socket
import statistics
import struct
import sys
import tempfile
import termios
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import msgspec

from redirectctl.api import schema
from redirectctl.api.schema import Connection, ConnectionState, Counters, EventName, PathName, Peer, PeerState, Status
from redirectctl.daemon.apiserver import ApiServer, Service
from redirectctl.daemon.eventlog import EventLog

COLUMNS, LINES = 120, 40
SETTLE = 4.0  # seconds after the start that are not measured
STATES = (ConnectionState.PROTECTED, ConnectionState.SUSPENDED)
PROBE = 0.005  # seconds between looks whether the event loop is held up


class FakeDaemon:
    """The Service: a table that changes."""

    def __init__(self, directory: Path, connections: int, changes: float) -> None:
        self._random = random.Random(7)
        self._begun = time.monotonic()
        self._count = max(1, int(connections * changes))
        self._peers = [
            Peer(
                fingerprint=f"SHA256:{n:043d}", name=f"host{n:03d}", state=PeerState.APPROVED,
                addresses=[f"198.51.100.{n}"], first_seen=1.7e9, last_contact=1.7e9, connections=connections // 50,
            )
            for n in range(50)
        ]  # fmt: skip
        self._connections = [self._made(n) for n in range(connections)]
        self._log = EventLog(directory, time.time)

    def _made(self, n: int) -> Connection:
        local, remote = f"192.0.2.1:{1024 + n}", f"198.51.100.{n % 50}:{22 if n % 3 else 5432}"
        return Connection(
            id=f"{n:016x}", state=ConnectionState.PROTECTED, path=PathName.REWRITTEN if n % 2 else PathName.ORIGINAL,
            local=local, remote=remote, wire_local=local, wire_remote=remote, age=float(n), moves=n % 5,
            peer=self._peers[n % 50].fingerprint, pid=1000 + n, command=f"ssh -p 22 user{n}@host{n % 50:03d}",
            integrity=False, suspended_for=None, reason=None,
            counters=Counters(rtt=0.01 + n / 1e6, sent=n, received=n, retransmitted=0),
        )  # fmt: skip

    async def run(self) -> None:
        """Every second some change."""
        while True:
            await asyncio.sleep(1)
            for n in self._random.sample(range(len(self._connections)), self._count):
                c = self._connections[n]
                state = STATES[c.state is STATES[0]]
                lost = 1.0 if state is ConnectionState.SUSPENDED else None
                counters = cast(Counters, c.counters)
                counters = msgspec.structs.replace(counters, received=counters.received + self._random.randrange(10**6))
                self._connections[n] = msgspec.structs.replace(c, state=state, suspended_for=lost, counters=counters)
                name = EventName.CONNECTION_SUSPENDED if lost else EventName.CONNECTION_RESUMED
                self._log.record(name, connection=c.id, peer=c.peer, state=state)

    async def status(self, request: Any, caller: Any) -> schema.StatusReply:
        """As a daemon."""
        counts = {state: sum(c.state is state for c in self._connections) for state in STATES}
        return schema.StatusReply(
            Status(
                version="0", uptime=time.monotonic() - self._begun, identity="SHA256:own", addresses=["192.0.2.1"],
                control_port=7747, connections=counts, peers=50, pid=os.getpid(),
            )
        )  # fmt: skip

    async def connections(self, request: Any, caller: Any) -> schema.ConnectionsReply:
        """As a daemon: ages and times without a path go on."""
        passed = time.monotonic() - self._begun
        replace = msgspec.structs.replace
        return schema.ConnectionsReply([replace(c, age=c.age + passed) for c in self._connections])

    async def peers(self, request: Any, caller: Any) -> schema.PeersReply:
        """As a daemon."""
        return schema.PeersReply(self._peers)

    def serve(self, path: Path) -> None:
        """In a thread, for ever."""

        async def serving() -> None:
            server = ApiServer(cast(Service, self), self._log, "0")
            await server.start(path)
            await self.run()

        threading.Thread(target=lambda: asyncio.run(serving()), daemon=True).start()
        deadline = time.monotonic() + 10
        while not path.exists() and time.monotonic() < deadline:
            time.sleep(0.01)


# ------------------------------------------------------------------------------------------------ the UI, measured


def child(path: str, results: Path) -> None:
    """The UI with clocks in it; writes what they say when it is told to quit."""
    from textual.screen import Screen

    from redirectctl_tui.app import Arrived, RedirectApp
    from redirectctl_tui.feed import Feed

    views: list[float] = []
    frames: list[float] = []
    late: list[float] = []
    begun = time.monotonic() + SETTLE
    used: list[tuple[float, float]] = []

    class Measured(RedirectApp):
        def on_mount(self) -> None:
            self.run_worker(self._probe())

        async def _probe(self) -> None:
            while True:
                asked = time.monotonic()
                await asyncio.sleep(PROBE)
                now = time.monotonic()
                if now > begun:
                    if not used:
                        used.append((now, _cpu()))
                    late.append(now - asked - PROBE)

        def on_arrived(self, message: Arrived) -> None:
            before = time.thread_time()
            super().on_arrived(message)
            if time.monotonic() > begun:
                views.append(time.thread_time() - before)
            message.prevent_default()

    draw = Screen._compositor_refresh

    def drawn(screen: Screen[Any]) -> None:
        before = time.thread_time()
        draw(screen)
        if time.monotonic() > begun:
            frames.append(time.thread_time() - before)

    Screen._compositor_refresh = drawn  # type: ignore[method-assign]
    collections = Collections(begun)
    gc.callbacks.append(collections)
    app = Measured(Feed(path), socket.gethostname())
    app.run()
    (at, cpu) = used[0]
    passed = time.monotonic() - at
    results.write_text(
        json.dumps(
            {
                "cpu": (_cpu() - cpu) / passed,
                "views": views,
                "frames": frames,
                "late": late,
                "passed": passed,
                "gc": collections.taken,
            }
        )
    )


class Collections:
    """How long the garbage collector took, each time."""

    def __init__(self, begun: float) -> None:
        self.taken: list[float] = []
        self._begun = begun
        self._since = 0.0

    def __call__(self, phase: str, info: dict[str, int]) -> None:
        """For gc.callbacks."""
        if phase == "start":
            self._since = time.monotonic()
        elif time.monotonic() > self._begun and info["generation"] == 2:
            self.taken.append(time.monotonic() - self._since)


def _cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


# ------------------------------------------------------------------------------------------------ its terminal


def measure(seconds: float, path: Path, results: Path) -> list[float]:
    """Run the UI on a terminal; how many seconds the terminal waited for something to be drawn after each key."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.environ.update(TERM="xterm-256color", COLORTERM="truecolor")
        os.execv(sys.executable, [sys.executable, __file__, "--child", str(path), str(results)])
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", LINES, COLUMNS, 0, 0))
    os.kill(pid, signal.SIGWINCH)
    waits: list[float] = []
    end = time.monotonic() + SETTLE + seconds
    begun = time.monotonic() + SETTLE
    down = True
    while time.monotonic() < end:
        _drain(terminal, 0.25)
        if time.monotonic() < begun:
            continue
        pressed = time.monotonic()
        os.write(terminal, b"\x1b[B" if down else b"\x1b[A")
        down = not down
        if "▸" in _drain(terminal, 1.0, until="▸"):
            waits.append(time.monotonic() - pressed)
    os.write(terminal, b"q")
    with contextlib.suppress(OSError):
        while os.read(terminal, 65536):
            pass
    os.waitpid(pid, 0)
    os.close(terminal)
    return waits


def _drain(terminal: int, seconds: float, until: str | None = None) -> str:
    """What is drawn in that time, or until a character comes."""
    seen = b""
    deadline = time.monotonic() + seconds
    while (left := deadline - time.monotonic()) > 0:
        ready, _, _ = select.select([terminal], [], [], left)
        if ready:
            seen += os.read(terminal, 65536)
            if until is not None and until.encode() in seen:
                break
    return seen.decode(errors="replace")


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--connections", type=int, default=5000)
    parser.add_argument("--changes", type=float, default=0.02, help="part of the connections that change in a second")
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(args.child[0], Path(args.child[1]))
        return 0
    with tempfile.TemporaryDirectory() as directory:
        path, results = Path(directory, "d.sock"), Path(directory, "results")
        FakeDaemon(Path(directory), args.connections, args.changes).serve(path)
        waits = measure(args.seconds, path, results)
        found = json.loads(results.read_text())
    print(f"{args.connections} connections, {args.changes:.0%} of them changing each second, {found['passed']:.0f} s")
    print(f"CPU                  {found['cpu']:.1%} of one core")
    _print("view into the table", found["views"])
    _print("frame", found["frames"])
    _print("garbage collection", found["gc"])
    _print("event loop held up", found["late"])
    _print("key to screen", waits)
    return 0


def _print(name: str, values: Sequence[float]) -> None:
    ms = sorted(value * 1000 for value in values) or [0.0]
    worst = ms[min(len(ms) - 1, int(len(ms) * 0.99))]
    print(f"{name:<20} {statistics.median(ms):.1f} ms, 99 % {worst:.1f} ms, most {ms[-1]:.1f} ms ({len(values)} times)")


if __name__ == "__main__":
    sys.exit(main())

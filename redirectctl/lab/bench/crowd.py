"""What it takes to protect and to move many connections at once.

Hosts in network namespaces, joined by a router.  All connections are open, and idle, before the daemons start.  Then:

    protect   seconds from the start of the second daemon until both protect all
    idle      the daemons' share of a processor while nothing happens
    move      the client leaves its network for another, some times, and something is sent on all connections as soon as
              it has a usable address; seconds from then until the last echo
    CPU       processor time of the daemon's process, until it has nothing more to do; of a move the worst

With --busy so many other processes compete for the processors, from the time that all is protected.
"""

from __future__ import annotations

import argparse
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median

from redirectctl.lab.bench import Figures, Outcome, machine, tell
from redirectctl.lab.bench.suspended import resident, worked
from redirectctl.lab.daemons import Daemon
from redirectctl.lab.namespaces import LabError, program
from redirectctl.lab.streams import Idle, start_idle, wait_until
from redirectctl.lab.topology import FIRST_HOST, Lab

PORT = 5001
BATCH = 2000  # connections of one process
CONFIG = """
[trust]
first_contact = "accept-new"
[protect]
long_lived_after = "1s"
"""
PATIENCE = 60.0  # seconds, and for a connection:
PATIENCE_EACH = 0.03
SETTLE = 5.0  # seconds after which a daemon has nothing more to do
# Without a line for each connection, which the lab's daemons write.
QUIETLY = ("sh", "-c", 'exec "$0" "$@" --log-level info', program("redirectd"))
QUICK = ("--connections", "500", "--moves", "1", "--seconds", "5")
SPIN = ("sh", "-c", "while :; do :; done")


class Crowd:
    """A lab with so many connections between client and server."""

    def __init__(self, count: int, options: argparse.Namespace) -> None:
        self.count = count
        self.options = options
        self.patience = PATIENCE + PATIENCE_EACH * count
        self.lab = lab = Lab()
        version = 6 if options.ipv6 else 4
        ports = range(PORT, PORT + -(-count // BATCH))
        scope = 'scope = "all"\n' if options.all else f"ports = {list(ports)}\n"
        self.idle = []
        for port in ports:
            batch = min(BATCH, count - BATCH * (port - PORT))
            self.idle.append(start_idle(lab.server, lab.client, batch, version=version, port=port))
        tell(f"{count} connections open")
        self.daemons = [Daemon(host, CONFIG + scope, command=QUIETLY) for host in (lab.client, lab.server)]

    def _work(self) -> list[float]:
        return [worked(pid) for pid in self._pids()]

    def _pids(self) -> list[int]:
        return [daemon.process.pid for daemon in self.daemons if daemon.process is not None]

    @contextmanager
    def _measured(self, figures: Figures, what: str) -> Iterator[None]:
        """Processor time of both daemons, until they have settled."""
        before = self._work()
        yield
        time.sleep(SETTLE)
        for name, now, then in zip(("client", "server"), self._work(), before, strict=True):
            figures[f"{what}_{name}_cpu"] = max(now - then, float(figures.get(f"{what}_{name}_cpu") or 0.0))

    def protect(self, figures: Figures) -> None:
        """Start the daemons, until all is protected."""
        self.daemons[0].start()
        self.daemons[1].start()
        began = time.monotonic()
        before = [0.0, 0.0]
        self._wait_protected()
        figures["protect_seconds"] = time.monotonic() - began
        time.sleep(SETTLE)
        for name, now, then in zip(("client", "server"), self._work(), before, strict=True):
            figures[f"protect_{name}_cpu"] = now - then
        tell(f"{self.count} protected: {figures}")

    def rest(self, figures: Figures) -> None:
        """Nothing happens."""
        began, before = time.monotonic(), self._work()
        time.sleep(self.options.seconds)
        took = time.monotonic() - began
        for name, now, then, pid in zip(("client", "server"), self._work(), before, self._pids(), strict=True):
            figures[f"idle_{name}_share"] = (now - then) / took
            figures[f"memory_{name}_bytes"] = resident(pid)

    def move(self, figures: Figures) -> None:
        """The client goes to and fro."""
        took = []
        for number in range(self.options.moves):
            network = (self.lab.cafe, self.lab.office)[number % 2]
            with self._measured(figures, "move"):
                usable_at = self.lab.client.move(network, FIRST_HOST + number).usable_at
                for idle in self.idle:
                    idle.begin(self.patience)
                took.append(max(self._echoed(idle) for idle in self.idle) - usable_at)
                self._wait_protected()
            tell(f"move {number}: {took[-1]:.2f} s, {figures}")
        figures |= {"move_seconds": median(took), "move_worst_seconds": max(took)}

    def _echoed(self, idle: Idle) -> float:
        """When the last of these connections had answered."""
        echoes = wait_until(idle.echoed, 2 * self.patience, "an echo on each connection", poll=0.1)
        if lost := len(idle.locals) - len(echoes):
            raise LabError(f"{lost} of {len(idle.locals)} connections did not answer in {self.patience:.0f} s")
        return max(echoes.values())

    def _wait_protected(self) -> None:
        for daemon in self.daemons:

            def protected(daemon: Daemon = daemon) -> bool:
                return bool(daemon.ctl("status")["connections"].get("protected") == self.count)

            wait_until(protected, self.patience, f"{self.count} connections protected", poll=0.5)


@contextmanager
def competing(count: int) -> Iterator[None]:
    """So many processes that want a processor each."""
    running = [subprocess.Popen(SPIN) for _ in range(count)]
    try:
        yield
    finally:
        for each in running:
            each.kill()
            each.wait()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Its options."""
    parser.add_argument("--connections", type=int, nargs="+", default=[2000, 5000, 10000], help="(2000 5000 10000)")
    parser.add_argument("--moves", type=int, default=3, help="of each (3)")
    parser.add_argument("--seconds", type=float, default=20.0, help="of rest (20)")
    parser.add_argument("--busy", type=int, default=0, help="processes that compete for the processors (0)")
    parser.add_argument("--all", action="store_true", help='with scope = "all"')
    parser.add_argument("--ipv6", action="store_true", help="IPv6 instead of IPv4")


def table(found: list[Figures]) -> str:
    """In Markdown."""
    lines = [
        "| connections | protected after | CPU, client | server | idle, client | server "
        "| all echo after | worst | CPU of a move, client | server |",
        f"|{'--:|' * 10}",
    ]
    for each in found:

        def seconds(what: str, each: Figures = each) -> str:
            value = each.get(what)
            return "" if value is None else f"{float(value):.2f} s"

        cells = [
            str(each["connections"]),
            seconds("protect_seconds"),
            seconds("protect_client_cpu"),
            seconds("protect_server_cpu"),
            f"{float(each['idle_client_share'] or 0) * 100:.1f} %",
            f"{float(each['idle_server_share'] or 0) * 100:.1f} %",
            seconds("move_seconds"),
            seconds("move_worst_seconds"),
            seconds("move_client_cpu"),
            seconds("move_server_cpu"),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def measure(options: argparse.Namespace) -> Outcome:
    """Times and processor time, for each number of connections.  Raises LabError."""
    found = []
    for count in options.connections:
        figures: Figures = {"connections": count}
        crowd = Crowd(count, options)
        crowd.protect(figures)
        crowd.rest(figures)
        with competing(options.busy):
            crowd.move(figures)
        for daemon in crowd.daemons:
            daemon.stop()
        for idle in crowd.idle:
            idle.stop()
        found.append(figures)
    title = f"{options.moves} moves each, {options.busy} other busy processes, {machine(options.ipv6)}"
    return Outcome(title, table(found), found)

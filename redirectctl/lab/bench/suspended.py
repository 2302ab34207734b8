"""What it costs a daemon to hold many connections while there is no path.

Hosts in network namespaces, joined by a router.  Most connections are idle.  Some have data in flight when the path
goes, half of these from either end: the network loses it, and a moment later the client loses its address as well.
Then both daemons hold all of them; in the end the client gets another address.

Memory is the resident set of each daemon (VmRSS), with what the connections have added to it since it had none; the
processor time is that of the daemon's process, in a minute in which nothing else happens.  The last figures are seconds
from a usable new address until each daemon has all connections back, and until all data in flight is echoed.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from typing import NamedTuple

from redirectctl.lab.bench import Figures, Outcome, machine, markdown, tell
from redirectctl.lab.daemons import Daemon
from redirectctl.lab.namespaces import LabError
from redirectctl.lab.streams import Idle, start_idle, wait_until
from redirectctl.lab.topology import FIRST_HOST, Host, Lab

PORTS = range(5001, 5101)  # one for each batch
BATCH = 100  # connections that are opened at once: it is not about that here
CONFIG = f"""
[trust]
first_contact = "accept-new"
[protect]
long_lived_after = "1s"
ports = {list(PORTS)}
"""
PATIENCE = 60.0  # seconds, and for a connection:
PATIENCE_EACH = 0.1
SETTLE = 10.0  # seconds from a change to the measurement: its work is done, and TCP has backed off
QUICK = ("--connections", "500", "--in-flight", "50", "--seconds", "10")


class Cost(NamedTuple):
    """Of one daemon, in one phase."""

    phase: str
    host: str
    memory: float  # bytes
    share: float  # of one processor
    descriptors: int


class Bench:
    """A lab with a daemon on both hosts, and connections between them."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.seconds: float = options.seconds
        self.version = 6 if options.ipv6 else 4
        self.lab = lab = Lab()
        self.patience = PATIENCE + PATIENCE_EACH * options.connections
        self.daemons = {host.name: Daemon(host, CONFIG) for host in (lab.client, lab.server)}
        for daemon in self.daemons.values():
            daemon.start()
        self.costs = self.measured("none")
        self.count = 0
        self._ports = iter(PORTS)
        from_client = options.in_flight // 2
        self.busy = [
            *self._open(lab.server, lab.client, from_client),
            *self._open(lab.client, lab.server, options.in_flight - from_client),
        ]
        self.idle = self._open(lab.server, lab.client, options.connections - options.in_flight)
        self.costs += self.measured("protected")

    def _open(self, server: Host, client: Host, count: int) -> list[Idle]:
        """Connections, until they are protected."""
        opened = []
        for start in range(0, count, BATCH):
            batch = min(BATCH, count - start)
            opened.append(start_idle(server, client, batch, version=self.version, port=next(self._ports)))
            self.count += batch
            self._wait("protected")
        return opened

    def _wait(self, state: str) -> None:
        for name, daemon in self.daemons.items():

            def all_there(daemon: Daemon = daemon) -> bool:
                counts = daemon.ctl("status")["connections"]  # a list of all of them costs the daemon more
                return bool(counts.get(state) == self.count)

            wait_until(all_there, self.patience, f"{self.count} connections {state} on {name}", poll=1.0)
        tell(f"{self.count} connections {state}")

    def measured(self, phase: str) -> list[Cost]:
        """Both daemons, when they have settled."""
        time.sleep(SETTLE)
        began, before = time.monotonic(), {name: worked(_pid(daemon)) for name, daemon in self.daemons.items()}
        time.sleep(self.seconds)
        took = time.monotonic() - began
        return [
            Cost(phase, name, resident(pid), (worked(pid) - before[name]) / took, len(os.listdir(f"/proc/{pid}/fd")))
            for name, daemon in self.daemons.items()
            for pid in [_pid(daemon)]
        ]

    def hold(self) -> None:
        """Lose the path, with data in flight, and hold all."""
        self.lab.home.cut()
        for each in self.busy:
            each.begin(self.patience + self.seconds + SETTLE)
        time.sleep(1.0)
        self.lab.client.leave()
        self._wait("suspended")
        self.costs += self.measured("suspended")

    def resume(self) -> list[float]:
        """Seconds from a usable address to what the title says.  Raises LabError if a connection was lost."""
        began = time.time()
        usable_at = self.lab.client.join(self.lab.cafe, FIRST_HOST).usable_at
        usable = time.time() - (time.monotonic() - usable_at)
        echoes = [
            wait_until(idle.echoed, self.patience, "the echo of what was in flight", poll=0.05) for idle in self.busy
        ]
        took = []
        for name, daemon in self.daemons.items():

            def times(daemon: Daemon = daemon) -> list[float]:
                found = [event["time"] for event in daemon.events("connection.resumed", since=began)]
                return found if len(found) >= self.count else []

            took.append(max(wait_until(times, self.patience, f"all back on {name}", poll=0.5)) - usable)
        took.append(max((moment for echo in echoes for moment in echo.values()), default=usable_at) - usable_at)
        for idle in (*self.idle, *self.busy):
            if failed := idle.ask(self.patience):
                raise LabError(f"{len(failed)} connections were lost: {sorted(set(failed.values()))}")
        return took


def _pid(daemon: Daemon) -> int:
    if daemon.process is None:
        raise LabError("a daemon has ended")
    return daemon.process.pid


def resident(pid: int) -> float:
    """Bytes of memory that a process has now (proc_pid_statm(5))."""
    return float(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def worked(pid: int) -> float:
    """Seconds of processor time that a process has taken, its threads included (proc_pid_stat(5))."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def figures(costs: list[Cost], count: int) -> list[Figures]:
    """Of each host, in each phase."""
    before = {each.host: each.memory for each in costs if each.phase == "none"}
    return [
        {
            "connections": each.phase,
            "host": each.host,
            "memory_bytes": each.memory,
            "memory_bytes_each": None if each.phase == "none" else (each.memory - before[each.host]) / count,
            "processor_share": each.share,
            "descriptors": each.descriptors,
        }
        for each in costs
    ]


def table(found: list[Figures]) -> str:
    """In Markdown."""
    columns = ["connections", "host", "memory", "for each connection", "processor", "descriptors"]
    rows = []
    for each in found:
        single = each["memory_bytes_each"]
        cells = [
            str(each["connections"]),
            str(each["host"]),
            f"{float(each['memory_bytes'] or 0) / 1e6:.1f} MB",
            "" if single is None else f"{float(single) / 1e3:.1f} kB",
            f"{float(each['processor_share'] or 0) * 100:.1f} %",
            str(each["descriptors"]),
        ]
        rows.append(cells)
    return markdown(columns, rows, words=2)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Its options."""
    parser.add_argument("--connections", type=int, default=5000, help="in all (5000)")
    parser.add_argument("--in-flight", type=int, default=500, help="of these, with data in flight (500)")
    parser.add_argument("--seconds", type=float, default=60.0, help="of measurement in each phase (60)")
    parser.add_argument("--ipv6", action="store_true", help="IPv6 instead of IPv4")


def measure(options: argparse.Namespace) -> Outcome:
    """Memory, processor time, and how soon all is back.  Raises LabError."""
    bench = Bench(options)
    bench.hold()
    client, server, echoed = bench.resume()
    bench.costs += bench.measured("back")
    found = figures(bench.costs, options.connections)
    found.append({"connections": "back", "client_seconds": client, "server_seconds": server, "echo_seconds": echoed})
    back = (
        f"All back {client:.2f} s (client) and {server:.2f} s (server) after the path's return; "
        f"all data in flight echoed after {echoed:.2f} s."
    )
    title = (
        f"{options.connections} connections, {options.in_flight} with data in flight, "
        f"{options.seconds:g} s in each phase, {machine(options.ipv6)}"
    )
    return Outcome(title, f"{table(found[:-1])}\n\n{back}", found)

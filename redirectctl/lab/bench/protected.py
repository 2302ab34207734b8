"""Throughput of one connection before protection, protected, and after a move.

Hosts in network namespaces, joined by a router.  Each round is one iperf3 connection, which goes through the phases

    plain, protected, moved, protected, plain

so that a machine that becomes slower or faster meanwhile does not favour one of them.  Moved: the client is on another
network and addresses are rewritten on both hosts; then it comes back to its first address.  Figures are counted by the
sender's kernel (tcpi_bytes_acked), from a moment after each phase began.

The two ends and the router share the processors, so at full speed each bit of work for a packet shows.  With --bitrate
the connection is paced as by a network of that rate; then the ratio says what a person would notice, and the processor
time what it costs.

Congestion control is reno unless chosen otherwise: it goes as fast as the two kernels can, so that what a packet costs
shows.  BBR paces, and on such links reaches half of that.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import subprocess
import time
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

from redirectctl.lab.bench import Figures, Outcome, machine, need, tell
from redirectctl.lab.daemons import Daemon
from redirectctl.lab.namespaces import LabError
from redirectctl.lab.streams import wait_until
from redirectctl.lab.topology import FIRST_HOST, Host, Lab

CONFIG = '[trust]\nfirst_contact = "accept-new"\n'
PORT = 5201
PHASES = ("plain", "protected", "moved")
ROUND = ("plain", "protected", "moved", "protected", "plain")
PATIENCE = 30.0  # seconds
QUICK = ("--rounds", "2", "--seconds", "2")


class Measured(NamedTuple):
    """One phase."""

    phase: str
    rate: float  # bytes a second
    busy: float  # processors' seconds for a gigabyte, everything on this machine


class Bench:
    """A lab with an iperf3 server; one connection at a time."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.version = 6 if options.ipv6 else 4
        self.lab = Lab()
        daemons = [Daemon(host, CONFIG) for host in (self.lab.server, self.lab.client)]
        for daemon in daemons:
            daemon.start()
        self.daemon = daemons[-1]
        self.iperf3(self.lab.server, ["--server", "--port", str(PORT)])
        listening = ["ss", "-ltnH", f"sport = :{PORT}"]
        wait_until(lambda: self.lab.server.run(listening).stdout, PATIENCE, "iperf3 --server")

    def iperf3(self, host: Host, arguments: list[str]) -> subprocess.Popen[str]:
        """Start it."""
        return host.popen(["iperf3", *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def round(self) -> list[Measured]:
        """Each phase of one connection.  Raises LabError."""
        seconds = len(ROUND) * (self.options.seconds + self.options.settle) + len(ROUND) * PATIENCE
        target = ["--client", str(self.lab.server.address(self.version)), "--port", str(PORT)]
        command = [*target, "--time", str(int(seconds)), "--congestion", self.options.congestion]
        if self.options.bitrate:
            command += ["--bitrate", self.options.bitrate]
        process = self.iperf3(self.lab.client, command)
        wait_until(lambda: max(self._acked().values(), default=0) > 1e6, PATIENCE, "iperf3's data", poll=0.1)
        self.connections = sorted(acked := self._acked(), key=acked.__getitem__)  # control and data
        if len(self.connections) != 2:
            raise LabError(f"iperf3 has connections {self.connections}, not two")
        found = []
        for number, phase in enumerate(ROUND):
            self._enter(number)
            time.sleep(self.options.settle)
            found.append(Measured(phase, *self._rate()))
            if process.poll() is not None:
                raise LabError(f"iperf3 ended with {process.returncode} when {phase}")
        process.terminate()
        process.wait()
        wait_until(lambda: not self._acked(), PATIENCE, "the end of iperf3's connections", poll=0.1)
        return found

    def _enter(self, number: int) -> None:
        """Bring about phase number 0..4."""
        lab, daemon = self.lab, self.daemon
        match number:
            case 1:
                for connection in self.connections:
                    daemon.ctl("protect", connection)
                self._wait_path("original")
            case 2:
                lab.client.move(lab.cafe, FIRST_HOST + 1)
                self._wait_path("rewritten")
            case 3:
                lab.client.move(lab.home, FIRST_HOST)
                self._wait_path("original")
            case 4:
                for connection in self.connections:
                    daemon.ctl("release", connection)

    def _wait_path(self, path: str) -> None:
        def there() -> bool:
            rows = [row for row in self.daemon.ctl("connections") if row["state"] == "protected"]
            found = {f"{row['local']}-{row['remote']}" for row in rows if row["path"] == path}
            return found >= set(self.connections)

        wait_until(there, PATIENCE, f"both connections on the {path} path", poll=0.1)

    def _acked(self) -> dict[str, int]:
        """tcpi_bytes_acked of iperf3's connections, by LOCAL-REMOTE."""
        done = self.lab.client.run(["ss", "-tinHO", "state", "established", f"dport = :{PORT}"])
        found = {}
        for line in done.stdout.splitlines():
            acked = re.search(r"bytes_acked:(\d+)", line)
            local, remote = line.split()[2:4]
            found[f"{local}-{remote}"] = int(acked[1]) if acked else 0
        return found

    def _rate(self) -> tuple[float, float]:
        data = self.connections[-1]
        first, worked, began = self._acked()[data], busy(), time.monotonic()
        time.sleep(self.options.seconds)
        sent, took, worked = self._acked()[data] - first, time.monotonic() - began, busy() - worked
        return sent / took, worked / (sent * 1e-9)


def busy() -> float:
    """Seconds that the processors have worked (proc_stat(5)): all but idle, iowait and steal."""
    ticks = [int(word) for word in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:8]]
    return (sum(ticks) - ticks[3] - ticks[4]) / os.sysconf("SC_CLK_TCK")


def figures(rounds: list[list[Measured]]) -> list[Figures]:
    """Of each phase.  A ratio is that of one round's means."""
    rates: dict[str, list[float]] = defaultdict(list)
    costs: dict[str, list[float]] = defaultdict(list)
    for measured in rounds:
        for phase in PHASES:
            rates[phase].append(statistics.mean(m.rate for m in measured if m.phase == phase))
            costs[phase].append(statistics.mean(m.busy for m in measured if m.phase == phase))
    found: list[Figures] = []
    for phase in PHASES:
        ratios = [rate / plain for rate, plain in zip(rates[phase], rates["plain"], strict=True)]
        found.append(
            {
                "connection": phase,
                "bits_per_second": statistics.median(rates[phase]) * 8,
                "ratio": statistics.median(ratios),
                "lowest_ratio": min(ratios),
                "highest_ratio": max(ratios),
                "processor_seconds_per_gigabyte": statistics.median(costs[phase]),
            }
        )
    return found


def table(found: list[Figures]) -> str:
    """In Markdown."""
    lines = [
        "| connection | median | ratio to plain: median | lowest | highest | processor time for a GB |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for each in found:
        cells = [str(each["connection"]), f"{float(each['bits_per_second'] or 0) * 1e-9:.1f} Gbit/s"]
        if each["connection"] == "plain":
            cells += ["1", "", ""]
        else:
            cells += [f"{each[name]:.3f}" for name in ("ratio", "lowest_ratio", "highest_ratio")]
        cells.append(f"{each['processor_seconds_per_gigabyte']:.2f} s")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Its options."""
    parser.add_argument("--rounds", type=int, default=8, help="connections (8)")
    parser.add_argument("--seconds", type=float, default=4.0, help="of measurement in each of the five phases (4)")
    parser.add_argument("--settle", type=float, default=1.0, help="seconds between a change and the measurement (1)")
    parser.add_argument("--congestion", default="reno", metavar="NAME", help="TCP congestion control (reno)")
    parser.add_argument("--bitrate", metavar="RATE", help="pace the connection, as in iperf3: 5G (as fast as it can)")
    parser.add_argument("--ipv6", action="store_true", help="IPv6 instead of IPv4")


def measure(options: argparse.Namespace) -> Outcome:
    """Throughput.  Raises AbsentError, LabError."""
    need("iperf3")
    bench = Bench(options)
    rounds = []
    for number in range(options.rounds):
        rounds.append(bench.round())
        shown = ", ".join(f"{m.phase} {m.rate * 8e-9:.1f}" for m in rounds[-1])
        tell(f"round {number + 1}: {shown} Gbit/s")
    found = figures(rounds)
    pace = f", paced at {options.bitrate}" if options.bitrate else ""
    title = f"iperf3, {options.rounds} connections, {options.congestion}{pace}, {machine(options.ipv6)}"
    return Outcome(title, table(found), found)

"""Throughput of a connection before protection, protected, and after a move.

Hosts in network namespaces, joined by a router.  Each round has six connections, each of which sends as fast as it can:

    plain, protected, moved, moved, protected, plain

so that a machine that becomes slower or faster meanwhile does not favour one of them.  A connection is brought into its
phase while it is silent, and then sends: what is measured is what packets cost, and not how TCP's congestion control
gets over what an address change lost.  Moved: the client is on another network and addresses are rewritten on both
hosts.  Figures are counted by the sender's kernel (tcpi_bytes_acked), from a moment after it began.

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
import time
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

from redirectctl.lab.bench import Figures, Outcome, machine, markdown, tell
from redirectctl.lab.daemons import Daemon
from redirectctl.lab.namespaces import LabError
from redirectctl.lab.streams import Flood, start_flood, wait_until
from redirectctl.lab.topology import FIRST_HOST, Lab

CONFIG = '[trust]\nfirst_contact = "accept-new"\n'
PHASES = ("plain", "protected", "moved")
ROUND = (*PHASES, *PHASES[::-1])
PATIENCE = 30.0  # seconds
QUICK = ("--rounds", "2", "--seconds", "2")


class Measured(NamedTuple):
    """One phase."""

    phase: str
    rate: float  # bytes a second
    busy: float  # processors' seconds for a gigabyte, everything on this machine


class Bench:
    """A lab with daemons on client and server; one connection at a time."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.lab = Lab()
        daemons = [Daemon(host, CONFIG) for host in (self.lab.server, self.lab.client)]
        for daemon in daemons:
            daemon.start()
        self.daemon = daemons[-1]

    def measure(self, phase: str) -> Measured:
        """A connection in this phase.  Raises LabError."""
        options = self.options
        flood = start_flood(
            self.lab.server,
            self.lab.client,
            version=6 if options.ipv6 else 4,
            pace=options.bitrate,
            congestion=options.congestion,
        )
        self._enter(phase, flood)
        flood.begin()
        time.sleep(options.settle)
        found = Measured(phase, *self._rate(flood))
        flood.kill()
        wait_until(lambda: self._states() <= {"closed"}, PATIENCE, "the end of the connection", poll=0.1)
        if phase == "moved":
            self.lab.client.move(self.lab.home, FIRST_HOST)
        return found

    def _enter(self, phase: str, flood: Flood) -> None:
        if phase == "plain":
            return
        self.daemon.ctl("protect", flood.name)
        self._wait_path("original", flood)
        if phase == "moved":
            self.lab.client.move(self.lab.cafe, FIRST_HOST + 1)
            self._wait_path("rewritten", flood)

    def _wait_path(self, path: str, flood: Flood) -> None:
        def there() -> bool:
            rows = [row for row in self.daemon.ctl("connections") if row["state"] == "protected"]
            return [f"{row['local']}-{row['remote']}" for row in rows if row["path"] == path] == [flood.name]

        wait_until(there, PATIENCE, f"the connection on the {path} path", poll=0.1)

    def _states(self) -> set[str]:
        return {row["state"] for row in self.daemon.ctl("connections")}

    def _acked(self, flood: Flood) -> int:
        """tcpi_bytes_acked."""
        done = self.lab.client.run(["ss", "-tinHO", "state", "established"])
        for line in done.stdout.splitlines():
            acked = re.search(r"bytes_acked:(\d+)", line)
            if acked and "-".join(line.split()[2:4]) == flood.name:
                return int(acked[1])
        raise LabError(f"the connection has ended: {flood.ends['client'].complaints()}")

    def _rate(self, flood: Flood) -> tuple[float, float]:
        first, worked, began = self._acked(flood), busy(), time.monotonic()
        time.sleep(self.options.seconds)
        sent, took, worked = self._acked(flood) - first, time.monotonic() - began, busy() - worked
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
    columns = ["connection", "median", "ratio to plain: median", "lowest", "highest", "processor time for a GB"]
    rows = []
    for each in found:
        cells = [str(each["connection"]), f"{float(each['bits_per_second'] or 0) * 1e-9:.1f} Gbit/s"]
        if each["connection"] == "plain":
            cells += ["1", "", ""]
        else:
            cells += [f"{each[name]:.3f}" for name in ("ratio", "lowest_ratio", "highest_ratio")]
        cells.append(f"{each['processor_seconds_per_gigabyte']:.2f} s")
        rows.append(cells)
    return markdown(columns, rows)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Its options."""
    parser.add_argument("--rounds", type=int, default=8, help="of six connections each (8)")
    parser.add_argument("--seconds", type=float, default=4.0, help="of measurement of each connection (4)")
    parser.add_argument("--settle", type=float, default=1.0, help="seconds between first data and measurement (1)")
    parser.add_argument("--congestion", default="reno", metavar="NAME", help="TCP congestion control (reno)")
    parser.add_argument(
        "--bitrate", type=bitrate, default=0, metavar="RATE", help="pace the connections: 8G (as fast as they can)"
    )
    parser.add_argument("--ipv6", action="store_true", help="IPv6 instead of IPv4")


def bitrate(text: str) -> int:
    """Bytes a second of ``8G`` or ``500M``: bits, as iperf3 has it."""
    match = re.fullmatch(r"(\d+)([MG])", text)
    if not match:
        raise argparse.ArgumentTypeError(f"{text}: a number with M or G (bits a second) is wanted, as 8G")
    return int(match[1]) * {"M": 10**6, "G": 10**9}[match[2]] // 8


def measure(options: argparse.Namespace) -> Outcome:
    """Throughput.  Raises LabError."""
    bench = Bench(options)
    rounds = []
    for number in range(options.rounds):
        rounds.append([bench.measure(phase) for phase in ROUND])
        shown = ", ".join(f"{m.phase} {m.rate * 8e-9:.1f}" for m in rounds[-1])
        tell(f"round {number + 1}: {shown} Gbit/s")
    found = figures(rounds)
    pace = f", paced at {options.bitrate * 8e-9:g} Gbit/s" if options.bitrate else ""
    title = f"{options.rounds} rounds, {options.congestion}{pace}, {machine(options.ipv6)}"
    return Outcome(title, table(found), found)

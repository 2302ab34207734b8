"""How long a connection is silent once its host has a usable address again.

Hosts in network namespaces, on links without delay; one of them loses its address for a while and gets another on
another network.  The gap is the time from just before the new address and route are set to the first byte that a
program receives.  Three connections move at once, each with a traffic of its own:

- both ends write every 20 ms: until one of them has received something, and until both have;
- the host that moves writes once, right after its address has gone, and then nothing: until that is echoed;
- the same, written by the other host.

Each is measured with redirectd, and with redirectd that rewrites addresses but does not undo TCP's back-off (the kick).
Several labs sleep through their outages side by side; only one at a time changes addresses and is measured.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import threading
import time
import traceback
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import NamedTuple

from redirectctl.lab.bench import Figures, Outcome, machine, markdown
from redirectctl.lab.daemons import Daemon
from redirectctl.lab.namespaces import LabError
from redirectctl.lab.streams import start_idle, start_ticker
from redirectctl.lab.topology import Lab, Stop

CONFIG = """
[trust]
first_contact = "accept-new"
[protect]
long_lived_after = "1s"
ports = [5001, 5002, 5003]
"""
# Most networks say nothing about an address that is not there any more.  This router would, and its ICMP host
# unreachable undoes TCP's back-off (RFC 6069) all through the outage.
SILENCE = """
table inet silence {
    chain output {
        type filter hook output priority 0;
        icmp type destination-unreachable drop
        icmpv6 type destination-unreachable drop
    }
}
"""
TICK = 0.02  # seconds
PLUGGING = 0.02  # seconds from plugging in to the address, roughly
QUIET = 1.0  # seconds between two moves, and up to half a second more, so that no timer keeps step with us
ALONE = 1.0  # seconds after a new address for which all other labs keep still
EITHER = "both ends write every 20 ms: first byte"
BOTH = "both ends write every 20 ms: first byte in each direction"
MOVER, STAYER = "the host that moves writes once: echo", "the other host writes once: echo"
TRAFFIC = (EITHER, BOTH, MOVER, STAYER)
SHORT = 2.0  # seconds; labs do not sleep through shorter outages side by side, or those would become longer
MODES = {True: (), False: (sys.executable, str(Path(__file__).with_name("redirectd_without_kick.py")))}


QUICK = ("--runs", "4", "--outages", "0.1", "1", "10")


class Sample(NamedTuple):
    """One gap."""

    kick: bool
    outage: float  # asked for
    traffic: str
    offline: float  # seconds without an address, as it was
    gap: float  # seconds


class Bench:
    """A lab with three connections."""

    def __init__(self, kick: bool, version: int, mover: str) -> None:
        self.kick = kick
        self.lab = lab = Lab()
        lab.router.run(["nft", "-f", "-"], stdin=SILENCE)
        daemons = [Daemon(host, CONFIG, command=MODES[kick]) for host in (lab.server, lab.client)]
        for daemon in daemons:
            daemon.start()
        self.mover, stayer = (lab.client, lab.server) if mover == "client" else (lab.server, lab.client)
        self.stops: Iterator[Stop] = lab.client_journey() if mover == "client" else lab.server_journey()
        self.ticker = start_ticker(lab.server, lab.client, version=version, port=5001, interval=TICK)
        self.typed = {
            MOVER: start_idle(stayer, self.mover, 1, version=version, port=5002),
            STAYER: start_idle(self.mover, stayer, 1, version=version, port=5003),
        }
        for daemon in daemons:
            daemon.wait_connections("protected", 3)

    def move(self, outage: float, turn: threading.Lock) -> list[Sample]:
        """One outage and what came after it.  Raises LabError if a connection does not recover."""
        patience = 2 * outage + 20.0  # without the kick the next attempt may be as far away as the outage was long
        time.sleep(QUIET + random.uniform(0, 0.5))
        with turn:
            left_at = time.monotonic()
            self.mover.leave()
            for idle in self.typed.values():
                idle.begin(outage + patience)
            if outage < SHORT:
                usable_at = self._join(left_at + outage)
        if outage >= SHORT:
            time.sleep(left_at + outage - PLUGGING - time.monotonic())
            with turn:
                usable_at = self._join(left_at + outage)
        self._wait(usable_at, patience, 0.2)
        gaps = self._gaps(usable_at)
        if missing := [name for name in TRAFFIC if name not in gaps]:
            raise LabError(f"{self.lab.sandbox.tag}: silent {patience:g} s after an outage of {outage:g} s: {missing}")
        return [Sample(self.kick, outage, name, usable_at - left_at, gap) for name, gap in gaps.items()]

    def _join(self, due: float) -> float:
        """Get the next address at that time, and be alone for a moment.  Returns when it could be used."""
        time.sleep(max(0.0, due - PLUGGING - time.monotonic()))
        usable_at = self.mover.join(*next(self.stops)).usable_at
        self._wait(usable_at, ALONE, 0.01)
        return usable_at

    def _wait(self, usable_at: float, patience: float, poll: float) -> None:
        """Until all gaps have ended, or for so long.  Times come from the programs, so polling may be slow."""
        while len(self._gaps(usable_at)) < len(TRAFFIC) and time.monotonic() < usable_at + patience:
            time.sleep(poll)

    def _gaps(self, usable_at: float) -> dict[str, float]:
        """Those that have ended."""
        found = {}
        firsts = [self.ticker.first_after(usable_at, end) for end in self.ticker.ends]
        arrived = [first - usable_at for first in firsts if first is not None]
        if arrived:
            found[EITHER] = min(arrived)
        if len(arrived) == len(firsts):
            found[BOTH] = max(arrived)
        for name, idle in self.typed.items():
            if echoed := idle.echoed():
                found[name] = min(echoed.values()) - usable_at
        return found


def sample(options: argparse.Namespace) -> list[Sample]:
    """All samples.  Raises LabError."""
    tasks: dict[bool, SimpleQueue[float]] = {kick: SimpleQueue() for kick in MODES}
    for outage in sorted(options.outages, reverse=True):  # long ones first: the labs end at about the same time
        for kick in MODES:
            for _ in range(options.runs):
                tasks[kick].put(outage)
    benches = [Bench(kick, 6 if options.ipv6 else 4, options.mover) for kick in MODES for _ in range(options.labs)]
    turn = threading.Lock()
    samples: list[Sample] = []
    failures: list[str] = []

    def work(bench: Bench) -> None:
        try:
            while not failures:
                samples.extend(bench.move(tasks[bench.kick].get_nowait(), turn))
                progress = f"{len(samples) // len(TRAFFIC)} of {len(options.outages) * options.runs * len(MODES)} moves"
                print(f"\r{progress}", end="", file=sys.stderr, flush=True)
        except Empty:
            pass
        except Exception:
            failures.append(traceback.format_exc())

    threads = [threading.Thread(target=work, args=[bench], daemon=True) for bench in benches]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(file=sys.stderr)
    if failures:
        raise LabError("\n".join(failures))
    return samples


def milliseconds(seconds: float) -> str:
    """For a table."""
    return f"{seconds * 1000:,.0f} ms"


def figures(samples: list[Sample]) -> list[Figures]:
    """Of each traffic, outage, and way."""
    groups: dict[tuple[str, float, bool], list[float]] = defaultdict(list)
    for each in samples:
        groups[each.traffic, each.outage, each.kick].append(each.gap)
    order = sorted(groups.items(), key=lambda item: (TRAFFIC.index(item[0][0]), item[0][1], not item[0][2]))
    return [
        {"traffic": traffic, "outage": outage, "kick": kick, "median": statistics.median(gaps), "worst": max(gaps)}
        for (traffic, outage, kick), gaps in order
    ]


def table(found: list[Figures]) -> str:
    """In Markdown."""
    rows: dict[tuple[str, float], list[str]] = defaultdict(list)
    for each in found:
        cells = [milliseconds(float(each[name] or 0)) for name in ("median", "worst")]
        rows[str(each["traffic"]), float(each["outage"] or 0)] += cells
    return markdown(
        ["traffic", "outage", "median", "worst", "without: median", "worst"],
        [[traffic, f"{outage:g} s", *cells] for (traffic, outage), cells in rows.items()],
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Its options."""
    parser.add_argument("--runs", type=int, default=20, help="moves for each outage, with the kick and without (20)")
    parser.add_argument("--outages", type=float, nargs="+", default=[0.1, 1, 10, 60], help="seconds (0.1 1 10 60)")
    parser.add_argument("--labs", type=int, default=4, help="labs side by side, of each kind (4)")
    parser.add_argument("--mover", choices=["client", "server"], default="client", help="who moves (client)")
    parser.add_argument("--ipv6", action="store_true", help="IPv6 instead of IPv4")


def measure(options: argparse.Namespace) -> Outcome:
    """Gaps.  Raises LabError."""
    samples = sample(options)
    took = []
    for outage in sorted(options.outages):
        offline = [each.offline for each in samples if each.outage == outage]
        took.append(f"\nOutages of {outage:g} s took {min(offline):.2f} to {max(offline):.2f} s.")
    found = figures(samples)
    title = (
        f"How long a connection is silent when its host has a usable address again, {options.runs} moves of the "
        f"{options.mover} for each figure, {machine(options.ipv6)}; without: without undoing TCP's back-off"
    )
    return Outcome(title, "\n".join([table(found), *took]), found)

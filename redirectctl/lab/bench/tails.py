"""How soon a single write is answered after an outage, on a busy machine: a histogram, and what explains its tail.

Hosts in network namespaces, on links without delay, while other programs keep the processors busy.  One host loses its
address; at some moment before it gets another one, elsewhere, each end writes once and then nothing.  The gap is the
time from just before the new address and route are set to the echo.

What takes longer than --limit is written down in --dump: the events of both daemons, what both TCPs thought before the
outage, at its end and after it, and who had which neighbour.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import threading
import time
import traceback
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from redirectctl.lab.bench import Figures, Outcome, machine, tell
from redirectctl.lab.bench.gap import MOVER, SILENCE, STAYER, milliseconds
from redirectctl.lab.daemons import Daemon
from redirectctl.lab.namespaces import LabError
from redirectctl.lab.streams import start_idle
from redirectctl.lab.tcpinfo import tcp_info
from redirectctl.lab.topology import Host, Lab, Stop

CONFIG = """
[trust]
first_contact = "accept-new"
[protect]
long_lived_after = "1s"
ports = [5002, 5003]
"""
PORTS = {MOVER: 5002, STAYER: 5003}
STEPS = (0.025, 0.05, 0.1, 0.25, 0.5, 1.0)  # seconds: upper ends of the histogram's columns
PAUSE = (0.5, 2.5)  # seconds between two moves
PATIENCE = 60.0  # seconds for one echo
MOVES_OF_ONE = 200  # of one lab: it has no more addresses
QUICK = ("--moves", "40")


class Sample(NamedTuple):
    """One answer."""

    end: str  # MOVER or STAYER wrote
    outage: float  # seconds, as it was
    waited: float  # seconds from the write to the new address
    gap: float  # seconds


class Scene:
    """A lab with two connections."""

    def __init__(self, version: int, mover: str) -> None:
        self.lab = lab = Lab()
        lab.router.run(["nft", "-f", "-"], stdin=SILENCE)
        self.daemons = [Daemon(host, CONFIG) for host in (lab.server, lab.client)]
        for daemon in self.daemons:
            daemon.start()
        self.mover, self.stayer = (lab.client, lab.server) if mover == "client" else (lab.server, lab.client)
        self._stops: Iterator[Stop] = lab.client_journey() if mover == "client" else lab.server_journey()
        self.typed = {
            MOVER: start_idle(self.stayer, self.mover, 1, version=version, port=PORTS[MOVER]),
            STAYER: start_idle(self.mover, self.stayer, 1, version=version, port=PORTS[STAYER]),
        }
        for daemon in self.daemons:
            daemon.wait_connections("protected", len(self.typed))

    def move(self, outage: float, limit: float, dump: Path | None) -> list[Sample]:
        """One outage and the answers after it.  Raises LabError if there is none."""
        time.sleep(random.uniform(*PAUSE))
        thoughts = {"before": self._thoughts()}
        began, left_at = time.time(), time.monotonic()
        self.mover.leave()
        written = {}
        for at, end in sorted((random.uniform(0, outage), end) for end in self.typed):
            time.sleep(max(0.0, left_at + at - time.monotonic()))
            self.typed[end].begin(outage + PATIENCE)
            written[end] = time.monotonic()
        time.sleep(max(0.0, left_at + outage - 0.1 - time.monotonic()))
        thoughts["outage"] = self._thoughts()
        time.sleep(max(0.0, left_at + outage - time.monotonic()))
        usable_at = self.mover.join(*next(self._stops)).usable_at
        samples = []
        for end, idle in self.typed.items():
            while (echoed := idle.echoed()) is None and time.monotonic() < usable_at + PATIENCE:
                time.sleep(0.005)
            if not echoed:
                raise LabError(f"{self.lab.sandbox.tag}: {end}: nothing {PATIENCE:g} s after an outage of {outage:g} s")
            gap = min(echoed.values()) - usable_at
            samples.append(Sample(end, usable_at - left_at, usable_at - written[end], gap))
        if dump is not None and any(sample.gap > limit for sample in samples):
            thoughts["after"] = self._thoughts()
            self._write_down(dump, samples, began, time.time() - time.monotonic() + usable_at, thoughts)
        return samples

    def _thoughts(self) -> dict[str, str]:
        return {
            f"{host.name}: {end}": tcp_info(host, port).text
            for end, port in PORTS.items()
            for host in (self.mover, self.stayer)
        }

    def _write_down(
        self, dump: Path, samples: Sequence[Sample], began: float, usable_at: float, thoughts: dict[str, dict[str, str]]
    ) -> None:
        lines = [str(sample) for sample in samples]
        lines.append(f"times: seconds since the new address; the outage began at {began - usable_at:.3f}")
        lines.append(f"load: {os.getloadavg()}")
        for daemon in self.daemons:
            lines.append(f"\nevents of {daemon.host.name}")
            for event in daemon.events(since=began - 5.0):
                rest = {key: value for key, value in event.items() if key not in ("time", "event", "peer")}
                lines.append(f"{event['time'] - usable_at:9.3f} {event['event']} {json.dumps(rest)}")
        for when, each in thoughts.items():
            lines.append(f"\nTCP: {when}")
            lines += [f"{who}: {text}" for who, text in each.items()]
        for host in (self.lab.router, *self._hosts()):
            lines.append(f"\nneighbours of {host.name}")
            lines += host.run(["ip", "neighbour"]).stdout.splitlines()
        worst = max(sample.gap for sample in samples)
        (dump / f"{int(worst * 1000):06d}ms-{self.lab.sandbox.tag}-{int(began)}.txt").write_text("\n".join(lines))

    def _hosts(self) -> tuple[Host, ...]:
        return self.mover, self.stayer


@contextmanager
def busy(count: int) -> Iterator[None]:
    """So many programs compute all the time."""
    programs = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for program in programs:
            program.kill()
            program.wait()


def sample(options: argparse.Namespace) -> list[Sample]:
    """All samples.  Raises LabError."""
    samples: list[Sample] = []
    failures: list[str] = []
    left = options.moves
    lock = threading.Lock()

    def work(number: int) -> None:
        nonlocal left
        mover = options.mover if options.mover != "either" else ("client", "server")[number % 2]
        try:
            scene: Scene | None = None
            made = 0
            while not failures:
                with lock:
                    if left <= 0:
                        return
                    left -= 1
                if scene is None or made >= MOVES_OF_ONE:
                    if scene is not None:
                        scene.lab.close()
                    scene, made = Scene(6 if options.ipv6 else 4, mover), 0
                made += 1
                samples.extend(scene.move(outage(), options.limit, options.dump))
                tell(f"{len(samples) // 2} of {options.moves}")
        except Exception:
            failures.append(traceback.format_exc())

    def outage() -> float:
        shortest, longest = options.outages
        return float(shortest * (longest / shortest) ** random.random())

    threads = [threading.Thread(target=work, args=[number], daemon=True) for number in range(options.labs)]
    with busy(options.busy):
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    if failures:
        raise LabError("\n".join(failures))
    return samples


def figures(samples: Sequence[Sample]) -> list[Figures]:
    """Of each end."""
    groups: dict[str, list[float]] = defaultdict(list)
    for each in samples:
        groups[each.end].append(each.gap)
    rows: list[Figures] = []
    for end in PORTS:
        gaps = sorted(groups[end])
        row: Figures = {"end": end, "answers": len(gaps), "median": statistics.median(gaps), "worst": gaps[-1]}
        row["99 %"] = gaps[max(0, -(-len(gaps) * 99 // 100) - 1)]
        for low, high in zip((0.0, *STEPS), (*STEPS, float("inf")), strict=True):
            row[f"below {high:g} s"] = sum(low <= gap < high for gap in gaps)
        rows.append(row)
    return rows


def table(found: Sequence[Figures]) -> str:
    """In Markdown."""
    bounds = [*(f"< {milliseconds(step)}" for step in STEPS), "more"]
    lines = [
        f"| who wrote | answers | {' | '.join(bounds)} | median | 99 % | worst |",
        f"|---|--:|{'--:|' * len(bounds)}--:|--:|--:|",
    ]
    for row in found:
        counts = [str(row[f"below {high:g} s"]) for high in (*STEPS, float("inf"))]
        times = [milliseconds(float(row[name] or 0)) for name in ("median", "99 %", "worst")]
        lines.append(f"| {row['end']} | {row['answers']} | {' | '.join([*counts, *times])} |")
    return "\n".join(lines)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Its options."""
    parser.add_argument("--moves", type=int, default=1000, help="in all (1000)")
    parser.add_argument("--labs", type=int, default=3, help="side by side (3)")
    parser.add_argument("--busy", type=int, default=os.cpu_count(), help="programs that compute (one a processor)")
    parser.add_argument("--outages", type=float, nargs=2, default=[0.1, 6.0], help="shortest and longest (0.1 6)")
    parser.add_argument("--mover", choices=["client", "server", "either"], default="either", help="who moves (either)")
    parser.add_argument("--ipv6", action="store_true", help="IPv6 instead of IPv4")
    parser.add_argument("--limit", type=float, default=0.25, help="seconds above which an answer is explained (0.25)")
    parser.add_argument("--dump", type=Path, help="directory for explanations")


def measure(options: argparse.Namespace) -> Outcome:
    """Gaps.  Raises LabError."""
    if options.dump is not None:
        options.dump.mkdir(parents=True, exist_ok=True)
    found = figures(sample(options))
    shortest, longest = options.outages
    title = (
        f"How soon a single write is answered when its host has a usable address again, after {options.moves} outages "
        f"of {shortest:g} to {longest:g} s, while {options.busy} programs compute, {machine(options.ipv6)}"
    )
    return Outcome(title, table(found), found)

"""Connections whose address exists and does not carry: an uplink that is dead upstream, a VPN, a new IPv6 prefix.

Hosts in network namespaces, joined by a router, with redirectd on both; redirectctl/lab/uplinks.py has the situations.
In the same lab at the same time, protected and plain connections echo what is written on them by either host:

- at once: right after the situation has begun;
- later: three seconds after that.

The figures are seconds from the writing to the echo, of both writers together.  Each round has a new lab.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from typing import Final

from redirectctl.lab.bench import Figures, Outcome, machine, tell, without
from redirectctl.lab.bench.without import KINDS, PROTECTED, Sample
from redirectctl.lab.daemons import Daemon
from redirectctl.lab.streams import Idle, start_idle
from redirectctl.lab.topology import Lab
from redirectctl.lab.uplinks import SITUATIONS

AT_ONCE, LATER = "at once", "later"
WRITTEN: Final = {AT_ONCE: 0.0, LATER: 3.0}  # seconds after its beginning
PORTS: Final = {"client": (5001, 5002), "server": (5003, 5004)}  # of protected connections, by who writes
CONFIG: Final = f"""
[trust]
first_contact = "accept-new"
[protect]
long_lived_after = "1s"
ports = {sorted(port for ports in PORTS.values() for port in ports)}
"""
DEADLINE: Final = 20.0  # seconds in which an echo has to come
POLL = 0.05

QUICK = ("--rounds", "1")


def play(name: str) -> list[Sample]:
    """One round.  Raises LabError."""
    situation = SITUATIONS[name]
    with Lab() as lab:
        situation.prepare(lab)
        daemons = [Daemon(host, CONFIG) for host in (lab.client, lab.server)]
        for daemon in daemons:
            daemon.start()
        idle: dict[tuple[str, str, str], Idle] = {}
        for by, ports in PORTS.items():
            ends = (lab.server, lab.client) if by == "client" else (lab.client, lab.server)
            for written, port in zip(WRITTEN, ports, strict=True):
                for kind in KINDS:
                    at = port if kind == PROTECTED else 0
                    idle[written, kind, by] = start_idle(*ends, 1, version=situation.version, port=at)
        for daemon in daemons:
            daemon.wait_connections("protected", sum(map(len, PORTS.values())))
        time.sleep(1.0)
        began = time.monotonic()
        writing = {}
        with situation.happens(lab):
            for written, after in WRITTEN.items():
                time.sleep(max(0.0, began + after - time.monotonic()))
                writing[written] = time.monotonic()
                for (when, _, _), each in idle.items():
                    if when == written:
                        each.begin(DEADLINE)
            while time.monotonic() < writing[LATER] + DEADLINE and not all(i.echoed() for i in idle.values()):
                time.sleep(POLL)
        samples = []
        for (written, kind, by), each in idle.items():
            echoes = each.echoed()
            seconds = min(echoes.values()) - writing[written] if echoes else DEADLINE
            samples.append(Sample(name, written, kind, by, min(seconds, DEADLINE)))
        return samples


def sample(names: Sequence[str], rounds: int) -> list[Sample]:
    """All samples, a round of each situation at a time.  Raises LabError."""
    samples: list[Sample] = []
    for number in range(1, rounds + 1):
        for name in names:
            found = play(name)
            samples += found
            late = sum(each.seconds == DEADLINE for each in found if each.kind == PROTECTED)
            tell(f"{name}: round {number}, {late or 'no'} protected ones without an echo")
    return samples


def table(found: list[Figures]) -> str:
    """In Markdown."""
    return without.table(found, DEADLINE, lost="-")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Its options."""
    parser.add_argument("--rounds", type=int, default=5, help="of each situation (5)")
    parser.add_argument(
        "--situations", nargs="+", choices=SITUATIONS, default=list(SITUATIONS), metavar="SITUATION", help="which (all)"
    )


def measure(options: argparse.Namespace) -> Outcome:
    """Silences.  Raises LabError."""
    found = without.figures(sample(options.situations, options.rounds), DEADLINE)
    title = (
        "From writing to the echo, of protected connections and of plain ones beside them, whose address exists and "
        f"does not carry; -: not within {DEADLINE:.0f} s; {options.rounds} rounds with two writers each, {machine()}"
    )
    return Outcome(title, table(found), found)

"""Whether protected connections are ever worse off than plain ones, when the other host's daemon is of no help.

Hosts in network namespaces, joined by a router, with redirectd on both.  The server's daemon is stopped, killed, or its
datagrams do not get through.  Then the path goes for a while, and comes back where it was: no address changes.  Plain
TCP goes on by itself.  In the same lab at the same time, protected and plain connections echo what is written on them:

- during: right after the path has gone, by the client or by the server;
- after: as soon as it is back;
- later: two seconds after that.

The figures are seconds from the path's return, or from the later writing, to the echo, of both writers together.
Lost: no echo within a minute.

In the last situation the server restarts meanwhile, and its daemon does not: seconds to the RST that the client gets.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Final, NamedTuple

from redirectctl.lab.bench import Figures, Outcome, machine, markdown, tell
from redirectctl.lab.bench.gap import milliseconds
from redirectctl.lab.daemons import Daemon
from redirectctl.lab.streams import Idle, start_idle, wait_until
from redirectctl.lab.topology import FIRST_HOST, Host, Lab

PORTS: Final = {"client": (5001, 5002, 5003), "server": (5004, 5005, 5006)}  # of protected connections, by who writes
CONFIG = f"""
[trust]
first_contact = "accept-new"
[protect]
long_lived_after = "1s"
ports = {sorted(port for ports in PORTS.values() for port in ports)}
"""
NO_DATAGRAMS = """
table inet blocked {
    chain forward {
        type filter hook forward priority -10;
        udp dport 7747 drop
        udp sport 7747 drop
    }
}
"""
DURING, AFTER, LATER = "during", "after", "later"
WRITTEN: Final = {DURING: 0.0, AFTER: 0.0, LATER: 2.0}  # seconds after the path's return, if then
PROTECTED, PLAIN = "protected", "plain"
KINDS: Final = (PLAIN, PROTECTED)
LOST: Final = 60.0  # seconds without an echo
QUIET = 3.0  # seconds between two rounds, and up to half a second more, so that no timer keeps step with us

QUICK = ("--rounds", "1")


def stop_daemon(bench: Bench) -> None:
    """It ends in order."""
    bench.other.stop()


def kill_daemon(bench: Bench) -> None:
    """It ends at once."""
    bench.other.kill()


def block_datagrams(bench: Bench) -> None:
    """Both daemons run, and do not hear of each other."""
    bench.lab.router.run(["nft", "-f", "-"], stdin=NO_DATAGRAMS)


@contextmanager
def link_down(lab: Lab) -> Iterator[None]:
    """The client has no link, and then the one that it had, with its addresses."""
    network = lab.client.links[-1].network
    lab.client.leave()
    yield
    lab.client.join(network, FIRST_HOST)


@contextmanager
def all_dropped(lab: Lab) -> Iterator[None]:
    """The router drops what comes from and goes to the client, and says nothing."""
    network = lab.client.links[-1].network
    network.cut()
    yield
    network.restore()


def forget_sockets(host: Host) -> None:
    """As a machine that restarts: no connection, no rule of a daemon.  Raises LabError."""
    kill = ["ss", "-tnHK", "state", "established"]
    wait_until(lambda: not host.run(kill).stdout.strip(), LOST, "no connection left", poll=0.1)
    host.run(["nft", "flush", "ruleset"])


@contextmanager
def restarted(lab: Lab) -> Iterator[None]:
    """The server restarts; nobody hears it go."""
    with all_dropped(lab):
        forget_sockets(lab.server)
        yield


class Situation(NamedTuple):
    """What is done before the first round, and in each."""

    spoil: Callable[[Bench], None]
    outage: Callable[[Lab], AbstractContextManager[None]]
    seconds: float  # that it lasts
    ends: bool = False  # it is an error that the client waits for, and nothing goes on after it


GONE: Final[dict[str, Callable[[Bench], None]]] = {
    "the other daemon stopped": stop_daemon,
    "the other daemon killed": kill_daemon,
    "UDP blocked": block_datagrams,
}
SITUATIONS: Final[dict[str, Situation]] = {
    f"{gone}; {outage}": Situation(spoil, how, seconds)
    for gone, spoil in GONE.items()
    for outage, how, seconds in (
        ("link down for 0.2 s", link_down, 0.2),
        ("link down for 3 s", link_down, 3.0),
        ("all dropped for 15 s", all_dropped, 15.0),
    )
} | {"the other host restarted, its daemon did not": Situation(kill_daemon, restarted, 3.0, ends=True)}


class Sample(NamedTuple):
    """One echo."""

    situation: str
    written: str
    kind: str
    by: str
    seconds: float  # LOST, if there was none


class Bench:
    """A lab with daemons on both hosts, and connections of both kinds."""

    def __init__(self, spoil: Callable[[Bench], None], version: int) -> None:
        self.lab = lab = Lab()
        self.daemon, self.other = self.daemons = tuple(Daemon(host, CONFIG) for host in (lab.client, lab.server))
        for daemon in self.daemons:
            daemon.start()
        self.idle: dict[tuple[str, str, str], Idle] = {}
        for by, ports in PORTS.items():
            ends = (lab.server, lab.client) if by == "client" else (lab.client, lab.server)
            for written, port in zip(WRITTEN, ports, strict=True):
                for kind in KINDS:
                    at = port if kind == PROTECTED else 0
                    self.idle[written, kind, by] = start_idle(*ends, 1, version=version, port=at)
        for daemon in self.daemons:
            daemon.wait_connections("protected", len(PORTS) * len(WRITTEN))
        spoil(self)

    def _write(self, written: str) -> None:
        for (when, _, _), idle in self.idle.items():
            if when == written:
                idle.begin(2 * LOST)

    def round(self, name: str) -> list[Sample]:
        """One outage, and what came after it.  No connection is heard of again if one is lost."""
        time.sleep(QUIET + random.uniform(0, 0.5))
        situation = SITUATIONS[name]
        began = time.monotonic()
        with situation.outage(self.lab):
            self._write(DURING)
            time.sleep(max(0.0, began + situation.seconds - time.monotonic()))
            back = time.monotonic()
        self._write(AFTER)
        time.sleep(WRITTEN[LATER])
        later = time.monotonic()
        self._write(LATER)
        awaited = {key: idle for key, idle in self.idle.items() if key[2] == "client" or not situation.ends}
        over: dict[tuple[str, str, str], float] = {}  # when it was seen that nothing more is to come
        while time.monotonic() < back + LOST and over.keys() != awaited.keys():
            over |= {key: time.monotonic() for key, i in awaited.items() if key not in over and i.echoed() is not None}
            time.sleep(0.02)
        samples = []
        for key, idle in awaited.items():
            written, kind, by = key
            echoes = idle.echoed()
            found = min(echoes.values()) if echoes else None
            if situation.ends and not echoes:
                found = over.get(key)
            since = later if written == LATER else back
            samples.append(Sample(name, written, kind, by, max(0.0, found - since) if found is not None else LOST))
        return samples

    @property
    def running(self) -> list[Daemon]:
        """The daemons that have not ended."""
        return [each for each in self.daemons if each.process is not None and each.process.poll() is None]

    def settle(self) -> None:
        """Wait until nothing of the last outage is left.  Raises LabError."""
        for daemon in self.running:

            def nothing_suspended(daemon: Daemon = daemon) -> bool:
                return all(each["state"] == "protected" for each in daemon.ctl("connections"))

            wait_until(nothing_suspended, LOST, f"nothing suspended on {daemon.host.name}", poll=0.2)

    def close(self) -> None:
        """The end of it."""
        self.lab.close()


def sample(options: argparse.Namespace) -> list[Sample]:
    """All samples.  Raises LabError."""
    samples: list[Sample] = []
    bench: Bench | None = None
    spoilt: Callable[[Bench], None] | None = None
    for name in options.situations:
        if bench is not None and spoilt is not SITUATIONS[name].spoil:
            bench.close()
            bench = None
        spoilt = SITUATIONS[name].spoil
        for number in range(1, options.rounds + 1):
            bench = bench or Bench(spoilt, 6 if options.ipv6 else 4)
            found = bench.round(name)
            samples += found
            lost = sum(each.seconds == LOST for each in found)
            tell(f"{name}: round {number}, {lost or 'none'} lost")
            if lost or SITUATIONS[name].ends:  # others are not what they were before either
                bench.close()
                bench = None
            else:
                bench.settle()
    if bench is not None:
        bench.close()
    return samples


def figures(samples: list[Sample], lost: float = LOST) -> list[Figures]:
    """Of each situation.  ``lost``: the figure of what was lost."""
    groups: dict[tuple[str, str], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for each in samples:
        groups[each.situation, each.written][each.kind].append(each.seconds)
    found: list[Figures] = []
    for (situation, written), kinds in groups.items():
        row: Figures = {"situation": situation, "written": written}
        for kind in KINDS:
            row[f"{kind}_median"], row[f"{kind}_worst"] = statistics.median(kinds[kind]), max(kinds[kind])
            row[f"{kind}_lost"] = sum(seconds == lost for seconds in kinds[kind])
        found.append(row)
    return found


def table(found: list[Figures], deadline: float = LOST, *, lost: str = "lost") -> str:
    """In Markdown.  ``lost``: what is there instead of the figure ``deadline``."""
    columns = ["situation", "written", "plain: median", "worst", "protected: median", "worst"]
    rows = []
    for row in found:
        cells = [str(row["situation"]), str(row["written"])]
        for kind in KINDS:
            for figure in ("median", "worst"):
                seconds = float(row[f"{kind}_{figure}"] or 0)
                cells.append(lost if seconds == deadline else milliseconds(seconds))
        rows.append(cells)
    return markdown(columns, rows, words=2)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Its options."""
    parser.add_argument("--rounds", type=int, default=10, help="of each situation (10)")
    parser.add_argument(
        "--situations", nargs="+", choices=SITUATIONS, default=list(SITUATIONS), metavar="SITUATION", help="which (all)"
    )
    parser.add_argument("--ipv6", action="store_true", help="IPv6 instead of IPv4")


def measure(options: argparse.Namespace) -> Outcome:
    """Silences.  Raises LabError."""
    found = figures(sample(options))
    title = (
        "From the return of a path whose addresses stay to the echo, of protected connections and of plain ones beside "
        f"them, {options.rounds} rounds with two writers each, {machine(options.ipv6)}"
    )
    return Outcome(title, table(found), found)

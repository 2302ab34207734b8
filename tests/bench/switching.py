"""How long a busy connection pauses when its way changes: python tests/bench/switching.py.

Hosts in network namespaces, joined by a router.  One connection sends as fast as it can.  After a move of the client,
at its new address and then back at its first one, both daemons are told in turn to prefer the tunnel and not to.  With
integrity a new connection goes into the tunnel once, when it is protected.

The pause is the longest time that the receiver took for a MiB, from just before the change to a second after both
hosts list the new path.  In steady state a MiB takes a few milliseconds; the last row is the longest of each of some
stretches in which nothing changes.  At the end of a connection the bytes and checksums of both ends are compared.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import sys
import time
from collections import defaultdict
from itertools import pairwise

from redirectctl.lab.daemons import Daemon
from redirectctl.lab.namespaces import LabError, close_all, ended_by_signals
from redirectctl.lab.streams import Bulk, start_bulk, wait_until
from redirectctl.lab.topology import FIRST_HOST, Lab

CONFIG = """
[trust]
first_contact = "accept-new"
[protect]
long_lived_after = "1s"
ports = [5001]
[path]
prefer = "{prefer}"
[integrity]
mode = "{integrity}"
"""
PATIENCE = 30.0  # seconds
SETTLE = 1.0  # seconds before a change and after it
NOTHING = "nothing changes"
MOVE = "a move to another network, in the tunnel"
INTO_INTEGRITY = "original → tunnel, with integrity"


class Bench:
    """A lab with a daemon on both hosts and a connection that is busy."""

    def __init__(self, version: int, integrity: str, prefer: str) -> None:
        self.integrity = integrity
        self.lab = lab = Lab()
        config = CONFIG.format(prefer=prefer, integrity=integrity)
        self.daemons = [Daemon(host, config) for host in (lab.server, lab.client)]
        for daemon in self.daemons:
            daemon.start()
        self.began = time.monotonic()
        self.bulk: Bulk = start_bulk(lab.server, lab.client, version=version, port=5001)

    def prefer(self, way: str) -> None:
        """Both daemons read a new preference."""
        for daemon in self.daemons:
            daemon.config.write_text(CONFIG.format(prefer=way, integrity=self.integrity))
            daemon.reload()

    def wait_path(self, path: str) -> None:
        """Until both hosts protect the connection and list this path."""

        def all_there() -> bool:
            found = [c for daemon in self.daemons for c in daemon.ctl("connections") if c["state"] == "protected"]
            return [c["path"] for c in found] == [path] * len(self.daemons)

        wait_until(all_there, PATIENCE, f"both hosts list the path {path}", poll=0.1)

    def pause(self, since: float) -> float:
        """The longest time for a MiB between a moment and now, what has not ended yet included."""
        times = [moment for moment, _ in self.bulk.progress()]
        before = [moment for moment in times if moment <= since][-1:]
        return max(later - earlier for earlier, later in pairwise([*before, *times[len(before) :], time.monotonic()])
                   if later > since)  # fmt: skip

    def change(self, way: str, path: str) -> float:
        """The pause of one change of the preference."""
        time.sleep(SETTLE)
        since = time.monotonic()
        self.prefer(way)
        self.wait_path(path)
        time.sleep(SETTLE)
        return self.pause(since)

    def close(self) -> None:
        """Compare both ends.  Raises LabError."""
        verdict = self.bulk.stop()
        self.lab.close()
        if not verdict.ok:
            raise LabError(verdict.why)


def reloads(version: int, runs: int) -> dict[str, list[float]]:
    """Pauses of changes to the tunnel and back, and of stretches without any."""
    pauses: dict[str, list[float]] = defaultdict(list)
    bench = Bench(version, "off", "tunnel")
    bench.wait_path("original")
    for network, number, plain in (
        (bench.lab.cafe, FIRST_HOST + 1, "rewritten"),
        (bench.lab.home, FIRST_HOST, "original"),
    ):
        bench.prefer("tunnel")
        bench.lab.client.move(network, number)
        bench.wait_path("tunnel")
        for _ in range(runs):
            pauses[f"tunnel → {plain}"].append(bench.change("auto", plain))
            pauses[f"{plain} → tunnel"].append(bench.change("tunnel", "tunnel"))
            since = time.monotonic()
            time.sleep(2 * SETTLE)
            pauses[NOTHING].append(bench.pause(since))
    bench.close()
    return pauses


def moves(version: int, runs: int) -> list[float]:
    """Pauses of moves after which the connection is in the tunnel: the time without an address is in them."""
    pauses = []
    bench = Bench(version, "off", "tunnel")
    bench.wait_path("original")
    stops = bench.lab.client_journey()
    for _ in range(runs):
        time.sleep(SETTLE)
        since, began = time.monotonic(), time.time()
        bench.lab.client.move(*next(stops))
        bench.daemons[1].wait_event("move.finished", since=began, timeout=PATIENCE)
        time.sleep(2 * SETTLE)
        pauses.append(bench.pause(since))
    bench.close()
    return pauses


def integrity(version: int, runs: int) -> list[float]:
    """Pauses of new connections as they go into the tunnel, from their first byte on."""
    pauses = []
    for _ in range(runs):
        bench = Bench(version, "on", "auto")
        time.sleep(SETTLE / 2)  # a connection that begins is no pause; it is protected a second later
        since = time.monotonic()
        bench.wait_path("tunnel")
        time.sleep(3 * SETTLE)  # nothing plain is accepted any more
        pauses.append(bench.pause(since))
        bench.close()
    return pauses


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=10, help="changes of each kind (10)")
    parser.add_argument("--ipv6", action="store_true", help="IPv6 instead of IPv4")
    options = parser.parse_args()
    version = 6 if options.ipv6 else 4
    try:
        with ended_by_signals():
            pauses = reloads(version, options.runs)
            pauses[MOVE] = moves(version, options.runs)
            pauses[INTO_INTEGRITY] = integrity(version, options.runs)
    finally:
        close_all()
    print(f"Longest pause of a busy connection, IPv{version}, Linux {platform.release()}; no byte lost:\n")
    print("| change | times | median | worst |\n|---|--:|--:|--:|")
    for what in sorted(pauses, key=NOTHING.__eq__):
        found = pauses[what]
        print(f"| {what} | {len(found)} | {statistics.median(found) * 1000:.0f} ms | {max(found) * 1000:.0f} ms |")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""How long a host takes to find its routes to many others after a change: python tests/bench/routes.py.

A host in a network namespace, with some addresses on one link.  What is measured is NetworkView._look: from the moment
that an address is usable to the announcement of a move there is this, and little else.  The processor time is that of
this process, the kernel's part included; on a busy machine the other figure is longer.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from ipaddress import ip_address
from pathlib import Path

from redirectctl.daemon.eventlog import EventLog
from redirectctl.daemon.network import NetworkView
from redirectctl.lab.namespaces import close_all, ended_by_signals
from redirectctl.lab.topology import Lab

FIRST = {4: 11 << 24, 6: 0x2001_0DB8_00FF << 80}
INSIDE = "inside"  # the first argument of the part that runs in the namespace


async def _measure(version: int, remotes: int, rounds: int) -> None:
    with tempfile.TemporaryDirectory() as directory:
        log = EventLog(Path(directory), time.time)
        others = [ip_address(FIRST[version] + number) for number in range(remotes)]
        view = NetworkView(log, lambda: others, lambda now, network: None, lambda: None)
        await view.start()
        taken = []
        for _ in range(rounds):
            began, worked = time.perf_counter(), time.process_time()
            network = await view._look()
            taken.append((time.perf_counter() - began, time.process_time() - worked))
        sources = len(network.sources[others[0]])
        view.close()
        log.close()
    print(f"| {remotes} | {sources} | {min(t for t, _ in taken):.3f} s | {min(w for _, w in taken):.3f} s |")


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--remotes", type=int, nargs="+", default=[1, 100, 1000, 4000], help="how many others")
    parser.add_argument("--addresses", type=int, default=2, help="of the host (2)")
    parser.add_argument("--rounds", type=int, default=5, help="of which the quickest counts (5)")
    parser.add_argument("--ipv6", action="store_true", help="IPv6 instead of IPv4")
    options = parser.parse_args()
    version = 6 if options.ipv6 else 4
    print("| other hosts | our addresses | seconds | of the processor |\n|--:|--:|--:|--:|", flush=True)
    with ended_by_signals():
        try:
            client = Lab().client
            link = client.links[-1]
            for number in range(1, options.addresses):
                more = link.network.addresses(100 + number).of(version)
                client.ip(f"address add {more}/{24 if version == 4 else 64} dev {link.interface}")
            for remotes in options.remotes:
                argv = [sys.executable, __file__, INSIDE, str(version), str(remotes), str(options.rounds)]
                sys.stdout.write(client.run(argv).stdout)
                sys.stdout.flush()
        finally:
            close_all()
    return 0


if __name__ == "__main__":
    if sys.argv[1:2] == [INSIDE]:
        asyncio.run(_measure(*map(int, sys.argv[2:])))
        sys.exit(0)
    sys.exit(main())

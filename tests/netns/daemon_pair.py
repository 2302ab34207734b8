"""Client and server of a lab with redirectd on both, and what can be seen of it from outside."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from redirectctl.kernel.constants import (
    CGROUP_PREFIX,
    EXIT_PRIORITY,
    FALLBACK_TABLE,
    NFT_TABLE,
    ROUTE_TABLE,
    TUN_DEVICE,
    TUNNEL_TABLE,
)
from redirectctl.kernel.netfilter.queue_rules import QUEUE_RULES
from redirectctl.lab.daemons import Daemon
from redirectctl.lab.namespaces import Namespace
from redirectctl.lab.streams import Ticker, wait_until
from redirectctl.lab.topology import Addresses, Host, Lab, Network

FAST = """
[trust]
first_contact = "accept-new"
[protect]
long_lived_after = "1s"
"""
PATIENCE = 60.0  # seconds for one thing to happen on a machine that has much else to do
LINGERING = 90.0  # seconds: flows/constants.py, LINGER, and a beat
CONNECT = "import socket,sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), 5)"


class Pair:
    """A lab with a daemon on the client and one on the server, started."""

    def __init__(
        self, lab: Lab, client: str = FAST, server: str = FAST, *, daemons: tuple[Daemon, Daemon] | None = None
    ) -> None:
        """``daemons``: instead of those that are installed, with these configurations."""
        self.lab = lab
        self.client, self.server = daemons or (Daemon(lab.client, client), Daemon(lab.server, server))
        self.daemons = (self.client, self.server)
        self.start()

    def start(self) -> None:
        """Both daemons."""
        for daemon in self.daemons:
            daemon.start()

    def kill(self) -> None:
        """Both daemons, the second before the first is back."""
        for daemon in self.daemons:
            daemon.kill()

    @property
    def wrap(self) -> list[str]:
        """redirect-run on the client."""
        return self.client.opted_in()

    def wait_protected(self, count: int) -> list[dict[str, Any]]:
        """Until exactly so many connections are protected on both hosts; as the client lists them."""
        what = f"{count} connections protected on both hosts"
        return wait_until(lambda: self.protected(count), PATIENCE, what, poll=0.1)

    def protected(self, count: int) -> list[dict[str, Any]]:
        """What the client lists, if exactly so many connections are protected on both hosts at this moment."""
        listed = [[c for c in d.ctl("connections") if c["state"] == "protected"] for d in self.daemons]
        return listed[0] if {len(each) for each in listed} == {count} else []

    def wait_moved(self, mover: Daemon, since: float, connections: int | None = None) -> dict[str, Any]:
        """The last move.finished after a time (of `time.time`)."""
        return mover.wait_event(
            "move.finished", since=since, timeout=PATIENCE, **({"connections": connections} if connections else {})
        )

    def wait_nothing_held(self) -> None:
        """Until neither kernel holds anything for a connection; the daemons may run."""
        wait_nothing_held(self.daemons)

    def stop_without_a_trace(self) -> None:
        """Stop both daemons: nothing of redirectctl is left in either kernel."""
        stop_without_a_trace(self.daemons)

    def end(self, ticker: Ticker) -> None:
        """All of the stream arrived once and in order; then as stop_without_a_trace."""
        verdict = ticker.stop()
        assert verdict.ok, verdict
        self.stop_without_a_trace()


def wait_nothing_held(daemons: Iterable[Daemon]) -> None:
    """Until no kernel holds anything for a connection; the daemons may run."""
    for daemon in daemons:
        wait_until(lambda host=daemon.host: not held(host), LINGERING, f"nothing held on {daemon.host.name}: "
                   f"{held(daemon.host)}", poll=0.5)  # fmt: skip


def stop_without_a_trace(daemons: Sequence[Daemon]) -> None:
    """Stop them, once nothing is held any more: nothing of redirectctl is left in their kernels."""
    wait_nothing_held(daemons)
    for daemon in daemons:
        assert daemon.stop() < 5
        assert traces(daemon.host) == []


def held(host: Namespace) -> list[str]:
    """What a host's kernel holds for connections: elements, rules that use them, addresses, routes, ports."""
    found = []
    for entry in ruleset(host):
        kind, value = next(iter(entry.items()))
        if kind in {"set", "map"} and value.get("elem"):
            found.append(f"{len(value['elem'])} elements in {value['name']}")
        if kind == "rule" and value["chain"] in {"in", "late", "out", "post", "probe"}:
            found.append(f"a rule in chain {value['chain']}")
    addresses = host.run(["ip", "-o", "address", "show"]).stdout.splitlines()
    found += [line for line in addresses if line.split()[1] == TUN_DEVICE and "scope link" not in line]
    for family in ("-4", "-6"):
        for table in (ROUTE_TABLE, FALLBACK_TABLE):
            found += host.run(["ip", family, "route", "show", "table", str(table)], check=False).stdout.splitlines()
    if reserved := host.run(["sysctl", "-n", "net.ipv4.ip_local_reserved_ports"]).stdout.strip():
        found.append(f"reserved ports {reserved}")
    switches = host.run(["sysctl", "-a", "--pattern", r"\.src_valid_mark"]).stdout.splitlines()
    return found + [line for line in switches if not line.endswith(" = 0") and TUN_DEVICE not in line]


def traces(host: Namespace) -> list[str]:
    """Everything of redirectctl's in a host's kernel."""
    found = [*held(host), *(f"nft: {entry}" for entry in ruleset(host))]
    found += [line for line in host.run(["ip", "-o", "link"]).stdout.splitlines() if f" {TUN_DEVICE}:" in line]
    for family in ("-4", "-6"):
        rules = host.run(["ip", family, "rule"]).stdout.splitlines()
        tables = tuple(f" lookup {number}" for number in (ROUTE_TABLE, FALLBACK_TABLE, TUNNEL_TABLE))
        found += [rule for rule in rules if rule.rstrip().endswith(tables)]
        found += [rule for rule in rules if rule.startswith(f"{EXIT_PRIORITY}:") and "fwmark" in rule]
        shown = host.run(["ip", family, "route", "show", "table", str(TUNNEL_TABLE)], check=False).stdout
        found += shown.splitlines()
    queues = [f"--queue-num {rule.queue}" for rule in QUEUE_RULES]
    for program in ("iptables", "ip6tables"):
        rules = host.run([f"{program}-save"], check=False).stdout.splitlines()
        found += [rule for rule in rules if any(queue in rule for queue in queues)]
    return found


def ruleset(host: Namespace) -> list[dict[str, Any]]:
    """Our table as `nft -j` lists it, the table itself included; empty without it."""
    listed = host.run(["nft", "-j", "list", "ruleset"]).stdout
    entries = [entry for entry in json.loads(listed)["nftables"] if "metainfo" not in entry]
    values = [(entry, next(iter(entry.values()))) for entry in entries]
    return [entry for entry, value in values if NFT_TABLE in (value.get("table"), entry.get("table", {}).get("name"))]


def cgroups(pids: Iterable[int]) -> set[Path]:
    """The cgroups of ours that these processes are in."""
    (mount,) = (
        line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines() if line.split()[2] == "cgroup2"
    )
    found = set()
    for pid in pids:
        with suppress(OSError):
            for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
                path = Path(mount + line.removeprefix("0::"))
                if line.startswith("0::") and path.name.startswith(CGROUP_PREFIX):
                    found.add(path)
    return found


def answer_of(host: Host, address: object, port: int = 9) -> str:
    """How an address answers a connection attempt: the last line of a Python traceback."""
    done = host.run([sys.executable, "-c", CONNECT, str(address), str(port)], check=False)
    return done.stderr.strip().splitlines()[-1] if done.returncode else "connected"


def resets_sent(host: Host) -> int:
    """How many RSTs this host's kernel has sent."""
    return int(host.run(["nstat", "-asz", "TcpOutRsts"]).stdout.split()[-2])


def give_away(lab: Lab, mover: Host) -> tuple[Addresses, Network]:
    """The host leaves its only network, and the stranger takes the addresses that it had there."""
    network = mover.links[-1].network
    (old,) = mover.leave()
    lab.stranger.take(old, network)
    return old, network

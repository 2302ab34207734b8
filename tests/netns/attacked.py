"""A host of an attacker's in a lab (attacker.py), a bystander to whom nobody has anything to say, a watch on both."""

from __future__ import annotations

import json
import os
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from redirectctl.lab.daemons import CommandError, Daemon
from redirectctl.lab.namespaces import NETNS_DIRECTORY, LabError, call
from redirectctl.lab.streams import Program, wait_until
from redirectctl.lab.topology import Host, Lab
from redirectctl.proto.constants import UNPROVEN_BURST, UNPROVEN_RATE
from tests.netns.daemon_pair import FAST

ROOT = Path(__file__).parents[2]
PATIENCE = 120.0
MALLORY, BYSTANDER = 66, 200  # numbers of hosts that stay where they are


class Attacker:
    """mallory, and a bystander."""

    def __init__(self, lab: Lab, seed: int) -> None:
        self.began = time.monotonic()
        self.host = Host(lab, "mallory")
        lab.add(self.host)
        self.host.join(lab.office, MALLORY)
        self.host.take(lab.office.addresses(MALLORY + 1), lab.office)
        self.bystander = lab.stranger
        self.bystander.join(lab.cafe, BYSTANDER)
        self._count()
        self._router = NETNS_DIRECTORY / lab.router.full_name
        self._orders, self._told = (lab.sandbox.directory / f"attack-{name}.json" for name in ("orders", "told"))
        self.echo = Program(lab.server, "echo", "--listen", "0")
        self._port = self.echo.wait_line(1)["port"]
        self._latest: dict[str, object] = {}
        variables = {"ATTACK_ORDERS": self._orders, "ATTACK_TOLD": self._told, "ATTACK_SEED": seed}
        command = ["env", *(f"{name}={value}" for name, value in variables.items())]
        command += [f"PYTHONPATH={ROOT}", sys.executable, "-m", "tests.netns.attacker"]
        self.daemon = Daemon(self.host, f"{FAST}ports = [{self._port}]\n", command=command)

    def _count(self) -> None:
        """What gets to the bystander, before anything else sees it."""
        kinds = {
            "segments": "meta l4proto tcp",
            "tunnelled": "udp dport 7747 @th,64,8 8",
            "said4": "meta nfproto ipv4 udp dport 7747",
            "said6": "meta nfproto ipv6 udp dport 7747",
        }
        counters = "".join(f"counter {name} {{ }}\n" for name in kinds)
        rules = "".join(f"{match} counter name {name}\n" for name, match in kinds.items())
        chain = f"chain in {{\ntype filter hook prerouting priority -450\n{rules}}}\n"
        call(self.bystander.inside(["nft", "-f", "-"]), stdin=f"table inet watch {{\n{counters}{chain}}}\n")

    def learn(self, servers: Sequence[Daemon], others: Sequence[Daemon]) -> None:
        """Where all are, and which connections there are: it knows everything but keys and tokens."""
        connections: list[dict[str, str]] = []
        for daemon in servers:
            with suppress(LabError):  # it is just being started again
                connections += daemon.ctl("connections")
        addresses = [
            [str(a) for daemon in daemons for link in daemon.host.links for a in link.addresses]
            for daemons in (servers, others)
        ]
        orders = {
            "router": str(self._router),
            "servers": addresses[0],
            "hosts": addresses[0] + addresses[1],
            "victims": list(map(str, self.bystander.links[-1].addresses)),
            "ids": [c["id"] for c in connections],
            "tuples": [(c["local"], c["remote"]) for c in connections],
            "port": self._port,
        }
        self._order(orders)

    @property
    def busy(self) -> bool:
        """It has a session, and a connection that is protected."""
        told = self.told()
        return told is not None and told["sessions"] > 0 and told["protected"] > 0

    def _order(self, orders: Mapping[str, object]) -> None:
        self._latest = {"over": False, **orders}
        fresh = self._orders.with_suffix(".new")
        fresh.write_text(json.dumps(self._latest))
        os.replace(fresh, self._orders)

    def end(self, server: Daemon) -> None:
        """It says no more, and its connections end: whatever it has said of them, the server keeps some."""
        self._order(self._latest | {"over": True})
        wait_until(lambda: self.told()["over"], PATIENCE, "the end of the attack", poll=0.2)
        for connection in server.ctl("connections"):
            if connection["state"] != "closed":
                with suppress(CommandError):  # it has ended this moment
                    server.ctl("kill", connection["id"])
        self.daemon.stop()
        server.restart()  # else what was kept for them would stay for a minute

    def told(self) -> Any:
        """What it says of itself; None until it has begun."""
        return json.loads(self._told.read_text()) if self._told.exists() else None

    def judge(self, daemons: Sequence[Daemon]) -> dict[str, int]:
        """Nothing of the connections has got to where it does not belong.  Returns what was sent, and refused."""
        told = self.told()
        assert told["counts"]["connections that it says are elsewhere"] > 0, "it was a peer with connections of its own"
        assert told["counts"].get("strays", 0) == 0, told["strays"]
        listed = json.loads(self.bystander.run(["nft", "-j", "list", "counters", "table", "inet", "watch"]).stdout)
        got = {c["name"]: c for entry in listed["nftables"] if (c := entry.get("counter"))}
        assert (got["segments"]["packets"], got["tunnelled"]["packets"]) == (0, 0), got
        heard = sum(got[f"said{v}"]["bytes"] - got[f"said{v}"]["packets"] * size for v, size in ((4, 28), (6, 48)))
        seconds = time.monotonic() - self.began
        # Each host may say something there because of each of the others, and answers what seems to come from it.
        budget = (len(daemons) + 1) ** 2 * (UNPROVEN_BURST + UNPROVEN_RATE * seconds)
        assert heard <= told["counts"].get("bytes as if from victims", 0) + budget
        refused = {f"{d.host.name}: {why}": n for d in daemons for why, n in _refusals(d).items()}
        return {**told["counts"], "bytes heard by the bystander": heard, **refused}


def _refusals(daemon: Daemon) -> Counter[str]:
    """By reason, as the event log has them."""
    found: Counter[str] = Counter()
    for event in daemon.events():
        if event["event"] in ("packet.refused", "redirect.refused", "connection.refused"):
            found[event.get("reason", "")] += event.get("count", 1)
    return found

"""Daemons and their rendezvous killed at random moments of a workload with moves.

test_crashes.py and tests/soak/crashes.py run it.  The rendezvous is on a network where client and server never are: it
is needed whenever both move at once, and all datagrams go through the router, where their numbers are watched.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from redirectctl.lab.daemons import Daemon
from redirectctl.lab.sshd import SshServer
from redirectctl.lab.streams import Verdict, start_bulk, start_idle, start_ticker, wait_until
from redirectctl.lab.terminal import Terminal
from redirectctl.lab.topology import Host, Lab, Stop
from tests.netns.daemon_pair import PATIENCE
from tests.netns.killing import going, stop_clean
from tests.netns.rendezvous_lab import Meeting

CONFIGS = {  # besides what is so in every lab
    "auto": "",
    "tunnel": '[path]\nprefer = "tunnel"\n',
    "integrity": '[integrity]\nmode = "on"\n',
}
WITHIN = 1.5  # seconds of a round in which the kill comes
DOWN = (0.0, 0.0, 0.3, 1.0, 2.5)  # seconds that a killed daemon stays dead
PACE = 4_000_000  # bytes a second of each bulk stream: the machine has other things to do
CONNECTIONS = 6  # an ssh session, two bulk streams, a ticker, two that are asked


class Watch:
    """Looks at the router for counters that come again."""

    def __init__(self, lab: Lab, relay: Host) -> None:
        self._output = lab.sandbox.directory / "counters"
        with self._output.open("w") as out:
            argv = [sys.executable, "-m", "redirectctl.lab.counters", *map(str, relay.links[0].addresses)]
            self._process: subprocess.Popen[str] = lab.router.popen(argv, stdout=out, stderr=out)
        wait_until(lambda: "watching" in self._output.read_text(), PATIENCE, "the watch of counters")

    def stop(self) -> dict[str, int]:
        """How many datagrams and keys it has seen, and which numbers came again."""
        self._process.terminate()
        self._process.wait(PATIENCE)
        lines = self._output.read_text().splitlines()
        assert not [line for line in lines if "again" in line and "datagrams" not in line], lines
        return dict(json.loads(lines[-1]))


class Crashes:
    """One lab with its workload.  AssertionError and LabError say what was lost."""

    def __init__(
        self, lab: Lab, path: str, seed: int, version: int, done: Counter[str], say: Callable[[str], None] = print
    ) -> None:
        """``done``: counts what was done."""
        self.lab = lab
        self.random = random.Random(seed)
        self.say = say
        self.done = done
        self.pair = Meeting(lab, config=CONFIGS[path])
        (self.rendezvous,) = self.pair.rendezvous
        self.journeys = {host: self._journey(host) for host in (lab.client, lab.server)}
        self.watch = Watch(lab, self.rendezvous.host)
        client, server, wrap = lab.client, lab.server, self.pair.wrap
        sshd = SshServer(server)
        self.terminal = Terminal(client, [*wrap, *sshd.ssh("-tt", "sh", version=version)])
        self.ticker = start_ticker(server, client, version=version, interval=0.02, wrap=wrap)
        self.bulks = [
            start_bulk(server, client, version=version, wrap=wrap, pace=PACE),
            start_bulk(client, server, version=version, wrap=self.pair.server.opted_in(), pace=PACE),
        ]
        self.idle = start_idle(server, client, 2, version=version, wrap=wrap)
        wait_until(self._all_protected, PATIENCE, "all protected", poll=0.5)

    def _all_protected(self) -> bool:
        listed = [d.ctl("connections") for d in self.pair.daemons]
        return all(len([c for c in each if c["state"] == "protected"]) == CONNECTIONS for each in listed)

    def run(self, moments: int) -> None:
        """So many times something is killed."""
        for _ in range(moments):
            self._round()

    def _round(self) -> None:
        """A host moves, or both at once, or none; at some moment of it one daemon is killed, or several."""
        choose, (client, server) = self.random, self.pair.daemons
        victims = choose.choice(
            [(client,), (server,), (client, server), (self.rendezvous,), (client, server, self.rendezvous)]
        )
        movers = choose.choice([(), (self.lab.client,), (self.lab.server,), (self.lab.client, self.lab.server)])
        again = bool(movers) and choose.random() < 0.3  # on before it has settled
        after, down = choose.random() * WITHIN, choose.choice(DOWN)
        names = "+".join(daemon.host.name for daemon in victims)
        moving = "+".join(host.name for host in movers) or "nobody"
        self.say(f"kill {names} after {after:.3f} s, down for {down} s; {moving} moves{' twice' if again else ''}")
        with going(victims, after, down):
            for _ in range(2 if again else 1):
                time.sleep(choose.random() * WITHIN)
                self._move(movers)
        self.done["moments"] += 1
        for daemon in victims:
            self.done[f"kills of {daemon.host.name}"] += 1
        self._lives()

    def _move(self, hosts: Sequence[Host]) -> None:
        for host in hosts:
            host.leave()
        for host in hosts:
            stop = next(self.journeys[host], None)
            if stop is None:  # no address is used twice in one journey
                self.journeys[host] = self._journey(host)
                stop = next(self.journeys[host])
            host.join(stop.network, stop.number)
            self.done[f"moves of {host.name}"] += 1
        self.done["moves of both at once"] += len(hosts) == 2

    def _journey(self, host: Host) -> Iterator[Stop]:
        """Not by way of the office, where the rendezvous is."""
        return self.lab.journey("cafe", "home") if host is self.lab.client else self.lab.server_journey()

    def _lives(self) -> None:
        """Every connection carries something, both ways, that was not under way already."""
        now = time.monotonic()
        self.ticker.wait_both(now, PATIENCE)
        word = f"word-{self.random.random()}"
        assert self.terminal.run(f"echo {word}", PATIENCE).strip() == word
        assert self.idle.ask(PATIENCE) == {}
        before = [bulk.received() for bulk in self.bulks]
        for bulk, had in zip(self.bulks, before, strict=True):
            wait_until(lambda bulk=bulk, had=had: bulk.received() > had, PATIENCE, f"bytes on {bulk.local}", poll=0.05)

    def finish(self) -> None:
        """Nothing is lost, wrong or left."""
        verdicts: list[Verdict] = [self.ticker.stop(), *(bulk.stop() for bulk in self.bulks)]
        assert all(verdict.ok for verdict in verdicts), verdicts
        self.done["bytes compared"] += sum(int(v.figures["server"].get("bytes", 0)) for v in verdicts)
        assert self.terminal.leave() == 0
        self.idle.stop()
        stop_clean((*self.pair.daemons, self.rendezvous))
        seen = self.watch.stop()
        self.done["numbers seen"] += seen["datagrams"]
        assert (seen["again"], seen["dropped"]) == (0, 0)
        assert seen["datagrams"] > 0
        self.done["packets refused"] += sum(int(e.get("count") or 1) for d in self.pair.daemons for e in refusals(d))


def refusals(daemon: Daemon) -> list[dict[str, object]]:
    """Of its event log: the daemon may not run any more."""
    files = sorted(Path(daemon.state).glob("events.jsonl*"))
    events = [json.loads(line) for file in files for line in file.read_text().splitlines() if line.endswith("}")]
    return [event for event in events if event["event"] == "packet.refused"]

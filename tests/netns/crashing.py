"""Daemons killed at random moments of a workload with moves; test_crashes.py and tests/soak/crashes.py run it."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from redirectctl.lab.daemons import Daemon
from redirectctl.lab.sshd import SshServer
from redirectctl.lab.streams import Program, Verdict, start_bulk, start_idle, start_ticker, wait_until
from redirectctl.lab.terminal import Terminal
from redirectctl.lab.topology import Host, Lab
from tests.netns.daemon_pair import FAST, LINGERING, PATIENCE, Pair, held

CONFIGS = {
    "auto": FAST,
    "tunnel": FAST + '[path]\nprefer = "tunnel"\n',
    "integrity": FAST + '[integrity]\nmode = "on"\n',
}
WITHIN = 1.5  # seconds of a round in which the kill comes
DOWN = (0.0, 0.0, 0.3, 1.0, 2.5)  # seconds that a killed daemon stays dead
PACE = 4_000_000  # bytes a second of each bulk stream: the machine has other things to do
CONNECTIONS = 6  # an ssh session, two bulk streams, a ticker, two that are asked


class Watch:
    """Looks at the router for counters that come again."""

    def __init__(self, lab: Lab) -> None:
        self._output = lab.sandbox.directory / "counters"
        with self._output.open("w") as out:
            argv = [sys.executable, "-m", "redirectctl.lab.counters"]
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

    def __init__(self, lab: Lab, path: str, seed: int, version: int, say: Callable[[str], None] = print) -> None:
        self.lab = lab
        self.version = version
        self.random = random.Random(seed)
        self.say = say
        self.done: Counter[str] = Counter()
        self.pair = Pair(lab, CONFIGS[path], CONFIGS[path])
        self.journeys = {lab.client: lab.client_journey(), lab.server: lab.server_journey()}
        self.watch = Watch(lab)
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

    def run(self, kills: int) -> None:
        """Rounds until so many daemons have been killed."""
        while self.done["kills"] < kills:
            self._round()

    def _round(self) -> None:
        """A host moves, or none; at some moment of it one daemon is killed, or both."""
        choose = self.random
        victims = choose.choice([(self.pair.client,), (self.pair.server,), self.pair.daemons])
        mover = choose.choice([None, self.lab.client, self.lab.client, self.lab.server])
        again = mover is not None and choose.random() < 0.3  # on before it has settled
        after, down = choose.random() * WITHIN, choose.choice(DOWN)
        names = "+".join(daemon.host.name for daemon in victims)
        self.say(
            f"kill {names} after {after:.3f} s, down for {down} s; "
            f"{f'{mover.name} moves' if mover else 'nobody moves'}{' twice' if again else ''}"
        )
        failures: list[BaseException] = []

        def kill() -> None:
            try:
                time.sleep(after)
                for daemon in victims:
                    daemon.kill()
                time.sleep(down)
                for daemon in victims:
                    daemon.start()
            except BaseException as error:
                failures.append(error)

        killer = threading.Thread(target=kill, name="killer")
        killer.start()
        try:
            for _ in range(2 if again else 1):
                time.sleep(choose.random() * WITHIN)
                if mover is not None:
                    self._move(mover)
        finally:
            killer.join()
        if failures:
            raise failures[0]
        self.done["kills"] += len(victims)
        self.done["rounds"] += 1
        self._lives()

    def _move(self, host: Host) -> None:
        stop = next(self.journeys[host], None)
        if stop is None:  # no address is used twice in one journey
            journey = self.lab.client_journey if host is self.lab.client else self.lab.server_journey
            self.journeys[host] = journey()
            stop = next(self.journeys[host])
        host.move(stop.network, stop.number)
        self.done[f"moves of {host.name}"] += 1

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

    def finish(self) -> dict[str, object]:
        """Nothing is lost, wrong or left; what was done."""
        verdicts: list[Verdict] = [self.ticker.stop(), *(bulk.stop() for bulk in self.bulks)]
        assert all(verdict.ok for verdict in verdicts), verdicts
        assert self.terminal.leave() == 0
        self.idle.stop()
        streamed = sum(int(v.figures["server"].get("bytes", 0)) for v in verdicts)
        for daemon in self.pair.daemons:
            host = daemon.host
            wait_until(lambda host=host: not held(host), LINGERING, f"nothing held on {host.name}", poll=0.5)
            assert daemon.doctor() == {}
        seen = self.watch.stop()
        assert seen["again"] == 0
        assert seen["datagrams"] > 0
        self.pair.stop_without_a_trace()
        refused = sum(int(e.get("count") or 1) for d in self.pair.daemons for e in refusals(d))
        return {**self.done, "bytes streamed": streamed, "numbers": seen, "packets refused": refused}


def refusals(daemon: Daemon) -> list[dict[str, object]]:
    """Of its event log: the daemon may not run any more."""
    files = sorted(Path(daemon.state).glob("events.jsonl*"))
    events = [json.loads(line) for file in files for line in file.read_text().splitlines() if line.endswith("}")]
    return [event for event in events if event["event"] == "packet.refused"]


__all__ = ["CONFIGS", "Crashes", "Program"]

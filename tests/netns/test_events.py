"""`redirectctl events` on real daemons: one line for each thing that happens, and how long programs saw nothing."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

from redirectctl.kernel.constants import TUN_DEVICE
from redirectctl.lab.daemons import Daemon
from redirectctl.lab.namespaces import program
from redirectctl.lab.streams import start_ticker, wait_until
from redirectctl.lab.topology import Lab
from tests.netns.daemon_pair import PATIENCE, Pair

OUTAGE = 5.0  # seconds; more than `events --follow` waits before it says that a loss is not over


class Following:
    """`redirectctl events --follow` on a host."""

    def __init__(self, daemon: Daemon, path: Path, *options: str) -> None:
        self.path = path
        argv = [program("redirectctl"), "--socket", str(daemon.socket), "events", "--follow", *options]
        with path.open("w") as out:
            self.process: subprocess.Popen[str] = daemon.host.popen(argv, stdout=out, stderr=out)

    def lines(self) -> list[str]:
        """Without the time at their beginning."""
        return [line[21:] for line in self.path.read_text().splitlines()]

    def wait(self, *beginnings: str) -> list[str]:
        """Until there are so many lines, which begin so."""
        return wait_until(
            lambda: lines if len(lines := self.lines()) >= len(beginnings) else None,
            PATIENCE,
            f"lines {beginnings}: {self.lines()}",
            poll=0.1,
        )

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait()


def test_one_line_for_a_move_and_two_for_a_loss_that_lasts(lab: Lab) -> None:
    pair = Pair(lab)
    ticker = start_ticker(lab.server, lab.client, wrap=pair.wrap)
    pair.wait_protected(1)
    laptop = Following(pair.client, lab.sandbox.directory / "laptop")
    server = Following(pair.server, lab.sandbox.directory / "server")
    time.sleep(1.0)  # they have asked by then; what comes before is not theirs

    home, began = lab.client.address(), time.time()
    link = lab.client.move(lab.cafe, 20)
    ticker.wait_both(link.usable_at, PATIENCE)
    cafe = lab.client.address()
    (line,) = laptop.wait("moved")
    assert line.startswith(f"moved to {cafe} (eth0) from {home}; 1 connection with ")
    assert "; silent for " in line
    (line,) = server.wait("the other host moved")
    assert line.startswith(f"the other host moved to {cafe} from {home}; 1 connection with ")

    lab.client.leave()
    time.sleep(OUTAGE)
    laptop.wait("moved", "no path")
    assert laptop.lines()[1].startswith(f"no path since {cafe} went; 1 connection with ")
    assert laptop.lines()[1].endswith("; not over")
    link = lab.client.join(lab.cafe, 20)
    ticker.wait_both(link.usable_at, PATIENCE)
    laptop.wait("moved", "no path", f"{cafe} went and came back")
    assert laptop.lines()[2].startswith(f"{cafe} went and came back; 1 connection with ")
    finished = [e for e in pair.client.events(since=began) if e.get("gap") is not None]
    assert max(e["gap"] for e in finished) > OUTAGE - 1.0, "the program ticks, and heard nothing for that long"

    pair.server.ctl("announce")  # confirms where it is anyway
    pair.wait_moved(pair.server, began, 1)
    time.sleep(3.0)
    assert len(laptop.lines()) == 3
    told = lab.client.run(
        [program("redirectctl"), "--socket", str(pair.client.socket), "events", "--since", str(began)]
    ).stdout.splitlines()
    assert len(told) == 2, "what is over has one line"
    everything = lab.client.run(
        [program("redirectctl"), "--socket", str(pair.client.socket), "events", "--verbose"]
    ).stdout
    assert "path.changed" in everything
    assert TUN_DEVICE not in everything
    for following in (laptop, server):
        following.stop()
    pair.end(ticker)

"""Record the event logs of a laptop and a server over a day of moves, as the tests of `redirectctl events` read them.

    python -m tests.netns.day tests/unit/api/day       (as root; some three minutes)

writes laptop.jsonl and server.jsonl into the directory that is named.  The laptop has three connections with the server
that say something ten times a second, and one that is silent.  What it does is in `spend`.
"""

from __future__ import annotations

import re
import sys
import time
from pathlib import Path

from redirectctl.lab.middlebox import Gateway
from redirectctl.lab.streams import start_idle, start_ticker
from redirectctl.lab.topology import Lab
from tests.netns.daemon_pair import FAST, PATIENCE, Pair

CALM = 4.0  # seconds between two things that happen


def spend(lab: Lab, gateway: Gateway, pair: Pair) -> None:
    """The day: each line is one thing that a person would tell."""
    laptop, server = lab.client, lab.server
    calm()
    laptop.move(lab.cafe, 20)
    calm()
    laptop.move(lab.office, 21, make_before_break=True)
    calm()
    for _ in range(2):  # the Wi-Fi goes and comes back, with the same address
        laptop.leave()
        time.sleep(1.5)
        laptop.join(lab.office, 21)
        calm()
    lab.office.cut()  # an outage on the way: nothing of this host changes
    time.sleep(18)
    lab.office.restore()
    calm()
    laptop.leave()  # no network at all, then another one
    time.sleep(15)
    laptop.join(lab.cafe, 22)
    calm()
    server.move(lab.dc2, 30)
    calm()
    laptop.move(gateway.private, 10)
    calm()
    gateway.rebind()
    calm(12)
    gateway.forget()
    calm(12)
    laptop.move(lab.home, 10)
    calm()
    pair.server.restart()
    calm(6)
    laptop.move(lab.cafe, 23)
    calm()


def calm(seconds: float = CALM) -> None:
    """Let what follows a thing happen."""
    time.sleep(seconds)


def told(log: str) -> str:
    """Without paths of this machine: commands are named by what they do."""
    return re.sub(r'"command":"[^"]* (ticker|idle) [^"]*"', r'"command":"\1"', log)


def main() -> None:
    """Record into the directory that is named."""
    target = Path(sys.argv[1])
    target.mkdir(parents=True, exist_ok=True)
    lab = Lab()
    try:
        gateway = Gateway(lab, lab.home)
        pair = Pair(lab, FAST, FAST)
        tickers = [start_ticker(lab.server, lab.client, wrap=pair.wrap, interval=0.1) for n in range(3)]
        idle = start_idle(lab.server, lab.client, 1, wrap=pair.wrap)
        pair.wait_protected(4)
        spend(lab, gateway, pair)
        for ticker in tickers:
            ticker.wait_both(time.monotonic(), PATIENCE)
            verdict = ticker.stop()
            assert verdict.ok, verdict
        idle.stop()
        time.sleep(1.0)
        for name, daemon in (("laptop", pair.client), ("server", pair.server)):
            daemon.stop()
            (target / f"{name}.jsonl").write_text(told((daemon.state / "events.jsonl").read_text()))
    finally:
        lab.close()


if __name__ == "__main__":
    main()

"""Random moves, outages, losses, and kills of daemons for a given time; see tests/netns/soaking.py.

    python tests/soak/soak.py --minutes 10 [--seed N]

Needs root.  Ends with counts and a verdict; exit status 1 if a connection was lost, a byte was wrong or something is
left behind.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
import traceback
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from redirectctl.lab.namespaces import ended_by_signals
from redirectctl.lab.topology import Lab
from tests.netns.soaking import Soak


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0, help="default 10")
    parser.add_argument("--seed", type=int, help="of an earlier run, for the same steps")
    parser.add_argument("--keep-log", type=Path, metavar="DIR", help="where to copy logs and state after a failure")
    arguments = parser.parse_args()
    seed = arguments.seed if arguments.seed is not None else random.randrange(1 << 32)
    print(f"--seed {seed}", flush=True)
    with ended_by_signals(), Lab() as lab:
        soak: Soak | None = None
        try:
            soak = Soak(lab, seed, say, long=True)
            soak.run(arguments.minutes * 60)
            say("the end: every stream is compared")
            counts = soak.finish()
        except Exception:
            traceback.print_exc()
            save(lab, arguments.keep_log)
            print(json.dumps({"verdict": "FAILED", "seed": seed, **(dict(soak.done) if soak else {})}))
            return 1
    print(json.dumps({"verdict": "nothing lost, nothing wrong, nothing left", "seed": seed, **counts}))
    return 0


def say(text: str) -> None:
    """On stdout, with the time."""
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


def save(lab: Lab, directory: Path | None) -> None:
    """What a look into a failure needs."""
    if directory is None:
        return
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "lab").write_text(lab.report())
    for log in sorted(lab.sandbox.directory.glob("redirectd-*/log")):
        (directory / f"{log.parent.name}.log").write_text(log.read_text(errors="replace"))
    for log in sorted(lab.sandbox.directory.glob("redirectd-*/state/events.jsonl")):
        (directory / f"{log.parents[1].name}.events").write_text(log.read_text(errors="replace"))


if __name__ == "__main__":
    sys.exit(main())

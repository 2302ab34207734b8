"""Kill daemons at random moments of a workload with moves, for as long as one likes; see tests/netns/crashing.py.

    python tests/soak/crashes.py --kills 200 [--seed N] [--path auto|tunnel|integrity]

Needs root.  Each path is a lab of its own, with IPv4 and IPv6 in turn; exit status 1 if anything was lost.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
import traceback
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from redirectctl.lab.topology import Lab
from tests.netns.crashing import CONFIGS, Crashes


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200, help="in all (default 200)")
    parser.add_argument("--seed", type=int, help="of an earlier run, to do the same")
    parser.add_argument(
        "--path", choices=CONFIGS, action="append", help="how connections travel (default: each in turn)"
    )
    parser.add_argument("--keep-log", type=Path, metavar="DIR", help="where to copy the daemons' logs after a failure")
    arguments = parser.parse_args()
    seed = arguments.seed if arguments.seed is not None else random.randrange(1 << 32)
    paths = arguments.path or list(CONFIGS)
    began, failed = time.monotonic(), 0
    print(f"--seed {seed}", flush=True)
    for number, path in enumerate(paths):
        kills = arguments.kills // len(paths) + (number < arguments.kills % len(paths))
        version = 6 if number % 2 else 4
        with Lab() as lab:
            crashes: Crashes | None = None
            try:
                crashes = Crashes(lab, path, seed + number, version, say)
                crashes.run(kills)
                say(f"{path}, IPv{version}: {crashes.finish()}")
            except Exception:
                failed += 1
                traceback.print_exc()
                say(f"{path}, IPv{version}: FAILED after {dict(crashes.done) if crashes else {}}")
                _save(lab, arguments.keep_log, path)
    say(f"{arguments.kills} kills in {time.monotonic() - began:.0f} s, {failed} of {len(paths)} labs failed")
    return 1 if failed else 0


def say(text: str) -> None:
    """On stdout, with the time."""
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


def _save(lab: Lab, directory: Path | None, path: str) -> None:
    if directory is None:
        return
    directory.mkdir(parents=True, exist_ok=True)
    (directory / f"{path}-lab").write_text(lab.report())
    for log in sorted(lab.sandbox.directory.glob("redirectd-*/log")):
        (directory / f"{path}-{log.parent.name}.log").write_text(log.read_text(errors="replace"))
    for log in sorted(lab.sandbox.directory.glob("redirectd-*/state/events.jsonl")):
        (directory / f"{path}-{log.parents[1].name}.events").write_text(log.read_text(errors="replace"))


if __name__ == "__main__":
    sys.exit(main())

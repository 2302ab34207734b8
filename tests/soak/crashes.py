"""Kill daemons and the rendezvous at random moments of a workload with moves; see tests/netns/crashing.py.

    python tests/soak/crashes.py --kills 200 [--seed N] [--path auto|tunnel|integrity]

Needs root.  Each path is a lab of its own, with IPv4 and IPv6 in turn.  Ends with counts and a verdict; exit status 1
if a connection was lost, a byte was wrong, a number was used twice or something is left behind.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from redirectctl.lab.topology import Lab
from tests.netns.crashing import CONFIGS, Crashes
from tests.soak.running import in_lab, parser, say, seed_of


def main() -> int:
    """Entry point."""
    options = parser(__doc__)
    options.add_argument("--kills", type=int, default=200, help="moments in all, shared by the paths (default 200)")
    options.add_argument(
        "--path", choices=CONFIGS, action="append", help="how connections travel (default: each in turn)"
    )
    arguments = options.parse_args()
    seed = seed_of(arguments)
    paths = arguments.path or list(CONFIGS)
    total: Counter[str] = Counter()
    failed: list[str] = []
    for number, path in enumerate(paths):
        moments = arguments.kills // len(paths) + (number < arguments.kills % len(paths))
        version = 6 if number % 2 else 4
        counts: Counter[str] = Counter()

        def work(
            lab: Lab,
            counts: Counter[str] = counts,
            at: tuple[str, int, int] = (path, seed + number, version),
            moments: int = moments,
        ) -> None:
            crashes = Crashes(lab, *at, counts, say)
            crashes.run(moments)
            crashes.finish()

        if not in_lab(work, arguments.keep_log and arguments.keep_log / path):
            failed.append(path)
        say(f"{path}, IPv{version}{': FAILED' if path in failed else ''}: {json.dumps(counts)}")
        total += counts
    verdict = "nothing lost, nothing wrong, no number twice, nothing left"
    print(json.dumps({"verdict": f"FAILED: {', '.join(failed)}" if failed else verdict, "seed": seed, **total}))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

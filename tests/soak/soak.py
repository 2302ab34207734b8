"""Random moves, outages, losses, kills of daemons and more for a given time; see tests/netns/soaking.py.

    python tests/soak/soak.py --minutes 10 [--seed N] [--kind vpn --kind disk_full]

Needs root.  Ends with counts and a verdict; exit status 1 if a connection was lost, a byte was wrong or something is
left behind.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from redirectctl.lab.topology import Lab
from tests.netns.soaking import Soak
from tests.soak.running import in_lab, parser, say, seed_of


def main() -> int:
    """Entry point."""
    options = parser(__doc__)
    options.add_argument("--minutes", type=float, default=10.0, help="default 10")
    options.add_argument("--kind", action="append", default=[], metavar="STEP", help="this kind of step only, and ...")
    arguments = options.parse_args()
    seed = seed_of(arguments)
    counts: Counter[str] = Counter()

    def work(lab: Lab) -> None:
        soak = Soak(lab, seed, counts, say, long=True, kinds=arguments.kind)
        soak.run(arguments.minutes * 60)
        say("the end: every stream is compared")
        soak.finish()

    well = in_lab(work, arguments.keep_log)
    verdict = "nothing lost, nothing wrong, nothing left" if well else "FAILED"
    print(json.dumps({"verdict": verdict, "seed": seed, **counts}))
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())

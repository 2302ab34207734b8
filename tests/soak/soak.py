"""Random moves, outages, losses, kills of daemons and more for a given time; see tests/netns/soaking.py.

    python tests/soak/soak.py --minutes 10 [--seed N] [--kind vpn --kind disk_full] [--attacker]

Needs root.  Ends with counts and a verdict; exit status 1 if a connection was lost, a byte was wrong or something is
left behind.  With --attacker an approved peer sends everything that it can, at random (tests/netns/attacker.py); then
it is a failure too if anything of the connections gets to it, or to a bystander.
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
    options.add_argument("--attacker", action="store_true", help="an approved peer sends everything, at random")
    arguments = options.parse_args()
    seed = seed_of(arguments)
    counts: Counter[str] = Counter()

    def work(lab: Lab) -> None:
        soak = Soak(lab, seed, counts, say, long=True, kinds=arguments.kind, attacker=arguments.attacker)
        soak.run(arguments.minutes * 60)
        say("the end: every stream is compared")
        soak.finish()
        for what, count in sorted(soak.attacked.items()):
            say(f"attacker: {what}: {count:,}")

    well = in_lab(work, arguments.keep_log)
    redirected = ", nothing redirected" if arguments.attacker else ""
    verdict = f"nothing lost, nothing wrong{redirected}, nothing left" if well else "FAILED"
    print(json.dumps({"verdict": verdict, "seed": seed, **counts}))
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())

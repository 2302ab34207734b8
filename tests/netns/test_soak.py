"""A short soak; ``python tests/soak/soak.py --minutes 10`` for a long one."""

from __future__ import annotations

import os
import random
from collections import Counter

from redirectctl.lab.topology import Lab
from tests.netns.soaking import Soak

SECONDS = 20.0  # and the last step's


def test_a_short_soak(lab: Lab) -> None:
    seed = int(os.environ.get("REDIRECTCTL_SEED") or random.randrange(1 << 32))
    print(f"REDIRECTCTL_SEED={seed}")
    done: Counter[str] = Counter()
    soak = Soak(lab, seed, done, attacker=True)
    soak.run(SECONDS)
    soak.finish()
    print(dict(done))
    print(soak.attacked)

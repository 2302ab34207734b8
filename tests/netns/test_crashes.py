"""Daemons and a rendezvous killed at random: no connection lost, no byte wrong, no number used twice, nothing left.

A few kills here; ``python tests/soak/crashes.py --kills 200`` for many, or REDIRECTCTL_KILLS=200 with this test.
"""

from __future__ import annotations

import os
import random
from collections import Counter

import pytest

from redirectctl.lab.topology import Lab
from tests.netns.crashing import Crashes

KILLS = int(os.environ.get("REDIRECTCTL_KILLS", "4"))  # moments of each


@pytest.mark.parametrize(("path", "version"), [("auto", 4), ("integrity", 6)])
def test_killed_at_random_moments(lab: Lab, path: str, version: int) -> None:
    seed = int(os.environ.get("REDIRECTCTL_SEED") or random.randrange(1 << 32))
    print(f"REDIRECTCTL_SEED={seed}")
    done: Counter[str] = Counter()
    crashes = Crashes(lab, path, seed, version, done)
    crashes.run(KILLS)
    crashes.finish()
    print(dict(done))

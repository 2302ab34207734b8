"""How long a connection is silent once its host has a usable address again: python tests/bench/gap.py."""

import sys

from redirectctl.lab import bench

if __name__ == "__main__":
    sys.exit(bench.main("gap"))

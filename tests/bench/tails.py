"""How soon a single write is answered after an outage, on a busy machine: python tests/bench/tails.py."""

import sys

from redirectctl.lab import bench

if __name__ == "__main__":
    sys.exit(bench.main("tails"))

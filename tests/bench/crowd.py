"""What it takes to protect and to move many connections at once: python tests/bench/crowd.py."""

import sys

from redirectctl.lab import bench

if __name__ == "__main__":
    sys.exit(bench.main("crowd"))

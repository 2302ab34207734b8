"""Connections whose address exists and does not carry, beside plain ones: python tests/bench/uplinks.py."""

import sys

from redirectctl.lab import bench

if __name__ == "__main__":
    sys.exit(bench.main("uplinks"))

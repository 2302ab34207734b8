"""Throughput of one connection before protection, protected, and after a move: python tests/bench/throughput.py."""

import sys

from redirectctl.lab import bench

if __name__ == "__main__":
    sys.exit(bench.main("protected"))

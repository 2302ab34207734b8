"""Throughput by each way that a connection may take, and of wireguard-go: python tests/bench/tunnel.py."""

import sys

from redirectctl.lab import bench

if __name__ == "__main__":
    sys.exit(bench.main("ways"))

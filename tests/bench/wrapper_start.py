"""What redirect-run adds to the start of a command: python tests/bench/wrapper_start.py."""

import sys

from redirectctl.lab import bench

if __name__ == "__main__":
    sys.exit(bench.main("start"))

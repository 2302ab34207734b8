"""What it costs a daemon to hold many connections while there is no path: python tests/bench/suspended.py."""

import sys

from redirectctl.lab import bench

if __name__ == "__main__":
    sys.exit(bench.main("suspended"))

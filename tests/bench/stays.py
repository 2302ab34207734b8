"""Protected connections beside plain ones, with the other daemon gone: python tests/bench/stays.py."""

import sys

from redirectctl.lab import bench

if __name__ == "__main__":
    sys.exit(bench.main("stays"))

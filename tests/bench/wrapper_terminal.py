"""What redirect-run costs on a terminal: python tests/bench/wrapper_terminal.py."""

import sys

from redirectctl.lab import bench

if __name__ == "__main__":
    sys.exit(bench.main("terminal"))

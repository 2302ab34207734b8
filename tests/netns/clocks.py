"""A wall clock that is wrong, for one daemon only."""

from __future__ import annotations

import sys

from redirectctl.lab.daemons import Daemon
from redirectctl.lab.topology import Host

# The wall clock of this process alone is off by what a file says.
_OFF = """
import os, sys, time
from pathlib import Path
true, file = time.time, Path(os.environ["CLOCK_FILE"])
time.time = lambda: true() + float(file.read_text())
from redirectctl.daemon.main import main
sys.exit(main())
"""


class Clock:
    """The wall clock that a host's daemon sees."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._file = host.sandbox.directory / f"clock-{host.name}"
        self.set(0.0)
        self.command = ["env", f"CLOCK_FILE={self._file}", sys.executable, "-c", _OFF]  # a redirectd that sees it

    def daemon(self, config: str) -> Daemon:
        """One that sees it."""
        return Daemon(self._host, config, command=self.command)

    def set(self, off: float) -> None:
        """So many seconds ahead of the true time, also while daemons run."""
        fresh = self._file.with_suffix(".new")
        fresh.write_text(str(off))
        fresh.replace(self._file)

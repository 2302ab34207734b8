"""A wall clock that is wrong, for one daemon only."""

from __future__ import annotations

import sys

from redirectctl.lab.daemons import Daemon
from redirectctl.lab.topology import Host

# The wall clock of this process alone is off by what a file says.  To ask for the time needs no descriptor.
_OFF = """
import os, sys, time
true, file = time.time, os.open(os.environ["CLOCK_FILE"], os.O_RDONLY | os.O_CLOEXEC)
time.time = lambda: true() + float(os.pread(file, 64, 0))
from redirectctl.redirectd import main
sys.exit(main())
"""


_WIDTH = 32  # characters


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
        with self._file.open("r+b" if self._file.exists() else "wb", buffering=0) as file:
            file.write(f"{off:<{_WIDTH}}".encode())  # as long as what was there, so it is never half of each

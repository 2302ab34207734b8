"""A host on which room on the disk, or descriptors, run out, and come back."""

from __future__ import annotations

import errno
import os
import resource
import sys
from collections.abc import Sequence
from pathlib import Path

from redirectctl.lab.daemons import Daemon
from redirectctl.lab.namespaces import program
from redirectctl.lab.streams import wait_until
from redirectctl.lab.topology import Host, Lab
from tests.netns.daemon_pair import FAST, PATIENCE, Pair

STEADY = 8  # looks that find the same
SIZE = 2 << 20  # bytes of a state disk


class Disk:
    """A small file system for a daemon's state, in a mount namespace of its own: gone with the lab."""

    def __init__(self, host: Host, size: int = SIZE) -> None:
        self.host = host
        directory = host.sandbox.directory / f"disk-{host.name}"
        directory.mkdir()
        script = f"mount -t tmpfs -o size={size} tmpfs {directory} && exec sleep infinity"
        holder = host.popen(["unshare", "--mount", "--propagation", "private", "sh", "-ec", script])
        self._inside = f"/proc/{holder.pid}"
        mounts = Path(self._inside, "mounts")
        wait_until(lambda: f" {directory} tmpfs " in mounts.read_text(), PATIENCE, f"a disk on {host.name}")
        self.path = Path(f"{self._inside}/root{directory}")
        self._ballast = self.path / "ballast"
        self._directory = directory

    def daemon(self, config: str, command: Sequence[str] = ()) -> Daemon:
        """One that has its state here; ``command``: as for `Daemon`."""
        inside = ["nsenter", f"--mount={self._inside}/ns/mnt", "--", *(command or [program("redirectd")])]
        daemon = Daemon(self.host, config, command=inside)
        daemon.state.symlink_to(self.path / "state")  # for whoever looks from outside
        daemon.state = self._directory / "state"
        return daemon

    def stored(self, query: str) -> str:
        """The first field that a query gives."""
        script = "import sqlite3, sys; print(sqlite3.connect(sys.argv[1]).execute(sys.argv[2]).fetchone()[0])"
        argv = [sys.executable, "-c", script, f"{self._directory}/state/state.db", query]
        return self.host.run(["nsenter", f"--mount={self._inside}/ns/mnt", "--", *argv]).stdout.strip()

    def fill(self) -> None:
        """Until not a byte more fits."""
        with self._ballast.open("ab", buffering=0) as file:
            for size in (1 << 16, 1 << 12, 1):
                try:
                    while file.write(bytes(size)):
                        pass
                except OSError as error:
                    if error.errno != errno.ENOSPC:
                        raise

    def clear(self) -> None:
        """There is room again."""
        self._ballast.unlink()


class SmallDisks(Pair):
    """Client and server, each with its state on a small disk."""

    def __init__(self, lab: Lab) -> None:
        self.disks = (Disk(lab.client), Disk(lab.server))
        super().__init__(lab, daemons=(self.disks[0].daemon(FAST), self.disks[1].daemon(FAST)))


class Descriptors:
    """Of a running daemon."""

    def __init__(self, daemon: Daemon) -> None:
        assert daemon.process is not None
        self._pid = daemon.process.pid
        self._before = resource.prlimit(self._pid, resource.RLIMIT_NOFILE)

    def deny(self) -> None:
        """None more from now on: the limit is the first number that is free, for as long as it takes to be so."""
        firsts = [-1]

        def settled() -> bool:
            used = {int(name) for name in os.listdir(f"/proc/{self._pid}/fd")}
            firsts.append(next(number for number in range(len(used) + 1) if number not in used))
            resource.prlimit(self._pid, resource.RLIMIT_NOFILE, (firsts[-1], self._before[1]))
            return len(set(firsts[-STEADY:])) == 1

        wait_until(settled, PATIENCE, "no descriptor is left", poll=0.2)

    def allow(self) -> None:
        """As many as before."""
        resource.prlimit(self._pid, resource.RLIMIT_NOFILE, self._before)

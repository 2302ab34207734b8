"""The one exception of the kernel side."""

from __future__ import annotations

import errno
import os
from typing import Final

# What to do when something is used up: no right would help, whatever was tried.
USED_UP: Final = {
    errno.EMFILE: "raise the limit of open files: LimitNOFILE= of the unit, ulimit -n",
    errno.ENFILE: "raise fs.file-max, or find out who has so many files open",
    errno.ENOMEM: "there is no memory left: see `free`, and the unit's MemoryMax=",
    errno.ENOBUFS: "there is no memory left for the network: see `free`, and net.core.wmem_max",
    errno.ENOSPC: "there is no room left: see `df`, and limits of the cgroup",
}


def used_up(error: BaseException | None) -> str | None:
    """What to do if something was used up; None: it was something else."""
    if not isinstance(error, OSError):
        return None
    if error.errno is not None:
        return USED_UP.get(error.errno)
    return next((hint for code, hint in USED_UP.items() if os.strerror(code) in str(error)), None)  # of dlopen(3)


class KernelError(Exception):
    """The kernel cannot or will not do something.

    ``what`` was tried, ``why`` it failed, ``hint`` says what a person can do about it.
    """

    def __init__(self, what: str, why: str, hint: str) -> None:
        super().__init__(what, why, hint)
        self.what = what
        self.why = why
        self._hint = hint

    @property
    def hint(self) -> str:
        """What to do: first about what the OSError that it comes of says is used up."""
        return used_up(self.__cause__) or self._hint

    def __str__(self) -> str:
        return f"{self.what}: {self.why}; {self.hint}"

"""A process that is held by a descriptor: its number may come to mean another one, this never does (pidfd_open(2))."""

from __future__ import annotations

import errno
import os
import select
import socket
from pathlib import Path
from typing import Final

from redirectctl.kernel.processes import procfs

_SO_PEERPIDFD: Final = 77  # asm-generic/socket.h; Python has no name for it.  Linux 6.5


class Pidfd:
    """One process, until close()."""

    __slots__ = ("fd", "pid")

    def __init__(self, pid: int, fd: int) -> None:
        """``fd``: a pidfd, closed with this."""
        self.pid = pid
        self.fd = fd

    @classmethod
    def open(cls, pid: int) -> Pidfd:
        """The process that has this number now.  Raises OSError."""
        return cls(pid, os.pidfd_open(pid))

    def copy(self) -> Pidfd:
        """The same process, for somebody else."""
        return Pidfd(self.pid, os.dup(self.fd))

    def close(self) -> None:
        """Let go of it."""
        os.close(self.fd)

    @property
    def ended(self) -> bool:
        """Whether the process has ended; its number may be another's then."""
        poll = select.poll()
        poll.register(self.fd, select.POLLIN)
        return bool(poll.poll(0))

    def belongs_to(self, uid: int, *, proc: Path = procfs.PROC) -> bool:
        """Whether it runs, and as this user alone: what has other ids too has rights that the user has not.

        Root has all rights, and a program that root runs may have taken on some other id.
        """
        uids = procfs.users(self.pid, proc=proc)
        return not self.ended and (uid == 0 or uids == {uid})  # asked last: until now the number was the process's


def of_peer(sock: socket.socket, pid: int) -> Pidfd | None:
    """The process that connected to a Unix socket; None: it has ended.  ``pid``: what SO_PEERCRED says of it.

    Before Linux 6.5 there is only the number, which may be another process's by now: whoever uses the result has to
    ask whether it belongs to the user that SO_PEERCRED names.  Then nobody gets at a process that is not his own.
    """
    try:
        return Pidfd(pid, sock.getsockopt(socket.SOL_SOCKET, _SO_PEERPIDFD))
    except OSError as error:
        if error.errno != errno.ENOPROTOOPT:
            return None
    try:
        return Pidfd.open(pid)
    except OSError:
        return None

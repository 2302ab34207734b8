"""Second descriptors of other programs' sockets: pidfd_getfd(2).

Connections need things of their sockets that nobody can do from outside.  Suspended ones:

- TCP_USER_TIMEOUT, the program's or else the one that net.ipv4.tcp_retries2 stands for, must not run out. It counts
  from the first retransmission (`retransmits_timed_out`), whatever arrives (`tcp_rtx_probe0_timed_out`): no
  packet helps, another value does.
- The socket of a program that ends must not become an orphan, which the kernel gives up after some 100 s
  (`tcp_orphan_retries`): as long as we have a descriptor it is closed for the program, and not for TCP.

Moved ones: a socket that is bound to an interface takes nothing that comes in by another (SO_BINDTODEVICE).
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import resource
import socket
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path
from typing import Final, Protocol

from redirectctl.kernel.errors import KernelError
from redirectctl.kernel.processes.procfs import MAX_DESCRIPTORS, PROC

NEVER: Final = 0x7FFF_FFFF  # milliseconds, 24.8 days: the longest TCP_USER_TIMEOUT there is
FIRST_DESCRIPTOR: Final = 1024  # lower ones are for libraries that use select(2): libnftables aborts above FD_SETSIZE
SPARE_DESCRIPTORS = 256  # of the process's limit that others need

_WHAT = "borrow sockets of programs"
_SYS_PIDFD_GETFD = 438  # the same on all architectures, Linux 5.6
_CLOSED, _CA_OPEN = 7, 0  # tcpi_state, tcpi_ca_state


class Handle(Protocol):
    """A descriptor of somebody else's socket."""

    @property
    def user_timeout(self) -> int:
        """TCP_USER_TIMEOUT in milliseconds; 0: as the host's settings say.  Can be set."""

    @user_timeout.setter
    def user_timeout(self, milliseconds: int) -> None: ...

    def bind(self, device: str) -> None:
        """SO_BINDTODEVICE: to an interface, or with an empty name to none any more.  Raises OSError."""

    @property
    def closed(self) -> bool:
        """The connection has ended."""

    @property
    def calm(self) -> bool:
        """Nothing is left of earlier losses: a retransmission now would be the first of its kind."""

    def close(self) -> None:
        """Give the descriptor back; if the program has closed its own, this closes the connection."""


class _BorrowedSocket:
    """The real Handle."""

    __slots__ = ("_socket",)

    def __init__(self, descriptor: int) -> None:
        self._socket = socket.socket(fileno=descriptor)

    @property
    def user_timeout(self) -> int:
        return self._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)

    @user_timeout.setter
    def user_timeout(self, milliseconds: int) -> None:
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)

    def bind(self, device: str) -> None:
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device.encode() + b"\0")

    @property
    def closed(self) -> bool:
        return self._info()[0] == _CLOSED

    @property
    def calm(self) -> bool:
        _, congestion, retransmits = self._info()
        return congestion == _CA_OPEN and retransmits == 0

    def _info(self) -> bytes:
        return self._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 3)

    def close(self) -> None:
        self._socket.close()


class Borrow(Protocol):
    """Finds and copies descriptors: `borrow`, or a fake of it."""

    def __call__(self, inodes: Collection[int]) -> dict[int, Handle]:
        """Handles by inode number (SocketInfo.inode)."""


def check(*, proc: Path = PROC) -> None:
    """Raises KernelError where no socket can be borrowed, whosever it is."""
    with suppress(OSError):
        if (proc / "sys/kernel/yama/ptrace_scope").read_text().strip() == "3":
            hint = "set sysctl kernel.yama.ptrace_scope to 2 or less, which takes a restart of the machine"
            raise KernelError(_WHAT, "kernel.yama.ptrace_scope is 3: nobody may", hint)
    process = os.pidfd_open(os.getpid())
    try:
        descriptor = _LIBC.syscall(_SYS_PIDFD_GETFD, process, process, 0)
        if descriptor < 0:
            raise refusal(ctypes.get_errno())
        os.close(descriptor)
    finally:
        os.close(process)


def refusal(code: int) -> KernelError:
    """In words, what pidfd_getfd said no with."""
    if code == errno.ENOSYS:
        hint = "Linux 5.6 or later has it; else a filter of system calls must allow it"
    else:
        hint = "SystemCallFilter= of redirectd.service must have pidfd_getfd; it needs CAP_SYS_PTRACE"
    return KernelError(_WHAT, f"pidfd_getfd: {os.strerror(code)}", hint)


def borrow(
    inodes: Collection[int], *, proc: Path = PROC, on_refused: Callable[[KernelError], None] = lambda _: None
) -> dict[int, Handle]:
    """A descriptor of each of these sockets; what no program has, or we may not or cannot have, is left out.

    ``on_refused`` hears of it when we may not.
    Reads /proc, newest process first: some 2 microseconds for each open descriptor of the host.  Thread-safe.
    """
    wanted = {f"socket:[{inode}]": inode for inode in inodes if inode}
    found: dict[int, Handle] = {}
    try:
        room = resource.getrlimit(resource.RLIMIT_NOFILE)[0] - SPARE_DESCRIPTORS - len(os.listdir("/proc/self/fd"))
        pids = sorted((int(name) for name in os.listdir(proc) if name.isdigit()), reverse=True)
    except OSError:  # not even one descriptor is left
        return {}
    left = MAX_DESCRIPTORS
    for pid in pids:
        if not wanted or left <= 0 or len(found) >= room:
            break
        directory = proc / str(pid) / "fd"
        try:
            names = os.listdir(directory)
        except OSError:
            continue
        left -= len(names)
        hits = []
        for name in names:
            with suppress(OSError):
                if (link := os.readlink(directory / name)) in wanted:
                    hits.append((int(name), link))
        for link, descriptor in _copies(pid, hits[: max(0, room - len(found))], on_refused).items():
            found[wanted.pop(link)] = _BorrowedSocket(descriptor)
    return found


def _copies(pid: int, hits: list[tuple[int, str]], on_refused: Callable[[KernelError], None]) -> dict[str, int]:
    if not hits:
        return {}
    copies: dict[str, int] = {}
    try:
        process = os.pidfd_open(pid)
    except OSError:
        return {}
    try:
        for number, link in hits:
            descriptor = _LIBC.syscall(_SYS_PIDFD_GETFD, process, number, 0)
            if descriptor < 0:
                code = ctypes.get_errno()
                if code not in (errno.EBADF, errno.ESRCH):  # it has closed it, or ended
                    on_refused(refusal(code))
                continue
            # The program may have closed it meanwhile and have another one of that number.
            if link in copies or os.readlink(f"/proc/self/fd/{descriptor}") != link:
                os.close(descriptor)
            else:
                copies[link] = _out_of_the_way(descriptor)
    finally:
        os.close(process)
    return copies


def _out_of_the_way(descriptor: int) -> int:
    try:
        higher = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, FIRST_DESCRIPTOR)
    except OSError:  # RLIMIT_NOFILE is lower than that, and so are all descriptors
        return descriptor
    os.close(descriptor)
    return higher


_LIBC = ctypes.CDLL(None, use_errno=True)

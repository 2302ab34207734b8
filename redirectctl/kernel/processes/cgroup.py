"""Opting a command in: a cgroup of its own, below the one it is in.

Every socket made in a cgroup, by children too, reports the cgroup's id to inet_diag for ever; the id is the inode
number of the cgroup's directory. Ours are called ``redirectctl-PID``. Sockets may outlive the directory: who needs the
id of an ended command keeps it.

Several daemons may share the hierarchy, each in its own network namespace. They cannot hurt each other: only a cgroup
without processes can be removed.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple, Protocol

from redirectctl.kernel.constants import CGROUP_PREFIX
from redirectctl.kernel.errors import KernelError
from redirectctl.kernel.processes import procfs
from redirectctl.kernel.processes.pidfd import Pidfd

MAX_DIRECTORIES = 100_000  # looked at by find_all

_OURS = re.compile(re.escape(CGROUP_PREFIX) + r"[1-9][0-9]{0,9}")
_ATTEMPTS = 5
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_RACED = (errno.ENOENT, errno.ENODEV)  # somebody's sweep came between mkdir and the move


class Cgroup(NamedTuple):
    """One of our cgroups."""

    id: int  # as inet_diag reports it
    path: Path


class Cgroups(Protocol):
    """What others use of CgroupTree: tests give a fake of this."""

    def opt_in(self, pid: int, *, process: Pidfd | None = None) -> Cgroup:
        """Opt a process in."""

    def find_all(self) -> list[Cgroup]:
        """All of ours."""

    def sweep(self) -> list[Cgroup]:
        """Remove the empty ones."""


class CgroupTree:
    """The cgroup v2 hierarchy as this process sees it.

    All methods block: opt_in for up to some 20 ms (moving a process waits for an RCU grace period: call it in a
    thread), find_all and sweep for some 10 microseconds a directory.
    """

    def __init__(self, mount: Path | None = None, *, proc: Path = procfs.PROC) -> None:
        """``mount``: where it is mounted; None: look for it.  Raises KernelError when there is none."""
        self._proc = proc
        root = "/"
        if mount is None:
            mount, root = find_mount(proc)
        self.mount = mount
        self._root = root

    def opt_in(self, pid: int, *, process: Pidfd | None = None) -> Cgroup:
        """Move a process, not its children, into a cgroup of ours and return that; if it is in one, return it.

        ``process``: the one that is meant, whoever has the number by now. A process that ends while it is moved is
        reported as ended and nobody else has been moved. Raises KernelError.
        """
        what = f"opting in process {pid}"
        if pid <= 0:
            raise KernelError(what, "not a process number", "name a running process")
        if pid == 1:  # what `protect $PPID` names when the parent has ended; init's cgroup is the service manager's
            raise KernelError(what, "it is init: all that it starts would be opted in", "name the command's process")
        if process is not None:
            return self._opt_in(what, process)
        try:
            process = Pidfd.open(pid)
        except OSError as error:
            raise KernelError(what, _ended(error), "start the command again") from error
        try:
            return self._opt_in(what, process)
        finally:
            process.close()

    def _opt_in(self, what: str, process: Pidfd) -> Cgroup:
        for _ in range(_ATTEMPTS):
            try:
                return self._move(what, process)
            except OSError as error:
                if error.errno not in _RACED:
                    raise KernelError(what, _why(error), _hint(error)) from error
                if process.ended:
                    raise KernelError(what, "the process has ended", "start the command again") from error
        raise KernelError(what, "its cgroup keeps changing", "start the command again")

    def find_all(self) -> list[Cgroup]:
        """All of ours in the hierarchy, of other daemons as well."""
        found = []
        todo = [self.mount]
        for _ in range(MAX_DIRECTORIES):
            if not todo:
                break
            with suppress(OSError), os.scandir(todo.pop()) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        todo.append(Path(entry.path))
                        if _OURS.fullmatch(entry.name):
                            found.append(Cgroup(entry.inode(), Path(entry.path)))
        return found

    def sweep(self) -> list[Cgroup]:
        """Remove those of ours in which nothing runs, and return them."""
        removed = []
        # Deepest first: one of ours may lie in another.
        for one in sorted(self.find_all(), key=lambda c: len(c.path.parts), reverse=True):
            if populated(one.path):
                continue
            with suppress(OSError):  # EBUSY: somebody has just moved in; ENOENT: another daemon was quicker
                one.path.rmdir()
                removed.append(one)
        return removed

    def processes(self, cgroup: Cgroup) -> list[int]:
        """The processes in it, not those in cgroups below."""
        try:
            return [int(line) for line in (cgroup.path / "cgroup.procs").read_text().split()]
        except OSError:
            return []

    def group_of(self, pid: int) -> Cgroup | None:
        """The cgroup of ours that a process is in."""
        try:
            parts = self._path_of(pid)
            if not parts or not _OURS.fullmatch(parts[-1]):
                return None
            path = self.mount.joinpath(*parts)
            return Cgroup(path.stat().st_ino, path)
        except (OSError, KernelError):
            return None

    def _path_of(self, pid: int) -> list[str]:
        """The cgroup of a process, as directory names below the mount.  OSError: it ended."""
        text = (self._proc / str(pid) / "cgroup").read_text(errors="surrogateescape")
        path = next((line[3:] for line in text.splitlines() if line.startswith("0::")), None)
        what = f"finding the cgroup of process {pid}"
        if path is None:
            raise KernelError(what, "it is in no cgroup v2", "mount cgroup2")
        if self._root != "/":
            if path != self._root and not path.startswith(self._root + "/"):
                raise KernelError(what, f"{path} is outside the mounted part", "run the daemon outside the container")
            path = path[len(self._root) :]
        parts = [part for part in path.split("/") if part]
        if ".." in parts or path.endswith(" (deleted)"):
            raise KernelError(what, f"{path} cannot be reached", "run the daemon in the cgroup namespace of the host")
        return parts

    def _move(self, what: str, process: Pidfd) -> Cgroup:
        pid = process.pid
        parts = self._path_of(pid)
        if process.ended:
            raise ProcessLookupError(errno.ENOENT, "ended")
        with _walk(self.mount, parts) as parent:
            if parts and _OURS.fullmatch(parts[-1]):
                return Cgroup(os.fstat(parent).st_ino, self.mount.joinpath(*parts))
            name = f"{CGROUP_PREFIX}{pid}"
            with suppress(FileExistsError):
                os.mkdir(name, 0o755, dir_fd=parent)
            child = os.open(name, _DIRECTORY, dir_fd=parent)
            try:
                try:
                    if process.ended:  # asked again: making the directory takes long enough to start a process
                        raise ProcessLookupError(errno.ENOENT, "ended")
                    _add(child, pid)
                    if process.ended:
                        # The number may have been given to another process before we wrote it: put that back.
                        with suppress(OSError):
                            _add(parent, pid)
                        raise KernelError(what, "the process has ended", "start the command again")
                except (OSError, KernelError):
                    with suppress(OSError):
                        os.rmdir(name, dir_fd=parent)
                    raise
                return Cgroup(os.fstat(child).st_ino, self.mount.joinpath(*parts, name))
            finally:
                os.close(child)


def find_mount(proc: Path = procfs.PROC) -> tuple[Path, str]:
    """Where cgroup v2 is mounted, and which part of it is visible there ("/": all).  Raises KernelError."""
    best: tuple[Path, str] | None = None
    for line in (proc / "self/mountinfo").read_text(errors="surrogateescape").splitlines():
        # 36 35 98:0 /root /mount/point options optional-fields - type source super-options
        mine, separator, filesystem = line.partition(" - ")
        fields = mine.split()
        if separator and filesystem.split()[0] == "cgroup2" and len(fields) >= 5:
            found = Path(_unescape(fields[4])), _unescape(fields[3])
            if best is None or len(found[1]) < len(best[1]):
                best = found
    if best is None:
        raise KernelError("looking for cgroups", "cgroup2 is not mounted", "mount -t cgroup2 none /sys/fs/cgroup")
    return best


def populated(path: Path) -> bool:
    """Does a process run in this cgroup or below?  False also when it does not exist."""
    try:
        return "populated 1" in (path / "cgroup.events").read_text().splitlines()
    except OSError:
        return False


def _unescape(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)


@contextmanager
def _walk(mount: Path, parts: list[str]) -> Iterator[int]:
    """A descriptor of the directory ``parts`` below ``mount``, reached without following a symbolic link."""
    at = os.open(mount, _DIRECTORY)
    try:
        device = os.fstat(at).st_dev
        for part in parts:
            below = os.open(part, _DIRECTORY, dir_fd=at)
            os.close(at)
            at = below
            if os.fstat(at).st_dev != device:
                raise OSError(errno.EXDEV, "another file system is mounted there")
        yield at
    finally:
        os.close(at)


def _add(directory: int, pid: int) -> None:
    file = os.open("cgroup.procs", os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
    try:
        os.write(file, str(pid).encode())
    except ProcessLookupError as error:
        raise OSError(errno.ENOENT, "the process ended") from error
    finally:
        os.close(file)


def _ended(error: OSError) -> str:
    return "there is no such process" if error.errno in (errno.ESRCH, errno.EINVAL) else _why(error)


def _why(error: OSError) -> str:
    return os.strerror(error.errno or 0)


def _hint(error: OSError) -> str:
    match error.errno:
        case errno.EACCES | errno.EPERM | errno.EROFS:
            return "the daemon needs to write to the cgroup2 mount: is it read-only, or the daemon confined?"
        case errno.EOPNOTSUPP:
            return "the command runs in a threaded cgroup: start it outside"
        case errno.EAGAIN:
            return "the cgroup may have no more children: see cgroup.max.descendants and cgroup.max.depth"
        case _:
            return "see /proc/PID/cgroup"

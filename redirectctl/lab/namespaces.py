"""Network namespaces, processes and files of a lab, all of which are gone when it is closed.

Namespaces are called ``rctl-PID-SERIAL-HOST`` after the process that made them, so that those of a process that was
killed can be found and removed (`sweep`).  Everything that runs in one of them belongs to the lab: that is how
processes that left their process group (``ssh -f``) are found.
"""

from __future__ import annotations

import atexit
import contextlib
import itertools
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import IO, TypeAlias

from redirectctl.kernel.constants import CGROUP_PREFIX

PREFIX = "rctl-"
NETNS_DIRECTORY = Path("/run/netns")
STOP_PATIENCE = 3.0  # seconds between SIGTERM and SIGKILL: a daemon stops within 2
GONE_PATIENCE = 30.0  # seconds until what was killed has gone: it needs a processor for that
COMMAND_TIMEOUT = 60.0  # seconds for a command that a lab waits for

Identity: TypeAlias = tuple[int, int]  # device and inode of a namespace
File: TypeAlias = int | IO[bytes] | IO[str] | None

_ENDING_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_serial = itertools.count(1)
_open: list[Sandbox] = []


class LabError(Exception):
    """The lab could not be built or one of its commands failed; the text says which and why."""


class _Uninterrupted:
    """Steps of the main thread that `ended_by_signals` does not break: what they make is noted, or not made."""

    def __init__(self) -> None:
        self._depth = 0
        self._waiting: BaseException | None = None

    def strike(self, end: BaseException) -> None:
        """Raise this: now, or after the steps."""
        if not self._depth:
            raise end
        self._waiting = end

    def __enter__(self) -> None:
        if threading.current_thread() is threading.main_thread():
            self._depth += 1

    def __exit__(self, *_: object) -> None:
        if threading.current_thread() is threading.main_thread():
            self._depth -= 1
            if not self._depth and self._waiting is not None:
                end, self._waiting = self._waiting, None
                raise end


uninterrupted = _Uninterrupted()


def call(argv: Sequence[str], *, stdin: str | None = None) -> str:
    """Run a command of the lab's own (ip, nft) and return its output.  Raises LabError with what it said."""
    try:
        with uninterrupted:
            done = subprocess.run(
                argv,
                input=stdin,
                capture_output=True,
                text=True,
                timeout=COMMAND_TIMEOUT,
                check=False,
                start_new_session=True,  # Ctrl-C at the terminal is for us, not for a command half done
            )
    except FileNotFoundError as error:
        raise LabError(f"{argv[0]}: not found; install it") from error
    if done.returncode != 0:
        raise LabError(f"{' '.join(argv)}: status {done.returncode}: {done.stderr.strip()}\n{stdin or ''}".rstrip())
    return done.stdout


def ip_batch(lines: Iterable[str], namespace: str | None = None) -> None:
    """Run several ``ip`` commands in one process, stopping at the first that fails."""
    at = ["-n", namespace] if namespace else []
    call(["ip", *at, "-batch", "-"], stdin="".join(f"{line}\n" for line in lines))


class Namespace:
    """One network namespace."""

    def __init__(self, sandbox: Sandbox, name: str) -> None:
        self.sandbox = sandbox
        self.name = name
        self.full_name = f"{sandbox.tag}-{name}"
        self.path = NETNS_DIRECTORY / self.full_name

    def inside(self, argv: Sequence[str | Path]) -> list[str]:
        """The command that runs argv here.  nsenter and not ``ip netns exec``, which hides the cgroups."""
        return ["nsenter", f"--net={self.path}", "--", *map(str, argv)]

    def run(
        self,
        argv: Sequence[str | Path],
        *,
        check: bool = True,
        stdin: str | None = None,
        timeout: float = COMMAND_TIMEOUT,
        env: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command here to its end, in a session of its own.

        Raises LabError if check is set and the command fails, subprocess.TimeoutExpired after timeout seconds.
        """
        process = self.popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env)
        try:
            out, err = process.communicate(stdin, timeout)
        finally:
            if process.poll() is None:
                process.kill()
                process.communicate()
            self.sandbox.processes.remove(process)
        done = subprocess.CompletedProcess(list(map(str, argv)), process.returncode, out, err)
        if check and done.returncode != 0:
            said = err.strip() or out.strip()[-1000:]
            raise LabError(f"{self.name}: {' '.join(done.args)}: status {done.returncode}: {said}")
        return done

    def popen(
        self,
        argv: Sequence[str | Path],
        *,
        stdin: File = subprocess.DEVNULL,
        stdout: File = None,
        stderr: File = None,
        env: Mapping[str, str] | None = None,
    ) -> subprocess.Popen[str]:
        """Start a command here, in a session of its own; the sandbox ends it when it is closed."""
        with uninterrupted:
            process = subprocess.Popen(
                self.inside(argv), stdin=stdin, stdout=stdout, stderr=stderr, text=True, env=env, start_new_session=True
            )
            self.sandbox.processes.append(process)
        return process

    def ip(self, *lines: str) -> None:
        """Run ``ip`` command lines here (the word ip left out)."""
        ip_batch(lines, self.full_name)

    def sysctl(self, values: Mapping[str, object]) -> None:
        """Set sysctls of this namespace, e.g. ``{"net.ipv4.ip_forward": 1}`` (interface names without dots)."""
        script = "".join(f"echo '{value}' >/proc/sys/{name.replace('.', '/')}\n" for name, value in values.items())
        call(self.inside(["sh", "-e", "-c", script]))

    def processes(self) -> list[int]:
        """The pids of all processes whose network namespace is this one."""
        return _processes_in(_identities([self.path]))


class Sandbox:
    """The namespaces, processes and the directory of one lab.  A context manager; close() may be called twice."""

    def __init__(self) -> None:
        if os.geteuid() != 0:
            raise LabError("network namespaces need root; run it as root")
        sweep()
        self.tag = f"{PREFIX}{os.getpid()}-{next(_serial)}"
        self.processes: list[subprocess.Popen[str]] = []
        self.graceful: list[subprocess.Popen[str]] = []  # those that close() lets end by SIGTERM; it kills the others
        self.killers: list[Callable[[], None]] = []  # end what is not in processes
        self._pid = os.getpid()
        self._numbers = itertools.count(1)
        self._identities: set[Identity] = set()  # of its namespaces
        self._cgroups: set[Path] = set()  # of its opted-in commands that were alive when close() began
        # sshd of the lab hides /run from itself
        parent = None if not tempfile.gettempdir().startswith("/run") else "/tmp"
        with uninterrupted:
            self.directory = Path(tempfile.mkdtemp(prefix=f"{self.tag}-", dir=parent))
            _open.append(self)

    def create(self, *namespaces: Namespace) -> None:
        """Create these namespaces, with loopback up."""
        ip_batch(f"netns add {each.full_name}" for each in namespaces)
        self._identities |= _identities(each.path for each in namespaces)
        for each in namespaces:
            each.ip("link set lo up")

    def number(self) -> int:
        """A number not given before, for names of files."""
        return next(self._numbers)

    def left(self) -> list[str]:
        """What of this sandbox is there at this moment, in words; empty once it is closed."""
        found = [f"namespace {path.name}" for path in NETNS_DIRECTORY.glob(f"{self.tag}-*")]
        running = {each.pid for each in self.processes if each.poll() is None}
        found += [f"process {pid}" for pid in sorted(running.union(_processes_in(self._identities)))]
        found += [f"cgroup {path}" for path in sorted(self._cgroups) if path.exists()]
        if self.directory.exists():
            found.append(f"directory {self.directory}")
        return found

    def close(self) -> None:
        """End every process, remove every namespace and file.  Ctrl-C waits until it is done."""
        if self not in _open or os.getpid() != self._pid:  # a forked child must not take its parent's lab away
            return
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING_SIGNALS)
        try:
            self._cgroups = _opted_in_cgroups(_processes_in(self._identities))
            self._terminate()
            _remove_namespaces(list(NETNS_DIRECTORY.glob(f"{self.tag}-*")))
            for process in self.processes:
                process.wait()
            _remove_cgroups(self._cgroups)
            shutil.rmtree(self.directory, ignore_errors=True)
            _open.remove(self)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def _terminate(self) -> None:
        for process in self.graceful:
            process.terminate()
        deadline = time.monotonic() + STOP_PATIENCE
        for process in self.graceful:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, deadline - time.monotonic()))
        for process in self.processes:
            process.kill()
        for kill in self.killers:
            kill()

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@contextlib.contextmanager
def ended_by_signals() -> Iterator[None]:
    """Let SIGINT, SIGTERM and SIGHUP unwind the program: as KeyboardInterrupt, or SystemExit with 128 + number.

    The first one does; others change nothing, for the end is under way.  None breaks what is `uninterrupted`.
    """
    struck = False

    def end(number: int, _frame: FrameType | None) -> None:
        nonlocal struck
        if not struck:
            struck = True
            uninterrupted.strike(KeyboardInterrupt() if number == signal.SIGINT else SystemExit(128 + number))

    if threading.current_thread() is not threading.main_thread():
        raise LabError("ended_by_signals works in the main thread only")
    heeded = [number for number in _ENDING_SIGNALS if signal.getsignal(number) != signal.SIG_IGN]  # not nohup's
    before = {number: signal.signal(number, end) for number in heeded}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def sweep() -> list[str]:
    """Remove namespaces, their processes and directories of labs whose process is dead; returns their names."""
    stale = [path for path in NETNS_DIRECTORY.glob(f"{PREFIX}*") if _owner_is_dead(path.name)]
    _remove_namespaces(stale)
    directories = [path for path in Path(tempfile.gettempdir()).glob(f"{PREFIX}*") if _owner_is_dead(path.name)]
    for path in directories:
        shutil.rmtree(path, ignore_errors=True)
    return [path.name for path in stale + directories]


def program(name: str) -> str:
    """The path of one of our own programs: beside this Python, else on PATH.  Raises LabError."""
    beside = Path(sys.executable).with_name(name)
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        raise LabError(f"{name}: not found beside {sys.executable} nor on PATH; install redirectctl")
    return found


def _owner_is_dead(name: str) -> bool:
    pid = name.removeprefix(PREFIX).partition("-")[0]
    return pid.isdigit() and not Path(f"/proc/{pid}").exists()


def _processes_in(wanted: set[Identity]) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):  # it ended meanwhile, or is a zombie
                if _identity(entry / "ns/net") in wanted:
                    found.append(int(entry.name))
    return found


def _identity(path: Path) -> Identity:
    status = path.stat()
    return status.st_dev, status.st_ino


def _identities(paths: Iterable[Path]) -> set[Identity]:
    found = set()
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            found.add(_identity(path))
    return found


def _remove_namespaces(paths: list[Path]) -> None:
    deadline = time.monotonic() + GONE_PATIENCE
    identities = _identities(paths)
    looks = 0  # that found nobody: one that is just being forked, or enters, is seen at the second
    while looks < 2 and time.monotonic() < deadline:
        pids = _processes_in(identities)
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        looks = 0 if pids else looks + 1
        time.sleep(0.005)
    for path in paths:
        try:
            ip_batch([f"netns delete {path.name}"])
        except LabError:
            if path.exists():  # else another process swept it meanwhile
                raise


def _cgroup_of(process: int | str) -> Path | None:
    """The version 2 cgroup of a process; None without that hierarchy, or when the process has ended."""
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    root = next((fields[1] for fields in mounts if fields[2] == "cgroup2"), None)
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{process}/cgroup").read_text().splitlines():
            if root is not None and line.startswith("0::"):
                return Path(root + line.removeprefix("0::"))
    return None


def _opted_in_cgroups(processes: Iterable[int]) -> set[Path]:
    """Those that daemons made for these processes or their parents."""
    cgroups = [path for process in processes if (path := _cgroup_of(process)) is not None]
    return {each for path in cgroups for each in (path, *path.parents) if each.name.startswith(CGROUP_PREFIX)}


def _remove_cgroups(known: set[Path]) -> None:
    """These, whose processes are about to end, and empty ones below this process's own cgroup.

    A daemon removes them too, but not one that was killed.  An empty one whose process is alive may be about to be
    filled, so it stays.
    """
    own = _cgroup_of("self")
    others = own.glob(f"{CGROUP_PREFIX}*") if own is not None else []
    for path in others:
        if not Path("/proc", path.name.removeprefix(CGROUP_PREFIX)).exists():
            with contextlib.suppress(OSError):  # not empty: something still runs in it
                path.rmdir()
    deadline = time.monotonic() + GONE_PATIENCE
    while (left := [path for path in known if path.exists()]) and time.monotonic() < deadline:
        for path in left:
            with contextlib.suppress(OSError):  # a process leaves its cgroup last of all (`do_exit`)
                path.rmdir()
        time.sleep(0.005)


@atexit.register
def close_all() -> None:
    """Close every sandbox that this process has made."""
    for sandbox in list(_open):
        sandbox.close()

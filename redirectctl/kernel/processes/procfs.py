"""Processes: whose socket is it, is it still the same process, what is it called.  Read from /proc.

A pid alone means nothing after its process has ended; ``(pid, start time)`` is unique until the next boot.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

PROC = Path("/proc")
_NOBODY_LOGGED_IN = 2**32 - 1  # audit(7): a daemon, or a system without pam_loginuid
MAX_COMMAND = 4096  # bytes of a command line that are read; also what /proc/PID/cmdline guaranteed before Linux 4.2
MAX_DESCRIPTORS = 200_000  # looked at in one search

_SURROGATES = "surrogateescape"


class Process(NamedTuple):
    """One process, at the time it was looked at."""

    pid: int
    start_time: int  # clock ticks since boot
    uid: int  # real user
    command: str  # for display: no control characters


def start_time(pid: int, *, proc: Path = PROC) -> int | None:
    """When the process started, in clock ticks since boot; None: there is no such process."""
    try:
        stat = (proc / str(pid) / "stat").read_bytes()
        # The name in parentheses may contain anything, parentheses too; starttime is field 22, counted from 1.
        return int(stat[stat.rindex(b")") + 2 :].split()[19])
    except (OSError, ValueError, IndexError):
        return None


def user(pid: int, *, proc: Path = PROC) -> int | None:
    """The real user id of the process; None: there is no such process."""
    uids = _uids(pid, proc)
    return uids[0] if uids else None


def users(pid: int, *, proc: Path = PROC) -> frozenset[int]:
    """All its user ids: real, effective, saved, of the file system; empty: there is no such process."""
    return frozenset(_uids(pid, proc))


def login(pid: int, *, proc: Path = PROC) -> int | None:
    """Who logged in, whatever user the process is since then (sudo); None: it is not known."""
    try:
        uid = int((proc / str(pid) / "loginuid").read_bytes())
    except (OSError, ValueError):
        return None
    return uid if uid != _NOBODY_LOGGED_IN else None


def _uids(pid: int, proc: Path) -> list[int]:
    try:
        for line in (proc / str(pid) / "status").read_bytes().splitlines():
            if line.startswith(b"Uid:"):
                return [int(word) for word in line.split()[1:]]
    except (OSError, ValueError):
        pass
    return []


def command_line(pid: int, *, proc: Path = PROC) -> str:
    """The command for display, ``[name]`` where a process hides its arguments; empty: there is no such process."""
    try:
        with (proc / str(pid) / "cmdline").open("rb") as file:
            raw = file.read(MAX_COMMAND).rstrip(b"\0").replace(b"\0", b" ")
        if raw:
            return printable(raw.decode("utf-8", _SURROGATES))
        name = (proc / str(pid) / "comm").read_bytes().removesuffix(b"\n")
        return f"[{printable(name.decode('utf-8', _SURROGATES))}]"
    except OSError:
        return ""


def arguments(pid: int, *, proc: Path = PROC) -> list[str]:
    """The words of its command line, as far as they are read; empty: there is no such process, or it hides them."""
    try:
        with (proc / str(pid) / "cmdline").open("rb") as file:
            raw = file.read(MAX_COMMAND)
    except OSError:
        return []
    return [word.decode("utf-8", _SURROGATES) for word in raw.split(b"\0")[:-1]] if b"\0" in raw else []


def printable(text: str) -> str:
    """``text`` without what could steer a terminal: control, format (bidirectional) and undecodable characters.

    Line breaks and tabs, as scripts have them that are given as an argument, become blanks.
    """
    text = text.translate(_BLANKS)
    return "".join("\N{REPLACEMENT CHARACTER}" if unicodedata.category(c) in _UNSAFE else c for c in text)


_BLANKS = dict.fromkeys(map(ord, "\t\n\v\f\r\u2028\u2029"), " ")


_UNSAFE = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})


def look_at(pid: int, *, proc: Path = PROC) -> Process | None:
    """Everything about a process; None when it ended meanwhile."""
    started = start_time(pid, proc=proc)
    uid = user(pid, proc=proc)
    command = command_line(pid, proc=proc)
    if started is None or uid is None or start_time(pid, proc=proc) != started:
        return None
    return Process(pid, started, uid, command)


def in_our_network(pid: int, *, proc: Path = PROC) -> bool | None:
    """Does the process use the network namespace that we use?  None: it ended, or we may not see it."""
    try:
        theirs = (proc / str(pid) / "ns/net").stat()
        ours = (proc / "thread-self/ns/net").stat()
    except OSError:
        return None
    return (theirs.st_dev, theirs.st_ino) == (ours.st_dev, ours.st_ino)


def sockets_of(pid: int, *, proc: Path = PROC) -> frozenset[int]:
    """The inode numbers of the sockets that a process has open; empty when it ended or we may not see."""
    links = (link for link in _descriptors(pid, proc) if link.startswith("socket:["))
    return frozenset(int(link[8:-1]) for link in links)


def owners(
    inodes: Collection[int],
    *,
    likely: Iterable[int] = (),
    max_descriptors: int = MAX_DESCRIPTORS,
    proc: Path = PROC,
) -> dict[int, Process]:
    """Who has the sockets with these inode numbers (SocketInfo.inode); what is not found is left out.

    ``likely`` processes are looked at first, then all others, newest first, until every socket is found or
    ``max_descriptors`` were looked at. Of several processes that share a socket the first one found is given.
    """
    wanted = {f"socket:[{inode}]": inode for inode in inodes if inode}
    found: dict[int, Process] = {}
    left = max_descriptors
    seen: set[int] = set()
    for pid in _candidates(likely, proc):
        if not wanted or left <= 0:
            break
        if pid in seen:
            continue
        seen.add(pid)
        hits = []
        for link in _descriptors(pid, proc):
            left -= 1
            if link in wanted:
                hits.append(wanted.pop(link))
        if hits and (process := look_at(pid, proc=proc)):
            found.update(dict.fromkeys(hits, process))
    return found


def _candidates(likely: Iterable[int], proc: Path) -> Iterator[int]:
    yield from likely
    yield from sorted((int(name) for name in os.listdir(proc) if name.isdigit()), reverse=True)


def _descriptors(pid: int, proc: Path) -> Iterator[str]:
    directory = proc / str(pid) / "fd"
    try:
        names = os.listdir(directory)
    except OSError:
        return
    for name in names:
        try:
            yield os.readlink(directory / name)
        except OSError:
            continue

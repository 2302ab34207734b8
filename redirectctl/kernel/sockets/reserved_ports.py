"""Ports that moved connections use on the wire are not given to new connections: net.ipv4.ip_local_reserved_ports.

The sysctl holds one list for everybody.  What an administrator put there stays, also where it names a port of ours.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path

from redirectctl.kernel.errors import KernelError

_FILE = Path("/proc/sys/net/ipv4/ip_local_reserved_ports")
_READ = 1 << 20  # bytes; all 65,536 ports without a range take 0.4 MB, and the file can be read only in one piece
_WRITE = 4000  # bytes; proc_do_large_bitmap takes less than a page a write


class ReservedPorts:
    """Keeps the wire ports of moved connections reserved in the network namespace of the calling thread.

    ``inherited`` are the ports that an earlier daemon reserved and had not released; ``note`` writes down what a later
    one may inherit, before it is so: a port that was reserved and not noted would stay reserved for ever.
    Synchronous, about 0.1 ms.
    Raises KernelError.
    """

    def __init__(self, inherited: Iterable[int] = (), note: Callable[[Collection[int]], None] = lambda _: None) -> None:
        self._ours = set(inherited) & self.current()
        self._note = note

    @property
    def ours(self) -> frozenset[int]:
        """The ports that are reserved because of us alone: what a later daemon inherits."""
        return frozenset(self._ours)

    def current(self) -> set[int]:
        """All reserved ports, whoever reserved them."""
        try:
            descriptor = os.open(_FILE, os.O_RDONLY | os.O_CLOEXEC)
            try:
                return parse_ports(os.read(descriptor, _READ).decode("ascii"))
            finally:
                os.close(descriptor)
        except OSError as error:
            raise _failure("read", error) from error

    def reserve(self, ports: Iterable[int]) -> None:
        """Add ports; those that are reserved already stay the administrator's."""
        self._change(add=set(ports), remove=set())

    def release(self, ports: Iterable[int]) -> None:
        """Remove those of ``ports`` that we added."""
        self._change(add=set(), remove=set(ports))

    def reconcile(self, ports: Iterable[int]) -> None:
        """Make ``ports`` reserved, and none other of ours."""
        wanted = set(ports)
        self._change(add=wanted, remove=self._ours - wanted)

    def restore(self, ports: Iterable[int]) -> set[int]:
        """Reserve those again that somebody has removed, and return them."""
        present = self.current()
        missing = set(ports) - present
        if missing:
            self._ours -= present  # the list is another one: what it has of ours is whose it is now
            self._change(add=missing, remove=set())
        return missing

    def _change(self, add: set[int], remove: set[int]) -> None:
        present = self.current()
        new = add - present
        gone = remove & self._ours
        if new:
            self._note(self._ours | new)
        if new or gone & present:
            _write_ports(present - gone | new)
        if gone:
            self._note(self._ours - gone | new)
        self._ours = self._ours - gone | new


def parse_ports(text: str) -> set[int]:
    """`1,3-5` as {1, 3, 4, 5}; empty text is the empty set."""
    ports: set[int] = set()
    for item in text.strip().split(","):
        if item:
            first, _, last = item.partition("-")
            ports.update(range(int(first), int(last or first) + 1))
    return ports


def format_ports(ports: Iterable[int]) -> Iterator[str]:
    """The items of the list, in order, neighbours as ranges."""
    ordered = sorted(ports)
    start = 0
    for index, port in enumerate(ordered):
        if index + 1 == len(ordered) or ordered[index + 1] != port + 1:
            yield str(port) if start == index else f"{ordered[start]}-{port}"
            start = index + 1


def _write_ports(ports: set[int]) -> None:
    """Replace the list.

    The first write replaces, those at a later file position add (`proc_do_large_bitmap`); from the second piece on
    there is an instant in which the rest is missing, which only matters to a connection made in it.
    """
    chunks = [""]
    for item in format_ports(ports):
        if len(chunks[-1]) + len(item) + 1 > _WRITE:
            chunks.append("")
        chunks[-1] += f",{item}" if chunks[-1] else item
    try:
        descriptor = os.open(_FILE, os.O_WRONLY | os.O_CLOEXEC)
        try:
            for chunk in chunks:
                os.write(descriptor, chunk.encode() + b"\n")
        finally:
            os.close(descriptor)
    except OSError as error:
        raise _failure("write", error) from error


def _failure(verb: str, error: OSError) -> KernelError:
    return KernelError(
        f"{verb} {_FILE}", error.strerror or str(error), "redirectctl needs root and a writable /proc/sys"
    )

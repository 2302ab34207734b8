"""Quick looks at the whole socket table: what has been seen before is not unpacked again.

Records of one look are all of the same length, as a rule: a byte of each is a slice.  With 10,000 sockets the kernel
takes some 10 ms and this 3 ms; unpacking them takes 45 ms, and TCP_INFO as much again.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import NamedTuple

from redirectctl.kernel.sockets.bytecode import EVERYTHING, SocketFilter
from redirectctl.kernel.sockets.diag import ENDS, IDENTITY, SockDiag, SocketInfo, TcpState, ends, ends_of, parse
from redirectctl.wire.addr import FourTuple, IPAddress

_REPEATS = 3  # the byte of a record that counts what its timer has sent without an answer: idiag_retrans


def repeating(diag: SockDiag, states: Iterable[TcpState], least: int) -> list[FourTuple]:
    """Connections that have sent the same segment, or a probe, at least so often without an answer.

    Raises KernelError.
    """
    found = []
    for data, records in diag.records(EVERYTHING, states):
        if isinstance(records, range) and max(data[records.start + _REPEATS :: records.step]) < least:
            continue
        found += [ends_of(data, at) for at in records if data[at + _REPEATS] >= least]
    return found


def present(diag: SockDiag, connections: Collection[FourTuple], states: Iterable[TcpState]) -> frozenset[FourTuple]:
    """Those of the connections that have a socket in one of the states.  Raises KernelError."""
    wanted = {each: connection for connection in connections for each in ends(connection)}
    found = diag.records(EVERYTHING, states)
    seen = {data[at + ENDS.start : at + ENDS.stop] for data, records in found for at in records}
    return frozenset(wanted[each] for each in wanted.keys() & seen)


def between(
    diag: SockDiag, wanted: Collection[tuple[int, IPAddress]], states: Iterable[TcpState]
) -> dict[tuple[int, IPAddress], list[FourTuple]]:
    """Connections of a local port with a remote host, of each such pair.  The kernel leaves out the others.

    Raises KernelError.
    """
    found: dict[tuple[int, IPAddress], list[FourTuple]] = {pair: [] for pair in wanted}
    ports, hosts = frozenset(port for port, _ in found), frozenset(host for _, host in found)
    if not found:
        return found
    filtered = SocketFilter(local_ports=ports, remote_addresses=hosts)
    for data, records in diag.records(filtered if filtered.in_kernel else EVERYTHING, states):
        for at in records:
            one = ends_of(data, at)
            if (members := found.get((one.local.port, one.remote.host))) is not None:
                members.append(one)
    return found


class Seen(NamedTuple):
    """Of one look."""

    sockets: list[SocketInfo]  # as they were when they were seen first, without TCP_INFO
    fresh: list[SocketInfo]  # those of them that were not there at the look before


class Survey:
    """Looks again and again with the same question."""

    def __init__(self, diag: SockDiag) -> None:
        self._diag = diag
        self._known: dict[bytes, SocketInfo] = {}  # by its addresses, ports, interface and cookie

    def look(self, wanted: SocketFilter, states: Iterable[TcpState]) -> Seen:
        """Those that pass.  Raises KernelError."""
        before, self._known = self._known, {}
        fresh = []
        for data, records in self._diag.records(wanted, states):
            for at in records:
                key = data[at + IDENTITY.start : at + IDENTITY.stop]
                one = before.get(key)
                if one is None:
                    one = parse(data, at)
                    if not wanted.in_kernel and not wanted.passes(one.tuple, one.cgroup_id):
                        continue
                    self._diag.seen(one)
                    fresh.append(one)
                self._known[key] = one
        return Seen(list(self._known.values()), fresh)

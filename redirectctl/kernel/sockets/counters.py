"""What the kernel counts of TCP in a network namespace (/proc/net/snmp, netstat, snmp6): has anything happened at all?

To list 10,000 sockets takes 12 ms, an empty table 3 ms for the walk through its buckets; to read these some 0.05 ms.
So who looks for what happens rarely, new connections or segments sent again, reads these first.

    opens     a connection that is new, or has become established, changes at least one of them: `tcp_connect`,
              `tcp_create_openreq_child`, `tcp_set_state`
    repeats   so does each retransmission or probe: `tcp_retransmit_timer`, `__tcp_retransmit_skb`, `tcp_write_wakeup`;
              where the host has no route for it, `ip_queue_xmit` and `inet6_csk_xmit`
"""

from __future__ import annotations

import os
from typing import Final, NamedTuple

from redirectctl.kernel.errors import KernelError

Wanted = dict[str, dict[str, tuple[str, ...]]]  # by file and first word of a line, what is counted

_OPENS: Final[Wanted] = {"snmp": {"Tcp": ("ActiveOpens", "PassiveOpens", "AttemptFails", "EstabResets", "CurrEstab")}}
_REPEATS: Final[Wanted] = {
    "snmp": {"Tcp": ("RetransSegs",), "Ip": ("OutNoRoutes", "OutDiscards")},
    "netstat": {"TcpExt": ("TCPTimeouts", "TCPKeepAlive", "TCPWinProbe", "TCPRetransFail")},
    "snmp6": {"": ("Ip6OutNoRoutes", "Ip6OutDiscards")},
}
_SIZE = 1 << 16  # bytes; a file has some 4,000

Count = tuple[bytes, ...]  # as the kernel writes them


class _Table:
    """One file, kept open: reading it needs no descriptor then, and shows this namespace whoever reads."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._file = os.open(f"/proc/thread-self/net/{name}", os.O_RDONLY | os.O_CLOEXEC)

    def read(self) -> dict[bytes, list[bytes]]:
        """By the first word of a line, the lines' other words; of lines that come in pairs the second."""
        lines = os.pread(self._file, _SIZE, 0).splitlines()
        return {words[0]: words[1:] for words in map(bytes.split, lines) if words}

    def heads(self) -> dict[bytes, list[bytes]]:
        """Of lines that come in pairs the first, which names what is counted."""
        found: dict[bytes, list[bytes]] = {}
        for words in map(bytes.split, os.pread(self._file, _SIZE, 0).splitlines()):
            found.setdefault(words[0], words[1:])
        return found

    def close(self) -> None:
        os.close(self._file)


class _Place(NamedTuple):
    table: _Table
    line: bytes
    column: int


class TcpCounters:
    """Reads those of the namespace it was made in."""

    def __init__(self) -> None:
        """Raises KernelError."""
        self._tables: dict[str, _Table] = {}
        try:
            for name in ("snmp", "netstat", "snmp6"):
                if name != "snmp6" or os.path.exists("/proc/thread-self/net/snmp6"):
                    self._tables[name] = _Table(name)
            self._opens, self._repeats = self._places(_OPENS), self._places(_REPEATS)
        except OSError as error:
            self.close()
            raise KernelError("reading TCP's counters", error.strerror or str(error), "is /proc mounted?") from error

    def close(self) -> None:
        """Close the files."""
        for table in self._tables.values():
            table.close()
        self._tables.clear()

    def opens(self) -> Count:
        """Another value than before: there may be a new connection.  Raises KernelError."""
        return self._read(self._opens)

    def repeats(self) -> Count:
        """Another value than before: something was sent again, or could not be sent.  Raises KernelError."""
        return self._read(self._repeats)

    def _places(self, wanted: Wanted) -> list[_Place]:
        found = []
        for name, lines in wanted.items():
            if (table := self._tables.get(name)) is None:
                continue
            heads = table.heads()
            for line, columns in lines.items():
                for column in columns:
                    if not line:  # one to a line
                        found.append(_Place(table, column.encode(), 0))
                    elif column.encode() in (head := heads.get(f"{line}:".encode(), [])):
                        found.append(_Place(table, f"{line}:".encode(), head.index(column.encode())))
        return found

    def _read(self, places: list[_Place]) -> Count:
        used = {place.table.name: place.table for place in places}
        try:
            tables = {name: table.read() for name, table in used.items()}
        except OSError as error:
            raise KernelError("reading TCP's counters", error.strerror or str(error), "is /proc mounted?") from error
        return tuple(tables[p.table.name].get(p.line, [b""] * (p.column + 1))[p.column] for p in places)

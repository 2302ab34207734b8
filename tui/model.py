"""What the screens show, as values: a view of the daemon at one moment, and rows that are filtered and sorted."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final

import msgspec
from msgspec import UnsetType

from redirectctl.api.naming import labels
from redirectctl.api.reasons import in_words
from redirectctl.api.schema import Connection, ConnectionState, Counters, Peer, PeerState, Status

NO_RATES: Final = (0.0, 0.0)
WAITING: Final = frozenset({PeerState.PENDING, PeerState.CHANGED})

# What wants attention comes first.
_ORDER: Final = {
    state: number
    for number, state in enumerate(
        (
            ConnectionState.PENDING,
            ConnectionState.SUSPENDED,
            ConnectionState.NEGOTIATING,
            ConnectionState.SHORT,
            ConnectionState.PROTECTED,
            ConnectionState.REFUSED,
            ConnectionState.RELEASED,
            ConnectionState.UNSUPPORTED,
            ConnectionState.CLOSED,
        )
    )
}


@dataclass(frozen=True)
class View:
    """The daemon at one moment."""

    at: float  # epoch seconds
    status: Status
    connections: Sequence[Connection]
    peers: Sequence[Peer]
    rates: Mapping[str, tuple[float, float]] = field(default_factory=dict)  # by id: received, sent; bytes a second

    @property
    def threshold(self) -> float:
        """Seconds after which a connection is taken on."""
        after = self.status.long_lived_after
        return 10.0 if isinstance(after, UnsetType) else after

    def peer(self, fingerprint: str | None) -> Peer | None:
        """The peer with that key."""
        return next((p for p in self.peers if p.fingerprint == fingerprint), None)

    @cached_property
    def labels(self) -> dict[str, str]:
        """What peers are called, by fingerprint; no two alike."""
        return labels(self.peers)

    def waiting(self) -> list[Peer]:
        """Peers that a person has to decide about, changed keys first."""
        found = [p for p in self.peers if p.state in WAITING]
        return sorted(found, key=lambda p: (p.state is PeerState.PENDING, p.first_seen))

    def rows(self) -> list[Row]:
        """Of all connections."""
        names = {p.fingerprint: name for p in self.peers if (name := self.labels[p.fingerprint]) not in p.addresses}
        return [Row(c, self._host(c, names), self.rates.get(c.id, NO_RATES)) for c in self.connections]

    @staticmethod
    def _host(connection: Connection, names: Mapping[str, str]) -> str:
        name = names.get(connection.peer) if connection.peer is not None else None
        return name or host_of(connection.remote)


class Row(msgspec.Struct, frozen=True, gc=False):  # as Connection: thousands of them every second
    """A connection in the table."""

    connection: Connection
    host: str  # the peer's name, else its address
    rates: tuple[float, float]  # received, sent; bytes a second

    @property
    def counters(self) -> Counters | None:
        """None: not measured, or no socket any more."""
        counters = self.connection.counters
        return None if isinstance(counters, UnsetType) else counters

    @property
    def text(self) -> str:
        """What a filter is looked for in."""
        c = self.connection
        parts = (self.host, c.command, c.state, c.path, c.local, c.remote, c.wire_local, c.wire_remote, c.id, c.pid)
        why = (c.reason, in_words(c.reason)) if c.reason is not None else ()
        return " ".join(str(part) for part in (*parts, *why) if part is not None).casefold()


Key = Callable[[Row], tuple[object, ...]]

SORTS: Final[dict[str, Key]] = {
    "state": lambda row: (_ORDER[row.connection.state], row.connection.age),
    "host": lambda row: (row.host,),
    "command": lambda row: (row.connection.command or "\U0010ffff",),
    "path": lambda row: (row.connection.path.value,),
    "age": lambda row: (-row.connection.age,),
    "rtt": lambda row: (-(row.counters.rtt if row.counters else 0.0),),
    "rate": lambda row: (-sum(row.rates),),
    "moves": lambda row: (-row.connection.moves,),
}


@dataclass(frozen=True)
class Selection:
    """Which rows, in which order."""

    words: str = ""  # each of them must be in a row's text
    sort: str = "state"
    reverse: bool = False

    def apply(self, rows: Iterable[Row]) -> list[Row]:
        """The rows that are wanted; ties by id, so that nothing jumps."""
        words = self.words.casefold().split()
        kept = [row for row in rows if _contains(row.text, words)] if words else list(rows)
        key = SORTS[self.sort]
        return sorted(kept, key=lambda row: (*key(row), row.connection.id), reverse=self.reverse)


def _contains(text: str, words: Iterable[str]) -> bool:
    return all(word in text for word in words)


class Rates:
    """Bytes a second from counters that only grow."""

    def __init__(self) -> None:
        self._before: dict[str, Counters] = {}
        self._at: float | None = None

    def update(self, now: float, connections: Iterable[Connection]) -> dict[str, tuple[float, float]]:
        """By id: received, sent since the last update; connections without counters are left out.  now: seconds."""
        counters = {c.id: c.counters for c in connections if not isinstance(c.counters, UnsetType)}
        before, passed = self._before, 0.0 if self._at is None else now - self._at
        self._before, self._at = counters, now
        if passed <= 0:
            return {}
        return {
            cid: (max(0, new.received - old.received) / passed, max(0, new.sent - old.sent) / passed)
            for cid, new in counters.items()
            if (old := before.get(cid)) is not None and (new.received, new.sent) != (old.received, old.sent)
        }


def host_of(endpoint: str) -> str:
    """The address in "addr:port" or "[addr]:port"."""
    return endpoint.rpartition(":")[0].strip("[]")


def target_error(text: str) -> str | None:
    """Why text is neither a process number nor LOCAL-REMOTE; None if it is one."""
    if text.isascii() and text.isdigit():
        return None
    local, separator, remote = text.partition("-")
    try:
        if not separator:
            raise ValueError
        for end in (local, remote):
            ipaddress.ip_address(host_of(end))
            if not 0 < int(end.rpartition(":")[2]) < 65536:
                raise ValueError
    except ValueError:
        return "neither a process number nor LOCAL-REMOTE, as in 192.0.2.1:40000-198.51.100.2:22"
    return None

"""Hosts that do not answer, and the connections that wait until they do.

A host is asked again as long as a connection waits for it.  Only so many are asked at a time: the next one is the host
of the user for whom the fewest are being asked, the oldest of his.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from redirectctl.flows import constants
from redirectctl.flows.connection import Connection, Table
from redirectctl.flows.state import State
from redirectctl.wire.addr import IPAddress


class Silent:
    """Who waits for which host, and which of them are asked.  Bounded as the table of connections is."""

    def __init__(self, table: Table) -> None:
        self._table = table
        self._waiting: dict[IPAddress, set[bytes]] = {}  # ids of connections
        self._wanted: dict[IPAddress, int | None] = {}  # to be asked when there is room, oldest first; for which user
        self._asked: dict[IPAddress, int | None] = {}

    def add(self, host: IPAddress, cid: bytes) -> None:
        """A host does not answer, and this connection waits for it."""
        self._waiting.setdefault(host, set()).add(cid)

    def hosts(self) -> Iterable[IPAddress]:
        """All of them; for some nobody may wait any more."""
        return tuple(self._waiting)

    def waiting(self, host: IPAddress) -> list[Connection]:
        """The connections that still wait for a host.  It is forgotten with the last of them."""
        found = self._table.select(self._waiting.get(host, ()))
        found = [c for c in found if c.state is State.UNSUPPORTED]
        if found:
            self._waiting[host] = {c.cid for c in found}
        else:
            self.answered(host)
        return found

    def want(self, host: IPAddress) -> bool:
        """Have a host asked as soon as there is room; False if nobody waits for it."""
        waiting = self.waiting(host)
        if waiting and host not in self._asked:
            self._wanted.setdefault(host, waiting[0].uid)
        return bool(waiting)

    def next(self) -> IPAddress | None:
        """The host to be asked now; None: none is wanted, or enough are being asked."""
        if not self._wanted or len(self._asked) >= constants.ASKED_AGAIN:
            return None
        of_user = Counter(self._asked.values())
        host = min(self._wanted, key=lambda each: of_user[self._wanted[each]])
        self._asked[host] = self._wanted.pop(host)
        return host

    def left(self, host: IPAddress) -> bool:
        """Nothing came of asking.  Whether it was asked."""
        if host not in self._asked:
            return False
        del self._asked[host]
        return True

    def answered(self, host: IPAddress) -> None:
        """Nobody has to wait for it any more."""
        for known in (self._waiting, self._wanted, self._asked):
            known.pop(host, None)

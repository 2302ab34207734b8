"""Suspended connections whose packets may get through as they are: their peers' kernels are asked, not their daemons.

What would live without redirectctl must live, whatever has become of the daemon at the other end: it was stopped, or
its datagrams do not get through.  So where a plain packet could be sent (the address is ours now, with a route),

    LetOut   what the socket sends leaves the host after all: TCP goes on as it would by itself
    Ask      besides, a keepalive now and then: TCP's own next attempt may be minutes away.  Not at once, where the
             address has just come back: where there is a daemon at the other end, it proves the path for all of them
    answered ─► the path is there, as if the peer's daemon had proven it (suspension.carry)

Both ends may be suspended: each lets out what answers the other's keepalive.  Connections with integrity are not asked
plainly, nor those in the tunnel, where nobody answers but a daemon.

Where a RST comes back that is not believed, somebody else is there (resets.py): it is left alone, ever longer.

Some connections stand for all with a peer, in turns; when one of them is answered the others are asked at once, unless
the daemon there has answered too.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import NamedTuple

from redirectctl.flows import commands, constants, timer_kinds
from redirectctl.flows.connection import Connection
from redirectctl.flows.host import Host
from redirectctl.flows.state import State
from redirectctl.wire.addr import FourTuple


class Refusal(NamedTuple):
    """An RST that this host did not believe."""

    times: int
    until: float  # left alone


class Liveness:
    """Lets packets of suspended connections out where they may get through, and asks the peers' kernels."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self.lost: dict[bytes, float] = {}  # peers to which there is no path, and since when; suspension.py sets it
        self._since: dict[bytes, float] = {}  # connections that are let out, and since when
        self._refusals: dict[bytes, Refusal] = {}
        self._turns: dict[bytes, int] = {}  # peers: the place in their connections where the next turn begins
        self._more: dict[bytes, float] = {}  # peers, and when others were asked because one was answered

    def since(self, connection: Connection) -> float | None:
        """When this connection was let out; None if it is not."""
        return self._since.get(connection.cid)

    def may_pass(self, now: float, c: Connection) -> bool:
        """Whether, for all that is known here, a plain packet of this connection may get through."""
        if c.tunnel or c.integrity:
            return False
        refusal = self._refusals.get(c.cid)
        if refusal is not None and now < refusal.until:
            return False
        here, there = c.wire.local.host, c.wire.remote.host
        return here in self._host.network.usable and here in self._host.network.sources.get(there, ())

    def review(self, now: float, key: bytes | None = None) -> tuple[list[Connection], list[Connection]]:
        """Let out what may pass now, with one peer or all.  Returns what is let out now, and what no longer is.

        Whoever is no longer suspended is not among the latter.
        """
        suspended = [c for c in self._host.table.movable(key) if c.state is State.SUSPENDED]
        passing = [c for c in suspended if self.may_pass(now, c)]
        more = [c for c in passing if c.cid not in self._since]
        remaining = {c.cid for c in passing}
        less = [c for c in suspended if c.cid in self._since and c.cid not in remaining]
        self._since.update((c.cid, now) for c in more)
        for connection in less:
            del self._since[connection.cid]
        for connections, on in ((more, True), (less, False)):
            if connections:
                self._host.emit(commands.LetOut(tuple(c.socket for c in connections), on))
        for peer in {c.peer for c in more if c.peer is not None}:
            self._host.timers.set(timer_kinds.AskPlainly(peer), now + constants.ASK_AFTER)
        return more, less

    def held(self, now: float, key: bytes) -> None:
        """The kernel holds some connections with this peer: ask now."""
        if self._asked(key):
            self._host.timers.set(timer_kinds.AskPlainly(key), now)

    def ask(self, now: float, key: bytes) -> None:
        """Ask some connections of this peer; without any, find out when to look again."""
        self.review(now, key)
        asked = self._asked(key)
        if asked:
            first = self._turns.get(key, 0) % len(asked)
            self._turns[key] = first + constants.ASKED
            turn = (asked[first:] + asked[:first])[: constants.ASKED]
            self._host.emit(commands.Ask(tuple(c.socket for c in turn)))
            self._host.timers.set(timer_kinds.AskPlainly(key), now + self.pause(now, key))
            return
        self._turns.pop(key, None)
        self._more.pop(key, None)
        cids = [c.cid for c in self._host.table.movable(key)]
        waiting = [self._refusals[cid].until for cid in cids if cid in self._refusals]
        if later := [until for until in waiting if until > now]:
            self._host.timers.set(timer_kinds.AskPlainly(key), min(later))

    def _asked(self, key: bytes) -> list[Connection]:
        """The connections to be asked: those that the kernel holds.  TCP itself asks on the others."""
        return [c for c in self._host.table.movable(key) if c.cid in self._since and c.blocked]

    def pause(self, now: float, key: bytes) -> float:
        """Seconds until the next turn: a fixed part of the time without a path, more where there are many peers."""
        part = max((now - self.lost.get(key, now)) / constants.ASK_PART, len(self.lost) / constants.PROBES)
        return min(max(part, constants.ASK_PAUSE), constants.ASK_PAUSE_MAX)

    def let_out(self, sockets: Iterable[FourTuple]) -> dict[bytes, list[Connection]]:
        """The connections among these that are let out, by peer."""
        of_peer: dict[bytes, list[Connection]] = defaultdict(list)
        for socket in sockets:
            connection = self._host.table.at(socket)
            if connection is not None and connection.peer is not None and connection.cid in self._since:
                of_peer[connection.peer].append(connection)
        return of_peer

    def ask_more(self, now: float, key: bytes) -> None:
        """One connection was answered: ask the others at once, unless the peer's daemon answers by itself."""
        peer, rest = self._host.peers.get(key), self._asked(key)
        talks = peer is not None and peer.last_contact is not None and now - peer.last_contact < constants.ASK_PAUSE
        if rest and not talks and now - self._more.get(key, float("-inf")) >= constants.ASK_MORE_PAUSE:
            self._more[key] = now
            self._host.emit(commands.Ask(tuple(c.socket for c in rest[: constants.ASKED_MORE])))

    def refused(self, now: float, connection: Connection) -> None:
        """An RST has come that is not believed: leave this connection alone for a while, longer each time."""
        if connection.cid not in self._since:
            return
        times = self._refusals[connection.cid].times if connection.cid in self._refusals else 0
        pause = min(constants.REFUSED_PAUSE * 2**times, constants.REFUSED_PAUSE_MAX)
        self._refusals[connection.cid] = Refusal(times + 1, now + pause)
        self.review(now, connection.peer)
        if connection.peer is not None and not self._host.timers.armed(timer_kinds.AskPlainly(connection.peer)):
            self._host.timers.set(timer_kinds.AskPlainly(connection.peer), now + pause)

    def network_changed(self) -> None:
        """This host is elsewhere: what was refused there may get through here."""
        self._refusals.clear()

    def resumed(self, connections: Iterable[Connection]) -> None:
        """These have a path again, or have ended: they are no longer let out."""
        gone = []
        for connection in connections:
            self._refusals.pop(connection.cid, None)
            if self._since.pop(connection.cid, None) is not None:
                gone.append(connection.socket)
        if gone:
            self._host.emit(commands.LetOut(tuple(gone), on=False))

"""Connections without a path, and what the kernel does to keep them alive meanwhile (kernel/tcp/suspend.py).

    no address of ours, for HOLD_AFTER: most moves are over by then      the peer is silent, for suspend_after
            │                                                                    │
            └───────► Rewrite: what it sends is held back ◄──────────────────────┘
                      Prepare ─► what its socket has is stored ─► Suspend
    path proven       Rewrite, together with the move ─► Resume ─► the socket has back what it had

An address that comes back in time leaves the connection to TCP, as if it had not been away; what it sends is held back
when nothing has arrived for suspend_after.

A peer is silent if something of a connection with it is unanswered, and it does not answer our announcement either
(moves/outgoing.py repeats that).  A connection on which something arrives shows that only the daemon there is down.
A connection that does not leave its interface, here or there, may have no path although the peer is heard by another.

What is suspended is announced ever again, quickly at first (`pause`): that is how the path's return is noticed.  The
answer proves it, on both hosts.  Without the peer's daemon its kernel does (liveness.py).  After give_up_after the
connection is closed.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any, Final

from redirectctl.flows import commands, constants, facts, timer_kinds
from redirectctl.flows.agreement import Agreement
from redirectctl.flows.announcements import Announcements
from redirectctl.flows.connection import Before, Connection, Flow, by_peer, change
from redirectctl.flows.host import Host
from redirectctl.flows.kernel_state import KernelState
from redirectctl.flows.network import Network
from redirectctl.flows.paths.liveness import Liveness
from redirectctl.flows.state import State
from redirectctl.wire import message as messages
from redirectctl.wire.addr import FourTuple
from redirectctl.wire.message import End

LOST_HERE: Final = ("no-path", "stays-on-device")  # why it is suspended: this host has no way for it


class Suspension:
    """Suspends connections without a path, has the kernel keep them alive, and resumes them."""

    def __init__(
        self,
        host: Host,
        kernel: KernelState,
        agreement: Agreement,
        announcements: Announcements,
        liveness: Liveness,
    ) -> None:
        self._host = host
        self._kernel = kernel
        self._agreement = agreement
        self._announcements = announcements
        self._liveness = liveness
        self._resumable: set[bytes] = set()  # the shell has been asked to prepare them, and not yet to resume them
        self._asked: dict[bytes, float] = {}  # peers whose answer we wait for, and since when
        self._unanswered: dict[bytes, float] = {}  # connections, and when they were last seen waiting for an answer
        self._heard: dict[bytes, float] = {}  # peers, and when something last arrived on a connection with them
        self._left: dict[bytes, float] = {}  # peers whose daemon has said that it ends, and when
        self._changed = float("-inf")  # when this host was last elsewhere than before, or slept

    # -- losing the path ----------------------------------------------------------------------------------------------

    def lose(
        self, now: float, connections: Iterable[Connection], reason: str, *, since: float, hold_after: float = 0.0
    ) -> None:
        """These have had no path since ``since``: suspend them, and after ``hold_after`` seconds in the kernel too."""
        connections = list(connections)
        for connection in connections:
            if connection.state is State.SUSPENDED and connection.reason in LOST_HERE:
                connection.reason = reason
        lost = [c for c in connections if c.state is State.PROTECTED]
        for connection in lost:
            connection.lost_since = since
            if connection.peer is not None:
                self._liveness.lost.setdefault(connection.peer, since)
            change(connection, State.SUSPENDED, now, reason)
            details: dict[str, Any] = {"interface": connection.device} if reason == "stays-on-device" else {}
            self._host.notice("connection.suspended", connection, reason=reason, **details)
        if lost:
            self._host.emit(commands.SaveConnections(tuple(lost)))
            self._schedule(now)
            self._liveness.review(now)
        for key in {c.peer for c in lost if c.peer is not None}:
            self._host.timers.set(timer_kinds.SuspendInKernel(key), now + hold_after)

    def question(self, now: float, key: bytes) -> None:
        """The peer was told where this host is: expect its answer within suspend_after."""
        if self.silent_since(key) is None:
            self._asked[key] = now
            self._host.timers.set(timer_kinds.PeerSilent(key), now + self._host.policy.suspend_after)

    def woke(self, now: float) -> None:
        """This host has slept, when nobody could answer: peers have their whole time again."""
        self._changed = now
        for key in self._asked:
            self._asked[key] = now
            self._host.timers.set(timer_kinds.PeerSilent(key), now + self._host.policy.suspend_after)

    def pause(self, now: float, key: bytes) -> float | None:
        """Seconds until a peer is told again where we are, while connections with it are suspended.

        A fixed part of the time without a path, so that its return is noticed soon by any measure.  Not more than
        PROBES a second to all such peers together.
        """
        since = self._liveness.lost.get(key)
        if since is None:
            return None
        part = max((now - since) / constants.PROBE_PART, len(self._liveness.lost) / constants.PROBES)
        return min(max(part, constants.PROBE_PAUSE), constants.PROBE_PAUSE_MAX)

    def unanswered(self, now: float, connections: Iterable[Connection]) -> None:
        """Note that the peers' sockets do not acknowledge what these send."""
        for connection in connections:
            self._unanswered[connection.cid] = now

    def heard(self, now: float, connections: Iterable[Connection]) -> None:
        """Something has arrived on these: those that are let out have a path again."""
        for connection in connections:
            if connection.peer is not None:
                self._heard[connection.peer] = now
        # What comes in by itself says enough of those that are left to TCP.
        alive: dict[bytes, list[Connection]] = defaultdict(list)
        for connection in connections:
            left = connection.state is State.SUSPENDED and not connection.blocked
            if left and connection.peer is not None and self._liveness.since(connection) is not None:
                alive[connection.peer].append(connection)
        for key, found in alive.items():
            self.carry(now, key, found)

    def left(self, now: float, key: bytes) -> None:
        """The peer's daemon says that it ends."""
        if self._host.table.movable(key):
            self._left[key] = now

    def departed(self, key: bytes) -> bool:
        """Whether the peer's daemon has said that it ends, and has not been heard since."""
        at = self._left.get(key)
        peer = self._host.peers.get(key)
        if at is not None and (peer is None or peer.last_contact is None or peer.last_contact > at):
            del self._left[key]
            return False
        return at is not None

    def network_changed(self, now: float, before: Network) -> None:
        """Addresses or routes have changed: find out what can be let out, and when the kernel has to hold it."""
        usable = self._host.network.usable
        if usable != before.usable and before.usable:
            self._changed = now
            self._liveness.network_changed()
        returned, gone = self._liveness.review(now)
        for connections, pause in ((returned, self._host.policy.suspend_after), (gone, constants.HOLD_AFTER)):
            for key, count in by_peer(c for c in connections if not c.blocked).items():
                self._host.timers.set(timer_kinds.SuspendInKernel(key), now + constants.patience(pause, count))

    def same_since_heard(self, key: bytes) -> bool:
        """Whether this host has been awake and at the same addresses since it last heard from the peer."""
        peer = self._host.peers.get(key)
        contact = peer.last_contact if peer is not None else None
        heard = max(self._heard.get(key, float("-inf")), float("-inf") if contact is None else contact)
        return self._changed <= heard or self._changed == float("-inf")

    def questioned(self) -> set[bytes]:
        """Peers that owe an answer or have no path: an arrival on their connections tells something."""
        return {key for key in self._asked if self.silent_since(key) is not None} | self._liveness.lost.keys()

    def silent_since(self, key: bytes) -> float | None:
        """When the peer's daemon was asked what it has not answered; None: it owes no answer."""
        asked = self._asked.get(key)
        peer = self._host.peers.get(key)
        last = peer.last_contact if peer is not None else None
        return None if asked is None or (last is not None and last > asked) else asked

    def silent(self, now: float, key: bytes) -> None:
        """A peer has had suspend_after to answer: without an answer, suspend its connections."""
        asked = self.silent_since(key)
        self._asked.pop(key, None)
        if asked is None or self._heard.get(key, asked) > asked:
            return
        connections = self._host.table.movable(key)
        if any(self._waits(now, c) for c in connections):
            self._host.report(now, facts.PeerSilent(connections))
            self.lose(now, connections, "peer-silent", since=asked)
            self._host.report(now, facts.ReviewPaths(connections))

    def unheard(self, now: float, connections: Iterable[Connection], since: float, *, refused: bool) -> None:
        """Our announcement of these at ``since`` has not been answered on an interface that they may use.

        ``refused``: it was where the peer does not want them to go.
        """
        waiting = [c for c in connections if c.movable and c.state is State.PROTECTED and self._waits(now, c)]
        here = [c for c in waiting if c.device and not self._host.policy.leave_vpn]
        there = [c for c in waiting if refused and c not in here]
        self.lose(now, here, "stays-on-device", since=since)
        self.lose(now, there, "unusable-there", since=since)

    def _waits(self, now: float, c: Connection) -> bool:
        """Whether something that this connection sent is unanswered, or cannot be answered."""
        recent = now - self._unanswered.get(c.cid, float("-inf")) < constants.UNANSWERED_FOR
        return recent or c.local_now not in self._host.network.usable

    # -- in the kernel ------------------------------------------------------------------------------------------------

    def suspend_in_kernel(self, now: float, key: bytes) -> None:
        """There has been no path for long enough: have the kernel hold back what is sent to a peer."""
        connections = []
        self._liveness.review(now, key)
        for c in self._host.table.movable(key):
            if c.state is not State.SUSPENDED or c.blocked:
                continue
            returned = self._liveness.since(c) if c.reason == "no-path" else None
            if returned is not None and now < (until := returned + self._host.policy.suspend_after):
                self._host.timers.set(timer_kinds.SuspendInKernel(key), until)
            else:
                connections.append(c)
        until = self._announcements.began(key) + constants.patience(0.0, len(connections))
        if connections and now < until:  # many: it would take longer to suspend them than to move them
            self._host.timers.set(timer_kinds.SuspendInKernel(key), until)
        elif connections:
            changes = [(c, c.wire, c.tunnel) for c in connections]
            self._kernel.reroute(commands.Suspending(key), changes, hold={c.cid for c in connections})

    def hold_again(self, now: float, connections: Iterable[Connection]) -> None:
        """These send again, on a path that is not proven yet: hold them back again if it comes to nothing."""
        for key, count in by_peer(c for c in connections if c.state is State.SUSPENDED).items():
            self._host.timers.set(
                timer_kinds.SuspendInKernel(key), now + constants.patience(constants.HOLD_AGAIN, count)
            )

    def rewritten(self, now: float, key: bytes, added: Iterable[Flow], error: str | None) -> None:
        """The kernel holds these back, or has refused: prepare their sockets, or try again."""
        if error is not None:
            self._host.timers.set(timer_kinds.SuspendInKernel(key), now + constants.HOLD_AGAIN)
            return
        held = [c for flow in added if (c := self._host.table.at(flow.socket)) is not None and c.blocked]
        self._resumable.update(c.cid for c in held)
        if held:
            self._host.emit(commands.Prepare(tuple(c.socket for c in held)))

    def prepared(self, now: float, found: Mapping[FourTuple, Before]) -> None:
        """Answer to Prepare: store what these sockets have, then suspend them."""
        before, late = {}, []
        stored = []
        for socket, has in found.items():
            connection = self._host.table.at(socket)
            if connection is None or connection.cid not in self._resumable:
                late.append(socket)
                continue
            connection.saved = before[socket] = has
            stored.append(connection)
        if stored:
            self._host.emit(commands.SaveConnections(tuple(stored)))
            self._host.emit(commands.Suspend(before))
            for key in {c.peer for c in stored if c.peer is not None}:
                self._liveness.held(now, key)
        if late:  # resumed meanwhile
            self._host.emit(commands.Resume(tuple(late)))

    def resume(self, connections: Iterable[Connection]) -> list[Connection]:
        """Resume those of these that are suspended in the kernel; returns the others."""
        resumed: list[Connection] = []
        others: list[Connection] = []
        for connection in connections:
            (resumed if connection.cid in self._resumable else others).append(connection)
        if resumed:
            self._resumable.difference_update(c.cid for c in resumed)
            self._host.emit(commands.Resume(tuple(c.socket for c in resumed)))
            self._liveness.resumed(resumed)
        return others

    def revert_backoff(self, connections: list[Connection]) -> None:
        """Undo the back-off of these, before anything else happens to them.

        It works on what was lost only as long as the peer has not acknowledged a part of it.  The peer's first segment
        may do that, and the socket would wait for its next time-out (`tcp_ld_RTO_revert` wants icsk_retransmits).
        """
        connections = self.resume(connections)
        if connections:
            self._host.emit(commands.RevertBackoff(tuple(c.socket for c in connections)))

    def restored(self, sockets: Iterable[FourTuple]) -> None:
        """These sockets have back what they had: that need not be stored any more."""
        done = [c for s in sockets if (c := self._host.table.at(s)) is not None and c.cid not in self._resumable]
        for connection in done:
            connection.saved = None
        stored = [c for c in done if c.movable]
        if stored:
            self._host.emit(commands.SaveConnections(tuple(stored)))

    def clear(self, socket: FourTuple) -> None:
        """A new connection has the tuple of one that has ended: remove the old one's rules."""
        old = self._host.table.ended(socket)
        if old is not None:
            self._host.timers.cancel(timer_kinds.Linger(old.cid))
            self.unguard([old])

    def unguard(self, connections: Iterable[Connection]) -> None:
        """Have the kernel forget these, and resume them."""
        connections = self._kernel.unguard(connections)
        for connection in connections:
            connection.blocked = False
            if connection.state is State.CLOSED:
                self.ended(connection)
        self.resume([c for c in connections if c.state is not State.CLOSED])

    def ended(self, connection: Connection) -> None:
        """A connection's socket is gone: forget what it had."""
        self._liveness.resumed([connection])
        self._unanswered.pop(connection.cid, None)
        if connection.cid in self._resumable or connection.saved is not None:
            self._resumable.discard(connection.cid)
            connection.saved = None
            self._host.emit(commands.Forget((connection.socket,)))

    def lift(self, connections: Iterable[Connection]) -> None:
        """Have the kernel let through what these send; resume() has to follow."""
        held = [c for c in connections if c.blocked]
        if held:
            lift = {c.cid for c in held}
            self._kernel.reroute(commands.Lifting(), [(c, c.wire, c.tunnel) for c in held], lift=lift)

    # -- the path is there again --------------------------------------------------------------------------------------

    def path_found(self, now: float, connection: Connection) -> None:
        """The path of a suspended connection is proven: it is protected again."""
        lost, connection.lost_since = connection.lost_since, None
        reason = connection.reason
        change(connection, State.PROTECTED, now)
        self._unanswered.pop(connection.cid, None)
        self._liveness.lost.pop(connection.peer or b"", None)
        self._liveness.resumed([connection])
        self._host.notice(
            "connection.resumed", connection, reason=reason, duration=None if lost is None else max(0.0, now - lost)
        )

    def answered(self, now: float, sockets: Iterable[FourTuple]) -> None:
        """The peers' kernels have acknowledged what was let out on these sockets."""
        for key, connections in self._liveness.let_out(sockets).items():
            self.carry(now, key, connections)
            self._liveness.ask_more(now, key)

    def carry(self, now: float, key: bytes, connections: list[Connection]) -> None:
        """Packets of these get through as they are, whatever the peer's daemon does: resume them."""
        self._heard[key] = now
        since = self._liveness.lost.get(key)
        held = [c for c in connections if c.blocked]
        self.lift(held)
        self.revert_backoff(held)
        for connection in connections:
            self.path_found(now, connection)
        self._announcements.carry_plainly(key, {c.cid for c in connections})
        self._host.emit(commands.SaveConnections(tuple(connections)))
        if since is not None and any(c.state is State.SUSPENDED for c in self._host.table.movable(key)):
            self._liveness.lost[key] = since

    def restore(self, now: float, connections: Iterable[Connection]) -> None:
        """At start: go on with what an earlier run has suspended, or has not given back yet."""
        suspended = [c for c in connections if c.state is State.SUSPENDED]
        held = [c for c in suspended if c.blocked]
        self._resumable.update(c.cid for c in held)
        if known := {c.socket: c.saved for c in held if c.saved is not None}:
            self._host.emit(commands.Suspend(known))
        if unknown := tuple(c.socket for c in held if c.saved is None):
            self._host.emit(commands.Prepare(unknown))
        leaving = {c.socket: c.saved for c in connections if not c.blocked and c.saved is not None}
        if leaving:
            self._host.emit(commands.GiveBack(leaving))
        for key in {c.peer for c in suspended if not c.blocked and c.peer is not None}:
            self._host.timers.set(timer_kinds.SuspendInKernel(key), now + constants.HOLD_AGAIN)
        for connection in suspended:
            if connection.peer is not None and connection.lost_since is not None:
                self._liveness.lost.setdefault(connection.peer, connection.lost_since)
        if suspended:
            self._schedule(now)

    # -- giving up ----------------------------------------------------------------------------------------------------

    def policy_changed(self, now: float) -> None:
        """The configuration has been read again: give_up_after may be another."""
        self._schedule(now)

    def _suspended(self) -> list[Connection]:
        return [c for c in self._host.table.movable() if c.state is State.SUSPENDED]

    def _schedule(self, now: float) -> None:
        since = min((c.lost_since for c in self._suspended() if c.lost_since is not None), default=None)
        if since is not None:
            self._host.timers.set(timer_kinds.GiveUp(), max(now, since + self._host.policy.give_up_after))

    def give_up(self, now: float) -> None:
        """Close the connections that have had no path for give_up_after."""
        limit = self._host.policy.give_up_after
        due = [c for c in self._suspended() if c.lost_since is not None and now >= c.lost_since + limit]
        of_peer: dict[bytes, list[bytes]] = defaultdict(list)
        for connection in due:
            of_peer[connection.peer or b""].append(connection.cid)
        for key, cids in of_peer.items():
            for start in range(0, len(cids), messages.MAX_CIDS):
                self._agreement.tell_end(now, key, End.KILL, tuple(cids[start : start + messages.MAX_CIDS]))
        for connection in due:
            self._host.report(now, facts.Ended(connection, "given-up"))
        self._host.report(now, facts.GivenUp())
        self._schedule(now)

"""Connections from the moment that they are found to the one in which nothing is left of them.

    found ─ threshold ─► contact ─► trust on both sides ─► claim ─► both ends prove that it is theirs ─► guarded

Which host asks does not matter (claims/).
"""

from __future__ import annotations

from collections.abc import Iterable

from redirectctl.flows import commands, constants, timer_kinds
from redirectctl.flows.agreement import Agreement
from redirectctl.flows.claims.incoming import PeersClaims
from redirectctl.flows.claims.outgoing import OwnClaims
from redirectctl.flows.connection import Connection, change
from redirectctl.flows.contact import Contact
from redirectctl.flows.host import Host
from redirectctl.flows.kernel_state import KernelState
from redirectctl.flows.moves.outgoing import OwnMoves
from redirectctl.flows.offers import Offers
from redirectctl.flows.paths.choice import Choice
from redirectctl.flows.paths.suspension import Suspension
from redirectctl.flows.rendezvous.client import Client
from redirectctl.flows.state import State
from redirectctl.proto import events
from redirectctl.wire import message as messages
from redirectctl.wire.addr import FourTuple
from redirectctl.wire.message import End


class Lifecycle:
    """Takes connections from being found over being protected to being gone."""

    def __init__(
        self,
        host: Host,
        kernel: KernelState,
        offers: Offers,
        agreement: Agreement,
        rendezvous: Client,
        suspension: Suspension,
        choice: Choice,
        moves: OwnMoves,
        own_claims: OwnClaims,
        peers_claims: PeersClaims,
        contact: Contact,
    ) -> None:
        self._host = host
        self._kernel = kernel
        self._offers = offers
        self._agreement = agreement
        self._rendezvous = rendezvous
        self._suspension = suspension
        self._choice = choice
        self._moves = moves
        self._own_claims = own_claims
        self._peers_claims = peers_claims
        self._contact = contact

    def found(
        self,
        now: float,
        socket: FourTuple,
        age: float,
        pid: int | None,
        command: str | None,
        uid: int | None,
        device: str,
        unfit: str | None,
        asked: bool,
    ) -> None:
        """An opted-in connection exists: it is short-lived until it is long_lived_after old."""
        known = self._host.table.at(socket)
        if known is not None:
            if asked and known.state is State.RELEASED:
                self._contact.negotiate(now, [known])
            known.pid, known.command = known.pid or pid, known.command or command
            known.uid = uid if known.uid is None else known.uid
            return
        if len(self._host.table) >= constants.MAX_CONNECTIONS:
            self._host.notice(
                "connection.refused", reason="too-many-connections", local=str(socket.local), remote=str(socket.remote)
            )
            return
        self._suspension.clear(socket)
        connection = Connection(self._host.rng(8), socket, socket, now - age, pid=pid, uid=uid, command=command)
        connection.device, connection.bound = device, bool(device)
        connection.history.append((now, State.SHORT))
        self._host.table.add(connection)
        self._host.notice("connection.found", connection, pid=pid, command=command)
        if unfit is not None:
            self._contact.refuse(now, connection, unfit)
            return
        self._host.timers.set(
            timer_kinds.LongLived(connection.cid), connection.since + self._host.policy.long_lived_after
        )

    def long_lived(self, now: float, cid: bytes) -> None:
        """A connection is old enough to be protected: negotiate it."""
        if (connection := self._host.table.get(cid)) is not None:
            self._host.notice("connection.long", connection)
            self._contact.negotiate(now, [connection])

    # -- guarded ------------------------------------------------------------------------------------------------------

    def guarded(self, now: float, purpose: commands.Guarding, error: str | None) -> None:
        """The kernel guards new connections, or has refused: they are protected, or not."""
        connections = self._host.table.select(purpose.cids)
        protected: list[Connection] = []
        for connection in connections:
            if error is not None:
                connection.guarded = False
                if connection.state is State.RELEASED:  # meanwhile
                    continue
                self._contact.refuse(now, connection, f"kernel: {error}")
                self._host.emit(commands.DropConnections((connection.cid,)))
                if purpose.claim is None and connection.peer is not None:  # ours: the peer has taken it on already
                    self._agreement.tell_end(now, connection.peer, End.RELEASED, (connection.cid,))
                continue
            if connection.guarded:  # else it has been released, or has ended, meanwhile
                connection.installed = connection.flow
            if connection.state is State.NEGOTIATING:
                protected.append(connection)
        self._kernel.carry(c for c in connections if c.installed is not None)
        for connection in protected:
            self._host.timers.cancel(timer_kinds.Undecided(connection.cid))
            # Where one is that has moved before, the peer may not know.
            connection.confirmed = None if connection.moved else connection.wire.local.host
            change(connection, State.PROTECTED, now)
            self._host.notice("connection.protected", connection)
        if purpose.claim is not None:
            self._peers_claims.reply(now, purpose.claim, failed=error is not None)
        if protected:
            self._host.emit(commands.SaveConnections(tuple(protected)))  # a restart is to know them as protected
            for key in {c.peer for c in protected}:
                self._contact.update_keep(now, key)
                self._host.used(key)
            self._rendezvous.protected(now)
            self._choice.protected(now, protected)
            self._moves.reconsider(now, [c for c in protected if c.movable])

    def unprotect(self, now: float, connection: Connection, reason: str, *, released: bool = False) -> None:
        """Stop protecting a connection.  The kernel's rules of one that has moved stay: without them it would die.

        ``released``: a person has said so.  That is stored, so that after a restart it is not taken on again either.
        """
        self._host.timers.cancel(timer_kinds.LongLived(connection.cid))
        if released:
            self._contact.release(now, connection, reason)
        elif connection.state not in (State.REFUSED, State.RELEASED):
            self._contact.refuse(now, connection, reason)
        connection.lost_since = None
        if connection.guarded and connection.may_come_tunnelled:
            self._suspension.lift([connection])
            self._suspension.resume([connection])
            self._host.emit(commands.SaveConnections((connection,)))
        else:
            self._suspension.unguard([connection])
            if connection.state is State.RELEASED:
                self._host.emit(commands.SaveConnections((connection,)))
            else:
                self._host.emit(commands.DropConnections((connection.cid,)))
        self._contact.update_keep(now, connection.peer)

    def leave(self, now: float, key: bytes, reason: str, *, released: bool = False) -> None:
        """Stop protecting all connections with this peer, and tell the peer."""
        movable = self._host.table.movable(key)
        for connection in self._host.table.of(key):
            if connection.state not in (State.CLOSED, State.REFUSED, State.RELEASED):
                self.unprotect(now, connection, reason, released=released)
        for start in range(0, len(movable), messages.MAX_CIDS):
            some = tuple(c.cid for c in movable[start : start + messages.MAX_CIDS])
            self._agreement.tell_end(now, key, End.RELEASED, some)

    # -- ending -------------------------------------------------------------------------------------------------------

    def gone(self, now: float, socket: FourTuple) -> None:
        """A connection's socket is gone.  Its rules stay as long as packets may be under way."""
        connection = self._host.table.at(socket)
        if connection is None:
            return
        timers, was_movable = self._host.timers, connection.movable
        self._host.table.end(connection)
        timers.cancel(timer_kinds.LongLived(connection.cid))
        timers.cancel(timer_kinds.ClaimAgain(connection.cid))
        self._own_claims.end(now, connection.cid)
        self._host.finish(now, connection, "closed")
        if was_movable and connection.peer is not None:
            self._agreement.tell_end(now, connection.peer, End.CLOSED, (connection.cid,))
        linger = 0.0
        if connection.guarded:
            if connection.may_come_tunnelled:
                linger = constants.LINGER_BOTH if connection.peer_closed else constants.LINGER
            timers.set(timer_kinds.Linger(connection.cid), now + linger)
            self._suspension.ended(connection)
        timers.set(timer_kinds.Bury(connection.cid), now + max(constants.LISTED, linger + 1.0))
        self._host.emit(commands.DropConnections((connection.cid,)))
        self._contact.update_keep(now, connection.peer)

    def linger_over(self, cid: bytes) -> None:
        """No packet of a closed connection is under way any more: remove its rules."""
        if (connection := self._host.table.get(cid)) is not None:
            self._suspension.unguard([connection])

    def bury(self, cid: bytes) -> None:
        """A closed connection has been listed for LISTED: remove it."""
        if (connection := self._host.table.get(cid)) is not None:
            self._suspension.unguard([connection])  # in case its lingering was extended meanwhile
            self._host.table.bury(connection)

    def end(self, now: float, connection: Connection, reason: str) -> None:
        """Close a connection's socket."""
        self._host.emit(commands.Destroy((connection.socket,)))
        self._host.finish(now, connection, reason)
        self.gone(now, connection.socket)

    def release(self, now: float, cid: bytes) -> None:
        """A person stops the protection of a connection, on both hosts."""
        connection = self._host.table.get(cid)
        if connection is None or connection.state is State.CLOSED:
            return
        was_movable = connection.movable
        self.unprotect(now, connection, "released", released=True)
        if was_movable and connection.peer is not None:
            self._agreement.tell_end(now, connection.peer, End.RELEASED, (cid,))

    def kill(self, now: float, cid: bytes) -> None:
        """A person closes a connection, on both hosts."""
        connection = self._host.table.get(cid)
        if connection is None or connection.state is State.CLOSED:
            return
        if connection.movable and connection.peer is not None:
            self._agreement.tell_end(now, connection.peer, End.KILL, (cid,))
        self.end(now, connection, "killed")

    def on_end(self, now: float, event: events.Received, message: messages.EndOf) -> None:
        """A peer no longer protects these: they have ended there, were released, or are to be killed."""
        self._peers_claims.withdrawn(event.key, message.cids)
        for connection in self._host.table.select(message.cids):
            if connection.peer != event.key:
                self._host.notice("redirect.refused", connection, peer=event.key, reason="not-your-connection")
                continue
            connection.peer_closed = connection.peer_closed or message.what is not End.RELEASED
            if connection.state is State.CLOSED:
                linger = timer_kinds.Linger(connection.cid)
                if connection.peer_closed and self._host.timers.armed(linger):
                    self._host.timers.set(linger, now + constants.LINGER_BOTH)
            elif message.what is End.KILL and connection.movable:
                self.end(now, connection, "killed-there")
            elif message.what is End.RELEASED:
                self.unprotect(now, connection, "released-there", released=connection.state is not State.REFUSED)
        self._host.send(now, event.key, messages.Done(message.request), event.source, event.local)

    # -- after a restart, of this daemon or the peer's ----------------------------------------------------------------

    def restore(self, now: float, connections: Iterable[Connection]) -> None:
        """At start: take on the connections of an earlier run, and compare them with their peers."""
        keys = set()
        restored = []
        for connection in connections:
            if connection.state is State.RELEASED and not connection.may_come_tunnelled:  # only not to be taken on
                self._host.table.add(connection)
                continue
            if not connection.movable and not connection.may_come_tunnelled:  # stored, but the kernel was not asked yet
                self._host.emit(commands.DropConnections((connection.cid,)))
                continue
            connection.guarded, connection.installed = True, connection.flow
            self._host.table.add(connection)
            self._offers.keep(connection.receiving)
            restored.append(connection)
            if connection.movable and connection.peer is not None:
                keys.add(connection.peer)
        self._kernel.carry(restored)
        self._suspension.restore(now, restored)
        for key in keys:
            self._contact.update_keep(now, key)
            self._contact.reach(now, key)

    def synced(self, now: float, key: bytes, reply: messages.SyncReply, doubtful: tuple[bytes, ...]) -> None:
        """A peer has lost these: claim again those that have not moved, and stop protecting the others."""
        lost = [c for c in self._host.table.select(reply.cids) if c.peer == key and c.movable]
        again = [c for c in lost if not c.moved]
        for connection in lost:
            if connection.moved:
                self.unprotect(now, connection, "lost-there")
                # It may be about to take it on.
                self._agreement.tell_end(now, key, End.RELEASED, (connection.cid,))
        for connection in again:
            connection.lost_since = None
            change(connection, State.NEGOTIATING, now)
        self._suspension.unguard(c for c in again if not c.may_come_tunnelled)
        if again:
            self._host.emit(commands.DropConnections(tuple(c.cid for c in again)))
        self._contact.update_keep(now, key)
        self._contact.met(now, self._host.peers[key], again)
        self._agreement.announce_again(now, doubtful)

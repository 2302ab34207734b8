"""RSTs.  Whoever has a peer's old address answers our segments with RST (paper, section 2), and the kernel believes it.

So an RST for a protected connection is held, and the peer's daemon is asked over the session whether its socket is
gone.  If it says so the RST passes; otherwise it is dropped and rst.held tells.

If there is no answer, it passes where the peer's host itself must be what sends it, for all that is known: it may have
restarted, and have no daemon any more.  Neither end has been elsewhere, and this host was here all the time, since it
last heard of the peer.  Besides, this host began the connection: where it was begun from, not where it was begun to,
others turn up under an old address (a lease that ends, a router that has forgotten a mapping).  Or the daemon there has
said that it ends: then nobody announces moves from there either.
"""

from __future__ import annotations

from redirectctl.flows import commands, constants
from redirectctl.flows.connection import Connection
from redirectctl.flows.host import Host
from redirectctl.flows.paths.liveness import Liveness
from redirectctl.flows.paths.suspension import Suspension
from redirectctl.flows.requests import Requests
from redirectctl.flows.state import State
from redirectctl.proto import events
from redirectctl.proto.shares import Shared
from redirectctl.wire import message as messages
from redirectctl.wire.addr import FourTuple, IPAddress, SockAddr


class Resets:
    """Holds RSTs until the peer has answered, and answers peers' questions about sockets of this host."""

    def __init__(self, host: Host, requests: Requests, liveness: Liveness, suspension: Suspension) -> None:
        self._host = host
        self._requests = requests
        self._liveness = liveness
        self._suspension = suspension
        # Of each peer, by connection: its one held RST, and whether we began it.
        self._held: Shared[bytes, bytes, tuple[int, bool]] = Shared()
        self._told: dict[bytes, float] = {}  # when rst.held was last reported
        self._asked: Shared[bytes, int, tuple[bytes, SockAddr, IPAddress, int]] = Shared()
        self._number = 0

    def held(self, now: float, socket: FourTuple, token: int, *, opened: bool = False) -> None:
        """Pass or drop a held RST, or ask the peer."""
        connection = self._host.table.at(socket)
        if connection is None or not connection.movable or connection.peer is None:
            self._host.emit(commands.Verdict(token, accept=True))
            return
        cid = connection.cid
        gone = self._suspension.departed(connection.peer)
        silent = connection.state is State.SUSPENDED and connection.reason == "peer-silent"
        if (gone or (silent and opened)) and self._from_there(connection):
            self._host.emit(commands.Verdict(token, accept=True))
        elif connection.state is State.SUSPENDED:
            self._drop(now, connection, token, "no-path")
            self._liveness.refused(now, connection)
        elif cid in self._held or not self._hold(now, connection.peer, cid, token, opened):
            self._drop(now, connection, token, "being-asked")
        else:
            self._requests.ask(
                now,
                connection.peer,
                lambda n: messages.RstQuery(n, cid),
                lambda at, reply: self._answered(at, cid, reply),
                lambda at: self._unanswered(at, cid),
            )

    def _hold(self, now: float, key: bytes, cid: bytes, token: int, opened: bool) -> bool:
        """Keep an RST until the peer answers.  Without room, one is dropped: the next segment draws another."""
        gone = self._held.put(constants.MAX_RST_QUESTIONS, key, cid, (token, opened))
        if gone is not None and gone[0] != cid:
            self._settle(now, gone[0], gone[1][0], gone=False, reason="being-asked")
        return cid in self._held

    def _from_there(self, connection: Connection) -> bool:
        """Whether, for all that is known, both hosts are where they were when the connection began."""
        here, there = connection.socket
        elsewhere = connection.outer_remote is not None and connection.outer_remote.host != there.host
        local_now = here.host in self._host.network.usable and connection.reason != "no-path"
        heard = connection.peer is not None and self._suspension.same_since_heard(connection.peer)
        return not connection.moved and not elsewhere and local_now and heard

    def _unanswered(self, now: float, cid: bytes) -> None:
        connection, held = self._host.table.get(cid), self._held.get(cid)
        gone = held is not None and held[1] and connection is not None and self._from_there(connection)
        self._decide(now, cid, gone=gone, reason="peer-unreachable")

    def _answered(self, now: float, cid: bytes, reply: messages.Message) -> None:
        gone = isinstance(reply, messages.RstReply) and not reply.alive
        self._decide(now, cid, gone=gone, reason="peer-alive")

    def _decide(self, now: float, cid: bytes, *, gone: bool, reason: str) -> None:
        held = self._held.pop(cid)
        if held is not None:
            self._settle(now, cid, held[0], gone=gone, reason=reason)

    def _settle(self, now: float, cid: bytes, token: int, *, gone: bool, reason: str) -> None:
        connection = self._host.table.get(cid)
        if gone or connection is None or not connection.movable:
            self._host.emit(commands.Verdict(token, accept=True))
        else:
            self._drop(now, connection, token, reason)

    def _drop(self, now: float, connection: Connection, token: int, reason: str) -> None:
        self._host.emit(commands.Verdict(token, accept=False))
        if now - self._told.get(connection.cid, float("-inf")) >= constants.HELD_PAUSE:
            if len(self._told) >= constants.MAX_CONNECTIONS:
                self._told.clear()
            self._told[connection.cid] = now
            self._host.notice("rst.held", connection, reason=reason)

    # -- a peer asks about our socket ---------------------------------------------------------------------------------

    def asked(self, now: float, event: events.Received) -> None:
        """A peer asks about a socket: look it up.  Only the peer of that connection gets an answer."""
        message = event.message
        if not isinstance(message, messages.RstQuery):
            return
        connection = self._host.table.get(message.cid)
        if connection is not None and connection.peer != event.key:
            self._host.notice("redirect.refused", connection, peer=event.key, reason="not-your-connection")
            return
        if connection is None:
            self._host.send(now, event.key, messages.RstReply(message.request, alive=False), event.source, event.local)
            return
        self._number += 1
        question = (event.key, event.source, event.local, message.request)
        self._asked.put(constants.MAX_RST_QUESTIONS, event.key, self._number, question)
        if self._number in self._asked:
            self._host.emit(commands.CheckSockets(commands.PeersReset(self._number), (connection.socket,)))

    def checked(self, now: float, number: int, present: frozenset[FourTuple] | None) -> None:
        """Answer the peer.  Where the kernel could not be asked there is no answer: the peer keeps the RST back."""
        asked = self._asked.pop(number)
        if asked is not None and present is not None:
            key, source, local, request = asked
            self._host.send(now, key, messages.RstReply(request, alive=bool(present)), source, local)

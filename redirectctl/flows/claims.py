"""What peers ask us to protect.

    claimant                                 here
      PROTECT, between the connection's  ──►   approved?  each claim between the addresses that it came by?
      own addresses                      ◄──   PATH_CHALLENGE (epoch 0) to the address that it came from
      PATH_RESPONSE (epoch 0)            ──►   a socket for each claim?  the kernel guards them
                                         ◄──   PROTECTED

The source of a datagram can be forged, so an approved peer could else claim the connection of another host by a PROTECT
that seems to come from there, and then announce a move of it.  A host may claim only what it is at the other end of,
and shows that by answering from there.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from redirectctl.flows import commands, constants
from redirectctl.flows.connection import Connection, change
from redirectctl.flows.state import State
from redirectctl.proto import events
from redirectctl.proto.peer import Peer, PeerState
from redirectctl.wire import message as messages
from redirectctl.wire.addr import FourTuple, IPAddress
from redirectctl.wire.message import Claim, PathChallenge, PathResponse, Protect, Status, Verdict

if TYPE_CHECKING:
    from redirectctl.flows.engine import Engine

REASONS: Final = {
    Status.PENDING: "approval-pending-there",
    Status.REJECTED: "rejected-there",
    Status.NO_SOCKET: "no-such-connection-there",
    Status.NOT_YOURS: "not-proven",
    Status.PORT: "port-not-accepted",
    Status.LIMIT: "too-many-connections",
    Status.CONFLICT: "claimed-by-another",
    Status.FAILED: "kernel-refused-there",
}

NO_MOVE: Final = 0  # the epoch of a challenge that is not about a move; a host's epochs begin far above


@dataclass(slots=True)
class Proof:
    """An address from which a peer claims something, until it has answered our challenge."""

    data: bytes
    held: dict[int, tuple[events.Received, Protect]] = field(default_factory=dict)  # by request


@dataclass(slots=True)
class Asked:
    """A PROTECT whose sockets are being looked for, or guarded."""

    event: events.Received
    request: int
    claims: list[Claim]
    verdicts: list[Verdict]


class Claims:
    """PROTECTs of peers."""

    def __init__(self, engine: Engine) -> None:
        self._e = engine
        self._asked: dict[int, Asked] = {}
        self._number = 0
        self._proofs: dict[tuple[bytes, IPAddress], Proof] = {}

    def received(self, now: float, event: events.Received) -> None:
        """Protect, or a PathChallenge or PathResponse of NO_MOVE."""
        match event.message:
            case Protect():
                self._on_protect(now, event, event.message)
            case PathChallenge(epoch, data):
                self._e.send(now, event.key, PathResponse(epoch, data), event.source, event.local)
            case PathResponse():
                self._on_response(now, event, event.message)

    def _on_protect(self, now: float, event: events.Received, message: Protect) -> None:
        """Check what can be checked without the socket table and without a proof."""
        peer = self._e.peers[event.key]
        verdicts: list[Verdict] = []
        claims: list[Claim] = []
        for claim in message.claims:
            status = self._judge(peer, claim, event)
            if status is None:
                claims.append(claim)
            else:
                self._refuse(event, claim, status, verdicts)
        if all(self._confirmed(peer, claim) for claim in claims):
            self._look(Asked(event, message.request, claims, verdicts))
        else:
            self._challenge(now, event, message)

    def _refuse(self, event: events.Received, claim: Claim, status: Status, verdicts: list[Verdict]) -> None:
        verdicts.append(Verdict(claim.cid, 0, status))
        if status not in (Status.PENDING, Status.REJECTED):
            self._e.notice(
                "connection.refused", peer=event.key, reason=REASONS[status],
                local=str(claim.tuple.remote), remote=str(claim.tuple.local), source=str(event.source),
            )  # fmt: skip

    def _challenge(self, now: float, event: events.Received, message: Protect) -> None:
        which = event.key, event.source.host
        proof = self._proofs.get(which)
        if proof is None:
            if len(self._proofs) >= constants.MAX_PROOFS:
                self._forget(*next(iter(self._proofs)))
            proof = self._proofs[which] = Proof(self._e.rng(8))
            self._e.timers.set(("proof", *which), now + constants.PROOF_TIME)
        if len(proof.held) < constants.MAX_HELD_CLAIMS or message.request in proof.held:
            proof.held[message.request] = event, message
        self._e.send(now, event.key, PathChallenge(NO_MOVE, proof.data), event.source, event.local)

    def _on_response(self, now: float, event: events.Received, message: PathResponse) -> None:
        proof = self._proofs.get((event.key, event.source.host))
        if proof is None or not hmac.compare_digest(proof.data, message.data):
            return  # late, or from an address that we did not challenge
        self._forget(event.key, event.source.host)
        peer = self._e.peers[event.key]
        for held, protect in proof.held.values():
            verdicts: list[Verdict] = []
            claims: list[Claim] = []
            for claim in protect.claims:  # judged again: time has passed
                status = self._judge(peer, claim, held)
                if status is None:
                    claims.append(claim)
                else:
                    verdicts.append(Verdict(claim.cid, 0, status))
            self._look(Asked(held, protect.request, claims, verdicts))

    def expired(self, key: bytes, address: IPAddress) -> None:
        """The timer of a proof: nobody at that address answers for this peer."""
        proof = self._proofs.get((key, address))
        if proof is None:
            return
        self._forget(key, address)
        for event, protect in proof.held.values():
            for claim in protect.claims:
                self._refuse(event, claim, Status.NOT_YOURS, [])

    def _forget(self, key: bytes, address: IPAddress) -> None:
        self._proofs.pop((key, address), None)
        self._e.timers.cancel(("proof", key, address))

    def _confirmed(self, peer: Peer, claim: Claim) -> bool:
        """It has this connection already: our answer was lost."""
        known = self._e.table.at(claim.tuple.mirrored)
        return known is not None and known.cid == claim.cid and known.peer == peer.key and known.movable

    def _judge(self, peer: Peer, claim: Claim, event: events.Received) -> Status | None:
        """A refusal, or None to go on."""
        if peer.state is not PeerState.APPROVED:
            return Status.REJECTED if peer.state is PeerState.REJECTED else Status.PENDING
        if self._confirmed(peer, claim):
            return None
        if claim.tuple.local.host != event.source.host or claim.tuple.remote.host != event.local:
            return Status.NOT_YOURS
        known, named = self._e.table.at(claim.tuple.mirrored), self._e.table.get(claim.cid)
        if named is not None and named is not known:
            return Status.CONFLICT  # an id names one connection
        if known is not None and not self._may_take(peer, known, claim):
            return Status.CONFLICT
        if self._e.policy.accept_ports and claim.tuple.remote.port not in self._e.policy.accept_ports:
            return Status.PORT
        if known is None and (
            len(self._e.table) >= constants.MAX_CONNECTIONS
            or len(self._e.table.movable(peer.key)) >= constants.MAX_PER_PEER
        ):
            return Status.LIMIT
        return None

    @staticmethod
    def _may_take(peer: Peer, known: Connection, claim: Claim) -> bool:
        if known.moved:
            return False  # the claimant believes that nothing is rewritten: we would disagree
        if known.state is State.NEGOTIATING:
            return known.peer in (None, peer.key)
        # What was taken on before, and was released since or lost by the claimant, needs a new claim: a repeated one
        # that comes late does not take it on again.
        return not (known.movable and known.peer != peer.key) and claim.epoch > known.remote_epoch

    def _ours_wins(self, key: bytes, claim: Claim) -> bool:
        """Both hosts claim the same connection: the smaller id wins on both."""
        known = self._e.table.at(claim.tuple.mirrored)
        return known is not None and known.state is State.NEGOTIATING and known.peer == key and known.cid < claim.cid

    def _look(self, asked: Asked) -> None:
        """In the socket table."""
        self._number += 1
        if len(self._asked) >= constants.MAX_REQUESTS:
            self._asked.pop(next(iter(self._asked)))
        self._asked[self._number] = asked
        self._e.emit(commands.CheckSockets(("protect", self._number), tuple(c.tuple.mirrored for c in asked.claims)))

    def checked(self, now: float, token: tuple[Any, ...], present: frozenset[FourTuple]) -> None:
        """The socket table has been read: take the claimed connections on."""
        number = token[1]
        asked = self._asked.get(number)
        if asked is None:
            return
        peer = self._e.peers.get(asked.event.key)
        taken: dict[FourTuple, Connection] = {}
        for claim in asked.claims:
            socket = claim.tuple.mirrored
            status = Status.NO_SOCKET if socket not in present else None
            if socket in taken or peer is None:
                status = Status.CONFLICT
            elif status is None:
                # Once more: the claims before it, and time, may have changed things.
                status = self._judge(peer, claim, asked.event)
            if status is not None:
                self._refuse(asked.event, claim, status, asked.verdicts)
                continue
            if self._ours_wins(asked.event.key, claim):
                continue  # without a verdict: our own claim, which tells the peer our id, is under way
            connection = taken[socket] = self._take(now, asked.event.key, claim, socket)
            asked.verdicts.append(
                Verdict(connection.cid, connection.local_epoch, Status.OK, connection.socket, connection.receiving)
            )
        fresh = [c for c in taken.values() if not c.guarded]
        if fresh:
            self._e.protection.guard(fresh, number)
        elif any(c.state is State.NEGOTIATING for c in taken.values()):
            del self._asked[number]  # the kernel is at it already; then the first, or a later, question is answered
        else:
            self.reply(now, number)

    def _take(self, now: float, key: bytes, claim: Claim, socket: FourTuple) -> Connection:
        e = self._e
        connection = e.table.at(socket)
        if connection is not None and connection.movable and connection.cid == claim.cid:
            return connection
        offer = e.offers.make()
        if connection is None:
            e.protection.clear(socket)
            connection = Connection(claim.cid, socket, socket, now, initiator=False)
            e.table.add(connection)
        elif connection.movable:
            if connection.cid != claim.cid:
                e.emit(commands.DropConnections((connection.cid,)))
                e.table.rename(connection, claim.cid)
                connection.remote_epoch = connection.announced_epoch = claim.epoch
                e.emit(commands.SaveConnections((connection,)))
            connection.there, connection.sending, connection.receiving = claim.tuple, claim.offer, offer
            return connection
        elif connection.cid != claim.cid:
            e.table.rename(connection, claim.cid)
        connection.peer = key
        connection.there, connection.sending, connection.receiving = claim.tuple, claim.offer, offer
        connection.local_epoch = e.epoch
        connection.remote_epoch = max(connection.remote_epoch, claim.epoch)
        if connection.state is not State.NEGOTIATING:
            change(connection, State.NEGOTIATING, now)
        return connection

    def reply(self, now: float, number: int, failed: bool = False) -> None:
        """The kernel guards them, or refused."""
        asked = self._asked.pop(number, None)
        if asked is None:
            return
        verdicts = asked.verdicts
        if failed:
            verdicts = [Verdict(v.cid, 0, Status.FAILED) if v.status is Status.OK else v for v in verdicts]
        event = asked.event
        self._e.send(now, event.key, messages.Protected(asked.request, tuple(verdicts)), event.source, event.local)

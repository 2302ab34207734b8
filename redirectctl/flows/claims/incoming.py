"""What peers ask us to protect; outgoing.py draws the exchange and is the other side of it.

A peer may claim only what it is at the other end of.  The source of a datagram can be forged, a NAT gives many hosts
one address, and the addresses in a claim are those that the claimant sees: so nothing is believed of a claim until a
token has come on the connection itself, and another has gone back.
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from dataclasses import dataclass, field

from redirectctl.flows import commands, constants, timer_kinds
from redirectctl.flows.claims.outgoing import OwnClaims
from redirectctl.flows.connection import Connection, change
from redirectctl.flows.host import Host
from redirectctl.flows.kernel_state import KernelState
from redirectctl.flows.moves.outgoing import OwnMoves
from redirectctl.flows.offers import Offers
from redirectctl.flows.paths.choice import Choice
from redirectctl.flows.paths.suspension import Suspension
from redirectctl.flows.proofs import ANSWERER, CLAIMANT, Numbers, digest, nearby, proof_of_numbers
from redirectctl.flows.reasons import REASONS
from redirectctl.flows.state import State
from redirectctl.proto import events
from redirectctl.proto.bucket import Buckets
from redirectctl.proto.peer import Peer, PeerState
from redirectctl.proto.shares import Shared
from redirectctl.wire import message as messages
from redirectctl.wire.addr import FourTuple, IPAddress
from redirectctl.wire.message import Bind, BindNumbers, Claim, Protect, Status, Verdict

Which = tuple[bytes, bytes]  # peer, cid


@dataclass(slots=True)
class Claimed:
    """A claim of a peer that is not proven yet."""

    key: bytes
    claim: Claim
    source: IPAddress  # where it came from
    token: bytes | None = None  # the claimant's, when it has come
    places: dict[FourTuple, bytes | None] = field(default_factory=dict)  # where it came, and the token that goes back
    looked: int = 0  # places looked up
    answers: int = 0  # tokens sent back
    sent: dict[bytes, list[Numbers]] = field(default_factory=dict)  # with which numbers each of them has left
    numbered: int = 0  # proofs by numbers that were looked at
    refusal: Status | None = None  # found out since
    taking: bool = False  # proven: the kernel is being asked


Bound = tuple[Claimed, FourTuple, bytes]  # a claim, the socket that it means, what shows that we know


@dataclass(slots=True)
class Asked:
    """A BIND or BIND_NUMBERS that is being worked on."""

    event: events.Received
    request: int
    verdicts: list[Verdict] = field(default_factory=list)
    bound: list[Bound] = field(default_factory=list)
    busy: bool = False  # the kernel is at it already: it has come before, and that is what will be answered
    numbers: list[tuple[Claimed, bytes]] = field(default_factory=list)  # to be compared with those of our sockets


class PeersClaims:
    """Judges the claims of peers, has them proven, and takes the proven connections on."""

    def __init__(
        self,
        host: Host,
        offers: Offers,
        kernel: KernelState,
        suspension: Suspension,
        choice: Choice,
        moves: OwnMoves,
        own: OwnClaims,
    ) -> None:
        self._host = host
        self._offers = offers
        self._kernel = kernel
        self._suspension = suspension
        self._choice = choice
        self._moves = moves
        self._own = own
        self._claimed: Shared[bytes, Which, Claimed] = Shared()  # of each peer, as all that is shared here
        self._awaited: dict[bytes, Claimed] = {}  # by digest of the token
        self._answers: dict[bytes, Claimed] = {}  # by token that goes back
        self._done: Shared[bytes, Which, Verdict] = Shared()  # for those who ask again because our answer was lost
        self._looking: Shared[bytes, int, tuple[Claimed, FourTuple]] = Shared()
        self._asked: Shared[bytes, int, Asked] = Shared()
        self._number = 0
        self._comparing = Buckets(constants.MAX_HEARD)  # proofs by numbers that are looked at

    def received(self, now: float, event: events.Received) -> None:
        """Handle PROTECT, BIND or BIND_NUMBERS."""
        match event.message:
            case Protect():
                self._on_protect(now, event, event.message)
            case Bind():
                self._on_bind(now, event, event.message)
            case BindNumbers():
                self._on_numbers(now, event, event.message)

    # -- a claim ------------------------------------------------------------------------------------------------------

    def _on_protect(self, now: float, event: events.Received, message: Protect) -> None:
        """Judge what can be judged before the connection is known, and ask for a proof of the rest."""
        peer = self._host.peers[event.key]
        verdicts: list[Verdict] = []
        for claim in message.claims:
            status = self._judge(peer, claim)
            if status is not None:
                self._refuse(event, claim, status, verdicts)
            elif self._keep(now, event, claim):
                verdicts.append(Verdict(claim.cid, 0, Status.PROVE))
        self._host.send(now, event.key, messages.Protected(message.request, tuple(verdicts)), event.source, event.local)

    def _judge(self, peer: Peer, claim: Claim) -> Status | None:
        """Why a claim is refused, or None."""
        if peer.state is not PeerState.APPROVED:
            return Status.REJECTED if peer.state is PeerState.REJECTED else Status.PENDING
        known = self._host.table.get(claim.cid)
        if known is not None and known.peer not in (None, peer.key):
            return Status.CONFLICT  # an id names one connection
        if claim.integrity != self._host.policy.integrity:
            return Status.INTEGRITY
        return None

    def _full(self, peer: Peer) -> bool:
        """Whether there is no room for one more connection of this peer: protected ones do not make room again.

        So nobody has more than are left for all others, and some are left to those that a person has approved, or that
        this host has called.
        """
        table = self._host.table
        left = constants.MAX_CONNECTIONS - len(table)
        most = min(constants.MAX_PER_PEER, left)
        if left <= (0 if peer.chosen else constants.MAX_CONNECTIONS // constants.CHOSEN_PART):
            return True
        # Those that the kernel is being asked for count too: many are proven at once.
        return table.count(peer.key) >= most and most <= sum(
            c.movable or c.state is State.NEGOTIATING for c in table.of(peer.key)
        )

    def _keep(self, now: float, event: events.Received, claim: Claim) -> bool:
        """Wait for the claim's token.  False: too many are waiting; the peer may try again later."""
        which = event.key, claim.cid
        known = self._host.table.get(claim.cid)
        if known is not None and known.peer == event.key and claim.epoch <= known.remote_epoch:
            return True  # it comes late: this has been taken on
        before = self._claimed.get(which)
        if before is not None and (before.taking or claim.epoch <= before.claim.epoch):
            return True
        if claim.digest in self._awaited:
            self._refuse(event, claim, Status.CONFLICT, [])
            return False
        if before is not None:
            self._drop(which)
        claimed = Claimed(event.key, claim, event.source.host)
        gone = self._claimed.put(constants.MAX_CLAIMED, event.key, which, claimed)
        if gone is not None:
            self._host.notice(
                "connection.refused", peer=gone[1].key, reason="too-many-claims", source=str(event.source)
            )
            if gone[1] is claimed:
                return False
            self._clean_up(*gone)
        # It was killed before it heard that we have taken the connection on, or has lost it: nobody hears our tunnel.
        same = self._host.table.opposite(event.key, claim.tuple)
        self._choice.leave([c for c in same if c.movable and claim.epoch > c.remote_epoch])
        self._done.pop(which)
        self._awaited[claim.digest] = claimed
        self._host.listen.add(("claim", *which))
        self._host.timers.set(timer_kinds.ClaimExpired(*which), now + constants.CLAIM_TIME)
        return True

    def _refuse(self, event: events.Received, claim: Claim, status: Status, verdicts: list[Verdict]) -> None:
        verdicts.append(Verdict(claim.cid, 0, status))
        if status not in (Status.PENDING, Status.REJECTED):
            self._report(event.key, claim, status)

    def _report(self, key: bytes, claim: Claim, status: Status) -> None:
        if status is Status.INTEGRITY:
            reason = f"integrity-{'refused' if claim.integrity else 'required'}-here"
        else:
            reason = REASONS[status]
        self._host.notice(
            "connection.refused", peer=key, reason=reason, local=str(claim.tuple.remote), remote=str(claim.tuple.local)
        )

    def expired(self, now: float, key: bytes, cid: bytes) -> None:
        """The peer has not proven its claim within CLAIM_TIME: drop it."""
        claimed = self._claimed.get((key, cid))
        if claimed is None:
            return
        self._drop((key, cid))
        here = [self._host.table.at(place) for place in claimed.places]
        if claimed.taking or claimed.refusal is not None or any(c is not None and c.peer == key for c in here):
            return  # reported, or protected by our own claim meanwhile
        self._report(key, claimed.claim, Status.NOT_YOURS)

    def withdrawn(self, key: bytes, cids: tuple[bytes, ...]) -> None:
        """The peer no longer claims these: drop the claims."""
        for cid in cids:
            if (key, cid) in self._claimed:
                self._drop((key, cid))

    def forget(self, key: bytes) -> None:
        """Forget a peer, so that its claims take no room from others."""
        for which in self._claimed.keys(key):
            self._drop(which)
        for which in self._done.keys(key):
            self._done.pop(which)
        self._comparing.forget(key)

    def _drop(self, which: Which) -> None:
        claimed = self._claimed.pop(which)
        if claimed is not None:
            self._clean_up(which, claimed)

    def _clean_up(self, which: Which, claimed: Claimed) -> None:
        del self._awaited[claimed.claim.digest]
        for token in claimed.places.values():
            if token is not None:
                self._answers.pop(token, None)
        self._host.listen.discard(("claim", *which))
        self._host.timers.cancel(timer_kinds.ClaimExpired(*which))

    # -- its proof ----------------------------------------------------------------------------------------------------

    def token(self, now: float, arrived: FourTuple, token: bytes) -> bool:
        """A token has arrived: look for the socket that it arrived at.  False if it belongs to no claim."""
        claimed = self._awaited.get(digest(token))
        if claimed is None:
            return False
        claimed.token = token
        known = self._host.table.get(claimed.claim.cid)
        if known is not None and known.peer == claimed.key and known.guarded and known.wire == arrived:
            arrived = known.socket  # it was released after it had moved: the kernel goes on rewriting it
        if arrived in claimed.places:
            self._answer(claimed, arrived)
        elif claimed.looked < constants.MAX_PLACES:
            claimed.looked += 1
            self._look(claimed, arrived)
        return True

    def _answer(self, claimed: Claimed, place: FourTuple) -> None:
        token = claimed.places[place]
        if token is not None and claimed.answers < constants.MAX_ANSWERS:
            claimed.answers += 1
            self._answers[token] = claimed
            self._host.emit(commands.Prove((commands.Proof(place, token),)))

    def sent(self, socket: FourTuple, token: bytes, numbers: Numbers) -> None:
        """Note with which numbers a token goes back: the claimant has to report the same."""
        claimed = self._answers.get(token)
        if claimed is not None and claimed.places.get(socket) == token:
            claimed.sent.setdefault(token, []).append(numbers)

    def _look(self, claimed: Claimed, place: FourTuple) -> None:
        """Ask whether this host has such a socket."""
        self._number += 1
        self._looking.put(constants.MAX_CLAIMED, claimed.key, self._number, (claimed, place))
        if self._number in self._looking:
            self._host.emit(commands.CheckSockets(commands.PeersClaim(self._number), (place,)))

    def checked(self, now: float, number: int, present: frozenset[FourTuple] | None) -> None:
        """Answer to _look(): send a token back on the connection, if there is one and it may be claimed."""
        looked_for = self._looking.pop(number)
        if looked_for is None or present is None:
            return
        claimed, place = looked_for
        if place not in present or place in claimed.places or claimed.refusal is not None:
            return
        peer = self._host.peers.get(claimed.key)
        status = self._judge_at(peer, claimed.claim, place) if peer is not None else Status.REJECTED
        if status is Status.CONFLICT:  # not its connection: nothing is sent on it.  The token may have been replayed
            claimed.places[place] = None
            self._report(claimed.key, claimed.claim, status)
            return
        claimed.places[place] = self._host.rng(8)
        self._answer(claimed, place)

    def _judge_at(self, peer: Peer, claim: Claim, place: FourTuple) -> Status | None:
        """Why a claim is refused now that its socket is known, or None."""
        known, named = self._host.table.at(place), self._host.table.get(claim.cid)
        if named is not None and named is not known:
            return Status.CONFLICT
        if known is not None and not self._may_take(peer, known, claim):
            return Status.CONFLICT
        if self._host.policy.accept_ports and place.local.port not in self._host.policy.accept_ports:
            return Status.PORT
        if known is None and self._full(peer):
            return Status.LIMIT
        return self._judge(peer, claim)

    @staticmethod
    def _may_take(peer: Peer, known: Connection, claim: Claim) -> bool:
        if known.moved and (known.peer != peer.key or known.peer_tuple != claim.tuple):
            return (
                False  # its own it may take up again; it believes that nothing is rewritten until we announce ourselves
            )
        if known.state is State.NEGOTIATING:
            return known.peer in (None, peer.key)
        # What was taken on before, and was released since or lost by the claimant, needs a new claim: a repeated one
        # that comes late does not take it on again.
        return not (known.movable and known.peer != peer.key) and claim.epoch > known.remote_epoch

    def _on_bind(self, now: float, event: events.Received, message: Bind) -> None:
        asked = Asked(event, message.request)
        for cid, token, *numbers in message.tokens:
            claimed = self._open(now, asked, cid)
            if claimed is None:
                continue
            sent = [place for place, ours in claimed.places.items() if ours and hmac.compare_digest(ours, token)]
            if claimed.refusal is not None:
                asked.verdicts.append(Verdict(cid, 0, claimed.refusal))
            elif not sent or claimed.token is None:
                self._refuse(event, claimed.claim, Status.NOT_YOURS, asked.verdicts)
            elif tuple(numbers) not in claimed.sent.get(token, ()):
                # What the tunnel and the rewriting carry is not translated: after a move neither end would accept it.
                self._refuse(event, claimed.claim, Status.NUMBERS, asked.verdicts)
                claimed.refusal = Status.NUMBERS
            else:
                asked.bound.append((claimed, sent[0], claimed.token))
        if not asked.busy:
            self._complete(now, asked)

    def _open(self, now: float, asked: Asked, cid: bytes) -> Claimed | None:
        """The claim that a BIND is to prove.  None: it is answered already, or will be."""
        which = asked.event.key, cid
        claimed, done = self._claimed.get(which), self._done.get(which)
        if claimed is not None and not claimed.taking:
            self._host.timers.set(timer_kinds.ClaimExpired(*which), now + constants.CLAIM_TIME)
            return claimed
        if claimed is not None:
            asked.busy = True
        else:
            known = self._host.table.get(cid)
            here = done is not None and known is not None and known.peer == which[0] and known.movable
            asked.verdicts.append(done if done is not None and here else Verdict(cid, 0, Status.PROVE))
        return None

    def _on_numbers(self, now: float, event: events.Received, message: BindNumbers) -> None:
        rate, burst = constants.NUMBERED_RATE, constants.NUMBERED_BURST
        if not self._comparing.take(now, event.key, rate, burst, len(message.proofs)):  # it asks again
            self._host.notice("packet.refused", peer=event.key, reason="rate-limited", source=str(event.source))
            return
        asked = Asked(event, message.request)
        for cid, proof in message.proofs:
            claimed = self._open(now, asked, cid)
            if claimed is None:
                continue
            if claimed.refusal is not None:
                asked.verdicts.append(Verdict(cid, 0, claimed.refusal))
            elif claimed.numbered >= constants.MAX_NUMBERED:
                self._refuse(event, claimed.claim, Status.NOT_YOURS, asked.verdicts)
            else:
                claimed.numbered += 1
                asked.numbers.append((claimed, proof))
        if not asked.busy:
            self._compare(now, self._remember(asked))

    def _compare(self, now: float, number: int) -> None:
        """Ask for the numbers of all sockets that the next claim may mean; complete when there is no claim left."""
        asked = self._asked.get(number)
        if asked is None:
            return  # it has too many under way, and asks again
        if not asked.numbers:
            self._asked.pop(number)
            self._complete(now, asked)
            return
        claimed, _ = asked.numbers[0]
        known, source = self._host.table.get(claimed.claim.cid), claimed.source
        if known is not None and known.peer == claimed.key and known.guarded:  # as in token()
            source = known.socket.remote.host
        self._host.emit(commands.FindNumbers(commands.PeersClaim(number), claimed.claim.tuple.remote.port, source))

    def numbers(self, now: float, number: int, found: Mapping[FourTuple, Numbers]) -> None:
        """Answer to _compare(): the sequence number bases of those sockets.  The proof has to fit exactly one."""
        asked = self._asked.get(number)
        if asked is None:
            return
        claimed, proof = asked.numbers.pop(0)
        claim, places = claimed.claim, []
        for place, (ours, theirs) in found.items():
            for about in nearby((theirs, ours)):
                if hmac.compare_digest(proof_of_numbers(CLAIMANT, claim.digest, *about), proof):
                    places.append((place, proof_of_numbers(ANSWERER, claim.digest, *about)))
        if len(places) == 1:
            asked.bound.append((claimed, *places[0]))
        else:
            self._refuse(asked.event, claim, Status.NOT_YOURS if found else Status.NO_SOCKET, asked.verdicts)
            claimed.refusal = asked.verdicts[-1].status
        self._compare(now, number)

    # -- taking on ----------------------------------------------------------------------------------------------------

    def _remember(self, asked: Asked) -> int:
        self._number += 1
        self._asked.put(constants.MAX_REQUESTS, asked.event.key, self._number, asked)
        return self._number

    def _complete(self, now: float, asked: Asked) -> None:
        """Every claim of a BIND is judged: take on what is proven, and answer."""
        key = asked.event.key
        peer = self._host.peers.get(key)
        for claimed, _, _ in asked.bound:
            if claimed.taking:  # the same was asked before: that has been answered, or will be
                self._open(now, asked, claimed.claim.cid)
        if asked.busy:
            return
        taken: dict[FourTuple, Connection] = {}
        for claimed, place, proof in asked.bound:
            claim = claimed.claim
            if claimed.taking or self._claimed.get((key, claim.cid)) is not claimed or peer is None:
                continue
            status = Status.CONFLICT if place in taken else self._judge_at(peer, claim, place)
            if status is not None:
                self._refuse(asked.event, claim, status, asked.verdicts)
                claimed.refusal = status
                continue
            if self._ours_wins(key, claim, place):
                self._drop((key, claim.cid))
                continue  # without a verdict: our own claim, which tells the peer our id, is under way
            claimed.taking = True
            connection = taken[place] = self._take(now, key, claim, place)
            asked.verdicts.append(
                Verdict(claim.cid, connection.local_epoch, Status.OK, place, connection.receiving, proof)
            )
        number = self._remember(asked)
        # One that was let go after it had moved is guarded still.
        let_go = [c for c in taken.values() if c.state is State.NEGOTIATING and c.installed is not None]
        fresh = [*(c for c in taken.values() if not c.guarded), *let_go]
        if fresh:
            self._kernel.guard(fresh, number)
        elif any(c.state is State.NEGOTIATING for c in taken.values()):
            self._asked.pop(number)  # the kernel is at it already; then the first, or a later, question is answered
        else:
            self.reply(now, number)
            self._choice.protected(now, [c for c in taken.values() if c.movable and not c.tunnel])
            moved = [c for c in taken.values() if c.movable and c.moved]
            for connection in moved:
                connection.confirmed = None
            self._moves.reconsider(now, moved)

    def _ours_wins(self, key: bytes, claim: Claim, place: FourTuple) -> bool:
        """Whether our own claim of this connection wins: of two claims, both hosts keep the smaller id."""
        known = self._host.table.at(place)
        return known is not None and known.state is State.NEGOTIATING and known.peer == key and known.cid < claim.cid

    def _take(self, now: float, key: bytes, claim: Claim, socket: FourTuple) -> Connection:
        host = self._host
        connection = host.table.at(socket)
        if connection is None:
            self._suspension.clear(socket)
            connection = Connection(claim.cid, socket, socket, now, initiator=False)
            host.table.add(connection)
        elif connection.cid != claim.cid:
            self._own.end(now, connection.cid)
            host.emit(commands.DropConnections((connection.cid,)))  # it may be stored although it is not movable yet
            host.table.rename(connection, claim.cid)
        else:
            self._own.end(now, connection.cid)
        host.table.meet(connection, claim.tuple)
        connection.sending, connection.receiving = claim.offer, self._offers.make()
        connection.integrity, connection.agreed_in = claim.integrity, host.generation
        if connection.movable:  # the peer has lost it, and claims it anew
            connection.remote_epoch = connection.announced_epoch = claim.epoch
            host.emit(commands.SaveConnections((connection,)))
            self._kernel.carry((connection,))
            return connection
        host.table.assign(connection, key)
        connection.local_epoch = host.epoch
        connection.remote_epoch = max(connection.remote_epoch, claim.epoch)
        if connection.state is not State.NEGOTIATING:
            change(connection, State.NEGOTIATING, now)
        return connection

    def reply(self, now: float, number: int, failed: bool = False) -> None:
        """The kernel guards the connections of a BIND, or has refused (``failed``): answer the peer."""
        asked = self._asked.pop(number)
        if asked is None:
            return
        event, verdicts = asked.event, asked.verdicts
        if failed:
            verdicts = [Verdict(v.cid, 0, Status.FAILED) if v.status is Status.OK else v for v in verdicts]
        for verdict in verdicts:
            which = event.key, verdict.cid
            claimed = self._claimed.get(which)
            if claimed is not None and claimed.taking:
                self._drop(which)
            if verdict.status is Status.OK:
                self._done.pop(which)
                self._done.put(constants.MAX_CLAIMED, event.key, which, verdict)
        self._host.send(now, event.key, messages.Protected(asked.request, tuple(verdicts)), event.source, event.local)

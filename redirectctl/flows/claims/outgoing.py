"""What we ask peers to protect: claims, and the proof that the two hosts mean the same connection.

    claimant                                     the other host (incoming.py)
      PROTECT: digest of token c, offer     ──►    approved?  limits?  integrity?
                                            ◄──    PROTECTED: prove
      token c, on the connection itself     ══►    there is its socket tuple, as this host has it
      this is the claimant's connection     ◄══    token s, back along the connection
      BIND: token s, its segment's numbers  ──►    the claimant receives what goes to its end
                                            ◄──    PROTECTED: token c, this host's socket tuple, offer

Whoever can only send with another's address never sees token s, and whoever cannot read the connection does not know
token c, of which the session carries only a digest: so a NAT, or a neighbour, may be between.  A middlebox that changes
sequence numbers is found out by those of the segment that carried token s.  Tokens travel as a TCP
option of an acknowledgement.  Where routers strip options both ends show instead that they know the connection's
sequence numbers, again without telling them.
"""

from __future__ import annotations

import hmac
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from redirectctl.flows import commands, constants, facts, timer_kinds
from redirectctl.flows.agreement import Agreement
from redirectctl.flows.connection import Connection, change
from redirectctl.flows.host import Host
from redirectctl.flows.kernel_state import KernelState
from redirectctl.flows.offers import Offers
from redirectctl.flows.proofs import ANSWERER, CLAIMANT, Numbers, digest, proof_of_numbers
from redirectctl.flows.reasons import REASONS
from redirectctl.flows.requests import Requests
from redirectctl.flows.state import State
from redirectctl.proto.peer import Peer
from redirectctl.wire import message as messages
from redirectctl.wire.addr import FourTuple, IPAddress, SockAddr
from redirectctl.wire.message import Bind, BindNumbers, Claim, End, Protect, Protected, Status, TokenArrival, Verdict
from redirectctl.wire.tunnel import Offer


@dataclass(slots=True)
class Asking:
    """A claim of ours, until the peer has taken it on or refused it."""

    key: bytes
    cid: bytes
    token: bytes
    offer: Offer  # how we want to see its tunnel datagrams, once the peer has it
    claims: int  # how often the connection has been claimed in a row
    tries: int = 0  # tokens sent
    proving: bool = False
    asked: bool = False  # a BIND or BIND_NUMBERS is under way
    heard: set[bytes] = field(default_factory=set)  # tokens that came
    numbered: bool = False
    numbers: Numbers | None = None


class OwnClaims:
    """Asks peers to protect connections, and proves that they are this host's."""

    def __init__(
        self, host: Host, requests: Requests, offers: Offers, kernel: KernelState, agreement: Agreement
    ) -> None:
        self._host = host
        self._requests = requests
        self._offers = offers
        self._kernel = kernel
        self._agreement = agreement
        self._asking: dict[bytes, Asking] = {}  # by cid
        self._active: Counter[bytes] = Counter()  # by peer
        self._queued: dict[bytes, deque[tuple[bytes, int]]] = defaultdict(deque)  # by peer: cid, times claimed
        self._gathered: dict[bytes, list[TokenArrival]] = defaultdict(list)  # by peer: for the next BIND

    def claim(self, now: float, peer: Peer, connections: Iterable[Connection]) -> None:
        """Claim these connections with a peer, at most CLAIM_WINDOW at a time."""
        self._queued[peer.key].extend((c.cid, 1) for c in connections)
        self._next(now, peer.key)

    def _next(self, now: float, key: bytes) -> None:
        queue, peer = self._queued[key], self._host.peers.get(key)
        free = constants.CLAIM_WINDOW - self._active[key]
        if peer is None or not queue:
            del self._queued[key]
            return
        if free < min(len(queue), messages.MAX_PROTECT) and self._active[key]:
            return  # when some more have ended: whole datagrams
        by_path: dict[tuple[IPAddress, IPAddress], list[tuple[Connection, int]]] = defaultdict(list)
        epoch = self._host.next_epoch()  # later than any claim before, which may still be under way
        while queue and free > 0:
            cid, times = queue.popleft()
            c = self._host.table.get(cid)
            if c is None or c.state is not State.NEGOTIATING or c.peer != key or cid in self._asking:
                continue
            c.local_epoch = epoch
            by_path[c.local_now, c.remote_now].append((c, times))
            free -= 1
        if not queue:
            del self._queued[key]
        port = peer.remote.port if peer.remote is not None else self._host.policy.control_port
        for (local, remote), on_path in by_path.items():
            for start in range(0, len(on_path), messages.MAX_PROTECT):
                claims = tuple(self._begin(now, key, *one) for one in on_path[start : start + messages.MAX_PROTECT])
                path = SockAddr(remote, port), local
                self._ask(now, key, [c.cid for c in claims], lambda n, claims=claims: Protect(n, claims), path)  # type: ignore[misc]

    def _begin(self, now: float, key: bytes, c: Connection, times: int) -> Claim:
        asking = self._asking[c.cid] = Asking(key, c.cid, self._host.rng(8), self._offers.make(), times)
        self._active[key] += 1
        self._host.timers.set(timer_kinds.RetryClaim(c.cid), now + constants.CLAIM_TIME)
        c.integrity = self._host.policy.integrity
        return Claim(c.cid, c.local_epoch, c.socket, digest(asking.token), asking.offer, c.integrity)

    def _ask(
        self,
        now: float,
        key: bytes,
        cids: list[bytes],
        build: Callable[[int], messages.Message],
        path: tuple[SockAddr | None, IPAddress | None] = (None, None),
    ) -> None:
        self._requests.ask(
            now,
            key,
            build,
            lambda at, reply: self._answered(at, key, cids, reply),
            lambda at: self._unanswered(at, cids),
            path,
        )

    def end(self, now: float, cid: bytes) -> None:
        """Stop asking for this claim."""
        asking = self._asking.pop(cid, None)
        if asking is None:
            return
        self._host.timers.cancel(timer_kinds.RetryClaim(cid))
        self._host.listen.discard(("bind", cid))
        self._active[asking.key] -= 1
        if not self._active[asking.key]:
            del self._active[asking.key]
        if asking.key in self._queued:
            self._next(now, asking.key)

    # -- what the peer says -------------------------------------------------------------------------------------------

    def _answered(self, now: float, key: bytes, cids: list[bytes], reply: messages.Message) -> None:
        if not isinstance(reply, Protected):
            return
        for cid in set(cids) - {v.cid for v in reply.verdicts}:
            # Passed over, or the peer's id for it has won, and its own claim, which tells us that id, is under way.
            self.end(now, cid)
            self._host.timers.set(timer_kinds.Undecided(cid), now + constants.UNDECIDED_TIME)
        good: list[Connection] = []
        prove: list[Asking] = []
        for verdict in reply.verdicts:
            c, asking = self._host.table.get(verdict.cid), self._asking.get(verdict.cid)
            if c is None or asking is None or asking.key != key or c.peer != key or c.state is not State.NEGOTIATING:
                continue
            if verdict.status is Status.OK:
                if self._accept(now, c, asking, verdict):
                    good.append(c)
            elif verdict.status is Status.PROVE and not asking.proving:
                prove.append(asking)
            elif verdict.status is Status.PROVE:  # it has restarted since
                self._again(now, c, asking)
            elif verdict.status is Status.NOT_YOURS and asking.asked and not asking.numbered:
                asking.asked = False  # a forged token came: the true one may still
                self._try(now, [asking])
            else:
                self._refused(now, c, verdict.status)
        self._try(now, prove)
        self._kernel.guard(good)

    def _accept(self, now: float, c: Connection, asking: Asking, verdict: Verdict) -> bool:
        """The peer takes the connection on.  True if it proves that it has the other end."""
        proofs = [asking.token]
        if asking.numbers is not None:
            proofs.append(proof_of_numbers(ANSWERER, digest(asking.token), *asking.numbers))
        self.end(now, c.cid)
        if verdict.there is None or not any(hmac.compare_digest(proof, verdict.proof) for proof in proofs):
            self._host.refuse(now, c, "not-proven")
            self._agreement.tell_end(now, asking.key, End.RELEASED, (c.cid,))
            return False
        c.remote_epoch = max(c.remote_epoch, verdict.epoch)
        self._host.table.meet(c, verdict.there)
        c.sending, c.receiving, c.agreed_in = verdict.offer, asking.offer, self._host.generation
        return True

    def _refused(self, now: float, c: Connection, status: Status) -> None:
        self.end(now, c.cid)
        if status is Status.PENDING:
            change(c, State.PENDING, now, REASONS[status])
            self._host.timers.set(timer_kinds.ClaimAgain(c.cid), now + constants.PENDING_POLL)
        elif status is Status.INTEGRITY:
            self._host.refuse(now, c, f"integrity-{'refused' if c.integrity else 'required'}-there")
        else:
            self._host.refuse(now, c, REASONS[status])
            if status is Status.NOT_YOURS:  # perhaps tokens were lost, or a host had no time for them
                pause = constants.UNPROVEN_TIME * 2**c.unproven
                c.unproven += 1
                self._host.timers.set(timer_kinds.ClaimAgain(c.cid), now + min(pause, constants.UNPROVEN_TIME_MAX))

    def _again(self, now: float, c: Connection, asking: Asking) -> None:
        self.end(now, c.cid)
        if asking.claims >= constants.CLAIM_TRIES:
            self._host.report(now, facts.ClaimFailed([c.cid]))
        else:
            self._queued[asking.key].append((c.cid, asking.claims + 1))
            self._next(now, asking.key)

    def _unanswered(self, now: float, cids: list[bytes]) -> None:
        for cid in cids:
            self.end(now, cid)
        self._host.report(now, facts.ClaimFailed(cids))

    # -- proving ------------------------------------------------------------------------------------------------------

    def _try(self, now: float, tried: Iterable[Asking]) -> None:
        """Send one more token for each, or prove it by sequence numbers when all tokens were in vain."""
        proofs: list[commands.Proof] = []
        for asking in tried:
            c = self._host.table.get(asking.cid)
            if c is None or c.state is not State.NEGOTIATING:
                self.end(now, asking.cid)
            elif asking.tries < len(constants.PROVE_RETRIES):
                asking.proving = True
                self._host.listen.add(("bind", c.cid))
                proofs.append(commands.Proof(c.socket, asking.token))
                self._host.timers.set(timer_kinds.RetryClaim(c.cid), now + constants.PROVE_RETRIES[asking.tries])
                asking.tries += 1
            elif not asking.numbered:
                asking.numbered = True
                self._host.listen.discard(("bind", c.cid))
                self._host.timers.set(timer_kinds.RetryClaim(c.cid), now + constants.CLAIM_TIME)
                self._host.emit(commands.AskNumbers(commands.OwnClaim(c.cid), (c.socket,)))
            else:
                self._refused(now, c, Status.NOT_YOURS)
        if proofs:
            self._host.emit(commands.Prove(tuple(proofs)))

    def retry(self, now: float, cid: bytes) -> None:
        """A try has brought no answer: try again, or give the claim up."""
        asking = self._asking.get(cid)
        if asking is not None and asking.proving:
            self._try(now, [asking])
        elif asking is not None:
            self._unanswered(now, [cid])

    def bind(self, now: float, key: bytes) -> None:
        """Send one BIND with all tokens that came within GATHER_TIME."""
        tokens = tuple(self._gathered.pop(key, ()))
        for start in range(0, len(tokens), messages.MAX_PROTECT):
            part = tokens[start : start + messages.MAX_PROTECT]
            self._ask(now, key, [one.cid for one in part], lambda n, part=part: Bind(n, part))  # type: ignore[misc]

    def token(self, now: float, arrived: FourTuple, token: bytes, numbers: Numbers) -> bool:
        """Take a token that answers a claim of ours.  False if it came on no connection that we claim."""
        c = self._host.table.at(arrived)
        asking = self._asking.get(c.cid) if c is not None else self._asking_on(arrived)
        if asking is None or not asking.proving:
            return False
        if asking.asked or asking.numbered or token in asking.heard or len(asking.heard) >= constants.MAX_PLACES:
            return True
        asking.heard.add(token)
        asking.asked = True
        self._host.timers.set(timer_kinds.RetryClaim(asking.cid), now + constants.CLAIM_TIME)
        if not self._gathered[asking.key]:
            self._host.timers.set(timer_kinds.SendBind(asking.key), now + constants.GATHER_TIME)
        self._gathered[asking.key].append(TokenArrival(asking.cid, token, *numbers))
        return True

    def _asking_on(self, wire: FourTuple) -> Asking | None:
        """Our claim of a connection that was released after it had moved: the kernel goes on rewriting it."""
        claimed = self._host.table.select(self._asking)
        return next((self._asking[c.cid] for c in claimed if c.guarded and c.wire == wire), None)

    def numbers(self, now: float, cid: bytes, found: Mapping[FourTuple, Numbers]) -> None:
        """Answer to AskNumbers: prove the claim by these numbers; without them it is refused."""
        c, asking = self._host.table.get(cid), self._asking.get(cid)
        if c is None or asking is None:
            return
        asking.numbers = found.get(c.socket)
        if asking.numbers is None:
            self._refused(now, c, Status.NOT_YOURS)
            return
        proof = proof_of_numbers(CLAIMANT, digest(asking.token), *asking.numbers)
        self._ask(now, asking.key, [cid], lambda n: BindNumbers(n, ((cid, proof),)))

"""Which of our addresses is best for reaching a peer: an address is good while it carries, not while it exists.

    rank     of several pairs that answer an announcement the lowest is taken (outgoing.py)
    hint     the kernel now prefers another address for the way to the peer: try it before the present one fails
    failure  an address that should have answered and did not; it comes last, for longer each time

An address that failed and that the kernel would choose is asked again when its time is over.  When it has answered
PROOFS probes, one after the other, the connections go back to it.

An address from which the peer has led connections away, by an announcement of its own, is asked as well: it may have
noticed before us that nothing comes from there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from redirectctl.flows import constants, facts, timer_kinds
from redirectctl.flows.connection import Connection
from redirectctl.flows.devices import comes_last
from redirectctl.flows.host import Host
from redirectctl.flows.moves.reach import Reach
from redirectctl.flows.network import Network
from redirectctl.proto import events
from redirectctl.wire.addr import IPAddress, SockAddr
from redirectctl.wire.message import PathProbe, PathProbed

_PRESENT, _OTHER, _OTHER_FAMILY, _LAST, _FAILED = 0, 1, 4, 8, 16  # ranks, the last two besides one of the others


@dataclass(slots=True)
class Failure:
    """An address of ours that did not carry to one peer."""

    times: int  # in a row
    at: float  # the latest
    until: float  # it comes last
    nonce: bytes | None = None  # of the probe under way
    proofs: int = 0  # probes that were answered in a row
    over: bool = False  # it has carried since


@dataclass(slots=True)
class Suspicion:
    """An address of ours that may not have carried to one peer."""

    to: SockAddr  # where the peer is
    nonces: set[bytes] = field(default_factory=set)  # of probes


class Addresses:
    """Knows, for each peer, which of this host's addresses carry and which the kernel prefers."""

    def __init__(self, host: Host, reach: Reach) -> None:
        self._host = host
        self._reach = reach
        self._preferred: dict[
            IPAddress, IPAddress
        ] = {}  # by the peer's address: ours that the kernel has come to prefer
        self._failures: dict[tuple[bytes, IPAddress], Failure] = {}
        self._suspicions: dict[tuple[bytes, IPAddress], Suspicion] = {}
        self._hinted: dict[bytes, tuple[float, float]] = {}  # peers, when a hint was last followed, and the next pause

    def network_changed(self, before: Network, after: Network) -> None:
        """Note where the kernel now prefers another address, and forget what was known of addresses that are gone."""
        for remote, sources in after.sources.items():
            former = before.sources.get(remote, ())
            if sources and former and sources[0] != former[0]:
                self._preferred[remote] = sources[0]
        for remote in [r for r, a in self._preferred.items() if a not in after.usable or r not in after.sources]:
            del self._preferred[remote]
        for which in [w for w in (*self._failures, *self._suspicions) if w[1] not in after.usable]:
            self._forget(which)  # when it is back it may be another network

    def hinted(self, now: float, connection: Connection, sources: tuple[IPAddress, ...]) -> bool:
        """Whether there may be a better address for this connection; a move then finds out."""
        key, local = connection.peer, connection.local_now
        if key is None or self._wanted(now, connection, sources) in (None, local):
            return False
        last, pause = self._hinted.get(key, (float("-inf"), constants.HINT_PAUSE))
        if last == now:
            return True  # of another connection with this peer
        if now - last < pause:
            self._host.timers.set(timer_kinds.FollowHint(key), last + pause)
            return False
        calm = now - last > constants.FAILURE_MEMORY
        self._hinted[key] = now, constants.HINT_PAUSE if calm else min(2 * pause, constants.HINT_PAUSE_MAX)
        return True

    def _wanted(self, now: float, connection: Connection, sources: tuple[IPAddress, ...]) -> IPAddress | None:
        """The address that this connection should move to; None: none."""
        key, local, version = connection.peer or b"", connection.local_now, connection.socket.version
        good = [a for a in sources if not self._failed(now, key, a) and not self._last(a)]
        own = [a for a in good if a.version == version]
        if own and (local.version != version or self._last(local)):
            return own[0]  # it had to go by the other address family, or by what comes last, and need not any more
        if good and self._failed(now, key, local):
            return (own or good)[0]  # others with this peer have found that out
        preferred = self._preferred.get(connection.remote_now)
        return preferred if preferred in good else None

    def ranks(
        self, now: float, key: bytes, sources: tuple[IPAddress, ...], local: IPAddress, version: int
    ) -> Mapping[IPAddress, int]:
        """Our addresses for the connections of one peer that are at ``local``, best first, with their ranks."""
        there = {c.remote_now for c in self._host.table.of(key) if c.movable and c.local_now == local}
        preferred = {self._preferred.get(remote) for remote in there} - {None, local}
        ranks: dict[IPAddress, int] = {}
        for address in sources:
            rank = _OTHER if address.version == version else _OTHER_FAMILY
            if address == local:
                rank = _PRESENT if local.version == version else _OTHER
            elif local in sources:
                wanted = address.version == version and (local.version != version or address in preferred)
                rank = -1 if wanted else rank + 1
            rank += _LAST if self._last(address) else 0
            ranks[address] = rank + (_FAILED if self._failed(now, key, address) else 0)
        return dict(sorted(ranks.items(), key=lambda item: item[1]))

    def _failed(self, now: float, key: bytes, address: IPAddress) -> bool:
        failure = self._failures.get((key, address))
        return failure is not None and now < failure.until

    def failed(self, key: bytes) -> dict[IPAddress, Failure]:
        """Our addresses that did not carry to a peer, and have not proven since that they do."""
        return {a: failure for (of, a), failure in self._failures.items() if of == key and not failure.over}

    def _last(self, address: IPAddress) -> bool:
        return comes_last(self._host.policy, self._host.network, address)

    def chosen(self, now: float, key: bytes, local: IPAddress, ranks: Mapping[IPAddress, int]) -> None:
        """A pair with this address of ours was taken: the better addresses, which have not answered, have failed."""
        self._suspicions.pop((key, local), None)
        if (known := self._failures.get((key, local))) is not None:
            known.over = True
        for address, rank in ranks.items():
            if rank < ranks.get(local, 0) and address in self._host.network.usable:
                self._fail(now, key, address)

    def _fail(self, now: float, key: bytes, address: IPAddress) -> None:
        known = self._failures.get((key, address))
        recent = known is not None and now - known.at < constants.FAILURE_MEMORY
        times = known.times + 1 if known is not None and recent else 1
        pause = min(constants.FAILURE_PAUSE * 2 ** (times - 1), constants.FAILURE_PAUSE_MAX)
        while len(self._failures) >= constants.MAX_FAILURES:
            self._forget(next(iter(self._failures)))
        self._failures[key, address] = Failure(times, now, now + pause)
        self._host.timers.set(timer_kinds.ProbeAddress(key, address), now + pause)

    def _forget(self, which: tuple[bytes, IPAddress]) -> None:
        self._failures.pop(which, None)
        self._suspicions.pop(which, None)
        self._host.timers.cancel(timer_kinds.ProbeAddress(*which))
        self._host.timers.cancel(timer_kinds.ProbeSuspect(*which))

    def forget(self, key: bytes) -> None:
        """Forget a peer."""
        self._hinted.pop(key, None)
        for which in [w for w in (*self._failures, *self._suspicions) if w[0] == key]:
            self._forget(which)

    # -- asking again -------------------------------------------------------------------------------------------------

    def follow_hint(self, now: float, key: bytes) -> None:
        """The pause since the last hint is over: look for a better address again."""
        self._host.report(now, facts.ReviewPaths(self._host.table.movable(key)))

    def probe(self, now: float, key: bytes, address: IPAddress) -> None:
        """Probe a failed address, if connections would use it."""
        failure = self._failures.get((key, address))
        if failure is None:
            return
        failure.until = now  # whatever comes of it: in a move it is as good as others again, from its end on
        leavers = self._leavers(now, key, address)
        if not leavers:
            return
        if failure.nonce is not None:  # the probe before was not answered
            self._fail(now, key, address)
            return
        to = self._place(key, address, leavers)
        failure.nonce = self._host.rng(8)
        failure.until = now + constants.PROBE_TIME
        self._host.timers.set(timer_kinds.ProbeAddress(key, address), failure.until)
        if to is None or not self._host.send(now, key, PathProbe(failure.nonce), to, address):
            self._fail(now, key, address)

    def _leavers(self, now: float, key: bytes, address: IPAddress) -> list[Connection]:
        """The connections that should be at this address, and are not, because it has failed."""
        movable = self._host.table.movable(key)
        return [c for c in movable if c.local_now != address and self._wanted(now, c, (address,)) == address]

    def _place(self, key: bytes, address: IPAddress, connections: list[Connection]) -> SockAddr | None:
        """An address and port of the peer that this address of ours may reach."""
        targets = (to for c in connections for to in self._reach.targets(c))
        return next((to for to in targets if to.host.version == address.version), None)

    def received(self, now: float, event: events.Received) -> None:
        """Answer a peer's PathProbe; take a PathProbed as the answer to a probe of ours."""
        match event.message:
            case PathProbe(nonce):
                self._host.send(now, event.key, PathProbed(nonce), event.source, event.local)
            case PathProbed(nonce):
                for (key, address), failure in list(self._failures.items()):
                    if key == event.key and failure.nonce == nonce:
                        self._answered(now, key, address, failure)
                for (key, address), suspicion in list(self._suspicions.items()):
                    if key == event.key and nonce in suspicion.nonces:
                        del self._suspicions[key, address]
                        self._host.timers.cancel(timer_kinds.ProbeSuspect(key, address))

    def _answered(self, now: float, key: bytes, address: IPAddress, failure: Failure) -> None:
        failure.nonce, failure.proofs = None, failure.proofs + 1
        if failure.proofs < constants.PROOFS:
            failure.until = now + constants.PROBE_TIME
            self._host.timers.set(timer_kinds.ProbeAddress(key, address), failure.until)
            return
        failure.until, failure.proofs, failure.over = now, 0, True
        self._host.timers.cancel(timer_kinds.ProbeAddress(key, address))
        self._host.report(now, facts.ReviewPaths(self._leavers(now, key, address)))

    # -- what the peer has noticed ------------------------------------------------------------------------------------

    def left(self, now: float, key: bytes, address: IPAddress, to: SockAddr) -> None:
        """The peer, which is at ``to``, has led connections away from this address of ours.

        It may have noticed before us that it carries no more.
        """
        asked = (key, address) in self._suspicions or self._failed(now, key, address)
        if asked or address not in self._host.network.usable or address.version != to.host.version:
            return
        while len(self._suspicions) >= constants.MAX_FAILURES:
            del self._suspicions[next(iter(self._suspicions))]
        self._suspicions[key, address] = Suspicion(to)
        self.probe_suspect(now, key, address)

    def probe_suspect(self, now: float, key: bytes, address: IPAddress) -> None:
        """Probe an address that the peer has left.  After PROOFS probes without an answer it has failed."""
        suspicion = self._suspicions.get((key, address))
        if suspicion is None:
            return
        if len(suspicion.nonces) >= constants.PROOFS:
            del self._suspicions[key, address]
            self._fail(now, key, address)
            self._host.report(now, facts.ReviewPaths(self._host.table.movable(key)))
            return
        nonce = self._host.rng(8)
        suspicion.nonces.add(nonce)
        self._host.send(now, key, PathProbe(nonce), suspicion.to, address)
        self._host.timers.set(timer_kinds.ProbeSuspect(key, address), now + constants.PROBE_TIME)

"""What is being announced: address changes of ours, and those of peers.  Data only; moves/ is what is done with it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from redirectctl.flows import timer_kinds
from redirectctl.flows.connection import Connection, Pair
from redirectctl.flows.host import Host
from redirectctl.wire.addr import IPAddress, SockAddr
from redirectctl.wire.message import Moved


@dataclass(slots=True)
class Move:
    """A move of this host, while one peer has not confirmed it."""

    epoch: int
    key: bytes
    cids: tuple[bytes, ...]
    moved: Moved
    candidates: tuple[IPAddress, ...]  # our addresses, best first
    ranks: Mapping[IPAddress, int]  # how good they would be: 0 is best
    started: float
    targets: tuple[SockAddr, ...]  # where the peer may be, best first
    origin: dict[bytes, IPAddress]  # where each connection was
    stalled: bool = False  # plain packets do not get through: the tunnel must
    direct: bool = False  # an attempt to do without a relay, which may come to nothing
    tries: int = 0
    sent_at: float = 0.0
    everywhere_at: float = float("-inf")  # when it is to be sent everywhere; meanwhile, to where the peer was last
    beat: int = 0  # how often it was sent since
    turn: int = 0  # which of many pairs is next
    nonces: dict[bytes, Pair] = field(default_factory=dict)  # of what was sent, oldest first
    offers: dict[Pair, bytes] = field(default_factory=dict)  # pairs that have answered, and the data to return
    refused: set[Pair] = field(default_factory=set)  # pairs that the connections must not use, as the peer has answered
    chosen: Pair | None = None
    chosen_at: float = 0.0
    rewriting: Pair | None = None  # what the kernel has been asked for
    installed: bool = False
    challenge: bytes | None = None  # the data to be returned when the kernel rewrites

    def rank(self, pair: Pair) -> int:
        """The rank of a pair: 0 is best."""
        return self.ranks.get(pair.local, 0)


@dataclass(slots=True)
class Way:
    """A way on which a peer's announcement came.  The challenge goes back on the same way."""

    source: SockAddr
    local: IPAddress
    new: IPAddress  # what the peer says it is; the source's address, if there is no NAT
    nonce: bytes  # of the latest announcement that came this way
    data: bytes  # of our challenge


@dataclass(slots=True)
class Validation:
    """A peer's announcement, while none of its ways has answered our challenge."""

    epoch: int
    key: bytes
    cids: tuple[bytes, ...]
    stalled: bool = False  # plain packets do not get through
    began: float = 0.0
    tries: int = 0
    ways: dict[tuple[SockAddr, IPAddress], Way] = field(default_factory=dict)
    chosen: Way | None = None
    applying: list[Connection] = field(default_factory=list)
    before: dict[bytes, tuple[int, IPAddress]] = field(default_factory=dict)  # epoch and address of those, until then
    left: set[IPAddress] = field(default_factory=set)  # addresses of ours at which they were


class Announcements:
    """The moves of this host that peers have not confirmed, by epoch, and peers' announcements, by peer and epoch."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._moves: dict[int, Move] = {}
        self._moves_of: dict[bytes, dict[int, Move]] = {}
        self._validations: dict[bytes, dict[int, Validation]] = {}
        self._met: dict[bytes, float] = {}  # peers, and when one of the two has last applied what the other announced

    # -- ours ---------------------------------------------------------------------------------------------------------

    def move(self, epoch: int) -> Move | None:
        """Our move with this epoch."""
        return self._moves.get(epoch)

    def moves(self) -> list[Move]:
        """Our moves, to all peers."""
        return list(self._moves.values())

    def moves_of(self, key: bytes) -> list[Move]:
        """Our moves that are announced to one peer."""
        return list(self._moves_of.get(key, {}).values())

    def announcing(self, key: bytes) -> bool:
        """Whether this host announces something to this peer."""
        return key in self._moves_of

    def began(self, key: bytes) -> float:
        """When the latest of our moves to this peer began; -inf if there is none."""
        return max((move.started for move in self.moves_of(key)), default=float("-inf"))

    def keep(self, move: Move) -> None:
        """Keep a new move of ours."""
        self._moves[move.epoch] = self._moves_of.setdefault(move.key, {})[move.epoch] = move

    def drop(self, move: Move) -> None:
        """A move of ours is confirmed, or has come to nothing: remove it and its timers."""
        del self._moves[move.epoch], self._moves_of[move.key][move.epoch]
        if not self._moves_of[move.key]:
            del self._moves_of[move.key]
        self._host.timers.cancel(timer_kinds.RepeatAnnouncement(move.epoch))
        self._host.timers.cancel(timer_kinds.ChoosePair(move.epoch))

    def carry_plainly(self, key: bytes, cids: set[bytes]) -> None:
        """Plain packets of these connections get through where they are: their moves need no tunnel."""
        for move in self.moves_of(key):
            if cids.issuperset(move.cids):
                move.stalled = False

    # -- those of peers -----------------------------------------------------------------------------------------------

    def validation(self, key: bytes, epoch: int) -> Validation | None:
        """This peer's announcement with this epoch."""
        return self._validations.get(key, {}).get(epoch)

    def validations_of(self, key: bytes) -> list[Validation]:
        """All announcements of one peer."""
        return list(self._validations.get(key, {}).values())

    def begin(self, validation: Validation) -> None:
        """Keep a new announcement of a peer."""
        self._validations.setdefault(validation.key, {})[validation.epoch] = validation

    def end(self, validation: Validation) -> None:
        """A peer's announcement is applied, or has come to nothing: remove it and its timer."""
        of_peer = self._validations.get(validation.key, {})
        of_peer.pop(validation.epoch, None)
        if not of_peer:
            self._validations.pop(validation.key, None)
        self._host.timers.cancel(timer_kinds.RepeatChallenge(validation.key, validation.epoch))

    def withdraw(self, key: bytes, connections: list[Connection]) -> None:
        """This host announces these itself, and decides: remove the peer's announcements of them."""
        concerned = {c.cid for c in connections}
        for validation in self.validations_of(key):
            if not validation.applying and not concerned.isdisjoint(validation.cids):
                self.end(validation)

    def validates(self, key: bytes, connections: Iterable[Connection]) -> bool:
        """Whether the peer has announced all of these, and this host is challenging it."""
        announced = {cid for validation in self.validations_of(key) for cid in validation.cids}
        return announced.issuperset(c.cid for c in connections)

    def applying(self, key: bytes, cids: Iterable[bytes]) -> bool:
        """Whether the kernel is at work on a peer's announcement of any of these."""
        concerned = set(cids)
        return any(v.applying and not concerned.isdisjoint(v.cids) for v in self.validations_of(key))

    # -- both ---------------------------------------------------------------------------------------------------------

    def met(self, now: float, key: bytes) -> None:
        """One of the two hosts has applied what the other announced."""
        self._met[key] = now

    def met_since(self, key: bytes, since: float) -> bool:
        """Whether one of the two hosts has applied what the other announced, since then."""
        return self._met.get(key, float("-inf")) >= since

    def forget(self, key: bytes) -> None:
        """Forget a peer."""
        self._met.pop(key, None)


def most(places: Iterable[IPAddress]) -> str | None:
    """Where most connections of a move were before it."""
    return str(max(counted, key=counted.__getitem__)) if (counted := Counter(places)) else None

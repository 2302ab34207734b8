"""Address changes: ours, and those that peers announce.

    moved host                                   stationary host
    new address usable
      ACM (epoch, nonce, connections) ─────────►  authentic? newer than all before for these connections?
                                            ◄───  PATH_CHALLENGE (that nonce, data) back the same way
      kernel rewrites (one transaction)
      PATH_RESPONSE (data) ────────────────────►  it has received what went that way: kernel rewrites
                                            ◄───  ACM_ACK (nonce)
      both sides undo the back-off of their sockets

The ACM goes from every address of ours to every place where the peer may be: each pair of them is tried as a pair
(RFC 8445), with a nonce of its own. Whoever returns a nonce has received what went to that place. What follows goes
there, not to where the answer seems to come from. The best pair that answers within PATIENCE is taken, or the first
one if none is better than another. What should have answered and did not is remembered (better.py). The ACM is
repeated until it is acknowledged. As long as the peer does not send to where we are, or that is not known (after a
restart), there is something to announce.

Each connection carries the newest epoch applied to it, so an ACM that is late or repeated changes nothing.  Until the
challenge is answered bulk goes to the last validated address, and stays there if it never is.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from redirectctl.flows import commands, constants
from redirectctl.flows.connection import Connection, Flow
from redirectctl.flows.devices import may_use
from redirectctl.flows.holding import LOST_HERE
from redirectctl.flows.state import State
from redirectctl.proto import events
from redirectctl.proto.peer import Peer
from redirectctl.wire import message as messages
from redirectctl.wire.addr import FourTuple, IPAddress, SockAddr
from redirectctl.wire.message import Acm, AcmAck, AcmStatus, Moved, PathChallenge, PathResponse

if TYPE_CHECKING:
    from redirectctl.flows.engine import Engine, Network


Alike = tuple[object, ...]  # what connections have in common that can go the same ways
Change = tuple[Connection, FourTuple, bool]  # with its new wire tuple, and whether it goes into the tunnel


class Pair(NamedTuple):
    """A way between the two hosts' control ports."""

    local: IPAddress
    remote: SockAddr


@dataclass(slots=True)
class Move:
    """An address change of ours, until the peer has confirmed it."""

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
        """How good a pair would be."""
        return self.ranks.get(pair.local, 0)


class Mobility:
    """Moves of this host, and what is common to them and to those of peers (redirects.py)."""

    def __init__(self, engine: Engine) -> None:
        self._e = engine
        self._moves: dict[int, Move] = {}  # by epoch
        self._of_peer: dict[bytes, dict[int, Move]] = {}  # the same, by peer
        self._met: dict[bytes, float] = {}  # peers, and when one of the two has last applied what the other announced

    # -- our address changes ------------------------------------------------------------------------------------------

    def forget_ways(self, before: Network) -> None:
        """Peers are not reached from addresses any more that are gone.  Before anything is sent to them."""
        usable = self._e.network.usable
        gone = before.usable - usable
        for peer in self._e.peers.values():
            if peer.local is not None and peer.local not in usable:
                peer.local, peer.port, peer.trial = None, 0, 0  # as the kernel routes, from the control port
            if peer.observed is not None and peer.observed.host in gone:
                peer.observed = None  # that it sees us elsewhere from now on is no news

    def network_changed(self, now: float) -> None:
        """Which connections have lost their address or route, and which can go on from another?"""
        usable = self._e.network.usable
        for move in list(self._moves.values()):
            if usable.isdisjoint(move.candidates):
                self._drop(move)  # when one of them is back, that is a change of its own, announced at once
        self._close_short_lived(now)
        self.reconsider(now)

    def reconsider(self, now: float, connections: Iterable[Connection] | None = None) -> None:
        """Compare protected connections, all of them if not told otherwise, with the network as it is."""
        groups: dict[tuple[bytes, tuple[IPAddress, ...], IPAddress, int], list[Connection]] = defaultdict(list)
        unknown = False
        lost: dict[str, list[Connection]] = defaultdict(list)  # by reason
        known: dict[Alike, tuple[IPAddress, ...]] = {}
        hinted: dict[Alike, bool] = {}
        by_kind: dict[Alike, list[Connection]] = defaultdict(list)
        for connection in self._e.table.movable() if connections is None else connections:
            if connection.there_now not in self._e.network.sources:
                unknown = True
                continue
            sources = self._sources(connection, known)
            local = connection.here_now
            confirmed = connection.state is State.PROTECTED and connection.confirmed == local and local in sources
            alike = self._alike(connection)
            if confirmed and alike not in hinted:
                hinted[alike] = self._e.better.hinted(now, connection, sources)
            if confirmed and not hinted[alike]:
                continue
            if not sources:
                lost["stays-on-device" if any(self._routed(connection)) else "no-path"].append(connection)
                if connection.peer is not None:
                    self._e.places.astray(now, connection.peer)
            elif connection.peer is not None:
                by_kind[alike].append(connection)
        for alike, some in by_kind.items():
            one = some[0]
            groups[one.peer or b"", known[alike], one.here_now, one.socket.version] += some
        for reason, of_reason in lost.items():
            pause = constants.patience(constants.HOLD_AFTER, len(of_reason))
            self._e.holding.lose(now, of_reason, reason, since=now, hold_after=pause)
        for (key, sources, local, version), moving in groups.items():
            self._move(now, key, self._e.better.ranks(now, key, sources, local, version), moving)
        if unknown:
            self._e.emit(commands.FindRoutes())

    def remotes(self, connection: Connection) -> tuple[IPAddress, ...]:
        """Where the other host may be reached: where it is, then, for the tunnel, what other addresses it has."""
        remotes = [connection.there_now]
        peer = self._e.peers.get(connection.peer) if connection.peer is not None else None
        if peer is not None and self._e.choosing.tunnels(connection):
            remotes += [connection.wire.remote.host, connection.socket.remote.host, *peer.addresses]
            remotes += [place.host for place in self._e.places.of(peer.key)]
        # Where it is is asked for in any case: that it is known tells that there is no way there.
        ours = self._e.network.is_ours
        return tuple(r for r in dict.fromkeys(remotes) if r == connection.there_now or not ours(r))

    def _sources(self, connection: Connection, known: dict[Alike, tuple[IPAddress, ...]]) -> tuple[IPAddress, ...]:
        """Those of them that policy lets this connection use.

        ``known``: what has been found out in the same moment.  Of ten thousand connections most are alike.
        """
        alike = self._alike(connection)
        if (sources := known.get(alike)) is None:
            policy, net = self._e.policy, self._e.network
            mine = (a for a in self._routed(connection) if may_use(policy, net, connection, a))
            sources = known[alike] = tuple(dict.fromkeys(mine))
        return sources

    def _alike(self, c: Connection) -> Alike:
        # Addresses as numbers, with their kind: the hash of an address is dear (see FourTuple).
        ends = c.here_now, c.there_now, c.wire.remote.host, c.socket.remote.host
        return (*map(int, ends), *map(type, ends), c.peer, c.device, c.sending is None)

    def _routed(self, connection: Connection) -> Iterable[IPAddress]:
        """Our usable addresses with a route to where the peer is, or may be."""
        net = self._e.network
        remotes = (r for r in self.remotes(connection) if not net.is_ours(r))
        return (a for remote in remotes for a in net.sources.get(remote, ()) if a in net.usable)

    def _close_short_lived(self, now: float) -> None:
        """Their address is gone for good when there is another: the programs learn it now, not in 15 minutes."""
        net = self._e.network
        for connection in [c for c in self._e.table if c.state is State.SHORT]:
            local, remote = connection.socket.local.host, connection.socket.remote.host
            if self._e.policy.close_short_lived and local not in net.usable and net.sources.get(remote):
                self._e.emit(commands.Destroy((connection.socket,)))
                self._e.finish(now, connection, "address-gone")
                self._e.protection.gone(now, connection.socket)

    def announce(self, now: float, reason: str = "announced") -> int:
        """Say where we are to every peer of protected connections, whether anything changed or not."""
        peers: dict[bytes, list[Connection]] = defaultdict(list)
        known: dict[Alike, tuple[IPAddress, ...]] = {}
        for connection in self._e.table.movable():
            if connection.peer is not None and self._sources(connection, known):
                peers[connection.peer].append(connection)
        for key, connections in peers.items():
            self._announce_all(now, key, connections, reason, again=True)
        return len(peers)

    def announce_stall(self, now: float, key: bytes, connections: list[Connection]) -> None:
        """Packets of these get lost: a NAT may have forgotten them, or the address that they have carries no more."""
        self._e.holding.question(now, key)
        if len(connections) > messages.MAX_MOVED:  # all, by the address: to name so many takes many announcements
            connections = self._e.table.movable(key)
        self._announce_all(now, key, connections, "retransmitting", stalled=True)

    def observed(self, now: float, key: bytes, before: SockAddr, after: SockAddr) -> None:
        """The peer sees us elsewhere than before: a NAT between has another address, or maps us anew."""
        connections = [c for c in self._e.table.movable(key) if c.tunnel or c.natted or after.host != before.host]
        self._announce_all(now, key, connections, "observed-address-changed", stalled=after.host != before.host)

    def began(self, key: bytes) -> float:
        """When the latest of what is being announced to this peer was begun; -inf if nothing is."""
        return max((move.started for move in self._of(key)), default=float("-inf"))

    def announcing(self, key: bytes) -> bool:
        """Whether something is being announced to this peer."""
        return key in self._of_peer

    def try_direct(self, now: float, key: bytes, connections: list[Connection]) -> None:
        """These are relayed: is there a way without?"""
        if not self.announcing(key):
            self._announce_all(now, key, connections, "trying-direct", direct=True)

    def _announce_all(
        self,
        now: float,
        key: bytes,
        connections: list[Connection],
        reason: str,
        *,
        stalled: bool = False,
        direct: bool = False,
        again: bool = False,
    ) -> None:
        """``again``: also what is being announced is announced anew, from and to everywhere."""
        concerned = {c.cid for c in connections}
        under_way = [m for m in self._of(key) if not concerned.isdisjoint(m.cids)]
        for move in under_way:  # is news enough, and of connections that these are only some of
            move.stalled = move.stalled or stalled
            move.direct = move.direct and direct
            if again:
                move.everywhere_at = now
            self._send_acm(now, move)
        told = {cid for move in under_way for cid in move.cids}
        groups: dict[tuple[tuple[IPAddress, ...], IPAddress, int], list[Connection]] = defaultdict(list)
        known: dict[Alike, tuple[IPAddress, ...]] = {}
        for connection in connections:
            if connection.cid not in told and (sources := self._sources(connection, known)):
                groups[sources, connection.here_now, connection.socket.version].append(connection)
        for (sources, local, version), group in groups.items():
            ranks = self._e.better.ranks(now, key, sources, local, version)
            self._move(now, key, ranks, group, reason, stalled=stalled, direct=direct)

    def _move(
        self,
        now: float,
        key: bytes,
        ranks: Mapping[IPAddress, int],
        connections: list[Connection],
        reason: str | None = None,
        *,
        stalled: bool = False,
        direct: bool = False,
    ) -> None:
        """``ranks``: our addresses, best first.  ``reason``: why it is announced although no address has changed."""
        candidates = tuple(ranks)
        under_way = {
            cid
            for m in self._of(key)
            if set(candidates) <= set(m.candidates) and (m.chosen is None or m.chosen.local in candidates)
            for cid in m.cids
        }
        if reason is None:
            if all(c.cid in under_way for c in connections):
                return
            reason = self._why(candidates, connections)
        for cids, moved in self._named(key, connections):
            of_move = self._e.table.select(cids)
            origin = {c.cid: c.here_now for c in of_move}
            for old in [m for m in self._of(key) if not set(m.cids).isdisjoint(cids)]:
                stalled = stalled or old.stalled
                origin |= {cid: old.origin[cid] for cid in old.origin.keys() & origin.keys()}  # it has not arrived yet
                self._drop(old)
            targets = tuple(dict.fromkeys(to for c in of_move for to in self.targets(c)))
            # Without a path for a while: whatever knew the plain packets on their way may have forgotten them.
            stalled = stalled or any(c.state is State.SUSPENDED for c in of_move)
            move = Move(
                self._e.next_epoch(), key, cids, moved, candidates, ranks, now, targets, origin,
                stalled=stalled, direct=direct,
            )  # fmt: skip
            self._keep(move)
            self._e.holding.question(now, key)
            if not direct:  # every minute, and most come to nothing
                self._e.notice(
                    "move.started", peer=key, address=candidates[0], reason=reason,
                    connections=len(cids), epoch=move.epoch,
                )  # fmt: skip
            self._send_acm(now, move)

    @staticmethod
    def _why(candidates: tuple[IPAddress, ...], connections: list[Connection]) -> str:
        if any(c.here_now not in candidates or c.reason in LOST_HERE for c in connections):
            return "address-changed"
        if any(c.state is not State.PROTECTED for c in connections):
            return "peer-silent"
        return "not-confirmed" if any(c.confirmed is None for c in connections) else "better-address"

    def _named(self, key: bytes, connections: list[Connection]) -> Iterable[tuple[tuple[bytes, ...], Moved]]:
        """What announces these: an address that all connections move which were born there, one by one the others."""
        moving = {c.cid for c in connections}
        born: dict[IPAddress, list[Connection]] = defaultdict(list)
        for connection in self._e.table.of(key):
            # One that is still negotiated the peer may have taken on already: by its address it would be moved there.
            if connection.movable or connection.state is State.NEGOTIATING:
                born[connection.socket.local.host].append(connection)
        whole = [old for old, here in born.items() if all(c.cid in moving for c in here)]
        for start in range(0, len(whole), messages.MAX_OLD):
            old = tuple(whole[start : start + messages.MAX_OLD])
            yield tuple(c.cid for one in old for c in born[one]), Moved(old)
        rest = [c.cid for c in connections if c.socket.local.host not in whole]
        for start in range(0, len(rest), messages.MAX_MOVED):
            cids = tuple(rest[start : start + messages.MAX_MOVED])
            yield cids, Moved((), cids)

    def _port(self, key: bytes) -> int:
        peer = self._e.peers.get(key)
        if peer is None or peer.remote is None or self._e.meeting.by_way_of(key, peer.remote):
            return self._e.policy.control_port
        return peer.remote.port

    def targets(self, connection: Connection) -> Iterable[SockAddr]:
        """Control ports where the other host may be."""
        if connection.outer_remote is not None:
            yield connection.outer_remote
        for remote in self.remotes(connection):
            # What a NAT gave it is good for where we were; what a NAT forwards to it is good for everybody.
            yield SockAddr(remote, self._port(connection.peer or b""))
            yield SockAddr(remote, self._e.policy.control_port)

    def _pairs(self, now: float, move: Move, peer: Peer) -> list[Pair]:
        """From where to where it is announced, best first."""
        targets = list(move.targets)
        if peer.remote is not None:
            targets.append(peer.remote)
        if move.tries >= constants.ACM_WIDEN:
            targets += [SockAddr(a, self._port(move.key)) for a in peer.identity]
        targets += self._e.places.of(move.key)
        if move.tries >= constants.ACM_RELAY:
            targets += self._e.meeting.ways(move.key)
        if move.direct and move.chosen is None:
            targets = [t for t in targets if not self._e.meeting.by_way_of(move.key, t)]
        sources = [a for a in move.candidates if a in self._e.network.usable]
        if move.chosen is not None and self._stands(now, move):
            sources = [a for a in sources if a == move.chosen.local]
        pairs = []
        for to in dict.fromkeys(targets):
            # A rendezvous hands over what comes from another address of ours too, but the answer would not come there.
            seen = self._e.meeting.seen_from(to) if self._e.meeting.by_way_of(move.key, to) else None
            pairs += [Pair(a, to) for a in sources if a.version == to.host.version and seen in (None, a)]
        return pairs

    def _send_acm(self, now: float, move: Move, extra: bool = False) -> None:
        """Along every pair; where there are many, some at a time.

        ``extra``: because of keys or places that are new; the timer goes on.
        """
        peer = self._e.peers.get(move.key)
        if peer is None or not any(c.movable for c in self._e.table.select(move.cids)):
            self._drop(move)
            return
        if move.direct and move.chosen is None and move.tries >= constants.DIRECT_TRIES:
            self._drop(move)
            return
        if not extra and not move.offers and now - move.started >= self._e.policy.suspend_after:
            self._e.holding.unheard(now, self._e.table.select(move.cids), move.started, refused=bool(move.refused))
        pause = None if move.direct else self._e.holding.pause(now, move.key)
        if pause is not None and peer.remote is not None and self._e.meeting.by_way_of(move.key, peer.remote):
            pause = max(pause, constants.PROBE_PAUSE_RELAYED)
        everywhere = pause is None or extra or now >= move.everywhere_at
        # Not when it answers, whatever it answers; and what a handshake made us send calls for no other.
        silent = peer.last_contact is None or peer.last_contact < move.sent_at
        rehandshake = not extra and silent and move.tries >= constants.ACM_REHANDSHAKE
        if rehandshake and everywhere:
            self._e.places.seek(now, move.key)
        if everywhere and not extra and move.tries >= constants.ACM_OTHER_PORT:
            self._e.endpoint.try_another_port(now, move.key, move.sent_at)
        pairs = self._pairs(now, move, peer)
        for pair in self._everywhere(move, pairs) if everywhere else self._next(move, pairs, peer):
            nonce = self._e.rng(8)
            move.nonces[nonce] = pair
            message = Acm(move.epoch, nonce, pair.local, move.moved, stalled=move.stalled)
            sent = self._e.send(now, move.key, message, pair.remote, pair.local)
            if not sent or (rehandshake and everywhere):
                self._e.contact(now, pair.remote, pair.local, move.key, again=not sent)
        while len(move.nonces) > constants.MAX_NONCES:
            del move.nonces[next(iter(move.nonces))]
        move.sent_at = now
        if extra:
            return  # the timer goes on
        if everywhere:
            move.everywhere_at = now + constants.ACM_RETRIES[min(move.tries, len(constants.ACM_RETRIES) - 1)]
            move.tries += 1
        at = move.everywhere_at if pause is None else min(move.everywhere_at, now + pause)
        self._e.timers.set(("acm", move.epoch), at)

    @staticmethod
    def _everywhere(move: Move, pairs: list[Pair]) -> list[Pair]:
        """All of them; where there are many, the present one and some others in turn."""
        if len(pairs) <= constants.MAX_PAIRS_TRIED:
            return pairs
        present, *others = pairs
        some = [others[(move.turn + i) % len(others)] for i in range(constants.MAX_PAIRS_TRIED - 1)]
        move.turn = (move.turn + len(some)) % len(others)
        return [present, *some]

    @staticmethod
    def _next(move: Move, pairs: list[Pair], peer: Peer) -> list[Pair]:
        """Without a path, between two rounds: one at a time of those where the peer has been, the present one oftener.

        Where it never was nothing is sent so often: see Budget.
        """
        proven = [pair for pair in pairs if peer.receives_at(pair.remote) and pair not in move.refused]
        move.beat += 1
        if len(proven) <= 1 or move.beat % 2:
            return proven[:1]
        return [proven[1 + move.beat // 2 % (len(proven) - 1)]]

    def session_up(self, now: float, key: bytes) -> None:
        """Moves that waited for keys."""
        for move in self._of(key):
            self._send_acm(now, move, extra=True)

    def told(self, now: float, key: bytes, *, news: bool) -> None:
        """The peer may be at certain places: what waits for it is announced there now; if they are news, soon again."""
        for move in self._of(key):
            self._send_acm(now, move, extra=True)
            if news and move.epoch in self._moves:
                move.tries = min(move.tries, constants.ACM_WIDEN)
                move.everywhere_at = now + constants.ACM_RETRIES[move.tries]
                self._e.timers.set(("acm", move.epoch), move.everywhere_at)

    def timer(self, now: float, kind: str, *rest: Any) -> None:
        """An ACM, a challenge or a response was not answered; or a better pair has had its time to answer."""
        if kind == "ready":
            self._release(self._e.table.select(rest[0]))
            return
        if kind == "challenge":
            self._e.redirects.timer(now, rest[0], rest[1])
            return
        move = self._moves.get(rest[0])
        if move is None:
            return
        if kind == "patience":
            self._choose(now, move)
        else:
            self._send_acm(now, move)

    def forget(self, key: bytes) -> None:
        """The peer is forgotten."""
        self._met.pop(key, None)

    def met_since(self, key: bytes, since: float) -> bool:
        """Whether an announcement between us and this peer has led to something since then."""
        return self._met.get(key, float("-inf")) >= since

    def forget_idle(self) -> None:
        """Announcements of connections that are all gone: their next repeat may be far away."""
        for move in list(self._moves.values()):
            if not any(c.movable for c in self._e.table.select(move.cids)):
                self._drop(move)

    def superseded(self, now: float, key: bytes, connections: list[Connection]) -> tuple[set[bytes], set[bytes]]:
        """The peer has announced these, and we have applied it: a pair of both hosts is proven, ours is needless.

        Returns those of them that our own announcement had led elsewhere, and all that are not announced any more.
        """
        self._met[key] = now
        concerned = {c.cid for c in connections}
        elsewhere: set[bytes] = set()
        dropped: set[bytes] = set()
        for move in [m for m in self._of(key) if not concerned.isdisjoint(m.cids)]:
            if self._deciding(now, move):
                continue  # the peer applies ours, or has: what it announced came before
            self._drop(move)
            dropped.update(move.cids)
            elsewhere |= {c.cid for c in connections if move.origin.get(c.cid, c.here_now) != c.here_now}
            if not move.direct and concerned.issuperset(move.cids):
                self._e.notice(
                    "move.finished", peer=key, address=connections[0].here_now, duration=now - move.started,
                    connections=len(move.cids), epoch=move.epoch,
                )  # fmt: skip
        return elsewhere, dropped

    def deciding(self, now: float, key: bytes) -> set[bytes]:
        """Connections of which the peer is about to apply what we have announced: what it announces comes too late."""
        return {cid for m in self._of(key) if self._deciding(now, m) for cid in m.cids}

    def _deciding(self, now: float, move: Move) -> bool:
        return self._decides(move.key) and self._stands(now, move)

    @staticmethod
    def _stands(now: float, move: Move) -> bool:
        """It has a pair, for so short a time that the two hosts may still be at it."""
        may_take = constants.patience(constants.CHOICE_TIME, len(move.cids))
        return move.chosen is not None and now - move.chosen_at < may_take

    def _decides(self, key: bytes) -> bool:
        """Of two hosts that both announce something, one decides (RFC 8445: the controlling agent)."""
        return self._e.endpoint.static.public < key

    def _of(self, key: bytes) -> list[Move]:
        return list(self._of_peer.get(key, {}).values())

    def _keep(self, move: Move) -> None:
        self._moves[move.epoch] = self._of_peer.setdefault(move.key, {})[move.epoch] = move

    def _drop(self, move: Move) -> None:
        del self._moves[move.epoch], self._of_peer[move.key][move.epoch]
        if not self._of_peer[move.key]:
            del self._of_peer[move.key]
        self._e.timers.cancel(("acm", move.epoch))
        self._e.timers.cancel(("patience", move.epoch))

    # -- what the peer says of them -----------------------------------------------------------------------------------

    def _pair_of(self, move: Move, nonce: bytes, event: events.Received) -> Pair | None:
        """To where what is answered here has gone: there the peer receives, wherever the answer seems to come from."""
        pair = move.nonces.get(nonce)
        if pair is None:
            self._e.notice("packet.refused", peer=event.key, reason="unknown-nonce", source=str(event.source))
        return pair

    def _on_challenge(self, now: float, event: events.Received, message: PathChallenge) -> None:
        """The stationary host has our ACM: rewrite, then answer the way that was challenged."""
        move = self._moves.get(message.epoch)
        if move is None or move.key != event.key:
            return  # superseded by a later move, or finished
        pair = self._pair_of(move, message.nonce, event)
        if pair is None or pair.local not in self._e.network.usable or self._e.redirects.applying(move.key, move.cids):
            return
        move.offers[pair] = message.data
        if move.chosen is not None and move.chosen != pair and not self._stands(now, move):
            self._anew(now, move)  # what was chosen came to nothing: the peer may have applied it all the same
        elif move.chosen is not None:
            self._answer(now, move, pair)
        elif move.rank(pair) > min(move.ranks[a] for a in move.candidates if a in self._e.network.usable):
            if len(move.offers) == 1:
                self._e.timers.set(("patience", move.epoch), now + constants.PATIENCE)
        else:
            self._choose(now, move)

    def _choose(self, now: float, move: Move) -> None:
        """The best of the pairs that have answered."""
        usable = [pair for pair in move.offers if pair.local in self._e.network.usable]
        if move.chosen is not None or not usable:
            return
        pair = min(usable, key=move.rank)
        move.chosen, move.chosen_at, move.installed = pair, now, False
        self._e.better.chosen(now, move.key, pair.local, move.ranks)
        self._answer(now, move, pair)

    def _answer(self, now: float, move: Move, pair: Pair) -> None:
        if move.chosen != pair:
            return
        if move.installed:
            self._e.send(now, move.key, PathResponse(move.epoch, move.offers[pair]), pair.remote, pair.local)
            return
        move.challenge = move.offers[pair]
        if move.rewriting != pair:
            self._go(now, move, pair)

    def _anew(self, now: float, move: Move) -> None:
        """The same, with an epoch of its own: the peer takes nothing of what it has heard of the old one for this."""
        self._drop(move)
        connections = [c for c in self._e.table.select(move.cids) if c.movable]
        again = Move(
            self._e.next_epoch(), move.key, move.cids, move.moved, move.candidates, move.ranks, move.started,
            move.targets, move.origin, stalled=move.stalled, direct=move.direct, tries=move.tries,
        )  # fmt: skip
        if connections:
            self._keep(again)
            self._send_acm(now, again)

    def _go(self, now: float, move: Move, pair: Pair) -> None:
        """The connections of a move go this way from now on."""
        move.rewriting, local = pair, pair.local
        connections = [c for c in self._e.table.select(move.cids) if c.movable]
        if self._decides(move.key):
            self._e.redirects.withdraw(move.key, connections)
        there = None if self._e.meeting.by_way_of(move.key, pair.remote) else pair.remote.host
        changes = []
        for c in connections:
            elsewhere, tunnelled = local != c.here_now, c.tunnel
            if elsewhere:
                c.confirmed = None  # from the moment that the peer may hear of it
            change = self.changed(c, local=local, remote=there, outer=pair, stalled=move.stalled)
            # What is sent before the peer is ready would arrive, but its answer would not.
            c.holding = change[2] and (c.holding or elsewhere or not tunnelled or c.state is State.SUSPENDED)
            changes.append(change)
        # Not for longer: TCP would learn the wait as the round-trip time, from the timestamps in what is held.
        self._e.timers.set(("ready", tuple(c.cid for c in connections if c.holding)), now + constants.READY_TIME)
        # Without the tunnel, which keeps what is sent too soon, the kernel holds it back until the peer is ready.
        self.reroute(("move", move.epoch, pair), changes, lift={c.cid for c, _, tunnel in changes if tunnel})
        self._e.holding.hold_again(now, connections)

    def changed(
        self,
        c: Connection,
        *,
        outer: tuple[IPAddress, SockAddr],
        stalled: bool,
        local: IPAddress | None = None,
        remote: IPAddress | None = None,
    ) -> Change:
        """What becomes of a connection one end of which is at another address, or was announced anew.

        ``outer``: our address and the peer's control port, between which the announcement was proven.
        """
        wire = self._e.choosing.plain_wire(c, local, remote)
        if not self._e.choosing.tunnels(c):
            return c, wire, False
        if remote is not None and remote != outer[1].host:
            wire = c.socket  # behind a NAT: nothing plain comes from there
        stays = outer[0] == c.here_now and outer[1].host == c.there_now
        if remote is not None and remote != outer[1].host:
            stays = stays and remote == c.there.local.host  # the NAT knows the connection only as it began
        c.outer_local, c.outer_remote = outer
        return c, wire, c.tunnel or stalled or not stays

    def reroute(
        self,
        token: tuple[Any, ...],
        changes: list[Change],
        *,
        hold: Container[bytes] = (),
        lift: Container[bytes] = (),
        proven: Container[bytes] = (),
    ) -> None:
        """Store wire tuples and ways, tell the tunnel, then one kernel transaction for all of them.

        ``hold``: those of which the kernel holds back what they send; ``lift``: those of which it no longer does.
        ``proven``: those whose wire tuple has been proven to lead to the peer.
        """
        remove: list[Flow] = []
        add: list[Flow] = []
        rewired = False
        for connection, wire, tunnel in changes:
            held = connection.cid in hold or (connection.held and connection.cid not in lift)
            before = connection.flow
            # Who has proven a tuple has proven nothing of the next one: a NAT gives many hosts one address.
            connection.proven = connection.cid in proven or (connection.proven and wire == connection.wire)
            rewired = rewired or wire != connection.wire
            connection.wire, connection.tunnel, connection.held = wire, tunnel, held
            if connection.flow != before:
                remove.append(before)
                add.append(connection.flow)
        connections = [connection for connection, _, _ in changes]
        if rewired:
            self._e.table.rewired()
        if add:
            self._e.emit(commands.SaveConnections(tuple(connections)))
        self._e.carry(connections)
        self._e.emit(commands.Rewrite((*token, tuple(remove), tuple(add)), tuple(add), tuple(remove)))

    def rewritten(self, now: float, token: tuple[Any, ...], error: str | None) -> None:
        """The kernel transaction of a move is done, or failed and nothing was changed."""
        *what, _, add = token
        flows = {flow.socket: flow for flow in add}
        concerned = [c for c in self._e.table.sockets(flows) if c.guarded]
        if error is None:
            for connection in concerned:
                connection.installed = flows[connection.socket]
        else:
            # One that has been changed again meanwhile is left to that change, which must fail too.
            undone = [c for c in concerned if c.flow == flows[c.socket] and c.installed is not None]
            for connection in undone:
                if connection.installed is not None:
                    connection.wire, connection.tunnel = connection.installed.wire, connection.installed.tunnel
                    self._e.table.rewired()
                    connection.held = connection.installed.suspended
                    connection.proven = connection.tunnel and not connection.installed.closed
            if what[0] == "acm":
                self._e.redirects.take_back(what[1], what[2])
            self._e.emit(commands.SaveConnections(tuple(c for c in undone if c.movable)))
            self._e.notice("redirect.refused", reason="kernel", detail=error)
        match what[0]:
            case "move":
                self._moved(now, what[1], what[2], error)
            case "path":
                self._e.choosing.rewritten(now, flows, error)
            case "open":
                self._e.choosing.opened(now, what[1], error)
            case "hold":
                self._e.holding.rewritten(now, what[1], flows, error)
            case "lift":
                pass
            case _:
                self._e.redirects.applied(now, what[1], what[2], error)

    def _moved(self, now: float, epoch: int, pair: Pair, error: str | None) -> None:
        move = self._moves.get(epoch)
        if move is not None and move.rewriting == pair:
            move.rewriting = None
        if move is None or move.chosen != pair or move.challenge is None or error is not None:
            return
        connections = [c for c in self._e.table.select(move.cids) if c.movable]
        if not all(self._installed(c, pair.local) for c in connections):
            return  # an earlier change failed after this one, which had nothing left to do, was asked for
        move.installed = True
        self._e.holding.hold_again(now, connections)  # for many that has taken its time
        self._e.send(now, move.key, PathResponse(epoch, move.challenge), pair.remote, pair.local)
        # What is held is not lost: the back-off can go now, before the peer's first segment may fix it.
        self.kick([c for c in connections if c.holding])
        self._e.emit(commands.Hasten(tuple(c.socket for c in connections if not c.tunnel)))

    @staticmethod
    def _installed(c: Connection, local: IPAddress) -> bool:
        return c.installed == c.flow and c.here_now == local

    def _on_ack(self, now: float, event: events.Received, message: AcmAck) -> None:
        move = self._moves.get(message.epoch)
        if move is None or move.key != event.key:
            return
        pair = self._pair_of(move, message.nonce, event)
        if pair is None:
            return
        connections = [c for c in self._e.table.select(move.cids) if c.movable]
        peer = self._e.peers[move.key]
        found = peer.remote != pair.remote
        self._e.endpoint.locate(peer, pair.remote, pair.local)  # whatever it says, this way works
        applied = message.status is AcmStatus.APPLIED
        if applied and not self._e.meeting.by_way_of(move.key, pair.remote):
            peer.observed = message.observed
        if applied and pair != move.chosen:
            # It sends another way: the answer to one challenge was late.  A rendezvous relays only for two who both
            # go by way of it.
            if pair.local in self._e.network.usable:
                move.chosen, move.chosen_at, move.installed, move.challenge = pair, now, False, None
                self._go(now, move, pair)
                self._send_acm(now, move, extra=True)  # so that it says so again, when we are ready
        elif applied:
            if not all(self._installed(c, pair.local) for c in connections):
                return  # the kernel is at it; the next acknowledgement finds it done
            # Others were set going at the challenge; what they sent then is lost if it was long ago.
            late = now - move.chosen_at >= constants.READY_TIME
            ready = [c for c in connections if c.held or not c.holding or late]
            self._e.holding.lift(ready)
            self.kick(ready)
            self._release(connections)
            self._drop(move)
            self._met[move.key] = now
            for connection in connections:
                connection.confirmed = pair.local
            elsewhere = {c.cid for c in connections if move.origin.get(c.cid) != pair.local}
            self.arrived(now, connections, elsewhere)
            if move.direct:
                self._e.choosing.tell(connections, "direct-again")
            else:
                self._e.notice(
                    "move.finished", peer=move.key, address=pair.local, duration=now - move.started,
                    connections=len(connections), epoch=move.epoch,
                )  # fmt: skip
            if message.connections < len(connections):
                self._e.protection.doubt(now, move.key)
            elif message.connections > len(connections):
                self._e.protection.sync(now, move.key)
            # Those that have written nothing yet do not find out by themselves that their address carries no more.
            self.reconsider(now, self._e.table.movable(move.key) if elsewhere else connections)
            self._e.protection.moved(now, peer)
            if found:
                self._e.emit(commands.SavePeer(peer))  # waits for the disk: after all that carries traffic again
        else:
            reason = f"{message.status.name.lower().replace('_', '-')}-there"
            self._e.notice("redirect.refused", peer=move.key, reason=reason, epoch=move.epoch)
            if message.status is AcmStatus.UNUSABLE:
                move.refused.add(pair)
            elif message.status in (AcmStatus.NO_CONNECTION, AcmStatus.STALE):
                self._drop(move)
                self._release(connections)
                self._e.protection.doubt(now, move.key)

    def _release(self, connections: list[Connection]) -> None:
        """Let go what the tunnel holds of these."""
        held = [c for c in connections if c.holding]
        for connection in held:
            connection.holding = False
        self._e.carry(held)

    def arrived(self, now: float, connections: list[Connection], elsewhere: set[bytes]) -> None:
        """There is a path again, for some from another address than before: both ends' sockets send at once."""
        for connection in connections:
            if connection.cid not in elsewhere and connection.state is not State.SUSPENDED:
                continue
            connection.moves += connection.cid in elsewhere or connection.reason in LOST_HERE
            if connection.state is State.SUSPENDED:
                self._e.holding.arrived(now, connection)
            self._e.choosing.tell([connection])
        if connections:
            self._e.emit(commands.SaveConnections(tuple(connections)))
            self._e.choosing.arrived(now, connections, elsewhere)

    def carried(self, key: bytes, cids: set[bytes]) -> None:
        """Plain packets of these get through where they are."""
        for move in self._of(key):
            if cids.issuperset(move.cids):
                move.stalled = False

    def kick(self, connections: list[Connection]) -> None:
        """Undo the back-off of these, before anything else happens to them.

        It works on what was lost only as long as the peer has not acknowledged a part of it.  The peer's first segment
        may do that, and the socket would wait for its next time-out (`tcp_ld_RTO_revert` wants icsk_retransmits).
        """
        connections = self._e.holding.resume(connections)
        if connections:
            self._e.emit(commands.Kick(tuple(c.socket for c in connections)))

    def received(self, now: float, event: events.Received) -> None:
        """Acm, AcmAck, PathChallenge, PathResponse."""
        match event.message:
            case Acm():
                self._e.redirects.on_acm(now, event, event.message)
            case AcmAck():
                self._on_ack(now, event, event.message)
            case PathChallenge():
                self._on_challenge(now, event, event.message)
            case PathResponse():
                self._e.redirects.on_response(now, event, event.message)

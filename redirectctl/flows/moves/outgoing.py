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
one if none is better than another. What should have answered and did not is remembered (addresses.py). The ACM is
repeated until it is acknowledged. As long as the peer does not send to where we are, or that is not known (after a
restart), there is something to announce.

Each connection carries the newest epoch applied to it, so an ACM that is late or repeated changes nothing.  Until the
challenge is answered bulk goes to the last validated address, and stays there if it never is.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping

from redirectctl.flows import commands, constants, facts, timer_kinds
from redirectctl.flows.agreement import Agreement
from redirectctl.flows.announcements import Announcements, Move, most
from redirectctl.flows.connection import Connection, Pair
from redirectctl.flows.host import Host
from redirectctl.flows.kernel_state import KernelState
from redirectctl.flows.moves.addresses import Addresses
from redirectctl.flows.moves.reach import Alike, Reach
from redirectctl.flows.moves.rerouting import Rerouting
from redirectctl.flows.network import Network
from redirectctl.flows.paths.choice import Choice
from redirectctl.flows.paths.suspension import LOST_HERE, Suspension
from redirectctl.flows.rendezvous.client import Client
from redirectctl.flows.rendezvous.places import Places
from redirectctl.flows.state import State
from redirectctl.proto import events
from redirectctl.proto.peer import Peer
from redirectctl.wire import message as messages
from redirectctl.wire.addr import IPAddress, SockAddr
from redirectctl.wire.message import Acm, AcmAck, AcmStatus, Moved, PathChallenge, PathResponse


class OwnMoves:
    """Announces this host's moves, and moves its connections when a peer challenges them."""

    def __init__(
        self,
        host: Host,
        agreement: Agreement,
        announcements: Announcements,
        places: Places,
        rendezvous: Client,
        suspension: Suspension,
        choice: Choice,
        reach: Reach,
        addresses: Addresses,
        rerouting: Rerouting,
        kernel: KernelState,
    ) -> None:
        self._host = host
        self._agreement = agreement
        self._announcements = announcements
        self._places = places
        self._rendezvous = rendezvous
        self._suspension = suspension
        self._choice = choice
        self._reach = reach
        self._addresses = addresses
        self._rerouting = rerouting
        self._kernel = kernel
        self._stalls: dict[bytes, float] = {}  # peers, and when we last announced ourselves for a stall

    # -- our address changes ------------------------------------------------------------------------------------------

    def forget_ways(self, before: Network) -> None:
        """Forget how peers were reached from addresses that are gone.  Called before anything is sent to them."""
        usable = self._host.network.usable
        gone = before.usable - usable
        for peer in self._host.peers.values():
            if peer.local is not None and peer.local not in usable:
                peer.local, peer.port, peer.trial = None, 0, 0  # as the kernel routes, from the control port
            if peer.reflexive is not None and peer.reflexive.host in gone:
                peer.reflexive = None  # that it sees us elsewhere from now on is no news

    def network_changed(self, now: float) -> None:
        """Addresses or routes have changed: find the connections that have to move, and those that can."""
        usable = self._host.network.usable
        for move in self._announcements.moves():
            if usable.isdisjoint(move.candidates):
                self._announcements.drop(
                    move
                )  # when one of them is back, that is a change of its own, announced at once
        self._close_short_lived(now)
        self.reconsider(now)

    def reconsider(self, now: float, connections: Iterable[Connection] | None = None) -> None:
        """Compare protected connections (None: all) with the network: suspend those without a path, move the others."""
        groups: dict[tuple[bytes, tuple[IPAddress, ...], IPAddress, int], list[Connection]] = defaultdict(list)
        unknown = False
        lost: dict[str, list[Connection]] = defaultdict(list)  # by reason
        known: dict[Alike, tuple[IPAddress, ...]] = {}
        hinted: dict[Alike, bool] = {}
        by_kind: dict[Alike, list[Connection]] = defaultdict(list)
        for connection in self._host.table.movable() if connections is None else connections:
            if connection.remote_now not in self._host.network.sources:
                unknown = True
                continue
            sources = self._reach.sources(connection, known)
            local = connection.local_now
            confirmed = connection.state is State.PROTECTED and connection.confirmed == local and local in sources
            alike = self._reach.alike(connection)
            if confirmed and alike not in hinted:
                hinted[alike] = self._addresses.hinted(now, connection, sources)
            if confirmed and not hinted[alike]:
                continue
            if not sources:
                lost["stays-on-device" if any(self._reach.routed(connection)) else "no-path"].append(connection)
                if connection.peer is not None:
                    self._places.no_route(now, connection.peer)
            elif connection.peer is not None:
                by_kind[alike].append(connection)
        for alike, some in by_kind.items():
            one = some[0]
            groups[one.peer or b"", known[alike], one.local_now, one.socket.version] += some
        for reason, of_reason in lost.items():
            pause = constants.patience(constants.HOLD_AFTER, len(of_reason))
            self._suspension.lose(now, of_reason, reason, since=now, hold_after=pause)
        for (key, sources, local, version), moving in groups.items():
            self._move(now, key, self._addresses.ranks(now, key, sources, local, version), moving)
        if unknown:
            self._host.emit(commands.FindRoutes())

    def _close_short_lived(self, now: float) -> None:
        """Close short-lived connections whose address is gone: TCP would tell their programs only after 15 minutes."""
        net = self._host.network
        for connection in [c for c in self._host.table if c.state is State.SHORT]:
            local, remote = connection.socket.local.host, connection.socket.remote.host
            if self._host.policy.close_short_lived and local not in net.usable and net.sources.get(remote):
                self._host.report(now, facts.Ended(connection, "address-gone"))

    def ready_anyway(self, cids: tuple[bytes, ...]) -> None:
        """The peer has had READY_TIME to get ready: the tunnel sends what it holds for it."""
        self._rerouting.release(self._host.table.select(cids))

    def repeat(self, now: float, epoch: int) -> None:
        """An announcement has not been acknowledged in time: send it again."""
        if (move := self._announcements.move(epoch)) is not None:
            self.announce_move(now, move)

    def patience_over(self, now: float, epoch: int) -> None:
        """A better pair has had PATIENCE to answer: choose among those that have."""
        if (move := self._announcements.move(epoch)) is not None:
            self.choose(now, move)

    def announce(self, now: float, reason: str = "announced") -> int:
        """Announce where this host is to every peer of protected connections.  Returns the number of peers."""
        peers: dict[bytes, list[Connection]] = defaultdict(list)
        known: dict[Alike, tuple[IPAddress, ...]] = {}
        for connection in self._host.table.movable():
            if connection.peer is not None and self._reach.sources(connection, known):
                peers[connection.peer].append(connection)
        for key, connections in peers.items():
            self._announce_all(now, key, connections, reason, again=True)
        return len(peers)

    def stalled(self, now: float, key: bytes, connections: list[Connection]) -> None:
        """The network loses packets of these: announce them, for a NAT may have forgotten them or our address fail."""
        if self._announcements.validates(key, connections):
            return  # it has said where it is, and is being asked
        if self._announcements.met_since(key, now - constants.patience(0.0, self._host.table.count(key))):
            return  # they were many to be set going: let them
        if now - self._stalls.get(key, float("-inf")) < constants.STALL_PAUSE:
            return
        self._stalls[key] = now
        self._suspension.question(now, key)
        if len(connections) > messages.MAX_MOVED:  # all, by the address: to name so many takes many announcements
            connections = self._host.table.movable(key)
        self._announce_all(now, key, connections, "retransmitting", stalled=True)

    def reflexive_changed(self, now: float, key: bytes, before: SockAddr, after: SockAddr) -> None:
        """The peer sees this host at another address: a NAT has another address, or another mapping.  Announce that."""
        connections = [c for c in self._host.table.movable(key) if c.tunnel or c.natted or after.host != before.host]
        self._announce_all(now, key, connections, "observed-address-changed", stalled=after.host != before.host)

    def try_direct(self, now: float, key: bytes, connections: list[Connection]) -> None:
        """Announce relayed connections without the rendezvous: the hosts may reach each other now."""
        if not self._announcements.announcing(key):
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
        under_way = [m for m in self._announcements.moves_of(key) if not concerned.isdisjoint(m.cids)]
        for move in under_way:  # is news enough, and of connections that these are only some of
            move.stalled = move.stalled or stalled
            move.direct = move.direct and direct
            if again:
                move.everywhere_at = now
            self.announce_move(now, move)
        told = {cid for move in under_way for cid in move.cids}
        groups: dict[tuple[tuple[IPAddress, ...], IPAddress, int], list[Connection]] = defaultdict(list)
        known: dict[Alike, tuple[IPAddress, ...]] = {}
        for connection in connections:
            if connection.cid not in told and (sources := self._reach.sources(connection, known)):
                groups[sources, connection.local_now, connection.socket.version].append(connection)
        for (sources, local, version), group in groups.items():
            ranks = self._addresses.ranks(now, key, sources, local, version)
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
            for m in self._announcements.moves_of(key)
            if set(candidates) <= set(m.candidates) and (m.chosen is None or m.chosen.local in candidates)
            for cid in m.cids
        }
        if reason is None:
            if all(c.cid in under_way for c in connections):
                return
            reason = self._why(candidates, connections)
        for cids, moved in self._named(key, connections):
            of_move = self._host.table.select(cids)
            origin = {c.cid: c.local_now for c in of_move}
            for old in [m for m in self._announcements.moves_of(key) if not set(m.cids).isdisjoint(cids)]:
                stalled = stalled or old.stalled
                origin |= {cid: old.origin[cid] for cid in old.origin.keys() & origin.keys()}  # it has not arrived yet
                self._announcements.drop(old)
            targets = tuple(dict.fromkeys(to for c in of_move for to in self._reach.targets(c)))
            # Without a path for a while: whatever knew the plain packets on their way may have forgotten them.
            stalled = stalled or any(c.state is State.SUSPENDED for c in of_move)
            move = Move(
                self._host.next_epoch(), key, cids, moved, candidates, ranks, now, targets, origin,
                stalled=stalled, direct=direct,
            )  # fmt: skip
            self._announcements.keep(move)
            self._suspension.question(now, key)
            if not direct:  # every minute, and most come to nothing
                self._host.notice(
                    "move.started", peer=key, address=candidates[0], reason=reason,
                    connections=len(cids), epoch=move.epoch, cids=cids,
                )  # fmt: skip
            self.announce_move(now, move)

    @staticmethod
    def _why(candidates: tuple[IPAddress, ...], connections: list[Connection]) -> str:
        if any(c.local_now not in candidates or c.reason in LOST_HERE for c in connections):
            return "address-changed"
        if any(c.state is not State.PROTECTED for c in connections):
            return "peer-silent"
        return "not-confirmed" if any(c.confirmed is None for c in connections) else "better-address"

    def _named(self, key: bytes, connections: list[Connection]) -> Iterable[tuple[tuple[bytes, ...], Moved]]:
        """Name these connections: by the address where they began if all from there move, else one by one."""
        moving = {c.cid for c in connections}
        born: dict[IPAddress, list[Connection]] = defaultdict(list)
        for connection in self._host.table.of(key):
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

    def _pairs(self, now: float, move: Move, peer: Peer) -> list[Pair]:
        """The pairs along which a move is announced, best first."""
        targets = list(move.targets)
        if peer.remote is not None:
            targets.append(peer.remote)
        if move.tries >= constants.ACM_WIDEN:
            targets += [SockAddr(a, self._reach.port(move.key)) for a in peer.identity]
        targets += self._places.of(move.key)
        if move.tries >= constants.ACM_RELAY:
            targets += self._rendezvous.ways(move.key)
        if move.direct and move.chosen is None:
            targets = [t for t in targets if not self._host.by_way_of(move.key, t)]
        sources = [a for a in move.candidates if a in self._host.network.usable]
        if move.chosen is not None and self._stands(now, move):
            sources = [a for a in sources if a == move.chosen.local]
        pairs = []
        for to in dict.fromkeys(targets):
            # A rendezvous hands over what comes from another address of ours too, but the answer would not come there.
            seen = self._rendezvous.seen_from(to) if self._host.by_way_of(move.key, to) else None
            pairs += [Pair(a, to) for a in sources if a.version == to.host.version and seen in (None, a)]
        return pairs

    def announce_move(self, now: float, move: Move, extra: bool = False) -> None:
        """Along every pair; where there are many, some at a time.

        ``extra``: because of keys or places that are new; the timer goes on.
        """
        peer = self._host.peers.get(move.key)
        if peer is None or not any(c.movable for c in self._host.table.select(move.cids)):
            self._announcements.drop(move)
            return
        if move.direct and move.chosen is None and move.tries >= constants.DIRECT_TRIES:
            self._announcements.drop(move)
            return
        if not extra and not move.offers and now - move.started >= self._host.policy.suspend_after:
            self._suspension.unheard(now, self._host.table.select(move.cids), move.started, refused=bool(move.refused))
        pause = None if move.direct else self._suspension.pause(now, move.key)
        if pause is not None and peer.remote is not None and self._host.by_way_of(move.key, peer.remote):
            pause = max(pause, constants.PROBE_PAUSE_RELAYED)
        everywhere = pause is None or extra or now >= move.everywhere_at
        # Not when it answers, whatever it answers; and what a handshake made us send calls for no other.
        silent = peer.last_contact is None or peer.last_contact < move.sent_at
        rehandshake = not extra and silent and move.tries >= constants.ACM_REHANDSHAKE
        if rehandshake and everywhere:
            self._places.seek(now, move.key)
        if everywhere and not extra and move.tries >= constants.ACM_OTHER_PORT:
            self._host.endpoint.try_another_port(now, move.key, move.sent_at)
        pairs = self._pairs(now, move, peer)
        for pair in self._everywhere(move, pairs) if everywhere else self._next(move, pairs, peer):
            nonce = self._host.rng(8)
            move.nonces[nonce] = pair
            message = Acm(move.epoch, nonce, pair.local, move.moved, stalled=move.stalled)
            sent = self._host.send(now, move.key, message, pair.remote, pair.local)
            if not sent or (rehandshake and everywhere):
                self._host.contact(now, pair.remote, pair.local, move.key, again=not sent)
        while len(move.nonces) > constants.MAX_NONCES:
            del move.nonces[next(iter(move.nonces))]
        move.sent_at = now
        if extra:
            return  # the timer goes on
        if everywhere:
            move.everywhere_at = now + constants.ACM_RETRIES[min(move.tries, len(constants.ACM_RETRIES) - 1)]
            move.tries += 1
        at = move.everywhere_at if pause is None else min(move.everywhere_at, now + pause)
        self._host.timers.set(timer_kinds.RepeatAnnouncement(move.epoch), at)

    @staticmethod
    def _everywhere(move: Move, pairs: list[Pair]) -> list[Pair]:
        """All pairs; where there are many, the present one and some of the others in turn."""
        if len(pairs) <= constants.MAX_PAIRS_TRIED:
            return pairs
        present, *others = pairs
        some = [others[(move.turn + i) % len(others)] for i in range(constants.MAX_PAIRS_TRIED - 1)]
        move.turn = (move.turn + len(some)) % len(others)
        return [present, *some]

    @staticmethod
    def _next(move: Move, pairs: list[Pair], peer: Peer) -> list[Pair]:
        """Between two rounds without a path: one pair at a time where the peer has been, the present one more often.

        Where it never was nothing is sent so often: see Peer.unproven.
        """
        proven = [pair for pair in pairs if peer.receives_at(pair.remote) and pair not in move.refused]
        move.beat += 1
        if len(proven) <= 1 or move.beat % 2:
            return proven[:1]
        return [proven[1 + move.beat // 2 % (len(proven) - 1)]]

    def session_up(self, now: float, key: bytes) -> None:
        """There are keys: announce the moves that waited for them."""
        for move in self._announcements.moves_of(key):
            self.announce_move(now, move, extra=True)

    def places_learnt(self, now: float, key: bytes, *, news: bool) -> None:
        """The peer may be at other places: announce moves there now, and soon again if they are new (``news``)."""
        for move in self._announcements.moves_of(key):
            self.announce_move(now, move, extra=True)
            if news and self._announcements.move(move.epoch) is not None:
                move.tries = min(move.tries, constants.ACM_WIDEN)
                move.everywhere_at = now + constants.ACM_RETRIES[move.tries]
                self._host.timers.set(timer_kinds.RepeatAnnouncement(move.epoch), move.everywhere_at)

    def forget(self, key: bytes) -> None:
        """Forget a peer."""
        self._stalls.pop(key, None)
        self._announcements.forget(key)

    def forget_idle(self) -> None:
        """Drop the announcements whose connections are all gone."""
        for move in self._announcements.moves():
            if not any(c.movable for c in self._host.table.select(move.cids)):
                self._announcements.drop(move)

    def superseded(self, now: float, key: bytes, connections: list[Connection]) -> tuple[set[bytes], set[bytes]]:
        """The peer's announcement of these is applied: a pair of both hosts is proven, so ours are needless.

        Returns those of them that our own announcement had led elsewhere, and all that are not announced any more.
        """
        self._announcements.met(now, key)
        concerned = {c.cid for c in connections}
        elsewhere: set[bytes] = set()
        dropped: set[bytes] = set()
        for move in [m for m in self._announcements.moves_of(key) if not concerned.isdisjoint(m.cids)]:
            if self._deciding(now, move):
                continue  # the peer applies ours, or has: what it announced came before
            self._announcements.drop(move)
            dropped.update(move.cids)
            elsewhere |= {c.cid for c in connections if move.origin.get(c.cid, c.local_now) != c.local_now}
            if not move.direct and concerned.issuperset(move.cids):
                self._host.notice(
                    "move.finished", peer=key, address=connections[0].local_now, duration=now - move.started,
                    connections=len(move.cids), epoch=move.epoch, previous=most(move.origin.values()), cids=move.cids,
                )  # fmt: skip
        return elsewhere, dropped

    def deciding(self, now: float, key: bytes) -> set[bytes]:
        """The connections that the peer is about to move as this host announced: what it announces comes too late."""
        return {cid for m in self._announcements.moves_of(key) if self._deciding(now, m) for cid in m.cids}

    def _deciding(self, now: float, move: Move) -> bool:
        return self._decides(move.key) and self._stands(now, move)

    @staticmethod
    def _stands(now: float, move: Move) -> bool:
        """Whether a pair was chosen so lately that the two hosts may still be at work on it."""
        may_take = constants.patience(constants.CHOICE_TIME, len(move.cids))
        return move.chosen is not None and now - move.chosen_at < may_take

    def _decides(self, key: bytes) -> bool:
        """Whether this host decides when both announce something (RFC 8445: the controlling agent)."""
        return self._host.endpoint.static.public < key

    # -- what the peer says of them -----------------------------------------------------------------------------------

    def _pair_of(self, move: Move, nonce: bytes, event: events.Received) -> Pair | None:
        """The pair that the announcement with this nonce took: the peer receives there, wherever it answers from."""
        pair = move.nonces.get(nonce)
        if pair is None:
            self._host.notice("packet.refused", peer=event.key, reason="unknown-nonce", source=str(event.source))
        return pair

    def on_challenge(self, now: float, event: events.Received, message: PathChallenge) -> None:
        """The peer has our announcement: reroute, then answer on the way that it challenged."""
        move = self._announcements.move(message.epoch)
        if move is None or move.key != event.key:
            return  # superseded by a later move, or finished
        pair = self._pair_of(move, message.nonce, event)
        if (
            pair is None
            or pair.local not in self._host.network.usable
            or self._announcements.applying(move.key, move.cids)
        ):
            return
        move.offers[pair] = message.data
        if move.chosen is not None and move.chosen != pair and not self._stands(now, move):
            self._anew(now, move)  # what was chosen came to nothing: the peer may have applied it all the same
        elif move.chosen is not None:
            self._answer(now, move, pair)
        elif move.rank(pair) > min(move.ranks[a] for a in move.candidates if a in self._host.network.usable):
            if len(move.offers) == 1:
                self._host.timers.set(timer_kinds.ChoosePair(move.epoch), now + constants.PATIENCE)
        else:
            self.choose(now, move)

    def choose(self, now: float, move: Move) -> None:
        """Take the best of the pairs that have answered."""
        usable = [pair for pair in move.offers if pair.local in self._host.network.usable]
        if move.chosen is not None or not usable:
            return
        pair = min(usable, key=move.rank)
        move.chosen, move.chosen_at, move.installed = pair, now, False
        self._addresses.chosen(now, move.key, pair.local, move.ranks)
        self._answer(now, move, pair)

    def _answer(self, now: float, move: Move, pair: Pair) -> None:
        if move.chosen != pair:
            return
        if move.installed:
            self._host.send(now, move.key, PathResponse(move.epoch, move.offers[pair]), pair.remote, pair.local)
            return
        move.challenge = move.offers[pair]
        if move.rewriting != pair:
            self._go(now, move, pair)

    def _anew(self, now: float, move: Move) -> None:
        """Announce a move again with a new epoch, so that the peer mixes up nothing of the old and the new."""
        self._announcements.drop(move)
        connections = [c for c in self._host.table.select(move.cids) if c.movable]
        again = Move(
            self._host.next_epoch(), move.key, move.cids, move.moved, move.candidates, move.ranks, move.started,
            move.targets, move.origin, stalled=move.stalled, direct=move.direct, tries=move.tries,
        )  # fmt: skip
        if connections:
            self._announcements.keep(again)
            self.announce_move(now, again)

    def _go(self, now: float, move: Move, pair: Pair) -> None:
        """Reroute the connections of a move to this pair."""
        move.rewriting, local = pair, pair.local
        connections = [c for c in self._host.table.select(move.cids) if c.movable]
        if self._decides(move.key):
            self._announcements.withdraw(move.key, connections)
        there = None if self._host.by_way_of(move.key, pair.remote) else pair.remote.host
        changes = []
        for c in connections:
            elsewhere, tunnelled = local != c.local_now, c.tunnel
            if elsewhere:
                c.confirmed = None  # from the moment that the peer may hear of it
            change = self._rerouting.changed(c, local=local, remote=there, outer=pair, stalled=move.stalled)
            # What is sent before the peer is ready would arrive, but its answer would not.
            c.tunnel_waits = change[2] and (c.tunnel_waits or elsewhere or not tunnelled or c.state is State.SUSPENDED)
            changes.append(change)
        # Not for longer: TCP would learn the wait as the round-trip time, from the timestamps in what is held.
        self._host.timers.set(
            timer_kinds.ReleaseTunnel(tuple(c.cid for c in connections if c.tunnel_waits)), now + constants.READY_TIME
        )
        # Without the tunnel, which keeps what is sent too soon, the kernel holds it back until the peer is ready.
        self._kernel.reroute(
            commands.OurMove(move.epoch, pair), changes, lift={c.cid for c, _, tunnel in changes if tunnel}
        )
        self._suspension.hold_again(now, connections)

    def rewritten(self, now: float, epoch: int, pair: Pair, error: str | None) -> None:
        """The kernel has rerouted the connections of a move: answer the challenge.  On an error nothing changed."""
        move = self._announcements.move(epoch)
        if move is not None and move.rewriting == pair:
            move.rewriting = None
        if move is None or move.chosen != pair or move.challenge is None or error is not None:
            return
        connections = [c for c in self._host.table.select(move.cids) if c.movable]
        if not all(self._installed(c, pair.local) for c in connections):
            return  # an earlier change failed after this one, which had nothing left to do, was asked for
        move.installed = True
        self._suspension.hold_again(now, connections)  # for many that has taken its time
        self._host.send(now, move.key, PathResponse(epoch, move.challenge), pair.remote, pair.local)
        # What is held is not lost: the back-off can go now, before the peer's first segment may fix it.
        self._suspension.revert_backoff([c for c in connections if c.tunnel_waits])
        self._host.emit(commands.RevertBackoffEarly(tuple(c.socket for c in connections if not c.tunnel)))

    @staticmethod
    def _installed(c: Connection, local: IPAddress) -> bool:
        return c.installed == c.flow and c.local_now == local

    def on_ack(self, now: float, event: events.Received, message: AcmAck) -> None:
        """The peer has applied our announcement, or says why not."""
        move = self._announcements.move(message.epoch)
        if move is None or move.key != event.key:
            return
        pair = self._pair_of(move, message.nonce, event)
        if pair is None:
            return
        connections = [c for c in self._host.table.select(move.cids) if c.movable]
        peer = self._host.peers[move.key]
        found = peer.remote != pair.remote
        self._host.endpoint.locate(peer, pair.remote, pair.local)  # whatever it says, this way works
        applied = message.status is AcmStatus.APPLIED
        if applied and not self._host.by_way_of(move.key, pair.remote):
            peer.reflexive = message.reflexive
        if applied and pair != move.chosen:
            # It sends another way: the answer to one challenge was late.  A rendezvous relays only for two who both
            # go by way of it.
            if pair.local in self._host.network.usable:
                move.chosen, move.chosen_at, move.installed, move.challenge = pair, now, False, None
                self._go(now, move, pair)
                self.announce_move(now, move, extra=True)  # so that it says so again, when we are ready
        elif applied:
            if not all(self._installed(c, pair.local) for c in connections):
                return  # the kernel is at it; the next acknowledgement finds it done
            # Others were set going at the challenge; what they sent then is lost if it was long ago.
            late = now - move.chosen_at >= constants.READY_TIME
            ready = [c for c in connections if c.blocked or not c.tunnel_waits or late]
            self._suspension.lift(ready)
            self._suspension.revert_backoff(ready)
            self._rerouting.release(connections)
            self._announcements.drop(move)
            self._announcements.met(now, move.key)
            for connection in connections:
                connection.confirmed = pair.local
            elsewhere = {c.cid for c in connections if move.origin.get(c.cid) != pair.local}
            self._rerouting.path_found(now, connections, elsewhere)
            if move.direct:
                self._choice.log_paths(connections, "direct-again")
            else:
                self._host.notice(
                    "move.finished", peer=move.key, address=pair.local, duration=now - move.started,
                    connections=len(connections), epoch=move.epoch, previous=most(move.origin.values()),
                    cids=tuple(c.cid for c in connections),
                )  # fmt: skip
            if message.connections < len(connections):
                self._agreement.compare_soon(now, move.key)
            elif message.connections > len(connections):
                self._agreement.sync(now, move.key)
            # Those that have written nothing yet do not find out by themselves that their address carries no more.
            self.reconsider(now, self._host.table.movable(move.key) if elsewhere else connections)
            self._agreement.moved(now, peer)
            if found:
                self._host.emit(commands.SavePeer(peer))  # waits for the disk: after all that carries traffic again
        else:
            reason = f"{message.status.name.lower().replace('_', '-')}-there"
            self._host.notice("redirect.refused", peer=move.key, reason=reason, epoch=move.epoch)
            if message.status is AcmStatus.UNUSABLE:
                move.refused.add(pair)
            elif message.status in (AcmStatus.NO_CONNECTION, AcmStatus.STALE):
                self._announcements.drop(move)
                self._rerouting.release(connections)
                self._agreement.compare_soon(now, move.key)

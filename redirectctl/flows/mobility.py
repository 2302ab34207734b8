"""Address changes: ours, and those that peers announce.

    moved host                                   stationary host
    new address usable
      ACM (epoch, new address, connections) ───►  authentic? newer than all before for these connections?
                                            ◄───  PATH_CHALLENGE to the new address
      kernel rewrites (one transaction)
      PATH_RESPONSE ───────────────────────────►  from the new address?  kernel rewrites (one transaction)
                                            ◄───  ACM_ACK
      both sides undo the back-off of their sockets

The ACM goes out from every address the peer may be reached from, each as its own ``new``; the address whose challenge
arrives first is taken.  It is repeated until acknowledged; where the acknowledgement arrives is where the peer sends to
from now on.  As long as that is not where we are, or not known (after a restart), there is something to announce.

Each connection carries the newest epoch applied to it, so an ACM that is late or repeated changes nothing.  Until the
challenge is answered bulk goes to the last validated address, and stays there if it never is.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Container, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from redirectctl.flows import commands, constants
from redirectctl.flows.connection import Connection, Flow
from redirectctl.flows.state import State
from redirectctl.proto import events
from redirectctl.wire import message as messages
from redirectctl.wire.addr import FourTuple, IPAddress, SockAddr
from redirectctl.wire.message import Acm, AcmAck, AcmStatus, Entry, PathChallenge, PathResponse

if TYPE_CHECKING:
    from redirectctl.flows.engine import Engine


Change = tuple[Connection, FourTuple, bool]  # with its new wire tuple, and whether it goes into the tunnel


@dataclass(slots=True)
class Move:
    """An address change of ours, until the peer has confirmed it."""

    epoch: int
    key: bytes
    cids: tuple[bytes, ...]
    entries: tuple[Entry, ...]
    candidates: tuple[IPAddress, ...]
    started: float
    remotes: tuple[SockAddr, ...]
    origin: dict[bytes, IPAddress]  # where each connection was
    tries: int = 0
    sent_at: float = 0.0
    everywhere_at: float = float("-inf")  # when it is to be sent everywhere; meanwhile, to where the peer was last
    chosen: IPAddress | None = None
    chosen_at: float = 0.0
    version: int = 4  # of the connections' sockets
    other_since: float | None = None  # a challenge came to an address of the other family
    stalled: bool = False  # plain packets do not get through: the tunnel must
    direct: bool = False  # an attempt to do without a relay, which may come to nothing
    targets: set[IPAddress] = field(default_factory=set)  # where it was announced
    rewriting: IPAddress | None = None  # what the kernel has been asked for
    installed: bool = False
    challenge: tuple[bytes, SockAddr] | None = None  # to be answered when the kernel rewrites


class Mobility:
    """Moves of this host, and what is common to them and to those of peers (redirects.py)."""

    def __init__(self, engine: Engine) -> None:
        self._e = engine
        self._moves: dict[int, Move] = {}  # by epoch

    # -- our address changes ------------------------------------------------------------------------------------------

    def network_changed(self, now: float) -> None:
        """Which connections have lost their address or route, and which can go on from another?"""
        usable = self._e.network.usable
        for peer in self._e.peers.values():
            if peer.local is not None and peer.local not in usable:
                peer.local = None  # as the kernel routes
        for move in list(self._moves.values()):
            if usable.isdisjoint(move.candidates):
                self._drop(move)  # when one of them is back, that is a change of its own, announced at once
        self._close_short_lived(now)
        self.reconsider(now)

    def reconsider(self, now: float, connections: Iterable[Connection] | None = None) -> None:
        """Compare protected connections, all of them if not told otherwise, with the network as it is."""
        groups: dict[tuple[bytes, tuple[IPAddress, ...], int], list[Connection]] = defaultdict(list)
        unknown = False
        lost: list[Connection] = []
        for connection in self._e.table.movable() if connections is None else connections:
            if connection.there_now not in self._e.network.sources:
                unknown = True
                continue
            sources = self._sources(connection)
            local = connection.here_now
            own = tuple(a for a in sources if a.version == connection.socket.version)
            if own and local.version != connection.socket.version:
                sources = own  # it had to go by the other address family, and need not any more
            if local in sources and connection.state is State.PROTECTED and connection.confirmed == local:
                continue
            if not sources:
                lost.append(connection)
                if connection.peer is not None:
                    self._e.places.astray(now, connection.peer)
            elif connection.peer is not None:
                # Where it was is the best place to be: nothing needs to be rewritten anew.
                ordered = (local,) if local in sources else sources
                groups[connection.peer, ordered, connection.socket.version].append(connection)
        self._e.holding.lose(now, lost, "no-path", since=now, hold_after=constants.HOLD_AFTER)
        for (key, sources, _), moving in groups.items():
            self._move(now, key, sources, moving)
        if unknown:
            self._e.emit(commands.FindRoutes())

    def remotes(self, connection: Connection) -> tuple[IPAddress, ...]:
        """Where the other host may be reached: where it is, then, for the tunnel, what other addresses it has."""
        remotes = [connection.there_now]
        peer = self._e.peers.get(connection.peer) if connection.peer is not None else None
        if peer is not None and self._e.choosing.tunnels(connection):
            remotes += [connection.wire.remote.host, connection.socket.remote.host, *peer.addresses]
            remotes += [place.host for place in self._e.places.of(peer.key)]
        return tuple(dict.fromkeys(remotes))

    def _sources(self, connection: Connection) -> tuple[IPAddress, ...]:
        """Our usable addresses with a route to where the peer is, or may be."""
        net = self._e.network
        routed = (a for remote in self.remotes(connection) for a in net.sources.get(remote, ()))
        return tuple(dict.fromkeys(a for a in routed if a in net.usable))

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
        groups: dict[tuple[bytes, IPAddress], list[Connection]] = defaultdict(list)
        for connection in self._e.table.movable():
            if connection.peer is not None and connection.here_now in self._sources(connection):
                groups[connection.peer, connection.here_now].append(connection)
        for (key, local), connections in groups.items():
            self._move(now, key, (local,), connections, reason)
        return len({key for key, _ in groups})

    def announce_stall(self, now: float, key: bytes, connections: list[Connection]) -> None:
        """Packets of these get lost: perhaps a NAT has forgotten them, and the peer does not know where we are."""
        self._e.holding.question(now, key)
        self._announce_all(now, key, connections, "retransmitting", stalled=True)

    def observed(self, now: float, key: bytes, before: SockAddr, after: SockAddr) -> None:
        """The peer sees us elsewhere than before: a NAT between has another address, or maps us anew."""
        connections = [c for c in self._e.table.movable(key) if c.tunnel or c.natted or after.host != before.host]
        self._announce_all(now, key, connections, "observed-address-changed", stalled=after.host != before.host)

    def announcing(self, key: bytes) -> bool:
        """Whether something is being announced to this peer."""
        return any(move.key == key for move in self._moves.values())

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
    ) -> None:
        concerned = {c.cid for c in connections}
        under_way = [m for m in self._moves.values() if m.key == key and not concerned.isdisjoint(m.cids)]
        for move in under_way:  # is news enough, and of connections that these are only some of
            move.stalled = move.stalled or stalled
            move.direct = move.direct and direct
            self._send_acm(now, move)
        told = {cid for move in under_way for cid in move.cids}
        groups: dict[tuple[tuple[IPAddress, ...], int], list[Connection]] = defaultdict(list)
        for connection in connections:
            if connection.cid not in told and (sources := self._sources(connection)):
                local = connection.here_now
                candidates = (local,) if local in sources else sources
                groups[candidates, connection.socket.version].append(connection)
        for (candidates, _), group in groups.items():
            self._move(now, key, candidates, group, reason, stalled=stalled, direct=direct)

    def _move(
        self,
        now: float,
        key: bytes,
        candidates: tuple[IPAddress, ...],
        connections: list[Connection],
        reason: str | None = None,
        *,
        stalled: bool = False,
        direct: bool = False,
    ) -> None:
        """``reason``: why it is announced although no address of ours has changed."""
        under_way = {
            cid
            for m in self._moves.values()
            if m.key == key and set(candidates) <= set(m.candidates) and (m.chosen is None or m.chosen in candidates)
            for cid in m.cids
        }
        if reason is None:
            if all(c.cid in under_way for c in connections):
                return
            reason = self._why(candidates, connections)
        for cids, entries in self._entries(key, connections):
            for old in [m for m in self._moves.values() if m.key == key and set(m.cids) & set(cids)]:
                stalled = stalled or old.stalled
                self._drop(old)
            of_move = self._e.table.select(cids)
            remotes = tuple(dict.fromkeys(to for c in of_move for to in self._targets(c)))
            origin = {c.cid: c.here_now for c in of_move}
            # Without a path for a while: whatever knew the plain packets on their way may have forgotten them.
            stalled = stalled or any(c.state is State.SUSPENDED for c in of_move)
            move = Move(
                self._e.next_epoch(),
                key,
                cids,
                entries,
                candidates,
                now,
                remotes,
                origin,
                version=of_move[0].socket.version,
                stalled=stalled,
                direct=direct,
            )
            self._moves[move.epoch] = move
            self._e.holding.question(now, key)
            if not direct:  # every minute, and most come to nothing
                self._e.notice(
                    "move.started", peer=key, address=candidates[0], reason=reason,
                    connections=len(cids), epoch=move.epoch,
                )  # fmt: skip
            self._send_acm(now, move)

    @staticmethod
    def _why(candidates: tuple[IPAddress, ...], connections: list[Connection]) -> str:
        if any(c.here_now not in candidates or c.reason == "no-path" for c in connections):
            return "address-changed"
        return "not-confirmed" if all(c.state is State.PROTECTED for c in connections) else "peer-silent"

    def _entries(
        self, key: bytes, connections: list[Connection]
    ) -> Iterable[tuple[tuple[bytes, ...], tuple[Entry, ...]]]:
        """One entry for all connections of an old address when all of them move, else one each; ACMs are bounded."""
        moving = {c.cid for c in connections}
        whole: dict[IPAddress, list[Connection]] = defaultdict(list)
        for connection in self._e.table:
            # One that is still negotiated the peer may have taken on already: an entry for all would move it there.
            if connection.peer == key and (connection.movable or connection.state is State.NEGOTIATING):
                whole[connection.socket.local.host].append(connection)
        pieces: list[tuple[tuple[bytes, ...], Entry]] = []
        for old, of_old in whole.items():
            here = [c for c in of_old if c.cid in moving]
            if len(here) == len(of_old):
                pieces.append((tuple(c.cid for c in here), Entry(old)))
                continue
            for c in here:
                local, remote = c.socket
                pieces.append(((c.cid,), Entry(local.host, remote.host, local.port, remote.port)))
        for start in range(0, len(pieces), messages.MAX_ENTRIES):
            part = pieces[start : start + messages.MAX_ENTRIES]
            yield tuple(cid for cids, _ in part for cid in cids), tuple(entry for _, entry in part)

    def _port(self, key: bytes) -> int:
        peer = self._e.peers.get(key)
        if peer is None or peer.remote is None or self._e.meeting.by_way_of(key, peer.remote):
            return self._e.policy.control_port
        return peer.remote.port

    def _targets(self, connection: Connection) -> Iterable[SockAddr]:
        """Control ports where the other host may be."""
        if connection.outer_remote is not None:
            yield connection.outer_remote
        for remote in self.remotes(connection):
            # What a NAT gave it is good for where we were; what a NAT forwards to it is good for everybody.
            yield SockAddr(remote, self._port(connection.peer or b""))
            yield SockAddr(remote, self._e.policy.control_port)

    def _send_acm(self, now: float, move: Move, extra: bool = False) -> None:
        """From every candidate; the address it is sent from is the one it announces.

        ``extra``: because of keys or places that are new; the timer goes on.
        """
        peer = self._e.peers.get(move.key)
        if peer is None or not any(c.movable for c in self._e.table.select(move.cids)):
            self._drop(move)
            return
        targets = list(move.remotes)
        if peer.remote is not None:
            targets.append(peer.remote)
        if move.tries >= constants.ACM_WIDEN:
            targets += [SockAddr(a, self._port(move.key)) for a in peer.identity]
        targets += self._e.places.of(move.key)
        if move.tries >= constants.ACM_RELAY:
            targets += self._e.meeting.ways(move.key)
        if move.direct and move.chosen is None:
            targets = [t for t in targets if not self._e.meeting.by_way_of(move.key, t)]
            if move.tries >= constants.DIRECT_TRIES:
                self._drop(move)
                return
        candidates = move.candidates
        if move.chosen is not None and now - move.chosen_at < constants.CHOICE_TIME:
            candidates = (move.chosen,)
        elif move.tries < constants.ACM_WIDEN:
            # Between addresses of the other family there is only the tunnel: not if these answer.
            candidates = tuple(a for a in candidates if a.version == move.version) or candidates
        pause = None if move.direct else self._e.holding.pause(now, move.key)
        if pause is not None and peer.remote is not None and self._e.meeting.by_way_of(move.key, peer.remote):
            pause = max(pause, constants.PROBE_PAUSE_RELAYED)
        everywhere = pause is None or extra or now >= move.everywhere_at
        if not everywhere:
            targets = [peer.remote or move.remotes[0]]
        # Not when it answers, whatever it answers; and what a handshake made us send calls for no other.
        silent = peer.last_contact is None or peer.last_contact < move.sent_at
        rehandshake = not extra and silent and move.tries >= constants.ACM_REHANDSHAKE
        if rehandshake and everywhere:
            self._e.places.seek(now, move.key)
        for source in (a for a in candidates if a in self._e.network.usable):
            for to in dict.fromkeys(t for t in targets if t.host.version == source.version):
                if self._e.meeting.by_way_of(move.key, to) and self._e.meeting.seen_from(to) not in (None, source):
                    continue  # it would be handed over, but the answer would not come to this address
                message = Acm(move.epoch, source, move.entries, stalled=move.stalled)
                move.targets.add(to.host)
                sent = self._e.send(now, move.key, message, to, source)
                if not sent or rehandshake:
                    self._e.contact(now, to, source, move.key, again=not sent)
        move.sent_at = now
        if extra:
            return  # the timer goes on
        if everywhere:
            move.everywhere_at = now + constants.ACM_RETRIES[min(move.tries, len(constants.ACM_RETRIES) - 1)]
            move.tries += 1
        at = move.everywhere_at if pause is None else min(move.everywhere_at, now + pause)
        self._e.timers.set(("acm", move.epoch), at)

    def session_up(self, now: float, key: bytes) -> None:
        """Moves that waited for keys."""
        for move in [m for m in self._moves.values() if m.key == key]:
            self._send_acm(now, move, extra=True)

    def told(self, now: float, key: bytes, *, news: bool) -> None:
        """The peer may be at certain places: what waits for it is announced there now; if they are news, soon again."""
        for move in [m for m in self._moves.values() if m.key == key]:
            self._send_acm(now, move, extra=True)
            if news and move.epoch in self._moves:
                move.tries = min(move.tries, constants.ACM_WIDEN)
                move.everywhere_at = now + constants.ACM_RETRIES[move.tries]
                self._e.timers.set(("acm", move.epoch), move.everywhere_at)

    def timer(self, now: float, kind: str, *rest: Any) -> None:
        """An ACM or a challenge was not answered."""
        if kind == "challenge":
            self._e.redirects.timer(now, (rest[0], rest[1], rest[2]))
            return
        move = self._moves.get(rest[0])
        if move is not None:
            self._send_acm(now, move)

    def forget_idle(self) -> None:
        """Announcements of connections that are all gone: their next repeat may be far away."""
        for move in list(self._moves.values()):
            if not any(c.movable for c in self._e.table.select(move.cids)):
                self._drop(move)

    def _drop(self, move: Move) -> None:
        self._moves.pop(move.epoch, None)
        self._e.timers.cancel(("acm", move.epoch))

    def _on_challenge(self, now: float, event: events.Received, message: PathChallenge) -> None:
        """The stationary host has our ACM: rewrite, then answer from the address it challenged."""
        move = self._moves.get(message.epoch)
        if move is None or move.key != event.key:
            return  # superseded by a later move, or finished
        if event.source.host not in move.targets:
            # Our packets would follow it there.  Its port may be another one: NATs choose them anew.
            reason = "challenge-from-elsewhere"
            self._e.notice("packet.refused", peer=event.key, reason=reason, source=str(event.source))
            return
        if event.local not in move.candidates:
            self._e.notice("packet.refused", peer=event.key, reason="challenge-at-another-address", address=event.local)
            return
        if move.chosen is None and event.local.version != move.version and self._other_may_come(now, move):
            return
        if move.chosen is None or (move.chosen != event.local and now - move.chosen_at >= constants.CHOICE_TIME):
            move.chosen, move.chosen_at, move.installed = event.local, now, False
        if move.chosen != event.local:
            return
        if move.installed:
            self._e.send(now, move.key, PathResponse(move.epoch, message.data), event.source, event.local)
            return
        move.challenge = (message.data, event.source)
        if move.rewriting == move.chosen:
            return
        self._go(now, move, move.chosen, event.source)

    def _other_may_come(self, now: float, move: Move) -> bool:
        """Between the connections' own addresses there may be more than the tunnel: that family has a moment longer.

        The challenge at hand is repeated.
        """
        if not any(a.version == move.version and a in self._e.network.usable for a in move.candidates):
            return False
        if move.other_since is None:
            move.other_since = now
        return now - move.other_since < constants.FAMILY_TIME

    def _go(self, now: float, move: Move, local: IPAddress, remote: SockAddr) -> None:
        """The connections of a move are at ``local`` from now on; by the tunnel the peer is reached at ``remote``."""
        move.rewriting = local
        connections = [c for c in self._e.table.select(move.cids) if c.movable]
        changes = []
        for c in connections:
            elsewhere, tunnelled = local != c.here_now, c.tunnel
            if elsewhere:
                c.confirmed = None  # from the moment that the peer may hear of it
            change = self.changed(c, local=local, outer=(local, remote), stalled=move.stalled)
            # What is sent before the peer is ready would arrive, but its answer would not.
            c.holding = change[2] and (c.holding or elsewhere or not tunnelled or c.state is State.SUSPENDED)
            changes.append(change)
        # Without the tunnel, which keeps what is sent too soon, the kernel holds it back until the peer is ready.
        self.reroute(("move", move.epoch, local), changes, lift={c.cid for c, _, tunnel in changes if tunnel})
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
    ) -> None:
        """Store wire tuples and ways, tell the tunnel, then one kernel transaction for all of them.

        ``hold``: those of which the kernel holds back what they send; ``lift``: those of which it no longer does.
        """
        remove: list[Flow] = []
        add: list[Flow] = []
        for connection, wire, tunnel in changes:
            held = connection.cid in hold or (connection.held and connection.cid not in lift)
            if (wire, tunnel, held) != (connection.wire, connection.tunnel, connection.held):
                remove.append(connection.flow)
                connection.wire, connection.tunnel, connection.held = wire, tunnel, held
                add.append(connection.flow)
        connections = [connection for connection, _, _ in changes]
        if add:
            self._e.emit(commands.SaveConnections(tuple(connections)))
        self._e.carry(connections)
        self._e.emit(commands.Rewrite((*token, tuple(remove), tuple(add)), tuple(add), tuple(remove)))

    def rewritten(self, now: float, token: tuple[Any, ...], error: str | None) -> None:
        """The kernel transaction of a move is done, or failed and nothing was changed."""
        *what, _, add = token
        flows = {flow.socket: flow for flow in add}
        concerned = [c for c in self._e.table if c.guarded and c.socket in flows]
        if error is None:
            for connection in concerned:
                connection.installed = flows[connection.socket]
        else:
            # One that has been changed again meanwhile is left to that change, which must fail too.
            undone = [c for c in concerned if c.flow == flows[c.socket] and c.installed is not None]
            for connection in undone:
                if connection.installed is not None:
                    connection.wire, connection.tunnel = connection.installed.wire, connection.installed.tunnel
                    connection.held = connection.installed.suspended
            if what[0] == "acm":
                self._e.redirects.take_back((what[1], what[2], what[3]))
            self._e.emit(commands.SaveConnections(tuple(c for c in undone if c.movable)))
            self._e.notice("redirect.refused", reason="kernel", detail=error)
        match what[0]:
            case "move":
                self._moved(now, what[1], what[2], error)
            case "path":
                self._e.choosing.rewritten(now, set(flows), error)
            case "hold":
                self._e.holding.rewritten(now, what[1], flows, error)
            case "lift":
                pass
            case _:
                self._e.redirects.applied(now, (what[1], what[2], what[3]), error)

    def _moved(self, now: float, epoch: int, chosen: IPAddress, error: str | None) -> None:
        move = self._moves.get(epoch)
        if move is not None and move.rewriting == chosen:
            move.rewriting = None
        if move is None or move.chosen != chosen or move.challenge is None or error is not None:
            return
        connections = [c for c in self._e.table.select(move.cids) if c.movable]
        if not all(self._installed(c, chosen) for c in connections):
            return  # an earlier change failed after this one, which had nothing left to do, was asked for
        move.installed = True
        data, to = move.challenge
        self._e.send(now, move.key, PathResponse(epoch, data), to, chosen)
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
        connections = [c for c in self._e.table.select(move.cids) if c.movable]
        peer = self._e.peers[move.key]
        peer.remote, peer.local = event.source, event.local  # whatever it says, this way works
        applied = message.status is AcmStatus.APPLIED
        elsewhere = any(c.tunnel and c.outer_remote != event.source for c in connections)
        if applied and (event.local != move.chosen or elsewhere):
            # It sends another way: we had two candidates, or two ways to it, and the answer to one challenge was late.
            # A rendezvous relays only for two who both go by way of it.
            if event.local in move.candidates:
                move.chosen, move.chosen_at, move.installed, move.challenge = event.local, now, False, None
                self._go(now, move, event.local, event.source)
                self._send_acm(now, move, extra=True)  # so that it says so again, when we are ready
        elif applied:
            if move.chosen is None or not all(self._installed(c, move.chosen) for c in connections):
                return  # the kernel is at it; the next acknowledgement finds it done
            ready = [c for c in connections if c.held or not c.holding]  # others were set going at the challenge
            self._e.holding.lift(ready)
            self.kick(ready)
            self._release(connections)
            self._drop(move)
            for connection in connections:
                connection.confirmed = move.chosen
            self.arrived(now, connections, {c.cid for c in connections if move.origin.get(c.cid) != move.chosen})
            if move.direct:
                self._e.choosing.tell(connections, "direct-again")
            else:
                self._e.notice(
                    "move.finished", peer=move.key, address=move.chosen, duration=now - move.started,
                    connections=len(connections), epoch=move.epoch,
                )  # fmt: skip
            if message.connections < len(connections):
                self._e.protection.doubt(now, move.key)
            elif message.connections > len(connections):
                self._e.protection.sync(now, move.key)
            self.reconsider(now)
        else:
            reason = f"{message.status.name.lower().replace('_', '-')}-there"
            self._e.notice("redirect.refused", peer=move.key, reason=reason, epoch=move.epoch)
            if message.status in (AcmStatus.NO_CONNECTION, AcmStatus.STALE):
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
            connection.moves += connection.cid in elsewhere or connection.reason == "no-path"
            if connection.state is State.SUSPENDED:
                self._e.holding.arrived(now, connection)
            self._e.choosing.tell([connection])
        if connections:
            self._e.emit(commands.SaveConnections(tuple(connections)))
            self._e.choosing.arrived(now, connections)

    def carried(self, key: bytes, cids: set[bytes]) -> None:
        """Plain packets of these get through where they are."""
        for move in self._moves.values():
            if move.key == key and cids.issuperset(move.cids):
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

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
arrives first is taken.  It is repeated until acknowledged.  Each connection carries the newest epoch applied to it, so
an ACM that is late or repeated changes nothing.  Until the challenge is answered bulk goes to the last validated
address, and stays there if it never is.
"""

from __future__ import annotations

import hmac
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from redirectctl.flows import commands, constants
from redirectctl.flows.connection import Connection, Flow, change
from redirectctl.flows.state import State
from redirectctl.proto import events
from redirectctl.wire import message as messages
from redirectctl.wire.addr import FourTuple, IPAddress, SockAddr
from redirectctl.wire.message import Acm, AcmAck, AcmStatus, Entry, PathChallenge, PathResponse

if TYPE_CHECKING:
    from redirectctl.flows.engine import Engine


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
    tries: int = 0
    chosen: IPAddress | None = None
    chosen_at: float = 0.0
    installed: bool = False
    challenge: tuple[bytes, SockAddr] | None = None  # to be answered when the kernel rewrites


@dataclass(slots=True)
class Validation:
    """An address that a peer has announced, until it has answered our challenge."""

    epoch: int
    key: bytes
    new: IPAddress
    source: SockAddr
    local: IPAddress
    data: bytes
    cids: tuple[bytes, ...]
    tries: int = 0
    applying: list[Connection] = field(default_factory=list)


class Mobility:
    """Moves of this host and of its peers."""

    def __init__(self, engine: Engine) -> None:
        self._e = engine
        self._moves: dict[int, Move] = {}  # by epoch
        self._validations: dict[tuple[bytes, int, IPAddress], Validation] = {}

    # -- our address changes ------------------------------------------------------------------------------------------

    def network_changed(self, now: float) -> None:
        """Which connections have lost their address or route, and which can go on from another?"""
        self._close_short_lived(now)
        self.reconsider(now)

    def reconsider(self, now: float) -> None:
        """Compare every protected connection with the network as it is."""
        groups: dict[tuple[bytes, tuple[IPAddress, ...]], list[Connection]] = defaultdict(list)
        unknown = False
        for connection in self._e.table.movable():
            if connection.wire.remote.host not in self._e.network.sources:
                unknown = True
                continue
            sources = self._sources(connection)
            if connection.wire.local.host in sources and connection.state is State.PROTECTED:
                continue
            if not sources:
                self._lose(now, connection)
            elif connection.peer is not None:
                local = connection.wire.local.host
                # Where it was is the best place to be: nothing needs to be rewritten anew.
                ordered = (local,) if local in sources else sources
                groups[connection.peer, ordered].append(connection)
        for (key, sources), connections in groups.items():
            self._move(now, key, sources, connections)
        if unknown:
            self._e.emit(commands.FindRoutes())

    def _sources(self, connection: Connection) -> tuple[IPAddress, ...]:
        """Our usable addresses with a route to where the peer is."""
        net = self._e.network
        return tuple(a for a in net.sources.get(connection.wire.remote.host, ()) if a in net.usable)

    def _lose(self, now: float, connection: Connection) -> None:
        if connection.state is State.PROTECTED:
            connection.lost_since = now
            change(connection, State.SUSPENDED, now, "no-path")
            self._e.notice("connection.suspended", connection, reason="no-path")

    def _close_short_lived(self, now: float) -> None:
        """Their address is gone for good when there is another: the programs learn it now, not in 15 minutes."""
        net = self._e.network
        for connection in [c for c in self._e.table if c.state is State.SHORT]:
            local, remote = connection.socket.local.host, connection.socket.remote.host
            if self._e.policy.close_short_lived and local not in net.usable and net.sources.get(remote):
                self._e.emit(commands.Destroy((connection.socket,)))
                self._e.finish(now, connection, "address-gone")
                self._e.protection.gone(now, connection.socket)

    def announce(self, now: float) -> int:
        """Say where we are to every peer of protected connections, whether anything changed or not."""
        groups: dict[tuple[bytes, IPAddress], list[Connection]] = defaultdict(list)
        for connection in self._e.table.movable():
            if connection.peer is not None and connection.wire.local.host in self._sources(connection):
                groups[connection.peer, connection.wire.local.host].append(connection)
        for (key, local), connections in groups.items():
            self._move(now, key, (local,), connections, again=True)
        return len({key for key, _ in groups})

    def _move(
        self,
        now: float,
        key: bytes,
        candidates: tuple[IPAddress, ...],
        connections: list[Connection],
        again: bool = False,
    ) -> None:
        under_way = {cid for m in self._moves.values() if m.candidates == candidates for cid in m.cids}
        if not again and all(c.cid in under_way for c in connections):
            return
        for cids, entries in self._entries(key, connections):
            for old in [m for m in self._moves.values() if m.key == key and set(m.cids) & set(cids)]:
                self._drop(old)
            of_move = self._e.table.select(cids)
            remotes = tuple(
                {c.wire.remote.host: SockAddr(c.wire.remote.host, self._port(key)) for c in of_move}.values()
            )
            move = Move(self._e.next_epoch(), key, cids, entries, candidates, now, remotes)
            self._moves[move.epoch] = move
            self._e.notice(
                "move.started", peer=key, address=candidates[0], reason="announced" if again else "address-changed",
                connections=len(cids), epoch=move.epoch,
            )  # fmt: skip
            self._send_acm(now, move)

    def _entries(
        self, key: bytes, connections: list[Connection]
    ) -> Iterable[tuple[tuple[bytes, ...], tuple[Entry, ...]]]:
        """One entry for all connections of an old address when all of them move, else one each; ACMs are bounded."""
        moving = {c.cid for c in connections}
        whole: dict[IPAddress, list[Connection]] = defaultdict(list)
        for connection in self._e.table.movable(key):
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
        return peer.remote.port if peer is not None and peer.remote is not None else self._e.policy.control_port

    def _send_acm(self, now: float, move: Move) -> None:
        """From every candidate; the address it is sent from is the one it announces."""
        peer = self._e.peers.get(move.key)
        if peer is None or not any(c.movable for c in self._e.table.select(move.cids)):
            self._drop(move)
            return
        targets = list(move.remotes)
        if peer.remote is not None:
            targets.append(peer.remote)
        if move.tries >= constants.ACM_WIDEN:
            targets += [SockAddr(a, self._port(move.key)) for a in peer.identity]
        candidates = move.candidates
        if move.chosen is not None and now - move.chosen_at < constants.CHOICE_TIME:
            candidates = (move.chosen,)
        for source in candidates:
            for to in dict.fromkeys(t for t in targets if t.host.version == source.version):
                message = Acm(move.epoch, source, move.entries)
                sent = self._e.send(now, move.key, message, to, source)
                if not sent or move.tries >= constants.ACM_REHANDSHAKE:
                    self._e.contact(now, to, source, move.key)
        delays = constants.ACM_RETRIES
        self._e.timers.set(("acm", move.epoch), now + delays[min(move.tries, len(delays) - 1)])
        move.tries += 1

    def session_up(self, now: float, key: bytes) -> None:
        """Moves that waited for keys."""
        for move in [m for m in self._moves.values() if m.key == key]:
            self._send_acm(now, move)

    def timer(self, now: float, kind: str, *rest: Any) -> None:
        """An ACM or a challenge was not answered."""
        if kind == "acm":
            move = self._moves.get(rest[0])
            if move is not None:
                self._send_acm(now, move)
            return
        validation = self._validations.get((rest[0], rest[1], rest[2]))
        if validation is not None:
            self._challenge(now, validation)

    def _drop(self, move: Move) -> None:
        self._moves.pop(move.epoch, None)
        self._e.timers.cancel(("acm", move.epoch))

    def _on_challenge(self, now: float, event: events.Received, message: PathChallenge) -> None:
        """The stationary host has our ACM: rewrite, then answer from the address it challenged."""
        move = self._moves.get(message.epoch)
        if move is None or move.key != event.key:
            return  # superseded by a later move, or finished
        if event.local not in move.candidates:
            self._e.notice("packet.refused", peer=event.key, reason="challenge-at-another-address", address=event.local)
            return
        if move.chosen is None or (move.chosen != event.local and now - move.chosen_at >= constants.CHOICE_TIME):
            move.chosen, move.chosen_at, move.installed = event.local, now, False
        if move.chosen != event.local:
            return
        if move.installed:
            self._e.send(now, move.key, PathResponse(move.epoch, message.data), event.source, event.local)
            return
        move.challenge = (message.data, event.source)
        connections = [c for c in self._e.table.select(move.cids) if c.movable]
        self._rewrite(("move", move.epoch, move.chosen), connections, local=move.chosen)

    def _rewrite(
        self,
        token: tuple[Any, ...],
        connections: list[Connection],
        *,
        local: IPAddress | None = None,
        remote: IPAddress | None = None,
    ) -> None:
        """Store the new wire tuples, then one kernel transaction for all of them."""
        remove: list[Flow] = []
        add: list[Flow] = []
        for connection in connections:
            (here, lport), (there, rport) = connection.wire
            wire = FourTuple(SockAddr(local or here, lport), SockAddr(remote or there, rport))
            if wire != connection.wire:
                remove.append(connection.flow)
                connection.wire = wire
                add.append(connection.flow)
        if add:
            self._e.emit(commands.SaveConnections(tuple(connections)))
        self._e.emit(commands.Rewrite((*token, tuple(remove), tuple(add)), tuple(add), tuple(remove)))

    def rewritten(self, now: float, token: tuple[Any, ...], error: str | None) -> None:
        """The kernel transaction of a move is done, or failed and nothing was changed."""
        *what, remove, _ = token
        if error is not None:
            before = {flow.socket: flow.wire for flow in remove}
            undone = [c for c in self._e.table if c.socket in before]
            for connection in undone:
                connection.wire = before[connection.socket]
            self._e.emit(commands.SaveConnections(tuple(undone)))
            self._e.notice("redirect.refused", reason="kernel", detail=error)
        if what[0] == "move":
            self._moved(now, what[1], what[2], error)
        else:
            self._applied(now, (what[1], what[2], what[3]), error)

    def _moved(self, now: float, epoch: int, chosen: IPAddress, error: str | None) -> None:
        move = self._moves.get(epoch)
        if move is None or move.chosen != chosen or move.challenge is None or error is not None:
            return
        move.installed = True
        data, to = move.challenge
        self._e.send(now, move.key, PathResponse(epoch, data), to, chosen)

    def _on_ack(self, now: float, event: events.Received, message: AcmAck) -> None:
        move = self._moves.get(message.epoch)
        if move is None or move.key != event.key:
            return
        connections = [c for c in self._e.table.select(move.cids) if c.movable]
        if message.status is AcmStatus.APPLIED and move.installed:
            self._drop(move)
            peer = self._e.peers[move.key]
            peer.remote, peer.local = event.source, event.local
            self._arrived(now, connections)
            self._e.notice(
                "move.finished", peer=move.key, address=move.chosen, duration=now - move.started,
                connections=len(connections), epoch=move.epoch,
            )  # fmt: skip
            if message.connections != len(connections):
                self._e.protection.sync(now, move.key)
            self.reconsider(now)
        elif message.status in (AcmStatus.NO_CONNECTION, AcmStatus.STALE):
            self._drop(move)
            self._e.notice(
                "redirect.refused", peer=move.key, reason=f"{message.status.name.lower()}-there", epoch=move.epoch
            )
            self._e.protection.sync(now, move.key)
        elif message.status is not AcmStatus.APPLIED:
            self._e.notice(
                "redirect.refused", peer=move.key, reason=f"{message.status.name.lower()}-there", epoch=move.epoch
            )

    def _arrived(self, now: float, connections: list[Connection]) -> None:
        """There is a path again: both ends' sockets send at once."""
        for connection in connections:
            connection.moves += 1
            if connection.state is State.SUSPENDED:
                lost = connection.lost_since
                connection.lost_since = None
                change(connection, State.PROTECTED, now)
                self._e.notice("connection.resumed", connection, duration=None if lost is None else now - lost)
            self._e.notice(
                "path.changed", connection, path="rewritten" if connection.moved else "original",
                wire_local=str(connection.wire.local), wire_remote=str(connection.wire.remote),
            )  # fmt: skip
        if connections:
            self._e.emit(commands.SaveConnections(tuple(connections)))
            self._e.emit(commands.Kick(tuple(c.socket for c in connections)))

    # -- address changes of peers -------------------------------------------------------------------------------------

    def received(self, now: float, event: events.Received) -> None:
        """Acm, AcmAck, PathChallenge, PathResponse."""
        match event.message:
            case Acm():
                self._on_acm(now, event, event.message)
            case AcmAck():
                self._on_ack(now, event, event.message)
            case PathChallenge():
                self._on_challenge(now, event, event.message)
            case PathResponse():
                self._on_response(now, event, event.message)

    def _on_acm(self, now: float, event: events.Received, message: Acm) -> None:
        key, new = event.key, message.new
        reason = self._unusable(event, new)
        if reason is not None:
            self._e.notice("redirect.refused", peer=key, reason=reason, address=new, source=str(event.source))
            self._ack(now, event, message.epoch, AcmStatus.UNUSABLE)
            return
        named = self._named(key, message)
        unanswered = [c for c in named if c.state is State.NEGOTIATING]
        if unanswered:
            self._e.protection.confirm(now, unanswered)
            return  # it will be repeated
        if not named:
            self._e.notice("redirect.refused", peer=key, reason="no-connection", address=new)
            self._ack(now, event, message.epoch, AcmStatus.NO_CONNECTION)
            return
        fresh = [c for c in named if message.epoch > c.remote_epoch and message.epoch >= c.announced_epoch]
        if not fresh:
            applied = [c for c in named if c.remote_epoch == message.epoch]
            if applied and all(c.wire.remote.host == new for c in applied):
                self._ack(now, event, message.epoch, AcmStatus.APPLIED, len(applied))  # our answer was lost
            elif not applied:
                self._e.notice("redirect.refused", peer=key, reason="stale-epoch", address=new, epoch=message.epoch)
                self._ack(now, event, message.epoch, AcmStatus.STALE)
            return
        for connection in fresh:
            connection.announced_epoch = message.epoch
        validation = self._validations.get((key, message.epoch, new))
        if validation is None:
            self._make_room(key)
            cids = tuple(c.cid for c in fresh)
            validation = Validation(message.epoch, key, new, event.source, event.local, self._e.rng(8), cids)
            self._validations[key, message.epoch, new] = validation
            self._challenge(now, validation)

    def _unusable(self, event: events.Received, new: IPAddress) -> str | None:
        """Why no traffic may be sent to this address, or None."""
        if new.is_multicast or new.is_unspecified or new.is_loopback or new.is_link_local or new.is_reserved:
            return "no-host-address"
        if new in self._e.network.usable:
            return "our-own-address"
        if new != event.source.host:
            # Somebody's NAT, or somebody else's address: the redirect must come from where it leads to.
            return "announced-from-elsewhere"
        return None

    def _named(self, key: bytes, message: Acm) -> list[Connection]:
        """The peer's connections that the entries name."""
        found: list[Connection] = []
        for connection in self._e.table:
            if connection.peer != key or not (connection.movable or connection.state is State.NEGOTIATING):
                continue
            here, there = connection.socket
            for entry in message.entries:
                if (
                    entry.old == there.host
                    and entry.destination in (None, here.host)
                    and entry.sport in (0, there.port)
                    and entry.dport in (0, here.port)
                    and message.new.version == there.host.version
                ):
                    found.append(connection)
                    break
        return found

    def _make_room(self, key: bytes) -> None:
        mine = sorted(k for k in self._validations if k[0] == key)
        for oldest in mine[: max(0, len(mine) - constants.MAX_VALIDATIONS + 1)]:
            self._forget(self._validations[oldest])

    def _challenge(self, now: float, validation: Validation) -> None:
        """Nothing but this small datagram goes to the announced address before it answers (RFC 9000, section 8.2)."""
        if validation.tries >= len(constants.CHALLENGE_RETRIES):
            self._forget(validation)
            self._e.notice(
                "redirect.refused", peer=validation.key, reason="path-challenge-failed", address=validation.new
            )
            return
        message = PathChallenge(validation.epoch, validation.data)
        self._e.send(now, validation.key, message, SockAddr(validation.new, validation.source.port), validation.local)
        timer = ("challenge", validation.key, validation.epoch, validation.new)
        self._e.timers.set(timer, now + constants.CHALLENGE_RETRIES[validation.tries])
        validation.tries += 1

    def _forget(self, validation: Validation) -> None:
        self._validations.pop((validation.key, validation.epoch, validation.new), None)
        self._e.timers.cancel(("challenge", validation.key, validation.epoch, validation.new))

    def _on_response(self, now: float, event: events.Received, message: PathResponse) -> None:
        validation = self._validations.get((event.key, message.epoch, event.source.host))
        if validation is None or not hmac.compare_digest(validation.data, message.data):
            return  # late, or from an address that we did not challenge
        candidates = self._e.table.select(validation.cids)
        connections = [c for c in candidates if c.movable and c.announced_epoch == validation.epoch > c.remote_epoch]
        if validation.applying or not connections:
            return
        validation.applying = connections
        for connection in connections:
            connection.remote_epoch = validation.epoch
        self._rewrite(("acm", event.key, validation.epoch, validation.new), connections, remote=validation.new)

    def _applied(self, now: float, which: tuple[bytes, int, IPAddress], error: str | None) -> None:
        validation = self._validations.get(which)
        if validation is None:
            return
        self._forget(validation)
        key, connections = validation.key, validation.applying
        to = SockAddr(validation.new, validation.source.port)
        status = AcmStatus.APPLIED if error is None else AcmStatus.FAILED
        self._e.send(now, key, AcmAck(validation.epoch, status, len(connections)), to, validation.local)
        if error is not None:
            return
        peer = self._e.peers[key]
        peer.remote, peer.local = to, validation.local
        self._e.notice(
            "move.received", peer=key, address=validation.new, connections=len(connections), epoch=validation.epoch
        )
        self._arrived(now, [c for c in connections if c.movable])
        self._e.emit(commands.SavePeer(peer))  # waits for the disk: after all that carries traffic again
        self.reconsider(now)

    def _ack(self, now: float, event: events.Received, epoch: int, status: AcmStatus, count: int = 0) -> None:
        self._e.send(now, event.key, AcmAck(epoch, status, count), event.source, event.local)

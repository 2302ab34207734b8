"""Address changes that peers announce (mobility.py draws the exchange).

An announcement is heeded if it comes from the connection's peer in a session, with an epoch above all before for that
connection.  Each way on which it comes (the peer's address and port, our address) is challenged with data of its own.
Traffic follows to the way whose data has come back, wherever the answer itself seems to come from.

If both hosts announce at the same time, one decides: the one with the smaller key.  The other's announcement tells it
only where the other one is.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from redirectctl.flows import commands, constants
from redirectctl.flows.connection import Connection
from redirectctl.flows.devices import may_use
from redirectctl.flows.places import SEEN
from redirectctl.proto import events
from redirectctl.wire.addr import IPAddress, SockAddr
from redirectctl.wire.message import Acm, AcmAck, AcmStatus, PathChallenge, PathResponse

if TYPE_CHECKING:
    from redirectctl.flows.engine import Engine


@dataclass(slots=True)
class Way:
    """How an announcement has come, and would be answered."""

    source: SockAddr
    local: IPAddress
    new: IPAddress  # what the peer says it is; the source's address, if there is no NAT
    nonce: bytes  # of the latest announcement that came this way
    data: bytes  # of our challenge


@dataclass(slots=True)
class Validation:
    """An announcement of a peer, until one of its ways has answered our challenge."""

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


class Redirects:
    """Announcements of peers."""

    def __init__(self, engine: Engine) -> None:
        self._e = engine
        self._validations: dict[tuple[bytes, int], Validation] = {}
        self._of_peer: dict[bytes, dict[int, Validation]] = {}  # the same, by epoch

    def timer(self, now: float, key: bytes, epoch: int) -> None:
        """A challenge was not answered."""
        validation = self._validations.get((key, epoch))
        if validation is not None and not validation.applying:
            self._challenge(now, validation)

    def on_acm(self, now: float, event: events.Received, message: Acm) -> None:
        """Challenge the way that it came, or refuse for a named reason."""
        key = event.key
        validation = self._validations.get((key, message.epoch))
        if validation is not None and validation.applying:
            return  # the kernel is at it: it is acknowledged when that is done
        reason = self._unusable(event, message.new)
        if reason is not None:
            self._e.notice("redirect.refused", peer=key, reason=reason, address=message.new, source=str(event.source))
            self._ack(now, event, message, AcmStatus.UNUSABLE)
        elif validation is not None:
            self._take_way(now, validation, event, message)
        else:
            self._begin(now, event, message)

    def _begin(self, now: float, event: events.Received, message: Acm) -> None:
        key = event.key
        named = self._named(key, message, event.source.host)
        if not named:
            self._e.notice("redirect.refused", peer=key, reason="no-connection", address=message.new)
            self._ack(now, event, message, AcmStatus.NO_CONNECTION)
            return
        if not any(may_use(self._e.policy, self._e.network, c, event.local) for c in named):
            self._e.notice("redirect.refused", peer=key, reason="stays-on-device", address=message.new)
            self._ack(now, event, message, AcmStatus.UNUSABLE)
            return
        fresh = [c for c in named if message.epoch > c.remote_epoch and message.epoch >= c.announced_epoch]
        if not fresh:
            self._again(now, event, message, [c for c in named if c.remote_epoch == message.epoch])
            return
        decided = self._e.mobility.deciding(now, key)
        fresh = [c for c in fresh if c.cid not in decided]
        if not fresh:
            return  # it repeats that until it has heard ours
        for connection in fresh:
            connection.announced_epoch = message.epoch
        self._forget_outdated(key)
        self._make_room(key)
        validation = Validation(message.epoch, key, tuple(c.cid for c in fresh), message.stalled, now)
        self._validations[key, message.epoch] = self._of_peer.setdefault(key, {})[message.epoch] = validation
        self._take_way(now, validation, event, message)

    def _again(self, now: float, event: events.Received, message: Acm, applied: list[Connection]) -> None:
        """Nothing is to be done any more: our answer was lost, or it comes late."""
        if not applied:
            self._e.notice(
                "redirect.refused", peer=event.key, reason="stale-epoch", address=message.new, epoch=message.epoch
            )
            self._ack(now, event, message, AcmStatus.STALE)
        elif all(event.source.host in (c.there_now, c.wire.remote.host) for c in applied):
            self._ack(now, event, message, AcmStatus.APPLIED, len(applied))

    def _take_way(self, now: float, validation: Validation, event: events.Received, message: Acm) -> None:
        """One more way, or a known one once more: the challenge to it is repeated by the timer."""
        way = validation.ways.get((event.source, event.local))
        if way is not None:
            way.nonce = message.nonce
            return
        while len(validation.ways) >= constants.MAX_WAYS:
            del validation.ways[next(iter(validation.ways))]
        if not self._e.meeting.by_way_of(validation.key, event.source):
            # If we move now, before it has answered, it would not be where we look for it.
            self._e.places.tell(now, validation.key, SEEN, (event.source,), constants.PLACE_TIME)
        way = Way(event.source, event.local, message.new, message.nonce, self._e.rng(8))
        validation.ways[event.source, event.local] = way
        if validation.tries:
            self._send_challenge(now, validation, way)
        else:
            self._challenge(now, validation)

    def withdraw(self, key: bytes, connections: list[Connection]) -> None:
        """We announce these ourselves, and decide: what the peer has announced of them comes to nothing."""
        concerned = {c.cid for c in connections}
        for validation in [v for v in self._of(key) if not v.applying and not concerned.isdisjoint(v.cids)]:
            self._forget(validation)

    def validates(self, key: bytes, connections: Iterable[Connection]) -> bool:
        """Whether the peer has announced all of these, and is being asked whether it is there."""
        announced = {cid for validation in self._of(key) for cid in validation.cids}
        return announced.issuperset(c.cid for c in connections)

    def applying(self, key: bytes, cids: Iterable[bytes]) -> bool:
        """Whether the kernel is being asked for something that the peer has announced of these."""
        concerned = set(cids)
        return any(v.applying and not concerned.isdisjoint(v.cids) for v in self._of(key))

    def _of(self, key: bytes) -> list[Validation]:
        return list(self._of_peer.get(key, {}).values())

    def _unusable(self, event: events.Received, new: IPAddress) -> str | None:
        """Why no traffic may be sent to this address, or None."""
        if new.is_multicast or new.is_unspecified or new.is_loopback or new.is_link_local or new.is_reserved:
            return "no-host-address"
        if self._e.network.is_ours(event.source.host):
            return "our-own-address"  # behind NATs two hosts may well have the same private address: `new` may be ours
        accepted = self._e.policy.accept_from
        if accepted and not any(event.source.host in network for network in accepted):
            return "not-accepted-from-there"
        if new != event.source.host and self._e.policy.prefer == "rewritten":
            # Somebody's NAT: only the tunnel gets through.
            return "announced-from-elsewhere"
        return None

    def _named(self, key: bytes, message: Acm, source: IPAddress) -> list[Connection]:
        """The peer's connections that are meant, and that can go to where the message came from."""
        old, cids = message.moved
        one_by_one = [c for c in self._e.table.select(cids) if c.peer == key]
        whole = [c for c in self._e.table.of(key) if c.there.local.host in old] if old else []
        found = {c.cid: c for c in (*whole, *one_by_one) if c.movable}
        return [
            c
            for c in found.values()
            if (message.new.version == c.socket.version and message.new == source) or self._e.choosing.tunnels(c)
        ]

    def _make_room(self, key: bytes) -> None:
        mine = sorted((v for v in self._of(key) if not v.applying), key=lambda v: v.epoch)
        for oldest in mine[: max(0, len(mine) - constants.MAX_VALIDATIONS + 1)]:
            self._forget(oldest)

    def _forget_outdated(self, key: bytes) -> None:
        """Validations that can move nothing any more, since there is newer for all that they name."""
        for validation in [v for v in self._of(key) if not v.applying]:
            if not any(self._open(c, validation) for c in self._e.table.select(validation.cids)):
                self._forget(validation)

    @staticmethod
    def _open(connection: Connection, validation: Validation) -> bool:
        """The validation is of the newest announcement for this connection, and not applied."""
        return connection.movable and connection.announced_epoch == validation.epoch > connection.remote_epoch

    def _challenge(self, now: float, validation: Validation) -> None:
        """Nothing but this small datagram goes to the announced address before it answers (RFC 9000, section 8.2)."""
        retries = constants.CHALLENGE_RETRIES
        # Of many the peer answers when its kernel has them all.
        until = validation.began + constants.patience(sum(retries), len(validation.cids))
        if validation.tries >= len(retries) and now + retries[-1] > until:
            self._forget(validation)
            if self._e.mobility.met_since(validation.key, validation.began):
                return  # it has taken up what we have announced instead
            for new in dict.fromkeys(way.new for way in validation.ways.values()):
                self._e.notice("redirect.refused", peer=validation.key, reason="path-challenge-failed", address=new)
            return
        for way in validation.ways.values():
            self._send_challenge(now, validation, way)
        timer = ("challenge", validation.key, validation.epoch)
        self._e.timers.set(timer, now + retries[min(validation.tries, len(retries) - 1)])
        validation.tries += 1

    def _send_challenge(self, now: float, validation: Validation, way: Way) -> None:
        message = PathChallenge(validation.epoch, way.nonce, way.data)
        self._e.send(now, validation.key, message, way.source, way.local)

    def _forget(self, validation: Validation) -> None:
        self._validations.pop((validation.key, validation.epoch), None)
        of_peer = self._of_peer.get(validation.key, {})
        of_peer.pop(validation.epoch, None)
        if not of_peer:
            self._of_peer.pop(validation.key, None)
        self._e.timers.cancel(("challenge", validation.key, validation.epoch))

    def on_response(self, now: float, event: events.Received, message: PathResponse) -> None:
        """What was sent one way has been received: rewrite."""
        validation = self._validations.get((event.key, message.epoch))
        ways = validation.ways.values() if validation is not None else ()
        way = next((w for w in ways if hmac.compare_digest(w.data, message.data)), None)
        if validation is None or way is None:
            return  # late
        policy, network = self._e.policy, self._e.network
        still_open = [c for c in self._e.table.select(validation.cids) if self._open(c, validation)]
        connections = [c for c in still_open if may_use(policy, network, c, way.local)]
        if validation.applying or not connections:
            return
        validation.applying, validation.chosen = connections, way
        validation.before = {c.cid: (c.remote_epoch, c.there_now) for c in connections}
        validation.left = {c.here_now for c in connections} - {way.local}
        changes = []
        for c in connections:
            c.remote_epoch = validation.epoch
            c.holding = False  # it has answered, so it knows where we are, whatever became of our own announcement
            change = self._e.mobility.changed(
                c,
                local=way.local,  # a pair is proven, not only its other end
                remote=way.new,
                outer=(way.local, way.source),
                stalled=validation.stalled,
            )
            changes.append(change)
        lift = {c.cid for c in connections}
        self._e.mobility.reroute(("acm", event.key, validation.epoch, way.new), changes, lift=lift)
        self._e.holding.hold_again(now, connections)
        for c in connections:
            if c.here_now == way.local:
                c.confirmed = way.local

    def take_back(self, key: bytes, epoch: int) -> None:
        """The kernel refused: the announcement counts as not applied, and is tried again when it is repeated."""
        validation = self._validations.get((key, epoch))
        for connection in validation.applying if validation is not None else ():
            if validation is not None and connection.remote_epoch == validation.epoch:
                connection.remote_epoch = validation.before[connection.cid][0]

    def applied(self, now: float, key: bytes, epoch: int, error: str | None) -> None:
        """The kernel has rewritten, or refused: acknowledge."""
        validation = self._validations.get((key, epoch))
        if validation is None or validation.chosen is None:
            return
        self._forget(validation)
        self._forget_outdated(key)
        connections, way = validation.applying, validation.chosen
        status = AcmStatus.APPLIED if error is None else AcmStatus.FAILED
        movable = [c for c in connections if c.movable]
        if error is None:
            self._e.holding.lift(movable)
            self._e.mobility.kick(movable)
        answer = AcmAck(epoch, way.nonce, status, len(connections), way.source)
        self._e.send(now, key, answer, way.source, way.local)
        peer = self._e.peers.get(key)
        if error is not None or peer is None:
            return
        self._e.endpoint.locate(peer, way.source, way.local)
        self._e.notice("move.received", peer=key, address=way.new, connections=len(connections), epoch=epoch)
        elsewhere = {c.cid for c in connections if validation.before[c.cid][1] != way.source.host}
        if not self._e.meeting.by_way_of(key, way.source):
            for address in validation.left:
                self._e.better.left(now, key, address, way.source)
        led, dropped = self._e.mobility.superseded(now, key, movable)
        elsewhere |= led
        self._e.mobility.arrived(now, movable, elsewhere)
        others = self._e.table.select(dropped - {c.cid for c in movable})
        self._e.mobility.reconsider(now, [*movable, *(c for c in others if c.movable)])
        self._e.emit(commands.SavePeer(peer))  # waits for the disk: after all that carries traffic again

    def _ack(self, now: float, event: events.Received, message: Acm, status: AcmStatus, count: int = 0) -> None:
        answer = AcmAck(message.epoch, message.nonce, status, count, event.source)
        self._e.send(now, event.key, answer, event.source, event.local)

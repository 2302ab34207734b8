"""Address changes that peers announce (outgoing.py draws the exchange).

An announcement is heeded if it comes from the connection's peer in a session, with an epoch above all before for that
connection.  Each way on which it comes (the peer's address and port, our address) is challenged with data of its own.
Traffic follows to the way whose data has come back, wherever the answer itself seems to come from.

If both hosts announce at the same time, one decides: the one with the smaller key.  The other's announcement tells it
only where the other one is.
"""

from __future__ import annotations

import hmac

from redirectctl.flows import commands, constants, timer_kinds
from redirectctl.flows.announcements import Announcements, Validation, Way, most
from redirectctl.flows.connection import Connection
from redirectctl.flows.devices import may_use
from redirectctl.flows.host import Host
from redirectctl.flows.kernel_state import KernelState
from redirectctl.flows.moves.addresses import Addresses
from redirectctl.flows.moves.outgoing import OwnMoves
from redirectctl.flows.moves.rerouting import Rerouting
from redirectctl.flows.paths.choice import Choice
from redirectctl.flows.paths.suspension import Suspension
from redirectctl.flows.rendezvous.places import SEEN, Places
from redirectctl.proto import events
from redirectctl.wire.addr import IPAddress
from redirectctl.wire.message import Acm, AcmAck, AcmStatus, PathChallenge, PathResponse


class PeersMoves:
    """Follows the announcements of peers, after a challenge."""

    def __init__(
        self,
        host: Host,
        kernel: KernelState,
        announcements: Announcements,
        places: Places,
        suspension: Suspension,
        choice: Choice,
        addresses: Addresses,
        rerouting: Rerouting,
        own: OwnMoves,
    ) -> None:
        self._host = host
        self._kernel = kernel
        self._announcements = announcements
        self._places = places
        self._suspension = suspension
        self._choice = choice
        self._addresses = addresses
        self._rerouting = rerouting
        self._own = own

    def repeat_challenge(self, now: float, key: bytes, epoch: int) -> None:
        """A challenge has not been answered in time: send it again, or give up."""
        validation = self._announcements.validation(key, epoch)
        if validation is not None and not validation.applying:
            self._challenge(now, validation)

    def on_acm(self, now: float, event: events.Received, message: Acm) -> None:
        """Challenge the way on which an announcement came, or refuse it with a named reason."""
        key = event.key
        validation = self._announcements.validation(key, message.epoch)
        if validation is not None and validation.applying:
            return  # the kernel is at it: it is acknowledged when that is done
        reason = self._unusable(event, message.new)
        if reason is not None:
            self._host.notice(
                "redirect.refused", peer=key, reason=reason, address=message.new, source=str(event.source)
            )
            self._ack(now, event, message, AcmStatus.UNUSABLE)
        elif validation is not None:
            self._take_way(now, validation, event, message)
        else:
            self._begin(now, event, message)

    def _begin(self, now: float, event: events.Received, message: Acm) -> None:
        key = event.key
        named = self._named(key, message, event.source.host)
        if not named:
            self._host.notice("redirect.refused", peer=key, reason="no-connection", address=message.new)
            self._ack(now, event, message, AcmStatus.NO_CONNECTION)
            return
        if not any(may_use(self._host.policy, self._host.network, c, event.local) for c in named):
            self._host.notice("redirect.refused", peer=key, reason="stays-on-device", address=message.new)
            self._ack(now, event, message, AcmStatus.UNUSABLE)
            return
        fresh = [c for c in named if message.epoch > c.remote_epoch and message.epoch >= c.announced_epoch]
        if not fresh:
            self._again(now, event, message, [c for c in named if c.remote_epoch == message.epoch])
            return
        decided = self._own.deciding(now, key)
        fresh = [c for c in fresh if c.cid not in decided]
        if not fresh:
            return  # it repeats that until it has heard ours
        for connection in fresh:
            connection.announced_epoch = message.epoch
        self._forget_outdated(key)
        self._make_room(key)
        validation = Validation(message.epoch, key, tuple(c.cid for c in fresh), message.stalled, now)
        self._announcements.begin(validation)
        self._take_way(now, validation, event, message)

    def _again(self, now: float, event: events.Received, message: Acm, applied: list[Connection]) -> None:
        """An announcement that needs no more work: acknowledge it if it is applied, else call it stale."""
        if not applied:
            self._host.notice(
                "redirect.refused", peer=event.key, reason="stale-epoch", address=message.new, epoch=message.epoch
            )
            self._ack(now, event, message, AcmStatus.STALE)
        elif all(event.source.host in (c.remote_now, c.wire.remote.host) for c in applied):
            self._ack(now, event, message, AcmStatus.APPLIED, len(applied))

    def _take_way(self, now: float, validation: Validation, event: events.Received, message: Acm) -> None:
        """Note the way on which an announcement came, and challenge it if it is new."""
        way = validation.ways.get((event.source, event.local))
        if way is not None:
            way.nonce = message.nonce
            return
        while len(validation.ways) >= constants.MAX_WAYS:
            del validation.ways[next(iter(validation.ways))]
        if not self._host.by_way_of(validation.key, event.source):
            # If we move now, before it has answered, it would not be where we look for it.
            self._places.add(now, validation.key, SEEN, (event.source,), constants.PLACE_TIME)
        way = Way(event.source, event.local, message.new, message.nonce, self._host.rng(8))
        validation.ways[event.source, event.local] = way
        if validation.tries:
            self._send_challenge(now, validation, way)
        else:
            self._challenge(now, validation)

    def _unusable(self, event: events.Received, new: IPAddress) -> str | None:
        """Why no traffic may be sent to this address, or None."""
        if new.is_multicast or new.is_unspecified or new.is_loopback or new.is_link_local or new.is_reserved:
            return "no-host-address"
        if self._host.network.is_ours(event.source.host):
            return "our-own-address"  # behind NATs two hosts may well have the same private address: `new` may be ours
        accepted = self._host.policy.accept_from
        if accepted and not any(event.source.host in network for network in accepted):
            return "not-accepted-from-there"
        if new != event.source.host and self._host.policy.prefer == "rewritten":
            # Somebody's NAT: only the tunnel gets through.
            return "announced-from-elsewhere"
        return None

    def _named(self, key: bytes, message: Acm, source: IPAddress) -> list[Connection]:
        """The peer's connections that an announcement names, and that can go to where it came from."""
        old, cids = message.moved
        one_by_one = [c for c in self._host.table.select(cids) if c.peer == key]
        whole = [c for c in self._host.table.of(key) if c.peer_tuple.local.host in old] if old else []
        found = {c.cid: c for c in (*whole, *one_by_one) if c.movable}
        return [
            c
            for c in found.values()
            if (message.new.version == c.socket.version and message.new == source) or self._choice.tunnels(c)
        ]

    def _make_room(self, key: bytes) -> None:
        mine = sorted((v for v in self._announcements.validations_of(key) if not v.applying), key=lambda v: v.epoch)
        for oldest in mine[: max(0, len(mine) - constants.MAX_VALIDATIONS + 1)]:
            self._announcements.end(oldest)

    def _forget_outdated(self, key: bytes) -> None:
        """End the validations of this peer whose connections all have newer announcements."""
        for validation in [v for v in self._announcements.validations_of(key) if not v.applying]:
            if not any(self._open(c, validation) for c in self._host.table.select(validation.cids)):
                self._announcements.end(validation)

    @staticmethod
    def _open(connection: Connection, validation: Validation) -> bool:
        """Whether the validation is for the newest announcement of this connection, and not applied."""
        return connection.movable and connection.announced_epoch == validation.epoch > connection.remote_epoch

    def _challenge(self, now: float, validation: Validation) -> None:
        """Challenge all ways.  Nothing else goes to the announced address before it answers (RFC 9000, section 8.2)."""
        retries = constants.CHALLENGE_RETRIES
        # Of many the peer answers when its kernel has them all.
        until = validation.began + constants.patience(sum(retries), len(validation.cids))
        if validation.tries >= len(retries) and now + retries[-1] > until:
            self._announcements.end(validation)
            if self._announcements.met_since(validation.key, validation.began):
                return  # it has taken up what we have announced instead
            for new in dict.fromkeys(way.new for way in validation.ways.values()):
                self._host.notice("redirect.refused", peer=validation.key, reason="path-challenge-failed", address=new)
            return
        for way in validation.ways.values():
            self._send_challenge(now, validation, way)
        timer = timer_kinds.RepeatChallenge(validation.key, validation.epoch)
        self._host.timers.set(timer, now + retries[min(validation.tries, len(retries) - 1)])
        validation.tries += 1

    def _send_challenge(self, now: float, validation: Validation, way: Way) -> None:
        message = PathChallenge(validation.epoch, way.nonce, way.data)
        self._host.send(now, validation.key, message, way.source, way.local)

    def on_response(self, now: float, event: events.Received, message: PathResponse) -> None:
        """The peer has received the challenge that went one way: reroute its connections there."""
        validation = self._announcements.validation(event.key, message.epoch)
        ways = validation.ways.values() if validation is not None else ()
        way = next((w for w in ways if hmac.compare_digest(w.data, message.data)), None)
        if validation is None or way is None:
            return  # late
        policy, network = self._host.policy, self._host.network
        still_open = [c for c in self._host.table.select(validation.cids) if self._open(c, validation)]
        connections = [c for c in still_open if may_use(policy, network, c, way.local)]
        if validation.applying or not connections:
            return
        validation.applying, validation.chosen = connections, way
        validation.before = {c.cid: (c.remote_epoch, c.remote_now) for c in connections}
        validation.left = {c.local_now for c in connections} - {way.local}
        changes = []
        for c in connections:
            c.remote_epoch = validation.epoch
            c.tunnel_waits = False  # it has answered, so it knows where we are, whatever became of our own announcement
            change = self._rerouting.changed(
                c,
                local=way.local,  # a pair is proven, not only its other end
                remote=way.new,
                outer=(way.local, way.source),
                stalled=validation.stalled,
            )
            changes.append(change)
        lift = {c.cid for c in connections}
        self._kernel.reroute(commands.PeersMove(event.key, validation.epoch, way.new), changes, lift=lift)
        self._suspension.hold_again(now, connections)
        for c in connections:
            if c.local_now == way.local:
                c.confirmed = way.local

    def _take_back(self, key: bytes, epoch: int) -> None:
        """The kernel refused: the announcement counts as not applied, so that a repeat of it is tried again."""
        validation = self._announcements.validation(key, epoch)
        for connection in validation.applying if validation is not None else ():
            if validation is not None and connection.remote_epoch == validation.epoch:
                connection.remote_epoch = validation.before[connection.cid][0]

    def rewritten(self, now: float, key: bytes, epoch: int, error: str | None) -> None:
        """The kernel has rerouted the connections, or refused: acknowledge the announcement."""
        if error is not None:
            self._take_back(key, epoch)
        validation = self._announcements.validation(key, epoch)
        if validation is None or validation.chosen is None:
            return
        self._announcements.end(validation)
        self._forget_outdated(key)
        connections, way = validation.applying, validation.chosen
        status = AcmStatus.APPLIED if error is None else AcmStatus.FAILED
        movable = [c for c in connections if c.movable]
        if error is None:
            self._suspension.lift(movable)
            self._suspension.revert_backoff(movable)
        answer = AcmAck(epoch, way.nonce, status, len(connections), way.source)
        self._host.send(now, key, answer, way.source, way.local)
        peer = self._host.peers.get(key)
        if error is not None or peer is None:
            return
        self._host.endpoint.locate(peer, way.source, way.local)
        self._host.notice(
            "move.received", peer=key, address=way.new, connections=len(connections), epoch=epoch,
            source=str(way.source), previous=most(validation.before[c.cid][1] for c in connections),
            cids=tuple(c.cid for c in connections),
        )  # fmt: skip
        elsewhere = {c.cid for c in connections if validation.before[c.cid][1] != way.source.host}
        if not self._host.by_way_of(key, way.source):
            for address in validation.left:
                self._addresses.left(now, key, address, way.source)
        led, dropped = self._own.superseded(now, key, movable)
        elsewhere |= led
        self._rerouting.path_found(now, movable, elsewhere)
        others = self._host.table.select(dropped - {c.cid for c in movable})
        self._own.reconsider(now, [*movable, *(c for c in others if c.movable)])
        self._host.emit(commands.SavePeer(peer))  # waits for the disk: after all that carries traffic again

    def _ack(self, now: float, event: events.Received, message: Acm, status: AcmStatus, count: int = 0) -> None:
        answer = AcmAck(message.epoch, message.nonce, status, count, event.source)
        self._host.send(now, event.key, answer, event.source, event.local)

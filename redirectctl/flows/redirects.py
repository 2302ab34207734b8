"""Address changes that peers announce (mobility.py draws the exchange).

An announcement is heeded if it comes from the connection's peer in a session, from the very address that it announces,
with an epoch above all before for that connection.  Traffic follows when that address has answered a challenge.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from redirectctl.flows import commands, constants
from redirectctl.flows.connection import Connection
from redirectctl.flows.devices import may_use
from redirectctl.proto import events
from redirectctl.wire.addr import IPAddress, SockAddr
from redirectctl.wire.message import Acm, AcmAck, AcmStatus, PathChallenge, PathResponse

if TYPE_CHECKING:
    from redirectctl.flows.engine import Engine


@dataclass(slots=True)
class Validation:
    """An address that a peer has announced, until it has answered our challenge."""

    epoch: int
    key: bytes
    new: IPAddress
    source: SockAddr  # where it came from last, then where the answer came from
    local: IPAddress
    data: bytes
    cids: tuple[bytes, ...]
    stalled: bool = False  # plain packets do not get through
    tries: int = 0
    applying: list[Connection] = field(default_factory=list)
    sources: dict[SockAddr, IPAddress] = field(default_factory=dict)  # all; our address that each used
    before: dict[bytes, tuple[int, IPAddress]] = field(default_factory=dict)  # epoch and address of those, until then


class Redirects:
    """Announcements of peers."""

    def __init__(self, engine: Engine) -> None:
        self._e = engine
        self._validations: dict[tuple[bytes, int, IPAddress], Validation] = {}

    def timer(self, now: float, which: tuple[bytes, int, IPAddress]) -> None:
        """A challenge was not answered."""
        validation = self._validations.get(which)
        if validation is not None and not validation.applying:
            self._challenge(now, validation)

    def on_acm(self, now: float, event: events.Received, message: Acm) -> None:
        """Challenge the address announced, or refuse for a named reason."""
        key, new = event.key, message.new
        reason = self._unusable(event, new)
        if reason is not None:
            self._e.notice("redirect.refused", peer=key, reason=reason, address=new, source=str(event.source))
            self._ack(now, event, message.epoch, AcmStatus.UNUSABLE)
            return
        named = self._named(key, message, event.source.host)
        if not named:
            self._e.notice("redirect.refused", peer=key, reason="no-connection", address=new)
            self._ack(now, event, message.epoch, AcmStatus.NO_CONNECTION)
            return
        named = [c for c in named if may_use(self._e.policy, self._e.network, c, event.local)]
        if not named:
            self._e.notice("redirect.refused", peer=key, reason="stays-on-device", address=new)
            self._ack(now, event, message.epoch, AcmStatus.UNUSABLE)
            return
        if any(v.applying for v in self._validations.values() if v.key == key and v.epoch == message.epoch):
            return  # the kernel is at it: it is acknowledged when that is done
        fresh = [c for c in named if message.epoch > c.remote_epoch and message.epoch >= c.announced_epoch]
        if not fresh:
            applied = [c for c in named if c.remote_epoch == message.epoch]
            if applied and all(event.source.host in (c.there_now, c.wire.remote.host) for c in applied):
                self._ack(now, event, message.epoch, AcmStatus.APPLIED, len(applied))  # our answer was lost
            elif not applied:
                self._e.notice("redirect.refused", peer=key, reason="stale-epoch", address=new, epoch=message.epoch)
                self._ack(now, event, message.epoch, AcmStatus.STALE)
            return
        for connection in fresh:
            connection.announced_epoch = message.epoch
        self._forget_outdated(key)
        validation = self._validations.get((key, message.epoch, new))
        if validation is None:
            self._make_room(key)
            cids = tuple(c.cid for c in fresh)
            validation = Validation(
                message.epoch, key, new, event.source, event.local, self._e.rng(8), cids, message.stalled
            )
            self._validations[key, message.epoch, new] = validation
            validation.sources[event.source] = event.local
            self._challenge(now, validation)
        elif not validation.applying and event.source not in validation.sources:
            validation.cids = tuple(dict.fromkeys((*validation.cids, *(c.cid for c in fresh))))
            # A NAT may have mapped it anew since, or it comes by way of a rendezvous: whichever answers.
            while len(validation.sources) >= constants.MAX_SOURCES:
                del validation.sources[next(iter(validation.sources))]
            validation.sources[event.source] = event.local
            self._e.send(now, key, PathChallenge(message.epoch, validation.data), event.source, event.local)

    def _unusable(self, event: events.Received, new: IPAddress) -> str | None:
        """Why no traffic may be sent to this address, or None."""
        if new.is_multicast or new.is_unspecified or new.is_loopback or new.is_link_local or new.is_reserved:
            return "no-host-address"
        if self._e.network.is_ours(event.source.host):
            return "our-own-address"  # behind NATs two hosts may well have the same private address: `new` may be ours
        if new != event.source.host and self._e.policy.prefer == "rewritten":
            # Somebody's NAT: only the tunnel gets through.
            return "announced-from-elsewhere"
        return None

    def _named(self, key: bytes, message: Acm, source: IPAddress) -> list[Connection]:
        """The peer's connections that the entries name, and that can go to where the message came from."""
        found: list[Connection] = []
        for connection in self._e.table:
            if connection.peer != key or not connection.movable:
                continue
            there, here = connection.there  # as the peer names it
            plain = message.new.version == connection.socket.version and message.new == source
            for entry in message.entries:
                if (
                    entry.old == there.host
                    and entry.destination in (None, here.host)
                    and entry.sport in (0, there.port)
                    and entry.dport in (0, here.port)
                    and (plain or self._e.choosing.tunnels(connection))
                ):
                    found.append(connection)
                    break
        return found

    def _make_room(self, key: bytes) -> None:
        mine = [v for k, v in self._validations.items() if k[0] == key and not v.applying]
        mine.sort(key=lambda v: v.epoch)
        for oldest in mine[: max(0, len(mine) - constants.MAX_VALIDATIONS + 1)]:
            self._forget(oldest)

    def _forget_outdated(self, key: bytes) -> None:
        """Validations that can move nothing any more, since there is newer for all that they name."""
        for validation in [v for k, v in self._validations.items() if k[0] == key and not v.applying]:
            if not any(self._open(c, validation) for c in self._e.table.select(validation.cids)):
                self._forget(validation)

    @staticmethod
    def _open(connection: Connection, validation: Validation) -> bool:
        """The validation is of the newest announcement for this connection, and not applied."""
        return connection.movable and connection.announced_epoch == validation.epoch > connection.remote_epoch

    def _challenge(self, now: float, validation: Validation) -> None:
        """Nothing but this small datagram goes to the announced address before it answers (RFC 9000, section 8.2)."""
        if validation.tries >= len(constants.CHALLENGE_RETRIES):
            self._forget(validation)
            self._e.notice(
                "redirect.refused", peer=validation.key, reason="path-challenge-failed", address=validation.new
            )
            return
        message = PathChallenge(validation.epoch, validation.data)
        for source, local in validation.sources.items():
            self._e.send(now, validation.key, message, source, local)
        timer = ("challenge", validation.key, validation.epoch, validation.new)
        self._e.timers.set(timer, now + constants.CHALLENGE_RETRIES[validation.tries])
        validation.tries += 1

    def _forget(self, validation: Validation) -> None:
        self._validations.pop((validation.key, validation.epoch, validation.new), None)
        self._e.timers.cancel(("challenge", validation.key, validation.epoch, validation.new))

    def on_response(self, now: float, event: events.Received, message: PathResponse) -> None:
        """The address has answered: rewrite."""
        validation = next(
            (
                v
                for v in self._validations.values()
                if (v.key, v.epoch) == (event.key, message.epoch)
                and event.source in v.sources
                and hmac.compare_digest(v.data, message.data)
            ),
            None,
        )
        if validation is None:
            return  # late, or from an address that we did not challenge
        local = validation.sources[event.source]
        connections = [
            c
            for c in self._e.table.select(validation.cids)
            if self._open(c, validation) and may_use(self._e.policy, self._e.network, c, local)
        ]
        if validation.applying or not connections:
            return
        validation.applying = connections
        validation.source, validation.local = event.source, local
        validation.before = {c.cid: (c.remote_epoch, c.there_now) for c in connections}
        changes = []
        for c in connections:
            c.remote_epoch = validation.epoch
            c.holding = False  # it has answered, so it knows where we are, whatever became of our own announcement
            outer = validation.local, validation.source
            changes.append(self._e.mobility.changed(c, remote=validation.new, outer=outer, stalled=validation.stalled))
        lift = {c.cid for c in connections}
        self._e.mobility.reroute(("acm", event.key, validation.epoch, validation.new), changes, lift=lift)
        self._e.holding.hold_again(now, connections)
        for c in connections:
            if c.tunnel:
                c.confirmed = validation.local

    def take_back(self, which: tuple[bytes, int, IPAddress]) -> None:
        """The kernel refused: the announcement counts as not applied, and is tried again when it is repeated."""
        validation = self._validations.get(which)
        for connection in validation.applying if validation is not None else ():
            if validation is not None and connection.remote_epoch == validation.epoch:
                connection.remote_epoch = validation.before[connection.cid][0]

    def applied(self, now: float, which: tuple[bytes, int, IPAddress], error: str | None) -> None:
        """The kernel has rewritten, or refused: acknowledge."""
        validation = self._validations.get(which)
        if validation is None:
            return
        self._forget(validation)
        self._forget_outdated(validation.key)
        key, connections = validation.key, validation.applying
        to = validation.source
        status = AcmStatus.APPLIED if error is None else AcmStatus.FAILED
        movable = [c for c in connections if c.movable]
        if error is None:
            self._e.holding.lift(movable)
            self._e.mobility.kick(movable)
        self._e.send(now, key, AcmAck(validation.epoch, status, len(connections), to), to, validation.local)
        peer = self._e.peers.get(key)
        if error is not None or peer is None:
            return
        peer.remote, peer.local = to, validation.local
        self._e.notice(
            "move.received", peer=key, address=validation.new, connections=len(connections), epoch=validation.epoch
        )
        elsewhere = {c.cid for c in connections if validation.before[c.cid][1] != to.host}
        self._e.mobility.arrived(now, movable, elsewhere)
        self._e.emit(commands.SavePeer(peer))  # waits for the disk: after all that carries traffic again
        self._e.mobility.reconsider(now)

    def _ack(self, now: float, event: events.Received, epoch: int, status: AcmStatus, count: int = 0) -> None:
        self._e.send(now, event.key, AcmAck(epoch, status, count, event.source), event.source, event.local)

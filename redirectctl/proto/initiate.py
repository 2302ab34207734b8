"""Handshakes that we start.

    start ──INIT──► waits ──RESPONSE──► session (XX: FINAL is sent and repeated until the peer is heard)
                    │ ▲
        no answer, COOKIE, UNKNOWN, VERSIONS: INIT again, as the hint says; after the last try ContactFailed
        another key than the known one: INIT to the known one again, which only that can answer; then KeyChanged

Every try is a handshake of its own, and an answer to any of the last ones completes: on a slow path the answer to
the first may come after the second was sent.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from redirectctl.proto import constants, events
from redirectctl.proto.cookie import CookieJar
from redirectctl.proto.errors import CookieError, HandshakeError
from redirectctl.proto.noise import Handshake
from redirectctl.proto.noise import Pattern as NoisePattern
from redirectctl.proto.port import Arrival, Completed, Port
from redirectctl.wire import datagram
from redirectctl.wire.addr import IPAddress, SockAddr
from redirectctl.wire.datagram import MalformedError, Pattern

NOISE = {Pattern.XX: NoisePattern.XX, Pattern.IKPSK2: NoisePattern.IKPSK2}


def prologue(version: int, pattern: Pattern, offered: tuple[int, ...]) -> bytes:
    """Binds what travels in the clear: the version used, and all that the initiator offered."""
    return constants.LABEL_PROLOGUE + bytes((version, pattern)) + datagram.pack_versions(offered)


Which = tuple[SockAddr, IPAddress | None, bytes | None, bytes | None]  # to, from, handed over to, who must answer


@dataclass(slots=True)
class Attempt:
    """A handshake that we started, over one path."""

    to: SockAddr
    source: IPAddress | None
    key: bytes | None  # who must answer
    pattern: Pattern
    version: int
    jar: CookieJar
    via: bytes | None = None  # a rendezvous hands it over to this peer
    tries: int = 0
    cookies: int = 0  # replies that made us send again at once
    sent: float = 0.0
    foreign: bytes | None = None  # the key of somebody else who has answered
    handshakes: dict[int, tuple[Pattern, Handshake]] = field(default_factory=dict)  # by our index, oldest first

    @property
    def which(self) -> Which:
        """One at a time: the same question."""
        return self.to, self.source, self.via, self.key

    @property
    def may_do_without(self) -> bool:
        """It asks with the pairwise secret, and may ask without: not again where somebody else has answered that."""
        return self.pattern is Pattern.IKPSK2 and self.foreign is None


class Initiator:
    """All the attempts under way."""

    KEPT = 32  # first messages of an attempt whose answer may still come: sent every 0.05 s, for 1.6 s
    SOONEST = 0.05  # seconds between two of them

    def __init__(self, port: Port) -> None:
        self._port = port
        self._attempts: dict[Which, Attempt] = {}
        self._of_peer: Counter[bytes | None] = Counter()  # how many there are
        self._by_index: dict[int, Attempt] = {}

    def under_way(self, key: bytes) -> bool:
        """Whether a handshake with this peer has been started."""
        return self._of_peer[key] > 0

    def start(
        self, now: float, to: SockAddr, source: IPAddress | None, key: bytes | None, *, again: bool = False
    ) -> None:
        """Begin, unless the same is under way.  ContactFailed follows if nothing comes of it.

        ``again``: what is under way does not wait for its next try; somebody expects the way to be free now.
        """
        via = self._port.handed_to(to, key)
        attempt = self._attempts.get((to, source, via, key))
        if attempt is not None:
            if again and now - attempt.sent >= self.SOONEST:
                self._send_once_more(now, attempt)
            return
        if key is not None and self._of_peer[key] >= constants.ATTEMPTS_OF_PEER:
            return  # along other pairs of addresses; these will have their turn
        if len(self._attempts) >= constants.ATTEMPTS_MAX and not self._make_room(key or to.host):
            self._port.emit(events.ContactFailed(to, key, "too-many-handshakes", source))
            return
        peer = self._port.peers.get(key) if key is not None else None
        known = peer is not None and peer.secret is not None
        attempt = Attempt(
            to,
            source,
            key,
            Pattern.IKPSK2 if known else Pattern.XX,
            self._port.versions[0],
            CookieJar(key if known else None),
            via,
        )
        self._attempts[attempt.which] = attempt
        self._of_peer[key] += 1
        self._send(now, attempt)

    def _make_room(self, party: bytes | IPAddress) -> bool:
        """With whom there are most gives way: its oldest (shares.py)."""
        parties = Counter(a.key or a.to.host for a in self._attempts.values())
        greatest, most = parties.most_common(1)[0]
        if parties[party] >= most:
            return False
        self._fail(next(a for a in self._attempts.values() if (a.key or a.to.host) == greatest), "too-many-handshakes")
        return True

    def cancel(self, key: bytes) -> None:
        """The peer is forgotten: handshakes with it end."""
        for attempt in [a for a in self._attempts.values() if a.key == key]:
            self._fail(attempt, "peer-forgotten")

    def retry(self, now: float, *which: Any) -> None:
        """The timer of an attempt has run out; ``which``: of that."""
        attempt = self._attempts.get(which)
        if attempt is None:
            return
        doubts = constants.HANDSHAKE_DOUBTS if attempt.foreign is not None else len(constants.HANDSHAKE_RETRIES)
        if attempt.tries >= doubts:
            if attempt.foreign is not None:
                self._changed(attempt, attempt.foreign)
            else:
                self._fail(attempt, "no-answer")
            return
        self._send(now, attempt)

    def on_response(self, now: float, message: datagram.Response, arrival: Arrival) -> tuple[Attempt, Completed] | None:
        """The peer's answer: a session, if it is genuine.  None: another host's.  Raises MalformedError."""
        attempt = self._by_index.get(message.receiver)
        if attempt is None or message.version != attempt.version:
            raise MalformedError("no-such-handshake")
        pattern, handshake = attempt.handshakes[message.receiver]
        if message.pattern is not pattern:
            raise MalformedError("no-such-handshake")
        try:
            payload = handshake.read_message(message.noise)
        except HandshakeError as error:
            if attempt.may_do_without:  # or the peer has another secret: killed in the middle of an XX
                self._do_without(now, attempt)
            raise MalformedError("forged-response") from error
        try:
            theirs = datagram.unpack_versions(payload)
        except MalformedError:
            self._forget(attempt, message.receiver)  # it has been read: a second answer to it cannot be
            raise
        common = [v for v in self._port.versions if v in theirs]
        if not common or common[0] != attempt.version:
            # Both speak something better: whoever told us otherwise is not the peer.
            self._fail(attempt, "version-downgrade")
            raise MalformedError("version-downgrade")
        final = None
        if pattern is Pattern.XX:
            final = datagram.FinalMessage(attempt.version, message.sender, handshake.write_message()).encode()
        seen = handshake.remote_static
        if seen is None or seen == self._port.static.public:
            self._fail(attempt, "own-key")
            raise MalformedError("own-key")
        if attempt.key is not None and seen != attempt.key:
            self._on_foreign(now, attempt, seen)
            return None
        self._finish(attempt)
        if final is not None:
            self._port.transmit(now, seen, arrival.local, attempt.to, final)
        return attempt, Completed(
            handshake,
            version=attempt.version,
            indices=(message.receiver, message.sender),
            initiator=True,
            path=(arrival.local, attempt.to),  # there it received what it answered; the answer's source proves nothing
            first_contact=pattern is Pattern.XX,
            final=final,
        )

    def _on_foreign(self, now: float, attempt: Attempt, seen: bytes) -> None:
        """Another key.  Whoever sees what we send can make us ask in a way that anybody can answer, and be the first.

        Asked with the pairwise secret, does the known one answer?
        """
        peer = self._port.peers.get(attempt.key) if attempt.key is not None else None
        if peer is None or peer.secret is None:
            self._changed(attempt, seen)
            return
        attempt.foreign = seen
        attempt.pattern, attempt.jar = Pattern.IKPSK2, CookieJar(attempt.key)
        self._drop_handshakes(attempt)
        attempt.tries = 0
        self._send(now, attempt)

    def _changed(self, attempt: Attempt, seen: bytes) -> None:
        self._finish(attempt)
        if attempt.key is not None:
            self._port.emit(events.KeyChanged(attempt.to, attempt.key, seen))
        self._port.emit(events.ContactFailed(attempt.to, attempt.key, "key-changed", attempt.source))

    def on_cookie(self, now: float, message: datagram.Cookie) -> None:
        """Under load the peer wants to see that we receive what is sent to us."""
        attempt = self._matching(message.receiver)
        try:
            attempt.jar.consume_reply(message.nonce + message.sealed, now)
        except CookieError as error:
            raise MalformedError("forged-cookie") from error
        if attempt.cookies >= len(constants.HANDSHAKE_RETRIES):
            return  # no cookie of ours pleases it: the timer goes on, at its own pace
        attempt.cookies += 1
        attempt.tries = max(0, attempt.tries - 1)  # it is there: this try does not count
        self._send(now, attempt)

    def on_unknown(self, now: float, receiver: int) -> bool:
        """The peer does not know us any more: the full handshake, in which it must still hold the key we know."""
        attempt = self._by_index.get(receiver)
        if attempt is None or not attempt.may_do_without:
            return attempt is not None
        self._drop_handshakes(attempt)
        self._do_without(now, attempt)
        return True

    def _do_without(self, now: float, attempt: Attempt) -> None:
        """Without the pairwise secret: XX, in which the peer proves its known key."""
        attempt.pattern, attempt.jar = Pattern.XX, CookieJar(None)
        attempt.tries = min(attempt.tries, 2)
        self._send(now, attempt)

    def on_versions(self, now: float, message: datagram.Versions) -> None:
        """The peer does not speak the version tried.  The handshake proves later that this was not made up."""
        attempt = self._matching(message.receiver)
        lower = [v for v in self._port.versions if v in message.versions and v < attempt.version]
        if not lower:
            self._fail(attempt, "no-common-version")
            return
        attempt.version = lower[0]
        self._drop_handshakes(attempt)
        self._send(now, attempt)

    def _matching(self, receiver: int) -> Attempt:
        attempt = self._by_index.get(receiver)
        if attempt is None:
            raise MalformedError("no-such-handshake")
        return attempt

    def _send(self, now: float, attempt: Attempt) -> None:
        port = self._port
        if attempt.may_do_without and attempt.tries == len(constants.HANDSHAKE_RETRIES) - 2:
            # The pairwise secrets may differ (a backup was restored): the last two tries do without.
            attempt.pattern, attempt.jar = Pattern.XX, CookieJar(None)
        if attempt.tries >= constants.HANDSHAKE_OTHER_PORT:
            port.try_another_port(now, attempt.key, attempt.sent)
        self._send_init(now, attempt, attempt.pattern, attempt.jar)
        again = now + constants.HANDSHAKE_RETRIES[attempt.tries]
        port.timers.set(("attempt", *attempt.which), again)
        attempt.tries += 1

    def _send_once_more(self, now: float, attempt: Attempt) -> None:
        """A first message besides the tries; none that anybody might take for a first contact."""
        if attempt.pattern is Pattern.IKPSK2:
            self._send_init(now, attempt, attempt.pattern, attempt.jar)
        elif attempt.key is not None and (peer := self._port.peers.get(attempt.key)) and peer.secret is not None:
            self._send_init(now, attempt, Pattern.IKPSK2, CookieJar(attempt.key))

    def _send_init(self, now: float, attempt: Attempt, pattern: Pattern, jar: CookieJar) -> None:
        port = self._port
        peer = port.peers.get(attempt.key) if attempt.key is not None else None
        known = pattern is Pattern.IKPSK2 and peer is not None
        handshake = Handshake(
            NOISE[pattern],
            True,
            port.static,
            port.rng,
            prologue(attempt.version, pattern, port.versions),
            remote_static=attempt.key if known else None,
            psk=peer.secret if known and peer is not None else None,
        )
        payload = port.next_counter().to_bytes(8, "big") if known else bytes(constants.XX_PADDING)
        index = port.new_index()
        while len(attempt.handshakes) >= self.KEPT:
            self._forget(attempt, next(iter(attempt.handshakes)))
        attempt.handshakes[index] = pattern, handshake
        self._by_index[index] = attempt
        init = datagram.Init(attempt.version, pattern, index, port.versions, handshake.write_message(payload))
        stamped = jar.stamp(init.body(), now)
        attempt.sent = now
        port.transmit(now, attempt.key, attempt.source, attempt.to, stamped)

    def _forget(self, attempt: Attempt, index: int) -> None:
        del attempt.handshakes[index]
        del self._by_index[index]

    def _drop_handshakes(self, attempt: Attempt) -> None:
        for index in list(attempt.handshakes):
            self._forget(attempt, index)
        attempt.tries = min(attempt.tries, 2)

    def _finish(self, attempt: Attempt) -> None:
        for index in list(attempt.handshakes):
            self._forget(attempt, index)
        del self._attempts[attempt.which]
        self._of_peer[attempt.key] -= 1
        if not self._of_peer[attempt.key]:
            del self._of_peer[attempt.key]
        self._port.timers.cancel(("attempt", *attempt.which))

    def _fail(self, attempt: Attempt, reason: str) -> None:
        self._finish(attempt)
        self._port.emit(events.ContactFailed(attempt.to, attempt.key, reason, attempt.source))

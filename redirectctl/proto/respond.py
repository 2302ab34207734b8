"""Handshakes that others start.

A stranger can make us spend one handshake's arithmetic and hold one of HALF_OPEN_MAX entries for HALF_OPEN_TIME.  Under
load it must first show by a cookie that it receives at the address it sends from, and each address has a rate.  Only
proven addresses count against it: else whoever can forge a source could use up the rate of others.
"""

from __future__ import annotations

from redirectctl.proto import constants, events
from redirectctl.proto.cookie import CookieChecker
from redirectctl.proto.errors import HandshakeError
from redirectctl.proto.initiate import NOISE, prologue
from redirectctl.proto.noise import Handshake
from redirectctl.proto.peer import PeerState
from redirectctl.proto.port import Arrival, Completed, HalfOpen, Port
from redirectctl.proto.ratelimit import RateLimiter, network
from redirectctl.wire import datagram
from redirectctl.wire.datagram import MalformedError, Pattern


class Responder:
    """Answers INIT and FINAL."""

    def __init__(self, port: Port) -> None:
        self._port = port
        self._cookies = CookieChecker(port.static.public, port.rng)
        self._limit = RateLimiter()
        self._hints = RateLimiter()  # apart, since their sources are not proven
        self._second = (-1, 0)  # the running second, and the handshakes answered in it

    def hint(self, now: float, arrival: Arrival, answer: datagram.Unknown | datagram.Versions) -> None:
        """An answer that costs no state, within the rate of its address."""
        if self._hints.allow(arrival.source.host, now):
            self._port.transmit(now, None, arrival.local, arrival.source, answer.encode())

    def on_init(self, now: float, raw: bytes, message: datagram.Init, arrival: Arrival) -> Completed | None:
        """None: a third message has to come.  Raises MalformedError with the reason why there is no answer."""
        port, source, local = self._port, arrival.source, arrival.local
        if message.version not in port.versions:
            self.hint(now, arrival, datagram.Versions(message.sender, port.versions))
            raise MalformedError("unknown-version")
        first_contact = message.pattern is Pattern.XX
        if not self._cookies.verify_mac1(raw, first_contact):
            raise MalformedError("bad-mac1")
        if first_contact and len(message.noise) < constants.KEY_LEN + constants.XX_PADDING:
            raise MalformedError("too-short")  # our answer would be longer than the question
        loaded = self._loaded(now)
        if loaded and not self._cookies.verify_mac2(raw, source, now):
            reply = self._cookies.make_reply(raw, source, now, first_contact)
            nonce, sealed = reply[: constants.COOKIE_NONCE_LEN], reply[constants.COOKIE_NONCE_LEN :]
            port.transmit(
                now, None, local, source, datagram.Cookie(message.version, message.sender, nonce, sealed).encode()
            )
            raise MalformedError("cookie-required")
        if loaded and not self._limit.allow(source.host, now):
            raise MalformedError("rate-limited")
        self._count(now)
        handshake = Handshake(
            NOISE[message.pattern],
            False,
            port.static,
            port.rng,
            prologue(message.version, message.pattern, message.versions),
        )
        index = port.new_index()
        try:
            payload = handshake.read_message(message.noise)
            if not first_contact:
                self._accept_known(now, handshake, payload, message, arrival)
            noise = handshake.write_message(datagram.pack_versions(port.versions))
        except HandshakeError as error:
            raise MalformedError("forged-init") from error
        if first_contact:
            self._drop_old(now)
            waiting = HalfOpen(handshake, message.version, message.sender, (local, source), now)
            self._port.half_open.put(constants.HALF_OPEN_MAX, network(source.host), index, waiting)
            if index not in self._port.half_open:
                raise MalformedError("rate-limited")
        response = datagram.Response(message.version, message.pattern, index, message.sender, noise)
        port.transmit(now, None, local, source, response.encode())
        if first_contact:
            return None
        indices = index, message.sender
        return Completed(
            handshake, message.version, indices, initiator=False, path=(local, source), first_contact=False
        )

    def on_final(self, message: datagram.FinalMessage) -> Completed:
        """Third message of XX: now we know who it is."""
        half_open = self._port.half_open.get(message.receiver)
        if half_open is None or half_open.version != message.version:
            raise MalformedError("no-such-handshake")
        try:
            half_open.handshake.read_message(message.noise)
        except HandshakeError as error:
            raise MalformedError("forged-final") from error
        self._port.half_open.pop(message.receiver)
        if half_open.handshake.remote_static == self._port.static.public:
            raise MalformedError("own-key")
        indices = message.receiver, half_open.remote_index
        return Completed(
            half_open.handshake, half_open.version, indices, initiator=False, path=half_open.path, first_contact=True
        )

    def _accept_known(
        self,
        now: float,
        handshake: Handshake,
        payload: bytes,
        message: datagram.Init,
        arrival: Arrival,
    ) -> None:
        """Who sends the first message of IKpsk2, and may it?"""
        key = handshake.remote_static
        peer = self._port.peers.get(key) if key is not None else None
        if peer is None or peer.secret is None:
            self.hint(now, arrival, datagram.Unknown(message.version, message.sender))
            raise MalformedError("unknown-peer")
        if peer.state is PeerState.REJECTED:
            raise MalformedError("rejected-peer")
        counter = int.from_bytes(payload, "big")
        if len(payload) != 8:
            raise MalformedError("bad-length")
        if counter <= peer.greatest_counter:
            raise MalformedError("replayed-handshake")
        peer.greatest_counter = counter
        self._port.emit(events.PeerChanged(peer.key))
        handshake.set_psk(peer.secret)

    def _drop_old(self, now: float) -> None:
        while (oldest := next(iter(self._port.half_open), None)) is not None:
            waiting = self._port.half_open.get(oldest)
            if waiting is None or now - waiting.since <= constants.HALF_OPEN_TIME:
                return
            self._port.half_open.pop(oldest)

    def _count(self, now: float) -> None:
        second, n = self._second
        self._second = (int(now), n + 1 if second == int(now) else 1)

    def _loaded(self, now: float) -> bool:
        second, n = self._second
        if second == int(now) and n >= constants.LOAD_HANDSHAKES:
            return True
        if len(self._port.half_open) >= constants.HALF_OPEN_MAX // 2:
            self._drop_old(now)
        return len(self._port.half_open) >= constants.HALF_OPEN_MAX // 2

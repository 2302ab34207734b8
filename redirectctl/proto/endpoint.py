"""The control port of one host: datagrams in, datagrams and events out.  No I/O, no clock.

Call receive() for every datagram, tick() when next_timer() says so, and carry out what drain() returns, in order.
Handshakes are in initiate.py and respond.py; here are sessions and what travels in them.

A message that is refused leaves no trace but an events.Refused with a named reason.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from redirectctl.proto import constants, events
from redirectctl.proto.cipher import TransportCipher
from redirectctl.proto.errors import AuthError
from redirectctl.proto.initiate import Initiator
from redirectctl.proto.noise import Rng, StaticKey
from redirectctl.proto.peer import Accepted, Peer, PeerState, Session
from redirectctl.proto.port import Arrival, Completed, Port
from redirectctl.proto.ratelimit import network
from redirectctl.proto.respond import Responder
from redirectctl.wire import datagram
from redirectctl.wire import message as messages
from redirectctl.wire.addr import IPAddress, SockAddr
from redirectctl.wire.datagram import MalformedError

Admit = Callable[[bytes, SockAddr, bool], PeerState | None]  # key, where, did we contact it -> state, None: refuse


class Endpoint(Port):
    """Sessions with peers.  ``admit`` decides about a key that is met for the first time."""

    def __init__(
        self,
        static: StaticKey,
        rng: Rng,
        admit: Admit,
        peers: dict[bytes, Peer] | None = None,
        counter: int = 0,
        versions: tuple[int, ...] = constants.VERSIONS,
    ) -> None:
        """``counter``: at least as high as any that a former run of this host used for IKpsk2 initiations."""
        super().__init__(static, rng, peers if peers is not None else {}, counter, versions)
        self._admit = admit
        self._by_remote: dict[int, dict[int, Session]] = {}  # by the peer's index, which others may have too: UNKNOWN
        self._hinted: dict[bytes, float] = {}
        self.initiator = Initiator(self)
        self.responder = Responder(self)

    # -- for the owner ------------------------------------------------------------------------------------------------

    def next_timer(self) -> float | None:
        """When tick() is due."""
        return self.timers.next()

    def contact(
        self,
        now: float,
        to: SockAddr,
        source: IPAddress | None = None,
        key: bytes | None = None,
        *,
        again: bool = False,
    ) -> None:
        """Start a handshake; ``key`` is who must answer, None whoever is there.

        ``again``: with a known peer, if one is under way already, send a fresh first message now.
        """
        self.initiator.start(now, to, source, key, again=again)

    def send(
        self,
        now: float,
        peer: Peer,
        message: messages.Message,
        to: SockAddr | None = None,
        source: IPAddress | None = None,
    ) -> bool:
        """Seal and send to where the peer is, or along the given path.  False: there is no session."""
        session = peer.session(now)
        if session is None:
            return False
        if to is None:
            if peer.remote is None:
                return False
            to, source = peer.remote, peer.local
        if session.final is not None and session.confirms > 1:  # it may be what was lost: without it nothing is read
            self.transmit(now, peer.key, source, to, session.final)
        self._seal(now, session, messages.encode(message), to, source)
        peer.last_sent = now
        if session.old(now) and not self.initiator.under_way(peer.key):
            if peer.remote is not None:  # not `to`, which may be an address that has yet to be proven
                to, source = peer.remote, peer.local
            self.initiator.start(now, to, source, peer.key)
        return True

    def keep_alive(self, now: float, peer: Peer) -> None:
        """Send an empty message to where the peer is, if there is a session."""
        session = peer.session(now)
        if session is not None and peer.remote is not None:
            self._seal(now, session, b"", peer.remote, peer.local)
            peer.last_sent = now

    def punch(self, now: float, peer: Peer, to: SockAddr, source: IPAddress | None = None) -> None:
        """The same to where the peer may be: a NAT between lets its datagrams from there in."""
        session = peer.session(now)
        if session is not None:
            self._seal(now, session, b"", to, source)

    def receive(
        self,
        now: float,
        data: bytes,
        source: SockAddr,
        local: IPAddress,
        via: bytes | None = None,
        *,
        port: int = 0,
    ) -> None:
        """A datagram came from ``source`` to our address ``local``, at our port number ``port``.

        ``via``: it is of this peer, and the rendezvous at ``source`` has handed it over.
        """
        self.arrival = Arrival(source, local, port, via)
        try:
            self._dispatch(now, data, datagram.decode(data), self.arrival)
        except MalformedError as error:
            self.emit(events.Refused(source, error.reason, via))
        finally:
            self.arrival = None

    def tick(self, now: float) -> None:
        """Do what has become due."""
        for kind, *rest in self.timers.due(now):
            if kind == "attempt":
                self.initiator.retry(now, *rest)
            elif kind == "confirm":
                self._confirm(now, *rest)
            elif kind == "rekey":
                self._rekey(now, *rest)
            elif kind == "expire":
                self._expire(*rest)

    def forget(self, key: bytes) -> None:
        """Drop a peer and its sessions."""
        peer = self.peers.pop(key, None)
        for session in list(peer.sessions) if peer is not None else []:
            self._expire(session.local_index)
        self._hinted.pop(key, None)
        self.initiator.cancel(key)

    # -- handshakes ---------------------------------------------------------------------------------------------------

    def _establish(self, now: float, completed: Completed, via: bytes | None) -> None:
        """Make the session.  Raises MalformedError when the peer is not wanted."""
        handshake, initiator, path = completed.handshake, completed.initiator, completed.path
        key = handshake.remote_static
        if key is None:
            raise MalformedError("no-static-key")
        if via not in (None, key):
            raise MalformedError("wrong-pair")
        local, remote = path
        peer = self.peers.get(key)
        if peer is None:
            peer = self._meet(now, key, remote, initiator)
        elif peer.state is PeerState.REJECTED:
            raise MalformedError("rejected-peer")
        if completed.first_contact:
            rank = (now, handshake.handshake_hash)
            # Two first contacts at once, one from each side, may end in either order: both ends keep the same secret.
            # They may end up with different ones all the same, when one is killed before it gets to the end.
            if now - peer.secret_rank[0] > constants.SECRET_RACE or rank[1] > peer.secret_rank[1]:
                peer.secret, peer.secret_rank = handshake.export_secret(constants.LABEL_PAIRWISE), rank
                peer.greatest_counter = -1
        keys = handshake.split()
        ciphers = TransportCipher(keys.send), TransportCipher(keys.recv)
        session = Session(
            key, completed.version, initiator, *completed.indices, *ciphers,
            created=now, usable=initiator, path=path, final=completed.final,
        )  # fmt: skip
        first = peer.session(now) is None
        self._add_session(now, peer, session)
        if initiator:
            self.locate(peer, remote, local)
            peer.last_contact = now
            self.reached(peer)
            self._confirm(now, session.local_index)
            self.emit(events.PeerChanged(key))
            self.emit(events.SessionUp(key, remote, first, initiator=True, local=local))
        else:
            self.emit(events.PeerChanged(key))

    # -- inside -------------------------------------------------------------------------------------------------------

    def _dispatch(self, now: float, raw: bytes, message: datagram.Datagram, arrival: Arrival) -> None:
        completed: Completed | None = None
        match message:
            case datagram.Transport():
                self._on_transport(now, message, arrival)
            case datagram.Init():
                completed = self.responder.on_init(now, raw, message, arrival)
            case datagram.Response():
                self._on_response(now, message, arrival)
            case datagram.FinalMessage():
                if message.receiver not in self.sessions:  # else a repeated one whose session we have
                    completed = self.responder.on_final(message)
            case datagram.Cookie():
                self.initiator.on_cookie(now, message)
            case datagram.Versions():
                self.initiator.on_versions(now, message)
            case datagram.Unknown():
                self._on_unknown(now, message)
        if completed is not None:
            self._establish(now, completed, arrival.via)

    def _on_response(self, now: float, message: datagram.Response, arrival: Arrival) -> None:
        answered = self.initiator.on_response(now, message, arrival)
        if answered is None:
            return
        attempt, completed = answered
        try:
            self._establish(now, completed, arrival.via)
        except MalformedError as error:
            self.emit(events.ContactFailed(attempt.to, attempt.key, error.reason, attempt.source))
            raise

    def _on_transport(self, now: float, message: datagram.Transport, arrival: Arrival) -> None:
        session = self.sessions.get(message.receiver)
        if session is None:
            if message.receiver not in self.half_open:
                self.responder.hint(now, arrival, datagram.Unknown(message.version, message.receiver))
            raise MalformedError("unknown-session")
        if session.expired(now):
            raise MalformedError("expired-session")
        if message.version != session.version:
            raise MalformedError("unknown-version")
        refusal = session.window.check(message.counter)
        if refusal is not None:
            raise MalformedError(str(refusal))
        try:
            plaintext = session.opening.open(message.counter, message.ciphertext, message.header)
        except AuthError as error:
            raise MalformedError(str(error.reason)) from error
        session.window.commit(message.counter)
        try:
            self._on_plaintext(now, session, plaintext, len(message.ciphertext), arrival)
        except MalformedError as error:  # of this peer, beyond doubt
            self.emit(events.Refused(arrival.source, error.reason, session.key))

    def _on_plaintext(self, now: float, session: Session, plaintext: bytes, length: int, arrival: Arrival) -> None:
        source, local, _, via = arrival
        if via not in (None, session.key):
            raise MalformedError("wrong-pair")
        peer = self.peers[session.key]
        peer.last_contact = now
        self.reached(peer)
        if via is None and not peer.receives_at(source):
            peer.unproven.credit(now, length)
        if not session.heard:
            session.heard, session.final = True, None
            self.timers.cancel(("confirm", session.local_index))
        if not session.usable:
            self._first_heard(now, peer, session)
        received = messages.decode(plaintext) if plaintext else None
        if received is not None:
            self.emit(events.Received(session.key, received, source, local))
        # What answers must not draw an answer; and where a rendezvous is says nothing of where the peer is.
        if source != peer.remote and not isinstance(received, messages.Hello) and via is None:
            self.emit(events.Heard(session.key, source, local))

    def _first_heard(self, now: float, peer: Peer, session: Session) -> None:
        """The initiator has shown that it holds the keys, and that it receives where the answer went: we may send."""
        local, source = session.path
        first = peer.session(now) is None
        session.usable = True
        self._trim(peer)
        self.locate(peer, source, local)
        self._seal(now, session, b"", source, local)
        self.emit(events.PeerChanged(peer.key))
        self.emit(events.SessionUp(peer.key, source, first, initiator=False, local=local))

    def _on_unknown(self, now: float, message: datagram.Unknown) -> None:
        if self.initiator.on_unknown(now, message.receiver):
            return
        if message.receiver not in self._by_remote:
            raise MalformedError("no-such-session")
        for key in dict.fromkeys(session.key for session in self._by_remote[message.receiver].values()):
            if now - self._hinted.get(key, float("-inf")) >= constants.UNKNOWN_HINT_PAUSE:
                self._hinted[key] = now
                peer = self.peers[key]
                if peer.remote is not None:  # the old session stays: the hint proves nothing
                    self.initiator.start(now, peer.remote, peer.local, peer.key)

    def _meet(self, now: float, key: bytes, at: SockAddr, initiator: bool) -> Peer:
        state = self._admit(key, at, initiator)
        if state is None:
            raise MalformedError("unknown-peer")
        accepted = Accepted.NO if initiator or state is not PeerState.APPROVED else Accepted.UNUSED
        if state is PeerState.PENDING:
            self._make_room(at, "too-many-pending", constants.PENDING_MAX, lambda p: p.state is PeerState.PENDING)
        elif accepted:
            self._make_room(at, "too-many-unused", constants.UNUSED_MAX, lambda p: p.unused)
        if len(self.peers) >= constants.PEERS_MAX and not initiator:
            self._make_room(at, "too-many-peers", 1, lambda p: not p.chosen and not p.keep)
            if len(self.peers) >= constants.PEERS_MAX:
                raise MalformedError("too-many-peers")
        peer = self.peers[key] = Peer(key, state, accepted=accepted, last_contact=now)
        self.emit(events.PeerMet(key, at, initiator))
        return peer

    def _make_room(self, at: SockAddr, reason: str, limit: int, may_go: Callable[[Peer], bool]) -> None:
        """If so many may go, drop one of them: of those that called us and were never of use, if there are any, the one
        that was silent for longest in the network that has most.  So a crowd of strangers pushes nobody else out."""
        some = [p for p in self.peers.values() if may_go(p)]
        if len(some) < limit:
            return
        crowds = Counter(network(p.seen_at) for p in some)
        first = min(
            some,
            key=lambda p: (
                bool(p.identity), p.accepted is Accepted.USED, -crowds[network(p.seen_at)], p.last_contact or 0.0
            ),
        )  # fmt: skip
        self.emit(events.Refused(at, reason, first.key))
        self.forget(first.key)
        self.emit(events.PeerDropped(first.key))

    def _add_session(self, now: float, peer: Peer, session: Session) -> None:
        self.sessions[session.local_index] = session
        self._by_remote.setdefault(session.remote_index, {})[session.local_index] = session
        peer.sessions.insert(0, session)
        self._trim(peer)
        self.timers.set(("expire", session.local_index), now + constants.REJECT_AFTER_TIME)
        renew = constants.REKEY_AFTER_TIME if session.initiator else constants.REKEY_AFTER_TIME_RESPONDER
        self.timers.set(("rekey", session.local_index), now + renew)

    def _trim(self, peer: Peer) -> None:
        # Sessions that the initiator has not shown to hold may be made of replayed messages: they push no others out.
        for kind in (True, False):
            for old in [s for s in peer.sessions if s.usable is kind][constants.SESSIONS_PER_PEER :]:
                self._expire(old.local_index)

    def _confirm(self, now: float, index: int) -> None:
        """An empty message shows the responder that we hold the keys; its answer ends the repeats."""
        session = self.sessions.get(index)
        peer = self.peers.get(session.key) if session is not None else None
        if session is None or peer is None or session.heard or peer.remote is None:
            return
        if session.final is not None and session.confirms:
            self.transmit(now, peer.key, peer.local, peer.remote, session.final)
        self._seal(now, session, b"", peer.remote, peer.local)
        if session.confirms < len(constants.CONFIRM_RETRIES):
            self.timers.set(("confirm", index), now + constants.CONFIRM_RETRIES[session.confirms])
        session.confirms += 1

    def _rekey(self, now: float, index: int) -> None:
        session = self.sessions.get(index)
        peer = self.peers.get(session.key) if session is not None else None
        if session is None or peer is None or not peer.keep or peer.remote is None:
            return
        if peer.session(now) is session:  # else there is a newer one
            self.initiator.start(now, peer.remote, peer.local, peer.key)

    def _expire(self, index: int) -> None:
        session = self.sessions.pop(index, None)
        if session is None:
            return
        alike = self._by_remote[session.remote_index]
        del alike[index]
        if not alike:
            del self._by_remote[session.remote_index]
        peer = self.peers.get(session.key)
        if peer is not None and session in peer.sessions:
            peer.sessions.remove(session)
        for kind in ("confirm", "rekey", "expire"):
            self.timers.cancel((kind, index))

    def _seal(self, now: float, session: Session, plaintext: bytes, to: SockAddr, source: IPAddress | None) -> None:
        counter, session.counter = session.counter, session.counter + 1
        shell = datagram.Transport(session.version, session.remote_index, counter, b"")
        sealed = session.sealing.seal(counter, plaintext, shell.header)
        self.transmit(now, session.key, source, to, shell.header + sealed)

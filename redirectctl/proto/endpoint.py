"""The control port of one host: datagrams in, datagrams and events out.  No I/O, no clock.

Call receive() for every datagram, tick() when next_timer() says so, and carry out what drain() returns, in order.
Handshakes are in initiate.py and respond.py; here are sessions and what travels in them.

A message that is refused leaves no trace but an events.Refused with a named reason.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from redirectctl.proto import constants, events
from redirectctl.proto.cipher import TransportCipher
from redirectctl.proto.errors import AuthError
from redirectctl.proto.initiate import Initiator
from redirectctl.proto.noise import Handshake, Rng, StaticKey
from redirectctl.proto.peer import Accepted, Peer, PeerState, Session
from redirectctl.proto.ratelimit import network
from redirectctl.proto.respond import Responder
from redirectctl.proto.timers import Timers
from redirectctl.wire import datagram
from redirectctl.wire import message as messages
from redirectctl.wire.addr import IPAddress, SockAddr
from redirectctl.wire.datagram import MalformedError

Admit = Callable[[bytes, SockAddr, bool], PeerState | None]  # key, where, did we contact it -> state, None: refuse
HandOver = Callable[[float, bytes, IPAddress | None, SockAddr, bytes], None]  # now, to whom, from, by way of, datagram


class Endpoint:
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
        self.static = static
        self.rng = rng
        self.peers: dict[bytes, Peer] = peers if peers is not None else {}
        self.versions = versions
        self.timers: Timers[tuple[Any, ...]] = Timers()
        self._admit = admit
        self._counter = counter
        self._out: list[events.Event] = []
        self._sessions: dict[int, Session] = {}  # by our index
        self._by_remote: dict[int, dict[int, Session]] = {}  # by the peer's index, which others may have too: UNKNOWN
        self._hinted: dict[bytes, float] = {}
        self.relays: dict[SockAddr, bytes] = {}  # rendezvous: what goes there for somebody else is handed over
        self.hand_over: HandOver = lambda *_: None
        self.is_ours: Callable[[IPAddress], bool] = lambda _: False  # this host has the address
        self._via: bytes | None = None  # whose datagram a rendezvous has brought, while we look at it
        self._arrived: tuple[SockAddr | None, int] = (None, 0)  # where that datagram came from, at which of our ports
        self._newest = (0, float("-inf"))  # number of our newest port, and since when we have it
        self.initiator = Initiator(self)
        self.responder = Responder(self)

    # -- for the owner ------------------------------------------------------------------------------------------------

    def drain(self) -> list[events.Event]:
        """What has come of the calls since the last drain, in order."""
        out, self._out = self._out, []
        return out

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

    def knock(self, now: float, peer: Peer, to: SockAddr, source: IPAddress | None = None) -> None:
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
        key: list[bytes] = []
        self._via, self._arrived = via, (source, port)
        try:
            message = datagram.decode(data)
            self._dispatch(now, data, message, source, local, key)
        except MalformedError as error:
            self.emit(events.Refused(source, error.reason, key[0] if key else via))
        finally:
            self._via, self._arrived = None, (None, 0)

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

    # -- for initiate.py and respond.py -------------------------------------------------------------------------------

    def emit(self, event: events.Event) -> None:
        """Queue for drain()."""
        self._out.append(event)

    def transmit(self, now: float, key: bytes | None, source: IPAddress | None, to: SockAddr, data: bytes) -> None:
        """Send to a peer; ``key``: whom, as far as that is known.  Nobody else is where we are: nothing goes there."""
        if self.is_ours(to.host):
            return
        if (whom := self.handed_to(to, key)) is not None:
            self.hand_over(now, whom, source, to, data)
            return
        peer = self.peers.get(key) if key is not None else None
        if peer is None or peer.receives_at(to) or peer.unproven.allows(now, len(data)):
            self.emit(events.Transmit(source, to, data, self._port_to(to, key)))

    def locate(self, peer: Peer, remote: SockAddr, local: IPAddress | None) -> None:
        """The peer has shown that it receives what we send from ``local`` to ``remote``.

        The only place where that changes.  The source of a datagram shows nothing: whoever holds the keys can forge it.
        """
        for place in (peer.remote, remote):
            if place is not None:
                peer.proven.pop(place, None)
                peer.proven[place] = None
        while len(peer.proven) > constants.PROVEN_MAX:
            del peer.proven[next(iter(peer.proven))]
        peer.remote, peer.local = remote, local

    def handed_to(self, to: SockAddr, key: bytes | None) -> bytes | None:
        """For whom a rendezvous at ``to`` gets a datagram; None: it is for whoever is there."""
        whom = key or self._via
        return whom if to in self.relays and whom not in (None, self.relays[to]) else None

    def port_number(self, key: bytes | None, to: SockAddr) -> int:
        """From which of our ports a peer, or the rendezvous at ``to`` that stands for it, is sent to."""
        peer = self.peers.get(self.relays.get(to, key or b""))
        return peer.port if peer is not None else 0

    def ports_in_use(self) -> set[int]:
        """Numbers of our ports that peers know, or may come to know."""
        return {port for peer in self.peers.values() for port in peer.ports}

    def try_another_port(self, now: float, key: bytes | None, asked: float) -> None:
        """A peer has not answered since it was ``asked``: what is under way between our port and its may be led astray
        by a router, for as long as we go on sending.  A fresh port makes a fresh entry there."""
        peer = self.peers.get(key) if key is not None else None
        if peer is None or (peer.last_contact is not None and peer.last_contact >= asked):
            return
        number, since = self._newest
        if number in (0, peer.port, peer.trial) and now - since >= constants.FRESH_PORT:
            number += 1
            self._newest = number, now
        peer.trial = number if number != peer.port else 0

    def new_index(self) -> int:
        """A random index that names no session and no handshake of ours."""
        while True:
            index = int.from_bytes(self.rng(4), "big")
            if index and index not in self._sessions and index not in self.responder:
                return index

    def next_counter(self) -> int:
        """For the first message of IKpsk2; grows with every use."""
        self._counter += 1
        return self._counter

    def establish(
        self,
        now: float,
        handshake: Handshake,
        *,
        version: int,
        indices: tuple[int, int],
        initiator: bool,
        final: bytes | None,
        path: tuple[IPAddress, SockAddr],
        first_contact: bool,
    ) -> None:
        """A handshake is complete: make the session.  Raises MalformedError when the peer is not wanted."""
        key = handshake.remote_static
        if key is None:
            raise MalformedError("no-static-key")
        if self._via not in (None, key):
            raise MalformedError("wrong-pair")
        local, remote = path
        peer = self.peers.get(key)
        if peer is None:
            peer = self._meet(now, key, remote, initiator)
        elif peer.state is PeerState.REJECTED:
            raise MalformedError("rejected-peer")
        if first_contact:
            rank = (now, handshake.handshake_hash)
            # Two first contacts at once, one from each side, may end in either order: both ends keep the same secret.
            # They may end up with different ones all the same, when one is killed before it gets to the end.
            if now - peer.secret_rank[0] > constants.SECRET_RACE or rank[1] > peer.secret_rank[1]:
                peer.secret, peer.secret_rank = handshake.export_secret(constants.LABEL_PAIRWISE), rank
                peer.greatest_counter = -1
        keys = handshake.split()
        ciphers = TransportCipher(keys.send), TransportCipher(keys.recv)
        session = Session(
            key, version, initiator, *indices, *ciphers, created=now, usable=initiator, path=path, final=final
        )
        first = peer.session(now) is None
        self._add_session(now, peer, session)
        if initiator:
            self.locate(peer, remote, local)
            peer.last_contact = now
            self._reached(peer)
            self._confirm(now, session.local_index)
            self.emit(events.PeerChanged(key))
            self.emit(events.SessionUp(key, remote, first, initiator=True, local=local))
        else:
            self.emit(events.PeerChanged(key))

    # -- inside -------------------------------------------------------------------------------------------------------

    def _port_to(self, to: SockAddr, key: bytes | None) -> int:
        """What answers goes from where the question came to; while nobody answers, one of those that may get through.

        Which of them is left to chance: what is sent in turns is always the same kind of datagram.
        """
        source, port = self._arrived
        if to == source:
            return port
        peer = self.peers.get(key) if key is not None else None
        ports = peer.ports if peer is not None else (0,)
        return ports[self.rng(1)[0] % len(ports)] if len(ports) > 1 else ports[0]

    def _reached(self, peer: Peer) -> None:
        """A peer has answered: at a port that was tried because it did not, or at the old one after all."""
        if not peer.trial or self._via is not None:
            return
        peer.trial, before, peer.port = 0, peer.port, self._arrived[1]
        if peer.port != before:
            self.emit(events.PortChanged(peer.key))

    def _dispatch(
        self, now: float, raw: bytes, message: datagram.Datagram, source: SockAddr, local: IPAddress, key: list[bytes]
    ) -> None:
        match message:
            case datagram.Transport():
                self._on_transport(now, message, source, local, key)
            case datagram.Init():
                self.responder.on_init(now, raw, message, source, local)
            case datagram.Response():
                self.initiator.on_response(now, message, local)
            case datagram.FinalMessage():
                if message.receiver not in self._sessions:  # else a repeated one whose session we have
                    self.responder.on_final(now, message)
            case datagram.Cookie():
                self.initiator.on_cookie(now, message)
            case datagram.Versions():
                self.initiator.on_versions(now, message)
            case datagram.Unknown():
                self._on_unknown(now, message)

    def _on_transport(
        self, now: float, message: datagram.Transport, source: SockAddr, local: IPAddress, key: list[bytes]
    ) -> None:
        session = self._sessions.get(message.receiver)
        if session is None:
            if message.receiver not in self.responder:
                self.responder.hint(now, source, local, datagram.Unknown(message.version, message.receiver))
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
        key.append(session.key)
        if self._via not in (None, session.key):
            raise MalformedError("wrong-pair")
        peer = self.peers[session.key]
        peer.last_contact = now
        self._reached(peer)
        if self._via is None and not peer.receives_at(source):
            peer.unproven.credit(now, len(message.ciphertext))
        if not session.heard:
            session.heard, session.final = True, None
            self.timers.cancel(("confirm", session.local_index))
        if not session.usable:
            self._first_heard(now, peer, session)
        received = messages.decode(plaintext) if plaintext else None
        if received is not None:
            self.emit(events.Received(session.key, received, source, local))
        # What answers must not draw an answer; and where a rendezvous is says nothing of where the peer is.
        if source != peer.remote and not isinstance(received, messages.Hello) and self._via is None:
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
        self._sessions[session.local_index] = session
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
        session = self._sessions.get(index)
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
        session = self._sessions.get(index)
        peer = self.peers.get(session.key) if session is not None else None
        if session is None or peer is None or not peer.keep or peer.remote is None:
            return
        if peer.session(now) is session:  # else there is a newer one
            self.initiator.start(now, peer.remote, peer.local, peer.key)

    def _expire(self, index: int) -> None:
        session = self._sessions.pop(index, None)
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

"""Floods of each message inside a session.

mallory is approved, and has connections of its own with alice.  It sends alice every kind of message without end, as
much as fits, about what it has and about what it does not.  Work is counted: calls of functions, and connections that
are looked at.  bob moves meanwhile.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from itertools import count
from types import FrameType
from typing import Any, Final

import pytest

from redirectctl.flows import constants as limits
from redirectctl.flows.policy import Policy
from redirectctl.flows.proofs import digest
from redirectctl.wire import datagram
from redirectctl.wire import meeting as wire
from redirectctl.wire import message as messages
from redirectctl.wire.addr import FourTuple, SockAddr
from redirectctl.wire.message import AcmStatus, End, Status, TokenArrival, Trust
from redirectctl.wire.tunnel import Offer
from tests.sim.network import PORT, ip
from tests.sim.test_senders import KINDS, NAMES
from tests.sim.world import World, acm, agree

ALICE, BOB, MALLORY, NEW = "192.0.2.1", "198.51.100.2", "203.0.113.66", "203.0.113.9"
OWN: Final = 60  # connections of mallory's
BURST, RATE = 400, 50.0  # a tenth of what the rate is
FLOOD: Final = 600  # messages at once, and then as many in a second
PARTS: Final = 12  # of a message: claims, tokens
MOST: Final = 4000  # calls for a message that is looked at, 300 microseconds or so; most have a few hundred
REFUSED: Final = 500  # and for one beyond the rate: to open and read it, and to say so

ALL_AT_ONCE: Final = 10  # times that all connections are looked at, however many messages come: when routes are found

Message = messages.Message


class Flood:
    def __init__(self) -> None:
        self.world = World(seed=17)
        policy = Policy(first_contact="accept-new", long_lived_after=1.0, prefer="auto", serve=True)
        self.alice, self.bob, self.mallory = (
            self.world.host(name, at, policy=policy)
            for name, at in (("alice", ALICE), ("bob", BOB), ("mallory", MALLORY))
        )
        self.bobs = [self.world.connect(self.bob, self.alice, 40000 + n)[1] for n in range(20)]
        self.own = [self.world.connect(self.mallory, self.alice, 50000 + n)[1] for n in range(OWN)]
        self.world.run(8)
        assert all(self.alice.protects(socket) for socket in self.bobs + self.own)
        self.cids = [self.alice.connection(socket).cid for socket in self.own]
        self.number = count(1000)
        self.calls = 0

    def send(self, message: Message) -> None:
        """As fast as it likes: nothing else happens meanwhile."""
        session = self.mallory.engine.endpoint.peers[self.alice.static.public].session(self.world.now)
        assert session is not None
        shell = datagram.Transport(session.version, session.remote_index, session.counter, b"")
        session.counter += 1
        data = shell.header + session.sealing.seal(shell.counter, messages.encode(message), shell.header)
        sys.setprofile(self._count)
        try:
            self.alice.engine.receive(self.world.now, data, SockAddr(ip(MALLORY), PORT), ip(ALICE))
        finally:
            sys.setprofile(None)
        self.alice.run()

    def _count(self, frame: FrameType, event: str, argument: Any) -> None:
        self.calls += event == "call"

    def cost(self, message: Message) -> int:
        before = self.calls
        self.send(message)
        return self.calls - before


def claim(n: int) -> messages.Claim:
    socket = FourTuple(SockAddr(ip(MALLORY), 1 + n % 60000), SockAddr(ip(ALICE), 22))
    cid = n.to_bytes(8)
    return messages.Claim(cid, 2**40 + n, socket, digest(cid), Offer(1, bytes(16), 0))


SAY: Final[dict[type, Callable[[Flood, int], Message]]] = {
    messages.Hello: lambda f, n: messages.Hello(
        Trust.APPROVED, SockAddr(ip(ALICE), 1000 + n), tuple(ip(f"203.0.113.{100 + (n + m) % 100}") for m in range(8))
    ),
    messages.Protect: lambda f, n: messages.Protect(n, tuple(claim(n * 100 + m) for m in range(PARTS))),
    messages.Protected: lambda f, n: messages.Protected(
        n, tuple(messages.Verdict(cid, 0, Status.NOT_YOURS) for cid in f.cids[:PARTS])
    ),
    messages.Acm: lambda f, n: acm(2**40 + n, MALLORY, MALLORY, nonce=n.to_bytes(8)),
    messages.AcmAck: lambda f, n: messages.AcmAck(n, bytes(8), AcmStatus.APPLIED, 9, SockAddr(ip(ALICE), 9)),
    messages.PathChallenge: lambda f, n: messages.PathChallenge(n, bytes(8), bytes(8)),
    messages.PathResponse: lambda f, n: messages.PathResponse(n, bytes(8)),
    messages.RstQuery: lambda f, n: messages.RstQuery(n, f.cids[n % OWN]),
    messages.RstReply: lambda f, n: messages.RstReply(n, alive=True),
    messages.EndOf: lambda f, n: messages.EndOf(n, End.CLOSED, tuple(f.cids) * 2),
    messages.Done: lambda f, n: messages.Done(n),
    messages.Sync: lambda f, n: messages.Sync(n, tuple(f.cids) * 2),
    messages.SyncReply: lambda f, n: messages.SyncReply(n, tuple(f.cids) * 2),
    messages.Bind: lambda f, n: messages.Bind(n, tuple(TokenArrival(cid, bytes(8), 0, 0) for cid in f.cids[:PARTS])),
    messages.BindNumbers: lambda f, n: messages.BindNumbers(n, tuple((cid, bytes(8)) for cid in f.cids[:PARTS])),
    messages.Seen: lambda f, n: messages.Seen(tuple((n * 100 + m).to_bytes(8) for m in range(messages.MAX_TOKENS))),
    messages.PathProbe: lambda f, n: messages.PathProbe(n.to_bytes(8)),
    messages.PathProbed: lambda f, n: messages.PathProbed(n.to_bytes(8)),
    messages.Bye: lambda f, n: messages.Bye(),
    messages.Name: lambda f, n: messages.Name.of(f"name-{n}"),
    wire.Register: lambda f, n: wire.Register(
        n, (ip(MALLORY),), tuple((n * 100 + m).to_bytes(wire.TAG_LEN) for m in range(wire.MAX_TAGS))
    ),
    wire.Registered: lambda f, n: wire.Registered(n, wire.Registration.OK, SockAddr(ip(ALICE), 9)),
    wire.Lookup: lambda f, n: wire.Lookup(n.to_bytes(wire.TAG_LEN)),
    wire.Found: lambda f, n: wire.Found(n.to_bytes(wire.TAG_LEN), SockAddr(ip(NEW), 9), (ip(NEW),)),
    wire.Forward: lambda f, n: wire.Forward(n.to_bytes(wire.TAG_LEN), bytes(wire.MAX_FORWARDED)),
    wire.Forwarded: lambda f, n: wire.Forwarded(n.to_bytes(wire.TAG_LEN), bytes(wire.MAX_FORWARDED)),
    wire.Relay: lambda f, n: wire.Relay(n, bytes(wire.TAG_LEN), tuple(range(n * 300, n * 300 + wire.MAX_FLOWS))),
    wire.Relayed: lambda f, n: wire.Relayed(n, 1),
}


def test_every_message_is_tried() -> None:
    assert set(SAY) == set(KINDS)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: NAMES[kind.TYPE])
def test_a_flood_of_each_message(kind: type, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MESSAGES_BURST", float(BURST))
    monkeypatch.setattr(limits, "MESSAGES_RATE", RATE)
    flood = Flood()
    table, looked_at = flood.alice.engine.table, []
    of, movable = table.of, table.movable
    table.of = lambda peer: looked_at.append(peer) or of(peer)  # type: ignore[method-assign, func-returns-value]
    table.movable = lambda peer=None: looked_at.append(peer) or movable(peer)  # type: ignore[method-assign, func-returns-value]
    costs = [flood.cost(SAY[kind](flood, next(flood.number))) for _ in range(FLOOD)]
    assert set(looked_at) <= {flood.mallory.static.public, None}, "connections of another are not looked at"
    assert looked_at.count(None) <= ALL_AT_ONCE
    heard, beyond = costs[:BURST], costs[BURST:]
    assert flood.alice.named("packet.refused", "rate-limited")
    assert sum(heard) / len(heard) < MOST
    assert max(beyond) < REFUSED, "what is beyond the rate costs next to nothing"

    # bob moves while it goes on.
    del table.of, table.movable
    flood.bob.move(NEW)
    for _ in range(20):
        for _ in range(FLOOD // 20):
            flood.send(SAY[kind](flood, next(flood.number)))
        flood.world.run(0.05)
    assert all(agree(flood.alice, flood.bob, socket) for socket in flood.bobs)
    assert {flood.alice.connection(socket).remote_now for socket in flood.bobs} == {ip(NEW)}


def test_announcements_from_ever_other_places_do_not_have_all_connections_looked_at() -> None:
    flood = Flood()
    table, everything = flood.alice.engine.table, []
    movable = table.movable
    table.movable = lambda peer=None: (everything.append(1) if peer is None else None) or movable(peer)  # type: ignore[method-assign, func-returns-value]
    for n in range(200):
        session = flood.mallory.engine.endpoint.peers[flood.alice.static.public].session(flood.world.now)
        assert session is not None
        source = f"203.0.{100 + n // 100}.{1 + n % 100}"
        shell = datagram.Transport(session.version, session.remote_index, session.counter, b"")
        session.counter += 1
        plaintext = messages.encode(acm(2**40 + n, source, MALLORY))
        data = shell.header + session.sealing.seal(shell.counter, plaintext, shell.header)
        flood.alice.deliver(data, SockAddr(ip(source), PORT), SockAddr(ip(ALICE), PORT))
        flood.world.run(0.01)
    assert 0 < len(everything) <= 10 * 2 / limits.ROUTES_PAUSE
    flood.bob.move(NEW)
    flood.world.run(1)
    assert all(agree(flood.alice, flood.bob, socket) for socket in flood.bobs)


@pytest.mark.parametrize(
    "say",
    [lambda n: acm(2**40 + n, MALLORY, MALLORY), lambda n: messages.Seen(())],
    ids=["an announcement of all", "word that tokens will come"],
)
def test_what_is_looked_at_counts(say: Callable[[int], Message], monkeypatch: pytest.MonkeyPatch) -> None:
    """What concerns all of many connections is as much as several messages."""
    monkeypatch.setattr(limits, "MESSAGES_BURST", 100.0)
    monkeypatch.setattr(limits, "LOOKED_AT", OWN // 3)
    flood = Flood()
    heard = 0
    for n in range(100):
        before = len(flood.alice.named("packet.refused", "rate-limited"))
        flood.send(say(n))
        heard += len(flood.alice.named("packet.refused", "rate-limited")) == before
    assert 10 < heard <= 34
    flood.bob.move(NEW)
    flood.world.run(1)
    assert all(agree(flood.alice, flood.bob, socket) for socket in flood.bobs)

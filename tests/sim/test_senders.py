"""Every message of the protocol, from everybody who may send it and to whom it does not belong.

The table "Each message" of docs/threat-model.md is what is tested here: which reason the event log gives, or that there
is none, for each message and sender.  Besides, for all of them: nothing changes of what alice knows of others, of her
kernel's rules and of what she has stored, and what is sent where nobody has answered is bounded.  Whether something
changes shows a second world, in which nothing was sent.

alice has a connection with bob, serves as rendezvous for bob and carol, and meets bob at rita's.  mallory has a session
with her, and in most tests her approval; rita is her rendezvous.  Both know all numbers that bob's messages have.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, get_args

import pytest

from redirectctl.flows.moves.addresses import Failure
from redirectctl.flows.policy import Policy
from redirectctl.flows.proofs import digest
from redirectctl.flows.rendezvous.client import tag_of
from redirectctl.flows.state import State
from redirectctl.proto.peer import PeerState
from redirectctl.wire import datagram
from redirectctl.wire import meeting as wire
from redirectctl.wire import message as messages
from redirectctl.wire.addr import SockAddr
from redirectctl.wire.message import End, Status, Trust
from redirectctl.wire.tunnel import Offer
from tests.sim.host import Host
from tests.sim.network import PORT, ip
from tests.sim.world import World, acm

ROOT: Final = Path(__file__).parents[2]
ALICE, BOB, CAROL, MALLORY, RITA = "192.0.2.1", "198.51.100.2", "198.51.100.3", "203.0.113.66", "203.0.113.77"
MOVED, VICTIM = "192.0.2.9", "203.0.113.99"
ALL: Final = Policy(first_contact="accept-new", long_lived_after=1.0, prefer="auto")
ASK: Final = Policy(first_contact="ask", long_lived_after=1.0, prefer="auto", serve=True)
SOON: Final = 0.3  # seconds in which what is sent has had its effect
SMALL: Final = 1000  # bytes, at most, to an address at which nobody has answered

Message = messages.Message


class Scene:
    """All of them, at rest."""

    def __init__(self) -> None:
        self.world = world = World(seed=13)
        self.alice = world.host("alice", ALICE, policy=ASK)
        self.rita = world.host("rita", RITA, policy=Policy(first_contact="accept-new", prefer="auto", serve=True))
        self.bob, self.carol, self.mallory = (
            world.host(name, at, policy=ALL) for name, at in (("bob", BOB), ("carol", CAROL), ("mallory", MALLORY))
        )
        self.alice.meets_at(self.rita)
        self.socket, self.mirrored = world.connect(self.bob, self.alice, 40000)
        self.own, _ = world.connect(self.mallory, self.alice, 50000)
        self.carols, _ = world.connect(self.carol, self.alice, 45000)
        world.run(5)
        for host in (self.bob, self.carol, self.rita):
            self.alice.engine.approve(world.now, host.static.public)
        self.alice.run()
        world.run(40)
        self.bob.meets_at(self.rita)
        world.run(25)
        self.tag = tag_of(self.alice.static.shared(self.bob.static.public), self.rita.static.public)
        self.theirs = tag_of(self.bob.static.shared(self.carol.static.public), self.alice.static.public)
        for host in (self.bob, self.carol):
            self.deliver(host, wire.Register(1, (), (self.theirs,)))
        self.cid = self.alice.connection(self.mirrored).cid
        assert self.alice.protects(self.mirrored)
        assert self.alice.engine.rendezvous.servers[0].tags == {self.tag: self.bob.static.public} | {
            tag_of(
                self.alice.static.shared(self.carol.static.public), self.rita.static.public
            ): self.carol.static.public
        }
        self.silent: list[Host] = []
        world.tap = lambda source, to, data: all(source.host not in h.addresses for h in self.silent)

    def seal(self, sender: Host, message: Message) -> bytes:
        """In the sender's session with alice."""
        session = sender.engine.endpoint.peers[self.alice.static.public].session(self.world.now)
        assert session is not None
        shell = datagram.Transport(session.version, session.remote_index, session.counter, b"")
        session.counter += 1
        return shell.header + session.sealing.seal(shell.counter, messages.encode(message), shell.header)

    def arrive(self, data: bytes, source: str) -> None:
        """At alice."""
        host = self.alice.addresses[0]
        self.alice.deliver(data, SockAddr(ip(source), PORT), SockAddr(host, PORT))

    def deliver(self, sender: Host, message: Message) -> None:
        self.arrive(self.seal(sender, message), str(sender.addresses[0]))

    def said(self, kind: type) -> Any:
        """The latest of alice's messages of this kind."""
        return next(m for m, *_ in reversed(self.alice.messages) if isinstance(m, kind))

    def ask_bob(self, build: Callable[[int], Message]) -> int:
        """alice asks bob something, and he does not answer."""
        self.silent = [self.bob]
        requests = self.alice.engine.requests
        requests.ask(self.world.now, self.bob.static.public, build, lambda *_: None, lambda _: None)
        self.alice.run()
        return requests._last

    def known(self, sender: Host) -> dict[str, object]:
        """What may not change: all that alice knows of others than the sender, and what she has done."""
        alice, engine, not_of = self.alice, self.alice.engine, sender.static.public
        own = {c.socket for c in engine.table.of(not_of)}
        found: dict[str, object] = {
            "flows": {socket: wire for socket, wire in alice.flows.items() if socket not in own},
            "carried": {socket: how for socket, how in alice.carried.items() if socket not in own},
            "suspended": (set(alice.held), set(alice.let_out), dict(alice.altered)),
            "sockets": set(alice.sockets),
            "verdicts": dict(alice.verdicts),
            "kicked": [sockets for sockets in alice.kicked if not own.issuperset(sockets)],
            "relaying": {key: r for key, r in alice.relaying.items() if key != not_of},
            "asked": sorted(engine.requests._open),
            "claims": {
                which: c.taking
                for which in engine.peers_claims._claimed
                if (c := engine.peers_claims._claimed.get(which))
            },
            "moves": {
                m.epoch: (m.chosen, m.rewriting, m.installed) for m in engine.announcements.moves() if m.key != not_of
            },
            "validations": {
                (v.key, v.epoch): (v.chosen, len(v.ways))
                for key in engine.peers
                for v in engine.announcements.validations_of(key)
            },
            "failures": {w: f.proofs for w, f in engine.addresses._failures.items()},
            "trials": {r: (t.proven, len(t.tokens)) for r, t in engine.choice._trials.items()},
            "servers": [(s.standing, s.reflexive, s.at) for s in engine.rendezvous.servers],
            "stored connections": {cid: (c.state, c.wire, c.remote_epoch) for cid, c in alice.stored.items()},
            "stored peers": {k: (p.state, p.remote, p.secret) for k, p in alice.stored_peers.items() if k != not_of},
        }
        for c in (c for c in engine.table if c.socket not in own):
            found[f"connection {c.cid.hex()}"] = (
                c.socket, c.wire, c.state, c.reason, c.peer_tuple, c.sending, c.receiving, c.integrity, c.strict,
                c.tunnel, c.outer_local, c.outer_remote, c.tunnel_waits, c.peer, c.remote_epoch, c.announced_epoch,
                c.moves, c.lost_since, c.peer_closed, c.guarded, c.installed, c.confirmed,
            )  # fmt: skip
        for key, peer in engine.peers.items():
            found[f"peer {key.hex()}"] = (peer.state, peer.secret, peer.remote, peer.local, peer.port, peer.keep)
            if key != not_of:
                guest = engine.rendezvous_server._guests.get(key)
                found[f"more of peer {key.hex()}"] = (
                    peer.addresses, peer.reflexive, peer.trust_there, set(peer.identity), dict(peer.proven),
                    engine.places.of(key), engine.suspension.departed(key),
                    (guest.reflexive, set(guest.tags), set(guest.flows)) if guest is not None else None,
                )  # fmt: skip
        return found


# -- what each sender says, knowing all that bob could say -------------------------------------------------------------


def bobs_claim(s: Scene) -> messages.Claim:
    return messages.Claim(s.cid, 2**50, s.socket, digest(b"a token "), Offer(1, bytes(16), 0))


def claimed_by_bob(s: Scene) -> bytes:
    """A claim of his that is not proven yet."""
    s.world.link.strips = True
    socket, _ = s.world.connect(s.bob, s.alice, 41000)
    s.world.run(2)
    cid = s.bob.connection(socket).cid
    assert (s.bob.static.public, cid) in s.alice.engine.peers_claims._claimed
    return cid


def asked_for_by_alice(s: Scene) -> Message:
    """alice claims a connection of hers with bob."""
    s.silent = [s.bob]
    socket, there = s.world.connect(s.alice, s.bob, 42000)
    s.world.run(1.5)
    ask = s.said(messages.Protect)
    verdict = messages.Verdict(ask.claims[0].cid, 1, Status.OK, there, Offer(7, bytes(16), 0), bytes(8))
    assert s.alice.connection(socket).state is State.NEGOTIATING
    return messages.Protected(ask.request, (verdict,))


def moving_alice(s: Scene) -> messages.Acm:
    """alice has announced a move to bob, who does not answer."""
    s.silent = [s.bob]
    start = len(s.alice.messages)
    s.alice.move(MOVED)
    s.world.run(0.05)
    return next(
        m for m, to, _ in s.alice.messages[start:]
        if isinstance(m, messages.Acm) and to is not None and to.host == ip(BOB)
    )  # fmt: skip


def moving_bob(s: Scene) -> messages.PathResponse:
    """bob has announced a move, and alice's challenge is on its way."""
    s.bob.move("198.51.100.9")
    s.world.run(0.015)
    s.silent = [s.bob]
    challenge = s.said(messages.PathChallenge)
    return messages.PathResponse(challenge.epoch, challenge.data)


def reset(s: Scene) -> Message:
    s.silent = [s.bob]
    s.alice.engine.rst(s.world.now, s.mirrored, 1)
    s.alice.run()
    return messages.RstReply(s.said(messages.RstQuery).request, alive=False)


def seen(s: Scene) -> Message:
    """alice has moved, and asks by tokens whether the plain way carries."""
    s.world.link.strips = True
    s.alice.move(MOVED)
    s.world.run(0.5)
    s.silent = [s.bob]
    trials = s.alice.engine.choice._trials.items()
    tokens = [t for route, trial in trials for t in trial.tokens if route.peer == s.bob.static.public]
    assert tokens
    return messages.Seen(tuple(tokens))


def probed(s: Scene) -> Message:
    s.alice.engine.addresses._failures[s.bob.static.public, ip(MOVED)] = Failure(
        1, s.world.now, s.world.now + 10, b"a probe "
    )
    return messages.PathProbed(b"a probe ")


def recorded(s: Scene) -> Message:
    """What bob has sent some time ago."""
    data = s.seal(s.bob, acm(2**50, BOB, BOB))
    s.arrive(data, BOB)
    s.world.run(1)
    return wire.Forwarded(s.tag, data)


def challenge(s: Scene) -> Message:
    announced = moving_alice(s)
    return messages.PathChallenge(announced.epoch, announced.nonce, bytes(8))


def acknowledgement(s: Scene) -> Message:
    announced, at = moving_alice(s), SockAddr(ip(MOVED), PORT)
    return messages.AcmAck(announced.epoch, announced.nonce, messages.AcmStatus.APPLIED, 1, at)


Build = Callable[[Scene, Host], Message]

SAY: Final[dict[type, Build]] = {
    messages.Hello: lambda s, h: messages.Hello(Trust.REJECTED, SockAddr(ip(VICTIM), 9), (ip(VICTIM), ip(BOB))),
    messages.Protect: lambda s, h: messages.Protect(1, (bobs_claim(s),)),
    messages.Protected: lambda s, h: asked_for_by_alice(s),
    messages.Acm: lambda s, h: acm(2**50, str(h.addresses[0]), BOB, cids=(s.cid,)),
    messages.AcmAck: lambda s, h: acknowledgement(s),
    messages.PathChallenge: lambda s, h: challenge(s),
    messages.PathResponse: lambda s, h: moving_bob(s),
    messages.RstQuery: lambda s, h: messages.RstQuery(1, s.cid),
    messages.RstReply: lambda s, h: reset(s),
    messages.EndOf: lambda s, h: messages.EndOf(1, End.KILL, (s.cid,)),
    messages.Done: lambda s, h: messages.Done(s.ask_bob(lambda n: messages.EndOf(n, End.RELEASED, (b"another.",)))),
    messages.Sync: lambda s, h: messages.Sync(1, (s.cid,)),
    messages.SyncReply: lambda s, h: messages.SyncReply(s.ask_bob(lambda n: messages.Sync(n, (s.cid,))), (s.cid,)),
    messages.Bind: lambda s, h: messages.Bind(1, (messages.TokenArrival(claimed_by_bob(s), bytes(8), 0, 0),)),
    messages.BindNumbers: lambda s, h: messages.BindNumbers(1, ((claimed_by_bob(s), bytes(8)),)),
    messages.Seen: lambda s, h: seen(s),
    messages.PathProbe: lambda s, h: messages.PathProbe(bytes(8)),
    messages.PathProbed: lambda s, h: probed(s),
    messages.Bye: lambda s, h: messages.Bye(),
    messages.Name: lambda s, h: messages.Name.of("bob"),
    wire.Register: lambda s, h: wire.Register(1, (ip(VICTIM),), (s.theirs,)),
    wire.Registered: lambda s, h: wire.Registered(
        s.alice.engine.rendezvous.servers[0].request, wire.Registration.NOT_SERVING, SockAddr(ip(VICTIM), 9)
    ),
    wire.Lookup: lambda s, h: wire.Lookup(s.theirs),
    wire.Found: lambda s, h: wire.Found(s.tag, SockAddr(ip(VICTIM), PORT), (ip(VICTIM),)),
    wire.Forward: lambda s, h: wire.Forward(s.theirs, bytes(100)),
    wire.Forwarded: lambda s, h: recorded(s),
    wire.Relay: lambda s, h: wire.Relay(1, s.theirs, (1, 2, 3)),
    wire.Relayed: lambda s, h: wire.Relayed(s.ask_bob(lambda n: wire.Relay(n, s.tag, (1,))), 0),
}


# -- what comes of it --------------------------------------------------------------------------------------------------


def described() -> dict[str, list[str]]:
    """The table of docs/threat-model.md: for each message a cell for each sender."""
    text = (ROOT / "docs" / "threat-model.md").read_text().split("## Each message")[1].split("\n## ")[0]
    rows = re.findall(r"^\| ([A-Z_]+) \|(.*)\|$", text, re.MULTILINE)
    return {name: [cell.strip() for cell in cells.split("|")] for name, cells in rows}


def names() -> dict[int, str]:
    """Of the messages, by their numbers, as wire/ has them."""
    heads = ((ROOT / "redirectctl" / "wire" / f"{m}.py").read_text().split('"""')[1] for m in ("message", "meeting"))
    return {int(n): name for head in heads for name, n in re.findall(r"^    ([A-Z_]+) \((\d+)\)", head, re.MULTILINE)}


KINDS: Final = sorted(get_args(messages.Message), key=lambda kind: kind.TYPE)
NAMES: Final = names()
ROWS: Final = described()
SENDERS: Final = ("pending", "rejected", "approved", "rendezvous")
COLUMN: Final = {"pending": 0, "rejected": 0, "approved": 1, "rendezvous": 2}
MAY_CHANGE: Final = {"a place to try": "more of peer", "what it does for us": "servers"}  # by the words of a cell


def test_there_is_a_row_for_every_message() -> None:
    declared = {
        cls for m in (messages, wire) for cls in vars(m).values() if isinstance(cls, type) and hasattr(cls, "TYPE")
    }
    assert declared == set(KINDS) == set(SAY)
    assert {NAMES[kind.TYPE] for kind in KINDS} == set(ROWS)


def refusals(host: Host, since: int) -> list[str]:
    """Reasons in the event log."""
    loud = ("packet.refused", "redirect.refused", "connection.refused", "rendezvous.lost")
    return [n.reason or "" for n in host.notices[since:] if n.name in loud]


def reached(scene: Scene, since: int, address: str = VICTIM) -> int:
    """Bytes that alice has sent to an address."""
    sent = scene.world.recorded[since:]
    return sum(len(data) for source, to, data in sent if to.host == ip(address) and source.host != ip(address))


def ready(kind: type, who: str) -> tuple[Scene, Host, Message]:
    """A scene in which this sender has yet to say something."""
    scene = Scene()
    sender = scene.rita if who == "rendezvous" else scene.mallory
    if who == "approved":
        scene.alice.engine.approve(scene.world.now, sender.static.public)
    elif who == "rejected":
        scene.alice.engine.reject(scene.world.now, sender.static.public)
    scene.alice.run()
    scene.world.run(8)
    if who in ("pending", "rejected"):
        assert scene.alice.engine.peers[sender.static.public].state is PeerState(who)
    return scene, sender, SAY[kind](scene, sender)


@pytest.mark.parametrize("who", SENDERS)
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: NAMES[kind.TYPE])
def test_a_message_about_anothers(kind: type, who: str) -> None:
    cell = ROWS[NAMES[kind.TYPE]][COLUMN[who]]
    scene, sender, message = ready(kind, who)
    control, _, _ = ready(kind, who)
    assert scene.known(sender) == control.known(sender), "two worlds that are the same"
    notices, sent = len(scene.alice.notices), len(scene.world.recorded)
    scene.deliver(sender, message)
    assert refusals(scene.alice, notices) == re.findall(r"`([a-z-]+)`", cell)
    allowed = [what for words, what in MAY_CHANGE.items() if words in cell]
    for wait in (0.0, SOON):
        scene.world.run(wait)
        control.world.run(wait)
        was, now = control.known(sender), scene.known(sender)
        changed = {what for what in was.keys() | now.keys() if was.get(what) != now.get(what)}
        assert {what for what in changed if not what.startswith(tuple(allowed))} == set() if allowed else not changed
        assert bool(changed) == bool(allowed), "the table says what changes"
    scene.world.run(20)
    assert reached(scene, sent) <= SMALL


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: NAMES[kind.TYPE])
def test_a_message_without_the_keys_or_a_second_time(kind: type) -> None:
    """Forged with the numbers of bob's session, and of none; then his own, recorded, from his address and another."""
    scene, _, message = ready(kind, "approved")
    bob, world = scene.bob, scene.world
    session = bob.engine.peers[scene.alice.static.public].session(world.now)
    assert session is not None
    plaintext = messages.encode(message)
    forged = [
        (index, datagram.Transport(session.version, index, session.counter + 5, plaintext + world.random.randbytes(16)))
        for index in (session.remote_index, 12345)
    ]
    nobody = scene.carol  # of whom nothing is left out of what may not change
    scene.silent = [bob]
    before = scene.known(nobody)
    for index, data in forged:
        for source in (BOB, VICTIM):
            notices, sent = len(scene.alice.notices), len(world.recorded)
            scene.arrive(data.encode(), source)
            assert refusals(scene.alice, notices) == ["unknown-session" if index == 12345 else "forged"]
            assert reached(scene, sent, source) <= (len(data.encode()) if index == 12345 else 0)
            assert scene.known(nobody) == before
    genuine = scene.seal(bob, message)
    scene.arrive(genuine, str(bob.addresses[0]))
    before = scene.known(nobody)
    for source in (str(bob.addresses[0]), BOB, VICTIM):
        notices, sent = len(scene.alice.notices), len(world.recorded)
        scene.arrive(genuine, source)
        assert refusals(scene.alice, notices) == ["replayed"]
        assert len(world.recorded) == sent, "no answer"
        assert scene.known(nobody) == before


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: NAMES[kind.TYPE])
def test_a_message_from_elsewhere(kind: type) -> None:
    """bob's own, held back and sent on from another address, as if he had it: nothing goes there that is not small."""
    scene, _, message = ready(kind, "approved")
    data, sent = scene.seal(scene.bob, message), len(scene.world.recorded)
    scene.arrive(data, VICTIM)
    for _ in range(20):
        scene.world.run(1)
        peer = scene.alice.engine.peers[scene.bob.static.public]
        assert peer.remote is None or peer.remote.host != ip(VICTIM)
        assert ip(VICTIM) not in {place.host for place in peer.proven}
        for c in scene.alice.engine.table.of(scene.bob.static.public):
            assert ip(VICTIM) not in (c.remote_now, c.wire.remote.host)
        assert ip(VICTIM) not in {c.remote.host for c in scene.alice.carried.values() if c.remote is not None}
        assert ip(VICTIM) not in {wire.remote.host for wire in scene.alice.flows.values()}
    assert reached(scene, sent) <= SMALL

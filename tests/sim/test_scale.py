"""What is done for many is not done for each of them as often as there are others: steps are counted, not seconds."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from redirectctl.flows import commands, constants
from redirectctl.flows.connection import Connection
from redirectctl.flows.engine import Engine
from redirectctl.flows.network import Network
from redirectctl.flows.policy import Policy
from redirectctl.flows.state import State
from redirectctl.proto import events
from redirectctl.proto.noise import StaticKey
from redirectctl.proto.peer import Peer, PeerState
from redirectctl.wire import message as messages
from redirectctl.wire.addr import FourTuple, IPAddress, SockAddr
from redirectctl.wire.tunnel import Offer
from tests.sim.network import PORT, ip
from tests.sim.work import steps

FEW, MANY = 100, 400
LINEAR = 1.5 * MANY / FEW  # of what FEW take; if each meets all others it is nearly MANY / FEW times as much again
OLD, NEW = ip("198.51.100.2"), ip("198.51.100.3")


def there(number: int) -> IPAddress:
    return ip(f"203.0.{number // 250}.{number % 250 + 1}")


def host(peers: int, each: int = 1) -> Engine:
    """It protects connections with many peers, none of which there is a session with."""
    known = [
        Peer(b"peer%028d" % n, PeerState.APPROVED, bytes(32), identity={there(n)}, remote=SockAddr(there(n), PORT))
        for n in range(peers)
    ]
    static = StaticKey.from_private(bytes(range(32)))
    engine = Engine(static, random.Random(1).randbytes, 1, Policy(prefer="auto"), known)
    connections = []
    for n, peer in enumerate(known):
        for port in range(each):
            socket = FourTuple(SockAddr(OLD, 20000 + port), SockAddr(there(n), 22))
            one = Connection(b"%04d%04d" % (n, port), socket, socket, 0.0, state=State.PROTECTED, peer=peer.key)
            one.peer_tuple, one.sending, one.receiving = socket.mirrored, Offer(1, bytes(16), 0), Offer(2, bytes(16), 0)
            one.confirmed, one.installed = OLD, one.flow
            connections.append(one)
    engine.host.network = Network(frozenset({OLD}), {there(n): (OLD,) for n in range(peers)}, frozenset({OLD}))
    engine.restore(1.0, connections)
    engine.drain()
    return engine


def moved(engine: Engine) -> None:
    network = engine.network
    engine.network_changed(2.0, Network(frozenset({NEW}), dict.fromkeys(network.sources, (NEW,)), frozenset({NEW})))
    engine.drain()


def ticked(engine: Engine) -> None:
    """The first repeats of what was announced."""
    moved(engine)
    for tenth in range(1, 20):
        engine.tick(2.0 + tenth / 10)
        engine.drain()


@pytest.mark.parametrize("happens", [moved, ticked])
def test_peers_without_sessions(happens: Callable[[Engine], None]) -> None:
    few, many = host(FEW), host(MANY)
    assert steps(lambda: happens(many)) < LINEAR * steps(lambda: happens(few))


# -- of one peer's many connections -----------------------------------------------------------------------------------


def claims(engine: Engine) -> None:
    """Some more of that peer's."""
    (key,) = engine.peers
    asked = []
    for number in range(messages.MAX_PROTECT):
        socket = FourTuple(SockAddr(there(0), 50000 + number), SockAddr(OLD, 22))
        asked.append(
            messages.Claim(b"new %04d" % number, 9, socket, bytes([number]) * 8, Offer(number + 9, bytes(16), 0))
        )
    message = messages.Protect(1, tuple(asked))
    engine.peers_claims.received(2.0, events.Received(key, message, SockAddr(there(0), PORT), OLD))


def tokens(engine: Engine) -> None:
    """Some of connections that are not known, and of one that is."""
    (one, *_) = engine.table
    for port in range(10):
        engine.choice.token(2.0, FourTuple(SockAddr(OLD, 40000 + port), SockAddr(there(0), 22)), bytes(8), (0, 0))
    engine.choice.token(2.0, one.wire, bytes(8), (0, 0))


def guarded(engine: Engine) -> None:
    """The kernel has the guard of one."""
    (one, *_) = engine.table
    engine.rewritten(2.0, commands.Rewrite(commands.Guarding((one.cid,))))


def seen(engine: Engine) -> None:
    """The peer says that tokens of some have come plainly; others wait for their turn."""
    connections = list(engine.table)
    if not any(c.tunnel for c in connections):
        for c in connections:
            c.tunnel, c.outer_local, c.outer_remote, c.installed = True, OLD, SockAddr(there(0), PORT), None
        engine.choice.path_found(2.0, connections)
    proofs = [proof for c in engine.drain() if isinstance(c, commands.Prove) for proof in c.proofs]
    assert proofs
    (key,) = engine.peers
    message = messages.Seen(tuple(proof.token for proof in proofs))
    engine.choice.received(2.0, events.Received(key, message, SockAddr(there(0), PORT), OLD))
    engine.tick(2.0 + constants.PLAIN_NEXT)


@pytest.mark.parametrize("happens", [claims, tokens, guarded, seen])
def test_what_concerns_some_connections_costs_the_same_however_many_others_there_are(
    happens: Callable[[Engine], None],
) -> None:
    few, many = host(1, FEW), host(1, MANY)
    for engine in (few, many):
        happens(engine)  # what is looked up once
    assert steps(lambda: happens(many)) < 1.2 * steps(lambda: happens(few)) + 200


def test_connections_of_one_peer_that_move() -> None:
    few, many = host(1, FEW), host(1, MANY)
    assert steps(lambda: moved(many)) < LINEAR * steps(lambda: moved(few))


def test_most_connections_are_alike_when_their_addresses_are_compared() -> None:
    """The network has changed, and nothing has with it: what is looked up for one is good for all."""
    few, many = host(1, FEW), host(1, MANY)
    taken = [steps(lambda: engine.own_moves.reconsider(2.0)) for engine in (few, many)]  # noqa: B023
    assert (taken[1] - taken[0]) / (MANY - FEW) < 400


def test_of_many_that_stall_all_are_announced_at_once() -> None:
    engine = host(1, MANY)
    engine.stalled(2.0, [c.socket for c in list(engine.table)[: MANY - 10]])
    started = [c for c in engine.drain() if isinstance(c, commands.Notice) and c.name == "move.started"]
    assert [notice.details["connections"] for notice in started] == [MANY]


def test_what_a_few_have_done_is_looked_at_for_them_only() -> None:
    """A peer announces some connections one by one: the others are as they were."""
    taken = []
    for engine in (host(1, FEW), host(1, MANY)):
        (key,) = engine.peers
        moved = [c.cid for c in list(engine.table)[:10]]
        message = messages.Acm(1 << 40, b"a nonce ", there(500), messages.Moved((), tuple(moved)))
        source = SockAddr(there(500), PORT)
        engine.peers_moves.on_acm(2.0, events.Received(key, message, source, OLD), message)
        (validation,) = engine.announcements.validations_of(key)
        (way,) = validation.ways.values()
        response = messages.PathResponse(1 << 40, way.data)
        engine.peers_moves.on_response(2.0, events.Received(key, response, source, OLD), response)
        (rewrite,) = [c for c in engine.drain() if isinstance(c, commands.Rewrite)]
        taken.append(steps(lambda: engine.rewritten(2.0, rewrite)))  # noqa: B023
    assert taken[1] < 1.5 * taken[0]

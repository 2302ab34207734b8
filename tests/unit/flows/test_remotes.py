"""To which addresses a host looks up routes before it announces a move, and in which order."""

from __future__ import annotations

import os
from ipaddress import ip_address

import pytest

from redirectctl.flows import constants
from redirectctl.flows.connection import Connection
from redirectctl.flows.engine import Engine
from redirectctl.flows.policy import Policy
from redirectctl.flows.state import State
from redirectctl.proto.noise import StaticKey
from redirectctl.proto.peer import Peer, PeerState
from redirectctl.wire.addr import FourTuple, IPAddress, SockAddr
from redirectctl.wire.tunnel import Offer

HERE = SockAddr(ip_address("192.0.2.1"), 40000)


def engine(peers: dict[bytes, tuple[IPAddress, list[IPAddress]]]) -> Engine:
    """By key: where a connection with the peer is, and what addresses it says to have."""
    made = Engine(
        StaticKey.from_private(b"p" * 32),
        os.urandom,
        1,
        Policy(prefer="auto"),
        [Peer(key, PeerState.APPROVED, addresses=tuple(named)) for key, (_, named) in peers.items()],
    )
    for key, (there, _) in peers.items():
        socket = FourTuple(HERE, SockAddr(there, 22))
        offer = Offer(1, b"k" * 16, 0)  # it can be carried by the tunnel: from any address to any other
        ways = {"sending": offer, "receiving": offer}
        made.table.add(Connection(key[-8:], socket, socket, 0.0, state=State.PROTECTED, peer=key, **ways))
    return made


def test_where_connections_are_comes_first_and_each_peer_has_its_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "UNPROVEN_ROUTES", 5)
    places = {n: ip_address(f"198.51.100.{n}") for n in (1, 2, 3)}
    named = {n: [ip_address(f"203.0.113.{n * 10 + i}") for i in range(4)] for n in (1, 2, 3)}
    named[3] = [places[1], *named[3][:1]]  # one names where another's connection is
    remotes = engine({n.to_bytes(32): (places[n], named[n]) for n in (1, 2, 3)}).remotes()
    assert set(remotes[:3]) == set(places.values())
    assert list(remotes[3:]) == [named[1][0], named[2][0], named[1][1], named[2][1], named[3][1]]


def test_thousands_of_connections_leave_the_limit_to_what_is_only_said() -> None:
    count = 2 * constants.UNPROVEN_ROUTES
    known = {n.to_bytes(32): (ip_address((11 << 24) + n), [ip_address((12 << 24) + n)]) for n in range(1, count + 1)}
    remotes = engine(known).remotes()
    assert set(remotes[:count]) == {there for there, _ in known.values()}
    assert len(remotes) == count + constants.UNPROVEN_ROUTES

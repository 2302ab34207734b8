"""A connection and the table of them."""

from __future__ import annotations

from ipaddress import ip_address

from redirectctl.flows.connection import Connection, Flow, Table
from redirectctl.flows.state import State
from redirectctl.wire.addr import FourTuple, SockAddr

REMOTE = SockAddr(ip_address("198.51.100.2"), 22)


def socket(port: int) -> FourTuple:
    return FourTuple(SockAddr(ip_address("192.0.2.1"), port), REMOTE)


def connection(i: int, state: State = State.PROTECTED, peer: bytes | None = b"p") -> Connection:
    return Connection(i.to_bytes(8, "big"), socket(i), socket(i), 0.0, state, peer=peer)


def test_moved() -> None:
    c = connection(1)
    assert not c.moved
    assert c.flow == Flow(c.socket, c.socket)
    new = SockAddr(ip_address("203.0.113.9"), 1)
    assert c.rewired(local=new) == Flow(c.socket, FourTuple(new, REMOTE))
    assert c.rewired(remote=new) == Flow(c.socket, FourTuple(c.socket.local, new))
    c.wire = FourTuple(new, REMOTE)
    assert c.moved


def test_only_in_the_tunnel_and_when_the_peer_is_there_too_integrity_lets_nothing_plain_in() -> None:
    c = connection(1)
    c.integrity = True
    assert c.flow == Flow(c.socket, c.socket)
    c.tunnel = True
    assert c.flow == Flow(c.socket, c.socket, tunnel=True)
    c.strict = True
    assert c.flow == Flow(c.socket, c.socket, tunnel=True, integrity=True)


def test_movable_states() -> None:
    assert [s for s in State if connection(1, s).movable] == [State.PROTECTED, State.SUSPENDED]


def test_lookups() -> None:
    table = Table()
    a, b = connection(1), connection(2, State.NEGOTIATING)
    table.add(a)
    table.add(b)
    assert len(table) == 2
    assert list(table) == [a, b]
    assert table.get(a.cid) is a
    assert table.at(socket(2)) is b
    assert table.at(socket(3)) is None
    assert table.movable() == [a]
    assert table.movable(b"p") == [a]
    assert table.movable(b"q") == []
    assert table.select([b.cid, b"unknown!", a.cid]) == [b, a]


def test_another_id() -> None:
    table = Table()
    a = connection(1)
    table.add(a)
    table.rename(a, b"another!")
    assert table.get((1).to_bytes(8, "big")) is None
    assert table.get(b"another!") is a
    assert table.at(a.socket) is a
    assert len(table) == 1


def test_an_ended_connection_is_listed_until_it_is_buried_and_its_tuple_is_free() -> None:
    table = Table()
    old, new = connection(1), Connection(b"newest!!", socket(1), socket(1), 0.0)
    table.add(old)
    table.end(old)
    assert table.at(socket(1)) is None
    assert table.ended(socket(1)) is old
    table.add(new)
    assert table.at(socket(1)) is new
    table.bury(old)
    assert table.at(socket(1)) is new
    assert table.ended(socket(1)) is None
    assert table.get(old.cid) is None
    assert list(table) == [new]


def test_the_latest_of_two_ended_with_one_tuple_is_found() -> None:
    table = Table()
    first, second = connection(1), Connection(b"second!!", socket(1), socket(1), 0.0)
    for c in (first, second):
        table.add(c)
        table.end(c)
    table.bury(first)
    assert table.ended(socket(1)) is second
    table.bury(second)
    assert table.ended(socket(1)) is None
    assert len(table) == 0

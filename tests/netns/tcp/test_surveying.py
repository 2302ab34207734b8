"""Quick looks see what the long ones see, and the kernel's counters say when one is worth while."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from redirectctl.daemon.finder import OPEN
from redirectctl.kernel.sockets.bytecode import MAX_CONDITIONS, SocketFilter
from redirectctl.kernel.sockets.counters import TcpCounters
from redirectctl.kernel.sockets.diag import CONNECTED, SockDiag, TcpState, Timer
from redirectctl.kernel.sockets.survey import Survey, between, present, repeating
from redirectctl.wire.addr import FourTuple
from tests.netns.tcp.socket_lab import Connection, Wire, inside, until

MANY = 600  # sockets: more than one datagram of the kernel's answer holds


@dataclass
class Alice:
    diag: SockDiag
    counters: TcpCounters


@pytest.fixture
def alice(wire: Wire) -> Iterator[Alice]:
    with inside(wire.alice.name):
        made = Alice(SockDiag(), TcpCounters())
    yield made
    made.diag.close()
    made.counters.close()


def keepalive(connection: Connection) -> None:
    for option, value in ((socket.TCP_KEEPIDLE, 1), (socket.TCP_KEEPINTVL, 1), (socket.TCP_KEEPCNT, 60)):
        connection.client.setsockopt(socket.IPPROTO_TCP, option, value)
    connection.client.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)


def in_flight(wire: Wire, connection: Connection) -> None:
    wire.cut()
    connection.client.send(b"x" * 100)


def without_a_route(wire: Wire, connection: Connection) -> None:
    """The device goes down: its routes go, and TCP cannot send at all."""
    wire.alice.run("ip", "link", "set", "a0", "down")
    connection.client.send(b"x" * 100)


def window_closed(wire: Wire, connection: Connection) -> None:
    connection.client.setblocking(False)
    try:
        while True:
            connection.client.send(bytes(1 << 16))
    except BlockingIOError:
        wire.cut()


def asked_whether_alive(wire: Wire, connection: Connection) -> None:
    keepalive(connection)
    wire.cut()


STALLS = [in_flight, without_a_route, window_closed, asked_whether_alive]


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("stall", STALLS)
def test_whatever_is_sent_again_is_counted(
    wire: Wire, alice: Alice, stall: Callable[[Wire, Connection], None], version: int
) -> None:
    """Between two looks at which a connection has sent something more often the counters have changed."""
    connection = wire.connect(version, receive_buffer=4096 if stall is window_closed else 0)
    stall(wire, connection)
    changes = 0
    one = alice.diag.get(connection.tuple)
    counted = alice.counters.repeats()

    def again() -> bool:
        nonlocal changes, one, counted
        after = alice.diag.get(connection.tuple)
        now = alice.counters.repeats()  # after the look: what it has seen is counted by now
        assert after is not None
        if one is not None and after.timer_retransmits > one.timer_retransmits:
            assert now != counted, (one, after)
            changes += 1
        if one is None or after.timer_retransmits != one.timer_retransmits:
            one, counted = after, now
        return changes >= 2 and after.timer_retransmits >= 2

    until(again, 60)
    assert connection.tuple in repeating(alice.diag, CONNECTED, 2)


def test_what_flows_is_no_repeat(wire: Wire, alice: Alice) -> None:
    connection = wire.connect()
    before = alice.counters.repeats()
    for _ in range(50):
        connection.client.send(b"x" * 5000)
        received = 0
        while received < 5000:
            received += len(connection.server.recv(5000))
        connection.server.send(b"y")
        assert connection.client.recv(1) == b"y"
    one = alice.diag.get(connection.tuple)
    assert one is not None
    assert one.info is not None
    if not one.info.total_retransmits:  # a tail loss probe, on a busy machine
        assert alice.counters.repeats() == before
    assert repeating(alice.diag, CONNECTED, 1) == []


def test_a_connection_that_opens_or_closes_is_counted_and_data_is_not(wire: Wire, alice: Alice) -> None:
    before = alice.counters.opens()
    connection = wire.connect()
    opened = alice.counters.opens()
    assert opened != before
    connection.client.send(b"x")
    assert connection.server.recv(1) == b"x"
    assert alice.counters.opens() == opened
    connection.close()
    until(lambda: alice.counters.opens() != opened)


def test_counters_are_those_of_one_network_namespace(wire: Wire, alice: Alice) -> None:
    with inside(wire.bob.name):
        counters = TcpCounters()
    mine, other = alice.counters.opens(), counters.opens()
    wire.connect()
    assert alice.counters.opens() != mine
    assert counters.opens() != other
    quiet = alice.counters.opens()
    with inside(wire.bob.name), socket.create_server(("127.0.0.1", 0)) as listener:
        here = socket.create_connection(listener.getsockname())
        assert counters.opens()
        here.close()
    assert alice.counters.opens() == quiet
    counters.close()


def test_those_that_repeat_are_found_among_many(wire: Wire, alice: Alice) -> None:
    connections = [wire.connect(6 if number % 3 == 0 else 4, dual_stack=number % 3 == 1) for number in range(MANY)]
    stalled = connections[5::97]
    wire.cut()
    for each in stalled:
        each.client.send(b"x")

    def by_the_long_look() -> set[FourTuple]:
        found = alice.diag.dump(states=CONNECTED)
        return {one.tuple for one in found if one.timer == Timer.RETRANSMIT and one.timer_retransmits >= 2}

    wanted = {each.tuple for each in stalled}
    until(lambda: by_the_long_look() == wanted, 60)
    assert set(repeating(alice.diag, CONNECTED, 2)) == wanted
    assert set(repeating(alice.diag, CONNECTED, 0)) == {each.tuple for each in connections}
    assert repeating(alice.diag, [TcpState.FIN_WAIT2], 0) == []


def test_those_that_are_present(wire: Wire, alice: Alice) -> None:
    connections = [wire.connect(version, dual_stack=dual) for version, dual in ((4, False), (4, True), (6, False)) * 20]
    everything = [each.tuple for each in connections]
    for each in connections[:7]:
        each.close()
    until(lambda: len(alice.diag.dump(states=CONNECTED)) == len(connections) - 7)
    assert present(alice.diag, everything, CONNECTED) == frozenset(everything[7:])
    assert present(alice.diag, everything[:7], CONNECTED) == frozenset()


def test_a_survey_tells_what_is_new_and_knows_what_it_has_seen(wire: Wire, alice: Alice) -> None:
    survey = Survey(alice.diag)
    first = [wire.connect(version) for version in (4, 6, 4)]
    seen = survey.look(SocketFilter(), OPEN)
    assert {one.tuple for one in seen.fresh} == {one.tuple for one in seen.sockets} == {each.tuple for each in first}
    again = survey.look(SocketFilter(), OPEN)
    assert again.fresh == []
    assert {id(one) for one in again.sockets} == {id(one) for one in seen.sockets}
    (long,) = (one for one in alice.diag.dump() if one.tuple == first[0].tuple)
    (short,) = (one for one in seen.sockets if one.tuple == first[0].tuple)
    assert short == long._replace(info=None)

    last = wire.connect(6)
    first[0].close()
    until(lambda: all(one.tuple != first[0].tuple for one in alice.diag.dump(states=OPEN)))
    seen = survey.look(SocketFilter(), OPEN)
    assert [one.tuple for one in seen.fresh] == [last.tuple]
    assert {one.tuple for one in seen.sockets} == {each.tuple for each in (*first[1:], last)}


@pytest.mark.parametrize("others", [0, MAX_CONDITIONS])
def test_a_survey_of_some_ports_only(wire: Wire, alice: Alice, others: int) -> None:
    four, six = wire.connect(4), wire.connect(6)
    wanted = SocketFilter(remote_ports=frozenset({four.tuple.remote.port, *range(1, others + 1)}))
    assert wanted.in_kernel == (others == 0)
    survey = Survey(alice.diag)
    assert [one.tuple for one in survey.look(wanted, OPEN).sockets] == [four.tuple]
    assert survey.look(wanted, OPEN).fresh == []
    assert [one.tuple for one in survey.look(SocketFilter(), OPEN).fresh] == [six.tuple]


@pytest.mark.parametrize("version", [4, 6])
def test_the_kernel_leaves_out_what_no_claim_can_mean(
    wire: Wire, alice: Alice, version: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many others there are, they are not read."""
    others = [wire.connect(version) for _ in range(50)]
    meant = wire.connect(version)
    read: list[int] = []
    records = SockDiag.records

    def counting(diag: SockDiag, *args: Any) -> list[tuple[bytes, Sequence[int]]]:
        found = records(diag, *args)
        read.extend(len(places) for _, places in found)
        return found

    monkeypatch.setattr(SockDiag, "records", counting)
    pair = meant.tuple.local.port, meant.tuple.remote.host
    assert between(alice.diag, [pair], CONNECTED) == {pair: [meant.tuple]}
    assert sum(read) == 1
    elsewhere = meant.tuple.local.port, meant.tuple.local.host
    assert between(alice.diag, [elsewhere], CONNECTED) == {elsewhere: []}
    assert between(alice.diag, [], CONNECTED) == {}
    both = [pair, (others[0].tuple.local.port, others[0].tuple.remote.host)]
    assert between(alice.diag, both, CONNECTED) == {pair: [meant.tuple], both[1]: [others[0].tuple]}
    assert sum(read) == 3

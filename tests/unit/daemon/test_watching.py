"""How long a connection had no path, from the history of its states."""

from ipaddress import IPv4Address

import pytest

from redirectctl.daemon.watching import last_outage
from redirectctl.flows.connection import Connection
from redirectctl.flows.state import State
from redirectctl.wire.addr import FourTuple, SockAddr

P, S, N, R = State.PROTECTED, State.SUSPENDED, State.NEGOTIATING, State.REFUSED


@pytest.mark.parametrize(
    ("history", "expected"),
    [
        ([], None),
        ([(1.0, P)], None),
        ([(1.0, P), (5.0, S)], None),
        ([(1.0, P), (5.0, S), (17.5, P)], 12.5),
        ([(1.0, P), (5.0, S), (17.5, P), (20.0, N), (21.0, P)], 12.5),
        ([(1.0, P), (5.0, S), (17.5, P), (20.0, S)], None),
        ([(1.0, P), (5.0, S), (17.5, P), (20.0, S), (23.0, P)], 3.0),
        ([(1.0, P), (5.0, S), (17.5, R)], None),
    ],
)
def test_last_outage(history: list[tuple[float, State]], expected: float | None):
    here, there = SockAddr(IPv4Address("192.0.2.1"), 4000), SockAddr(IPv4Address("192.0.2.2"), 22)
    connection = Connection(b"12345678", FourTuple(here, there), FourTuple(here, there), 0.0, history=history)
    assert last_outage(connection) == expected

"""The state table, the setter that guards it."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from redirectctl.api import schema
from redirectctl.flows.connection import Connection, InvalidTransitionError, change
from redirectctl.flows.state import MOVABLE, TRANSITIONS, State
from redirectctl.wire.addr import FourTuple, SockAddr

SOCKET = FourTuple(SockAddr(ip_address("192.0.2.1"), 40000), SockAddr(ip_address("198.51.100.2"), 22))


def connection(state: State) -> Connection:
    return Connection(b"12345678", SOCKET, SOCKET, 0.0, state)


def test_every_state_is_in_the_table() -> None:
    assert set(TRANSITIONS) == set(State)


def test_names_are_those_of_listings() -> None:
    assert {s.value for s in State} == {s.value for s in schema.ConnectionState}


def test_every_state_but_the_last_can_end() -> None:
    assert [s for s in State if State.CLOSED not in TRANSITIONS[s]] == [State.CLOSED]
    assert not TRANSITIONS[State.CLOSED]


def test_protection_begins_only_by_negotiation() -> None:
    assert [s for s in State if State.PROTECTED in TRANSITIONS[s] and s not in MOVABLE] == [State.NEGOTIATING]


def test_every_state_can_be_reached() -> None:
    seen, todo = {State.SHORT}, [State.SHORT]
    while todo:
        for follower in TRANSITIONS[todo.pop()] - seen:
            seen.add(follower)
            todo.append(follower)
    assert seen == set(State)


@pytest.mark.parametrize("before", list(State))
@pytest.mark.parametrize("after", list(State))
def test_only_what_the_table_has(before: State, after: State) -> None:
    c = connection(before)
    if after in TRANSITIONS[before]:
        change(c, after, 5.0, "why")
        assert (c.state, c.reason, c.history) == (after, "why", [(5.0, after)])
    else:
        with pytest.raises(InvalidTransitionError):
            change(c, after, 5.0)
        assert (c.state, c.history) == (before, [])


def test_history_is_bounded() -> None:
    c = connection(State.PROTECTED)
    for i in range(100):
        change(c, State.SUSPENDED if c.state is State.PROTECTED else State.PROTECTED, float(i))
    assert len(c.history) == 32
    assert c.history[-1] == (99.0, State.PROTECTED)

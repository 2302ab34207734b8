"""doctor on rendezvous: what it says of each standing, and of a peer that is met there."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from redirectctl.api.schema import CheckStatus
from redirectctl.doctor import rendezvous
from redirectctl.flows.connection import Connection
from redirectctl.flows.rendezvous.client import Server, Standing
from redirectctl.flows.state import State
from redirectctl.wire.addr import FourTuple, SockAddr

PEER, TAG = b"p" * 32, b"t" * 16
SEEN = SockAddr(ip_address("203.0.113.7"), 40000)
SOCKET = FourTuple(SockAddr.parse("192.0.2.1:40000"), SockAddr.parse("198.51.100.2:22"))


def server(standing: Standing = Standing.REGISTERED, *, tags: bool = True) -> Server:
    return Server("r.example.net:7747", standing=standing, reflexive=SEEN, tags={TAG: PEER} if tags else {})


def relayed() -> Connection:
    c = Connection(b"12345678", SOCKET, SOCKET, 0.0, State.PROTECTED, tunnel=True)
    c.outer_remote = SockAddr.parse("203.0.113.200:7747")
    return c


@pytest.mark.parametrize("standing", Standing)
def test_each_standing_has_words_and_what_is_useless_a_hint(standing: Standing) -> None:
    check = rendezvous.rendezvous([server(standing)])
    useless = standing not in (Standing.REGISTERED, Standing.FULL)
    assert check.status is (CheckStatus.WARN if useless else CheckStatus.OK)
    assert "r.example.net:7747" in check.found
    assert bool(check.hint) is useless


def test_one_of_two_is_told_apart() -> None:
    check = rendezvous.rendezvous([server(), server(Standing.NOT_SERVING)])
    assert check.status is CheckStatus.WARN
    assert "sees this host at 203.0.113.7:40000" in check.found
    assert check.hint == "set serve = true in [rendezvous] there"


def test_a_peer_that_is_relayed() -> None:
    check = rendezvous.with_peer([server()], PEER, [SEEN], [relayed()])
    assert check.status is CheckStatus.OK
    assert check.found.startswith("1 connection relayed by 203.0.113.200:7747")


def test_a_peer_that_is_registered_too() -> None:
    check = rendezvous.with_peer([server()], PEER, [SEEN], [])
    assert (check.status, str(SEEN) in check.found) == (CheckStatus.OK, True)


def test_a_peer_that_is_not_there() -> None:
    check = rendezvous.with_peer([server()], PEER, [], [])
    assert check.status is CheckStatus.WARN
    assert check.hint is not None
    assert "same rendezvous" in check.hint


@pytest.mark.parametrize(
    ("servers", "status"),
    [([], CheckStatus.SKIP), ([server(Standing.NO_ANSWER)], CheckStatus.WARN), ([server(tags=False)], CheckStatus.OK)],
)
def test_otherwise(servers: list[Server], status: CheckStatus) -> None:
    assert rendezvous.with_peer(servers, PEER, [], []).status is status


def test_what_is_done_for_others() -> None:
    assert rendezvous.serving(False, 0, 0).status is CheckStatus.SKIP
    assert rendezvous.serving(True, 1, 2).found == "1 host registered, 2 flows relayed"

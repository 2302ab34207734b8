"""What is stored of peers and connections, and what the wall clock has to do with it."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address

import pytest

from redirectctl.daemon.records import connection_records, peer_record, restored_connection, restored_peer
from redirectctl.flows.connection import Connection
from redirectctl.flows.state import State
from redirectctl.proto.peer import Accepted, Peer, PeerState
from redirectctl.wire.addr import FourTuple, SockAddr

KEY = b"k" * 32
DAY = 86400.0
HOME, CAFE = ip_address("192.0.2.1"), ip_address("198.51.100.2")


def at(address: object, contact: float | None = 5.0) -> Peer:
    return Peer(
        KEY, PeerState.APPROVED, b"s" * 32, remote=SockAddr(ip_address(str(address)), 7747), last_contact=contact
    )


def test_a_connections_times_outlive_a_restart_whatever_the_clock_says() -> None:
    socket = FourTuple(SockAddr(HOME, 40000), SockAddr(CAFE, 22))
    lost = Connection(b"c" * 8, socket, socket, 100.0, state=State.SUSPENDED, peer=KEY, lost_since=160.0)
    (stored,) = connection_records([lost], 1_700_000_000.0)
    again = restored_connection(stored, 1_700_000_000.0)  # Store.booted(): as long as the machine runs
    assert (again.since, again.lost_since) == (100.0, 160.0)


@pytest.mark.parametrize("set_by", [400 * DAY, -400 * DAY])
def test_the_latest_address_comes_first_whatever_the_clock_says(set_by: float) -> None:
    now = 1_700_000_000.0
    before = peer_record(at(HOME), None, now, 10.0)
    after = peer_record(at(CAFE), before, now + set_by, 20.0)
    assert max(after.addresses, key=lambda a: a.last_seen).address == CAFE
    back = peer_record(at(HOME), after, now + 1.0, 30.0)
    assert max(back.addresses, key=lambda a: a.last_seen).address == HOME


@pytest.mark.parametrize("accepted", list(Accepted))
def test_that_everybody_is_accepted_is_kept(accepted: Accepted) -> None:
    record = peer_record(replace(at(HOME), accepted=accepted), None, 1000.0, 10.0)
    assert restored_peer(record, 7747).accepted is accepted


def test_where_it_says_that_it_may_be_tried_is_kept() -> None:
    record = peer_record(replace(at(HOME), addresses=(HOME, CAFE)), None, 1000.0, 10.0)
    assert restored_peer(record, 7747).addresses == (HOME, CAFE)


def test_only_a_contact_makes_a_peer_young() -> None:
    first = peer_record(at(HOME, contact=None), None, 1000.0, 10.0)
    assert (first.met, first.last_contact) == (10.0, None)
    met = peer_record(at(HOME), first, 2000.0, 20.0)
    assert (met.met, met.last_contact) == (20.0, 2000.0)
    # After a restart it was not met yet: a person gives it another state.
    restored = replace(restored_peer(met, 7747), state=PeerState.REJECTED)
    decided = peer_record(restored, met, 3000.0, 30.0)
    assert (decided.met, decided.last_contact) == (20.0, 2000.0)

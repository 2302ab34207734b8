"""A store that says what no kernel can have."""

from __future__ import annotations

from collections.abc import Collection
from ipaddress import ip_address

from redirectctl.daemon.takeover import newest, untangle
from redirectctl.flows.connection import Connection, Flow
from redirectctl.kernel.netfilter.elements import rules
from redirectctl.wire.addr import FourTuple, SockAddr
from redirectctl.wire.tunnel import Offer

OLD, OTHER, NEW = "198.51.100.2", "198.51.100.3", "203.0.113.9"


def connection(number: int, old: str, wire: str, port: int = 40000) -> Connection:
    there = SockAddr(ip_address("192.0.2.1"), 22)
    socket, now = (FourTuple(SockAddr(ip_address(host), port), there) for host in (old, wire))
    return Connection(number.to_bytes(8), socket, now, 0.0, local_epoch=number)


def nothing() -> Collection[Flow]:
    raise AssertionError("asked for without need")


def test_one_connection_for_a_socket_tuple() -> None:
    first, second, third = connection(1, OLD, NEW), connection(2, OLD, OLD), connection(3, OTHER, OTHER)
    assert newest([second, third, first]) == ([second, third], [first])


def test_two_that_share_no_tuple_stay() -> None:
    both = [connection(1, OLD, NEW), connection(2, OTHER, NEW, 40001)]
    before = [c.flow for c in both]
    assert untangle(both, nothing) == []
    assert [c.flow for c in both] == before


def test_of_two_that_would_be_one_on_the_wire_the_kernel_has_the_right_one() -> None:
    for there in (0, 1):
        both = [connection(1, OLD, NEW), connection(2, OTHER, NEW)]
        right, wrong = both[there], both[1 - there]
        wrong.sending, wrong.outer_remote = Offer(1, bytes(16), 0), right.wire.remote
        assert untangle(both, lambda right=right: {rules(right.flow)}) == [wrong]  # type: ignore[misc]
        assert right.wire.local.host == ip_address(NEW)
        assert (wrong.wire, wrong.tunnel) == (wrong.socket, True)
        assert untangle(both, nothing) == []


def test_without_a_tunnel_it_is_as_it_was_born() -> None:
    both = [connection(1, OLD, NEW), connection(2, OTHER, NEW)]
    assert untangle(both, set) == [both[1]]
    assert (both[1].wire, both[1].tunnel) == (both[1].socket, False)

"""What routing needs for connections that travel, or wait, otherwise than their sockets believe."""

from __future__ import annotations

from redirectctl.flows.connection import Flow
from redirectctl.kernel.netfilter.elements import rules
from redirectctl.kernel.routing.needs import Needs, needs, needs_of_all
from redirectctl.wire.addr import FourTuple, SockAddr


def four(local: str, remote: str) -> FourTuple:
    return FourTuple(SockAddr.parse(local), SockAddr.parse(remote))


STILL = Flow(four("192.0.2.1:1000", "198.51.100.1:22"), four("192.0.2.1:1000", "198.51.100.1:22"))
WENT = Flow(four("192.0.2.1:1001", "198.51.100.1:22"), four("192.0.2.9:1001", "198.51.100.1:22"))
PEER_WENT = Flow(four("[2001:db8::1]:22", "[2001:db8::2]:7"), four("[2001:db8::1]:22", "[2001:db8::3]:7"))
TUNNELLED = Flow(four("192.0.2.2:1002", "198.51.100.2:22"), four("192.0.2.2:1002", "198.51.100.2:22"), True)


def test_what_routing_needs() -> None:
    found = needs_of_all([STILL, WENT, PEER_WENT])
    assert {str(a) for a in found.kept} == {"192.0.2.1"}
    assert {str(a) for a in found.fallbacks} == {"198.51.100.1", "2001:db8::2"}
    assert found.ports == {1001}
    tunnelled = needs(TUNNELLED)
    assert {str(a) for a in tunnelled.kept | tunnelled.fallbacks} == {"192.0.2.2", "198.51.100.2"}
    assert tunnelled.ports == frozenset()
    assert needs(STILL) == needs_of_all([]) == Needs()


def test_a_suspended_connection_needs_a_way_to_where_it_is_answered() -> None:
    found = needs(STILL._replace(suspended=True))
    assert ({str(a) for a in found.kept}, {str(a) for a in found.fallbacks}) == ({"192.0.2.1"}, {"198.51.100.1"})
    assert found.ports == frozenset()


def test_the_kernel_has_a_flow_as_the_engine_has_it() -> None:
    for flow in (STILL, WENT, PEER_WENT, TUNNELLED, WENT._replace(suspended=True)):
        assert rules(flow) == flow


def test_the_kernel_has_nothing_of_a_tuple_that_nobody_has_proven() -> None:
    wire = WENT.wire
    flow = Flow(WENT.socket, wire, tunnel=True, closed=True)
    assert rules(flow) == WENT._replace(wire=WENT.socket, tunnel=True)
    assert needs(flow) == needs(WENT._replace(tunnel=True))  # its port is kept for it all the same

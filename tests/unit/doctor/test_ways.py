"""doctor PEER: NAT, families, the way of each connection, the tunnel's size, integrity."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from redirectctl.api.schema import CheckStatus
from redirectctl.doctor import ways
from redirectctl.flows.connection import Connection
from redirectctl.flows.moves.addresses import Failure
from redirectctl.flows.paths.choice import TunnelReason
from redirectctl.proto.peer import Peer, PeerState
from redirectctl.wire.addr import FourTuple, IPAddress, SockAddr

OURS, THEIRS, PUBLIC, V6 = map(ip_address, ("192.168.1.5", "198.51.100.2", "203.0.113.1", "2001:db8::5"))
PORT = 7747
HERE = ways.Here(frozenset({OURS}), PORT, integrity=False)


def peer(observed: str | None = f"{OURS}:{PORT}", remote: str = f"{THEIRS}:{PORT}") -> Peer:
    """That says it is at THEIRS."""
    return Peer(
        bytes(32),
        PeerState.APPROVED,
        remote=SockAddr.parse(remote),
        local=OURS,
        reflexive=SockAddr.parse(observed) if observed else None,
        addresses=(THEIRS,),
    )


def connection(port: int = 40000) -> Connection:
    socket = FourTuple(SockAddr(OURS, port), SockAddr(THEIRS, 22))
    return Connection(bytes(8), socket, socket, 0.0)


def tunnelled(port: int = 40000, outer: IPAddress = THEIRS) -> Connection:
    found = connection(port)
    found.tunnel, found.outer_local, found.outer_remote = True, OURS, SockAddr(outer, PORT)
    return found


def test_no_nat() -> None:
    check = ways.nat(HERE, peer(), [connection()], 0.0)
    assert (check.status, check.found) == (CheckStatus.OK, f"none: it sees this host at {OURS}:{PORT}, its own address")


@pytest.mark.parametrize("observed", [f"{PUBLIC}:{PORT}", f"{OURS}:40001"])
def test_a_nat_before_this_host(observed: str) -> None:
    check = ways.nat(HERE, peer(observed), [], 0.0)
    assert check.status is CheckStatus.OK
    assert f"NAT: this host at {OURS} is seen at {observed}; " in check.found


def test_a_nat_before_the_peer() -> None:
    check = ways.nat(HERE, peer(remote=f"{PUBLIC}:40001"), [], 0.0)
    assert check.status is CheckStatus.OK
    assert f"NAT: the peer at {THEIRS} is seen at {PUBLIC}:40001; " in check.found


def test_both_behind_nat_need_a_forwarded_port() -> None:
    check = ways.nat(HERE, peer(f"{PUBLIC}:{PORT}", f"{PUBLIC}:40001"), [], 0.0)
    assert check.status is CheckStatus.WARN
    assert check.hint is not None
    assert "forward UDP 7747" in check.hint


def test_connections_that_began_through_a_nat_are_told_with_both_tuples() -> None:
    natted = connection()
    natted.peer_tuple = FourTuple(SockAddr(THEIRS, 22), SockAddr(PUBLIC, 1234))
    check = ways.nat(HERE, peer(f"{PUBLIC}:9"), [natted, connection(40001)], 0.0)
    assert f"1 connection through NAT since the beginning: {OURS}:40000 is {PUBLIC}:1234 there" in check.found


def test_a_peer_that_has_said_nothing_yet() -> None:
    assert ways.nat(HERE, peer(None), [], 0.0).status is CheckStatus.SKIP


def test_what_the_peer_said_before_a_move_is_no_nat() -> None:
    gone = peer(observed=f"{PUBLIC}:{PORT}")
    gone.addresses = (V6,)
    natted = connection()
    natted.peer_tuple = FourTuple(SockAddr(THEIRS, 22), SockAddr(PUBLIC, 1234))
    check = ways.nat(HERE, gone, [natted], 0.0, answers=False)
    assert check.status is CheckStatus.SKIP
    assert "1 connection through NAT since the beginning" in check.found


def test_address_families() -> None:
    both = HERE._replace(addresses=frozenset({OURS, V6}))
    assert ways.families(both, [THEIRS, V6]).found == "IPv4 and IPv6 here and there"
    assert ways.families(both, [THEIRS]).found == "IPv4 here and there; IPv6 only here"
    none = ways.families(HERE, [V6])
    assert (none.status, none.found) == (CheckStatus.WARN, "none in common: IPv4 here, IPv6 there")
    assert ways.families(HERE, []).status is CheckStatus.SKIP


def test_an_address_that_does_not_carry_is_named() -> None:
    assert ways.addresses(HERE, {}, 100.0).status is CheckStatus.OK
    check = ways.addresses(HERE, {OURS: Failure(2, 88.0, 148.0), PUBLIC: Failure(1, 99.0, 120.0)}, 100.0)
    assert check.status is CheckStatus.WARN
    assert check.found == f"{OURS} did not carry 12 s ago, 2 times in a row"  # the other one is gone
    assert "connections use another address" in (check.hint or "")


def test_paths_are_counted_with_the_reason() -> None:
    rewritten = connection(40003)
    rewritten.wire = FourTuple(SockAddr(PUBLIC, 40003), SockAddr(THEIRS, 22))
    check = ways.path_of_each(
        [connection(), tunnelled(40001), tunnelled(40002), rewritten], lambda c: TunnelReason.NAT if c.tunnel else None
    )
    assert check.status is CheckStatus.OK
    assert check.found == (
        "1 plain, unchanged; 2 through the tunnel: NAT changes plain packets on the way; "
        "1 plain, with rewritten addresses"
    )
    assert ways.path_of_each([], lambda _: None).found == "no protected connection"
    blocked = ways.path_of_each([tunnelled()], lambda _: TunnelReason.NOT_SEEN, behind_nat=True)
    assert blocked.status is CheckStatus.OK  # there is nothing to do about it
    assert "plain TCP from here did not arrive" in blocked.found


@pytest.mark.parametrize("why", list(TunnelReason))
def test_every_reason_for_the_tunnel_has_words(why: TunnelReason) -> None:
    check = ways.path_of_each([tunnelled()], lambda _: why)
    assert check.found.startswith("1 through the tunnel: ")
    blocked = why in (TunnelReason.NOT_SEEN, TunnelReason.STALLED)
    assert (check.status is CheckStatus.WARN) is blocked
    assert (f"blocked: TCP from {OURS} to {THEIRS}, to port 22" in check.found) is blocked


def test_the_port_that_a_firewall_would_name_is_the_servers() -> None:
    served = tunnelled()
    served.socket = served.wire = FourTuple(SockAddr(OURS, 22), SockAddr(THEIRS, 40000))
    assert "from port 22" in ways.path_of_each([served], lambda _: TunnelReason.NOT_SEEN).found


def test_the_size_of_the_tunnel_is_told_as_packets() -> None:
    check = ways.tunnel_size([tunnelled(), tunnelled(40001)], lambda _local, _remote: 1472)
    assert (check.status, check.found) == (CheckStatus.OK, f"packets of 1500 bytes from {OURS} to {THEIRS}:{PORT}")
    assert "1500" in ways.tunnel_size([tunnelled(outer=V6)], lambda _local, _remote: 1452).found
    assert ways.tunnel_size([tunnelled()], lambda _local, _remote: 576 - 28).status is CheckStatus.WARN
    assert ways.tunnel_size([connection()], lambda _local, _remote: 1472).found == "not in use"


def test_integrity_that_both_want_or_neither() -> None:
    tagged = tunnelled()
    tagged.integrity = True
    assert ways.integrity(HERE, [connection()], []).found == "off here and there"
    assert ways.integrity(HERE._replace(integrity=True), [tagged], []).found == "on here and there"
    assert ways.integrity(HERE, [tagged], []).found == "on here and there; off here for new ones"
    assert ways.integrity(HERE, [], []).found.startswith("off here; the peer's setting is known after")


@pytest.mark.parametrize(("reason", "found"), [("required", "off here, on there"), ("refused", "on here, off there")])
def test_integrity_that_only_one_end_wants_is_a_failure_with_both_ways_out(reason: str, found: str) -> None:
    refused = connection()
    refused.reason = f"integrity-{reason}-there"
    check = ways.integrity(HERE._replace(integrity=reason == "refused"), [], [refused])
    assert check.status is CheckStatus.FAIL
    assert check.found.startswith(found)
    assert check.hint is not None
    assert check.hint.count('"on"') == check.hint.count('"off"') == 1

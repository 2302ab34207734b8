"""What strangers and other peers send to a host's tunnel, in network namespaces; see two_hosts for the network."""

from __future__ import annotations

import random
import socket
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
from test_carrying import PORT, End, Tunnel, connect
from two_hosts import Host, address, until

from redirectctl.kernel.tunnel.segments import Outbound
from redirectctl.wire.tunnel import TAG_LEN, Probe, Refused, Segment, encode

ACK, PSH = 0x10, 0x08
EVIL = b"evil" * 10

Send = Callable[[bytes], None]


@pytest.fixture
def ends(bob: Host, alice: Host) -> tuple[End, End]:
    return End(bob), End(alice)


@pytest.fixture
def send(bob: Host) -> Iterator[Send]:
    """Datagrams to alice's control port, from a port of its own; nothing is answered."""
    sender = bob.do(socket.socket, socket.AF_INET, socket.SOCK_DGRAM)
    yield lambda data: sender.sendto(data, (str(address(3, 10, 4)), PORT)) and None
    sender.settimeout(0.3)
    with pytest.raises(TimeoutError):
        sender.recv(100)
    sender.close()


def start(*tunnels: Tunnel) -> None:
    """All connections go through the tunnel."""
    for tunnel in tunnels:
        for end in (tunnel.bob, tunnel.alice):
            end.carrier.carry(tunnel.carried(end))
    for end in (tunnels[0].bob, tunnels[0].alice):
        end.steer()
    assert all(tunnel.connection.works(1000) for tunnel in tunnels)


def evil(tunnel: Tunnel, ahead: int = 6) -> Segment:
    """For alice's end, well made but for the numbers of TCP, which a stranger does not know."""
    offer = tunnel.carried(tunnel.alice).receiving
    return Segment(offer.flow, offer.start + (ahead << 36), 1, 1, ACK | PSH, 1, data=EVIL)


def test_a_peers_datagrams_for_a_connection_that_is_not_its_own(ends: tuple[End, End], send: Send) -> None:
    """It has agreed a key for its own connection, and has found out the flow number of another's."""
    own, others = connect(ends, integrity=True), connect(ends, integrity=True)
    start(own, others)
    mine, target = own.carried(ends[1]).receiving, evil(others)
    send(Outbound(replace(mine, flow=target.flow), 0, True).sealed(encode(target), target.counter))
    until(lambda: ends[1].refused() == {Refused.FORGED: 1})
    assert ends[1].carrier.counters(others.socket(ends[1])).refused == {Refused.FORGED: 1}
    assert own.connection.works(1000)
    assert others.connection.works(1000)


def test_a_peers_datagrams_with_anothers_tuple_inside_reach_its_own_connection(
    ends: tuple[End, End], send: Send
) -> None:
    """Addresses and ports are those of the flow: what looks like headers, of an RST here, is data."""
    own, others = connect(ends, integrity=True), connect(ends, integrity=True)
    start(own, others)
    (local, lport), (remote, rport) = others.connection.tuple
    ip_header = bytes.fromhex("4500003c000040004006") + bytes(2) + local.packed + remote.packed
    tcp_header = lport.to_bytes(2, "big") + rport.to_bytes(2, "big") + bytes(8) + b"\x50\x04" + bytes(6)
    own.connection.bob.sendall(ip_header + tcp_header + EVIL)
    assert own.connection.alice.recv(1000) == ip_header + tcp_header + EVIL
    segment = replace(evil(own), data=ip_header + tcp_header + EVIL)
    offer = own.carried(ends[1]).receiving
    before = own.total(ends[1])
    send(Outbound(offer, 0, True).sealed(encode(segment), segment.counter))
    until(lambda: own.total(ends[1]) > before)
    assert ends[1].refused() == {}
    assert others.connection.works(1000)


@pytest.mark.parametrize("integrity", [False, True])
def test_a_guessed_flow_number(ends: tuple[End, End], send: Send, integrity: bool) -> None:
    tunnel = connect(ends, integrity=integrity)
    start(tunnel)
    numbers = random.Random(1).sample(range(1, 1 << 32), 300)
    for number in numbers:
        send(encode(replace(evil(tunnel), flow=number)))
    until(lambda: ends[1].refused() == {Refused.UNKNOWN_FLOW: len(numbers)})
    assert tunnel.connection.works(1000)


def test_a_guessed_flow_number_without_the_counter(ends: tuple[End, End], send: Send) -> None:
    """Without integrity the counter is what a stranger has to guess too: it begins at one of 2^62 numbers."""
    tunnel = connect(ends)
    start(tunnel)
    right = evil(tunnel)
    for counter in (0, 1, right.counter ^ 1 << 60, right.counter ^ 1 << 55, right.counter + (1 << 47)):
        send(encode(replace(right, counter=counter)))
    until(lambda: sum(ends[1].refused().values()) == 5)
    assert set(ends[1].refused()) <= {Refused.TOO_OLD, Refused.COUNTER_JUMP}
    assert tunnel.connection.works(1000)


def test_oversized_datagrams(ends: tuple[End, End], send: Send) -> None:
    """As large as UDP can carry them."""
    tunnel = connect(ends, integrity=True)
    start(tunnel)
    room = 65507
    for datagram in (evil(tunnel), replace(evil(tunnel), options=bytes(40)), replace(evil(tunnel), flow=1)):
        head = encode(replace(datagram, data=b""))
        send(head + bytes(room - len(head)))
    send(encode(Probe(evil(tunnel).flow, evil(tunnel).counter, padding=room - 24)))
    expected = {Refused.FORGED: 3, Refused.UNKNOWN_FLOW: 1}
    until(lambda: ends[1].refused() == expected)
    assert tunnel.connection.works(1000)


@pytest.mark.parametrize("integrity", [False, True])
def test_truncated_datagrams(ends: tuple[End, End], send: Send, integrity: bool) -> None:
    """A good one, cut at every length before its data.  The first byte is needed to get to the tunnel at all."""
    tunnel = connect(ends, integrity=integrity)
    start(tunnel)
    whole = encode(evil(tunnel))
    for length in range(1, 30):
        send(whole[:length])
    until(lambda: ends[1].refused() == {Refused.TRUNCATED: 29})
    assert tunnel.connection.works(1000)


@pytest.mark.parametrize("integrity", [False, True])
def test_answers_to_probes_that_were_not_sent(ends: tuple[End, End], send: Send, integrity: bool) -> None:
    """They would make datagrams larger than the path carries."""
    tunnel = connect(ends, integrity=integrity)
    start(tunnel)
    target = evil(tunnel, ahead=5)
    answer = encode(Probe(target.flow, target.counter + 1000, answers=1))  # ahead by less than the window
    send(answer + bytes(TAG_LEN if integrity else 0))
    expected = Refused.FORGED if integrity else Refused.UNASKED
    until(lambda: ends[1].refused() == {expected: 1})
    assert tunnel.connection.works(1000)

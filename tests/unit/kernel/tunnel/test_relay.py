"""The relay of a rendezvous, between sockets of the loopback interface."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from ipaddress import ip_address

import pytest

from redirectctl.kernel.tunnel.relay import LEAST_BURST, Relays
from redirectctl.wire.addr import SockAddr
from redirectctl.wire.tunnel import HEAD, VERSION, Type

LOOPBACK = ip_address("127.0.0.1")
GUEST = SockAddr(ip_address("192.0.2.1"), 7747)
FAST = 1e9


def datagram(flow: int, size: int = 200, kind: int = Type.TUNNEL, version: int = VERSION) -> bytes:
    return HEAD.pack(kind, version, 0, 0, flow, 1).ljust(size, b"x")


@pytest.fixture
def ours() -> Iterator[socket.socket]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        yield sock


@pytest.fixture
def hosts() -> Iterator[list[socket.socket]]:
    """Two hosts that something may be relayed to."""
    socks = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2)]
    for sock in socks:
        sock.bind(("127.0.0.1", 0))
        sock.setblocking(False)
    yield socks
    for sock in socks:
        sock.close()


def at(sock: socket.socket) -> tuple[SockAddr, object]:
    return SockAddr(LOOPBACK, sock.getsockname()[1]), LOOPBACK


def arrived(sock: socket.socket) -> list[bytes]:
    found = []
    while True:
        try:
            found.append(sock.recv(2048))
        except BlockingIOError:
            return found


def relay(relays: Relays, datagrams: list[bytes], source: SockAddr = GUEST) -> list[bytes]:
    """As if UDP_GRO had put them together; what is left."""
    chunk, size = b"".join(datagrams), len(datagrams[0])
    assert all(len(each) == size for each in datagrams[:-1])
    return [bytes(rest) for rest in relays.pass_on(memoryview(chunk), size, (str(source.host), source.port))]


def test_each_flow_goes_to_its_host_and_what_has_none_is_ours(ours: socket.socket, hosts: list[socket.socket]) -> None:
    relays = Relays([ours])
    relays.set(b"guest", GUEST, {5: at(hosts[0]), 6: at(hosts[1])}, FAST)  # type: ignore[dict-item]
    five, six, own = datagram(5), datagram(6), datagram(7)
    probe, short = datagram(5, kind=Type.PROBE), datagram(5, 100)
    assert relay(relays, [five, five, six, own, own, five, probe, short]) == [own + own]
    assert arrived(hosts[0]) == [five, five, five, probe, short]
    assert arrived(hosts[1]) == [six]
    assert (relays.counters(b"guest").datagrams, relays.counters(b"guest").dropped) == (6, 0)


def test_more_than_one_call_can_send(ours: socket.socket, hosts: list[socket.socket]) -> None:
    relays = Relays([ours])
    relays.set(b"guest", GUEST, {5: at(hosts[0])}, FAST)  # type: ignore[dict-item]
    sent = [datagram(5, 40) for _ in range(150)]
    assert relay(relays, sent) == []
    assert arrived(hosts[0]) == sent


@pytest.mark.parametrize("wrong", [datagram(5, kind=1), datagram(5, version=9), b"\x08\x01"], ids=str)
def test_what_is_no_datagram_of_the_tunnel_is_not_relayed(
    ours: socket.socket, hosts: list[socket.socket], wrong: bytes
) -> None:
    relays = Relays([ours])
    relays.set(b"guest", GUEST, {5: at(hosts[0]), 0: at(hosts[0])}, FAST)  # type: ignore[dict-item]
    relays._by_source[(str(GUEST.host), GUEST.port)].hops.pop(0)
    assert relay(relays, [wrong]) == [wrong]
    assert arrived(hosts[0]) == []


def test_only_what_comes_from_the_guest_is_relayed(ours: socket.socket, hosts: list[socket.socket]) -> None:
    relays = Relays([ours])
    relays.set(b"guest", GUEST, {5: at(hosts[0])}, FAST)  # type: ignore[dict-item]
    for stranger in (SockAddr(GUEST.host, 7748), SockAddr(ip_address("192.0.2.2"), GUEST.port)):
        assert relay(relays, [datagram(5)], stranger) == [datagram(5)]
    assert arrived(hosts[0]) == []


def test_a_guest_that_moves_and_one_that_leaves(ours: socket.socket, hosts: list[socket.socket]) -> None:
    relays = Relays([ours])
    relays.set(b"guest", GUEST, {5: at(hosts[0])}, FAST)  # type: ignore[dict-item]
    moved = SockAddr(ip_address("192.0.2.9"), 5000)
    relays.set(b"guest", moved, {5: at(hosts[1])}, FAST)  # type: ignore[dict-item]
    assert relay(relays, [datagram(5)]) == [datagram(5)]
    assert relay(relays, [datagram(5)], moved) == []
    assert (arrived(hosts[0]), arrived(hosts[1])) == ([], [datagram(5)])
    relays.set(b"guest", None, {}, FAST)
    relays.set(b"nobody", None, {}, FAST)
    assert relay(relays, [datagram(5)], moved) == [datagram(5)]


def test_what_is_beyond_the_rate_is_dropped(ours: socket.socket, hosts: list[socket.socket]) -> None:
    relays = Relays([ours])
    relays.set(b"guest", GUEST, {5: at(hosts[0])}, 1.0)  # type: ignore[dict-item]
    fits = LEAST_BURST // 1000
    for _ in range(fits + 50):
        assert relay(relays, [datagram(5, 1000)]) == []
        arrived(hosts[0])
    counted = relays.counters(b"guest")
    assert (counted.datagrams, counted.dropped) == (fits, 50)
    relays.set(b"guest", GUEST, {5: at(hosts[0]), 6: at(hosts[0])}, 1.0)  # type: ignore[dict-item]
    assert relay(relays, [datagram(6, 1000)]) == []
    assert relays.counters(b"guest").dropped == 51, "asking anew gives no more"

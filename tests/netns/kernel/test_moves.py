"""Real TCP connections live through moves when both kernels rewrite them."""

from __future__ import annotations

import socket
import struct
import threading

import pytest
from two_hosts import Connection, Host, Net, Side, address, until

from redirectctl.flows.connection import Flow
from redirectctl.wire.addr import SockAddr

pytestmark = pytest.mark.netns
both_families = pytest.mark.parametrize("version", [4, 6])


def protect(connection: Connection, bob: Host, alice: Host) -> tuple[Side, Side]:
    sides = Side(bob), Side(alice)
    rewrite(connection, sides, 1, 3)
    return sides


def rewrite(connection: Connection, sides: tuple[Side, Side], bob_net: int, alice_net: int) -> None:
    wire = connection.wire(bob_net, alice_net)
    sides[0].rewrite((connection.tuple, wire))
    sides[1].rewrite((connection.tuple.mirrored, wire.mirrored))


@both_families
def test_without_rewriting_a_move_stops_the_connection(net: Net, bob: Host, alice: Host, version: int) -> None:
    connection = Connection(bob, alice, version)
    assert connection.works()
    net.leave(bob, 1)
    net.join(bob, 2, 10)
    connection.alice.settimeout(1)
    with pytest.raises(TimeoutError):
        connection.works(10)


@both_families
def test_client_moves(net: Net, bob: Host, alice: Host, version: int) -> None:
    connection = Connection(bob, alice, version)
    sides = protect(connection, bob, alice)
    assert connection.works()
    net.leave(bob, 1)
    net.join(bob, 2, 10)
    rewrite(connection, sides, 2, 3)
    assert connection.works()


@both_families
def test_server_moves(net: Net, bob: Host, alice: Host, version: int) -> None:
    connection = Connection(bob, alice, version)
    sides = protect(connection, bob, alice)
    net.leave(alice, 3)
    net.join(alice, 4, 10)
    rewrite(connection, sides, 1, 4)
    assert connection.works()


@both_families
def test_what_has_no_way_after_a_move_does_not_count_as_sent(net: Net, bob: Host, alice: Host, version: int) -> None:
    connection = Connection(bob, alice, version)
    sides = protect(connection, bob, alice)
    net.leave(bob, 1)
    net.join(bob, 2, 10)
    rewrite(connection, sides, 2, 3)
    bob.run(sides[0].keeper.fallback(connection.tuple.remote.host))  # which leads to redirect0
    assert connection.works()
    net.leave(bob, 2)
    connection.bob.sendall(b"typed while there is no network")
    assert in_flight(connection.bob) == 0
    assert "redirect0" in bob.sh(f"ip route get {connection.tuple.remote.host}")
    net.join(bob, 1, 10)
    rewrite(connection, sides, 1, 3)
    assert connection.alice.recv(100) == b"typed while there is no network"
    assert connection.works()


def in_flight(sock: socket.socket) -> int:
    """Segments that TCP believes to be sent and that nobody has acknowledged: tcpi_unacked of struct tcp_info."""
    return int(struct.unpack_from("=24xI", sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104))[0])


@both_families
def test_both_move_then_one_after_the_other_and_back(net: Net, bob: Host, alice: Host, version: int) -> None:
    connection = Connection(bob, alice, version)
    sides = protect(connection, bob, alice)
    net.leave(bob, 1)
    net.leave(alice, 3)
    net.join(bob, 2, 10)
    net.join(alice, 4, 10)
    rewrite(connection, sides, 2, 4)
    assert connection.works()
    net.leave(bob, 2)
    net.join(bob, 4, 20)  # alice's own network: another interface, another gateway
    wire = connection.wire(2, 4)
    wire = wire._replace(local=wire.local._replace(host=address(4, 20, version)))
    sides[0].rewrite((connection.tuple, wire))
    sides[1].rewrite((connection.tuple.mirrored, wire.mirrored))
    assert connection.works()
    net.leave(bob, 4)
    net.join(bob, 1, 10)
    rewrite(connection, sides, 1, 4)
    assert connection.works()
    net.leave(alice, 4)
    net.join(alice, 3, 10)
    rewrite(connection, sides, 1, 3)
    assert connection.works()
    for side, sock in zip(sides, (connection.tuple, connection.tuple.mirrored), strict=True):
        assert side.host.do(side.rewriter.flows) == {Flow(sock, sock)}
        assert side.host.run(side.keeper.kept()) == set()
        assert "map @src" not in side.host.sh("nft list chain inet redirectctl in")
        assert "chain out" not in side.host.sh("nft list table inet redirectctl")


@both_families
def test_a_move_within_bulk_transfer(net: Net, bob: Host, alice: Host, version: int) -> None:
    connection = Connection(bob, alice, version)
    sides = protect(connection, bob, alice)
    net.join(bob, 2, 10, default=False)
    size = 4_000_000
    received = bytearray()

    def receive() -> None:
        while len(received) < size:
            received.extend(connection.alice.recv(1 << 16))

    reader = threading.Thread(target=receive)
    reader.start()
    data = bytes(range(256)) * (size // 256)
    connection.bob.sendall(data[: size // 2])
    bob.sh(
        f"ip route replace default via {address(2, 1, 4)}; ip -6 route replace default via {address(2, 1, 6)};"
        "ip link del net1"
    )
    rewrite(connection, sides, 2, 3)
    connection.bob.sendall(data[size // 2 :])
    reader.join(30)
    assert bytes(received) == data


@both_families
def test_the_old_address_belongs_to_a_stranger(net: Net, bob: Host, alice: Host, version: int) -> None:
    connection = Connection(bob, alice, version)
    sides = protect(connection, bob, alice)
    alice.sh(
        "nft add table inet t; nft 'add chain inet t c { type filter hook prerouting priority -305; }';"
        "nft add rule inet t c meta mark and 0x20000000 != 0 counter drop;"
    )
    net.leave(bob, 1)
    stranger = net.host("stranger")
    net.join(stranger, 1, 10)
    connection.alice.sendall(b"to whoever has the address")
    until(lambda: "packets 0" not in alice.sh("nft list chain inet t c"))  # its RST came and was marked
    net.join(bob, 2, 10)
    rewrite(connection, sides, 2, 3)
    assert connection.bob.recv(100) == b"to whoever has the address"
    assert connection.works()
    # The stranger is reached at the address that bob's connection still uses, from both ends.
    other = Connection(bob, stranger, version, bob_net=2, alice_net=1)
    assert other.works()
    assert Connection(alice, stranger, version, bob_net=3, alice_net=1).works()
    assert connection.works()


def listening(at: SockAddr, version: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET if version == 4 else socket.AF_INET6)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((str(at.host), at.port))
    listener.listen()
    return listener


@both_families
def test_who_begins_a_connection_on_the_same_tuple_is_not_taken_for_the_peer(
    net: Net, bob: Host, alice: Host, version: int
) -> None:
    connection = Connection(bob, alice, version)
    net.join(bob, 2, 10, False)
    wire = connection.wire(2, 3)
    Side(alice).rewrite((connection.tuple.mirrored, wire.mirrored))

    def connect() -> bool:
        (host, port), there = wire
        with socket.socket(socket.AF_INET if version == 4 else socket.AF_INET6) as another:
            another.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            another.bind((str(host), port))
            another.settimeout(5)
            another.connect((str(there.host), there.port))
            return True

    with alice.do(listening, wire.remote, version):
        assert bob.do(connect)

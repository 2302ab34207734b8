"""A connection with integrity takes nothing that does not come through the tunnel."""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterator

import pytest
from scapy.layers.inet import IP, TCP
from scapy.layers.inet6 import IPv6
from test_tunnel_steering import Tunnelled
from two_hosts import Connection, Host, Net, until

from redirectctl.kernel.constants import NFT_TABLE
from redirectctl.kernel.netfilter.rewriter import Rewriter
from redirectctl.kernel.tcp.inject import RawInjector
from redirectctl.wire.addr import FourTuple

pytestmark = pytest.mark.netns

TCP_REPAIR, TCP_REPAIR_QUEUE, TCP_QUEUE_SEQ = 19, 20, 21
RECEIVING, SENDING = 1, 2
MALFORMED_TOKEN = [(253, b"\x77\x47" + bytes(9))]  # a byte too long
FORGED = b"forged"


@pytest.fixture(params=[4, 6], ids=["IPv4", "IPv6"])
def pair(request: pytest.FixtureRequest, bob: Host, alice: Host) -> Iterator[Tunnelled]:
    made = Tunnelled(bob, alice, request.param)
    yield made
    made.close()


@pytest.fixture
def stranger(net: Net) -> Host:
    host = net.host("stranger")
    net.join(host, 2, 66)
    return host


def sequence(sock: socket.socket, queue: int) -> int:
    """rcv_nxt, or the number of the next byte that the program writes."""
    sock.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, 1)
    sock.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR_QUEUE, queue)
    (number,) = struct.unpack("=I", sock.getsockopt(socket.IPPROTO_TCP, TCP_QUEUE_SEQ, 4))
    sock.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, -1)  # off, without a window probe
    return int(number)


def forge(
    sender: Host, sock: socket.socket, tuple_: FourTuple, flags: str, options: object = (), data: bytes = b""
) -> None:
    """Send a segment that looks like the peer's next one; ``tuple_`` as the host that it is sent to sees it."""
    (target, port), (source, source_port) = tuple_
    numbers = {"seq": sequence(sock, RECEIVING), "ack": sequence(sock, SENDING)}
    tcp = TCP(sport=source_port, dport=port, flags=flags, window=1000, options=list(options), **numbers)  # type: ignore[call-overload]
    network = (IP if target.version == 4 else IPv6)(src=str(source), dst=str(target))
    packet = bytes(network / tcp / data)

    def send() -> None:
        family = socket.AF_INET if target.version == 4 else socket.AF_INET6
        with socket.socket(family, socket.SOCK_RAW, socket.IPPROTO_RAW) as raw:
            raw.sendto(packet, (str(target), 0))

    sender.do(send)


def error_of(sock: socket.socket) -> int:
    return sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)


def dropped(pair: Tunnelled) -> int:
    alice = pair.sides[1]
    return alice.host.do(alice.rewriter.untagged)


def total(host: Host) -> int:
    """The same, and nothing is reset."""
    return int(host.sh(f"nft list counter inet {NFT_TABLE} untagged").split("packets ")[1].split()[0])


def rules(host: Host) -> str:
    return host.sh(f"nft list table inet {NFT_TABLE}")


def test_forged_segments_and_rsts_do_nothing(stranger: Host, pair: Tunnelled) -> None:
    pair.steer(1, 3, integrity=True)
    assert pair.connection.works()
    assert dropped(pair) == 0
    sock, here = pair.connection.alice, pair.connection.tuple.mirrored
    for number, (flags, options) in enumerate((("PA", ()), ("R", ()), ("RA", ()), ("S", ()), ("FA", ())), 1):
        forge(stranger, sock, here, flags, options, FORGED if flags == "PA" else b"")
        until(lambda number=number: total(pair.sides[1].host) == number)
    assert dropped(pair) == 5
    assert dropped(pair) == 0  # since the last call
    assert error_of(sock) == 0
    assert pair.connection.works()


def test_the_same_segments_reach_a_connection_without_integrity(stranger: Host, pair: Tunnelled) -> None:
    pair.steer(1, 3)
    sock, here = pair.connection.alice, pair.connection.tuple.mirrored
    forge(stranger, sock, here, "PA", (), FORGED)
    assert sock.recv(100) == FORGED
    pair.steer(1, 3, tunnel=False)
    forge(stranger, sock, here, "R")
    until(lambda: error_of(sock) == errno.ECONNRESET)
    assert dropped(pair) == 0


def test_neither_is_anything_taken_under_the_wire_tuple(stranger: Host, pair: Tunnelled) -> None:
    pair.steer(2, 3, integrity=True, only=1)  # the peer has moved; it sends through the tunnel as before
    pair.steer(1, 3, integrity=True, only=0)
    assert pair.connection.works()
    sock, wire = pair.connection.alice, pair.connection.wire(2, 3).mirrored
    for tuple_ in (wire, pair.connection.tuple.mirrored):
        forge(stranger, sock, tuple_, "PA", (), FORGED)
        forge(stranger, sock, tuple_, "R")
    until(lambda: total(pair.sides[1].host) == 4)
    assert error_of(sock) == 0
    assert pair.connection.works()


def test_what_only_looks_like_a_token_reaches_no_socket(
    bob: Host, alice: Host, stranger: Host, pair: Tunnelled
) -> None:
    """Nobody listens to the queue; and a daemon lets pass what is no token after all."""
    other = Connection(bob, alice, pair.connection.version)
    pair.steer(1, 3, integrity=True)
    alice.do(pair.sides[1].rewriter.listen, True)
    for flags, data in (("PA", FORGED), ("R", b"")):
        forge(stranger, pair.connection.alice, pair.connection.tuple.mirrored, flags, MALFORMED_TOKEN, data)
    forge(stranger, other.alice, other.tuple.mirrored, "PA", MALFORMED_TOKEN, FORGED)
    assert other.alice.recv(100) == FORGED
    assert dropped(pair) == 2
    assert error_of(pair.connection.alice) == 0
    assert pair.connection.works()


def test_what_the_host_itself_injects_reaches_the_socket(alice: Host, pair: Tunnelled) -> None:
    pair.steer(1, 3, integrity=True)
    injector = alice.do(RawInjector)
    alice.at_close(injector.close)
    before = pair.carried()[1]
    alice.do(injector.syn, pair.connection.tuple.mirrored)
    until(lambda: pair.carried()[1] > before)  # the challenge ACK
    assert dropped(pair) == 0


def test_a_host_without_such_connections_has_no_rule_for_them(alice: Host, pair: Tunnelled) -> None:
    version = pair.connection.version
    pair.steer(1, 3)
    assert f"@tag{version}" not in rules(alice)
    pair.steer(1, 3, integrity=True)
    listed = rules(alice)
    assert listed.count(f"@tag{version}") == 2
    assert f"@tag{10 - version}" not in listed
    side = pair.sides[1]
    assert alice.do(side.rewriter.flows) == set(side.flows.values())
    pair.steer(1, 3, tunnel=False)
    assert "@tag" not in rules(alice)
    assert "chain late" not in rules(alice)
    assert pair.connection.works()


def test_a_restarted_daemon_and_a_flushed_ruleset(alice: Host, stranger: Host, pair: Tunnelled) -> None:
    pair.steer(1, 3, integrity=True)
    side = pair.sides[1]
    forge(stranger, pair.connection.alice, pair.connection.tuple.mirrored, "R")
    until(lambda: dropped(pair) == 1)
    successor = alice.do(Rewriter)
    alice.at_close(successor.close)
    alice.do(successor.setup, side.flows.values())
    assert alice.do(successor.flows) == set(side.flows.values())
    forge(stranger, pair.connection.alice, pair.connection.tuple.mirrored, "R")
    until(lambda: alice.do(successor.untagged) == 1)
    alice.sh("nft flush ruleset")
    assert alice.do(successor.untagged) == 0
    alice.do(successor.setup, successor.wanted())
    forge(stranger, pair.connection.alice, pair.connection.tuple.mirrored, "R")
    until(lambda: alice.do(successor.untagged) == 1)
    assert pair.connection.works()

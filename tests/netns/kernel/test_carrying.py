"""Real TCP through two carriers in network namespaces; see two_hosts for the network."""

from __future__ import annotations

import errno
import hashlib
import os
import random
import re
import select
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import NamedTuple

import pytest
from two_hosts import Connection, Host, Net, address, until

from redirectctl.flows.commands import Carried
from redirectctl.kernel.constants import MARK_MOVED, MARK_TUNNEL, RULE_PRIORITY, TUN_DEVICE, TUNNEL_TABLE
from redirectctl.kernel.errors import KernelError
from redirectctl.kernel.routing.old_addresses import Keeper
from redirectctl.kernel.tunnel.carrier import HOLD_TIME, Carrier
from redirectctl.kernel.tunnel.plpmtud import SAFE_MTU
from redirectctl.kernel.tunnel.reports import Report, Sight
from redirectctl.kernel.tunnel.reuseport import share_port
from redirectctl.wire.addr import FourTuple, SockAddr
from redirectctl.wire.tunnel import Offer, Probe, Refused, Segment, encode

PORT = 7747
LARGE = 200_000_000
STEER = f"""
nft -f - <<'NFT'
table inet steer {{
  chain out {{
    type route hook output priority mangle
    tcp flags & syn == 0 tcp dport 5000 meta mark set meta mark or {MARK_TUNNEL}
    tcp flags & syn == 0 tcp sport 5000 meta mark set meta mark or {MARK_TUNNEL}
  }}
  chain in {{
    type filter hook prerouting priority -310
    iifname {TUN_DEVICE} meta mark set {MARK_MOVED | MARK_TUNNEL}
  }}
}}
NFT
for word in -4 -6; do
  ip $word route add default dev {TUN_DEVICE} table {TUNNEL_TABLE}
  ip $word rule add priority {RULE_PRIORITY} fwmark {MARK_TUNNEL}/{MARK_TUNNEL} lookup {TUNNEL_TABLE}
done
"""


def control_socket(version: int, port: int = PORT) -> socket.socket:
    """Bound as the daemon binds its own."""
    sock = socket.socket(socket.AF_INET if version == 4 else socket.AF_INET6, socket.SOCK_DGRAM)
    if version == 6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    try:
        sock.bind(("0.0.0.0" if version == 4 else "::", port))
    except OSError:
        sock.close()
        raise
    sock.settimeout(5)
    return sock


class Learnt(NamedTuple):
    """Of a socket's tcp_info."""

    retransmits: int  # of the segment in flight
    unacked: int
    rtt: float  # seconds


def learnt(sock: socket.socket) -> Learnt:
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 72)
    retransmits, unacked, rtt = struct.unpack("=2xB21xI40xI", info)
    return Learnt(retransmits, unacked, rtt / 1e6)


class End:
    """One host's carrier."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.reports: list[Report] = []
        self.control = [host.do(control_socket, version) for version in (4, 6)]
        self.shared = [host.do(share_port, control) for control in self.control]
        self.carrier = host.do(Carrier, self.shared, self.reports.append)
        host.at_close(self.close)

    def steer(self) -> None:
        """Send what connections of port 5000 send into the tunnel."""
        self.host.sh(STEER)

    def unsteer(self) -> None:
        self.host.sh("nft delete table inet steer")
        undo = f"ip $word rule del lookup {TUNNEL_TABLE}; ip $word route flush table {TUNNEL_TABLE}"
        self.host.sh(f"for word in -4 -6; do {undo}; done")

    def refused(self) -> Counter[str]:
        found: Counter[str] = Counter()
        for report in self.reports:
            if isinstance(report.what, Refused):
                found[report.what] += report.count
        return found

    def close(self) -> None:
        self.carrier.close()
        for sock in self.control:
            sock.close()


@dataclass
class Tunnel:
    """A connection between bob and alice, and what the carriers are to know of it."""

    bob: End
    alice: End
    connection: Connection
    integrity: bool = False
    outer: int = 4
    bob_net: int = 1
    offers: list[Offer] = field(
        default_factory=lambda: [
            Offer(random.getrandbits(32) | 1, os.urandom(16), random.getrandbits(62)) for _ in range(2)
        ]
    )

    def carried(self, end: End, *, hold: bool = False) -> Carried:
        sides = {id(self.bob): (self.bob_net, 3), id(self.alice): (3, self.bob_net)}
        here, there = (address(net, 10, self.outer) for net in sides[id(end)])
        sending, receiving = self.offers if end is self.bob else reversed(self.offers)
        first = sending.start + (5 << 36)
        remote = None if hold else SockAddr(there, PORT)
        return Carried(self.socket(end), sending, receiving, first, self.integrity, here, remote)

    def socket(self, end: End) -> FourTuple:
        return self.connection.tuple if end is self.bob else self.connection.tuple.mirrored

    def start(self, *, hold: bool = False) -> None:
        """Both receive, then both send by the tunnel; with hold what bob sends waits."""
        for end in (self.bob, self.alice):
            end.carrier.carry(self.carried(end, hold=hold and end is self.bob))
        for end in (self.bob, self.alice):
            end.steer()

    def total(self, end: End) -> int:
        return end.carrier.counters(self.socket(end)).datagrams_in

    def size(self, end: End) -> int | None:
        carried = self.carried(end)
        assert carried.remote is not None
        return end.carrier.mtu(carried.local, carried.remote)


async def in_loop(make: Callable[[], Keeper]) -> Keeper:
    return make()


@pytest.fixture
def ends(bob: Host, alice: Host) -> Iterator[tuple[End, End]]:
    yield End(bob), End(alice)
    for host in (bob, alice):
        assert TUN_DEVICE in host.sh("ip link")


def connect(ends: tuple[End, End], version: int = 4, **options: object) -> Tunnel:
    bob, alice = ends
    return Tunnel(bob, alice, Connection(bob.host, alice.host, version), **options)


def exchange(tunnel: Tunnel, size: int, seconds: float = 60.0) -> None:
    """Both ends send this many bytes at once; each is what was sent.  Then each closes its half."""
    seen: dict[str, str] = {}
    chunk = random.randbytes(1 << 20)

    def send(sock: socket.socket, name: str) -> None:
        digest, left = hashlib.blake2b(), size
        while left:
            part = chunk[: min(left, len(chunk))]
            sock.sendall(part)
            digest.update(part)
            left -= len(part)
        sock.shutdown(socket.SHUT_WR)
        seen[f"{name} sent"] = digest.hexdigest()

    def receive(sock: socket.socket, name: str) -> None:
        digest = hashlib.blake2b()
        while part := sock.recv(1 << 20):
            digest.update(part)
        seen[f"{name} received"] = digest.hexdigest()

    connection = tunnel.connection
    threads = []
    for sock, name in ((connection.bob, "bob"), (connection.alice, "alice")):
        sock.settimeout(seconds)
        threads += [threading.Thread(target=job, args=(sock, name), daemon=True) for job in (send, receive)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(seconds)
    assert sorted(seen) == ["alice received", "alice sent", "bob received", "bob sent"]
    assert seen["alice received"] == seen["bob sent"]
    assert seen["bob received"] == seen["alice sent"]


def carried_everything(tunnel: Tunnel, size: int) -> None:
    """All bytes went by the tunnel, and nothing was refused."""
    for end in (tunnel.bob, tunnel.alice):
        assert end.carrier.counters(tunnel.socket(end)).bytes_in > size
        assert end.refused() == {}


@pytest.mark.parametrize("integrity", [False, True], ids=["plain", "with tags"])
def test_large_data_goes_both_ways_unchanged(ends: tuple[End, End], integrity: bool) -> None:
    tunnel = connect(ends, integrity=integrity)
    tunnel.start()
    exchange(tunnel, LARGE)
    carried_everything(tunnel, LARGE)
    assert [tunnel.size(end) for end in ends] == [1472, 1472]


@pytest.mark.parametrize(("inner", "outer"), [(4, 6), (6, 4), (6, 6)])
@pytest.mark.parametrize("integrity", [False, True], ids=["plain", "with tags"])
def test_families_inside_and_outside_may_differ(ends: tuple[End, End], inner: int, outer: int, integrity: bool) -> None:
    tunnel = connect(ends, inner, outer=outer, integrity=integrity)
    tunnel.start()
    exchange(tunnel, 5_000_000)
    carried_everything(tunnel, 5_000_000)


def test_one_half_may_be_closed_long_before_the_other(ends: tuple[End, End]) -> None:
    tunnel = connect(ends)
    tunnel.start()
    bob, alice = tunnel.connection.bob, tunnel.connection.alice
    bob.shutdown(socket.SHUT_WR)
    assert alice.recv(10) == b""
    for _ in range(3):
        alice.sendall(b"still here")
        assert bob.recv(10) == b"still here"
    alice.close()
    assert bob.recv(10) == b""
    until(lambda: "FIN" not in tunnel.bob.host.sh("ss -tan") + tunnel.alice.host.sh("ss -tan"))


def test_a_reset_arrives(ends: tuple[End, End]) -> None:
    tunnel = connect(ends)
    tunnel.start()
    tunnel.connection.bob.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    tunnel.connection.bob.close()
    with pytest.raises(ConnectionResetError):
        tunnel.connection.alice.recv(10)


def test_urgent_data_stays_where_it_was(ends: tuple[End, End]) -> None:
    tunnel = connect(ends)
    tunnel.start()
    bob, alice = tunnel.connection.bob, tunnel.connection.alice
    bob.sendall(bytes(20_000))
    bob.send(b"!", socket.MSG_OOB)
    bob.sendall(b"after")
    assert select.select([], [], [alice], 5)[2] == [alice]
    before = b""
    while len(before) < 20_000:
        before += alice.recv(20_000 - len(before))
    assert alice.recv(1, socket.MSG_OOB) == b"!"
    assert (before, alice.recv(100)) == (bytes(20_000), b"after")


def test_congestion_marks_are_carried(net: Net, ends: tuple[End, End]) -> None:
    bob, alice = ends
    for end in ends:
        end.host.sh("sysctl -qw net.ipv4.tcp_ecn=1")
    tunnel = connect(ends)
    assert "ecn" in bob.host.sh("ss -tino dport = :5000")
    tunnel.start()
    # Some packets say on their way into bob's tunnel that there was congestion.
    bob.host.sh(
        "nft add chain inet steer congestion '{ type filter hook postrouting priority 0; }';"
        f"nft add rule inet steer congestion oifname {TUN_DEVICE} ip ecn ect0 numgen random mod 20 0 "
        "ip ecn set ce counter"
    )
    exchange(tunnel, 5_000_000)
    assert "packets 0 " not in bob.host.sh("nft list chain inet steer congestion")
    assert int(alice.host.sh("nstat -asz IpExtInCEPkts | awk '/CE/ {print $2}'")) > 0
    # The sender has heard of it and said so (CWR): it reduces its window without having lost anything.
    assert alice.refused() == bob.refused() == {}


def one_by_one(ends: tuple[End, End]) -> None:
    """Datagrams reach the router cut, as they would on any real link."""
    for end, device in zip(ends, ("net1", "net3"), strict=True):
        end.host.sh(f"ip link set {device} gso_max_segs 1")


def narrow(net: Net, mtu: int) -> None:
    """The router's links take no more than this from now on, and it does not say so."""
    for rule in ("icmp type destination-unreachable", "icmpv6 type packet-too-big"):
        net.router.sh(
            "nft add table inet mute; nft add chain inet mute output '{ type filter hook output priority 0; }';"
            f"nft add rule inet mute output {rule} drop"
        )
    net.router.sh(f"for net in 1 3; do ip link set br$net mtu {mtu}; done")


@pytest.mark.parametrize("integrity", [False, True], ids=["plain", "with tags"])
def test_three_of_a_hundred_packets_may_get_lost(net: Net, ends: tuple[End, End], integrity: bool) -> None:
    tunnel = connect(ends, integrity=integrity)
    tunnel.start()
    one_by_one(ends)
    net.router.sh(
        "nft add table inet lossy; nft add chain inet lossy forward '{ type filter hook forward priority 0; }';"
        "nft add rule inet lossy forward 'numgen random mod 100 < 3 counter drop'"
    )
    exchange(tunnel, 10_000_000)
    assert "packets 0 " not in net.router.sh("nft list ruleset")
    for end in ends:
        assert end.refused() == {}
        assert any(report.what is Sight.RETRANSMISSION for report in end.reports)


@pytest.mark.parametrize("outer", [4, 6])
@pytest.mark.parametrize("mtu", [SAFE_MTU, 1400])
def test_a_small_link_that_says_nothing_stops_nothing(net: Net, ends: tuple[End, End], outer: int, mtu: int) -> None:
    tunnel = connect(ends, outer=outer)
    narrow(net, mtu)
    tunnel.start()
    exchange(tunnel, 20_000_000)
    carried_everything(tunnel, 20_000_000)
    assert {tunnel.size(end) for end in ends} == {mtu - (28 if outer == 4 else 48)}


@pytest.mark.parametrize("outer", [4, 6])
def test_a_link_that_becomes_small_under_way_stops_nothing(net: Net, ends: tuple[End, End], outer: int) -> None:
    tunnel = connect(ends, outer=outer)
    tunnel.start()
    exchanging = threading.Thread(target=exchange, args=(tunnel, 300_000_000))
    exchanging.start()
    until(lambda: tunnel.total(tunnel.alice) > 10_000)
    narrow(net, SAFE_MTU)
    before = tunnel.total(tunnel.alice)
    until(lambda: tunnel.total(tunnel.alice) > before + 50_000, 30)
    exchanging.join(60)
    assert not exchanging.is_alive()
    assert {tunnel.size(end) for end in ends} == {SAFE_MTU - (28 if outer == 4 else 48)}


def test_an_interface_smaller_than_everything_is_heeded(net: Net, ends: tuple[End, End]) -> None:
    """The kernel says so at once (EMSGSIZE)."""
    tunnel = connect(ends)
    tunnel.start()
    for end, device in zip(ends, ("net1", "net3"), strict=True):
        end.host.sh(f"ip link set {device} mtu 1000")
    exchange(tunnel, 2_000_000)
    assert all((tunnel.size(end) or 0) <= 1000 - 28 for end in ends)


def test_what_is_sent_before_there_is_an_address_waits(ends: tuple[End, End]) -> None:
    tunnel = connect(ends)
    bob, alice = ends
    tunnel.start(hold=True)
    data = random.randbytes(30_000)
    tunnel.connection.bob.sendall(data)
    until(lambda: bob.carrier.counters(tunnel.socket(bob)).held > 10_000)
    assert tunnel.total(alice) == 0
    bob.carrier.carry(tunnel.carried(bob))
    received = b""
    while len(received) < len(data):
        received += tunnel.connection.alice.recv(len(data))
    assert received == data
    counted = bob.carrier.counters(tunnel.socket(bob))
    assert (counted.held, counted.overflowed) == (0, 0)
    assert alice.refused() == {}


def test_what_has_waited_for_too_long_is_not_sent(ends: tuple[End, End]) -> None:
    """TCP would take the wait for the round trip, and has sent it again or will."""
    tunnel = connect(ends)
    bob, _ = ends
    tunnel.start(hold=True)
    sender = tunnel.connection.bob
    sender.sendall(b"once")
    until(lambda: learnt(sender).retransmits >= 2)
    time.sleep(HOLD_TIME)
    bob.carrier.carry(tunnel.carried(bob))
    assert tunnel.connection.alice.recv(100) == b"once"
    counted = bob.carrier.counters(tunnel.socket(bob))
    assert counted.outdated >= 2
    assert (counted.held, counted.overflowed) == (0, 0)
    until(lambda: not learnt(sender).unacked)
    assert learnt(sender).rtt < HOLD_TIME


def test_what_waits_is_bounded_and_the_oldest_goes_first(
    ends: tuple[End, End], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("redirectctl.kernel.tunnel.carrier.HOLD_FLOW", 100_000)
    tunnel = connect(ends)
    bob, alice = ends
    tunnel.start()
    exchanging = threading.Thread(target=exchange, args=(tunnel, 100_000_000))
    exchanging.start()
    until(lambda: tunnel.total(alice) > 10_000)
    bob.carrier.carry(tunnel.carried(bob, hold=True))
    until(lambda: bob.carrier.counters(tunnel.socket(bob)).overflowed)
    assert bob.carrier.counters(tunnel.socket(bob)).held <= 100_000
    bob.carrier.carry(tunnel.carried(bob))
    exchanging.join(60)
    assert not exchanging.is_alive()


def test_a_busy_connection_goes_into_the_tunnel_and_out_again_without_loss(ends: tuple[End, End]) -> None:
    tunnel = connect(ends, integrity=True)
    bob, alice = ends
    for end in ends:
        end.carrier.carry(tunnel.carried(end))
    exchanging = threading.Thread(target=exchange, args=(tunnel, 1_000_000_000))
    exchanging.start()
    for _ in range(3):
        before = tunnel.total(alice), tunnel.total(bob)
        bob.steer()
        alice.steer()
        until(lambda before=before: tunnel.total(alice) > before[0] + 1000 and tunnel.total(bob) > before[1] + 1000)
        for end in ends:
            end.unsteer()
    exchanging.join(60)
    assert not exchanging.is_alive()
    assert bob.refused() == alice.refused() == {}


def test_a_carrier_that_is_made_anew_goes_on(ends: tuple[End, End]) -> None:
    """As after a restart: greater counters, the same offers; what was under way meanwhile is sent again."""
    tunnel = connect(ends)
    bob, alice = ends
    tunnel.start()
    tunnel.connection.bob.sendall(b"before")
    assert tunnel.connection.alice.recv(10) == b"before"
    bob.close()
    tunnel.connection.bob.sendall(b"meanwhile")
    again = End(bob.host)
    carried = tunnel.carried(bob)
    again.carrier.carry(carried._replace(first=carried.first + (1 << 36)))
    assert tunnel.connection.alice.recv(10) == b"meanwhile"
    assert alice.refused() == {}


def shown_of(end: End) -> str:
    """The socket, but how long ago it has sent and received; what was just now is not shown at all."""
    return re.split(r"lastsnd|lastrcv|lastack|pacing_rate", end.host.sh("ss -tin sport = :5000"))[0]


def test_datagrams_that_nobody_asked_for_are_refused_and_reported(ends: tuple[End, End]) -> None:
    tunnel = connect(ends, integrity=True)
    bob, alice = ends
    tunnel.start()
    assert tunnel.connection.works(1000)
    receiving = tunnel.carried(alice).receiving
    sender = bob.host.do(socket.socket, socket.AF_INET, socket.SOCK_DGRAM)

    def send(data: bytes) -> None:
        sender.sendto(data, (str(address(3, 10, 4)), PORT))

    counter = receiving.start + (6 << 36)
    ours = Segment(receiving.flow, counter, 1, 1, 0x10, 1, data=b"evil" * 10)
    before = shown_of(alice)
    send(encode(ours))
    send(encode(Segment(receiving.flow ^ 1, counter, 1, 1, 0x10, 1)))
    send(encode(ours)[:20])
    send(encode(Probe(receiving.flow, counter, padding=100)))
    send(encode(Segment(receiving.flow, counter, 1, 1, 0x02, 1, data=bytes(20))))
    send(b"\x08\x02" + encode(ours)[2:])
    send(b"\x09")
    expected = {"forged": 2, "unknown-flow": 1, "truncated": 2, "bad-segment": 1, "unknown-version": 1}
    until(lambda: alice.refused() == expected)
    source = SockAddr(address(1, 10, 4), sender.getsockname()[1])
    assert {report.source for report in alice.reports if report.what is not Sight.RETRANSMISSION} == {source}
    assert alice.carrier.counters(tunnel.socket(alice)).refused == {
        Refused.FORGED: 2,
        Refused.TRUNCATED: 1,
        Refused.BAD_SEGMENT: 1,
    }
    assert shown_of(alice) == before
    sender.settimeout(0.3)
    with pytest.raises(TimeoutError):  # nothing is answered
        sender.recv(100)
    sender.close()
    assert tunnel.connection.works(1000)


def test_the_control_port_is_shared_by_the_first_byte(ends: tuple[End, End]) -> None:
    bob, alice = ends
    for version, control in zip((4, 6), alice.control, strict=True):
        sender = bob.host.do(socket.socket, socket.AF_INET if version == 4 else socket.AF_INET6, socket.SOCK_DGRAM)
        for first in (1, 8, 5, 9, 7, 0, 255, 10):
            sender.sendto(bytes([first]), (str(address(3, 10, version)), PORT))
        assert [control.recv(10)[0] for _ in range(6)] == [1, 5, 7, 0, 255, 10]
        sender.close()
    until(lambda: alice.refused() == {"truncated": 4})


def test_a_second_daemon_does_not_get_the_port(ends: tuple[End, End]) -> None:
    for version in (4, 6):
        with pytest.raises(OSError, match="in use") as error:
            ends[0].host.do(control_socket, version)
        assert error.value.errno == errno.EADDRINUSE


def test_a_socket_of_another_user_does_not_get_the_port(ends: tuple[End, End]) -> None:
    script = (
        "import os, socket; os.setuid(65534); s = socket.socket(type=2); s.setsockopt(1, 15, 1); s.bind(('', 7747))"
    )
    said = ends[0].host.sh(f'python3 -c "{script}" 2>&1', check=False)
    assert "in use" in said


def test_a_second_carrier_does_not_get_the_device(ends: tuple[End, End]) -> None:
    with pytest.raises(KernelError, match="is another redirectd running"):
        ends[0].host.do(Carrier, [], print)


def test_the_device_may_be_there_before_the_carrier_and_stays_after_it(bob: Host) -> None:
    keeper = bob.run(in_loop(Keeper))
    bob.at_close(keeper.close)
    bob.run(keeper.setup())
    end = End(bob)
    assert "mtu 65535" in bob.sh(f"ip link show {TUN_DEVICE}")
    bob.run(keeper.setup())
    end.carrier.close()
    assert "UP" in bob.sh(f"ip link show {TUN_DEVICE}")


def test_a_device_that_is_deleted_is_reported_and_stops_nothing_else(ends: tuple[End, End]) -> None:
    tunnel = connect(ends)
    bob, alice = ends
    tunnel.start()
    assert tunnel.connection.works(1000)
    alice.host.sh(f"ip link del {TUN_DEVICE}")
    until(lambda: Report(Sight.DEVICE_GONE, None, None, 1) in alice.reports)
    sender = bob.host.do(socket.socket, socket.AF_INET, socket.SOCK_DGRAM)
    sender.sendto(b"\x09", (str(address(3, 10, 4)), PORT))
    sender.close()
    until(lambda: alice.refused()["truncated"])
    alice.host.sh(f"ip tuntap add {TUN_DEVICE} mode tun")  # the fixture looks for it


def test_an_unknown_connection_has_no_counters(ends: tuple[End, End]) -> None:
    tunnel = connect(ends)
    bob, _ = ends
    assert bob.carrier.counters(tunnel.connection.tuple) is None
    bob.carrier.uncarry(tunnel.connection.tuple)
    bob.carrier.carry(tunnel.carried(bob))
    assert bob.carrier.counters(tunnel.connection.tuple) is not None
    bob.carrier.uncarry(tunnel.connection.tuple)
    assert bob.carrier.counters(tunnel.connection.tuple) is None


def test_a_connection_that_moves_without_end_takes_no_more_room(ends: tuple[End, End]) -> None:
    """Its peer may say as often as it likes that it is elsewhere."""
    tunnel = connect(ends)
    bob, _ = ends
    tunnel.start()
    carried = tunnel.carried(bob)
    for number in range(1000):
        elsewhere = SockAddr(ip_address(f"203.0.{113 + number // 250}.{number % 250}"), PORT)
        bob.carrier.carry(carried._replace(remote=elsewhere))
    assert len(bob.carrier._paths) < 30
    bob.carrier.carry(carried)
    assert tunnel.connection.works(1000)


def test_a_busy_event_loop_does_not_stop_the_traffic(ends: tuple[End, End]) -> None:
    tunnel = connect(ends)
    tunnel.start()
    exchanging = threading.Thread(target=exchange, args=(tunnel, 50_000_000))
    exchanging.start()
    end = time.monotonic() + 30
    while exchanging.is_alive() and time.monotonic() < end:
        sum(range(1000))  # holds the interpreter
    assert not exchanging.is_alive()

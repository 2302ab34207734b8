"""What a connection sends goes into the TUN device, and what comes from there reaches its socket."""

from __future__ import annotations

import errno
import fcntl
import os
import select
import socket
import struct
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from ipaddress import IPv4Address

import pytest
from scapy.layers.inet import IP, TCP
from scapy.layers.inet6 import IPv6
from two_hosts import Connection, Host, Net, Side, address, until

from redirectctl.flows.connection import Flow
from redirectctl.kernel.constants import FALLBACK_TABLE, MARK_HOLD, TUN_DEVICE, TUNNEL_TABLE
from redirectctl.kernel.netfilter.rewriter import Rewriter

pytestmark = pytest.mark.netns
both_families = pytest.mark.parametrize("version", [4, 6])

OUTER = 7747  # UDP port
TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
IP_MTU_DISCOVER, IP_PMTUDISC_DONT = 10, 0


class Relay:
    """A host's end of a tunnel in place of kernel/tunnel/carrier.py: a packet a datagram, as it is."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.peer = ("", 0)
        self.packets: list[bytes] = []  # that came out of the device
        self._tun, self._udp = host.do(self._open)
        self._go_on = True
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    @staticmethod
    def _open() -> tuple[int, socket.socket]:
        tun = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        fcntl.ioctl(tun, TUNSETIFF, struct.pack("16sH22x", TUN_DEVICE.encode(), IFF_TUN | IFF_NO_PI))
        udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        udp.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_DONT)
        udp.bind(("", OUTER))
        udp.setblocking(False)
        return tun, udp

    def _run(self) -> None:
        while self._go_on:
            for ready in select.select([self._tun, self._udp], [], [], 0.05)[0]:
                try:
                    if ready is self._udp:
                        os.write(self._tun, self._udp.recv(1 << 16))
                    else:
                        packet = os.read(self._tun, 1 << 16)
                        self.packets.append(packet)
                        if self.peer[0]:
                            self._udp.sendto(packet, self.peer)
                except OSError:
                    continue  # no way to the peer now

    def close(self) -> None:
        self._go_on = False
        self._thread.join()
        os.close(self._tun)
        self._udp.close()


class Tunnelled:
    """A connection of bob's with alice, protected by both."""

    def __init__(self, bob: Host, alice: Host, version: int) -> None:
        self.connection = Connection(bob, alice, version)
        self.sides = Side(bob), Side(alice)
        self.relays = Relay(bob), Relay(alice)
        self.outer(1, 3)
        self.steer(1, 3, tunnel=False)

    def outer(self, bob_net: int, alice_net: int) -> None:
        """Where the two hosts' datagrams go."""
        self.relays[0].peer = (str(address(alice_net, 10, 4)), OUTER)
        self.relays[1].peer = (str(address(bob_net, 10, 4)), OUTER)

    def steer(
        self, bob_net: int, alice_net: int, *, tunnel: bool = True, integrity: bool = False, only: int | None = None
    ) -> None:
        """Give one host or both this wire tuple, and take what they send into the tunnel or out of it."""
        wire = self.connection.wire(bob_net, alice_net)
        pairs = (self.connection.tuple, wire), (self.connection.tuple.mirrored, wire.mirrored)
        for number, (side, pair) in enumerate(zip(self.sides, pairs, strict=True)):
            if only in (None, number):
                side.rewrite(pair, tunnel=tunnel, integrity=integrity)

    def carried(self) -> tuple[int, int]:
        """How many packets each host has put into the tunnel."""
        return len(self.relays[0].packets), len(self.relays[1].packets)

    def close(self) -> None:
        for relay in self.relays:
            relay.close()


@pytest.fixture(params=[4, 6], ids=["IPv4", "IPv6"])
def pair(request: pytest.FixtureRequest, bob: Host, alice: Host) -> Iterator[Tunnelled]:
    made = Tunnelled(bob, alice, request.param)
    yield made
    made.close()


def test_a_live_connection_goes_into_the_tunnel_and_out_again(pair: Tunnelled) -> None:
    assert pair.connection.works()
    assert pair.carried() == (0, 0)
    pair.steer(1, 3)
    assert pair.connection.works()
    before = pair.carried()
    assert min(before) > 100
    for only in (0, 1):  # each host for itself; in between one sends plain and one does not
        pair.steer(1, 3, tunnel=False, only=only)
        assert pair.connection.works()
    left = pair.carried()
    assert pair.connection.works()
    assert pair.carried() == left
    for side in pair.sides:
        assert side.host.run(side.keeper.kept()) == set()
        assert "chain out" not in side.host.sh("nft list table inet redirectctl")


def test_the_tunnel_is_used_though_the_plain_path_has_a_wire_tuple(net: Net, bob: Host, pair: Tunnelled) -> None:
    net.leave(bob, 1)
    net.join(bob, 2, 10)
    pair.outer(2, 3)
    pair.steer(2, 3)
    assert pair.connection.works()
    assert min(pair.carried()) > 100
    pair.steer(2, 3, tunnel=False, only=1)  # alice sends plain, to an address that bob only receives at
    alone = pair.carried()[1]
    assert pair.connection.works()
    assert pair.carried()[1] == alone
    pair.steer(2, 3, tunnel=False)
    before = pair.carried()
    assert pair.connection.works()
    assert pair.carried() == before
    pair.steer(2, 3)
    assert pair.connection.works()
    for side in pair.sides:
        assert side.host.do(side.rewriter.flows) == set(side.flows.values())


def test_both_hosts_move_while_it_is_in_the_tunnel(net: Net, bob: Host, alice: Host, pair: Tunnelled) -> None:
    pair.steer(1, 3)
    net.leave(bob, 1)
    net.leave(alice, 3)
    net.join(bob, 2, 10)
    net.join(alice, 4, 10)
    pair.outer(2, 4)
    assert pair.connection.works()  # nothing of routing and filters had to change


def test_nothing_ends_while_nobody_reads_the_device(bob: Host, alice: Host, pair: Tunnelled) -> None:
    for host in (bob, alice):  # a device that nobody has open has no carrier
        host.sh("sysctl -qw net.ipv4.conf.all.ignore_routes_with_linkdown=1")
        host.sh("sysctl -qw net.ipv6.conf.all.ignore_routes_with_linkdown=1")
    pair.steer(1, 3)
    assert pair.connection.works()
    data = os.urandom(8_000_000)
    with ThreadPoolExecutor(1) as thread:
        begun = sum(pair.carried())
        sending = thread.submit(pair.connection.bob.sendall, data)
        received = b""
        while sum(pair.carried()) <= begun + 200:  # the window opens with what is read
            received += pair.connection.alice.recv(1 << 16)
        for relay in pair.relays:
            relay.close()
        time.sleep(2)  # some retransmissions
        for end in (pair.connection.bob, pair.connection.alice):
            assert end.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
        pair.relays = Relay(bob), Relay(alice)
        pair.outer(1, 3)
        while len(received) < len(data):
            received += pair.connection.alice.recv(1 << 16)
        sending.result()
    assert received == data
    assert pair.connection.works()


@both_families
def test_hosts_with_strict_reverse_path_filtering_and_firewalls(bob: Host, alice: Host, version: int) -> None:
    for host in (bob, alice):
        firewall(host)
    pair = Tunnelled(bob, alice, version)
    try:
        pair.steer(1, 3)
        assert pair.connection.works()
        before = pair.carried()
        assert min(before) > 100
        pair.steer(1, 3, tunnel=False, only=0)  # bob receives from the tunnel and keeps no address
        assert pair.connection.works()
        assert pair.carried()[1] > before[1] + 100
        # A route by which plain packets arrive says otherwise about where the peer is.
        remote = pair.connection.tuple.remote.host
        if isinstance(remote, IPv4Address):
            bob.run(pair.sides[0].keeper.arrive(remote, bob.do(socket.if_nametoindex, "net1")))
        assert pair.connection.works()
    finally:
        pair.close()


def firewall(host: Host) -> None:
    """As strict as hosts have it: reverse path by sysctl and by nft, established only, nothing invalid goes out."""
    neighbours = "icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } accept"
    host.sh(
        f"""nft -f - <<'NFT'
        table inet fw {{
          chain path {{ type filter hook prerouting priority raw + 10;
            {neighbours}; fib saddr . mark . iif oif missing drop; }}
          chain in {{ type filter hook input priority filter; policy drop;
            iif lo accept; {neighbours}; ct state established accept; udp dport {OUTER} accept;
            tcp dport 5000 tcp flags & (syn | ack) == syn accept; }}
          chain out {{ type filter hook output priority filter; ct state invalid drop; }}
        }}
NFT
        sysctl -qw net.ipv4.conf.all.rp_filter=1 net.netfilter.nf_conntrack_tcp_loose=0"""
    )


def test_rules_for_source_addresses_do_not_take_it_out_of_the_tunnel(bob: Host, pair: Tunnelled) -> None:
    local = pair.connection.tuple.local.host
    flag, gateway = ("", address(1, 1, 4)) if local.version == 4 else ("-6", address(1, 1, 6))
    bob.sh(f"ip {flag} route add default via {gateway} table 100; ip {flag} rule add from {local} table 100 prio 100")
    (side,) = [side for side in pair.sides if side.host is bob]
    bob.run(side.keeper.reconcile(bob.run(side.keeper.kept())))  # as the daemon does when it hears of the rule
    pair.steer(1, 3)
    assert pair.connection.works()
    assert min(pair.carried()) > 100


def test_the_segment_size_is_not_that_of_the_device(net: Net, bob: Host, pair: Tunnelled) -> None:
    for side in pair.sides:
        side.host.sh(f"ip link set {TUN_DEVICE} mtu 65535")
    pair.steer(1, 3)
    net.leave(bob, 1)
    net.join(bob, 2, 10, default=False)  # no route to alice but the fallback
    bob.sh(f"ip route add {address(3, 10, 4)} via {address(2, 1, 4)} table 50; ip rule add ipproto udp table 50")
    pair.outer(2, 3)
    assert pair.connection.works()
    assert max(map(len, pair.relays[0].packets)) <= 1500


def test_an_rst_on_the_plain_path_is_held_and_one_from_the_tunnel_passes(
    net: Net, alice: Host, pair: Tunnelled
) -> None:
    pair.steer(1, 3)
    alice.sh(
        "nft add table inet t; nft 'add chain inet t c { type filter hook prerouting priority -305; }';"
        f"nft add rule inet t c 'meta mark & {MARK_HOLD:#x} != 0 counter drop'"
    )
    stranger = net.host("stranger")
    net.join(stranger, 1, 66)
    source, target = pair.connection.tuple
    network = IP if target.host.version == 4 else IPv6
    packet = bytes(network(src=str(source.host), dst=str(target.host)) / TCP(sport=source.port, dport=5000, flags="R"))

    def send() -> None:
        family = socket.AF_INET if target.host.version == 4 else socket.AF_INET6
        with socket.socket(family, socket.SOCK_RAW, socket.IPPROTO_RAW) as raw:
            raw.sendto(packet, (str(target.host), 0))

    stranger.do(send)
    until(lambda: "packets 1 " in alice.sh("nft list chain inet t c"))
    assert pair.connection.works()
    pair.connection.bob.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    pair.connection.bob.close()  # sends an RST
    until(lambda: pair.connection.alice.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ECONNRESET)
    assert "packets 1 " in alice.sh("nft list chain inet t c")


def asks(target: str) -> int:
    with socket.socket(socket.AF_INET6 if ":" in target else socket.AF_INET, socket.SOCK_STREAM) as other:
        other.settimeout(5)
        return other.connect_ex((target, 7))


def test_an_address_that_an_interface_has_too_stays_usable_for_all_others(
    net: Net, bob: Host, alice: Host, pair: Tunnelled
) -> None:
    version = pair.connection.version
    owned = address(1, 10, version)
    stranger = net.host("stranger")
    net.join(stranger, 1, 66)
    for tunnel in (True, False):
        pair.steer(1, 3, tunnel=tunnel)
        for host in (net.router, stranger):
            host.sh("ip neigh flush all")
        assert stranger.do(asks, str(owned)) == errno.ECONNREFUSED  # ARP, neighbour discovery, and bob's own answer
        with bob.do(socket.socket, socket.AF_INET if version == 4 else socket.AF_INET6, socket.SOCK_DGRAM) as other:
            bob.do(other.connect, (str(address(3, 10, version)), 9))
            assert other.getsockname()[0] == str(owned)
        assert Connection(bob, alice, version).works()
        assert f"local {owned} dev net1" in bob.sh("ip route show table local; ip -6 route show table local")
        assert pair.connection.works()


def test_the_last_kept_address_takes_no_route_with_it(bob: Host) -> None:
    """The kernel flushes all IPv4 routes of a device with its last address."""
    side = Side(bob)
    old, peer = address(1, 77, 4), address(3, 77, 4)
    bob.run(side.keeper.keep(old))
    bob.run(side.keeper.fallback(peer))
    bob.run(side.keeper.drop(old))
    assert f"default dev {TUN_DEVICE}" in bob.sh(f"ip route show table {TUNNEL_TABLE}")
    assert str(peer) in bob.sh(f"ip route show table {FALLBACK_TABLE}")
    assert bob.run(side.keeper.kept()) == set()


@both_families
def test_only_the_tunnel_flag_changes_in_one_transaction(bob: Host, alice: Host, version: int) -> None:
    connection = Connection(bob, alice, version)
    side = Side(bob)
    flow = Flow(connection.tuple, connection.wire(2, 3))
    bob.do(side.rewriter.apply, [flow], [])
    for tunnel in (True, False):
        changed = Flow(flow.socket, flow.wire, tunnel)
        bob.do(side.rewriter.apply, [changed], [flow])
        assert bob.do(side.rewriter.flows) == {changed}
        flow = changed
    successor = bob.do(Rewriter)
    bob.at_close(successor.close)
    flow = Flow(flow.socket, flow.wire, True)
    bob.do(successor.setup, [flow])
    assert bob.do(successor.flows) == {flow}


def test_nothing_is_left_after_teardown(bob: Host, pair: Tunnelled) -> None:
    pair.steer(1, 3)
    side = pair.sides[0]
    side.teardown()
    assert bob.run(side.keeper.leftovers()) == []
    assert TUN_DEVICE not in bob.sh("ip link; ip rule; ip -6 rule; ip route show table all; ip -6 route show table all")

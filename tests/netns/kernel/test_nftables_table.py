"""What the nftables table does to single packets, and how it is changed."""

from __future__ import annotations

import errno
import re
import select
import socket
import struct
import threading
from ipaddress import ip_address

import pytest
from scapy.layers.inet import IP, TCP
from scapy.layers.inet6 import IPv6
from two_hosts import Connection, Host, Net, Side, address, until

from redirectctl.flows.connection import Flow
from redirectctl.kernel.constants import MARK_ASK, MARK_HOLD, MARK_MOVED, MARK_PROBE
from redirectctl.kernel.errors import KernelError
from redirectctl.kernel.netfilter.libnftables import Nft, NftError
from redirectctl.kernel.netfilter.queue_rules import QUEUE_RULES
from redirectctl.kernel.netfilter.rewriter import Rewriter
from redirectctl.wire.addr import FourTuple, SockAddr

pytestmark = pytest.mark.netns
both_families = pytest.mark.parametrize("version", [4, 6])

TCP_REPAIR, TCP_REPAIR_QUEUE, TCP_QUEUE_SEQ = 19, 20, 21
SIX = FourTuple(SockAddr.parse("[2001:db8::1]:22"), SockAddr.parse("[2001:db8::2]:40000"))


def count_marks(host: Host, hook: str, priority: int) -> None:
    """Count packets by mark, before NFQUEUE sees them; RSTs of connections are dropped after that."""
    host.sh(f"nft add table inet t; nft 'add chain inet t c {{ type filter hook {hook} priority {priority}; }}'")
    for bit in (MARK_ASK, MARK_HOLD, MARK_PROBE):
        verdict = "" if bit == MARK_PROBE else "drop"
        host.sh(f"nft add rule inet t c 'meta mark & {bit:#x} == {bit:#x} counter {verdict} comment \"{bit:#x}\"'")


def counted(host: Host, bit: int) -> int:
    (line,) = (line for line in host.sh("nft list chain inet t c").splitlines() if f'"{bit:#x}"' in line)
    return int(line.split("packets ")[1].split()[0])


def expected_sequence(sock: socket.socket) -> int:
    """rcv_nxt: the only number that makes an RST kill at once (RFC 5961)."""
    sock.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, 1)
    sock.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR_QUEUE, 1)
    (number,) = struct.unpack("=I", sock.getsockopt(socket.IPPROTO_TCP, TCP_QUEUE_SEQ, 4))
    sock.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, -1)  # off, without a window probe
    return int(number)


def send_rst(host: Host, source: SockAddr, target: SockAddr, sequence: int) -> None:
    network = (IP if target.host.version == 4 else IPv6)(src=str(source.host), dst=str(target.host))
    packet = bytes(network / TCP(sport=source.port, dport=target.port, flags="R", seq=sequence))

    def send() -> None:
        family = socket.AF_INET if target.host.version == 4 else socket.AF_INET6
        with socket.socket(family, socket.SOCK_RAW, socket.IPPROTO_RAW) as raw:
            raw.sendto(packet, (str(target.host), 0))

    host.do(send)


def is_dead(sock: socket.socket) -> bool:
    error = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    assert error in {0, errno.ECONNRESET}
    return error == errno.ECONNRESET


@both_families
def test_rst_marks(net: Net, bob: Host, alice: Host, version: int) -> None:
    stranger = net.host("stranger")
    net.join(stranger, 1, 66)
    connection = Connection(bob, alice, version)
    unguarded = Connection(bob, alice, version)
    side = Side(alice)
    count_marks(alice, "prerouting", -305)
    sock, wire = connection.tuple.mirrored, connection.wire(2, 3).mirrored

    side.rewrite((sock, sock))
    send_rst(stranger, sock.remote, sock.local, expected_sequence(connection.alice))
    until(lambda: counted(alice, MARK_ASK) == 1)
    assert not is_dead(connection.alice)

    side.rewrite((sock, wire))
    for source in (sock.remote, wire.remote):  # the stranger's, and one that looks like the peer's own
        before = counted(alice, MARK_HOLD)
        send_rst(stranger, source, wire.local, expected_sequence(connection.alice))
        until(lambda before=before: counted(alice, MARK_HOLD) == before + 1)
        assert not is_dead(connection.alice)
    assert counted(alice, MARK_ASK) == 1

    other = unguarded.tuple.mirrored
    send_rst(stranger, other.remote, other.local, expected_sequence(unguarded.alice))
    until(lambda: is_dead(unguarded.alice))  # the same RST, not protected
    assert (counted(alice, MARK_ASK), counted(alice, MARK_HOLD)) == (1, 2)


@both_families
def test_without_a_daemon_a_held_rst_is_dropped_and_an_asked_one_passes(
    net: Net, bob: Host, alice: Host, version: int
) -> None:
    stranger = net.host("stranger")
    net.join(stranger, 1, 66)
    connection, other = Connection(bob, alice, version), Connection(bob, alice, version)
    side = Side(alice)
    sock, asked = connection.tuple.mirrored, other.tuple.mirrored
    side.rewrite((sock, connection.wire(2, 3).mirrored), (asked, asked))
    send_rst(stranger, sock.remote, sock.local, expected_sequence(connection.alice))
    send_rst(stranger, asked.remote, asked.local, expected_sequence(other.alice))
    until(lambda: is_dead(other.alice))
    assert not is_dead(connection.alice)


@both_families
def test_probe_marks_one_pure_ack_and_no_data(bob: Host, alice: Host, version: int) -> None:
    connection, other = Connection(bob, alice, version), Connection(bob, alice, version)
    side = Side(alice)
    count_marks(alice, "output", -305)
    for flow in (connection, other):
        side.rewrite((flow.tuple.mirrored, flow.tuple.mirrored))
    connection.bob.sendall(b"x")
    assert connection.alice.recv(1) == b"x"
    assert counted(alice, MARK_PROBE) == 0
    alice.do(side.rewriter.probe, [connection.tuple.mirrored])
    other.bob.sendall(b"x")
    connection.alice.sendall(b"data is not marked")
    assert connection.bob.recv(100) == b"data is not marked"
    assert counted(alice, MARK_PROBE) == 0
    connection.bob.sendall(b"y")
    until(lambda: counted(alice, MARK_PROBE) == 1)
    assert connection.alice.recv(1) == other.alice.recv(1).replace(b"x", b"y")
    alice.do(side.rewriter.probe, [connection.tuple.mirrored, other.tuple.mirrored])  # once more: the time starts anew
    assert "expires" in alice.sh(f"nft list set inet redirectctl probe{version}")
    assert connection.works()  # nobody listens: ACKs pass


@both_families
def test_a_new_connection_cannot_take_the_wire_tuple(net: Net, bob: Host, alice: Host, version: int) -> None:
    connection = Connection(bob, alice, version)
    side, other = Side(bob), Side(alice)
    net.leave(bob, 1)
    net.join(bob, 2, 10)
    wire = connection.wire(2, 3)
    side.rewrite((connection.tuple, wire))
    other.rewrite((connection.tuple.mirrored, wire.mirrored))
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    listener = alice.do(lambda: socket.create_server((str(wire.remote.host), 5001), family=family))

    def connect(port: int) -> int:
        with socket.socket(family, socket.SOCK_STREAM) as new:
            new.settimeout(10)
            new.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            new.bind((str(wire.local.host), wire.local.port))
            return new.connect_ex((str(wire.remote.host), port))

    assert bob.do(connect, wire.remote.port) in {errno.EHOSTUNREACH, errno.EACCES}
    assert bob.do(connect, 5001) == 0
    listener.close()
    assert connection.works()


@both_families
def test_the_mark_adds_to_other_marks(net: Net, bob: Host, alice: Host, version: int) -> None:
    connection = Connection(bob, alice, version)
    side = Side(alice)
    alice.sh(
        "nft add table inet t; nft 'add chain inet t a { type filter hook prerouting priority -320; }';"
        "nft 'add chain inet t b { type filter hook prerouting priority -305; }';"
        "nft add rule inet t a meta mark set 0x5;"
        f"nft add rule inet t b meta mark {MARK_MOVED | 5:#x} counter"
    )
    prefix = "24" if version == 4 else "64"
    bob.sh(f"ip addr add {address(1, 20, version)}/{prefix} dev net1 {'nodad' if version == 6 else ''}")
    there = Side(bob)
    wire = connection.tuple._replace(local=connection.tuple.local._replace(host=address(1, 20, version)))
    there.rewrite((connection.tuple, wire))
    side.rewrite((connection.tuple.mirrored, wire.mirrored))
    assert connection.works(1000)
    assert "packets 0" not in alice.sh("nft list chain inet t b")


def test_nothing_is_looked_up_for_connections_that_have_not_moved(bob: Host, alice: Host) -> None:
    connection = Connection(bob, alice, 4)
    side = Side(alice)
    sock, wire = connection.tuple.mirrored, connection.wire(2, 3).mirrored

    def rules(chain: str) -> str:
        return alice.sh(f"nft list chain inet redirectctl {chain}", check=False)

    assert rules("in") == rules("out") == rules("probe") == ""  # no hook at all
    side.rewrite((sock, sock))
    assert "rst" in rules("in")
    assert "map" not in rules("in")
    assert "ip6" not in rules("in")
    assert rules("out") == rules("probe") == ""
    alice.do(side.rewriter.probe, [sock])
    assert "@probe4" in rules("probe")
    alice.do(side.rewriter.probe, [])
    assert rules("probe") == ""
    side.rewrite((sock, wire))
    assert "map @src4" in rules("in")
    assert "map @src6" not in rules("in")
    assert "map @odst4" in rules("out")
    assert "saddr set" not in rules("out")  # only the peer has moved
    assert "goto" not in rules("out")
    alice.do(side.rewriter.apply, [], [Flow(sock, wire)])
    assert rules("in") == rules("out") == rules("probe") == ""


def flow(number: int, wire_local: str = "192.0.2.1", wire_remote: str = "203.0.113.1") -> Flow:
    def tuple_of(local: str, remote: str) -> FourTuple:
        return FourTuple(SockAddr(ip_address(local), 20000 + number), SockAddr(ip_address(remote), 22))

    return Flow(tuple_of("192.0.2.1", "203.0.113.1"), tuple_of(wire_local, wire_remote))


def flow6(number: int, wire_local: str = "2001:db8::1") -> Flow:
    def tuple_of(local: str) -> FourTuple:
        return FourTuple(SockAddr(ip_address(local), 20000 + number), SockAddr(ip_address("2001:db8:9::9"), 22))

    return Flow(tuple_of("2001:db8::1"), tuple_of(wire_local))


@pytest.fixture
def rewriter(alice: Host) -> Rewriter:
    rewriter = alice.do(Rewriter)
    alice.at_close(rewriter.close)
    alice.do(rewriter.setup)
    return rewriter


def generation() -> int:
    """How many transactions nf_tables has had in this namespace: NFT_MSG_GETGEN, NFTA_GEN_ID."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12) as netlink:
        netlink.send(struct.pack("=IHHIIBBH", 20, (10 << 8) | 16, 1, 0, 0, 0, 0, 0))
        return int.from_bytes(netlink.recv(4096)[24:28], "big")


def test_a_thousand_connections_move_in_one_transaction(alice: Host, rewriter: Rewriter) -> None:
    numbers = range(1000)
    start, first, second = (
        [flow(n, local) for n in numbers] + [flow6(n, local6) for n in numbers]
        for local, local6 in (
            ("192.0.2.1", "2001:db8::1"),
            ("198.51.100.1", "2001:db8:1::1"),
            ("198.51.100.2", "2001:db8:2::2"),
        )
    )
    alice.do(rewriter.apply, start)
    alice.do(rewriter.apply, first, start)
    before = alice.do(generation)
    alice.do(rewriter.apply, second, first)
    assert alice.do(generation) == before + 1
    assert alice.do(rewriter.flows) == frozenset(second)
    alice.do(rewriter.apply, [], second)
    assert alice.do(rewriter.flows) == frozenset()


def test_a_refused_transaction_changes_nothing(alice: Host, rewriter: Rewriter) -> None:
    alice.do(rewriter.apply, [flow(1), flow(2, "198.51.100.1")])
    alice.sh("nft delete element inet redirectctl ask4 '{ 203.0.113.1 . 22 . 192.0.2.1 . 20001 }'")
    alice.sh("nft delete element inet redirectctl hold4 '{ 203.0.113.1 . 22 . 192.0.2.1 . 20002 }'")
    # The kernel has no such element to delete: it refuses all, and the table is made anew from what is wanted.
    alice.do(rewriter.apply, [flow(3)], [flow(1)])
    assert alice.do(rewriter.flows) == {flow(2, "198.51.100.1"), flow(3)}
    assert "20002" in alice.sh("nft list set inet redirectctl hold4")


def test_two_connections_cannot_share_the_wire(alice: Host, rewriter: Rewriter) -> None:
    alice.do(rewriter.apply, [flow(1, "198.51.100.1")])
    rival = Flow(
        FourTuple(SockAddr(ip_address("192.0.2.9"), 20001), flow(1).socket.remote), flow(1, "198.51.100.1").wire
    )
    with pytest.raises(KernelError, match="belongs to another connection"):
        alice.do(rewriter.apply, [flow(2), rival])
    with pytest.raises(KernelError, match="on the wire now"):
        alice.do(rewriter.apply, [flow(1, "198.51.100.7")])
    with pytest.raises(KernelError, match="belongs to another connection"):
        alice.do(rewriter.setup, [flow(1, "198.51.100.1"), rival])
    native = Flow(flow(1, "198.51.100.1").wire, flow(1, "198.51.100.1").wire)
    with pytest.raises(KernelError, match="belongs to another connection"):
        alice.do(rewriter.apply, [native])
    assert alice.do(rewriter.flows) == {flow(1, "198.51.100.1")}
    alice.do(rewriter.apply, [rival], [flow(1, "198.51.100.1")])
    assert alice.do(rewriter.flows) == {rival}


def test_setup_takes_over_from_another_version(alice: Host) -> None:
    alice.sh(
        "nft add table inet redirectctl; nft 'add map inet redirectctl src4 { type ipv4_addr : verdict; }';"
        "nft 'add chain inet redirectctl out { type filter hook input priority 0; }';"
        "nft add rule inet redirectctl out ip saddr 203.0.113.66 drop"
    )
    rewriter = alice.do(Rewriter)
    alice.at_close(rewriter.close)
    flows = [flow(1), flow(2, "198.51.100.1"), flow6(1, "2001:db8:1::1")]
    alice.do(rewriter.setup, flows)
    assert alice.do(rewriter.flows) == frozenset(flows)
    assert "203.0.113.66" not in alice.sh("nft list table inet redirectctl")


def test_a_restart_takes_over_without_a_gap(net: Net, bob: Host, alice: Host) -> None:
    connection = Connection(bob, alice, 4)
    side, other = Side(bob), Side(alice)
    net.leave(bob, 1)
    net.join(bob, 2, 10)
    wire = connection.wire(2, 3)
    side.rewrite((connection.tuple, wire))
    other.rewrite((connection.tuple.mirrored, wire.mirrored))
    bob.sh(
        "nft add table inet t; nft 'add chain inet t c { type filter hook postrouting priority 300; }';"
        f"nft add rule inet t c ip saddr {connection.tuple.local.host} counter"
    )
    alice.do(other.rewriter.close)  # the daemon ends; the table stays
    assert connection.works()
    stop = False

    def keep_sending() -> None:
        while not stop:
            connection.bob.sendall(b"x" * 1000)
            connection.alice.recv(1 << 16)

    thread = threading.Thread(target=keep_sending)
    thread.start()
    successor = bob.do(Rewriter)
    for _ in range(20):
        bob.do(successor.setup, list(side.flows.values()))
    stop = True
    thread.join(20)
    assert not thread.is_alive()
    # With the old source address: none, or the one that was between two hooks when the kernel changed its generation
    # (Rewriter.setup).  A table that was away between the two would let out all that is sent meanwhile.
    assert re.search(r"packets [01] ", bob.sh("nft list chain inet t c"))
    bob.do(successor.close)


def test_a_flushed_ruleset_is_restored_by_the_next_change(alice: Host, rewriter: Rewriter) -> None:
    alice.do(rewriter.apply, [flow(1, "198.51.100.1"), flow(2)])
    assert alice.do(rewriter.intact)
    alice.sh("nft flush ruleset")
    assert not alice.do(rewriter.intact)
    assert alice.do(rewriter.flows) == frozenset()
    alice.do(rewriter.apply, [flow(3)], [flow(2)])
    assert alice.do(rewriter.flows) == {flow(1, "198.51.100.1"), flow(3)}
    assert "--queue-num 7748" in alice.sh("iptables-save -t raw; nft list ruleset")


@pytest.mark.parametrize(
    "command",
    [
        "nft flush ruleset",
        "nft delete table inet redirectctl",
        "nft flush table inet redirectctl",
        "nft flush chain inet redirectctl rst4",
        "nft delete chain inet redirectctl in",
        "nft flush map inet redirectctl src4",
        "nft add rule inet redirectctl out drop",
        "nft flush set inet redirectctl ask6",
    ],
)
def test_whoever_takes_something_out_is_noticed(alice: Host, rewriter: Rewriter, command: str) -> None:
    flows = [flow(1, "198.51.100.1"), flow(2), Flow(SIX, SIX)]
    alice.do(rewriter.apply, flows)
    alice.do(rewriter.watch.heed)
    alice.do(rewriter.apply, [flow(3)], [flow(2)])
    alice.do(rewriter.probe, [flow(3).socket])
    assert not select.select([rewriter.watch], [], [], 0.1)[0]  # changes of our own are not told
    assert alice.do(rewriter.whole)
    alice.sh("nft add table inet other; nft add element inet redirectctl ask4 { 10.0.0.1 . 1 . 10.0.0.2 . 2 }")
    assert alice.do(rewriter.whole)  # what others add is none of our business
    assert select.select([rewriter.watch], [], [], 10)[0]
    alice.do(rewriter.watch.drain)
    assert not select.select([rewriter.watch], [], [], 0)[0]
    alice.sh(command)
    assert select.select([rewriter.watch], [], [], 10)[0]
    assert not alice.do(rewriter.whole)
    alice.do(rewriter.setup, rewriter.wanted())
    assert alice.do(rewriter.whole)
    assert alice.do(rewriter.flows) == {flow(1, "198.51.100.1"), flow(3), Flow(SIX, SIX)}


def test_other_rules_in_iptables_stay(alice: Host, rewriter: Rewriter) -> None:
    alice.sh("iptables -t raw -A PREROUTING -p udp --dport 9 -j DROP")
    alice.do(rewriter.setup)
    rules = alice.sh("iptables-save -t raw").splitlines()
    assert sum("NFQUEUE" in rule for rule in rules) <= len(QUEUE_RULES)  # none twice
    alice.do(rewriter.teardown)
    rules = alice.sh("iptables-save -t raw").splitlines()
    assert [rule for rule in rules if rule.startswith("-A")] == ["-A PREROUTING -p udp -m udp --dport 9 -j DROP"]


def test_nft_reports_errors_and_checks_without_changing(alice: Host) -> None:
    nft = alice.do(Nft)
    alice.at_close(nft.close)
    table = [{"add": {"table": {"family": "inet", "name": "x"}}}]
    alice.do(nft.check, table)
    assert alice.do(nft.run, [{"list": {"ruleset": None}}]) == []
    with pytest.raises(NftError, match="No such file or directory"):
        alice.do(nft.run, [*table, {"add": {"chain": {"family": "inet", "table": "y", "name": "c"}}}])
    assert alice.do(nft.run, [{"list": {"ruleset": None}}]) == []
    alice.do(nft.run, table)
    (found,) = alice.do(nft.run, [{"list": {"ruleset": None}}])
    assert found["table"]["name"] == "x"

"""Old addresses are kept without hiding their new owners, and are let go without a trace."""

from __future__ import annotations

import errno
import socket

import pytest
from two_hosts import Connection, Host, Net, Side, address

pytestmark = pytest.mark.netns
both_families = pytest.mark.parametrize("version", [4, 6])


def moved(net: Net, bob: Host, alice: Host, version: int) -> tuple[Connection, Side, Side]:
    """A connection whose client has gone from net1 to net2."""
    connection = Connection(bob, alice, version)
    sides = Side(bob), Side(alice)
    net.leave(bob, 1)
    net.join(bob, 2, 10)
    wire = connection.wire(2, 3)
    sides[0].rewrite((connection.tuple, wire))
    sides[1].rewrite((connection.tuple.mirrored, wire.mirrored))
    assert connection.works()
    return connection, *sides


def local_routes(host: Host) -> str:
    return host.sh("ip route show table local; ip -6 route show table local")


@both_families
def test_the_system_gets_the_old_address_back(net: Net, bob: Host, alice: Host, version: int) -> None:
    connection, here, _ = moved(net, bob, alice, version)
    old = address(1, 10, version)
    assert str(old) not in local_routes(bob)
    net.join(bob, 1, 10, default=False)
    route = f"local {old} dev net1"
    assert route in local_routes(bob)
    assert connection.works()  # kept and owned at once
    assert Connection(bob, alice, version, bob_net=1).works()  # and usable for what is new
    here.host.run(here.keeper.drop(old))
    assert route in local_routes(bob)
    assert "redirect0" not in bob.sh(f"ip addr show to {old}")
    assert Connection(bob, alice, version, bob_net=1).works()


@both_families
def test_keeping_what_the_system_still_has_and_then_loses(net: Net, bob: Host, alice: Host, version: int) -> None:
    connection = Connection(bob, alice, version)
    sides = Side(bob), Side(alice)
    net.join(bob, 2, 10)
    wire = connection.wire(2, 3)
    old = address(1, 10, version)
    bob.run(sides[0].keeper.keep(old))
    assert f"local {old} dev net1" in local_routes(bob)
    assert connection.works()
    sides[0].rewrite((connection.tuple, wire))
    sides[1].rewrite((connection.tuple.mirrored, wire.mirrored))
    assert connection.works()
    net.leave(bob, 1)
    assert connection.works()


@both_families
def test_no_new_connection_takes_the_old_address(net: Net, bob: Host, alice: Host, version: int) -> None:
    moved(net, bob, alice, version)
    net.leave(bob, 2)
    net.join(bob, 4, 10)  # the kept address is the only other one
    other = bob.do(socket.socket, socket.AF_INET if version == 4 else socket.AF_INET6, socket.SOCK_DGRAM)
    bob.do(other.connect, (str(address(3, 10, version)), 9))
    assert other.getsockname()[0] == str(address(4, 10, version))
    other.close()


def test_the_old_address_is_not_chosen_for_an_interface_without_one(net: Net, bob: Host, alice: Host) -> None:
    """inet_select_addr then takes an address of any interface, in the order in which they were made."""
    moved(net, bob, alice, 4)
    net.leave(bob, 2)
    net.join(bob, 4, 10)
    net.join(bob, 2, 11, default=False)
    bob.sh("ip addr flush dev net4; ip route add default dev net4")
    other = bob.do(socket.socket, socket.AF_INET, socket.SOCK_DGRAM)
    bob.do(other.connect, (str(address(3, 10, 4)), 9))
    assert other.getsockname()[0] == str(address(2, 11, 4))
    other.close()


@both_families
def test_a_peer_address_without_route(net: Net, bob: Host, alice: Host, version: int) -> None:
    """Rewriting works though nothing routes to the socket's peer; others are told at once that there is no route."""
    flag, old, new = ("" if version == 4 else "-6"), address(1, 10, version), address(2, 10, version)
    connection = Connection(bob, alice, version)
    sides = Side(bob), Side(alice)
    gateway = address(3, 1, version)
    alice.sh(f"ip {flag} route add {new} via {gateway}; ip {flag} route del default")
    net.leave(bob, 1)
    net.join(bob, 2, 10)
    family = socket.AF_INET if version == 4 else socket.AF_INET6

    def try_to_connect() -> int:
        with socket.socket(family, socket.SOCK_STREAM) as other:
            other.settimeout(5)
            return other.connect_ex((str(old), 7))

    assert alice.do(try_to_connect) == errno.ENETUNREACH
    wire = connection.wire(2, 3)
    sides[0].rewrite((connection.tuple, wire))
    sides[1].rewrite((connection.tuple.mirrored, wire.mirrored))
    assert connection.works()
    assert alice.do(try_to_connect) in {errno.ENETUNREACH, errno.EHOSTUNREACH}


def test_strict_rp_filter_on_a_host_with_two_uplinks(net: Net, bob: Host, alice: Host) -> None:
    """alice has the default route by net4, and a route to net2 by net3, where rewritten packets "from net1" come in."""
    connection = Connection(bob, alice, 4)
    sides = Side(bob), Side(alice)
    net.join(alice, 4, 10)
    alice.sh(f"ip route add {address(2, 0, 4)}/24 via {address(3, 1, 4)}; sysctl -qw net.ipv4.conf.all.rp_filter=1")
    net.leave(bob, 1)
    net.join(bob, 2, 10)
    wire = connection.wire(2, 3)
    sides[0].rewrite((connection.tuple, wire))
    sides[1].rewrite((connection.tuple.mirrored, wire.mirrored))
    connection.alice.settimeout(1)
    with pytest.raises(TimeoutError):
        connection.works(10)
    index = alice.do(socket.if_nametoindex, "net3")
    old = connection.tuple.local.host
    keeper = sides[1].keeper
    assert len(alice.run(keeper.rp_filter_conflicts({old: index}))) == 1
    alice.run(keeper.arrive(old, index))
    assert alice.run(keeper.rp_filter_conflicts({old: index})) == []
    connection.alice.settimeout(20)
    connection.alice.recv(10)  # what was dropped comes again
    assert connection.works()
    src_valid_mark = "cat /proc/sys/net/ipv4/conf/net3/src_valid_mark"
    assert alice.sh(src_valid_mark) == "1\n"
    alice.run(keeper.reconcile(set(), {old}, {}))
    assert alice.sh(src_valid_mark) == "0\n"


def test_src_valid_mark_of_the_administrator_stays(net: Net, alice: Host) -> None:
    alice.sh("sysctl -qw net.ipv4.conf.all.rp_filter=1 net.ipv4.conf.net3.src_valid_mark=1")
    side = Side(alice)
    index = alice.do(socket.if_nametoindex, "net3")
    alice.run(side.keeper.arrive(address(1, 10, 4), index))
    alice.run(side.keeper.drop_arrival(address(1, 10, 4), index))
    assert alice.sh("cat /proc/sys/net/ipv4/conf/net3/src_valid_mark") == "1\n"


def test_reconcile_restores_what_others_removed(net: Net, alice: Host) -> None:
    side = Side(alice)
    keep, away = {address(1, 10, 4), address(1, 10, 6)}, {address(2, 9, 4), address(2, 9, 6)}
    alice.run(side.keeper.reconcile(keep, away))
    before = alice.run(side.keeper.leftovers())
    assert len(before) == 13  # the device, three rules and a default route a family, four routes
    for damage in (
        "ip link del redirect0",
        "ip rule del priority 7747; ip -6 rule del priority 40000",
        "ip route flush table 7747; ip -6 route flush table 7748",
        f"ip addr flush dev redirect0; ip route add {address(2, 8, 4)} dev redirect0 table 7748",
    ):
        alice.sh(damage)
        assert alice.run(side.keeper.leftovers()) != before or "addr flush" in damage
        alice.run(side.keeper.reconcile(keep, away))
        assert sorted(alice.run(side.keeper.leftovers())) == sorted(before)
        assert alice.run(side.keeper.kept()) == keep
        assert f"inet {address(1, 10, 4)}/32" in alice.sh("ip addr show redirect0")


def test_redirect0_has_nothing_of_its_own(alice: Host) -> None:
    Side(alice)
    assert "inet6" not in alice.sh("ip addr show redirect0")
    assert "MULTICAST" not in alice.sh("ip link show redirect0")


@both_families
def test_nothing_is_left(net: Net, bob: Host, alice: Host, version: int) -> None:
    everything = (
        "nft list ruleset | grep -v '^table ip6* raw' | grep -A1 redirect; iptables-save; ip6tables-save; ip rule;"
        "ip -6 rule; ip route show table all | grep -e 774 -e redirect0; ip -br link; sysctl -a -r 'src_valid_mark'"
    )
    lines = [line for line in alice.sh(everything, check=False).splitlines() if line[:1] not in "#*:C"]
    connection, here, there = moved(net, bob, alice, version)
    assert alice.run(there.keeper.leftovers())
    connection.close()
    here.teardown()
    there.teardown()
    there.teardown()
    after = [line for line in alice.sh(everything, check=False).splitlines() if line[:1] not in "#*:C"]
    assert after == lines
    assert alice.run(there.keeper.leftovers()) == []
    assert alice.do(there.rewriter.flows) == frozenset()
    assert "redirectctl" not in bob.sh("nft list tables")

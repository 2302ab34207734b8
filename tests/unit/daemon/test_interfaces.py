"""What is told of the interface that an address is on."""

from __future__ import annotations

import pytest

from redirectctl.daemon.network import interfaces_of
from redirectctl.flows.network import Interface
from redirectctl.kernel.constants import TUN_DEVICE
from redirectctl.kernel.routing.monitor import Address, Link, NetState
from redirectctl.wire.addr import parse_ip


def link(index: int, name: str, kind: str = "", *, master: int = 0, up: bool = True) -> Link:
    return Link(index, name, up=up, running=up, loopback=False, kind=kind, master=master)


def state(*links: Link) -> NetState:
    """Link number N has address 192.0.2.N."""
    addresses = frozenset(Address(parse_ip(f"192.0.2.{one.index}"), 24, one.index) for one in links)
    return NetState({one.index: one for one in links}, addresses)


@pytest.mark.parametrize(
    ("kind", "vpn"),
    [
        ("wireguard", True),
        ("tun", True),
        ("xfrm", True),
        ("vti6", True),
        ("", False),
        ("ppp", False),
        ("vlan", False),
        ("bridge", False),
        ("veth", False),
    ],
)
def test_vpns_are_known_by_their_kind(kind: str, vpn: bool) -> None:
    (found,) = interfaces_of(state(link(3, "some0", kind))).values()
    assert found == Interface("some0", 3, kind, vpn=vpn)
    assert found.confines == ("some0" if vpn else "")


def test_a_vrf_is_the_one_that_the_interface_belongs_to() -> None:
    links = link(2, "eth0", master=9), link(3, "eth1", master=8), link(8, "br0", "bridge"), link(9, "red", "vrf")
    found = {one.name: one.confines for one in interfaces_of(state(*links)).values()}
    assert found == {"eth0": "red", "eth1": "", "br0": "", "red": "red"}


def test_only_usable_addresses_are_told_of_and_ours_are_none() -> None:
    found = interfaces_of(state(link(2, "eth0"), link(3, "wg0", "wireguard", up=False), link(4, TUN_DEVICE, "tun")))
    assert list(found) == [parse_ip("192.0.2.2")]


def test_an_address_on_two_interfaces_is_of_the_first() -> None:
    twice = frozenset(Address(parse_ip("192.0.2.2"), 24, index) for index in (2, 3))
    found = interfaces_of(NetState({2: link(2, "eth0"), 3: link(3, "eth1")}, twice))
    assert [one.name for one in found.values()] == ["eth0"]


def test_an_address_that_came_back_is_where_it_is_now_and_not_where_we_kept_it() -> None:
    links = {2: link(2, TUN_DEVICE, "tun"), 3: link(3, "eth0")}
    twice = frozenset(Address(parse_ip("192.0.2.2"), length, index) for length, index in ((32, 2), (24, 3)))
    assert [one.name for one in interfaces_of(NetState(links, twice)).values()] == ["eth0"]

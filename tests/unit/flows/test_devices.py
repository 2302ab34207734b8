"""Which interfaces a connection may use."""

from __future__ import annotations

import pytest

from redirectctl.flows.connection import Connection
from redirectctl.flows.devices import confined_to, may_use, named
from redirectctl.flows.network import Interface, Network
from redirectctl.flows.policy import Policy
from redirectctl.wire.addr import FourTuple, SockAddr, parse_ip

HOME, VPN, RED, BLUE = map(parse_ip, ("192.0.2.1", "10.8.0.2", "10.1.0.1", "10.2.0.1"))
NETWORK = Network(
    frozenset({HOME, VPN, RED, BLUE}),
    interfaces={
        HOME: Interface("wlan0", 2),
        VPN: Interface("wg0", 3, "wireguard", vpn=True),
        RED: Interface("eth1", 4, vrf="red"),
        BLUE: Interface("eth2", 5, vrf="blue"),
    },
)


def connection(device: str) -> Connection:
    socket = FourTuple(SockAddr(VPN, 40000), SockAddr(parse_ip("198.51.100.1"), 22))
    return Connection(bytes(8), socket, socket, 0.0, device=device)


def test_what_a_connection_does_not_leave() -> None:
    assert [confined_to(NETWORK, a) for a in (HOME, VPN, RED, BLUE)] == ["", "wg0", "red", "blue"]
    assert confined_to(Network(), VPN) == ""


@pytest.mark.parametrize(
    ("device", "usable"),
    [("", {HOME, VPN, RED, BLUE}), ("wg0", {VPN}), ("wlan0", {HOME}), ("red", {RED}), ("x", set())],
)
def test_what_it_may_use(device: str, usable: set[object]) -> None:
    here = connection(device)
    assert {a for a in NETWORK.usable if may_use(Policy(), NETWORK, here, a)} == usable
    assert all(may_use(Policy(leave_vpn=True), NETWORK, here, a) for a in NETWORK.usable)


def test_an_address_of_no_known_interface_is_not_the_one_it_stays_on() -> None:
    assert not may_use(Policy(), Network(), connection("wg0"), VPN)
    assert may_use(Policy(), Network(), connection(""), VPN)


@pytest.mark.parametrize(
    ("name", "patterns", "found"),
    [
        ("wwan0", ["wwan*"], True),
        ("wwan", ["wwan*"], True),
        ("wlan0", ["wwan*"], False),
        ("docker0", ["virbr*", "docker*"], True),
        ("br-1f", ["br-*f"], True),
        ("eth0", ["eth.", "eth[0]", "eth?"], False),
        ("eth0.7", ["eth0.*"], True),
        ("eth0", [], False),
    ],
)
def test_patterns(name: str, patterns: list[str], found: bool) -> None:
    assert named(name, patterns) is found

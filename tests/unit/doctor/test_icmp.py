"""ICMP errors are only taken for ours if they quote the datagram that was sent."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from redirectctl.doctor.icmp import report
from redirectctl.wire.addr import SockAddr

scapy = pytest.importorskip("scapy.all")

TARGETS = {4: SockAddr(ip_address("198.18.1.10"), 7747), 6: SockAddr(ip_address("2001:db8::a"), 7747)}


def error(version: int, code: int, port: int = 7747, protocol: str = "UDP", to: str | None = None) -> bytes:
    target = to or str(TARGETS[version].host)
    layer = getattr(scapy, protocol)(sport=7747, dport=port)
    if version == 4:
        quoted = scapy.IP(src="192.0.2.10", dst=target) / layer
        return bytes(scapy.IP(src="192.0.2.1", dst="192.0.2.10") / scapy.ICMP(type=3, code=code) / quoted)
    quoted = scapy.IPv6(src="2001:db8::1", dst=target) / layer
    whole = scapy.IPv6(src="2001:db8::f", dst="2001:db8::1") / scapy.ICMPv6DestUnreach(code=code) / quoted
    return bytes(whole)[40:]


@pytest.mark.parametrize(
    ("version", "code", "said"),
    [
        (4, 3, "port unreachable"),
        (4, 1, "host unreachable"),
        (4, 13, "administratively prohibited"),
        (4, 77, "unreachable, code 77"),
        (6, 4, "port unreachable"),
        (6, 1, "administratively prohibited"),
        (6, 0, "no route"),
    ],
)
def test_about_our_datagram(version: int, code: int, said: str):
    assert report(error(version, code), TARGETS[version]) == said


@pytest.mark.parametrize("version", [4, 6])
def test_about_something_else(version: int):
    other = {4: "198.18.1.11", 6: "2001:db8::b"}[version]
    assert report(error(version, 1, port=53), TARGETS[version]) is None
    assert report(error(version, 1, protocol="TCP"), TARGETS[version]) is None
    assert report(error(version, 1, to=other), TARGETS[version]) is None


@pytest.mark.parametrize("version", [4, 6])
def test_cut_short(version: int):
    whole = error(version, 1)
    needed = 28 + 20 + 4 if version == 4 else 8 + 40 + 4
    for length in range(needed):
        assert report(whole[:length], TARGETS[version]) is None
    assert report(whole[:needed], TARGETS[version]) is not None

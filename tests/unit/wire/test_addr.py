"""Addresses as people and logs write them."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from redirectctl.wire.addr import FourTuple, SockAddr


@pytest.mark.parametrize(
    ("host", "text"), [("192.0.2.1", "192.0.2.1:22"), ("2001:db8::1", "[2001:db8::1]:22"), ("fe80::1", "[fe80::1]:22")]
)
def test_an_address_with_its_port(host: str, text: str) -> None:
    assert str(SockAddr(ip_address(host), 22)) == text
    assert SockAddr.parse(text) == SockAddr(ip_address(host), 22)


@pytest.mark.parametrize(
    "text", ["", "192.0.2.1", ":22", "192.0.2.1:", "192.0.2.1:x", "192.0.2.1:-1", "192.0.2.1:65536", "192.0.2.1:\u0662",
             "2001:db8::1", "2001:db8::1:22", "[2001:db8::1]", "[2001:db8::1:22", "2001:db8::1]:22", "[192.0.2.1]:22"]
)  # fmt: skip
def test_what_is_no_address_with_a_port(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - whatever it says
        SockAddr.parse(text)


def test_the_last_port() -> None:
    assert SockAddr.parse("192.0.2.1:65535").port == 65535


def test_a_connection_and_its_other_end() -> None:
    here, there = SockAddr.parse("192.0.2.1:22"), SockAddr.parse("198.51.100.2:40000")
    assert FourTuple(here, there).mirrored == FourTuple(there, here)

"""Which of a host's addresses its name leads to."""

from __future__ import annotations

from ipaddress import ip_address

from redirectctl.names.update import MAX_PUBLISHED, publishable

GLOBAL = ["192.0.2.1", "8.8.8.8", "2001:db8::1", "2a00::1"]
PRIVATE = ["10.1.2.3", "172.31.0.1", "192.168.0.1", "100.64.0.1", "fd00::1"]
NEVER = ["127.0.0.1", "169.254.0.1", "224.0.0.1", "0.0.0.0", "::1", "fe80::1", "ff02::1", "::"]


def test_global_ones_only() -> None:
    everything = [ip_address(a) for a in GLOBAL + PRIVATE + NEVER]
    assert publishable(everything, private=False) == set(map(ip_address, GLOBAL))
    assert publishable(everything, private=True) == set(map(ip_address, GLOBAL + PRIVATE))


def test_not_too_many() -> None:
    many = [ip_address(f"192.0.2.{n}") for n in range(1, 100)] + [ip_address("2001:db8::1")]
    chosen = publishable(many, private=False)
    assert len(chosen) == MAX_PUBLISHED + 1
    assert chosen == publishable(many[::-1], private=False), "always the same"

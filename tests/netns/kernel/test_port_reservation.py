"""net.ipv4.ip_local_reserved_ports of a real kernel."""

from __future__ import annotations

import pytest
from two_hosts import Host

from redirectctl.kernel.sockets.reserved_ports import ReservedPorts

pytestmark = pytest.mark.netns
SYSCTL = "/proc/sys/net/ipv4/ip_local_reserved_ports"


def test_a_list_longer_than_a_page(alice: Host) -> None:
    alice.sh(f"echo 5,100-102 > {SYSCTL}")
    many = set(range(1024, 65000, 2))

    def reserve() -> ReservedPorts:
        reserved = ReservedPorts()
        reserved.reserve(many)
        return reserved

    reserved = alice.do(reserve)
    assert alice.do(reserved.current) == many | {5, 100, 101, 102}
    assert len(alice.sh(f"cat {SYSCTL}")) > 4096
    alice.do(reserved.release, many)
    assert alice.sh(f"cat {SYSCTL}") == "5,100-102\n"


def test_the_last_port_leaves_an_empty_list(alice: Host) -> None:
    reserved = alice.do(ReservedPorts)
    alice.do(reserved.reserve, [40000])
    assert alice.sh(f"cat {SYSCTL}") == "40000\n"
    alice.do(reserved.reconcile, [])
    assert alice.sh(f"cat {SYSCTL}") == "\n"

"""The network as this host has it now."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from redirectctl.wire import message as messages
from redirectctl.wire.addr import IPAddress


class Interface(NamedTuple):
    """An interface of this host that has a usable address."""

    name: str
    ifindex: int = 0
    kind: str = ""  # IFLA_INFO_KIND: "wireguard", "tun", "vlan"; of hardware empty
    vpn: bool = False  # what is sent there is wrapped up before it leaves the host
    vrf: str = ""  # that it belongs to

    @property
    def confines(self) -> str:
        """The VRF or VPN interface that connections which began here must not leave; empty: none."""
        return self.vrf or (self.name if self.vpn else "")


class Network(NamedTuple):
    """Where this host is now."""

    usable: frozenset[IPAddress] = frozenset()  # not tentative, link up
    sources: Mapping[IPAddress, tuple[IPAddress, ...]] = {}  # remote address: ours from which it is routed, best first
    own: frozenset[IPAddress] = frozenset()  # all of ours, on whatever interface, usable or not
    interfaces: Mapping[IPAddress, Interface] = {}  # of the usable ones

    def is_ours(self, address: IPAddress) -> bool:
        """Whether this host itself receives what is sent there.  A peer may name it, but is not reached there."""
        return address in self.usable or address in self.own

    @property
    def for_others(self) -> tuple[IPAddress, ...]:
        """Our addresses that others can reach, of both families, as many as a message has room for."""
        known = [a for a in self.usable if not (a.is_loopback or a.is_link_local or a.is_multicast)]
        half = messages.MAX_ADDRESSES // 2
        return tuple(a for version in (4, 6) for a in sorted(b for b in known if b.version == version)[:half])

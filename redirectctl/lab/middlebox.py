"""What stands between hosts on real networks: a home router that translates addresses.

::

                 router
                   |
                br-home
                   |            public address
                  eth0
                gateway         masquerades, as a rule with random ports; lets in replies only, and what is forwarded
                 inside         10.0.N.1, fd00:N::1
                   |
                 client         10.0.N.10, fd00:N::a

Firewalls, small MTU and the like are the router's: see `topology.Network`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from redirectctl.lab.topology import Host, Lab, Network, Prefixes, bridge_lines, router_sysctls

GATEWAY = 200  # its number in the public network
BRIDGE = "inside"
_FLUSH = "from pyroute2 import NFCTSocket\nwith NFCTSocket() as socket: socket.flush()"


class Gateway(Host):
    """A NAT in front of ``private``, a network whose hosts have private addresses; both families are translated."""

    def __init__(self, lab: Lab, public: Network, *, udp_timeout: int | None = None, keeps_ports: bool = False) -> None:
        """``udp_timeout``: seconds after which a silent UDP mapping is forgotten; None: the kernel's (30 and 120).

        ``keeps_ports``: as home routers do where they can, which lets two hosts behind two of them reach each other.
        Without, each destination sees another port (RFC 4787, section 4.1: address and port dependent).
        """
        serial = len(lab.hosts)
        self._keeps_ports = keeps_ports
        super().__init__(lab, f"gateway{serial}")
        self._forwards: dict[tuple[str, int], int] = {}
        self._translates = True
        lab.add(self)
        prefixes = Prefixes(f"10.0.{serial}.0/24", f"fd00:{serial}::/64")
        self.private = Network(lab, f"{public.name} behind NAT", prefixes, owner=self, bridge=BRIDGE)
        self.sysctl(router_sysctls())
        self.ip(*bridge_lines(self.private))
        self.join(public, GATEWAY)
        self._filter()
        if udp_timeout is not None:
            names = ("udp_timeout", "udp_timeout_stream")
            self.sysctl({f"net.netfilter.nf_conntrack_{name}": udp_timeout for name in names})

    def forward(self, ports: Mapping[tuple[str, int], int]) -> None:
        """Let these in from outside: ``{("udp", 7747): NUMBER}``, of the host inside with that number."""
        self._forwards |= ports
        self._filter()

    def rebind(self) -> None:
        """Dial again: another public address, and all mappings are forgotten; inside nothing changes."""
        number = int(self.links[0].addresses.v4) - int(self.links[0].network.v4.network_address)
        self.readdress(number + 1)
        self.forget()

    def forget(self) -> None:
        """Forget all mappings."""
        self.run([sys.executable, "-c", _FLUSH])

    @contextmanager
    def untranslated(self) -> Iterator[None]:
        """What begins meanwhile leaves with its private source, and later too: rules are asked for new entries only."""
        self._translates = False
        self._filter()
        try:
            yield
        finally:
            self._translates = True
            self._filter()

    def _filter(self) -> None:
        (link,) = self.links
        forwards = []
        for (protocol, port), number in self._forwards.items():
            for version, family in ((4, "ip"), (6, "ip6")):
                to = self.private.addresses(number).of(version)
                at = f'iifname "{link.interface}" meta nfproto ipv{version} {protocol} dport {port}'
                forwards.append(f"{at} dnat {family} to {to}")
        rules = "\n".join(forwards)
        masquerade = "masquerade" if self._keeps_ports else "masquerade random"
        translation = f'oifname "{link.interface}" {masquerade}' if self._translates else ""
        # What is dropped leaves no trace in conntrack: else the port would count as taken when a host inside wants it.
        strangers = f'iifname "{link.interface}" ct state new meta l4proto udp drop' if self._keeps_ports else ""
        script = f"""
            table inet gateway
            delete table inet gateway
            table inet gateway {{
                chain prerouting {{
                    type nat hook prerouting priority dstnat
                    {rules}
                }}
                chain postrouting {{
                    type nat hook postrouting priority srcnat
                    {translation}
                }}
                chain input {{
                    type filter hook input priority 0
                    {strangers}
                }}
                chain forward {{
                    type filter hook forward priority 0; policy drop
                    ct state invalid counter drop
                    ct state established,related accept
                    ct status dnat accept
                    iifname "{BRIDGE}" accept
                }}
            }}
        """
        self.run(["nft", "-f", "-"], stdin=script)

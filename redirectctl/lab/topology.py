"""A client and a server that move between networks, and a stranger that takes their old addresses.

::

                                 router
         .1 / ::1   .1 / ::1   .1 / ::1   .1 / ::1   .1 / ::1
          br-home    br-cafe   br-office    br-dc1     br-dc2        bridges in the router's namespace
             |          |                     |
             |          |                     |                      veth pairs; a host has one for each network
           eth0       eth0                  eth0                     that it is on, made and deleted as it moves
          client    stranger               server

    home    192.0.2.0/24     2001:db8:1::/64
    cafe    198.51.100.0/24  2001:db8:2::/64
    office  203.0.113.0/24   2001:db8:3::/64
    dc1     198.18.1.0/24    2001:db8:4::/64
    dc2     198.18.2.0/24    2001:db8:5::/64

Several hosts may be on one network.  A host that leaves a network loses the interface, and so the address, for good.
The stranger has no sockets: its kernel answers TCP for an address that it has taken with RST.
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network
from typing import NamedTuple

from redirectctl.kernel.constants import TUN_DEVICE
from redirectctl.lab.namespaces import LabError, Namespace, Sandbox, call, ip_batch
from redirectctl.wire.addr import IPAddress

PREFIXES = {
    "home": ("192.0.2.0/24", "2001:db8:1::/64"),
    "cafe": ("198.51.100.0/24", "2001:db8:2::/64"),
    "office": ("203.0.113.0/24", "2001:db8:3::/64"),
    "dc1": ("198.18.1.0/24", "2001:db8:4::/64"),
    "dc2": ("198.18.2.0/24", "2001:db8:5::/64"),
}
CLIENT_NETWORKS = ("home", "cafe", "office")
SERVER_NETWORKS = ("dc1", "dc2")
FIRST_HOST = 10  # hosts are numbered from here; the router is number 1
SHRUNK_TABLE = 100  # and above: routing tables of networks with a small MTU
FIRST_METRIC = 1000  # of default routes; each link that joins later is preferred


class Addresses(NamedTuple):
    """What a host is given on a network: one address of each family."""

    v4: IPAddress
    v6: IPAddress

    def of(self, version: int) -> IPAddress:
        """The address of IP version 4 or 6."""
        return self.v4 if version == 4 else self.v6

    def __str__(self) -> str:
        return f"{self.v4} and {self.v6}"


class Prefixes(NamedTuple):
    """Of a network."""

    v4: str
    v6: str


class Network:
    """One network: a bridge in the router, or in a gateway (see `middlebox`)."""

    def __init__(
        self,
        lab: Lab,
        name: str,
        prefixes: Prefixes | None = None,
        *,
        owner: Namespace | None = None,
        bridge: str | None = None,
    ) -> None:
        """What the router does (cut, lose, firewall ...) it does to networks of its own only."""
        self.lab = lab
        self.name = name
        self.owner = owner or lab.router
        self.bridge = bridge or f"br-{name}"
        v4, v6 = prefixes or PREFIXES[name]
        self.v4, self.v6 = IPv4Network(v4), IPv6Network(v6)
        self.versions: tuple[int, ...] = (4, 6)
        self.is_cut = False
        self.loss = 0
        self.is_stateful = False
        self.strips_options = False
        self.mtu: int | None = None

    def addresses(self, number: int) -> Addresses:
        """The addresses of host number 2..254 of this network (1 is the router)."""
        return Addresses(self.v4[number], self.v6[number])

    def cut(self) -> None:
        """Let the router drop everything from and to this network, silently."""
        self.is_cut = True
        self.lab.filter()

    def restore(self) -> None:
        """Undo cut() and lose(), not what the network is like."""
        self.is_cut = False
        self.loss = 0
        self.lab.filter()

    def lose(self, percent: int) -> None:
        """Let the router drop this percentage of the packets from, and of those to, this network."""
        self.loss = percent
        self.lab.filter()

    def only(self, version: int) -> None:
        """Give hosts that join from now on addresses of this IP version only."""
        self.versions = (version,)

    def firewall(self) -> None:
        """Let the router drop TCP that it has not seen begin, from and to this network (nf_conntrack_tcp_loose=0)."""
        self.is_stateful = True
        strict = {"net.netfilter.nf_conntrack_tcp_loose": 0}
        with suppress(LabError):  # where the first rule loads the module that has the setting
            # Before the first rule, with which conntrack begins to look, and would take up what is under way.
            self.lab.router.sysctl(strict)
        self.lab.filter()
        self.lab.router.sysctl(strict)

    def strip_options(self) -> None:
        """Let the router overwrite TCP options of kind 253 by NOPs, from and to this network."""
        self.strips_options = True
        self.lab.filter()

    def shrink(self, mtu: int) -> None:
        """Let the router forward at most so many bytes from and to this network, and say nothing about it."""
        self.mtu = mtu
        table = SHRUNK_TABLE + list(self.lab.networks).index(self.name)
        lines = [f"link set {self.bridge} mtu {mtu}"]
        for version, family in ((4, "-4"), (6, "-6")):
            lines.append(f"{family} rule add iif {self.bridge} lookup {table} priority {table}")
            for other in self.lab.networks.values():
                prefix = other.v4 if version == 4 else other.v6
                if other is not self:
                    lines.append(f"{family} route add {prefix} dev {other.bridge} table {table} mtu lock {mtu}")
        for line in lines:
            self.lab.router.run(["ip", *line.split()])  # a batch takes no family
        self.lab.filter()


class Stop(NamedTuple):
    """One stop of a journey: a network and the host's number there."""

    network: Network
    number: int


@dataclass
class Link:
    """A host's interface on a network."""

    network: Network
    interface: str
    port: str  # its other end, in the router
    metric: int
    addresses: Addresses
    also: list[Addresses] = field(default_factory=list)  # taken besides
    usable_at: float = 0.0  # time.monotonic() just before the addresses and the route were set


class Host(Namespace):
    """A host that can be on several networks."""

    def __init__(self, lab: Lab, name: str) -> None:
        super().__init__(lab.sandbox, name)
        self.lab = lab
        self.links: list[Link] = []  # the newest, which the default route prefers, is last

    def join(self, network: Network, number: int) -> Link:
        """Plug into a network and take addresses there; the newest link has the preferred default route."""
        used = {link.interface for link in self.links}
        interface = next(name for name in (f"eth{n}" for n in itertools.count()) if name not in used)
        port = self.lab.next_port()
        ip_batch(
            [
                f"link add name {port} type veth peer name {interface} netns {self.full_name}",
                f"link set {port} addrgenmode none master {network.bridge} up",
            ],
            network.owner.full_name,
        )
        link = Link(network, interface, port, self._next_metric(), network.addresses(number))
        self.links.append(link)
        self.ip(f"link set {interface} up")
        link.usable_at = time.monotonic()
        self.ip(*self._configure(link, link.addresses), *self._routes(link))
        self.lab.forget_neighbours(network, link.addresses)
        return link

    def leave(self, network: Network | None = None) -> list[Addresses]:
        """Unplug from a network, or from all: the interfaces are deleted.  Returns the addresses that are gone."""
        leaving = [link for link in self.links if network in (None, link.network)]
        if leaving:
            self.ip(*(f"link delete {link.interface}" for link in leaving))
            self.links = [link for link in self.links if link not in leaving]
        return [addresses for link in leaving for addresses in (link.addresses, *link.also)]

    def move(self, network: Network, number: int, *, make_before_break: bool = False) -> Link:
        """Leave all networks and join another; with make_before_break, join before leaving the old ones."""
        if not make_before_break:
            self.leave()
            return self.join(network, number)
        old = list(self.links)
        link = self.join(network, number)
        if old:
            self.ip(*(f"link delete {each.interface}" for each in old))
            self.links = [link]
        return link

    def readdress(self, number: int) -> Link:
        """Change the addresses of the only link, as a DHCP server or a renumbering does; the interface stays."""
        (link,) = self.links
        old, link.addresses = link.addresses, link.network.addresses(number)
        gone = [each for each in _with_length(old) if each[0].version in link.network.versions]
        self.ip(*(f"address delete {address}/{length} dev {link.interface}" for address, length in gone))
        link.usable_at = time.monotonic()
        self.ip(*self._configure(link, link.addresses), *self._routes(link))
        self.lab.forget_neighbours(link.network, old, link.addresses)
        return link

    def take(self, addresses: Addresses, network: Network) -> None:
        """Take addresses that another host had on a network, besides what this host has."""
        link = next((each for each in self.links if each.network is network), None)
        if link is None:
            self.join(network, int(addresses.v4) - int(network.v4.network_address))
            return
        self.ip(*self._configure(link, addresses))
        link.also.append(addresses)
        self.lab.forget_neighbours(network, addresses)

    def address(self, version: int = 4) -> IPAddress:
        """The address of the newest link.  Raises LabError when the host is on no network."""
        if not self.links:
            raise LabError(f"{self.name} is on no network")
        return self.links[-1].addresses.of(version)

    def assigned(self) -> dict[str, list[str]]:
        """Every interface's addresses as the kernel has them, loopback and link-local ones left out."""
        interfaces = json.loads(call(["ip", "-n", self.full_name, "-j", "address", "show"]))
        return {
            each["ifname"]: [info["local"] for info in each["addr_info"] if info["scope"] == "global"]
            for each in interfaces
            if each["ifname"] != "lo"
        }

    def has_address(self, address: IPAddress) -> bool:
        """Whether a network interface has this address (redirectctl's own device does not count)."""
        return any(str(address) in found for name, found in self.assigned().items() if name != TUN_DEVICE)

    def _next_metric(self) -> int:
        return min((link.metric for link in self.links), default=FIRST_METRIC) - 1

    def _configure(self, link: Link, addresses: Addresses) -> list[str]:
        flags = "" if self.lab.dad else " nodad"
        (v4, length4), (v6, length6) = _with_length(addresses)
        lines = {
            4: f"address add {v4}/{length4} dev {link.interface}",
            6: f"address add {v6}/{length6} dev {link.interface}{flags}",
        }
        return [lines[version] for version in link.network.versions]

    def _routes(self, link: Link) -> list[str]:
        gateway = link.network.addresses(1)
        return [
            f"route replace default via {gateway.of(version)} dev {link.interface} metric {link.metric}"
            for version in link.network.versions
        ]


class Lab:
    """The picture above, with the client at home and the server in dc1, both as host number 10.

    A context manager.  dad: let IPv6 duplicate address detection take its time, as on real hosts (1 to 2 s).
    rp_filter: reverse path filtering on client and server (0 off, 1 strict, 2 loose).
    """

    hosts: list[Host]

    def __init__(self, *, dad: bool = False, rp_filter: int = 0) -> None:
        self.sandbox = Sandbox()
        try:
            self._build(dad, rp_filter)
        except BaseException:
            self.sandbox.close()
            raise

    def _build(self, dad: bool, rp_filter: int) -> None:
        self.dad = dad
        self._ports = itertools.count(1)
        self.client, self.server, self.stranger = (Host(self, name) for name in ("client", "server", "stranger"))
        self.hosts = [self.client, self.server, self.stranger]
        self.router = Namespace(self.sandbox, "router")
        self.sandbox.create(*self.hosts, self.router)
        for host in self.hosts:
            host.sysctl(_host_sysctls(dad, rp_filter))
        self.router.sysctl(router_sysctls())
        self.networks = {name: Network(self, name) for name in PREFIXES}
        self.router.ip(*(line for network in self.networks.values() for line in bridge_lines(network)))
        self.filter()
        self.client.join(self.home, FIRST_HOST)
        self.server.join(self.dc1, FIRST_HOST)

    @property
    def home(self) -> Network:
        """The network that the client starts on."""
        return self.networks["home"]

    @property
    def cafe(self) -> Network:
        """Another network for the client."""
        return self.networks["cafe"]

    @property
    def office(self) -> Network:
        """A third network for the client."""
        return self.networks["office"]

    @property
    def dc1(self) -> Network:
        """The network that the server starts on."""
        return self.networks["dc1"]

    @property
    def dc2(self) -> Network:
        """Another network for the server."""
        return self.networks["dc2"]

    def journey(self, *names: str) -> Iterator[Stop]:
        """An endless list of stops in these networks in turn, no address twice: for client or server."""
        for step in range(1, 240):
            yield Stop(self.networks[names[(step - 1) % len(names)]], FIRST_HOST + step)

    def client_journey(self) -> Iterator[Stop]:
        """Stops for the client, the first not at home."""
        return self.journey(*CLIENT_NETWORKS[1:], CLIENT_NETWORKS[0])

    def server_journey(self) -> Iterator[Stop]:
        """Stops for the server, the first not in dc1."""
        return self.journey(*SERVER_NETWORKS[1:], SERVER_NETWORKS[0])

    def add(self, host: Host) -> None:
        """Make the namespace of one more host, on no network yet."""
        self.sandbox.create(host)
        self.hosts.append(host)

    def filter(self) -> None:
        """Make the router do what the networks ask for, in one transaction."""
        rules = []
        silent = any(network.mtu is not None for network in self.networks.values())
        for network in self.networks.values():
            for side in ("iifname", "oifname"):
                at = f'{side} "{network.bridge}"'
                if network.strips_options:
                    rules.append(f"{at} reset tcp option 253")
                if network.is_stateful:
                    rules.append(f"{at} ct state invalid counter drop")
                    rules.append(f"{at} ct state new tcp flags & (fin | syn | rst | ack) != syn counter drop")
                if network.is_cut:
                    rules.append(f'{side} "{network.bridge}" counter drop')
                elif network.loss:
                    rules.append(f'{side} "{network.bridge}" numgen random mod 100 < {network.loss} counter drop')
        chain = "\n".join(["type filter hook forward priority 0", *rules])
        # What the router would say about packets that are too large; what it forwards of the kind goes on its way.
        too_large = "icmp type destination-unreachable counter drop\nicmpv6 type packet-too-big counter drop"
        output = "\n".join(["type filter hook output priority 0", too_large if silent else ""])
        chains = f"chain forward {{\n{chain}\n}}\nchain output {{\n{output}\n}}\n"
        script = f"table inet lab\ndelete table inet lab\ntable inet lab {{\n{chains}}}\n"
        call(self.router.inside(["nft", "-f", "-"]), stdin=script)

    def forget_neighbours(self, network: Network, *addresses: Addresses) -> None:
        """Make everyone on a network ask anew who has these addresses, as a gratuitous ARP would."""
        each = [address for pair in addresses for address in pair]
        network.owner.ip(*(f"neighbour flush to {address} dev {network.bridge}" for address in each))
        for host in self.hosts:
            for link in host.links:
                if link.network is network:
                    host.ip(*(f"neighbour flush to {address} dev {link.interface}" for address in each))

    def next_port(self) -> str:
        """A fresh name for the router's end of a link."""
        return f"port{next(self._ports)}"

    def report(self) -> str:
        """Addresses, routes, rules, sockets and nftables of every namespace, for whoever looks into a failure."""
        commands = (
            "ip -brief address",
            "ip rule",
            "ip -6 rule",
            "ip route show table all",
            "ip neighbour",
            "ss -tuinoe",
            "nft list ruleset",
        )
        parts = []
        for namespace in (self.router, *self.hosts):
            for command in commands:
                done = namespace.run(command.split(), check=False)
                lines = [line for line in done.stdout.splitlines() if " table local " not in line]
                parts.append("\n".join([f"--- {namespace.name}: {command}", *lines, done.stderr]))
        return "".join(parts)

    def close(self) -> None:
        """Remove everything; may be called twice."""
        self.sandbox.close()

    def __enter__(self) -> Lab:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _with_length(addresses: Addresses) -> tuple[tuple[IPAddress, int], tuple[IPAddress, int]]:
    return (addresses.v4, 24), (addresses.v6, 64)


def _host_sysctls(dad: bool, rp_filter: int) -> dict[str, object]:
    values: dict[str, object] = {"net.ipv4.conf.all.promote_secondaries": 1}
    for scope in ("all", "default"):
        values[f"net.ipv4.conf.{scope}.rp_filter"] = rp_filter
        values[f"net.ipv6.conf.{scope}.disable_ipv6"] = 0
        values[f"net.ipv6.conf.{scope}.accept_dad"] = int(dad)
        values[f"net.ipv6.conf.{scope}.accept_ra"] = 0
    return values


def router_sysctls() -> dict[str, object]:
    """Of a namespace that forwards."""
    return _host_sysctls(False, 0) | {"net.ipv4.ip_forward": 1, "net.ipv6.conf.all.forwarding": 1}


def bridge_lines(network: Network) -> list[str]:
    """The ``ip`` commands that make a network's bridge."""
    (v4, length4), (v6, length6) = _with_length(network.addresses(1))
    return [
        # Snooping without a querier only delays.  A bridge's own address would be the lowest of its ports' and change
        # as hosts come and go; the others there would send to the old one for seconds.
        f"link add name {network.bridge} address 02:00:00:00:00:{v6.packed[5]:02x} type bridge mcast_snooping 0",
        f"link set {network.bridge} up",
        f"address add {v4}/{length4} dev {network.bridge}",
        f"address add {v6}/{length6} dev {network.bridge} nodad",
    ]

"""Situations in which a connection's address exists and does not carry, as they come about on real hosts.

The client is on one network or two; it or the server may have a VPN (vpn.py).  Each situation is built before the
connections begin, and then happens; as a context manager, it is over in the end.  A new plain connection works in all
of them, between the hosts or their other addresses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Final, NamedTuple

from redirectctl.lab.topology import FIRST_HOST, Lab, Network
from redirectctl.lab.vpn import ROUTES, RULES, Vpn

RENUMBERED = FIRST_HOST + 77  # the number of the client's address in the new prefix


class Situation(NamedTuple):
    """How it is made."""

    version: int  # of the connections that it is about
    prepare: Callable[[Lab], None]  # before they begin
    happens: Callable[[Lab], AbstractContextManager[None]]


def provider_filters(lab: Lab, *networks: Network) -> None:
    """What comes in by these networks with a source that is not theirs is dropped, as providers do (BCP 38)."""
    rules = "\n".join(
        f'iifname "{n.bridge}" {family} saddr != {{ {own} }} drop'
        for n in networks
        for family, own in (("ip", n.v4), ("ip6", f"{n.v6}, fe80::/10"))
    )
    script = f"table inet bcp38 {{ chain c {{ type filter hook prerouting priority -300\n{rules}\n }}\n }}\n"
    lab.router.run(["nft", "-f", "-"], stdin=script)


def on_wifi(lab: Lab) -> None:
    """The client is in the café; providers filter."""
    lab.client.move(lab.cafe, FIRST_HOST)
    provider_filters(lab, lab.cafe, lab.office)


def on_both(lab: Lab) -> None:
    """The client is in the café and in the office, which its default route prefers; providers filter."""
    on_wifi(lab)
    lab.client.join(lab.office, FIRST_HOST + 1)


def as_it_is(lab: Lab) -> None:
    """The client is at home."""


@contextmanager
def ethernet_beside_wifi(lab: Lab) -> Iterator[None]:
    """The default route moves, the Wi-Fi address stays."""
    lab.client.join(lab.office, FIRST_HOST + 1)
    yield
    lab.client.leave(lab.office)


@contextmanager
def upstream_dies(lab: Lab) -> Iterator[None]:
    """That of the network in use; nothing on the host shows it."""
    lab.office.cut()
    yield
    lab.office.restore()


@contextmanager
def vpn_comes_up(lab: Lab, *, on_server: bool = False, how: str = ROUTES) -> Iterator[None]:
    """On a host; its own address stays, what it sends from there goes into the VPN, and is dropped at its end."""
    vpn = Vpn(lab, lab.server if on_server else lab.client)
    vpn.up(default=how)
    yield
    vpn.down()


@contextmanager
def family_dies(lab: Lab, version: int) -> Iterator[None]:
    """The router forwards no packet of one address family."""
    family = "ip" if version == 4 else "ip6"
    script = f"table {family} dead {{ chain c {{ type filter hook forward priority 0\n drop\n }}\n }}\n"
    lab.router.run(["nft", "-f", "-"], stdin=script)
    yield
    lab.router.run(["nft", "delete", "table", family, "dead"])


@contextmanager
def prefix_is_renumbered(lab: Lab) -> Iterator[None]:
    """The provider gives another IPv6 prefix; the old address is deprecated, still there, and dropped upstream."""
    link = lab.client.links[-1]
    old, new = link.addresses.v6, link.network.v6[RENUMBERED]
    script = f"table ip6 old {{ chain c {{ type filter hook forward priority 0\n ip6 saddr {old} drop\n }}\n }}\n"
    lab.router.run(["nft", "-f", "-"], stdin=script)
    lab.client.ip(
        f"address add {new}/64 dev {link.interface} nodad",
        f"address change {old}/64 dev {link.interface} preferred_lft 0",
    )
    yield
    lab.router.run(["nft", "delete", "table", "ip6", "old"])
    lab.client.ip(
        f"address change {old}/64 dev {link.interface} preferred_lft forever",
        f"address delete {new}/64 dev {link.interface}",
    )


SITUATIONS: Final[dict[str, Situation]] = {
    "Ethernet beside Wi-Fi": Situation(4, on_wifi, ethernet_beside_wifi),
    "upstream of the used uplink dead": Situation(4, on_both, upstream_dies),
    "VPN up on the client (OpenVPN's routes)": Situation(4, as_it_is, vpn_comes_up),
    "VPN up on the client (wg-quick's rules)": Situation(4, as_it_is, partial(vpn_comes_up, how=RULES)),
    "VPN up on the server (OpenVPN's routes)": Situation(4, as_it_is, partial(vpn_comes_up, on_server=True)),
    "VPN up on the server (wg-quick's rules)": Situation(4, as_it_is, partial(vpn_comes_up, on_server=True, how=RULES)),
    "IPv6 prefix renumbered": Situation(6, as_it_is, prefix_is_renumbered),
    "IPv4 dead upstream": Situation(4, as_it_is, partial(family_dies, version=4)),
    "IPv6 dead upstream": Situation(6, as_it_is, partial(family_dies, version=6)),
}

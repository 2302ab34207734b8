"""Which interfaces connections may use.

A connection that began over a VPN, in a VRF, or on a socket that its program has bound to an interface
(SO_BINDTODEVICE), does not leave that: what it carries may be plain, and was meant to go there.  Unless ``leave_vpn``
of [path] says otherwise.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache

from redirectctl.flows.connection import Connection
from redirectctl.flows.network import Interface, Network
from redirectctl.flows.policy import Policy
from redirectctl.wire.addr import IPAddress

_NONE = Interface("")


def confined_to(network: Network, local: IPAddress) -> str:
    """The interface or VRF that a connection from this address of ours must not leave; empty: none."""
    return network.interfaces.get(local, _NONE).confines


def may_use(policy: Policy, network: Network, connection: Connection, local: IPAddress) -> bool:
    """Whether policy lets a connection's packets leave from this address of ours."""
    interface = network.interfaces.get(local, _NONE)
    if local != connection.local_now and named(interface.name, policy.never):
        return False
    return policy.leave_vpn or not connection.device or connection.device in (interface.name, interface.vrf)


def comes_last(policy: Policy, network: Network, local: IPAddress) -> bool:
    """Whether an address of ours is to be used only where no other carries."""
    return named(network.interfaces.get(local, _NONE).name, policy.last)


def named(name: str, patterns: Iterable[str]) -> bool:
    """Whether one of the configuration's patterns fits an interface's name; ``*`` fits any characters, or none."""
    return any(_compiled(pattern).fullmatch(name) for pattern in patterns)


@lru_cache(maxsize=256)
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(".*".join(map(re.escape, pattern.split("*"))))

"""The part of the configuration that the engine needs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from redirectctl.flows import constants
from redirectctl.wire.addr import IPNetwork


@dataclass(frozen=True, slots=True)
class Policy:
    """The configuration's values, with durations in seconds."""

    own_name: str = ""  # what this host calls itself; empty: it does not say
    control_port: int = constants.CONTROL_PORT
    first_contact: str = "ask"  # ask | accept-new | refuse
    listed: Mapping[str, str] = field(default_factory=dict)  # names by fingerprint, of hosts that need no person
    long_lived_after: float = 10.0
    close_short_lived: bool = True
    accept_ports: frozenset[int] = frozenset()  # empty: all
    integrity: bool = False  # protected connections go through the tunnel, each datagram with a tag
    prefer: str = "rewritten"  # auto | rewritten | tunnel
    serve: bool = False  # as a rendezvous, for other hosts
    suspend_after: float = 10.0  # seconds of silence
    give_up_after: float = 14 * 86400.0  # seconds without a path
    leave_vpn: bool = False  # what began over a VPN, in a VRF or bound to an interface may go elsewhere
    last: tuple[str, ...] = ()  # interfaces, by patterns (devices.named), for when no other carries
    never: tuple[str, ...] = ()  # interfaces that connections are not moved to
    accept_from: tuple[IPNetwork, ...] = ()  # from where peers may move their connections here; empty: from anywhere

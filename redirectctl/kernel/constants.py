"""Names and numbers that redirectctl puts into the kernel.  doctor looks for exactly these.

The marks are single bits in the top byte of the packet mark, always set and tested under their own mask: wg-quick,
Kubernetes, Calico and Tailscale use lower bits.
"""

from __future__ import annotations

from enum import IntEnum

NFT_TABLE = "redirectctl"  # family inet; "redirect" is a keyword of nft
TUN_DEVICE = "redirect0"  # holds the old addresses that moved connections still send from; the tunnel's device
ROUTE_TABLE = 7747  # `local OLD` routes: incoming rewritten packets only (MARK_MOVED)
FALLBACK_TABLE = 7748  # a route to an old remote address where the main table has none
TUNNEL_TABLE = 7749  # default routes through TUN_DEVICE
# fwmark MARK_MOVED -> ROUTE_TABLE; one less: iif lo fwmark MARK_TUNNEL -> TUNNEL_TABLE.
# Or lower: routing/rule_priority.py
RULE_PRIORITY = 7747
FALLBACK_PRIORITY = 40000  # after main and default
EXIT_TABLES = 7_750_000  # and the index of an interface: routes to peers by that one (kernel/routing/exits.py)
MOST_EXIT_TABLES = 100_000
EXIT_PRIORITY = 32765  # from ADDRESS fwmark MARK_EXIT -> such a table; just before main

MARK_MOVED = 0x1000_0000  # incoming, rewritten to its socket tuple: routed by ROUTE_TABLE
MARK_ASK = 0x2000_0000  # an RST for an unmoved protected connection: NFQUEUE, accepted if no daemon listens
MARK_HOLD = 0x4000_0000  # an RST for a moved connection: NFQUEUE, dropped if no daemon listens
MARK_TUNNEL = 0x0400_0000  # goes, or came, through the tunnel: routed by TUNNEL_TABLE
MARK_TOKEN = 0x0200_0000  # an incoming segment with a token (kernel/tcp/inband.py): NFQUEUE, accepted if nobody listens
MARK_WAIT = 0x0100_0000  # of a suspended connection: NFQUEUE; if no daemon listens what it sends is dropped
MARK_EXIT = 0x8000_0000  # leaves by the interface of its source address
MARK_PROBE = 0x0800_0000  # an outgoing ACK that a sequence-number probe provoked: NFQUEUE, accepted if nobody listens


class Queue(IntEnum):
    """NFQUEUE numbers (per network namespace)."""

    RST = 7747
    HOLD = 7748
    PROBE = 7749
    TOKEN = 7750
    WAIT = 7751
    ANSWER = 7752


CGROUP_PREFIX = "redirectctl-"  # child cgroups of opted-in commands: redirectctl-<pid>

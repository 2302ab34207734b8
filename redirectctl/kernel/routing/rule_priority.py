"""Where our routing rules stand among those of the host.

Two of them come before all rules of others but the kernel's first (table local): what they are about is ours, and a
rule such as `from ADDRESS`, or a VPN's `not fwmark N`, would lead it elsewhere.

They are not simply the first that there can be.  A rule that is added without a priority gets the one just below the
rule after table local (`fib_default_rule_pref`): below priority 1 is 0, and several at 0 are in the order in which they
were added, instead of each before the last.  wg-quick's two rules would be the wrong way round, and its host would no
longer reach its own network.  So there is room below ours; when others have put something there, ours go before it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from redirectctl.kernel.constants import FALLBACK_TABLE, ROUTE_TABLE, RULE_PRIORITY, TUNNEL_TABLE

OUR_TABLES = frozenset({ROUTE_TABLE, FALLBACK_TABLE, TUNNEL_TABLE})
FIRST = (TUNNEL_TABLE, ROUTE_TABLE)  # the tables whose rules come first, in this order: packets may have both marks
_LAST = 0xFFFF_FFFF


def priority_of(rule: Any) -> int:
    """Of a rule that netlink has listed; 0, that of table local, is not in it."""
    return rule.get("priority") or 0


def is_ours(rule: Any) -> bool:
    """Whether it leads to one of these tables."""
    return rule.get("table") in OUR_TABLES


def first_priorities(rules: Iterable[Any]) -> dict[int, int]:
    """By table, which priorities those of FIRST have among these, all rules of a family."""
    others = min((priority_of(rule) for rule in rules if not is_ours(rule) and priority_of(rule)), default=_LAST)
    last = RULE_PRIORITY if others > RULE_PRIORITY else max(len(FIRST), others // 2)
    return {table: last - after for after, table in enumerate(reversed(FIRST))}

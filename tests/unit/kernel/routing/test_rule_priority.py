"""The priority of our routing rules among those of others."""

from __future__ import annotations

import pytest

from redirectctl.kernel.constants import FALLBACK_TABLE, ROUTE_TABLE, RULE_PRIORITY, TUNNEL_TABLE
from redirectctl.kernel.routing.rule_priority import first_priorities

SYSTEM = ((0, 255), (32766, 254), (32767, 253))
OURS = ((RULE_PRIORITY, ROUTE_TABLE), (RULE_PRIORITY - 1, TUNNEL_TABLE), (40000, FALLBACK_TABLE))


def placed(*others: tuple[int, int]) -> int:
    rules = (*SYSTEM, *OURS, *others)
    found = first_priorities([{"priority": priority or None, "table": table} for priority, table in rules])
    assert found[TUNNEL_TABLE] == found[ROUTE_TABLE] - 1
    return found[ROUTE_TABLE]


@pytest.mark.parametrize(
    ("others", "first"),
    [
        ((), RULE_PRIORITY),
        (((32765, 51820),), RULE_PRIORITY),
        (((RULE_PRIORITY + 1, 100),), RULE_PRIORITY),
        (((RULE_PRIORITY, 100),), RULE_PRIORITY // 2),
        (((RULE_PRIORITY - 1, 51820), (RULE_PRIORITY - 2, 254)), (RULE_PRIORITY - 2) // 2),
        (((100, 100), (5210, 52)), 50),
        (((1, 100),), 2),
        (((0, 51820), (0, 254)), RULE_PRIORITY),  # nothing comes before those
    ],
)
def test_before_those_of_others(others: tuple[tuple[int, int], ...], first: int) -> None:
    assert placed(*others) == first

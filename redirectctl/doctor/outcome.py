"""What a check says, in short."""

from __future__ import annotations

from collections.abc import Sequence

from redirectctl.api.schema import Check, CheckStatus
from redirectctl.kernel.errors import KernelError

_WORST_FIRST = (CheckStatus.FAIL, CheckStatus.WARN, CheckStatus.OK, CheckStatus.SKIP)
LISTED = 8  # things that one check names before it says how many more there are


def ok(name: str, found: str) -> Check:
    """Nothing to do."""
    return Check(name=name, status=CheckStatus.OK, found=found)


def warn(name: str, found: str, hint: str) -> Check:
    """Works, but not always or not as it should."""
    return Check(name=name, status=CheckStatus.WARN, found=found, hint=hint)


def fail(name: str, found: str, hint: str) -> Check:
    """Does not work."""
    return Check(name=name, status=CheckStatus.FAIL, found=found, hint=hint)


def skip(name: str, found: str, hint: str | None = None) -> Check:
    """Does not apply here, or could not be found out."""
    return Check(name=name, status=CheckStatus.SKIP, found=found, hint=hint)


def refused(name: str, error: KernelError) -> Check:
    """The kernel said no."""
    return fail(name, f"{error.what}: {error.why}", error.hint)


def several(things: Sequence[str], separator: str = "; ", most: int = LISTED) -> str:
    """The first of them, and how many more."""
    more = [f"and {len(things) - most} more"] if len(things) > most else []
    return separator.join([*things[:most], *more])


def merged(checks: Sequence[Check]) -> Check:
    """Several of the same name as one: as bad as the worst of them, which gives the advice."""
    worst = next(c for status in _WORST_FIRST for c in checks if c.status is status)
    return Check(name=worst.name, status=worst.status, found="\n".join(c.found for c in checks), hint=worst.hint)


def count(number: int, one: str, many: str | None = None) -> str:
    """`1 rule`, `2 rules`."""
    return f"{number} {one if number == 1 else many or one + 's'}"

"""States of a connection, as docs/protocol.md draws them (the drawing is made from TRANSITIONS).

A connection begins as short-lived: nothing is sent and no rule is made for it (paper, section 3.3).  When it is older
than the threshold it is negotiated with the other host's daemon.  Only PROTECTED and SUSPENDED connections are moved.
UNSUPPORTED, REFUSED and PENDING ones are as if redirectctl were not there, and may be negotiated again.  So are
RELEASED ones, but only when somebody asks for that: a person ended their protection.
"""

from __future__ import annotations

from enum import Enum
from types import MappingProxyType
from typing import Final


class State(Enum):
    """Names as in listings."""

    SHORT = "short"
    NEGOTIATING = "negotiating"
    PENDING = "pending"
    UNSUPPORTED = "unsupported"
    REFUSED = "refused"
    PROTECTED = "protected"
    SUSPENDED = "suspended"
    RELEASED = "released"
    CLOSED = "closed"


_S = State
TRANSITIONS: Final = MappingProxyType(
    {
        _S.SHORT: frozenset({_S.NEGOTIATING, _S.REFUSED, _S.RELEASED, _S.CLOSED}),
        _S.NEGOTIATING: frozenset({_S.PENDING, _S.UNSUPPORTED, _S.REFUSED, _S.PROTECTED, _S.RELEASED, _S.CLOSED}),
        _S.PENDING: frozenset({_S.NEGOTIATING, _S.REFUSED, _S.RELEASED, _S.CLOSED}),
        _S.UNSUPPORTED: frozenset({_S.NEGOTIATING, _S.REFUSED, _S.RELEASED, _S.CLOSED}),
        _S.REFUSED: frozenset({_S.NEGOTIATING, _S.RELEASED, _S.CLOSED}),
        _S.PROTECTED: frozenset({_S.SUSPENDED, _S.NEGOTIATING, _S.REFUSED, _S.RELEASED, _S.CLOSED}),
        _S.SUSPENDED: frozenset({_S.PROTECTED, _S.NEGOTIATING, _S.REFUSED, _S.RELEASED, _S.CLOSED}),
        _S.RELEASED: frozenset({_S.NEGOTIATING, _S.CLOSED}),
        _S.CLOSED: frozenset(),
    }
)

MOVABLE: Final = frozenset({State.PROTECTED, State.SUSPENDED})


def diagram() -> str:
    """The table as Mermaid source."""
    lines = ["stateDiagram-v2", f"    [*] --> {State.SHORT.value}"]
    for state, followers in TRANSITIONS.items():
        lines += [f"    {state.value} --> {follower.value}" for follower in State if follower in followers]
    lines.append(f"    {State.CLOSED.value} --> [*]")
    return "\n".join(lines)

"""What a store says that a killed daemon has left, made such that one kernel can have it.

A daemon stores what it wants before it asks the kernel.  If it was killed before the kernel could refuse, the store has
what cannot be.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable

from redirectctl.flows.connection import Connection, Flow
from redirectctl.kernel.netfilter.elements import Place, elements, rules


def newest(connections: Iterable[Connection]) -> tuple[list[Connection], list[Connection]]:
    """One connection for each socket tuple, the one that was taken on last, and the others."""
    found: dict[object, Connection] = {}
    rest: list[Connection] = []
    for connection in sorted(connections, key=lambda c: c.local_epoch):
        older = found.pop(connection.socket, None)
        if older is not None:
            rest.append(older)
        found[connection.socket] = connection
    return list(found.values()), rest


def untangle(connections: list[Connection], present: Callable[[], Collection[Flow]]) -> list[Connection]:
    """Change those that would share a tuple on the wire with another; returns them.

    They begin anew from their socket tuples, in the tunnel if they can: they are announced again as they are, and what
    must not be is refused then.  ``present``: what the kernel has, which was not refused; asked for only if need be.
    """
    if not _clashing(connections):
        return []
    there = present()
    changed = _clashing(sorted(connections, key=lambda c: rules(c.flow) not in there))
    for connection in changed:
        connection.wire = connection.socket
        connection.tunnel = connection.sending is not None and connection.outer_remote is not None
    return changed


def _clashing(connections: Iterable[Connection]) -> list[Connection]:
    """Those that cannot be in the table beside the ones before them."""
    taken: set[Place] = set()
    found = []
    for connection in connections:
        places = {place for place, _ in elements(rules(connection.flow))}
        if taken.isdisjoint(places):
            taken |= places
        else:
            found.append(connection)
    return found

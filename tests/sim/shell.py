"""What a host's shell is told: to look at it, or to have it not done."""

from __future__ import annotations

from typing import TypeVar

from redirectctl.flows import commands
from tests.sim.host import Host

Kind = TypeVar("Kind")


def told(host: Host, kind: type[Kind], *, done: bool = True) -> list[Kind]:
    """Commands of this kind from now on.  ``done``: they are carried out as well."""
    found: list[Kind] = []
    carry_out = host.carry_out

    def watched(command: commands.Command) -> None:
        if isinstance(command, kind):
            found.append(command)
            if not done:
                return
        carry_out(command)

    host.carry_out = watched  # type: ignore[method-assign]
    return found

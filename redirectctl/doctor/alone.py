"""What can be found out without the daemon: kernel features, and what a daemon that is gone has left behind."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from redirectctl.api.optin import DEFAULT_SOCKET
from redirectctl.api.schema import Check
from redirectctl.doctor import host, sshd, traces
from redirectctl.doctor.firewall import ruleset
from redirectctl.doctor.outcome import count, fail, ok, refused, several, skip, warn
from redirectctl.doctor.traces import Trace
from redirectctl.flows.connection import Flow
from redirectctl.kernel.errors import KernelError
from redirectctl.kernel.netfilter.elements import flows_in
from redirectctl.kernel.routing.needs import needs_of_all
from redirectctl.kernel.sockets.diag import CONNECTED, SockDiag

STATE = Path("/var/lib/redirectctl")
NOTED_PORTS = "reserved-ports"  # in the state directory: daemon/rewriting.py


def noted_in(socket: str, state: Path | None) -> Path | None:
    """Where the daemon of a socket noted its ports; None: it has a state directory of its own, which was not given."""
    if state is None and socket != DEFAULT_SOCKET:
        return None
    return (state or STATE) / NOTED_PORTS


async def examine(noted: Path | None) -> list[Check]:
    """All checks that need no daemon."""
    root = os.geteuid() == 0
    checks = await host.examine(privileges=root)
    checks.append(await sshd.examine() if root else skip(sshd.NAME, "only root can find out"))
    if not root:
        return [*checks, skip("leftovers", "only root can find out"), cgroups(traces.empty_cgroups())]
    try:
        listed = (await ruleset.read()).nft
        found = [*traces.filter_traces(listed), *(await traces.routing()).all, *traces.queue_traces()]
        flows = flows_in(traces.own_table(listed))
        found += traces.port_traces([*noted_ports(noted), *needs_of_all(flows).ports])
        alive = living(flows)
    except KernelError as error:
        return [*checks, refused("leftovers", error), cgroups(traces.empty_cgroups())]
    return [*checks, leftovers(found, alive), cgroups(traces.empty_cgroups())]


def leftovers(found: list[Trace], alive: int) -> Check:
    """Judge what is there although no daemon runs; ``alive``: connections that still use it."""
    name = "leftovers"
    if not found:
        return ok(name, "nothing of redirectctl is in the kernel")
    text = traces.listed(found)
    if alive:
        use = f"{count(alive, 'connection')} still {'uses' if alive == 1 else 'use'} what a redirectd left:\n{text}"
        return warn(name, use, "`systemctl start redirectd`; it goes on with these connections")
    hint = "`redirectctl doctor --clean` removes it, and so does `systemctl start redirectd`; by hand:"
    return fail(name, f"no connection uses what a redirectd left:\n{text}", f"{hint}\n{traces.commands(found)}")


def cgroups(found: list[Trace]) -> Check:
    """Empty cgroups hurt nobody; a daemon that runs removes them every half minute."""
    name = "leftovers.cgroups"
    if not found:
        return ok(name, "no empty cgroup of an ended command")
    return warn(
        name,
        several([trace.what for trace in found], "\n"),
        "harmless; `redirectctl doctor --clean` removes them, and so does a redirectd that runs, within half a minute",
    )


def living(flows: Iterable[Flow]) -> int:
    """How many of the connections in the table have a socket.  Raises KernelError."""
    flows = list(flows)
    if not flows:
        return 0
    diag = SockDiag()
    try:
        present = {info.tuple for info in diag.dump(states=CONNECTED)}
    finally:
        diag.close()
    return sum(flow.socket in present for flow in flows)


def noted_ports(noted: Path | None) -> list[int]:
    """Ports that a daemon had reserved."""
    try:
        return [int(word) for word in noted.read_text().split()] if noted is not None else []
    except (OSError, ValueError):
        return []

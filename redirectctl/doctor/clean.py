"""`redirectctl doctor --clean`: removes what a daemon that is gone has left in the kernel, and nothing of anybody else.

Only names and numbers of kernel/constants.py are ours.  A reserved port has no name: it is ours if the state directory
says so.  What has one of these numbers, but not all that ours would have, may be somebody else's: only ``force``
removes it.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Final

from pyroute2 import AsyncIPRoute

from redirectctl.doctor import alone, host, traces
from redirectctl.doctor.firewall import ruleset
from redirectctl.doctor.outcome import count
from redirectctl.doctor.traces import Trace
from redirectctl.kernel.constants import NFT_TABLE, TUN_DEVICE, Queue
from redirectctl.kernel.errors import KernelError
from redirectctl.kernel.netfilter.elements import flows_in
from redirectctl.kernel.netfilter.libnftables import Nft
from redirectctl.kernel.netfilter.queue_rules import IptablesQueues
from redirectctl.kernel.processes.cgroup import CgroupTree
from redirectctl.kernel.routing.exits import Exits, Wanted
from redirectctl.kernel.routing.old_addresses import Keeper
from redirectctl.kernel.sockets.reserved_ports import ReservedPorts

_REMOVERS: Final = frozenset({"ip", "nft", "iptables", "ip6tables", "rmdir"})
_PROGRAMS: Final = "/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin"
_TIMEOUT: Final = 15.0  # seconds for one of them: on a machine that has much else to do


class RefusedError(Exception):
    """Nothing was removed: ``why; what to do``."""


async def clean(noted: Path | None, *, force: bool = False) -> list[Trace]:
    """Remove it; returns what was removed.

    ``noted``: the file in which the daemon noted the ports that it had reserved.  ``force``: also what may be another
    program's.  Raises RefusedError, KernelError.
    """
    listening = host.bound_queues()
    if listening and not listening.isdisjoint(Queue):
        raise RefusedError(
            "a redirectd runs in this network namespace; `systemctl stop redirectd`, or let it remove what no"
            " connection needs"
        )
    before = await present(noted)
    listed = (await ruleset.read()).nft
    alive = alone.living(flows_in(traces.own_table(listed)))
    if alive:
        who = f"{count(alive, 'connection')} still {'uses' if alive == 1 else 'use'} what a redirectd left"
        raise RefusedError(f"{who}; `systemctl start redirectd`, which goes on with them, or end them first")
    if not force:
        await _check_device()
    # Packets that still come are not rewritten any more before they are not routed any more.
    if traces.own_table(listed):
        nft = Nft()
        name = {"family": "inet", "name": NFT_TABLE}
        nft.run([{"add": {"table": name}}, {"delete": {"table": name}}])
    if traces.queue_traces():
        IptablesQueues().remove()
    keeper = Keeper()
    try:
        await keeper.teardown()
    finally:
        keeper.close()
    exits = Exits()
    try:
        await exits.reconcile(Wanted())
    finally:
        exits.close()
    _release_ports(noted)
    if any(trace.is_cgroup for trace in before):
        CgroupTree().sweep()
    if force:
        for trace in await present(noted):
            _remove_by_name(trace)
    after = {trace.what for trace in await present(noted)}
    return [trace for trace in before if trace.what not in after]


def _remove_by_name(trace: Trace) -> None:
    """As its command says; what that cannot remove is told afterwards."""
    for command in trace.remove.split("; "):
        name, *arguments = shlex.split(command)
        found = shutil.which(name, path=_PROGRAMS)
        if found is not None and name in _REMOVERS:
            with suppress(OSError, subprocess.TimeoutExpired):
                subprocess.run([found, *arguments], capture_output=True, timeout=_TIMEOUT, check=False)


def _release_ports(noted: Path | None) -> None:
    ports = alone.noted_ports(noted)
    ReservedPorts(ports).release(ports)
    if noted is not None and ports:
        noted.write_text("")


async def present(noted: Path | None) -> list[Trace]:
    """Everything of ours that there is now.  Raises KernelError."""
    listed = (await ruleset.read()).nft
    return [
        *traces.filter_traces(listed),
        *traces.queue_traces(),
        *(await traces.routing()).all,
        *traces.port_traces(alone.noted_ports(noted)),
        *traces.empty_cgroups(),
    ]


async def _check_device() -> None:
    """Somebody may have called another kind of interface so."""
    async with AsyncIPRoute() as netlink:
        async for link in await netlink.link("dump"):
            kind = (link.get("linkinfo") or {}).get("kind")
            if link.get("ifname") == TUN_DEVICE and kind != "tun":
                why = f"{TUN_DEVICE} is no TUN device"
                hint = "somebody else made it: rename it, or have `redirectctl doctor --clean --force` remove it"
                raise KernelError("clean", why, hint)

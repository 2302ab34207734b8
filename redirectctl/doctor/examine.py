"""`redirectctl doctor`, from inside the daemon: all checks, or those about one host."""

from __future__ import annotations

from redirectctl.api.schema import Check
from redirectctl.daemon.runtime import Runtime
from redirectctl.doctor import host, names, rendezvous, sshd, state
from redirectctl.doctor.firewall import control_port
from redirectctl.doctor.outcome import skip
from redirectctl.doctor.peer import PeerCheck
from redirectctl.doctor.stranger import StrangerCheck


async def examine(runtime: Runtime, whom: bytes | str | None) -> list[Check]:
    """All checks, or those about one host: a peer (its public key), or whoever is at an address or name.

    About a second; up to 20 s if the host does not answer.
    """
    if isinstance(whom, bytes):
        return await PeerCheck(runtime, whom).examine()
    if whom is not None:
        return await StrangerCheck(runtime, whom).examine()
    engine = runtime.engine
    kernel = state.KernelState(runtime)
    compared = await kernel.examine()
    if kernel.rules is not None:
        versions = (4, 6) if host.has_ipv6() else (4,)
        wall = control_port.check(kernel.rules, runtime.port.port, versions)
    else:
        wall = skip(control_port.NAME, "the packet filter rules could not be read")
    return [
        state.daemon(runtime),
        state.state_directory(runtime),
        state.clock(runtime),
        await state.sleep(runtime),
        *await host.examine(privileges=True),
        state.control_port(runtime),
        wall,
        state.peers(runtime),
        await names.own(runtime),
        rendezvous.rendezvous(engine.rendezvous.servers),
        rendezvous.serving(engine.policy.serve, engine.rendezvous_server.guests, engine.rendezvous_server.relayed),
        state.connections(runtime),
        await sshd.examine(),
        *compared,
        await state.cgroup_leftovers(),
    ]

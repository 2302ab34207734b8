"""`redirectctl doctor`, from inside the daemon: all checks, or those about one peer."""

from __future__ import annotations

from redirectctl.api.schema import Check
from redirectctl.daemon.runtime import Runtime
from redirectctl.doctor import host, names, rendezvous, sshd, state
from redirectctl.doctor.firewall import control_port
from redirectctl.doctor.outcome import skip
from redirectctl.doctor.peer import PeerCheck


async def examine(runtime: Runtime, peer: bytes | None) -> list[Check]:
    """All checks, or those about one peer (its public key).  About a second; up to 10 s if the peer does not answer."""
    if peer is not None:
        return await PeerCheck(runtime, peer).examine()
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

"""What a user can find out who may not ask the daemon for more than its status: of this host, or of the way to one."""

from __future__ import annotations

from redirectctl.api.schema import Check, ConnectionState, Status
from redirectctl.doctor import host, reached
from redirectctl.doctor.outcome import fail, ok, several, skip, warn
from redirectctl.doctor.reached import Way
from redirectctl.names import lookup
from redirectctl.wire.addr import SockAddr

_NOT_PROTECTED = (ConnectionState.UNSUPPORTED, ConnectionState.REFUSED, ConnectionState.PENDING)


async def of_this_host(status: Status) -> list[Check]:
    """What needs no rights, and what the daemon tells everybody."""
    return [
        ok("daemon", f"redirectd {status.version}, process {status.pid}"),
        ok("control.port", f"UDP {status.control_port}"),
        _connections(status),
        *await host.examine(privileges=False),
    ]


def _connections(status: Status) -> Check:
    name = "connections"
    counts = {state: number for state, number in status.connections.items() if number}
    text = several([f"{number} {state}" for state, number in counts.items()], ", ") or "none"
    if any(state in counts for state in _NOT_PROTECTED):
        return warn(name, text, "as root: `redirectctl connections` says why they are not protected")
    return ok(name, text)


async def of_the_way(text: str, port: int) -> list[Check]:
    """Does the name lead somewhere, is there a route?  What is at the other end only the daemon can ask."""
    name = "peer.name"
    try:
        addresses = await lookup.addresses(text)
    except lookup.UnknownNameError as error:
        return [fail(name, f"{text}: {error}", error.hint)]
    where = several([str(each) for each in addresses], ", ")
    return [
        ok(name, where if where == text else f"{text} leads to {where}"),
        await reached.routed(Way(SockAddr(addresses[0], port), None)),
        skip(reached.CONTACT, "only root and the group redirectctl may have a host asked"),
    ]

"""`redirectctl doctor`: the rendezvous that this host uses, and the one that it is."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from redirectctl.api.reasons import advice, explain
from redirectctl.api.schema import Check
from redirectctl.doctor.outcome import count, ok, several, skip, warn
from redirectctl.flows.connection import Connection
from redirectctl.flows.rendezvous.client import Server, Standing
from redirectctl.wire.addr import SockAddr

_UNRESOLVED = "no address found for its name"


def rendezvous(servers: Collection[Server]) -> Check:
    """Those that the configuration names."""
    name = "rendezvous"
    if not servers:
        return skip(name, "none: two hosts that move at the same time may lose each other", "see rendezvous.servers")
    found = several([_standing(server) for server in servers])
    useless = [server for server in servers if not server.usable]
    if not useless:
        return ok(name, found)
    return warn(name, found, several(list(dict.fromkeys(map(_hint, useless)))))


def serving(serve: bool, guests: int, flows: int) -> Check:
    """What this host does for others."""
    name = "rendezvous.serving"
    if not serve:
        return skip(name, "no")
    return ok(name, f"{count(guests, 'host')} registered, {count(flows, 'flow')} relayed")


def with_peer(
    servers: Collection[Server],
    key: bytes,
    places: Iterable[SockAddr],
    relayed: Collection[Connection],
) -> Check:
    """Whether it would be found there; ``places``: where a rendezvous has found it of late."""
    name = "peer.rendezvous"
    if not servers:
        return skip(name, "none configured", "see rendezvous.servers")
    if relayed:
        ways = {str(c.outer_remote) for c in relayed}
        text = f"{count(len(relayed), 'connection')} relayed by {several(sorted(ways), ', ')}"
        return ok(name, f"{text}: the hosts do not reach each other")
    usable = [server for server in servers if server.usable]
    if not usable:
        return warn(name, several([_standing(server) for server in servers]), _hint(next(iter(servers))))
    at = several([server.name for server in usable], ", ")
    if not any(key in server.tags.values() for server in usable):
        return ok(name, f"this host is registered at {at}; not for this peer, there is no protected connection with it")
    seen = [str(place) for place in places]
    if not seen:
        hint = "does it name the same rendezvous, and is it registered there? `redirectctl doctor` on that host"
        return warn(name, f"this host is registered at {at}, the peer has not been seen there", hint)
    return ok(name, f"both are registered at {at}; the peer is at {several(seen, ', ')}")


def _standing(server: Server) -> str:
    if server.usable:
        behind = f", which sees this host at {server.reflexive}" if server.reflexive is not None else ""
        full = f"; {explain(server.standing.value)}" if server.standing is Standing.FULL else ""
        return f"registered at {server.name}{behind}{full}"
    why = _UNRESOLVED if server.standing is Standing.UNRESOLVED else explain(server.standing.value)
    return f"{server.name}: {why}"


def _hint(server: Server) -> str:
    if server.standing is Standing.UNRESOLVED:
        return "is the name right, and does name resolution work?"
    return advice(server.standing.value) or "see `redirectctl events`"

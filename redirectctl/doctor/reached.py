"""Whether datagrams get to another host and back: the route there, and what it means that nothing comes back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from redirectctl.api.schema import Check, CheckStatus
from redirectctl.doctor import host, route
from redirectctl.doctor.firewall import control_port, ruleset
from redirectctl.doctor.outcome import fail, ok, several, skip, warn
from redirectctl.kernel.errors import KernelError
from redirectctl.wire.addr import IPAddress, SockAddr

ROUTE = "peer.route"
CONTACT = "peer.control-port"
SMALL_MTU = 1280  # bytes: what IPv6 asks of every link (RFC 8200, section 5); our datagrams stay below
_NOBODY_LISTENS = "port unreachable"  # icmp.py
_NO_WAY = frozenset({"network unreachable", "host unreachable", "no route", "address unreachable"})


class Way(NamedTuple):
    """Between two addresses."""

    to: SockAddr  # the peer's control port
    source: IPAddress | None  # ours; None: as the kernel routes
    lost: IPAddress | None = None  # that connections have, and this host has not


async def firewall(port: int) -> Check:
    """Our own rules."""
    try:
        rules = await ruleset.read()
    except KernelError as error:
        return skip(control_port.NAME, f"{error.what}: {error.why}", error.hint)
    return control_port.check(rules, port, (4, 6) if host.has_ipv6() else (4,))


async def routed(way: Way) -> Check:
    """The route there."""
    target = way.to.host
    path = await route.look_up(target, way.source)
    if isinstance(path, str):
        origin = f" from {way.source}" if way.source else ""
        return fail(ROUTE, f"none to {target}{origin}: {path}", "see `ip route`; is this host on a network?")
    via = f" via {path.gateway}" if path.gateway else ""
    text = f"to {target}{via} by {path.interface}, from {path.source}, MTU {path.mtu}"
    if way.lost is not None:
        text += f"; connections are still at {way.lost}, which this host does not have now"
    if not path.up:
        return fail(ROUTE, f"{text}; {path.interface} has no carrier", "plug it in, or wait for the network")
    if path.mtu < SMALL_MTU:
        return warn(ROUTE, text, f"below {SMALL_MTU} bytes announcements may not get through")
    return ok(ROUTE, text)


def silence(way: Way, reports: Mapping[str, IPAddress], routing: Check, wall: Check, *, known: bool) -> Check:
    """Who keeps the port closed: this host, one that says so, or one that says nothing.

    ``reports``: what routers and hosts have said (icmp.py).  ``known``: that host has answered before.
    """
    to = way.to
    silent = f"UDP {to} does not answer {way.source or 'us'}"
    if routing.status is CheckStatus.FAIL:
        return fail(CONTACT, f"UDP {to} cannot be reached: no route", routing.hint or "")
    if wall.status in (CheckStatus.FAIL, CheckStatus.WARN):
        return fail(CONTACT, f"{silent}; here, {wall.found}", wall.hint or "")
    if reports:
        text = f"{silent}: {several([f'{who} says {said}' for said, who in reports.items()])}"
        return fail(CONTACT, text, several([*dict.fromkeys(_blamed(said, who, to) for said, who in reports.items())]))
    hint = (
        f"on that host: `systemctl status redirectd`; if it runs, `redirectctl doctor` there finds a firewall that is "
        f"closed for UDP {to.port}. If both are well, a firewall between the hosts has to let UDP {to.port} through"
    )
    if known:
        hint += ". Or has that host rejected this one's key (`redirectctl peers` there)?"
    text = f"{silent}, without an ICMP error: something drops the datagrams or the answers, or that host is off"
    return fail(CONTACT, text, hint)


def _blamed(said: str, who: IPAddress, to: SockAddr) -> str:
    if who == to.host and said == _NOBODY_LISTENS:
        return "redirectd does not run there: on that host, `sudo systemctl start redirectd`"
    if said in _NO_WAY:
        return f"{who} knows no way to {to.host}: is that host on, and is that its address?"
    whose = "a firewall of that host itself" if who == to.host else f"a firewall at {who}"
    return f"{whose} rejects the datagrams: let UDP {to.port} through there"

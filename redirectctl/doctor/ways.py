"""`redirectctl doctor PEER`: what lies between two hosts, and which way their connections take."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Final, Literal, NamedTuple

from redirectctl.api.reasons import explain
from redirectctl.api.schema import Check
from redirectctl.doctor.outcome import count, fail, ok, several, skip, warn
from redirectctl.flows.connection import Connection, Path
from redirectctl.flows.moves.addresses import Failure
from redirectctl.flows.paths.choice import TunnelReason
from redirectctl.proto.peer import Peer
from redirectctl.wire.addr import IPAddress, SockAddr

NAT: Final = "peer.nat"
SAFE_MTU: Final = 1280  # bytes: what the tunnel begins with on every path
_IP_AND_UDP: Final = {4: 28, 6: 48}  # bytes of headers around the tunnel's datagrams

_WHY: Final = {
    TunnelReason.INTEGRITY: "each datagram is authenticated",
    TunnelReason.PREFERRED: "path.prefer",
    TunnelReason.NO_PATH: "there is no path now",
    TunnelReason.RELAYED: "passed on by a rendezvous, the hosts do not reach each other",
    TunnelReason.OTHER_FAMILY: "they began with the other address family",
    TunnelReason.NAT: "NAT changes plain packets on the way",
    TunnelReason.BEING_TRIED: "plain packets are being tried",
    TunnelReason.NOT_SEEN: "plain TCP from here did not arrive",
    TunnelReason.STALLED: "plain TCP from here stopped arriving",
}


class Here(NamedTuple):
    """What is known of this host."""

    addresses: frozenset[IPAddress]  # that can be used
    port: int  # of the control port
    integrity: bool  # the configuration wants it


def nat(here: Here, peer: Peer, connections: Collection[Connection], now: float, *, answers: bool = True) -> Check:
    """Where each end is seen, against where it says it is.  ``answers``: the peer has just said it, not before a move.

    A NAT needs no mending, connections go through the tunnel; but behind one nobody is found who has not called.
    """
    name = NAT
    natted = [c for c in connections if c.natted]
    begun = ""
    if natted:
        one = natted[0]
        known = f"{one.socket.local} is {one.peer_tuple.remote} there, {one.socket.remote} is {one.peer_tuple.local}"
        begun = f"; {count(len(natted), 'connection')} through NAT since the beginning: {known}"
    if peer.reflexive is None or not answers:
        return skip(name, f"the peer does not say where it sees this host now{begun}")
    ours, theirs = _here_seen_elsewhere(here, peer.reflexive), _there_seen_elsewhere(peer, here.port)
    if not ours and not theirs:
        return ok(name, f"none: it sees this host at {peer.reflexive}, its own address{begun}")
    parts = []
    if ours:
        parts.append(f"this host at {peer.local or 'its own address'} is seen at {peer.reflexive}")
    if theirs:
        parts.append(f"the peer at {several([str(a) for a in peer.addresses], ', ')} is seen at {peer.remote}")
    text = f"NAT: {'; '.join(parts)}{begun}"
    if ours and theirs and not _called_by_both(peer, now):
        hint = f"forward UDP {here.port} to this host or to the peer: while both are behind NAT neither finds the other"
        return warn(name, f"{text}; only one of the hosts has been able to call the other", hint)
    return ok(name, f"{text}; after a move connections go through the tunnel")


def behind_nat(here: Here, peer: Peer) -> bool:
    """Whether one of the hosts is, as far as is known."""
    ours = peer.reflexive is not None and _here_seen_elsewhere(here, peer.reflexive)
    return ours or _there_seen_elsewhere(peer, here.port)


def _here_seen_elsewhere(here: Here, observed: SockAddr) -> bool:
    return observed.host not in here.addresses or observed.port != here.port


def _there_seen_elsewhere(peer: Peer, port: int) -> bool:
    """There is a NAT before the peer.  It tells its addresses with the beginning of a session; none: not known."""
    if peer.remote is None:
        return False
    return peer.remote.port != port or bool(peer.addresses and peer.remote.host not in peer.addresses)


def _called_by_both(peer: Peer, now: float) -> bool:
    return len({s.initiator for s in peer.sessions if s.usable and not s.expired(now)}) == 2


def families(here: Here, known: Iterable[IPAddress]) -> Check:
    """Address families that both hosts have: a move to a network without one of them needs the other."""
    name = "peer.families"
    ours, theirs = {a.version for a in here.addresses}, {a.version for a in known}
    if not theirs:
        return skip(name, "no address of the peer is known")
    if both := ours & theirs:
        only = [
            f"{_named(own - both)} only {where}" for own, where in ((ours, "here"), (theirs, "there")) if own - both
        ]
        return ok(name, "; ".join([f"{_named(both)} here and there", *only]))
    text = f"none in common: {_named(ours) or 'no address'} here, {_named(theirs)} there"
    return warn(name, text, f"this host needs {_named(theirs)}, or the peer {_named(ours) or 'another family'}")


def addresses(here: Here, failed: Mapping[IPAddress, Failure], now: float) -> Check:
    """Which of this host's addresses exist, but do not carry to the peer."""
    name = "peer.uplinks"
    dead = {a: f for a, f in sorted(failed.items(), key=lambda item: str(item[0])) if a in here.addresses}
    if not dead:
        return ok(name, "every address of this host that was tried has carried packets")
    found = [f"{a} did not carry {now - f.at:.0f} s ago, {count(f.times, 'time')} in a row" for a, f in dead.items()]
    hint = (
        "connections use another address, and return when this one carries packets again. If it should carry them now: "
        "does the network there drop packets from this source, or is its upstream down?"
    )
    return warn(name, several(found), hint)


def _named(versions: Collection[int]) -> str:
    return " and ".join(f"IPv{version}" for version in sorted(versions))


def path_of_each(
    connections: Collection[Connection], why: Callable[[Connection], TunnelReason | None], *, behind_nat: bool = False
) -> Check:
    """Which way what is sent from here takes; for the other direction the peer's doctor knows.

    ``behind_nat``: one of the hosts is.  A NAT lets no plain packets of moved connections through, and has no need to.
    """
    name = "peer.paths"
    if not connections:
        return ok(name, "no protected connection")
    ways: dict[tuple[Path, TunnelReason | None], list[Connection]] = defaultdict(list)
    for connection in connections:
        ways[connection.path, why(connection)].append(connection)
    text = several([f"{len(members)} {_way(*way)}" for way, members in ways.items()])
    blocked = [
        c
        for (_, reason), members in ways.items()
        if reason in (TunnelReason.NOT_SEEN, TunnelReason.STALLED)
        for c in members
    ]
    if not blocked:
        return ok(name, text)
    if behind_nat:
        return ok(name, f"{text}; behind a NAT that is as it has to be")
    where = Counter(f"{c.wire.local.host} to {c.wire.remote.host}, {_port(c)}" for c in blocked)
    text += f"; blocked: TCP from {several(list(where))}"
    hint = (
        "connections go on through the tunnel, which costs more CPU. To have them go without it, let the firewall on "
        "the way accept segments of connections whose beginning it has not seen (Linux: "
        'net.netfilter.nf_conntrack_tcp_loose=1). To have it no longer tried, set prefer = "tunnel" in [path]'
    )
    return warn(name, text, hint)


def _port(connection: Connection) -> str:
    """The port that a firewall would name: that of the end which did not choose one at random."""
    (_, here), (_, there) = connection.wire
    return f"to port {there}" if there <= here else f"from port {here}"


def _way(path: Path, why: TunnelReason | None) -> str:
    match path:
        case Path.ORIGINAL:
            return "plain, unchanged"
        case Path.REWRITTEN:
            return "plain, with rewritten addresses"
    return f"through the tunnel: {_WHY[why]}" if why is not None else "through the tunnel"


def tunnel_size(connections: Iterable[Connection], size: Callable[[IPAddress | None, SockAddr], int | None]) -> Check:
    """How large the tunnel's datagrams are on each of its paths; ``size``: bytes of UDP payload."""
    name = "peer.tunnel"
    ends = {(c.outer_local, c.outer_remote) for c in connections if c.tunnel and c.outer_remote is not None}
    found, small = [], False
    for local, remote in sorted(ends, key=str):
        payload = size(local, remote) if remote is not None else None
        if remote is not None and payload is not None:
            packet = payload + _IP_AND_UDP[remote.host.version]
            found.append(f"packets of {packet} bytes from {local or 'any address'} to {remote}")
            small = small or packet < SAFE_MTU
    if not found:
        return ok(name, "not in use")
    if small:
        hint = f"the link's MTU is below {SAFE_MTU} bytes; raise it if it is yours"
        return warn(name, several(found), hint)
    return ok(name, several(found))


_THEIRS: Final[dict[str | None, Literal["on", "off"]]] = {
    "integrity-refused-there": "off",
    "integrity-required-there": "on",
}


def integrity(here: Here, protected: Collection[Connection], others: Iterable[Connection]) -> Check:
    """Whether both ends want the same: else nothing is protected.  What the peer wants shows with a claim."""
    name = "peer.integrity"
    setting = _on(on=here.integrity)
    reason = next((c.reason for c in others if c.reason in _THEIRS), None)
    if reason is not None:
        theirs = _THEIRS[reason]
        hint = f'set mode = "{theirs}" in [integrity] here, or "{_on(on=theirs == "off")}" there'
        return fail(name, f"{setting} here, {theirs} there: {explain(reason)}", hint)
    tagged = sum(c.integrity for c in protected)
    if protected and tagged in (0, len(protected)):
        agreed = _on(on=tagged > 0)
        changed = "" if agreed == setting else f"; {setting} here for new ones"
        return ok(name, f"{agreed} here and there{changed}")
    if protected:
        return ok(name, f"{setting} here; {tagged} of {count(len(protected), 'connection')} with it")
    return ok(name, f"{setting} here; the peer's setting is known after the first connection")


def _on(*, on: bool) -> Literal["on", "off"]:
    return "on" if on else "off"

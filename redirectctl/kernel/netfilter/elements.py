"""What one connection is in the sets and maps of `skeleton`, as the bytes that nf_tables compares.

A key is the concatenation source, port, destination, port of a packet; each part is in network order and padded to
four bytes (nft_set_elem keys of concatenated types):

    IPv4  4 source | 2 port | 2 zero | 4 destination | 2 port | 2 zero          16 bytes
    IPv6 16 source | 2 port | 2 zero | 16 destination | 2 port | 2 zero         40 bytes
"""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import ip_address
from typing import Any, TypeAlias

from redirectctl.flows.connection import Flow
from redirectctl.kernel.netfilter.libnftables import Command
from redirectctl.kernel.netfilter.skeleton import MAPS, SETS, TABLE
from redirectctl.wire.addr import FourTuple, SockAddr

Place: TypeAlias = tuple[str, bytes]  # where an element is: name of the set or map, key
_NAMES = {version: {kind: f"{kind}{version}" for kind in (*SETS, *MAPS)} for version in (4, 6)}


def rules(flow: Flow) -> Flow:
    """What the kernel is to have of a flow: nothing of a wire tuple on which nothing is received or sent."""
    return flow._replace(wire=flow.incoming, closed=False)


def guard_place(socket: FourTuple) -> Place:
    """The element that every protected connection has; no two have the same."""
    return _NAMES[socket.version]["ask"], _end(socket.remote) + _end(socket.local)


def elements(flow: Flow) -> list[tuple[Place, bytes | None]]:
    """The elements of one connection, guard_place first; of a flow as rules() gives it.

    With integrity what does not come through the tunnel is dropped.  Of a suspended connection what its socket sends
    goes to NFQUEUE, and so does what comes for it, except by the tunnel.

    The value of an element of a set is empty, of a map a packed address.  None is a place that must stay empty: the
    kernel looks there for packets of this connection, and must not find another's element.  Written for speed: a move
    calls it for each connection.
    """
    names = _NAMES[flow.socket.version]
    local, remote = _end(flow.socket.local), _end(flow.socket.remote)
    wire_local, wire_remote = _end(flow.wire.local), _end(flow.wire.remote)
    incoming, outgoing = remote + local, local + remote
    found: list[tuple[Place, bytes | None]] = [((names["ask"], incoming), b"")]
    here, away = wire_local != local, wire_remote != remote
    if here or away or flow.tunnel or flow.suspended:
        found.append(((names["hold"], incoming), b""))
    if flow.tunnel:
        found.append(((names["tun"], outgoing), b""))
    if flow.suspended:
        found.append(((names["wait"], outgoing), b""))
        if not flow.tunnel:
            found.append(((names["back"], incoming), b""))
    if flow.integrity:
        found.append(((names["tag"], incoming), b""))
    if not here and not away:
        found.append(((names["src"], incoming), None))
        return found
    if flow.integrity:
        found.append(((names["tag"], wire_remote + wire_local), b""))
        found.append(((names["src"], incoming), None))
    found.append(((names["src"], wire_remote + wire_local), remote[:-4]))
    found.append(((names["dst"], remote + wire_local), local[:-4] if here else None))
    found.append(((names["wire"], wire_local + wire_remote), b""))
    if flow.tunnel:
        return found
    if away:
        found.append(((names["odst"], outgoing), wire_remote[:-4]))
        found.append(((names["bsrc"], local + wire_remote), wire_local[:-4] if here else None))
    else:
        found.append(((names["osrc"], outgoing), wire_local[:-4]))
    return found


def probe_place(socket: FourTuple) -> Place:
    """Where an outgoing socket tuple is in the set of probes."""
    return _NAMES[socket.version]["probe"], _end(socket.local) + _end(socket.remote)


def _end(address: SockAddr) -> bytes:
    return address.host.packed + address.port.to_bytes(2, "big") + b"\0\0"


def _parse(end: bytes) -> SockAddr:
    return SockAddr(ip_address(end[:-4]), int.from_bytes(end[-4:-2], "big"))


def describe(place: Place) -> str:
    """`SET SOURCE-DESTINATION`, for error messages."""
    name, key = place
    half = len(key) // 2
    return f"{name} {_parse(key[:half])}-{_parse(key[half:])}"


def add_commands(wanted: Iterable[tuple[Place, bytes]], timeout: int | None = None) -> list[Command]:
    """The elements as libnftables commands, one a set: half the time of one an element.  ``timeout`` in seconds."""
    lists: dict[str, list[Any]] = {}
    for (name, packed), value in wanted:
        half = len(packed) // 2
        ends = (_parse(packed[:half]), _parse(packed[half:]))
        key: Any = {"concat": [part for end in ends for part in (str(end.host), end.port)]}
        if timeout is not None:
            key = {"elem": {"val": key, "timeout": timeout}}
        lists.setdefault(name, []).append([key, str(ip_address(value))] if value else key)
    return [{"add": {"element": {**TABLE, "name": name, "elem": items}}} for name, items in lists.items()]


def flows_in(listing: list[Command]) -> frozenset[Flow]:
    """The connections that the sets and maps of a listed table stand for."""
    found: dict[str, dict[tuple[SockAddr, SockAddr], Any]] = {
        f"{kind}{version}": {} for kind in (*SETS, *MAPS) for version in (4, 6)
    }
    for item in listing:
        description = item.get("set") or item.get("map")
        if description and description["name"] in found:
            for element in description.get("elem", ()):
                key, value = element if isinstance(element, list) else (element, None)
                if "concat" in key:
                    host, port, other, other_port = key["concat"]
                    pair = (SockAddr(ip_address(host), port), SockAddr(ip_address(other), other_port))
                    found[description["name"]][pair] = value
    flows = []
    for version in (4, 6):
        destinations = found[f"dst{version}"]
        moved = set()
        for (wire_remote, wire_local), text in found[f"src{version}"].items():
            remote = SockAddr(ip_address(text), wire_remote.port)
            local = SockAddr(ip_address(destinations.get((remote, wire_local), str(wire_local.host))), wire_local.port)
            moved.add((remote, local))
            flows.append(Flow(FourTuple(local, remote), FourTuple(wire_local, wire_remote)))
        still = (FourTuple(local, remote) for remote, local in found[f"ask{version}"].keys() - moved)
        flows += [Flow(one, one) for one in still]
    return frozenset(
        flow._replace(
            tunnel=flow.socket in found[f"tun{flow.socket.version}"],
            # Its wire tuple alone may be that of another's socket.
            integrity={flow.socket.mirrored, flow.wire.mirrored} <= found[f"tag{flow.socket.version}"].keys(),
            suspended=flow.socket in found[f"wait{flow.socket.version}"],
        )
        for flow in flows
    )

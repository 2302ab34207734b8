"""The nftables table of redirectctl without its elements: sets, maps, chains and the rules in them.

Keys are the four numbers of a packet in the order source, source port, destination, destination port.  Each set has
an IPv4 and an IPv6 form, `NAME4` and `NAME6`:

    ask   RST guard: packets that come in with the socket tuple of a protected connection
    hold  the same, of a moved connection
    src   incoming wire tuple                     -> R, the source that the socket expects
    dst   the same after `src` has been applied   -> L, the destination that the socket expects
    odst  outgoing socket tuple                   -> wR, where the peer is now
    osrc  the same after `odst` has been applied  -> wL, where this host is now
    wire  outgoing wire tuples that no new local connection may take
    probe outgoing socket tuples whose next pure ACK is wanted; elements time out

The base chains `in`, `out` and `probe` have rules only for what there are connections for, so that nothing is looked
up in a map before a connection has moved.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from redirectctl.kernel.constants import MARK_ASK, MARK_HOLD, MARK_MOVED, MARK_PROBE, NFT_TABLE, TUN_DEVICE
from redirectctl.kernel.nft import Command

TABLE = {"family": "inet", "table": NFT_TABLE}

SETS = ("ask", "hold", "wire", "probe")
MAPS = ("src", "dst", "odst", "osrc")

_BEFORE_RAW = -310  # NF_IP_PRI_RAW - 10: before conntrack (-200), so that it sees the socket tuple
_MANGLE = -150  # NF_IP_PRI_MANGLE: chains of type route at output re-route what they have changed
_TCP_HEADER_WORDS = range(5, 16)  # data offset, RFC 9293 section 3.1
_FLAGS = {"payload": {"protocol": "tcp", "field": "flags"}}
_FAMILIES = {4: ("ip", "ipv4_addr"), 6: ("ip6", "ipv6_addr")}


class Shape(NamedTuple):
    """What the base chains must look after: address families (4, 6) of the connections there are."""

    guarded: frozenset[int]
    moved: frozenset[int]


NOTHING = Shape(frozenset(), frozenset())


def skeleton() -> list[Command]:
    """Replace the whole table, whatever it was, by one without elements; base chains have no rules."""
    name = {"family": TABLE["family"], "name": NFT_TABLE}
    commands: list[Command] = [{"add": {"table": name}}, {"delete": {"table": name}}, {"add": {"table": name}}]
    for version, (_, address) in _FAMILIES.items():
        key = [address, "inet_service", address, "inet_service"]
        for kind in SETS:
            flags = {"flags": ["timeout"]} if kind == "probe" else {}
            commands.append({"add": {"set": {**TABLE, "name": f"{kind}{version}", "type": key, **flags}}})
        for kind in MAPS:
            commands.append({"add": {"map": {**TABLE, "name": f"{kind}{version}", "type": key, "map": address}}})
    for version in _FAMILIES:
        for chain, rules in _subchains(version).items():
            commands.append({"add": {"chain": {**TABLE, "name": chain}}})
            commands += [_rule(chain, expr) for expr in rules]
    for chain, kind, hook, priority in (
        ("in", "filter", "prerouting", _BEFORE_RAW),
        ("probe", "filter", "output", _BEFORE_RAW),
        ("out", "route", "output", _MANGLE),
    ):
        base = {"type": kind, "hook": hook, "prio": priority, "policy": "accept"}
        commands.append({"add": {"chain": {**TABLE, "name": chain, **base}}})
    return commands


def base_rules(shape: Shape) -> list[Command]:
    """Make the rules of the base chains those that ``shape`` needs."""
    commands: list[Command] = [{"flush": {"chain": {**TABLE, "name": chain}}} for chain in ("in", "probe", "out")]
    for version in sorted(shape.guarded):
        commands += [_rule("in", expr) for expr in _in_guarded(version)]
        acks = _in_family(version, _flags_are("ack"), _is_in(version, "probe"), _goto("pure", version))
        commands.append(_rule("probe", acks))
    for version in sorted(shape.moved):
        commands += [_rule("in", expr) for expr in _in_moved(version)]
        commands += [_rule("out", expr) for expr in _out_moved(version)]
    if shape.moved:
        # FALLBACK_TABLE leads every packet to an old remote address here; those that are not ours are told what they
        # would be told without us: there is no route.
        device = {"match": {"op": "==", "left": {"meta": {"key": "oifname"}}, "right": TUN_DEVICE}}
        commands.append(_rule("out", [device, {"reject": {"type": "icmpx", "expr": "no-route"}}]))
    return commands


def _in_guarded(version: int) -> list[list[Command]]:
    return [_in_family(version, _has_flag("rst"), {"jump": {"target": f"rst{version}"}})]


def _in_moved(version: int) -> list[list[Command]]:
    return [_in_family(version, _set_address(version, "saddr", "src"), _or_mark(MARK_MOVED), _goto("moved", version))]


def _out_moved(version: int) -> list[list[Command]]:
    refuse = {"reject": {"type": "icmpx", "expr": "admin-prohibited"}}
    return [
        _in_family(version, _flags_are("syn"), _is_in(version, "wire"), refuse),
        _in_family(version, _set_address(version, "daddr", "odst"), _goto("outsrc", version)),
        _in_family(version, _set_address(version, "saddr", "osrc"), {"accept": None}),
    ]


def _subchains(version: int) -> dict[str, list[list[Command]]]:
    """Chains that do not depend on the Shape, by name."""
    length = "length"  # of the packet in IPv4, of what follows the IPv6 header in IPv6
    fixed = 20 if version == 4 else 0
    return {
        f"rst{version}": [
            [_is_in(version, "hold"), _or_mark(MARK_HOLD), {"return": None}],
            [_is_in(version, "ask"), _or_mark(MARK_ASK)],
        ],
        f"moved{version}": [
            [_set_address(version, "daddr", "dst")],
            [_has_flag("rst"), _or_mark(MARK_HOLD)],
        ],
        f"outsrc{version}": [
            [_set_address(version, "saddr", "osrc")],
            [{"accept": None}],
        ],
        # Without payload: one rule a header length.  A set of the pairs would be one rule, but nft 1.0.6 aborts
        # when it lists a concatenation with the four bits of the data offset (mergesort.c).
        f"pure{version}": [
            [
                _equals({"payload": {"protocol": "tcp", "field": "doff"}}, words),
                _equals(_address(version, length), fixed + 4 * words),
                _or_mark(MARK_PROBE),
            ]
            for words in _TCP_HEADER_WORDS
        ],
    }


def _rule(chain: str, expr: list[Command]) -> Command:
    return {"add": {"rule": {**TABLE, "chain": chain, "expr": expr}}}


def _in_family(version: int, *expr: Command) -> list[Command]:
    family = "ipv4" if version == 4 else "ipv6"
    return [_equals({"meta": {"key": "nfproto"}}, family), _equals({"meta": {"key": "l4proto"}}, "tcp"), *expr]


def _equals(left: Command, right: Any) -> Command:
    return {"match": {"op": "==", "left": left, "right": right}}


def _address(version: int, field: str) -> Command:
    return {"payload": {"protocol": _FAMILIES[version][0], "field": field}}


def _key(version: int) -> Command:
    sport, dport = ({"payload": {"protocol": "tcp", "field": field}} for field in ("sport", "dport"))
    return {"concat": [_address(version, "saddr"), sport, _address(version, "daddr"), dport]}


def _is_in(version: int, kind: str) -> Command:
    return _equals(_key(version), f"@{kind}{version}")


def _set_address(version: int, field: str, kind: str) -> Command:
    """Set an address from a map; a packet that is not in the map leaves the rule here (NFT_BREAK)."""
    value = {"map": {"key": _key(version), "data": f"@{kind}{version}"}}
    return {"mangle": {"key": _address(version, field), "value": value}}


def _or_mark(bit: int) -> Command:
    mark = {"meta": {"key": "mark"}}
    return {"mangle": {"key": mark, "value": {"|": [mark, bit]}}}


def _has_flag(flag: str) -> Command:
    return _equals({"&": [_FLAGS, flag]}, flag)


def _flags_are(flag: str) -> Command:
    """Of FIN, SYN, RST and ACK exactly this one; ECN, PSH and URG do not matter."""
    return _equals({"&": [_FLAGS, ["fin", "syn", "rst", "ack"]]}, flag)


def _goto(chain: str, version: int) -> Command:
    return {"goto": {"target": f"{chain}{version}"}}

"""The nftables table of redirectctl without its elements: sets, maps, chains and the rules in them.

Keys are the four numbers of a packet in the order source, source port, destination, destination port.  Each set has
an IPv4 and an IPv6 form, `NAME4` and `NAME6`:

    ask   RST guard: packets that come in with the socket tuple of a protected connection
    hold  the same, of a moved connection
    src   incoming wire tuple                     -> R, the source that the socket expects
    dst   the same after `src` has been applied   -> L, the destination that the socket expects
    odst  outgoing socket tuple                   -> wR, where the peer is now
    bsrc  the same after `odst` has been applied  -> wL, where this host is now
    osrc  outgoing socket tuple, only this host has moved -> wL
    wire  outgoing wire tuples that no new local connection may take
    tun   outgoing socket tuples of connections that send through the tunnel
    tag   packets that come in plainly with the socket or wire tuple of a connection with integrity: dropped
    wait  outgoing socket tuples of suspended connections: what they send is looked at first
    back  incoming socket tuples of those that may be answered plainly: so is what comes for them
    probe outgoing socket tuples whose next pure ACK is wanted; elements go when it has come, or time out

The base chains are there only while sets have elements that they must look up, and have only the rules for those:
a host without protected connections has no hook, and nothing is looked up before a connection has moved.

    in     prerouting, raw - 10    tokens: MARK_TOKEN (TOKEN); RSTs to chain rst; src and dst applied, MARK_MOVED;
                                   what the tunnel brings passes: MARK_MOVED and MARK_TUNNEL; tag dropped, UNTAGGED
    back   prerouting, raw - 5     MARK_WAIT: what comes from the network, by now with the socket tuple
    late   prerouting, raw + 10    what looked like a token and came out of its queue: tag dropped, UNTAGGED
    probe  output, raw - 10        MARK_WAIT; MARK_PROBE
    out    output, mangle          type route: tun gets MARK_TUNNEL; odst, bsrc, osrc applied, MARK_EXIT; routed again
    post   postrouting, mangle     what got a new source in `out` and leads to redirect0 all the same is dropped
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from redirectctl.kernel.constants import (
    MARK_ASK,
    MARK_EXIT,
    MARK_HOLD,
    MARK_MOVED,
    MARK_PROBE,
    MARK_TOKEN,
    MARK_TUNNEL,
    MARK_WAIT,
    NFT_TABLE,
    TUN_DEVICE,
)
from redirectctl.kernel.netfilter.libnftables import Command
from redirectctl.wire.ip import EXPERIMENT, EXPERIMENT_ID

TABLE = {"family": "inet", "table": NFT_TABLE}

SETS = ("ask", "hold", "wire", "probe", "tun", "tag", "wait", "back")
MAPS = {"src": "saddr", "dst": "daddr", "odst": "daddr", "bsrc": "saddr", "osrc": "saddr"}  # what each of them changes
UNTAGGED = "untagged"  # the counter of what is dropped
TOKEN = "token"  # among the names of sets: tokens are waited for; needs a rule and no set

_TOKENS_A_SECOND, _TOKENS_AT_ONCE = 2000, 2000  # beyond that they pass: TCP ignores options that it does not know
_BEFORE_RAW = -310  # NF_IP_PRI_RAW - 10: before conntrack (-200), so that it sees the socket tuple
_REWRITTEN = -305  # after `in`, and before the queues
_AFTER_RAW = -290  # after the queues, and before conntrack all the same
_MANGLE = -150  # NF_IP_PRI_MANGLE: chains of type route at output re-route what they have changed
_TCP_HEADER_WORDS = range(5, 16)  # data offset, RFC 9293 section 3.1
_FLAGS = {"payload": {"protocol": "tcp", "field": "flags"}}
_LOOPBACK = "lo"
_FAMILIES = {4: ("ip", "ipv4_addr"), 6: ("ip6", "ipv6_addr")}


_BASES = {
    "in": {"type": "filter", "hook": "prerouting", "prio": _BEFORE_RAW, "policy": "accept"},
    "back": {"type": "filter", "hook": "prerouting", "prio": _REWRITTEN, "policy": "accept"},
    "late": {"type": "filter", "hook": "prerouting", "prio": _AFTER_RAW, "policy": "accept"},
    "probe": {"type": "filter", "hook": "output", "prio": _BEFORE_RAW, "policy": "accept"},
    "out": {"type": "route", "hook": "output", "prio": _MANGLE, "policy": "accept"},
    "post": {"type": "filter", "hook": "postrouting", "prio": _MANGLE, "policy": "accept"},
}


def skeleton() -> list[Command]:
    """Replace the whole table, whatever it was, by one without elements and base chains."""
    name = {"family": TABLE["family"], "name": NFT_TABLE}
    commands: list[Command] = [{"add": {"table": name}}, {"delete": {"table": name}}, {"add": {"table": name}}]
    commands.append({"add": {"counter": {**TABLE, "name": UNTAGGED}}})
    for version, (_, address) in _FAMILIES.items():
        key = [address, "inet_service", address, "inet_service"]
        for kind in SETS:
            flags = {"flags": ["timeout"]} if kind == "probe" else {}
            commands.append({"add": {"set": {**TABLE, "name": f"{kind}{version}", "type": key, **flags}}})
        for kind in MAPS:
            commands.append({"add": {"map": {**TABLE, "name": f"{kind}{version}", "type": key, "map": address}}})
        for chain, rules in _subchains(version).items():
            commands.append({"add": {"chain": {**TABLE, "name": chain}}})
            commands += [_rule(chain, expr) for expr in rules]
    return commands


def reshape(before: frozenset[str], after: frozenset[str]) -> list[Command]:
    """Change base chains from what the sets named in ``before`` need to what those in ``after`` need."""
    commands: list[Command] = []
    old, new = _base_rules(before), _base_rules(after)
    for chain, base in _BASES.items():
        if old[chain] == new[chain]:
            continue
        if not new[chain]:
            commands.append({"delete": {"chain": {**TABLE, "name": chain}}})
        elif old[chain]:
            commands.append({"flush": {"chain": {**TABLE, "name": chain}}})
        else:
            commands.append({"add": {"chain": {**TABLE, "name": chain, **base}}})
        commands += [_rule(chain, expr) for expr in new[chain]]
    return commands


def rule_counts(filled: frozenset[str]) -> Counter[str]:
    """How many rules each chain has when the sets and maps in ``filled`` may have elements."""
    chains = {**_base_rules(filled), **_subchains(4), **_subchains(6)}
    return Counter({chain: len(rules) for chain, rules in chains.items() if rules})


_MOVED = ("src", "tun", "odst", "osrc")  # of these sets and maps any has whatever has moved


def _base_rules(filled: frozenset[str]) -> dict[str, list[list[Command]]]:
    """The rules of the base chains when the sets and maps in ``filled`` may have elements.

    Packets of moved connections leave each chain as early as can be.
    """
    rules: dict[str, list[list[Command]]] = {chain: [] for chain in _BASES}
    for version in (4, 6):
        here = {kind for kind in (*SETS, *MAPS) if f"{kind}{version}" in filled}
        if "tag" in here:
            drop = _is_in(version, "tag"), {"counter": UNTAGGED}, {"drop": None}
            rules["in"].insert(0, _in_family(version, *drop))
            # Without a daemon, and if it is none after all, what may have been a token goes on to the socket.
            rules["late"].append(_in_family(version, _has_mark(MARK_TOKEN), *drop))
        if "ask" in here:
            rules["in"].append(_in_family(version, _has_flag("rst"), {"jump": {"target": f"rst{version}"}}))
        if "src" in here:
            last = _goto("dst", version) if "dst" in here else {"accept": None}
            # Who begins a connection on the same tuple is somebody else.
            begun = _equals({"&": [_FLAGS, "syn"]}, 0)
            rules["in"].append(_in_family(version, begun, _apply(version, "src"), _or_mark(MARK_MOVED), last))
        if "tun" in here:
            rules["out"].append(_in_family(version, _is_in(version, "tun"), _or_mark(MARK_TUNNEL), {"accept": None}))
        if "odst" in here:
            last = _goto("bsrc", version) if "bsrc" in here else {"accept": None}
            rules["out"].append(_in_family(version, _apply(version, "odst"), _or_mark(MARK_EXIT), last))
        if "osrc" in here:
            rules["out"].append(_in_family(version, _apply(version, "osrc"), _or_mark(MARK_EXIT), {"accept": None}))
        if "wire" in here:
            refuse = {"reject": {"type": "icmpx", "expr": "admin-prohibited"}}
            rules["out"].append(_in_family(version, _flags_are("syn"), _is_in(version, "wire"), refuse))
        if here & {"probe", "wait", *_MOVED}:  # whoever has moved is asked to send, too (tcp/backoff.py)
            # A host firewall that drops what conntrack calls invalid must not see our SYN (tcp/inject.py) as such, and
            # a token sent on a wire tuple (tcp/inband.py) is of no connection that conntrack knows.
            for mark in (MARK_MOVED, MARK_TOKEN):
                rules["probe"].append(_in_family(version, _has_mark(mark), {"notrack": None}))
        if "back" in here:
            rules["back"].append(_in_family(version, _is_in(version, "back"), _or_mark(MARK_WAIT)))
        if "wait" in here:
            rules["probe"].append(_in_family(version, _is_in(version, "wait"), _or_mark(MARK_WAIT)))
        if "probe" in here:
            wanted = _flags_are("ack"), _is_in(version, "probe"), _goto("pure", version)
            rules["probe"].append(_in_family(version, *wanted))
    if rules["back"]:
        # Not what we inject (tcp/inject.py), nor what the tunnel brings.
        for name in (_LOOPBACK, TUN_DEVICE):
            rules["back"].insert(0, [_equals({"meta": {"key": "iifname"}}, name), {"accept": None}])
    if rules["late"]:
        # What we inject says that it is from the peer (tcp/inject.py). Nothing from the network has a mark.
        injected = _equals({"meta": {"key": "iifname"}}, _LOOPBACK), _has_mark(MARK_MOVED)
        rules["in"].insert(0, [*injected, {"accept": None}])
    if rules["in"]:
        # Also for connections that are guarded only: the peer may have gone over to the tunnel before this host does.
        tunnelled = _equals({"meta": {"key": "iifname"}}, TUN_DEVICE)
        rules["in"].insert(0, [tunnelled, _or_mark(MARK_MOVED | MARK_TUNNEL), {"accept": None}])
    if rules["in"] or rules["probe"]:
        # As in `probe`, for conntrack: what is injected for IPv6 is put on the device, and comes by no output hook; and
        # without `probe` there is no other place for it.
        our_syn = _equals({"meta": {"key": "iifname"}}, _LOOPBACK), _has_mark(MARK_MOVED)
        tcp = _equals({"meta": {"key": "l4proto"}}, "tcp")
        rules["in"].insert(0, [*our_syn, tcp, _flags_are("syn"), {"notrack": None}])
    if {"tun4", "tun6"} & filled:
        # A token that is to show whether plain packets get through must not go through the tunnel.
        rules["out"].insert(0, [_has_mark(MARK_TOKEN), {"accept": None}])
    if rules["out"]:
        # FALLBACK_TABLE leads every packet to an old remote address here; those that are not ours are told what they
        # would be told without us: there is no route.
        device = _equals({"meta": {"key": "oifname"}}, TUN_DEVICE)
        rules["out"].append([device, {"reject": {"type": "icmpx", "expr": "no-route"}}])
        if {"bsrc4", "bsrc6", "osrc4", "osrc6"} & filled:
            # There is no way from the new address either: it has gone too. TCP must not believe that its segment was
            # sent: then it would wait for its time-out, and what sending failed for can be hurried (tcp/backoff.py).
            plain = _equals({"&": [{"meta": {"key": "mark"}}, MARK_TUNNEL]}, 0)
            rules["post"].append([device, _equals({"meta": {"key": "l4proto"}}, "tcp"), plain, {"drop": None}])
    if TOKEN in filled:
        experiment = {"tcp option": {"base": EXPERIMENT, "offset": 16, "len": 16}}
        limit = {"limit": {"rate": _TOKENS_A_SECOND, "per": "second", "burst": _TOKENS_AT_ONCE}}
        rules["in"].insert(0, [_equals(experiment, EXPERIMENT_ID), limit, _or_mark(MARK_TOKEN), {"accept": None}])
    return rules


def _subchains(version: int) -> dict[str, list[list[Command]]]:
    """Chains that are always there, by name."""
    fixed = 20 if version == 4 else 0  # `length` is the packet's in IPv4, that of what follows the header in IPv6
    return {
        f"dst{version}": [[_apply(version, "dst")]],
        f"bsrc{version}": [[_apply(version, "bsrc")], [{"accept": None}]],
        # An RST on the wire path of a moved connection is rewritten here, so that other packets need no second test.
        f"rst{version}": [
            [_is_in(version, "hold"), _or_mark(MARK_HOLD), {"return": None}],
            [_is_in(version, "ask"), _or_mark(MARK_ASK), {"return": None}],
            [_apply(version, "src"), _or_mark(MARK_MOVED | MARK_HOLD), _goto("dst", version)],
        ],
        # Without payload: one rule a header length.  A set of the pairs would be one rule, but nft 1.0.6 aborts
        # when it lists a concatenation with the four bits of the data offset (mergesort.c).
        f"pure{version}": [
            [
                _equals({"payload": {"protocol": "tcp", "field": "doff"}}, words),
                _equals(_address(version, "length"), fixed + 4 * words),
                # One is enough: those of a bulk transfer must not all go through NFQUEUE.
                {"set": {"op": "delete", "elem": _key(version), "set": f"@probe{version}"}},
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


def _apply(version: int, kind: str) -> Command:
    """Set an address to what a map says; a packet that is not in the map leaves the rule here (NFT_BREAK)."""
    value = {"map": {"key": _key(version), "data": f"@{kind}{version}"}}
    return {"mangle": {"key": _address(version, MAPS[kind]), "value": value}}


def _or_mark(bit: int) -> Command:
    mark = {"meta": {"key": "mark"}}
    return {"mangle": {"key": mark, "value": {"|": [mark, bit]}}}


def _has_mark(bit: int) -> Command:
    return _equals({"&": [{"meta": {"key": "mark"}}, bit]}, bit)


def _has_flag(flag: str) -> Command:
    return _equals({"&": [_FLAGS, flag]}, flag)


def _flags_are(flag: str) -> Command:
    """Of FIN, SYN, RST and ACK exactly this one; ECN, PSH and URG do not matter."""
    return _equals({"&": [_FLAGS, ["fin", "syn", "rst", "ack"]]}, flag)


def _goto(chain: str, version: int) -> Command:
    return {"goto": {"target": f"{chain}{version}"}}

"""nftables rules as libnftables lists them (libnftables-json(5)), for traversal.py."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from redirectctl.doctor.firewall.traversal import Chain, Datagram, Judgement, Kind, Rule, Table, Verdict
from redirectctl.kernel.constants import NFT_TABLE
from redirectctl.kernel.netfilter.libnftables import Command

_NEUTRAL = {"counter", "log", "mangle", "notrack", "ct helper", "ct timeout", "set", "meta", "nat", "flow", "dup"}
_FAMILIES = {"ip": (4,), "ip6": (6,), "inet": (4, 6)}
_VERDICTS = {"accept": Kind.ACCEPT, "drop": Kind.DROP, "reject": Kind.DROP, "return": Kind.RETURN}
_JUMPS = {"jump": Kind.JUMP, "goto": Kind.GOTO}


def tables(listed: Iterable[Command], version: int, without: Iterable[tuple[str, str]] = ()) -> list[Table]:
    """All tables that see packets of this IP version, but for our own and those named (family, name)."""
    found: dict[tuple[str, str], Table] = {}
    sets: dict[tuple[str, str], dict[str, list[Any]]] = {}
    left_out = {("inet", NFT_TABLE), *without}
    for item in listed:
        (kind, value), *_ = item.items()
        family = value.get("family")
        at = (family, value.get("table", value.get("name")))
        if version not in _FAMILIES.get(family, ()) or at in left_out:
            continue
        if kind == "chain":
            found.setdefault(at, {})[value["name"]] = _chain(value)
        elif kind in ("set", "map"):
            sets.setdefault(at, {})[value["name"]] = value.get("elem", [])
        elif kind == "rule" and value["chain"] in found.get(at, {}):
            found[at][value["chain"]].rules.append(_rule(value, sets.setdefault(at, {})))
    return list(found.values())


def _chain(value: dict[str, Any]) -> Chain:
    family, table, name = value["family"], value["table"], value["name"]
    chain = Chain(f"nft table {family} {table}, chain {name}")
    if "hook" in value and value.get("type") in ("filter", "route"):
        chain.hook, chain.priority = value["hook"], int(value.get("prio", 0))
        chain.accepts = value.get("policy", "accept") == "accept"
        if table == "firewalld":
            chain.open_port = lambda datagram, _: (
                f"firewall-cmd --permanent --add-port={datagram.port}/udp && sudo firewall-cmd --reload"
            )
        else:
            chain.open_port = lambda datagram, _: (
                f"nft insert rule {family} {table} {name} udp dport {datagram.port} accept"
            )
    return chain


def _rule(value: dict[str, Any], sets: dict[str, list[Any]]) -> Rule:
    where = f"nft table {value['family']} {value['table']}, chain {value['chain']}, rule handle {value['handle']}"
    comment = value.get("comment")
    expressions = value.get("expr", [])
    return Rule(f'{where} "{comment}"' if comment else where, lambda datagram: _judge(expressions, datagram, sets))


def _judge(expressions: list[Any], datagram: Datagram, sets: dict[str, list[Any]]) -> Iterator[Judgement]:
    """What the statements of one rule say, in order; a condition that does not hold ends the rule."""
    sure: bool | None = True
    for statement in expressions:
        name, value = _statement(statement)
        if name == "match":
            holds = _holds(value, datagram, sets)
            if holds is False:
                return
            sure = sure if holds else None
        elif name in _VERDICTS:
            yield sure, Verdict(_VERDICTS[name])
        elif name in _JUMPS:
            yield sure, Verdict(_JUMPS[name], value["target"])
        elif name == "vmap":
            yield from _looked_up(value, datagram, sets, sure)
        elif name == "queue":
            yield None, Verdict(Kind.DROP)  # a program decides
        elif name == "xt":
            target = value.get("name") if isinstance(value, dict) and value.get("type") == "target" else None
            if target in ("REJECT", "DROP"):
                yield sure, Verdict(Kind.DROP)
            sure = None  # a match of iptables' that cannot be read
        elif name not in _NEUTRAL:
            sure = None


def _statement(statement: Any) -> tuple[str, Any]:
    """Its name and what belongs to it; a bare name has nothing."""
    if not isinstance(statement, dict):
        return str(statement), None
    ((name, value),) = statement.items()
    return name, value


def _looked_up(
    value: dict[str, Any], datagram: Datagram, sets: dict[str, list[Any]], sure: bool | None
) -> Iterator[Judgement]:
    data = value["data"]
    pairs = sets.get(data[1:], []) if isinstance(data, str) else data.get("set", [])
    known = _known(value["key"], datagram)
    for key, statement in (pair for pair in pairs if isinstance(pair, list) and len(pair) == 2):
        name, target = _statement(statement)
        verdict = Verdict(_JUMPS[name], target["target"]) if name in _JUMPS else None
        if name in _VERDICTS:
            verdict = Verdict(_VERDICTS[name])
        if verdict is not None:
            holds = _contains(key, known, sets) if known is not None else None
            yield (sure if holds else holds), verdict


def _holds(match: dict[str, Any], datagram: Datagram, sets: dict[str, list[Any]]) -> bool | None:
    left, right, operator = match["left"], match["right"], match.get("op", "==")
    interface = _interface(left, right, operator)
    if interface is not None:
        return interface
    known = _known(left, datagram)
    if known is None:
        return None
    if not known:  # a header that the datagram does not have
        return False
    if operator in ("==", "in", "!="):
        found = _contains(right, known, sets)
        return found if operator != "!=" or found is None else not found
    if isinstance(right, int):
        numbers = [each for each in known if isinstance(each, int)]
        compare = {"<": int.__lt__, ">": int.__gt__, "<=": int.__le__, ">=": int.__ge__}.get(operator)
        return any(compare(number, right) for number in numbers) if compare and numbers else None
    return None


def _interface(left: Any, right: Any, operator: str) -> bool | None:
    """Packets between hosts do not use lo; of other interfaces we know nothing."""
    key = left.get("meta", {}).get("key") if isinstance(left, dict) else None
    if key in ("iifname", "oifname", "iif", "oif") and right in ("lo", 1):
        return operator == "!="
    return None


def _known(left: Any, datagram: Datagram) -> set[int | str] | None:
    """The values that an expression has for the datagram, as name and number; None: not known; empty: never there."""
    if not isinstance(left, dict):
        return None
    ((name, value),) = left.items()
    key = value.get("key") if isinstance(value, dict) else None
    version = datagram.version
    if name == "payload" and "protocol" in value:
        protocol, part = value["protocol"], value["field"]
        if protocol in ("udp", "th"):
            return {datagram.port} if part == "dport" else None
        if protocol in ("ip", "ip6"):
            if (protocol == "ip") != (version == 4):
                return set()
            return {"udp", 17} if part in ("protocol", "nexthdr") else None
        return set() if protocol in ("tcp", "icmp", "icmpv6", "sctp", "dccp", "esp", "ah", "udplite") else None
    if name == "meta":
        values: dict[str, set[int | str]] = {
            "l4proto": {"udp", 17},
            "nfproto": {"ipv4", 2} if version == 4 else {"ipv6", 10},
            "protocol": {"ip", 0x0800} if version == 4 else {"ip6", 0x86DD},
            "pkttype": {"host", "unicast", 0},
        }
        return values.get(str(key))
    if name == "ct" and key == "state":
        return {"new", 8} if datagram.begins else {"established", 2}
    return None


def _contains(right: Any, known: set[int | str], sets: dict[str, list[Any]]) -> bool | None:
    """Whether the right side of a comparison names one of the values."""
    if isinstance(right, bool):
        return None
    if isinstance(right, str) and right.startswith("@"):
        elements = sets.get(right[1:])
        return _contains(elements, known, sets) if elements is not None else None
    if isinstance(right, (int, str)):
        return right in known
    if isinstance(right, dict) and "set" in right:
        return _contains(right["set"], known, sets)
    if isinstance(right, dict) and "elem" in right:
        return _contains(right["elem"]["val"], known, sets)
    if isinstance(right, dict) and "|" in right:
        return _contains(right["|"], known, sets)
    if isinstance(right, dict) and "range" in right:
        low, high = right["range"]
        numbers = [each for each in known if isinstance(each, int)]
        return any(low <= number <= high for number in numbers) if isinstance(low, int) and numbers else None
    if isinstance(right, list):
        answers = [_contains(each[0] if isinstance(each, list) else each, known, sets) for each in right]
        return True if True in answers else None if None in answers else False
    return None

"""iptables rules as `iptables-save` prints them, for traversal.py."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable, Iterator

from redirectctl.doctor.firewall.ruleset import Saved
from redirectctl.doctor.firewall.traversal import Chain, Datagram, Judgement, Kind, Rule, Table, Verdict
from redirectctl.kernel.netfilter.queue_rules import QUEUE_RULES

_PRIORITIES = {"raw": -300, "mangle": -150, "filter": 0, "security": 50}  # linux/netfilter_ipv4.h
_HOOKS = {"PREROUTING": "prerouting", "INPUT": "input", "OUTPUT": "output", "POSTROUTING": "postrouting"}
_VERDICTS = {"ACCEPT": Kind.ACCEPT, "DROP": Kind.DROP, "REJECT": Kind.DROP, "RETURN": Kind.RETURN}
_OURS = {str(rule.queue) for rule in QUEUE_RULES}  # NFQUEUE numbers; these rules see TCP only
_UFW = ("ufw-", "ufw6-")  # begin the names of its chains
_NEUTRAL_MATCHES = {"udp", "comment", "conntrack", "state", "multiport", "addrtype"}  # their options say all


def tables(saved: Saved) -> list[Table]:
    """The tables of one `iptables-save`."""
    found: list[Table] = []
    name = ""
    for line in saved.lines:
        if line.startswith("*"):
            name = line[1:].strip()
            found.append({})
        elif line.startswith(":") and found:
            title, policy, *_ = line[1:].split()
            found[-1][title] = _chain(saved.program, name, title, policy)
        elif line.startswith("-A ") and found:
            try:
                words = shlex.split(line)
            except ValueError:
                continue
            chain = found[-1].get(words[1])
            if chain is not None and _value(words, "--queue-num") not in _OURS:
                table = "" if name == "filter" else f" -t {name}"
                chain.rules.append(_rule(f"{saved.program}{table} {line}", words[2:]))
    _by_ufw(found)
    return found


def _chain(program: str, table: str, name: str, policy: str) -> Chain:
    chain = Chain(f"{program} table {table}, chain {name}")
    if name in _HOOKS and table in _PRIORITIES:
        chain.hook, chain.priority, chain.accepts = _HOOKS[name], _PRIORITIES[table], policy != "DROP"
        where = f"{program}{'' if table == 'filter' else f' -t {table}'}"
        chain.open_port = lambda datagram, _: f"{where} -I {name} -p udp --dport {datagram.port} -j ACCEPT"
    return chain


def _by_ufw(tables: list[Table]) -> None:
    """Where ufw is in charge: a rule beside its own is gone when it makes them anew."""
    for table in tables:
        chain = table.get("INPUT")
        if chain is not None and chain.open_port and any(name.startswith(_UFW) for name in table):
            chain.open_port = _ufw_or(chain.open_port)


def _ufw_or(other: Callable[[Datagram, str], str]) -> Callable[[Datagram, str], str]:
    def open_port(datagram: Datagram, by: str) -> str:
        chain = by.partition("-A ")[2]
        return f"ufw allow {datagram.port}/udp" if not by or chain.startswith(_UFW) else other(datagram, by)

    return open_port


def _rule(text: str, words: list[str]) -> Rule:
    conditions = list(_conditions(words))
    target = _value(words, "-j") or _value(words, "-g") or ""
    kind = _VERDICTS.get(target)
    if kind is None and target == "NFQUEUE":
        return Rule(text, lambda _: [(None, Verdict(Kind.DROP))])  # a program decides
    verdict = Verdict(kind) if kind is not None else Verdict(Kind.GOTO if "-g" in words else Kind.JUMP, target)

    def judge(datagram: Datagram) -> Iterable[Judgement]:
        answers = [_holds(datagram, *condition) for condition in conditions]
        matches = False if False in answers else None if None in answers else True
        return [(matches, verdict)]

    return Rule(text, judge)


def _value(words: list[str], option: str) -> str | None:
    """What stands behind an option."""
    return words[words.index(option) + 1] if option in words[:-1] else None


def _conditions(words: list[str]) -> Iterator[tuple[str, list[str], bool]]:
    """(option, its values, negated) for what stands before the target."""
    negated, at = False, 0
    while at < len(words) and words[at] not in ("-j", "-g"):
        word = words[at]
        at += 1
        if word == "!":
            negated = True
            continue
        values = words[at : at + 1] if word == "--comment" else []  # which may look like an option
        at += len(values)
        while at < len(words) and not words[at].startswith("-") and words[at] != "!":
            values.append(words[at])
            at += 1
        yield word, values, negated
        negated = False


def _holds(datagram: Datagram, option: str, values: list[str], negated: bool) -> bool | None:
    value = values[0] if values else ""
    found: bool | None = None
    match option:
        case "-p":
            found = value in ("udp", "17", "all")
        case "-m":
            return True if value in _NEUTRAL_MATCHES else None
        case "--comment":
            return True
        case "--dport" | "--dports" | "--destination-ports":
            found = any(_in_range(each, datagram.port) for each in value.split(","))
        case "--ctstate" | "--state":
            found = ("NEW" if datagram.begins else "ESTABLISHED") in value.split(",")
        case "--dst-type":  # to or from this host, to one address: ufw asks that first
            found = value == ("LOCAL" if datagram.incoming else "UNICAST")
        case "-i" | "-o":
            found = False if value == "lo" else None
    return found if found is None or not negated else not found


def _in_range(text: str, port: int) -> bool:
    first, _, last = text.partition(":")
    if not first.isdigit() or (last and not last.isdigit()):
        return False
    return int(first) <= port <= int(last or first)

"""What a packet filter does with a datagram, as far as its rules say: chains, rules, and a walk through them.

A rule matches, does not match, or it depends (on addresses, interfaces, rates, marks: what cannot be known here).  The
walk gives what happens when none of the rules that depend matches, and whether one of them would save the datagram.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple

DEPTH = 32  # jumps; nf_tables allows 16 (NFT_JUMP_STACK_SIZE)


class Datagram(NamedTuple):
    """UDP to or from another host."""

    version: int  # 4 or 6
    incoming: bool
    port: int  # destination port
    begins: bool  # conntrack's state is new, else established


class Kind(Enum):
    """What a rule does with a packet."""

    ACCEPT = "accept"
    DROP = "drop"  # or reject
    JUMP = "jump"
    GOTO = "goto"
    RETURN = "return"


class Verdict(NamedTuple):
    """With the chain that it leads to."""

    kind: Kind
    target: str = ""


Judgement = tuple[bool | None, Verdict]  # matches, does not, depends


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule; it may have several verdicts (a verdict map)."""

    text: str  # for a person
    judge: Callable[[Datagram], Iterable[Judgement]]


@dataclass(slots=True)
class Chain:
    """A base chain, which has a hook, or one that is jumped to."""

    label: str  # for a person
    hook: str = ""
    priority: int = 0
    accepts: bool = True  # policy
    # The command of root that lets the datagram through, which a rule drops (its text), or the policy ("").
    open_port: Callable[[Datagram, str], str] | None = None
    rules: list[Rule] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Blame:
    """Who drops."""

    text: str
    remedy: str


@dataclass(frozen=True, slots=True)
class Fate:
    """What becomes of a datagram."""

    blame: Blame | None  # None: it gets through
    certain: bool = True  # False: it may get through after all, or may be dropped


@dataclass(frozen=True, slots=True)
class _End:
    """The end of a walk through a chain."""

    kind: Kind | None  # None: past the last rule
    by: str = ""


Table = dict[str, Chain]  # by name


def fate(tables: Iterable[Table], datagram: Datagram) -> Fate:
    """The fate in all tables: dropped by one is dropped."""
    hooks = ("prerouting", "input") if datagram.incoming else ("output", "postrouting")
    chains = [(chain, table) for table in tables for chain in table.values() if chain.hook in hooks]
    chains.sort(key=lambda pair: (hooks.index(pair[0].hook), pair[0].priority))
    doubtful = False
    for chain, table in chains:
        depends: set[Kind | None] = set()
        end = _walk(chain, table, datagram, depends, DEPTH)
        dropped = end.kind is Kind.DROP or (end.kind is not Kind.ACCEPT and not chain.accepts)
        if dropped:
            remedy = chain.open_port(datagram, end.by if end.kind is Kind.DROP else "") if chain.open_port else ""
            text = end.by if end.kind is Kind.DROP else f"{chain.label}: its policy is drop"
            saved = Kind.ACCEPT in depends or (chain.accepts and Kind.RETURN in depends)
            return Fate(Blame(text, remedy), certain=not saved)
        doubtful = doubtful or Kind.DROP in depends
    return Fate(None, certain=not doubtful)


def _walk(chain: Chain, table: Table, datagram: Datagram, depends: set[Kind | None], depth: int) -> _End:
    """Where it ends without the rules that depend; what those would do goes into ``depends``."""
    if depth == 0:
        return _End(None)
    for rule in chain.rules:
        for matches, verdict in rule.judge(datagram):
            if matches is False:
                continue
            here: set[Kind | None] = depends
            target = table.get(verdict.target)
            if verdict.kind in (Kind.JUMP, Kind.GOTO):
                end = _walk(target, table, datagram, here, depth - 1) if target is not None else _End(None)
                if verdict.kind is Kind.GOTO and end.kind is None:
                    end = _End(Kind.RETURN)
                elif verdict.kind is Kind.JUMP and end.kind is Kind.RETURN:
                    end = _End(None)
            else:
                end = _End(verdict.kind, rule.text)
            if matches is None:
                depends.add(end.kind)
            elif end.kind is not None:
                return end
    return _End(None)

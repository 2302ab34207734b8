"""Whether this host's own packet filter lets the control port's datagrams through."""

from __future__ import annotations

from redirectctl.api.schema import Check
from redirectctl.doctor.firewall import iptables, nftables
from redirectctl.doctor.firewall.ruleset import Ruleset
from redirectctl.doctor.firewall.traversal import Datagram, Fate, Table, fate
from redirectctl.doctor.outcome import fail, ok, several, warn

NAME = "control.firewall"


def check(rules: Ruleset, port: int, versions: tuple[int, ...] = (4, 6)) -> Check:
    """Follow a datagram from a stranger, an answer, and one of ours through all the rules."""
    dropped: dict[str, tuple[str, set[int]]] = {}  # certain: what, with the remedy and for which IP versions
    doubtful: dict[str, tuple[str, set[int]]] = {}
    depends = False
    for version in versions:
        found = _tables(rules, version)
        answers = fate(found, Datagram(version, True, port, begins=False))
        for direction, one in (
            ("out", fate(found, Datagram(version, False, port, begins=True))),
            ("in", answers),
            ("in, unless this host spoke first,", fate(found, Datagram(version, True, port, begins=True))),
        ):
            if one.blame is None:
                depends = depends or not one.certain
                continue
            if direction not in ("in", "out") and answers.blame is not None:
                continue  # said already
            sure = one.certain and direction in ("in", "out")
            place = dropped if sure else doubtful
            place.setdefault(_said(direction, one), (one.blame.remedy, set()))[1].add(version)
    if dropped or doubtful:
        told = {**dropped, **doubtful}
        text = several([f"{_of(seen)}{what}" for what, (_, seen) in told.items()])
        remedies = list(dict.fromkeys(remedy for remedy, _ in told.values() if remedy))
        commands = several([f"`sudo {remedy}`" for remedy in remedies])
        hint = f"let UDP {port} through: {commands}" if remedies else f"let UDP {port} through"
        return fail(NAME, text, hint) if dropped else warn(NAME, text, hint)
    exception = ", except where rules name certain addresses, interfaces or rates" if depends else ""
    return ok(NAME, f"this host's own rules let UDP {port} in and out{exception}")


def _tables(rules: Ruleset, version: int) -> list[Table]:
    """iptables' own words where there are any: libnftables cannot read its matches."""
    family, program = ("ip", "iptables") if version == 4 else ("ip6", "ip6tables")
    saved = [each for each in rules.xtables if each.program in (program, f"{program}-legacy")]
    known = ["filter", "raw", "mangle", "security", "nat"] if any(s.program == program for s in saved) else []
    tables = nftables.tables(rules.nft, version, [(family, name) for name in known])
    return [*tables, *(table for each in saved for table in iptables.tables(each))]


def _said(direction: str, one: Fate) -> str:
    sure = "" if one.certain else " unless another rule makes an exception"
    by = one.blame.text if one.blame is not None else ""
    return f"datagrams {direction} are dropped{sure} by: {by}"


def _of(versions: set[int]) -> str:
    return "" if len(versions) > 1 else f"IPv{min(versions)} "

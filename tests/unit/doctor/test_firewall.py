"""Which rules drop the control port.  Rules as libnftables 1.0.6 and iptables-save 1.8.9 print them."""

from __future__ import annotations

from typing import Any

import pytest

from redirectctl.api.schema import CheckStatus
from redirectctl.doctor.firewall import control_port
from redirectctl.doctor.firewall.ruleset import Ruleset, Saved

PORT = 7747
UDP = {"match": {"op": "==", "left": {"meta": {"key": "l4proto"}}, "right": 17}}
ACCEPT, DROP = {"accept": None}, {"drop": None}


def dport(right: Any, op: str = "==") -> dict[str, Any]:
    return {"match": {"op": op, "left": {"payload": {"protocol": "udp", "field": "dport"}}, "right": right}}


def state(*numbers: int) -> dict[str, Any]:
    return {"match": {"op": "in", "left": {"ct": {"key": "state"}}, "right": list(numbers)}}


def meta(key: str, right: Any, op: str = "==") -> dict[str, Any]:
    return {"match": {"op": op, "left": {"meta": {"key": key}}, "right": right}}


def saddr(right: Any) -> dict[str, Any]:
    return {"match": {"op": "==", "left": {"payload": {"protocol": "ip", "field": "saddr"}}, "right": right}}


ESTABLISHED = state(2, 4)
FROM_TEN = saddr({"prefix": {"addr": "10.0.0.0", "len": 8}})


def table(
    *rules: list[Any],
    policy: str = "accept",
    hook: str = "input",
    family: str = "inet",
    name: str = "fw",
    chains: dict[str, list[list[Any]]] | None = None,
    sets: dict[str, list[Any]] | None = None,
) -> list[dict[str, Any]]:
    where = {"family": family, "table": name}
    found: list[dict[str, Any]] = [{"table": {"family": family, "name": name, "handle": 1}}]
    found += [
        {"set": {**where, "name": each, "type": "inet_service", "elem": elem}} for each, elem in (sets or {}).items()
    ]
    base = {"type": "filter", "hook": hook, "prio": 0, "policy": policy}
    found.append({"chain": {**where, "name": "in", "handle": 1, **base}})
    found += [{"chain": {**where, "name": each, "handle": 2}} for each in chains or {}]
    everything = [("in", list(rules)), *(chains or {}).items()]
    handle = 10
    for chain, content in everything:
        for expr in content:
            handle += 1
            found.append({"rule": {**where, "chain": chain, "handle": handle, "expr": expr}})
    return found


def check(*listed: list[dict[str, Any]], saved: list[Saved] | None = None) -> Any:
    return control_port.check(Ruleset([item for each in listed for item in each], saved or []), PORT)


LETS_IN = [
    [],
    table(policy="accept"),
    table([dport(PORT), ACCEPT], policy="drop"),
    table([dport(PORT), ACCEPT], [dport(PORT), DROP]),
    table([dport({"set": [53, {"range": [7000, 8000]}]}), ACCEPT], policy="drop"),
    table([dport("@open"), ACCEPT], policy="drop", sets={"open": [22, {"range": [7700, 7800]}]}),
    table([dport({"range": [1, 100]}), DROP]),
    table([dport(PORT, "!="), DROP]),
    table([dport(8000, ">"), DROP]),
    table([meta("l4proto", 6), DROP]),
    table([meta("iifname", "lo"), DROP]),
    table([state(1), DROP]),
    table([UDP, {"jump": {"target": "udp"}}], policy="drop", chains={"udp": [[dport(PORT), ACCEPT]]}),
    table([{"jump": {"target": "udp"}}, [DROP]][:1], chains={"udp": [[{"return": None}], [DROP]]}),
    table(
        [{"vmap": {"key": {"ct": {"key": "state"}}, "data": {"set": [[1, DROP], [8, {"goto": {"target": "new"}}]]}}}],
        [ESTABLISHED, ACCEPT],
        policy="drop",
        chains={"new": [[dport(PORT), ACCEPT]]},
    ),
    table([DROP], hook="forward"),
    table([dport(PORT), DROP], name="redirectctl"),  # our own
    table([dport(PORT), DROP], family="bridge"),
]


@pytest.mark.parametrize("listed", LETS_IN)
def test_lets_in(listed: list[dict[str, Any]]):
    found = check(listed)
    assert found.status is CheckStatus.OK, found
    assert found.hint is None


DROPS = [
    (table([dport(PORT), DROP]), "chain in, rule handle 11"),
    (table([dport(PORT), {"reject": {"type": "icmpx", "expr": 1}}]), "rule handle 11"),
    (table([UDP, {"counter": {"packets": 0, "bytes": 0}}, {"log": None}, DROP]), "rule handle 11"),
    (table(policy="drop"), "chain in: its policy is drop"),
    (table([dport(22), ACCEPT], policy="drop"), "policy is drop"),
    (table([{"jump": {"target": "udp"}}], chains={"udp": [[dport({"range": [7740, 7750]}), DROP]]}), "chain udp, rule"),
    (table([{"goto": {"target": "udp"}}], [ACCEPT], policy="drop", chains={"udp": []}), "policy is drop"),
    (table([{"vmap": {"key": dport(0)["match"]["left"], "data": {"set": [[PORT, DROP]]}}}]), "rule handle 11"),
    (table([dport(PORT), ACCEPT]) + table([dport(PORT), DROP], name="second"), "inet second, chain in"),
    (table([dport(PORT), DROP], hook="prerouting"), "rule handle 11"),
]  # fmt: skip


@pytest.mark.parametrize(("listed", "who"), DROPS)
def test_drops(listed: list[dict[str, Any]], who: str):
    found = check(listed)
    assert found.status is CheckStatus.FAIL, found
    assert who in found.found
    assert "datagrams in are dropped by: nft table inet" in found.found
    assert f"udp dport {PORT} accept" in str(found.hint)


def test_drops_what_leaves():
    found = check(table([dport(PORT), DROP], hook="output"))
    assert found.status is CheckStatus.FAIL
    assert "datagrams out are dropped" in found.found


def test_of_one_family_only():
    found = check(table([meta("nfproto", 10), dport(PORT), DROP]))
    assert found.status is CheckStatus.FAIL
    assert found.found.startswith("IPv6 datagrams in are dropped")
    assert check(table([dport(PORT), DROP], family="ip")).found.startswith("IPv4 ")


def test_answers_get_in_but_strangers_do_not():
    found = check(table([ESTABLISHED, ACCEPT], policy="drop"))
    assert found.status is CheckStatus.WARN
    assert "unless this host spoke first" in found.found


def test_a_rule_that_depends_is_not_believed_either_way():
    found = check(table([meta("mark", 1), ACCEPT], policy="drop"))
    assert found.status is CheckStatus.WARN
    assert found.found.startswith("datagrams in are dropped unless another rule makes an exception")
    found = check(table([FROM_TEN, ACCEPT], policy="drop"))
    assert found.status is CheckStatus.FAIL
    assert found.found.startswith("IPv6 datagrams in are dropped by")
    assert "IPv4 datagrams in are dropped unless another rule makes an exception" in found.found
    found = check(table([FROM_TEN, DROP]))
    assert found.status is CheckStatus.OK
    assert "except where rules name certain addresses" in found.found


def test_the_remedy_is_of_the_tool_in_charge():
    assert "firewall-cmd" in str(check(table(policy="drop", name="firewalld")).hint)


OPEN, UFW = "iptables -I INPUT -p udp --dport 7747 -j ACCEPT", "ufw allow 7747/udp"
FILTER = """\
# Generated by iptables-save v1.8.9 (nf_tables)
*filter
:INPUT {policy} [0:0]
:FORWARD DROP [0:0]
:OUTPUT ACCEPT [0:0]
:ufw-user-input - [0:0]
:ufw-not-local - [0:0]
-A INPUT -i lo -j ACCEPT
{rules}
COMMIT
"""


def xtables(*rules: str, policy: str = "ACCEPT", program: str = "iptables") -> Any:
    # The same rules as libnftables sees them: opaque, and not to be believed.
    shadow = table([{"xt": {"type": "match", "name": "udp"}}, DROP], family="ip", name="filter")
    lines = FILTER.format(policy=policy, rules="\n".join(rules)).splitlines()
    return check(shadow, saved=[Saved(program, lines)])


@pytest.mark.parametrize(
    "rules",
    [
        ["-A INPUT -p tcp -m tcp --dport 7747 -j DROP"],
        ["-A INPUT -p udp -m udp --dport 7747 -j ACCEPT", "-A INPUT -j DROP"],
        ["-A INPUT -p udp -m multiport --dports 53,7700:7800 -j ACCEPT", "-A INPUT -j REJECT --reject-with x"],
        ['-A INPUT -m comment --comment "-j DROP all" -j ACCEPT', "-A INPUT -j DROP"],
        ["-A INPUT ! -p udp -j DROP"],
        ["-A INPUT -m conntrack --ctstate INVALID -j DROP"],
        ["-A INPUT -j ufw-user-input", "-A ufw-user-input -p udp -m udp --dport 7747 -j ACCEPT", "-A INPUT -j DROP"],
        [
            "-A INPUT -j ufw-not-local",
            "-A ufw-not-local -m addrtype --dst-type LOCAL -j RETURN",
            "-A ufw-not-local -m addrtype --dst-type MULTICAST -j RETURN",
            "-A ufw-not-local -j DROP",
            "-A INPUT -p udp -m udp --dport 7747 -j ACCEPT",
            "-A INPUT -j DROP",
        ],
        ["-A INPUT -m mark --mark 0x40000000/0x40000000 -j NFQUEUE --queue-num 7748"],  # our own
    ],
)
def test_iptables_lets_in(rules: list[str]):
    found = xtables(*rules)
    assert found.status is CheckStatus.OK, found
    assert "except where" not in found.found


@pytest.mark.parametrize(
    ("rules", "policy", "who", "remedy"),
    [
        (
            ["-A INPUT -p udp -m udp --dport 7747 -j DROP"],
            "ACCEPT",
            "iptables -A INPUT -p udp -m udp --dport 7747",
            OPEN,
        ),
        (["-A INPUT -j ufw-user-input", "-A ufw-user-input -p udp -j REJECT"], "ACCEPT", "-A ufw-user-input", UFW),
        (["-A INPUT -g ufw-user-input", "-A INPUT -j ACCEPT"], "DROP", "chain INPUT: its policy is drop", UFW),
        (["-A OUTPUT -p udp -j DROP"], "ACCEPT", "datagrams out", OPEN.replace("INPUT", "OUTPUT")),
    ],
)
def test_iptables_drops(rules: list[str], policy: str, who: str, remedy: str):
    found = xtables(*rules, policy=policy)
    assert found.status is CheckStatus.FAIL, found
    assert who in found.found
    assert found.hint == f"let UDP 7747 through: `sudo {remedy}`"


def test_iptables_that_depends():
    assert xtables("-A INPUT -s 192.0.2.0/24 -j DROP").status is CheckStatus.OK
    assert xtables("-A INPUT -i eth0 -p udp -j ACCEPT", policy="DROP").status is CheckStatus.WARN


def test_a_program_that_decides():
    found = check(table([dport(PORT), {"queue": {"num": 3}}]))
    assert found.status is CheckStatus.OK
    assert "except where" in found.found

"""The documentation and the code say the same."""

from __future__ import annotations

import re
from pathlib import Path

from redirectctl.flows import constants as of_flows
from redirectctl.flows.state import diagram
from redirectctl.proto import constants as of_proto

ROOT = Path(__file__).parents[3]
PROTOCOL = (ROOT / "docs" / "protocol.md").read_text()
CORE = "\n".join(
    p.read_text() for part in ("wire", "proto", "flows") for p in (ROOT / "redirectctl" / part).glob("*.py")
)


def test_the_diagram_of_states_is_made_from_the_table() -> None:
    assert f"```mermaid\n{diagram()}\n```" in PROTOCOL


def test_every_reason_is_explained() -> None:
    patterns = (
        r'MalformedError\("([a-z-]+)"\)',
        r'_fail\(\w+, "([a-z-]+)"\)',
        r'reason="([a-z-]+)"',
        r'\b_?(?:refuse|unsupport|unprotect|leave)\(now, \w+, "([a-z-]+)"\)',
        r'Status\.\w+: "([a-z-]+)"',
        r'return "([a-z]+-[a-z-]+)"',
        r'\bfinish\(now, \w+, "([a-z-]+)"\)',
    )
    reasons = {reason for pattern in patterns for reason in re.findall(pattern, CORE)}
    assert len(reasons) > 50
    assert {r for r in reasons if f"`{r}`" not in PROTOCOL} == set()


def test_every_datagram_and_message_is_described() -> None:
    for module in ("datagram", "message", "meeting"):
        head = (ROOT / "redirectctl" / "wire" / f"{module}.py").read_text().split('"""')[1]
        for name, number in re.findall(r"^    ([A-Z_]+) \((\d+)\)", head, re.MULTILINE):
            assert f"{name} ({number}) " in PROTOCOL


def test_the_threat_model_names_tests_that_exist() -> None:
    text = (ROOT / "docs" / "threat-model.md").read_text()
    named = re.findall(r"`(?:([\w/.]+\.py)::)?(test_\w+)`", text)
    assert len(named) > 45
    for path, name in named:
        source = (ROOT / (path or "tests/sim/test_threats.py")).read_text()
        assert f"def {name}(" in source, name


def test_every_test_of_a_threat_is_in_the_threat_model() -> None:
    text = (ROOT / "docs" / "threat-model.md").read_text()
    tests = re.findall(r"^def (test_\w+)\(", (ROOT / "tests/sim/test_threats.py").read_text(), re.MULTILINE)
    assert [name for name in tests if f"`{name}`" not in text] == []


def test_every_limit_is_in_the_threat_model_with_its_number() -> None:
    """Who shares it, and what others keep: a row for each, with the numbers that the code has, in order."""
    text = (ROOT / "docs" / "threat-model.md").read_text().split("## Limits and rates")[1].split("\n## ")[0]
    rows = [line.strip("|").split("|") for line in text.splitlines() if re.search(r"`[A-Z_]{5,}`", line)]
    values = {name: value for module in (of_proto, of_flows) for name, value in vars(module).items()}
    named: set[str] = set()
    for row in rows:
        what, number, names, shared_by, left = (cell.strip() for cell in row)
        assert shared_by, what
        assert left, what
        told = [float(n.replace(",", "")) for n in re.findall(r"\d[\d,]*\d|\d+(?:\.\d+)?", number)]
        constants = re.findall(r"`([A-Z_]+)`", names)
        told += [float(n) for n in re.findall(r"\((\d+)\)", left)]
        more = re.findall(r"`([A-Z_]+)`", left)
        if more == ["CHOSEN_PART"]:
            constants += more
        assert told == [float(values[name]) for name in constants], what
        named |= {*constants, *more}
    for module in ("flows", "proto"):
        source = (ROOT / "redirectctl" / module / "constants.py").read_text().split("# --- limits of this impl")[1]
        limits = re.findall(
            r"^((?!HANDSHAKE_R)\w*(?:MAX|RATE|BURST|_PER_|_OF_PEER|WINDOW|_PART|LOAD_)\w*): Final", source, re.MULTILINE
        )
        assert set(limits) - named - {"REPLAY_WINDOW"} == set()

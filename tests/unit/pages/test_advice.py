"""Everything that says "do X" works when X is typed.

Looks at every text in the code that may reach a person: hints of doctor and of reasons, errors, notices, questions,
help.  Where a command is named it is in backticks, whole, with words in capitals for what the person puts in, and the
program's own parser takes it.  Options, settings, units and man pages that are named exist.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import io
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec
import pytest

from redirectctl import redirectd
from redirectctl.api import reasons
from redirectctl.cli import main as ctl
from redirectctl.config import Config
from redirectctl_wrappers import run

ROOT = Path(__file__).parents[3]
FOLDERS = ("redirectctl", "tui", "wrappers")
LAB = ROOT / "redirectctl" / "lab"  # builds networks: its strings are scripts
VERBS = frozenset({"start", "stop", "restart", "reload", "status", "enable"})
# Of others: what a text may send a person to; X: made of the rule that is in the way (test_firewall.py).
PROGRAMS = frozenset({"ip", "nft", "ps", "ss", "ssh", "getent", "id", "free", "df", "apt-get", "usermod", "make", "X"})
PARSER = ctl.make_parser(ctl.COMMANDS)
SECTIONS = {f.name: {g.name for g in msgspec.structs.fields(f.type)} for f in msgspec.structs.fields(Config)}
OWN = "redirectctl|redirectd|redirect-run"


class Text(NamedTuple):
    """A string of the code; what is put into it is X."""

    where: str
    text: str


def texts() -> Iterator[Text]:
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*.py")):
            if LAB in path.parents:
                continue
            yield from _texts_of(path)


def _texts_of(path: Path) -> Iterator[Text]:
    tree = ast.parse(path.read_text())
    skipped = set()  # docstrings; and parts of f-strings, which are looked at as a whole
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            skipped.add(id(node.value))
        if isinstance(node, ast.JoinedStr):
            skipped |= {id(part) for part in node.values}
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        where = f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield Text(where, node.value)
        elif isinstance(node, ast.JoinedStr):
            parts = (str(p.value) if isinstance(p, ast.Constant) else "X" for p in node.values)
            yield Text(where, "".join(parts))


TEXTS = list(texts())


def named(text: str) -> list[str]:
    """The commands in a text for people; scripts are for a shell."""
    if "2>/dev/null" in text:
        return []
    lines = re.findall(rf"^\s+((?:sudo )?(?:{OWN}) .+)$", text, re.MULTILINE)  # one on a line of its own needs none
    quoted = [each for each in re.findall(r"`([^`\n]+)`", text) if re.match(r"[a-z][a-z-]*( |$)", each)]
    # What is shown on a line of its own is one text, or the end of one.
    last = re.findall(rf"(?:^|: )((?:sudo )?redirectctl (?:{'|'.join(ctl.COMMANDS)})(?: [^;|]+)?)(?:;|$)", text)
    return [*quoted, *lines, *(command for command in last if "[-h]" not in command)]


def why_not(command: str) -> str | None:
    """Why a command does not work as it stands."""
    words = shlex.split(command.removeprefix("sudo "))
    program, arguments = words[0], words[1:]
    match program:
        case "X":
            return None  # all of it is put in
        case "make":
            targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
            return None if set(arguments) <= set(targets) else "no target of our Makefile"
        case "redirectctl":
            if "X" in arguments[:1]:
                return None  # which one is put in
            return _refused(PARSER, arguments)
        case "redirectd":
            return _refused(redirectd.make_parser(), arguments)
        case "redirect-run":
            options = [word.partition("=")[0] for word in arguments if word.startswith("--")]
            known = {name for names, *_ in run.OPTIONS for name in names}
            return None if set(options) <= known and arguments else "no command, or an unknown option"
        case "systemctl":
            verb, *units = [word for word in arguments if not word.startswith("--")]
            if verb not in VERBS:
                return f"no verb of systemctl: {verb}"
            return None if [u for u in units if not (ROOT / "systemd" / f"{u}.service").is_file()] == [] else "no unit"
    return None if program in PROGRAMS else f"no program that is known here: {program}"


def _refused(parser: argparse.ArgumentParser, arguments: list[str]) -> str | None:
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
        try:
            parser.parse_args(arguments)
        except SystemExit as ended:
            return said.getvalue() if ended.code else None
    return None


def test_there_are_texts() -> None:
    assert len(TEXTS) > 1000
    assert sum(bool(named(each.text)) for each in TEXTS) > 30


def test_commands_that_are_named_work() -> None:
    wrong = [(where, command, why) for where, text in TEXTS for command in named(text) if (why := why_not(command))]
    assert wrong == []


def test_commands_are_named_in_backticks() -> None:
    """Else nobody sees where one ends, and no test would find it."""
    commands = "|".join(ctl.COMMANDS)
    pattern = re.compile(rf"\b(?:redirectctl (?:{commands})\b|systemctl [a-z]+|redirect-run (?:--|[A-Z]))")
    bare = []
    for where, text in TEXTS:
        if where.startswith("wrappers/"):
            continue  # one line on a terminal: what it names is checked all the same where it is in backticks
        rest = re.sub("|".join(map(re.escape, named(text))) or "$", "", text)
        if not any(script in text for script in ("2>/dev/null", "complete -c")) and pattern.search(rest):
            bare.append((where, text))
    assert bare == []


def test_who_is_to_start_or_stop_the_daemon_is_told_how() -> None:
    vague = re.compile(r"\b(?:start|restart|stop|reload) (?:redirectd|the daemon|it first)\b")
    told = [each for each in TEXTS if not re.fullmatch(r"(?:sudo )?systemctl [a-z]+ redirectd", each.text)]
    assert [each for each in told if vague.search(re.sub(r"`[^`\n]*`", "", each.text))] == []


@pytest.mark.parametrize("reason", sorted(reasons._EXPLANATIONS))
def test_advice_about_a_reason_works(reason: str) -> None:
    assert [(c, why) for c in named(reasons.advice(reason)) if (why := why_not(c))] == []


def test_nobody_is_warned_of_what_needs_nothing() -> None:
    """What works, and always will, is `ok`."""
    hints = [t for t in TEXTS if t.where.startswith("redirectctl/doctor")]
    assert [each for each in hints if re.match(r"nothing\b(?! (?:to|of) )[:;]?", each.text) and " " in each.text] == []


def test_options_that_are_named_exist() -> None:
    known = {name for names, *_ in run.OPTIONS for name in names} | {"--"}
    for parser in (PARSER, redirectd.make_parser(), *_subparsers(PARSER)):
        known |= {option for action in parser._actions for option in action.option_strings}
    shells = ("redirectctl/cli/alias.py", "redirectctl/cli/completion.py")
    own = [
        t
        for t in TEXTS
        if not t.where.startswith(shells) and t.where.startswith(("redirectctl/cli", "redirectctl/api", "wrappers"))
    ]
    found = {(t.where, option) for t in own for option in re.findall(r"(?<![\w`-])--[a-z][a-z-]+\b", t.text)}
    assert {(where, option) for where, option in found if option not in known} == set()


def _subparsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            yield from action.choices.values()


def test_settings_that_are_named_exist() -> None:
    pattern = re.compile(rf"\b({'|'.join(SECTIONS)})\.([a-z_]+)\b(?!\()")
    advised = [Text("reasons", reasons.advice(reason)) for reason in reasons._EXPLANATIONS]
    found = [
        (where, section, key)
        for where, text in (*TEXTS, *advised)
        for section, key in pattern.findall(text)
        if " " in text and (where == "reasons" or where.startswith(("redirectctl/doctor", "redirectctl/daemon")))
    ]
    events = {"started", "stopped", "failed", "updated", "changed"}  # dns.updated and others are events
    assert [each for each in found if each[2] not in SECTIONS[each[1]] | events] == []


def test_pages_that_are_named_exist() -> None:
    found = {page for _, text in TEXTS for page in re.findall(rf"\b((?:{OWN})[a-z.-]*)\((\d)\)", text)}
    assert {f"{name}.{section}" for name, section in found} <= {path.name for path in (ROOT / "man").iterdir()}

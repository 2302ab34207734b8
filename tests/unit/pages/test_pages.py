"""The man pages are well formed, and say all that the programs know: options, settings, states, events, exit codes."""

import argparse
import importlib
import re
import shutil
import subprocess
from pathlib import Path

import msgspec
import pytest

from redirectctl import redirectd as daemon
from redirectctl.api.schema import ConnectionState, EventName, PathName, PeerState
from redirectctl.cli import main as ctl
from redirectctl.cli.common import ExitCode
from redirectctl.config import Config, Duration, parse_duration
from redirectctl_wrappers import run

ROOT = Path(__file__).parents[3]
PAGES = sorted((ROOT / "man").iterdir())
MACHINE_DEPENDENT = ("referenced manual not found", "mandoc.db")  # which other pages are installed


def source(page: str) -> str:
    return (ROOT / "man" / page).read_text()


def options(parser: argparse.ArgumentParser) -> set[str]:
    return {option for action in parser._actions for option in action.option_strings}


def documented(page: str) -> set[str]:
    """Options as mdoc has them: `Fl -json`, `Fl f , -follow`, `Fl f | -follow`."""
    found = set()
    for words in re.findall(r"\bFl (-?[\w-]+(?: [,|] -?[\w-]+)*)", source(page)):
        found |= {"-" + word for word in re.split(r" [,|] ", words)}
    return found - {"--"}


def command_parser(name: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser()
    importlib.import_module(f"redirectctl.cli.{ctl.COMMANDS[name].module}").add_arguments(parser)
    return parser


def items(page: str) -> set[str]:
    """What list items are called: `.It Cm approve Ar peer`, `.It Cm daemon.started , daemon.stopped`."""
    return set(re.findall(r"[\w.-]+", " ".join(re.findall(r"^\.It (?:Cm|Em) (.*)$", source(page), re.MULTILINE))))


def test_all_pages_are_there() -> None:
    wanted = ["redirect-run.1", "redirectctl.1", "redirectctl.7", "redirectd.8", "redirectd.toml.5"]
    assert [page.name for page in PAGES] == wanted


@pytest.mark.skipif(shutil.which("mandoc") is None, reason="mandoc is not installed")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_mandoc_finds_nothing_to_complain_about(page: Path) -> None:
    said = subprocess.run(["mandoc", "-T", "lint", "-W", "style", page], capture_output=True, text=True).stdout
    assert [line for line in said.splitlines() if not any(each in line for each in MACHINE_DEPENDENT)] == []


def test_redirectd_has_the_options_of_its_page() -> None:
    assert options(daemon.make_parser()) == documented("redirectd.8")


def test_redirect_run_has_the_options_of_its_page() -> None:
    assert set(re.findall(r"--\w+", run.USAGE)) | {"-h"} == documented("redirect-run.1")
    for value in run.NOTIFY:
        assert re.search(rf"Cm [\w |]*\b{value}\b", source("redirect-run.1")), value
    for code in (run.EXIT_USAGE, run.EXIT_NOT_PROTECTED, run.EXIT_NOT_EXECUTABLE, run.EXIT_NOT_FOUND):
        assert f".It {code}\n" in source("redirect-run.1")


def test_redirectctl_has_the_options_of_its_page() -> None:
    commands = set().union(*(options(command_parser(name)) for name in ctl.COMMANDS))
    assert options(ctl.make_parser([])) | commands == documented("redirectctl.1")


def test_every_command_is_in_the_page() -> None:
    named = items("redirectctl.1")
    assert [name for name in ctl.COMMANDS if name not in named] == []
    for entry in ctl.COMMANDS.values():
        for alias in entry.aliases:
            assert f".Cm {alias} )" in source("redirectctl.1")


def test_every_exit_code_is_in_the_page() -> None:
    assert [code for code in ExitCode if f".It {int(code)}\n" not in source("redirectctl.1")] == []


def test_states_paths_and_events_are_explained() -> None:
    explained = items("redirectctl.7")
    assert [name for kind in (ConnectionState, PathName, EventName) for name in kind if name not in explained] == []
    assert f".Cm {' , '.join(list(PeerState)[:3])}\nand\n.Cm {list(PeerState)[3]}" in source("redirectctl.7")


def test_every_setting_is_in_the_page_with_its_default() -> None:
    page = source("redirectd.toml.5")
    for section in msgspec.structs.fields(Config):
        text = page.split(f".Ss {section.name}\n")[1].split("\n.Ss ")[0]
        shown = dict(re.findall(r"^\.It Cm (\w+) No = (.*)$", text, re.MULTILINE))
        fields = msgspec.structs.fields(section.type)
        assert list(shown) == [field.name for field in fields]
        for field in fields:
            default = shown[field.name].removeprefix("Qq ").replace(r"\(dq", '"')
            if field.type is Duration:
                assert parse_duration(default) == field.default
            else:
                value = str(field.default if field.default_factory is msgspec.NODEFAULT else field.default_factory())
                assert default == {"()": "[]", "True": "true", "False": "false", "": '""'}.get(value, value)


README = (ROOT / "README.md").read_text()


def test_the_readme_lists_the_options_of_redirect_run() -> None:
    (synopsis,) = re.findall(r"^`redirect-run (\[.*)`$", README, re.MULTILINE)
    assert set(re.findall(r"--\w+", synopsis)) == documented("redirect-run.1") - {"-h", "--help", "--version"}


def test_the_readme_names_commands_that_exist() -> None:
    named = set(
        re.findall(r"\bredirectctl ([a-z]+)\b", " ".join(re.findall(r"`[^`]*`|^sudo .*$", README, re.MULTILINE)))
    )
    assert named - {*ctl.COMMANDS, *(alias for entry in ctl.COMMANDS.values() for alias in entry.aliases)} == set()
    assert len(named) >= 5


def figures(text: str) -> set[str]:
    """What was measured, as written: decimal fractions and milliseconds."""
    return set(re.findall(r"\d[\d,]*\.\d+|\d[\d,]*(?= ms)", text))


def test_the_readme_has_six_rows_of_the_measurements_and_their_figures_are_there() -> None:
    section = README.split("## Measurements\n")[1].split("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("| ")][1:]
    assert len(rows) == 6
    assert "(docs/measurements.md)" in section
    measured = figures((ROOT / "docs" / "measurements.md").read_text())
    for row in rows:
        assert figures(row), row
        assert figures(row) - measured == set(), row

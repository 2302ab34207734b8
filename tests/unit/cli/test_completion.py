"""Completion as bash and fish do it; zsh has no way to ask but a terminal, so only that it understands the text."""

import argparse
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from redirectctl.cli.completion import PROGRAMS, SHELLS
from redirectctl.cli.main import COMMANDS, main, make_parser
from redirectctl.redirectd import make_parser as redirectd_parser
from redirectctl_wrappers.run import OPTIONS

# What readline does: the function of the command gets its name, the word and the word before.
BASH = """
source "$1"
COMP_WORDS=("${@:2}"); COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); COMP_LINE="${COMP_WORDS[*]}"; COMP_POINT=${#COMP_LINE}
function=$(complete -p "$2" | grep -o -- '-F [^ ]*' | cut -c4-)
"$function" "$2" "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD-1]}"
printf '%s\\n' "${COMPREPLY[@]}"
"""


def needs(shell: str) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")


def out(argv: list[str]) -> list[str]:
    # What completes peers runs redirectctl, which need not be installed here.
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, env={**os.environ, "PATH": path})
    assert done.stderr == ""
    return [line.split("\t")[0].rstrip() for line in done.stdout.splitlines()]


@pytest.fixture
def script(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[[str, str], Path]:
    def write(shell: str, program: str) -> Path:
        assert main(["completion", shell, program]) == 0
        path = tmp_path / f"{program}.{shell}"
        path.write_text(capsys.readouterr().out)
        return path

    return write


def test_redirectctl_is_meant_where_no_program_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "fish"]) == 0
    assert "complete -c redirectctl" in capsys.readouterr().out


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("shell", SHELLS)
def test_the_shell_understands_it(shell: str, program: str, script: Callable[[str, str], Path]) -> None:
    needs(shell)
    assert out([shell, "-n", str(script(shell, program))]) == []


CASES = [
    (["redirectctl", "app"], ["approve"]),
    (["redirectctl", "--js"], ["--json"]),
    (["redirectctl", "events", "--fol"], ["--follow"]),
    (["redirectctl", "approve", "--na"], ["--name"]),
    (["redirectd", "--state"], ["--state-dir"]),
    (["redirectd", "--log-level", "w"], ["warning"]),
    (["redirect-run", "--req"], ["--require"]),
    (["redirect-run", "--pl"], ["--plain"]),
    (["redirect-run", "--notify", "in"], ["inline"]),
]


@pytest.mark.parametrize(("words", "expected"), CASES, ids=" ".join)
def test_bash_completes(words: list[str], expected: list[str], script: Callable[[str, str], Path]) -> None:
    assert out(["bash", "-c", BASH, "bash", str(script("bash", words[0])), *words]) == expected


@pytest.mark.parametrize(("words", "expected"), CASES, ids=" ".join)
def test_fish_completes(words: list[str], expected: list[str], script: Callable[[str, str], Path]) -> None:
    needs("fish")
    ask = f"complete --erase {words[0]}; source {script('fish', words[0])}; complete -C '{' '.join(words)}'"
    assert out(["fish", "--no-config", "-c", ask]) == expected


def test_bash_completes_all_commands(script: Callable[[str, str], Path]) -> None:
    answered = out(["bash", "-c", BASH, "bash", str(script("bash", "redirectctl")), "redirectctl", ""])
    assert set(COMMANDS) <= set(answered)


def test_bash_completes_peers(script: Callable[[str, str], Path], tmp_path: Path) -> None:
    fake = tmp_path / "redirectctl"
    answer = "import sys\nassert sys.argv[1:] == ['peers', '--words']\nprint('x' * 43, 'server', sep='\\n')\n"
    fake.write_text(f"#!{sys.executable}\n{answer}")
    fake.chmod(0o755)
    ask = f"PATH={tmp_path}:$PATH\n{BASH}"
    answered = out(["bash", "-c", ask, "bash", str(script("bash", "redirectctl")), "redirectctl", "reject", "xx"])
    assert answered == ["x" * 43]
    ask = [ask, "bash", str(script("bash", "redirectctl"))]
    assert out(["bash", "-c", *ask, "redirectctl", "approve", "ser"]) == ["server"]


def test_bash_completes_the_command_that_redirect_run_runs(
    script: Callable[[str, str], Path],
) -> None:
    assert "bash" in out(["bash", "-c", BASH, "bash", str(script("bash", "redirect-run")), "redirect-run", "bas"])


def options(parser: argparse.ArgumentParser) -> set[str]:
    return {name for action in parser._actions for name in action.option_strings}


def every_command() -> dict[str, set[str]]:
    """Command lines up to where options may stand, and the options that may."""
    ctl = make_parser(COMMANDS)
    (commands,) = (action for action in ctl._actions if isinstance(action, argparse._SubParsersAction))
    return {
        "redirectctl": options(ctl),
        **{f"redirectctl {name}": options(command) for name, command in commands.choices.items()},
        "redirectd": options(redirectd_parser()),
        "redirect-run": {name for names, *_ in OPTIONS for name in names},
    }


EVERY = every_command()


def test_there_is_something_to_complete_everywhere() -> None:
    assert len(EVERY) > 20
    assert [line for line, names in EVERY.items() if not names] == []
    assert {"--plain", "--require", "--notify", "--socket"} < EVERY["redirect-run"]


@pytest.mark.parametrize("line", EVERY)
def test_bash_completes_every_option(line: str, script: Callable[[str, str], Path]) -> None:
    program = line.split(maxsplit=1)[0]
    offered = out(["bash", "-c", BASH, "bash", str(script("bash", program)), *line.split(), "-"])
    assert EVERY[line] - set(offered) == set()


@pytest.mark.parametrize("program", PROGRAMS)
def test_fish_completes_every_option(program: str, script: Callable[[str, str], Path]) -> None:
    needs("fish")
    path = script("fish", program)
    for line, names in EVERY.items():
        if line.split()[0] == program:
            ask = f"complete --erase {program}; source {path}; complete -C '{line} -'; complete -C '{line} --'"
            assert names - set(out(["fish", "--no-config", "-c", ask])) == set(), line


@pytest.mark.parametrize("line", EVERY)
def test_zsh_is_told_every_option(line: str, script: Callable[[str, str], Path]) -> None:
    """Of what _arguments gets for this command."""
    text = script("zsh", line.split(maxsplit=1)[0]).read_text()
    if line != "redirect-run":
        (text,) = re.findall(
            rf"^_shtab_{re.sub('[ -]', '_', line)}_options=\(\n(.*?)\n\)", text, re.MULTILINE | re.DOTALL
        )
    offered = {name for group in re.findall(r"(-[\w-]+(?:,-[\w-]+)*)\}?[\"']?\[", text) for name in group.split(",")}
    assert EVERY[line] - offered == set()

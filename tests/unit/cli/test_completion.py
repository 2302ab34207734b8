"""Completion as bash and fish do it; zsh has no way to ask but a terminal, so only that it understands the text."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from redirectctl.cli.completion import PROGRAMS, SHELLS
from redirectctl.cli.main import COMMANDS, main

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
    fake.write_text(f"#!{sys.executable}\nprint('FINGERPRINT\\nSHA256:' + 'x' * 43 + '  server')\n")
    fake.chmod(0o755)
    ask = f"PATH={tmp_path}:$PATH\n{BASH}"
    answered = out(["bash", "-c", ask, "bash", str(script("bash", "redirectctl")), "redirectctl", "reject", "xx"])
    assert answered == ["x" * 43]


def test_bash_completes_the_command_that_redirect_run_runs(
    script: Callable[[str, str], Path],
) -> None:
    assert "bash" in out(["bash", "-c", BASH, "bash", str(script("bash", "redirect-run")), "redirect-run", "bas"])

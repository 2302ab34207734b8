"""The functions that `redirectctl alias` prints, in the shells that they are for."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from redirectctl.cli.main import main


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_command_runs_opted_in(shell: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    if shutil.which(shell) is None:
        pytest.skip(f"not installed: {shell}")
    assert main(["alias", "--shell", shell, "ssh", "scp"]) == 0
    program = tmp_path / "redirect-run"
    program.write_text('#!/bin/sh\nfor each; do echo "<$each>"; done\n')
    program.chmod(0o755)
    before = {"bash": "shopt -s expand_aliases; alias ssh='ssh -v'\n", "zsh": "alias ssh='ssh -v'\n", "fish": ""}
    script = tmp_path / "script"
    script.write_text(before[shell] + capsys.readouterr().out + "ssh 'a host' -- '' '*'\nscp x\n")
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "HOME": str(tmp_path)}
    done = subprocess.run([shell, script], capture_output=True, text=True, env=environment, timeout=60, check=False)
    assert (done.stdout.split("\n"), done.stderr) == (
        ["<ssh>", "<a host>", "<-->", "<>", "<*>", "<scp>", "<x>", ""],
        "",
    )


def test_the_shell_is_that_of_the_user(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setenv("SHELL", "/usr/bin/fish")
    assert main(["alias", "ssh"]) == 0
    assert "--wraps ssh" in capsys.readouterr().out
    monkeypatch.setenv("SHELL", "/bin/csh")
    assert main(["alias", "ssh"]) == 2
    assert "name one with --shell" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["a b", "x;rm", "$(x)", "a/b", ""])
def test_names_that_are_none(name: str, capsys: pytest.CaptureFixture[str]):
    assert main(["alias", "--shell", "bash", name]) == 2
    assert capsys.readouterr().out == ""

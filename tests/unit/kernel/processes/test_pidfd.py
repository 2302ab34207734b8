"""A process by descriptor, and whose it is."""

from __future__ import annotations

import os
import socket
import subprocess
from pathlib import Path

import pytest

from redirectctl.kernel.processes import pidfd
from redirectctl.kernel.processes.pidfd import Pidfd, of_peer

ANNA = 1000
NO_SUCH_OPTION = 0x7FFF  # of SOL_SOCKET: what a kernel before 6.5 makes of SO_PEERPIDFD


def test_a_process_that_has_ended() -> None:
    process = subprocess.Popen(["sleep", "100"])
    held = Pidfd.open(process.pid)
    assert not held.ended
    assert held.belongs_to(os.getuid())
    process.kill()
    process.wait()
    assert held.ended
    assert not held.belongs_to(os.getuid())
    held.close()


@pytest.mark.parametrize(
    ("uids", "belongs"),
    [
        ("1000 1000 1000 1000", True),
        ("1000 0 0 0", False),  # she has started a program that is set-user-id root
        ("0 1000 0 1000", False),  # root's, for the moment with her rights
        ("0 0 0 0", False),
        ("1001 1001 1001 1001", False),
    ],
)
def test_only_what_has_no_other_rights_is_a_users_own(tmp_path: Path, uids: str, belongs: bool) -> None:
    held = Pidfd.open(os.getpid())
    home = tmp_path / str(os.getpid())
    home.mkdir()
    (home / "status").write_text(f"Name:\tx\nUid:\t{uids}\nGid:\t0 0 0 0\n")
    assert held.belongs_to(ANNA, proc=tmp_path) is belongs
    assert held.belongs_to(0, proc=tmp_path)
    held.close()


@pytest.mark.parametrize("option", [pidfd._SO_PEERPIDFD, NO_SUCH_OPTION])
def test_who_connected(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, option: int) -> None:
    monkeypatch.setattr(pidfd, "_SO_PEERPIDFD", option)
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as client:
        listener.bind(str(tmp_path / "socket"))
        listener.listen()
        client.connect(str(tmp_path / "socket"))
        accepted, _ = listener.accept()
        with accepted:
            found = of_peer(accepted, os.getpid())
    assert found is not None
    assert (found.pid, found.ended) == (os.getpid(), False)
    found.close()


def test_a_number_that_nobody_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pidfd, "_SO_PEERPIDFD", NO_SUCH_OPTION)
    ended = subprocess.Popen(["true"])
    ended.wait()
    with socket.socket(socket.AF_UNIX) as sock:
        assert of_peer(sock, ended.pid) is None

"""What ssh says about itself, with the ssh of this machine where there is one."""

from __future__ import annotations

import os
import select
import shutil
import socket
import time
from pathlib import Path

import pytest

from redirectctl_wrappers import limits
from redirectctl_wrappers.limits import Inquiry, ends_after, kept, master_process, master_socket

PATIENCE = 60.0
ssh = pytest.mark.skipif(shutil.which("ssh") is None, reason="not installed: ssh")


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (["ssh", "server"], ["ssh", "-o", "ServerAliveInterval=0", "server"]),
        (["/usr/bin/ssh", "-v", "server", "ls", "-l"], ["/usr/bin/ssh", *limits.KEEP, "-v", "server", "ls", "-l"]),
        (["scp", "a", "server:"], ["scp", *limits.KEEP, "a", "server:"]),
        (["sftp", "server"], ["sftp", *limits.KEEP, "server"]),
        (["git", "fetch"], None),
        (["rsync", "a", "server:"], None),
        (["sshd"], None),
        (["ssh-add"], None),
    ],
)
def test_kept(command: list[str], expected: list[str] | None):
    assert kept(command) == expected


@pytest.mark.parametrize(
    ("interval", "count", "expected"), [("15", "3", 45), ("0", "3", 0), ("30", "0", 30), ("x", "3", 0), ("", "", 0)]
)
def test_ends_after(interval: str, count: str, expected: int):
    assert ends_after({"serveraliveinterval": interval, "serveralivecountmax": count}) == expected


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, None),
        ({"controlpath": "none"}, None),
        ({"controlpath": "/s", "controlmaster": "false"}, "/s"),
        ({"controlpath": "/s", "controlmaster": "auto"}, "/s"),
        ({"controlpath": "/s", "controlmaster": "true"}, None),  # it opens a connection of its own
    ],
)
def test_master_socket(config: dict[str, str], expected: str | None):
    assert master_socket(config) == expected


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("Master running (pid=4711)\r\n", 4711),
        ("Control socket connect(/s): Connection refused\r\n", 0),
        ("Master running (pid=-1)", 0),
        ("Master running (pid=99999999999999999999)", 0),
        ("", 0),
    ],
)
def test_master_process(answer: str, expected: int):
    assert master_process(answer) == expected


def answered(inquiry: Inquiry) -> None:
    """Until nothing more is asked."""
    deadline = time.monotonic() + PATIENCE
    while inquiry.fd is not None:
        assert time.monotonic() < deadline
        select.select([inquiry.fd], [], [], 1)
        inquiry.read()


@ssh
def test_ssh_is_asked_with_the_arguments_of_the_command(tmp_path: Path):
    config = tmp_path / "config"
    config.write_text("Host server\nServerAliveInterval 7\n")
    for options, expected in (([], 21), (["-o", "ServerAliveCountMax=2"], 14), (list(limits.KEEP), 0)):
        inquiry = Inquiry(["ssh", *options, "-F", str(config), "server", "echo", "-o", "ServerAliveInterval=1"])
        answered(inquiry)
        assert (inquiry.ends_after, inquiry.master) == (expected, 0)


@ssh
def test_a_socket_on_which_nobody_listens_is_no_master(tmp_path: Path):
    path = tmp_path / "control"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
    inquiry = Inquiry(["ssh", "-F", "/dev/null", "-S", str(path), "server"])
    answered(inquiry)
    assert inquiry.master == 0


@ssh
def test_a_master_that_does_not_answer_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "control"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        inquiry = Inquiry(["ssh", "-F", "/dev/null", "-S", str(path), "server"])
        deadline = time.monotonic() + PATIENCE
        while not inquiry._asks_master:
            assert time.monotonic() < deadline
            inquiry.read()
        asking = inquiry._pid
        assert not inquiry.read()
        monkeypatch.setattr(limits.time, "monotonic", lambda: deadline + 100)
        assert not inquiry.read()
    assert inquiry.fd is None
    assert not Path(f"/proc/{asking}").exists()


def test_only_a_program_with_the_name_ssh_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A script may do anything, such as begin a session."""
    script = tmp_path / "ssh"
    script.write_text(f"#!/bin/sh\necho ran >> {tmp_path}/ran\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    for command in ("ssh", str(script), "ssh-add", "/nonexistent/ssh", "scp", ""):
        assert Inquiry([command, "server"]).fd is None
    assert not (tmp_path / "ran").exists()

"""procfs.py on a /proc of our own making."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from redirectctl.kernel.processes import procfs


def process(
    proc: Path, pid: int, *, cmdline: bytes = b"ssh\0host\0", comm: str = "ssh", started: int = 500, sockets: int = 0
) -> None:
    home = proc / str(pid)
    (home / "fd").mkdir(parents=True)
    fields = " ".join(["S", *["0"] * 18, str(started), "0"])
    (home / "stat").write_text(f"{pid} ({comm}) {fields}\n")
    (home / "status").write_text(f"Name:\t{comm}\nUid:\t1000\t0\t0\t0\n")
    (home / "cmdline").write_bytes(cmdline)
    (home / "comm").write_text(comm + "\n")
    os.symlink("/dev/null", home / "fd" / "0")
    if sockets:
        os.symlink(f"socket:[{sockets}]", home / "fd" / "3")


@pytest.mark.parametrize("comm", ["ssh", "a b", ") S 1 2 3 (", "x) R 9"])
def test_start_time_whatever_the_name(tmp_path: Path, comm: str) -> None:
    process(tmp_path, 7, comm=comm, started=12345)
    assert procfs.start_time(7, proc=tmp_path) == 12345


@pytest.mark.parametrize("stat", [b"", b"7 (x", b"7 (x) S 1", b"7 (x) S " + b"x " * 30])
def test_a_stat_line_that_makes_no_sense(tmp_path: Path, stat: bytes) -> None:
    process(tmp_path, 7)
    (tmp_path / "7/stat").write_bytes(stat)
    assert procfs.start_time(7, proc=tmp_path) is None


def test_no_such_process(tmp_path: Path) -> None:
    assert procfs.start_time(7, proc=tmp_path) is None
    assert procfs.user(7, proc=tmp_path) is None
    assert procfs.command_line(7, proc=tmp_path) == ""
    assert procfs.look_at(7, proc=tmp_path) is None
    assert procfs.in_our_network(7, proc=tmp_path) is None
    assert procfs.sockets_of(7, proc=tmp_path) == frozenset()


def test_the_real_user_counts(tmp_path: Path) -> None:
    process(tmp_path, 7)  # as a set-user-id program: effective user 0
    assert procfs.user(7, proc=tmp_path) == 1000


@pytest.mark.parametrize(
    ("cmdline", "shown"),
    [
        (b"ssh\0-p\x0022\0host\0", "ssh -p 22 host"),
        (b"", "[kworker]"),
        (b"\0\0", "[kworker]"),
        (b"title set by itself", "title set by itself"),
        (b"x\x1b[2Jy\r\n\x07\x7f", "x�[2Jy  ��"),
        (b"sh\0-c\0cd /tmp\n\tmake\0", "sh -c cd /tmp  make"),
        ("a\u202eb\u2028c\u200bd\x9be".encode(), "a�b c�d�e"),
        (b"\xff\xfeok", "��ok"),
        ("grüße 漢字".encode(), "grüße 漢字"),
    ],
)
def test_commands_are_safe_to_show(tmp_path: Path, cmdline: bytes, shown: str) -> None:
    process(tmp_path, 7, cmdline=cmdline, comm="kworker")
    assert procfs.command_line(7, proc=tmp_path) == shown


def test_long_commands_are_cut(tmp_path: Path) -> None:
    process(tmp_path, 7, cmdline=b"x" * 100_000)
    assert len(procfs.command_line(7, proc=tmp_path)) == procfs.MAX_COMMAND


def test_owners_look_at_the_likely_first_and_stop_when_done(tmp_path: Path) -> None:
    for pid, inode in ((10, 100), (11, 100), (12, 200), (13, 0)):
        process(tmp_path, pid, sockets=inode)
    assert {i: p.pid for i, p in procfs.owners([100, 200, 300], proc=tmp_path).items()} == {100: 11, 200: 12}
    assert procfs.owners([100], likely=[10], proc=tmp_path)[100].pid == 10
    # Two descriptors a process: the likely one is all that fits.
    assert set(procfs.owners([100, 200], likely=[10], max_descriptors=2, proc=tmp_path)) == {100}
    assert procfs.sockets_of(12, proc=tmp_path) == {200}


def test_a_process_that_was_replaced_meanwhile_is_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    process(tmp_path, 10, sockets=100)
    times = iter([500, 501])
    monkeypatch.setattr(procfs, "start_time", lambda pid, proc: next(times))
    assert procfs.owners([100], proc=tmp_path) == {}

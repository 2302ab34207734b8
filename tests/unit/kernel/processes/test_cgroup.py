"""cgroup.py on directories that stand in for the hierarchy."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from redirectctl.kernel.errors import KernelError
from redirectctl.kernel.processes.cgroup import CgroupTree, find_mount, populated

PID = os.getpid()


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    """A /proc with this process; its cgroup is to be written."""
    home = tmp_path / "proc"
    (home / "self").mkdir(parents=True)
    (home / str(PID)).mkdir()
    return home


@pytest.fixture
def mount(tmp_path: Path) -> Path:
    made = tmp_path / "cgroup"
    made.mkdir()
    return made


def in_cgroup(proc: Path, path: str) -> None:
    (proc / str(PID) / "cgroup").write_text(f"4:memory:/elsewhere\n0::{path}\n")


def mounts(proc: Path, *lines: str) -> None:
    (proc / "self/mountinfo").write_text("".join(line + "\n" for line in lines))


def test_the_mount_is_found_wherever_it_is(proc: Path) -> None:
    mounts(
        proc,
        "22 1 0:20 / /sys rw - sysfs sysfs rw",
        "30 22 0:26 / /sys/fs/cgroup/memory rw shared:9 - cgroup cgroup rw,memory",
        r"31 22 0:27 /sub /some\040where rw - cgroup2 none rw",
        "32 22 0:27 / /sys/fs/cgroup/unified rw,nosuid shared:10 master:3 - cgroup2 cgroup2 rw",
    )
    assert find_mount(proc) == (Path("/sys/fs/cgroup/unified"), "/")


def test_a_part_of_the_hierarchy_will_do(proc: Path) -> None:
    mounts(proc, r"31 22 0:27 /sub /some\040where rw - cgroup2 none rw")
    assert find_mount(proc) == (Path("/some where"), "/sub")


def test_no_mount_says_what_to_do(proc: Path) -> None:
    mounts(proc, "22 1 0:20 / /sys rw - sysfs sysfs rw")
    with pytest.raises(KernelError, match="mount -t cgroup2"):
        find_mount(proc)


@pytest.mark.parametrize(
    ("path", "refusal"),
    [("/../other", "cannot be reached"), ("/gone (deleted)", "cannot be reached"), ("/absent", "keeps changing")],
)
def test_cgroups_out_of_reach(proc: Path, mount: Path, path: str, refusal: str) -> None:
    in_cgroup(proc, path)
    with pytest.raises(KernelError, match=refusal):
        CgroupTree(mount, proc=proc).opt_in(PID)


def test_outside_the_mounted_part(proc: Path, mount: Path) -> None:
    mounts(proc, f"31 22 0:27 /sub {mount} rw - cgroup2 none rw")
    in_cgroup(proc, "/subway")
    with pytest.raises(KernelError, match="/subway is outside the mounted part"):
        CgroupTree(proc=proc).opt_in(PID)


def test_no_cgroup_v2(proc: Path, mount: Path) -> None:
    (proc / str(PID) / "cgroup").write_text("4:memory:/\n")
    with pytest.raises(KernelError, match="in no cgroup v2"):
        CgroupTree(mount, proc=proc).opt_in(PID)


def test_symbolic_links_are_not_followed(proc: Path, mount: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "cgroup.procs").write_text("")
    (mount / "link").symlink_to(outside)
    in_cgroup(proc, "/link")
    with pytest.raises(KernelError):
        CgroupTree(mount, proc=proc).opt_in(PID)
    (mount / f"redirectctl-{PID}").symlink_to(outside)
    in_cgroup(proc, "/")
    with pytest.raises(KernelError):
        CgroupTree(mount, proc=proc).opt_in(PID)
    assert [entry.name for entry in outside.iterdir()] == ["cgroup.procs"]
    assert (outside / "cgroup.procs").read_text() == ""
    assert CgroupTree(mount, proc=proc).find_all() == []


def test_a_cgroup_that_cannot_be_used_is_removed_again(proc: Path, mount: Path) -> None:
    in_cgroup(proc, "/")
    with pytest.raises(KernelError):  # an ordinary directory has no cgroup.procs
        CgroupTree(mount, proc=proc).opt_in(PID)
    assert list(mount.iterdir()) == []


@pytest.mark.parametrize("pid", [0, -1])
def test_no_process_number(mount: Path, pid: int) -> None:
    with pytest.raises(KernelError, match="not a process number"):
        CgroupTree(mount).opt_in(pid)


def test_only_our_names_are_found_and_swept(mount: Path) -> None:
    for path, state in (
        ("user.slice/redirectctl-12", "populated 0"),
        ("redirectctl-13", "populated 1"),
        ("redirectctl-13/redirectctl-14", "populated 0"),
        ("redirectctl-", "populated 0"),
        ("redirectctl-015", "populated 0"),
        ("redirectctl-12x", "populated 0"),
        ("redirectctl-99999999999", "populated 0"),
    ):
        (mount / path).mkdir(parents=True)
        # Real cgroups can be removed with their files in them, so these stand beside.
        if state == "populated 1":
            (mount / path / "cgroup.events").write_text(f"{state}\nfrozen 0\n")
    tree = CgroupTree(mount)
    assert {one.path.name for one in tree.find_all()} == {"redirectctl-12", "redirectctl-13", "redirectctl-14"}
    assert all(one.id == one.path.stat().st_ino for one in tree.find_all())
    assert populated(mount / "redirectctl-13")
    assert not populated(mount / "absent")
    assert {one.path.name for one in tree.sweep()} == {"redirectctl-12", "redirectctl-14"}
    assert {one.path.name for one in tree.find_all()} == {"redirectctl-13"}
    assert (mount / "redirectctl-12x").is_dir()

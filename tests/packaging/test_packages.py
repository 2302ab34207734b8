"""make install, the Debian package and the wheel: installed, used, and removed without a trace.

Two minutes, most of it pip and apt-get.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.packaging.conftest import Root, clean_environment, copy_sources, ctl, served

PAGES = ("man1/redirectctl.1", "man1/redirect-run.1", "man5/redirectd.toml.5", "man7/redirectctl.7", "man8/redirectd.8")
PROGRAMS = ("redirectctl", "redirectd", "redirect-run")
SOURCES = "root/redirectctl-under-test"  # in a root; somebody may have cloned it into the usual place
STATE = "/var/lib/redirectctl"
# The group redirectctl stays: somebody may be in it, and files may belong to it.
GROUPS = ("/etc/group", "/etc/group-", "/etc/gshadow", "/etc/gshadow-", "/etc/.pwd.lock")
# What apt-get leaves of itself, and of what the package needs.
CACHES = ("/root", "/var/cache", "/var/lib/apt", "/var/log", "/etc/resolv.conf")


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_sources(tmp_path_factory.mktemp("sources"))


@pytest.fixture(scope="module", autouse=True)
def bootstrapping(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, subprocess.Popen[str]] | None]:
    """A clean Debian, made while the other tests run."""
    if os.geteuid() != 0 or shutil.which("debootstrap") is None:
        yield None
        return
    target = tmp_path_factory.mktemp("debian") / "root"
    release = dict(line.split("=", 1) for line in Path("/etc/os-release").read_text().splitlines() if "=" in line)
    argv = ["debootstrap", "--variant=minbase", release.get("VERSION_CODENAME", "bookworm"), str(target)]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    yield target, process
    process.kill()
    process.wait()
    shutil.rmtree(target, ignore_errors=True)


@pytest.fixture
def debian(bootstrapping: tuple[Path, subprocess.Popen[str]] | None, tmp_path: Path) -> Iterator[Root]:
    if bootstrapping is None:
        pytest.skip("debootstrap is not installed")
    target, process = bootstrapping
    said, _ = process.communicate()
    if process.returncode != 0:
        pytest.skip(f"debootstrap made no clean Debian: {said[-500:]}")
    with over(target, tmp_path) as root:
        for part in ("resolv.conf", "apt/apt.conf.d"):  # how this machine reaches its mirrors
            source = Path("/etc") / part
            if source.is_dir():
                shutil.copytree(source, root.path / "etc" / part, dirs_exist_ok=True)
            elif source.exists():
                shutil.copy(source, root.path / "etc" / part)
        yield root


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Root]:
    """This machine's own root."""
    with over(Path("/"), tmp_path) as root:
        yield root


def over(lower: Path, directory: Path) -> Root:
    mounts = directory / "mounts"
    mounts.mkdir()
    try:
        return Root(lower, mounts)
    except OSError as error:
        pytest.skip(f"this machine cannot have another root: {error}")


def check_files(root: Root, share: str, zsh: str, compressed: str = "") -> None:
    """Man pages are found, completion is there for each shell."""
    at = root.path / share.removeprefix("/")
    assert [page for page in PAGES if not (at / "man" / (page + compressed)).is_file()] == []
    for program in PROGRAMS:
        for path in (
            at / "bash-completion/completions" / program,
            at / "fish/vendor_completions.d" / f"{program}.fish",
            root.path / zsh.removeprefix("/") / f"_{program}",
        ):
            assert program in path.read_text()
    assert (root.path / "etc/redirectctl/redirectd.toml").stat().st_mode & 0o777 == 0o644
    assert "redirectctl:" in root.run("getent", "group", "redirectctl")


def check_use(root: Root, unit: str, python: str) -> None:
    """The daemon serves as its unit file starts it, and the other programs find it."""
    with served(root, Path(unit), python):
        status = ctl(root, "status")
        assert (status["control_port"], status["connections"]) == (7747, {})
        assert ctl(root, "identity")["fingerprint"] == status["identity"]
        doctor = {check["name"]: check for check in ctl(root, "doctor")}
        assert [check for check in doctor.values() if check["status"] == "fail"] == []
        assert root.run("redirect-run", "--require", "echo", "ran", network=False) == "ran\n"
        assert (root.path / "run/redirectctl/redirectd.sock").stat().st_mode & 0o777 == 0o666
    assert (root.path / STATE.removeprefix("/")).stat().st_mode & 0o777 == 0o700
    assert not (root.path / "run/redirectctl/redirectd.sock").exists()


def check_told(root: Root, said: str, *, configuration: bool) -> None:
    """Who uninstalls is told what stays, if it does."""
    lines = [line.removeprefix("Stays: ") for line in said.splitlines() if line.startswith("Stays: ")]
    there = {
        "/var/lib/redirectctl,": (root.path / STATE.removeprefix("/")).exists(),
        "/etc/redirectctl/redirectd.toml,": configuration,
        "the group redirectctl.": "redirectctl:" in root.run("getent", "group"),
    }
    assert {start: any(line.startswith(start) for line in lines) for start in there} == there
    assert len(lines) == sum(there.values())
    assert all("To remove it: " in line for line in lines)


def test_the_wheel(sources: Path, tmp_path: Path) -> None:
    venv, wheels = tmp_path / "venv", tmp_path / "wheels"
    subprocess.run([sys.executable, "-m", "venv", venv], check=True)
    python = str(venv / "bin/python")

    def pip(*arguments: str | Path) -> None:
        subprocess.run([python, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments], check=True)

    pip("wheel", "--no-deps", "--wheel-dir", wheels, sources)
    (wheel,) = wheels.iterdir()
    pip("install", "--no-compile", f"{wheel}[desktop]")
    for program in PROGRAMS:
        said = subprocess.run([venv / "bin" / program, "--version"], capture_output=True, text=True, check=True)
        assert said.stdout.startswith(f"{program} ")
    assert [page for page in PAGES if not (venv / "share/man" / page).is_file()] == []
    shipped = sorted(path.name for path in (venv / "share/redirectctl").iterdir())
    assert shipped == ["redirectctl-notify.desktop", "redirectd.service", "redirectd.toml"]
    argv = [venv / "bin/redirectctl", "completion", "zsh"]
    assert subprocess.run(argv, capture_output=True, text=True, check=True).stdout.startswith("#compdef redirectctl")
    modules = ("redirectctl_tui.app", "redirectctl.cli.demo", "redirectctl.lab.bench.ways", "redirectctl.redirectd")
    importing = f"import {', '.join(modules)}, dbus_fast"
    subprocess.run([python, "-c", importing], check=True, cwd=tmp_path)
    pip("uninstall", "--yes", "redirectctl")
    assert [path for path in venv.rglob("*") if path.is_file() and "redirect" in path.name] == []


def test_make_install_and_uninstall(machine: Root, sources: Path) -> None:
    shutil.copytree(sources, machine.path / SOURCES)
    make = ("make", "--silent", "-C", f"/{SOURCES}")
    machine.run(*make, "install")
    check_files(machine, "/usr/local/share", "/usr/local/share/zsh/site-functions")
    check_use(machine, "/etc/systemd/system/redirectd.service", "/opt/redirectctl/bin/python")
    said = machine.run(*make, "uninstall", network=False)
    assert "nothing to remove" in said  # what a daemon has left in the kernel: it removed that itself
    check_told(machine, said, configuration=False)
    assert machine.left("/root", STATE, *GROUPS) == []


def test_make_install_keeps_a_configuration_that_is_there(machine: Root, sources: Path) -> None:
    """And `make uninstall` as well; installing itself is tried above."""
    shutil.copytree(sources, machine.path / SOURCES)
    mine = machine.path / "etc/redirectctl/redirectd.toml"
    mine.parent.mkdir(exist_ok=True)
    mine.write_text("[protect]\nports = [22]\n")
    said = machine.run("make", "--silent", "-C", f"/{SOURCES}", "uninstall", network=False)
    check_told(machine, said, configuration=True)
    assert mine.read_text() == "[protect]\nports = [22]\n"


def test_the_debian_package(debian: Root, sources: Path) -> None:
    built = subprocess.run(
        [sources / "scripts/deb"], env=clean_environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert built.returncode == 0, built.stdout
    (package,) = (sources / "dist").glob("redirectctl_*.deb")
    shutil.copy(package, debian.path / "root/redirectctl.deb")
    debian.run("apt-get", "-qq", "update")
    needed = debian.run("apt-get", "-s", "-qq", "--no-install-recommends", "install", "/root/redirectctl.deb")
    others = [line.split()[1] for line in needed.splitlines() if line.startswith("Inst ") and "redirectctl" not in line]
    install = ("apt-get", "-qq", "-y", "--no-install-recommends", "install")
    debian.run(*install, *others)
    before = set(debian.left(*CACHES))
    debian.run(*install, "/root/redirectctl.deb")
    check_files(debian, "/usr/share", "/usr/share/zsh/vendor-completions", compressed=".gz")
    check_use(debian, "/lib/systemd/system/redirectd.service", "/usr/bin/python3")
    debian.run("dpkg", "--verify", "redirectctl")
    said = debian.run("dpkg", "--remove", "redirectctl", network=False)
    assert "nothing to remove" in said
    check_told(debian, said, configuration=True)
    left = set(debian.left(*CACHES)) - before
    assert {name for name in left if "redirect" in name and not name.startswith((STATE, "/var/lib/dpkg"))} == {
        "/etc/redirectctl/redirectd.toml"
    }
    debian.run("dpkg", "--purge", "redirectctl")
    left = set(debian.left(*CACHES)) - before
    assert {name for name in left if "redirect" in name} == set()
    assert "redirectctl" not in debian.run("getent", "group")

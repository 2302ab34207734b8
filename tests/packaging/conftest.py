"""Roots in which the product is installed, used and removed, while this machine stays as it is."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.unit_file import confine, read

SOURCES = Path(__file__).parents[2]
PATIENCE = 300.0  # seconds for one command: pip and apt-get load a lot
START_PATIENCE = 60.0  # seconds
# /run and /tmp are empty at each boot, so nothing in them is left behind.
MOUNTS = """
set -e
mount --make-rprivate /
mount -t tmpfs none "$1"
mkdir "$1/upper" "$1/work" "$1/root"
mount -t overlay overlay -o "lowerdir=$2,upperdir=$1/upper,workdir=$1/work" "$1/root"
mount -t proc proc "$1/root/proc"
mount --rbind /sys "$1/root/sys"
mount --rbind /dev "$1/root/dev"
mount -t tmpfs none "$1/root/run"
mount -t tmpfs none "$1/root/tmp"
ip link set lo up 2>/dev/null || true
echo ready
exec sleep infinity
"""


class Root:
    """A root file system over another one, which stays as it is.  Programs in it see this machine's processes."""

    def __init__(self, lower: Path, directory: Path) -> None:
        """Raises OSError when this machine cannot have one."""
        self._holder = subprocess.Popen(
            ["unshare", "--mount", "--net", "sh", "-c", MOUNTS, "sh", str(directory), str(lower)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self._holder.stdout is not None
        assert self._holder.stderr is not None
        if self._holder.stdout.readline() != "ready\n":
            raise OSError(self._holder.stderr.read().strip())
        # Seen from here: what is mounted in the holder's mount namespace only.
        self.upper = Path(f"/proc/{self._holder.pid}/root{directory}/upper")
        self.path = self.upper.with_name("root")
        self._inside = directory / "root"

    def __enter__(self) -> Root:
        return self

    def __exit__(self, *_: object) -> None:
        self._holder.kill()
        self._holder.communicate()

    def argv(self, command: Sequence[str | Path], *, network: bool = True) -> list[str]:
        """A command in it; with this machine's network, or alone."""
        namespaces = ["--mount"] if network else ["--mount", "--net"]
        enter = ["nsenter", f"--target={self._holder.pid}", *namespaces]
        return [*enter, "chroot", str(self._inside), *map(str, command)]

    def run(self, *command: str | Path, network: bool = True) -> str:
        """Run it and return what it printed.  Fails with what it said when it failed."""
        done = subprocess.run(
            self.argv(command, network=network),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=PATIENCE,
            env=clean_environment(),
        )
        assert done.returncode == 0, f"{' '.join(map(str, command))}: {done.returncode}\n{done.stdout}"
        return done.stdout

    def left(self, *ignored: str) -> list[str]:
        """Files that were written or removed since it was made, but those in or below the ignored."""
        found = []
        for directory, _, files in os.walk(self.upper):
            at = Path("/", os.path.relpath(directory, self.upper))
            found += [str(at / name) for name in files]
        return sorted(name for name in found if not any(Path(name).is_relative_to(each) for each in ignored))


def clean_environment() -> dict[str, str]:
    """That of a login, with what this machine needs to reach its package mirrors."""
    kept = {name: value for name, value in os.environ.items() if name.lower().endswith("_proxy") or name[:4] == "PIP_"}
    path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    return kept | {"PATH": path, "HOME": "/root", "LANG": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive"}


@contextlib.contextmanager
def served(root: Root, unit: Path, python: str) -> Iterator[dict[str, str]]:
    """The daemon of a root, started as its unit file says, until READY=1 and a sign of life; SIGTERM at the end."""
    settings = read((root.path / unit.relative_to("/")).read_text())
    (root.path / "run/redirectctl").mkdir(mode=0o755)
    (root.path / "var/lib/redirectctl").mkdir(mode=0o700, parents=True, exist_ok=True)
    notify = root.path / "run/notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        # The path through /proc is too long for a socket's address, its directory's descriptor is not.
        directory = os.open(notify.parent, os.O_RDONLY | os.O_DIRECTORY)
        manager.bind(f"/proc/self/fd/{directory}/notify")
        os.close(directory)
        manager.settimeout(START_PATIENCE)
        process = subprocess.Popen(
            root.argv(confine(settings, python, settings["ExecStart"].split()), network=False),
            env=clean_environment() | {"NOTIFY_SOCKET": "/run/notify", "WATCHDOG_USEC": "3000000"},
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            said = set()
            while not said >= {"READY=1", "WATCHDOG=1"}:
                said |= set(manager.recv(4096).decode().splitlines())
            yield settings
        except TimeoutError:
            process.kill()
            raise AssertionError(f"redirectd does not start: {process.communicate()[1]}") from None
        finally:
            process.terminate()
            _, errors = process.communicate(timeout=START_PATIENCE)
        assert process.returncode == 0, errors
        assert "Traceback" not in errors


def ctl(root: Root, *arguments: str) -> Any:
    """``redirectctl --json ARGUMENTS`` in a root."""
    return json.loads(root.run("redirectctl", "--json", *arguments, network=False))


def copy_sources(to: Path) -> Path:
    """What is in the working tree, without what is ignored."""
    listing = ["git", "-C", str(SOURCES), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    for name in subprocess.run(listing, capture_output=True, text=True, check=True).stdout.split("\0"):
        if name and (SOURCES / name).is_file():
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(SOURCES / name, to / name)
    return to


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if item.path.is_relative_to(here):
            item.add_marker(pytest.mark.packaging)
            if os.geteuid() != 0:
                item.add_marker(pytest.mark.skip(reason="needs root"))

"""Two clean Debian hosts, one person with an account on both, and a real network between them.

::

    laptop ----- home ----- router ----- dc1 ----- server
    ann, sudo    cafe                              ann, sudo, sshd, ufw

Each host is a root of its own (conftest.Root) in a network namespace of a lab.  They have no Internet: the Debian
packages that `make install` fetches where they are missing are in the root, and pip finds what it needs in a folder.
A script plays systemd's part, for the only unit that there is.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pexpect
import pytest

from redirectctl.lab.streams import wait_until
from redirectctl.lab.topology import Host, Lab
from tests.packaging.conftest import PATIENCE, SOURCES, Root, clean_environment, copy_sources

USER = "ann"
HOME = f"home/{USER}"
CLONE = "redirectctl"  # in her home
WHEELS = "var/wheels"
PACKAGES = (
    *("sudo", "openssh-server", "openssh-client", "iproute2", "procps", "ufw"),  # as on a host that one uses
    *("make", "python3-venv", "python3-dev"),
    *("nftables", "libnftables1", "iptables", "build-essential", "libnetfilter-queue-dev", "libnfnetlink-dev"),
    "ca-certificates",
)
PROTECTION = 90.0  # seconds until a session is protected, if it will be: 10 s, and what a busy machine needs
SYSTEMCTL = r"""#!/bin/sh
# The part of systemctl(1) that this unit needs.
if [ "$(id -u)" != 0 ] && [ "$1" != status ]; then echo 'Failed: Interactive authentication required.' >&2; exit 1; fi
verb='' now=''
for word; do
    case $word in --now) now=yes ;; -*) ;; *) verb=${verb:-$word} ;; esac
done
alive() { [ -r /run/redirectd.pid ] && [ -e "/proc/$(cat /run/redirectd.pid)/ns" ]; }
stop() { if alive; then kill "$(cat /run/redirectd.pid)"; while alive; do sleep 0.05; done; fi; }
start() {
    if [ ! -e /etc/systemd/system/redirectd.service ]; then echo 'Unit redirectd.service not found.' >&2; exit 5; fi
    if alive; then return; fi
    mkdir -p /run/redirectctl /var/lib/redirectctl
    chmod 700 /var/lib/redirectctl
    rm -f /run/redirectctl/redirectd.sock
    setsid /usr/local/bin/redirectd </dev/null >>/var/log/redirectd.log 2>&1 &
    echo $! >/run/redirectd.pid
    until [ -e /run/redirectctl/redirectd.sock ]; do
        if ! alive; then echo 'Job for redirectd.service failed.' >&2; exit 1; fi
        sleep 0.05
    done
}
case $verb in
    daemon-reload) ;;
    start) start ;;
    stop) stop ;;
    restart) stop; start ;;
    enable) if [ -n "$now" ]; then start; fi ;;
    disable) if [ -n "$now" ]; then stop; fi ;;
    status) if alive; then echo 'Active: active (running)'; else echo 'Active: inactive (dead)'; exit 3; fi ;;
    *) echo "Unknown command verb $verb." >&2; exit 1 ;;
esac
"""


class Said(NamedTuple):
    """What a command came to."""

    status: int
    text: str  # stdout and stderr


class Machine:
    """A root, and where in the lab's network it is at the moment."""

    def __init__(self, name: str, root: Root) -> None:
        self.name = name
        self.root = root
        self.host: Host

    def plug(self, host: Host) -> None:
        """It is this host of a lab from now on, with a daemon and a state as new."""
        self.host = host
        for path in ("run/redirectd.pid", "run/redirectctl", "var/lib/redirectctl", "var/log/redirectd.log"):
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                shutil.rmtree(self.root.path / path)
            (self.root.path / path).unlink(missing_ok=True)

    def argv(self, line: str, user: str = USER, option: str = "--command") -> list[str]:
        """A command line, typed by somebody who has just logged in."""
        return self.host.inside(self.root.argv(["su", "-", user, option, line]))

    def types(self, line: str, user: str = USER) -> Said:
        """Run it to its end."""
        done = subprocess.run(
            self.argv(line, user),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=PATIENCE,
            env=clean_environment(),
            check=False,
        )
        return Said(done.returncode, done.stdout)

    def must(self, line: str, user: str = USER) -> str:
        """Run it; it works."""
        status, text = self.types(line, user)
        assert status == 0, f"{self.name}$ {line}: {status}\n{text}"
        return text

    def ctl(self, *arguments: str) -> Any:
        """``redirectctl --json ARGUMENTS``, as root: to look, not to play."""
        return json.loads(self.must(f"redirectctl --json {' '.join(arguments)}", "root"))

    def terminal(self, line: str) -> Terminal:
        """Run it on a terminal."""
        return Terminal(self, line)

    def sshd(self) -> None:
        """Let it accept logins."""
        (self.root.path / "run/sshd").mkdir(exist_ok=True)
        self.host.popen(self.root.argv(["/usr/sbin/sshd", "-D"]), env=clean_environment())

    def log(self) -> str:
        """Of its redirectd."""
        path = self.root.path / "var/log/redirectd.log"
        return path.read_text() if path.exists() else ""


class Terminal:
    """A command on a terminal, with what it has said there."""

    def __init__(self, machine: Machine, line: str) -> None:
        argv = machine.argv(line, option="--session-command")  # which leaves it the terminal
        env = clean_environment() | {"TERM": "xterm"}
        self.child = pexpect.spawn(argv[0], argv[1:], encoding="utf-8", env=env, dimensions=(30, 200), timeout=60)
        self._said = ""

    def said(self) -> str:
        """All so far, titles too."""
        with contextlib.suppress(pexpect.TIMEOUT, pexpect.EOF):
            while True:
                self._said += self.child.read_nonblocking(65536, timeout=0.2)
        return self._said

    def answers(self) -> None:
        """The shell at its other end runs a command."""
        before = len(self.said())
        self.child.sendline("echo answer-$((40 + 2))")
        wait_until(lambda: "answer-42" in self.said()[before:], 60, f"an answer after {self._said[-2000:]!r}")

    def close(self) -> str:
        """End it; returns all that it has said."""
        if self.child.isalive():
            self.child.sendline("exit")
            with contextlib.suppress(pexpect.TIMEOUT):
                self.child.expect(pexpect.EOF, timeout=20)
                self._said += self.child.before or ""
        self.child.close(force=True)
        return self._said


def protected(machine: Machine) -> bool:
    """Whether a session of this host is."""
    return any(each["state"] == "protected" for each in machine.ctl("connections"))


class Step(NamedTuple):
    """One of the README's Quick start."""

    host: str
    command: str


def quick_start() -> list[Step]:
    """Its numbered steps: what is between backticks first is to be typed, the rest are alternatives and remarks."""
    text = (SOURCES / "README.md").read_text().partition("\n## Quick start\n")[2].partition("\n## ")[0]
    steps: list[Step] = []
    host = ""
    for paragraph in re.split(r"\n\n|\n(?=\d+\. )", text):
        if (named := re.search(r"[Oo]n the \*\*(\w+)\*\*", paragraph)) is not None:
            host = named[1]
        if (number := re.match(r"\s*(\d+)\. ", paragraph)) is not None:
            assert int(number[1]) == len(steps) + 1
            command = re.search(r"`([^`]+)`", paragraph)
            assert command is not None, paragraph
            steps.append(Step(host, command[1]))
    return steps


@contextlib.contextmanager
def clean_hosts(folder: Path) -> Iterator[dict[str, Machine]]:
    """laptop and server, where nothing of ours has been.  Skips where this machine cannot have them."""
    debian = folder / "debian"
    try:
        _make(debian, folder)
        with contextlib.ExitStack() as stack:
            yield {
                name: Machine(name, stack.enter_context(_root(debian, folder, name))) for name in ("laptop", "server")
            }
    finally:
        shutil.rmtree(debian, ignore_errors=True)


def _make(debian: Path, folder: Path) -> None:
    if shutil.which("debootstrap") is None:
        pytest.skip("debootstrap is not installed")
    release = dict(line.split("=", 1) for line in Path("/etc/os-release").read_text().splitlines() if "=" in line)
    argv = ["debootstrap", "--variant=minbase", f"--include={','.join(PACKAGES)}"]
    argv += [release.get("VERSION_CODENAME", "bookworm"), str(debian)]
    made = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if made.returncode != 0:
        pytest.skip(f"debootstrap made no clean Debian: {made.stdout[-500:]}")
    _furnish(debian, folder)


def _root(debian: Path, folder: Path, name: str) -> Root:
    mounts = folder / name
    mounts.mkdir()
    try:
        root = Root(debian, mounts)
    except OSError as error:
        pytest.skip(f"this machine cannot have another root: {error}")
    (root.path / "run/systemd/system").mkdir(parents=True)
    return root


def _furnish(debian: Path, folder: Path) -> None:
    """The same on both hosts, before anybody has heard of redirectctl: an account, ssh keys, a clone, wheels."""
    with _root(debian, folder, "wheels") as root:
        for part in ("etc/resolv.conf", "etc/ssl/certs/ca-certificates.crt"):  # how this machine reaches its mirrors
            if Path("/", part).exists():
                shutil.copy(Path("/", part), root.path / part)
        copy_sources(root.path / "root/sources")
        root.run("python3", "-m", "venv", "/root/venv")
        pip = ("/root/venv/bin/python", "-m", "pip", "--quiet", "--disable-pip-version-check")
        root.run(*pip, "wheel", "--wheel-dir", f"/{WHEELS}", "/root/sources[desktop]", "setuptools>=69")
        shutil.copytree(root.path / WHEELS, folder / "found")
    shutil.move(folder / "found", debian / WHEELS)
    for wheel in (debian / WHEELS).glob("redirectctl-*"):
        wheel.unlink()

    def run(*command: str) -> None:
        subprocess.run(["chroot", debian, *command], check=True, env=clean_environment(), stdin=subprocess.DEVNULL)

    (debian / "etc/pip.conf").write_text(f"[global]\nno-index = true\nfind-links = /{WHEELS}\n")
    (debian / "usr/bin/systemctl").unlink(missing_ok=True)
    (debian / "usr/bin/systemctl").write_text(SYSTEMCTL)
    (debian / "usr/bin/systemctl").chmod(0o755)
    (debian / "etc/sudoers.d/ann").write_text(f"{USER} ALL=(ALL) NOPASSWD: ALL\n")
    run("useradd", "--create-home", "--shell", "/bin/bash", USER)
    copy_sources(debian / HOME / CLONE)
    ssh = debian / HOME / ".ssh"
    ssh.mkdir(mode=0o700)
    run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", f"/{HOME}/.ssh/id_ed25519")
    shutil.copy(ssh / "id_ed25519.pub", ssh / "authorized_keys")
    key = (debian / "etc/ssh/ssh_host_ed25519_key.pub").read_text()
    (ssh / "known_hosts").write_text(f"server {key}")
    run("chown", "--recursive", f"{USER}:", f"/{HOME}")


def connect(hosts: dict[str, Machine], lab: Lab) -> None:
    """Put them into the lab; ``ssh server`` works."""
    for machine, host in ((hosts["laptop"], lab.client), (hosts["server"], lab.server)):
        machine.plug(host)
        names = f"127.0.0.1 localhost {os.uname().nodename}\n{lab.server.address()} server\n"
        (machine.root.path / "etc/hosts").write_text(names)
    hosts["server"].sshd()
    wait_until(lambda: hosts["laptop"].types("ssh server true").status == 0, 60, "ssh server works")

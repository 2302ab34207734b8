"""A real sshd on the lab's server, and the command lines of ssh, scp and rsync that reach it.

It runs in a mount namespace of its own with an empty /run and /var/log and its own passwd and shadow, so that the
machine's accounts, login records and shell histories are neither needed nor changed: root's home is a directory of
the lab.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import time
from pathlib import Path

from redirectctl.lab.namespaces import LabError, call
from redirectctl.lab.topology import Host

SSHD = "/usr/sbin/sshd"  # it must be started by its absolute path
NAME = "server"  # what ssh, scp and rsync call it
START_PATIENCE = 60.0  # seconds until it accepts connections

_ENTER = """
mount -n -t tmpfs -o mode=755 lab /run
mkdir -m 755 /run/sshd
mount -n -t tmpfs -o mode=755 lab /var/log
mount -n --bind "$1/passwd" /etc/passwd
mount -n --bind "$1/shadow" /etc/shadow
exec "$2" -D -e -f "$1/sshd_config"
"""


class SshServer:
    """sshd on a host, listening on port of all its addresses, now and later; stops when the lab is closed."""

    def __init__(self, host: Host, *, port: int = 22, extra: str = "") -> None:
        self.host = host
        self.port = port
        self.directory = host.sandbox.directory / f"sshd-{port}"
        self.home = self.directory / "home"  # of the account that one logs in to
        self.log = self.directory / "log"
        self.home.mkdir(parents=True)
        self._write_files(extra)
        with self.log.open("w") as log:
            enter = ["unshare", "--mount", "--propagation", "private", "sh", "-e", "-c", _ENTER, "sh"]
            self.process = host.popen([*enter, self.directory, SSHD], stdout=log, stderr=log)
        self._wait()

    def ssh(self, *arguments: str, version: int = 4) -> list[str]:
        """``ssh server ARGUMENTS`` to the address that the server has now; options go in front by `options`."""
        return ["ssh", *self.options(version), NAME, *arguments]

    def scp(self, source: str, target: str, version: int = 4) -> list[str]:
        """``scp SOURCE TARGET``; a file on the server is ``server:PATH``."""
        return ["scp", *self.options(version), source, target]

    def rsync(self, *arguments: str, version: int = 4) -> list[str]:
        """``rsync ARGUMENTS`` over ssh; a file on the server is ``server:PATH``."""
        return ["rsync", "-e", shlex.join(["ssh", *self.options(version)]), *arguments]

    def options(self, version: int = 4) -> list[str]:
        """Options for ssh and scp: the lab's configuration and the server's address at this moment."""
        return ["-F", str(self.directory / "ssh_config"), "-o", f"HostName={self.host.address(version)}"]

    def _write_files(self, extra: str) -> None:
        for key in ("host_key", "client_key"):
            call(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "lab", "-f", str(self.directory / key)])
        public = (self.directory / "host_key.pub").read_text()
        files = {
            "authorized_keys": (self.directory / "client_key.pub").read_text(),
            "known_hosts": f"{NAME} {public}",
            "sshd_config": f"""
                Port {self.port}
                HostKey {self.directory}/host_key
                AuthorizedKeysFile {self.directory}/authorized_keys
                PermitRootLogin prohibit-password
                PasswordAuthentication no
                KbdInteractiveAuthentication no
                StrictModes no
                UsePAM no
                UseDNS no
                PidFile none
                PrintMotd no
                PrintLastLog no
                MaxStartups 200:30:300
                MaxSessions 200
                Subsystem sftp internal-sftp
                {extra}
            """,
            "ssh_config": f"""
                Host {NAME}
                Port {self.port}
                User root
                HostKeyAlias {NAME}
                IdentityFile {self.directory}/client_key
                IdentitiesOnly yes
                IdentityAgent none
                UserKnownHostsFile {self.directory}/known_hosts
                GlobalKnownHostsFile none
                StrictHostKeyChecking yes
                BatchMode yes
            """,
            "passwd": _passwd(self.home),
            "shadow": "root:*:19000:0:99999:7:::\n",  # sshd refuses an account whose password begins with !
        }
        for name, text in files.items():
            path = self.directory / name
            path.touch(mode=0o600 if name == "shadow" else 0o644)
            path.write_text(text)

    def _wait(self) -> None:
        deadline = time.monotonic() + START_PATIENCE
        while "Server listening on :: port" not in self.log.read_text():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise LabError(f"sshd did not start: {self.log.read_text().strip()}")
            time.sleep(0.005)

    def stop(self) -> None:
        """Stop listening; sessions go on until the lab is closed."""
        self.process.terminate()
        try:
            self.process.wait(START_PATIENCE)
        except subprocess.TimeoutExpired as error:
            raise LabError(f"sshd {self.process.pid} does not stop") from error


def _passwd(home: Path) -> str:
    """The system's accounts, with another home and a plain shell for root."""
    shell = "/bin/bash" if os.path.exists("/bin/bash") else "/bin/sh"
    others = [line for line in Path("/etc/passwd").read_text().splitlines() if not line.startswith("root:")]
    return "\n".join([f"root:x:0:0:root:{home}:{shell}", *others, ""])

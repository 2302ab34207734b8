"""ssh as the channel of a pairing: it runs one command on the other host and nothing besides.

What the other host writes to stderr is thrown away; what ssh itself has to say goes to a file of ours (`-E`), so that
the two cannot be taken for each other.  ssh asks for passwords and about host keys on the terminal by itself.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Final, NamedTuple, Self

from redirectctl.pairing.exchange import Channel

SSH_FAILED: Final = 255  # ssh's exit code when it is ssh that failed
NOT_FOUND: Final = 127  # a shell's exit code when there is no such command
PATIENCE: Final = 5.0  # seconds for ssh to end, once its command has
LONGEST_LOG: Final = 64 * 1024  # bytes, read of what ssh has said

# No terminal there; nothing is forwarded, tunnelled or run here; a session, whatever the configuration says.  The first
# value that ssh gets counts, so these go before what the person gives.
ALONE: Final = (
    "-T", "-x", "-a",
    "-o", "ClearAllForwardings=yes",
    "-o", "ExitOnForwardFailure=no",
    "-o", "PermitLocalCommand=no",
    "-o", "Tunnel=no",
    "-o", "RemoteCommand=none",
)  # fmt: skip
# The same, for an ssh that knows these options (8.7).  IgnoreUnknown would take the place of the person's own.
SINCE_8_7: Final = (
    "-o", "SessionType=default",
    "-o", "ForkAfterAuthentication=no",
    "-o", "StdinNull=no",
)  # fmt: skip


# What is told of what ssh says: the rest of its lines may come from a server that nobody has authenticated yet, such as
# which algorithms it offers, or how it says goodbye.  The first that the last line with any of them has.
TOLD: Final = (
    "Permission denied",
    "Too many authentication failures",
    "Host key verification failed",
    "Could not resolve hostname",
    "Connection refused",
    "Connection timed out",
    "No route to host",
    "Network is unreachable",
    "Connection reset",
    "Connection closed",
    "Bad configuration option",
    "bad configuration options",
    "Bad owner or permissions",
    "Can't open user config file",
    "no matching host key type found",
    "no matching key exchange method found",
    "no matching cipher found",
    "no matching MAC found",
    "Protocol major versions differ",
    "invalid format",
)


class SshMissingError(Exception):
    """There is no ssh."""


class Settings(NamedTuple):
    """Where ssh goes, as it says itself."""

    host: str  # a name or an address
    user: str
    proxied: bool  # through another host or a program: no connection of this host reaches that one
    named: str | None  # as which host it takes the command line, in lower case; None: an older ssh does not say
    since_8_7: bool


class Ended(NamedTuple):
    """How ssh ended."""

    code: int  # of the command, or SSH_FAILED
    said: str  # by ssh: one of TOLD; may be empty


def settings(target: str, arguments: Sequence[str]) -> Settings | None:
    """Raises SshMissingError; None: ssh does not take these arguments."""
    try:
        done = subprocess.run(
            ["ssh", "-G", *arguments, "--", target], stdin=subprocess.DEVNULL, capture_output=True, text=True,
            errors="replace", timeout=30, check=False,
        )  # fmt: skip
    except FileNotFoundError:
        raise SshMissingError from None
    except subprocess.TimeoutExpired:
        return None
    if done.returncode:
        return None
    said = dict(line.split(" ", 1) for line in done.stdout.splitlines() if " " in line)
    proxied = any(said.get(key, "none") != "none" for key in ("proxyjump", "proxycommand"))
    named = said["host"].lower() if "host" in said else None
    return Settings(said.get("hostname", target), said.get("user", ""), proxied, named, "sessiontype" in said)


class Ssh:
    """A running ssh."""

    def __init__(self, target: str, arguments: Sequence[str], command: Sequence[str], settings: Settings) -> None:
        """Begin.  ``arguments``: of the person, for ssh.  Raises SshMissingError."""
        self._folder = tempfile.TemporaryDirectory(prefix="redirectctl-")
        self._log = Path(self._folder.name) / "ssh"
        line = [
            "ssh",
            "-E",
            str(self._log),
            *ALONE,
            *(SINCE_8_7 if settings.since_8_7 else ()),
            *arguments,
            "--",
            target,
            shlex.join(command),
        ]
        try:
            self._process = subprocess.Popen(
                line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
            )
        except FileNotFoundError:
            self._folder.cleanup()
            raise SshMissingError from None
        if self._process.stdin is None or self._process.stdout is None:
            raise RuntimeError("Popen has made no pipes")
        self._to, self._from = self._process.stdin, self._process.stdout
        self.channel = Channel(self._from.fileno(), self._to.fileno())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None and not isinstance(error, Exception):  # a signal: nobody waits any more
            self._process.terminate()
        self.end()
        self._folder.cleanup()

    def end(self) -> Ended:
        """Let it end, or make it."""
        for pipe in (self._to, self._from):
            with suppress(OSError):
                pipe.close()
        try:
            code = self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.terminate()
            code = self._process.wait()
        return Ended(code, self._said())

    def _said(self) -> str:
        try:
            with self._log.open("rb") as log:
                log.seek(max(0, os.fstat(log.fileno()).st_size - LONGEST_LOG))
                text = log.read().decode(errors="replace")
        except OSError:
            return ""
        return next((each for line in reversed(text.splitlines()) for each in TOLD if each in line), "")

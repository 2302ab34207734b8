"""redirectd on a host of the lab, and the command line that talks to it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from redirectctl.lab.namespaces import LabError, program
from redirectctl.lab.streams import wait_until
from redirectctl.lab.topology import Host

START_PATIENCE = 60.0  # seconds until READY=1: on a machine that has much else to do
STOP_PATIENCE = 60.0  # seconds after SIGTERM, of which it may wait for a processor: see Daemon.stop()
OWN_STATE = (
    "daemon",
    "control",
    "state",
    "leftovers",
    "peers",
    "connections",
)  # checks of what is ours, not of the machine
CTL_POLL = 0.1  # seconds; each poll is a process


class CommandError(LabError):
    """A redirectctl command ended with another status than 0."""

    def __init__(self, command: str, status: int, stderr: str) -> None:
        super().__init__(f"redirectctl {command}: status {status}: {stderr}")
        self.status = status
        self.stderr = stderr


class Daemon:
    """redirectd in a host's namespace, with its own state directory and socket.  start() it."""

    def __init__(self, host: Host, config: str = "", *, command: Sequence[str] = ()) -> None:
        """``command``: what to run instead of the redirectd that is installed, with the same arguments."""
        self.host = host
        self._command = list(command) or [program("redirectd")]
        self.directory = host.sandbox.directory / f"redirectd-{host.name}"
        self.state = self.directory / "state"
        self.socket = self.directory / "redirectd.sock"
        self.config = self.directory / "redirectd.toml"
        self.log = self.directory / "log"  # of all its lives
        self.process: subprocess.Popen[str] | None = None
        self.directory.mkdir()
        self.config.write_text(config)

    def start(self) -> None:
        """Start it and return when it says READY=1.  Raises LabError with its last words."""
        notify = self.directory / "notify"
        notify.unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
            listener.bind(str(notify))
            listener.setblocking(False)
            files = {"--config": self.config, "--state-dir": self.state, "--socket": self.socket}
            options = [str(each) for pair in files.items() for each in pair]
            with self.log.open("a") as log:
                self.process = self.host.popen(
                    [*self._command, *options, "--log-level", "debug"],
                    stdout=log,
                    stderr=log,
                    env=os.environ | {"NOTIFY_SOCKET": str(notify)},
                )
            self.host.sandbox.graceful.append(self.process)
            wait_until(lambda: self._is_ready(listener), START_PATIENCE, f"READY=1 of redirectd on {self.host.name}")

    def _is_ready(self, listener: socket.socket) -> bool:
        process = self._running()
        if process.poll() is not None:
            tail = "\n".join(self.log.read_text().splitlines()[-20:])
            raise LabError(f"redirectd on {self.host.name} ended with {process.returncode}:\n{tail}")
        try:
            return "READY=1" in listener.recv(4096).decode().splitlines()
        except BlockingIOError:
            return False

    def _running(self) -> subprocess.Popen[str]:
        if self.process is None:
            raise LabError(f"redirectd on {self.host.name} was not started")
        return self.process

    def stop(self) -> float:
        """SIGTERM; returns the seconds that it took to end, but for those in which others had the processors.

        Raises LabError if it takes too long or fails.
        """
        process = self._running()
        began, waited = time.monotonic(), _waited(process.pid)
        process.terminate()
        wait_until(lambda: _ended(process), STOP_PATIENCE, f"redirectd on {self.host.name} stops")
        took = time.monotonic() - began - (_waited(process.pid) - waited)
        status = process.wait()
        if status != 0:
            raise LabError(f"redirectd on {self.host.name} stopped with status {status}; see {self.log}")
        return took

    def kill(self) -> None:
        """SIGKILL."""
        process = self._running()
        process.kill()
        process.wait()

    def restart(self) -> None:
        """Stop and start it."""
        self.stop()
        self.start()

    def reload(self) -> None:
        """SIGHUP: read the configuration again."""
        self._running().send_signal(signal.SIGHUP)

    def opted_in(self, *options: str) -> list[str]:
        """What to put in front of a command on this host to opt it in."""
        return ["env", f"REDIRECTCTL_SOCKET={self.socket}", program("redirect-run"), *options, "--"]

    def ctl(self, *arguments: str) -> Any:
        """``redirectctl --json ARGUMENTS`` on this host, its output parsed.

        Of events, which prints a line each, a list.  Raises CommandError when it fails.
        """
        argv = [program("redirectctl"), "--socket", str(self.socket), "--json", *arguments]
        done = self.host.run(argv, check=False)
        if done.returncode != 0:
            raise CommandError(" ".join(arguments), done.returncode, done.stderr.strip())
        if arguments[0] == "events":
            return [json.loads(line) for line in done.stdout.splitlines()]
        return json.loads(done.stdout) if done.stdout.strip() else None

    def doctor(self) -> dict[str, str]:
        """What `redirectctl doctor` finds wrong with state and kernel, by the name of the check."""
        argv = [program("redirectctl"), "--socket", str(self.socket), "--json", "doctor"]
        checks = json.loads(self.host.run(argv, check=False).stdout)
        wrong = [check for check in checks if check["status"] not in ("ok", "skip")]
        return {check["name"]: check["found"] for check in wrong if check["name"].startswith(OWN_STATE)}

    def events(self, name: str | None = None, *, since: float = 0.0) -> list[dict[str, Any]]:
        """Events from a time (of `time.time`) on, all or those of one name."""
        found = self.ctl("events", "--since", f"{since:.6f}")
        return [event for event in found if name in (None, event["event"])]

    def wait_event(self, name: str, *, since: float = 0.0, timeout: float = 15.0, **matching: object) -> dict[str, Any]:
        """The first event of that name, and with these keys and values.  Raises LabError if none comes in time."""

        def found() -> dict[str, Any] | None:
            return next((event for event in self.events(name, since=since) if _matches(event, matching)), None)

        return wait_until(found, timeout, f"{self.host.name}: event {name} {matching or ''}", poll=CTL_POLL)

    def wait_connections(self, state: str, count: int = 1, *, timeout: float = 30.0) -> list[dict[str, Any]]:
        """Wait until at least count connections are in that state, and return them.  Raises LabError."""

        def found() -> list[dict[str, Any]] | None:
            matching = [each for each in self.ctl("connections") if each["state"] == state]
            return matching if len(matching) >= count else None

        return wait_until(found, timeout, f"{self.host.name}: {count} connections in state {state}", poll=CTL_POLL)

    def wait_peer(self, state: str, *, timeout: float = 30.0) -> dict[str, Any]:
        """Wait until a peer is in that state, and return it.  Raises LabError."""

        def found() -> dict[str, Any] | None:
            return next((each for each in self.ctl("peers") if each["state"] == state), None)

        return wait_until(found, timeout, f"{self.host.name}: a peer in state {state}", poll=CTL_POLL)

    def report(self) -> str:
        """The daemon's log, for whoever looks into a failure."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""


def _ended(process: subprocess.Popen[str]) -> bool:
    """Whether it is a zombie, or has been waited for."""
    if process.returncode is not None:
        return True
    return os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _waited(pid: int) -> float:
    """Seconds in which a process's main thread, or a zombie's, had no processor to run on (/proc/PID/schedstat)."""
    try:
        return int(Path(f"/proc/{pid}/schedstat").read_text().split()[1]) / 1e9
    except (OSError, IndexError):  # a kernel without it
        return 0.0


def _matches(event: Mapping[str, Any], wanted: Mapping[str, object]) -> bool:
    return all(event.get(key) == value for key, value in wanted.items())

"""Traffic between two hosts of the lab, and what became of it.

All times are seconds of CLOCK_MONOTONIC (`time.monotonic`).  ``wrap`` is put in front of the client's command, for
example ``daemon.opted_in()``.
"""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import time
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from redirectctl.lab.namespaces import LabError
from redirectctl.lab.topology import Host

START_PATIENCE = 60.0  # seconds until a program runs and is connected
STOP_PATIENCE = 45.0  # seconds until it has flushed and ended; more than a ticker's own limit
POLL = 0.005  # seconds

T = TypeVar("T")


def wait_until(condition: Callable[[], T | None], timeout: float, what: str, *, poll: float = POLL) -> T:
    """Poll until the condition gives something true, and return that.  Raises LabError naming what was waited for."""
    deadline = time.monotonic() + timeout
    while not (found := condition()):
        if time.monotonic() > deadline:
            raise LabError(f"waited {timeout:g} s in vain: {what}")
        time.sleep(poll)
    return found


class Program:
    """A running ``redirectctl.lab.traffic`` program; what it prints goes to a file."""

    def __init__(self, host: Host, *arguments: str, wrap: Sequence[str] = (), stdin: int = subprocess.DEVNULL) -> None:
        self.host = host
        self.name = f"{arguments[0]}-{host.name}-{host.sandbox.number()}"
        self.output = host.sandbox.directory / f"{self.name}.out"
        self.errors = self.output.with_suffix(".err")
        argv = [*wrap, sys.executable, "-m", "redirectctl.lab.traffic", *arguments]
        with self.output.open("w") as output, self.errors.open("w") as errors:
            self.process = host.popen(argv, stdin=stdin, stdout=output, stderr=errors)

    def printed(self) -> list[dict[str, Any]]:
        """The complete JSON lines that it has printed so far."""
        text = self.output.read_text()
        return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]

    def wait_line(self, count: int, timeout: float = START_PATIENCE) -> dict[str, Any]:
        """Line number count (from 1) of its output.  Raises LabError if it ends before that or takes too long."""

        def found() -> list[dict[str, Any]]:
            ended = self.process.poll() is not None
            lines = self.printed()
            if ended and len(lines) < count:
                raise LabError(f"{self.name} ended: status {self.process.returncode}: {lines} {self.complaints()}")
            return lines if len(lines) >= count else []

        return wait_until(found, timeout, f"line {count} of {self.name}")[count - 1]

    def complaints(self) -> str:
        """What it wrote to stderr."""
        return self.errors.read_text().strip()

    def finish(self, timeout: float = STOP_PATIENCE) -> dict[str, Any]:
        """Wait for its end and return the last line.  Kills it when it takes too long; then {"error": "TIMEOUT"}."""
        try:
            self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            return {"error": "TIMEOUT"}
        return self.printed()[-1] if self.printed() else {"error": self.complaints()}

    def kill(self) -> None:
        """End it at once."""
        self.process.kill()
        self.process.wait()


class Verdict(NamedTuple):
    """Whether a stream arrived whole, and if not, why not."""

    ok: bool
    why: str  # "" when ok
    figures: Mapping[str, dict[str, Any]]  # what each end ("client", "server") printed last


class Receipt(NamedTuple):
    """One ticker record as it arrived."""

    received: float
    number: int
    sent: float


class _Log:
    """A log of numbers in columns that grows."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0
        self._rows: list[tuple[int, ...]] = []

    def rows(self) -> list[tuple[int, ...]]:
        if self._path.exists():
            with self._path.open("rb") as file:
                file.seek(self._offset)
                data = file.read()
            whole = data[: data.rfind(b"\n") + 1]
            self._offset += len(whole)
            self._rows += [tuple(map(int, line.split())) for line in whole.splitlines()]
        return self._rows


class Ticker:
    """A connection on which both ends send a numbered record at an interval; made by start_ticker."""

    def __init__(self, server: Program, client: Program, logs: Mapping[str, Path], local: str) -> None:
        self.ends = {"server": server, "client": client}
        self.local = local  # the client's "address:port"
        self._logs = {end: _Log(path) for end, path in logs.items()}

    def records(self, end: str) -> list[Receipt]:
        """What has arrived at "client" or "server" so far."""
        return [Receipt(row[0] / 1e9, row[1], row[2] / 1e9) for row in self._logs[end].rows()]

    def alive(self) -> bool:
        """Whether both ends still have the connection."""
        return all(program.process.poll() is None for program in self.ends.values())

    def first_after(self, moment: float, end: str) -> float | None:
        """When the first record after a moment arrived at one end; None if none has yet."""
        rows = self._logs[end].rows()
        place = bisect_right(rows, moment * 1e9, key=itemgetter(0))  # they are in order of arrival
        return rows[place][0] / 1e9 if place < len(rows) else None

    def gap_after(self, moment: float) -> float | None:
        """Seconds from a moment to the first record that arrived at either end; None if none has yet."""
        arrivals = [found for end in self.ends if (found := self.first_after(moment, end)) is not None]
        return min(arrivals) - moment if arrivals else None

    def wait_gap(self, moment: float, timeout: float) -> float:
        """gap_after, once a record has arrived.  Raises LabError if none does in time or the connection ends."""

        def arrived() -> tuple[float] | None:
            gap = self.gap_after(moment)
            if gap is None and not self.alive():
                raise LabError(f"the connection {self.local} died: {self.errors()}")
            return None if gap is None else (gap,)

        return wait_until(arrived, timeout, f"a record on {self.local}")[0]

    def wait_both(self, moment: float, timeout: float) -> float:
        """Seconds from a moment until both ends had received something after it.  Raises LabError as wait_gap."""
        self.wait_gap(moment, timeout)

        def arrived() -> list[float]:
            if not self.alive():
                raise LabError(f"the connection {self.local} died: {self.errors()}")
            found = [self.first_after(moment, end) for end in self.ends]
            return [each for each in found if each is not None] if None not in found else []

        return max(wait_until(arrived, timeout, f"a record in both directions on {self.local}")) - moment

    def longest_pause(self, since: float) -> float:
        """The longest time after a moment for which one of the two ends received nothing: what the program saw."""
        longest = 0.0
        for end in self.ends:
            times = [receipt.received for receipt in self.records(end)]
            before = [moment for moment in times if moment <= since][-1:] or [since]
            points = [*before, *(moment for moment in times if moment > since)]
            longest = max([longest, *(later - earlier for earlier, later in itertools.pairwise(points))])
        return longest

    def errors(self) -> dict[str, str]:
        """How the ends that have ended failed, e.g. {"server": "ECONNRESET"}."""
        ended = {end: program for end, program in self.ends.items() if program.process.poll() is not None}
        return {end: str((program.printed() or [{}])[-1].get("error")) for end, program in ended.items()}

    def stop(self) -> Verdict:
        """Let both ends finish; ok if every record sent by one arrived once and in order at the other."""
        if not self.alive():
            errors = self.errors()
            for program in self.ends.values():
                program.kill()
            return Verdict(False, ", ".join(f"{end}: {error}" for end, error in errors.items()), {})
        for program in self.ends.values():
            program.process.terminate()
        figures = {end: program.finish() for end, program in self.ends.items()}
        client, server = figures["client"], figures["server"]
        for end, values in figures.items():
            if values.get("error"):
                return Verdict(False, f"{end}: {values['error']}", figures)
            if not values["ordered"]:
                return Verdict(False, f"{end}: records out of order", figures)
        if (client["sent"], server["sent"]) != (server["received"], client["received"]):
            return Verdict(False, "records lost", figures)
        return Verdict(True, "", figures)


class Idle:
    """Connections that say nothing unless asked; made by start_idle."""

    def __init__(self, server: Program, client: Program, locals_: list[str]) -> None:
        self.server = server
        self.client = client
        self.locals = locals_  # each connection's "address:port" at the client
        self._asked = 0

    def ask(self, timeout: float) -> dict[str, str]:
        """Ask each connection for an echo.  Returns what failed by the client's address:port; {} if all live."""
        self.begin(timeout)
        answer = self.client.wait_line(len(self.locals) + self._asked, timeout * 2 + START_PATIENCE)
        return {self.locals[int(number)]: error for number, error in answer["errors"].items()}

    def begin(self, timeout: float) -> None:
        """Send something on each connection and do not wait; its echo has so many seconds to come."""
        stdin = self.client.process.stdin
        if stdin is None:
            raise LabError("the idle program has no stdin")
        stdin.write(f"{timeout}\n")
        stdin.flush()
        self._asked += 1

    def echoed(self) -> dict[str, float] | None:
        """When the echo of what was sent last came, by the client's address:port; None while some are awaited.

        A connection that failed is not in it.
        """
        lines = self.client.printed()[len(self.locals) :]
        if len(lines) < self._asked:
            return None
        return {self.locals[int(number)]: moment for number, moment in lines[self._asked - 1]["echoed"].items()}

    def stop(self) -> None:
        """Close all connections."""
        self.client.kill()
        self.server.kill()


class Bulk:
    """A stream of data as fast as it goes from the client to the server; made by start_bulk."""

    def __init__(self, receiver: Program, sender: Program, log: Path, local: str) -> None:
        self.ends = {"server": receiver, "client": sender}
        self.local = local
        self._log = _Log(log)

    def progress(self) -> list[tuple[float, int]]:
        """(time, bytes received until then), a pair for each MiB or so."""
        return [(row[0] / 1e9, row[1]) for row in self._log.rows()]

    def received(self) -> int:
        """Bytes received so far, to a MiB or so."""
        rows = self._log.rows()
        return rows[-1][1] if rows else 0

    def stop(self) -> Verdict:
        """Stop sending; ok if the receiver got exactly what was sent."""
        self.ends["client"].process.terminate()
        figures = {"client": self.ends["client"].finish(), "server": self.ends["server"].finish()}
        for end, values in figures.items():
            if values.get("error"):
                return Verdict(False, f"{end}: {values['error']}", figures)
        if figures["client"] != figures["server"]:
            return Verdict(False, "what arrived is not what was sent", figures)
        return Verdict(True, "", figures)


class Flood:
    """A connection that is silent until told to send as fast as it can; made by start_flood."""

    def __init__(self, sink: Program, source: Program, name: str) -> None:
        self.ends = {"server": sink, "client": source}
        self.name = name  # LOCAL-REMOTE, as `redirectctl connections` and ss show it

    def begin(self) -> None:
        """Send from now on."""
        if stdin := self.ends["client"].process.stdin:  # start_flood's pipe
            stdin.write("\n")
            stdin.flush()

    def kill(self) -> None:
        """End it."""
        for end in self.ends.values():
            end.kill()


def start_ticker(
    server: Host,
    client: Host,
    *,
    version: int = 4,
    port: int = 0,
    interval: float = 0.01,
    wrap: Sequence[str] = (),
    devices: tuple[str, str] = ("", ""),
) -> Ticker:
    """Connect client to server and let both tick every interval seconds; port 0 is any port.

    ``devices``: interfaces that the sockets of server and client are bound to.
    Returns when records arrive at both ends.  Raises LabError.
    """
    name = f"ticker-{server.sandbox.number()}"
    logs = {end: server.sandbox.directory / f"{name}-{end}.log" for end in ("server", "client")}
    timing = ["--interval", str(interval)]
    here, there = (["--device", device] if device else [] for device in devices)
    listening = Program(server, "ticker", "--listen", str(port), *timing, "--log", str(logs["server"]), *here)
    target = _target(server, listening, version)
    connecting = Program(client, "ticker", *target, *timing, "--log", str(logs["client"]), *there, wrap=wrap)
    ticker = Ticker(listening, connecting, logs, connecting.wait_line(1)["local"])
    ticker.wait_both(0.0, START_PATIENCE)
    return ticker


def start_idle(
    server: Host, client: Host, count: int, *, version: int = 4, port: int = 0, wrap: Sequence[str] = ()
) -> Idle:
    """Open connections from client to an echo on server, and leave them alone.  Raises LabError."""
    listening = Program(server, "echo", "--listen", str(port))
    arguments = ["idle", *_target(server, listening, version), "--count", str(count)]
    connecting = Program(client, *arguments, wrap=wrap, stdin=subprocess.PIPE)
    connecting.wait_line(count, START_PATIENCE + count * 0.01)
    return Idle(listening, connecting, [line["local"] for line in connecting.printed()])


def start_bulk(
    server: Host, client: Host, *, version: int = 4, port: int = 0, wrap: Sequence[str] = (), pace: int = 0
) -> Bulk:
    """Send from client to server without end, at most ``pace`` bytes a second (0: no limit).  Raises LabError."""
    log = server.sandbox.directory / f"bulk-{server.sandbox.number()}.log"
    receiving = Program(server, "receiver", "--listen", str(port), "--log", str(log))
    sending = Program(client, "sender", *_target(server, receiving, version), "--pace", str(pace), wrap=wrap)
    return Bulk(receiving, sending, log, sending.wait_line(1)["local"])


def start_flood(server: Host, client: Host, *, version: int = 4, pace: int = 0, congestion: str | None = None) -> Flood:
    """Connect client to server; ``pace``: bytes a second at most, 0 for no limit.  Raises LabError."""
    sink = Program(server, "sink", "--listen", "0")
    target = _target(server, sink, version)
    arguments = ["flood", *target, "--pace", str(pace), *(["--congestion", congestion] if congestion else [])]
    source = Program(client, *arguments, stdin=subprocess.PIPE)
    address = f"[{target[1]}]" if version == 6 else target[1]
    return Flood(sink, source, f"{source.wait_line(1)['local']}-{address}:{target[2]}")


def _target(server: Host, listening: Program, version: int) -> list[str]:
    return ["--connect", str(server.address(version)), str(listening.wait_line(1)["port"])]

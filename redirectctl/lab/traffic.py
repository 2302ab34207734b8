"""Programs that make TCP traffic inside a namespace: ``python -m redirectctl.lab.traffic MODE ...``.

========== ============================================ ==========================================================
mode       what it does                                 what it prints on stdout, as JSON lines
========== ============================================ ==========================================================
ticker     each end sends a numbered record every N ms  at SIGTERM: what it sent and received, and whether in order
echo       sends back what it receives                  nothing
idle       holds connections to an echo, silent         for each line on stdin: which connections still echo, and when
sender     sends numbered blocks as fast as it can      at SIGTERM: bytes and checksum
receiver   receives them                                at end of the stream: bytes and checksum
flood      after a line on stdin sends, without a look  nothing
sink       receives, without a look                     nothing
========== ============================================ ==========================================================

A program that listens prints ``{"port": N}`` first, one that connects ``{"local": "address:port"}``.  Ends with 1 if
its connection failed.  `redirectctl.lab.streams` starts these and reads what they print.

A ticker's record is two unsigned 64-bit numbers in network order, the sequence number from 0 and the sender's
CLOCK_MONOTONIC in nanoseconds, which is the same clock in all namespaces of a machine.  Its log has a line
``received-at sequence sent-at`` for each record that arrived.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import json
import os
import resource
import selectors
import signal
import socket
import struct
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import IO

RECORD = struct.Struct("!QQ")
BLOCK = 64 * 1024
CHUNK = 256 * 1024
NOTE_EVERY = 1 << 20  # bytes between two notes of a receiver's progress
DRAIN_TIMEOUT = 30.0  # seconds that a ticker waits for the other end's last records
CONNECT_TIMEOUT = 30.0  # seconds
_SO_MAX_PACING_RATE = 47  # socket(7); the module has no name for it

_stopped = False


def main(argv: list[str] | None = None) -> int:
    """Run one of the modes above."""
    parser = argparse.ArgumentParser(prog="traffic")
    modes = parser.add_subparsers(required=True)

    def mode(name: str, run: Callable[[argparse.Namespace], int]) -> argparse.ArgumentParser:
        found = modes.add_parser(name)
        found.set_defaults(run=run)
        found.add_argument("--listen", type=int, metavar="PORT")
        found.add_argument("--connect", nargs=2, metavar=("ADDRESS", "PORT"))
        found.add_argument("--from", type=int, default=0, dest="source", metavar="PORT", help="of this host")
        found.add_argument("--device", default="", metavar="INTERFACE", help="bind the socket to it (SO_BINDTODEVICE)")
        return found

    ticker = mode("ticker", run_ticker)
    ticker.add_argument("--interval", type=float, default=0.01, help="seconds")
    ticker.add_argument("--log", type=Path, required=True)
    mode("echo", run_echo)
    mode("idle", run_idle).add_argument("--count", type=int, default=1)
    mode("sender", run_sender).add_argument("--pace", type=int, default=0, help="bytes a second; 0: as fast as it goes")
    mode("receiver", run_receiver).add_argument("--log", type=Path, required=True)
    flood = mode("flood", run_flood)
    flood.add_argument("--pace", type=int, default=0, help="bytes a second at most, by TCP's pacing; 0: no limit")
    flood.add_argument("--congestion", metavar="NAME", help="TCP congestion control")
    mode("sink", run_sink)
    arguments = parser.parse_args(argv)
    signal.signal(signal.SIGTERM, _stop)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        return int(arguments.run(arguments))
    except OSError as error:
        _print(error=_name(error))
        return 1


def _stop(_number: int, _frame: FrameType | None) -> None:
    global _stopped  # noqa: PLW0603 - set by the signal handler, read by the loops
    _stopped = True


def _print(**values: object) -> None:
    print(json.dumps(values), flush=True)


def _name(error: OSError) -> str:
    return errno.errorcode.get(error.errno or 0, str(error))


def _listen(port: int, device: str = "") -> socket.socket:
    listener = socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=1024)
    if device:  # what it accepts is bound too
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device.encode())
    _print(port=listener.getsockname()[1])
    return listener


def _connected(arguments: argparse.Namespace) -> socket.socket:
    """The one connection of a mode that has one: made or accepted."""
    if arguments.connect:
        connection = _connect(arguments)
    else:
        with _listen(arguments.listen, arguments.device) as listener:
            connection = listener.accept()[0]
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def _connect(arguments: argparse.Namespace) -> socket.socket:
    host, port = arguments.connect
    connection = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    if arguments.device:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, arguments.device.encode())
    if arguments.source:
        connection.bind(("", arguments.source))
    connection.settimeout(CONNECT_TIMEOUT)
    connection.connect((host, int(port)))
    connection.settimeout(None)
    address, local_port = connection.getsockname()[:2]
    _print(local=f"[{address}]:{local_port}" if ":" in address else f"{address}:{local_port}")
    return connection


class Ticker:
    """One end of a connection on which both ends send a record every interval."""

    def __init__(self, connection: socket.socket, interval: float, log: IO[str]) -> None:
        self._connection = connection
        self._interval = int(interval * 1e9)
        self._log = log
        self._unsent = bytearray()
        self._partial = bytearray()
        self.sent = 0
        self.received = 0
        self.ordered = True
        self.ended = False

    def run(self) -> None:
        """Tick until stopped, then finish: every record sent, the other end's all read.  Raises OSError."""
        self._connection.setblocking(False)
        due = time.monotonic_ns()
        finishing = 0  # when it began
        shut = False
        with selectors.DefaultSelector() as selector:
            key = selector.register(self._connection, selectors.EVENT_READ)
            while not (self.ended and shut):
                now = time.monotonic_ns()
                if not finishing and (_stopped or self.ended):
                    finishing = now
                if not finishing and now >= due:
                    self._unsent += RECORD.pack(self.sent, now)
                    self.sent += 1
                    due = max(due + self._interval, now)
                self._send()
                if finishing and not self._unsent and not shut:
                    self._connection.shutdown(socket.SHUT_WR)
                    shut = True
                if finishing and now - finishing > DRAIN_TIMEOUT * 1e9:
                    raise TimeoutError(errno.ETIMEDOUT, "the other end did not finish")
                if self.ended and not self._unsent:
                    continue
                wanted = (0 if self.ended else selectors.EVENT_READ) | (selectors.EVENT_WRITE if self._unsent else 0)
                if key.events != wanted:
                    key = selector.modify(self._connection, wanted)
                wait = 0.1 if finishing else (due - time.monotonic_ns()) / 1e9
                if any(events & selectors.EVENT_READ for _, events in selector.select(max(0.0, wait))):
                    self._receive()

    def _send(self) -> None:
        if self._unsent:
            with contextlib.suppress(BlockingIOError):
                del self._unsent[: self._connection.send(self._unsent)]

    def _receive(self) -> None:
        data = self._connection.recv(CHUNK)
        now = time.monotonic_ns()
        self.ended = not data
        self._partial += data
        whole = len(self._partial) - len(self._partial) % RECORD.size
        lines = []
        for number, sent_at in RECORD.iter_unpack(bytes(self._partial[:whole])):
            self.ordered &= number == self.received
            self.received += 1
            lines.append(f"{now} {number} {sent_at}\n")
        del self._partial[:whole]
        self._log.write("".join(lines))
        self._log.flush()


def run_ticker(arguments: argparse.Namespace) -> int:
    """Be one end of a ticker."""
    with _connected(arguments) as connection, arguments.log.open("w") as log:
        ticker = Ticker(connection, arguments.interval, log)
        error = None
        try:
            ticker.run()
        except OSError as failure:
            error = _name(failure)
        _print(sent=ticker.sent, received=ticker.received, ordered=ticker.ordered, error=error)
        return 1 if error else 0


def run_echo(arguments: argparse.Namespace) -> int:
    """Echo on any number of connections until stopped."""
    with _listen(arguments.listen) as listener, selectors.DefaultSelector() as selector:
        selector.register(listener, selectors.EVENT_READ)
        while not _stopped:
            for key, _ in selector.select(0.2):
                if key.fileobj is listener:
                    selector.register(listener.accept()[0], selectors.EVENT_READ)
                    continue
                connection = key.fileobj
                if isinstance(connection, socket.socket) and not _echo(connection):
                    selector.unregister(connection)
                    connection.close()
    return 0


def _echo(connection: socket.socket) -> bool:
    try:
        data = connection.recv(CHUNK)
        connection.sendall(data)  # an echoed line fits into the socket's buffer
    except OSError:
        return False
    return bool(data)


class Held:
    """A connection to an echo, and what was sent on it: exactly that must come back."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._awaited = b""

    def ask(self, token: bytes) -> None:
        """Send something.  Raises OSError."""
        self._awaited += token
        self._connection.sendall(token)

    def answer(self, deadline: float) -> None:
        """Read until everything asked has come back.  Raises OSError if it does not, or something else does."""
        while self._awaited:
            self._connection.settimeout(max(0.001, deadline - time.monotonic()))
            try:
                data = self._connection.recv(CHUNK)
            except TimeoutError as error:
                raise TimeoutError(errno.ETIMEDOUT, "no echo") from error
            if not data:
                raise ConnectionError(errno.ECONNRESET, "closed")
            if not self._awaited.startswith(data):
                raise OSError(errno.EBADMSG, "not what was sent")
            self._awaited = self._awaited[len(data) :]


def run_idle(arguments: argparse.Namespace) -> int:
    """Hold connections; a line ``SECONDS`` on stdin asks each for an echo within that time."""
    connections = [Held(_connect(arguments)) for _ in range(arguments.count)]
    for asked, line in enumerate(sys.stdin):
        deadline = time.monotonic() + float(line)
        errors: dict[int, str] = {}
        echoed: dict[int, float] = {}
        token = f"{asked} {os.getpid()}\n".encode()
        for number, held in enumerate(connections):
            try:
                held.ask(token)
            except OSError as error:
                errors[number] = _name(error)
        for number, held in enumerate(connections):
            if number not in errors:
                try:
                    held.answer(deadline)
                    echoed[number] = time.monotonic()
                except OSError as error:
                    errors[number] = _name(error)
        _print(alive=len(connections) - len(errors), errors=errors, echoed=echoed)
    return 0


def run_sender(arguments: argparse.Namespace) -> int:
    """Send numbered blocks until stopped."""
    filling = os.urandom(BLOCK - 8)
    total = checksum = number = 0
    error = None
    with _connected(arguments) as connection:
        try:
            began = time.monotonic()
            while not _stopped:
                if arguments.pace and (early := total / arguments.pace - (time.monotonic() - began)) > 0:
                    time.sleep(min(early, 0.1))
                    continue
                block = number.to_bytes(8, "big") + filling
                connection.sendall(block)
                checksum = zlib.crc32(block, checksum)
                total += len(block)
                number += 1
        except OSError as failure:
            error = _name(failure)
    _print(bytes=total, checksum=checksum, error=error)
    return 1 if error else 0


def run_receiver(arguments: argparse.Namespace) -> int:
    """Receive to the end of the stream; the log has ``time bytes`` for every MiB or so."""
    total = checksum = noted = 0
    error = None
    with _connected(arguments) as connection, arguments.log.open("w") as log:
        try:
            while data := connection.recv(CHUNK):
                checksum = zlib.crc32(data, checksum)
                total += len(data)
                if total - noted >= NOTE_EVERY:
                    noted = total
                    log.write(f"{time.monotonic_ns()} {total}\n")
                    log.flush()
        except OSError as failure:
            error = _name(failure)
    _print(bytes=total, checksum=checksum, error=error)
    return 1 if error else 0


def run_flood(arguments: argparse.Namespace) -> int:
    """Send whatever, as fast as the kernel takes it, from the first line on stdin until the connection ends."""
    data = bytes(CHUNK)
    with _connected(arguments) as connection:
        if arguments.congestion:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, arguments.congestion.encode())
        if arguments.pace:
            connection.setsockopt(socket.SOL_SOCKET, _SO_MAX_PACING_RATE, arguments.pace)
        sys.stdin.readline()
        while not _stopped:
            connection.sendall(data)
    return 0


def run_sink(arguments: argparse.Namespace) -> int:
    """Receive and forget."""
    buffer = bytearray(CHUNK)
    with _connected(arguments) as connection:
        while connection.recv_into(buffer):
            pass
    return 0


if __name__ == "__main__":
    sys.exit(main())

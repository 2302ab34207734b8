"""Opting the calling process in, for redirect-run.

Built-in modules only, because every command waits for this: socket would add 10 ms, json 6 ms, typing 4 ms to a start
of 14 ms.  json is imported for answers other than the two that the daemon gives as a rule.
The daemon takes the process's id from the socket (SO_PEERCRED), so there is nothing to say but "me".
"""

from __future__ import annotations

import _socket
import os
import time

DEFAULT_SOCKET = "/run/redirectctl/redirectd.sock"
SOCKET_VARIABLE = "REDIRECTCTL_SOCKET"
API_VERSION = 1  # changes when an older client would misread the daemon, or the daemon it
MAX_REPLY = 64 * 1024  # bytes of hello and reply together; the real ones have some hundred


class OptInError(Exception):
    """Why this process was not opted in, in one line without a final full stop."""


def socket_path(option: str | None = None) -> str:
    """Where the daemon's socket is: ``--socket``, else ``REDIRECTCTL_SOCKET``, else the default."""
    return option or os.environ.get(SOCKET_VARIABLE) or DEFAULT_SOCKET


def opt_in(path: str | None = None, timeout: float = 2.0) -> None:
    """Opt the calling process in; children made afterwards are opted in with it.

    path: as socket_path() takes it.  timeout: seconds for the whole exchange.  Raises OptInError.
    """
    path = socket_path(path)
    deadline = time.monotonic() + timeout
    sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    try:
        sock.settimeout(timeout)
        _connect(sock, path, deadline)
        sock.sendall(b'{"type":"opt-in"}\n', _socket.MSG_NOSIGNAL)
        _check(_read_reply(sock, deadline))
    except TimeoutError:
        raise OptInError(f"the daemon on {path} did not answer within {timeout:g} s") from None
    except OSError as error:
        raise OptInError(f"cannot reach the daemon on {path}: {error.strerror or error}") from None
    finally:
        sock.close()


def _connect(sock: _socket.socket, path: str, deadline: float) -> None:
    while True:
        try:
            return sock.connect(path)
        except BlockingIOError:  # unix(7): the daemon's backlog is full at this moment
            if time.monotonic() > deadline:
                raise TimeoutError from None
            time.sleep(0.01)


def _read_reply(sock: _socket.socket, deadline: float) -> dict[str, object]:
    """The first message after the daemon's hello."""
    received = b""
    while True:
        while b"\n" in received:
            line, _, received = received.partition(b"\n")
            message = _parse(line)
            if message.get("type") != "hello":
                return message
            if message.get("api") != API_VERSION:
                raise OptInError("the daemon is of another version: install the same version and restart redirectd")
        remaining = deadline - time.monotonic()
        if remaining <= 0:
            raise TimeoutError
        sock.settimeout(remaining)
        chunk = sock.recv(4096)
        if not chunk:
            raise OptInError("the daemon closed the connection without an answer")
        received += chunk
        if len(received) > MAX_REPLY:
            raise OptInError("the daemon's answer is not understood")


def _parse(line: bytes) -> dict[str, object]:
    if line == b'{"type":"opted-in"}':
        return {"type": "opted-in"}
    if line.startswith(b'{"type":"hello",') and line.endswith(b',"api":%d}' % API_VERSION):
        return {"type": "hello", "api": API_VERSION}
    import json

    try:
        message = json.loads(line)
    except (ValueError, RecursionError):
        message = None
    if not isinstance(message, dict):
        raise OptInError("the daemon's answer is not understood")
    return message


def _check(message: dict[str, object]) -> None:
    match message.get("type"):
        case "opted-in":
            return
        case "error":
            raise OptInError("; ".join(str(message[key]) for key in ("why", "hint") if message.get(key)))
        case _:
            raise OptInError("the daemon's answer is not understood")

"""Opting the calling process in, for redirect-run, and what else it says to the daemon.

Built-in modules only, because every command waits for this: socket would add 10 ms, json 6 ms, typing 4 ms to a start
of 14 ms.  json is imported for answers other than those that the daemon gives as a rule.
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
    opt_in_and_stay(path, timeout)[0].close()


def opt_in_and_stay(path: str | None = None, timeout: float = 2.0) -> tuple[_socket.socket, bool]:
    """As opt_in.  The connection to the daemon, and whether a person is asked about hosts met for the first time."""
    sock, answer = _exchange(socket_path(path), b'{"type":"opt-in"}', timeout)
    return sock, answer.get("asks") is True


def decide(verb: str, peer: str, path: str | None = None, timeout: float = 5.0) -> None:
    """Approve or reject a peer, by its fingerprint.  Raises OptInError when the daemon does not do it."""
    import json

    request = json.dumps({"type": verb, "peer": peer}).encode()
    _exchange(socket_path(path), request, timeout, expected="peer")[0].close()


def _exchange(
    path: str, request: bytes, timeout: float, expected: str = "opted-in"
) -> tuple[_socket.socket, dict[str, object]]:
    """Connect, say one thing, get the answer of the type that is expected.  Raises OptInError."""
    deadline = time.monotonic() + timeout
    sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    try:
        sock.settimeout(timeout)
        _connect(sock, path, deadline)
        sock.sendall(request + b"\n", _socket.MSG_NOSIGNAL)
        answer = _read_reply(sock, deadline)
        _check(answer, expected)
    except BaseException as error:
        sock.close()
        if isinstance(error, TimeoutError):
            raise OptInError(f"the daemon on {path} did not answer within {timeout:g} s") from None
        if isinstance(error, FileNotFoundError | ConnectionRefusedError):
            sudo = "" if os.geteuid() == 0 else "sudo "
            why = f"no daemon listens there; `{sudo}systemctl start redirectd`, or name its socket with --socket"
            raise OptInError(f"cannot reach the daemon on {path}: {why}") from None
        if isinstance(error, OSError):
            raise OptInError(f"cannot reach the daemon on {path}: {error.strerror or error}") from None
        raise
    return sock, answer


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
                raise OptInError(
                    "the daemon is of another version: install the same version, and `systemctl restart redirectd`"
                )
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
    if line == b'{"type":"opted-in","asks":true}':
        return {"type": "opted-in", "asks": True}
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


def _check(message: dict[str, object], expected: str) -> None:
    if message.get("type") == "error":
        raise OptInError("; ".join(str(message[key]) for key in ("why", "hint") if message.get(key)))
    if message.get("type") != expected:
        raise OptInError("the daemon's answer is not understood")

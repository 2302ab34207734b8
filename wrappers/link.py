"""What the daemon tells while a command runs: replies to a WatchRequest, over the connection of the opt-in."""

from __future__ import annotations

import _socket

from redirectctl.api.optin import API_VERSION, socket_path

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final

WATCH: Final = b'{"type":"watch"}\n'
NOTHING: Final = b'{"type":"watch","connections":[],"questions":[]}'  # as a rule; json takes 10 ms to import
MAX_LINE: Final = 1024 * 1024  # bytes of one reply; real ones have some thousand
RETRY: Final = (1.0, 3.0, 10.0, 30.0)  # seconds: a daemon that is restarted is found again


class Link:
    """One connection, made again when the daemon comes back.  Never waits."""

    def __init__(self, path: str | None, sock: _socket.socket) -> None:
        """path: as socket_path() takes it.  sock: where this process was opted in."""
        self._path = socket_path(path)
        self._sock: _socket.socket | None = sock
        self._received = b""
        self._request = WATCH
        self._tries = 0
        self.retry_at: float | None = None  # when to call retry(); None while it is connected, or for ever
        self._ask(0.0)

    @property
    def fd(self) -> int | None:
        """To wait for."""
        return self._sock.fileno() if self._sock is not None else None

    def ask_about(self, now: float, process: int) -> None:
        """Also about the connections of this process from now on, over another connection."""
        self._request = b'{"type":"watch","process":%d}\n' % process
        if self._sock is not None:
            self.close()
            self.retry(now)

    def close(self) -> None:
        """Ask no more."""
        if self._sock is not None:
            self._sock.close()
        self._sock = self.retry_at = None

    def read(self, now: float) -> tuple[bool, dict[str, Any] | None]:
        """What came: whether there is still a daemon, and its last reply if there was one."""
        if self._sock is None:
            return False, None
        try:
            chunk = self._sock.recv(65536)
        except BlockingIOError:
            return True, None
        except OSError:
            chunk = b""
        if not chunk:
            self._lost(now)
            return False, None
        self._received += chunk
        *lines, self._received = self._received.split(b"\n")
        if len(self._received) > MAX_LINE:
            self.close()
            return False, None
        reply: dict[str, Any] | None = None
        for line in lines:
            if line.startswith(b'{"type":"hello",') and line.endswith(b',"api":%d}' % API_VERSION):
                continue
            reply = _parse(line)
            if reply is None:  # refused, or of another version: it will not change its mind
                self.close()
                return False, None
            self._tries = 0
        return True, reply

    def retry(self, now: float) -> None:
        """Try to find the daemon again."""
        sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
        try:
            sock.setblocking(False)
            sock.connect(self._path)  # at once, or not at all
        except OSError:
            sock.close()
            self._lost(now)
            return
        self._sock, self._received, self.retry_at = sock, b"", None
        self._ask(now)

    def _ask(self, now: float) -> None:
        if self._sock is None:
            return
        try:
            self._sock.setblocking(False)
            self._sock.send(self._request, _socket.MSG_NOSIGNAL)
        except OSError:
            self._lost(now)

    def _lost(self, now: float) -> None:
        self.close()
        self.retry_at = now + RETRY[min(self._tries, len(RETRY) - 1)]
        self._tries += 1


def _parse(line: bytes) -> dict[str, Any] | None:
    """A WatchReply; None for anything else."""
    if line == NOTHING:
        return {"connections": [], "questions": []}
    import json

    try:
        message = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(message, dict) or message.get("type") != "watch":
        return None
    if not all(isinstance(message.get(key), list) for key in ("connections", "questions")):
        return None
    return message

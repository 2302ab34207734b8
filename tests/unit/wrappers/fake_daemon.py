"""A daemon that answers redirect-run as a test wants."""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

Behaviour = Callable[[socket.socket, int], None]

WATCH = b'{"type":"watch"}\n'
WATCHED = b'{"type":"watch","connections":[],"questions":[]}\n'
HELLO = b'{"type":"hello","version":"0.1.0","api":1}\n'


class FakeDaemon:
    """Serves one Unix socket in a thread.  `behaviour` gets each connection and the caller's process id.

    Who asks to watch gets what `tell` says, until it goes away.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.callers: list[int] = []
        self.requests: list[bytes] = []
        self.behaviour: Behaviour = self.accept
        self.stopping = threading.Event()
        self.watchers: list[socket.socket] = []
        self._told = WATCHED
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def accept(self, sock: socket.socket, pid: int) -> None:
        """Takes the process."""
        sock.sendall(b'{"type":"opted-in"}\n')

    def accept_and_ask(self, sock: socket.socket, pid: int) -> None:
        """Takes the process, where a person would be asked about new hosts; carries everything else out."""
        said = self.requests[-1]
        sock.sendall(b'{"type":"opted-in","asks":true}\n' if b"opt-in" in said else b'{"type":"peer","peer":{}}\n')

    def tell(self, *connections: dict[str, object], questions: Sequence[dict[str, object]] = ()) -> None:
        """All that there is to tell from now on."""
        reply = {"type": "watch", "connections": connections, "questions": questions}
        self._told = json.dumps(reply).encode() + b"\n"
        for watcher in self.watchers:
            with contextlib.suppress(OSError):  # it has ended
                watcher.sendall(self._told)

    def forget_watchers(self) -> None:
        """As a daemon that is stopped."""
        for watcher in self.watchers:
            with contextlib.suppress(OSError):
                watcher.shutdown(socket.SHUT_RDWR)
            watcher.close()
        self.watchers.clear()

    def close(self) -> None:
        if self.stopping.is_set():
            return
        self.stopping.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()
        self.forget_watchers()

    def _serve(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            with sock:
                pid, _, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
                self.callers.append(pid)
                sock.sendall(HELLO)
                file = sock.makefile("rb")
                self.requests.append(file.readline())
                try:
                    if self.requests[-1] != WATCH:
                        self.behaviour(sock, pid)
                        self.requests.append(file.readline())
                    if self.requests[-1] == WATCH:
                        self.watchers.append(sock.dup())
                        self.watchers[-1].sendall(self._told)
                    if not self.requests[-1]:
                        self.requests.pop()
                except (BrokenPipeError, ConnectionResetError):
                    continue  # redirect-run has had enough

"""A daemon that answers redirect-run as a test wants."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable
from pathlib import Path

Behaviour = Callable[[socket.socket, int], None]

HELLO = b'{"type":"hello","version":"0.1.0","api":1}\n'


class FakeDaemon:
    """Serves one Unix socket in a thread.  `behaviour` gets each connection and the caller's process id."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.callers: list[int] = []
        self.requests: list[bytes] = []
        self.behaviour: Behaviour = self.accept
        self.stopping = threading.Event()
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def accept(self, sock: socket.socket, pid: int) -> None:
        """Takes the process."""
        sock.sendall(b'{"type":"opted-in"}\n')

    def close(self) -> None:
        self.stopping.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()

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
                self.requests.append(sock.makefile("rb").readline())
                try:
                    self.behaviour(sock, pid)
                except (BrokenPipeError, ConnectionResetError):
                    continue  # redirect-run has had enough

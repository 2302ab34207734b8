import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest


@pytest.fixture
def scripted(tmp_path: Path) -> Iterator[Callable[..., str]]:
    """A daemon that says what it is told, reads one request line, and hangs or hangs up."""
    threads = []
    closing = threading.Event()

    def serve(*, before: bytes = b"", after: bytes = b"", hang: bool = False) -> str:
        path = str(tmp_path / "d.sock")
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(path)
        listener.listen()

        def answer() -> None:
            with listener, listener.accept()[0] as connection:
                with contextlib.suppress(BrokenPipeError, ConnectionResetError), connection.makefile("rb") as lines:
                    connection.sendall(before)
                    if before:
                        lines.readline()
                    connection.sendall(after)
                if hang:
                    closing.wait()

        threads.append(threading.Thread(target=answer))
        threads[-1].start()
        return path

    yield serve
    closing.set()
    for thread in threads:
        thread.join()

"""redirect-run with a daemon that is a thread: the wrapper is measured, and not what a daemon does meanwhile."""

from __future__ import annotations

import socket
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from redirectctl_wrappers import launcher


@contextmanager
def played(answer: Callable[[socket.socket], None]) -> Iterator[Path]:
    """A folder with ``redirect-run``, and with ``socket``, where ``answer`` plays the daemon of all who connect."""
    with tempfile.TemporaryDirectory() as name, socket.socket(socket.AF_UNIX) as listener:
        folder = Path(name)
        wrapper = folder / "redirect-run"
        wrapper.write_text(launcher.script(sys.executable))
        wrapper.chmod(0o755)
        listener.bind(f"{folder}/socket")
        listener.listen(128)
        thread = threading.Thread(target=_until_shut, args=[answer, listener], daemon=True)
        thread.start()
        try:
            yield folder
        finally:
            listener.shutdown(socket.SHUT_RDWR)  # what waits for the next one ends
            thread.join()


def _until_shut(answer: Callable[[socket.socket], None], listener: socket.socket) -> None:
    with suppress(OSError):
        answer(listener)

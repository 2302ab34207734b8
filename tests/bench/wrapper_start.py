"""What redirect-run adds to the start of a command: python tests/bench/wrapper_start.py [--runs N].

Each round runs every command once, plain and through redirect-run in turn, so that a busy moment of the machine meets
both; the table has the medians.  A daemon's part is played by a thread that answers at once: what is measured is the
wrapper and one exchange over the socket.  `ssh HOST true` is the command that people run; it is measured when
--ssh HOST names one that needs no password.
"""

from __future__ import annotations

import argparse
import os
import socket
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path

from redirectctl_wrappers import launcher


def answer(listener: socket.socket) -> None:
    """The daemon's side of opting in."""
    while True:
        sock, _ = listener.accept()
        with sock:
            sock.sendall(b'{"type":"hello","version":"0.1.0","api":1}\n')
            sock.recv(4096)
            sock.sendall(b'{"type":"opted-in"}\n')


def seconds(command: list[str], devnull: int) -> float:
    """From start to exit of one run."""
    quiet = [(os.POSIX_SPAWN_DUP2, devnull, fd) for fd in (0, 1, 2)]
    begin = time.perf_counter()
    pid = os.posix_spawnp(command[0], command, os.environ, file_actions=quiet)
    os.waitpid(pid, 0)
    return time.perf_counter() - begin


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=100, help="rounds (default 100)")
    parser.add_argument("--ssh", metavar="HOST", help="measure `ssh HOST true` too")
    options = parser.parse_args()
    commands = [["true"], ["ssh", "-V"]]
    if options.ssh:
        commands.append(["ssh", "-o", "BatchMode=yes", options.ssh, "true"])
    with tempfile.TemporaryDirectory() as folder, open(os.devnull, "r+b") as devnull:
        wrapper = Path(folder, "redirect-run")
        wrapper.write_text(launcher.script(sys.executable))
        wrapper.chmod(0o755)
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(f"{folder}/socket")
        listener.listen(128)
        os.environ["REDIRECTCTL_SOCKET"] = f"{folder}/socket"
        threading.Thread(target=answer, args=[listener], daemon=True).start()
        plain: list[list[float]] = [[] for _ in commands]
        wrapped: list[list[float]] = [[] for _ in commands]
        for _ in range(options.runs):
            for command, alone, through in zip(commands, plain, wrapped, strict=True):
                alone.append(seconds(command, devnull.fileno()))
                through.append(seconds([os.fspath(wrapper), "--require", "--", *command], devnull.fileno()))
    print(f"median of {options.runs} runs, milliseconds")
    print(f"{'command':24} {'plain':>8} {'redirect-run':>13} {'added':>7} {'ratio':>6}")
    for command, alone, through in zip(commands, plain, wrapped, strict=True):
        a, b = statistics.median(alone) * 1e3, statistics.median(through) * 1e3
        print(f"{' '.join(command):24.24} {a:8.1f} {b:13.1f} {b - a:7.1f} {b / a:6.1f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

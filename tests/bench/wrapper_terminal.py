"""What redirect-run costs on a terminal: python tests/bench/wrapper_terminal.py [--runs N] [--megabytes N].

`cat` of a file to a pseudo-terminal that is read as fast as it can be: the worst case, a terminal that draws takes
longer.  And the start of `true`, of which each byte is nothing.  Each round runs every way once, in turn; the table has
the medians.  A daemon's part is played by a thread, as in wrapper_start.py.
"""

from __future__ import annotations

import argparse
import os
import pty
import socket
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path

from redirectctl_wrappers import launcher

MEGABYTE = 1 << 20
PLAIN = b"".join(b"%07d the quick brown fox jumps over the lazy dog, as ever\n" % n for n in range(16384))
COLOURED = b"".join(b"\x1b[32m%07d\x1b[0m the \x1b[1;31mquick\x1b[0m brown fox jumps\n" % n for n in range(16384))


def serve(listener: socket.socket) -> None:
    """The daemon's side."""
    while True:
        sock, _ = listener.accept()
        threading.Thread(target=answer, args=[sock], daemon=True).start()


def answer(sock: socket.socket) -> None:
    """Of one client."""
    with sock:
        sock.sendall(b'{"type":"hello","version":"0.1.0","api":1}\n')
        for line in sock.makefile("rb"):
            watch = b'{"type":"watch","connections":[],"questions":[]}\n'
            sock.sendall(watch if b"watch" in line else b'{"type":"opted-in"}\n')


def seconds(command: list[str]) -> float:
    """From the start to the last byte of one run on a terminal of its own."""
    begin = time.perf_counter()
    pid, master = pty.fork()
    if pid == 0:
        os.execvp(command[0], command)
    try:
        while os.read(master, 1 << 16):
            pass
    except OSError:  # EIO: closed
        pass
    os.waitpid(pid, 0)
    taken = time.perf_counter() - begin
    os.close(master)
    return taken


def main() -> int:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=10, help="rounds (default 10)")
    parser.add_argument("--megabytes", type=int, default=64, help="size of a file (default 64)")
    options = parser.parse_args()
    os.environ["TERM"] = "xterm"
    with tempfile.TemporaryDirectory() as folder:
        wrapper = Path(folder, "redirect-run")
        wrapper.write_text(launcher.script(sys.executable))
        wrapper.chmod(0o755)
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(f"{folder}/socket")
        listener.listen(128)
        os.environ["REDIRECTCTL_SOCKET"] = f"{folder}/socket"
        threading.Thread(target=serve, args=[listener], daemon=True).start()
        commands = {"true": ["true"]}
        for name, block in (("plain text", PLAIN), ("coloured text", COLOURED)):
            file = Path(folder, name)
            file.write_bytes(block * (options.megabytes * MEGABYTE // len(block)))
            commands[f"cat, {name}"] = ["cat", os.fspath(file)]
        ways = {"alone": [], "--plain": [os.fspath(wrapper), "--plain", "--"], "attended": [os.fspath(wrapper), "--"]}
        taken: dict[tuple[str, str], list[float]] = {(c, w): [] for c in commands for w in ways}
        for _ in range(options.runs):
            for name, command in commands.items():
                for way, prefix in ways.items():
                    taken[name, way].append(seconds([*prefix, *command]))
    print(f"median of {options.runs} runs, {options.megabytes} MB; a ratio is that of one round, median")
    for name in commands:
        for way in ways:
            median = statistics.median(taken[name, way])
            pairs = zip(taken[name, way], taken[name, "alone"], strict=True)
            ratio = statistics.median(a / b for a, b in pairs)
            speed = f"{options.megabytes / median:7.0f} MB/s" if name != "true" else ""
            print(f"{name:20} {way:10} {median * 1e3:8.1f} ms {speed:12} ratio {ratio:5.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

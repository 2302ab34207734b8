"""What redirect-run costs on a terminal: the start of a command, and each byte that it writes.

`cat` of a file to a pseudo-terminal that is read as fast as it can be is the worst case: a terminal that draws takes
longer than redirect-run.  The start is that of `true`.  Each round runs every command alone, with redirect-run --plain,
which gives the command the terminal itself, and with redirect-run in between; the table has the medians, and a ratio
is that of one round.  A daemon's part is played by a thread, as in start.py.
"""

from __future__ import annotations

import argparse
import os
import pty
import socket
import statistics
import threading
import time
from typing import Final

from redirectctl.lab.bench import Figures, Outcome, machine, markdown
from redirectctl.lab.bench.played import played

QUICK = ("--runs", "3", "--megabytes", "16")

MEGABYTE: Final = 1 << 20
LINES: Final = 16384
TEXTS: Final = {
    "plain": b"".join(b"%07d the quick brown fox jumps over the lazy dog, as ever\n" % n for n in range(LINES)),
    "coloured": b"".join(
        b"\x1b[32m%07d\x1b[0m the \x1b[1;31mquick\x1b[0m brown fox [jumps]\n" % n for n in range(LINES)
    ),
}
START: Final = "true"
WAYS: Final = ("alone", "plain", "wrapped")


def answer(listener: socket.socket) -> None:
    """The daemon's side: everybody may be opted in, and nothing happens."""
    while True:
        sock, _ = listener.accept()
        threading.Thread(target=_serve, args=[sock], daemon=True).start()


def _serve(sock: socket.socket) -> None:
    with sock:
        sock.sendall(b'{"type":"hello","version":"0.1.0","api":1}\n')
        for line in sock.makefile("rb"):
            watch = b'{"type":"watch","connections":[],"questions":[]}\n'
            sock.sendall(watch if b"watch" in line else b'{"type":"opted-in"}\n')


def seconds(command: list[str], environment: dict[str, str]) -> float:
    """From the start to the last byte of one run on a terminal of its own."""
    begin = time.perf_counter()
    pid, master = pty.fork()
    if pid == 0:
        try:
            os.execvpe(command[0], command, environment)
        finally:
            os._exit(127)
    try:
        while os.read(master, 1 << 16):
            pass
    except OSError:  # EIO: closed
        pass
    os.waitpid(pid, 0)
    taken = time.perf_counter() - begin
    os.close(master)
    return taken


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Its options."""
    parser.add_argument("--runs", type=int, default=20, help="rounds (20)")
    parser.add_argument("--megabytes", type=int, default=64, help="size of a file (64)")


def measure(options: argparse.Namespace) -> Outcome:
    """Times from start to the last byte."""
    with played(answer) as folder:
        environment = os.environ | {"TERM": "xterm", "REDIRECTCTL_SOCKET": f"{folder}/socket"}
        commands = {START: ["true"]}
        for name, block in TEXTS.items():
            file = folder / name
            file.write_bytes(block * max(1, options.megabytes * MEGABYTE // len(block)))
            commands[name] = ["cat", os.fspath(file)]
        wrapper = f"{folder}/redirect-run"
        prefixes = {"alone": [], "plain": [wrapper, "--plain", "--"], "wrapped": [wrapper, "--"]}
        taken: dict[tuple[str, str], list[float]] = {(c, w): [] for c in commands for w in WAYS}
        for _ in range(options.runs):
            for name, command in commands.items():
                for way in WAYS:
                    taken[name, way].append(seconds([*prefixes[way], *command], environment))
        sizes = {name: os.path.getsize(command[-1]) for name, command in commands.items() if name != START}
    found = figures(taken, sizes)
    title = f"On a terminal, median of {options.runs} runs, text of {options.megabytes} MB, {machine()}"
    return Outcome(title, table(found), found)


def figures(taken: dict[tuple[str, str], list[float]], sizes: dict[str, int]) -> list[Figures]:
    """taken: seconds, by command and way.  sizes: of what a command writes, bytes."""
    found: list[Figures] = []
    for name in dict.fromkeys(command for command, _ in taken):
        row: Figures = {"command": name, "bytes": sizes.get(name)}
        row |= {way: statistics.median(taken[name, way]) for way in WAYS}
        pairs = zip(taken[name, "wrapped"], taken[name, "alone"], strict=True)
        row["ratio"] = statistics.median(wrapped / alone for wrapped, alone in pairs)
        found.append(row)
    return found


def table(found: list[Figures]) -> str:
    """In Markdown."""
    rows = []
    for row in found:
        what = f"`cat`, {row['command']} text" if row["bytes"] else f"start of `{row['command']}`"
        cells = [_cell(float(row[way] or 0), float(row["bytes"] or 0)) for way in WAYS]
        rows.append([what, *cells, f"{float(row['ratio'] or 0):.2f}"])
    return markdown(["on a terminal", "alone", "with `redirect-run --plain`", "with redirect-run", "ratio"], rows)


def _cell(taken: float, size: float) -> str:
    return f"{size / MEGABYTE / taken:.0f} MB/s" if size else f"{taken * 1e3:.1f} ms"

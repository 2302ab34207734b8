"""What redirect-run adds to the start of a command.

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
import time

from redirectctl.lab.bench import Figures, Outcome, machine, markdown
from redirectctl.lab.bench.played import played

QUICK = ("--runs", "20")


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


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Its options."""
    parser.add_argument("--runs", type=int, default=100, help="rounds (100)")
    parser.add_argument("--ssh", metavar="HOST", help="measure `ssh HOST true` too")


def measure(options: argparse.Namespace) -> Outcome:
    """Times from start to exit."""
    commands = [["true"], ["ssh", "-V"]]
    if options.ssh:
        commands.append(["ssh", "-o", "BatchMode=yes", options.ssh, "true"])
    with played(answer) as folder, open(os.devnull, "r+b") as devnull:
        plain: list[list[float]] = [[] for _ in commands]
        wrapped: list[list[float]] = [[] for _ in commands]
        through = [f"{folder}/redirect-run", "--require", "--socket", f"{folder}/socket", "--"]
        for _ in range(options.runs):
            for command, of_plain, of_wrapped in zip(commands, plain, wrapped, strict=True):
                of_plain.append(seconds(command, devnull.fileno()))
                of_wrapped.append(seconds([*through, *command], devnull.fileno()))
    found: list[Figures] = []
    for command, of_plain, of_wrapped in zip(commands, plain, wrapped, strict=True):
        a, b = statistics.median(of_plain), statistics.median(of_wrapped)
        found.append({"command": " ".join(command), "plain": a, "wrapped": b, "ratio": b / a})
    return Outcome(f"Start of a command, median of {options.runs} runs, {machine()}", table(found), found)


def table(found: list[Figures]) -> str:
    """In Markdown."""
    rows = []
    for row in found:
        times = [f"{float(row[name] or 0) * 1e3:.1f} ms" for name in ("plain", "wrapped")]
        rows.append([f"`{row['command']}`", *times, f"{row['ratio']:.1f}"])
    return markdown(["command", "plain", "with redirect-run", "ratio"], rows)

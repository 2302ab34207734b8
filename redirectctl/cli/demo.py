"""``redirectctl demo``: a real ssh session lives through address changes, in network namespaces of this machine.

The account goes to stdout as it happens (with --json to stderr, and the outcome to stdout).  Exit status 0 only if
everything lived; whatever happens, Ctrl-C included, nothing is left behind.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import sys
import textwrap
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TextIO

from redirectctl.lab.daemons import Daemon
from redirectctl.lab.namespaces import LabError, ended_by_signals
from redirectctl.lab.sshd import SshServer
from redirectctl.lab.streams import start_ticker
from redirectctl.lab.terminal import Answer, Terminal
from redirectctl.lab.topology import FIRST_HOST, Host, Lab, Network

CONFIG = """
[protect]
long_lived_after = "2s"   # 10 s by default; the demo is in a hurry
"""
OUTAGE = 2.0  # seconds without any address, unless asked otherwise
COPY_MEGABYTES = 300
COPY_KBIT_PER_S = 120_000  # so that the copy lasts through all the moves
TICK = 0.005  # seconds between two records of the program that measures
PATIENCE = 30.0  # seconds for one thing to happen before the demo gives up
WIDTH = 100  # columns at most


@dataclass(frozen=True)
class Move:
    """One address change, and what the programs saw of it."""

    what: str
    old: str
    new: str
    offline: float  # seconds without an address
    gap: float | None  # seconds from the usable new address to the first byte in either direction; None: none came
    answer: float | None  # the same, to the answer to a command typed in the ssh session while it was offline
    resets: int  # sent by the stranger at the old address and held back


class Failure(Exception):
    """The demo shows that something did not live."""


class Narrator:
    """Writes the account."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._width = min(shutil.get_terminal_size().columns, WIDTH)
        self._bold = out.isatty() and "NO_COLOR" not in os.environ
        self._chapter = 0

    def chapter(self, title: str) -> None:
        """Begin a step."""
        self._chapter += 1
        line = f"{self._chapter}. {title}"
        self._print(f"\n\033[1m{line}\033[0m" if self._bold else f"\n{line}")

    def say(self, text: str) -> None:
        """Say something in plain words."""
        self._print(textwrap.fill(text, self._width, initial_indent="   ", subsequent_indent="   "))

    def show(self, text: str) -> None:
        """Show something as it is: a command, its output, a table."""
        self._print(textwrap.indent(text.rstrip("\n"), "     "))

    def _print(self, text: str) -> None:
        print(text, file=self._out, flush=True)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``redirectctl demo``."""
    parser.add_argument("--ipv6", action="store_true", help="let the connections use IPv6 instead of IPv4")
    parser.add_argument(
        "--outage", type=float, default=OUTAGE, metavar="SECONDS", help="time without an address (%(default)s)"
    )
    parser.add_argument(
        "--copy", type=int, default=COPY_MEGABYTES, metavar="MB", help="size of the file that scp copies (%(default)s)"
    )


def run(args: argparse.Namespace) -> int:
    """Run the demo.  Returns 0 if everything lived, 1 if not, 4 without root, 130 after Ctrl-C."""
    as_json = bool(getattr(args, "json", False))
    narrator = Narrator(sys.stderr if as_json else sys.stdout)
    if os.geteuid() != 0:
        print("redirectctl: demo: network namespaces need root; run it with sudo", file=sys.stderr)
        return 4
    demo = Demo(narrator, 6 if args.ipv6 else 4, args.outage, args.copy)
    failure = ""
    try:
        with ended_by_signals():
            demo.run()
    except KeyboardInterrupt:
        print("redirectctl: demo: interrupted; everything that it made has been removed", file=sys.stderr)
        return 130
    except (LabError, Failure) as error:
        failure = str(error)
    if demo.left:
        failure = failure or f"left behind: {', '.join(demo.left)}"
    narrator.chapter("Verdict")
    if demo.moves:
        narrator.show(_table(demo.moves))
    for line in demo.outcomes:
        narrator.say(line)
    if not failure:
        narrator.say("Every connection lived.  Nothing is left: no namespace, process, file, rule or address.")
    if as_json:
        print(json.dumps({"lived": not failure, "failure": failure or None, "moves": list(map(asdict, demo.moves))}))
    if failure:
        print(f"redirectctl: demo: {failure}", file=sys.stderr)
    return 1 if failure else 0


class Demo:
    """The story, in the order of its methods."""

    def __init__(self, narrator: Narrator, version: int, outage: float, megabytes: int) -> None:
        self._tell = narrator
        self._version = version
        self._outage = outage
        self._megabytes = megabytes
        self._daemons: dict[Host, Daemon] = {}
        self._copied_through = 0  # moves that happened while scp was copying
        self.moves: list[Move] = []
        self.outcomes: list[str] = []  # of the programs, in words
        self.left: list[str] = []  # what should not be there after the end

    def run(self) -> None:
        """Tell it all.  Raises LabError or Failure where it stops; everything is removed then, too."""
        self._tell.chapter("Three hosts and a router")
        self._lab = Lab()
        try:
            self._set_the_scene()
            self._first_contact()
            self._work()
            self._client_moves()
            self._stranger_takes_the_address()
            self._client_moves_back()
            self._server_moves()
            self._end()
        except (LabError, Failure):
            self._explain()
            raise
        finally:
            self._lab.close()
            self.left = self._lab.sandbox.left()

    def _set_the_scene(self) -> None:
        lab = self._lab
        self._ssh = SshServer(lab.server)
        self._daemons = {host: Daemon(host, CONFIG) for host in (lab.client, lab.server)}
        for daemon in self._daemons.values():
            daemon.start()
        self._tell.say(
            "Network namespaces of this machine play a client, a server and a stranger, on networks that a router "
            "joins.  The server runs the system's sshd; client and server run redirectd, which have never met."
        )
        self._tell.show(
            f"client    at home   {lab.client.address(self._version)}\n"
            f"server    in dc1    {lab.server.address(self._version)}\n"
            "stranger  nowhere yet; will take an address that the client had"
        )

    def _first_contact(self) -> None:
        lab = self._lab
        client, server = self._daemons[lab.client], self._daemons[lab.server]
        self._tell.chapter("redirect-run ssh")
        self._tell.say("The client opens an ssh session that is opted in, and one that is not, for comparison:")
        target = lab.server.address(self._version)
        self._tell.show(f"$ redirect-run ssh {target}\n$ ssh {target}")
        self._session = Terminal(lab.client, self._opted_in(self._ssh.ssh(version=self._version)))
        self._plain = Terminal(lab.client, self._ssh.ssh(version=self._version))
        self._tell.show(f"session> echo $SSH_CONNECTION\n{self._session.run('echo $SSH_CONNECTION')}")
        self._tell.say(
            "After the threshold (2 s here) the two daemons meet.  As with ssh, a person confirms the other host's "
            "key once; here each side shows the fingerprint that the other has, and the demo approves it."
        )
        for daemon, other in ((client, server), (server, client)):
            peer = daemon.wait_peer("pending", timeout=PATIENCE)
            identity = other.ctl("identity")
            if peer["fingerprint"] != identity["fingerprint"]:
                raise Failure(f"{daemon.host.name} met {peer['fingerprint']}, which is not {other.host.name}")
            self._tell.show(f"{daemon.host.name}$ redirectctl approve {peer['fingerprint']}")
            if daemon is client:
                self._tell.show(identity["picture"])
            daemon.ctl("approve", peer["fingerprint"])
        self._protected(1)
        self._tell.say("The session is protected: it will live when an address changes.")

    def _work(self) -> None:
        lab = self._lab
        self._tell.chapter("At work")
        self._source = lab.sandbox.directory / "film"
        _write_file(self._source, self._megabytes)
        command = self._ssh.scp(str(self._source), "server:film", self._version)
        command[1:1] = ["-q", "-l", str(COPY_KBIT_PER_S)]
        self._copy_errors = lab.sandbox.directory / "scp.err"
        with self._copy_errors.open("w") as errors:
            self._copy = lab.client.popen(self._opted_in(command), stderr=errors)
        wrap = self._daemons[lab.client].opted_in()
        self._ticker = start_ticker(lab.server, lab.client, version=self._version, interval=TICK, wrap=wrap)
        self._tell.say(
            f"Meanwhile scp copies a file of {self._megabytes} MB, and a program sends a numbered record every "
            f"{TICK * 1000:g} ms each way, which measures what programs see."
        )
        rows = self._protected(3)
        self._tell.show(
            "\n".join(
                f"{row['state']}  {row['path']:9}  {row['local']} -> {row['remote']}  {_first(row)}" for row in rows
            )
        )

    def _client_moves(self) -> None:
        self._tell.chapter("The client leaves home, and comes up in a café")
        lab = self._lab
        self._move("client: home → café", lab.client, lab.cafe, FIRST_HOST + 1)

    def _stranger_takes_the_address(self) -> None:
        self._tell.chapter("A stranger takes the client's address")
        self._tell.say(
            "In the café somebody else gets the address that the client leaves.  Their machine knows nothing of the "
            "connections and answers the server's packets with RST, which kills an ordinary connection at once."
        )
        lab = self._lab
        old = lab.client.address(self._version)
        self._move("client: café → office, RSTs", lab.client, lab.office, FIRST_HOST + 2, stranger=True)
        for host in (lab.server, lab.client):
            if not _refused(host, str(old)):
                raise Failure(f"{host.name} cannot reach the stranger, who has {old} now")
        self._tell.say(
            f"Client and server can reach the stranger at {old}: keeping it for the connections hides nobody."
        )

    def _client_moves_back(self) -> None:
        self._tell.chapter("The client goes home")
        lab = self._lab
        self._move("client: office → home", lab.client, lab.home, FIRST_HOST)
        for row in self._protected(3):
            if row["path"] != "original":
                raise Failure(f"{row['local']} is at its first address again, but its path is {row['path']}")
        self._tell.say("Its first address is its own again, and packets travel as they did at first: not rewritten.")

    def _server_moves(self) -> None:
        self._tell.chapter("The server moves")
        lab = self._lab
        self._move("server: dc1 → dc2", lab.server, lab.dc2, FIRST_HOST + 1)

    def _end(self) -> None:
        self._tell.chapter("The end of the work")
        self._tell.say("scp finishes; its copy is compared byte by byte.")
        status = self._copy.wait(PATIENCE + self._megabytes * 8000 / COPY_KBIT_PER_S)
        if status != 0:
            raise Failure(f"scp ended with {status}: {self._copy_errors.read_text().strip()}")
        if _checksum(self._source) != _checksum(self._ssh.home / "film"):
            raise Failure("the copy differs from the file")
        self.outcomes.append(
            f"scp: {self._megabytes} MB copied through {self._copied_through} moves, every byte the same"
        )
        verdict = self._ticker.stop()
        if not verdict.ok:
            raise Failure(f"the measuring program's connection: {verdict.why}")
        records = sum(figures["sent"] for figures in verdict.figures.values())
        self.outcomes.append(f"records: {records} sent, all arrived, once and in order")
        shell = self._session.run("echo $SSH_CONNECTION").strip()
        status = self._session.leave()
        if status != 0:
            raise Failure(f"the ssh session ended with {status}")
        self.outcomes.append(f"ssh: the session, opened as {shell!r}, answered to the end and exited with 0")
        self.outcomes.append(f"ssh without redirect-run: {self._fate_of_the_plain_session()}")

    def _move(self, what: str, host: Host, network: Network, number: int, *, stranger: bool = False) -> None:
        """Take a host's address away, wait, and bring another on another network; measure and check."""
        lab = self._lab
        before = host.links[-1]
        began = time.time()
        left_at = time.monotonic()
        host.leave()
        old = before.addresses.of(self._version)
        if stranger:
            lab.stranger.take(before.addresses, before.network)
        if host.has_address(old):
            raise Failure(f"{host.name} still has {old}")
        self._tell.say(f"{old} is gone{' and the stranger has it' if stranger else ''}.  {self._outage:g} s pass …")
        word = f"still-here-{len(self.moves) + 1}"
        self._session.type(f"echo {word}")
        answering = self._session.read_later(self._outage + PATIENCE)
        time.sleep(max(0.0, self._outage - (time.monotonic() - left_at)))
        link = host.join(network, number)
        move = Move(what, str(old), str(link.addresses.of(self._version)), link.usable_at - left_at, None, None, 0)
        try:
            gap = self._ticker.wait_gap(link.usable_at, PATIENCE)
            self._ticker.wait_both(link.usable_at, PATIENCE)
            answer = answering.result()
            self._check_programs(word, answer)
        except (LabError, Failure):
            self.moves.append(move)
            raise
        others = [daemon for each, daemon in self._daemons.items() if each is not host]
        resets = sum(event.get("count", 1) for daemon in others for event in daemon.events("rst.held", since=began))
        move = replace(move, gap=gap, answer=answer.time - link.usable_at, resets=resets)
        self.moves.append(move)
        self._copied_through += self._copy.poll() is None
        self._tell.say(
            f"{move.new} is there.  First byte after {_ms(move.gap)}; the session answers what was typed meanwhile "
            f"after {_ms(move.answer)}{f'; {resets} RSTs were held back' if stranger else ''}."
        )
        self._tell.show(f"session> echo {word}\n{answer.output}")

    def _check_programs(self, word: str, answer: Answer) -> None:
        if (answer.status, answer.output) != (0, f"{word}\n"):
            raise Failure(f"the session answered {answer.output!r} to echo {word}")
        if self._copy.poll() not in (None, 0):
            raise Failure(f"scp ended with {self._copy.returncode}: {self._copy_errors.read_text().strip()}")

    def _protected(self, count: int) -> list[dict[str, Any]]:
        return self._daemons[self._lab.client].wait_connections("protected", count, timeout=PATIENCE)

    def _opted_in(self, command: list[str]) -> list[str]:
        return [*self._daemons[self._lab.client].opted_in(), *command]

    def _fate_of_the_plain_session(self) -> str:
        try:
            self._plain.run("true", 2.0)
        except LabError:
            return "dead" if not self._plain.alive() else "does not answer any more"
        raise Failure("an ssh session without redirect-run lived, too; the demo shows nothing")

    def _explain(self) -> None:
        """What the daemons say about a failure."""
        for host, daemon in self._daemons.items():
            tail = daemon.report().splitlines()[-15:]
            self._tell.say(f"The last that redirectd on {host.name} had to say:")
            self._tell.show("\n".join(tail))


def _write_file(path: Path, megabytes: int) -> None:
    """A file in which no two blocks are the same, without asking for that many random bytes."""
    filling = os.urandom(1_000_000 - 8)
    with path.open("wb") as file:
        for number in range(megabytes):
            file.write(number.to_bytes(8, "big") + filling)


def _checksum(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def _refused(host: Host, address: str) -> bool:
    """Whether somebody at this address refuses a TCP connection to a port that nobody listens on."""
    script = (
        "import socket, sys\ntry: socket.create_connection((sys.argv[1], 9), 3)\nexcept ConnectionRefusedError: pass"
    )
    return host.run([sys.executable, "-c", script, address], check=False).returncode == 0


def _first(row: dict[str, Any]) -> str:
    return os.path.basename((row["command"] or "?").split()[0])


def _ms(seconds: float | None) -> str:
    return "never" if seconds is None else f"{seconds * 1000:.0f} ms"


def _table(moves: list[Move]) -> str:
    columns: list[tuple[str, Callable[[Move], str]]] = [
        ("what moved", lambda move: move.what),
        ("offline", lambda move: f"{move.offline:.1f} s"),
        ("first byte", lambda move: _ms(move.gap)),
        ("ssh answers", lambda move: _ms(move.answer)),
        ("RSTs held", lambda move: str(move.resets)),
        ("verdict", lambda move: "died" if move.answer is None else "lived"),
    ]
    rows = [[title for title, _ in columns], *([cell(move) for _, cell in columns] for move in moves)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines.insert(1, "-" * max(map(len, lines)))
    return "\n".join(lines)

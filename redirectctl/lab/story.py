"""A real ssh session lives through address changes: the story that ``redirectctl demo`` tells while it happens."""

from __future__ import annotations

import hashlib
import os
import sys
import time
from concurrent.futures import TimeoutError as NoAnswer
from dataclasses import replace
from pathlib import Path
from typing import Any

from redirectctl.lab.account import Move, Narrator, milliseconds
from redirectctl.lab.daemons import Daemon
from redirectctl.lab.namespaces import LabError, close_all
from redirectctl.lab.sshd import SshServer
from redirectctl.lab.streams import start_ticker, wait_until
from redirectctl.lab.terminal import Answer, Terminal
from redirectctl.lab.topology import FIRST_HOST, Host, Lab, Network

CONFIG = """
[protect]
long_lived_after = "2s"   # 10 s by default; the demo is in a hurry
"""
COPY_KBIT_PER_S = 120_000  # so that the copy lasts through all the moves
TICK = 0.005  # seconds between two records of the program that measures
PROVING = 90.0  # seconds: on a busy machine the first attempts may fail
PATIENCE = 60.0  # seconds for one thing to happen before the demo gives up
SHORT = len("SHA256:") + 8  # characters of a fingerprint that are enough to name a peer
COMPARISON = 1.5  # seconds that the ordinary session has for its answer


class Failure(Exception):
    """The demo shows that something did not live."""


class Demo:
    """The story, in the order of its methods."""

    def __init__(self, narrator: Narrator, version: int, outage: float, megabytes: int) -> None:
        self._tell = narrator
        self._version = version
        self._outage = outage
        self._megabytes = megabytes
        self._lab: Lab
        self._daemons: dict[Host, Daemon] = {}
        self._copied_through = 0  # moves that happened while scp was copying
        self.moves: list[Move] = []
        self.outcomes: list[str] = []  # of the programs, in words
        self.left: list[str] = []  # what should not be there after the end

    def run(self) -> None:
        """Tell it all.  Raises LabError or Failure where it stops; everything is removed then, too."""
        sandbox = None
        try:
            self._lab = Lab()
            sandbox = self._lab.sandbox
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
            close_all()
            if sandbox is not None:
                self.left = sandbox.left()

    def _set_the_scene(self) -> None:
        lab = self._lab
        self._tell.chapter("Three hosts and a router")
        self._ssh = SshServer(lab.server)
        self._daemons = {host: Daemon(host, CONFIG) for host in (lab.client, lab.server)}
        for daemon in self._daemons.values():
            daemon.start()
        self._tell.say(
            "Network namespaces of this machine play a client, a server and a stranger; a router joins their "
            "networks. The server runs the system's sshd. Client and server each run redirectd; the two have never met."
        )
        client, server = (str(host.address(self._version)) for host in (lab.client, lab.server))
        self._tell.show(
            f"client    {client:{len(server)}}  at home\n"
            f"server    {server:{len(client)}}  in a data centre\n"
            "stranger  will take an address that the client had"
        )

    def _first_contact(self) -> None:
        lab = self._lab
        self._tell.chapter("Two ssh sessions; the daemons meet")
        self._tell.say("The client opens a session that is to be protected, and an ordinary one for comparison:")
        target = lab.server.address(self._version)
        self._tell.show(f"client$ redirect-run ssh {target}\nclient$ ssh {target}")
        self._session = Terminal(lab.client, self._opted_in(self._ssh.ssh(version=self._version)))
        self._ordinary = Terminal(lab.client, self._ssh.ssh(version=self._version))
        self._ends = self._session.run("echo $SSH_CONNECTION").split()
        self._tell.say("The protected session says which addresses it has. They will not change:")
        self._tell.show(f"server$ echo $SSH_CONNECTION\n{' '.join(self._ends)}")
        self._tell.say(
            "When the connection is 2 s old (10 s if not configured otherwise), the client's daemon contacts the "
            "server's daemon. They do not know each other. As with ssh, a person compares the fingerprint once. The "
            "server shows its own:"
        )
        client, server = self._daemons[lab.client], self._daemons[lab.server]
        met = client.wait_peer("pending", timeout=PATIENCE)
        identity = server.ctl("identity")
        self._tell.show(f"server$ redirectctl identity\n{identity['fingerprint']}\n{identity['picture']}")
        self._tell.say("The client shows the fingerprint of the host that answered. It must be the same:")
        self._approve(client, met, identity)
        self._tell.say("And the same on the server, for the client's fingerprint:")
        self._approve(server, server.wait_peer("pending", timeout=PATIENCE), client.ctl("identity"))
        self._protected(1)
        self._tell.say("The session is protected.")

    def _approve(self, daemon: Daemon, met: dict[str, Any], identity: dict[str, Any]) -> None:
        if met["fingerprint"] != identity["fingerprint"]:
            raise Failure(f"{daemon.host.name} met {met['fingerprint']}, not {identity['fingerprint']}")
        prefix = met["fingerprint"][:SHORT]
        host = daemon.host.name
        self._tell.show(
            f"{host}$ redirectctl peers\n{met['fingerprint']}  {met['state']}\n{host}$ redirectctl approve {prefix}"
        )
        daemon.ctl("approve", prefix)

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
            f"Meanwhile scp copies a file of {self._megabytes} MB to the server. A third program sends a numbered "
            f"record every {TICK * 1000:g} ms in both directions, and so measures what programs see."
        )
        rows = self._protected(3)
        self._tell.show("\n".join(f"{self._program(row):8} {row['local']} -> {row['remote']}" for row in rows))
        self._tell.say("All three are protected now. Until a move, their packets travel as without redirectctl.")

    def _program(self, row: dict[str, Any]) -> str:
        if row["local"] == self._ticker.local:
            return "records"
        return "ssh" if row["local"].rpartition(":")[2] == self._ends[1] else "scp"

    def _client_moves(self) -> None:
        lab = self._lab
        self._tell.chapter("The client leaves home for a café")
        self._move("client: home → café", lab.client, lab.cafe, FIRST_HOST + 1)
        self._ordinary.type("true")
        try:
            self._ordinary.read(COMPARISON)
        except LabError:
            self._tell.say("The ordinary ssh session does not answer any more.")
        else:
            raise Failure("the ssh session without redirect-run lived, too; the demo shows nothing")
        self._ordinary.kill()
        self.outcomes.append("ssh without redirect-run, for comparison: no answer after the first move")

    def _stranger_takes_the_address(self) -> None:
        lab = self._lab
        self._tell.chapter("The client goes on to the office; a stranger takes its address")
        self._tell.say(
            "In the café somebody else is given the address that the client leaves. Their machine knows nothing of "
            'the connections. It answers the server\'s packets with RST, by which TCP says "no such connection". '
            "An RST ends an ordinary connection at once."
        )
        old = lab.client.address(self._version)
        # Otherwise the stranger would get UDP datagrams, to which nobody answers with RST.
        wait_until(self._server_sends_plainly, PROVING, "plain packets from the server", poll=0.1)
        self._move("client: café → office, stranger", lab.client, lab.office, FIRST_HOST + 2, stranger=True)
        for host in (lab.server, lab.client):
            what = f"the {host.name} reaches the stranger, who has {old} now"
            wait_until(lambda host=host: _refused(host, str(old)), PATIENCE, what, poll=0.1)  # type: ignore[misc]
        self._tell.say(f"The stranger is not affected: client and server can reach it at {old}.")

    def _server_sends_plainly(self) -> bool:
        return self._paths(self._lab.server) == {"rewritten"}

    def _paths(self, host: Host) -> set[str]:
        """By which ways a host's daemon sends the protected connections, of which there is at least one."""
        return {row["path"] for row in self._daemons[host].ctl("connections") if row["state"] == "protected"}

    def _client_moves_back(self) -> None:
        lab = self._lab
        self._tell.chapter("The client goes home")
        self._move("client: office → home", lab.client, lab.home, FIRST_HOST)
        self._protected(2)  # scp may be done by now
        for host in (lab.client, lab.server):
            what = f"the {host.name} sends as at first"
            wait_until(lambda host=host: self._paths(host) == {"original"}, PROVING, what, poll=0.1)  # type: ignore[misc]
        self._tell.say("The client has its first address again, so its packets are no longer rewritten.")

    def _server_moves(self) -> None:
        lab = self._lab
        self._tell.chapter("The server moves to another data centre")
        self._move("server: dc1 → dc2", lab.server, lab.dc2, FIRST_HOST + 1)

    def _end(self) -> None:
        self._tell.chapter("The end of the work")
        self._tell.say("scp finishes. Its copy is compared with the file, and the session is left with exit.")
        status = self._copy.wait(PATIENCE + self._megabytes * 8000 / COPY_KBIT_PER_S)
        if status != 0:
            raise Failure(f"scp ended with {status}: {self._copy_errors.read_text().strip()}")
        if _checksum(self._source) != _checksum(self._ssh.home / "film"):
            raise Failure("the copy differs from the file")
        verdict = self._ticker.stop()
        if not verdict.ok:
            raise Failure(f"the measuring program's connection: {verdict.why}")
        records = sum(figures["sent"] for figures in verdict.figures.values())
        ends = self._session.run("echo $SSH_CONNECTION").split()
        if ends != self._ends:
            raise Failure(f"the session was {self._ends} and is {ends}")
        status = self._session.leave()
        if status != 0:
            raise Failure(f"the ssh session ended with {status}")
        self.outcomes[:0] = [
            "ssh: answered after every move, and saw its first addresses to the end; exit status 0",
            f"scp: {self._megabytes} MB copied, moves meanwhile: {self._copied_through}; every byte is right",
            f"records: {records} sent; all arrived, once and in order",
        ]

    def _move(self, what: str, host: Host, network: Network, number: int, *, stranger: bool = False) -> None:
        """Take a host's address away, wait, and bring another on another network; measure and check."""
        lab = self._lab
        before = host.links[-1]
        began = time.time()
        left_at = time.monotonic()
        host.leave()
        old = before.addresses.of(self._version)
        resets = -_resets_sent(lab.stranger)
        if stranger:
            lab.stranger.take(before.addresses, before.network)
        if host.has_address(old):
            raise Failure(f"{host.name} still has {old}")
        self._tell.say(
            f"{old} is gone from the {host.name}{', and the stranger has it' if stranger else ''}. For "
            f"{self._outage:g} s the {host.name} has no address at all. A command that is typed now has to wait:"
        )
        word = f"move {len(self.moves) + 1}:"
        command = f"echo {word} $(stat -c %s film) bytes are here"
        self._tell.show(f"server$ {command}")
        self._session.type(command)
        answering = self._session.read_later(self._outage + 2 * PATIENCE)
        if stranger:
            self._wait_for_held_resets(host, began)
        time.sleep(max(0.0, self._outage - (time.monotonic() - left_at)))
        resets += _resets_sent(lab.stranger)
        link = host.join(network, number)
        move = Move(what, str(old), str(link.addresses.of(self._version)), link.usable_at - left_at, None, None, resets)
        try:
            gap = self._ticker.wait_gap(link.usable_at, PATIENCE)
            self._ticker.wait_both(link.usable_at, PATIENCE)
            answer = answering.result(PATIENCE)
            self._check(word, answer)
        except (LabError, Failure, NoAnswer) as error:
            self.moves.append(move)
            raise Failure(f"{what}: {error or 'the ssh session does not answer'}") from error
        move = replace(move, gap=gap, answer=answer.time - link.usable_at)
        self.moves.append(move)
        self._copied_through += self._copy.poll() is None
        if stranger:
            self._tell.say(f"{resets} RSTs came from the stranger; redirectd let none of them through.")
        self._tell.say(
            f"{move.new} is there. The first data flows {milliseconds(move.gap)} later, and the session answers after "
            f"{milliseconds(move.answer)}:"
        )
        self._tell.show(answer.output)

    def _wait_for_held_resets(self, host: Host, began: float) -> None:
        """Until the stranger has sent RSTs and the other host's daemon has held them back."""
        (other,) = (daemon for each, daemon in self._daemons.items() if each is not host)
        other.wait_event("rst.held", since=began, timeout=PATIENCE)
        wait_until(lambda: _resets_sent(self._lab.stranger), PATIENCE, "the stranger's RSTs")

    def _check(self, word: str, answer: Answer) -> None:
        if answer.status != 0 or not answer.output.startswith(word):
            raise Failure(f"the ssh session answered {answer.output!r}")
        if self._copy.poll() not in (None, 0):
            raise Failure(f"scp ended with {self._copy.returncode}: {self._copy_errors.read_text().strip()}")

    def _protected(self, count: int) -> list[dict[str, Any]]:
        """Wait for at least so many."""
        return self._daemons[self._lab.client].wait_connections("protected", count, timeout=PATIENCE)

    def _opted_in(self, command: list[str]) -> list[str]:
        return [*self._daemons[self._lab.client].opted_in(), *command]

    def _explain(self) -> None:
        """What the daemons say about a failure."""
        for host, daemon in self._daemons.items():
            self._tell.say(f"The last that redirectd on the {host.name} had to say:")
            self._tell.show("\n".join(daemon.report().splitlines()[-15:]))


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


def _resets_sent(host: Host) -> int:
    """TcpOutRsts (RFC 4022, tcpOutRsts), both families."""
    names, values = (line.split() for line in _tcp_counters(host))
    return int(values[names.index("OutRsts")])


def _tcp_counters(host: Host) -> list[str]:
    lines = host.run(["cat", "/proc/net/snmp"]).stdout.splitlines()
    return [line for line in lines if line.startswith("Tcp:")]

"""Records what real daemons say, for the tests of the terminal UI: python -m tests.tui.record (as root, 2 minutes).

Two hosts in network namespaces with a real sshd; the client's daemon is asked what the UI asks, in scenes: first
contact, protected, moved, suspended, behind NAT, a changed key.  Paths of this machine are left out of the commands.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import msgspec

from redirectctl.api import schema
from redirectctl.api.client import Client, UnreachableError
from redirectctl.lab.daemons import Daemon
from redirectctl.lab.middlebox import Gateway
from redirectctl.lab.sshd import SshServer
from redirectctl.lab.streams import wait_until
from redirectctl.lab.topology import Lab
from redirectctl_tui.model import Rates, View
from tests.tui.recorded import FOLDER, Scene

CLIENT = '[trust]\nfirst_contact = "ask"\n[protect]\nlong_lived_after = "4s"\n'
SERVER = '[trust]\nfirst_contact = "accept-new"\n'
PATIENCE = 60.0
SECONDS = 60  # of throughput that are kept


def main() -> int:
    """Record all scenes."""
    with Lab() as lab:
        Story(lab).tell()
    return 0


class Story:
    """What happens on the client, scene by scene."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.client, self.server = Daemon(lab.client, CLIENT), Daemon(lab.server, SERVER)
        for daemon in (self.client, self.server):
            daemon.start()
        self.sshd = SshServer(lab.server)
        self.running: list[subprocess.Popen[str]] = []
        self.carried: list[tuple[float, float]] = []
        threading.Thread(target=self.watch, daemon=True).start()

    def watch(self) -> None:
        """What is carried, second by second."""
        rates = Rates()
        while True:
            time.sleep(1)
            with contextlib.suppress(UnreachableError, OSError), Client(str(self.client.socket)) as client:
                request = schema.ConnectionsRequest(counters=True)
                now = rates.update(time.monotonic(), client.call(request, schema.ConnectionsReply).connections)
                self.carried.append((sum(r[0] for r in now.values()), sum(r[1] for r in now.values())))

    def start(self, *argv: str) -> None:
        """A command on the client, opted in."""
        self.running.append(
            self.lab.client.popen(
                [*self.client.opted_in(), *argv],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                stdin=subprocess.DEVNULL,
            )
        )

    def tell(self) -> None:
        """In the order in which a person would see it."""
        lab, client = self.lab, self.client
        lab.stranger.join(lab.dc2, 77)
        stranger = SshServer(lab.stranger, port=2222)
        self.start(*self.sshd.ssh("sleep", "1000"))
        client.wait_peer("pending", timeout=PATIENCE)
        self.start(*self.sshd.ssh("sleep", "1001"))
        client.wait_connections("short")
        time.sleep(2)
        self.record("first_contact")

        client.ctl("approve", str(lab.server.address()), "--name", "server")
        source = lab.sandbox.directory / "film.mkv"
        with source.open("wb") as file:
            file.truncate(1 << 30)
        copy = self.sshd.scp(str(source), "server:film.mkv")
        self.start(copy[0], "-q", "-l", "60000", *copy[1:])
        self.start(*stranger.ssh("sleep", "1002"))
        client.wait_connections("protected", 3)
        client.wait_connections("unsupported", timeout=PATIENCE)
        self.start(*self.sshd.ssh("-6", "sleep", "1003", version=6))
        client.wait_connections("short")
        time.sleep(2)
        self.record("protected")

        client.wait_connections("protected", 4)
        for network, number in ((lab.cafe, 20), (lab.office, 30), (lab.cafe, 21)):
            since = time.time()
            lab.client.move(network, number)
            client.wait_event("move.finished", since=since, timeout=PATIENCE)
            time.sleep(2.5)
        since = time.time()
        lab.server.move(lab.dc2, 10)
        client.wait_event("move.received", since=since, timeout=PATIENCE)
        time.sleep(2)
        self.record("moved")

        lab.client.leave()
        client.wait_connections("suspended", 4)
        time.sleep(12)
        self.record("suspended")

        since = time.time()
        lab.client.join(lab.home, 40)
        client.wait_event("move.finished", since=since, timeout=PATIENCE)
        time.sleep(3)
        self.record("resumed")

        since = time.time()
        lab.client.move(Gateway(lab, lab.home).private, 10)
        client.wait_event("move.finished", since=since, timeout=PATIENCE)
        time.sleep(4)
        self.record("nat")

        self.server.stop()
        shutil.rmtree(self.server.state)
        self.server.start()
        self.start(*self.sshd.ssh("sleep", "1004"))
        wait_until(lambda: [p for p in client.ctl("peers") if p["state"] == "changed"], PATIENCE, "a changed key")
        client.wait_connections("refused")
        self.record("changed")

    def record(self, name: str) -> None:
        """What the UI would ask for."""
        with Client(str(self.client.socket)) as client:
            rates = Rates()
            for _ in range(2):
                status = client.call(schema.StatusRequest(), schema.StatusReply).status
                listed = client.call(schema.ConnectionsRequest(counters=True), schema.ConnectionsReply).connections
                measured = rates.update(time.monotonic(), listed)
                time.sleep(1)
            peers = client.call(schema.PeersRequest(), schema.PeersReply).peers
            events = list(client.events())
            scene = Scene(
                view=View(time.time(), status, listed, peers, measured),
                events=events,
                identity=client.call(schema.IdentityRequest(), schema.IdentityReply),
                checks=client.call(schema.DoctorRequest(), schema.DoctorReply).checks,
                peer_checks=client.call(schema.DoctorRequest(peers[0].fingerprint), schema.DoctorReply).checks,
                peers={p.fingerprint: client.call(schema.PeerRequest(p.fingerprint), schema.PeerReply) for p in peers},
                connections={
                    c.id: client.call(schema.ConnectionRequest(c.id), schema.ConnectionReply).connection for c in listed
                },
                carried=[(round(received), round(sent)) for received, sent in self.carried[-SECONDS:]],
            )
        text = msgspec.json.format(msgspec.json.encode(scene)).decode()
        (FOLDER / f"{name}.json").write_text(self.without_paths(text) + "\n")
        print(f"{name}: {', '.join(f'{n} {state}' for state, n in status.connections.items())}", file=sys.stderr)

    def without_paths(self, text: str) -> str:
        """Commands as a person types them."""
        text = re.sub(r" -F /\S+ -o HostName=\S+", "", text)
        return re.sub(r"/\S*/(?=film\.mkv|redirectd)", "/", text.replace(str(Path(sys.executable).parent) + "/", ""))


if __name__ == "__main__":
    sys.exit(main())

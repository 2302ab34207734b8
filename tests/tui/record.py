"""Records what real daemons say, for the tests of the terminal UI: python -m tests.tui.record (as root, 3 minutes).

Hosts in network namespaces with a real sshd; the client's daemon is asked what the UI asks, in scenes: first contact,
protected, moved, suspended, resumed, behind NAT, a changed key; and relayed by a rendezvous.  Paths of this machine are
left out of the commands.
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
from tests.netns.rendezvous_lab import Meeting
from tests.tui.recorded import FOLDER, Scene

CLIENT = '[trust]\nfirst_contact = "ask"\n[protect]\nlong_lived_after = "4s"\n'
SERVER = '[trust]\nfirst_contact = "accept-new"\n'
PATIENCE = 60.0
SECONDS = 60  # of throughput that are kept


def main() -> int:
    """Record all scenes."""
    for story in (Story, Relayed):
        with Lab() as lab:
            story(lab).tell()
    return 0


class Recorder:
    """Looks at one daemon as the UI does."""

    def __init__(self, lab: Lab, client: Daemon) -> None:
        self.lab = lab
        self.client = client
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

    def start_copy(self) -> None:
        """A film, at the pace of a slow network."""
        source = self.lab.sandbox.directory / "film.mkv"
        with source.open("wb") as file:
            file.truncate(1 << 30)
        copy = self.sshd.scp(str(source), "server:film.mkv")
        self.start(copy[0], "-q", "-l", "60000", *copy[1:])

    def record(self, name: str) -> None:
        """What the UI would ask for."""
        with Client(str(self.client.socket)) as client:
            rates = Rates()
            for pause in (0, 1):
                time.sleep(pause)
                status = client.call(schema.StatusRequest(), schema.StatusReply).status
                listed = client.call(schema.ConnectionsRequest(counters=True), schema.ConnectionsReply).connections
                measured = rates.update(time.monotonic(), listed)
            at = time.time()
            peers = client.call(schema.PeersRequest(), schema.PeersReply).peers
            events = [event for event in client.events() if event.time <= at]
            scene = Scene(
                view=View(at, status, listed, peers, measured),
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


class Story(Recorder):
    """What happens on the client, scene by scene."""

    def __init__(self, lab: Lab) -> None:
        client, self.server = Daemon(lab.client, CLIENT), Daemon(lab.server, SERVER)
        for daemon in (client, self.server):
            daemon.start()
        super().__init__(lab, client)

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
        self.start_copy()
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
        client.wait_connections("suspended", 4, timeout=PATIENCE)  # nobody there has the keys that they move with
        self.record("changed")


class Relayed(Recorder):
    """Both hosts move at once, behind NATs that let neither in."""

    def __init__(self, lab: Lab) -> None:
        self.nats = [Gateway(lab, network).private for network in (lab.cafe, lab.dc2)]
        self.meeting = Meeting(lab)
        super().__init__(lab, self.meeting.client)

    def tell(self) -> None:
        """One scene."""
        named = zip((self.meeting.server, *self.meeting.rendezvous), ("server", "meeting-point"), strict=True)
        self.start(*self.sshd.ssh("sleep", "1000"))
        self.start_copy()
        self.meeting.wait_protected(2)
        for daemon, name in named:
            self.client.ctl("approve", daemon.ctl("identity")["fingerprint"], "--name", name)
        self.meeting.both_move(*self.nats, 10)
        wait_until(
            lambda: {c["reason"] for c in self.client.ctl("connections")} == {"relayed"},
            PATIENCE,
            "relayed connections",
        )
        time.sleep(3)
        self.record("relayed")


if __name__ == "__main__":
    sys.exit(main())

"""Strangers that make first contact one after the other, each with a key of its own, against a real daemon."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from ipaddress import ip_address

import pytest
from daemon_pair import PATIENCE

from redirectctl.lab.daemons import Daemon
from redirectctl.lab.topology import Lab
from redirectctl.proto import events
from redirectctl.proto.endpoint import Endpoint
from redirectctl.proto.noise import StaticKey
from redirectctl.proto.peer import PeerState
from redirectctl.wire.addr import SockAddr

MANY = 30
STRANGERS = "from test_first_contacts import strangers; strangers()"
# redirectd, and a file that says which thread has synced to disk.
WATCHED = """
import sys, threading
from redirectctl.redirectd import main
from redirectctl.store.store import Store
transaction, record = Store._transaction, sys.argv.pop(1)
def watched(self, *, durable=False):
    if durable:
        with open(record, "a") as file:
            file.write(("loop" if threading.current_thread() is threading.main_thread() else "thread") + "\\n")
    return transaction(self, durable=durable)
Store._transaction = watched
sys.exit(main())
"""


def strangers() -> None:
    """In a process of its own: MANY of them, arguments: whom."""
    server = SockAddr(ip_address(sys.argv[1]), 7747)
    met, end = 0, time.monotonic() + PATIENCE
    while met < MANY and time.monotonic() < end:
        met += meet(server)
        time.sleep(0.05)
    print(met)


def meet(server: SockAddr) -> bool:
    """Whether a fresh key has got a session, and has been heard in it."""
    key = StaticKey.from_private(os.urandom(32))
    endpoint = Endpoint(key, os.urandom, lambda *_: PeerState.APPROVED)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.connect((str(server.host), server.port))
        sock.settimeout(1.0)
        endpoint.contact(time.monotonic(), server)
        for _ in range(6):
            for event in endpoint.drain():
                if isinstance(event, events.Transmit):
                    sock.send(event.data)
            if any(session.heard for peer in endpoint.peers.values() for session in peer.sessions):
                return True
            try:
                data = sock.recv(4096)
            except TimeoutError:
                return False
            endpoint.receive(time.monotonic(), data, server, ip_address(sock.getsockname()[0]))
    return False


@pytest.mark.parametrize(("first_contact", "state"), [("ask", "pending"), ("accept-new", "approved")])
def test_strangers_do_not_make_the_event_loop_wait_for_the_disk(lab: Lab, first_contact: str, state: str) -> None:
    """And those that are accepted are on disk before they are answered; the others soon after."""
    script = lab.sandbox.directory / "watched.py"
    script.write_text(WATCHED)
    synced = lab.sandbox.directory / "synced"
    daemon = Daemon(
        lab.server,
        f'[trust]\nfirst_contact = "{first_contact}"\n',
        command=[sys.executable, str(script), str(synced)],
    )
    daemon.start()
    before = synced.read_text().splitlines()
    env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [os.path.dirname(__file__), *sys.path]))}
    crowd = lab.client.popen(
        [sys.executable, "-c", STRANGERS, str(lab.server.address())], stdout=subprocess.PIPE, env=env
    )
    out, _ = crowd.communicate(timeout=2 * PATIENCE)
    assert int(out) == MANY
    during = synced.read_text().splitlines()[len(before) :]
    assert during.count("loop") == 0
    assert (during.count("thread") >= MANY) is (first_contact == "accept-new")
    assert [peer["state"] for peer in daemon.ctl("peers")] == [state] * MANY
    daemon.restart()
    assert [peer["state"] for peer in daemon.ctl("peers")] == [state] * MANY

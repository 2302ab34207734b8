"""Many keys of one attacker against a real daemon that accepts everybody, and a client of it that must be served."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from ipaddress import ip_address

import pytest
from daemon_pair import PATIENCE, Pair

from redirectctl.flows.proofs import digest
from redirectctl.lab.streams import start_ticker, wait_until
from redirectctl.lab.topology import Lab
from redirectctl.proto import events
from redirectctl.proto.constants import UNUSED_MAX
from redirectctl.proto.endpoint import Endpoint
from redirectctl.proto.noise import StaticKey
from redirectctl.proto.peer import PeerState
from redirectctl.wire import message as messages
from redirectctl.wire.addr import FourTuple, SockAddr
from redirectctl.wire.tunnel import Offer

KEYS = 9  # with 512 claims each they filled a table of 4,096
PACE = 400  # messages a second of each
CLAIMS = "from test_crowds import claimants; claimants()"
STRANGERS = "from test_crowds import strangers; strangers()"


class Stranger:
    """A key with a session of its own."""

    def __init__(self, server: SockAddr) -> None:
        self._server = server
        self._sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._sock.connect((str(server.host), server.port))
        self._here = ip_address(self._sock.getsockname()[0])
        self.endpoint = Endpoint(StaticKey.from_private(os.urandom(32)), os.urandom, lambda *_: PeerState.APPROVED)

    def meet(self) -> bool:
        self.endpoint.contact(time.monotonic(), self._server)
        end = time.monotonic() + 10
        while time.monotonic() < end:
            self.endpoint.tick(time.monotonic())
            self._flush()
            if any(s.heard for p in self.endpoint.peers.values() for s in p.sessions):
                return True
            self.hear(0.2)
        return False

    def hear(self, wait: float) -> None:
        self._sock.settimeout(wait)
        try:
            data = self._sock.recv(4096)
        except (TimeoutError, BlockingIOError):
            return
        self.endpoint.receive(time.monotonic(), data, self._server, self._here)
        self._flush()

    def say(self, message: messages.Message) -> None:
        (peer,) = self.endpoint.peers.values()
        self.endpoint.send(time.monotonic(), peer, message)
        self._flush()

    def close(self) -> None:
        self._sock.close()

    def _flush(self) -> None:
        for event in self.endpoint.drain():
            if isinstance(event, events.Transmit):
                self._sock.send(event.data)


def claimants() -> None:
    """In a process of its own: KEYS of them claim without end.  Arguments: whom."""
    server = SockAddr(ip_address(sys.argv[1]), 7747)
    crowd = [Stranger(server) for _ in range(KEYS)]
    print(sum(stranger.meet() for stranger in crowd), flush=True)
    socket_ = FourTuple(SockAddr(ip_address("192.0.2.66"), 1), SockAddr(server.host, 22))
    for n in range(10**9):
        start = time.monotonic()
        for of, stranger in enumerate(crowd):
            cids = [(of * 10**12 + n * 12 + m + 1).to_bytes(8) for m in range(12)]
            claims = tuple(messages.Claim(c, 2**40, socket_, digest(c), Offer(1, bytes(16), 0)) for c in cids)
            stranger.say(messages.Protect(n & 0xFFFFFFFF, claims))
            stranger.hear(0)
        time.sleep(max(0.0, start + 1 / PACE - time.monotonic()))


def strangers() -> None:
    """The same: one after the other, so many, and they never come back.  Arguments: whom, how many."""
    server = SockAddr(ip_address(sys.argv[1]), 7747)
    met = 0
    while met < int(sys.argv[2]):
        stranger = Stranger(server)
        met += stranger.meet()
        stranger.close()
    print(met, flush=True)


def attack(lab: Lab, script: str, *arguments: str) -> subprocess.Popen[bytes]:
    env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [os.path.dirname(__file__), *sys.path]))}
    command = [sys.executable, "-c", script, str(lab.server.address()), *arguments]
    return lab.client.popen(command, stdout=subprocess.PIPE, env=env)


def test_claims_of_many_keys_do_not_keep_a_new_connection_from_being_protected(lab: Lab) -> None:
    pair = Pair(lab)
    first = start_ticker(lab.server, lab.client, wrap=pair.wrap)
    pair.wait_protected(1)
    crowd = attack(lab, CLAIMS)
    try:
        assert crowd.stdout is not None
        assert int(crowd.stdout.readline()) == KEYS
        pair.server.wait_event("connection.refused", reason="too-many-claims", timeout=PATIENCE)
        since = time.monotonic()
        second = start_ticker(lab.server, lab.client, wrap=pair.wrap)
        pair.wait_protected(2)
        print(f"protected after {time.monotonic() - since:.1f} s")
        assert crowd.poll() is None, "it went on all the time"
    finally:
        crowd.kill()
        crowd.wait()
    link = lab.client.move(lab.cafe, 20)
    for ticker in (first, second):
        ticker.wait_both(link.usable_at, PATIENCE)
        verdict = ticker.stop()
        assert verdict.ok, verdict


@pytest.mark.timeout(240)
def test_strangers_that_are_accepted_go_before_those_that_were_of_use(lab: Lab) -> None:
    pair = Pair(lab)
    ticker = start_ticker(lab.server, lab.client, wrap=pair.wrap)
    pair.wait_protected(1)
    known = pair.client.ctl("identity")["fingerprint"]
    crowd = attack(lab, STRANGERS, str(UNUSED_MAX + 20))
    out, _ = crowd.communicate(timeout=3 * PATIENCE)
    assert int(out) == UNUSED_MAX + 20

    def kept() -> bool:
        return len(pair.server.ctl("peers")) == UNUSED_MAX + 1

    wait_until(kept, PATIENCE, "as many as there is room for", poll=0.2)
    assert known in {peer["fingerprint"] for peer in pair.server.ctl("peers")}
    pair.server.restart()
    assert kept()
    pair.wait_protected(1)
    link = lab.client.move(lab.cafe, 20)
    ticker.wait_both(link.usable_at, PATIENCE)
    verdict = ticker.stop()
    assert verdict.ok, verdict

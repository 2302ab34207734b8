"""Integrity with real hosts: what it carries through moves, what it refuses, and when only one end wants it."""

from __future__ import annotations

import sys
import time
from typing import Any

import pytest
from daemon_pair import FAST, PATIENCE, Pair

from redirectctl.lab.daemons import Daemon
from redirectctl.lab.streams import start_bulk, start_ticker, wait_until
from redirectctl.lab.topology import FIRST_HOST, Lab

INTEGRITY = FAST + '[integrity]\nmode = "on"\n'
ENOUGH = 20_000_000  # bytes
# On the router: the next tunnel datagram to an address, as it came in. The UDP checksum, which may be left to the
# hardware, is taken out.
CAPTURE = """import socket,sys
target = socket.inet_aton(sys.argv[1])
tap = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(0x0800))
while True:
    data = tap.recv(65535)
    to, udp, port, kind = data[16:20], data[9] == 17, int.from_bytes(data[22:24]), data[28]
    if data[0] == 0x45 and udp and (to, port, kind) == (target, 7747, 8):
        break
print((data[:26] + bytes(2) + data[28:]).hex())
"""
SEND = """import socket,sys; raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
raw.sendto(bytes.fromhex(sys.argv[1]), (sys.argv[2], 0))"""


def tagged(daemon: Daemon) -> bool:
    found = [c for c in daemon.ctl("connections") if c["state"] == "protected"]
    return [(c["path"], c["integrity"]) for c in found] == [("tunnel", True)]


def wait_tagged(pair: Pair) -> None:
    for daemon in pair.daemons:
        what = f"{daemon.host.name} lists the tunnel, with integrity"
        wait_until(lambda daemon=daemon: tagged(daemon), PATIENCE, what, poll=0.1)


def listed(daemon: Daemon) -> list[dict[str, Any]]:
    return [each for each in daemon.ctl("connections") if each["state"] != "closed"]


@pytest.mark.parametrize("version", [4, 6])
def test_a_busy_connection_stays_tagged_through_moves_of_both_hosts(lab: Lab, version: int) -> None:
    pair = Pair(lab, INTEGRITY, INTEGRITY)
    bulk = start_bulk(lab.server, lab.client, version=version, wrap=pair.wrap)
    wait_tagged(pair)
    for mover, network, number in (
        (pair.client, lab.cafe, FIRST_HOST + 1),
        (pair.server, lab.dc2, FIRST_HOST + 1),
        (pair.client, lab.home, FIRST_HOST),
    ):
        began = time.time()
        mover.host.move(network, number)
        pair.wait_moved(mover, began)
        before = bulk.received()
        wait_until(lambda before=before: bulk.received() > before + ENOUGH, PATIENCE, "the stream goes on")
        wait_tagged(pair)
    ways = {event["path"] for daemon in pair.daemons for event in daemon.events("path.changed")}
    assert ways == {"tunnel"}
    verdict = bulk.stop()
    assert verdict.ok, verdict.why


def test_a_datagram_with_a_flipped_tag_and_one_sent_again_are_refused(lab: Lab) -> None:
    pair = Pair(lab, INTEGRITY, INTEGRITY)
    ticker = start_ticker(lab.server, lab.client, wrap=pair.wrap)
    wait_tagged(pair)
    server, source = str(lab.server.address()), f"{lab.client.address()}:7747"
    lab.home.cut()  # so that the server has not seen what the router sees
    datagram = bytes.fromhex(lab.router.run([sys.executable, "-c", CAPTURE, server]).stdout)
    flipped = datagram[:-1] + bytes([datagram[-1] ^ 1])

    def send(what: bytes) -> float:
        began = time.time()
        lab.router.run([sys.executable, "-c", SEND, what.hex(), server])
        return began

    forged = pair.server.wait_event("packet.refused", since=send(flipped), reason="forged", timeout=PATIENCE)
    assert (forged["source"], forged["count"]) == (source, 1)
    send(datagram)  # late, and good
    replayed = pair.server.wait_event("packet.refused", since=send(datagram), reason="replayed", timeout=PATIENCE)
    assert (replayed["source"], replayed["count"]) == (source, 1)
    assert [event["reason"] for event in pair.server.events("packet.refused")] == ["forged", "replayed"]
    lab.home.restore()
    ticker.wait_both(time.monotonic(), PATIENCE)
    verdict = ticker.stop()
    assert verdict.ok, verdict.why


@pytest.mark.parametrize(
    ("client", "server", "reasons"),
    [
        (INTEGRITY, FAST, ["integrity-refused-there", "integrity-refused-here"]),
        (FAST, INTEGRITY, ["integrity-required-there", "integrity-required-here"]),
    ],
    ids=["only-the-client", "only-the-server"],
)
def test_a_connection_of_which_one_end_wants_integrity_is_refused_and_works_unprotected(
    lab: Lab, client: str, server: str, reasons: list[str]
) -> None:
    pair = Pair(lab, client, server)
    ticker = start_ticker(lab.server, lab.client, wrap=pair.wrap)
    refusals = [daemon.wait_event("connection.refused", timeout=PATIENCE) for daemon in pair.daemons]
    assert [event["reason"] for event in refusals] == reasons
    (connection,) = listed(pair.client)
    assert (connection["state"], connection["path"], connection["integrity"]) == ("refused", "original", False)
    assert connection["reason"] == reasons[0]
    ticker.wait_both(time.monotonic(), PATIENCE)
    verdict = ticker.stop()
    assert verdict.ok, verdict.why

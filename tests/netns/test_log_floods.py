"""What others can make a daemon write into its event log and onto its standard error, however often they try."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from daemon_pair import PATIENCE, Pair

from redirectctl.lab.daemons import Daemon
from redirectctl.lab.streams import start_ticker, wait_until
from redirectctl.lab.topology import Lab

REPLAYS = 100_000
LOST = 0.5  # part of a flood that the socket's buffer may lose
# On the router: the next TRANSPORT to an address, as it came in, without the UDP checksum.
CAPTURE = """import socket,sys
target = socket.inet_aton(sys.argv[1])
tap = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(0x0800))
print("ready", flush=True)
while True:
    data = tap.recv(65535)
    to, udp, port, kind = data[16:20], data[9] == 17, int.from_bytes(data[22:24]), data[28]
    if data[0] == 0x45 and udp and (to, port, kind) == (target, 7747, 5):
        break
print((data[:26] + bytes(2) + data[28:]).hex())
"""
# The same datagram again and again, at a pace that a daemon can follow.
REPLAY = """import socket,sys,time
raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
data = bytes.fromhex(sys.argv[1])
for number in range(int(sys.argv[3])):
    raw.sendto(data, (sys.argv[2], 0))
    if number % 50 == 0:
        time.sleep(0.004)
"""
KNOCK = """import socket,sys
socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(bytes.fromhex(sys.argv[2]), (sys.argv[1], 7747))
"""


def files(daemon: Daemon) -> int:
    """Bytes of the event log on disk."""
    return sum(file.stat().st_size for file in Path(daemon.state).glob("events.jsonl*"))


def test_a_recorded_datagram_sent_again_and_again(lab: Lab) -> None:
    """One line, and counts; what was logged before stays, and what others cause meanwhile is logged."""
    pair = Pair(lab)
    ticker = start_ticker(lab.server, lab.client, wrap=pair.wrap)
    pair.wait_protected(1)
    server = str(lab.server.address())
    tap = lab.router.popen([sys.executable, "-c", CAPTURE, server], stdout=subprocess.PIPE)
    assert tap.stdout is not None
    assert tap.stdout.readline() == "ready\n"
    pair.client.ctl("announce")
    datagram = tap.stdout.readline().strip()
    before = files(pair.server)
    began = time.time()
    lab.router.run([sys.executable, "-c", REPLAY, datagram, server, str(REPLAYS)], timeout=600)
    # A second party, while the first still has something to tell.
    lab.router.run([sys.executable, "-c", KNOCK, server, "ff000000"])
    pair.server.wait_event("packet.refused", since=began, reason="too-short", timeout=PATIENCE)

    def counted() -> int:
        return sum(e.get("count", 1) for e in pair.server.events("redirect.refused") if e["reason"] == "replayed")

    wait_until(lambda: counted() > LOST * REPLAYS, PATIENCE, "the replays are counted", poll=0.5)
    assert len(pair.server.events("redirect.refused")) < 20
    assert files(pair.server) - before < 10_000
    assert len(pair.server.events("daemon.started")) == 1
    assert len(pair.server.events("connection.protected")) == 1
    verdict = ticker.stop()
    assert verdict.ok, verdict.why
    pair.server.wait_event("connection.closed", since=began, timeout=PATIENCE)


FORGED = (
    b'{"type":"\\u001b[2J\\u001b]0;owned\\u0007"}\n',
    b'{"type":"x\\nredirectd: INFO: all is well"}\n',
    b'{"type":"x\\r\\u2028\\u202e\\u009b2J"}\n',
)
ASK = """import socket,sys
for number in range(int(sys.argv[3])):
    s = socket.socket(socket.AF_UNIX)
    s.connect(sys.argv[1])
    s.sendall(bytes.fromhex(sys.argv[2]))
    while s.recv(65536): pass
"""


def test_requests_that_forge_lines_of_the_log(lab: Lab) -> None:
    """Standard error gets one clean line of each kind, however many come."""
    daemon = Daemon(lab.client)
    daemon.start()
    for request in FORGED:
        lab.client.run([sys.executable, "-c", ASK, str(daemon.socket), request.hex(), "50"])
    daemon.stop()
    text = daemon.log.read_bytes()
    assert b"request-malformed" in text
    lines = text.decode().split("\n")
    assert all(line.startswith("redirectd: ") or line.startswith("    ") for line in lines if line)
    assert not any(character in text.decode() for character in "\x1b\x07\r\u2028\u202e\x9b")
    assert "redirectd: INFO: all is well" not in lines
    assert 1 <= sum("request-malformed" in line for line in lines) < 10

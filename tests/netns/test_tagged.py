"""Integrity between two hosts: a connection goes into the tunnel while it is busy, and takes nothing else."""

from __future__ import annotations

import sys
import time
from typing import Any

from daemon_pair import FAST, PATIENCE, held

from redirectctl.lab.daemons import Daemon
from redirectctl.lab.streams import start_bulk, wait_until
from redirectctl.lab.topology import Host, Lab
from redirectctl.wire.addr import SockAddr
from redirectctl.wire.ip import TcpFlags, build_tcp

CONFIG = (
    FAST
    + """\
ports = [5001]
[integrity]
mode = "on"
"""
)
SEND = """import socket,sys; raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
raw.sendto(bytes.fromhex(sys.argv[1]), (sys.argv[2], 0))"""


def forged(lab: Lab, connection: dict[str, Any]) -> None:
    """A router between the two hosts sends an RST, and a segment, as if from the peer."""
    local, remote = (SockAddr.parse(connection[end]) for end in ("local", "remote"))
    for flags in (TcpFlags.RST, TcpFlags.ACK | TcpFlags.PSH):
        data = b"" if flags is TcpFlags.RST else b"forged"
        packet = build_tcp(remote, local, seq=1, flags=flags, data=data)
        lab.router.run([sys.executable, "-c", SEND, packet.hex(), str(local.host)])


def in_the_tunnel(daemon: Daemon) -> dict[str, Any] | None:
    found = [c for c in daemon.ctl("connections") if (c["path"], c["integrity"]) == ("tunnel", True)]
    return found[0] if found else None


def drops_plain_packets(host: Host) -> bool:
    return any("in tag4" in what for what in held(host))


def test_a_busy_connection_goes_into_the_tunnel_and_forged_packets_are_counted(lab: Lab) -> None:
    bulk = start_bulk(lab.client, lab.server, port=5001)
    daemons = [Daemon(host, CONFIG) for host in (lab.client, lab.server)]
    for daemon in daemons:
        daemon.start()
    for daemon in daemons:
        connection = wait_until(lambda daemon=daemon: in_the_tunnel(daemon), PATIENCE, "integrity is on")
        wait_until(lambda daemon=daemon: drops_plain_packets(daemon.host), PATIENCE, "plain packets are dropped")
        began = time.time()
        forged(lab, connection)
        event = daemon.wait_event("packet.refused", since=began, reason="not-tagged", timeout=PATIENCE)
        assert event["count"] >= 1
    before = bulk.received()
    wait_until(lambda: bulk.received() > before + 20_000_000, PATIENCE, "20 MB through the tunnel")
    lab.client.move(lab.cafe, 11)
    daemons[1].wait_event("move.received", address=str(lab.client.address()), timeout=PATIENCE)
    before = bulk.received()
    wait_until(lambda: bulk.received() > before + 20_000_000, PATIENCE, "20 MB after a move")
    assert all(in_the_tunnel(daemon) for daemon in daemons)
    verdict = bulk.stop()
    assert verdict.ok, verdict.why

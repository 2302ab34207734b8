"""A peer is where somebody else's connection has the same ports: both go on, and neither gets the other's packets."""

from __future__ import annotations

import subprocess
import time

import pytest
from daemon_pair import FAST, PATIENCE, Pair

from redirectctl.lab.streams import Idle, Program, start_ticker, wait_until
from redirectctl.lab.topology import Host, Lab

PORT, FROM, NUMBER = 5001, 41000, 20
ONLY = FAST + f"ports = [{PORT}]\n"


def held_from(host: Host, server: Host, listening: Program, version: int) -> Idle:
    """A connection to the server's echo from one port of a host."""
    target = ["--connect", str(server.address(version)), str(PORT)]
    client = Program(host, "idle", *target, "--from", str(FROM), stdin=subprocess.PIPE)
    client.wait_line(1, PATIENCE)
    return Idle(listening, client, [client.printed()[0]["local"]])


def sockets_from(server: Host, address: str) -> list[str]:
    lines = server.run(["ss", "-tnH", "state", "established", f"( sport = :{PORT} )"]).stdout.splitlines()
    return [line for line in lines if f"{address}:{FROM}" in line.replace("[", "").replace("]", "")]


@pytest.mark.parametrize("version", [4, 6])
def test_the_tuple_of_another_socket_stays_with_it(lab: Lab, version: int) -> None:
    """Who had the address before has vanished; the server does not know that yet."""
    pair = Pair(lab, ONLY, ONLY)
    echo = Program(lab.server, "echo", "--listen", str(PORT))
    echo.wait_line(1, PATIENCE)
    neighbour = lab.stranger
    neighbour.join(lab.cafe, NUMBER)
    theirs = held_from(neighbour, lab.server, echo, version)
    ours = held_from(lab.client, lab.server, echo, version)
    other = start_ticker(lab.server, lab.client, version=version, interval=0.02)  # not protected
    pair.wait_protected(1)
    assert theirs.ask(PATIENCE) == {}
    assert other.stop().ok
    new = str(lab.cafe.addresses(NUMBER).of(version))
    assert len(sockets_from(lab.server, new)) == 1

    neighbour.leave()
    began = time.time()
    lab.client.move(lab.cafe, NUMBER)
    pair.wait_moved(pair.client, began, 1)
    assert ours.ask(PATIENCE) == {}
    refused = pair.server.wait_event("redirect.refused", since=began, reason="kernel", timeout=PATIENCE)
    assert "another connection of this host has that tuple" in refused["detail"]
    for _ in range(3):
        time.sleep(1.0)
        assert ours.ask(PATIENCE) == {}
        assert len(sockets_from(lab.server, new)) == 1
        (listed,) = pair.client.ctl("connections")
        assert listed["path"] == "tunnel"

    # When that socket is gone, the tuple is nobody's, and the connection leaves the tunnel.
    argv = ["ss", "-KtnH", "state", "established", f"( sport = :{PORT} and dport = :{FROM} and dst = [{new}] )"]
    lab.server.run(argv)
    wait_until(lambda: not sockets_from(lab.server, new), PATIENCE, "the old socket is gone", poll=0.2)
    lab.client.move(lab.office, NUMBER)
    lab.client.move(lab.cafe, NUMBER)
    wait_until(lambda: pair.client.ctl("connections")[0]["path"] == "rewritten", PATIENCE, "plain packets", poll=0.2)
    assert ours.ask(PATIENCE) == {}
    ours.stop()
    theirs.client.kill()
    pair.stop_without_a_trace()

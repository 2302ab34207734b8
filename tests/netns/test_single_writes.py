"""A program on the host that stays writes once, in an outage: what its TCP learns from that, and what comes of it.

Linux takes its round-trip time from the timestamp that an acknowledgement echoes (`tcp_ack_update_rtt`), when what is
acknowledged was sent several times.  A copy that waited somewhere for seconds would teach it a time-out of seconds.
"""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from daemon_pair import PATIENCE, Pair

from redirectctl.lab.streams import start_idle, wait_until
from redirectctl.lab.tcpinfo import tcp_info
from redirectctl.lab.topology import FIRST_HOST, Lab
from redirectctl.redirectd import NICE

PORT = 5003
CONFIG = f"""
[trust]
first_contact = "accept-new"
[protect]
long_lived_after = "1s"
ports = [{PORT}]
"""
OUTAGE = 6.0  # seconds
WITHOUT_BACKOFF = 1.0  # seconds: five times the time-out of a quick connection (TCP_RTO_MIN)


def go_deaf_once_it_has_said_something(lab: Lab) -> None:
    """Nothing gets from the server to the client any more, once the client has sent a datagram; no TCP from now on."""
    server, client = lab.dc1.bridge, lab.home.bridge
    script = f"""
    table inet deaf {{
        set deaf {{ type ifname; flags dynamic; size 1; }}
        chain forward {{
            type filter hook forward priority -10
            iifname {server} meta l4proto tcp counter drop
            iifname {server} oifname @deaf counter drop
            iifname {client} udp dport 7747 add @deaf {{ iifname }}
        }}
    }}
    """
    lab.router.run(["nft", "-f", "-"], stdin=script)


def hear_again(lab: Lab) -> None:
    lab.router.run(["nft", "delete", "table", "inet", "deaf"])


def test_only_the_thread_of_the_tunnel_waits_for_a_processor_as_other_programs_do(lab: Lab) -> None:
    pair = Pair(lab)
    for daemon in pair.daemons:
        assert daemon.process is not None
        threads = [Path(f"/proc/{daemon.process.pid}/task/{daemon.process.pid}"),
                   *Path(f"/proc/{daemon.process.pid}/task").iterdir()]  # fmt: skip
        nice = [int(thread.joinpath("stat").read_text().rpartition(")")[2].split()[16]) for thread in threads]
        assert nice[0] == NICE
        assert nice.count(0) == 1
    pair.stop_without_a_trace()


@pytest.mark.parametrize("version", [4, 6])
def test_what_waited_for_a_peer_that_left_teaches_tcp_nothing(lab: Lab, version: int) -> None:
    """The one that stays announces a stall, the mover's challenge is the last that it hears before it is gone."""
    pair = Pair(lab, CONFIG, CONFIG)
    idle = start_idle(lab.client, lab.server, 1, version=version, port=PORT)
    pair.wait_protected(1)
    assert idle.ask(PATIENCE) == {}
    wait_until(lambda: not tcp_info(lab.client, PORT).unacked, PATIENCE, "all acknowledged", poll=0.05)
    began = time.time()
    go_deaf_once_it_has_said_something(lab)
    idle.begin(PATIENCE)
    pair.server.wait_event("move.started", since=began, reason="retransmitting", timeout=PATIENCE)
    wait_until(lambda: pair.server.ctl("connections")[0]["path"] == "tunnel", PATIENCE, "challenged", poll=0.1)
    time.sleep(OUTAGE)
    lab.client.leave()
    hear_again(lab)
    lab.client.join(lab.cafe, FIRST_HOST + 1)
    wait_until(idle.echoed, PATIENCE, "the echo")
    learnt = tcp_info(lab.server, PORT)
    assert learnt.rto < WITHOUT_BACKOFF, learnt.text
    # So the next outage does not find the first copy still waiting for its time-out.
    lab.client.leave()
    idle.begin(PATIENCE)
    wait_until(lambda: tcp_info(lab.server, PORT).backoff, PATIENCE, "its time-out has passed", poll=0.05)
    lab.client.join(lab.home, FIRST_HOST + 2)
    wait_until(idle.echoed, PATIENCE, "the echo")
    assert tcp_info(lab.server, PORT).rto < WITHOUT_BACKOFF
    idle.stop()
    pair.stop_without_a_trace()

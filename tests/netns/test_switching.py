"""A connection that is busy all the time changes its way, and loses nothing."""

from __future__ import annotations

import time
from typing import Any

import pytest
from daemon_pair import FAST, PATIENCE, Pair

from redirectctl.lab.daemons import Daemon
from redirectctl.lab.streams import Bulk, start_bulk, wait_until
from redirectctl.lab.topology import FIRST_HOST, Lab

CONFIG = (
    FAST
    + """\
ports = [5001]
[path]
prefer = "{prefer}"
"""
)
ENOUGH = 20_000_000  # bytes that must come by each way


def prefer(pair: Pair, way: str) -> None:
    """Both daemons read a new preference."""
    for daemon in pair.daemons:
        daemon.config.write_text(CONFIG.format(prefer=way))
        daemon.reload()


def listed(daemon: Daemon) -> dict[str, Any]:
    (connection,) = [each for each in daemon.ctl("connections") if each["state"] == "protected"]
    return connection


def wait_path(pair: Pair, path: str) -> None:
    """Until both hosts list the connection with this path."""
    for daemon in pair.daemons:
        what = f"{daemon.host.name} lists the path {path}"
        wait_until(lambda daemon=daemon: listed(daemon)["path"] == path, PATIENCE, what, poll=0.1)


def wait_more(bulk: Bulk) -> None:
    before = bulk.received()
    wait_until(lambda: bulk.received() > before + ENOUGH, PATIENCE, "the stream goes on")


@pytest.mark.parametrize("version", [4, 6])
def test_a_busy_connection_changes_from_way_to_way_and_loses_no_byte(lab: Lab, version: int) -> None:
    pair = Pair(lab, *[CONFIG.format(prefer="auto")] * 2)
    bulk = start_bulk(lab.server, lab.client, version=version, port=5001)
    pair.wait_protected(1)
    wait_path(pair, "original")
    wait_more(bulk)
    began = time.time()
    lab.client.move(lab.cafe, FIRST_HOST + 1)
    for daemon in pair.daemons:  # a move begins in the tunnel, and goes on plainly without being told to
        in_the_tunnel = daemon.wait_event("path.changed", since=began, path="tunnel", timeout=PATIENCE)
        plainly = daemon.wait_event("path.changed", since=began, path="rewritten", timeout=PATIENCE)
        assert in_the_tunnel["time"] <= plainly["time"]
    wait_path(pair, "rewritten")
    wait_more(bulk)
    for way, path in (("tunnel", "tunnel"), ("auto", "rewritten"), ("tunnel", "tunnel")):
        prefer(pair, way)
        wait_path(pair, path)
        wait_more(bulk)
    verdict = bulk.stop()
    assert verdict.ok, verdict.why
    assert verdict.figures["server"]["bytes"] > 5 * ENOUGH


@pytest.mark.parametrize("version", [4, 6])
def test_back_where_it_began_a_busy_connection_goes_its_original_way_or_the_tunnel(lab: Lab, version: int) -> None:
    pair = Pair(lab, *[CONFIG.format(prefer="tunnel")] * 2)
    bulk = start_bulk(lab.server, lab.client, version=version, port=5001)
    pair.wait_protected(1)
    for network, number in ((lab.cafe, FIRST_HOST + 1), (lab.home, FIRST_HOST)):
        began = time.time()
        lab.client.move(network, number)
        pair.wait_moved(pair.client, began)
        wait_path(pair, "tunnel")
        wait_more(bulk)
    for way, path in (("auto", "original"), ("tunnel", "tunnel"), ("auto", "original")):
        prefer(pair, way)
        wait_path(pair, path)
        wait_more(bulk)
    verdict = bulk.stop()
    assert verdict.ok, verdict.why


def test_one_host_prefers_the_tunnel_and_the_other_sends_plainly(lab: Lab) -> None:
    pair = Pair(lab, CONFIG.format(prefer="tunnel"), CONFIG.format(prefer="auto"))
    bulk = start_bulk(lab.server, lab.client, port=5001)
    pair.wait_protected(1)
    lab.client.move(lab.cafe, FIRST_HOST + 1)
    wait_until(lambda: listed(pair.server)["path"] == "rewritten", PATIENCE, "the server sends plainly", poll=0.1)
    wait_more(bulk)
    assert listed(pair.client)["path"] == "tunnel"
    verdict = bulk.stop()
    assert verdict.ok, verdict.why

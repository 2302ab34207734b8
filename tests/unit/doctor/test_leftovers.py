"""How what a daemon left is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from redirectctl.api.reasons import advice, explain
from redirectctl.api.schema import CheckStatus
from redirectctl.doctor import alone, host, traces
from redirectctl.doctor.state import KernelState
from redirectctl.doctor.traces import Trace
from redirectctl.flows.connection import Flow
from redirectctl.kernel.constants import Queue
from redirectctl.wire.addr import FourTuple, SockAddr

TABLE = Trace("nft table inet redirectctl", "nft delete table inet redirectctl")
RULE = Trace("IPv4 rule 7747 to table 7747", "ip -4 rule del priority 7747 table 7747")


def four(local: str, remote: str) -> FourTuple:
    return FourTuple(SockAddr.parse(local), SockAddr.parse(remote))


TUNNELLED = Flow(four("192.0.2.2:1002", "198.51.100.2:22"), four("192.0.2.2:1002", "198.51.100.2:22"), True)


def test_nothing():
    assert alone.leftovers([], 0).status is CheckStatus.OK


def test_each_thing_is_named_with_its_command():
    check = alone.leftovers([TABLE, RULE], 0)
    assert check.status is CheckStatus.FAIL
    assert check.found.splitlines()[1:] == [TABLE.what, RULE.what]
    assert str(check.hint).splitlines()[1:] == [TABLE.remove, RULE.remove]


def test_what_living_connections_use_is_no_failure():
    check = alone.leftovers([TABLE], 2)
    assert check.status is CheckStatus.WARN
    assert check.found.startswith("2 connections still use")
    assert "start redirectd" in str(check.hint)


def test_a_thousand_flows_do_not_hide_the_rest():
    flows = [Trace(f"nft elements for {n}", TABLE.remove) for n in range(1000)]
    lines = alone.leftovers([TABLE, *flows, RULE], 0).found.splitlines()
    assert len(lines) < 20
    assert "and 992 more" in lines
    assert RULE.what in lines


def test_empty_cgroups_are_harmless():
    assert alone.cgroups([]).status is CheckStatus.OK
    check = alone.cgroups([Trace("cgroup /sys/fs/cgroup/redirectctl-1", "rmdir x")])
    assert check.status is CheckStatus.WARN
    assert "/sys/fs/cgroup/redirectctl-1" in check.found


def test_how_connections_travel_is_told():
    secured = TUNNELLED._replace(integrity=True)
    assert traces.flow_trace(TUNNELLED).what.endswith("-198.51.100.2:22 through the tunnel")
    assert traces.flow_trace(secured).what.endswith(" through the tunnel with integrity")


def test_reasons():
    assert explain("no-answer") == "the other host's redirectd does not answer (no-answer)"
    assert "accept_ports" in advice("port-not-accepted")
    assert explain("kernel: out of memory") == "the kernel refused the rules: out of memory (kernel)"
    assert (explain(None), advice(None)) == ("no reason given", "")


def test_queue_numbers_in_use(monkeypatch: pytest.MonkeyPatch):
    # nfnetlink_queue.c, seq_show: queue number, port id, queue length, copy mode and range, drops, id, 1
    text = " 7747  4711     0 2 65531     0     0        0  1\n 7749  4711     3 2 65531     0     0        9  1\n"
    monkeypatch.setattr(Path, "read_text", lambda _self: text)
    assert host.bound_queues() == {7747, 7749}


@pytest.mark.parametrize("lost", Queue)
def test_each_queue_that_has_no_listener_is_told(monkeypatch: pytest.MonkeyPatch, lost: Queue):
    monkeypatch.setattr(host, "bound_queues", lambda: set(Queue) - {lost})
    found = KernelState._queues([])
    assert (found.status, found.found) == (CheckStatus.FAIL, f"redirectd does not listen on NFQUEUE {lost.value}")

"""The measurements of `redirectctl bench`, as short as can be: every figure is there, however good it is."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest

from redirectctl.lab import bench
from redirectctl.lab.bench import Figures, suspended, uplinks
from redirectctl.lab.bench.gap import MOVER, STAYER, TRAFFIC
from redirectctl.lab.bench.protected import PHASES
from redirectctl.lab.bench.ways import METHODS, OTHERS
from redirectctl.lab.bench.without import WRITTEN

pytestmark = [pytest.mark.netns, pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]
IPERF3 = pytest.mark.skipif(shutil.which("iperf3") is None, reason="not installed: iperf3")


def measured(name: str, *arguments: str) -> list[Figures]:
    measurement = bench.load(name)
    outcome = bench.measured(measurement, bench.options_of(measurement, arguments))
    assert len(outcome.table.splitlines()) > 2
    return outcome.figures


def positive(rows: Sequence[Figures], name: str) -> bool:
    return all(float(row[name] or 0) > 0 for row in rows)


def test_gap():
    rows = measured("gap", "--runs", "1", "--labs", "1", "--outages", "0.1")
    assert [(row["traffic"], row["kick"]) for row in rows] == [(t, kick) for t in TRAFFIC for kick in (True, False)]
    assert positive(rows, "median")


def test_tails(tmp_path: Path):
    rows = measured("tails", "--moves", "2", "--labs", "1", "--busy", "0", "--outages", "0.1", "0.3", "--limit", "0",
                    "--dump", str(tmp_path))  # fmt: skip
    assert [(row["end"], row["answers"]) for row in rows] == [(MOVER, 2), (STAYER, 2)]
    assert positive(rows, "worst")
    for explained in (path.read_text() for path in tmp_path.iterdir()):
        assert "events of client" in explained
        assert "TCP: before" in explained
        assert "move.finished" in explained
    assert len(list(tmp_path.iterdir())) == 2


@IPERF3
def test_protected():
    rows = measured("protected", "--rounds", "1", "--seconds", "0.5", "--settle", "0.2")
    assert [row["connection"] for row in rows] == list(PHASES)
    assert positive(rows, "bits_per_second")
    assert positive(rows, "ratio")


@IPERF3
def test_ways():
    kinds = [name for name in METHODS if name != OTHERS]
    rows = measured("ways", "--rounds", "1", "--seconds", "1", "--only", *kinds)
    assert [row["connection"] for row in rows] == kinds
    assert positive(rows, "bits_per_second")


def test_suspended(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(suspended, "SETTLE", 2.0)
    rows = measured("suspended", "--connections", "20", "--in-flight", "6", "--seconds", "1")
    phases = ("none", "protected", "suspended", "back")
    assert [(row["connections"], row["host"]) for row in rows[:-1]] == [
        (phase, host) for phase in phases for host in ("client", "server")
    ]
    assert positive(rows[:-1], "memory_bytes")
    # It has one of each connection's socket; a look at the network may have had a few open before.
    for before, row in zip(rows[2:4], rows[4:6], strict=True):
        assert float(row["descriptors"] or 0) >= float(before["descriptors"] or 0) + 20 - 5
    assert positive(rows[-1:], "client_seconds")
    assert positive(rows[-1:], "echo_seconds")


def test_stays():
    situation = "UDP blocked; link down for 0.2 s"
    rows = measured("stays", "--rounds", "1", "--situations", situation)
    assert [(row["situation"], row["written"]) for row in rows] == [(situation, written) for written in WRITTEN]
    assert all(row["protected_lost"] == row["plain_lost"] == 0 for row in rows)


def test_uplinks():
    situation = "upstream of the used uplink dead"
    rows = measured("uplinks", "--rounds", "1", "--situations", situation)
    assert [(row["situation"], row["written"]) for row in rows] == [(situation, w) for w in uplinks.WRITTEN]
    assert all((row["protected_lost"], row["plain_lost"]) == (0, 2) for row in rows)


def test_start():
    rows = measured("start", "--runs", "2")
    assert [row["command"] for row in rows] == ["true", "ssh -V"]
    assert positive(rows, "ratio")


def test_terminal():
    rows = measured("terminal", "--runs", "2", "--megabytes", "1")
    assert [row["command"] for row in rows] == ["true", "plain", "coloured"]
    for name in ("alone", "plain", "wrapped", "ratio"):
        assert positive(rows, name)

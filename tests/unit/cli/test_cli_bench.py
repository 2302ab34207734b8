"""redirectctl bench: which measurements run, what comes out, what is said of one that cannot be made."""

from __future__ import annotations

import argparse
import json
import os
import types
from collections.abc import Sequence

import pytest

from redirectctl.cli import main as ctl
from redirectctl.cli.common import ExitCode
from redirectctl.lab import bench
from redirectctl.lab.bench import AbsentError, Outcome, gap, protected, start, tails, terminal, uplinks, ways, without
from redirectctl.lab.bench.gap import EITHER, MOVER, STAYER, TRAFFIC, Sample
from redirectctl.lab.bench.protected import Measured


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Instead of the measurements: which, and how many rounds."""
    calls: list[tuple[str, int]] = []

    def fake(name: str) -> types.SimpleNamespace:
        def add_arguments(parser: argparse.ArgumentParser) -> None:
            parser.add_argument("--rounds", type=int, default=100)

        def measure(options: argparse.Namespace) -> Outcome:
            calls.append((name, options.rounds))
            if name == "ways" and options.rounds == 100:
                raise AbsentError("not installed: iperf3; apt install iperf3")
            return Outcome(f"{name} on this", "| a |\n|---|\n| 1 |", [{"a": 1}])

        return types.SimpleNamespace(
            __doc__=name, QUICK=("--rounds", "2"), add_arguments=add_arguments, measure=measure
        )

    monkeypatch.setattr(bench, "load", fake)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    return calls


def test_all_of_them_in_the_order_of_the_readme(asked: list[tuple[str, int]], capsys: pytest.CaptureFixture[str]):
    assert ctl.main(["bench", "--quick"]) == ExitCode.DONE
    assert asked == [
        (name, 2)
        for name in ("gap", "protected", "ways", "suspended", "crowd", "stays", "uplinks", "start", "terminal")
    ]
    out = capsys.readouterr().out
    assert out.index("gap on this:\n\n| a |") < out.index("start on this:")


def test_one_document_for_programs(asked: list[tuple[str, int]], capsys: pytest.CaptureFixture[str]):
    assert ctl.main(["--json", "bench", "gap", "start"]) == ExitCode.DONE
    assert asked == [("gap", 100), ("start", 100)]
    assert json.loads(capsys.readouterr().out) == {
        name: {"title": f"{name} on this", "figures": [{"a": 1}]} for name in ("gap", "start")
    }


def test_what_cannot_be_measured_is_said_and_the_others_are(
    asked: list[tuple[str, int]], capsys: pytest.CaptureFixture[str]
):
    assert ctl.main(["bench", "--json"]) == ExitCode.FAILED
    said = capsys.readouterr()
    assert json.loads(said.out)["ways"] == {"failed": "not installed: iperf3; apt install iperf3"}
    assert json.loads(said.out)["start"]["figures"] == [{"a": 1}]
    assert said.err.splitlines()[-1] == "redirectctl: bench: ways: not installed: iperf3; apt install iperf3"


@pytest.mark.parametrize("arguments", [["nonsense"], ["--rounds", "2"]])
def test_wrong_usage(asked: list[tuple[str, int]], arguments: Sequence[str]):
    with pytest.raises(SystemExit) as ended:
        ctl.main(["bench", *arguments])
    assert ended.value.code == ExitCode.USAGE
    assert asked == []


def test_it_needs_root(asked: list[tuple[str, int]], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert ctl.main(["bench"]) == ExitCode.DENIED
    assert asked == []
    assert ctl.main(["bench", "start", "terminal"]) == ExitCode.DONE
    assert ctl.main(["bench", "start", "gap"]) == ExitCode.DENIED


@pytest.mark.parametrize("name", bench.MEASUREMENTS)
def test_quick_options_are_options(name: str):
    measurement = bench.load(name)
    assert bench.options_of(measurement, measurement.QUICK) != bench.options_of(measurement, ())


class TestTables:
    def test_gap(self):
        samples = [Sample(kick, 1.0, EITHER, 1.0, gap / 1e3) for kick, gaps in ((True, (9, 20, 31)), (False, (4000,)))
                   for gap in gaps]  # fmt: skip
        found = gap.figures(samples)
        assert [(row["kick"], row["median"], row["worst"]) for row in found] == [
            (True, 0.02, 0.031),
            (False, 4.0, 4.0),
        ]
        assert gap.table(found).splitlines()[2] == f"| {TRAFFIC[0]} | 1 s | 20 ms | 31 ms | 4,000 ms | 4,000 ms |"

    def test_protected(self):
        rounds = [[Measured(phase, rate * 1e8, 1.5) for phase, rate in zip(protected.ROUND, rates, strict=True)]
                  for rates in ((10, 9, 5, 5, 9, 10), (20,) * 6)]  # fmt: skip
        found = protected.figures(rounds)
        assert [row["lowest_ratio"] for row in found] == [1.0, 0.9, 0.5]
        assert protected.table(found).splitlines()[3] == (
            "| protected | 11.6 Gbit/s | 0.950 | 0.900 | 1.000 | 1.50 s |"
        )

    def test_ways(self):
        found = ways.figures({"tunnel": [4e9, 6e9], "wireguard-go": [1e9, 2e9]})
        assert ways.table(found).splitlines()[2:] == [
            "| tunnel | 5.00 Gbit/s | 3.50 | 3.00 | 4.00 |",
            "| wireguard-go | 1.50 Gbit/s | 1.00 | 1.00 | 1.00 |",
        ]

    def test_ways_without_the_other(self):
        found = ways.figures({"tunnel": [4e9, 6e9]})
        assert found[0]["ratio"] is None
        assert ways.table(found).splitlines()[2] == "| tunnel | 5.00 Gbit/s |  |  |  |"

    def test_stays(self):
        taken = {without.PLAIN: (0.01, 0.02, 0.9), without.PROTECTED: (0.01, 0.03, without.LOST)}
        samples = [
            without.Sample("x; y", without.AFTER, kind, "client", each) for kind, all_ in taken.items() for each in all_
        ]
        found = without.figures(samples)
        assert found == [
            {"situation": "x; y", "written": "after", "plain_median": 0.02, "plain_worst": 0.9, "plain_lost": 0,
             "protected_median": 0.03, "protected_worst": without.LOST, "protected_lost": 1}
        ]  # fmt: skip
        assert without.table(found).splitlines()[2] == "| x; y | after | 20 ms | 900 ms | 30 ms | lost |"

    def test_uplinks(self):
        taken = {without.PLAIN: (20.0, 20.0), without.PROTECTED: (0.01, 0.03)}
        samples = [
            without.Sample("dead", uplinks.LATER, kind, "client", each) for kind, all_ in taken.items() for each in all_
        ]
        found = without.figures(samples, uplinks.DEADLINE)
        assert (found[0]["plain_lost"], found[0]["protected_lost"]) == (2, 0)
        assert uplinks.table(found).splitlines()[2] == "| dead | later | - | - | 20 ms | 30 ms |"

    def test_start(self):
        found = [{"command": "true", "plain": 0.001, "wrapped": 0.0155, "ratio": 15.5}]
        assert start.table(found).splitlines()[2] == "| `true` | 1.0 ms | 15.5 ms | 15.5 |"

    def test_terminal(self):
        taken = {
            ("true", "alone"): [0.001, 0.002, 0.003],
            ("true", "plain"): [0.02],
            ("true", "wrapped"): [0.03, 0.04, 0.03],
        }
        taken |= {("plain", "alone"): [0.1], ("plain", "plain"): [0.1], ("plain", "wrapped"): [0.2]}
        found = terminal.figures(taken, {"plain": 64 << 20})
        assert [row["ratio"] for row in found] == [20.0, 2.0]  # the median of 30, 20 and 10
        assert terminal.table(found).splitlines()[2:] == [
            "| start of `true` | 2.0 ms | 20.0 ms | 30.0 ms | 20.00 |",
            "| `cat`, plain text | 640 MB/s | 640 MB/s | 320 MB/s | 2.00 |",
        ]


def test_a_histogram_counts_each_answer_once():
    gaps = [0.01] * 97 + [0.025, 0.3, 2.0]
    samples = [tails.Sample(end, 1.0, 0.5, gap) for end in (MOVER, STAYER) for gap in gaps]
    rows = tails.figures(samples)
    for row in rows:
        counts = [row[f"below {high:g} s"] for high in (*tails.STEPS, float("inf"))]
        assert counts == [97, 1, 0, 0, 1, 0, 1]
        assert (row["answers"], row["median"], row["99 %"], row["worst"]) == (100, 0.01, 0.3, 2.0)
    assert "| 97 | 1 | 0 | 0 | 1 | 0 | 1 | 10 ms | 300 ms | 2,000 ms |" in tails.table(rows)

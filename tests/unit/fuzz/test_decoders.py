"""A short run of the fuzz command, and what it notices."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuzz import decoders
from tests.fuzz.target import ACCEPTED, Target
from tests.fuzz.targets import TARGETS

INPUTS = 3000


@pytest.mark.parametrize("name", TARGETS)
def test_bad_bytes_are_refused_by_name(name: str) -> None:
    result = decoders.fuzz(name, INPUTS)
    assert result.inputs == INPUTS
    assert result.outcomes[ACCEPTED] > 0
    assert len(result.outcomes) > 1


@pytest.mark.parametrize("name", TARGETS)
def test_the_same_seed_gives_the_same_inputs(name: str) -> None:
    outcomes = [decoders.fuzz(name, 300, seed=seed).outcomes for seed in (5, 5, 6)]
    assert outcomes[0] == outcomes[1] != outcomes[2]


def faulty(monkeypatch: pytest.MonkeyPatch, feed: object) -> None:
    monkeypatch.setitem(TARGETS, "faulty", lambda _: Target([b"example"], feed))  # type: ignore[arg-type]


def test_any_other_exception_ends_the_run_and_says_how_to_repeat_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def feed(data: bytes) -> str:
        return str(data[3])

    faulty(monkeypatch, feed)
    assert decoders.main(["--inputs", "5000", "faulty"]) == 1
    told = capsys.readouterr().err
    assert "IndexError" in told
    again = told.partition("again: tests/fuzz/decoders.py ")[2].split()
    assert decoders.main(again) == 1
    assert told.splitlines()[1] in capsys.readouterr().err


def test_an_input_that_takes_too_long_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def feed(_: bytes) -> str:
        while True:
            pass

    monkeypatch.setattr(decoders, "MOST_SECONDS", 0.05)
    faulty(monkeypatch, feed)
    with pytest.raises(decoders.Failure, match="too long"):
        decoders.fuzz("faulty", 1)


LEAKS = """
import sys
from random import Random
from tests.fuzz import decoders
from tests.fuzz.target import ACCEPTED, Target
from tests.fuzz.targets import TARGETS

kept = []

def feed(_):
    made = Random(1).randbytes(2_000)
    if sys.argv[1] == "leaks":
        kept.append(made)
    return ACCEPTED

decoders.MOST_GROWTH = 4 << 20
TARGETS["faulty"] = lambda _: Target([b"example"], feed)
sys.exit(decoders.main(["--inputs", "20000", "faulty"]))
"""


@pytest.mark.parametrize(("kind", "status"), [("leaks", 1), ("does not", 0)])
def test_memory_that_grows_fails_the_run(kind: str, status: int) -> None:
    """In a process of its own, as the command: nothing else uses memory or gives it back there."""
    argv = [sys.executable, "-c", LEAKS, kind]
    run = subprocess.run(argv, cwd=Path(__file__).parents[3], capture_output=True, text=True, timeout=120)
    assert run.returncode == status, run.stderr
    assert ("memory has grown by" in run.stderr) == bool(status)


def test_a_run_may_end_by_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    faulty(monkeypatch, lambda _: ACCEPTED)
    assert decoders.fuzz("faulty", 1_000_000_000, seconds=1e-9).inputs == decoders.BATCH


def test_a_decoder_that_there_is_not() -> None:
    with pytest.raises(SystemExit):
        decoders.main(["nonsense"])

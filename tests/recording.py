"""Record what the engines of all simulations command, to compare it before and after a change of their inside.

    PYTHONHASHSEED=0 pytest -p tests.recording --record BEFORE tests/sim
    PYTHONHASHSEED=0 pytest -p tests.recording --record AFTER tests/sim
    python tests/recording.py BEFORE AFTER

A command is written down as the values of its fields in order.  Names of classes and fields, and what only the engine
reads again (the tokens of its questions to the shell), are left out: they may change.
"""

from __future__ import annotations

import argparse
import dataclasses
import enum
import hashlib
import json
import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest

SKIPPED = frozenset({"token", "purpose"})
LEFT_OUT = frozenset(os.environ.get("RECORD_WITHOUT", "").split(","))  # fields that only one side has


def written(value: Any) -> str:
    """A value by its content, whatever its class is called."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = [f.name for f in dataclasses.fields(value) if f.name not in SKIPPED | LEFT_OUT]
        return f"({' '.join(written(getattr(value, name)) for name in fields)})"
    if isinstance(value, enum.Enum):
        return str(value.value)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return f"({' '.join(written(getattr(value, n)) for n in value._fields if n not in LEFT_OUT)})"
    if isinstance(value, Mapping):
        return f"{{{' '.join(f'{written(k)}:{written(v)}' for k, v in value.items())}}}"
    if isinstance(value, set | frozenset):
        return f"<{' '.join(sorted(map(written, value)))}>"
    if isinstance(value, Iterable) and not isinstance(value, str | bytes) and type(value).__module__ == "builtins":
        return f"[{' '.join(map(written, value))}]"
    if isinstance(value, bytes):
        return value.hex()
    return str(value) if type(value).__module__ in ("builtins", "ipaddress") else "?"  # ciphers


class Recorder:
    """A digest for each test, and the commands themselves of one test."""

    def __init__(self, file: Path, whole: str | None) -> None:
        self.file = file
        self.whole = whole
        self.digests: dict[str, tuple[int, str]] = {}
        self.test = ""
        self.lines: list[str] = []
        self.hash = hashlib.sha256()
        self.count = 0

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Any:
        self.test, self.hash, self.count = item.nodeid, hashlib.sha256(), 0
        result = yield
        self.digests[item.nodeid] = self.count, self.hash.hexdigest()
        return result

    def take(self, command: Any) -> None:
        line = written(command)
        self.count += 1
        self.hash.update(line.encode() + b"\n")
        if self.whole == self.test:
            self.lines.append(line)

    def pytest_sessionfinish(self) -> None:
        worker = os.environ.get("PYTEST_XDIST_WORKER", "")
        path = self.file.with_name(self.file.name + worker)
        path.write_text(json.dumps(self.digests, indent=0))
        if self.whole is not None and self.lines:
            path.with_suffix(".lines").write_text("\n".join(self.lines))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--record", type=Path, help="where to write the digests")
    parser.addoption("--whole", help="the test of which to write every command (FILE.lines)")


def pytest_configure(config: pytest.Config) -> None:
    file = config.getoption("record")
    if file is None:
        return
    from redirectctl.flows.engine import Engine

    recorder = Recorder(file, config.getoption("whole"))
    config.pluginmanager.register(recorder)
    drain = Engine.drain

    def drained(engine: Engine) -> list[Any]:
        commands = drain(engine)
        for command in commands:
            recorder.take(command)
        return commands

    Engine.drain = drained  # type: ignore[method-assign]


def main() -> int:
    """Exit status 1 if a test that both have commanded something else."""
    parser = argparse.ArgumentParser(description="Compare two recordings")
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    options = parser.parse_args()
    before, after = (_read(path) for path in (options.before, options.after))
    both = before.keys() & after.keys()
    other = sorted(test for test in both if before[test] != after[test])
    for test in other:
        print(f"{test}: {before[test][0]} commands, now {after[test][0]}")
    print(f"{len(both)} tests compared, {sum(before[t][0] for t in both)} commands, {len(other)} differ;", end=" ")
    print(f"only before: {len(before.keys() - both)}, only after: {len(after.keys() - both)}")
    return bool(other) or not both


def _read(path: Path) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    for part in sorted(path.parent.glob(path.name + "*")):
        if not part.suffix:
            found.update(json.loads(part.read_text()))
    return found


if __name__ == "__main__":
    sys.exit(main())

"""Labs for tests of the real kernel; without root or the tools these tests are skipped, saying why."""

import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from redirectctl.lab.topology import Lab

TOOLS = ("ip", "nft", "ss", "nsenter", "unshare", "mount", "ssh", "scp", "ssh-keygen", "rsync", "/usr/sbin/sshd")
HERE = Path(__file__).parent
LABS = pytest.StashKey[list[Lab]]()
REPORTS = ("log", "events.jsonl", "*.err")  # files in a lab's directories that say what its programs did
REPORT_LIMIT = 60_000  # characters of each


def missing() -> str:
    if os.geteuid() != 0:
        return "needs root"
    absent = [tool for tool in TOOLS if shutil.which(tool) is None]
    return f"not installed: {', '.join(absent)}" if absent else ""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    reason = missing()
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.netns)
            if reason:
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture
def make_lab(request: pytest.FixtureRequest) -> Iterator[Callable[..., Lab]]:
    """Make labs (arguments: those of Lab) that end with the test, and check that nothing of them is left."""
    labs = request.node.stash.setdefault(LABS, [])

    def make(**options: object) -> Lab:
        lab = Lab(**options)
        labs.append(lab)
        return lab

    yield make
    for lab in labs:
        lab.close()
    patience = time.monotonic() + 60  # what was killed may take a moment to go
    while left := [what for lab in labs for what in lab.sandbox.left()]:
        assert time.monotonic() < patience, left
        time.sleep(0.1)


@pytest.fixture
def lab(make_lab: Callable[..., Lab]) -> Lab:
    return make_lab()


@pytest.fixture
def open_to_all(lab: Lab) -> Lab:
    """The lab's directory is root's alone; here other users may reach what is in it."""
    lab.sandbox.directory.chmod(0o711)
    return lab


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """Say in the report of a failed test what the lab looked like."""
    report = yield
    if report.when == "call" and report.failed:
        for lab in item.stash.get(LABS, []):
            report.sections.append((f"lab {lab.sandbox.tag}", lab.report()))
            for pattern in REPORTS:
                for path in sorted(lab.sandbox.directory.rglob(pattern)):
                    if text := path.read_text(errors="replace")[-REPORT_LIMIT:]:
                        report.sections.append((str(path.relative_to(lab.sandbox.directory)), text))
    return report

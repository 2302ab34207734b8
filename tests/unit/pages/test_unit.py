"""The unit file as systemd reads it."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from redirectctl.redirectd import NICE, STATE_DIRECTORY
from tests.unit_file import read

ROOT = Path(__file__).parents[3]
UNIT = ROOT / "systemd" / "redirectd.service"

OTHER_VERSION = 0.5  # systemd weighs the settings a little differently from version to version

pytestmark = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")


def test_systemd_understands_every_setting() -> None:
    done = subprocess.run(["systemd-analyze", "verify", "--man=no", UNIT], capture_output=True, text=True)
    complaints = [line for line in done.stderr.splitlines() if "redirectd.service" in line]
    assert [line for line in complaints if "is not executable" not in line] == []  # it is not installed here


def test_it_is_as_well_shut_in_as_the_documentation_says() -> None:
    argv = ["systemd-analyze", "security", "--offline=true", UNIT]
    said = subprocess.run(argv, capture_output=True, text=True).stdout
    (score,) = re.findall(r"Overall exposure level for redirectd.service: (\d+\.\d)", said)
    (documented,) = re.findall(r"gives (\d+\.\d) \(", " ".join((ROOT / "docs" / "packaging.md").read_text().split()))
    assert float(score) <= float(documented) + OTHER_VERSION


def test_it_is_started_until_it_starts_but_not_with_a_wrong_configuration() -> None:
    unit = read(UNIT.read_text())
    assert (unit["StartLimitIntervalSec"], unit["Restart"], unit["RestartPreventExitStatus"]) == (
        "0",
        "on-failure",
        "2",
    )


def test_it_may_take_the_priority_that_the_daemon_wants() -> None:
    """CAP_SYS_NICE, which is for all processes, it does not get."""
    unit = read(UNIT.read_text())
    assert int(unit["LimitNICE"]) == NICE
    assert "CAP_SYS_NICE" not in unit["CapabilityBoundingSet"]


def test_its_folders_are_those_of_the_daemon() -> None:
    unit = read(UNIT.read_text())
    assert f"/var/lib/{unit['StateDirectory']}" == str(STATE_DIRECTORY)
    assert unit["RuntimeDirectory"] == "redirectctl"

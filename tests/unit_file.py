"""What can be had of systemd/redirectd.service without systemd."""

from __future__ import annotations

# PR_SET_MDWE of prctl(2) is as strict as MemoryDenyWriteExecute=.
NO_NEW_CODE = """
import ctypes, os, sys
if ctypes.CDLL(None).prctl(65, 1, 0, 0, 0) != 0:
    print("this kernel cannot deny writable code", file=sys.stderr)  # Linux 6.3
os.execvp(sys.argv[1], sys.argv[1:])
"""


def read(text: str) -> dict[str, str]:
    """The settings of a unit file; of those given twice the last."""
    lines = (line for line in text.splitlines() if "=" in line and not line.startswith("#"))
    return dict(line.split("=", 1) for line in lines)


def confine(unit: dict[str, str], python: str, command: list[str]) -> list[str]:
    """The command with the capabilities that the unit leaves it, no new privileges and no writable code."""
    assert unit["NoNewPrivileges"] == unit["MemoryDenyWriteExecute"] == "yes"
    kept = ",".join("+" + name.removeprefix("CAP_").lower() for name in unit["CapabilityBoundingSet"].split())
    setpriv = ["setpriv", "--no-new-privs", "--inh-caps=-all", f"--bounding-set=-all,{kept}"]
    return [*setpriv, python, "-c", NO_NEW_CODE, *command]

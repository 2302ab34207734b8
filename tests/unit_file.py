"""What can be had of systemd/redirectd.service without systemd as the first process."""

from __future__ import annotations

import ctypes
import errno
import shutil
import subprocess
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from functools import cache

# PR_SET_MDWE of prctl(2) is as strict as MemoryDenyWriteExecute=.  The filter (hexadecimal) comes last: it may forbid
# what is done here.
CONFINED = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
if libc.prctl(65, 1, 0, 0, 0) != 0:
    print("this kernel cannot deny writable code", file=sys.stderr)  # Linux 6.3
code = bytes.fromhex(sys.argv[1])
class Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("code", ctypes.c_char_p))
if code and libc.prctl(22, 2, ctypes.byref(Program(len(code) // 8, code)), 0, 0) != 0:  # PR_SET_SECCOMP
    sys.exit(f"seccomp: {os.strerror(ctypes.get_errno())}")
os.execvp(sys.argv[2], sys.argv[2:])
"""
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000  # seccomp(2)


def read(text: str) -> dict[str, str]:
    """The settings of a unit file; of those given twice the last."""
    lines = (line for line in text.splitlines() if "=" in line and not line.startswith("#"))
    return dict(line.split("=", 1) for line in lines)


def confine(unit: dict[str, str], python: str, command: list[str], *, code: bytes | None = None) -> list[str]:
    """The command with the capabilities and system calls that the unit leaves it, no new privileges, no writable code.

    ``code``: another filter of system calls.  Where systemd or libseccomp is not installed there is none.
    """
    assert unit["NoNewPrivileges"] == unit["MemoryDenyWriteExecute"] == "yes"
    kept = ",".join("+" + name.removeprefix("CAP_").lower() for name in unit["CapabilityBoundingSet"].split())
    setpriv = ["setpriv", "--no-new-privs", "--inh-caps=-all", f"--bounding-set=-all,{kept}"]
    if code is None and not without_filter():
        assert unit["SystemCallErrorNumber"] == "EPERM"
        code = filter_of(unit["SystemCallFilter"])
    return [*setpriv, python, "-c", CONFINED, (code or b"").hex(), *command]


@cache
def without_filter() -> str:
    """Why the unit's SystemCallFilter= cannot be had; empty: it can."""
    if shutil.which("systemd-analyze") is None:
        return "systemd is not installed"
    return "" if _libseccomp() is not None else "libseccomp is not installed"


@cache
def filter_of(setting: str) -> bytes:
    """The program that systemd makes of a list of what is allowed: everything else that it knows is EPERM, and what it
    does not know does not exist (`seccomp_load_syscall_filter_set_raw`)."""
    library = _libseccomp()
    assert library is not None
    allowed = _expand(setting.split()) | _expand(["@default"])
    context = ctypes.c_void_p(library.seccomp_init(_ERRNO | errno.ENOSYS))
    for name in sorted(_expand(["@known"]) | allowed):
        number = library.seccomp_syscall_resolve_name(name.encode())
        if number >= 0:  # else it is of another architecture
            action = _ALLOW if name in allowed else _ERRNO | errno.EPERM
            assert library.seccomp_rule_add_array(context, ctypes.c_uint32(action), number, 0, None) == 0
    with tempfile.TemporaryFile() as file:
        assert library.seccomp_export_bpf(context, file.fileno()) == 0
        library.seccomp_release(context)
        file.seek(0)
        return file.read()


def _expand(words: Iterable[str]) -> set[str]:
    """Names of system calls; ``@SET`` stands for those of a set."""
    names: set[str] = set()
    for word in words:
        names |= _of_set(word) if word.startswith("@") else {word}
    return names


@cache
def _of_set(name: str) -> set[str]:
    argv = ["systemd-analyze", "--no-pager", "syscall-filter", name]
    lines = subprocess.run(argv, capture_output=True, text=True, check=True).stdout.splitlines()
    return _expand(line.strip() for line in lines[1:] if line.strip() and not line.strip().startswith("#"))


def _libseccomp() -> ctypes.CDLL | None:
    with suppress(OSError):
        library = ctypes.CDLL("libseccomp.so.2")
        library.seccomp_init.restype = ctypes.c_void_p
        return library
    return None

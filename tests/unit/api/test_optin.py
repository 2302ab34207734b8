import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from redirectctl.api import optin
from redirectctl.api.optin import OptInError, opt_in

HELLO = b'{"type":"hello","version":"0.1.0","api":1}\n'


def test_opted_in(scripted: Callable[..., str]):
    opt_in(scripted(before=HELLO, after=b'{"type":"opted-in"}\n'))


@pytest.mark.parametrize(
    ("before", "after", "why"),
    [
        (
            HELLO,
            b'{"type":"error","code":"failed","what":"opt-in","why":"no cgroup2","hint":"mount it"}\n',
            "no cgroup2; mount it",
        ),
        (HELLO, b'{"type":"error","code":"failed","what":"opt-in","why":"no cgroup2","hint":""}\n', "no cgroup2"),
        (HELLO, b'{"type":"status"}\n', "the daemon's answer is not understood"),
        (HELLO, b"[]\n", "the daemon's answer is not understood"),
        (HELLO, b"\xff\n", "the daemon's answer is not understood"),
        (HELLO, b"[" * 50000 + b"\n", "the daemon's answer is not understood"),
        (b"SSH-2.0-OpenSSH\r\n", b"", "the daemon's answer is not understood"),
        (b"x" * 100_000, b"", "the daemon's answer is not understood"),
        (b'{"type":"hello","version":"9","api":2}\n', b"", "the daemon is of another version: install the same"),
        (HELLO, b"", "closed the connection without an answer"),
        (b'{"type":"hel', b"", "closed the connection without an answer"),
    ],
)
def test_refusals(scripted: Callable[..., str], before: bytes, after: bytes, why: str):
    with pytest.raises(OptInError) as caught:
        opt_in(scripted(before=before, after=after))
    assert why in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("before", [b"", HELLO, b'{"type":'])
def test_a_daemon_that_hangs(scripted: Callable[..., str], before: bytes):
    with pytest.raises(OptInError, match=r"did not answer within 0\.05 s"):
        opt_in(scripted(before=before, hang=True), timeout=0.05)


def test_no_daemon(tmp_path: Path):
    with pytest.raises(OptInError, match=r"cannot reach the daemon on .*/none: no daemon listens there; `systemctl "):
        opt_in(str(tmp_path / "none"))
    with pytest.raises(OptInError, match="AF_UNIX path too long"):
        opt_in("x" * 200)


def test_where_the_socket_is(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv(optin.SOCKET_VARIABLE, raising=False)
    assert optin.socket_path() == "/run/redirectctl/redirectd.sock"
    monkeypatch.setenv(optin.SOCKET_VARIABLE, "")
    assert optin.socket_path() == "/run/redirectctl/redirectd.sock"
    monkeypatch.setenv(optin.SOCKET_VARIABLE, "/e")
    assert optin.socket_path() == "/e"
    assert optin.socket_path("/o") == "/o"


def test_it_does_not_import_what_is_slow():
    program = "import sys; before = set(sys.modules); import redirectctl.api.optin; print(*(set(sys.modules) - before))"
    done = subprocess.run(
        [sys.executable, "-S", "-c", program], capture_output=True, text=True, env={"PYTHONPATH": ":".join(sys.path)}
    )
    imported = set(done.stdout.split())
    assert "redirectctl.api.optin" in imported
    assert not imported & {"msgspec", "typing", "asyncio", "argparse", "dataclasses", "redirectctl.api.schema"}

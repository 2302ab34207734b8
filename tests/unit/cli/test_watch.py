"""redirectctl status --watch, and redirectctl tui where there is nothing to show it on."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from typing import Any

import msgspec
import pexpect
import pytest

from redirectctl.api import schema
from redirectctl.api.schema import Connection, ConnectionState, PathName, Peer, PeerState, Status
from redirectctl.cli import watch
from redirectctl.cli.main import main

PROGRAM = [sys.executable, "-m", "redirectctl.cli.main"]
ONE = Connection(
    id="c0ffee01", state=ConnectionState.SHORT, path=PathName.ORIGINAL, local="192.0.2.1:40000",
    remote="198.51.100.7:22", wire_local="192.0.2.1:40000", wire_remote="198.51.100.7:22", age=2.0, peer=None, pid=4711,
    command="ssh host", moves=0, integrity=False, suspended_for=None, reason=None,
)  # fmt: skip
PEER = Peer(
    fingerprint="SHA256:abc", name=None, state=PeerState.PENDING, addresses=["198.51.100.7"], first_seen=1.0,
    last_contact=2.0, connections=0,
)  # fmt: skip
STATUS = Status(
    version="0.1.0", uptime=1.0, identity="SHA256:own", addresses=["192.0.2.1"], control_port=7747, connections={},
    peers=0, pid=99,
)  # fmt: skip


def moment(listed: list[Connection], peers: list[Peer] | None = None, **status: Any) -> dict[str, Any]:
    """The daemon's answers at one moment."""
    return {
        "status": schema.StatusReply(msgspec.structs.replace(STATUS, **status)),
        "connections": schema.ConnectionsReply(listed),
        "peers": schema.PeersReply(peers or []),
    }


def like(connection: Connection, **changes: Any) -> Connection:
    return msgspec.structs.replace(connection, **changes)


Watched = Callable[..., list[str]]


@pytest.fixture
def watched(daemon: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Watched:
    """What is printed while the daemon says one thing after the other; a function is called between two looks."""

    def run(*moments: dict[str, Any] | Callable[[], None], options: tuple[str, ...] = ()) -> list[str]:
        left = list(moments)

        def turn() -> None:
            if not left:
                raise KeyboardInterrupt
            following = left.pop(0)
            if callable(following):
                following()
            else:
                daemon.replies.update(following)

        turn()
        monkeypatch.setattr(watch, "_pause", turn)
        assert main(("status", "--watch", *options)) == 130
        return capsys.readouterr().out.splitlines()

    return run


def test_each_change_is_said_once(watched: Watched):
    protected = like(ONE, state=ConnectionState.PROTECTED, age=12.0)
    suspended = like(protected, state=ConnectionState.SUSPENDED, suspended_for=7.0)
    moved = like(protected, path=PathName.REWRITTEN, wire_local="203.0.113.5:40000", moves=1)
    lines = watched(
        moment([ONE], [PEER]),
        moment([like(ONE, age=3.0)], [PEER]),
        moment([protected], [like_peer(PeerState.APPROVED)]),
        moment([suspended], [like_peer(PeerState.APPROVED)], addresses=[]),
        moment([moved], [like_peer(PeerState.APPROVED)], addresses=["203.0.113.5"]),
    )
    assert [line.split("  ", 1)[1] for line in lines if line[2] == line[5] == ":"] == [
        "addresses: 192.0.2.1",
        "first contact: 198.51.100.7 waits for your decision; compare SHA256:abc with `redirectctl identity` there, "
        "then `redirectctl approve PEER` or `redirectctl reject PEER`",
        "ssh host with 198.51.100.7:22: short",
        "peer 198.51.100.7: approved",
        "ssh host with 198.51.100.7:22: protected",
        "addresses: none",
        "ssh host with 198.51.100.7:22: suspended",
        "addresses: 203.0.113.5",
        "ssh host with 198.51.100.7:22: protected, back after 7.0s",
        "ssh host with 198.51.100.7:22: moved, now 203.0.113.5:40000 to 198.51.100.7:22",
    ]


def test_what_happens_to_many_is_one_line(watched: Watched):
    many = [like(ONE, id=f"{n:08x}") for n in range(1000)]
    suspended = [like(c, state=ConnectionState.SUSPENDED) for c in many]
    lines = watched(moment([]), moment(many), moment(suspended))
    assert [line.split("  ", 1)[1] for line in lines[-2:]] == ["1000 connections: short", "1000 connections: suspended"]


def test_a_changed_key_is_a_warning(watched: Watched):
    lines = watched(moment([], []), moment([], [like_peer(PeerState.CHANGED)]))
    assert "WARNING: the key of 198.51.100.7 has changed to SHA256:abc" in lines[-1]


def test_text_of_others_does_not_steer_the_terminal(watched: Watched):
    (line,) = [line for line in watched(moment([like(ONE, command="\x1b[2Jx")])) if "with" in line]
    assert "\\x1b[2Jx with" in line


def test_json_is_a_document_for_each_change(watched: Watched):
    lines = watched(
        moment([]), moment([], uptime=2.0), moment([ONE], connections={ConnectionState.SHORT: 1}), options=("--json",)
    )
    assert [json.loads(line)["connections"] for line in lines] == [{}, {"short": 1}]


def test_it_outlives_the_daemon(daemon: Any, watched: Watched):
    protected = like(ONE, state=ConnectionState.PROTECTED)
    lines = watched(moment([ONE]), daemon.stop, daemon.start, moment([protected]))
    assert lines[-1].endswith("ssh host with 198.51.100.7:22: protected")


def test_without_a_daemon(monkeypatch: pytest.MonkeyPatch, tmp_path: Any, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setenv("REDIRECTCTL_SOCKET", str(tmp_path / "none"))
    assert main(("status", "--watch")) == 3
    assert capsys.readouterr().err.count("\n") == 1


def test_the_terminal_ui_wants_a_terminal(daemon: Any, capsys: pytest.CaptureFixture[str]):
    assert main(("tui",)) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == ("redirectctl: tui: stdin and stdout are not a terminal; use `redirectctl status --watch`\n")
    assert main(("tui", "--json")) == 2


@pytest.mark.parametrize(
    ("term", "code", "said"),
    [("xterm", 3, "none: no daemon listens there; `systemctl start redirectd`"), ("dumb", 1, "cannot move its cursor")],
)
def test_the_terminal_ui_wants_a_daemon(tmp_path: Any, term: str, code: int, said: str):
    environment = os.environ | {"REDIRECTCTL_SOCKET": str(tmp_path / "none"), "TERM": term}
    child = pexpect.spawn(PROGRAM[0], [*PROGRAM[1:], "tui"], env=environment, encoding="utf-8", timeout=30)
    printed = child.read()
    child.close()
    assert child.exitstatus == code
    assert said in printed
    assert printed.count("\n") == 1
    assert "\x1b" not in printed


def like_peer(state: PeerState) -> Peer:
    return msgspec.structs.replace(PEER, state=state)

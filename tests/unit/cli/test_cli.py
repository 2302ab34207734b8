import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pexpect
import pytest

from redirectctl import __version__
from redirectctl.api import schema
from redirectctl.api.schema import (
    Connection,
    ConnectionState,
    ErrorCode,
    EventName,
    PathName,
    Peer,
    PeerState,
    RequestError,
    Status,
)
from redirectctl.cli import events as events_command
from redirectctl.cli.main import COMMANDS, main

PROGRAM = [sys.executable, "-m", "redirectctl.cli.main"]

ONE = Connection(
    id="c0ffee01",
    state=ConnectionState.PROTECTED,
    path=PathName.ORIGINAL,
    local="192.0.2.1:40000",
    remote="198.51.100.7:22",
    wire_local="192.0.2.1:40000",
    wire_remote="198.51.100.7:22",
    age=75.0,
    peer="SHA256:abc",
    pid=4711,
    command="ssh host",
    moves=0,
    integrity=False,
    suspended_for=None,
    reason=None,
)
TWO = msgspec.structs.replace(
    ONE,
    id="c0ffee02",
    state=ConnectionState.REFUSED,
    path=PathName.REWRITTEN,
    wire_local="203.0.113.9:40000",
    age=200000.0,
    pid=None,
    command=None,
    moves=3,
    reason="peer rejected",
)
PEER = Peer(
    fingerprint="SHA256:abc",
    name="büro",
    state=PeerState.APPROVED,
    addresses=["198.51.100.7", "2001:db8::7"],
    first_seen=1_600_000_000.0,
    last_contact=1_700_000_000.0,
    connections=2,
)
STATUS = Status(
    version="0.1.0",
    uptime=3725.0,
    identity="SHA256:own",
    addresses=["192.0.2.1", "2001:db8::1"],
    control_port=7747,
    connections={ConnectionState.PROTECTED: 2, ConnectionState.SHORT: 0, ConnectionState.PENDING: 1},
    peers=1,
    pid=99,
)


@dataclass
class Outcome:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        assert self.err == ""
        assert self.out.count("\n") == 1
        return json.loads(self.out)


class Runner:
    def __init__(self, capture: pytest.CaptureFixture[str]) -> None:
        self._capture = capture

    def __call__(self, *arguments: str) -> Outcome:
        try:
            code = main(arguments)
        except SystemExit as end:  # argparse: --help, --version, usage
            code = end.code if isinstance(end.code, int) else 99
        captured = self._capture.readouterr()
        return Outcome(code, captured.out, captured.err)


@pytest.fixture
def ctl(capsys: pytest.CaptureFixture[str]) -> Runner:
    return Runner(capsys)


@pytest.fixture(autouse=True)
def _utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


class TestCommands:
    def test_status(self, daemon: Any, ctl: Runner):
        daemon.replies["status"] = schema.StatusReply(STATUS)
        assert ctl("status").out == (
            "redirectd     0.1.0, process 99, up 1h 2m\n"
            "identity      SHA256:own\n"
            "addresses     192.0.2.1, 2001:db8::1\n"
            "control port  UDP 7747\n"
            "connections   2 protected, 1 pending\n"
            "peers         1\n"
        )
        assert ctl("status", "--json").json == {
            "version": "0.1.0",
            "uptime": 3725.0,
            "identity": "SHA256:own",
            "addresses": ["192.0.2.1", "2001:db8::1"],
            "control_port": 7747,
            "connections": {"protected": 2, "short": 0, "pending": 1},
            "peers": 1,
            "pid": 99,
        }

    def test_status_says_who_waits(self, daemon: Any, ctl: Runner):
        waiting = [f"SHA256:{n}" for n in range(5)]
        daemon.replies["status"] = schema.StatusReply(msgspec.structs.replace(STATUS, waiting=waiting))
        lines = ctl("status").out.splitlines()
        assert lines[-4] == (
            "waiting       SHA256:0 waits for you: compare with `redirectctl identity` there,"
            " then `redirectctl approve PEER` (or reject)"
        )
        assert lines[-1].strip() == "and 2 more: `redirectctl peers`"
        assert ctl("status", "--json").json["waiting"] == waiting

    @pytest.mark.parametrize("name", ["connections", "conns"])
    def test_connections(self, daemon: Any, ctl: Runner, name: str):
        daemon.replies["connections"] = schema.ConnectionsReply([ONE, TWO])
        head, one, two = ctl(name).out.splitlines()
        assert head.split() == [
            "ID",
            "STATE",
            "PATH",
            "LOCAL",
            "REMOTE",
            "NOW",
            "AGE",
            "MOVES",
            "PID",
            "COMMAND",
            "NOTE",
        ]
        assert one.split() == [
            "c0ffee01",
            "protected",
            "original",
            "192.0.2.1:40000",
            "198.51.100.7:22",
            "1m",
            "15s",
            "0",
            "4711",
            "ssh",
            "host",
        ]
        assert two.split() == [
            "c0ffee02",
            "refused",
            "rewritten",
            "192.0.2.1:40000",
            "198.51.100.7:22",
            "203.0.113.9:40000-198.51.100.7:22",
            "2d",
            "7h",
            "3",
            "peer",
            "rejected",
        ]
        assert head.index("REMOTE") == one.index("198.51.100.7:22") == two.index("198.51.100.7:22")
        assert head.index("AGE") + 3 == one.index("1m 15s") + 6 == two.index("2d 7h") + 5
        assert head.index("NOTE") == two.index("peer rejected")
        answer = ctl(name, "--json").json
        assert answer == [msgspec.to_builtins(ONE), msgspec.to_builtins(TWO)]
        assert answer[0]["pid"] == 4711
        assert answer[1]["command"] is None

    def test_columns_that_say_nothing_are_left_out(self, daemon: Any, ctl: Runner):
        daemon.replies["connections"] = schema.ConnectionsReply([ONE])
        assert ctl("conns").out == (
            "ID        STATE      PATH      LOCAL            REMOTE              AGE  MOVES   PID  COMMAND\n"
            "c0ffee01  protected  original  192.0.2.1:40000  198.51.100.7:22  1m 15s      0  4711  ssh host\n"
        )
        daemon.replies["connections"] = schema.ConnectionsReply([])
        assert ctl("conns").out == "no connections\n"
        assert ctl("conns", "--json").json == []

    def test_peers(self, daemon: Any, ctl: Runner):
        daemon.replies["peers"] = schema.PeersReply([PEER])
        assert ctl("peers").out == (
            "FINGERPRINT  NAME  STATE     CONNECTIONS  LAST CONTACT         ADDRESSES\n"
            "SHA256:abc   büro  approved            2  2023-11-14 22:13:20  198.51.100.7, 2001:db8::7\n"
        )
        assert ctl("peers", "--json").json == [msgspec.to_builtins(PEER)]
        daemon.replies["peers"] = schema.PeersReply([])
        assert ctl("peers").out == "no peers\n"

    def test_peers_are_called_what_commands_call_them_or_in_quotes_what_they_say(self, daemon: Any, ctl: Runner):
        says = msgspec.structs.replace(PEER, name=None, fingerprint="SHA256:other", says="lap\x1btop")
        blank = msgspec.structs.replace(PEER, name="my box", fingerprint="SHA256:third")
        daemon.replies["peers"] = schema.PeersReply([PEER, says, blank])
        lines = ctl("peers").out.splitlines()
        assert 'SHA256:other  "lap\\x1btop"  approved' in lines[2]
        assert ctl("peers", "--words").out.split("\n") == ["abc", "other", "third", "büro", ""]
        daemon.replies["approve"] = schema.PeerReply(says)
        assert ctl("approve", "other").out == 'approved SHA256:other ("lap\\x1btop" at 198.51.100.7)\n'

    def test_identity(self, daemon: Any, ctl: Runner):
        daemon.replies["identity"] = schema.IdentityReply("SHA256:own", "+--+\n|.o|\n+--+\n")
        assert ctl("identity").out == "SHA256:own\n+--+\n|.o|\n+--+\n"
        assert ctl("identity", "--json").json == {"fingerprint": "SHA256:own", "picture": "+--+\n|.o|\n+--+\n"}

    @pytest.mark.parametrize(
        ("arguments", "request_", "said"),
        [
            (("approve", "SHA256:a"), schema.ApproveRequest("SHA256:a"), "approved SHA256:abc (büro)\n"),
            (("approve", "a", "--name", "n"), schema.ApproveRequest("a", "n"), "approved SHA256:abc (büro)\n"),
            (("reject", "büro"), schema.RejectRequest("büro"), "rejected SHA256:abc (büro)\n"),
            (("forget", "büro", "--yes"), schema.ForgetRequest("büro"), "forgot SHA256:abc (büro)\n"),
        ],
    )
    def test_decisions(self, daemon: Any, ctl: Runner, arguments: tuple[str, ...], request_: Any, said: str):
        daemon.replies[arguments[0]] = schema.PeerReply(PEER)
        assert ctl(*arguments) == Outcome(0, said, "")
        assert daemon.asked == [request_]
        assert ctl(*arguments, "--json").json == msgspec.to_builtins(PEER)

    def test_forget_says_how_many_connections_lose_protection(self, daemon: Any, ctl: Runner):
        daemon.replies["peer"] = daemon.replies["forget"] = schema.PeerReply(PEER)
        answer = ctl("forget", "2001:db8::7")  # no terminal: nobody can be asked
        assert answer.code == 1
        assert answer.err == (
            "redirectctl: forget SHA256:abc (büro): 2 open connections with it will no longer be protected;"
            " say --yes if that is meant\n"
        )
        assert daemon.asked == [schema.PeerRequest("2001:db8::7")], "nothing was forgotten"
        idle = msgspec.structs.replace(PEER, connections=0)
        daemon.replies["peer"] = daemon.replies["forget"] = schema.PeerReply(idle)
        assert ctl("forget", "2001:db8::7") == Outcome(0, "forgot SHA256:abc (büro)\n", "")
        assert daemon.asked[-1] == schema.ForgetRequest("SHA256:abc")

    @pytest.mark.parametrize(("typed", "forgotten"), [("y", True), ("yes", True), ("n", False), ("", False)])
    def test_forget_asks(self, daemon: Any, ctl: Runner, monkeypatch: pytest.MonkeyPatch, typed: str, forgotten: bool):
        class Terminal(io.StringIO):
            def isatty(self) -> bool:
                return True

        monkeypatch.setattr("sys.stdin", Terminal(typed + "\n"))
        daemon.replies["peer"] = daemon.replies["forget"] = schema.PeerReply(PEER)
        answer = ctl("forget", "büro")
        assert answer.code == (0 if forgotten else 1)
        assert "SHA256:abc (büro): 2 open connections with it will no longer be protected" in answer.err
        assert (schema.ForgetRequest("SHA256:abc") in daemon.asked) == forgotten

    @pytest.mark.parametrize(
        ("name", "kind", "said"),
        [("release", schema.ReleaseRequest, "released"), ("kill", schema.KillRequest, "closed")],
    )
    def test_release_and_kill(self, daemon: Any, ctl: Runner, name: str, kind: Any, said: str):
        daemon.replies[name] = schema.ConnectionReply(ONE)
        assert ctl(name, "c0").out == f"{said} c0ffee01 (192.0.2.1:40000-198.51.100.7:22)\n"
        assert daemon.asked == [kind("c0")]
        assert ctl(name, "c0", "--json").json == msgspec.to_builtins(ONE)

    def test_protect(self, daemon: Any, ctl: Runner):
        daemon.replies["protect"] = schema.ConnectionsReply([ONE])
        assert "c0ffee01" in ctl("protect", "4711").out
        assert ctl("protect", "[::1]:5-[::1]:6", "--json").json == [msgspec.to_builtins(ONE)]
        assert daemon.asked == [schema.ProtectRequest("4711"), schema.ProtectRequest("[::1]:5-[::1]:6")]

    def test_announce(self, daemon: Any, ctl: Runner):
        daemon.replies["announce"] = schema.AnnounceReply(1)
        assert ctl("announce").out == "announced this host's addresses to 1 peer\n"
        assert ctl("announce", "--json").json == {"peers": 1}

    def test_retry(self, daemon: Any, ctl: Runner):
        daemon.replies["retry"] = schema.RetryReply(["192.0.2.7", "198.51.100.7"])
        assert ctl("retry").out == "asked again: 192.0.2.7, 198.51.100.7\n"
        assert ctl("retry", "server", "--json").json == {"hosts": ["192.0.2.7", "198.51.100.7"]}
        assert daemon.asked == [schema.RetryRequest(), schema.RetryRequest("server")]
        daemon.replies["retry"] = schema.RetryReply([])
        assert ctl("retry").out == "no connection waits for a host that did not answer\n"

    def test_config_check(self, tmp_path: Path, ctl: Runner):
        file = tmp_path / "r.toml"
        file.write_text("[control]\nport = 7000\n")
        assert ctl("config", "check", str(file)).out == f"{file}: valid\n"
        answer = ctl("config", "check", str(file), "--json").json
        assert answer["valid"] is True
        assert answer["config"]["control"]["port"] == 7000
        file.write_text("[control]\nprot = 7000\n")
        assert ctl("config", "check", str(file)) == Outcome(
            1,
            "",
            f"redirectctl: {file}:2: control.prot: unknown key; did you mean port?"
            " keys of [control] are port, listen\n",
        )
        assert ctl("config", "check", str(tmp_path / "none")).code == 1

    def test_config_check_of_the_one_in_use(self, daemon: Any, tmp_path: Path, ctl: Runner, monkeypatch: Any):
        status = schema.Status(
            version="1",
            uptime=1.0,
            identity="SHA256:x",
            addresses=[],
            control_port=7747,
            connections={},
            peers=0,
            pid=1,
        )
        used, usual = tmp_path / "used.toml", tmp_path / "usual.toml"
        used.write_text("[control]\nport = 7000\n")
        monkeypatch.setattr("redirectctl.config.DEFAULT_FILE", usual)
        monkeypatch.setattr("redirectctl.cli.config.DEFAULT_FILE", usual)
        daemon.replies["status"] = schema.StatusReply(msgspec.structs.replace(status, config=str(used)))
        assert ctl("config", "check").out == f"{used}: valid\n"
        daemon.replies["status"] = schema.StatusReply(status)
        assert ctl("config", "check").out == f"{usual}: there is none, so the defaults apply\n"
        usual.write_text("[protect]\nforget_after = '1d'\n")
        assert ctl("config", "check").err == (
            f"redirectctl: {usual}:2: protect.forget_after: unknown key; it belongs in [trust]\n"
        )
        monkeypatch.setenv("REDIRECTCTL_SOCKET", str(tmp_path / "none"))
        assert ctl("config", "check", "--json").code == 1
        usual.write_text("")
        assert ctl("config", "check", "--json").json["file"] == str(usual)


class TestEvents:
    def test_log(self, daemon: Any, ctl: Runner):
        daemon.record(EventName.DAEMON_STARTED)
        daemon.time += 10
        daemon.record(EventName.MOVE_FINISHED, peer="SHA256:abc", duration=0.0123, connections=3, detail="two words")
        assert ctl("events", "--verbose").out == (
            "2023-11-14 22:13:20.250  daemon.started\n"
            "2023-11-14 22:13:30.250  move.finished           peer=SHA256:abc duration=12ms connections=3"
            ' detail="two words"\n'
        )
        done = ctl("events", "--json", "--since", "1700000005")
        assert [json.loads(line) for line in done.out.splitlines()] == [
            {
                "time": 1_700_000_010.25,
                "event": "move.finished",
                "peer": "SHA256:abc",
                "duration": 0.0123,
                "connections": 3,
                "detail": "two words",
            }
        ]
        assert ctl("events", "--since", "5m") == Outcome(0, "", "")

    def test_one_line_a_story(self, daemon: Any, ctl: Runner):
        daemon.replies["peers"] = schema.PeersReply([PEER])
        for event, fields in (
            (EventName.ADDRESS_REMOVED, {"address": "192.0.2.1"}),
            (EventName.CONNECTION_SUSPENDED, {"connection": "c0", "peer": "SHA256:abc", "reason": "no-path"}),
            (EventName.ADDRESS_ADDED, {"address": "192.0.2.2", "interface": "wlan0"}),
            (EventName.MOVE_STARTED, {"peer": "SHA256:abc", "reason": "address-changed", "epoch": 1}),
            (EventName.CONNECTION_RESUMED, {"connection": "c0", "peer": "SHA256:abc", "duration": 0.2}),
            (
                EventName.MOVE_FINISHED,
                {"peer": "SHA256:abc", "address": "192.0.2.2", "previous": "192.0.2.1", "gap": 0.25, "connections": 1},
            ),
            (EventName.PATH_CHANGED, {"connection": "c0", "peer": "SHA256:abc"}),
        ):
            daemon.record(event, **fields)
        assert ctl("events").out == (
            "2023-11-14 22:13:20  moved to 192.0.2.2 (wlan0) from 192.0.2.1; 1 connection with büro; silent for 250ms\n"
        )
        assert len(ctl("events", "--json").out.splitlines()) == len(ctl("events", "-v").out.splitlines()) == 7

    def test_a_loss_that_is_not_over_is_told_so(self, daemon: Any, ctl: Runner):
        daemon.replies["peers"] = RequestError("peers", "not now")
        fields = {"connection": "c0", "peer": "SHA256:ab\x1bc", "reason": "no-path"}
        daemon.record(EventName.CONNECTION_SUSPENDED, **fields)
        assert ctl("events").out == ("2023-11-14 22:13:20  no path; 1 connection with SHA256:ab\\x1bc held; not over\n")

    def test_following_tells_when_it_is_over(self, daemon: Any):
        daemon.replies["peers"] = schema.PeersReply([PEER])
        daemon.time = time.time()
        with subprocess.Popen(
            [*PROGRAM, "events", "--follow", "--since", "1s"], stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None
            daemon.record(EventName.CONNECTION_SUSPENDED, connection="c0", peer="SHA256:abc", reason="no-path")
            assert process.stdout.readline().endswith("no path; 1 connection with büro held; not over\n")
            daemon.time = time.time()
            daemon.record(EventName.CONNECTION_RESUMED, connection="c0", peer="SHA256:abc", duration=4.0)
            assert process.stdout.readline().endswith(
                "the path was lost, and is back; 1 connection with büro; silent for 4.0s\n"
            )
            process.send_signal(signal.SIGINT)
            assert process.wait() == 130

    def test_since_so_long_ago(self, daemon: Any, ctl: Runner):
        daemon.time = time.time() - 300
        daemon.record(EventName.DAEMON_STARTED)
        assert ctl("events", "--since", "4m").out == ""
        assert ctl("events", "--since", "6m").out.endswith("redirectd started\n")

    def test_following_outlives_the_daemon(self, daemon: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        daemon.time = 1000.0
        daemon.record(EventName.DAEMON_STARTED)
        with subprocess.Popen(
            [*PROGRAM, "events", "--follow", "--since", "0", "--json"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            assert json.loads(process.stdout.readline()) == {"time": 1000.0, "event": "daemon.started"}
            daemon.record(EventName.RST_HELD)  # of the same moment
            assert json.loads(process.stdout.readline())["event"] == "rst.held"
            daemon.stop()
            assert process.stderr.readline() == (
                "redirectctl: events: the daemon ended the connection; waiting for the next one\n"
            )
            daemon.time = 1001.0
            daemon.record(EventName.ADDRESS_ADDED)  # while nobody listens: not to be missed
            daemon.start()
            assert json.loads(process.stdout.readline()) == {"time": 1001.0, "event": "address.added"}
            assert process.stderr.readline() == "redirectctl: events: the daemon is back\n"
            process.send_signal(signal.SIGINT)
            assert process.wait() == 130
            assert (process.stdout.read(), process.stderr.read()) == ("", "")

    def test_a_daemon_that_was_never_there(self, tmp_path: Path, ctl: Runner):
        assert ctl("events", "--follow", "--socket", str(tmp_path / "none")).code == 3

    def test_since_of_the_restart_is_when_following_began(
        self, daemon: Any, ctl: Runner, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ):
        asked: list[float | None] = []

        def events(client: object, *, follow: bool, since: float | None) -> Iterator[schema.Event]:
            asked.append(since)
            if len(asked) == 3:
                raise RequestError("events", "enough")
            if len(asked) == 2:
                yield schema.Event(time=5e9, event=EventName.RST_HELD)
            raise events_command.UnreachableError("x", "stopped", "wait")

        monkeypatch.setattr("redirectctl.api.client.Client.events", events)
        monkeypatch.setattr(events_command, "RETRY", 0)
        before = time.time()
        assert ctl("events", "--follow").code == 1
        first, second, third = asked
        assert first is None
        assert second is not None
        assert before <= second <= time.time()
        assert third == 5e9


class TestErrors:
    @pytest.mark.parametrize(("code", "status"), [(ErrorCode.FAILED, 1), (ErrorCode.USAGE, 2), (ErrorCode.DENIED, 4)])
    def test_the_daemon_says_no(self, daemon: Any, ctl: Runner, code: ErrorCode, status: int):
        daemon.replies["approve"] = RequestError("approve", "no such peer\x1b[2J", "see redirectctl peers", code)
        assert ctl("approve", "x", "--json") == Outcome(
            status, "", "redirectctl: approve: no such peer\\x1b[2J; see redirectctl peers\n"
        )

    def test_no_daemon(self, tmp_path: Path, ctl: Runner):
        path = tmp_path / "none"
        assert ctl("--socket", str(path), "status") == Outcome(
            3,
            "",
            f"redirectctl: {path}: no daemon listens there; `systemctl start redirectd`, or name its socket with"
            " --socket\n",
        )

    @pytest.mark.parametrize("arguments", [(), ("--json",), ("--socket", "/nowhere")])
    def test_alone_it_shows_help(self, ctl: Runner, arguments: tuple[str, ...]):
        done = ctl(*arguments)
        assert (done.code, done.out) == (2, "")
        assert done.err == ctl("--help").out
        assert all(f"\n    {name} " in done.err for name in COMMANDS)

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (("--socket",), "redirectctl: argument --socket: expected one argument; see redirectctl --help\n"),
            (("approve",), "redirectctl: approve: the following arguments are required: PEER; "
             "see redirectctl approve --help\n"),
            (("status", "x\ny"), "redirectctl: unrecognized arguments: x\\ny; see redirectctl --help\n"),
            (("status", "--js"), "redirectctl: unrecognized arguments: --js; see redirectctl --help\n"),
            (("events", "--since", "tea"), "redirectctl: events: argument --since: 'tea' is neither seconds since 1970 "
             "nor a time such as 10m; see redirectctl events --help\n"),
        ],
    )  # fmt: skip
    def test_usage(self, ctl: Runner, arguments: tuple[str, ...], said: str):
        assert ctl(*arguments) == Outcome(2, "", said)

    def test_unknown_command(self, ctl: Runner):
        done = ctl("reboot")
        assert (done.code, done.out) == (2, "")
        assert done.err.startswith("redirectctl: argument COMMAND: invalid choice: 'reboot'")
        assert done.err.count("\n") == 1

    def test_broken_pipe(self, daemon: Any):
        daemon.replies["connections"] = schema.ConnectionsReply([ONE] * 5000)
        with subprocess.Popen([*PROGRAM, "conns"], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            process.stdout.readline()
            process.stdout.close()
            assert process.wait() == 141
            assert process.stderr.read() == b""


class TestOptions:
    def test_version(self, ctl: Runner):
        assert ctl("--version") == Outcome(0, f"redirectctl {__version__}\n", "")

    def test_common_options_before_and_after_the_command(self, daemon: Any, ctl: Runner, monkeypatch: Any):
        daemon.replies["announce"] = schema.AnnounceReply(1)
        monkeypatch.setenv("REDIRECTCTL_SOCKET", "/nowhere")
        path = str(daemon.socket)
        for arguments in (
            ("--socket", path, "--json", "announce"),
            ("announce", "--json", "--socket", path),
            (f"--socket={path}", "announce", "--json"),
            ("--socket", "/other", "announce", "--socket", path, "--json"),
        ):
            assert ctl(*arguments).json == {"peers": 1}

    @pytest.mark.parametrize("name", sorted(set(COMMANDS) - {"demo"}))
    def test_every_command_has_help_and_the_common_options(self, ctl: Runner, name: str):
        done = ctl(name, "--help")
        assert done.code == 0
        assert "--json" in done.out
        assert "--socket PATH" in done.out
        assert done.out.startswith(f"usage: redirectctl {name}")

    def test_only_what_is_needed_is_imported(self):
        program = "import sys; from redirectctl.cli.main import main; main(['config', 'check', '/nowhere']); "
        program += "print(*(name for name in sys.modules if name.startswith('redirectctl.')))"
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
        imported = set(done.stdout.split())
        assert "redirectctl.cli.config" in imported
        assert not {name for name in imported if name.startswith(("redirectctl.daemon", "redirectctl.lab"))}
        assert not imported & {"redirectctl.cli.demo", "redirectctl.cli.doctor", "redirectctl.cli.events"}


class TestText:
    EVIL = "a\x1b]0;owned\x07\r\n\x9b31m\u202egnp\u2028\U000e0001b"

    def test_tables_escape_what_could_steer_a_terminal(self, daemon: Any, ctl: Runner):
        daemon.replies["connections"] = schema.ConnectionsReply([msgspec.structs.replace(ONE, command=self.EVIL)])
        out = ctl("conns").out
        assert out.count("\n") == 2
        assert "a\\x1b]0;owned\\x07\\r\\n\\x9b31m\\u202egnp\\u2028\\U000e0001b" in out

    def test_json_escapes_it_too_and_means_the_same(self, daemon: Any, ctl: Runner):
        daemon.replies["peers"] = schema.PeersReply([msgspec.structs.replace(PEER, name=self.EVIL + "\x7fé")])
        done = ctl("peers", "--json")
        assert done.json[0]["name"] == self.EVIL + "\x7fé"
        assert not set(done.out) & set("\x1b\x07\r\x9b\x7f\u202e\u2028\U000e0001")
        assert "é" in done.out

    def test_picture_and_decisions_are_escaped(self, daemon: Any, ctl: Runner):
        daemon.replies["identity"] = schema.IdentityReply("SHA256:own", "+\x1b[31m+\n|x|")
        assert ctl("identity").out == "SHA256:own\n+\\x1b[31m+\n|x|\n"
        daemon.replies["approve"] = schema.PeerReply(msgspec.structs.replace(PEER, name="\x1bc"))
        assert ctl("approve", "x").out == "approved SHA256:abc (\\x1bc)\n"


class TestTerminal:
    def show(self, *arguments: str, columns: int = 200, **variables: str) -> list[str]:
        environment = {**os.environ, "TERM": "xterm", **variables}
        for name in {"NO_COLOR", "COLUMNS"} - variables.keys():
            environment.pop(name, None)
        child = pexpect.spawn(
            PROGRAM[0], [*PROGRAM[1:], *arguments], env=environment, dimensions=(24, columns), encoding="utf-8"
        )
        out = child.read()
        child.close()
        assert child.exitstatus == 0
        return str(out).splitlines()

    def test_colour(self, daemon: Any):
        daemon.replies["connections"] = schema.ConnectionsReply([ONE, TWO])
        coloured = self.show("conns")
        assert "\x1b" not in coloured[0]
        assert "\x1b[32mprotected\x1b[0m" in coloured[1]
        assert "\x1b[31mrefused\x1b[0m" in coloured[2]
        plain = self.show("conns", NO_COLOR="1")
        assert plain == [
            line.replace("\x1b[32m", "").replace("\x1b[31m", "").replace("\x1b[0m", "") for line in coloured
        ]
        assert "\x1b" not in "".join(self.show("conns", TERM="dumb"))
        assert "\x1b" not in "".join(self.show("conns", "--json"))

    def test_tables_fit_the_terminal(self, daemon: Any):
        long = msgspec.structs.replace(ONE, command="ssh 漢字 " + "x" * 300 + " server")
        daemon.replies["connections"] = schema.ConnectionsReply([long])
        for columns, variables in ((110, {}), (300, {"COLUMNS": "110"})):
            head, row = self.show("conns", columns=columns, NO_COLOR="1", **variables)
            assert row.endswith("x server")
            assert "ssh 漢字 x" in row
            assert "x…x" in row
            assert len(row) + 2 == 110  # two of its characters are two cells wide
            assert head.index("COMMAND") == row.index("ssh")

    def test_nothing_is_wider_than_the_terminal(self, daemon: Any):
        """Whatever a program is called, however much there is to note."""
        for state, reason in ((ConnectionState.REFUSED, "kernel: " + "no " * 60), (ConnectionState.PROTECTED, None)):
            for address in ("192.0.2.1:40000", "[2001:db8:1234:5678:9abc:def0:1234:5678]:40000"):
                wire = address.replace("4", "5")
                one = msgspec.structs.replace(
                    ONE, state=state, reason=reason, local=address, remote=address, wire_local=wire, wire_remote=wire,
                    command="python3 -c " + "import this; " * 30, moves=100_000, pid=4_194_304, integrity=True,
                )  # fmt: skip
                daemon.replies["connections"] = schema.ConnectionsReply([one])
                for columns in (80, 100, 160, 198):
                    lines = self.show("conns", columns=columns, NO_COLOR="1")
                    assert max(len(line) for line in lines) <= columns

    def test_what_does_not_fit_is_below_its_row(self, daemon: Any):
        moved = msgspec.structs.replace(ONE, wire_local="203.0.113.30:40000", moves=2, reason="no-path")
        daemon.replies["connections"] = schema.ConnectionsReply([moved, TWO])
        lines = self.show("conns", columns=80, NO_COLOR="1")
        assert lines[0].split() == ["ID", "STATE", "PATH", "AGE", "MOVES", "PID", "COMMAND"]
        assert lines[1].split()[:3] == ["c0ffee01", "protected", "original"]
        assert lines[2] == "  local 192.0.2.1:40000  remote 198.51.100.7:22"
        assert lines[3] == "  now 203.0.113.30:40000-198.51.100.7:22  note no-path"
        assert max(len(line) for line in lines) <= 80
        daemon.replies["peers"] = schema.PeersReply([msgspec.structs.replace(PEER, fingerprint="SHA256:" + "x" * 43)])
        head, _, *below = self.show("peers", columns=80, NO_COLOR="1")
        assert head.split() == ["FINGERPRINT", "NAME", "STATE"]
        assert below == ["  connections 2  last contact 2023-11-14 22:13:20", "  addresses 198.51.100.7, 2001:db8::7"]

    def test_tables_in_a_pipe_are_whole(self, daemon: Any, ctl: Runner, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setenv("COLUMNS", "40")
        daemon.replies["connections"] = schema.ConnectionsReply([msgspec.structs.replace(ONE, command="x" * 300)])
        assert "x" * 300 in ctl("conns").out

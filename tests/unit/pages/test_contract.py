"""What people script against: programs, options, commands, JSON keys, states, events, settings, exit codes.

These names are fixed; there may be more of them, never fewer.
"""

from __future__ import annotations

import msgspec
import pytest

from redirectctl import redirectd as daemon
from redirectctl.api import schema
from redirectctl.cli import main as ctl
from redirectctl.cli.common import ExitCode
from redirectctl.config import Config, parse
from redirectctl_wrappers import run

COMMANDS = {
    "status": [],
    "connections": [],
    "conns": [],
    "peers": [],
    "identity": [],
    "approve": ["PEER"],
    "reject": ["PEER"],
    "forget": ["PEER"],
    "protect": ["1"],
    "release": ["CONN"],
    "kill": ["CONN"],
    "announce": [],
    "retry": ["HOST"],
    "events": ["--follow", "--since", "1h"],
    "doctor": ["PEER"],
    "demo": [],
    "bench": [],
    "config": ["check", "FILE"],
    "tui": [],
}
KEYS: dict[type[msgspec.Struct], str] = {
    schema.Status: "version uptime identity addresses connections peers",
    schema.Peer: "fingerprint name state addresses first_seen last_contact connections",
    schema.Connection: "id state path local remote wire_local wire_remote age peer pid command moves integrity "
    "suspended_for reason",
    schema.Event: "time event connection peer reason duration connections",
    schema.IdentityReply: "fingerprint picture",
}
NAMES = {
    schema.ConnectionState: "short negotiating pending unsupported refused protected suspended closed",
    schema.PathName: "original rewritten tunnel settled",
    schema.PeerState: "pending approved rejected changed",
    schema.EventName: "daemon.started daemon.stopped address.added address.removed connection.found connection.long "
    "connection.protected connection.unsupported connection.refused connection.suspended connection.resumed "
    "connection.closed peer.first_contact peer.approved peer.rejected peer.key_changed move.started move.finished "
    "move.received path.changed redirect.refused packet.refused rst.held",
}
CONFIG = """
[control]
port = 7747
listen = []
[trust]
first_contact = "ask"
forget_after = "365d"
[protect]
scope = "opted-in"
ports = []
long_lived_after = "10s"
close_short_lived = true
accept_ports = []
[integrity]
mode = "off"
[path]
prefer = "auto"
leave_vpn = false
last = []
never = []
accept_from = []
[outage]
suspend_after = "10s"
give_up_after = "14d"
[rendezvous]
servers = []
serve = false
"""


@pytest.mark.parametrize("name", COMMANDS)
def test_commands_take_what_they_take(name: str) -> None:
    asked = ctl.make_parser([next(n for n, e in ctl.COMMANDS.items() if name == n or name in e.aliases)])
    for options in (["--json"], ["--socket", "/x"]):
        assert asked.parse_args([*options, name, *COMMANDS[name]])
        assert asked.parse_args([name, *options, *COMMANDS[name]])


@pytest.mark.parametrize("kind", KEYS, ids=lambda kind: kind.__name__)
def test_json_keys(kind: type[msgspec.Struct]) -> None:
    assert set(KEYS[kind].split()) <= {field.encode_name for field in msgspec.structs.fields(kind)}


@pytest.mark.parametrize("kind", NAMES, ids=lambda kind: kind.__name__)
def test_names(kind: type[schema.EventName]) -> None:
    assert set(NAMES[kind].split()) <= set(kind)


def test_settings_and_their_defaults() -> None:
    assert parse(CONFIG) == Config()


def test_exit_codes() -> None:
    codes = (ExitCode.DONE, ExitCode.FAILED, ExitCode.USAGE, ExitCode.UNREACHABLE, ExitCode.DENIED)
    assert [int(code) for code in codes] == [0, 1, 2, 3, 4]
    wrapper = (run.EXIT_NOT_PROTECTED, run.EXIT_NOT_EXECUTABLE, run.EXIT_NOT_FOUND)
    assert list(wrapper) == [125, 126, 127]


def test_redirectd() -> None:
    arguments = ["--config", "F", "--state-dir", "D", "--socket", "P", "--log-level", "debug", "--check"]
    assert daemon.make_parser().parse_args(arguments).check


def test_redirect_run() -> None:
    assert set(run.NOTIFY) == {"title", "inline", "none"}
    assert "--require" in run.USAGE

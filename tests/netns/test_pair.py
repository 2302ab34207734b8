"""`redirectctl pair` over a real ssh, with real daemons; and hosts that lie."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from daemon_pair import FAST, Pair

from redirectctl.lab.daemons import Daemon, program
from redirectctl.lab.sshd import NAME, SshServer
from redirectctl.lab.topology import Lab

ASK = FAST.replace("accept-new", "ask")
REFUSE = FAST.replace("accept-new", "refuse")
PATH = f"{Path(program('redirectctl')).parent}:/usr/bin:/bin"
WALL = "nft 'add table inet wall; add chain inet wall in { type filter hook input priority 0; }; "
CLOSE = WALL + "add rule inet wall in ct state established accept; add rule inet wall in udp dport 7747 drop'"
NO_UDP = WALL + "add rule inet wall in udp dport 7747 drop'"


def sshd(lab: Lab, daemon: Daemon, path: str = PATH) -> SshServer:
    """Whose sessions find redirectctl, and the daemon."""
    return SshServer(lab.server, extra=f"SetEnv PATH={path} REDIRECTCTL_SOCKET={daemon.socket}")


def run(daemon: Daemon, server: SshServer, *options: str, host: str = NAME) -> subprocess.CompletedProcess[str]:
    """``redirectctl pair HOST`` on the client."""
    line = [program("redirectctl"), "--socket", str(daemon.socket), "pair", *options, host, "--", *server.options()]
    return daemon.host.run(line, check=False)


def states(daemon: Daemon) -> dict[str, tuple[str, str | None]]:
    return {peer["fingerprint"]: (peer["state"], peer["name"]) for peer in daemon.ctl("peers")}


def identity(daemon: Daemon) -> str:
    return str(daemon.ctl("identity")["fingerprint"])


def failed(done: subprocess.CompletedProcess[str]) -> str:
    """What it said in its one line."""
    assert done.returncode == 1, (done.returncode, done.stdout, done.stderr)
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    return line


def nothing_approved(*daemons: Daemon) -> None:
    for daemon in daemons:
        assert "approved" not in [state for state, _ in states(daemon).values()]


@pytest.mark.parametrize("policy", [ASK, REFUSE], ids=["ask", "refuse"])
def test_a_session_is_protected_after_it(lab: Lab, policy: str) -> None:
    pair = Pair(lab, client=policy, server=policy)
    server = sshd(lab, pair.server)
    done = run(pair.client, server)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 3
    assert identity(pair.server) in done.stdout
    assert states(pair.client) == {identity(pair.server): ("approved", NAME)}
    (entry,) = states(pair.server).items()
    assert (entry[0], entry[1][0]) == (identity(pair.client), "approved")
    session = lab.client.popen(
        ["env", f"REDIRECTCTL_SOCKET={pair.client.socket}", program("redirect-run"), "--", *server.ssh("cat")],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    try:
        (listed,) = pair.wait_protected(1)
        assert listed["peer"] == identity(pair.server)
    finally:
        session.kill()
        session.wait()
    again = run(pair.client, server, "--json")
    assert json.loads(again.stdout)["peer"] == identity(pair.server)
    assert states(pair.client) == {identity(pair.server): ("approved", NAME)}


def test_no_daemon_there(lab: Lab) -> None:
    pair = Pair(lab, client=ASK, server=ASK)
    server = sshd(lab, pair.server)
    pair.server.stop()
    line = failed(run(pair.client, server))
    assert "redirectd does not run on server" in line
    assert "sudo systemctl enable --now redirectd" in line
    nothing_approved(pair.client)
    pair.server.start()
    assert run(pair.client, server).returncode == 0


def test_not_installed_there(lab: Lab) -> None:
    pair = Pair(lab, client=ASK, server=ASK)
    line = failed(run(pair.client, sshd(lab, pair.server, path="/usr/bin:/bin")))
    assert "has no redirectctl" in line
    nothing_approved(*pair.daemons)


def test_ssh_does_not_get_in(lab: Lab) -> None:
    pair = Pair(lab, client=ASK, server=ASK)
    server = sshd(lab, pair.server)
    (server.directory / "authorized_keys").write_text("")
    line = failed(run(pair.client, server))
    assert "ssh could not log in" in line
    assert "Permission denied" in line
    nothing_approved(*pair.daemons)


def test_the_port_is_closed_there(lab: Lab) -> None:
    """By the server's own packet filter, and nothing at all gets to the laptop.  Then as it was told."""
    pair = Pair(lab, client=ASK, server=ASK)
    server = sshd(lab, pair.server)
    lab.server.run(["sh", "-ec", CLOSE])
    lab.client.run(["sh", "-ec", NO_UDP])
    line = failed(run(pair.client, server))
    assert "packet filter of server does not let UDP 7747 in" in line
    assert "redirectctl doctor" in line
    nothing_approved(*pair.daemons)
    lab.server.run(["sh", "-ec", "nft delete table inet wall"])
    assert "packet filter of this host does not let UDP 7747 in" in failed(run(pair.client, server))
    lab.client.run(["sh", "-ec", f"nft delete table inet wall; {CLOSE}"])
    done = run(pair.client, server)
    assert done.returncode == 0, done.stderr
    assert "this host's packet filter lets answers in, not calls" in done.stdout


def test_only_the_server_can_call(lab: Lab) -> None:
    """It is said which port to open; both have proven their keys all the same."""
    pair = Pair(lab, client=ASK, server=ASK)
    server = sshd(lab, pair.server)
    lab.server.run(["sh", "-ec", CLOSE])
    done = run(pair.client, server)
    assert done.returncode == 0, done.stderr
    assert "this host cannot call it: let UDP 7747 in there" in done.stdout
    assert [state for state, _ in states(pair.server).values()] == ["approved"]


def test_a_host_that_was_set_up_anew(lab: Lab) -> None:
    """Its new key is approved only after a person has the old one forgotten, as with ssh."""
    pair = Pair(lab, client=ASK, server=ASK)
    server = sshd(lab, pair.server)
    assert run(pair.client, server).returncode == 0
    old = identity(pair.server)
    pair.server.stop()
    for file in pair.server.state.iterdir():
        file.unlink()
    pair.server.start()
    line = failed(run(pair.client, server))
    assert f"another key is known for server: {old}" in line
    assert f"redirectctl forget {old}" in line
    pair.client.ctl("forget", old)
    done = run(pair.client, server)
    assert done.returncode == 0, done.stderr
    assert states(pair.client) == {identity(pair.server): ("approved", NAME)}


def test_rejected_there(lab: Lab) -> None:
    pair = Pair(lab, client=ASK, server=ASK)
    server = sshd(lab, pair.server)
    assert run(pair.client, server).returncode == 0
    pair.server.ctl("reject", identity(pair.client))
    line = failed(run(pair.client, server))
    assert "this host's key was rejected on server" in line
    assert f"redirectctl approve {identity(pair.client)}" in line


def test_the_host_itself(lab: Lab) -> None:
    pair = Pair(lab, client=ASK, server=ASK)
    line = failed(run(pair.client, sshd(lab, pair.client)))  # ssh's session asks the daemon that asks
    assert "this host's own key" in line


# ------------------------------------------------------------------------------------- another host that lies

_LIAR = """#!{python}
import os, sys, time
sys.path.insert(0, {tests!r})
from redirectctl.pairing import exchange
channel = exchange.Channel(0, 1)
opened = channel.receive(exchange.Open, 30)
{body}
"""


def liar(lab: Lab, pair: Pair, body: str) -> SshServer:
    """A host whose `redirectctl` is somebody's own program."""
    folder = lab.server.sandbox.directory / "liar"
    folder.mkdir()
    script = folder / "redirectctl"
    script.write_text(_LIAR.format(python=sys.executable, tests=os.getcwd(), body=body))
    script.chmod(0o755)
    return sshd(lab, pair.server, path=f"{folder}:/usr/bin:/bin")


def test_a_third_partys_key_is_not_approved(lab: Lab) -> None:
    """The server names a key that it has seen somewhere: here, that of its own daemon, which it cannot use."""
    pair = Pair(lab, client=ASK, server=ASK)
    public = public_key(pair.server)
    body = f"""
channel.send(exchange.Ready(bytes.fromhex({public!r}), os.urandom(32), 7747, os.urandom(32)))
channel.receive(exchange.Proven, 30)
channel.send(exchange.Expecting('ok'))
channel.receive((exchange.Met, exchange.Unmet), 30)
channel.send(exchange.Approved('laptop'))
"""
    line = failed(run(pair.client, liar(lab, pair, body)))
    assert "named a key and did not prove that it is its own" in line
    assert states(pair.client) == {}


def test_a_proof_that_is_sent_back_is_none(lab: Lab) -> None:
    pair = Pair(lab, client=ASK, server=ASK)
    body = """
channel.send(exchange.Ready(bytes(range(32)), opened.nonce, 7747, opened.nonce))
"""
    assert "did not prove" in failed(run(pair.client, liar(lab, pair, body)))
    assert states(pair.client) == {}


def test_a_key_of_its_own_that_does_not_answer_there(lab: Lab) -> None:
    """It proves a key that its user made up; at its address the real daemon answers, with another."""
    pair = Pair(lab, client=ASK, server=ASK)
    body = """
from redirectctl.proto.noise import StaticKey
from redirectctl.proto.pairing import proofs
own, nonce = StaticKey.from_private(os.urandom(32)), os.urandom(32)
both = proofs(own, opened.key, opened.nonce, nonce, asks=False)
channel.send(exchange.Ready(own.public, nonce, 7747, both.answers))
assert channel.receive(exchange.Proven, 30).proof == both.asks
channel.send(exchange.Expecting('ok'))
channel.receive((exchange.Met, exchange.Unmet), 60)
channel.send(exchange.CalledBack())
channel.receive(exchange.Met, 30)
channel.send(exchange.Approved('laptop'))
"""
    assert "another host's key answers at the address of server" in failed(run(pair.client, liar(lab, pair, body)))
    nothing_approved(pair.client)


def test_it_says_that_it_has_called_back(lab: Lab) -> None:
    """Nothing answers at its port, and nobody has called."""
    pair = Pair(lab, client=ASK, server=ASK)
    body = """
from redirectctl.proto.noise import StaticKey
from redirectctl.proto.pairing import proofs
own, nonce = StaticKey.from_private(os.urandom(32)), os.urandom(32)
both = proofs(own, opened.key, opened.nonce, nonce, asks=False)
channel.send(exchange.Ready(own.public, nonce, 9, both.answers))
channel.receive(exchange.Proven, 30)
channel.send(exchange.Expecting('ok'))
channel.receive((exchange.Met, exchange.Unmet), 60)
channel.send(exchange.CalledBack())
channel.receive(exchange.Met, 30)
channel.send(exchange.Approved('laptop'))
"""
    assert "nothing was approved" in failed(run(pair.client, liar(lab, pair, body)))
    nothing_approved(pair.client)


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ("while True: os.write(1, b'x' * 65536)", "not understood"),
        ("while True: os.write(1, b'yes\\n' * 4096)", "not understood"),
        ("os.write(1, exchange.PREFIX + b'y' * 100000)", "not understood"),
        ('os.write(1, exchange.PREFIX + b\'{"says":"run","command":"rm -rf /"}\\n\')', "not understood"),
        ('os.write(1, exchange.PREFIX + b\'{"says":"sorry","why":"run: rm -rf /"}\\n\')', "not understood"),
        ("os.write(1, exchange.PREFIX + b'[' * 4000 + b'\\n')", "not understood"),
        ("os.write(1, b'\\x1b]0;pwned\\x07\\x1b[2Jrun: rm -rf /\\n'); os.write(2, b'\\x1b[2Jrm -rf /\\n')", "ended"),
        ("os.write(2, b'\\x1b[2Jrm -rf /\\n'); sys.exit(255)", "ssh could not log in"),
        ("channel.send(exchange.Approved('laptop'))", "not understood"),
        ("channel.send(exchange.Ready(opened.key, opened.nonce, 7747, opened.nonce))", "this host's own key"),
        ("channel.send(exchange.Ready(bytes(32), opened.nonce, 7747, opened.nonce))", "did not prove"),
    ],
    ids=["bytes", "lines", "a-line", "a-command", "a-reason", "nesting", "escapes", "as-ssh", "early", "echo", "zeros"],
)
def test_nothing_that_it_says_is_shown_or_run(lab: Lab, body: str, why: str) -> None:
    pair = Pair(lab, client=ASK, server=ASK)
    line = failed(run(pair.client, liar(lab, pair, body)))
    assert why in line
    assert "rm -rf" not in line
    assert "\x1b" not in line
    nothing_approved(pair.client)


def public_key(daemon: Daemon) -> str:
    """In hexadecimal, as the daemon's own user may ask for it."""
    script = (
        "from redirectctl.api import schema; from redirectctl.api.client import Client;"
        f"print(Client({str(daemon.socket)!r}).call(schema.IdentityRequest(), schema.IdentityReply).public.hex())"
    )
    return daemon.host.run([sys.executable, "-c", script]).stdout.strip()


def test_a_name_that_another_host_has_is_not_taken(lab: Lab) -> None:
    """The laptop names itself as a peer of the server's is called: it goes without."""
    pair = Pair(lab, client=ASK, server=ASK)
    server = sshd(lab, pair.server)
    assert run(pair.client, server).returncode == 0
    (name,) = [name for _, name in states(pair.server).values()]
    assert name == os.uname().nodename
    pair.client.stop()
    for file in pair.client.state.iterdir():
        file.unlink()
    pair.client.start()
    done = run(pair.client, server)
    assert done.returncode == 0 or "another key for this host" in done.stderr
    named = [key for key, (_, called) in states(pair.server).items() if called == name]
    assert identity(pair.client) not in named


def test_as_somebody_without_rights(lab: Lab) -> None:
    """`--answer` asks the daemon as the user that ssh logs in as, who is told what to do."""
    pair = Pair(lab, client=ASK, server=ASK)
    folder = lab.server.sandbox.directory / "other"
    folder.mkdir()
    lab.server.sandbox.directory.chmod(0o755)
    script = folder / "redirectctl"
    script.write_text(
        f"#!/bin/sh\nexec setpriv --reuid=65534 --regid=65534 --clear-groups {program('redirectctl')} $@\n"
    )
    script.chmod(0o755)
    server = sshd(lab, pair.server, path=f"{folder}:/usr/bin:/bin")
    line = failed(run(pair.client, server))
    assert "user root may not approve keys on server" in line
    assert "pair --sudo server" in line
    assert "usermod -aG redirectctl root" in line
    nothing_approved(*pair.daemons)

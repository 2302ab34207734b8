"""`redirectctl pair` over a real ssh, with real daemons; and hosts that lie."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from daemon_pair import FAST, Pair

from redirectctl.lab.daemons import Daemon, program
from redirectctl.lab.sshd import NAME, SshServer
from redirectctl.lab.streams import wait_until
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


def test_two_pairings_at_once(lab: Lab) -> None:
    """Both end well, or one says why not; the keys are right in any case."""
    pair = Pair(lab, client=ASK, server=ASK)
    server = sshd(lab, pair.server)
    with ThreadPoolExecutor(3) as pool:
        each = list(pool.map(lambda _: run(pair.client, server), range(3)))
    assert [done.returncode for done in each] == [0, 0, 0], [done.stderr for done in each]
    assert states(pair.client) == {identity(pair.server): ("approved", NAME)}
    assert [state for state, _ in states(pair.server).values()] == ["approved"]


@pytest.mark.parametrize("shell", ["/usr/sbin/nologin", "/bin/false", "/usr/bin/fish"])
def test_other_shells_there(lab: Lab, shell: str) -> None:
    """An account that runs no commands is told as such; one whose shell is no Bourne shell is like others."""
    if not Path(shell).exists():
        pytest.skip(f"{shell} is not installed")
    pair = Pair(lab, client=ASK, server=ASK)
    server = sshd(lab, pair.server)
    accounts = server.directory / "passwd"
    first, _, others = accounts.read_text().partition("\n")
    accounts.write_text(f"{first.rpartition(':')[0]}:{shell}\n{others}")
    if shell.endswith("fish"):
        done = run(pair.client, server)
        assert done.returncode == 0, done.stderr
    else:
        line = failed(run(pair.client, server))
        assert "the account may not run commands" in line
        assert "redirectctl identity" in line
        nothing_approved(*pair.daemons)


def test_the_daemon_here_ends_in_the_middle(lab: Lab) -> None:
    pair = Pair(lab, client=ASK, server=ASK)
    folder = lab.server.sandbox.directory / "slow"
    folder.mkdir()
    script = folder / "redirectctl"
    script.write_text(f'#!/bin/sh\ntouch {folder}/begun; sleep 5; exec {program("redirectctl")} "$@"\n')
    script.chmod(0o755)
    server = sshd(lab, pair.server, path=f"{folder}:{PATH}")
    with ThreadPoolExecutor(1) as pool:
        going = pool.submit(run, pair.client, server)
        wait_until((folder / "begun").exists, 60, "ssh is there")
        pair.client.stop()
        done = going.result(60)
    assert done.returncode == 3, (done.stdout, done.stderr)
    assert len(done.stderr.splitlines()) == 1
    nothing_approved(pair.server)
    pair.client.start()
    assert run(pair.client, server).returncode == 0


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


def answering_with_its_own_words(last: str) -> str:
    """The real program answers, up to the last line, which is somebody's own."""
    return f"""
import subprocess
real = subprocess.Popen(
    [{program("redirectctl")!r}, 'pair', '--answer'], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
behind = exchange.Channel(real.stdout.fileno(), real.stdin.fileno())
behind.send(opened)
channel.send(behind.receive(exchange.Ready, 30))
behind.send(channel.receive(exchange.Proven, 30))
channel.send(behind.receive(exchange.Expecting, 30))
behind.send(channel.receive(exchange.Met, 30))
behind.receive(exchange.Approved, 30)
{last}
"""


def test_what_it_calls_this_host_is_not_shown(lab: Lab) -> None:
    """It has a key that answers: only its last words are a lure."""
    pair = Pair(lab, client=ASK, server=ASK)
    server = liar(lab, pair, answering_with_its_own_words("channel.send(exchange.Approved('x; now run: rm -rf /'))"))
    for options in ((), ("--json",)):
        done = run(pair.client, server, *options)
        assert done.returncode == 0, done.stderr
        assert "rm -rf" not in done.stdout + done.stderr


_OFFER = """
import socket, sys
lure = b"now-run:rm-rf"
lists = [b"curve25519-sha256", lure, b"aes128-ctr", b"aes128-ctr", b"hmac-sha2-256", b"hmac-sha2-256", b"none", b"none"]
body = b"\\x14" + bytes(16) + b"".join(len(each).to_bytes(4, "big") + each for each in [*lists, b"", b""]) + bytes(5)
padding = 4 + -(len(body) + 9) % 8
packet = (1 + len(body) + padding).to_bytes(4, "big") + bytes([padding]) + body + bytes(padding)
server = socket.create_server(("", 22))
print(1, flush=True)
while True:
    client, _ = server.accept()
    client.sendall(b"SSH-2.0-x\\r\\n" + packet)
    while client.recv(4096):
        pass
"""


def test_what_a_server_says_before_anybody_knows_it_is_not_shown(lab: Lab) -> None:
    """ssh repeats in its errors what came over a connection that nothing protects yet."""
    pair = Pair(lab, client=ASK, server=ASK)
    server = sshd(lab, pair.server)
    server.stop()
    fake = lab.server.popen([sys.executable, "-c", _OFFER], stdout=subprocess.PIPE)
    try:
        assert fake.stdout is not None
        fake.stdout.readline()
        line = failed(run(pair.client, server))
    finally:
        fake.kill()
        fake.wait()
    assert 'ssh could not log in: "no matching host key type found"' in line
    assert "rm-rf" not in line


def test_options_that_ssh_is_to_ignore_are_the_persons(lab: Lab) -> None:
    """A configuration that is shared with a system whose ssh knows more options."""
    pair = Pair(lab, client=ASK, server=ASK)
    server = sshd(lab, pair.server)
    config = server.directory / "ssh_config"
    config.write_text(f"IgnoreUnknown UseKeychain\nUseKeychain yes\n{config.read_text()}")
    done = run(pair.client, server)
    assert done.returncode == 0, done.stderr


def test_what_a_shell_there_prints_may_have_no_end_of_line(lab: Lab) -> None:
    pair = Pair(lab, client=ASK, server=ASK)
    server = sshd(lab, pair.server)
    (server.home / ".bashrc").write_text("printf 'welcome\\033[?25h'\n")
    done = run(pair.client, server)
    assert done.returncode == 0, done.stderr


def test_what_is_for_ssh_names_no_other_host(lab: Lab) -> None:
    """ssh takes the first word that is no option as the host."""
    pair = Pair(lab, client=ASK, server=ASK)
    server = sshd(lab, pair.server)
    line = [
        program("redirectctl"),
        "--socket",
        str(pair.client.socket),
        "pair",
        "laptop2",
        "--",
        *server.options(),
        NAME,
    ]
    done = pair.client.host.run(line, check=False)
    assert done.returncode == 1
    assert "ssh does not take these arguments" in done.stderr
    nothing_approved(*pair.daemons)


@pytest.mark.parametrize("name", ["x" * 40, "198.51.100.7", "Server\u0435", "web; run rm -rf"])
def test_a_name_that_is_none_of_a_host_is_not_taken(lab: Lab, name: str) -> None:
    """The laptop calls itself as a key or an address, by which people name other hosts, or as nothing at all."""
    pair = Pair(lab, client=ASK, server=ASK)
    server = sshd(lab, pair.server)
    patched = (
        "import sys, socket; socket.gethostname = lambda name=sys.argv.pop(1): name;"
        "from redirectctl.cli.main import main; sys.exit(main())"
    )
    line = [
        sys.executable,
        "-c",
        patched,
        name,
        "--socket",
        str(pair.client.socket),
        "pair",
        NAME,
        "--",
        *server.options(),
    ]
    done = pair.client.host.run(line, check=False)
    assert done.returncode == 0, done.stderr
    assert states(pair.server) == {identity(pair.client): ("approved", None)}


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
        f"#!{sys.executable}\nimport os, sys\nfrom redirectctl.cli import main, pair\n"
        "os.setgroups([]); os.setgid(65534); os.setuid(65534)\nsys.exit(main.main())\n"
    )
    script.chmod(0o755)
    server = sshd(lab, pair.server, path=f"{folder}:/usr/bin:/bin")
    line = failed(run(pair.client, server))
    assert "user root may not approve keys on server" in line
    assert "pair --sudo server" in line
    assert "usermod -aG redirectctl root" in line
    nothing_approved(*pair.daemons)

"""redirect-run with real daemons, and what other users of the machine may do."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
import time

import pexpect
import pytest
from daemon_pair import FAST, PATIENCE, Pair, give_away
from other_users import AS_NOBODY, ECHO_PORT, TALK, start_echo

from redirectctl.lab.daemons import Daemon
from redirectctl.lab.namespaces import program
from redirectctl.lab.sshd import SshServer
from redirectctl.lab.streams import start_ticker
from redirectctl.lab.topology import Lab

MEGABYTES = 100
BLOCK = 1 << 20
FORWARDED = 15022  # a port on the client's loopback
BANNER = "import socket,sys; print(socket.create_connection(('127.0.0.1', int(sys.argv[1])), 30).recv(4))"


def test_status_and_signals_are_those_of_the_command(lab: Lab) -> None:
    pair = Pair(lab)
    sshd = SshServer(lab.server)
    wrap = pair.wrap
    assert lab.client.run([*wrap, "sh", "-c", "exit 7"], check=False).returncode == 7
    assert lab.client.run([*wrap, "sh", "-c", "kill -TERM $$"], check=False).returncode == -15
    shown = lab.client.run(["sh", "-c", '"$@"; echo $?', "sh", *wrap, "sh", "-c", "kill -KILL $$"])
    assert shown.stdout == "137\n"
    for command, status in (("/nonexistent", 127), ("/etc/passwd", 126)):
        assert lab.client.run([*wrap, command], check=False).returncode == status
    done = lab.client.run([*wrap, *sshd.ssh("exit 9")], check=False)
    assert (done.returncode, done.stderr) == (9, "")
    session = lab.client.popen([*wrap, *sshd.ssh("sleep 1000")])
    pair.wait_protected(1)
    session.terminate()
    assert session.wait(PATIENCE) == 255  # what ssh makes of SIGTERM


def test_binary_pipes_both_ways_through_a_move(lab: Lab) -> None:
    """100 MB go to the other host and come back, and the address changes in the middle."""
    pair = Pair(lab)
    sshd = SshServer(lab.server)
    there = lab.sandbox.directory / "errors"
    with there.open("w") as errors:
        # Not in text mode, unlike what Host.popen makes.
        command = lab.client.inside([*pair.wrap, *sshd.ssh("cat")])
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors)
    lab.sandbox.graceful.append(process)  # type: ignore[arg-type]
    sent, received, count = hashlib.sha256(), hashlib.sha256(), 0

    def read() -> None:
        nonlocal count
        assert process.stdout is not None
        while block := process.stdout.read1(BLOCK):
            received.update(block)
            count += len(block)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    assert process.stdin is not None
    for number in range(MEGABYTES):
        if number == MEGABYTES // 2:
            pair.wait_protected(1)
            give_away(lab, lab.client)
            lab.client.join(lab.cafe, 20)
        block = os.urandom(BLOCK)
        sent.update(block)
        process.stdin.write(block)
    process.stdin.close()
    assert process.wait(PATIENCE) == 0
    reader.join(PATIENCE)
    assert (count, received.hexdigest()) == (MEGABYTES * BLOCK, sent.hexdigest())
    assert there.read_text() == ""


def test_terminal_size_reaches_the_session(lab: Lab) -> None:
    pair = Pair(lab)
    sshd = SshServer(lab.server)
    script = "trap 'stty size' WINCH; stty size; while :; do sleep 0.1; done"
    command = lab.client.inside([*pair.wrap, *sshd.ssh("-t", script)])
    child = pexpect.spawn(command[0], command[1:], encoding="utf-8", dimensions=(31, 97), timeout=PATIENCE)
    try:
        child.expect("31 97\r\n")
        pair.wait_protected(1)
        child.setwinsize(43, 121)
        child.expect("43 121\r\n")
        link = lab.client.move(lab.cafe, 20)
        assert lab.client.has_address(link.addresses.v4)
        child.setwinsize(25, 80)
        child.expect("25 80\r\n")
    finally:
        child.close(force=True)


def test_children_stay_opted_in_after_redirect_run_has_ended(lab: Lab) -> None:
    """`ssh -f` and a ControlMaster live on in the background, and through a move."""
    pair = Pair(lab)
    sshd = SshServer(lab.server)
    control = lab.sandbox.directory / "control"
    forward = ["-f", "-N", "-o", "ExitOnForwardFailure=yes", "-L", f"{FORWARDED}:127.0.0.1:22"]
    master = ["-o", "ControlMaster=auto", "-o", f"ControlPath={control}", "-o", "ControlPersist=600"]
    ssh = sshd.ssh()
    for options, command in ((forward, []), (master, ["true"])):
        # Not a pipe: the child keeps it, and nobody would see its end.
        started = lab.client.popen([*pair.wrap, *ssh[:-1], *options, ssh[-1], *command], stdout=subprocess.DEVNULL)
        assert started.wait(PATIENCE) == 0
    pair.wait_protected(2)
    give_away(lab, lab.client)
    lab.client.join(lab.cafe, 20)
    assert lab.client.run([sys.executable, "-c", BANNER, str(FORWARDED)]).stdout == "b'SSH-'\n"
    through = ["ssh", "-S", str(control), *sshd.options(), ssh[-1]]
    assert lab.client.run([*through, "echo still here"]).stdout == "still here\n"
    assert {c["moves"] for c in pair.wait_protected(2)} == {1}
    assert len(lab.server.run(["ss", "-tnH", "state", "established", "sport = :22"]).stdout.splitlines()) == 2
    stopping = lab.client.run(["ssh", "-S", str(control), "-O", "exit", *sshd.options(), ssh[-1]])
    assert "Exit request sent" in stopping.stderr


def test_without_a_daemon(lab: Lab) -> None:
    daemon = Daemon(lab.client, FAST)
    wrap = daemon.opted_in()
    for prepare in (lambda: None, lambda: (daemon.start(), daemon.kill())):
        prepare()
        done = lab.client.run([*wrap, "sh", "-c", "echo out; exit 3"], check=False)
        assert (done.returncode, done.stdout) == (3, "out\n")
        assert done.stderr.startswith("redirect-run: sh runs unprotected: cannot reach the daemon")
        assert done.stderr.count("\n") == 1
        witness = lab.sandbox.directory / "witness"
        required = lab.client.run([*daemon.opted_in("--require"), "touch", witness], check=False)
        assert required.returncode == 125
        assert required.stderr.startswith("redirect-run: nothing was run: cannot reach the daemon")
        assert not witness.exists()
    daemon.start()
    assert lab.client.run([*daemon.opted_in("--require"), "touch", witness]).stderr == ""
    assert witness.exists()


ASK = FAST.replace("accept-new", "ask")


def session(pair: Pair, sshd: SshServer) -> pexpect.spawn:
    """On a terminal; at the other end `cat` runs."""
    command = pair.lab.client.inside([*pair.wrap, *sshd.ssh("-t", "echo ready; cat")])
    env = os.environ | {"TERM": "xterm"}
    child = pexpect.spawn(command[0], command[1:], encoding="utf-8", timeout=PATIENCE, env=env)
    child.expect_exact("ready")
    return child


def told_of_an_outage(lab: Lab, child: pexpect.spawn) -> None:
    """The client loses its address and gets another: the title says both, and the session goes on and ends."""
    give_away(lab, lab.client)
    child.expect_exact(f"redirectctl: no path to {lab.server.address()} for ")
    lab.client.join(lab.cafe, 20)
    child.expect_exact(" is back after ")
    child.sendline("it lives")
    child.expect_exact("it lives\r\nit lives\r\n")
    child.sendeof()
    child.expect(pexpect.EOF)


def test_asked_and_told_on_a_terminal(lab: Lab) -> None:
    """First contact is answered where the session is; the title says that the path is lost, and back."""
    pair = Pair(lab, client=ASK)
    sshd = SshServer(lab.server)
    child = session(pair, sshd)
    try:
        child.expect_exact("first contact")
        child.expect_exact("press Ctrl-] to see")
        child.sendline("yes")  # typed for the session
        child.expect_exact("yes\r\nyes\r\n")
        assert [peer["state"] for peer in pair.client.ctl("peers")] == ["pending"]
        child.send("\x1d")
        child.expect_exact(pair.server.ctl("identity")["fingerprint"])
        child.expect_exact("approve, reject")
        child.sendline("yes")  # what ssh is answered
        child.expect_exact("'yes' is not one of the answers")
        child.sendline("approve")
        child.expect_exact("\x1b[?1049l")
        pair.wait_protected(1)
        told_of_an_outage(lab, child)
    finally:
        child.close(force=True)
    assert child.exitstatus == 0


@pytest.mark.parametrize("how", ["stopped", "killed"])
def test_told_again_by_a_daemon_that_was_started_anew(lab: Lab, how: str) -> None:
    """The session's terminal goes on telling what happens, as the next daemon sees it."""
    pair = Pair(lab)
    sshd = SshServer(lab.server)
    child = session(pair, sshd)
    try:
        (before,) = pair.wait_protected(1)
        if how == "stopped":
            pair.client.stop()
        else:
            pair.client.kill()
        child.sendline("without a daemon")
        child.expect_exact("without a daemon\r\nwithout a daemon\r\n")
        pair.client.start()
        assert [c["id"] for c in pair.wait_protected(1)] == [before["id"]]
        told_of_an_outage(lab, child)
    finally:
        child.close(force=True)
    assert child.exitstatus == 0


def test_a_changed_key_is_not_approved_by_reflex(lab: Lab) -> None:
    """Whatever a hurried person types, the new key is not trusted; the session goes on, unprotected."""
    pair = Pair(lab)
    sshd = SshServer(lab.server)
    first = lab.client.popen([*pair.wrap, *sshd.ssh("cat")], stdin=subprocess.PIPE)
    pair.wait_protected(1)
    first.communicate("", timeout=PATIENCE)
    known = pair.server.ctl("identity")["fingerprint"]
    assert states(pair) == {known: "approved"}
    pair.server.stop()
    shutil.rmtree(pair.server.state)
    pair.server.start()
    new = pair.server.ctl("identity")["fingerprint"]

    child = session(pair, sshd)
    try:
        child.expect_exact(f"WARNING: the key of {lab.server.address()} has changed")
        child.expect_exact("press Ctrl-] to see it")
        child.send("\x1d")
        child.expect_exact(f"WARNING: THE KEY OF {lab.server.address()} HAS CHANGED")
        child.expect_exact(f"known  {known}")
        child.expect_exact(f"now    {new}")
        child.expect_exact("redirectctl: reject it (for good), or later:")
        for hurried in ("", "yes", "approve", new):
            child.sendline(hurried)
            child.expect_exact("redirectctl: reject it (for good), or later:")
            assert states(pair) == {known: "approved", new: "changed"}
        child.sendline("later")
        child.expect_exact("\x1b[?1049l")
        child.sendline("it goes on")
        child.expect_exact("it goes on\r\nit goes on\r\n")
        assert [(c["state"], c["reason"]) for c in pair.client.ctl("connections") if c["state"] != "closed"] == [
            ("refused", "key-changed")
        ]
        assert states(pair) == {known: "approved", new: "changed"}
        child.sendeof()
        child.expect(pexpect.EOF)
    finally:
        child.close(force=True)
    assert child.exitstatus == 0


def states(pair: Pair) -> dict[str, str]:
    """Of the client's peers, by fingerprint."""
    return {peer["fingerprint"]: peer["state"] for peer in pair.client.ctl("peers")}


def test_snippet_for_ssh_config(lab: Lab) -> None:
    """ssh has its own connection protected, by LocalCommand, without redirect-run."""
    pair = Pair(lab)
    sshd = SshServer(lab.server)
    local = f"{program('redirectctl')} --socket {pair.client.socket} protect $PPID >/dev/null"
    options = ["-o", "PermitLocalCommand=yes", "-o", f"LocalCommand={local}"]
    ssh = sshd.ssh()
    session = lab.client.popen(
        [*ssh[:-1], *options, ssh[-1], "cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert [c["pid"] for c in pair.wait_protected(1)] == [session.pid]
    give_away(lab, lab.client)
    lab.client.join(lab.cafe, 20)
    assert session.communicate("it lives\n", timeout=PATIENCE) == ("it lives\n", "")


# All modules are imported before the rights are given up: the interpreter may be where only root can read it.
IMPORTED = """
import encodings.idna, importlib, pkgutil, sys
import redirectctl.api, redirectctl.cli
for package in (redirectctl.api, redirectctl.cli):
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(package.__name__ + "." + module.name)
"""
COMMAND = IMPORTED + AS_NOBODY + "sys.exit(redirectctl.cli.main.main(sys.argv[1:]))\n"
CONNECT = (
    IMPORTED
    + AS_NOBODY
    + """
redirectctl.api.optin.opt_in(sys.argv[1])
connection = socket.create_connection((sys.argv[2], int(sys.argv[3])), 30)
for line in sys.stdin:
    connection.sendall(line.encode())
    print(connection.recv(100).decode(), end="", flush=True)
"""
)
WATCH = (
    AS_NOBODY
    + TALK
    + """
print(lines.readline(), end="")
for request in ("opt-in", "watch"):
    s.sendall(b'{"type":"%s"}\\n' % request.encode())
    print(lines.readline(), end="")
"""
)


def test_a_user_without_rights(open_to_all: Lab) -> None:
    lab = open_to_all
    pair = Pair(lab)
    others = start_ticker(lab.server, lab.client, wrap=pair.wrap)
    echo = start_echo(lab.server)
    (listed,) = pair.wait_protected(1)
    peer, connection = listed["peer"], listed["id"]
    pair.client.socket.parent.chmod(0o755)

    def ctl(*arguments: str) -> tuple[int, str]:
        argv = [sys.executable, "-c", COMMAND, "--socket", str(pair.client.socket), "--json", *arguments]
        done = lab.client.run(argv, check=False)
        return done.returncode, done.stderr

    assert ctl("status") == (0, "")
    assert ctl("identity") == (0, "")
    for arguments in (
        ("connections",),
        ("peers",),
        ("retry",),
        ("approve", peer),
        ("reject", peer),
        ("forget", peer),
        ("protect", str(others.ends["client"].process.pid)),
        ("protect", f"{listed['local']}-{listed['remote']}"),
        ("release", connection),
        ("kill", connection),
        ("announce",),
        ("events",),
    ):
        status, complaint = ctl(*arguments)
        assert (status, "not permitted" in complaint) == (4, True), (arguments, status, complaint)
        assert complaint.count("\n") == 1

    argv = [sys.executable, "-c", CONNECT, str(pair.client.socket), str(lab.server.address()), str(ECHO_PORT)]
    own = lab.client.popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert {c["state"] for c in pair.wait_protected(2)} == {"protected"}
    link = lab.client.move(lab.cafe, 20)
    others.wait_both(link.usable_at, PATIENCE)
    assert own.stdin is not None
    assert own.stdout is not None
    own.stdin.write("it lives\n")
    own.stdin.flush()
    assert own.stdout.readline() == "it lives\n"
    own.kill()
    own.communicate()
    echo.kill()
    # Of root's connection, which is held now, somebody else's watcher hears nothing.
    lab.client.leave()
    pair.client.wait_connections("suspended")
    heard = lab.client.run([sys.executable, "-c", WATCH, str(pair.client.socket)]).stdout.splitlines()
    assert [json.loads(line)["type"] for line in heard] == ["hello", "opted-in", "watch"]
    assert json.loads(heard[-1]) == {"type": "watch", "connections": [], "questions": []}
    lab.client.join(lab.home, 44)
    others.wait_both(time.monotonic(), PATIENCE)
    verdict = others.stop()
    assert verdict.ok, verdict


MALFORMED = (
    b"",
    b"\n" * 1000,
    b"\0" * 70_000,
    b"{}\n",
    b"[]\n",
    b"null\n",
    b'{"type":"status"',
    b'{"type":"status","extra":1}\n',
    b'{"type":"no-such"}\n',
    b'{"type":"protect","target":{}}\n',
    b'{"type":"protect","target":"' + b"9" * 5000 + b'"}\n',
    b'{"type":"kill","connection":"\\ud800"}\n',
    b'{"type":"approve","peer":"\xff\xfe"}\n',
    b'{"type":"events","follow":true,"since":1e999}\n',
    b"[" * 5000 + b"\n",
    b'{"type":"opt-in","pid":1}\n',
    b"GET / HTTP/1.1\r\nHost: redirectd\r\n\r\n",
    b"\xff" * 5_000_000,
)


def test_malformed_requests_do_no_harm(open_to_all: Lab) -> None:
    lab = open_to_all
    pair = Pair(lab)
    ticker = start_ticker(lab.server, lab.client, wrap=pair.wrap)
    (before,) = pair.wait_protected(1)
    pid = pair.client.ctl("status")["pid"]
    script = (
        "import socket,sys\n"
        "s = socket.socket(socket.AF_UNIX)\n"
        "s.settimeout(30)\n"
        "s.connect(sys.argv[1])\n"
        "try:\n"
        "    s.sendall(open(sys.argv[2], 'rb').read())\n"
        "    s.shutdown(socket.SHUT_WR)\n"
        "    while s.recv(65536): pass\n"
        "except OSError: pass\n"
    )
    for number, data in enumerate(MALFORMED):
        file = lab.sandbox.directory / f"malformed-{number}"
        file.write_bytes(data)
        lab.client.run([sys.executable, "-c", script, str(pair.client.socket), str(file)])
        assert pair.client.ctl("status")["pid"] == pid, data[:80]
    (after,) = pair.wait_protected(1)
    assert (after["id"], after["moves"]) == (before["id"], 0)
    link = lab.client.move(lab.cafe, 20)
    ticker.wait_both(link.usable_at, PATIENCE)
    verdict = ticker.stop()
    assert verdict.ok, verdict
    assert "Traceback" not in pair.client.log.read_text()

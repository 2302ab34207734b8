"""What redirect-run says of a session, as a person sees it: real daemons, a real ssh, a terminal of tmux's."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from daemon_pair import FAST, PATIENCE, Pair
from screen import Screen

from redirectctl.lab.namespaces import Namespace, program
from redirectctl.lab.sshd import SshServer
from redirectctl.lab.streams import wait_until
from redirectctl.lab.topology import Host, Lab

ASK = FAST.replace("accept-new", "ask")
QUICK = ("-o", "ServerAliveInterval=2", "-o", "ServerAliveCountMax=2")
SILENT = ("-o", "ServerAliveInterval=0")  # ssh's own default, but with BatchMode Debian's has another
INLINE = ("--notify", "inline")
LIMIT = "redirectctl: ssh gives up after 4s of silence; redirect-run --keep prevents it"
SHELL = "PS1='there> ' exec bash --norc --noprofile"


@pytest.fixture
def screen_on() -> Iterator[Callable[..., Screen]]:
    screens: list[Screen] = []

    def make(host: Host) -> Screen:
        screens.append(Screen(host))
        return screens[-1]

    yield make
    for screen in screens:
        screen.close()


@pytest.fixture
def screen(lab: Lab, screen_on: Callable[..., Screen]) -> Screen:
    return screen_on(lab.client)


def connect(screen: Screen, pair: Pair, sshd: SshServer, *options: str, ssh: tuple[str, ...] = SILENT) -> None:
    """A session with a shell at the other end, where the prompt is `there> `."""
    *command, name = sshd.ssh()
    screen.run([*pair.client.opted_in(*options), *command, *ssh, "-t", name, SHELL])
    screen.wait("\nthere> ")


def leave(screen: Screen) -> str:
    """End the session; what stands below the line that says so."""
    screen.type("exit")
    screen.press("Enter")
    screen.wait("closed.\n")
    wait_until(lambda: below(screen, "closed.").endswith("\n$"), PATIENCE, "the prompt", poll=0.1)
    return below(screen, "closed.").removesuffix("$").strip()


def below(screen: Screen, text: str) -> str:
    return screen.text().rpartition(text)[2].rstrip()


def lives(screen: Screen, text: str) -> None:
    """What is typed reaches the other end, and an answer comes."""
    screen.type(f"echo {text} | tr a-z A-Z")
    screen.press("Enter")
    screen.wait(f"\n{text.upper()}\n")


def told(screen: Screen, command: str) -> list[str]:
    """The command that the screen tells to type."""
    screen.wait(f"\n  sudo {command}")
    (found,) = re.findall(rf"^  sudo ({re.escape(command)}.*)$", screen.text(), re.MULTILINE)
    return shlex.split(found)


def typed_on(host: Namespace, pair: Pair, command: list[str]) -> None:
    """As root does on that host."""
    daemon = next(each for each in pair.daemons if each.host is host)
    host.run([program(command[0]), "--socket", str(daemon.socket), *command[1:]])


def test_the_other_host_has_to_approve(lab: Lab, screen: Screen) -> None:
    """The line has the command; typed there it protects the session, which the next line says."""
    pair = Pair(lab, server=ASK)
    sshd = SshServer(lab.server)
    connect(screen, pair, sshd, *INLINE)
    screen.wait(f"not protected yet: {lab.server.address()} must approve this host; run there:")
    own = pair.client.ctl("identity")["fingerprint"]
    command = told(screen, "redirectctl approve")
    assert command == ["redirectctl", "approve", own]
    lives(screen, "meanwhile")
    typed_on(lab.server, pair, command)
    other = pair.server.ctl("identity")["fingerprint"]
    screen.wait(f"\nredirectctl: protected: {lab.server.address()} ({other[:19]}…)\n")
    pair.wait_protected(1)
    assert leave(screen) == ""


def test_nobody_approved(lab: Lab, screen: Screen) -> None:
    """It is said once more on stderr, because a title is gone by then."""
    pair = Pair(lab, server=ASK)
    sshd = SshServer(lab.server)
    connect(screen, pair, sshd)
    own = pair.client.ctl("identity")["fingerprint"]
    command = f"run on {lab.server.address()}: sudo redirectctl approve {own}"
    screen.wait_title(f"redirectctl: not protected yet: {command}")
    assert "not protected" not in screen.text()
    last = leave(screen)
    assert last == (
        f"redirect-run: ssh was not protected: {lab.server.address()} must approve this host; run there: "
        f"sudo redirectctl approve {own}"
    )


def test_protected_lost_and_back_in_the_title(lab: Lab, screen: Screen) -> None:
    pair = Pair(lab)
    sshd = SshServer(lab.server)
    connect(screen, pair, sshd)
    other = pair.server.ctl("identity")["fingerprint"]
    screen.wait_title(f"redirectctl: protected: {lab.server.address()} ({other[:19]}…)")
    wait_until(lambda: "redirectctl" not in screen.title(), PATIENCE, "a title of the shell's own", poll=0.1)
    lab.client.leave()
    screen.wait_title(f"redirectctl: no path to {lab.server.address()} for ")
    lab.client.join(lab.cafe, 20)
    screen.wait_title(f"redirectctl: path to {lab.server.address()} is back after ")
    lives(screen, "on")
    assert leave(screen) == ""


def test_no_daemon_there(lab: Lab, screen: Screen) -> None:
    pair = Pair(lab)
    sshd = SshServer(lab.server)
    pair.server.stop()
    connect(screen, pair, sshd, *INLINE)
    why = f"{lab.server.address()}: the other host's redirectd does not answer"
    screen.wait(f"redirectctl: not protected: {why[:40]}")
    assert told(screen, "redirectctl doctor") == ["redirectctl", "doctor", str(lab.server.address())]
    assert leave(screen) == (
        f"redirect-run: ssh was not protected: {why}; sudo redirectctl doctor {lab.server.address()}"
    )
    # Nothing where nothing is wanted, and nothing where no person is.
    connect(screen, pair, sshd, "--notify", "none")
    pair.client.wait_connections("unsupported")
    assert leave(screen) == ""
    piped = subprocess.Popen(
        lab.client.inside([*pair.client.opted_in(*INLINE), *sshd.ssh("cat")]), stdin=-1, stdout=-1, stderr=-1, text=True
    )
    lab.sandbox.graceful.append(piped)
    pair.client.wait_connections("unsupported")
    assert piped.communicate("on", timeout=PATIENCE) == ("on", "")


def test_ssh_gives_up_in_an_outage(lab: Lab, screen: Screen) -> None:
    """It is said when the session begins, in the outage, and when it has happened; and --keep prevents it."""
    pair = Pair(lab)
    sshd = SshServer(lab.server)
    connect(screen, pair, sshd, *INLINE, ssh=QUICK)
    screen.wait(LIMIT)
    lab.client.leave()
    screen.wait(f"redirectctl: no path to {lab.server.address()}; suspended, but ssh gives up after 4s\n")
    screen.wait("not responding.")
    screen.wait("redirect-run: ssh ended after ")
    (last,) = re.findall(r"redirect-run: ssh ended after \S+ (.*)", screen.text())
    why = f"without a path to {lab.server.address()}, by itself (ServerAliveInterval)"
    assert last == f"{why}; redirect-run --keep ssh prevents it"
    lab.client.join(lab.home, 20)

    said = screen.text().count(LIMIT)
    connect(screen, pair, sshd, *INLINE, "--keep", ssh=QUICK)
    wait_until(lambda: screen.text().count("redirectctl: protected: ") == 2, PATIENCE, "the second session", poll=0.1)
    (one,) = pair.client.wait_connections("protected")
    lab.client.leave()
    lost = wait_until(lambda: lost_for(pair, one["id"], 10), PATIENCE, "an outage longer than ssh bears", poll=0.5)
    lab.client.join(lab.cafe, 20)
    screen.wait("is back after ")
    lives(screen, "kept")
    assert lost >= 10
    assert screen.text().count(LIMIT) == said
    assert leave(screen) == ""


def lost_for(pair: Pair, name: str, seconds: float) -> float | None:
    (found,) = (c["suspended_for"] for c in pair.client.ctl("connections") if c["id"] == name)
    return found if found is not None and found >= seconds else None


def test_the_other_host_ends_the_session_in_an_outage(lab: Lab, screen: Screen) -> None:
    pair = Pair(lab)
    sshd = SshServer(lab.server, extra="ClientAliveInterval 2\nClientAliveCountMax 2")
    connect(screen, pair, sshd, *INLINE)
    pair.wait_protected(1)
    lab.client.leave()
    screen.wait("no path to")
    wait_until(lambda: "client not responding" in sshd.log.read_text(), PATIENCE, "sshd gives up", poll=0.1)
    lab.client.join(lab.home, 20)
    screen.wait("that host had ended the session; ClientAliveInterval? There: sudo redirectctl doctor")


def test_ended_by_hand_in_an_outage(lab: Lab, screen: Screen) -> None:
    """Nobody has to be told what he has just done."""
    pair = Pair(lab)
    sshd = SshServer(lab.server)
    connect(screen, pair, sshd, *INLINE, ssh=QUICK[:2])
    pair.wait_protected(1)
    lab.client.leave()
    screen.wait("no path to")
    screen.press("Enter")
    screen.type("~.")
    screen.wait("closed.\n")
    wait_until(lambda: below(screen, "closed.").endswith("\n$"), PATIENCE, "the prompt", poll=0.1)
    assert below(screen, "closed.").strip() == "$"


def test_through_a_master_that_was_opened_plainly(lab: Lab, screen: Screen) -> None:
    """The line has the command that protects it; the session says so; and a master of redirect-run's needs none."""
    pair = Pair(lab)
    sshd = SshServer(lab.server)
    *ssh, name = sshd.ssh()
    control = lab.sandbox.directory / "control"
    shared = ("-o", "ControlMaster=auto", "-o", f"ControlPath={control}", "-o", "ControlPersist=600")

    def end_master() -> None:
        lab.client.run(["ssh", "-S", control, "-O", "exit", *sshd.options(), name])

    assert lab.client.popen([*ssh, *shared, *SILENT, name, "true"], stdout=subprocess.DEVNULL).wait(PATIENCE) == 0
    connect(screen, pair, sshd, *INLINE, ssh=(*shared, *QUICK))
    screen.wait("redirectctl: not protected: ssh uses a ControlMaster that was opened without\n")
    command = told(screen, "redirectctl protect")
    assert LIMIT not in screen.text()  # of the master's, nothing is known
    typed_on(lab.client, pair, command)
    screen.wait(f"redirectctl: protected: {lab.server.address()} (")
    pair.wait_protected(1)
    lab.client.move(lab.cafe, 20)
    lives(screen, "moved")
    assert leave(screen) == ""
    end_master()

    before = screen.text().count("without\n")
    with_ours = [*pair.wrap, *ssh, *shared, *SILENT, name, "true"]
    assert lab.client.popen(with_ours, stdout=subprocess.DEVNULL).wait(PATIENCE) == 0
    pair.wait_protected(1)
    connect(screen, pair, sshd, *INLINE, ssh=shared)
    wait_until(lambda: screen.text().count("redirectctl: protected: ") == 2, PATIENCE, "protected", poll=0.1)
    assert screen.text().count("without\n") == before
    assert leave(screen) == ""
    end_master()


def test_through_a_master_that_is_protected_by_its_port(lab: Lab, screen: Screen) -> None:
    """Also one that went into the background after the daemon had found its connection: another process has it."""
    pair = Pair(lab, client=f"{FAST}ports = [22]\n")
    sshd = SshServer(lab.server)
    *ssh, name = sshd.ssh()
    control = lab.sandbox.directory / "control"
    shared = ("-o", "ControlMaster=auto", "-o", f"ControlPath={control}", "-o", "ControlPersist=600")
    # The first session of a master is long enough for the daemon to see who has the connection.
    first = lab.client.popen([*ssh, *shared, *SILENT, name, "sleep 5"], stdout=subprocess.DEVNULL)
    (found,) = pair.wait_protected(1)
    assert first.wait(PATIENCE) == 0
    shown = lab.client.run(["ssh", "-S", control, "-O", "check", *sshd.options(), name]).stderr
    if found["pid"] != int(re.findall(r"pid=(\d+)", shown)[0]):
        wait_until(lambda: not Path(f"/proc/{found['pid']}").exists(), PATIENCE, "the first ssh ends")
    connect(screen, pair, sshd, *INLINE, ssh=(*shared, *SILENT))
    screen.wait("redirectctl: protected: ")
    assert "not protected" not in screen.text()
    assert leave(screen) == ""
    lab.client.run(["ssh", "-S", control, "-O", "exit", *sshd.options(), name])


def test_the_daemon_stops_and_runs_again(lab: Lab, screen: Screen) -> None:
    pair = Pair(lab)
    sshd = SshServer(lab.server)
    connect(screen, pair, sshd, *INLINE)
    screen.wait("redirectctl: protected: ")
    pair.client.stop()
    screen.wait(
        "redirectctl: redirectd has stopped; nothing is protected until it runs again:\n  sudo systemctl start "
    )
    lives(screen, "without")
    pair.client.start()
    screen.wait("redirectctl: redirectd runs again\nredirectctl: protected: ")
    pair.client.stop()
    wait_until(lambda: screen.text().count("has stopped;") == 2, PATIENCE, "told again", poll=0.1)
    assert leave(screen) == "redirect-run: ssh ended unprotected: redirectd has stopped; sudo systemctl start redirectd"


@pytest.mark.parametrize("typed", ["yes", "approve", "reject"])
def test_a_question_takes_no_keys_that_are_meant_for_the_session(lab: Lab, screen: Screen, typed: str) -> None:
    pair = Pair(lab, client=ASK)
    sshd = SshServer(lab.server)
    connect(screen, pair, sshd)
    screen.type("echo half")  # somebody is typing
    screen.wait("press Ctrl-] to see the key and to answer\nthere> echo half")
    screen.type(f"way {typed}")
    screen.press("Enter")
    screen.wait(f"\nhalfway {typed}\n")
    assert [peer["state"] for peer in pair.client.ctl("peers")] == ["pending"]
    screen.press("C-]")
    screen.wait("approve, reject (for good), later, or the fingerprint:")
    screen.type("approve")
    screen.press("Enter")
    pair.wait_protected(1)
    lives(screen, "on")
    assert leave(screen) == ""


def test_a_password_prompt_while_there_is_a_question(lab: Lab, screen: Screen) -> None:
    """ssh asks for the passphrase of a key; what is typed is its own, and the question comes afterwards."""
    pair = Pair(lab, client=ASK)
    sshd = SshServer(lab.server)
    lab.client.run(["ssh-keygen", "-q", "-p", "-P", "", "-N", "pass approve", "-f", sshd.directory / "client_key"])
    *ssh, name = sshd.ssh()
    screen.run([*pair.client.opted_in(*INLINE), *ssh, *SILENT, "-o", "BatchMode=no", "-t", name, SHELL])
    screen.wait("Enter passphrase for key")
    pair.client.wait_connections("pending")
    screen.wait_title("is new")  # the title may say so
    screen.type("pass ")
    screen.press("C-]", "BSpace")  # the key is the passphrase's too
    screen.type("approve")
    assert "Ctrl-]" not in screen.text()
    assert screen.text().rstrip().endswith("client_key':")  # no letter of it
    screen.press("Enter")
    screen.wait("\nthere> ")
    screen.wait("press Ctrl-] to see the key and to answer")
    assert [peer["state"] for peer in pair.client.ctl("peers")] == ["pending"]
    screen.press("C-]")
    screen.wait("approve, reject (for good), later, or the fingerprint:")
    screen.type("later")
    screen.press("Enter")
    lives(screen, "on")
    assert leave(screen).endswith(f"sudo redirectctl approve {pair.server.ctl('identity')['fingerprint']}")


def test_a_password_prompt_while_something_is_told(lab: Lab, screen: Screen) -> None:
    """Lines come above the prompt, and change nothing of what is typed."""
    pair = Pair(lab)
    sshd = SshServer(lab.server)
    lab.client.run(["ssh-keygen", "-q", "-p", "-P", "", "-N", "secret", "-f", sshd.directory / "client_key"])
    *ssh, name = sshd.ssh()
    screen.run([*pair.client.opted_in(*INLINE), *ssh, *SILENT, "-o", "BatchMode=no", "-t", name, SHELL])
    screen.wait("Enter passphrase for key")
    screen.type("sec")
    screen.wait("redirectctl: protected: ")
    screen.type("ret")
    assert re.search(
        r"redirectctl: protected: .*\nEnter passphrase for key '\S*client_key': *$", screen.text().rstrip()
    )
    screen.press("Enter")
    screen.wait("\nthere> ")
    lives(screen, "in")
    assert leave(screen) == ""


NOBODY = 65534


def test_another_users_master_is_none_of_ours(open_to_all: Lab) -> None:
    """Of the process that somebody names the daemon tells only what is his own."""
    lab = open_to_all
    pair = Pair(lab)
    sshd = SshServer(lab.server)
    session = lab.client.popen([*pair.wrap, *sshd.ssh("cat")], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    (listed,) = pair.wait_protected(1)
    pair.client.socket.parent.chmod(0o755)
    script = (
        "import os, socket, sys\n"
        "os.setgid(int(sys.argv[2])); os.setuid(int(sys.argv[2]))\n"
        "s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); lines = s.makefile()\n"
        "lines.readline()\n"
        's.sendall(b\'{"type":"watch","process":%d}\\n\' % int(sys.argv[3]))\n'
        "print(lines.readline(), end='')\n"
    )
    python = shutil.which("python3", path="/usr/bin:/bin") or pytest.skip("no Python that everybody may run")
    for uid, told_of in ((0, True), (NOBODY, False)):
        heard = lab.client.run([python, "-c", script, pair.client.socket, str(uid), str(listed["pid"])]).stdout
        reply = json.loads(heard)
        assert [one["id"] for one in reply["connections"]] == [listed["id"]] * told_of, heard
        assert reply.get("process", False) is told_of
    session.communicate("", timeout=PATIENCE)

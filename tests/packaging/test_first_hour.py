"""The first hour of a newcomer: the README's Quick start, and all that can go wrong in it.

Who plays it knows nothing but the README and what the programs say.  Eight minutes, most of them waiting: two for the
two hosts, half a minute for each failure.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

import pytest

from redirectctl.lab.streams import wait_until
from redirectctl.lab.topology import Lab
from tests.packaging.newcomers import CLONE, PROTECTION, USER, Machine, clean_hosts, connect, protected, quick_start

MOST_STEPS = 6  # of the README
MOST_ROUNDS = 6  # from a failure of any kind to a protected session
PAIR, SESSION = "redirectctl pair server", "redirect-run ssh server"
# What redirect-run says when it has found out how a session stands.
STANDS = ("not protected", "has changed", "first contact", "runs unprotected", "has stopped", "has another key")
LOOKS = re.compile(r"redirectctl (doctor|identity|peers|status|events)|systemctl status")  # what only tells something
# Not even answers get in.
WALL = "table inet wall { chain in { type filter hook input priority 0; udp dport 7747 drop; }; }"


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Machine]]:
    with clean_hosts(tmp_path_factory.mktemp("newcomer")) as hosts:
        yield hosts


def test_the_quick_start_of_the_readme(clean: dict[str, Machine]) -> None:
    """On a server with a firewall that is closed; the laptop then goes to another network."""
    steps = quick_start()
    assert len(steps) <= MOST_STEPS
    assert {step.host for step in steps} == set(clean)
    with Lab() as lab:
        connect(clean, lab)
        clean["server"].must("ufw allow 22/tcp && ufw --force enable", "root")
        for step in steps[:-1]:
            clean[step.host].must(f"cd {CLONE} && {step.command}")
        laptop = clean[steps[-1].host]
        session = laptop.terminal(steps[-1].command)
        try:
            wait_until(lambda: protected(laptop), PROTECTION, "a protected session")
            assert " protected " in laptop.must("redirectctl connections")
            session.answers()
            lab.client.move(lab.cafe, 77)
            session.answers()
            assert protected(laptop)
        finally:
            session.close()


@pytest.fixture(scope="module")
def installed(clean: dict[str, Machine]) -> dict[str, Machine]:
    """By the README's words, too."""
    with Lab() as lab:
        connect(clean, lab)
        for machine in clean.values():
            machine.must(f"cd {CLONE} && sudo make install")
    return clean


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab() as lab:
        yield lab


@pytest.fixture
def hosts(installed: dict[str, Machine], lab: Lab) -> dict[str, Machine]:
    """Both have it installed and running, and have never met."""
    connect(installed, lab)
    for machine in installed.values():
        machine.must(f"usermod -aG redirectctl {USER} && systemctl start redirectd", "root")
    return installed


class Command(NamedTuple):
    """That a program has told a person to type."""

    there: bool  # on the server, not on the laptop
    line: str


def commands(said: str, *, there: bool) -> list[Command]:
    """What it says that one should type, in that order; ``there``: where it was said."""
    whole = re.sub(r"\x1b\][0-9]*;([^\x07]*)\x07", r"\n\1\n", said)  # titles
    found = []
    bare = re.compile(
        r"(?:[;:]|^redirectctl:|^) +((?:sudo )?(?:redirectctl|systemctl|redirect-run) [^;`\n]+?) *$", re.M
    )
    for match in bare.finditer(whole.replace("\r", "")):
        before = match.string[: match.start(1)][-40:]
        found.append(Command(_other(before, "") is not there, match[1]))
    whole = " ".join(re.sub(r"\x1b\[[0-9;?]*[a-z]", "", whole).split())
    for match in re.finditer(r"`([^`]+)`", whole):
        other = _other(whole[: match.start()], whole[match.end() :]) and not match[1].startswith("ssh ")
        found.append(Command(other is not there, match[1]))
    typed = [each for each in found if not re.search(r"\b(HOST|PEER|USER|KEY|COMMAND)\b", each.line)]
    return list(dict.fromkeys(typed))


def _other(before: str, after: str) -> bool:
    """Whether a command between these words is to be typed on the other host."""
    said_before = re.search(r"(\bthere\b|\bon that host\b|\brun on \S+)[^`.;]*$", before)
    return bool(said_before or re.match(r" (there|on that host)\b", after))


class Newcomer:
    """Wants a protected session, and does what is said: no more, and nothing twice."""

    def __init__(self, hosts: dict[str, Machine], first: str, deeds: dict[str, Callable[[], object]]) -> None:
        """``first``: what is tried first.  ``deeds``: what a person does who reads these words, without a command."""
        self._laptop, self._server = hosts["laptop"], hosts["server"]
        self._goal = first
        self._deeds = deeds
        self.story: list[str] = []
        self.rounds = 0

    def until_protected(self) -> None:
        """Raises AssertionError at a dead end."""
        said, there = self._try(), False
        done: set[Command] = set()
        while said:
            left = [
                each for each in commands(said, there=there) if each not in done and each.line not in (PAIR, SESSION)
            ]
            deed = next((words for words in self._deeds if words in " ".join(said.split())), None)
            assert left or deed, self._told("a dead end")
            self.rounds += 1
            assert self.rounds <= MOST_ROUNDS, self._told("it takes too long")
            if not left:
                assert deed is not None
                self._deeds.pop(deed)()
                said, there = self._try(), False
                continue
            done.add(left[0])
            answer, on_server = self._type(left[0])
            if LOOKS.search(left[0].line):
                if [each for each in commands(answer, there=on_server) if each not in done]:
                    said, there = answer, on_server
            elif left[0].line.startswith("redirectctl pair"):
                self._goal = left[0].line
                said, there = self._try(), False
            else:
                said, there = self._try(), False

    def _type(self, command: Command) -> tuple[str, bool]:
        """What came, and whether it was the server that said so."""
        machine = self._server if command.there else self._laptop
        folder = f"cd {CLONE} && " if "make install" in command.line else ""
        status, text = machine.types(folder + command.line)
        self.story.append(f"{machine.name}$ {command.line}\n{text}({status})")
        assert "command not found" not in text, self._told("no such command")
        assert "usage:" not in text, self._told("wrongly called")
        return text, command.there or command.line.startswith("ssh ")

    def _try(self) -> str:
        """What is said instead of a protected session; empty when there is one."""
        if self._goal != SESSION:
            status, text = self._laptop.types(self._goal)
            self.story.append(f"laptop$ {self._goal}\n{text}({status})")
            if status != 0:
                return text
            assert f"try it     {SESSION}" in text
        session = self._laptop.terminal(SESSION)
        is_protected = False

        def decided() -> bool:
            nonlocal is_protected
            is_protected = protected(self._laptop) if "runs unprotected" not in session.said() else False
            return is_protected or not session.child.isalive() or any(words in session.said() for words in STANDS)

        try:
            wait_until(decided, PROTECTION, "redirect-run says how the session stands", poll=1.0)
            if is_protected:
                session.answers()
        finally:
            said = session.close()
        self.story.append(f"laptop$ {SESSION}\n{said}")
        return "" if is_protected else said

    def _told(self, why: str) -> str:
        return "\n".join([f"{why}:", *self.story])


def play(hosts: dict[str, Machine], first: str, deeds: dict[str, Callable[[], object]] | None = None) -> Newcomer:
    """Until the session is protected."""
    newcomer = Newcomer(hosts, first, deeds or {})
    newcomer.until_protected()
    assert newcomer.rounds > 0, newcomer.story  # else nothing was wrong
    return newcomer


def close(machine: Machine) -> None:
    machine.must(f"echo '{WALL}' | nft -f -", "root")


def key(machine: Machine) -> str:
    return str(machine.ctl("identity")["fingerprint"])


@pytest.mark.parametrize("where", ["laptop", "server"], ids=["here", "there"])
def test_the_port_is_closed(hosts: dict[str, Machine], where: str) -> None:
    close(hosts[where])
    play(hosts, PAIR)


def test_the_port_is_closed_by_ufw_there_and_by_rules_here(hosts: dict[str, Machine]) -> None:
    hosts["server"].must("ufw --force reset && ufw allow 22/tcp && ufw --force enable", "root")
    close(hosts["laptop"])
    newcomer = play(hosts, PAIR)
    assert any("sudo ufw allow 7747/udp" in each for each in newcomer.story)


@pytest.mark.parametrize("first", [PAIR, SESSION])
def test_the_port_is_closed_on_the_way(hosts: dict[str, Machine], lab: Lab, first: str) -> None:
    lab.router.run(["nft", WALL.replace("hook input", "hook forward").replace("chain in", "chain forward")])
    words = (
        "at the firewall between them" if first == PAIR else "a firewall between the hosts has to let UDP 7747 through"
    )
    play(hosts, first, {words: lambda: lab.router.run(["nft", "delete", "table", "inet", "wall"])})


@pytest.mark.parametrize("first", [PAIR, SESSION])
def test_no_daemon_there(hosts: dict[str, Machine], first: str) -> None:
    hosts["server"].must("systemctl stop redirectd", "root")
    play(hosts, first)


@pytest.mark.parametrize("first", [PAIR, SESSION])
def test_no_daemon_here(hosts: dict[str, Machine], first: str) -> None:
    hosts["laptop"].must("systemctl stop redirectd", "root")
    play(hosts, first)


def test_not_installed_there(hosts: dict[str, Machine]) -> None:
    hosts["server"].must(f"cd {CLONE} && sudo make uninstall")
    play(hosts, PAIR)


@pytest.mark.parametrize("first", [PAIR, SESSION])
def test_another_key_than_before(hosts: dict[str, Machine], first: str) -> None:
    """The server was set up anew."""
    hosts["laptop"].must(PAIR)
    hosts["server"].must("systemctl stop redirectd; rm -r /var/lib/redirectctl; systemctl start redirectd", "root")
    play(hosts, first)


def test_no_rights_here_nor_there(hosts: dict[str, Machine]) -> None:
    for machine in hosts.values():
        machine.must(f"gpasswd --delete {USER} redirectctl", "root")
    play(hosts, PAIR)


@pytest.mark.parametrize(("one", "other"), [("laptop", "server"), ("server", "laptop")], ids=["here", "there"])
def test_approved_on_one_side_only(hosts: dict[str, Machine], one: str, other: str) -> None:
    """The other side was forgotten there."""
    hosts["laptop"].must(PAIR)
    hosts[other].must(f"redirectctl forget {key(hosts[one])}")
    play(hosts, SESSION)


def test_approved_nowhere(hosts: dict[str, Machine]) -> None:
    """Without `redirectctl pair`: the question is not answered, and what is said at the end is done."""
    play(hosts, SESSION)


def test_rejected_there(hosts: dict[str, Machine]) -> None:
    hosts["laptop"].must(PAIR)
    hosts["server"].must(f"redirectctl reject {key(hosts['laptop'])}")
    play(hosts, PAIR)

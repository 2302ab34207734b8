"""What people are told when two hosts could not be paired."""

from __future__ import annotations

import re
import shlex

import pytest

from redirectctl.cli import main as ctl
from redirectctl.pairing import words
from redirectctl.pairing.asker import Target
from redirectctl.pairing.exchange import Why
from redirectctl.pairing.words import Trouble, TroubleError

OWN = "SHA256:kmCtQ8V0zTnFqz4cK0b0m4uFjvTQ2y3d9q3m5x1r7wA"
TARGET = Target("anna@server", ["-p", "2222", "-i", "a key"], sudo=False)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("server", "server"),
        ("anna@server", "server"),
        ("a@b@server", "server"),
        ("2001:db8::1", "2001:db8::1"),
        ("ssh://anna@server:2222", "server"),
        ("ssh://anna@server:2222/", "server"),
        ("ssh://[2001:db8::1]:22", "2001:db8::1"),
    ],
)
def test_the_peer_is_called_as_on_the_command_line(text: str, name: str) -> None:
    assert Target(text, [], sudo=False).name == name


@pytest.mark.parametrize("trouble", Trouble)
def test_every_trouble_has_a_reason_and_a_remedy(trouble: Trouble) -> None:
    error = TroubleError(trouble, said="port 22: Connection refused", known=OWN, user="anna")
    why, what_to_do = words.explain(error, TARGET, OWN, 7747)
    assert why
    assert what_to_do
    assert "\n" not in why + what_to_do
    assert not why.endswith(".")


@pytest.mark.parametrize("why", Why)
def test_every_reason_of_the_other_host_has_words(why: Why) -> None:
    assert words.sorry(why, "anna").trouble in Trouble


@pytest.mark.parametrize("trouble", Trouble)
def test_commands_of_ours_can_be_typed(trouble: Trouble) -> None:
    """Each that is named, here or behind ssh, is one that there is, with arguments that it takes."""
    error = TroubleError(trouble, known=OWN, user="anna")
    _, what_to_do = words.explain(error, TARGET, OWN, 7747)
    for command in re.findall(r"`([^`]*)`", what_to_do):
        argv = shlex.split(command.removeprefix("sudo "))
        assert argv[0] in {"redirectctl", "ssh", "systemctl", "apt-get", "make"}
        if "redirectctl" not in argv or "usermod" in argv:
            continue
        own = argv[argv.index("redirectctl") + 1 :]
        rest = own.index("--") if "--" in own else len(own)
        ctl.make_parser([own[0]]).parse_args(own[:rest])


def test_the_way_there_is_as_it_was_given() -> None:
    assert TARGET.over_ssh("true") == "ssh -t -p 2222 -i 'a key' anna@server true"
    assert TARGET.again == "redirectctl pair anna@server -- -p 2222 -i 'a key'"
    _, what_to_do = words.explain(TroubleError(Trouble.DENIED, user="anna"), TARGET, OWN, 7747)
    assert "redirectctl pair --sudo anna@server -- -p 2222 -i 'a key'" in what_to_do
    assert "ssh -t -p 2222 -i 'a key' anna@server sudo usermod -aG redirectctl anna" in what_to_do

"""Which words of a command line are looked up."""

from __future__ import annotations

import pytest

from redirectctl.names.words import MAX_WORDS, destination, host_words


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["ssh", "server.example.net"], ["server.example.net"]),
        (["ssh", "-p", "22", "-l", "bob", "Server.Example.NET", "uptime"], ["server.example.net", "bob", "uptime"]),
        (["ssh", "bob@server.example.net"], ["server.example.net"]),
        (["ssh", "server"], ["server"]),
        (["scp", "f", "bob@server.example.net:dir/f"], ["server.example.net", "f"]),
        (["rsync", "-av", "server.example.net:/srv/", "."], ["server.example.net"]),
        (["rsync", "rsync://server.example.net:873/all"], ["server.example.net"]),
        (["psql", "-h", "db.example.net", "-p", "5432"], ["db.example.net"]),
        (["psql", "--host=db.example.net"], ["db.example.net"]),
        (["psql", "host=db.example.net password=secret.word"], ["db.example.net"]),
        (["psql", "postgresql://user:secret.word@db.example.net/app"], ["db.example.net"]),
        (["curl", "https://[2001:db8::1]/"], []),
        (["mysql", "-psecret.word", "--password=secret.word", "-hdb"], []),
        (["ssh", "192.0.2.1"], []),
        (["ssh", "2001:db8::1"], []),
        (["ssh", "bob@[2001:db8::1]"], []),
        (["curl", "https://[::1"], []),
        (["sh", "-c", "echo a.b | nc c.d 1"], []),
        ([], []),
        (["ssh"], []),
    ],
)
def test_words(command: list[str], words: list[str]) -> None:
    assert host_words(command) == words


def test_they_are_few() -> None:
    assert len(host_words(["cat", *(f"file{n}.txt" for n in range(1000))])) == MAX_WORDS


@pytest.mark.parametrize(
    ("command", "word"),
    [
        (["ssh", "server"], "server"),
        (["/usr/bin/ssh", "bob@Server"], "server"),
        (["ssh", "-p", "22", "-v", "server", "uptime", "now"], "server"),
        (["ssh", "-p22", "-4vl", "bob", "my_server", "-v"], "my_server"),
        (["ssh", "-o", "ProxyCommand nc gate 22", "server"], "server"),
        (["ssh", "-oProxyCommand=nc gate 22", "--", "server"], "server"),
        (["ssh", "-W", "[inside]:22", "gate"], "gate"),  # what `ssh -J gate inside` runs
        (["ssh", "ssh://bob@server:2222"], "server"),
        (["ssh", "-x", "-oPermitLocalCommand=no", "bob@server", "scp -t ."], "server"),  # what scp runs
        (["ssh", "192.0.2.1"], None),
        (["ssh", "2001:db8::1"], None),
        (["ssh", "bob@[2001:db8::1]"], None),
        (["ssh", "ser\x1bver"], None),
        (["ssh", "SHA256:abc"], None),
        (["ssh", "x" * 65], None),
        (["ssh", "-V"], None),
        (["ssh", "-p"], None),
        (["ssh"], None),
        ([], None),
        (["psql", "server"], None),  # which of its words is the host, DNS says
    ],
)
def test_what_ssh_is_told(command: list[str], word: str | None) -> None:
    assert destination(command) == word

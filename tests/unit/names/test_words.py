"""Which words of a command line are looked up."""

from __future__ import annotations

import pytest

from redirectctl.names.words import MAX_WORDS, host_words


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

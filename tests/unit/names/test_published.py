"""Keys in DNS: the record, and under which name of a command one is looked for."""

from __future__ import annotations

import pytest

from redirectctl.names.published import fingerprints, is_whole, meant, record
from redirectctl.proto.fingerprint import fingerprint

ONE, TWO = fingerprint(b"\x01" * 32), fingerprint(b"\x02" * 32)


def test_what_is_printed_is_what_is_read() -> None:
    line = record("server.example.net", ONE)
    assert line == f'_redirectctl.server.example.net. IN TXT "v=1 {ONE}"'
    assert fingerprints([line.split('"')[1].encode()]) == {ONE}
    assert record("server", ONE).startswith("_redirectctl.server IN TXT ")  # completed by the zone's name


@pytest.mark.parametrize(
    "text", [ONE, f"v=2 {ONE}", f"v=1  {ONE}", f"v=1 {ONE} x", f"v=1 {ONE[7:]}", "v=1", "", "v=1 \xff", "v=1 SHA256:x"]
)
def test_other_texts_are_no_keys(text: str) -> None:
    assert fingerprints([text.encode(), f"v=1 {TWO}".encode()]) == {TWO}


@pytest.mark.parametrize(
    ("command", "name"),
    [
        ("ssh server.example.net", "server.example.net"),
        ("ssh -p 22 me@Server.Example.net uptime other.example", "server.example.net"),
        ("/usr/bin/ssh -x -- server.example.net sftp-server", "server.example.net"),
        ("ssh server", None),  # the network's search list would complete it
        ("ssh server cat mallory.example", None),
        ("ssh 192.0.2.1 mallory.example", None),
        ("psql host=db.example.net user=me", "db.example.net"),
        ("curl https://www.example.net/", "www.example.net"),
        ("curl https://www.example.net/ -e https://mallory.example/", None),  # which of the two is the host?
        ("scp notes.txt server.example.net:", None),
        ("nc 192.0.2.1 22", None),
        ("", None),
    ],
)
def test_the_name_that_a_command_means(command: str, name: str | None) -> None:
    assert meant(command.split()) == name


def test_names_that_are_too_long_are_not_looked_up() -> None:
    longest = "a." * 119 + "b"
    assert is_whole(longest)
    assert not is_whole(f"{longest}.example")
    assert not is_whole("192.0.2.1")

"""Files of fingerprints and names."""

from __future__ import annotations

from pathlib import Path

import pytest

from redirectctl import known_peers
from redirectctl.config import ConfigError
from redirectctl.proto.fingerprint import fingerprint

ONE, TWO = fingerprint(b"\x01" * 32), fingerprint(b"\x02" * 32)


def refused(*files: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        known_peers.read(map(str, files))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def written(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(0o644)
    return path


def test_lines(tmp_path: Path) -> None:
    text = f"# ours\n\n{ONE} server one\t# the first\n  {TWO.removeprefix('SHA256:')}\n"
    assert known_peers.read([str(written(tmp_path / "a", text))]) == {ONE: "server one", TWO: ""}


def test_a_name_may_have_the_character_that_begins_comments(tmp_path: Path) -> None:
    assert known_peers.read([str(written(tmp_path / "a", f"{ONE} a#b\n"))]) == {ONE: "a#b"}


def test_what_is_exported_is_read(tmp_path: Path) -> None:
    peers = [(ONE, "server one"), (TWO, "")]
    assert known_peers.read([str(written(tmp_path / "a", known_peers.write(peers)))]) == dict(peers)


def test_several_keys_of_one_name_and_several_files(tmp_path: Path) -> None:
    first, second = written(tmp_path / "a", f"{ONE} server\n"), written(tmp_path / "b", f"{TWO} server\n{ONE} server\n")
    assert known_peers.read([str(first), str(second)]) == {ONE: "server", TWO: "server"}


def test_one_key_has_one_name(tmp_path: Path) -> None:
    first, second = written(tmp_path / "a", f"{ONE} server\n"), written(tmp_path / "b", f"\n{ONE} mallory\n")
    assert refused(first, second) == (
        f"{second}:2: the same key is called server in {first}:1; leave one of the two lines"
    )


@pytest.mark.parametrize("line", ["SHA256:short server", "server", "ssh-ed25519 AAAA", f"{ONE}x server"])
def test_what_is_no_fingerprint(tmp_path: Path, line: str) -> None:
    assert f"{tmp_path / 'a'}:2: " in refused(written(tmp_path / "a", f"{TWO} other\n{line}\n"))


@pytest.mark.parametrize("name", ["x" * 65, "a\x1b[31m"])
def test_what_is_no_name(tmp_path: Path, name: str) -> None:
    assert "64 printable characters" in refused(written(tmp_path / "a", f"{ONE} {name}\n"))


def test_a_file_that_others_can_change_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "a", f"{ONE} server\n")
    path.chmod(0o666)
    assert f"{path}: others can change it; chmod go-w {path}" == refused(path)


def test_a_file_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    assert "no such file" in refused(tmp_path / "a")

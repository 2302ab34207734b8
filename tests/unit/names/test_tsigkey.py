"""The key file: what is read, and what is refused."""

from __future__ import annotations

import base64
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from redirectctl.names.tsigkey import KeyFileError, parse, read

SECRET = base64.b64encode(b"a//b#c/*d*/e").decode()
TEXT = f'key "laptop.example" {{\n\talgorithm hmac-sha256;\n\tsecret "{SECRET}";\n}};\n'


def test_what_tsig_keygen_writes() -> None:
    assert parse(TEXT) == ("laptop.example", "hmac-sha256", b"a//b#c/*d*/e")


def test_comments_and_other_statements_are_passed_over() -> None:
    text = f'# key "other" {{ }}\n// x\n/* key "y" {{\n */\nzone x {{ }};\n{TEXT}'
    assert parse(text).name == "laptop.example"


def test_a_secret_with_slashes_is_no_comment() -> None:
    secret = base64.b64encode(b"\xff" * 30).decode()
    assert "//" in secret
    assert parse(f'key "k" {{ algorithm hmac-sha512; secret "{secret}"; }};').secret == b"\xff" * 30


@pytest.mark.skipif(shutil.which("tsig-keygen") is None, reason="tsig-keygen is not installed")
def test_what_the_real_tsig_keygen_writes() -> None:
    for algorithm in ("hmac-sha256", "hmac-sha512"):
        made = subprocess.run(["tsig-keygen", "-a", algorithm, "a.b"], capture_output=True, text=True, check=True)
        key = parse(made.stdout)
        assert (key.name, key.algorithm) == ("a.b", algorithm)
        assert len(key.secret) >= 32


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "no key"),
        ("key laptop", "no key"),
        ('key "k" { secret "YQ=="; };', "algorithm missing"),
        ('key "k" { algorithm rot13; secret "YQ=="; };', "algorithm rot13"),
        ('key "k" { algorithm hmac-sha256; };', "no secret"),
        ('key "k" { algorithm hmac-sha256; secret "a"; };', "no secret"),
    ],
)
def test_what_is_no_key(text: str, why: str) -> None:
    with pytest.raises(KeyFileError, match=why):
        parse(text)


@pytest.mark.parametrize("mode", [0o644, 0o604, 0o602, 0o620, 0o660])
def test_a_file_that_others_can_read_or_change_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "key"
    path.write_text(TEXT)
    path.chmod(mode)
    with pytest.raises(KeyFileError, match=f"others can read or change it; chown root {path}; chmod 600 {path}"):
        read(path)
    path.chmod(0o640)
    assert read(path).secret


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(KeyFileError, match="No such file"):
        read(tmp_path / "key")
    with pytest.raises(KeyFileError, match="directory"):
        read(tmp_path)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_a_file_of_another_user_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_text(TEXT)
    path.chmod(0o600)
    os.chown(path, 12345, 0)
    with pytest.raises(KeyFileError, match="others can"):
        read(path)


def test_the_secret_is_not_shown() -> None:
    key = parse(TEXT)
    assert SECRET not in repr(key)
    assert "a//b" not in f"{key}"

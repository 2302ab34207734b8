import hashlib
from base64 import b64decode

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from redirectctl.proto.fingerprint import draw, fingerprint, matches, parse, picture

PUBLIC = bytes(range(32))
PRINT = "SHA256:Yw3NKWbEM2aRElRIu7JbT/QSpJxzLbLIq8G4WBvXEN0"

# Public keys in ssh's format and what `ssh-keygen -lv` (OpenSSH 9.2) says of them.
OPENSSH = [
    (
        "AAAAC3NzaC1lZDI1NTE5AAAAIH5jC2+3APu9Wl9IdlKbvmKJ38uAVLsFAbhZflIZfbzg",
        "SHA256:qAzQKY2Hqx2j0r2/CrGAZWDbSdeBMwMCIQWVU7+Km4w",
        """\
+--[ED25519 256]--+
|BBo=o.o..        |
|o*B.o* .         |
|=.B+  =          |
|.B     o         |
|+ =   o S        |
|.= X o           |
|+ * =            |
|.o + .           |
|E + ooo.         |
+----[SHA256]-----+""",
    ),
    (
        "AAAAC3NzaC1lZDI1NTE5AAAAIB/MM2tTSBIqKCze47xsgfln8MCa7MV10cbW641VQvlF",
        "SHA256:4qYDf3p/ExXC7lKBwzLQbAAXJMHU5iEVWc8sxd/nYUI",
        """\
+--[ED25519 256]--+
| o=*OX.o.o       |
|  oo= *== + E    |
|   + o.o++ = .   |
|    .  .  + + +  |
|      . So . = . |
|  .  . .. o   .  |
|   o  o  . .     |
|    ooo   o      |
|    o= ... .     |
+----[SHA256]-----+""",
    ),
    (
        "AAAAC3NzaC1lZDI1NTE5AAAAIAyejyWUFW+GS2zSc+bJKQxSLW3usc3dZcMHWLMINwe/",
        "SHA256:Qvg3LgH3KvTVmHCnfj+ofVg73SAckzVcZqxXFtavjyo",
        """\
+--[ED25519 256]--+
|             . =*|
|     .        =o=|
|    o + . .  o +o|
|     = + *  + . o|
|    . + S .. o o |
|   . . O .  + o  |
|    . + o .+ + = |
|     . . oE.= o o|
|        ...oo+   |
+----[SHA256]-----+""",
    ),
]


def test_of_a_public_key() -> None:
    assert fingerprint(PUBLIC) == PRINT
    assert picture(PUBLIC, "laptop") == draw(hashlib.sha256(PUBLIC).digest(), "laptop")


@pytest.mark.parametrize(("key", "expected", "art"), OPENSSH)
def test_as_openssh_writes_and_draws_the_same_digest(key: str, expected: str, art: str) -> None:
    blob = b64decode(key)
    assert fingerprint(blob) == expected
    assert draw(hashlib.sha256(blob).digest(), "ED25519 256") == art


def test_visits_beyond_the_symbols_show_as_the_last_one() -> None:
    """64 steps up and left, down and right in turn stay on two fields."""
    art = draw(bytes([0b11001100] * 32), "t")
    assert art.splitlines()[4:6] == ["|       ^         |", "|        E        |"]


def test_the_piece_stops_at_the_walls() -> None:
    assert draw(bytes(32), "").splitlines()[1] == "|E....            |"
    assert draw(bytes([0xFF] * 32), "").splitlines()[9] == "|            ....E|"


def test_titles_are_centred_and_must_fit() -> None:
    assert draw(bytes(32), "fifteen letters").splitlines()[0] == "+[fifteen letters]+"
    assert draw(bytes(32), "RSA 1024").splitlines()[0] == "+---[RSA 1024]----+"
    with pytest.raises(ValueError, match="too long"):
        draw(bytes(32), "sixteen letters!")


@settings(deadline=None)
@given(st.binary(min_size=32, max_size=32))
def test_a_picture_is_always_eleven_lines_of_nineteen(public: bytes) -> None:
    lines = picture(public, "host").splitlines()
    assert [len(line) for line in lines] == [19] * 11
    assert "".join(lines[1:-1]).count("E") == 1


def test_parse_takes_whole_fingerprints_only() -> None:
    assert parse(PRINT) == parse(PRINT.removeprefix("SHA256:")) == PRINT
    last = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    sibling = last[last.index(PRINT[-1]) ^ 1]  # the two spare bits of the last character are not zero
    for wrong in ("", "SHA256:", PRINT[:-1], PRINT + "A", PRINT + "=", PRINT[:-1] + sibling, "MD5:" + PRINT, "é" * 43):
        with pytest.raises(ValueError, match="not a fingerprint"):
            parse(wrong)


def test_prefixes() -> None:
    bare = PRINT.removeprefix("SHA256:")
    for length in range(1, len(bare) + 1):
        assert matches(PRINT, bare[:length])
        assert matches(PRINT, "SHA256:" + bare[:length])
    for wrong in ("", "SHA256:", bare[1:], bare + "A", bare[:5].swapcase(), "sha256:" + bare):
        assert not matches(PRINT, wrong)

"""The question about a new host: what decides, and what is drawn."""

from __future__ import annotations

from typing import Any

import pytest

from redirectctl_wrappers.prompt import Prompt

FINGERPRINT = "SHA256:Zmh6rfhivXdsj8GLjp+OIAiXFIVu4jOzkCpZHQ1fKSU"
PICTURE = "+--[redirectctl]--+\n|     o+=+o       |\n+----[SHA256]-----+"


def question(**changes: Any) -> dict[str, Any]:
    return {
        "fingerprint": FINGERPRINT,
        "picture": PICTURE,
        "addresses": ["192.0.2.7"],
        "known": [],
        "may_decide": True,
    } | changes


def answer(typed: bytes, **changes: Any) -> str | None:
    return Prompt(question(**changes), "ssh server").press(typed)


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        (b"approve\r", "approve"),
        (b" APPROVE \r", "approve"),
        (FINGERPRINT.encode() + b"\r", "approve"),
        (b"\x1b[200~" + FINGERPRINT.encode() + b"\x1b[201~\r", "approve"),  # pasted
        (b"reject\r", "reject"),
        (b"later\r", "later"),
        (b"\x03", "later"),
        (b"\x04", "later"),
        (b"\x1d", "back"),
        (b"approvex\x7f\r", "approve"),
        (b"ls -l\x15approve\n", "approve"),
        (b"\r\r\rapprove\r", "approve"),
        (b"\x1b[A\x1bOBapprove\r", "approve"),  # arrows
        # What somebody happens to be typing decides nothing.
        (b"a", None),
        (b"a\r", None),
        (b"r\r", None),
        (b"yes\r", None),  # the words of ssh
        (b"no\r", None),
        (b"\r", None),
        (b"approve", None),
        (b"cat approve\r", None),
        (FINGERPRINT[:-1].encode() + b"\r", None),
        (FINGERPRINT.lower().encode() + b"\r", None),
        (b"x" * 1000 + b"\r", None),
        (b"\xff\xfeapprove\xc3\r", None),
    ],
)
def test_only_a_whole_word_decides(typed: bytes, expected: str | None):
    assert answer(typed) == expected
    prompt = Prompt(question(), "ssh server")
    answers = [found for byte in typed if (found := prompt.press(bytes([byte]))) is not None]
    assert answers[:1] == ([expected] if expected else [])


@pytest.mark.parametrize("typed", [b"approve\r", b"yes\r", FINGERPRINT.encode() + b"\r", b"\r"])
def test_a_changed_key_cannot_be_approved(typed: bytes):
    assert answer(typed, known=["SHA256:old"]) is None


def test_a_changed_key_is_loud():
    shown = Prompt(question(known=["SHA256:old"]), "ssh server").draw(24, 80)
    for text in (b"WARNING", b"THE KEY OF 192.0.2.7 HAS CHANGED", b"SHA256:old", FINGERPRINT.encode()):
        assert text in shown
    assert b"approve" not in shown
    assert answer(b"reject\r", known=["SHA256:old"]) == "reject"
    assert answer(b"later\r", known=["SHA256:old"]) == "later"


@pytest.mark.parametrize("key", [b"\x1d", b"\x1b[93;5u", b"\x1b[27;5;93~"])
def test_the_key_that_opened_it_puts_it_away(key: bytes):
    """However the terminal sends it."""
    assert answer(key) == "back"


def test_its_words_are_not_those_of_ssh():
    """ "Are you sure you want to continue connecting (yes/no/[fingerprint])?" is what ssh asks."""
    for prompt in (Prompt(question(), "ssh"), Prompt(question(known=["SHA256:old"]), "ssh")):
        asked = prompt.plain_question().decode()
        assert asked.strip("\r\x1b[K ").startswith("redirectctl: ")
        for word in ("yes", "no,", "no ", "continue connecting"):
            assert word not in asked
        assert prompt.press(b"yes\rno\r") is None


def test_without_the_right():
    assert answer(b"approve\r", may_decide=False) is None
    assert answer(b"reject\r", may_decide=False) is None
    assert answer(b"\r", may_decide=False) == "later"
    for rows, columns in ((40, 100), (24, 80)):
        picture = "\n".join(["+---[redirectctl]---+"] * 11)
        shown = Prompt(question(may_decide=False, picture=picture), "ssh server").draw(rows, columns)
        assert f"sudo redirectctl approve {FINGERPRINT}".encode() in shown


@pytest.mark.parametrize(("rows", "columns"), [(24, 80), (10, 40), (3, 20), (50, 200)])
def test_it_fits(rows: int, columns: int):
    for changes in ({}, {"known": ["SHA256:old"]}, {"may_decide": False}):
        prompt = Prompt(question(**changes), "ssh server " * 40)
        prompt.press(b"typed" * 20)
        drawn = prompt.draw(rows, columns).decode()
        lines = [line.split("H", 1)[1] for line in drawn.split("\x1b[")[4:]]
        assert all(len(line) < max(columns, 2) for line in lines), lines
        assert len(lines) <= max(rows, 2)


def test_a_real_picture_fits_an_ordinary_terminal_also_after_a_wrong_answer():
    prompt = Prompt(question(picture="\n".join(["+---[redirectctl]---+"] * 11)), "ssh server")
    prompt.press(b"what\r")
    drawn = prompt.draw(24, 80).decode()
    assert drawn.count("[redirectctl]") == 11
    for text in (
        "Ctrl-] puts this away",
        FINGERPRINT,
        "change of address.",
        "'what' is not one of the answers.",
        "approve, reject",
    ):
        assert text in drawn


def test_what_does_not_fit_is_seen_to_be_cut():
    drawn = Prompt(question(), "ssh server " * 40).draw(24, 80).decode()
    (command,) = (line.split("H", 1)[1] for line in drawn.split("\x1b[")[4:] if "for      ssh" in line)
    assert command.endswith("…")
    assert len(command) == 79


def test_it_shows_what_is_needed_to_compare():
    shown = Prompt(question(), "ssh server").draw(24, 80).decode()
    for text in (FINGERPRINT, "192.0.2.7", "ssh server", *PICTURE.splitlines()):
        assert text in shown
    assert PICTURE.splitlines()[1] not in Prompt(question(), "ssh server").draw(20, 80).decode()
    assert FINGERPRINT in Prompt(question(), "ssh server").plain().decode()


def test_nothing_steers_the_terminal():
    evil = question(addresses=["\x1b[2J"], picture="\x1b]0;x\x07", fingerprint="SHA256:\x1b[A", known=["\x1b[B"])
    for prompt in (Prompt(evil, "\x1b[31mssh"), Prompt(evil | {"known": []}, "\x1b[31mssh")):
        for bad in (b"\x1b[2J\\x", b"\x1b]0;x", b"\x1b[A", b"\x1b[B", b"\x1b[31m"):
            assert bad not in prompt.draw(24, 80)
            assert bad not in prompt.plain()


def test_a_fingerprint_that_is_another_does_not_match():
    """Typed whole, as somebody has read it out: with what says of which kind it is, or without."""
    prompt = Prompt(question(), "ssh server")
    other = "SHA256:" + FINGERPRINT.removeprefix("SHA256:")[::-1]
    assert prompt.press(f"{other}\r".encode()) is None
    assert b"does not match" in prompt.draw(24, 80)
    assert prompt.press(f"{FINGERPRINT.removeprefix('SHA256:')}\r".encode()) == "approve"


def test_what_the_host_calls_itself_is_in_quotes_and_cannot_steer_the_terminal():
    drawn = Prompt(question(says="laptop\x1b[2J"), "ssh server").draw(24, 80)
    assert b'which calls itself "laptop\\x1b[2J"' in drawn
    assert b"calls itself" not in Prompt(question(says=None), "ssh server").draw(24, 80)

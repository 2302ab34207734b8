"""What is written to the terminal besides the command's output, and when."""

from __future__ import annotations

from typing import Any

import pytest

from redirectctl_wrappers.display import HELD, Display, wrapped

LOST = {"id": "c", "remote": "192.0.2.7:22", "state": "suspended", "lost_for": 3.0}
BACK = {"id": "c", "remote": "192.0.2.7:22", "state": "protected", "lasted": 4.0}
NEW = {"fingerprint": "SHA256:new", "picture": "+-+", "addresses": ["192.0.2.7"], "known": [], "may_decide": True}
WINSIZE = (24).to_bytes(2, "little") + (80).to_bytes(2, "little") + bytes(4)


def reply(*connections: Any, questions: Any = ()) -> dict[str, Any]:
    return {"connections": list(connections), "questions": list(questions)}


KEY = b"\x1d"


def ask(shown: Display, now: float = 0.0) -> bytes:
    """A question comes up, and somebody presses the key that it names."""
    shown.update(now, reply(questions=[NEW]))
    assert shown.waiting
    return shown.open()


def display(notify: str = "title", simple: bool = False) -> Display:
    made = Display(notify, ["ssh", "server"], "/nowhere/redirectd.sock", simple)
    made.resize(WINSIZE)
    return made


def test_title_and_the_command_own_again():
    shown = display()
    assert shown.pass_on(b"\x1b]0;mine\x07$ ") == b"\x1b]0;mine\x07$ "
    assert shown.update(0.0, reply(LOST)) == b"\x1b[22;2t\x1b]2;redirectctl: no path to 192.0.2.7 for 3.0s\x07"
    assert shown.next_at(0.0) == 1.0
    assert shown.tick(1.0) == b"\x1b]2;redirectctl: no path to 192.0.2.7 for 4.0s\x07"
    assert shown.update(1.0, reply(BACK)) == b"\x1b]2;redirectctl: path to 192.0.2.7 is back after 4.0s\x07"
    assert shown.tick(9.0) == b"\x1b]2;\x07\x1b[23;2t\x1b]2;mine\x07"
    assert shown.next_at(9.0) is None
    assert shown.tick(10.0) == b""


@pytest.mark.parametrize("begun", [b"\x1b[3", b"\x1b]0;tit", "ä".encode()[:1], b"\x1bPq"])
def test_nothing_is_written_into_a_sequence_or_character(begun: bytes):
    shown = display()
    shown.pass_on(begun)
    assert shown.update(0.0, reply(LOST)) == b""
    assert shown.tick(1.0) == b""
    shown.pass_on(b"\x1b\\a")
    assert b"no path" in shown.tick(2.0)


def test_lines_show_the_current_one_again():
    shown = display("inline")
    shown.pass_on(b"before\r\n$ ls -")
    text = b"redirectctl: no path to 192.0.2.7; suspended until there is one\r\n"
    assert shown.update(0.0, reply(LOST)) == b"\r\n" + text + b"$ ls -"
    assert shown.tick(1.0) == b""
    shown.pass_on(b"\r\n")
    assert shown.update(2.0, reply(BACK)) == b"\rredirectctl: path to 192.0.2.7 is back after 4.0s\r\n"


def test_lines_become_titles_while_a_full_screen_program_runs():
    shown = display("inline")
    shown.pass_on(b"\x1b[?1049h\x1b[2;3Htext")
    written = shown.update(0.0, reply(LOST))
    assert written == b"\x1b[22;2t\x1b]2;redirectctl: no path to 192.0.2.7 for 3.0s\x07"
    shown.pass_on(b"\x1b[?1049l$ ")
    assert shown.tick(2.0) == (
        b"\r\nredirectctl: no path to 192.0.2.7; suspended until there is one\r\n$ \x1b]2;\x07\x1b[23;2t"
    )


def test_no_notices_when_none_are_wanted():
    shown = display("none")
    assert shown.update(0.0, reply(LOST)) == b""
    assert shown.tick(1.0) == b""
    assert b"first contact" in shown.update(2.0, reply(questions=[NEW]))


def test_a_question_is_a_line_that_names_a_key_until_that_is_pressed():
    shown = display()
    shown.pass_on(b"before\r\n$ ls -")
    assert shown.update(0.0, reply(questions=[NEW])) == (
        b"\r\nredirectctl: first contact with 192.0.2.7: nothing is protected yet"
        b"\r\nredirectctl: press Ctrl-] to see the key and to answer\r\n$ ls -"
        b"\x1b[22;2t\x1b]2;redirectctl: host 192.0.2.7 is new: press Ctrl-]\x07"
    )
    assert not shown.asking
    assert shown.waiting
    assert shown.pass_on(b"l") == b"l"
    assert shown.tick(1.0) == b""  # said once
    opened = shown.open()
    assert b"\x1b[?1049h" in opened
    assert b"SHA256:new" in opened
    assert shown.asking
    assert shown.press(2.0, KEY) == (b"\x1b[?1049l", b"")  # away again, and not answered
    assert shown.waiting
    assert b"\x1b[?1049h" in shown.open()


def test_a_changed_key_is_a_warning_that_names_a_key():
    shown = display()
    written = shown.update(0.0, reply(questions=[NEW | {"known": ["SHA256:old"]}]))
    assert b"redirectctl: WARNING: the key of 192.0.2.7 has changed\r\n" in written
    assert b"Ctrl-]" in written
    assert b"WARNING: THE KEY" in shown.open()


def test_nothing_is_said_of_a_question_while_a_password_is_typed():
    shown = display()
    shown.pass_on(b"password: ")
    written = shown.update(0.0, reply(questions=[NEW]), secret=True)
    assert b"\r\n" not in written
    assert b"Ctrl-]" not in written
    assert not shown.waiting
    assert shown.open() == b""
    assert b"Ctrl-]" in shown.tick(1.0)
    assert shown.waiting


def test_question_and_what_is_written_meanwhile():
    shown = display()
    shown.pass_on(b"$ \x1b[?25l")
    assert b"\x1b[?1049h" in ask(shown)
    assert shown.asking
    assert shown.pass_on(b"output") == b""
    assert shown.next_at(0.0) is None
    assert shown.press(1.0, b"later\r")[0].startswith(b"\x1b[?1049l\x1b[?25loutput")
    assert not shown.asking
    assert shown.pass_on(b"more") == b"more"
    assert shown.update(2.0, reply(questions=[NEW])) == b""  # not asked again
    assert not shown.asking


def test_question_goes_away_when_somebody_else_has_answered():
    shown = display()
    ask(shown)
    assert shown.update(1.0, reply()) == b"\x1b[?1049l"
    assert not shown.asking


def test_question_waits_for_the_end_of_a_full_screen_program():
    shown = display()
    shown.pass_on(b"\x1b[?1049h")
    assert b"host 192.0.2.7 is new: see redirectctl peers" in shown.update(0.0, reply(questions=[NEW]))
    assert not shown.waiting  # the key is that program's
    assert shown.open() == b""
    shown.pass_on(b"\x1b[?1049l$ ")
    assert b"first contact" in shown.tick(1.0)
    assert shown.waiting
    shown.pass_on(b"\x1b[?1049h")
    assert not shown.waiting


def test_a_command_with_much_to_say_does_not_wait_for_an_answer():
    shown = display()
    ask(shown)
    written = b""
    for _ in range(HELD // 1000 + 1):
        written += shown.pass_on(b"x" * 1000)
    assert not shown.asking
    assert written.startswith(b"\x1b[?1049l")
    assert written.count(b"x") == (HELD // 1000 + 1) * 1000
    assert shown.has_room()
    assert b"first contact" not in shown.update(1.0, reply(questions=[NEW]))
    assert not shown.asking  # but it can be opened again


def test_answer_that_the_daemon_does_not_take():
    shown = display()
    ask(shown)
    assert b"cannot reach the daemon" in shown.press(1.0, b"approve\r")[0]
    assert shown.asking


def test_what_is_typed_behind_an_answer_is_the_commands():
    shown = display()
    ask(shown)
    written, left = shown.press(1.0, b"no\rlater\recho on\r")
    assert left == b"echo on\r"
    assert b"'no' is not one of the answers" in written
    assert not shown.asking
    assert shown.press(2.0, b"x") == (b"", b"x")


def test_the_daemon_goes_away():
    shown = display()
    ask(shown)
    assert shown.forget(1.0) == b"\x1b[?1049l"
    shown.update(1.0, reply(LOST))
    assert shown.forget(1.0) == b"\x1b]2;\x07\x1b[23;2t"
    assert shown.tick(3.0) == b""


def test_a_terminal_without_titles_and_screens():
    shown = display(simple=True)
    shown.pass_on(b"$ ls")
    assert shown.update(0.0, reply(LOST)).startswith(b"\r\nredirectctl: no path")
    asked = shown.update(1.0, reply(LOST, questions=[NEW]))
    assert b"first contact" in asked
    assert b"\x1b" not in asked
    asked = shown.open()
    assert b"SHA256:new" in asked
    assert b"\x1b[?" not in asked + shown.press(2.0, b"la")[0]
    assert shown.press(3.0, b"ter\r") == (b"\r\n$ ls", b"")


def test_a_long_line_goes_on_in_the_next_and_a_command_is_whole():
    shown = display("inline")
    key = "SHA256:Zmh6rfhivXdsj8GLjp+OIAiXFIVu4jOzkCpZHQ1fKSU"
    waits = {"id": "c", "remote": "192.0.2.7:22", "state": "pending", "reason": "approval-pending-there"}
    shown.pass_on(b"$ ")
    written = shown.update(0.0, reply(waits) | {"identity": key}).decode()
    assert written == (
        "\r\nredirectctl: not protected yet: 192.0.2.7 must approve this host; run there:\r\n"
        f"  sudo redirectctl approve {key}\r\n$ "
    )
    assert wrapped("a word of " + key, 30) == ["a word of", f"  {key}"]


def test_the_daemon_stops():
    shown = display("inline")
    shown.pass_on(b"$ ")
    assert shown.forget(0.0) == b""
    assert shown.next_at(0.0) == 1.0
    assert shown.tick(1.0) == b""
    assert b"redirectd has stopped" in shown.tick(6.0)
    assert shown.next_at(6.0) is not None  # a title may end
    assert shown.last_words(7.0, 0) != []
    shown.pass_on(b"\r\n")
    assert b"redirectd runs again" in shown.update(8.0, reply())


def test_what_is_learnt_of_ssh_before_anything_is_told():
    shown = display("inline")
    assert shown.learn(0.0, ends_after=45, master=0) == b""
    assert b"ssh gives up after 45s" in shown.update(1.0, reply(LOST))
    shown = display("inline")
    assert shown.learn(0.0, ends_after=0, master=4711) == b""
    assert shown.update(1.0, reply()) == b""
    assert shown.next_at(1.0) == 2.0
    assert b"redirectctl protect 4711" in shown.tick(11.0)


def test_last_words_are_none_when_none_are_wanted():
    for notify, lines in (("none", 0), ("title", 1), ("inline", 1)):
        shown = display(notify)
        shown.update(0.0, reply({"id": "c", "remote": "192.0.2.7:22", "state": "unsupported", "reason": "no-answer"}))
        assert len(shown.last_words(1.0, 0)) == lines
    assert display().last_words(0.0, 0) == []


def test_redrawn_at_another_size():
    shown = display()
    assert shown.resize(WINSIZE) == b""
    ask(shown)
    assert b"first contact" in shown.resize(WINSIZE)


def test_the_end():
    shown = display()
    shown.update(0.0, reply(LOST))
    assert shown.end() == b"\x1b]2;\x07\x1b[23;2t"
    assert shown.end() == b""

"""What is told about lost and regained paths."""

from __future__ import annotations

from typing import Any

import pytest

from redirectctl_wrappers.notices import MASTER_AFTER, MOST_LINES, MOST_TOLD, SHOW_BACK, STOPPED_AFTER, Notices


def lost(name: str = "c1", host: str = "192.0.2.7", seconds: float = 0.0) -> dict[str, Any]:
    return {"id": name, "remote": f"{host}:22", "state": "suspended", "lost_for": seconds}


def back(name: str = "c1", host: str = "192.0.2.7", lasted: float = 12.0) -> dict[str, Any]:
    return {"id": name, "remote": f"{host}:22", "state": "protected", "lasted": lasted}


def reply(*connections: dict[str, Any]) -> dict[str, Any]:
    return {"connections": list(connections), "questions": []}


def test_lost_for_how_long_and_back():
    notices = Notices("ssh")
    notices.update(100.0, reply(lost(seconds=2.0)))
    assert notices.title(100.0) == "no path to 192.0.2.7 for 2.0s"
    assert notices.title(163.0) == "no path to 192.0.2.7 for 1m 5s"
    assert notices.lines(100.0) == ["no path to 192.0.2.7; suspended until there is one"]
    notices.update(170.0, reply(back(lasted=72.0)))
    assert notices.title(170.0) == "path to 192.0.2.7 is back after 1m 12s"
    assert notices.lines(170.0) == ["path to 192.0.2.7 is back after 1m 12s"]
    assert notices.title(170.0 + SHOW_BACK) is None
    assert notices.waiting()
    notices.expire(170.0 + SHOW_BACK)
    assert not notices.waiting()


def test_a_night_of_outages_behind_a_full_screen_program_is_no_flood_when_that_ends():
    notices = Notices("ssh")
    for outage in range(500):
        notices.update(20.0 * outage, reply(lost()))
        notices.update(20.0 * outage + 10, reply(back(lasted=10.0 + outage)))
    told = notices.lines(10_000.0)
    assert told[-1] == "path to 192.0.2.7 is back after 8m 29s"
    assert len(told) <= MOST_LINES
    notices.forget(20_000.0)
    for _ in range(20):
        notices.title(20_000.0 + STOPPED_AFTER)
        notices.update(20_100.0, reply(back(lasted=1.0)))
        notices.forget(20_100.0)
        notices.title(20_100.0 + STOPPED_AFTER)
    told = notices.lines(20_101.0)
    assert len(told) <= MOST_LINES
    assert not told[0].startswith(" "), "a command stands behind what it is for"


def test_lines_remind():
    notices = Notices("ssh")
    notices.update(0.0, reply(lost()))
    told = [(second, line) for second in range(4000) for line in notices.lines(float(second))]
    assert told == [
        (0, "no path to 192.0.2.7; suspended until there is one"),
        (60, "no path to 192.0.2.7 for 1m"),
        (600, "no path to 192.0.2.7 for 10m"),
        (3600, "no path to 192.0.2.7 for 1h"),
    ]


def test_several_connections_are_one_notice():
    notices = Notices("ssh")
    notices.update(0.0, reply(lost("a"), lost("b"), lost("c", "2001:db8::1")))
    assert notices.title(1.0) == "no path to 192.0.2.7 and 1 more for 1.0s"
    notices.update(5.0, reply(back("a"), lost("b"), lost("c")))
    assert "no path" in str(notices.title(5.0))
    assert len(notices.lines(5.0)) == 1
    notices.update(6.0, reply(back("a"), back("b", lasted=6.0), back("c", lasted=6.5)))
    assert notices.title(6.0) == "path to 192.0.2.7 is back after 6.5s"


def test_back_before_it_was_told_as_lost():
    notices = Notices("ssh")
    notices.update(0.0, reply())
    notices.update(1.0, reply(back(lasted=0.4)))
    assert notices.title(1.0) == "path to 192.0.2.7 is back after 0.4s"
    notices.update(9.0, reply(back(lasted=0.4)))
    assert notices.title(9.0) is None


def test_what_was_over_before_the_first_look_is_not_told():
    notices = Notices("ssh")
    notices.update(0.0, reply(back()))
    assert notices.title(0.0) is None
    notices.update(1.0, reply(lost()))
    notices.forget(1.5)  # the daemon stops, and comes back
    assert notices.title(2.0) is None
    notices.update(3.0, reply(back()))
    assert notices.title(3.0) is None


def test_closed_while_lost():
    notices = Notices("ssh")
    notices.update(0.0, reply(lost()))
    notices.update(1.0, reply())
    assert notices.title(1.0) is None


KEY = "SHA256:Zmh6rfhivXdsj8GLjp+OIAiXFIVu4jOzkCpZHQ1fKSU"
SAFE: dict[str, Any] = {"id": "c1", "remote": "192.0.2.7:22", "state": "protected", "peer": KEY, "name": "server"}
BARE: dict[str, Any] = {"id": "c1", "remote": "192.0.2.7:22", "state": "unsupported", "reason": "no-answer"}
PROTECTED = "protected: 192.0.2.7 (server, SHA256:Zmh6rfhivXds…)"
UNPROTECTED = "not protected: 192.0.2.7: the other host's redirectd does not answer"
DOCTOR = "sudo redirectctl doctor 192.0.2.7"
LIMITED = "ssh gives up after 45s of silence; redirect-run --keep prevents it"


def test_protected_is_told_once():
    notices = Notices("ssh")
    notices.update(0.0, reply(SAFE))
    assert notices.title(0.0) == PROTECTED
    assert notices.lines(0.0) == [PROTECTED]
    assert notices.title(SHOW_BACK) is None
    notices.update(9.0, reply(SAFE))
    assert notices.title(9.0) is None
    assert notices.lines(9.0) == []
    assert notices.ended(10.0, 255) == []


def test_not_protected_why_and_what_next():
    notices = Notices("ssh")
    notices.update(0.0, reply(BARE))
    assert notices.title(0.0) == f"{UNPROTECTED}; {DOCTOR}"
    assert notices.lines(0.0) == [UNPROTECTED, f"  {DOCTOR}"]
    notices.update(1.0, reply())  # it negotiates again, and in vain
    notices.update(4.0, reply(BARE))
    assert notices.lines(4.0) == []
    assert notices.ended(5.0, 0) == [
        f"ssh was not protected: 192.0.2.7: the other host's redirectd does not answer; {DOCTOR}"
    ]
    notices.update(6.0, reply(SAFE))
    assert notices.lines(6.0) == [PROTECTED]
    notices.update(17.0, reply())  # it ends
    assert notices.ended(17.0, 0) == []


def test_no_longer_protected():
    notices = Notices("ssh")
    notices.update(0.0, reply(SAFE))
    notices.lines(0.0)
    notices.update(5.0, reply(SAFE | {"state": "released", "reason": "released"}))
    assert notices.lines(5.0) == ["not protected: 192.0.2.7: a person released it here"]
    assert notices.ended(6.0, 0) == ["ssh was not protected: 192.0.2.7: a person released it here"]


def test_a_connection_that_was_gone_long_before_the_end_is_not_told():
    notices = Notices("bash")
    notices.update(0.0, reply(BARE))
    notices.update(100.0, reply())
    assert notices.ended(100.0, 0) != []
    assert notices.ended(200.0, 0) == []


def test_the_other_host_has_to_approve():
    notices = Notices("ssh")
    waits = {"id": "c1", "remote": "[2001:db8::1]:22", "state": "pending", "reason": "approval-pending-there"}
    told = reply(waits) | {"identity": KEY}
    command = f"sudo redirectctl approve {KEY}"
    notices.update(0.0, told)
    assert notices.title(0.0) == f"not protected yet: run on 2001:db8::1: {command}"
    assert notices.lines(0.0) == [
        "not protected yet: 2001:db8::1 must approve this host; run there:",
        f"  {command}",
    ]
    notices.update(100.0, told)
    assert notices.title(100.0) is None
    assert notices.lines(100.0) == []
    (line,) = notices.ended(101.0, 0)
    assert line.endswith(f"run there: {command}")


def test_what_a_question_asks_is_told_at_the_end_only():
    for reason in ("approval-pending-here", "key-changed"):
        notices = Notices("ssh")
        notices.update(0.0, reply(SAFE | {"state": "pending", "reason": reason}))
        assert notices.lines(0.0) == []
        assert notices.title(0.0) is None
        assert len(notices.ended(1.0, 0)) == 1


def test_of_hundreds_of_hosts_only_some_are_told():
    notices = Notices("browser")
    many = [BARE | {"id": str(n), "remote": f"192.0.2.{n}:443"} for n in range(60)]
    for now in range(0, 60, 5):
        notices.update(float(now), reply(*many[: now + 5]))
    assert len(notices.lines(60.0)) == 2 * MOST_TOLD
    assert len(notices.ended(60.0, 0)) == MOST_TOLD + 1
    notices.update(61.0, reply(*many, lost("x", "198.51.100.1")))
    assert len(notices.lines(61.0)) == 1  # a lost path always


def test_the_time_limit_of_ssh():
    notices = Notices("/usr/bin/ssh")
    notices.limit(0.0, 45)
    notices.update(1.0, reply(SAFE))
    assert notices.title(1.0) == f"{PROTECTED}; {LIMITED}"
    assert notices.lines(1.0) == [PROTECTED, LIMITED]
    notices.update(9.0, reply(SAFE | {"state": "suspended", "lost_for": 2.0}))
    assert notices.lines(9.0) == ["no path to 192.0.2.7; suspended, but ssh gives up after 45s"]
    assert notices.title(9.0) == "no path to 192.0.2.7 for 2.0s; ssh gives up after 45s"


def test_the_time_limit_of_ssh_learnt_late():
    notices = Notices("ssh")
    notices.update(1.0, reply(SAFE))
    notices.lines(1.0)
    notices.limit(2.0, 45)
    assert notices.lines(2.0) == [LIMITED]


@pytest.mark.parametrize("seen", [True, False])
def test_ssh_gives_up_in_an_outage(seen: bool):
    notices = Notices("ssh")
    notices.limit(0.0, 45)
    notices.update(0.0, reply(lost()))
    if seen:  # the daemon was quicker than the end of the command
        notices.update(47.0, reply())
    assert notices.ended(47.0, 255) == [
        "ssh ended after 47s without a path to 192.0.2.7, by itself (ServerAliveInterval); redirect-run --keep ssh "
        "prevents it"
    ]


@pytest.mark.parametrize(
    ("program", "limit", "seconds", "status", "said"),
    [
        ("ssh", 45, 10.0, 255, "ssh ended after 10s without a path to 192.0.2.7: that host had ended the session;"),
        ("ssh", 0, 100.0, 255, "ssh ended after 1m 40s without a path to 192.0.2.7: that host had ended the session;"),
        ("ssh", 0, 100.0, 1, "ssh ended after 1m 40s without a path to 192.0.2.7; its connection had been kept"),
        ("rsync", 0, 30.0, 30, "rsync ended after 30s without a path"),  # --timeout
        ("ssh", 45, 60.0, -2, None),
        ("ssh", 45, 60.0, 0, None),
    ],
)
def test_ends_in_an_outage(program: str, limit: int, seconds: float, status: int, said: str | None):
    notices = Notices(program)
    notices.limit(0.0, limit)
    notices.update(0.0, reply(lost()))
    lines = notices.ended(seconds, status)
    assert [line.startswith(str(said)) for line in lines] == [True] * (said is not None)
    assert notices.ended(seconds, status, by_hand=True) == []


@pytest.mark.parametrize("after", [[], [back()]])
def test_the_other_host_had_ended_the_session(after: list[dict[str, Any]]):
    notices = Notices("ssh")
    notices.update(0.0, reply(lost()))
    notices.update(60.0, reply(*after))
    (line,) = notices.ended(61.0, 255)
    assert "ClientAliveInterval" in line
    assert "192.0.2.7" in line
    assert notices.ended(61.0, 0) == notices.ended(70.0, 255) == []


def test_a_master_that_was_opened_plainly():
    notices = Notices("ssh")
    notices.master(4711)
    notices.update(0.0, reply())
    assert notices.waiting()
    assert notices.lines(MASTER_AFTER - 0.1) == notices.ended(MASTER_AFTER - 0.1, 0) == []
    assert notices.lines(MASTER_AFTER) == [
        "not protected: ssh uses a ControlMaster that was opened without redirect-run",
        "  sudo redirectctl protect 4711",
    ]
    assert len(notices.ended(11.0, 0)) == 1
    notices.update(12.0, reply(SAFE | {"remote": "192.0.2.8:22", "state": "short"}))
    assert notices.lines(12.0) == []
    assert len(notices.ended(12.0, 0)) == 1
    notices.update(13.0, reply(SAFE) | {"process": True})
    assert notices.lines(13.0) == [PROTECTED]
    assert notices.ended(30.0, 0) == []


def test_a_master_that_is_found_opted_in_a_moment_later():
    notices = Notices("ssh")
    notices.master(4711)
    notices.update(0.0, reply())
    notices.update(1.0, reply() | {"process": True})
    assert notices.lines(100.0) == []
    assert not notices.waiting()


def test_the_daemon_has_stopped():
    notices = Notices("ssh")
    notices.update(0.0, reply(SAFE))
    notices.lines(0.0)
    notices.forget(10.0)
    notices.forget(11.0)  # and cannot be found again
    assert notices.waiting()
    assert notices.lines(10.0 + STOPPED_AFTER - 0.1) == []
    at = 10.0 + STOPPED_AFTER
    assert notices.title(at) == "redirectd has stopped; nothing is protected: sudo systemctl start redirectd"
    assert notices.lines(at) == [
        "redirectd has stopped; nothing is protected until it runs again:",
        "  sudo systemctl start redirectd",
    ]
    assert notices.lines(at + 1) == []
    assert notices.ended(at + 1, 0) == [
        "ssh ended unprotected: redirectd has stopped; sudo systemctl start redirectd",
    ]
    notices.update(30.0, reply(SAFE))
    assert notices.lines(30.0) == ["redirectd runs again", PROTECTED]
    assert notices.ended(31.0, 0) == []


def test_a_daemon_that_is_restarted_is_not_told():
    notices = Notices("ssh")
    notices.update(0.0, reply(SAFE))
    notices.lines(0.0)
    notices.forget(10.0)
    notices.update(12.0, reply(SAFE))
    assert notices.lines(30.0) == []
    assert notices.title(30.0) is None


def test_a_daemon_that_refuses_has_not_stopped():
    notices = Notices("ssh")
    notices.forget(0.0, stopped=False)
    assert notices.lines(100.0) == notices.ended(100.0, 0) == []


def test_nothing_steers_the_terminal():
    notices = Notices("ssh")
    for evil in (
        lost(host="\x1b]2;x\x07"),
        SAFE | {"name": "\x1b]2;x\x07"},
        SAFE | {"peer": "\x1b[2J"},
        BARE | {"reason": "kernel: \x1b[2J\r\n"},
        BARE | {"reason": "\x1b[2J\r\n"},
        BARE | {"reason": "peer-rejected", "peer": "\x1b[2J\n"},
    ):
        notices = Notices("s\x1bsh")
        notices.limit(0.0, 45)
        notices.update(0.0, reply(evil) | {"identity": "\x1b[2J"})
        told = [str(notices.title(0.0)), *notices.lines(0.0), *notices.ended(0.0, 255)]
        assert all(text.isprintable() for text in told), told

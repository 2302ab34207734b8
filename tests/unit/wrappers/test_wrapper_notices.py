"""What is told about lost and regained paths."""

from __future__ import annotations

from typing import Any

from redirectctl_wrappers.notices import SHOW_BACK, Notices


def lost(name: str = "c1", host: str = "192.0.2.7", seconds: float = 0.0) -> dict[str, Any]:
    return {"id": name, "remote": f"{host}:22", "state": "suspended", "lost_for": seconds}


def back(name: str = "c1", host: str = "192.0.2.7", lasted: float = 12.0) -> dict[str, Any]:
    return {"id": name, "remote": f"{host}:22", "state": "protected", "lasted": lasted}


def reply(*connections: dict[str, Any]) -> dict[str, Any]:
    return {"connections": list(connections), "questions": []}


def test_lost_for_how_long_and_back():
    notices = Notices()
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


def test_lines_remind():
    notices = Notices()
    notices.update(0.0, reply(lost()))
    told = [(second, line) for second in range(4000) for line in notices.lines(float(second))]
    assert told == [
        (0, "no path to 192.0.2.7; suspended until there is one"),
        (60, "no path to 192.0.2.7 for 1m"),
        (600, "no path to 192.0.2.7 for 10m"),
        (3600, "no path to 192.0.2.7 for 1h"),
    ]


def test_several_connections_are_one_notice():
    notices = Notices()
    notices.update(0.0, reply(lost("a"), lost("b"), lost("c", "2001:db8::1")))
    assert notices.title(1.0) == "no path to 192.0.2.7 and 1 more for 1.0s"
    notices.update(5.0, reply(back("a"), lost("b"), lost("c")))
    assert "no path" in str(notices.title(5.0))
    assert len(notices.lines(5.0)) == 1
    notices.update(6.0, reply(back("a"), back("b", lasted=6.0), back("c", lasted=6.5)))
    assert notices.title(6.0) == "path to 192.0.2.7 is back after 6.5s"


def test_back_before_it_was_told_as_lost():
    notices = Notices()
    notices.update(0.0, reply())
    notices.update(1.0, reply(back(lasted=0.4)))
    assert notices.title(1.0) == "path to 192.0.2.7 is back after 0.4s"
    notices.update(9.0, reply(back(lasted=0.4)))
    assert notices.title(9.0) is None


def test_what_was_over_before_the_first_look_is_not_told():
    notices = Notices()
    notices.update(0.0, reply(back()))
    assert notices.title(0.0) is None
    notices.update(1.0, reply(lost()))
    notices.forget()  # the daemon stops, and comes back
    assert notices.title(2.0) is None
    notices.update(3.0, reply(back()))
    assert notices.title(3.0) is None


def test_closed_while_lost():
    notices = Notices()
    notices.update(0.0, reply(lost()))
    notices.update(1.0, reply())
    assert notices.title(1.0) is None


def test_the_other_host_has_to_approve():
    notices = Notices()
    waits = {"id": "c1", "remote": "[2001:db8::1]:22", "state": "pending", "reason": "approval-pending-there"}
    notices.update(0.0, reply(waits))
    assert str(notices.title(0.0)).startswith("2001:db8::1 has to approve this host too")
    assert len(notices.lines(0.0)) == 1
    notices.update(100.0, reply(waits))
    assert notices.title(100.0) is None
    assert notices.lines(100.0) == []


def test_nothing_steers_the_terminal():
    notices = Notices()
    notices.update(0.0, reply(lost(host="\x1b]2;x\x07")))
    assert "\x1b" not in str(notices.title(0.0))

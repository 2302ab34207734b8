"""The event log as people read it.

The day that is read here was recorded from real daemons (tests/netns/day.py).  Before, `redirectctl events` showed each
of its events; of the move into the café, on the laptop, these 18 and more:

    address.removed         address=192.0.2.10
    address.removed         address=2001:db8:1::a
    connection.suspended    connection=… reason=no-path …                   (4 of these)
    address.added           address=198.51.100.20 interface=eth0
    address.added           address=2001:db8:2::14 interface=eth0
    move.started            reason=address-changed address=198.51.100.20 connections=4 epoch=4294967298
    connection.resumed      connection=… reason=no-path duration=70ms …     (4 of these)
    path.changed            connection=… path=tunnel …                      (4 of these)
    move.finished           address=198.51.100.20 duration=12ms connections=4 epoch=4294967298
    path.changed            connection=… path=rewritten …                   (4 of these)

What it shows now is in LAPTOP and SERVER.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import msgspec
import pytest

from redirectctl.api.schema import Event, EventName
from redirectctl.api.stories import KEPT, REMEMBERED, Line, Stories, Tone, lines_of
from redirectctl.cli.events import told

DAY = Path(__file__).with_name("day")
PEER, OTHER = "SHA256:abc", "SHA256:def"
LAPTOP = """\
redirectd started
first contact; server; this host called it; its key is accepted without a question (trust.first_contact)
approved; server; trust.first_contact is accept-new
protected; 4 connections with server
moved to 198.51.100.20 (eth0) from 192.0.2.10; 4 connections with server; silent for 41ms
moved to 203.0.113.21 (eth1) from 198.51.100.20; 4 connections with server
203.0.113.21 went and came back; 4 connections with server; silent for 1.6s
203.0.113.21 went and came back; 4 connections with server; silent for 1.6s
the path was lost, and is back; 4 connections with server; silent for 18s
moved to 198.51.100.22 (eth0) from 203.0.113.21; 4 connections with server; silent for 15s
the other host moved to 198.18.2.30 from 198.18.1.10; 4 connections with server; silent for 69ms
moved to 10.0.3.10 (eth0) from 198.51.100.22; 4 connections with server; silent for 48ms
the NAT in front of this host changed; 3 connections with server; silent for 1.6s
the NAT in front of this host changed; 3 connections with server; silent for 747ms
moved to 192.0.2.10 (eth0) from 10.0.3.10; 4 connections with server; silent for 132ms
moved to 198.51.100.23 (eth0) from 192.0.2.10; 4 connections with server; silent for 45ms
redirectd stopped
"""
SERVER = """\
redirectd started
first contact; laptop; it called this host; its key is accepted without a question (trust.first_contact)
approved; laptop; trust.first_contact is accept-new
protected; 4 connections with laptop
the other host moved to 198.51.100.20 from 192.0.2.10; 4 connections with laptop
the other host moved to 203.0.113.21 from 198.51.100.20; 4 connections with laptop
packets were lost, another way was found; 4 connections with laptop; silent for 984ms
the path was lost, and is back; 4 connections with laptop; silent for 17s
the other host moved to 198.51.100.22 from 203.0.113.21; 4 connections with laptop; silent for 15s
moved to 198.18.2.30 (eth0) from 198.18.1.10; 4 connections with laptop; silent for 67ms
the other host moved to 192.0.2.200 from 198.51.100.22; 4 connections with laptop
the other host moved to 192.0.2.201 from 192.0.2.200; 3 connections with laptop; silent for 851ms
the other host moved to 192.0.2.10 from 192.0.2.201; 4 connections with laptop; silent for 50ms
redirectd stopped; 4 connections
redirectd started; 4 connections
the other host moved to 198.51.100.23 from 192.0.2.10; 4 connections with laptop; silent for 24ms
redirectd stopped
"""


def log(name: str) -> list[Event]:
    decode = msgspec.json.Decoder(Event).decode
    return [decode(line) for line in (DAY / f"{name}.jsonl").read_bytes().splitlines()]


def shown(lines: list[Line], peer: str = "peer") -> list[str]:
    class Named(dict[str, str]):
        def __missing__(self, key: str) -> str:
            return peer

    return [told(line, Named()) for line in lines if not line.minor]


class Log:
    """Events as a test writes them."""

    def __init__(self) -> None:
        self.stories = Stories()
        self.now = 1000.0

    def __call__(self, event: EventName, after: float = 0.01, **fields: object) -> None:
        self.now += after
        self.stories.add(Event(time=self.now, event=event, **fields))  # type: ignore[arg-type]

    def lost(self, *cids: str, reason: str = "no-path", peer: str = PEER) -> None:
        for cid in cids:
            self(EventName.CONNECTION_SUSPENDED, connection=cid, peer=peer, reason=reason)

    def back(self, *cids: str, duration: float = 1.0, peer: str = PEER, reason: str = "no-path") -> None:
        for cid in cids:
            self(EventName.CONNECTION_RESUMED, connection=cid, peer=peer, duration=duration, reason=reason)

    def over(self, after: float = 10.0) -> list[str]:
        self.now += after
        self.stories.tick(self.now)
        return shown(self.stories.finished())


@pytest.fixture
def happens() -> Log:
    return Log()


class TestADay:
    @pytest.mark.parametrize(
        ("name", "peer", "text"), [("laptop", "server", LAPTOP), ("server", "laptop", SERVER)], ids=["laptop", "server"]
    )
    def test_its_lines(self, name: str, peer: str, text: str) -> None:
        assert shown(lines_of(log(name)), peer) == text.splitlines()

    @pytest.mark.parametrize("name", ["laptop", "server"])
    def test_nothing_that_healed_is_red(self, name: str) -> None:
        """All of it did."""
        assert not [line.what for line in lines_of(log(name)) if line.tone is Tone.BAD]
        assert all(line.over for line in lines_of(log(name)))

    @pytest.mark.parametrize("name", ["laptop", "server"])
    def test_a_line_comes_once_when_its_story_is_over(self, name: str) -> None:
        stories = Stories()
        lines = []
        for event in log(name):
            stories.add(event)
            lines += stories.finished()
        stories.flush()
        lines += stories.finished()
        assert len({line.number for line in lines}) == len(lines)
        assert sorted(shown(lines)) == sorted(shown(lines_of(log(name))))

    @pytest.mark.parametrize("name", ["laptop", "server"])
    def test_every_part_of_it_is_still_there_with_verbose(self, name: str) -> None:
        """The log itself has them: what is folded is what is shown."""
        assert len(log(name)) > 10 * len(shown(lines_of(log(name)))) - 50
        assert {EventName.MOVE_STARTED, EventName.PATH_CHANGED} <= {event.event for event in log(name)}

    def test_our_own_device_is_not_in_it(self) -> None:
        for name in ("laptop", "server"):
            assert "redirect0" not in (DAY / f"{name}.jsonl").read_text()


class TestOfAnyLog:
    """However long it is, and whatever the clock did meanwhile."""

    @staticmethod
    def work(of: int, *, events: str) -> int:
        """Lines of Python that a log takes: no clock is asked."""
        count = 0

        def trace(frame: FrameType, event: str, arg: object) -> Any:
            nonlocal count
            count += 1
            return trace

        every = [event for number in range(of) for event in TROUBLES[events](number)]
        stories = Stories()
        sys.settrace(trace)
        try:
            for event in every:
                stories.add(event)
        finally:
            sys.settrace(None)
        return count

    @pytest.mark.parametrize("events", ["hosts", "dns", "dns-that-works"])
    def test_twice_as_long_takes_twice_the_work(self, events: str) -> None:
        """An event costs the same, however many were before it."""
        assert self.work(1000, events=events) < 3 * self.work(500, events=events)

    def test_hosts_that_do_not_answer_are_not_remembered_without_end(self) -> None:
        stories = Stories()
        for number in range(2 * REMEMBERED):
            stories.add(silent(number))
        assert len(stories._unanswered) == len(stories._of_refused) == REMEMBERED

    def test_a_clock_that_is_set_back_in_a_move(self) -> None:
        """The move is told when it is over, not an hour later."""
        stories, at, clock = Stories(), 1e9, -3600
        stories.add(Event(time=at, event=EventName.MOVE_STARTED, peer=PEER, reason="address-changed", connections=2))
        stories.add(
            Event(time=at + clock, event=EventName.MOVE_FINISHED, peer=PEER, address="192.0.2.1", connections=2)
        )
        stories.tick(at + clock + 10)
        (line,) = stories.finished()
        assert line.over

    def test_a_clock_that_is_set_back_behind_it(self) -> None:
        stories, at = Stories(), 1e9
        stories.add(Event(time=at, event=EventName.MOVE_STARTED, peer=PEER, reason="address-changed", connections=2))
        stories.add(Event(time=at + 1, event=EventName.MOVE_FINISHED, peer=PEER, address="192.0.2.1", connections=2))
        stories.tick(at - 3600)
        assert len(stories.finished()) == 1


def silent(number: int) -> Event:
    """A host that does not answer."""
    host = f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}"
    return Event(time=number, event=EventName.CONNECTION_UNSUPPORTED, connection=f"{number:016x}", remote=f"{host}:22")


TROUBLES: dict[str, Callable[[int], list[Event]]] = {
    "hosts": lambda number: [
        silent(number),
        Event(
            time=number,
            event=EventName.CONNECTION_PROTECTED,
            connection="c",
            remote="192.0.2.1:22",
            peer=f"{PEER}{number}",
        ),
    ],
    "dns": lambda number: [
        Event(time=number, event=EventName.DNS_FAILED, reason="no-answer-from-server"),
        Event(time=number, event=EventName.DNS_UPDATED),
    ],
    "dns-that-works": lambda number: [
        Event(time=number, event=EventName.KERNEL_REPAIRED, detail=str(number)),
        Event(time=number, event=EventName.DNS_UPDATED),
    ],
}


class TestStories:
    def test_a_loss_that_is_not_over(self, happens: Log) -> None:
        happens(EventName.ADDRESS_REMOVED, address="192.0.2.10")
        happens.lost("1", "2")
        assert happens.over() == []
        assert happens.stories.unfinished(happens.now, after=60.0) == []
        (line,) = happens.stories.unfinished(happens.now, after=3.0)
        assert shown([line]) == ["no path since 192.0.2.10 went; 2 connections with peer held; not over"]
        assert happens.stories.unfinished(happens.now, after=3.0) == [], "said once"
        happens(EventName.ADDRESS_ADDED, address="192.0.2.10", interface="wlan0")
        happens.back("1", "2", duration=10.0)
        assert happens.over() == ["192.0.2.10 went and came back; 2 connections with peer; silent for 10s"]

    def test_confirming_where_a_host_is_anyway_is_no_move(self, happens: Log) -> None:
        happens(EventName.MOVE_STARTED, peer=PEER, reason="not-confirmed", address="192.0.2.1", connections=1, epoch=1)
        happens(EventName.MOVE_RECEIVED, peer=PEER, address="192.0.2.9", source="192.0.2.9:7747", previous="192.0.2.9")
        happens(
            EventName.MOVE_FINISHED, peer=PEER, address="192.0.2.1", previous="192.0.2.1", duration=0.1, connections=1
        )
        assert happens.over() == []

    def test_tries_are_one_story(self, happens: Log) -> None:
        happens(EventName.ADDRESS_ADDED, address="192.0.2.2", interface="wlan0")
        for epoch in range(5):
            happens(
                EventName.MOVE_STARTED, epoch, peer=PEER, reason="address-changed", address="192.0.2.2", epoch=epoch
            )
        happens(
            EventName.MOVE_FINISHED, 5.0, peer=PEER, address="192.0.2.2", previous="192.0.2.1", gap=20.0, connections=3
        )
        assert happens.over() == ["moved to 192.0.2.2 (wlan0) from 192.0.2.1; 3 connections with peer; silent for 20s"]

    def test_one_line_for_all_peers(self, happens: Log) -> None:
        happens(EventName.ADDRESS_REMOVED, address="192.0.2.1")
        happens.lost("1")
        happens.lost("2", peer=OTHER)
        happens(EventName.ADDRESS_ADDED, address="192.0.2.2", interface="wlan0")
        for cid, peer in (("1", PEER), ("2", OTHER)):
            happens(EventName.MOVE_STARTED, peer=peer, reason="address-changed", address="192.0.2.2", connections=1)
            happens.back(cid, peer=peer)
            happens(
                EventName.MOVE_FINISHED, peer=peer, address="192.0.2.2", previous="192.0.2.1", gap=0.5, connections=1
            )
        assert happens.over() == [
            "moved to 192.0.2.2 (wlan0) from 192.0.2.1; 2 connections with peer, peer; silent for 1.0s"
        ]

    def test_silent_first_and_elsewhere_then(self, happens: Log) -> None:
        happens.lost("1", reason="peer-silent")
        happens(EventName.MOVE_STARTED, peer=PEER, reason="peer-silent", address="192.0.2.1", connections=1, epoch=1)
        happens(EventName.ADDRESS_ADDED, 30.0, address="192.0.2.2", interface="wlan0")
        happens(EventName.MOVE_STARTED, peer=PEER, reason="address-changed", address="192.0.2.2", epoch=2)
        happens.back("1", duration=40.0, reason="peer-silent")
        happens(EventName.MOVE_FINISHED, peer=PEER, address="192.0.2.2", previous="192.0.2.1", connections=1, epoch=2)
        assert happens.over() == ["moved to 192.0.2.2 (wlan0) from 192.0.2.1; 1 connection with peer; silent for 40s"]

    def test_a_log_of_the_version_before(self, happens: Log) -> None:
        """It says where hosts are, not where they were."""
        happens(EventName.CONNECTION_PROTECTED, connection="1", peer=PEER, local="192.0.2.1:4", remote="192.0.2.9:22")
        assert happens.over() == ["protected; 1 connection with peer"]
        happens(EventName.MOVE_RECEIVED, peer=PEER, address="192.0.2.9", connections=1)
        assert happens.over() == []
        happens(EventName.MOVE_RECEIVED, peer=PEER, address="192.0.2.8", connections=1)
        assert happens.over() == ["the other host moved to 192.0.2.8 from 192.0.2.9; 1 connection with peer"]

    def test_what_was_refused_and_is_protected_is_not_red(self, happens: Log) -> None:
        happens(EventName.CONNECTION_REFUSED, connection="1", peer=PEER, reason="peer-rejected")
        (line,) = happens.stories.finished()
        assert line.tone is Tone.BAD
        happens(EventName.CONNECTION_PROTECTED, connection="1", peer=PEER)
        assert line.tone is Tone.DIM

    def test_our_own_device_never(self, happens: Log) -> None:
        happens(EventName.ADDRESS_ADDED, address="192.0.2.1", interface="redirect0")
        assert happens.over() == []

    def test_a_connection_that_ends_while_it_is_held_ends_the_story(self, happens: Log) -> None:
        happens(EventName.ADDRESS_REMOVED, address="192.0.2.1")
        happens.lost("1")
        happens(EventName.CONNECTION_CLOSED, 60.0, connection="1", peer=PEER, reason="given-up")
        assert happens.over() == [
            "connection given up: no path for too long; 1 connection with peer; there was no path for too long",
            "192.0.2.1 went; 1 connection with peer",
        ]

    def test_what_nobody_answers_does_not_stay_open(self, happens: Log) -> None:
        happens(EventName.MOVE_STARTED, peer=PEER, reason="retransmitting", address="192.0.2.1", connections=1, epoch=1)
        assert happens.over(5.0) == []
        assert happens.over(100.0) == ["packets are lost; 1 connection with peer"]

    def test_bounded(self, happens: Log) -> None:
        for _ in range(KEPT + 10):
            happens(EventName.DAEMON_STARTED)
        assert len(happens.stories.lines) == KEPT

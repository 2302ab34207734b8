import asyncio
import os
import stat
from ipaddress import ip_address
from pathlib import Path

import msgspec
import pytest

from redirectctl.api.schema import Event, EventName
from redirectctl.daemon import eventlog, repeats
from redirectctl.daemon.eventlog import FILES, QUEUE, EventLog, network_of


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def everything(log: EventLog, since: float | None = None) -> list[Event]:
    with log.history(since) as history:
        return history.read(1_000_000)


def test_the_line_is_what_scripts_read(tmp_path: Path, clock: Clock):
    clock.now = 1700000000.123456789
    log = EventLog(tmp_path, clock)
    log.record(EventName.MOVE_FINISHED, peer="SHA256:x", duration=0.25, connections=3)
    log.record(EventName.DAEMON_STOPPED)
    log.close()
    assert (tmp_path / "events.jsonl").read_text() == (
        '{"time":1700000000.123457,"event":"move.finished","peer":"SHA256:x","duration":0.25,"connections":3}\n'
        '{"time":1700000000.123457,"event":"daemon.stopped"}\n'
    )
    assert stat.S_IMODE((tmp_path / "events.jsonl").stat().st_mode) == 0o600


def test_rotation_and_since(tmp_path: Path, clock: Clock):
    log = EventLog(tmp_path, clock, max_file=1000)
    recorded = []
    for _ in range(200):
        clock.now += 1
        recorded.append(log.record(EventName.ADDRESS_ADDED, address="192.0.2.1", interface="eth0"))
        assert everything(log)[-1] == recorded[-1]
    names = sorted(file.name for file in tmp_path.iterdir())
    assert names == ["events.jsonl", "events.jsonl.1", "events.jsonl.2", "events.jsonl.3"]
    assert len(names) == FILES
    assert all(file.stat().st_size <= 1000 for file in tmp_path.iterdir())
    kept = everything(log)
    assert 30 < len(kept) < 200
    assert kept == recorded[-len(kept) :]
    assert everything(log, since=1195.0) == recorded[-6:]
    assert everything(log, since=5000.0) == []
    log.close()
    again = EventLog(tmp_path, clock, max_file=1000)
    assert everything(again) == kept
    again.close()


def test_history_is_of_one_moment(tmp_path: Path, clock: Clock):
    log = EventLog(tmp_path, clock, max_file=300)
    before = [log.record(EventName.RST_HELD, connection=str(n)) for n in range(5)]
    with log.history(None) as history:
        first = history.read(1)
        for _ in range(50):
            log.record(EventName.DAEMON_STARTED)
        assert first + history.read(2) + history.read(100) == before
        assert history.read(1) == []
    log.close()


def test_a_line_cut_short_is_passed_over(tmp_path: Path, clock: Clock):
    log = EventLog(tmp_path, clock)
    first = log.record(EventName.DAEMON_STARTED)
    log.close()
    with (tmp_path / "events.jsonl").open("ab") as file:
        file.write(b'{"time":1000.0,"event":"move.sta')
    log = EventLog(tmp_path, clock)
    second = log.record(EventName.DAEMON_STARTED)
    assert everything(log) == [first, second]
    log.close()


def test_lines_of_another_version_are_passed_over(tmp_path: Path, clock: Clock):
    (tmp_path / "events.jsonl").write_bytes(
        b'{"time":1.0,"event":"from.future"}\n\xff\xfe\n{"time":2,"event":"rst.held"}\n'
    )
    log = EventLog(tmp_path, clock)
    assert [event.event for event in everything(log)] == [EventName.RST_HELD]
    log.close()


def counted(events: list[Event], reason: str) -> int:
    return sum(event.count or 1 for event in events if event.reason == reason)


def test_a_flood_of_refused_packets_is_counted_not_logged(tmp_path: Path, clock: Clock):
    """11 s of 90,000 refusals: a few lines, which say how many; what was there before stays."""
    log = EventLog(tmp_path, clock)
    log.record(EventName.DAEMON_STARTED)
    for number in range(90_000):
        clock.now = 1000.0 + number * 11 / 90_000
        log.record(EventName.REDIRECT_REFUSED, who="SHA256:mallory", reason="replayed", source="192.0.2.66:7747")
        if number % 8000 == 0:
            log.flush()
    assert log.record(EventName.REDIRECT_REFUSED, who="SHA256:bob", reason="replayed") is not None
    assert log.record(EventName.RST_HELD, who="SHA256:mallory") is not None
    log.close()
    log = EventLog(tmp_path, clock)
    kept = everything(log)
    assert kept[0].event is EventName.DAEMON_STARTED
    assert counted(kept, "replayed") == 90_001
    assert len(kept) == 1 + 4 + 1 + 1 + 1  # after 0, 1, 3 and 7 s; bob's; the RST; what was left at the end
    assert {event.source for event in kept if event.reason == "replayed"} == {"192.0.2.66:7747", None}
    log.close()


def test_what_was_left_out_is_logged_without_another(tmp_path: Path, clock: Clock):
    log = EventLog(tmp_path, clock)
    for source in ("192.0.2.1:1", "192.0.2.1:2", "192.0.2.1:3"):
        log.record(EventName.PACKET_REFUSED, who=eventlog.STRANGERS, reason="too-short", source=source)
    log.flush()
    assert [event.source for event in everything(log)] == ["192.0.2.1:1"]
    clock.now += 1
    log.flush()
    assert [(event.source, event.count) for event in everything(log)] == [("192.0.2.1:1", None), ("192.0.2.1:3", 2)]
    log.close()


def test_a_stranger_is_told_of_beside_another_networks_flood(tmp_path: Path, clock: Clock):
    log = EventLog(tmp_path, clock)
    for number in range(10_000):
        where = network_of(ip_address(f"10.{number % 250}.{number // 250}.1"))
        log.record(EventName.PACKET_REFUSED, who=eventlog.STRANGERS, where=where, reason="too-short")
        log.record(EventName.PACKET_REFUSED, who=eventlog.STRANGERS, where=where, reason="bad-mac1")
    assert len(everything(log)) <= repeats.MAX_KINDS + 2
    assert network_of(ip_address("192.0.2.7")) == "192.0.2.0/24"
    assert network_of(ip_address("2001:db8:1:2::3")) == "2001:db8:1::/48"
    other = log.record(EventName.PACKET_REFUSED, who=eventlog.STRANGERS, where="192.0.2.0/24", reason="unknown-peer")
    assert other is not None
    log.close()


def test_nobody_has_more_of_a_days_log_than_is_left_for_others(tmp_path: Path, clock: Clock):
    """Events that are no refusals, and each says something: nobody can have more than half."""
    log = EventLog(tmp_path, clock, budget=100_000)
    logged = {}
    for who in ("SHA256:mallory", "SHA256:minion", "SHA256:bob"):
        logged[who] = sum(
            log.record(EventName.CONNECTION_PROTECTED, who=who, peer=who, connection=f"{number:016x}") is not None
            for number in range(2000)
        )
    assert logged["SHA256:mallory"] > logged["SHA256:minion"] > logged["SHA256:bob"] > 50
    assert all(log.record(EventName.ADDRESS_ADDED, address="192.0.2.1") for _ in range(1000))  # our own
    assert log.record(EventName.PACKET_REFUSED, who="SHA256:anna", reason="forged") is not None
    assert log.record(EventName.PACKET_REFUSED, who="SHA256:mallory", reason="forged") is None
    clock.now += repeats.DAY
    log.flush()
    left_out = [event for event in everything(log) if event.count]
    assert {(event.peer, event.count) for event in left_out} == {(who, 2000 - lines) for who, lines in logged.items()}
    log.close()


@pytest.mark.parametrize(
    ("text", "logged"),
    [
        ("scp \x1b[2J", "scp \\x1b[2J"),
        ("scp\nredirectd: INFO: all is well", "scp\\nredirectd: INFO: all is well"),
        ("scp \u202etxt.exe", "scp \\u202etxt.exe"),
        ("scp " + 5000 * "x", "scp " + 1019 * "x" + "…"),
        ("scp größe.txt", "scp größe.txt"),
    ],
)
def test_text_of_others_is_logged_escaped_and_cut(tmp_path: Path, clock: Clock, text: str, logged: str):
    log = EventLog(tmp_path, clock)
    entry = log.record(EventName.CONNECTION_FOUND, command=text, detail=text)
    assert entry is not None
    assert (entry.command, entry.detail) == (logged, logged)
    assert everything(log) == [entry]
    log.close()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk_does_not_stop_events(tmp_path: Path, clock: Clock, caplog: pytest.LogCaptureFixture):
    async def check() -> None:
        log = EventLog(tmp_path, clock)
        with log.subscribe() as subscription:
            full = os.open("/dev/full", os.O_RDWR)
            real = os.dup(log._descriptor)
            os.dup2(full, log._descriptor)
            first = log.record(EventName.DAEMON_STARTED)
            second = log.record(EventName.RST_HELD)
            assert everything(log) == [first, second]  # kept, though not in the file
            assert not (tmp_path / "events.jsonl").read_bytes()
            os.dup2(real, log._descriptor)
            third = log.record(EventName.MOVE_STARTED)
            assert subscription.take() == [first, second, third]
        assert len([line for line in caplog.messages if "No space left" in line]) == 1
        assert everything(log) == [first, second, third]
        os.close(full)
        os.close(real)
        log.close()

    asyncio.run(check())


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_what_waits_for_room_is_bounded(tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(eventlog, "UNWRITTEN", 5)
    log = EventLog(tmp_path, clock)
    full, real = os.open("/dev/full", os.O_RDWR), os.dup(log._descriptor)
    os.dup2(full, log._descriptor)
    recorded = [log.record(EventName.RST_HELD, connection=str(number)) for number in range(9)]
    os.dup2(real, log._descriptor)
    log.flush()
    log.close()
    for descriptor in (full, real):
        os.close(descriptor)
    again = EventLog(tmp_path, clock)
    assert everything(again) == recorded[-5:]
    again.close()


def test_subscribers(tmp_path: Path, clock: Clock):
    async def check() -> None:
        log = EventLog(tmp_path, clock)
        log.record(EventName.DAEMON_STARTED)
        with log.subscribe() as one, log.subscribe() as other:
            waiting = asyncio.ensure_future(one.wait())
            await asyncio.sleep(0)
            assert not waiting.done()
            first = log.record(EventName.MOVE_STARTED)
            await waiting
            assert one.take() == [first]
            second = log.record(EventName.MOVE_FINISHED)
            assert one.take() == [second]
            assert other.take() == [first, second]
        log.record(EventName.DAEMON_STOPPED)
        assert one.take() == other.take() == []
        log.close()

    asyncio.run(check())


def test_a_slow_subscriber_is_told_what_it_missed(tmp_path: Path, clock: Clock):
    async def check() -> None:
        log = EventLog(tmp_path, clock)
        with log.subscribe() as subscription:
            recorded = [log.record(EventName.RST_HELD, connection=str(n)) for n in range(QUEUE + 7)]
            got = subscription.take()
            assert got[:-1] == recorded[:QUEUE]
            assert got[-1] == Event(time=1000.0, event=EventName.EVENTS_MISSED, count=7)
            last = log.record(EventName.DAEMON_STOPPED)
            assert subscription.take() == [last]
        log.close()

    asyncio.run(check())


def test_a_command_that_is_not_utf8(tmp_path: Path, clock: Clock):
    log = EventLog(tmp_path, clock)
    entry = log.record(EventName.CONNECTION_FOUND, command="scp \udcff", pid=5)
    assert entry == Event(time=1000.0, event=EventName.CONNECTION_FOUND, command="scp \\udcff", pid=5)
    assert everything(log) == [entry]
    log.close()


def test_record_takes_every_field_of_an_event():
    fields = set(Event.__struct_fields__) - {"time", "event"}
    assert fields == set(eventlog.EventFields.__annotations__)


def test_an_event_round_trips():
    event = Event(time=1.5, event=EventName.PATH_CHANGED, connection="c", local="192.0.2.1:5")
    assert msgspec.json.decode(msgspec.json.encode(event), type=Event) == event

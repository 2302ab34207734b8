"""What a person is told, and what not."""

import pytest

from redirectctl.api.schema import Event, EventName, Peer, PeerState
from redirectctl.cli.notices import LONGEST, Notice, Notices, Urgency

KEY = "SHA256:" + "k" * 43


def event(name: EventName, connection: str | None = None, *, at: float = 100.0, **fields: str) -> Event:
    return Event(time=at, event=name, connection=connection, **fields)  # type: ignore[arg-type]


def peer(state: PeerState, name: str | None = None) -> Peer:
    return Peer(
        fingerprint=KEY, name=name, state=state, addresses=["192.0.2.9"], first_seen=1, last_contact=2, connections=0
    )


def suspended(number: int, at: float = 100.0, **fields: str) -> Event:
    return event(EventName.CONNECTION_SUSPENDED, f"c{number}", at=at, remote="192.0.2.9:22", **fields)


def resumed(number: int, at: float) -> Event:
    return event(EventName.CONNECTION_RESUMED, f"c{number}", at=at)


def test_a_lost_path_is_told_once_for_all_its_connections() -> None:
    (notice,) = Notices().take([suspended(1), suspended(2)])
    assert notice == Notice("path", "No path for 2 connections", "Suspended until there is a path: 192.0.2.9:22")


def test_the_command_and_the_name_of_the_peer_are_told() -> None:
    told = Notices().take([suspended(1, command="ssh server", peer=KEY)], [peer(PeerState.APPROVED, "server")])
    assert [(each.title, each.body) for each in told] == [
        ("No path for one connection", "Suspended until there is a path: ssh server to server")
    ]


def test_no_more_hosts_are_named_than_one_can_read() -> None:
    events = [event(EventName.CONNECTION_SUSPENDED, f"c{n}", remote=f"192.0.2.{n}:22") for n in range(5)]
    (notice,) = Notices().take(events)
    assert notice.body.endswith("192.0.2.0:22; 192.0.2.1:22; 192.0.2.2:22 and 2 more")


def test_when_all_are_back_the_notice_says_after_how_long() -> None:
    notices = Notices()
    notices.take([suspended(1), suspended(2)])
    (some,) = notices.take([resumed(1, 130.0)])
    assert some.title == "No path for one connection"
    (last,) = notices.take([resumed(2, 190.0)])
    assert last == Notice("path", "One connection back", "192.0.2.9:22, after 1m 30s", Urgency.LOW)


def test_a_path_that_is_back_at_once_is_not_told_of() -> None:
    assert Notices().take([suspended(1), resumed(1, 100.1)]) == []


def test_the_notice_goes_with_the_last_connection() -> None:
    notices = Notices()
    notices.take([suspended(1)])
    assert notices.take([event(EventName.CONNECTION_CLOSED, "c1")]) == [Notice("path")]


def test_connections_that_were_never_held_are_not_told_of() -> None:
    closed, back = event(EventName.CONNECTION_CLOSED, "c1"), resumed(2, 100.0)
    assert Notices().take([closed, back, event(EventName.CONNECTION_PROTECTED, "c3")]) == []


def test_a_new_daemon_says_anew_what_is_held() -> None:
    notices = Notices()
    notices.take([suspended(1)])
    assert notices.take([event(EventName.DAEMON_STARTED)]) == [Notice("path")]


@pytest.mark.parametrize("peers", [[peer(PeerState.PENDING)], []], ids=["listed", "not listed"])
def test_first_contact_says_what_to_compare_and_goes_when_decided(peers: list[Peer]) -> None:
    notices = Notices()
    (notice,) = notices.take([event(EventName.PEER_FIRST_CONTACT, peer=KEY, address="192.0.2.9")], peers)
    assert (notice.title, notice.urgency) == ("First contact with 192.0.2.9", Urgency.CRITICAL)
    assert KEY in notice.body
    assert "redirectctl identity" in notice.body
    assert notices.take([event(EventName.PEER_APPROVED, peer=KEY)]) == [Notice(f"peer {KEY}")]


def test_a_peer_that_was_accepted_without_a_person_is_not_asked_about() -> None:
    told = Notices().take([event(EventName.PEER_FIRST_CONTACT, peer=KEY)], [peer(PeerState.APPROVED)])
    assert told == []


def test_decisions_about_others_are_not_told_of() -> None:
    assert Notices().take([event(EventName.PEER_REJECTED, peer=KEY)]) == []


def test_a_changed_key_is_loud_and_stays() -> None:
    notices = Notices()
    (notice,) = notices.take([event(EventName.PEER_KEY_CHANGED, peer=KEY, address="192.0.2.9")])
    assert (notice.title, notice.urgency) == ("The key of 192.0.2.9 has changed", Urgency.CRITICAL)
    assert notices.take([event(EventName.PEER_REJECTED, peer=KEY)]) == []


def test_what_others_named_cannot_steer_or_flood_the_screen() -> None:
    (notice,) = Notices().take([suspended(1, command="x\x1b[2J\n" + "y" * 5000)])
    assert notice.body.isprintable()
    assert len(notice.body) < 3 * LONGEST

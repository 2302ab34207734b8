"""Names of peers: which are learnt, which are looked up, and what the engine hears of it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from redirectctl.config import Dns, HostName
from redirectctl.daemon import namebook
from redirectctl.daemon.namebook import NameBook
from redirectctl.daemon.tasks import Tasks
from redirectctl.flows.connection import Connection
from redirectctl.names.resolver import Found, NoAnswerError
from redirectctl.proto.fingerprint import fingerprint
from redirectctl.store.records import PeerRecord, PeerState, StoreError
from redirectctl.store.store import MAX_NAMES, Store
from redirectctl.wire.addr import FourTuple, SockAddr

KEY = b"k" * 32
HERE = SockAddr(ip_address("192.0.2.1"), 40000)
THERE = SockAddr(ip_address("198.51.100.2"), 22)


class World:
    """A store, an engine that notes what it is told, and a DNS."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.zone: dict[str, list[str]] = {"server.example.": ["198.51.100.2"]}
        self.asked: list[str] = []
        self.broken = False
        self.argv: list[str] = ["ssh", "server.example"]
        self.told: list[tuple[Any, ...]] = []
        self.store = Store(directory)
        record = PeerRecord(KEY, fingerprint(KEY), PeerState.APPROVED, 1.0, name="office")
        self.store.put_peer(record)
        self.records = {KEY: record}
        self.engine = SimpleNamespace(
            peers={KEY: SimpleNamespace(key=KEY, identity={THERE.host})},
            policy=SimpleNamespace(control_port=7747),
            place_learnt=lambda now, *rest: self.told.append(rest),
        )
        monkeypatch.setattr(namebook.resolver, "look_up", self.look_up)
        monkeypatch.setattr(namebook.procfs, "arguments", lambda pid: self.argv)

    async def look_up(self, name: str) -> Found:
        self.asked.append(name)
        await asyncio.sleep(0)
        whole = name if name.endswith(".") else f"{name}."
        if self.broken:
            raise NoAnswerError("LifetimeTimeout")
        if whole not in self.zone:
            raise NoAnswerError("no such name", final=True)
        return Found(whole, tuple(map(ip_address, self.zone[whole])), 20.0)

    def book(self) -> NameBook:
        self.tasks = Tasks()
        return NameBook(self.engine, self.store, self.records, self.tasks, lambda: None)  # type: ignore[arg-type]

    def studied(self, book: NameBook, *connections: Connection) -> None:
        async def study() -> None:
            book.study(connections)
            await self.rest()

        asyncio.run(study())

    def sought(self, book: NameBook, times: int = 1) -> None:
        async def seek() -> None:
            for _ in range(times):
                book.seek(KEY)
            await self.rest()

        asyncio.run(seek())

    async def rest(self) -> None:
        await asyncio.gather(*self.tasks._tasks)


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    world = World(tmp_path / "state", monkeypatch)
    yield world
    world.store.close()


def connection(**more: Any) -> Connection:
    tuple_ = FourTuple(HERE, THERE)
    cid = more.pop("cid", b"c" * 8)
    return Connection(cid, tuple_, tuple_, 0.0, **{"peer": KEY, "pid": 7, "initiator": True, **more})


def test_a_name_that_led_to_the_peer_is_learnt_and_kept(world: World) -> None:
    book = world.book()
    world.studied(book, connection())
    assert book.names(KEY) == ["server.example."]
    assert world.book().names(KEY) == ["server.example."], "after a restart"


@pytest.mark.parametrize(
    "other",
    [
        {"pid": None},
        {"peer": None},
        {"peer": b"x" * 32},
        {"initiator": False},
    ],
)
def test_not_of_connections_that_were_not_opened_here_with_a_known_program(world: World, other: dict[str, Any]) -> None:
    book = world.book()
    world.studied(book, connection(**other))
    assert world.asked == []
    assert book.names(KEY) == []


def test_not_where_the_peer_has_not_answered(world: World) -> None:
    world.engine.peers[KEY].identity = {ip_address("203.0.113.9")}
    world.studied(world.book(), connection())
    assert world.asked == []


def test_not_a_name_that_leads_elsewhere(world: World) -> None:
    world.zone["server.example."] = ["203.0.113.9"]
    book = world.book()
    world.studied(book, connection())
    assert world.asked == ["server.example"]
    assert book.names(KEY) == []


def test_the_same_command_is_studied_once_unless_dns_was_away(world: World) -> None:
    book = world.book()
    world.broken = True
    world.studied(book, connection())
    world.broken = False
    world.studied(book, *[connection() for _ in range(1000)])
    world.studied(book, connection())
    assert world.asked == ["server.example"] * 2
    assert book.names(KEY) == ["server.example."]


def test_nothing_is_asked_where_that_is_switched_off(world: World) -> None:
    book = world.book()
    world.studied(book, connection())
    world.asked.clear()
    book.settings = Dns(lookup=False, names={"office": HostName("o.example")})
    world.studied(book, connection(peer=KEY))
    world.sought(book)
    assert book.names(KEY) == []
    assert world.asked == []


def test_names_are_few(world: World) -> None:
    book = world.book()
    for number in range(20):
        world.zone[f"n{number}.example."] = ["198.51.100.2"]
        world.argv = ["ssh", f"n{number}.example"]
        world.studied(book, connection())
    assert book.names(KEY) == [f"n{number}.example." for number in range(19, 19 - MAX_NAMES, -1)]


def test_a_users_names_do_not_displace_those_of_others(world: World) -> None:
    """Somebody connects under names of his own without end, and somebody else under the true one."""
    book = world.book()

    def hoard(first: int) -> None:
        for number in range(first, first + 20):
            world.zone[f"n{number}.example."] = ["198.51.100.2"]
            world.argv = ["ssh", f"n{number}.example"]
            world.studied(book, connection(uid=1001))

    def connect_under_the_true_one(uid: int) -> None:
        world.argv = ["ssh", "server.example"]
        world.studied(book, connection(uid=uid))

    hoard(0)
    connect_under_the_true_one(1000)
    hoard(20)
    assert set(book.names(KEY)[:2]) == {"server.example.", "n39.example."}
    connect_under_the_true_one(1001)  # to have it go with his others
    hoard(40)
    assert "server.example." in book.names(KEY)
    assert "server.example." in world.book().names(KEY), "after a restart"


def test_words_that_wait_are_shared_out(world: World) -> None:
    book = world.book()
    many = [connection(uid=1001) for _ in range(2 * namebook.MAX_WAITING)]

    async def study() -> None:
        for number, each in enumerate(many):
            world.argv = ["ssh", f"n{number}.example"]
            book.study([each])
        world.argv = ["ssh", "server.example"]
        book.study([connection(uid=1000)])
        await world.rest()

    asyncio.run(study())
    assert book.names(KEY) == ["server.example."]


def test_configured_names_by_fingerprint_prefix_and_name(world: World) -> None:
    book = world.book()
    world.studied(book, connection())
    by = {
        fingerprint(KEY): "a.example",
        fingerprint(KEY)[:12]: "b.example",
        "office": "c.example",
        "other": "d.example",
    }
    book.settings = Dns(names={peer: HostName(name) for peer, name in by.items()})
    assert book.names(KEY) == ["a.example", "b.example", "c.example", "server.example."]
    assert book.names(b"x" * 32) == []


def test_what_names_lead_to_is_told_with_the_shortest_life(world: World) -> None:
    book = world.book()
    world.studied(book, connection())
    world.zone["server.example."] = ["203.0.113.5", "2001:db8::5"]
    world.sought(book)
    places = [SockAddr(ip_address(a), 7747) for a in world.zone["server.example."]]
    assert world.told == [(KEY, "dns", places, 20.0)]


def test_one_lookup_at_a_time(world: World) -> None:
    book = world.book()
    world.studied(book, connection())
    world.asked.clear()
    world.sought(book, times=50)
    assert len(world.asked) == 1
    world.sought(book)
    assert len(world.asked) == 2


def test_nothing_is_told_when_dns_says_nothing(world: World) -> None:
    book = world.book()
    world.studied(book, connection())
    world.zone.clear()
    world.sought(book)
    world.broken = True
    world.sought(book)
    assert world.told == []
    world.broken = False
    world.zone["server.example."] = ["203.0.113.5"]
    world.sought(book)
    assert len(world.told) == 1, "it is asked again after failures"


def test_forgotten_with_the_peer(world: World) -> None:
    book = world.book()
    world.studied(book, connection())
    world.store.delete_peer(KEY)
    book.forget(KEY)
    assert book.names(KEY) == world.book().names(KEY) == []


def test_one_look_that_fails_ends_no_other(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(name: str) -> Found:
        raise OSError(24, "Too many open files")

    book = world.book()
    with monkeypatch.context() as patch:
        patch.setattr(namebook.resolver, "look_up", fail)
        world.studied(book, connection())
        book.settings = Dns(names={"office": HostName("server.example")})
        world.sought(book)
    assert world.told == []
    world.studied(book, connection())
    assert book.names(KEY)[-1] == "server.example."
    world.sought(book)
    assert world.told


def test_a_name_that_cannot_be_stored_is_known_for_now(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise StoreError("state.db", "database or disk is full", "check the disk and the permissions")

    book = world.book()
    with monkeypatch.context() as patch:
        patch.setattr(world.store, "put_name", full)
        world.studied(book, connection())
    assert book.names(KEY) == ["server.example."]
    world.studied(book, connection())
    assert world.store.names() == {KEY: ["server.example."]}


class TestWords:
    """What users call a peer."""

    def heard(self, world: World, *connections: Connection) -> NameBook:
        book = world.book()
        book.hear(connections)
        return book

    def test_the_word_of_ssh_is_its_name_before_anybody_approves_and_after_a_restart(self, world: World) -> None:
        world.argv = ["ssh", "-p", "22", "bob@server"]
        book = self.heard(world, connection(uid=1000))
        assert book.called(KEY, 1000) == "server"
        assert book.meaning("server", 1000) == [KEY]
        assert world.book().called(KEY, 1000) == "server"
        assert world.asked == [], "no word is looked up for that"

    def test_whose_word_it_is(self, world: World) -> None:
        """Nobody's words are another's names; root, who decides for all, is told of all."""
        world.argv = ["ssh", "mine"]
        book = self.heard(world, connection(uid=1000))
        world.argv = ["ssh", "theirs"]
        book.hear([connection(uid=2000, cid=b"d" * 8)])
        assert [book.called(KEY, uid) for uid in (1000, 2000, 3000, 0)] == ["mine", "theirs", None, "theirs"]
        assert (book.meaning("theirs", 1000), book.meaning("mine", 0), book.meaning("theirs", 0)) == ([], [KEY], [KEY])
        assert (book.meaning("theirs", 2000, own=True), book.meaning("theirs", 0, own=True)) == ([KEY], [])

    def test_another_word_replaces_it(self, world: World) -> None:
        world.argv = ["ssh", "old"]
        book = self.heard(world, connection(uid=1000))
        world.argv = ["ssh", "new"]
        book.hear([connection(uid=1000, cid=b"d" * 8)])
        assert book.called(KEY, 1000) == "new"
        assert book.meaning("old", 1000) == []

    @pytest.mark.parametrize("other", [{"pid": None}, {"peer": None}, {"initiator": False}])
    def test_not_of_connections_that_were_not_opened_here(self, world: World, other: dict[str, Any]) -> None:
        world.argv = ["ssh", "server"]
        assert self.heard(world, connection(uid=1000, **other)).called(KEY, 1000) is None

    def test_a_peer_that_is_not_stored_yet_has_it_too(self, world: World) -> None:
        world.argv = ["ssh", "server"]
        other = b"o" * 32
        world.records[other] = PeerRecord(other, fingerprint(other), PeerState.PENDING, 1.0)
        book = self.heard(world, connection(peer=other, uid=1000))
        assert book.called(other, 1000) == "server"
        book.forget(other)
        assert book.called(other, 1000) is None

    def test_names_that_dns_knows_come_after(self, world: World) -> None:
        book = world.book()
        world.studied(book, connection(uid=1000))
        assert book.called(KEY, 1000) == "server.example"
        assert book.meaning("server.example", 2000) == [KEY], "it leads there, whoever says so"

    def test_few_are_kept(self, world: World) -> None:
        book = world.book()
        for uid in range(100):
            world.argv = ["ssh", f"n{uid}"]
            book.hear([connection(uid=uid, cid=uid.to_bytes(8))])
        assert len(book._words[KEY]) == MAX_NAMES
        assert len(world.store.words()[KEY]) == MAX_NAMES

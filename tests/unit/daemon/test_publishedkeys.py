"""Whose keys are looked up in DNS, how often, and what comes of it."""

from __future__ import annotations

import asyncio
import logging
from ipaddress import ip_address
from types import SimpleNamespace
from typing import Any

import pytest

from redirectctl.config import Dns, HostName
from redirectctl.daemon import publishedkeys
from redirectctl.daemon.publishedkeys import AGAIN, MAX_AT_ONCE, PublishedKeys
from redirectctl.flows.connection import Connection
from redirectctl.flows.state import State
from redirectctl.names.published import NotPublishedError, Published
from redirectctl.proto.fingerprint import fingerprint
from redirectctl.proto.peer import Peer, PeerState
from redirectctl.wire.addr import FourTuple, IPAddress, SockAddr

KEY, OTHER = b"k" * 32, b"o" * 32
THERE, ELSEWHERE = ip_address("198.51.100.2"), ip_address("203.0.113.66")
NAME = "server.example.net"


class World:
    """An engine with peers, commands, and a DNS."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.peers = {KEY: Peer(KEY, PeerState.PENDING, identity={THERE})}
        self.connections: list[Connection] = []
        self.argv: dict[int, list[str]] = {}
        self.zone: dict[str, Published | NotPublishedError] = {
            NAME: Published(frozenset({fingerprint(KEY)}), frozenset({THERE}))
        }
        self.asked: list[str] = []
        self.approved: list[tuple[bytes, IPAddress]] = []
        self.called: list[SockAddr] = []
        self.known = True  # that the key has answered
        self.names = Dns()
        engine = SimpleNamespace(
            peers=self.peers,
            policy=SimpleNamespace(control_port=7747),
            table=SimpleNamespace(of=lambda key: [c for c in self.connections if c.peer == key]),
            answered_at=lambda now, key, address: self.known,
            published=self.published,
        )
        contacts = SimpleNamespace(within=self.within)
        self.keys = PublishedKeys(engine, contacts, lambda: self.names, lambda: None)  # type: ignore[arg-type]
        self.keys.configure({})
        monkeypatch.setattr(publishedkeys.published, "look_up", self.look_up)
        monkeypatch.setattr(publishedkeys.procfs, "arguments", lambda pid: self.argv.get(pid, []))

    def published(self, now: float, key: bytes, at: IPAddress) -> bool:
        self.approved.append((key, at))
        return True

    async def within(self, to: SockAddr, key: bytes) -> str | None:
        self.called.append(to)
        return None

    async def look_up(self, name: str, trusted: Any) -> Published:
        self.asked.append(name)
        found = self.zone.get(name, NotPublishedError("no such name"))
        if isinstance(found, Exception):
            raise found
        return found

    def command(self, *words: str, key: bytes = KEY, uid: int | None = 1000, **more: Any) -> Connection:
        number = len(self.connections) + 1
        socket = FourTuple(SockAddr(ip_address("192.0.2.1"), 40000 + number), SockAddr(THERE, 22))
        values: dict[str, Any] = {"initiator": True, "pid": number, "uid": uid, "state": State.PENDING} | more
        connection = Connection(number.to_bytes(8, "big"), socket, socket, 0.0, peer=key, **values)
        self.connections.append(connection)
        self.argv[number] = list(words)
        return connection

    def look(self, now: float = 0.0) -> None:
        async def ask() -> None:
            await asyncio.gather(*map(self.keys.ask, self.keys._due(now)))

        asyncio.run(ask())


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    return World(monkeypatch)


def test_a_key_that_dns_has_for_the_name_of_the_command(world: World) -> None:
    world.command("ssh", NAME)
    world.look()
    assert world.approved == [(KEY, THERE)]
    assert not world.called


def test_another_key_or_another_address(world: World, caplog: pytest.LogCaptureFixture) -> None:
    world.command("ssh", NAME)
    world.zone[NAME] = Published(frozenset({fingerprint(OTHER)}), frozenset({THERE}))
    world.look()
    world.zone[NAME] = Published(frozenset({fingerprint(KEY)}), frozenset({ELSEWHERE}))
    world.look(AGAIN)
    assert not world.approved
    assert [record.levelno for record in caplog.records] == [logging.WARNING] * 2


def test_what_is_bogus_is_logged(world: World, caplog: pytest.LogCaptureFixture) -> None:
    world.command("ssh", NAME)
    world.zone[NAME] = NotPublishedError("wrong signature: expired", bogus=True)
    world.look()
    assert not world.approved
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "expired" in record.getMessage()
    caplog.clear()
    world.zone[NAME] = NotPublishedError("not signed")
    world.look(AGAIN)
    assert [each for each in caplog.records if each.levelno >= logging.WARNING] == []


def test_who_only_called_is_called_where_the_name_leads(world: World) -> None:
    world.peers[KEY].identity.clear()
    world.known = False
    world.command("ssh", NAME)
    world.look()
    assert world.called == [SockAddr(THERE, 7747)]
    assert not world.approved


def test_nobody_is_asked_where_the_configuration_does_not_say_so(world: World) -> None:
    world.keys.configure(None)
    world.command("ssh", NAME)
    world.look()
    assert asyncio.run(world.keys.examine(KEY, NAME, [THERE])) is None
    assert not world.asked


@pytest.mark.parametrize(
    "wrong",
    [
        {"initiator": False},  # somebody called us: he may be at any address
        {"state": State.PROTECTED},
        {"pid": None},
        {"uid": None},
    ],
)
def test_only_commands_of_this_host_make_it_ask(world: World, wrong: dict[str, Any]) -> None:
    world.command("ssh", NAME, **wrong)
    world.look()
    assert not world.asked


@pytest.mark.parametrize("state", [PeerState.APPROVED, PeerState.REJECTED, PeerState.CHANGED])
def test_of_whom_a_person_has_decided_nothing_is_asked(world: World, state: PeerState) -> None:
    world.peers[KEY].state = state
    world.command("ssh", NAME)
    world.look()
    assert asyncio.run(world.keys.examine(KEY, NAME, [THERE])) is None
    assert not world.asked


def test_a_word_that_the_networks_search_list_would_complete(world: World) -> None:
    world.command("ssh", "server")
    world.look()
    assert asyncio.run(world.keys.examine(KEY, "server", [THERE])) is None
    assert not world.asked


def test_the_same_is_asked_once_in_a_while(world: World) -> None:
    world.zone.clear()
    for _ in range(3):
        world.command("ssh", NAME)
    for now in range(10):
        world.look(float(now))
    assert world.asked == [NAME]
    world.look(AGAIN)
    assert world.asked == [NAME] * 2


def test_users_take_turns(world: World) -> None:
    """However many names one has."""
    for number in range(20):
        world.command("ssh", f"a{number}.example.net", uid=1000)
    for uid in range(1001, 1001 + MAX_AT_ONCE):
        world.command("ssh", f"b{uid}.example.net", uid=uid)
    world.look(0.0)
    assert len(world.asked) == MAX_AT_ONCE
    world.look(1.0)
    assert {name for name in world.asked if name.startswith("b")} == {
        f"b{uid}.example.net" for uid in range(1001, 1001 + MAX_AT_ONCE)
    }


def test_names_of_the_configuration(world: World) -> None:
    world.names = Dns(names={fingerprint(KEY)[:20]: HostName(NAME), fingerprint(OTHER): HostName("other.example.net")})
    world.look()
    assert world.asked == [NAME]
    assert world.approved == [(KEY, THERE)]


def test_a_mistake_ends_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(name: str, trusted: Any) -> Published:
        raise ZeroDivisionError

    monkeypatch.setattr(publishedkeys.published, "look_up", broken)
    world.command("ssh", NAME)
    world.look()
    assert not world.approved


def test_who_names_a_host_hears_what_came_of_it(world: World) -> None:
    outcome = asyncio.run(world.keys.examine(KEY, f"{NAME.upper()}.", [THERE]))
    assert outcome is not None
    assert outcome.approved
    outcome = asyncio.run(world.keys.examine(KEY, NAME, [ELSEWHERE]))
    assert outcome is not None
    assert (outcome.approved, outcome.bogus) == (False, True)

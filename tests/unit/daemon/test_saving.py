"""What is stored while the disk works, while it does not, and when it works again."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from redirectctl.api.schema import EventName
from redirectctl.daemon import saving as module
from redirectctl.daemon.eventlog import EventLog
from redirectctl.daemon.loops import Pulse
from redirectctl.daemon.saving import Saving
from redirectctl.store.records import ConnectionRecord, PeerRecord, PeerState, StoreError
from redirectctl.store.store import MAX_UNDECIDED, Store
from redirectctl.wire.addr import FourTuple, SockAddr


def peer(number: int, state: PeerState = PeerState.APPROVED, **others: Any) -> PeerRecord:
    key = bytes([number]) * 32
    return PeerRecord(key, f"SHA256:{number}", state, float(number), **others)


def connection(number: int, of: PeerRecord, **others: Any) -> ConnectionRecord:
    socket = FourTuple(SockAddr(ip_address("192.0.2.1"), number), SockAddr(ip_address("192.0.2.2"), 22))
    return ConnectionRecord(number.to_bytes(8), of.public, socket, socket, True, 0, 0, 1.0, **others)


class Disk:
    """Lets the store fail, and counts what reaches it."""

    def __init__(self, store: Store) -> None:
        self.full = False
        self.calls: list[str] = []
        for name in ("put_peer", "delete_peer", "put_connections", "delete_connections"):
            setattr(store, name, self._guarded(name, getattr(store, name)))

    def _guarded(self, name: str, real: Any) -> Any:
        def call(*given: Any) -> Any:
            self.calls.append(name)
            if self.full:
                raise StoreError("state.db", "database or disk is full", "check the disk and the permissions")
            return real(*given)

        return call


class World:
    def __init__(self, directory: Path) -> None:
        self.store = Store(directory)
        self.disk = Disk(self.store)
        self.log = EventLog(directory, lambda: 1.0)
        self.evicted: list[bytes] = []
        self.saving = Saving(self.store, self.log, self._on_evicted)

    def _on_evicted(self, keys: Iterable[bytes]) -> None:
        self.evicted += keys

    def events(self) -> list[EventName]:
        with self.log.history(None) as history:
            return [event.event for event in history.read(1000)]

    def room_again(self) -> None:
        self.disk.full = False
        self.disk.calls.clear()

        async def until_stored() -> None:
            running = asyncio.ensure_future(self.saving.run(Pulse("saving")))
            with self.log.subscribe() as events:
                await events.wait()
                assert [event.event for event in events.take()] == [EventName.STORE_RESTORED]
            running.cancel()

        asyncio.run(asyncio.wait_for(until_stored(), 30))


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    monkeypatch.setattr(module, "RETRY", 0.001)
    world = World(tmp_path)
    yield world
    world.log.close()
    world.store.close()


def test_while_the_disk_works_all_is_stored_when_the_call_returns(world: World) -> None:
    world.saving.put_peer(peer(1))
    assert [p.public for p in world.store.peers()] == [peer(1).public]
    world.saving.put_connections([connection(1, peer(1)), connection(2, peer(1))])
    assert len(world.store.connections()) == 2
    world.saving.delete_connections([connection(1, peer(1)).cid])
    assert len(world.store.connections()) == 1
    world.saving.delete_peer(peer(1).public)
    assert world.store.peers() == world.store.connections() == []
    assert world.disk.calls == ["put_peer", "put_connections", "delete_connections", "delete_peer"]
    assert world.events() == []
    assert world.saving.failure is None


def test_the_newest_of_each_is_stored_when_there_is_room(world: World) -> None:
    world.saving.put_peer(peer(1))
    world.saving.put_connections([connection(number, peer(1)) for number in range(1, 4)])
    world.disk.full = True
    world.saving.put_peer(peer(2))
    assert world.saving.failure is not None
    tried = len(world.disk.calls)
    world.saving.put_peer(peer(1, name="office"))
    for moves in range(5):
        world.saving.put_connections([connection(1, peer(1), moves=moves), connection(4, peer(2), moves=moves)])
    world.saving.delete_connections([connection(2, peer(1)).cid])
    assert len(world.disk.calls) == tried  # not once more for each: a big move would take long
    assert world.saving.waiting == (2, 3)
    assert world.events() == [EventName.STORE_FAILED]

    world.room_again()
    assert [(p.public, p.name) for p in world.store.peers()] == [(peer(1).public, "office"), (peer(2).public, None)]
    assert {c.cid[-1]: c.moves for c in world.store.connections()} == {1: 4, 3: 0, 4: 4}
    assert world.disk.calls.count("put_connections") == 1  # together
    assert world.events() == [EventName.STORE_FAILED, EventName.STORE_RESTORED]
    assert world.saving.waiting == (0, 0)


def test_it_fails_and_is_restored_again(world: World) -> None:
    for _ in range(2):
        world.disk.full = True
        world.saving.put_peer(peer(1))
        world.room_again()
    assert world.events() == [EventName.STORE_FAILED, EventName.STORE_RESTORED] * 2


def test_a_peer_that_was_forgotten_meanwhile_takes_its_connections_along(world: World) -> None:
    world.saving.put_peer(peer(1))
    world.disk.full = True
    world.saving.put_connections([connection(1, peer(1))])
    world.saving.delete_peer(peer(1).public)
    world.room_again()
    assert world.store.peers() == world.store.connections() == []


def test_undecided_peers_that_make_room_are_told_of_then_too(world: World) -> None:
    pending = [peer(number, PeerState.PENDING) for number in range(1, MAX_UNDECIDED + 3)]
    world.disk.full = True
    for one in pending:
        world.saving.put_peer(one)
    world.room_again()
    assert sorted(world.evicted) == sorted(one.public for one in pending[:2])


def test_a_record_that_is_refused_for_what_it_is_holds_up_no_other(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.saving.put_peer(peer(1))
    world.saving.put_connections([connection(1, peer(9)), connection(2, peer(1)), connection(3, peer(1))])
    assert {c.cid[-1] for c in world.store.connections()} == {2, 3}  # there is no peer 9
    assert "a record is not stored" in caplog.text
    world.saving.put_connections([connection(4, peer(1))])
    assert {c.cid[-1] for c in world.store.connections()} == {2, 3, 4}
    assert world.saving.failure is None

"""How peers that nobody has decided about get to disk."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from redirectctl.daemon import undecided
from redirectctl.daemon.tasks import Tasks
from redirectctl.daemon.undecided import Undecided
from redirectctl.proto.fingerprint import fingerprint
from redirectctl.store.records import PeerRecord, PeerState
from redirectctl.store.store import MAX_UNDECIDED, Store


def peer(number: int, state: PeerState = PeerState.PENDING) -> PeerRecord:
    key = number.to_bytes(2) + bytes(30)
    return PeerRecord(key, fingerprint(key), state, float(number))


class Disk:
    """A store, what is known of peers, and which threads have written."""

    def __init__(self, directory: Path) -> None:
        self.store = Store(directory)
        self.beside = self.store.beside()
        self.known: dict[bytes, PeerRecord] = {}
        self.threads: list[threading.Thread] = []
        self.gone: list[bytes] = []

    def begin(self) -> Undecided:
        self.tasks = Tasks()
        self.executor = ThreadPoolExecutor(1)
        return Undecided(self.write, self.executor, self.tasks, self.known.get, self.gone.extend)

    def write(self, kept: list[PeerRecord], dropped: list[bytes]) -> list[bytes]:
        self.threads.append(threading.current_thread())
        return self.beside.put_undecided(kept, dropped)

    async def rest(self) -> None:
        while self.tasks._tasks:
            await asyncio.gather(*self.tasks._tasks)
        self.executor.shutdown()

    def kept(self) -> dict[bytes, PeerState]:
        return {each.public: each.state for each in self.store.peers()}


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    monkeypatch.setattr(undecided, "LATER", 0.01)
    disk = Disk(tmp_path / "state")
    yield disk
    disk.beside.close()
    disk.store.close()


def test_many_are_written_at_once_by_a_thread(disk: Disk) -> None:
    async def story() -> None:
        waiting = disk.begin()
        for number in range(200):
            record = disk.known[peer(number).public] = peer(number)
            waiting.put(record)
        await disk.rest()

    asyncio.run(story())
    assert len(disk.threads) == 1
    assert disk.threads[0] is not threading.main_thread()
    assert set(disk.kept()) == {peer(number).public for number in range(200 - MAX_UNDECIDED, 200)}
    assert disk.gone == [peer(number).public for number in range(200 - MAX_UNDECIDED)]


def test_what_was_decided_meanwhile_stays_decided(disk: Disk) -> None:
    """A person is quicker than the thread."""
    one, two = peer(1), peer(2)

    async def story() -> None:
        waiting = disk.begin()
        for record in (one, two):
            disk.known[record.public] = record
            waiting.put(record)
        approved = disk.known[one.public] = replace(one, state=PeerState.APPROVED)
        rejected = disk.known[two.public] = replace(two, state=PeerState.REJECTED)
        disk.store.put_peer(approved)  # without saying so to Undecided: as if it were writing at this moment
        disk.store.put_peer(rejected)
        waiting.drop(two.public)
        await disk.rest()

    asyncio.run(story())
    assert disk.kept() == {one.public: PeerState.APPROVED, two.public: PeerState.REJECTED}


def test_what_was_forgotten_meanwhile_is_forgotten(disk: Disk) -> None:
    async def story() -> None:
        waiting = disk.begin()
        waiting.put(peer(1))  # and nothing is known of it by the time that it is written
        await disk.rest()

    asyncio.run(story())
    assert disk.kept() == {}
    assert len(disk.threads) == 2


def test_what_waits_at_the_end_is_written(disk: Disk) -> None:
    async def story() -> None:
        waiting = disk.begin()
        disk.known[peer(1).public] = peer(1)
        waiting.put(peer(1))
        waiting.put(peer(2))
        waiting.decided(peer(2).public)
        await disk.tasks.cancel()
        disk.executor.shutdown()
        waiting.flush()

    asyncio.run(story())
    assert disk.kept() == {peer(1).public: PeerState.PENDING}

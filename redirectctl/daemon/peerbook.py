"""Peers as they are stored: what the engine knows of them, and what a person has said."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

from redirectctl.daemon import records
from redirectctl.daemon.eventlog import EventLog
from redirectctl.daemon.saving import Saving
from redirectctl.daemon.tasks import Tasks
from redirectctl.daemon.undecided import STATES as UNDECIDED
from redirectctl.daemon.undecided import Undecided
from redirectctl.flows.engine import Engine
from redirectctl.proto.peer import Peer
from redirectctl.store.database import readable
from redirectctl.store.records import PeerRecord, StoreError
from redirectctl.store.store import Store


class PeerBook:
    """By public key."""

    def __init__(
        self, store: Store, log: EventLog, tasks: Tasks, uptime: Callable[[], float], forget: Callable[[bytes], None]
    ) -> None:
        """``forget``: the engine is to know nothing of a peer any more.  Raises StoreError."""
        self._store = store
        self._uptime = uptime
        self._ran_before = store.ran
        self._forget = forget
        self._engine: Engine | None = None
        with readable(store.path):
            self.records: dict[bytes, PeerRecord] = {r.public: r for r in store.peers()}
        self.saving = Saving(store, log, self.had_to_go)
        self._beside = store.beside()
        self._writer = ThreadPoolExecutor(1, "store")  # for what strangers make us write; nobody else uses _beside
        self._undecided = Undecided(self._beside.put_undecided, self._writer, tasks, self.records.get, self.had_to_go)

    @property
    def _ran(self) -> float:
        """Seconds that the daemon has run, all its lives together."""
        return self._ran_before + self._uptime()

    def restored(self, port: int) -> list[Peer]:
        """For the engine, at start."""
        with readable(self._store.path):
            return [records.restored_peer(r, port) for r in self.records.values()]

    def follow(self, engine: Engine) -> None:
        """It has been made: what it knows is what is stored."""
        self._engine = engine

    def flush(self) -> None:
        """Write what still waits.  The store is closed next."""
        self._writer.shutdown()
        self._undecided.flush()
        self._beside.close()

    # -- one peer -----------------------------------------------------------------------------------------------------

    def save(self, key: bytes) -> None:
        """Write down what the engine knows of a peer, because a person has decided: before it is answered."""
        if (record := self._record_of(key)) is not None:
            self._undecided.decided(key)
            self.saving.put_peer(record)

    async def save_met(self, key: bytes) -> None:
        """The same because it was met: where anybody is accepted anybody can have it done, so a thread does it."""
        record = self._record_of(key)
        if record is None:
            return
        if record.state in UNDECIDED:
            self._undecided.put(record)
            return
        self._undecided.decided(key)
        loop = asyncio.get_running_loop()
        try:
            self.had_to_go(await loop.run_in_executor(self._writer, self._beside.put_peer, record))
        except (StoreError, OSError):
            self.saving.put_peer(record)  # says why, and stores it when that works again
        now = self.records.get(key)
        if now is not None and now is not record:
            self.saving.put_peer(now)  # a person has decided meanwhile, and may have been overtaken

    async def drop(self, key: bytes) -> None:
        """The engine knows nothing of it any more."""
        record = self.records.pop(key, None)
        if record is not None and record.state in UNDECIDED:
            self._undecided.drop(key)
        elif record is not None:
            self._undecided.decided(key)
            await self._delete(key)

    async def _delete(self, key: bytes) -> None:
        """By a thread, as what strangers make us write: with each that is accepted another may have to go."""
        loop = asyncio.get_running_loop()
        try:
            await loop.run_in_executor(self._writer, self._beside.delete_peer, key)
        except (StoreError, OSError):
            self.saving.delete_peer(key)

    def rename(self, key: bytes, name: str | None) -> None:
        """What a person calls this peer."""
        self.records[key] = dataclasses.replace(self.records[key], name=name)

    def _record_of(self, key: bytes) -> PeerRecord | None:
        if self._engine is None or (peer := self._engine.peers.get(key)) is None:
            return None
        relayed = self._engine.host.by_way_of(key, peer.remote)
        record = records.peer_record(peer, self.records.get(key), time.time(), self._ran, relayed=relayed)
        name = self._engine.policy.listed.get(record.fingerprint)
        if name and record.name is None and all(other.name != name for other in self.records.values()):
            record = dataclasses.replace(record, name=name)
        self.records[key] = record
        return record

    # -- those that go ------------------------------------------------------------------------------------------------

    def had_to_go(self, keys: Iterable[bytes]) -> None:
        """Undecided peers that there is no room for."""
        for key in keys:
            self.records.pop(key, None)
            self._undecided.decided(key)
            self._forget(key)

    def prune(self, forget_after: float) -> None:
        """Drop peers that were not met for so many seconds in which the daemon ran.  Raises StoreError."""
        for key in self._store.prune(self._ran, forget_after):
            self.records.pop(key, None)
        for key in set(self._engine.peers) - set(self.records) if self._engine is not None else ():
            self._forget(key)

"""What is stored: at once where the disk works, and later where it does not.

A disk that is full, or refuses, stops nothing.  What could not be stored is kept here, the newest of each thing, and
stored when there is room again; the event log says when that began and ended, and `doctor` says that it is so.  As
long as the disk works a call returns when it is stored, so that what follows may rely on it.  A daemon that is killed
meanwhile is taken up as of the last time that something could be stored.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from typing import Final, TypeVar

from redirectctl.api.schema import EventName
from redirectctl.daemon.eventlog import EventLog
from redirectctl.daemon.loops import Pulse
from redirectctl.store.records import ConnectionRecord, PeerRecord, RecordError, StoreError
from redirectctl.store.store import Store

_log = logging.getLogger(__name__)

RETRY: Final = 1.0  # seconds between attempts to store what could not be stored

T = TypeVar("T")


class Saving:
    """Stores peers and connections.  Calls raise nothing."""

    def __init__(self, store: Store, log: EventLog, on_evicted: Callable[[Iterable[bytes]], None]) -> None:
        """``on_evicted``: called with keys of undecided peers that had to make room."""
        self._store = store
        self._log = log
        self._on_evicted = on_evicted
        # None: to be deleted.  Empty while the disk works.
        self._peers: dict[bytes, PeerRecord | None] = {}
        self._connections: dict[bytes, ConnectionRecord | None] = {}
        self.failure: str | None = None  # why nothing can be stored now
        self._failed_at = 0.0

    @property
    def failed_for(self) -> float:
        """Seconds since it began to fail."""
        return time.monotonic() - self._failed_at

    @property
    def waiting(self) -> tuple[int, int]:
        """How many peers and connections are not stored as they are now."""
        return len(self._peers), len(self._connections)

    def put_peer(self, record: PeerRecord) -> None:
        """Add or replace."""
        self._peers[record.public] = record
        self._save()

    def delete_peer(self, public: bytes) -> None:
        """With its connections."""
        self._peers[public] = None
        for cid in [cid for cid, c in self._connections.items() if c is not None and c.peer == public]:
            self._connections[cid] = None
        self._save()

    def put_connections(self, batch: Iterable[ConnectionRecord]) -> None:
        """Add or replace; one transaction."""
        self._connections.update((record.cid, record) for record in batch)
        self._save()

    def delete_connections(self, cids: Iterable[bytes]) -> None:
        """Unknown ones are passed over."""
        self._connections.update(dict.fromkeys(cids))
        self._save()

    async def run(self, pulse: Pulse) -> None:
        """Try again, until cancelled."""
        while True:
            await pulse.sleep(RETRY)
            if self.failure is not None:
                self._attempt()
            self._log.write_waiting()

    def _save(self) -> None:
        if self.failure is None:
            self._attempt()

    def _attempt(self) -> None:
        try:
            self._write_all()
        except (StoreError, OSError) as error:
            if self.failure is None:
                self._failed_at = time.monotonic()
                _log.error("%s; connections go on and move; redirectd stores them as soon as it can", error)
                self.failure = str(error)
                self._log.record(EventName.STORE_FAILED, detail=str(error))
            self.failure = str(error)
        else:
            if self.failure is not None:
                self.failure = None
                _log.warning("everything is stored again, after %.0f s", self.failed_for)
                self._log.record(EventName.STORE_RESTORED, duration=round(self.failed_for, 3))

    def _write_all(self) -> None:
        evicted: list[bytes] = []
        try:
            for public, record in list(self._peers.items()):  # first: connections refer to them
                if record is None:
                    self._store.delete_peer(public)
                else:
                    _put(lambda some: evicted.extend(self._store.put_peer(some[0])), [record])
                del self._peers[public]
        finally:
            if evicted:
                self._on_evicted(evicted)
        if self._connections:
            kept = [record for record in self._connections.values() if record is not None]
            if gone := [cid for cid, record in self._connections.items() if record is None]:
                self._store.delete_connections(gone)
            if kept:
                _put(self._store.put_connections, kept)
            self._connections.clear()


def _put(put: Callable[[list[T]], object], records: list[T]) -> None:
    """Together, or singly where one of them is refused for what it is: that one is passed over, or none ever could be.

    Raises StoreError and OSError where the disk is the reason.
    """
    try:
        put(records)
    except Exception as error:
        if isinstance(error, StoreError | OSError) and not isinstance(error, RecordError):
            raise
        if len(records) == 1:
            _log.exception("a record is not stored")
            return
        for record in records:
            _put(put, [record])

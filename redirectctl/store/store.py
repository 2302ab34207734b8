"""What survives a restart, in SQLite.

Calls are synchronous: most take well below a millisecond (a batch of 1,000 connections some 10 ms), those that are
synced as long as the disk takes.  Each is one transaction, so that a daemon killed at any moment leaves the state
before it or after it.  What must also survive a power failure (own key, epochs, decisions about peers) is synced to
disk; connections are not, they end with the kernel, nor peers about which nobody has decided.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from ipaddress import ip_address
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from redirectctl.store import columns
from redirectctl.store.database import DATABASE, connect, explained, lock_directory, open_database, prepare_directory
from redirectctl.store.records import ConnectionRecord, PeerAddress, PeerRecord, PeerState

MAX_UNDECIDED: Final = 64  # peers that are pending or changed: anybody can make us keep one; a person can look through
MAX_ADDRESSES: Final = 32  # of one peer, the latest: a laptop's networks of some weeks
MAX_NAMES: Final = 4  # of one peer, learnt from all users


class Store:
    """The state directory of one daemon.  For use by one thread."""

    def __init__(self, directory: Path) -> None:
        """Open it, made if missing.  Raises StoreError: not permitted, in use, written by a newer version, damaged."""
        prepare_directory(directory)
        self.path = directory / DATABASE
        self._lock = lock_directory(directory)
        try:
            self._database = open_database(directory)
            with explained(self.path):
                self._epoch: int = self._scalar("SELECT epoch FROM own")
        except BaseException:
            os.close(self._lock)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def beside(self) -> Store:
        """The same for one other thread, to be closed before this.  Raises StoreError."""
        other = Store.__new__(Store)
        other.path, other._lock, other._epoch = self.path, os.dup(self._lock), self._epoch
        with explained(self.path):
            other._database = connect(self.path)
        return other

    def close(self) -> None:
        """Close the database and give the directory free."""
        self._database.close()
        os.close(self._lock)

    # ------------------------------------------------------------------------------------------------------- own

    def load_identity(self, rng: Callable[[int], bytes]) -> bytes:
        """Own private static key, 32 bytes; made from rng(32) when there is none yet.  Raises StoreError."""
        with self._transaction(durable=True):
            self._database.execute("UPDATE own SET private = ? WHERE private IS NULL", (rng(32),))
            return bytes(self._scalar("SELECT private FROM own"))

    @property
    def epoch(self) -> int:
        """The latest epoch given out."""
        return self._epoch

    def next_generation(self) -> int:
        """An epoch greater than any given out before, by earlier runs too: on disk before it is returned.

        Raises StoreError.
        """
        with self._transaction(durable=True):
            self._database.execute("UPDATE own SET epoch = ?", (self._epoch + 1,))
        self._epoch += 1
        return self._epoch

    def booted(self, boot: str, at: float) -> float:
        """Forget connections of an earlier boot of this machine (an id): those of the same addresses are others.

        ``at``: epoch seconds of the boot, as the clock says now.  Returns what it said at the first call of this boot:
        times of connections are stored as that plus the time since boot, so setting the clock does not change them.
        Raises StoreError.
        """
        with self._transaction():
            self._database.execute("DELETE FROM connections WHERE (SELECT boot FROM own) <> ?", (boot,))
            self._database.execute(
                "UPDATE own SET boot = ?1, booted_at = ?2 WHERE boot IS NOT ?1 OR booted_at IS NULL", (boot, at)
            )
            return float(self._scalar("SELECT booted_at FROM own"))

    @property
    def ran(self) -> float:
        """Seconds that the daemon had run, all its lives together, when that was last written down."""
        with explained(self.path):
            return float(self._scalar("SELECT ran FROM own"))

    # ----------------------------------------------------------------------------------------------------- peers

    def peers(self) -> list[PeerRecord]:
        """All peers, those met first at the top.  Raises StoreError."""
        addresses: dict[bytes, list[PeerAddress]] = {}
        with explained(self.path):
            for public, address, first_seen, last_seen, identity in self._database.execute(
                "SELECT public, address, first_seen, last_seen, identity FROM peer_addresses ORDER BY last_seen DESC"
            ):
                entry = PeerAddress(ip_address(address), first_seen, last_seen, bool(identity))
                addresses.setdefault(public, []).append(entry)
            rows = self._database.execute(
                "SELECT public, fingerprint, state, first_seen, name, secret, last_contact, handshake_timestamp, met,"
                " accepted, told, says, listed FROM peers ORDER BY first_seen"
            ).fetchall()
        return [
            PeerRecord(
                public=public,
                fingerprint=fingerprint,
                state=PeerState(state),
                first_seen=first_seen,
                name=name,
                secret=secret,
                addresses=tuple(addresses.get(public, ())),
                last_contact=last_contact,
                handshake_timestamp=int.from_bytes(counter),
                met=met,
                accepted=accepted,
                told=tuple(map(ip_address, told.split())),
                says=says,
                listed=bool(listed),
            )
            for (
                public,
                fingerprint,
                state,
                first_seen,
                name,
                secret,
                last_contact,
                counter,
                met,
                accepted,
                told,
                says,
                listed,
            ) in rows
        ]

    def put_peer(self, peer: PeerRecord) -> list[bytes]:
        """Add a peer or replace what is kept of it, addresses included (the latest MAX_ADDRESSES).

        The handshake timestamp only grows.  Returns the public keys of undecided peers, oldest first, that were
        removed to keep at most MAX_UNDECIDED.  Raises StoreError.
        """
        with self._transaction(durable=True):
            self._put_peer(peer)
            evicted = self._keys(
                "SELECT public FROM peers WHERE state IN ('pending', 'changed') AND public IS NOT ?"
                " ORDER BY first_seen DESC LIMIT -1 OFFSET ?",
                (peer.public, MAX_UNDECIDED - (peer.state in {PeerState.PENDING, PeerState.CHANGED})),
            )
            self._delete_peers(evicted)
        return evicted

    def put_undecided(self, peers: Iterable[PeerRecord], dropped: Iterable[bytes]) -> list[bytes]:
        """Many at once, as put_peer does, and forget others: not synced to disk, and whoever is decided about stays.

        Returns the keys of undecided peers that were removed to keep at most MAX_UNDECIDED, the oldest first.  Raises
        StoreError.
        """
        with self._transaction():
            decided = set(self._keys("SELECT public FROM peers WHERE state NOT IN ('pending', 'changed')", ()))
            self._delete_peers([public for public in dropped if public not in decided])
            for peer in peers:
                if peer.public not in decided:
                    self._put_peer(peer)
            evicted = self._keys(
                "SELECT public FROM peers WHERE state IN ('pending', 'changed')"
                " ORDER BY first_seen DESC LIMIT -1 OFFSET ?",
                (MAX_UNDECIDED,),
            )
            self._delete_peers(evicted)
        return evicted[::-1]

    def delete_peer(self, public: bytes) -> None:
        """Forget a peer and its connections.  Raises StoreError."""
        with self._transaction(durable=True):
            self._delete_peers([public])

    def names(self) -> dict[bytes, list[str]]:
        """Names that were learnt of peers: that which each user used last, then the one before, and so on.

        Raises StoreError.
        """
        found: dict[bytes, list[str]] = {}
        with explained(self.path):
            rows = self._database.execute(
                "SELECT public, name FROM (SELECT *, row_number() OVER"
                " (PARTITION BY public, uid ORDER BY last_used DESC) AS age FROM peer_names)"
                " ORDER BY age, last_used DESC"
            )
            for public, name in rows:
                if name not in (names := found.setdefault(public, [])):
                    names.append(name)
        return found

    def put_name(self, public: bytes, name: str, now: float, uid: int = 0) -> list[str]:
        """Learn a name of a stored peer that a user's command used.

        If there are more than MAX_NAMES of it, the oldest of whoever has most goes.  Returns all that are known.
        Raises StoreError.
        """
        with self._transaction():
            self._database.execute(
                "INSERT INTO peer_names (public, uid, name, last_used) VALUES (?, ?, ?, ?)"
                " ON CONFLICT (public, uid, name) DO UPDATE SET last_used = excluded.last_used",
                (public, uid, name, now),
            )
            self._database.execute(
                "DELETE FROM peer_names WHERE public = ?1 AND (uid, name) IN"
                " (SELECT uid, name FROM (SELECT *, row_number() OVER (PARTITION BY uid ORDER BY last_used DESC) AS age"
                " FROM peer_names WHERE public = ?1) ORDER BY age, last_used DESC LIMIT -1 OFFSET ?2)",
                (public, MAX_NAMES),
            )
        return self.names().get(public, [])

    def words(self) -> dict[bytes, dict[int, str]]:
        """What users' commands call peers, by user; the latest last.  Raises StoreError."""
        found: dict[bytes, dict[int, str]] = {}
        with explained(self.path):
            for public, uid, word in self._database.execute(
                "SELECT public, uid, word FROM peer_words ORDER BY last_used"
            ):
                found.setdefault(public, {})[uid] = word
        return found

    def put_word(self, public: bytes, word: str, now: float, uid: int) -> None:
        """What a user's command calls a stored peer.  The latest MAX_NAMES users' are kept.  Raises StoreError."""
        with self._transaction():
            self._database.execute(
                "INSERT INTO peer_words (public, uid, word, last_used) VALUES (?, ?, ?, ?)"
                " ON CONFLICT (public, uid) DO UPDATE SET word = excluded.word, last_used = excluded.last_used",
                (public, uid, word, now),
            )
            self._database.execute(
                "DELETE FROM peer_words WHERE public = ?1 AND uid IN"
                " (SELECT uid FROM peer_words WHERE public = ?1 ORDER BY last_used DESC LIMIT -1 OFFSET ?2)",
                (public, MAX_NAMES),
            )

    def record_handshake_timestamp(self, public: bytes, timestamp: int) -> bool:
        """Keep a peer's latest handshake timestamp.  False, and nothing kept, if one as great was seen: a replay.

        timestamp: 64 bits without sign.  Raises StoreError.
        """
        with self._transaction():
            changed = self._database.execute(
                "UPDATE peers SET handshake_timestamp = ?2 WHERE public = ?1 AND handshake_timestamp < ?2",
                (public, _u64(timestamp)),
            )
            return changed.rowcount == 1

    def prune(self, ran: float, forget_after: float) -> list[bytes]:
        """Forget peers that were not met for forget_after seconds and have no connection; returns their public keys.

        ``ran``: how long the daemon has run until now, all its lives together.  It is written down, and only that time
        counts: no clock can make a peer old that somebody has decided about.  Raises StoreError.
        """
        with self._transaction(durable=True):
            self._database.execute("UPDATE own SET ran = max(ran, ?)", (ran,))
            forgotten = self._keys(
                "SELECT public FROM peers WHERE met < ? AND public NOT IN (SELECT peer FROM connections)",
                (ran - forget_after,),
            )
            self._delete_peers(forgotten)
        return forgotten

    # ----------------------------------------------------------------------------------------------- connections

    def connections(self) -> list[ConnectionRecord]:
        """All stored connections, the oldest first.  Raises StoreError."""
        with explained(self.path):
            rows = self._database.execute(columns.SELECT).fetchall()
        return [columns.decode(row) for row in rows]

    def put_connections(self, batch: Iterable[ConnectionRecord]) -> None:
        """Add connections or bring them up to date: all of the batch or none.  Raises StoreError.

        What a connection is born with (peer, socket tuple, initiator, opened_at) is kept from the first time.
        """
        text = columns.AddressText()
        rows = [columns.encode(record, text) for record in batch]
        with self._transaction():
            self._database.executemany(columns.UPSERT, rows)

    def delete_connections(self, cids: Iterable[bytes]) -> None:
        """Forget connections; unknown ones are passed over.  Raises StoreError."""
        with self._transaction():
            self._database.executemany("DELETE FROM connections WHERE cid = ?", [(cid,) for cid in cids])

    # --------------------------------------------------------------------------------------------------- helpers

    @contextmanager
    def _transaction(self, *, durable: bool = False) -> Iterator[None]:
        """All or nothing.  durable: on disk at the end, with all that was committed before."""
        with explained(self.path):
            self._database.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
            self._database.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._database.execute("COMMIT")
            except BaseException:
                if self._database.in_transaction:
                    self._database.execute("ROLLBACK")
                raise

    def _scalar(self, query: str) -> Any:
        return self._database.execute(query).fetchone()[0]

    def _keys(self, query: str, parameters: Sequence[Any]) -> list[bytes]:
        return [public for (public,) in self._database.execute(query, parameters)]

    def _delete_peers(self, publics: Iterable[bytes]) -> None:
        self._database.executemany("DELETE FROM peers WHERE public = ?", [(public,) for public in publics])

    def _put_peer(self, peer: PeerRecord) -> None:
        self._database.execute(
            "INSERT INTO peers"
            " (public, fingerprint, name, state, secret, first_seen, last_contact, handshake_timestamp, met, accepted,"
            " told, says, listed) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (public) DO UPDATE SET"
            " fingerprint = excluded.fingerprint, name = excluded.name, state = excluded.state,"
            " secret = excluded.secret, first_seen = excluded.first_seen, last_contact = excluded.last_contact,"
            " handshake_timestamp = max(handshake_timestamp, excluded.handshake_timestamp), met = excluded.met,"
            " accepted = excluded.accepted, told = excluded.told, says = excluded.says,"
            " listed = excluded.listed",
            (
                peer.public,
                peer.fingerprint,
                peer.name,
                peer.state.value,
                peer.secret,
                peer.first_seen,
                peer.last_contact,
                _u64(peer.handshake_timestamp),
                peer.met,
                peer.accepted,
                " ".join(map(str, peer.told)),
                peer.says,
                peer.listed,
            ),
        )
        self._put_addresses(peer)

    def _put_addresses(self, peer: PeerRecord) -> None:
        latest = sorted(peer.addresses, key=lambda entry: entry.last_seen, reverse=True)[:MAX_ADDRESSES]
        self._database.execute("DELETE FROM peer_addresses WHERE public = ?", (peer.public,))
        self._database.executemany(
            "INSERT OR REPLACE INTO peer_addresses (public, address, first_seen, last_seen, identity)"
            " VALUES (?, ?, ?, ?, ?)",
            [(peer.public, str(e.address), e.first_seen, e.last_seen, e.identity) for e in latest],
        )


def _u64(number: int) -> bytes:
    return number.to_bytes(8)

"""Opening the state directory: permissions, the lock against a second daemon, schema versions."""

from __future__ import annotations

import fcntl
import os
import sqlite3
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from redirectctl.store.records import RecordError, StoreError

DATABASE: Final = "state.db"
LOCK: Final = "lock"
_SCHEMA: Final = Path(__file__).with_name("schema")
_MAGIC: Final = b"SQLite format 3\0"  # this and the next: sqlite.org/fileformat2.html, "The Database Header"
_USER_VERSION: Final = slice(60, 64)


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """What SQLite and the file system say, as StoreError."""
    try:
        yield
    except (sqlite3.IntegrityError, sqlite3.DataError) as error:
        raise RecordError(str(path), str(error), "this is a bug in redirectctl, please report it") from error
    except sqlite3.DatabaseError as error:
        damaged = type(error) is sqlite3.DatabaseError  # what SQLITE_CORRUPT and SQLITE_NOTADB become
        hint = (
            "put back a copy, or remove it and let peers approve the new key"
            if damaged
            else "check the disk and the permissions"
        )
        if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_CANTOPEN:  # SQLite does not say why
            hint = "check its permissions and the limit of open files (LimitNOFILE= of the unit, ulimit -n)"
        raise StoreError(str(path), str(error), hint) from error
    except OSError as error:
        raise StoreError(
            str(path), error.strerror or str(error), "check the directory's owner and permissions"
        ) from error


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """What stands in the records makes sense: no redirectd has written what does not.  Else StoreError."""
    try:
        yield
    except (ValueError, TypeError, AttributeError, struct.error) as error:
        why = f"a record makes no sense: {str(error)!a}"
        raise StoreError(str(path), why, "put back a copy, or remove it and let peers approve the new key") from error


def prepare_directory(path: Path) -> None:
    """Make the state directory, 0700.  An existing one is not changed, only checked.  Raises StoreError."""
    with explained(path):
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = path.stat()
    if status.st_uid not in {0, os.geteuid()} or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise StoreError(str(path), "others may write to it", f"chown it to root and chmod 700 {path}")


def lock_directory(path: Path) -> int:
    """Take the state directory for this process; gone with the returned descriptor.  Raises StoreError."""
    with explained(path):
        descriptor = os.open(path / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, b"%d\n" % os.getpid(), 0)
    except BlockingIOError:
        owner = os.pread(descriptor, 20, 0).decode(errors="replace").strip()
        os.close(descriptor)
        why = f"another redirectd (process {owner}) uses it"
        raise StoreError(str(path), why, "stop that one or give this one its own --state-dir") from None
    except OSError as error:
        os.close(descriptor)
        raise StoreError(str(path), error.strerror or str(error), "check the disk and the permissions") from error
    return descriptor


def open_database(directory: Path) -> sqlite3.Connection:
    """Open, or make, the database and bring its schema up to date; one that is newer is not touched.

    Raises StoreError.
    """
    path = directory / DATABASE
    scripts = sorted(_SCHEMA.glob("[0-9]*.sql"))
    newest = int(scripts[-1].stem)
    with explained(path):
        _refuse_newer(path, _version_in_header(path), newest)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)  # SQLite would make it 0644
        os.fchmod(descriptor, 0o600)  # the -wal and -shm files take its mode
        os.close(descriptor)
        database = connect(path)
        try:
            version = _version(database)
            _refuse_newer(path, version, newest)  # the header is behind while the latest version is only in the -wal
            database.execute("PRAGMA journal_mode = WAL")
            for script in scripts:
                if (number := int(script.stem)) > version:
                    text = script.read_text()
                    database.executescript(f"BEGIN IMMEDIATE;\n{text}\nPRAGMA user_version = {number};\nCOMMIT;")
            database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        except BaseException:
            database.close()
            raise
    return database


def connect(path: Path) -> sqlite3.Connection:
    """One more connection to a database that is there.  Whoever uses it: one thread at a time."""
    database = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    database.execute("PRAGMA foreign_keys = ON")
    return database


def _version(database: sqlite3.Connection) -> int:
    return int(database.execute("PRAGMA user_version").fetchone()[0])


def _version_in_header(path: Path) -> int:
    """Schema version without opening the database, which alone would write to files beside it."""
    try:
        with path.open("rb") as file:
            header = file.read(100)
    except FileNotFoundError:
        return 0
    return int.from_bytes(header[_USER_VERSION]) if header.startswith(_MAGIC) else 0


def _refuse_newer(path: Path, version: int, newest: int) -> None:
    if version > newest:
        why = f"written by a newer redirectctl (schema {version}, this one knows {newest})"
        raise StoreError(str(path), why, "install that version, or use another --state-dir")

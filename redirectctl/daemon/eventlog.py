"""The event log: JSON lines in a file that is rotated by size, and live to subscribers.

``events.jsonl`` is the newest file, ``events.jsonl.1`` the one before, and so on.  Nothing is synced to disk: after a
power failure the last events may be missing.  A line that was cut short by a crash is passed over when read.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Final, Self, TypedDict, Unpack

import msgspec

from redirectctl.api.schema import ConnectionState, Event, EventName, PathName

MAX_FILE: Final = 2 * 1024 * 1024  # bytes before rotation
FILES: Final = 4  # kept in all; with MAX_FILE some 40,000 events, months of them
UNWRITTEN: Final = 4096  # events, the latest, that wait for room on the disk: some hours of them
QUEUE: Final = 1024  # events that wait for one subscriber; a move of 1,000 connections fits
# Strangers cause packet.refused at will: of one reason, this many at once and then one a second are logged, so that
# they cannot push everything else out of the log.
FLOOD_BURST: Final = 20
FLOOD_REASONS: Final = 64  # reasons counted apart; they are a closed list, this is only a fence

_log = logging.getLogger(__name__)
_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Event).decode


class EventFields(TypedDict, total=False):
    """The optional fields of schema.Event, for record()."""

    connection: str
    peer: str | None
    reason: str | None
    state: ConnectionState
    path: PathName
    address: str
    interface: str
    source: str
    local: str
    remote: str
    wire_local: str
    wire_remote: str
    command: str | None
    pid: int | None
    duration: float
    connections: int
    epoch: int
    count: int
    detail: str


class EventLog:
    """Writes events, answers what happened since when, tells subscribers.  For use from the event loop's thread."""

    def __init__(self, directory: Path, now: Callable[[], float], *, max_file: int = MAX_FILE) -> None:
        """directory: must exist.  now: epoch seconds.  max_file: bytes before rotation.  Raises OSError."""
        self._path = directory / "events.jsonl"
        self._now = now
        self._max_file = max_file
        self._subscriptions: set[Subscription] = set()
        self._flood: dict[str | None, _Bucket] = {}
        self._unwritten: deque[bytes] = deque(maxlen=UNWRITTEN)  # lines
        self._descriptor = _open(self._path)
        self._size = os.fstat(self._descriptor).st_size
        if self._size and os.pread(self._descriptor, 1, self._size - 1) != b"\n":
            self._unwritten.append(b"\n")  # end the line that a crash cut short
            self.flush()

    def close(self) -> None:
        """Close the file; subscribers get nothing more."""
        self.flush()
        os.close(self._descriptor)

    def record(self, event: EventName, **fields: Unpack[EventFields]) -> Event | None:
        """Log an event that happens now.

        None if it was left out because many of its kind came at once; the next that is logged says how many in `count`.
        A full disk is reported once and stops nobody: what does not fit is kept until there is room.
        """
        now = self._now()
        if event is EventName.PACKET_REFUSED:
            count = self._admit(fields.get("reason"), now)
            if count == 0:
                return None
            if count > 1:
                fields["count"] = fields.get("count", 1) + count - 1
        entry = Event(time=round(now, 6), event=event, **fields)
        try:
            line = _encode(entry)
        except UnicodeEncodeError:  # a command line may hold bytes that are not UTF-8
            entry = Event(**{key: _utf8(value) for key, value in msgspec.structs.asdict(entry).items()})
            line = _encode(entry)
        self._unwritten.append(line + b"\n")
        self.flush()
        for subscription in self._subscriptions:
            subscription.put(entry)
        return entry

    def history(self, since: float | None) -> History:
        """What was logged up to now, from `since` (epoch seconds) on."""
        return History(self._path, since, self._unwritten)

    def subscribe(self) -> Subscription:
        """Events from now on.  Together with history(), with no await between, nothing is missed or doubled."""
        subscription = Subscription(self._subscriptions.discard)
        self._subscriptions.add(subscription)
        return subscription

    def _admit(self, reason: str | None, now: float) -> int:
        """How many events this one stands for; 0: leave it out."""
        bucket = self._flood.get(reason)
        if bucket is None:
            if len(self._flood) >= FLOOD_REASONS:
                self._flood.pop(next(iter(self._flood)))
            bucket = self._flood[reason] = _Bucket(now)
        return bucket.admit(now)

    def flush(self) -> None:
        """Write what could not be written before.  No error where it still cannot: that has been said."""
        waiting = len(self._unwritten)
        try:
            while self._unwritten:
                self._write(self._unwritten[0])
                self._unwritten.popleft()
        except OSError as error:
            if waiting == 1:  # this one was the first
                _log.error("event log %s: %s; the latest %d events are kept", self._path, error, UNWRITTEN)

    def _write(self, line: bytes) -> None:
        if self._size and self._size + len(line) > self._max_file:
            self._rotate()
        written = os.write(self._descriptor, line)
        if written < len(line):
            os.ftruncate(self._descriptor, self._size)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._size += written

    def _rotate(self) -> None:
        fresh = self._path.with_suffix(".new")
        fresh.unlink(missing_ok=True)
        descriptor = _open(fresh)  # before anything is renamed: where this fails, as many files are kept as before
        for number in range(FILES - 1, 0, -1):
            newer = _numbered(self._path, number - 1)
            if newer.exists():
                newer.replace(_numbered(self._path, number))
        fresh.replace(self._path)
        os.close(self._descriptor)
        self._descriptor, self._size = descriptor, 0


class _Bucket:
    """Lets FLOOD_BURST through at once, then one a second, and counts the rest."""

    def __init__(self, now: float) -> None:
        self._tokens = float(FLOOD_BURST)
        self._at = now
        self._left_out = 0

    def admit(self, now: float) -> int:
        self._tokens = min(FLOOD_BURST, self._tokens + max(0.0, now - self._at))
        self._at = now
        if self._tokens < 1:
            self._left_out += 1
            return 0
        self._tokens -= 1
        count, self._left_out = self._left_out + 1, 0
        return count


class History:
    """The log as it was when this was made, whatever is rotated or written meanwhile.  May be read in a thread."""

    def __init__(self, path: Path, since: float | None, unwritten: Iterable[bytes] = ()) -> None:
        """``unwritten``: lines that are not in the file yet."""
        self._since = since
        self._unwritten = list(unwritten)
        self._files: list[tuple[BinaryIO, int]] = []  # oldest first, with the size to read
        for number in range(FILES - 1, -1, -1):
            try:
                file = _numbered(path, number).open("rb")
            except FileNotFoundError:
                continue
            self._files.append((file, os.fstat(file.fileno()).st_size))
        self._events = self._read()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for file, _ in self._files:
            file.close()

    def read(self, limit: int) -> list[Event]:
        """The next events, oldest first, at most `limit`; empty at the end."""
        return [event for _, event in zip(range(limit), self._events, strict=False)]

    def _read(self) -> Iterator[Event]:
        for file, size in self._files:
            left = size
            for line in file:
                left -= len(line)
                if left < 0:
                    break
                yield from self._event(line)
        for line in self._unwritten:
            yield from self._event(line)

    def _event(self, line: bytes) -> Iterator[Event]:
        try:
            event = _decode(line)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            return  # cut short by a crash, or written by a version with other fields
        if self._since is None or event.time >= self._since:
            yield event


class Subscription:
    """Events for one reader, who may be slow: at most QUEUE wait, then the newest are left out and counted."""

    def __init__(self, unsubscribe: Callable[[Subscription], None]) -> None:
        self._unsubscribe = unsubscribe
        self._waiting: deque[Event] = deque()
        self._missed = 0
        self._arrived = asyncio.Event()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._unsubscribe(self)

    def put(self, event: Event) -> None:
        """For the log."""
        if len(self._waiting) < QUEUE:
            self._waiting.append(event)
        else:
            self._missed += 1
            self._missed_at = event.time
        self._arrived.set()

    async def wait(self) -> None:
        """Until take() has something to give."""
        await self._arrived.wait()

    def take(self) -> list[Event]:
        """What waits now.  If some were left out, `events.missed` with their number comes last."""
        self._arrived.clear()
        events = list(self._waiting)
        self._waiting.clear()
        if self._missed:
            events.append(Event(time=self._missed_at, event=EventName.EVENTS_MISSED, count=self._missed))
            self._missed = 0
        return events


def _utf8(value: Any) -> Any:
    return value.encode(errors="replace").decode() if type(value) is str else value


def _open(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)


def _numbered(path: Path, number: int) -> Path:
    return path.with_name(f"{path.name}.{number}") if number else path

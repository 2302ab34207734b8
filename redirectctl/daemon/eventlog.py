"""The event log: JSON lines in a file that is rotated by size, and live to subscribers.

``events.jsonl`` is the newest file, ``events.jsonl.1`` the one before, and so on.  Nothing is synced to disk: after a
power failure the last events may be missing.  A line that was cut short by a crash is passed over when read.

Whoever causes events (a peer, strangers, a user of this host) has a share of the log, and what he can cause at will is
written once and then counted (repeats.py).  All text goes in escaped and cut, whatever it says.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from ipaddress import ip_network
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Final, Self, TypedDict, Unpack

import msgspec

from redirectctl.api.schema import ConnectionState, Event, EventName, PathName
from redirectctl.api.text import clean, shortened
from redirectctl.daemon.loops import Pulse
from redirectctl.daemon.repeats import Repeats, Shares
from redirectctl.wire.addr import IPAddress

MAX_FILE: Final = 16 * 1024 * 1024  # bytes before rotation
FILES: Final = 4  # kept in all; with MAX_FILE some 200,000 events, months of them
UNWRITTEN: Final = 4096  # events, the latest, that wait for room on the disk: some hours of them
QUEUE: Final = 1024  # events that wait for one subscriber; a move of 1,000 connections fits
# Of all that others cause in a day: some 20,000 events, or 100 connections that move 100 times.  Whatever they do, what
# is not theirs is kept for a week.
BUDGET: Final = (FILES - 1) * MAX_FILE // 7
MAX_TEXT: Final = 1024  # characters of a field
BEAT: Final = 1.0  # seconds between looks for what was left out
STRANGERS: Final = "strangers"  # who: anybody that is no peer
# What can be caused at will, by datagrams alone.  Strangers meet us with a new key each time.
AT_WILL: Final = frozenset(
    {
        EventName.PACKET_REFUSED,
        EventName.REDIRECT_REFUSED,
        EventName.PEER_FIRST_CONTACT,
        EventName.PEER_KEY_CHANGED,
        EventName.PEER_APPROVED,
    }
)

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
    gap: float
    previous: str | None
    connections: int
    epoch: int
    count: int
    detail: str


class Cause(TypedDict, total=False):
    """Who caused an event, for record()."""

    who: str | None  # None: this host
    where: str  # a stranger's network: one of them is not to be told in the place of another


def network_of(address: IPAddress | None) -> str:
    """What one stranger may have many addresses in: for ``where``."""
    if address is None:
        return ""
    return str(ip_network((address, 24 if address.version == 4 else 48), strict=False))


class EventLog:
    """Writes events, answers what happened since when, tells subscribers.  For use from the event loop's thread."""

    def __init__(
        self, directory: Path, now: Callable[[], float], *, max_file: int = MAX_FILE, budget: int = BUDGET
    ) -> None:
        """directory: must exist.  now: epoch seconds.  max_file: bytes before rotation.  Raises OSError."""
        self._path = directory / "events.jsonl"
        self._now = now
        self._max_file = max_file
        self._subscriptions: set[Subscription] = set()
        self._repeats: Repeats[tuple[EventName, EventFields]] = Repeats()
        self._shares = Shares(budget)
        self._unwritten: deque[bytes] = deque(maxlen=UNWRITTEN)  # lines
        self._descriptor = _open(self._path)
        self._size = os.fstat(self._descriptor).st_size
        if self._size and os.pread(self._descriptor, 1, self._size - 1) != b"\n":
            self._unwritten.append(b"\n")  # end the line that a crash cut short
            self.write_waiting()

    def close(self) -> None:
        """Close the file; subscribers get nothing more."""
        self.flush(float("inf"))
        os.close(self._descriptor)

    async def run(self, pulse: Pulse) -> None:
        """Log now and then what was left out, until cancelled."""
        while True:
            await pulse.sleep(BEAT)
            self.flush()

    def record(
        self, event: EventName, *, who: str | None = None, where: str = "", **fields: Unpack[EventFields]
    ) -> Event | None:
        """Log an event that happens now.  ``who``, ``where``: see Cause.

        None if it was left out because many of its kind came, or he has used up his share; the next of its kind that is
        logged, soon (flush), says how many in `count`.
        A full disk is reported once and stops nobody: what does not fit is kept until there is room.
        """
        now = self._now()
        if who is not None:
            room = self._shares.room(now, who)
            if event in AT_WILL or not room:
                broad = event, fields.get("reason")
                times = fields.get("count") or 1
                count = self._repeats.note(
                    now, who, (*broad, where), (event, fields), times, broad=broad, hold=not room
                )
                if count == 0:
                    return None
                if count > 1:
                    fields["count"] = count
        return self._log(now, event, who, fields)

    def flush(self, now: float | None = None) -> None:
        """Log what was left out and has waited long enough.  now: infinity for all of it."""
        at = self._now()
        due = self._repeats.due(at if now is None else now, lambda who: self._shares.room(at, who))
        for who, (event, fields), count in due:
            if count > 1:
                fields["count"] = count
            self._log(at, event, who, fields)
        self.write_waiting()

    def _log(self, now: float, event: EventName, who: str | None, fields: EventFields) -> Event:
        entry = Event(time=round(now, 6), event=event, **{key: _text(value) for key, value in fields.items()})
        line = _encode(entry) + b"\n"
        if who is not None:
            self._shares.take(who, len(line))
        self._unwritten.append(line)
        self.write_waiting()
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

    def write_waiting(self) -> None:
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


def _text(value: Any) -> Any:
    return shortened(clean(value), MAX_TEXT) if type(value) is str else value


def _open(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)


def _numbered(path: Path, number: int) -> Path:
    return path.with_name(f"{path.name}.{number}") if number else path

"""Two threads that ask the daemon: one looks at everything once a second, one follows the events.

Both outlive the daemon and find the next one.  Callbacks are called in these threads.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, Protocol, TypeVar

from redirectctl.api import schema
from redirectctl.api.client import Client, UnreachableError, Unseen
from redirectctl.api.schema import Event, RequestError
from redirectctl_tui.model import Rates, View

BEAT: Final = 1.0  # seconds between looks
SOON: Final = 0.2  # seconds between looks while things happen
BUSY: Final = 10.0  # a look takes at most this part of the time, ours and the daemon's
RETRY: Final = 0.5  # seconds between attempts to reach a daemon
HISTORY: Final = 7 * 86400.0  # seconds of events that are shown

ReplyT = TypeVar("ReplyT", bound=schema.Reply)


@dataclass(frozen=True)
class Lost:
    """The daemon is not there, or says no."""

    why: str
    since: float  # epoch seconds


class Listener(Protocol):
    """Who is told.  Each method must return at once."""

    def viewed(self, view: View) -> None:
        """A new view."""

    def lost(self, lost: Lost) -> None:
        """No view could be had."""

    def happened(self) -> None:
        """There are events to take."""


class Source(Protocol):
    """Where the app has everything from; tests have another one."""

    def start(self, listener: Listener) -> None:
        """Begin to tell."""

    def stop(self) -> None:
        """Tell nothing more."""

    def poke(self) -> None:
        """Look soon: something has been done."""

    def take_events(self) -> list[Event]:
        """Events since the last call, oldest first."""

    def ask(self, request: schema.Request, reply: type[ReplyT]) -> ReplyT:
        """One question; blocks.  Raises RequestError, UnreachableError."""


class Feed:
    """The Source that is a daemon."""

    def __init__(self, path: str | None, clock: Callable[[], float] = time.time) -> None:
        """path: as redirectctl.api.client.Client takes it.  clock: epoch seconds."""
        self._path = path
        self._clock = clock
        self._lock = threading.Lock()
        self._events: list[Event] = []
        self._stopped = threading.Event()
        self._poked = threading.Event()
        self._clients: dict[str, Client] = {}

    def start(self, listener: Listener) -> None:
        """Begin to tell."""
        for work, name in ((self._look, "look"), (self._follow, "follow")):
            threading.Thread(target=work, args=(listener,), name=name, daemon=True).start()

    def stop(self) -> None:
        """Tell nothing more."""
        self._stopped.set()
        self._poked.set()
        with self._lock:
            for client in self._clients.values():
                client.interrupt()

    def poke(self) -> None:
        """Look soon."""
        self._poked.set()

    def take_events(self) -> list[Event]:
        """Events since the last call, oldest first."""
        with self._lock:
            events, self._events = self._events, []
        return events

    def ask(self, request: schema.Request, reply: type[ReplyT]) -> ReplyT:
        """One question."""
        with Client(self._path) as client:
            return client.call(request, reply)

    def _look(self, listener: Listener) -> None:
        since: float | None = None
        while not self._stopped.is_set():
            try:
                with self._client("look") as client:
                    rates = Rates()
                    for _ in self._beats():
                        listener.viewed(self._view(client, rates))
                        since = None
            except (UnreachableError, RequestError) as error:
                since = since if since is not None else self._clock()
                if not self._stopped.is_set():
                    listener.lost(Lost(_why(error), since))
                self._stopped.wait(RETRY)

    def _view(self, client: Client, rates: Rates) -> View:
        status = client.call(schema.StatusRequest(), schema.StatusReply).status
        connections = client.call(schema.ConnectionsRequest(counters=True), schema.ConnectionsReply).connections
        measured = rates.update(time.monotonic(), connections)
        peers = client.call(schema.PeersRequest(), schema.PeersReply).peers
        return View(self._clock(), status, connections, peers, measured)

    def _beats(self) -> Iterator[None]:
        """Once a second, sooner when poked, later when a look takes long."""
        while not self._stopped.is_set():
            self._poked.clear()
            began = time.monotonic()
            yield
            took = time.monotonic() - began
            self._stopped.wait(max(SOON, BUSY * took))
            self._poked.wait(max(0.0, BEAT - SOON))

    def _follow(self, listener: Listener) -> None:
        unseen = Unseen(self._clock() - HISTORY)
        while not self._stopped.is_set():
            try:
                with self._client("follow") as client:
                    for event in client.events(follow=True, since=unseen.since):
                        if unseen.take(event):
                            self._put(event, listener)
            except (UnreachableError, RequestError):
                self._stopped.wait(RETRY)

    def _put(self, event: Event, listener: Listener) -> None:
        with self._lock:
            self._events.append(event)
            first = len(self._events) == 1
        if first and not self._stopped.is_set():
            listener.happened()
        self._poked.set()

    def _client(self, name: str) -> Client:
        client = Client(self._path)
        with self._lock:
            self._clients[name] = client
        if self._stopped.is_set():
            client.interrupt()
        return client


def _why(error: UnreachableError | RequestError) -> str:
    if isinstance(error, UnreachableError):
        return f"{error.why}; {error.hint}"
    return str(error)

"""The feed against the real server on a Unix socket, which goes and comes back."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from redirectctl.api import schema
from redirectctl.api.client import UnreachableError
from redirectctl.api.schema import EventName, RequestError
from redirectctl_tui.feed import Feed, Lost
from redirectctl_tui.model import View
from tests.served import PATIENCE, Served
from tests.tui.recorded import scene


class Server(Served):
    """Answers from a scene."""

    def __init__(self, directory: Path) -> None:
        self.scene = scene("protected")
        self.denied = False
        super().__init__(directory, self.scene.view.at)

    async def status(self, request: Any, caller: Any) -> schema.StatusReply:
        return schema.StatusReply(self.scene.view.status)

    async def connections(self, request: schema.ConnectionsRequest, caller: Any) -> schema.ConnectionsReply:
        if self.denied:
            raise RequestError("connections", "not permitted", "ask as root", schema.ErrorCode.DENIED)
        assert request.counters
        return schema.ConnectionsReply(list(self.scene.view.connections))

    async def peers(self, request: Any, caller: Any) -> schema.PeersReply:
        return schema.PeersReply(list(self.scene.view.peers))

    async def announce(self, request: Any, caller: Any) -> schema.AnnounceReply:
        return schema.AnnounceReply(3)


class Heard:
    """A Listener that keeps what it is told."""

    def __init__(self) -> None:
        self.views: queue.Queue[View] = queue.Queue()
        self.losses: queue.Queue[Lost] = queue.Queue()
        self.happenings: queue.Queue[None] = queue.Queue()

    def viewed(self, view: View) -> None:
        self.views.put(view)

    def lost(self, lost: Lost) -> None:
        self.losses.put(lost)

    def happened(self) -> None:
        self.happenings.put(None)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path)
    server.start()
    yield server
    server.close()


@pytest.fixture
def feed(server: Server) -> Iterator[Feed]:
    feed = Feed(str(server.socket), lambda: server.time)
    yield feed
    feed.stop()


def test_it_looks_again_and_again(server: Server, feed: Feed):
    heard = Heard()
    feed.start(heard)
    view = heard.views.get(timeout=PATIENCE)
    assert view.status == server.scene.view.status
    assert view.connections == server.scene.view.connections
    assert view.rates == {}
    c = server.scene.view.connections[0]
    assert isinstance(c.counters, schema.Counters)
    counted = msgspec.structs.replace(c.counters, received=c.counters.received + 10**6)
    changed = [msgspec.structs.replace(c, counters=counted)]
    server.scene = msgspec.structs.replace(server.scene, view=View(server.time, view.status, changed, view.peers))
    feed.poke()
    while not (view := heard.views.get(timeout=PATIENCE)).rates:
        pass
    assert set(view.rates) == {c.id}
    assert view.rates[c.id][0] > 0
    assert view.rates[c.id][1] == 0


def test_events_come_once_whatever_the_daemon_does(server: Server, feed: Feed):
    server.record(EventName.DAEMON_STARTED)
    heard = Heard()
    feed.start(heard)
    events = []

    def wait(count: int) -> list[str]:
        while len(events) < count:
            heard.happenings.get(timeout=PATIENCE)
            events.extend(feed.take_events())
        return [event.event.value for event in events]

    assert wait(1) == ["daemon.started"]
    server.time += 1
    server.record(EventName.ADDRESS_ADDED, address="192.0.2.1")
    assert wait(2)[1:] == ["address.added"]
    server.stop()
    server.record(EventName.DAEMON_STOPPED)
    server.start()
    server.time += 1
    server.record(EventName.DAEMON_STARTED)
    assert wait(4)[2:] == ["daemon.stopped", "daemon.started"]
    assert feed.take_events() == []


def test_a_daemon_that_goes_and_comes_back(server: Server, feed: Feed):
    heard = Heard()
    feed.start(heard)
    heard.views.get(timeout=PATIENCE)
    server.stop()
    lost = heard.losses.get(timeout=PATIENCE)
    assert lost.since == server.time
    while "no daemon listens there" not in lost.why:
        lost = heard.losses.get(timeout=PATIENCE)
    server.time += 5
    assert heard.losses.get(timeout=PATIENCE).since == lost.since  # when it was lost, not when it was tried
    while not heard.views.empty():
        heard.views.get()
    server.start()
    assert heard.views.get(timeout=PATIENCE).at == server.time


def test_a_refusal_is_told(server: Server, feed: Feed):
    server.denied = True
    heard = Heard()
    feed.start(heard)
    assert heard.losses.get(timeout=PATIENCE).why == "connections: not permitted; ask as root"
    server.denied = False
    heard.views.get(timeout=PATIENCE)


def test_one_question(server: Server, feed: Feed):
    assert feed.ask(schema.AnnounceRequest(), schema.AnnounceReply).peers == 3
    server.stop()
    with pytest.raises(UnreachableError):
        feed.ask(schema.AnnounceRequest(), schema.AnnounceReply)


def test_nothing_is_told_after_the_end(server: Server, feed: Feed):
    heard = Heard()
    feed.start(heard)
    heard.views.get(timeout=PATIENCE)
    feed.stop()
    for thread in threading.enumerate():
        if thread.name in ("look", "follow"):
            thread.join(PATIENCE)
            assert not thread.is_alive()
    assert heard.losses.empty()

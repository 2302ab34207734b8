"""Scenes that record.py has recorded, and a Source that shows them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import msgspec

from redirectctl.api import schema
from redirectctl.api.schema import Check, Connection, Event, RequestError
from redirectctl_tui.feed import Listener, Lost
from redirectctl_tui.model import View

FOLDER: Final = Path(__file__).parent / "scenes"


class Scene(msgspec.Struct, frozen=True):
    """All that the daemon says at one moment."""

    view: View
    events: list[Event]
    identity: schema.IdentityReply
    checks: list[Check]
    peer_checks: list[Check]  # as doctor finds them for the first of the peers
    peers: dict[str, schema.PeerReply]  # by fingerprint
    connections: dict[str, Connection]  # by id, with history
    carried: list[tuple[float, float]] = []  # of all connections, second by second: received, sent; bytes a second


def scene(name: str) -> Scene:
    """One that was recorded."""
    return msgspec.json.decode((FOLDER / f"{name}.json").read_bytes(), type=Scene)


class Recorded:
    """A Source that shows a scene, answers from it, and remembers what was asked."""

    def __init__(self, shown: Scene) -> None:
        self.scene = shown
        self.asked: list[schema.Request] = []
        self.refuse: RequestError | None = None  # the answer to whatever changes something
        self.pokes = 0
        self._listener: Listener | None = None
        self._events: list[Event] = []

    def start(self, listener: Listener) -> None:
        """Tell of the scene."""
        self._listener = listener
        for rates in self.scene.carried:
            listener.viewed(replace(self.scene.view, rates={"all": rates}))
        self.show(self.scene)

    def stop(self) -> None:
        """Tell nothing more."""
        self._listener = None

    def poke(self) -> None:
        """Count it."""
        self.pokes += 1

    def take_events(self) -> list[Event]:
        """All of the scene, once."""
        events, self._events = self._events, []
        return events

    def show(self, shown: Scene) -> None:
        """The daemon is like this now."""
        self.scene = shown
        self._events = list(shown.events)
        if self._listener is not None:
            self._listener.viewed(shown.view)
            self._listener.happened()

    def lose(self, why: str, since: float) -> None:
        """The daemon is gone."""
        if self._listener is not None:
            self._listener.lost(Lost(why, since))

    def ask(self, request: schema.Request, reply: type[Any]) -> Any:
        """From the scene."""
        self.asked.append(request)
        shown = self.scene
        asking: dict[type[schema.Request], Callable[[Any], schema.Reply]] = {
            schema.IdentityRequest: lambda _: shown.identity,
            schema.DoctorRequest: lambda r: schema.DoctorReply(shown.peer_checks if r.peer else shown.checks),
            schema.PeerRequest: lambda r: shown.peers[r.peer],
            schema.ConnectionRequest: lambda r: schema.ConnectionReply(self._connection(r.connection)),
        }
        if type(request) in asking:
            return asking[type(request)](request)
        if self.refuse is not None:
            raise self.refuse
        doing: dict[type[schema.Request], Callable[[Any], schema.Reply]] = {
            schema.ReleaseRequest: lambda r: schema.ConnectionReply(shown.connections[r.connection]),
            schema.KillRequest: lambda r: schema.ConnectionReply(shown.connections[r.connection]),
            schema.ProtectRequest: lambda _: schema.ConnectionsReply(list(shown.view.connections[:2])),
            schema.AnnounceRequest: lambda _: schema.AnnounceReply(1),
        }
        if type(request) in doing:
            return doing[type(request)](request)
        return schema.PeerReply(shown.peers[request.peer].peer)  # type: ignore[union-attr]

    def _connection(self, cid: str) -> Connection:
        if cid not in self.scene.connections:
            raise RequestError("connection", "no such connection")
        return self.scene.connections[cid]

"""Everything about one connection, or one peer."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import ClassVar

from msgspec import UnsetType
from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.widgets import Static

from redirectctl.api.naming import short_fingerprint
from redirectctl.api.schema import Connection, ConnectionState, Event, EventName, Peer
from redirectctl.api.text import clean, duration, moment
from redirectctl_tui.model import View
from redirectctl_tui.screens.dialogs import WIDTH, Dialog, pairs_text
from redirectctl_tui.words import (
    PEERS,
    STATES,
    amount,
    explained,
    explained_fully,
    peer_name,
    plural,
    rate,
    took,
)

ENDED = "It has ended and is no longer listed."
SAME = 0.01  # seconds between a step of the history and its event in the log
RESUMED = ConnectionState.PROTECTED.value
_STATE_OF = {
    EventName.CONNECTION_FOUND: ConnectionState.SHORT,
    EventName.CONNECTION_LONG: ConnectionState.NEGOTIATING,
    EventName.CONNECTION_PROTECTED: ConnectionState.PROTECTED,
    EventName.CONNECTION_UNSUPPORTED: ConnectionState.UNSUPPORTED,
    EventName.CONNECTION_REFUSED: ConnectionState.REFUSED,
    EventName.CONNECTION_RELEASED: ConnectionState.RELEASED,
    EventName.CONNECTION_SUSPENDED: ConnectionState.SUSPENDED,
    EventName.CONNECTION_RESUMED: ConnectionState.PROTECTED,
    EventName.CONNECTION_CLOSED: ConnectionState.CLOSED,
}


class Details(Dialog):
    """A text that can be scrolled.  Dismissed with "release", "kill" or ""."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("r", "dismiss('release')", "Release"),
        Binding("k", "dismiss('kill')", "Kill"),
        Binding("enter", "dismiss('')", "Close", show=False),
    ]

    def __init__(self, connection: str) -> None:
        """connection: its id."""
        super().__init__()
        self.connection = connection
        self._text = Text("…")

    def compose(self) -> ComposeResult:
        """The box."""
        with VerticalScroll(classes="box tall", can_focus=True) as box:
            box.border_title = "Connection"
            box.border_subtitle = "r Release   k Kill   Esc Close"
            yield Static(self._text, id="text")

    def show(self, text: Text) -> None:
        """What is known now.  It may come before there is anything to show it in, or after that has gone."""
        self._text = text
        for place in self.query("#text").results(Static):
            place.update(text)


def peer_text(peer: Peer, picture: str) -> Text:
    """All about a peer."""
    text = peer_facts(peer)
    text.append(f"\n\n{picture}")
    return text


def peer_facts(peer: Peer, width: int = WIDTH) -> Text:
    """What a row has no room for."""
    called = ""
    if not isinstance(peer.contacted, UnsetType):
        called = "this host called it" if peer.contacted else "it called this host"
    return pairs_text(
        [
            ("state", f"{PEERS[peer.state][0]} {peer.state.value}"),
            ("fingerprint", clean(peer.fingerprint)),
            ("addresses", "\n".join(clean(address) for address in peer.addresses) or "none known"),
            ("sees us at", clean(peer.observed) if isinstance(peer.observed, str) else ""),
            ("first met", moment(peer.first_seen)),
            ("last contact", moment(peer.last_contact)),
            ("met when", called),
            ("connections", str(peer.connections)),
        ],
        width,
    )


def connection_text(connection: Connection, view: View, events: Sequence[Event]) -> Text:
    """All about a connection."""
    c = connection
    mark, _, meaning = STATES[c.state]
    peer = view.peer(c.peer)
    state = f"{mark} {c.state.value}: {meaning}"
    if c.suspended_for is not None:
        state += f"\nwithout a path for {duration(c.suspended_for)}"
    wire = (
        "as the socket" if (c.wire_local, c.wire_remote) == (c.local, c.remote) else _ends(c.wire_local, c.wire_remote)
    )
    pairs = [
        ("state", state),
        ("because", explained_fully(c.reason)),
        ("program", _program(c)),
        ("socket", _ends(c.local, c.remote)),
        ("on the wire", wire),
        ("path", f"{c.path.value}, {plural(c.moves, 'move')}"),
        ("integrity", "each datagram carries a tag" if c.integrity else "as TCP has it"),
        (
            "peer",
            f"{peer_name(peer, c.peer)}, {peer.state.value if peer else 'not known'}\n{clean(c.peer)}"
            if c.peer
            else "none yet",
        ),
        ("age", duration(c.age)),
        ("traffic", _traffic(c, view)),
        ("id", c.id),
    ]
    text = pairs_text(pairs)
    text.append("\n\nTimeline, latest first\n", "bold")
    text.append_text(timeline_text(c, events))
    return text


def timeline_text(connection: Connection, events: Sequence[Event], most: int | None = None) -> Text:
    """The latest first.  most: lines."""
    lines = timeline(connection, events)[::-1][:most]
    text = Text()
    for at, what in lines:
        text.append(f"{time.strftime('%H:%M:%S', time.localtime(at))}.{int(at % 1 * 10)}  ", "dim")
        text.append(f"{what}\n")
    text.rstrip()
    return text


def summary_text(connection: Connection, view: View, width: int) -> Text:
    """What a row has no room for, in some ten lines of so many cells."""
    c = connection
    _, _, meaning = STATES[c.state]
    peer = view.peer(c.peer)
    moved = (c.wire_local, c.wire_remote) != (c.local, c.remote)
    pairs = (
        ("state", f"{c.state.value}: {meaning}"),
        ("because", explained_fully(c.reason)),
        ("socket", _ends(c.local, c.remote)),
        ("on the wire", _ends(c.wire_local, c.wire_remote) if moved else "as the socket"),
        ("integrity", "each datagram carries a tag" if c.integrity else ""),
        ("peer", f"{peer_name(peer, c.peer)}, {short_fingerprint(c.peer)}" if c.peer else "none yet"),
        ("process", str(c.pid) if c.pid is not None else ""),
        ("traffic", _traffic(c, view)),
    )
    return pairs_text(pairs, width)


def _traffic(connection: Connection, view: View) -> str:
    counters = connection.counters
    if isinstance(counters, UnsetType):
        return ""
    received, sent = view.rates.get(connection.id, (0.0, 0.0))
    return (
        f"received {amount(counters.received)} {rate(received)}".rstrip()
        + f", sent {amount(counters.sent)} {rate(sent)}".rstrip()
        + f"\nround trip {took(counters.rtt)}, {plural(counters.retransmitted, 'segment')} sent again"
    )


def timeline(connection: Connection, events: Sequence[Event]) -> list[tuple[float, str]]:
    """Epoch seconds and what happened then, oldest first.

    The daemon's history has every state but ends at its start; before that the event log has to do.
    """
    history = [] if isinstance(connection.history, UnsetType) else connection.history
    begun = history[0].time - SAME if history else float("inf")
    lines = [(step.time, step.state.value) for step in history]
    for event in events:
        match event.event:
            case EventName.PATH_CHANGED:
                path = event.path.value if event.path else "moved"
                lines.append((event.time, f"{path}: {_ends(event.wire_local or '?', event.wire_remote or '?')}"))
            case EventName.CONNECTION_RESUMED if event.duration is not None:
                lines = [line for line in lines if line[1] != RESUMED or abs(line[0] - event.time) > SAME]
                lines.append((event.time, f"{RESUMED} again, after {took(event.duration)} without a path"))
            case EventName.RST_HELD | EventName.REDIRECT_REFUSED:
                what = "reset held back" if event.event is EventName.RST_HELD else "move refused"
                lines.append((event.time, f"{what}: {explained(event.reason or '?')}"))
            case _ if event.event in _STATE_OF and event.time < begun:
                lines.append((event.time, _STATE_OF[event.event].value))
            case _:
                pass
    return sorted(lines, key=lambda line: line[0])


def _program(connection: Connection) -> str:
    if connection.pid is None:
        return clean(connection.command or "")
    return f"{clean(connection.command or '?')} (process {connection.pid})"


def _ends(local: str, remote: str) -> str:
    return f"{clean(local)} ⇄ {clean(remote)}"

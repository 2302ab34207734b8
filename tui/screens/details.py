"""Everything about one connection, or one peer."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import ClassVar

from msgspec import UnsetType
from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.widgets import Static

from redirectctl.api.schema import Connection, ConnectionState, Event, EventName, Peer
from redirectctl.api.text import clean, duration, moment
from redirectctl_tui.model import View
from redirectctl_tui.screens.dialogs import Dialog
from redirectctl_tui.words import PEERS, STATES, amount, explained, peer_name, plural, rate, took

ENDED = "It has ended and is no longer listed."
_STATE_OF = {
    EventName.CONNECTION_FOUND: ConnectionState.SHORT,
    EventName.CONNECTION_LONG: ConnectionState.NEGOTIATING,
    EventName.CONNECTION_PROTECTED: ConnectionState.PROTECTED,
    EventName.CONNECTION_UNSUPPORTED: ConnectionState.UNSUPPORTED,
    EventName.CONNECTION_REFUSED: ConnectionState.REFUSED,
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

    def compose(self) -> ComposeResult:
        """The box."""
        with VerticalScroll(classes="box tall", can_focus=True) as box:
            box.border_title = "Connection"
            box.border_subtitle = "r Release   k Kill   Esc Close"
            yield Static("…", id="text")

    def show(self, text: Text) -> None:
        """What is known now."""
        self.query_one("#text", Static).update(text)


class PeerDetails(Dialog):
    """A peer with its picture."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("enter", "dismiss('')", "Close", show=False)]

    def __init__(self, peer: Peer, picture: str) -> None:
        super().__init__()
        self._peer = peer
        self._picture = picture

    def compose(self) -> ComposeResult:
        """The box."""
        p = self._peer
        with VerticalScroll(classes="box", can_focus=True) as box:
            box.border_title = Text(peer_name(p, p.fingerprint))
            box.border_subtitle = "Esc Close"
            addresses = "\n".join(clean(address) for address in p.addresses) or "none known"
            yield Static(
                _pairs(
                    [
                        ("state", f"{PEERS[p.state][0]} {p.state.value}"),
                        ("fingerprint", clean(p.fingerprint)),
                        ("addresses", addresses),
                        ("first met", moment(p.first_seen)),
                        ("last contact", moment(p.last_contact)),
                        ("connections", str(p.connections)),
                    ]
                )
            )
            yield Static(Text(self._picture), classes="above")


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
        ("because", explained(c.reason) if c.reason else ""),
        ("program", _program(c)),
        ("socket", _ends(c.local, c.remote)),
        ("on the wire", wire),
        ("path", f"{c.path.value}, {plural(c.moves, 'move')}"),
        ("integrity", "each datagram carries a tag" if c.integrity else "as TCP has it"),
        ("peer", f"{peer_name(peer, c.peer)}, {peer.state.value if peer else 'not known'}" if c.peer else "none yet"),
        ("", clean(c.peer) if c.peer else ""),
        ("age", duration(c.age)),
        *_counted(c, view),
        ("id", c.id),
    ]
    text = _pairs((name, value) for name, value in pairs if value)
    text.append("\n\nTimeline\n", "bold")
    for at, what in timeline(c, events):
        text.append(f"{time.strftime('%H:%M:%S', time.localtime(at))}.{int(at % 1 * 10)}  {what}\n")
    text.rstrip()
    return text


def _counted(connection: Connection, view: View) -> Iterable[tuple[str, str]]:
    counters = connection.counters
    if isinstance(counters, UnsetType):
        return ()
    received, sent = (rate(r) for r in view.rates.get(connection.id, (0.0, 0.0)))
    return (
        ("round trip", took(counters.rtt)),
        ("received", f"{amount(counters.received)}  {received}".rstrip()),
        ("sent", f"{amount(counters.sent)}  {sent}".rstrip()),
        ("sent again", plural(counters.retransmitted, "segment")),
    )


def timeline(connection: Connection, events: Sequence[Event]) -> list[tuple[float, str]]:
    """Epoch seconds and what happened then, oldest first.

    The daemon's history has every state but ends at its start; before that the event log has to do.
    """
    history = [] if isinstance(connection.history, UnsetType) else connection.history
    begun = history[0].time - 0.01 if history else float("inf")
    lines = [(step.time, step.state.value) for step in history]
    for event in events:
        state = _STATE_OF.get(event.event)
        if state is not None and event.time < begun:
            lines.append((event.time, state.value))
        match event.event:
            case EventName.PATH_CHANGED:
                path = event.path.value if event.path else "?"
                lines.append((event.time, f"moved: {path}, {_ends(event.wire_local or '?', event.wire_remote or '?')}"))
            case EventName.CONNECTION_RESUMED if event.duration is not None:
                lines.append((event.time, f"back after {took(event.duration)} without a path"))
            case EventName.RST_HELD | EventName.REDIRECT_REFUSED:
                what = "reset held back" if event.event is EventName.RST_HELD else "move refused"
                lines.append((event.time, f"{what}: {explained(event.reason or '?')}"))
            case _:
                pass
    return sorted(lines, key=lambda line: line[0])


def _program(connection: Connection) -> str:
    if connection.pid is None:
        return clean(connection.command or "")
    return f"{clean(connection.command or '?')} (process {connection.pid})"


def _ends(local: str, remote: str) -> str:
    return f"{clean(local)} ⇄ {clean(remote)}"


def _pairs(pairs: Iterable[tuple[str, str]]) -> Text:
    text = Text()
    for name, value in pairs:
        first, *others = value.split("\n")
        text.append(f"{name:<13}", "dim" if name else "")
        text.append(f"{first}\n")
        for line in others:
            text.append(f"{'':<13}{line}\n")
    text.rstrip()
    return text

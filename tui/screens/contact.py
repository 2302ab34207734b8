"""The dialog about a host that is met for the first time, and about one whose key is another now."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from msgspec import UnsetType
from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.widgets import Button, Label, Static

from redirectctl.api.naming import said
from redirectctl.api.schema import Connection, ConnectionState, Peer, PeerState
from redirectctl.api.text import clean
from redirectctl_tui.model import View, host_of
from redirectctl_tui.screens.dialogs import Dialog
from redirectctl_tui.words import plural

FEW = 3  # commands that are named
ASKING = frozenset({ConnectionState.NEGOTIATING, ConnectionState.PENDING})
COMPARE = (
    "Run `redirectctl identity` on the other host, or have somebody there read it to you. "
    "Approve only if the whole fingerprint is the same; the picture helps the eye."
)
CHANGED = (
    "Somebody may be answering in that host's place. Or it was installed\n"
    "anew. The connection goes on, but is not protected:\n\n"
    "1. Ask its administrator, not over this network, which key it has\n"
    "   (`redirectctl identity`). Not the new one? Reject that here.\n"
    "2. Really the new one? Forget the known key under Peers and connect\n"
    "   again: you will be asked as at first contact."
)


class Contact(Dialog):
    """Dismissed with "approve", "reject" or "later" ("" by Escape).

    It comes up by itself, so no single key decides: letters move the focus, Enter presses.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("a", "go('approve')", "Approve", show=False),
        Binding("r", "go('reject')", "Reject", show=False),
        Binding("l", "go('later')", "Later", show=False),
    ]

    def __init__(self, peer: Peer, view: View) -> None:
        super().__init__()
        self.peer = peer
        self._view = view

    def compose(self) -> ComposeResult:
        """The box."""
        if self.peer.state is PeerState.CHANGED:
            yield from self._changed()
        else:
            yield from self._first()

    def _first(self) -> ComposeResult:
        with Vertical(classes="box contact") as box:
            box.border_title = "First contact with another host"
            with Horizontal(classes="sides"):
                yield Static("", id="picture")
                yield Static(who(self.peer, self._view.connections, self._view.peers), id="who", classes="side")
            yield Label(Text("Its key's fingerprint:"), classes="above")
            yield Label(Text(clean(self.peer.fingerprint)), classes="key")
            with Horizontal(classes="buttons"):
                yield Button("Later", id="later", compact=True)
                yield Button("Approve", id="approve", variant="success", compact=True)
                yield Button("Reject", id="reject", variant="error", compact=True)

    def _changed(self) -> ComposeResult:
        with Vertical(classes="box danger changed") as box:
            box.border_title = self._warning()
            for known in known_keys(self.peer, self._view.peers):
                name = f" ({clean(known.name)})" if known.name else ""
                yield Label(Text(f"known{name}:"))
                yield Label(Text(clean(known.fingerprint)), classes="key")
            yield Label(Text("now:"))
            yield Label(Text(clean(self.peer.fingerprint)), classes="key")
            yield Static(Text(CHANGED), classes="above")
            with Horizontal(classes="buttons"):
                yield Button("Later", id="later", compact=True)
                yield Button("Reject the new key", id="reject", variant="error", compact=True)

    def _warning(self) -> Text:
        where = ", ".join(clean(address) for address in self.peer.addresses[:FEW])
        return Text(f"!!! THE KEY OF {where or 'A HOST'} HAS CHANGED !!!")

    def show(self, peer: Peer, view: View) -> None:
        """What is known now: who wants it, and where it is, may come after the dialog."""
        self.peer, self._view = peer, view
        for side in self.query("#who").results(Static):
            side.update(who(peer, view.connections, view.peers))
        for box in self.query(".changed").results(Vertical):
            box.border_title = self._warning()

    def picture(self, picture: str) -> None:
        """It arrives after the dialog is there."""
        for place in self.query("#picture").results(Static):
            place.update(Text(picture))

    def action_go(self, button: str) -> None:
        """Where Enter goes."""
        for found in self.query(f"#{button}").results(Button):
            self.set_focus(found)  # at once: `focus()` would let an Enter that follows quickly press another button


def who(peer: Peer, connections: Sequence[Connection], peers: Sequence[Peer] = ()) -> Text:
    """Address, what wants it, and how to compare."""
    text = Text()
    text.append(", ".join(clean(address) for address in peer.addresses[:FEW]) or "unknown address", "bold")
    wanting = [c for c in connections if c.peer == peer.fingerprint and c.state is not ConnectionState.CLOSED] or [
        c for c in connections if host_of(c.remote) in peer.addresses and c.state in ASKING
    ]
    if (name := said(peer)) is not None:
        text.append(f"\nIt calls itself {name}; nobody has confirmed that.")
    beside = [p for p in peers if p is not peer and p.fingerprint != peer.fingerprint and _alike(p, peer)]
    if beside:
        text.append(f"\n{plural(len(beside), 'other host')} known at this address: compare the fingerprint.")
    commands = list(dict.fromkeys(clean(c.command) for c in wanting if c.command))
    if commands:
        named = "\n  ".join(commands[:FEW])
        rest = f"\n  and {plural(len(commands) - FEW, 'other')}" if len(commands) > FEW else ""
        text.append(f"\nwanted by\n  {named}{rest}\n")
    elif wanting:
        text.append(f"\nfor {plural(len(wanting), 'connection')}\n")
    elif not isinstance(peer.contacted, UnsetType):
        text.append("\nNo connection waits for it now.\n" if peer.contacted else "\nIt called this host.\n")
    else:
        text.append("\n")
    text.append(f"\n{COMPARE}")
    return text


def _alike(one: Peer, other: Peer) -> bool:
    """Both are seen at the same address now, as two hosts behind one NAT."""
    return bool(one.addresses and other.addresses) and one.addresses[0] == other.addresses[0]


def known_keys(peer: Peer, peers: Sequence[Peer]) -> list[Peer]:
    """The peers in whose place a changed key answered."""
    return [
        p
        for p in peers
        if p.state in (PeerState.APPROVED, PeerState.PENDING, PeerState.REJECTED)
        and set(p.addresses) & set(peer.addresses)
    ][:FEW]

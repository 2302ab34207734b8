"""Other hosts' daemons."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Final

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.message import Message

from redirectctl.api.schema import Peer, PeerState
from redirectctl.api.text import clean
from redirectctl_tui.model import View
from redirectctl_tui.widgets.lines import Column, Lines
from redirectctl_tui.words import PEERS, Cell, Tone, brief, short_fingerprint

COLUMNS: Final = (
    Column("name", "NAME", 12, grow=2),
    Column("state", "STATE", 10),
    Column("address", "ADDRESSES", 16, grow=4),
    Column("contact", "CONTACT", 8, right=True),
    Column("connections", "CONNS", 5, right=True),
    Column("fingerprint", "FINGERPRINT", 13, below=110),
    Column("fingerprint", "FINGERPRINT", 50, above=110),
)
_ORDER: Final = (PeerState.CHANGED, PeerState.PENDING, PeerState.APPROVED, PeerState.REJECTED)


class PeersPane(Vertical):
    """A table."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("a", "do('approve')", "Approve"),
        Binding("r", "do('reject')", "Reject"),
        Binding("f", "do('forget')", "Forget"),
        Binding("n", "do('rename')", "Rename"),
    ]

    class Act(Message):
        """Do something about a peer."""

        def __init__(self, verb: str, peer: Peer) -> None:
            """verb: details, approve, reject, forget or rename."""
            super().__init__()
            self.verb = verb
            self.peer = peer

    def __init__(self, id: str, clock: Callable[[], float]) -> None:
        super().__init__(id=id)
        self._clock = clock

    def compose(self) -> ComposeResult:
        """A table."""
        empty = "No peers yet: other hosts appear here when a connection to them is protected."
        yield Lines[Peer](COLUMNS, lambda peer: peer.fingerprint, self._cells, empty=empty, id="peer-table")

    @property
    def table(self) -> Lines[Peer]:
        """The table."""
        return self.query_one("#peer-table", Lines)

    def show(self, view: View) -> None:
        """A new view."""
        self.table.show(sorted(view.peers, key=lambda p: (_ORDER.index(p.state), -(p.last_contact or 0.0))))

    def _cells(self, peer: Peer) -> tuple[Cell, ...]:
        mark, tone = PEERS[peer.state]
        ago = "never" if peer.last_contact is None else f"{brief(max(0.0, self._clock() - peer.last_contact))} ago"
        return (
            Cell(clean(peer.name or "")),
            Cell(f"{mark} {peer.state.value}", tone),
            Cell(", ".join(clean(address) for address in peer.addresses)),
            Cell(ago),
            Cell(str(peer.connections) if peer.connections else ""),
            Cell(short_fingerprint(peer.fingerprint), Tone.DIM),
            Cell(clean(peer.fingerprint), Tone.DIM),
        )

    def on_lines_chosen(self, event: Lines.Chosen) -> None:
        """Details."""
        event.stop()
        self.action_do("details")

    def action_do(self, verb: str) -> None:
        """Something about the peer that has the cursor."""
        if (peer := self.table.current) is not None:
            self.post_message(self.Act(verb, peer))

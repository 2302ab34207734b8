"""Other hosts' daemons."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Final

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.message import Message
from textual.widgets import Static

from redirectctl.api.naming import named, short_fingerprint
from redirectctl.api.schema import Peer, PeerState
from redirectctl.api.stories import Tone
from redirectctl.api.text import clean
from redirectctl_tui.model import View
from redirectctl_tui.screens.connections import TALL
from redirectctl_tui.screens.details import peer_facts
from redirectctl_tui.widgets.lines import Column, Lines
from redirectctl_tui.words import PEERS, Cell, brief, peer_name

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
        Binding("d", "do('doctor')", "Doctor"),
    ]

    class Act(Message):
        """Do something about a peer."""

        def __init__(self, verb: str, peer: Peer) -> None:
            """verb: details, approve, reject, forget, rename, doctor or picture."""
            super().__init__()
            self.verb = verb
            self.peer = peer

    def __init__(self, id: str, clock: Callable[[], float]) -> None:
        super().__init__(id=id)
        self._clock = clock
        self._pictures: dict[str, str] = {}  # of keys, by fingerprint; empty while it is asked for

    def compose(self) -> ComposeResult:
        """A table."""
        empty = "No peers yet: other hosts appear here when a connection to them is protected."
        yield Lines[Peer](COLUMNS, lambda peer: peer.fingerprint, self._cells, empty=empty, id="peer-table")
        with Horizontal(id="peer-preview", classes="preview"):
            yield Static("", id="facts-of-peer", markup=False)
            yield Static("", id="picture-of-peer", markup=False)

    @property
    def table(self) -> Lines[Peer]:
        """The table."""
        return self.query_one("#peer-table", Lines)

    def show(self, view: View) -> None:
        """A new view."""
        self.table.show(sorted(view.peers, key=lambda p: (_ORDER.index(p.state), -(p.last_contact or 0.0))))
        self._show_preview()

    def on_resize(self) -> None:
        """Where there is room, the row with the cursor is told more about."""
        self.query_one("#peer-preview").display = self.size.height >= TALL
        self._show_preview()

    def on_lines_pointed(self) -> None:
        """Another row."""
        self._show_preview()

    def _show_preview(self) -> None:
        preview = self.query_one("#peer-preview")
        peer = self.table.current
        preview.visible = peer is not None
        if not preview.display or peer is None:
            return
        preview.border_title = Text(peer_name(peer, peer.fingerprint))
        facts = self.query_one("#facts-of-peer", Static)
        facts.update(peer_facts(peer, max(64, facts.size.width)))
        if peer.fingerprint not in self._pictures:
            self._pictures[peer.fingerprint] = ""
            self.post_message(self.Act("picture", peer))
        self.query_one("#picture-of-peer", Static).update(Text(self._pictures[peer.fingerprint]))

    def picture(self, fingerprint: str, picture: str) -> None:
        """A picture has come."""
        self._pictures[fingerprint] = picture
        self._show_preview()

    def _cells(self, peer: Peer) -> tuple[Cell, ...]:
        mark, tone = PEERS[peer.state]
        ago = "never" if peer.last_contact is None else f"{brief(max(0.0, self._clock() - peer.last_contact))} ago"
        return (
            Cell(named(peer), Tone.PLAIN if peer.name else Tone.DIM) if named(peer) else Cell("no name", Tone.DIM),
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

"""The application: views and events come in from a Source, requests go out to it, in threads.

No widget does I/O.  Panes get immutable values by `show`; what a person wants done comes back as a message.
"""

from __future__ import annotations

import gc
import os
import time
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, ClassVar, Final

from rich.text import Text
from textual.app import ComposeResult, SystemCommand
from textual.binding import Binding, BindingType
from textual.message import Message
from textual.screen import Screen
from textual.widgets import Footer, Static, TabbedContent, TabPane

from redirectctl.api import schema
from redirectctl.api.schema import Connection, ConnectionState, RequestError
from redirectctl.api.text import clean
from redirectctl_tui.feed import Lost, Source
from redirectctl_tui.journal import Journal
from redirectctl_tui.model import WAITING, View, target_error
from redirectctl_tui.peer_actions import PeerActions
from redirectctl_tui.screens.connections import ConnectionsPane
from redirectctl_tui.screens.contact import Contact
from redirectctl_tui.screens.details import ENDED, Details, connection_text
from redirectctl_tui.screens.dialogs import Ask
from redirectctl_tui.screens.help import Help
from redirectctl_tui.screens.moves import MovesPane
from redirectctl_tui.screens.network import NetworkPane
from redirectctl_tui.screens.peers import PeersPane
from redirectctl_tui.words import STATES, brief, peer_name, plural, program_name

SECONDS_PLOTTED: Final = 600
PANES: Final = {"connections": "Connections", "peers": "Peers", "moves": "Moves", "network": "Network"}


class Arrived(Message):
    """A view, or that none could be had."""

    def __init__(self, what: View | Lost) -> None:
        super().__init__()
        self.what = what


class Happened(Message):
    """There are events to take."""


class RedirectApp(PeerActions):
    """redirectctl tui."""

    TITLE = "redirectctl"
    CSS_PATH = Path(__file__).with_name("redirect.tcss")
    ENABLE_COMMAND_PALETTE = True
    BINDINGS: ClassVar[list[BindingType]] = [
        *(Binding(str(n), f"pane('{name}')", title, show=False) for n, (name, title) in enumerate(PANES.items(), 1)),
        Binding("w", "waiting", "Waiting host", show=False),
        Binding("question_mark,f1", "help", "Help", key_display="?"),
        Binding("ctrl+l", "redraw", "Draw again", show=False),
        Binding("q", "quit", "Quit"),
    ]

    def __init__(self, source: Source, host: str, clock: Callable[[], float] = time.time) -> None:
        """host: what this machine is called.  clock: epoch seconds."""
        super().__init__(source, ansi_color=True if "NO_COLOR" in os.environ else None)
        if self.no_color:
            self.theme = "ansi-dark"  # the terminal's own two colours; the others are left out
        self.animation_level = "none"  # a slow line has better things to carry
        self._host = host
        self._clock = clock
        self._lost: Lost | None = None
        self._journal = Journal()
        self._throughput: deque[tuple[float, float]] = deque(maxlen=SECONDS_PLOTTED)
        self._identity: schema.IdentityReply | None = None
        self._examined = False  # doctor has been asked

    def compose(self) -> ComposeResult:
        """Header, panes, footer."""
        yield Static("", id="top", markup=False)
        yield Static("", id="lost", markup=False)
        with TabbedContent(id="panes"):
            for number, (name, title) in enumerate(PANES.items(), 1):
                with TabPane(f"{number} {title}", id=name):
                    yield self._pane(name)
        yield Footer(compact=True)

    def _pane(self, name: str) -> ConnectionsPane | PeersPane | MovesPane | NetworkPane:
        match name:
            case "connections":
                return ConnectionsPane(id="connections-pane")
            case "peers":
                return PeersPane("peers-pane", self._clock)
            case "moves":
                return MovesPane(id="moves-pane")
            case _:
                return NetworkPane(id="network-pane")

    def on_mount(self) -> None:
        """Begin."""
        self.query_one("#lost").display = False
        self.query_one(ConnectionsPane).table.focus()
        self._show_top()
        self._source.start(self)

    def action_help_quit(self) -> None:
        """Ctrl-C where nothing is selected that it could copy."""
        self.exit()

    def on_ready(self) -> None:
        """What is there now stays: the garbage collector need not look at it again (0.1 s each time, measured)."""
        gc.freeze()

    def on_unmount(self) -> None:
        """End."""
        self._source.stop()

    # -- what the source tells, in its threads ------------------------------------------------------------------------

    def viewed(self, view: View) -> None:
        """A new view."""
        self.post_message(Arrived(view))

    def lost(self, lost: Lost) -> None:
        """No view could be had."""
        self.post_message(Arrived(lost))

    def happened(self) -> None:
        """There are events to take."""
        self.post_message(Happened())

    # -- showing ------------------------------------------------------------------------------------------------------

    def on_arrived(self, message: Arrived) -> None:
        """Show it."""
        if isinstance(message.what, Lost):
            self._lost = message.what
        else:
            if self._lost is not None and self.view is not None:
                self.notify("redirectd is back", timeout=4)
            self._lost = None
            self.view = message.what
            rates = self.view.rates.values()
            self._throughput.append((sum(r[0] for r in rates), sum(r[1] for r in rates)))
            self._show_pane()
            self._show_dialogs(self.view)
        self._show_top()

    def on_happened(self) -> None:
        """Into the journal."""
        self._journal.add(self._source.take_events())
        if self._active == "moves":
            self._show_pane()

    @property
    def _active(self) -> str:
        return self.query_one("#panes", TabbedContent).active

    def on_tabbed_content_tab_activated(self) -> None:
        """Another pane."""
        self._show_pane()
        match self._active:
            case "connections":
                self.query_one(ConnectionsPane).table.focus()
            case "peers":
                self.query_one(PeersPane).table.focus()
            case "moves":
                self.query_one(MovesPane).table.focus()
            case _:
                self.query_one(NetworkPane).focus()
                if not self._examined:
                    self.action_doctor()

    def _show_pane(self) -> None:
        """Only the one that is seen."""
        if self.view is None:
            return
        match self._active:
            case "connections":
                self.query_one(ConnectionsPane).show(self.view, self._journal.of_connection)
            case "peers":
                self.query_one(PeersPane).show(self.view)
            case "moves":
                self._journal.tick(self._clock())
                self.query_one(MovesPane).show(self.view, self._journal, tuple(self._throughput))
            case _:
                self.query_one(NetworkPane).show(self.view, self._identity)

    def _show_top(self) -> None:
        lost = self.query_one("#lost", Static)
        lost.display = self._lost is not None
        self.query_one("#panes").set_class(self._lost is not None, "stale")
        if self._lost is not None:
            since = brief(max(0.0, self._clock() - self._lost.since))
            lost.update(f" No answer from redirectd for {since}, trying again: {clean(self._lost.why)}")
        top = f" redirectctl  {clean(self._host)}"
        if self.view is not None:
            if waiting := len(self.view.waiting()):
                top += f"  ▶ {plural(waiting, 'host')} waiting for you: press w"
            counts = self.view.status.connections
            top += "".join(f"  {mark} {counts[s]:,} {s.value}" for s, (mark, _, _) in STATES.items() if counts.get(s))
        self.query_one("#top", Static).update(top)

    def _show_dialogs(self, view: View) -> None:
        """Dialogs about what has changed follow it; what waits for a person comes up by itself."""
        screen = self.screen
        if isinstance(screen, Details):
            self._ask_details(screen)
        elif isinstance(screen, Contact):
            peer = view.peer(screen.peer.fingerprint)
            if peer is None or peer.state not in WAITING:
                screen.dismiss("decided")
                said = f"is {peer.state.value}" if peer else "is no longer known"
                self.notify(f"{peer_name(peer, screen.peer.fingerprint)} {said}: decided elsewhere", markup=False)
            else:
                screen.show(peer, view)
        elif self._may_interrupt():
            unseen = [peer for peer in view.waiting() if peer.fingerprint not in self._later]
            if unseen:
                self.contact(unseen[0])

    def _may_interrupt(self) -> bool:
        """Nobody types or decides something else."""
        return len(self.screen_stack) == 1 and not self.query("Input:focus")

    # -- connections --------------------------------------------------------------------------------------------------

    def on_connections_pane_act(self, message: ConnectionsPane.Act) -> None:
        """A person wants something done to a connection."""
        self._do(message.verb, message.row.connection)

    def _do(self, verb: str, connection: Connection) -> None:
        what = f"{program_name(connection.command) or 'a connection'} with {connection.remote}"
        if verb == "details":
            screen = Details(connection.id)
            self.push_screen(screen, lambda then: self._do(then, connection) if then else None)
            self._ask_details(screen)
        elif connection.state is ConnectionState.CLOSED:
            self.notify("it has ended already", severity="warning")
        elif verb == "release":
            text = f"{what}\nIt goes on, but will no longer survive a change of address."
            request = schema.ReleaseRequest(connection.id)
            self.confirm("Release", text, "Release", lambda: self._ask_connection(request, f"released {what}"))
        else:
            text = f"{what}\nIt is closed on both hosts; the programs see it reset."
            kill = schema.KillRequest(connection.id)
            self.confirm("Kill", text, "Kill", lambda: self._ask_connection(kill, f"killed {what}"))

    def _ask_connection(self, request: schema.ReleaseRequest | schema.KillRequest, done: str) -> None:
        self.ask(request, schema.ConnectionReply, lambda _: self.notify(done, markup=False))

    def _ask_details(self, screen: Details) -> None:
        def show(reply: schema.ConnectionReply) -> None:
            if self.view is not None:
                events = self._journal.of_connection(reply.connection.id)
                screen.show(connection_text(reply.connection, self.view, events))

        def ended(error: Exception) -> None:
            if isinstance(error, RequestError):
                screen.show(Text(ENDED))

        self.ask(schema.ConnectionRequest(screen.connection), schema.ConnectionReply, show, ended)

    def action_protect(self) -> None:
        """A running process, or one connection."""

        def given(target: str | None) -> None:
            if target:
                self.ask(
                    schema.ProtectRequest(target),
                    schema.ConnectionsReply,
                    lambda reply: self.notify(
                        f"opted in {plural(len(reply.connections), 'connection')} of {target}", markup=False
                    ),
                )

        text = "A process number, or LOCAL-REMOTE as `ss -tn` shows them:\n192.0.2.1:40000-198.51.100.2:22"
        self.push_screen(Ask("Protect", text, "", target_error), given)

    # -- this host ----------------------------------------------------------------------------------------------------

    def action_announce(self) -> None:
        """Announce this host's addresses to all peers now."""
        self.ask(
            schema.AnnounceRequest(),
            schema.AnnounceReply,
            lambda reply: self.notify(f"announced to {plural(reply.peers, 'peer')}"),
        )

    def action_doctor(self) -> None:
        """Find what keeps redirectctl from working on this host."""
        pane = self.query_one(NetworkPane)
        self._examined = True
        pane.asking()
        if self._identity is None:
            self.ask(schema.IdentityRequest(), schema.IdentityReply, self._identified, lambda _: None)
        self.ask(
            schema.DoctorRequest(),
            schema.DoctorReply,
            lambda reply: pane.findings(reply.checks),
            lambda error: pane.failed(clean(str(error))),
        )

    def _identified(self, reply: schema.IdentityReply) -> None:
        self._identity = reply
        self._show_pane()

    # -- the application ----------------------------------------------------------------------------------------------

    def action_pane(self, name: str) -> None:
        """Show a pane."""
        if len(self.screen_stack) == 1:
            self.query_one("#panes", TabbedContent).active = name

    def action_help(self) -> None:
        """Keys and marks."""
        if len(self.screen_stack) == 1:
            self.push_screen(Help())

    def action_redraw(self) -> None:
        """After something else has written on the terminal."""
        self.refresh(layout=True)

    def get_system_commands(self, screen: Screen[Any]) -> Iterable[SystemCommand]:
        """For the command palette."""
        for name, title in PANES.items():
            yield SystemCommand(title, f"Show {title.lower()}", lambda name=name: self.action_pane(name))
        yield SystemCommand("Protect", "Opt a running process or an open connection in", self.action_protect)
        yield SystemCommand("Announce", "Announce this host's addresses to all peers now", self.action_announce)
        yield SystemCommand("Doctor", "Find what keeps redirectctl from working on this host", self._show_doctor)
        yield SystemCommand("Waiting host", "Decide about the host that waits for you", self.action_waiting)
        yield SystemCommand("Help", "Keys and marks", self.action_help)
        ours = {"Keys"}  # the same as Help
        yield from (command for command in super().get_system_commands(screen) if command.title not in ours)

    def _show_doctor(self) -> None:
        self.action_pane("network")
        self.action_doctor()

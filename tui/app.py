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
from typing import Any, ClassVar, Final, TypeVar

from rich.text import Text
from textual.app import App, ComposeResult, SystemCommand
from textual.binding import Binding, BindingType
from textual.message import Message
from textual.screen import Screen
from textual.widgets import Footer, Static, TabbedContent, TabPane

from redirectctl.api import schema
from redirectctl.api.client import UnreachableError
from redirectctl.api.schema import Connection, ConnectionState, Peer, PeerState, RequestError
from redirectctl.api.text import clean
from redirectctl_tui.feed import Lost, Source
from redirectctl_tui.journal import Journal
from redirectctl_tui.model import WAITING, View, target_error
from redirectctl_tui.screens.connections import ConnectionsPane
from redirectctl_tui.screens.contact import Contact
from redirectctl_tui.screens.details import ENDED, Details, connection_text, peer_text
from redirectctl_tui.screens.dialogs import Ask, Confirm, Page
from redirectctl_tui.screens.help import Help
from redirectctl_tui.screens.moves import MovesPane
from redirectctl_tui.screens.network import NetworkPane
from redirectctl_tui.screens.peers import PeersPane
from redirectctl_tui.words import STATES, brief, peer_name, plural, program_name

SECONDS_PLOTTED: Final = 600
LONGEST_NAME: Final = 64  # characters, of a peer; the daemon refuses longer ones
PANES: Final = {"connections": "Connections", "peers": "Peers", "moves": "Moves", "network": "Network"}

ReplyT = TypeVar("ReplyT", bound=schema.Reply)


class Arrived(Message):
    """A view, or that none could be had."""

    def __init__(self, what: View | Lost) -> None:
        super().__init__()
        self.what = what


class Happened(Message):
    """There are events to take."""


class Answered(Message):
    """A request has its reply."""

    def __init__(self, then: Callable[[], None]) -> None:
        super().__init__()
        self.then = then


class RedirectApp(App[None]):
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
        super().__init__(ansi_color=True if "NO_COLOR" in os.environ else None)
        if self.no_color:
            self.theme = "ansi-dark"  # the terminal's own two colours; the others are left out
        self.animation_level = "none"  # a slow line has better things to carry
        self._source = source
        self._host = host
        self._clock = clock
        self._lost: Lost | None = None
        self._journal = Journal()
        self._throughput: deque[tuple[float, float]] = deque(maxlen=SECONDS_PLOTTED)
        self._identity: schema.IdentityReply | None = None
        self._examined = False  # doctor has been asked
        self._later: set[str] = set()  # fingerprints that a person did not want to decide about now
        self.view: View | None = None

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
                self.query_one(ConnectionsPane).show(self.view)
            case "peers":
                self.query_one(PeersPane).show(self.view)
            case "moves":
                self.query_one(MovesPane).show(self.view, self._journal, tuple(self._throughput))
            case _:
                self.query_one(NetworkPane).show(self.view, self._identity)

    def _show_top(self) -> None:
        lost = self.query_one("#lost", Static)
        lost.display = self._lost is not None
        self.query_one("#panes").set_class(self._lost is not None, "stale")
        if self._lost is not None:
            since = brief(max(0.0, self._clock() - self._lost.since))
            lost.update(f" No answer from redirectd for {since}: {clean(self._lost.why)}. Trying again…")
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
                self._contact(unseen[0], view)

    def _may_interrupt(self) -> bool:
        """Nobody types or decides something else."""
        return len(self.screen_stack) == 1 and not self.query("Input:focus")

    # -- peers --------------------------------------------------------------------------------------------------------

    def _contact(self, peer: Peer, view: View) -> None:
        screen = Contact(peer, view)

        def decided(verb: str | None) -> None:
            match verb:
                case "approve":
                    self._approve(peer)
                case "reject":
                    self._reject(peer)
                case _:
                    self._later.add(peer.fingerprint)

        self.push_screen(screen, decided)
        self._ask(
            schema.PeerRequest(peer.fingerprint),
            schema.PeerReply,
            lambda reply: screen.picture(reply.picture) if isinstance(reply.picture, str) else None,
        )

    def _approve(self, peer: Peer) -> None:
        request = schema.ApproveRequest(peer.fingerprint)
        self._ask(request, schema.PeerReply, lambda reply: self._said("approved", reply.peer))

    def _reject(self, peer: Peer) -> None:
        request = schema.RejectRequest(peer.fingerprint)
        self._ask(request, schema.PeerReply, lambda reply: self._said("rejected", reply.peer))

    def _said(self, verb: str, peer: Peer) -> None:
        self.notify(f"{verb} {peer_name(peer, peer.fingerprint)}", markup=False)

    def on_peers_pane_act(self, message: PeersPane.Act) -> None:
        """A person wants something done about a peer."""
        peer, name = message.peer, peer_name(message.peer, message.peer.fingerprint)
        match message.verb:
            case "approve" | "details" if peer.state in WAITING and self.view is not None:
                self._contact(peer, self.view)
            case "details":
                self._ask(
                    schema.PeerRequest(peer.fingerprint),
                    schema.PeerReply,
                    lambda reply: self._show_peer(reply.peer, reply.picture),
                )
            case "approve" if peer.state is PeerState.APPROVED:
                self.notify(f"{name} is approved already", markup=False)
            case "approve":
                text = f"You rejected this host. Approve it now?\n{clean(peer.fingerprint)}"
                self._confirm(f"Approve {name}", text, "Approve", lambda: self._approve(peer))
            case "reject":
                text = f"{plural(peer.connections, 'connection')} with it will no longer be protected."
                self._confirm(f"Reject {name}", text, "Reject", lambda: self._reject(peer))
            case "forget":
                text = (
                    f"Its key is forgotten; {plural(peer.connections, 'connection')} will no longer be protected.\n"
                    "The next connection is a first contact again."
                )
                self._confirm(f"Forget {name}", text, "Forget", lambda: self._forget(peer))
            case _:
                self._ask_name(peer, name)

    def _show_peer(self, peer: Peer, picture: object) -> None:
        if len(self.screen_stack) == 1:
            text = peer_text(peer, picture if isinstance(picture, str) else "")
            self.push_screen(Page(peer_name(peer, peer.fingerprint), text))

    def _forget(self, peer: Peer) -> None:
        request = schema.ForgetRequest(peer.fingerprint)
        self._ask(request, schema.PeerReply, lambda reply: self._said("forgot", reply.peer))

    def _ask_name(self, peer: Peer, name: str) -> None:
        def named(text: str | None) -> None:
            if text is not None:
                request = schema.RenameRequest(peer.fingerprint, text or None)
                self._ask(request, schema.PeerReply, lambda reply: self._said("renamed to", reply.peer))

        title = f"Rename {name}"
        self.push_screen(
            Ask(title, "What to call this host; nothing: its address.", peer.name or "", _wrong_name), named
        )

    def action_waiting(self) -> None:
        """The host that waits for a decision."""
        if len(self.screen_stack) > 1:
            return
        if self.view is not None and (waiting := self.view.waiting()):
            self._contact(waiting[0], self.view)
        else:
            self.notify("no host is waiting for a decision")

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
            text = f"{what}\nIt goes on, but will not live through a change of address any more."
            request = schema.ReleaseRequest(connection.id)
            self._confirm("Release", text, "Release", lambda: self._ask_connection(request, f"released {what}"))
        else:
            text = f"{what}\nIt is closed on both hosts; the programs see it reset."
            kill = schema.KillRequest(connection.id)
            self._confirm("Kill", text, "Kill", lambda: self._ask_connection(kill, f"killed {what}"))

    def _ask_connection(self, request: schema.ReleaseRequest | schema.KillRequest, done: str) -> None:
        self._ask(request, schema.ConnectionReply, lambda _: self.notify(done, markup=False))

    def _ask_details(self, screen: Details) -> None:
        def show(reply: schema.ConnectionReply) -> None:
            if screen.is_mounted and self.view is not None:
                events = self._journal.of_connection(reply.connection.id)
                screen.show(connection_text(reply.connection, self.view, events))

        def ended(error: Exception) -> None:
            if screen.is_mounted and isinstance(error, RequestError):
                screen.show(Text(ENDED))

        self._ask(schema.ConnectionRequest(screen.connection), schema.ConnectionReply, show, ended)

    def action_protect(self) -> None:
        """A running process, or one connection."""

        def given(target: str | None) -> None:
            if target:
                self._ask(
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
        """Say our addresses to all peers now."""
        self._ask(
            schema.AnnounceRequest(),
            schema.AnnounceReply,
            lambda reply: self.notify(f"announced to {plural(reply.peers, 'peer')}"),
        )

    def action_doctor(self) -> None:
        """Look for what could keep it from working."""
        pane = self.query_one(NetworkPane)
        self._examined = True
        pane.asking()
        if self._identity is None:
            self._ask(schema.IdentityRequest(), schema.IdentityReply, self._identified, lambda _: None)
        self._ask(
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
        yield SystemCommand("Announce", "Say our addresses to all peers now", self.action_announce)
        yield SystemCommand("Doctor", "Look for what could keep it from working", self._show_doctor)
        yield SystemCommand("Waiting host", "Decide about the host that waits for you", self.action_waiting)
        yield SystemCommand("Help", "Keys and marks", self.action_help)
        ours = {"Keys"}  # the same as Help
        yield from (command for command in super().get_system_commands(screen) if command.title not in ours)

    def _show_doctor(self) -> None:
        self.action_pane("network")
        self.action_doctor()

    def _confirm(self, title: str, text: str, yes: str, then: Callable[[], None]) -> None:
        self.push_screen(Confirm(title, text, yes), lambda answer: then() if answer == "yes" else None)

    def _ask(
        self,
        request: schema.Request,
        reply: type[ReplyT],
        then: Callable[[ReplyT], None],
        otherwise: Callable[[Exception], None] | None = None,
    ) -> None:
        """Ask in a thread; `then` with the reply, or `otherwise` with the error, is called in the app's."""
        failed = otherwise or self._failed

        def work() -> None:
            try:
                answer = self._source.ask(request, reply)
            except (RequestError, UnreachableError) as error:
                refused = error
                self.post_message(Answered(lambda: failed(refused)))
            else:
                self.post_message(Answered(lambda: then(answer)))
                self._source.poke()

        self.run_worker(work, thread=True)

    def on_answered(self, message: Answered) -> None:
        """The reply has come."""
        message.then()

    def _failed(self, error: Exception) -> None:
        self.notify(clean(str(error)), title="not done", severity="error", timeout=10, markup=False)


def _wrong_name(text: str) -> str | None:
    if len(text) > LONGEST_NAME or not text.isprintable():
        return f"at most {LONGEST_NAME} printable characters"
    return None

"""What a person decides about peers."""

from __future__ import annotations

from typing import Final

from msgspec import UnsetType
from rich.text import Text

from redirectctl.api import schema
from redirectctl.api.schema import Check, CheckStatus, Peer, PeerState
from redirectctl.api.text import clean
from redirectctl_tui.asking import AskingApp
from redirectctl_tui.feed import Source
from redirectctl_tui.model import WAITING
from redirectctl_tui.screens.contact import Contact
from redirectctl_tui.screens.details import peer_text
from redirectctl_tui.screens.dialogs import Ask, Page
from redirectctl_tui.screens.network import findings_table
from redirectctl_tui.screens.peers import PeersPane
from redirectctl_tui.words import peer_name, plural

LONGEST_NAME: Final = 64  # characters, of a peer; the daemon refuses longer ones


class PeerActions(AskingApp):
    """First contact, and the list of peers."""

    def __init__(self, source: Source, *, ansi_color: bool | None) -> None:
        super().__init__(source, ansi_color=ansi_color)
        self._later: set[str] = set()  # fingerprints that a person did not want to decide about now

    def contact(self, peer: Peer) -> None:
        """Ask the person about a host that waits for a decision."""
        if self.view is None:
            return
        screen = Contact(peer, self.view)

        def decided(verb: str | None) -> None:
            match verb:
                case "approve":
                    self._approve(peer)
                case "reject":
                    self._reject(peer)
                case _:
                    self._later.add(peer.fingerprint)

        self.push_screen(screen, decided)
        self.ask(
            schema.PeerRequest(peer.fingerprint),
            schema.PeerReply,
            lambda reply: screen.picture(reply.picture) if isinstance(reply.picture, str) else None,
        )

    def _approve(self, peer: Peer) -> None:
        request = schema.ApproveRequest(peer.fingerprint)
        self.ask(request, schema.PeerReply, lambda reply: self._said("approved", reply.peer))

    def _reject(self, peer: Peer) -> None:
        request = schema.RejectRequest(peer.fingerprint)
        self.ask(request, schema.PeerReply, lambda reply: self._said("rejected", reply.peer))

    def _said(self, verb: str, peer: Peer) -> None:
        self.notify(f"{verb} {peer_name(peer, peer.fingerprint)}", markup=False)

    def on_peers_pane_act(self, message: PeersPane.Act) -> None:
        """A person wants something done about a peer."""
        peer, name = message.peer, peer_name(message.peer, message.peer.fingerprint)
        match message.verb:
            case "picture":
                self.ask(
                    schema.PeerRequest(peer.fingerprint),
                    schema.PeerReply,
                    lambda reply: self._picture(peer, reply.picture),
                    lambda _: None,
                )
            case "doctor":
                self._examine(peer, name)
            case "approve" | "details" if peer.state in WAITING:
                self.contact(peer)
            case "details":
                self.ask(
                    schema.PeerRequest(peer.fingerprint),
                    schema.PeerReply,
                    lambda reply: self._show_peer(reply.peer, reply.picture),
                )
            case "approve" if peer.state is PeerState.APPROVED:
                self.notify(f"{name} is approved already", markup=False)
            case "approve":
                text = f"You rejected this host. Approve it now?\n{clean(peer.fingerprint)}"
                self.confirm(f"Approve {name}", text, "Approve", lambda: self._approve(peer))
            case "reject":
                text = f"{plural(peer.connections, 'connection')} with it will no longer be protected."
                self.confirm(f"Reject {name}", text, "Reject", lambda: self._reject(peer))
            case "forget":
                text = (
                    f"Its key is forgotten; {plural(peer.connections, 'connection')} will no longer be protected.\n"
                    "The next connection is a first contact again."
                )
                self.confirm(f"Forget {name}", text, "Forget", lambda: self._forget(peer))
            case _:
                self._ask_name(peer, name)

    def _picture(self, peer: Peer, picture: object) -> None:
        if isinstance(picture, str):
            self.query_one(PeersPane).picture(peer.fingerprint, picture)

    def _examine(self, peer: Peer, name: str) -> None:
        """What doctor finds from here to there."""
        page = Page(f"doctor {name}", Text("looking, which may take some seconds…"))
        self.push_screen(page)
        self.ask(
            schema.DoctorRequest(peer.fingerprint),
            schema.DoctorReply,
            lambda reply: page.update(findings_table([c for c in reply.checks if _of_peer(c)])),
            lambda error: page.update(Text(clean(str(error)))),
        )

    def _show_peer(self, peer: Peer, picture: object) -> None:
        if len(self.screen_stack) == 1:
            text = peer_text(peer, picture if isinstance(picture, str) else "")
            self.push_screen(Page(peer_name(peer, peer.fingerprint), text))

    def _forget(self, peer: Peer) -> None:
        request = schema.ForgetRequest(peer.fingerprint)
        self.ask(request, schema.PeerReply, lambda reply: self._said("forgot", reply.peer))

    def _ask_name(self, peer: Peer, name: str) -> None:
        def named(text: str | None) -> None:
            if text is not None:
                request = schema.RenameRequest(peer.fingerprint, text or None)
                self.ask(request, schema.PeerReply, lambda reply: self._said("renamed to", reply.peer))

        title = f"Rename {name}"
        self.push_screen(
            Ask(title, "What to call this host; nothing: its address.", peer.name or _says(peer), _wrong_name), named
        )

    def action_waiting(self) -> None:
        """The host that waits for a decision."""
        if len(self.screen_stack) > 1:
            return
        if self.view is not None and (waiting := self.view.waiting()):
            self.contact(waiting[0])
        else:
            self.notify("no host is waiting for a decision")


def _says(peer: Peer) -> str:
    """What it calls itself, for a person to confirm."""
    return "" if isinstance(peer.says, UnsetType) else clean(peer.says)


def _of_peer(check: Check) -> bool:
    """Of the way there, or in the way of all."""
    return check.name.startswith("peer.") or check.status in (CheckStatus.FAIL, CheckStatus.WARN)


def _wrong_name(text: str) -> str | None:
    if len(text) > LONGEST_NAME or not text.isprintable():
        return f"at most {LONGEST_NAME} printable characters"
    return None

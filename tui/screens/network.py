"""This host: addresses, control port, own key, and what doctor finds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import ClassVar

from msgspec import UnsetType
from rich.console import Group
from rich.table import Table
from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, VerticalScroll
from textual.widgets import Static

from redirectctl.api.schema import Check, CheckStatus, IdentityReply, Status
from redirectctl.api.stories import Tone
from redirectctl.api.text import clean, duration
from redirectctl_tui.model import View
from redirectctl_tui.words import CHECKS, peer_name, plural

STYLES = {Tone.GOOD: "green", Tone.WAITING: "yellow", Tone.BAD: "red bold", Tone.DIM: "dim", Tone.PLAIN: ""}
_WORDS = {
    CheckStatus.OK: "ok",
    CheckStatus.WARN: "warning",
    CheckStatus.FAIL: "failed",
    CheckStatus.SKIP: "skipped",
}
_ORDER = (CheckStatus.FAIL, CheckStatus.WARN, CheckStatus.OK, CheckStatus.SKIP)


class NetworkPane(VerticalScroll, can_focus=True):
    """Facts, picture, findings."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("f5,d", "app.doctor", "Run doctor again", key_display="F5"),
        Binding("a", "app.announce", "Announce our addresses"),
    ]

    def compose(self) -> ComposeResult:
        """Facts and picture, findings below."""
        with Horizontal(id="host"):
            yield Static("", id="facts")
            yield Static("", id="own-picture")
        yield Static("doctor: not asked yet", id="findings")

    def show(self, view: View, identity: IdentityReply | None) -> None:
        """A new view."""
        s = view.status
        text = Text()
        for name, value in (
            ("redirectd", f"{clean(s.version)}, process {s.pid}, up {duration(s.uptime)}"),
            ("addresses", "\n".join(addresses(s)) or "none: no network"),
            ("seen as", "\n".join(observations(view)) or "no peer has said"),
            ("control port", f"UDP {s.control_port}"),
            ("taken on after", duration(view.threshold)),
            ("peers", plural(s.peers, "host")),
            ("own key", "as `redirectctl identity` shows it:"),
        ):
            first, *others = value.split("\n")
            text.append(f"{name:<16}", "dim")
            text.append(f"{first}\n")
            for line in others:
                text.append(f"{'':<16}{line}\n")
        text.append(clean(s.identity), "bold")
        self.query_one("#facts", Static).update(text)
        if identity is not None:
            self.query_one("#own-picture", Static).update(Text(identity.picture))

    def asking(self) -> None:
        """Doctor is at work."""
        self.query_one("#findings", Static).update("doctor: looking…")

    def findings(self, checks: Sequence[Check]) -> None:
        """What doctor found."""
        self.query_one("#findings", Static).update(findings_table(checks))

    def failed(self, why: str) -> None:
        """Doctor could not be asked."""
        self.query_one("#findings", Static).update(Text(f"doctor: {why}"))


def findings_table(checks: Sequence[Check]) -> Group:
    """What doctor found: failures first, with what to do."""
    counts = Counter(check.status for check in checks)
    summary = ", ".join(f"{counts[status]} {_WORDS[status]}" for status in _ORDER if counts[status])
    table = Table.grid(padding=(0, 1))
    for check in sorted(checks, key=lambda check: _ORDER.index(check.status)):
        mark, tone = CHECKS[check.status]
        found = Text("\n".join(clean(line) for line in check.found.splitlines()), overflow="fold")
        if check.hint and check.status is not CheckStatus.OK:
            found.append(f"\n→ {clean(check.hint)}", STYLES[Tone.WAITING])
        status = Text(f"{mark} {_WORDS[check.status]}", STYLES[tone], no_wrap=True)
        table.add_row(status, Text(clean(check.name), "bold", no_wrap=True), found)
    return Group(Text(f"doctor: {summary}"), table)


def addresses(status: Status) -> list[str]:
    """Usable ones, with network and interface where the daemon says so."""
    if isinstance(status.networks, UnsetType):
        return [clean(address) for address in status.addresses]
    return [f"{clean(n.address)}/{n.prefix} on {clean(n.interface)}" for n in status.networks]


def observations(view: View) -> list[str]:
    """Where peers see this host, each place once, and whether that means NAT."""
    seen: dict[str, list[str]] = {}
    for peer in view.peers:
        if isinstance(peer.observed, str):
            seen.setdefault(peer.observed, []).append(peer_name(peer, peer.fingerprint))
    lines = []
    for place, names in seen.items():
        host, _, port = place.rpartition(":")
        same = host.strip("[]") in view.status.addresses
        nat = "" if same and port == str(view.status.control_port) else ", another port: NAT" if same else ": NAT"
        by = names[0] if len(names) == 1 else plural(len(names), "peer")
        lines.append(f"{clean(place)} by {by}{nat}")
    return lines

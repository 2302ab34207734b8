"""How things are called and marked.  Marks and words say everything; colour only repeats it."""

from __future__ import annotations

from typing import Final, NamedTuple

from redirectctl.api.naming import called, short_fingerprint
from redirectctl.api.reasons import advice, in_words
from redirectctl.api.schema import CheckStatus, Connection, ConnectionState, Peer, PeerState
from redirectctl.api.stories import Tone
from redirectctl.api.text import clean, duration

BAR: Final = 5  # cells of the bar that shows how far a short connection is


class Cell(NamedTuple):
    """Of a table."""

    text: str
    tone: Tone = Tone.PLAIN


STATES: Final = {
    ConnectionState.SHORT: ("○", Tone.DIM, "opted in, too young to be protected"),
    ConnectionState.NEGOTIATING: ("◔", Tone.WAITING, "the two hosts agree on it"),
    ConnectionState.PENDING: ("?", Tone.WAITING, "a person has to approve the other host"),
    ConnectionState.PROTECTED: ("●", Tone.GOOD, "survives a change of address"),
    ConnectionState.SUSPENDED: ("‖", Tone.WAITING, "kept alive until there is a path"),
    ConnectionState.UNSUPPORTED: ("–", Tone.DIM, "not protected: the other host does not answer"),
    ConnectionState.REFUSED: ("✗", Tone.BAD, "not protected; details say why"),
    ConnectionState.RELEASED: ("◌", Tone.DIM, "a person ended its protection; it lives on as any other"),
    ConnectionState.CLOSED: ("·", Tone.DIM, "ended; listed for a minute"),
}
PEERS: Final = {
    PeerState.PENDING: ("?", Tone.WAITING),
    PeerState.APPROVED: ("●", Tone.GOOD),
    PeerState.REJECTED: ("✗", Tone.BAD),
    PeerState.CHANGED: ("!", Tone.BAD),
}
CHECKS: Final = {
    CheckStatus.OK: ("●", Tone.GOOD),
    CheckStatus.WARN: ("!", Tone.WAITING),
    CheckStatus.FAIL: ("✗", Tone.BAD),
    CheckStatus.SKIP: ("–", Tone.DIM),
}


def explained(reason: str) -> str:
    """What a named reason means, with its name, which the documentation and the event log have."""
    words = in_words(reason)
    return clean(reason if words is None else f"{words} ({reason.partition(': ')[0]})")


def in_short(reason: str | None) -> str:
    """What a named reason means."""
    return clean(in_words(reason) or reason) if reason is not None else ""


def explained_fully(reason: str | None) -> str:
    """What a named reason means and, on another line, what can be done about it."""
    if reason is None:
        return ""
    hint = advice(reason)
    return f"{explained(reason)}\n→ {hint}" if hint else explained(reason)


def state_cell(connection: Connection, threshold: float) -> Cell:
    """Its state, for how long it has been suspended, how far it is from being taken on."""
    mark, tone, _ = STATES[connection.state]
    text = f"{mark} {connection.state.value}"
    if connection.state is ConnectionState.SHORT:
        text = f"{text} {progress(connection.age / threshold if threshold > 0 else 1.0)}"
    elif connection.suspended_for is not None:
        text = f"{mark} suspended {brief(connection.suspended_for)}"
    return Cell(text, tone)


def program_name(command: str | None) -> str:
    """A command without the folder that its program is in."""
    program, blank, rest = clean(command or "").partition(" ")
    return program.rpartition("/")[2] + blank + rest


def progress(part: float, width: int = BAR) -> str:
    """A bar, legible without colour."""
    full = min(width, int(part * width))
    return "━" * full + "─" * (width - full)


def peer_name(peer: Peer | None, fingerprint: str | None) -> str:
    """What a person calls it, else what it calls itself, its latest address, the beginning of its key."""
    if peer is not None:
        return called(peer)
    return short_fingerprint(fingerprint) if fingerprint else "?"


def brief(seconds: float) -> str:
    """At most four characters where it can be: 3s, 12m, 5h, 20d."""
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= size:
            return f"{int(seconds // size)}{unit}"
    return f"{int(seconds)}s"


def took(seconds: float) -> str:
    """A short time: 0.4ms, 210ms, 3.4s, then as duration()."""
    if seconds < 0.01:
        return f"{seconds * 1000:.1f}ms"
    if seconds < 1:
        return f"{seconds * 1000:.0f}ms"
    return duration(seconds)


def amount(count: float) -> str:
    """Of bytes, at most six characters: 999B, 1.2MB."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 999.5 or unit == "TB":
            return f"{count:.0f}{unit}" if unit == "B" or count >= 9.95 else f"{count:.1f}{unit}"
        count /= 1000
    raise AssertionError


def rate(count: float) -> str:
    """Bytes a second; nothing for nothing."""
    return f"{amount(count)}/s" if count >= 0.5 else ""


def plural(count: int, what: str) -> str:
    """1 connection, 2 connections."""
    return f"{count:,} {what}" if count == 1 else f"{count:,} {what}s"

"""How a connection stands, in words: protected, or not and why, with what to do next.  Pure.

What the daemon says may come from other hosts, so all of it is cleaned before it is a part of a text.
"""

from __future__ import annotations

from typing import NamedTuple

from redirectctl.api.reasons import advice, in_words
from redirectctl.api.text import clean

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any, Final

PROTECTED: Final = "protected"
COMMAND: Final = "  "  # begins a line that is a command to type: nothing is put before it
_FINGERPRINT: Final = 19  # characters of one that is only to be recognised
_UNDECIDED: Final = ("short", "negotiating", "closed")
_BY_A_PERSON: Final = ("released", "released-there", "killed", "killed-there")
_ASKED_ELSEWHERE: Final = ("approval-pending-here", "key-changed")  # a question is put about these (prompt.py)


class Standing(NamedTuple):
    """The same in several lengths."""

    kind: str  # equal when there is nothing new to say
    said: tuple[str, ...]  # lines; none if a question says it
    title: str
    ended: str  # after the command has ended, behind "ssh was not protected: "; empty if it was


def standing(one: Mapping[str, Any], identity: object) -> Standing | None:
    """Of a connection (schema.Watched); None: it is not decided yet.  identity: this host's own fingerprint."""
    state, host, reason = str(one["state"]), host_of(one), str(one.get("reason") or "")
    if state in _UNDECIDED:
        return None
    if state in ("protected", "suspended"):
        text = f"protected: {host}{_known_as(one)}"
        return Standing(PROTECTED, (text,), text, "")
    if reason == "approval-pending-there" and identity:
        why, what = f"{host} must approve this host", f"sudo redirectctl approve {clean(str(identity))}"
        lines = (f"not protected yet: {why}; run there:", COMMAND + what)
        return Standing(reason, lines, f"not protected yet: run on {host}: {what}", f"{why}; run there: {what}")
    why = f"{host}: {clean(in_words(reason) or reason or state)}"
    what = clean(_next(one, host, reason))
    whole = f"{why}; {what}" if what else why
    if reason in _ASKED_ELSEWHERE:
        return Standing(reason, (), "", whole)
    said = (f"not protected: {why}", COMMAND + what) if what else (f"not protected: {why}",)
    return Standing(f"{state} {reason}", said, f"not protected: {whole}", whole)


def through_master(program: str, process: int) -> Standing:
    """The command uses the connection of a process that nobody opted in."""
    why = f"{program} uses a ControlMaster that was opened without redirect-run"
    what = f"sudo redirectctl protect {process}"
    return Standing("master", (f"not protected: {why}", COMMAND + what), f"not protected: {why}", f"{why}; {what}")


def host_of(one: Mapping[str, Any]) -> str:
    """The other host's address."""
    return clean(str(one["remote"]).rpartition(":")[0].strip("[]"))


def _known_as(one: Mapping[str, Any]) -> str:
    key, name = clean(str(one.get("peer") or "")), clean(str(one.get("name") or ""))
    short = f"{key[:_FINGERPRINT]}…" if len(key) > _FINGERPRINT else key
    known = ", ".join(part for part in (name, short) if part and part != host_of(one))
    return f" ({known})" if known else ""


def _next(one: Mapping[str, Any], host: str, reason: str) -> str:
    """What to do.  An advice that is a question is a guess: doctor finds out."""
    if reason in _BY_A_PERSON:
        return ""
    key = str(one.get("peer") or host)
    if reason == "approval-pending-here":
        return f"sudo redirectctl approve {key}"
    if reason == "key-changed":  # doctor says which keys, and what to do if the new one is right
        return f"sudo redirectctl doctor {host}"
    told = advice(reason).replace("PEER", key)
    return told if told and not told.endswith("?") else f"sudo redirectctl doctor {host}"

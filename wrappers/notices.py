"""What to tell about a command's connections, as words.  Pure: replies of the daemon and the time go in."""

from __future__ import annotations

from redirectctl.api.text import clean, duration

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any, Final

SHOW_BACK: Final = 5.0  # seconds for which a title says that the path is back
SHOW_HINT: Final = 20.0  # seconds for which a title says what has to be done on the other host
REMIND_AFTER: Final = (60.0, 600.0, 3600.0, 21600.0, 86400.0)  # seconds without a path, for lines that stay


class Notices:
    """Remembers what was told."""

    def __init__(self) -> None:
        self._lost: dict[str, tuple[str, float]] = {}  # by connection: host, since when
        self._known: dict[str, float | None] = {}  # by connection: how long its last time without a path took
        self._first = True
        self._passing = ("", 0.0)  # a text for the title, and until when
        self._lines: list[str] = []
        self._reminders = 0
        self._waits: set[str] = set()  # hosts that have to approve this one

    def forget(self) -> None:
        """The daemon does not answer any more: nothing is known."""
        self._lost.clear()
        self._first = True

    def update(self, now: float, reply: Mapping[str, Any]) -> None:
        """What the daemon says (schema.WatchReply).  now: seconds of any clock."""
        before, back = bool(self._lost), []
        lost: dict[str, tuple[str, float]] = {}
        known: dict[str, float | None] = {}
        for one in reply["connections"]:
            name, host, lasted = str(one["id"]), _host(str(one["remote"])), one.get("lasted")
            known[name] = lasted
            if one.get("lost_for") is not None:
                lost[name] = (host, now - one["lost_for"])
            elif lasted is not None and not self._first and lasted != self._known.get(name):
                back.append((lasted, host))
            if one.get("reason") == "approval-pending-there" and host not in self._waits:
                self._waits.add(host)
                self._say(
                    now, SHOW_HINT, f"{host} has to approve this host too: run redirectctl peers and approve there"
                )
        self._lost, self._known, self._first = lost, known, False
        if lost and not before:
            self._reminders = self._due(now)
            self._lines.append(f"{self._where()}; suspended until there is one")
        elif back and not lost:
            longest, host = max(back)
            self._say(now, SHOW_BACK, f"path to {host} is back after {duration(longest)}")

    def title(self, now: float) -> str | None:
        """For a title at this moment; None: nothing."""
        if self._lost:
            return f"{self._where()} for {duration(max(0.0, now - self._since()))}"
        text, until = self._passing
        return text if now < until else None

    def lines(self, now: float) -> list[str]:
        """For lines that stay: what has not been told yet."""
        lines, self._lines = self._lines, []
        if self._lost:
            due = self._due(now)
            if due > self._reminders:
                self._reminders = due
                lines.append(f"{self._where()} for {duration(now - self._since())}")
        return lines

    def waiting(self) -> bool:
        """Whether a line waits to be written or the time alone changes what is told."""
        return bool(self._lost or self._lines or self._passing[0])

    def expire(self, now: float) -> None:
        """A passing text whose time is over is gone."""
        if self._passing[0] and now >= self._passing[1]:
            self._passing = ("", 0.0)

    def _say(self, now: float, seconds: float, text: str) -> None:
        self._passing = (text, now + seconds)
        self._lines.append(text)

    def _due(self, now: float) -> int:
        """How many reminders there should have been by now."""
        return sum(now - self._since() >= after for after in REMIND_AFTER)

    def _since(self) -> float:
        return min(since for _, since in self._lost.values())

    def _where(self) -> str:
        hosts = sorted({host for host, _ in self._lost.values()})
        more = f" and {len(hosts) - 1} more" if len(hosts) > 1 else ""
        return f"no path to {hosts[0]}{more}"


def _host(remote: str) -> str:
    return clean(remote.rpartition(":")[0].strip("[]"))

"""What to tell about a command's connections, as words.  Pure: replies of the daemon and the time go in."""

from __future__ import annotations

import os

from redirectctl.api.text import clean, duration
from redirectctl_wrappers.standing import PROTECTED, Standing, host_of, standing, through_master

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any, Final

SHOW_BACK: Final = 5.0  # seconds for which a title says that all is well
SHOW_HINT: Final = 20.0  # seconds for which a title says what has to be done
REMIND_AFTER: Final = (60.0, 600.0, 3600.0, 21600.0, 86400.0)  # seconds without a path, for lines that stay
STOPPED_AFTER: Final = 5.0  # seconds without a daemon; one that is restarted is back before
MASTER_AFTER: Final = 10.0  # seconds through a master that nobody opted in: what takes less is not worth a word
MOST_LINES: Final = 12  # that wait to be written
MOST_TOLD: Final = 4  # hosts of which it is told how they stand: a browser has hundreds
JUST_NOW: Final = 3.0  # seconds between what ends a command and its end
LATELY: Final = 10.0  # seconds for which it is remembered how a connection stood that is gone, or negotiated anew
SLACK: Final = 12.0  # seconds that the daemon may notice an outage later than ssh: suspend_after, and a beat
_GAVE_UP: Final = 255  # ssh's exit status when it ends a session by itself


class Notices:
    """Remembers what was told."""

    def __init__(self, command: str) -> None:
        """command: its name."""
        self._program = clean(os.path.basename(command))
        self._lost: dict[str, tuple[str, float]] = {}  # by connection: host, since when
        self._over: tuple[str, float, float, bool] | None = None  # the last outage: host, from, to, closed in it
        self._known: dict[str, float | None] = {}  # by connection: how long its last time without a path took
        self._first = True
        self._passing = ("", 0.0)  # a text for the title, and until when
        self._lines: list[str] = []
        self._reminders = 0
        self._standings: dict[str, Standing] = {}  # by host
        self._stood: tuple[dict[str, Standing], float] = ({}, 0.0)  # the same before, and until when
        self._told: dict[str, str] = {}  # by host: the kind of what was told last
        self._ends_after = 0
        self._master = 0
        self._plain: float | None = None  # since when the master is known not to be opted in
        self._gone: float | None = None  # since when there has been no daemon
        self._told_gone = False

    # -- what is learnt -----------------------------------------------------------------------------------------------

    def forget(self, now: float, *, stopped: bool = True) -> None:
        """The daemon does not answer any more: nothing is known.  stopped: as far as can be seen it does not run."""
        self._lost.clear()
        self._first = True
        if stopped and self._gone is None:
            self._gone = now

    def limit(self, now: float, seconds: int) -> None:
        """The command ends by itself after so long without an answer."""
        self._ends_after = seconds
        if PROTECTED in self._told.values():  # else it is told together with that
            self._say(now, SHOW_HINT, self._gives_up())

    def master(self, process: int) -> None:
        """The command uses the connection of this process, about which the next reply says more."""
        self._master = process

    def update(self, now: float, reply: Mapping[str, Any]) -> None:
        """What the daemon says (schema.WatchReply).  now: seconds of any clock."""
        self._daemon_is_there(now)
        before, back = dict(self._lost), []
        lost: dict[str, tuple[str, float]] = {}
        known: dict[str, float | None] = {}
        for one in reply["connections"]:
            name, host, lasted = str(one["id"]), host_of(one), one.get("lasted")
            known[name] = lasted
            if one.get("lost_for") is not None:
                lost[name] = (host, now - one["lost_for"])
            elif lasted is not None and not self._first and lasted != self._known.get(name):
                back.append((lasted, host))
        for name in before.keys() - lost.keys():
            self._over = (*before[name], now, name not in known)
        self._lost, self._known, self._first = lost, known, False
        self._lines = self._latest()
        self._stand(now, reply)
        if lost and not before:
            self._reminders = self._due(now)
            held = f"suspended, but {self._gives_up_after()}" if self._ends_after else "suspended until there is one"
            self._lines.append(f"{self._where()}; {held}")
        elif back and not lost:
            longest, host = max(back)
            self._say(now, SHOW_BACK, f"path to {host} is back after {duration(longest)}")

    def _daemon_is_there(self, now: float) -> None:
        if self._told_gone:
            self._told.clear()  # how connections stand is news
            self._say(now, SHOW_BACK, "redirectd runs again")
        self._gone, self._told_gone = None, False

    def _stand(self, now: float, reply: Mapping[str, Any]) -> None:
        found: dict[str, Standing] = {}
        silent: set[str] = set()
        for one in reply["connections"]:
            host, stands = host_of(one), standing(one, reply.get("identity"))
            if stands is None:
                continue
            if host not in found or found[host].kind == PROTECTED:  # the worst of those with one host
                found[host] = stands
            if one.get("lost_for") is not None or one.get("lasted") is not None:
                silent.add(host)  # it has been protected for long, and more is told about it
        plain = self._master and not reply.get("process")
        self._plain = (now if self._plain is None else self._plain) if plain else None
        if "" in self._standings and plain:
            found[""] = self._standings[""]
        if found != self._standings:
            self._standings, self._stood = found, (self._standings, now)
        for host, stands in found.items():
            if self._told.get(host) != stands.kind:
                self._tell(now, host, stands, silent=stands.kind == PROTECTED and host in silent)

    def _tell(self, now: float, host: str, stands: Standing, *, silent: bool) -> None:
        if host not in self._told and len(self._told) >= MOST_TOLD:
            return
        self._told[host] = stands.kind
        if silent or not stands.said:
            return
        self._lines += stands.said
        limited = stands.kind == PROTECTED and self._ends_after
        title = f"{stands.title}; {self._gives_up()}" if limited else stands.title
        if limited:
            self._lines.append(self._gives_up())
        seconds = SHOW_BACK if stands.kind == PROTECTED and not limited else SHOW_HINT
        self._passing = (title, now + seconds)

    # -- what is told -------------------------------------------------------------------------------------------------

    def title(self, now: float) -> str | None:
        """For a title at this moment; None: nothing."""
        self._look(now)
        if self._lost:
            limit = f"; {self._gives_up_after()}" if self._ends_after else ""
            return f"{self._where()} for {duration(max(0.0, now - self._since()))}{limit}"
        text, until = self._passing
        return text if now < until else None

    def lines(self, now: float) -> list[str]:
        """For lines that stay: what has not been told yet.  One that begins with a space is a command to type."""
        self._look(now)
        lines, self._lines = self._latest(), []
        if self._lost:
            due = self._due(now)
            if due > self._reminders:
                self._reminders = due
                lines.append(f"{self._where()} for {duration(now - self._since())}")
        return lines

    def _latest(self) -> list[str]:
        """Of the lines that wait, MOST_LINES: a full-screen program may have hidden a night of outages."""
        lines = self._lines[-MOST_LINES:]
        while lines and lines[0].startswith(" "):
            del lines[0]
        return lines

    def waiting(self) -> bool:
        """Whether a line waits to be written or the time alone changes what is told."""
        stopping = self._gone is not None and not self._told_gone
        through = self._plain is not None and "" not in self._standings
        return bool(self._lost or self._lines or self._passing[0] or stopping or through)

    def expire(self, now: float) -> None:
        """A passing text whose time is over is gone."""
        if self._passing[0] and now >= self._passing[1]:
            self._passing = ("", 0.0)

    def ended(self, now: float, status: int, *, by_hand: bool = False) -> list[str]:
        """For stderr, after the command has ended with this exit status, negative for a signal: what went wrong.

        by_hand: somebody told ssh to end.
        """
        if (outage := self._outage_at(now, status)) is not None:
            return [] if by_hand or status <= 0 else [self._ended_in_outage(*outage, status)]
        if self._gone is not None and now - self._gone >= STOPPED_AFTER:
            return [f"{self._program} ended unprotected: {_STOPPED}; {_START}"]
        before, until = self._stood
        stands = (before if now - until < LATELY else {}) | self._standings
        unprotected = [each.ended for each in stands.values() if each.ended]
        lines = [f"{self._program} was not protected: {text}" for text in unprotected[:MOST_TOLD]]
        if (more := len(unprotected) - MOST_TOLD) > 0:
            lines.append(f"{more} more hosts were not protected; see redirectctl connections")
        return lines

    def _outage_at(self, now: float, status: int) -> tuple[str, float] | None:
        """The outage in which the command has ended, or to which its end is due: the host and how long it took."""
        if self._lost:
            host, since = min(self._lost.values(), key=lambda each: each[1])
            return host, now - since
        if self._over is None:
            return None
        host, since, until, closed = self._over
        due = now - until < JUST_NOW and (closed or self._gave_up(status))
        return (host, until - since) if due else None

    def _ended_in_outage(self, host: str, seconds: float, status: int) -> str:
        """ssh says that it could not go on, and not why: it has given up, or the other host had."""
        ended = f"{self._program} ended after {duration(seconds)} without a path to {host}"
        if not self._gave_up(status) or self._master:
            return f"{ended}; its connection had been kept for it"
        if self._ends_after and seconds >= self._ends_after - SLACK:
            return f"{ended}, by itself (ServerAliveInterval); redirect-run --keep {self._program} prevents it"
        return f"{ended}: that host had ended the session; ClientAliveInterval? There: sudo redirectctl doctor"

    def _gave_up(self, status: int) -> bool:
        return self._program == "ssh" and status == _GAVE_UP

    def _look(self, now: float) -> None:
        """For what time alone makes worth telling."""
        if self._gone is not None and not self._told_gone and now - self._gone >= STOPPED_AFTER:
            self._told_gone = True
            self._passing = (f"{_STOPPED}; nothing is protected: {_START}", now + SHOW_HINT)
            self._lines += [f"{_STOPPED}; nothing is protected until it runs again:", f"  {_START}"]
        if self._plain is not None and "" not in self._standings and now - self._plain >= MASTER_AFTER:
            self._standings[""] = through_master(self._program, self._master)
            self._tell(now, "", self._standings[""], silent=False)

    def _gives_up(self) -> str:
        return f"{self._gives_up_after()} of silence; redirect-run --keep prevents it"

    def _gives_up_after(self) -> str:
        seconds = f"{self._ends_after}s" if self._ends_after < 60 else duration(self._ends_after)
        return f"{self._program} gives up after {seconds}"

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


_STOPPED: Final = "redirectd has stopped"
_START: Final = "sudo systemctl start redirectd"

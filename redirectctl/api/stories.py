"""The event log as people read it: one line for each thing that happened, however many events it has.

A move, a Wi-Fi that goes and comes back, an outage: each is a story.  It begins with what changed or was lost, takes in
all tries and confirmations, and is complete when nothing of it is under way and no connection is held any more.  Its
line says what changed, from where to where, how many connections were concerned, and how long programs saw nothing.

    here    addresses of this host changed, or it lost its network: one story for all peers
    there   a peer moved, or did not answer; or packets were lost on the way

What needs nobody (tries, paths that change, what happens to single connections) has no line, and a confirmation of
where a host is anyway one that is ``minor``.  A line is red only for what does not heal by itself; one that turns out
to have healed is not red.

Pure: events in, lines out, in the order of the log.  Shared by the command line and the terminal UI.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, TypeVar

from redirectctl.api.schema import Event, EventName
from redirectctl.api.text import clean

SETTLED: Final = 1.5  # seconds without anything new after which a story is over
STALE: Final = 60.0  # seconds after which an announcement that nobody has answered is no part of a story any more
TOGETHER: Final = 1.0  # seconds within which the same thing, happening to many connections, is one line
OFTEN: Final = 0.2  # seconds of the log after which it is found out again what is over
KEPT: Final = 5000  # lines
REMEMBERED: Final = 4096  # peers whose place is known, hosts that do not answer, connections that are not protected
_T = TypeVar("_T")

OWN_DEVICE: Final = "redirect0"

_HERE: Final = frozenset({"address-changed", "not-confirmed", "announced", "woke", "better-address"})
_LOST_HERE: Final = frozenset({"no-path", "stays-on-device"})
# Refusals that are tried again, without anybody doing something.
_TRIED_AGAIN: Final = frozenset(
    {"not-proven", "too-many-claims", "too-many-connections", "claimed-by-another", "no-such-connection-there"}
)
# What a peer's announcement may be refused for that a person has to know: the rest is announced again.
_REFUSED_FOR_GOOD: Final = frozenset({"kernel", "not-accepted-from-there", "not-your-connection"})
_MENDS: Final = {EventName.STORE_RESTORED: EventName.STORE_FAILED, EventName.DNS_UPDATED: EventName.DNS_FAILED}
_DNS_HEALS: Final = frozenset({"no-answer-from-server", "bad-answer-from-server"})


class Tone(StrEnum):
    """How a line is meant."""

    PLAIN = "plain"
    GOOD = "good"
    WAITING = "waiting"
    BAD = "bad"
    DIM = "dim"


@dataclass(slots=True)
class Line:
    """What is said of one thing that happened."""

    number: int  # names it
    time: float  # epoch seconds, of its beginning
    what: str
    tone: Tone = Tone.PLAIN
    peers: tuple[str, ...] = ()  # fingerprints
    connections: int = 0
    gap: float | None = None  # seconds that programs saw nothing; None: not known, or no move
    took: float | None = None  # seconds from a usable new address to the peer's confirmation
    reason: str | None = None  # a named one
    detail: str = ""
    minor: bool = False  # nothing that anybody has to know
    move: bool = False  # a path was lost or changed
    over: bool = True


@dataclass(slots=True)
class _Part:
    """Of a story: one peer."""

    held: set[str] = field(default_factory=set)  # connections without a path now
    concerned: set[str] = field(default_factory=set)  # connections that had none
    most: int = 0  # connections, as the events count them
    lost: bool = False  # a path
    began: float | None = None  # when the last announcement did
    good: float | None = None  # when what began last ended well
    gap: float | None = None
    took: float | None = None
    previous: str | None = None
    now: str | None = None
    reason: str | None = None
    rebound: bool = False  # the NAT in front of this host maps it anew
    theirs: tuple[str | None, str] | None = None  # the peer moved: from where, to where

    @property
    def connections(self) -> int:
        return max(len(self.concerned), self.most)

    def absorb(self, other: _Part) -> None:
        """What began as a story of its own belongs to this one."""
        self.held |= other.held
        self.concerned |= other.concerned
        self.most, self.lost = max(self.most, other.most), self.lost or other.lost
        self.gap = max((g for g in (self.gap, other.gap) if g is not None), default=None)
        self.previous = self.previous or other.previous
        self.began = self.began if self.began is not None else other.began
        self.theirs = self.theirs or other.theirs
        self.rebound = self.rebound or other.rebound


@dataclass(slots=True)
class _Story:
    line: Line
    last: float
    here: bool
    parts: dict[str, _Part] = field(default_factory=dict)
    went: list[str] = field(default_factory=list)
    came: dict[str, str] = field(default_factory=dict)  # addresses and their interfaces
    said: bool = False  # that it is not over


class Stories:
    """Takes events in, oldest first; keeps a bounded list of lines, and says which are complete."""

    def __init__(self) -> None:
        self._lines: deque[Line] = deque(maxlen=KEPT)
        self._number = 0
        self._ours_now: _Story | None = None  # what is going on at this host
        self._theirs_now: dict[str, _Story] = {}  # with each peer
        self._looked = 0.0  # when it was last found out what is over
        self._done: list[Line] = []
        self._of_refused: dict[str, Line] = {}  # connections, and the line that says that they are not protected
        self._broken: dict[EventName, deque[Line]] = {}  # what is to be mended
        self._places: dict[str, str] = {}  # of peers
        self._ours: dict[str, str] = {}  # of this host, as each peer knows it
        self._unanswered: dict[str, set[str | None]] = {}  # hosts of which it was said, and why

    # -- in -----------------------------------------------------------------------------------------------------------

    def add(self, event: Event) -> None:
        """The next event of the log."""
        if not 0 <= event.time - self._looked < OFTEN:
            self.tick(event.time)
        match event.event:
            case EventName.ADDRESS_ADDED | EventName.ADDRESS_REMOVED:
                self._address(event)
            case EventName.CONNECTION_SUSPENDED:
                self._suspended(event)
            case EventName.CONNECTION_RESUMED:
                self._resumed(event)
            case EventName.MOVE_STARTED:
                self._started(event)
            case EventName.MOVE_FINISHED:
                self._finished(event)
            case EventName.MOVE_RECEIVED:
                self._received(event)
            case _:
                self._other(event)

    @property
    def lines(self) -> Sequence[Line]:
        """The latest, complete or not, in the order in which they began."""
        for story in self._open:
            self._write(story)
        return self._lines

    @property
    def _open(self) -> list[_Story]:
        """The stories that go on."""
        return [*([self._ours_now] if self._ours_now is not None else []), *self._theirs_now.values()]

    def tick(self, now: float) -> None:
        """Time passes.  now: epoch seconds; it is before what was last when the clock was set back."""
        self._looked = now
        for story in [s for s in self._open if not 0 <= now - s.last < SETTLED and self._is_over(s, now)]:
            self._close(story)

    def finished(self) -> list[Line]:
        """The lines that are complete since the last call."""
        done, self._done = self._done, []
        return done

    def unfinished(self, now: float, after: float = 0.0) -> list[Line]:
        """Losses that are not over, and began at least ``after`` seconds ago: each is returned once."""
        found = [s for s in self._open if not s.said and now - s.line.time >= after and any(_held(s))]
        for story in found:
            story.said = True
            self._write(story)
        return [story.line for story in found]

    def flush(self) -> None:
        """The log ends here: what is not under way is complete."""
        for story in [s for s in self._open if not any(_held(s))]:
            self._close(story)

    # -- stories ------------------------------------------------------------------------------------------------------

    def _address(self, event: Event) -> None:
        if event.interface == OWN_DEVICE or event.address is None:
            return
        story = self._here(event.time)
        if event.event is EventName.ADDRESS_REMOVED:
            story.went.append(event.address)
        else:
            story.came[event.address] = event.interface or ""

    def _suspended(self, event: Event) -> None:
        _, part = self._part(event, here=event.reason in _LOST_HERE)
        part.lost = True
        part.reason = part.reason or event.reason
        if event.connection is not None:
            part.held.add(event.connection)
            part.concerned.add(event.connection)

    def _resumed(self, event: Event) -> None:
        _, part = self._part(event, here=event.reason in _LOST_HERE)
        if event.connection is not None:
            part.held.discard(event.connection)
            part.concerned.add(event.connection)
        part.lost = True
        part.good = event.time
        part.gap = _longest(part.gap, event.duration)

    def _started(self, event: Event) -> None:
        _, part = self._part(event, here=event.reason in _HERE)
        part.began, part.good = event.time, None
        part.reason = part.reason or event.reason
        part.rebound = part.rebound or event.reason == "observed-address-changed"
        part.most = max(part.most, event.connections or 0)

    def _finished(self, event: Event) -> None:
        _, part = self._part(event, here=False)
        part.good = event.time
        part.gap, part.took = _longest(part.gap, event.gap), event.duration
        part.most = max(part.most, event.connections or 0)
        if event.peer is not None:
            part.previous = part.previous or event.previous or self._ours.get(event.peer)
            part.now = event.address
            if event.address is not None:
                self._keep(self._ours, event.peer, event.address)

    def _received(self, event: Event) -> None:
        _, part = self._part(event, here=False)
        part.good = event.time
        part.gap = _longest(part.gap, event.gap)
        part.most = max(part.most, event.connections or 0)
        at = _host(event.source) or event.address
        if event.peer is not None and at is not None:
            before = event.previous or self._places.get(event.peer)
            if before is not None and before != at:
                part.theirs = (part.theirs[0] if part.theirs is not None else before), at
            self._keep(self._places, event.peer, at)

    def _path_changed(self, event: Event) -> None:
        """It says where the peer is: the answer to an announcement of ours may have come from a new place of it."""
        at = _host(event.wire_remote)
        if event.peer is None or at is None or event.reason == "relayed":
            return
        before = self._places.get(event.peer)
        story = self._story_of(event.peer)
        if story is not None and before is not None and before != at:
            part = story.parts[event.peer]
            part.theirs = (part.theirs[0] if part.theirs is not None else before), at
        self._keep(self._places, event.peer, at)

    def _here(self, now: float) -> _Story:
        """The story of this host that is going on, or a new one."""
        if self._ours_now is None:
            self._ours_now = self._begin(now, here=True)
        self._ours_now.last = now
        return self._ours_now

    def _story_of(self, key: str) -> _Story | None:
        """What is going on that a peer has a part in."""
        if self._ours_now is not None and key in self._ours_now.parts:
            return self._ours_now
        return self._theirs_now.get(key)

    def _part(self, event: Event, *, here: bool) -> tuple[_Story, _Part]:
        """Where an event of a peer belongs."""
        key = event.peer or ""
        ours, theirs = self._ours_now, self._theirs_now.get(key)
        if (ours is not None and (here or key in ours.parts)) or (here and theirs is None):
            story = self._here(event.time)
        elif theirs is not None:
            story = theirs
        else:
            story = self._theirs_now[key] = self._begin(event.time, here=False)
        if theirs is not None and story is not theirs:  # it was silent, and then this host went elsewhere
            story.parts.setdefault(key, _Part()).absorb(theirs.parts[key])
            story.line.time = min(story.line.time, theirs.line.time)
            self._drop(theirs)
            with suppress(ValueError):  # of the time before those that are kept
                self._lines.remove(theirs.line)
        story.last = event.time
        return story, story.parts.setdefault(key, _Part())

    def _begin(self, now: float, *, here: bool) -> _Story:
        return _Story(self._line(Line(0, now, "", move=True, over=False)), now, here)

    def _drop(self, story: _Story) -> None:
        if story is self._ours_now:
            self._ours_now = None
        for key in story.parts:
            if self._theirs_now.get(key) is story:
                del self._theirs_now[key]

    def _close(self, story: _Story) -> None:
        self._drop(story)
        story.line.over = True
        self._write(story)
        self._done.append(story.line)

    @staticmethod
    def _is_over(story: _Story, now: float) -> bool:
        """Nothing is held, and the last thing that began has ended well, or nobody has answered for long."""
        if any(_held(story)):
            return False
        return all(
            part.began is None or part.good is not None or now - part.began >= STALE for part in story.parts.values()
        )

    def _write(self, story: _Story) -> None:
        """Bring a story's line up to date."""
        line, parts = story.line, list(story.parts.values())
        line.peers = tuple(key for key in story.parts if key)
        line.connections = sum(part.connections for part in parts)
        line.gap = max((part.gap for part in parts if part.gap is not None), default=None)
        line.took = max((part.took for part in parts if part.took is not None), default=None)
        line.reason = next((part.reason for part in parts if part.reason is not None), None)
        held = any(_held(story))
        line.what = _what_here(story) if story.here else _what_there(parts)
        moved = any(_moved(part) for part in parts)
        line.minor = not (story.went or story.came or moved or any(map(_troubled, parts)))
        if not line.over:
            line.tone = Tone.WAITING
            if held:
                line.what = f"no path{_since_where(story)}"
        else:
            line.tone = Tone.GOOD if line.connections else Tone.DIM
        line.move = bool(parts) and not line.minor

    # -- other lines --------------------------------------------------------------------------------------------------

    def _other(self, event: Event) -> None:
        what, tone, minor = _SAID.get(event.event, ("", Tone.DIM, True))
        match event.event:
            case EventName.CONNECTION_CLOSED:
                self._closed(event)
                return
            case EventName.CONNECTION_PROTECTED:
                self._protected(event)
                return
            case EventName.PATH_CHANGED:
                self._path_changed(event)
            case EventName.CONNECTION_UNSUPPORTED:
                host = _host(event.remote) or ""
                why = self._unanswered.get(host, set())
                minor = event.reason in why
                self._keep(self._unanswered, host, why | {event.reason})
                what = f"not protected: {host} does not answer"
            case EventName.CONNECTION_REFUSED:
                tone = Tone.WAITING if event.reason in _TRIED_AGAIN else Tone.BAD
            case EventName.REDIRECT_REFUSED if event.reason in _REFUSED_FOR_GOOD:
                tone, minor = Tone.BAD, False
            case EventName.DNS_FAILED if event.reason in _DNS_HEALS:
                tone = Tone.WAITING
            case EventName.STORE_RESTORED | EventName.DNS_UPDATED:
                self._healed(event.event)
            case EventName.EVENTS_MISSED:
                what = f"{event.count or 0} events not shown"
            case EventName.DAEMON_STARTED:
                self._unanswered.clear()
                for part in (part for story in self._open for part in story.parts.values()):
                    part.held.clear()  # an earlier daemon's: this one says anew what is held
        if minor:
            return
        line = self._gathered(event, what, tone)
        if event.event in _MENDS.values():
            self._broken.setdefault(event.event, deque(maxlen=KEPT)).append(line)
        if event.event in (EventName.CONNECTION_REFUSED, EventName.CONNECTION_UNSUPPORTED) and event.connection:
            self._keep(self._of_refused, event.connection, line)

    def _closed(self, event: Event) -> None:
        self._of_refused.pop(event.connection or "", None)
        story = self._story_of(event.peer or "")
        if story is not None and event.connection in (held := story.parts[event.peer or ""].held):
            held.discard(event.connection or "")
            story.parts[event.peer or ""].good = story.last = event.time
        match event.reason:
            case "given-up":
                self._gathered(event, "connection given up: no path for too long", Tone.BAD)
            case "killed" | "killed-there":
                self._gathered(event, "connection killed", Tone.PLAIN)
            case "address-gone":
                self._gathered(event, "connection closed: too young to be protected when its address went", Tone.PLAIN)

    def _protected(self, event: Event) -> None:
        refused = self._of_refused.pop(event.connection or "", None)
        if refused is not None and refused.tone in (Tone.BAD, Tone.WAITING):
            refused.tone = Tone.DIM  # it has healed
        if event.peer is not None:
            if (there := _host(event.remote)) is not None and event.peer not in self._places:
                self._keep(self._places, event.peer, there)
            if (here := _host(event.local)) is not None and event.peer not in self._ours:
                self._keep(self._ours, event.peer, here)
        self._unanswered.pop(_host(event.remote) or "", None)
        self._gathered(event, "protected", Tone.GOOD)

    def _healed(self, by: EventName) -> None:
        """What is mended is not red any more."""
        for line in self._broken.pop(_MENDS.get(by, by), ()):
            line.tone = Tone.DIM

    def _gathered(self, event: Event, what: str, tone: Tone) -> Line:
        """One line for the same thing happening to many connections."""
        peers = (event.peer,) if event.peer is not None else ()
        last = self._lines[-1] if self._lines else None
        if (
            last is not None
            and event.connection is not None
            and (last.what, last.peers, last.reason) == (what, peers, event.reason)
            and event.time - last.time < TOGETHER
        ):
            last.connections += 1
            return last
        detail = clean(event.detail) if event.detail else clean(event.address or "")
        count = 1 if event.connection is not None else event.connections or 0
        line = Line(0, event.time, what, tone, peers, count, reason=event.reason, detail=detail)
        self._done.append(self._line(line))
        return line

    def _line(self, line: Line) -> Line:
        self._number += 1
        line.number = self._number
        self._lines.append(line)
        return line

    @staticmethod
    def _keep(known: dict[str, _T], key: str, what: _T) -> None:
        if len(known) >= REMEMBERED and key not in known:
            del known[next(iter(known))]
        known[key] = what


# What is said of events that are no stories: the words, how they are meant, and whether that needs nobody.
_SAID: Final[dict[EventName, tuple[str, Tone, bool]]] = {
    EventName.DAEMON_STARTED: ("redirectd started", Tone.DIM, False),
    EventName.DAEMON_STOPPED: ("redirectd stopped", Tone.DIM, False),
    EventName.CONNECTION_UNSUPPORTED: ("not protected", Tone.WAITING, False),
    EventName.CONNECTION_REFUSED: ("not protected", Tone.BAD, False),
    EventName.CONNECTION_RELEASED: ("released: no longer protected", Tone.PLAIN, False),
    EventName.PEER_FIRST_CONTACT: ("first contact", Tone.WAITING, False),
    EventName.PEER_APPROVED: ("approved", Tone.GOOD, False),
    EventName.PEER_REJECTED: ("rejected", Tone.PLAIN, False),
    EventName.PEER_KEY_CHANGED: ("KEY CHANGED", Tone.BAD, False),
    EventName.REDIRECT_REFUSED: ("move refused", Tone.DIM, True),
    EventName.DNS_UPDATED: ("own name updated", Tone.DIM, True),
    EventName.DNS_FAILED: ("own name not updated", Tone.BAD, False),
    EventName.RENDEZVOUS_REACHED: ("rendezvous reached", Tone.DIM, True),
    EventName.RENDEZVOUS_LOST: ("rendezvous lost", Tone.WAITING, False),
    EventName.KERNEL_REPAIRED: ("removed by others, put back", Tone.WAITING, False),
    EventName.KERNEL_CONTESTED: ("removed by others again and again", Tone.BAD, False),
    EventName.KERNEL_REFUSED: ("not permitted, see `redirectctl doctor`", Tone.BAD, False),
    EventName.STORE_FAILED: ("nothing can be stored", Tone.BAD, False),
    EventName.STORE_RESTORED: ("everything is stored again", Tone.GOOD, False),
    EventName.EVENTS_MISSED: ("events not shown", Tone.DIM, False),
}


def lines_of(events: Iterable[Event]) -> list[Line]:
    """Of a whole log, in order of time."""
    stories = Stories()
    for event in events:
        stories.add(event)
    stories.flush()
    return sorted(stories.lines, key=lambda line: line.time)


def _held(story: _Story) -> Iterable[str]:
    return (cid for part in story.parts.values() for cid in part.held)


def _moved(part: _Part) -> bool:
    return part.theirs is not None or (part.now is not None and part.previous not in (None, part.now))


def _troubled(part: _Part) -> bool:
    return part.lost or part.rebound or part.reason in ("retransmitting", "peer-silent")


def _longest(one: float | None, other: float | None) -> float | None:
    return max((g for g in (one, other) if g is not None), default=None)


def _host(endpoint: str | None) -> str | None:
    """The address in "addr:port" or "[addr]:port"."""
    return endpoint.rpartition(":")[0].strip("[]") if endpoint is not None else None


def _what_here(story: _Story) -> str:
    """What changed at this host."""
    moved = next((p for p in story.parts.values() if p.now is not None and p.previous not in (None, p.now)), None)
    if moved is not None and moved.now is not None:
        device = story.came.get(moved.now)
        return f"moved to {_named(moved.now, device or '')} from {moved.previous}"
    if (theirs := _theirs(story.parts.values())) is not None:
        return theirs
    again = [a for a in story.went if a in story.came]
    if again:
        return f"{_family_first(again)} went and came back"
    went = [a for a in story.went if a not in story.came]
    parts = [f"{', '.join(went)} went"] if went else []
    if story.came:
        parts.append(f"{', '.join(_named(a, i) for a, i in story.came.items())} came")
    if parts:
        return ", ".join(parts)
    if any(part.lost for part in story.parts.values()):
        return "the path was lost, and is back"
    at = next((p.now for p in story.parts.values() if p.now is not None), None)
    return f"confirmed at {at}" if at is not None else "announcing"


def _what_there(parts: list[_Part]) -> str:
    """What changed elsewhere."""
    if (theirs := _theirs(parts)) is not None:
        return theirs
    part = parts[0] if parts else _Part()
    if _moved(part):
        return f"moved to {part.now} from {part.previous}"
    if part.rebound:
        return "the NAT in front of this host changed"
    if part.lost:
        return "no answer for a while, and back" if part.reason == "peer-silent" else "the path was lost, and is back"
    if part.reason == "retransmitting":
        return "packets were lost, another way was found" if part.good is not None else "packets are lost"
    return "confirmed where it is"


def _theirs(parts: Iterable[_Part]) -> str | None:
    for part in parts:
        if part.theirs is not None:
            return f"the other host moved to {part.theirs[1]} from {part.theirs[0]}"
    return None


def _since_where(story: _Story) -> str:
    gone = [a for a in story.went if a not in story.came]
    return f" since {_family_first(gone)} went" if gone else ""


def _family_first(addresses: list[str]) -> str:
    """One of them: people know IPv4 addresses."""
    return min(addresses, key=lambda a: ":" in a)


def _named(address: str, interface: str) -> str:
    return f"{address} ({clean(interface)})" if interface else address

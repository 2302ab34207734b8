"""What a person at a desktop is told of events: few notices, each of which replaces the last one on its subject."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from redirectctl.api.naming import named, said
from redirectctl.api.schema import Event, EventName, Peer, PeerState
from redirectctl.api.text import clean, duration

HOSTS: Final = 3  # named in one notice
LONGEST: Final = 60  # characters of a name or command that are shown

TELLING: Final = frozenset(
    {
        EventName.PEER_FIRST_CONTACT,
        EventName.PEER_KEY_CHANGED,
        EventName.PEER_APPROVED,
        EventName.PEER_REJECTED,
        EventName.CONNECTION_SUSPENDED,
        EventName.CONNECTION_RESUMED,
        EventName.CONNECTION_CLOSED,
        EventName.DAEMON_STARTED,
    }
)
_PATH: Final = "path"


class Urgency(IntEnum):
    """As in the Desktop Notifications Specification."""

    LOW = 0
    NORMAL = 1
    CRITICAL = 2


@dataclass(frozen=True, slots=True)
class Notice:
    """To show, instead of an earlier one on the same subject; without a title: to take that away."""

    subject: str
    title: str = ""
    body: str = ""
    urgency: Urgency = Urgency.NORMAL


@dataclass(frozen=True, slots=True)
class _Held:
    where: str
    since: float  # epoch seconds


class Notices:
    """From events to notices.  Remembers which connections are held."""

    def __init__(self) -> None:
        self._held: dict[str, _Held] = {}
        self._asked: set[str] = set()  # fingerprints that a notice on the screen is about

    def take(self, events: Iterable[Event], peers: Sequence[Peer] = ()) -> list[Notice]:
        """What to show after these events.  peers: as the daemon lists them now."""
        known = {peer.fingerprint: peer for peer in peers}
        notices: dict[str, Notice] = {}
        before, resumed = set(self._held), [each for event in events if (each := self._follow(event, known))]
        for event in events:
            for notice in self._of_peer(event, known):
                notices[notice.subject] = notice
        if set(self._held) != before:
            notices[_PATH] = self._of_path(resumed)
        return list(notices.values())

    def _follow(self, event: Event, peers: Mapping[str, Peer]) -> str | None:
        """Keep the list of what is held; returns for how long that was which is back now."""
        if event.event is EventName.DAEMON_STARTED:
            self._held.clear()  # it says anew what is held
        if event.connection is None:
            return None
        if event.event is EventName.CONNECTION_SUSPENDED:
            self._held[event.connection] = _Held(_where(event, peers), event.time)
        elif event.event in (EventName.CONNECTION_RESUMED, EventName.CONNECTION_CLOSED):
            held = self._held.pop(event.connection, None)
            if held is not None and event.event is EventName.CONNECTION_RESUMED:
                return f"{held.where}, after {duration(max(0.0, event.time - held.since))}"
        return None

    def _of_path(self, resumed: Sequence[str]) -> Notice:
        if self._held:
            where = _some(sorted({held.where for held in self._held.values()}))
            return Notice(_PATH, f"No path for {_count(len(self._held))}", f"Suspended until there is a path: {where}")
        if resumed:
            return Notice(_PATH, f"{_count(len(resumed)).capitalize()} back", _some(sorted(set(resumed))), Urgency.LOW)
        return Notice(_PATH)

    def _of_peer(self, event: Event, peers: Mapping[str, Peer]) -> Iterable[Notice]:
        if event.peer is None:
            return
        subject, peer = f"peer {event.peer}", peers.get(event.peer)
        where = _short(event.address or (peer.addresses[0] if peer is not None and peer.addresses else "another host"))
        match event.event:
            case EventName.PEER_FIRST_CONTACT if peer is None or peer.state is PeerState.PENDING:
                self._asked.add(event.peer)
                yield Notice(
                    subject,
                    f"First contact with {where}",
                    f"{_calling(peer)}Its key is {event.peer}. Compare that with what `redirectctl identity` says "
                    "there, then `redirectctl approve PEER` or `redirectctl reject PEER` here. Until then nothing is "
                    "protected.",
                    Urgency.CRITICAL,
                )
            case EventName.PEER_KEY_CHANGED:
                yield Notice(
                    subject,
                    f"The key of {_name(event, peers)} has changed",
                    f"Another key than the known one answered at {where}. The connection goes on, but is not "
                    "protected. If that host was installed anew, `redirectctl forget PEER` with its known key; if not, "
                    "somebody is answering in its place.",
                    Urgency.CRITICAL,
                )
            case EventName.PEER_APPROVED | EventName.PEER_REJECTED if event.peer in self._asked:
                self._asked.discard(event.peer)
                yield Notice(subject)


def _where(event: Event, peers: Mapping[str, Peer]) -> str:
    name = _name(event, peers)
    return f"{_short(event.command)} to {name}" if event.command else name


def _name(event: Event, peers: Mapping[str, Peer]) -> str:
    peer = peers.get(event.peer) if event.peer is not None else None
    if peer is not None and (name := named(peer)):
        return _short(name)
    return _short(event.address or event.remote or (peer.addresses[0] if peer and peer.addresses else "another host"))


def _calling(peer: Peer | None) -> str:
    name = said(peer) if peer is not None else None
    return f"It calls itself {_short(name)}. " if name is not None else ""


def _short(text: str) -> str:
    text = clean(text)
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"


def _count(number: int) -> str:
    return "one connection" if number == 1 else f"{number} connections"


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - HOSTS} more" if len(names) > HOSTS else ""
    return "; ".join(names[:HOSTS]) + more

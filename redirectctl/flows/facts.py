"""What a part of the engine has found out that concerns parts above it.  engine.py says who is told.

A fact is handled at once, before the part that tells it goes on: the order of commands is what makes crashes safe.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeAlias

from redirectctl.flows.connection import Connection
from redirectctl.wire.message import SyncReply


@dataclass(frozen=True, slots=True)
class Ended:
    """Close this connection and its socket now."""

    connection: Connection
    reason: str


@dataclass(frozen=True, slots=True)
class GivenUp:
    """Connections without a path have been closed: their announcements may be needless now."""


@dataclass(frozen=True, slots=True)
class ReviewPaths:
    """These connections may have a better path now; None: all may."""

    connections: Iterable[Connection] | None = None


@dataclass(frozen=True, slots=True)
class PeerSilent:
    """The peer of these connections has not answered for suspend_after."""

    connections: list[Connection]


@dataclass(frozen=True, slots=True)
class Stalled:
    """The network loses packets of these connections with one peer."""

    key: bytes
    connections: list[Connection]


@dataclass(frozen=True, slots=True)
class PlacesLearnt:
    """A peer may be at certain places.  ``news``: at others than those known before."""

    key: bytes
    news: bool


@dataclass(frozen=True, slots=True)
class PeerSought:
    """A peer does not answer where it was."""

    key: bytes


@dataclass(frozen=True, slots=True)
class DirectWanted:
    """These connections are relayed; the hosts may reach each other by now."""

    key: bytes
    connections: list[Connection]


@dataclass(frozen=True, slots=True)
class Synced:
    """A peer has said which connections it does not have.  ``doubtful``: those of which it may not know the path."""

    key: bytes
    reply: SyncReply
    doubtful: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class ClaimFailed:
    """The peer has not answered our claims of these connections."""

    cids: list[bytes]


Fact: TypeAlias = (
    Ended
    | GivenUp
    | ReviewPaths
    | PeerSilent
    | Stalled
    | PlacesLearnt
    | PeerSought
    | DirectWanted
    | Synced
    | ClaimFailed
)

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
    """A connection is to end now, and its socket with it."""

    connection: Connection
    reason: str


@dataclass(frozen=True, slots=True)
class GivenUp:
    """Connections that had no path have ended: there may be announcements for which nobody waits."""


@dataclass(frozen=True, slots=True)
class ReviewPaths:
    """These may go another way than now; None: all may."""

    connections: Iterable[Connection] | None = None


@dataclass(frozen=True, slots=True)
class PeerSilent:
    """The peer of these has not answered for long."""

    connections: list[Connection]


@dataclass(frozen=True, slots=True)
class Stalled:
    """Packets of these connections with one peer get lost."""

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
    """These are relayed, and may do without by now."""

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
    """The peer has not answered the claims of these."""

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

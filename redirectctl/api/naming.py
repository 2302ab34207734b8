"""What people are told that a peer is called.

Its name, which a person gave it, or which a command line of this host has for it.  Else what it calls itself, in
quotes: nobody has confirmed that, and it is no name for requests.  Else an address.  Peers that would be called the
same, as two laptops behind one NAT, are told apart by their keys.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Final

from msgspec import UnsetType

from redirectctl.api.schema import Peer
from redirectctl.api.text import clean

SHORT_FINGERPRINT: Final = 12  # characters of the base64


def said(peer: Peer) -> str | None:
    """What it calls itself, in quotes."""
    return None if isinstance(peer.says, UnsetType) else f'"{clean(peer.says)}"'


def named(peer: Peer) -> str:
    """Its name, or in quotes what it calls itself; empty: neither."""
    return clean(peer.name) if peer.name else said(peer) or ""


def called(peer: Peer) -> str:
    """The same, or else its latest address, or else the beginning of its key."""
    return named(peer) or (clean(peer.addresses[0]) if peer.addresses else short_fingerprint(peer.fingerprint))


def labels(peers: Iterable[Peer]) -> dict[str, str]:
    """By fingerprint; no two alike."""
    listed = [(peer.fingerprint, called(peer)) for peer in peers]
    times = Counter(label for _, label in listed)
    return {
        fingerprint: label if times[label] == 1 else f"{label} ({short_fingerprint(fingerprint)})"
        for fingerprint, label in listed
    }


def short_fingerprint(fingerprint: str) -> str:
    """Enough to tell keys apart in a list; comparing takes the whole."""
    return clean(fingerprint).removeprefix("SHA256:")[:SHORT_FINGERPRINT] + "…"

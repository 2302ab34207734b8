"""What two hosts show each other to prove that they are the two ends of one connection."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from hashlib import blake2s
from typing import Final

Numbers = tuple[int, int]  # bases of the sequence numbers that a host sends and receives; or those of one segment

CLAIMANT: Final = b"claimant"
ANSWERER: Final = b"answerer"
_NUMBERS: Final = struct.Struct("!II")


def digest(token: bytes) -> bytes:
    """8 bytes that tell nothing of a token but whether it is the one meant."""
    return blake2s(token, digest_size=8, person=b"rd token").digest()


def proof_of_numbers(role: bytes, claim: bytes, ours: int, theirs: int) -> bytes:
    """8 bytes that show knowledge of sequence number bases, ``ours`` being the claimant's; good for one claim only."""
    return blake2s(claim + _NUMBERS.pack(ours, theirs), digest_size=8, person=role).digest()


def in_place(token: bytes, numbers: Numbers) -> bytes:
    """A token as a segment of our own carries it, whose sequence number and ACK these are; or what was meant by that.

    If something on the way changes the numbers, another token arrives, of which the sender knows nothing.
    """
    there = blake2s(_NUMBERS.pack(*numbers), digest_size=len(token), person=b"rd place").digest()
    return bytes(one ^ other for one, other in zip(token, there, strict=True))


def nearby(numbers: Numbers) -> Iterable[Numbers]:
    """Each base may be one off: whether a SYN or a FIN is counted differs."""
    return [((numbers[0] + i) % 2**32, (numbers[1] + j) % 2**32) for i in (0, -1, 1) for j in (0, -1, 1)]

"""What proves a claim, as docs/protocol.md has it: another implementation must work out the same bytes."""

from __future__ import annotations

from hashlib import blake2s

import pytest

from redirectctl.flows.proofs import ANSWERER, CLAIMANT, digest, in_place, nearby, proof_of_numbers


def test_the_digest_of_a_token() -> None:
    assert digest(b"8 random") == blake2s(b"8 random", digest_size=8, person=b"rd token").digest()


@pytest.mark.parametrize(("role", "person"), [(CLAIMANT, b"claimant"), (ANSWERER, b"answerer")])
def test_the_proof_by_sequence_numbers(role: bytes, person: bytes) -> None:
    """Over the digest and the claimant's two bases, 4 bytes each, in network byte order."""
    expected = blake2s(b"digest.." + b"\0\0\0\x01" + b"\xfe\xdc\xba\x98", digest_size=8, person=person).digest()
    assert proof_of_numbers(role, b"digest..", 1, 0xFEDCBA98) == expected


def test_a_token_as_its_segment_carries_it() -> None:
    """XORed with what stands for the segment's numbers; the same again takes it off."""
    numbers = b"\0\0\0\x01" + b"\xfe\xdc\xba\x98"
    over = blake2s(numbers, digest_size=8, person=b"rd place").digest()
    carried = in_place(b"8 random", (1, 0xFEDCBA98))
    assert carried == bytes(a ^ b for a, b in zip(b"8 random", over, strict=True))
    assert in_place(carried, (1, 0xFEDCBA98)) == b"8 random"


def test_each_base_may_be_one_off_also_where_they_wrap() -> None:
    last = 2**32 - 1
    assert sorted(nearby((0, last))) == [(a, b) for a in (0, 1, last) for b in (0, last - 1, last)]
    assert next(iter(nearby((5, 7)))) == (5, 7)  # the likeliest is tried first

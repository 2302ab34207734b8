"""What names two hosts to a rendezvous, as docs/protocol.md has it: both must work out the same."""

from __future__ import annotations

from hashlib import blake2s

from redirectctl.flows.rendezvous.client import tag_of
from redirectctl.proto.noise import StaticKey

ALICE, BOB, RITA = (StaticKey.from_private(bytes((n,)) * 32) for n in (1, 2, 3))


def test_the_tag_of_two_hosts() -> None:
    shared = ALICE.shared(BOB.public)
    assert shared == BOB.shared(ALICE.public)
    expected = blake2s(RITA.public, key=shared, digest_size=16, person=b"rd meet").digest()
    assert tag_of(shared, RITA.public) == expected

"""What people are told that a peer is called."""

from __future__ import annotations

from typing import Any

import pytest

from redirectctl.api.naming import called, labels, named
from redirectctl.api.schema import Peer, PeerState


def peer(fingerprint: str, **more: Any) -> Peer:
    values: dict[str, Any] = {
        "name": None,
        "state": PeerState.PENDING,
        "addresses": ["203.0.113.5"],
        "first_seen": 1.0,
        "last_contact": None,
        "connections": 0,
    }
    return Peer(fingerprint=fingerprint, **(values | more))


@pytest.mark.parametrize(
    ("more", "label"),
    [
        ({"name": "office", "says": "laptop"}, "office"),
        ({"says": "laptop"}, '"laptop"'),
        ({"says": "lap\x1b[2Jtop"}, '"lap\\x1b[2Jtop"'),
        ({}, "203.0.113.5"),
        ({"addresses": []}, "0123456789ab…"),
    ],
)
def test_the_best_that_is_known(more: dict[str, Any], label: str) -> None:
    assert called(peer("SHA256:0123456789abcdef", **more)) == label


def test_a_name_that_nobody_confirmed_is_no_name() -> None:
    assert named(peer("SHA256:a", says="laptop")) != named(peer("SHA256:b", name="laptop"))
    assert named(peer("SHA256:a")) == ""


def test_two_behind_one_nat_are_told_apart() -> None:
    by_name = labels([peer("SHA256:a", says="red"), peer("SHA256:b", says="blue")])
    assert by_name == {"SHA256:a": '"red"', "SHA256:b": '"blue"'}
    alike = labels([peer("SHA256:a", says="laptop"), peer("SHA256:b", says="laptop"), peer("SHA256:c")])
    assert alike == {"SHA256:a": '"laptop" (a…)', "SHA256:b": '"laptop" (b…)', "SHA256:c": "203.0.113.5"}
    old = labels([peer("SHA256:a"), peer("SHA256:b")])
    assert old == {"SHA256:a": "203.0.113.5 (a…)", "SHA256:b": "203.0.113.5 (b…)"}

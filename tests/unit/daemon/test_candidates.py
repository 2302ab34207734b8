"""Sockets that claims may mean are looked for together, and not all the time."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping
from ipaddress import IPv4Address
from typing import Any

import pytest

from redirectctl.daemon import candidates as module
from redirectctl.daemon.candidates import AT_ONCE, Candidates, Pair
from redirectctl.flows import constants
from redirectctl.kernel.errors import KernelError
from redirectctl.wire.addr import FourTuple, SockAddr

FLOOD, GUEST = IPv4Address("198.51.100.66"), IPv4Address("198.51.100.2")


def socket(pair: Pair, number: int) -> FourTuple:
    return FourTuple(SockAddr(IPv4Address("192.0.2.1"), pair[0]), SockAddr(pair[1], 1024 + number))


class Kernel:
    """Some sockets for each pair, and how often they were looked for."""

    def __init__(self, each: int = 1) -> None:
        self.each = each
        self.looks: list[int] = []
        self.asked = 0
        self.answers: dict[tuple[Any, ...], Mapping[FourTuple, tuple[int, int]]] = {}
        self.refuse = False
        self.candidates = Candidates(self._between, self._numbers, self._answer)

    def _between(self, wanted: Collection[Pair]) -> dict[Pair, list[FourTuple]]:
        self.looks.append(len(wanted))
        if self.refuse:
            raise KernelError("listing sockets", "no memory", "try again")
        return {pair: [socket(pair, n) for n in range(self.each)] for pair in wanted}

    async def _numbers(self, sockets: Collection[FourTuple]) -> dict[FourTuple, tuple[int, int]]:
        self.asked += len(sockets)
        return {one: (one.local.port, one.remote.port) for one in sockets}

    def _answer(self, token: tuple[Any, ...], found: Mapping[FourTuple, tuple[int, int]]) -> None:
        assert token not in self.answers
        self.answers[token] = found

    def run(self) -> None:
        asyncio.run(asyncio.wait_for(self.candidates.run(), 20))


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "GATHER", 0.0)


def test_a_flood_of_questions_is_one_look_and_another_peer_has_its_answer_in_it() -> None:
    kernel = Kernel()
    assert kernel.candidates.want(("claim", 0), (22, FLOOD))
    for number in range(1, 1000):
        assert not kernel.candidates.want(("claim", number), (22, FLOOD))
    kernel.candidates.want(("claim", 1000), (22, GUEST))
    kernel.run()
    assert kernel.looks == [2]
    assert kernel.asked == 2
    assert len(kernel.answers) == 1001
    assert list(kernel.answers[("claim", 1000)]) == [socket((22, GUEST), 0)]


def test_a_look_is_about_what_the_kernel_sees_to_quickly() -> None:
    kernel = Kernel()
    for port in range(3 * AT_ONCE):
        kernel.candidates.want(("claim", port), (port, FLOOD))
    kernel.run()
    assert kernel.looks == [AT_ONCE] * 3
    assert all(len(found) == 1 for found in kernel.answers.values())


def test_of_many_sockets_some_are_compared() -> None:
    kernel = Kernel(each=10 * constants.MAX_CANDIDATES)
    kernel.candidates.want(("claim", 1), (22, GUEST))
    kernel.run()
    assert len(kernel.answers[("claim", 1)]) == kernel.asked == constants.MAX_CANDIDATES


def test_whoever_asked_is_answered_when_the_kernel_refuses_and_the_next_question_is_looked_at() -> None:
    kernel = Kernel()
    kernel.refuse = True
    kernel.candidates.want(("claim", 1), (22, GUEST))
    kernel.run()
    assert kernel.answers == {("claim", 1): {}}
    kernel.refuse = False
    assert kernel.candidates.want(("claim", 2), (22, GUEST))
    kernel.run()
    assert len(kernel.answers[("claim", 2)]) == 1

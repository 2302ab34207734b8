"""Requests inside a session, on a host that only counts."""

from __future__ import annotations

from typing import cast

import pytest

from redirectctl.flows import constants
from redirectctl.flows.host import Host
from redirectctl.flows.requests import Requests
from redirectctl.flows.timer_kinds import RetryRequest
from redirectctl.proto.timers import Timers
from redirectctl.wire import message as m

KEY, OTHER = b"k" * 32, b"o" * 32


class Counting:
    """What Requests needs of a host."""

    def __init__(self) -> None:
        self.timers: Timers[RetryRequest] = Timers()
        self.sent: list[tuple[float, m.Message]] = []

    def send(self, now: float, key: bytes, message: m.Message, *path: object) -> bool:
        assert key == KEY
        self.sent.append((now, message))
        return True


class Asking:
    def __init__(self) -> None:
        self.host = Counting()
        self.requests = Requests(cast(Host, self.host))
        self.answers: list[m.Message] = []
        self.failures: list[float] = []

    def ask(self, now: float = 0.0) -> None:
        self.requests.ask(
            now, KEY, lambda n: m.RstQuery(n, b"c" * 8), lambda _, a: self.answers.append(a), self.failures.append
        )

    def run(self, until: float) -> None:
        while (at := self.host.timers.next()) is not None and at <= until:
            for timer in self.host.timers.due(at):
                self.requests.retry(at, timer.number)


@pytest.fixture
def asking() -> Asking:
    return Asking()


def test_asked_until_given_up(asking: Asking) -> None:
    asking.ask()
    asking.run(100)
    times = [at for at, _ in asking.host.sent]
    assert times == pytest.approx([0.0, 0.3, 0.9, 2.1, 4.5])
    assert asking.failures == pytest.approx([sum(constants.REQUEST_RETRIES)])
    assert len({message for _, message in asking.host.sent}) == 1, "the same request each time"
    assert asking.host.timers.next() is None


def test_answered(asking: Asking) -> None:
    asking.ask()
    asking.run(1)
    reply = m.RstReply(1, alive=True)
    asking.requests.answer(1.0, KEY, 1, reply)
    asking.requests.answer(1.1, KEY, 1, reply)
    asking.run(100)
    assert asking.answers == [reply], "once"
    assert asking.failures == []
    assert len(asking.host.sent) == 3


@pytest.mark.parametrize(
    ("key", "number", "message"),
    [
        (OTHER, 1, m.RstReply(1, alive=False)),
        (KEY, 2, m.RstReply(2, alive=False)),
        (KEY, 1, m.Done(1)),
        (KEY, 1, m.SyncReply(1, ())),
        (KEY, 1, m.Protected(1, ())),
    ],
    ids=["another peer", "another number", "another kind", "another kind", "another kind"],
)
def test_what_is_no_answer(asking: Asking, key: bytes, number: int, message: m.Message) -> None:
    asking.ask()
    asking.requests.answer(0.1, key, number, message)
    assert asking.answers == []
    asking.requests.answer(0.2, KEY, 1, m.RstReply(1, alive=True))
    assert len(asking.answers) == 1


def test_bounded(asking: Asking) -> None:
    for _ in range(constants.MAX_REQUESTS):
        asking.ask()
    assert asking.failures == []
    asking.ask(3.0)
    assert asking.failures == [3.0]
    assert len(asking.host.sent) == constants.MAX_REQUESTS
    asking.requests.answer(4.0, KEY, 1, m.RstReply(1, alive=True))
    asking.ask(5.0)
    assert asking.failures == [3.0]


def test_every_request_of_the_protocol_has_an_answer(asking: Asking) -> None:
    for i, (request, answer) in enumerate(
        [
            (m.Protect(0, ()), m.Protected(0, ())),
            (m.Bind(0, ()), m.Protected(0, ())),
            (m.BindNumbers(0, ()), m.Protected(0, ())),
            (m.EndOf(0, m.End.CLOSED, ()), m.Done(0)),
            (m.Sync(0, ()), m.SyncReply(0, ())),
            (m.RstQuery(0, b"c" * 8), m.RstReply(0, alive=True)),
        ],
        1,
    ):
        asking.requests.ask(0.0, KEY, lambda _, r=request: r, lambda _, a: asking.answers.append(a), lambda _: None)
        asking.requests.answer(0.0, KEY, i, answer)
    assert len(asking.answers) == 6

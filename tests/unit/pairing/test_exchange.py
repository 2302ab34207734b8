"""Lines between the two programs of a pairing."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from io import FileIO
from typing import NamedTuple

import pytest

from redirectctl.pairing import exchange
from redirectctl.pairing.exchange import (
    LINE_MAX,
    NOISE_MAX,
    PREFIX,
    Approved,
    Channel,
    EndedError,
    LateError,
    Met,
    NotUnderstoodError,
    Sorry,
    SorryError,
    Unmet,
    Why,
)

K = bytes(range(32))
LINES = (
    exchange.Open(K, K, 7747, "laptop", ["192.0.2.1", "2001:db8::1"]),
    exchange.Ready(K, K, 7747, K),
    exchange.Proven(K),
    exchange.Expecting(exchange.CheckStatus.OK),
    Met(),
    Unmet(),
    exchange.CalledBack(),
    Approved("laptop"),
)


class Ends(NamedTuple):
    """The channel, and a raw way to send to it."""

    channel: Channel
    raw: FileIO


@pytest.fixture
def ends() -> Iterator[Ends]:
    read, write = os.pipe()
    with open(read, "rb"), open(write, "wb", buffering=0) as end:
        yield Ends(Channel(read, write), end)


@pytest.mark.parametrize("line", LINES, ids=lambda line: type(line).__name__)
def test_every_line_survives(ends: Ends, line: exchange.Line) -> None:
    ends.channel.send(line)
    assert ends.channel.receive(type(line), 5) == line


@pytest.mark.parametrize("why", Why)
def test_sorry_takes_the_place_of_any(ends: Ends, why: Why) -> None:
    ends.channel.send(Sorry(why))
    with pytest.raises(SorryError) as caught:
        ends.channel.receive(Met, 5)
    assert caught.value.why is why


def test_what_a_shell_prints_is_skipped(ends: Ends) -> None:
    ends.raw.write(b"Welcome to server!\r\n\x1b[31mYou have mail.\n\n")
    ends.channel.send(Met())
    ends.raw.write(b"$ ")
    ends.channel.send(Unmet())
    assert ends.channel.receive(Met, 5) == Met()
    assert ends.channel.receive(Unmet, 5) == Unmet()
    ends.raw.write(b"$ " + PREFIX + b'{"says":"met"}\n')
    with pytest.raises(LateError):  # it is not at the beginning of a line
        ends.channel.receive(Met, 0.05)


def test_a_line_in_pieces(ends: Ends) -> None:
    document = PREFIX + b'{"says":"met"}\n'
    for at in range(len(document)):
        ends.raw.write(document[at : at + 1])
    assert ends.channel.receive((Met, Unmet), 5) == Met()


@pytest.mark.parametrize(
    "document",
    [
        b"",
        b"{}",
        b"[]",
        b"null",
        b'{"says":"met"',
        b'{"says":"run","command":"rm"}',
        b'{"says":"met","more":1}',
        b'{"says":"sorry","why":"because"}',
        b'{"says":"proven","proof":"AAAA"}',
        b'{"says":"proven","proof":"not base64!"}',
        b'{"says":"approved","name":"' + b"x" * 65 + b'"}',
        b'{"says":"approved","name":"\xff"}',
        b"[" * 3000,
    ],
)
def test_what_is_none_of_the_lines(ends: Ends, document: bytes) -> None:
    ends.raw.write(PREFIX + document + b"\n")
    with pytest.raises(NotUnderstoodError):
        ends.channel.receive((Met, exchange.Proven, Approved), 5)


def test_a_line_out_of_turn(ends: Ends) -> None:
    ends.channel.send(Met())
    with pytest.raises(NotUnderstoodError):
        ends.channel.receive(Approved, 5)


@pytest.mark.parametrize("piece", [b"x" * 1024, b"yes\n" * 256, PREFIX + b"y" * 1024])
def test_endless_output_ends(ends: Ends, piece: bytes) -> None:
    def read_all() -> None:
        for _ in range((NOISE_MAX + 2 * LINE_MAX) // len(piece)):
            ends.raw.write(piece)
            with suppress(LateError):
                ends.channel.receive(Met, 0.01)

    with pytest.raises(NotUnderstoodError):
        read_all()


def test_a_line_that_is_too_long_is_none(ends: Ends) -> None:
    ends.raw.write(PREFIX + b'{"says":"met"' + b" " * LINE_MAX + b"}\n")
    with pytest.raises(LateError):
        ends.channel.receive(Met, 0.05)


def test_the_other_end_has_gone(ends: Ends) -> None:
    ends.channel.send(Met())
    ends.raw.close()
    assert ends.channel.receive(Met, 5) == Met()
    with pytest.raises(EndedError):
        ends.channel.receive(Met, 5)
    with pytest.raises(EndedError):
        ends.channel.send(Met())

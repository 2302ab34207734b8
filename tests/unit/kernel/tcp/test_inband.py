"""Tokens on their way out and in, with a host that only pretends (test_backoff.py)."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import pytest

from redirectctl.flows.commands import Proof
from redirectctl.flows.proofs import in_place
from redirectctl.kernel.errors import KernelError
from redirectctl.kernel.sockets.diag import SocketInfo
from redirectctl.kernel.tcp.inband import NOT_SENT, Inband
from redirectctl.wire.addr import FourTuple, SockAddr
from redirectctl.wire.ip import BadPacket, TcpFlags, build_tcp, options_with_token, parse_ip, parse_tcp, token_of
from tests.unit.kernel.tcp.test_backoff import RCV_NXT, SND_UNA, FakeHost, Packet, changed, connection, host, idle

TOKEN = b"token---"
WIRE = FourTuple(SockAddr.parse("198.51.100.9:40000"), SockAddr.parse("203.0.113.9:22"))


@dataclass
class Tokens:
    """An Inband, and all that it says."""

    fake: FakeHost
    reachable: bool = True
    sent: list[bytes] = field(default_factory=list)
    arrived: list[tuple[FourTuple, bytes]] = field(default_factory=list)
    refused: list[tuple[str, FourTuple | None]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.inband = Inband(
            self.fake.backoff,
            self,
            on_token=lambda *arrived: self.arrived.append(arrived),
            on_refused=lambda *refused: self.refused.append(refused),
        )

    def send(self, wire: FourTuple, packet: bytes) -> None:
        if not self.reachable:
            raise KernelError("sending", "no route", "none")
        self.sent.append(packet)

    def prove(self, *proofs: Proof) -> set[FourTuple]:
        return asyncio.run(self.inband.prove(proofs))


def tokens(*sockets: SocketInfo, **how: object) -> Tokens:
    return Tokens(host(*sockets), **how)  # type: ignore[arg-type]


def test_a_token_goes_out_on_the_sockets_own_ack() -> None:
    some = tokens(idle(1), idle(2))
    assert some.prove(Proof(connection(1), TOKEN)) == {connection(1)}
    (packet,) = some.fake.packets
    assert packet.verdicts == ["replace"]
    assert packet.instead is not None
    segment = parse_tcp(packet.instead)
    assert (segment.sender_tuple, segment.seq, segment.ack) == (connection(1), SND_UNA, RCV_NXT)
    assert token_of(segment.options) == TOKEN
    assert segment.is_pure_ack
    assert some.sent == []


def test_a_token_on_a_wire_tuple_carries_only_bytes_that_the_peer_has() -> None:
    one = changed(idle(1), send_mss=1400, notsent_bytes=300)._replace(write_queue=1000)
    some = tokens(one)
    assert some.prove(Proof(connection(1), TOKEN, WIRE)) == {connection(1)}
    assert [packet.verdicts for packet in some.fake.packets] == [["accept"]]
    (packet,) = some.sent
    segment = parse_tcp(packet)
    assert segment.sender_tuple == WIRE
    assert in_place(token_of(segment.options), (segment.seq, segment.ack)) == TOKEN
    assert len(packet) == 20 + 20 + 1400
    assert segment.data_length == 1400 - len(segment.options)
    assert segment.seq + segment.data_length <= SND_UNA
    assert segment.ack == RCV_NXT
    assert not any(parse_ip(packet).payload[20 + len(segment.options) :])


def test_a_silent_socket_whose_numbers_are_known_needs_no_ack_for_a_token_on_a_wire_tuple() -> None:
    """It was asked just before, by a kick after the very move that is followed by this."""
    one = changed(idle(1), send_mss=1400, notsent_bytes=300, options=1)._replace(write_queue=1000)
    some = tokens(one)

    async def scenario() -> None:
        await some.inband.prove([Proof(connection(1), TOKEN)])  # teaches the numbers
        some.fake.silent.add(connection(1))
        assert await some.inband.prove([Proof(connection(1), TOKEN, WIRE)]) == {connection(1)}
        assert some.fake.count("syn", 1) == 2
        # On the connection itself it is the socket that speaks.
        assert await some.inband.prove([Proof(connection(1), TOKEN)]) == set()

    asyncio.run(scenario())
    (packet,) = some.sent
    segment = parse_tcp(packet)
    assert in_place(token_of(segment.options), (segment.seq, segment.ack)) == TOKEN
    assert len(packet) == 20 + 20 + 12 + 1400  # as large as those that have timestamps
    assert segment.seq + segment.data_length <= SND_UNA
    assert segment.ack == RCV_NXT


def test_a_wire_tuple_without_a_route_is_reported_and_the_others_are_sent() -> None:
    some = tokens(idle(1), idle(2), reachable=False)
    assert some.prove(Proof(connection(1), TOKEN, WIRE), Proof(connection(2), TOKEN)) == {connection(2)}
    assert some.refused == [(NOT_SENT, connection(1))]


def test_an_ack_without_room_goes_as_it_was() -> None:
    some = tokens(idle(1))
    some.fake.options = b"\x01\x01" + b"\x1d\x1e" + bytes(28)
    assert some.prove(Proof(connection(1), TOKEN)) == set()
    assert [packet.verdicts for packet in some.fake.packets] == [["accept"]]
    assert some.refused == [(BadPacket.NO_ROOM, connection(1))]
    assert some.inband.refused == {BadPacket.NO_ROOM: 1}


def test_a_socket_that_was_asked_just_before_is_asked_again() -> None:
    some = tokens(idle(1))
    some.fake.silent.add(connection(1))
    assert some.prove(Proof(connection(1), TOKEN)) == set()
    assert some.fake.count("syn", 1) == 3


def test_a_socket_that_is_gone_is_left_alone() -> None:
    some = tokens()
    assert some.prove(Proof(connection(1), TOKEN)) == set()
    assert some.fake.log == []


def test_the_ack_with_a_token_teaches_the_numbers() -> None:
    some = tokens(idle(1), idle(2))
    some.prove(Proof(connection(1), TOKEN))
    known = some.fake.backoff.known([connection(1), connection(2)])
    assert [numbers.snd_una(idle(1)) for numbers in known.values()] == [SND_UNA]


def test_numbers_of_sockets_that_can_be_asked() -> None:
    some = tokens(idle(1), idle(2))
    some.fake.silent.add(connection(2))
    numbers = asyncio.run(some.inband.numbers([connection(1), connection(2)]))
    info = idle(1).info
    assert info is not None
    assert numbers == {connection(1): (SND_UNA - info.bytes_acked, RCV_NXT - info.bytes_received)}


def arrive(some: Tokens, options: bytes) -> list[str]:
    packet = Packet(build_tcp(*WIRE.mirrored, seq=1, ack=2, flags=TcpFlags.ACK, options=options))
    some.inband.on_arrival(packet)
    return packet.verdicts


def test_a_token_that_arrives_is_handed_over_and_goes_no_further() -> None:
    some = tokens()
    assert arrive(some, options_with_token(b"", TOKEN)) == ["drop"]
    assert some.arrived == [(WIRE, TOKEN, (1, 2))]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ("fd08774701020304", BadPacket.TOKEN_LENGTH),
        ("fd0c774701020304", BadPacket.OPTIONS),
        ("01010101", BadPacket.NO_TOKEN),
    ],
)
def test_what_is_no_token_passes_and_is_counted(options: str, reason: BadPacket) -> None:
    some = tokens()
    assert arrive(some, bytes.fromhex(options)) == ["accept"]
    assert some.arrived == []
    assert some.refused == [(reason, WIRE)]
    assert some.inband.refused == {reason: 1}


def test_what_is_no_packet_passes_and_is_counted() -> None:
    some = tokens()
    some.inband.on_arrival(packet := Packet(b"\x45"))
    assert packet.verdicts == ["accept"]
    assert some.refused == [(BadPacket.TRUNCATED, None)]

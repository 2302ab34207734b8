"""PacketQueue with real packets: datagrams to ourselves that an iptables rule queues."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from redirectctl.kernel.errors import KernelError
from redirectctl.kernel.netfilter.packet_queue import PacketQueue, QueuedPacket
from tests.netns.tcp.socket_lab import Wire, inside, until_async

NUMBER = 7799
HEADERS = 28
SO_SNDBUFFORCE = 32


class Ear:
    """A datagram socket on alice that talks to itself through the queue."""

    def __init__(self, wire: Wire, *rule: str) -> None:
        with inside(wire.alice.name):
            self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, 0x55)
        self.socket.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, 1 << 20)
        self.socket.bind(("127.0.0.1", 0))
        self.socket.setblocking(False)
        port = str(self.socket.getsockname()[1])
        queue = ("-j", "NFQUEUE", "--queue-num", str(NUMBER), *rule)
        wire.alice.run("iptables", "-t", "raw", "-A", "OUTPUT", "-p", "udp", "--dport", port, *queue)

    def say(self, *words: bytes) -> None:
        for word in words:
            self.socket.sendto(word, self.socket.getsockname())

    def heard(self) -> list[bytes]:
        words = []
        while True:
            try:
                words.append(self.socket.recv(9000))
            except BlockingIOError:
                return words


@contextmanager
def queue_on(
    wire: Wire, handler: Callable[[QueuedPacket], None], errors: list[Exception], **limits: int
) -> Iterator[PacketQueue]:
    with inside(wire.alice.name):
        queue = PacketQueue(NUMBER, handler, on_error=errors.append, **limits)
    queue.start(asyncio.get_running_loop())
    try:
        yield queue
    finally:
        queue.close()


def test_decisions_now_and_later(wire: Wire) -> None:
    async def scenario() -> None:
        ear = Ear(wire)
        held: list[QueuedPacket] = []
        with queue_on(wire, held.append, errors := []) as queue:
            ear.say(b"one", b"two", b"three")
            await until_async(lambda: len(held) == 3)
            assert [packet.payload[HEADERS:] for packet in held] == [b"one", b"two", b"three"]
            assert {packet.mark for packet in held} == {0x55}
            assert (ear.heard(), queue.held) == ([], 3)
            held[2].accept()
            held[0].drop()
            held[0].accept()  # too late
            held[1].accept()
            assert (ear.heard(), queue.held) == ([b"three", b"two"], 0)
        assert not errors

    asyncio.run(scenario())


def test_a_handler_that_fails_drops_its_packet_only(wire: Wire) -> None:
    async def scenario() -> None:
        def handler(packet: QueuedPacket) -> None:
            if packet.payload.endswith(b"bad"):
                raise RuntimeError("cannot")
            packet.accept()

        ear = Ear(wire)
        with queue_on(wire, handler, errors := []) as queue:
            ear.say(b"good", b"bad", b"better")
            heard: list[bytes] = []
            await until_async(lambda: heard.extend(ear.heard()) or len(heard) == 2)
            assert heard == [b"good", b"better"]
            assert [str(error) for error in errors] == ["cannot"]
            assert queue.held == 0

    asyncio.run(scenario())


def test_only_so_many_are_held(wire: Wire) -> None:
    async def scenario() -> None:
        ear = Ear(wire)
        held: list[QueuedPacket] = []
        with queue_on(wire, held.append, [], max_held=2) as queue:
            ear.say(*(bytes([n]) for n in range(5)))
            await until_async(lambda: queue.refused == 3)
            for packet in held:
                packet.accept()
            assert ear.heard() == [b"\0", b"\1"]
            ear.say(b"again")
            await until_async(lambda: len(held) == 3)
            assert queue.refused == 3

    asyncio.run(scenario())


def test_many_packets_leave_the_loop_its_turn(wire: Wire) -> None:
    async def scenario() -> None:
        ear = Ear(wire)
        seen: list[int] = []
        with queue_on(wire, lambda packet: (seen.append(1), packet.drop())[1], []) as queue:
            ear.say(*([b"x"] * 600))
            queue.read()
            assert 0 < len(seen) < 600
            await until_async(lambda: len(seen) == 600)

    asyncio.run(scenario())


def test_after_closing_the_rule_decides(wire: Wire) -> None:
    async def scenario() -> None:
        ear, bypassing = Ear(wire), Ear(wire, "--queue-bypass")
        held: list[QueuedPacket] = []
        with queue_on(wire, held.append, []):
            ear.say(b"held")
            await until_async(lambda: len(held) == 1)
        held[0].accept()
        ear.say(b"dropped")
        bypassing.say(b"passed")
        assert (ear.heard(), bypassing.heard()) == ([], [b"passed"])

    asyncio.run(scenario())


def test_a_queue_has_one_reader(wire: Wire) -> None:
    async def scenario() -> None:
        with (
            queue_on(wire, lambda packet: None, []),
            pytest.raises(KernelError, match=f"NFQUEUE {NUMBER}"),
            queue_on(wire, lambda packet: None, []),
        ):
            pass

    asyncio.run(scenario())

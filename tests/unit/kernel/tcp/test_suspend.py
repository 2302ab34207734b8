"""Suspender against fakes of the kernel: what it answers, and what it does to sockets."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Collection, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from redirectctl.flows.connection import Before
from redirectctl.kernel.sockets.borrow import FIRST_DESCRIPTOR, NEVER, Handle, borrow
from redirectctl.kernel.sockets.diag import SocketInfo
from redirectctl.kernel.tcp.suspend import ANSWER, STEPS, Suspender
from redirectctl.wire.addr import FourTuple
from redirectctl.wire.ip import SEQ_MASK, TcpFlags, build_tcp, build_timestamps, parse_tcp, timestamps_of
from tests.unit.kernel.tcp.test_backoff import RCV_NXT, SND_UNA, FakeHost, Packet, changed, connection, idle

WINDOW = 512  # of the fake sockets, in units of 128 bytes
Answer = tuple[int, int, int]
SHUT = (RCV_NXT, SND_UNA, 0)  # the peer's last ACK with its window closed
OPEN = (RCV_NXT, SND_UNA, WINDOW)


@dataclass
class FakeHandle:
    """Somebody's socket."""

    user_timeout: int = 0
    closed: bool = False
    calm: bool = True
    given_back: bool = False

    def close(self) -> None:
        self.given_back = True


class Host(FakeHost):
    """Its sockets know what a window of 0 is."""

    def ack(self, connection: FourTuple, *, seq: int, ack: int, window: int) -> None:
        if window:
            super().ack(connection, seq=seq, ack=ack, window=window)
        else:
            self.acks.append((seq, ack, window))
            self.sockets[connection] = changed(self.sockets[connection], send_window=0)


@dataclass
class Queued:
    """A Sender: what it sends with a socket tuple goes through the queue, as the socket's own."""

    lab: Lab

    def send(self, wire: FourTuple, packet: bytes) -> None:
        self.lab.asked.append(Packet(packet))
        self.lab.suspender.on_packet(self.lab.asked[-1])


@dataclass
class Lab:
    """A host with a Suspender; all its sockets can be borrowed that have an inode in ``handles``."""

    sockets: list[SocketInfo]
    handles: dict[int, FakeHandle] = field(default_factory=dict)
    borrowed: list[set[int]] = field(default_factory=list)
    asked: list[Packet] = field(default_factory=list)  # keepalives of ours, that have been through the queue
    answered: list[FourTuple] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.host = Host({one.tuple: one for one in self.sockets})
        sender = Queued(self)
        self.suspender = Suspender(
            self.host, self.host, self.host.backoff, sender, self.lend, answered=self.answered.append
        )

    def lend(self, inodes: Collection[int]) -> dict[int, Handle]:
        self.borrowed.append(set(inodes))
        return {inode: self.handles[inode] for inode in inodes if inode in self.handles}

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run(work)

    def suspend(self, *ports: int) -> dict[FourTuple, Before]:
        async def work() -> dict[FourTuple, Before]:
            wanted = [connection(port) for port in ports]
            await self.host.backoff.learn(wanted)
            befores = await self.suspender.prepare(wanted)
            await self.suspender.suspend(befores)
            return befores

        found: dict[FourTuple, Before] = asyncio.run(work())
        return found

    def resume(self, *ports: int) -> None:
        self.host.acks.clear()
        self.host.log.clear()
        asyncio.run(self.suspender.resume([connection(port) for port in ports]))

    def set(self, port: int, **fields: int) -> None:
        self.host.sockets[connection(port)] = changed(self.host.sockets[connection(port)], **fields)

    def send_out(
        self, port: int, seq: int, data: bytes = b"", flags: TcpFlags = TcpFlags.ACK
    ) -> tuple[list[str], list[Answer]]:
        """What becomes of a segment of the socket, and what it is answered with."""
        self.host.acks.clear()
        packet = Packet(build_tcp(*connection(port), seq=seq, ack=RCV_NXT, flags=flags, data=data))
        self.suspender.on_packet(packet)
        return packet.verdicts, list(self.host.acks)

    def send(self, port: int, seq: int, data: bytes = b"", flags: TcpFlags = TcpFlags.ACK) -> list[Answer]:
        """What a segment of the socket is answered with; nothing of it goes on."""
        verdicts, answers = self.send_out(port, seq, data, flags)
        assert verdicts == ["drop"]
        return answers

    def let_out(self, *ports: int, on: bool = True) -> None:
        self.host.acks.clear()
        self.suspender.let_out([connection(port) for port in ports], on)
        for port in ports:
            self.set(port, unacked=0)  # nothing waited for the window

    def ask(self, *ports: int) -> list[Packet]:
        """The keepalives, that have been through the queue."""
        self.asked.clear()
        self.host.acks.clear()
        self.suspender.ask([connection(port) for port in ports])
        return self.asked

    def arrive(
        self, port: int, *, seq: int = RCV_NXT, ack: int = SND_UNA, flags: TcpFlags = TcpFlags.ACK, data: bytes = b""
    ) -> bool:
        """A segment from the network goes on in any case; whether it is an answer."""
        self.answered.clear()
        packet = Packet(build_tcp(*connection(port).mirrored, seq=seq, ack=ack, flags=flags, data=data))
        self.suspender.on_arrival(packet)
        assert packet.verdicts == ["accept"]
        assert set(self.answered) <= {connection(port)}
        return bool(self.answered)


def socket_of(port: int, **fields: int) -> SocketInfo:
    """``inode`` is the port."""
    return idle(port, **fields)._replace(inode=port)


def lab(*ports: int, borrowed: bool = True, **fields: int) -> Lab:
    return Lab([socket_of(port, **fields) for port in ports], {port: FakeHandle() for port in ports if borrowed})


def test_the_window_is_closed_while_nothing_is_in_flight() -> None:
    one = lab(1)
    assert one.suspend(1) == {connection(1): Before(WINDOW << 7, 0)}
    assert one.host.acks == [SHUT]


@pytest.mark.parametrize("borrowed", [True, False])
def test_what_is_in_flight_is_left_so(borrowed: bool) -> None:
    one = lab(1, borrowed=borrowed, unacked=1)
    one.suspend(1)
    assert one.host.acks == []


def test_a_program_gets_its_user_timeout_back_when_the_losses_are_over() -> None:
    one = lab(1)
    handle = one.handles[1]
    handle.user_timeout = 5000
    assert one.suspend(1)[connection(1)].user_timeout == 5000
    assert handle.user_timeout == NEVER
    handle.calm = False
    one.set(1, send_window=WINDOW << 7)
    one.host.sockets[connection(1)] = one.host.sockets[connection(1)]._replace(write_queue=10)
    one.resume(1)
    one.run(one.suspender.tend())
    assert (handle.user_timeout, handle.given_back) == (NEVER, False)
    handle.calm = True
    one.run(one.suspender.tend())
    assert (handle.user_timeout, handle.given_back) == (5000, True)


def test_one_that_only_receives_is_given_back_though_it_is_not_calm() -> None:
    """Its state of congestion ends with an acknowledgement of data: none comes, and the program could not close."""
    one = lab(1)
    one.suspend(1)
    one.handles[1].calm = False
    one.resume(1)
    one.run(one.suspender.tend())
    assert one.handles[1].given_back


def test_the_beat_waits_for_descriptors_that_are_being_looked_for() -> None:
    """After a restart: else they would come when nobody waits for them."""
    one = lab(1)
    one.handles[1].user_timeout = NEVER

    async def work() -> None:
        giving = asyncio.create_task(one.suspender.give_back({connection(1): Before(WINDOW << 7, 5000)}))
        await asyncio.sleep(0)
        assert await one.suspender.tend() == []
        await giving
        assert await one.suspender.tend() == [connection(1)]

    one.run(work())
    assert (one.handles[1].user_timeout, one.handles[1].given_back) == (5000, True)


def test_it_has_to_wait_for_a_window_if_something_waits_to_be_sent() -> None:
    one = lab(1)
    one.suspend(1)
    waiting = changed(one.host.sockets[connection(1)], send_window=0)._replace(write_queue=10)
    one.host.sockets[connection(1)] = waiting
    one.resume(1)
    one.run(one.suspender.tend())
    assert not one.handles[1].given_back
    one.host.sockets[connection(1)] = waiting._replace(write_queue=0)
    one.run(one.suspender.tend())
    assert one.handles[1].given_back


def test_what_a_program_sets_meanwhile_stays() -> None:
    one = lab(1)
    one.suspend(1)
    one.handles[1].user_timeout = 777
    one.suspender.forget([connection(1)])
    assert (one.handles[1].user_timeout, one.handles[1].given_back) == (777, True)


def test_a_restarted_daemon_restores_what_was_stored() -> None:
    one = lab(1)
    one.handles[1].user_timeout = NEVER  # left by the one before
    one.run(one.suspender.suspend({connection(1): Before(1000, 5000)}))
    one.suspender.forget([connection(1)])
    assert one.handles[1].user_timeout == 5000


def test_what_is_left_of_a_lost_store_is_not_the_programs() -> None:
    one = lab(1)
    one.handles[1].user_timeout = NEVER
    assert one.suspend(1)[connection(1)].user_timeout == 0


@pytest.mark.parametrize("borrowed", [True, False])
def test_probes_are_answered_and_other_acks_are_not(borrowed: bool) -> None:
    one = lab(1, borrowed=borrowed)
    one.suspend(1)
    assert one.send(1, SND_UNA - 1) == [SHUT]
    assert one.send(1, SND_UNA) == []
    assert one.send(1, SND_UNA, flags=TcpFlags.RST) == []
    assert one.send(1, SND_UNA, flags=TcpFlags.SYN) == []
    (held,) = one.suspender.state()
    assert (held.packets, held.answers, held.borrowed) == (4, 1, borrowed)


def test_a_borrowed_socket_repeats_its_segments_unanswered() -> None:
    one = lab(1, unacked=1, retransmits=9, backoff=9)
    one.suspend(1)
    assert one.send(1, SND_UNA, b"data") == []


def test_another_is_answered_after_some_time_outs_and_never_acknowledged() -> None:
    one = lab(1, borrowed=False, unacked=2)
    one.suspend(1)
    for retransmits, answers in [(0, []), (STEPS - 1, []), (STEPS, [SHUT])]:
        one.set(1, retransmits=retransmits)
        assert one.send(1, SND_UNA, b"data") == answers
    assert one.send(1, SND_UNA + 1000, b"more") == [SHUT]
    assert one.send(1, SND_UNA, flags=TcpFlags.FIN | TcpFlags.ACK) == [SHUT]


def test_segments_sent_while_the_window_was_closed_get_it_back() -> None:
    """With it closed their time-outs would not count, and none could be taken back."""
    one = lab(1)
    one.suspend(1)
    one.set(1, unacked=1, send_window=0)
    assert one.send(1, SND_UNA, b"data") == [OPEN]


def test_a_window_that_the_peer_closed_stays_closed() -> None:
    one = lab(1, send_window=0)
    assert one.suspend(1)[connection(1)].window == 0
    one.set(1, unacked=1)
    assert one.send(1, SND_UNA, b"data") == [SHUT]
    one.set(1, unacked=0)
    one.resume(1)
    assert one.host.acks == []


def test_strangers_and_nonsense_are_dropped() -> None:
    one = lab(1)
    one.suspend(1)
    assert one.send(2, SND_UNA, b"data") == []
    packet = Packet(b"\x45nonsense")
    one.suspender.on_packet(packet)
    assert packet.verdicts == ["drop"]


def test_resume_opens_the_window_and_says_where_we_are() -> None:
    one = lab(1)
    one.suspend(1)
    one.set(1, send_window=0)
    one.resume(1)
    assert one.host.acks == [OPEN]
    assert one.host.count("syn", 1) == 1
    assert one.suspender.state() == []


def test_resume_opens_it_as_wide_as_the_peer_said_last() -> None:
    one = lab(1)
    one.suspend(1)
    one.set(1, send_window=100 << 7)
    one.send(1, SND_UNA)
    one.set(1, send_window=0)
    one.resume(1)
    assert one.host.acks == [(RCV_NXT, SND_UNA, 100)]


def test_segments_in_flight_are_knocked_out_with_the_window_closed() -> None:
    one = lab(1, borrowed=False, unacked=1, retransmits=STEPS, backoff=5)
    one.suspend(1)
    one.set(1, send_window=0)
    one.resume(1)
    assert set(one.host.acks) == {SHUT}
    assert one.host.count("icmp", 1) == 5
    assert one.host.count("syn", 1) == 0


def test_borrowed_ones_in_flight_are_kicked() -> None:
    one = lab(1, unacked=1, retransmits=3, backoff=3)
    one.suspend(1)
    one.resume(1)
    assert one.host.count("icmp", 1) == 4
    assert one.host.acks == []


def test_suspended_again_while_it_recovers_nothing_is_lost() -> None:
    one = lab(1)
    one.handles[1].user_timeout = 5000
    one.suspend(1)
    one.handles[1].calm = False
    one.set(1, send_window=0)
    one.resume(1)
    assert one.suspend(1) == {connection(1): Before(WINDOW << 7, 5000)}
    assert len(one.borrowed) == 1
    one.suspender.forget([connection(1)])
    assert one.handles[1].user_timeout == 5000


def test_a_socket_that_has_ended_is_let_go() -> None:
    """Or nobody would ever hear of its end: it lives as long as there is a descriptor."""
    one = lab(1)
    one.suspend(1)
    one.handles[1].closed = True
    one.run(one.suspender.tend())
    assert one.handles[1].given_back


def test_close_leaves_everything_as_it_is() -> None:
    one = lab(1)
    one.suspend(1)
    one.suspender.close()
    assert (one.handles[1].user_timeout, one.handles[1].given_back) == (NEVER, True)


def test_one_whose_address_is_not_here_is_left_alone() -> None:
    one = lab(1)
    one.host.local = False
    assert one.suspend(1) == {}
    assert one.suspender.state() == []


def test_numbers_that_could_not_be_had_are_asked_for_again() -> None:
    one = lab(1)
    one.host.silent = {connection(1)}
    one.suspend(1)
    assert one.host.acks == []
    assert one.send(1, SND_UNA - 1) == []
    one.host.silent = set()
    one.run(one.suspender.tend())
    assert one.host.acks == [SHUT]


def test_what_may_get_through_leaves_the_host_and_probes_are_answered_all_the_same() -> None:
    one = lab(1)
    one.suspend(1)
    one.let_out(1)
    assert one.send_out(1, SND_UNA - 1) == (["accept"], [OPEN])  # with the window that it has
    one.set(1, unacked=0)
    assert one.send_out(1, SND_UNA) == (["accept"], [])
    one.let_out(1, on=False)
    assert one.send(1, SND_UNA - 1) == [SHUT]


def test_windows_are_open_while_it_may_get_through() -> None:
    """What a program writes then goes out at once, as without us."""
    one = lab(1, 2)
    one.let_out(2)
    one.suspend(1, 2)
    assert one.host.acks == [SHUT]  # the first one's
    one.set(1, send_window=0)
    one.let_out(1)
    assert one.host.acks == [OPEN]
    one.set(1, send_window=WINDOW << 7)
    one.let_out(1, on=False)
    assert one.host.acks == [SHUT]


def test_what_is_sent_before_the_socket_is_prepared_or_after_it_was_resumed_goes_on_if_it_may() -> None:
    one = lab(1)
    assert one.send(1, SND_UNA, b"data") == []
    one.let_out(1)
    assert one.send_out(1, SND_UNA, b"data") == (["accept"], [])
    one.suspend(1)
    one.handles[1].calm = False
    one.set(1, send_window=0)
    one.resume(1)
    assert one.send_out(1, SND_UNA, b"data") == (["accept"], [])


def test_a_keepalive_is_as_the_socket_would_send_it() -> None:
    one = lab(1, receive_window=300 << 7)
    one.host.options = build_timestamps(5000, 77)
    before = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
    one.suspend(1)
    one.let_out(1)
    time.sleep(0.002)
    (packet,) = one.ask(1)
    assert packet.verdicts == ["accept"]
    assert one.host.acks == []  # it is not the socket's own probe
    segment = parse_tcp(packet.payload)
    assert segment.is_pure_ack
    assert (segment.sender_tuple, segment.seq, segment.ack) == (connection(1), (SND_UNA - 1) & SEQ_MASK, RCV_NXT)
    assert segment.window == 300
    stamps = timestamps_of(segment.options)
    assert stamps is not None
    passed = (time.clock_gettime_ns(time.CLOCK_MONOTONIC) - before) // 1_000_000
    assert 5000 < stamps.value <= 5000 + passed + 1
    assert stamps.echo == 77


def test_no_keepalive_for_what_is_not_held_or_not_known() -> None:
    one = lab(1, 2)
    one.host.silent = {connection(2)}
    one.suspend(2)
    one.let_out(1, 2)
    assert one.ask(1, 2, 3) == []


def test_only_an_acknowledgement_of_what_is_in_flight_is_an_answer() -> None:
    one = lab(1)
    waits = one.host.sockets[connection(1)]
    one.suspend(1)
    one.host.sockets[connection(1)] = changed(waits, unacked=1)._replace(write_queue=10)
    one.let_out(1)
    assert not one.arrive(1)  # nothing was asked
    one.ask(1)
    assert not one.arrive(1, seq=RCV_NXT - 1)  # the peer's own probe
    assert not one.arrive(1, data=b"again")
    assert not one.arrive(1, flags=TcpFlags.ACK | TcpFlags.FIN)
    assert not one.arrive(1, flags=TcpFlags.RST)
    assert not one.arrive(1, ack=SND_UNA - 1)
    assert not one.arrive(1, ack=SND_UNA + 11)
    assert not one.arrive(2)
    assert one.arrive(1, seq=RCV_NXT + 5000, ack=SND_UNA + 10)  # what it has sent was lost, ours was not
    assert not one.arrive(1)  # told once
    one.ask(1)
    assert one.arrive(1)


@pytest.mark.parametrize(
    ("seq", "data", "calls"), [(SND_UNA - 1, b"", True), (SND_UNA, b"data", True), (SND_UNA, b"", False)]
)
def test_what_the_socket_sends_by_itself_may_be_answered_too(seq: int, data: bytes, calls: bool) -> None:
    one = lab(1)
    one.suspend(1)
    one.send(1, seq, data)
    assert not one.arrive(1)  # it stayed here
    one.let_out(1)
    one.send_out(1, seq, data)
    assert one.arrive(1) == calls


def test_an_answer_that_comes_late_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    one = lab(1)
    one.suspend(1)
    one.let_out(1)
    one.ask(1)
    later = time.monotonic() + ANSWER + 1
    monkeypatch.setattr(time, "monotonic", lambda: later)
    assert not one.arrive(1)


def test_what_comes_for_a_connection_that_has_been_resumed_goes_on() -> None:
    one = lab(1)
    one.suspend(1)
    one.let_out(1)
    one.ask(1)
    one.resume(1)
    assert not one.arrive(1)
    packet = Packet(b"\x45nonsense")
    one.suspender.on_arrival(packet)
    assert packet.verdicts == ["accept"]


@contextmanager
def connected() -> Iterator[tuple[socket.socket, socket.socket]]:
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()) as client:
        server, _ = listener.accept()
        with server:
            yield client, server


def test_a_borrowed_socket_outlives_its_program() -> None:
    with connected() as (client, server):
        inode = os.fstat(client.fileno()).st_ino
        (handle,) = borrow([inode]).values()
        handle.user_timeout = 1234
        assert client.getsockopt(socket.IPPROTO_TCP, 18) == handle.user_timeout == 1234
        assert handle.calm
        assert not handle.closed
        client.close()
        server.setblocking(False)
        with pytest.raises(BlockingIOError):
            server.recv(1)
        handle.close()
        server.setblocking(True)
        server.settimeout(5)
        assert server.recv(1) == b""


def test_borrowed_descriptors_are_out_of_the_way_and_not_inherited() -> None:
    with connected() as (client, _):
        before = set(os.listdir("/proc/self/fd"))
        (handle,) = borrow([os.fstat(client.fileno()).st_ino]).values()
        (number,) = {int(name) for name in set(os.listdir("/proc/self/fd")) - before if _is_open(int(name))}
        assert number >= FIRST_DESCRIPTOR
        assert not os.get_inheritable(number)
        handle.close()


def _is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


def test_what_nobody_has_is_left_out() -> None:
    assert borrow([0, 1]) == {}

"""Set stalled connections going again, once there is a path.

TCP waits longer and longer between its attempts: after an outage of 30 s the next one may be 25 s away. What ends the
wait depends on what the socket waits for.

- Segments in flight were lost; the retransmission timer is backed off. RFC 6069 (`tcp_ld_RTO_revert`): an ICMP host
  unreachable that quotes exactly snd_una takes back one step, and retransmits at once when the shortened time-out has
  run out already. One ICMP for each step and one more (a retransmission adds a step) leave no back-off at all.
- Nothing is in flight, because the host itself found no way to send; the window probe timer is backed off. An
  acknowledgement makes TCP try (`tcp_ack_probe`, `tcp_data_snd_check`): repeat the peer's last one, with the numbers
  and the window that the socket already knows.
- The peer waits for our last ACK or window update, which was lost. Only we can help: make the socket send an ACK.

The first two need the socket's sequence numbers. A SYN, which a connection always refuses, makes it send an ACK (RFC
5961 section 4) with snd_nxt and rcv_nxt. That ACK is read in NFQUEUE and let go: it is genuine, and the peer may be
waiting for it. The numbers move together with the counters of tcp_info (`tcp_snd_una_update`, `tcp_rcv_nxt_update`),
so they are asked for once in the life of a connection:

::

    snd_una = send_base + bytes_acked          send_base = snd_nxt - in flight - bytes_acked
    rcv_nxt = receive_base + bytes_received

What a kick cannot hurry is the first time-out, some 200 ms after the segment was sent: RFC 6069 begins with the second.
Nothing that is true makes Linux retransmit earlier: a time-out comes from its timer, a fast retransmission needs an
acknowledgement of something later, and an ICMP "fragmentation needed" is about large segments only. A host that knows
of the outage had better refuse to send (no route, or a drop in the output hook): then nothing is ever in flight.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from itertools import islice
from typing import NamedTuple

from redirectctl.kernel.netfilter.packet_queue import QueuedPacket
from redirectctl.kernel.sockets.bytecode import SocketFilter
from redirectctl.kernel.sockets.diag import CONNECTED, SocketInfo, Sockets, TcpInfo, Timer
from redirectctl.kernel.tcp.inject import Injector
from redirectctl.wire.addr import FourTuple
from redirectctl.wire.ip import (
    SEQ_MASK,
    PacketError,
    TcpSegment,
    build_timestamps,
    parse_tcp,
    timestamps_of,
)

MAX_REMEMBERED = 65_536  # connections whose numbers are kept, oldest forgotten first: some 10 MB
PROBE_TIMEOUT = 0.1  # seconds; the ACK comes from this host, the time goes into reading it
QUIET = 0.005  # seconds in which a connection must have been calm before it is asked for its numbers
CALM = 16_384  # bytes in that time: a program that writes little and often has moments between
ROUNDS = 3  # a socket that its program was just using ignores an ICMP (`sock_owned_by_user`)

_LISTED_SINGLY = 32  # sockets; above, one listing is quicker
_USEC_TS = 64  # TCPI_OPT_USEC_TS
_BATCH = 128  # injected packets before the event loop gets its turn


class Numbers(NamedTuple):
    """What never changes in a connection."""

    send_base: int
    receive_base: int
    opened: bool = False  # by this end
    stamp: Stamp | None = None  # None: it has no timestamps

    def snd_una(self, one: SocketInfo) -> int:
        """The first byte that the peer has not acknowledged."""
        return (self.send_base + (one.info.bytes_acked if one.info else 0)) & SEQ_MASK

    def rcv_nxt(self, one: SocketInfo) -> int:
        """The next byte that we expect."""
        return (self.receive_base + (one.info.bytes_received if one.info else 0)) & SEQ_MASK


class Stamp(NamedTuple):
    """What a connection's timestamps are made of (RFC 7323): its clock is the system's, and a number of its own."""

    offset: int  # what is added; late reading makes it too small, so nothing made of it is ahead of the socket's own
    tick: int  # nanoseconds
    echo: int  # the peer's, as the socket last returned it

    @classmethod
    def of(cls, segment: TcpSegment, info: TcpInfo, read_at: int) -> Stamp | None:
        """Of a segment that the socket sent, and that was read at a time of CLOCK_MONOTONIC, as in `tcp_clock_ts`."""
        try:
            found = timestamps_of(segment.options)
        except PacketError:
            found = None
        if found is None:
            return None
        tick = 1_000 if info.options & _USEC_TS else 1_000_000
        return cls((found.value - read_at // tick) & SEQ_MASK, tick, found.echo)

    def options(self, now: int) -> bytes:
        """For a segment that is sent now."""
        return build_timestamps(now // self.tick + self.offset, self.echo)


Take = Callable[[QueuedPacket, TcpSegment], None]  # decides about an ACK that was caught
Finish = Callable[[list[SocketInfo], list[SocketInfo]], None]  # those that were caught, those that were not


class BackoffReverter:
    """Keeps the sequence numbers it has learnt; lives as long as the daemon."""

    def __init__(self, sockets: Sockets, injector: Injector, probe: Callable[[Iterable[FourTuple]], None]) -> None:
        """``probe`` sends a pure ACK of exactly these sockets to the NFQUEUE of which on_ack is the handler."""
        self._sockets = sockets
        self._injector = injector
        self._probe = probe
        self._numbers: dict[int, Numbers] = {}
        self._learning = asyncio.Lock()
        self._wanted: set[FourTuple] = set()
        self._take: Take = _let_go
        self._answers: dict[FourTuple, TcpSegment] = {}
        self._read_at: dict[FourTuple, int] = {}  # when these came, in nanoseconds
        self._answered = asyncio.Event()

    async def revert_and_follow_up(self, connections: Collection[FourTuple]) -> int:
        """Set going what is stalled, and let all others tell their peers where they are.

        ``connections``: socket tuples.  Returns how many were stalled and no longer wait longer than they would on a
        fresh connection.  Raises KernelError.
        """
        return await self.follow_up(self.revert(connections))

    def revert_early(self, connections: Collection[FourTuple]) -> list[SocketInfo]:
        """Before the peer's segments can come: undo the back-off of sockets that have more to send, at a price.

        If the peer's first segment acknowledges a part of the segment in flight, the socket is no longer one that
        RFC 6069 helps: icsk_retransmits is 0, and the back-off stays for as long as half a minute.  That needs several
        writes in flight, put together for a retransmission (`tcp_retrans_try_collapse`).  So where more data waits
        behind them the back-off goes now, although the retransmission is lost and the next takes 200 ms.
        """
        found = [one for one in self.look(connections) if is_backed_off(one) and one.info and one.info.notsent_bytes]
        for one in found:
            self._push(one)
        return found

    async def follow_up(self, found: Collection[SocketInfo]) -> int:
        """The rest of kick(): all that push() could not do at once, or that did not help."""
        await self._ask(one for one in found if not is_stalled(one))
        stalled = {one.cookie: one for one in found if is_stalled(one)}
        left = dict(stalled)
        for turn in range(ROUNDS):
            if not left:
                break
            if turn:  # they did not react: perhaps the numbers were of an earlier life of the socket
                for cookie in left:
                    self._numbers.pop(cookie, None)
            unknown = [one for one in left.values() if one.cookie not in self._numbers]
            await self._learn(unknown)
            for one in left.values() if turn else unknown:
                self._push(one)
            await asyncio.sleep(0)
            now = {one.cookie: one for one in self.look([one.tuple for one in left.values()])}
            left = {cookie: now[cookie] for cookie, was in left.items() if cookie in now and _unmoved(was, now[cookie])}
        return len(stalled) - len(left)

    def revert(self, connections: Collection[FourTuple]) -> list[SocketInfo]:
        """The first part of kick(), for all whose numbers are known, before anything else can happen to them.

        Returns what was found, as it was before.
        """
        found = self.look(connections)
        for one in found:
            if is_stalled(one):
                self._push(one)
        return found

    async def learn(self, connections: Collection[FourTuple]) -> list[FourTuple]:
        """Get the sequence numbers now, so that a later kick is quicker.

        Works for connections in which nothing happens while they are asked, a millisecond or more; returns the others.
        """
        found = [one for one in self.look(connections) if one.cookie not in self._numbers]
        before = {one.cookie: _carried(one) for one in found}
        await asyncio.sleep(QUIET)
        # Not in a bulk transfer: it never is.
        found = self.look([one.tuple for one in found])
        await self._learn([one for one in found if _carried(one) - before.get(one.cookie, 0) <= CALM])
        return [one.tuple for one in found if one.cookie not in self._numbers]

    def numbers(self, one: SocketInfo) -> Numbers | None:
        """What is known of a connection."""
        return self._numbers.get(one.cookie)

    def known(self, connections: Collection[FourTuple]) -> dict[FourTuple, Numbers]:
        """What is known, by socket tuple."""
        return {one.tuple: numbers for one in self.look(connections) if (numbers := self._numbers.get(one.cookie))}

    def forget(self, cookie: int) -> None:
        """The socket is gone."""
        self._numbers.pop(cookie, None)

    def on_ack(self, packet: QueuedPacket) -> None:
        """Handler of the probe queue."""
        try:
            segment = parse_tcp(packet.payload)
        except PacketError:
            packet.accept()
            return
        connection = segment.sender_tuple
        if not segment.is_pure_ack or connection not in self._wanted:
            packet.accept()
            return
        self._take(packet, segment)
        self._wanted.discard(connection)
        self._answers[connection] = segment
        self._read_at[connection] = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        if not self._wanted:
            self._answered.set()

    async def catch(
        self, connections: Collection[FourTuple], take: Take, finish: Finish | None = None
    ) -> set[FourTuple]:
        """Make sockets send an ACK, and let ``take`` decide about the first that each sends, be it this one or another.

        ``finish`` is called with the sockets whose ACKs were caught, and with the others, as they are afterwards: one
        that was asked less than half a second ago does not answer.  Returns the tuples of the former.

        Raises KernelError.
        """
        return await self._catch(self.look(connections), take, finish)

    def look(self, connections: Collection[FourTuple]) -> list[SocketInfo]:
        """Those that are connected and that we can send to."""
        if len(connections) <= _LISTED_SINGLY:
            found = [one for connection in set(connections) if (one := self._sockets.get(connection))]
        else:
            wanted = set(connections)
            ours = SocketFilter(local_addresses=frozenset(connection.local.host for connection in wanted))
            found = self._sockets.dump(ours, only=wanted)
        here = self._injector.delivered_here({one.tuple.local.host for one in found})
        return [one for one in found if one.state in CONNECTED and one.tuple.local.host in here]

    async def _ask(self, sockets: Iterable[SocketInfo]) -> None:
        """Make sockets send an ACK."""
        todo = iter(sockets)
        while batch := list(islice(todo, _BATCH)):
            for one in batch:
                self._injector.syn(one.tuple, bound=bool(one.ifindex))
            await asyncio.sleep(0)

    async def _learn(self, sockets: list[SocketInfo]) -> None:
        await self._catch(sockets, _let_go, None)

    async def _catch(self, sockets: list[SocketInfo], take: Take, finish: Finish | None) -> set[FourTuple]:
        if not sockets:
            return set()
        async with self._learning:
            before = {one.tuple: one for one in sockets}
            self._answers.clear()
            self._wanted, self._take = set(before), take
            self._answered.clear()
            self._probe(before)
            try:
                with suppress(TimeoutError):  # what has answered is enough
                    await self._ask(sockets)
                    async with asyncio.timeout(PROBE_TIMEOUT):
                        await self._answered.wait()
                self._wanted.clear()
                found = self.look(self._answers)
                for now in found:
                    self._compare(before[now.tuple], now, self._answers[now.tuple])
                if finish is not None:
                    silent = before.keys() - self._answers.keys()
                    finish(found, self.look(silent) if silent else [])
                return set(self._answers)
            finally:
                self._wanted.clear()
                self._take = _let_go
                self._answers.clear()
                self._read_at.clear()
                self._probe(())

    def _compare(self, was: SocketInfo, now: SocketInfo, answer: TcpSegment) -> None:
        """Learn from an ACK if the connection was quiet while it was sent."""
        if now.info and _position(was) == _position(now):
            # A window that has been closed over what is in flight: `tcp_acceptable_seq`.
            beyond = now.in_flight - now.info.send_window
            sent = now.in_flight if beyond < 1 << now.info.receive_scale else now.info.send_window
            numbers = Numbers(
                (answer.seq - sent - now.info.bytes_acked) & SEQ_MASK,
                (answer.ack - now.info.bytes_received) & SEQ_MASK,
                now.opened,
                Stamp.of(answer, now.info, self._read_at[now.tuple]),
            )
            self._remember(now.cookie, numbers)

    def _remember(self, cookie: int, numbers: Numbers) -> None:
        self._numbers[cookie] = numbers
        while len(self._numbers) > MAX_REMEMBERED:
            del self._numbers[next(iter(self._numbers))]

    def _push(self, one: SocketInfo) -> None:
        numbers = self._numbers.get(one.cookie)
        if numbers is None or one.info is None:
            return
        if is_backed_off(one):
            self._injector.unreachable(one.tuple, numbers.snd_una(one), one.info.backoff + 1)
        else:
            window = one.info.send_window >> one.info.send_scale
            self._injector.ack(one.tuple, seq=numbers.rcv_nxt(one), ack=numbers.snd_una(one), window=window)


def _let_go(packet: QueuedPacket, _: TcpSegment) -> None:
    # Genuine, and news to a peer that missed our last one.
    packet.accept()


def is_backed_off(one: SocketInfo) -> bool:
    """Segments in flight, and the retransmission timer doubled at least once.

    Not a socket with IP_RECVERR: its program would see the ICMP as an error (`tcp_v4_err`).
    """
    info = one.info
    return bool(info and info.retransmits and info.backoff and info.unacked) and not one.wants_errors


def is_held_back(one: SocketInfo) -> bool:
    """Something to send that would fit into the peer's window, nothing in flight, the probe timer running."""
    info = one.info
    return bool(info and one.timer == Timer.PROBE and not info.unacked and one.write_queue and info.send_window)


def is_stalled(one: SocketInfo) -> bool:
    """Waits for a timer that was backed off; a kick helps."""
    return is_backed_off(one) or is_held_back(one)


def _position(one: SocketInfo) -> tuple[int, int, int]:
    """Where the connection is; unchanged as long as nothing new was sent, acknowledged or received."""
    info = one.info
    return (one.in_flight, info.bytes_acked, info.bytes_received) if info else (0, 0, 0)


def _carried(one: SocketInfo) -> int:
    """Bytes, both ways."""
    return one.in_flight + one.info.bytes_acked + one.info.bytes_received if one.info else 0


def _unmoved(was: SocketInfo, now: SocketInfo) -> bool:
    """Still stalled as before the push."""
    return is_stalled(now) and _position(was) == _position(now)

"""Keep connections alive while there is no path: hold back what they send, and answer for the peer where TCP counts.

The rules (Rewriter, Flow.suspended) hand everything that a suspended connection sends to NFQUEUE, where it is
thrown away; also while no daemon listens. Where a packet could get through as it is (`let_out`), it goes on instead,
windows are left open, and probes are answered all the same. What the socket does, and what it needs (Linux 6.18):

::

    it has                  its timer       it would give up by                what helps
    segments in flight      retransmit      time since the first repeat        TCP_USER_TIMEOUT = NEVER (borrow.py)
    data, window closed     window probe    probes without answer; time        an ACK for each probe; the same
    nothing to send         keepalive       probes without answer              an ACK for each probe

An ACK of ours is the peer's last one once more, with window 0. It acknowledges nothing, so nothing is ever lost, and
has no timestamp, so that nothing the peer sends later looks old (RFC 7323 section 5). It closes the window: a
connection in which nothing is in flight then keeps everything that its program writes, and sends it at once, unharmed
by any loss, when the window opens. Segments in flight stay so: they are repeated every two minutes (TCP_RTO_MAX), need
no answer, not even a daemon, and backoff.py has what ends their wait.

Sockets that cannot be borrowed: orphans, and where pidfd_getfd is forbidden. If they have segments in flight, an answer
with window 0 makes `tcp_retransmit_timer` repeat them for ever, but only if TCP_USER_TIMEOUT is 0 and a program has the
socket. They get it after STEPS time-outs, because RFC 6069 needs some to take back in the end (`_knock`): with the
window open the next time-out would be death, if the time since the first is over. Orphans live for some 100 s
(`tcp_orphan_retries`).

Whether packets get through again the peer's kernel is asked (`ask`), by a keepalive as TCP would send it (RFC 9293
section 3.8.4): seq = snd_una - 1, no data. The peer throws it away and acknowledges what it has (`tcp_send_dupack`), at
most one each 500 ms (net.ipv4.tcp_invalid_ratelimit). The timestamp that it echoes is no proof: a segment outside the
window leaves it as it was. What is believed is an acknowledgement without data, of what the socket has in flight or
less, soon after something was sent that calls for one. The peer's own probes repeat the byte before it; what it sends
again has data, or a FIN. Something else could look like an answer, a window update for one: then the connection is as
it would be without us, and suspended again when it stalls.

Needs Linux 6.6 or later: before, a window is not closed by an ACK that brings nothing new (`tcp_may_update_window`).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from typing import NamedTuple

from redirectctl.flows.connection import Before
from redirectctl.kernel.errors import KernelError
from redirectctl.kernel.netfilter.packet_queue import QueuedPacket
from redirectctl.kernel.sockets.borrow import NEVER, Borrow, Handle, borrow
from redirectctl.kernel.sockets.diag import SocketInfo, Sockets
from redirectctl.kernel.tcp.backoff import BackoffReverter
from redirectctl.kernel.tcp.inband import Sender
from redirectctl.kernel.tcp.inject import Injector
from redirectctl.wire.addr import FourTuple
from redirectctl.wire.ip import SEQ_MASK, PacketError, TcpFlags, TcpSegment, build_tcp, parse_tcp

STEPS = 2  # time-outs before an answer closes the window of a socket that is not borrowed: 0.6 s at least
ANSWER = 5.0  # seconds after which an acknowledgement is none to what was sent
_HALF = 1 << 31  # of the sequence numbers: what is beyond is behind
TENDED = 256  # suspended connections that one call of tend() looks at


class Held(NamedTuple):
    """A suspended connection, for listings."""

    borrowed: bool  # False: it may not live for ever, see the module
    packets: int  # held back
    answers: int


class _Entry:
    __slots__ = ("answers", "asked", "before", "called", "handle", "lending", "packets")

    def __init__(self, before: Before, handle: Handle | None = None) -> None:
        self.before = before
        self.handle = handle
        self.lending = False  # a handle is being looked for
        self.packets = self.answers = 0
        self.called = float("-inf")  # when something was let out that the peer acknowledges at once
        self.asked: tuple[int, int, bytes] | None = None  # a keepalive of ours, on its way through the queue

    def see(self, one: SocketInfo) -> None:
        """Only the peer opens the window."""
        if one.info and one.info.send_window:
            self.before = self.before._replace(window=one.info.send_window)

    def restore(self) -> None:
        """Give the socket back as it was; what its program has set meanwhile stays."""
        handle, self.handle = self.handle, None
        if handle is not None:
            with suppress(OSError):
                if handle.user_timeout == NEVER:
                    handle.user_timeout = self.before.user_timeout
            handle.close()


class Woken(NamedTuple):
    """What wake() could not do at once."""

    pushed: list[SocketInfo]  # as they were before (BackoffReverter.revert)
    unknown: list[FourTuple]  # whose sequence numbers are not known yet


class Suspender:
    """Lives as long as the daemon; when that ends, what it has changed stays in force.  Methods raise KernelError."""

    def __init__(
        self,
        sockets: Sockets,
        injector: Injector,
        backoff: BackoffReverter,
        sender: Sender,
        borrow: Borrow = borrow,
        *,
        answered: Callable[[FourTuple], None] = lambda _: None,
    ) -> None:
        """``sender``: of packets with socket tuples.  ``answered`` is called when a peer's kernel has answered."""
        self._sockets = sockets
        self._sender = sender
        self._answered = answered
        self._injector = injector
        self._backoff = backoff
        self._borrow = borrow
        self._held: dict[FourTuple, _Entry] = {}
        self._leaving: dict[FourTuple, _Entry] = {}  # resumed; not all has been given back yet
        self._let_out: set[FourTuple] = set()  # what these send may leave the host
        self._unknown: set[FourTuple] = set()  # held ones whose sequence numbers are not known yet
        self._round: list[FourTuple] = []  # held ones that tend() looks at next

    async def prepare(self, connections: Collection[FourTuple]) -> dict[FourTuple, Before]:
        """Find out what there is to store before suspend() changes it: it is needed again after a restart.

        Leaves out sockets that are not connected, and those whose address is not delivered here (Keeper.keep).
        """
        found = self._backoff.look(connections)
        fresh = [one for one in found if one.tuple not in self._held and one.tuple not in self._leaving]
        handles = await self._lend({one.inode for one in fresh})
        for one in fresh:
            handle = handles.get(one.inode)
            user_timeout = handle.user_timeout if handle else 0
            # NEVER is left of an earlier life of ours, of which nothing was stored.
            before = Before(_window(one), 0 if user_timeout == NEVER else user_timeout)
            self._held[one.tuple] = _Entry(before, handle)
        entries = ((one.tuple, self._held.get(one.tuple) or self._leaving.get(one.tuple)) for one in found)
        return {connection: entry.before for connection, entry in entries if entry}

    async def suspend(self, connections: Mapping[FourTuple, Before]) -> None:
        """Keep these alive from now on; the rules that hold back what they send must be in force (Rewriter).

        Again after a restart, with what was stored.
        """
        await self.borrow(self.shut(connections))

    def shut(self, connections: Mapping[FourTuple, Before]) -> list[SocketInfo]:
        """The first part of suspend(), before anything else can happen to them: close their windows."""
        entries = {connection: self._enter(connection, before) for connection, before in connections.items()}
        found = self._backoff.look(entries)
        for one in found:
            entries[one.tuple].see(one)
            if one.tuple not in self._let_out:
                self._close_window(one)
        return found

    async def borrow(self, found: Iterable[SocketInfo]) -> None:
        """The rest of suspend(): what needs the sockets themselves."""
        entries = {one.tuple: entry for one in found if (entry := self._held.get(one.tuple)) is not None}
        lent = {one.inode: entries[one.tuple] for one in found if one.tuple in entries}
        lent = {inode: entry for inode, entry in lent.items() if entry.handle is None}
        handles = await self._lend(set(lent))
        for inode, handle in handles.items():
            lent[inode].handle = handle
        for connection, entry in entries.items():
            if self._held.get(connection) is not entry:  # no longer suspended; what was lent goes back
                if self._leaving.get(connection) is not entry:
                    entry.restore()
            elif entry.handle is not None:
                with suppress(OSError):
                    entry.handle.user_timeout = NEVER
        await self._learn()

    async def resume(self, connections: Collection[FourTuple]) -> int:
        """Set going what has been suspended; the rules must let packets through again.

        Returns how many were stalled otherwise and no longer are (BackoffReverter.revert_and_follow_up).
        """
        return await self.follow_up(self.wake(connections))

    def wake(self, connections: Collection[FourTuple]) -> Woken:
        """The first part of resume(), for all whose numbers are known, before anything else can happen to them."""
        unknown = [connection for connection in connections if connection in self._unknown]
        others = []
        for one in self._backoff.look([connection for connection in connections if connection not in self._unknown]):
            entry = self._held.get(one.tuple)
            if entry is None or not self._wake(one, entry):
                others.append(one.tuple)
        for connection in connections:
            if connection not in self._unknown:
                self._leave(connection)
        return Woken(self._backoff.revert(others), unknown)

    async def follow_up(self, woken: Woken) -> int:
        """The rest of resume()."""
        if woken.unknown:
            await self._backoff.learn(woken.unknown)
            self._unknown.difference_update(woken.unknown)
            late = self.wake(woken.unknown)
            return await self._backoff.follow_up([*woken.pushed, *late.pushed])
        return await self._backoff.follow_up(woken.pushed)

    async def give_back(self, connections: Mapping[FourTuple, Before]) -> None:
        """An earlier life of ours has resumed these, and did not get to giving back what they had."""
        entries = {one: _Entry(before) for one, before in connections.items() if one not in self._held}
        self._leaving |= entries
        found = {one.inode: entries[one.tuple] for one in self._backoff.look(entries)}
        for entry in entries.values():
            entry.lending = True
        try:
            for inode, handle in (await self._lend(set(found))).items():
                found[inode].handle = handle
        finally:
            for entry in entries.values():
                entry.lending = False

    def forget(self, connections: Iterable[FourTuple]) -> None:
        """They have ended: give back what was borrowed of them."""
        for connection in connections:
            self._unknown.discard(connection)
            self._let_out.discard(connection)
            for entries in (self._held, self._leaving):
                entry = entries.pop(connection, None)
                if entry is not None:
                    entry.restore()

    async def tend(self) -> list[FourTuple]:
        """What has to be done later: the daemon calls it every second or so.

        Returns those that have been given back all that they had before they were suspended.
        """
        restored = []
        for connection, entry in list(self._leaving.items()):
            if not entry.lending and self._is_well(connection, entry):
                del self._leaving[connection]
                entry.restore()
                restored.append(connection)
        # Only who has the last descriptor destroys a socket; nobody hears of its end before.
        if not self._round:
            self._round = list(self._held)
        for connection in self._round[:TENDED]:
            held = self._held.get(connection)
            if held is not None and held.handle is not None and held.handle.closed:
                held.restore()
        del self._round[:TENDED]
        await self._learn()
        return restored

    @property
    def busy(self) -> bool:
        """tend() has something to do."""
        return bool(self._held or self._leaving)

    def state(self) -> list[Held]:
        """All that are suspended."""
        return [Held(one.handle is not None, one.packets, one.answers) for one in self._held.values()]

    def close(self) -> None:
        """Give back descriptors, and nothing else: suspended connections stay so."""
        for entry in (*self._held.values(), *self._leaving.values()):
            if entry.handle is not None:
                entry.handle.close()
        self._held.clear()
        self._leaving.clear()

    def let_out(self, connections: Collection[FourTuple], on: bool) -> None:
        """What these send may get through as it is: it leaves the host; or it does not any more.

        Their windows are open meanwhile: what a program writes then must not be later than it would be without us.
        """
        if on:
            self._let_out.update(connections)
        else:
            self._let_out.difference_update(connections)
        for one in self._backoff.look([connection for connection in connections if connection in self._held]):
            entry = self._held[one.tuple]
            if on:
                self._open_window(one, entry)
            else:
                entry.see(one)
                self._close_window(one)

    def ask(self, connections: Iterable[FourTuple]) -> None:
        """Have the peers' kernels show that packets get through; of suspended connections that are let out."""
        now = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        for connection in connections:
            entry, one = self._held.get(connection), self._sockets.get(connection)
            numbers = self._backoff.numbers(one) if one else None
            if entry is None or one is None or one.info is None or numbers is None:
                continue
            seq, ack = (numbers.snd_una(one) - 1) & SEQ_MASK, numbers.rcv_nxt(one)
            window = min(one.info.receive_window >> one.info.receive_scale, 0xFFFF)
            options = numbers.stamp.options(now) if numbers.stamp else b""
            packet = build_tcp(*connection, seq=seq, ack=ack, flags=TcpFlags.ACK, window=window, options=options)
            entry.asked, entry.called = (seq, ack, options), time.monotonic()
            with suppress(KernelError):  # the way has gone this moment
                self._sender.send(connection, packet)

    def on_arrival(self, packet: QueuedPacket) -> None:
        """Handler of Queue.ANSWER: what comes from the network for suspended connections."""
        try:
            segment = parse_tcp(packet.payload)
        except PacketError:
            packet.accept()
            return
        connection = segment.sender_tuple.mirrored
        answer = self._is_answer(connection, segment)  # as the socket is before it has got it
        packet.accept()
        if answer:
            self._held[connection].called = float("-inf")
            self._answered(connection)

    def _is_answer(self, connection: FourTuple, segment: TcpSegment) -> bool:
        entry = self._held.get(connection)
        if entry is None or time.monotonic() - entry.called > ANSWER or not segment.is_pure_ack:
            return False
        one = self._sockets.get(connection)
        numbers = self._backoff.numbers(one) if one else None
        if one is None or numbers is None:
            return False
        acknowledged = (segment.ack - numbers.snd_una(one)) & SEQ_MASK
        return acknowledged <= one.in_flight and (segment.seq - numbers.rcv_nxt(one)) & SEQ_MASK < _HALF

    def on_packet(self, packet: QueuedPacket) -> None:
        """Handler of Queue.WAIT: what suspended connections send."""
        try:
            segment = parse_tcp(packet.payload)
        except PacketError:
            packet.drop()
            return
        connection = segment.sender_tuple
        entry = self._held.get(connection)
        lets_out = connection in self._let_out
        if lets_out or (entry is None and connection in self._leaving):
            packet.accept()
        else:
            packet.drop()
        if entry is None:
            return
        if entry.asked == (segment.seq, segment.ack, segment.options):
            entry.asked = None
            return
        entry.packets += 1
        one = self._sockets.get(connection)
        numbers = self._backoff.numbers(one) if one else None
        if one is None or one.info is None or numbers is None:
            return
        entry.see(one)
        snd_una = numbers.snd_una(one)
        if lets_out and (segment.seq == (snd_una - 1) & SEQ_MASK or not segment.is_pure_ack):
            entry.called = time.monotonic()
        if not one.info.unacked:
            # Keepalive and window probes repeat the byte before (`tcp_xmit_probe_skb`); other ACKs want no answer.
            if segment.seq == (snd_una - 1) & SEQ_MASK:
                self._answer(one, entry, segment.ack, snd_una, entry.before.window if lets_out else 0)
        elif segment.data_length or segment.flags & TcpFlags.FIN:
            if not one.info.send_window:
                # Borrowed, it was sent while we closed the window, and is better off with its time-outs counted.
                self._answer(one, entry, segment.ack, snd_una, entry.before.window if entry.handle else 0)
            elif entry.handle is None and one.info.retransmits >= STEPS:
                self._answer(one, entry, segment.ack, snd_una, 0)

    def _leave(self, connection: FourTuple) -> None:
        self._let_out.discard(connection)
        entry = self._held.pop(connection, None)
        if entry is not None:
            self._leaving[connection] = entry

    async def _lend(self, inodes: set[int]) -> dict[int, Handle]:
        return await asyncio.to_thread(self._borrow, inodes) if inodes else {}

    def _enter(self, connection: FourTuple, before: Before) -> _Entry:
        entry = self._leaving.pop(connection, None) or self._held.get(connection) or _Entry(before)
        self._held[connection] = entry
        return entry

    def _answer(self, one: SocketInfo, entry: _Entry, seq: int, ack: int, window: int) -> None:
        entry.answers += 1
        self._send_window(one, seq, ack, window)

    def _send_window(self, one: SocketInfo, seq: int, ack: int, window: int) -> None:
        scale = one.info.send_scale if one.info else 0
        self._injector.ack(one.tuple, seq=seq, ack=ack, window=min(window >> scale, 0xFFFF))

    def _close_window(self, one: SocketInfo) -> None:
        """Where nothing is in flight: what the program writes from now on waits in the socket, and is not lost."""
        numbers = self._backoff.numbers(one)
        if numbers is None:
            self._unknown.add(one.tuple)
        elif one.info and not one.info.unacked:
            self._send_window(one, numbers.rcv_nxt(one), numbers.snd_una(one), 0)

    async def _learn(self) -> None:
        """Once more for those that were too busy to be asked for their numbers."""
        if not self._unknown:
            return
        await self._backoff.learn(list(self._unknown))
        for one in self._backoff.look(list(self._unknown)):
            if one.tuple in self._held:
                self._unknown.discard(one.tuple)
                if one.tuple not in self._let_out:
                    self._close_window(one)

    def _wake(self, one: SocketInfo, entry: _Entry) -> bool:
        """Open the window.  True: TCP goes on by itself."""
        info, numbers = one.info, self._backoff.numbers(one)
        if info is None or numbers is None:
            return False
        if info.unacked and entry.handle is None and info.retransmits and info.backoff:
            # Again, in case that something of the peer's has opened it meanwhile.
            self._send_window(one, numbers.rcv_nxt(one), numbers.snd_una(one), 0)
            self._knock(one, numbers.snd_una(one))
            return True
        return self._open_window(one, entry) and one.write_queue > 0 and not info.unacked

    def _open_window(self, one: SocketInfo, entry: _Entry) -> bool:
        """As it was before we closed it.  True if it was closed."""
        info, numbers = one.info, self._backoff.numbers(one)
        if info is None or numbers is None or info.send_window or not entry.before.window:
            return False
        self._send_window(one, numbers.rcv_nxt(one), numbers.snd_una(one), entry.before.window)
        return True

    def _knock(self, one: SocketInfo, snd_una: int) -> None:
        """Have a segment repeated with the window closed, which the peer's acknowledgement opens: see the module.

        Takes back one time-out (backoff.py) and more only where that is not enough: the next outage needs some too.
        """
        for _ in range(one.info.backoff if one.info else 0):
            self._injector.unreachable(one.tuple, snd_una, 1)
            now = self._sockets.get(one.tuple)
            if not now or not now.info or not one.info or now.info.total_retransmits != one.info.total_retransmits:
                return

    def _is_well(self, connection: FourTuple, entry: _Entry) -> bool:
        """Whether the timers that user_timeout is about have begun anew."""
        if entry.handle is None or entry.handle.closed:
            return True
        one = self._sockets.get(connection)
        if one is None or one.info is None:
            return True
        if not one.write_queue:
            # No timer runs.  One that only receives need not be calm for hours: a dropped ACK made it reduce its window
            # (`tcp_enter_cwr`), and only an acknowledgement of data ends that.  Its program may want to close it.
            return True
        # The clock of window probes starts anew with the first window that is large enough (`tcp_ack_probe`).
        return entry.handle.calm and one.info.send_window > 0


def _window(one: SocketInfo) -> int:
    return one.info.send_window if one.info else 0

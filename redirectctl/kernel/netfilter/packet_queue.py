"""Packets that wait for a decision: one NFQUEUE number on the event loop.

The handler gets each packet and must see to it that ``accept`` or ``drop`` is called, now or later. Until then the
kernel holds the packet. Nothing grows without bound: the kernel queues at most ``max_queued`` packets that we have not
read, and we hold at most ``max_held`` undecided; what comes on top is dropped (it is TCP: it comes again).
"""

from __future__ import annotations

import asyncio
import errno
import os
import select
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol, cast

from redirectctl.kernel.errors import KernelError

if TYPE_CHECKING:
    from netfilterqueue import Packet

MAX_QUEUED = 4096  # packets in the kernel: one probe ACK of each connection of a large host
MAX_HELD = 1024  # undecided packets, at most 4 kB of each
_BATCH = 256  # packets before the event loop gets its turn


class QueuedPacket(Protocol):
    """A packet that waits.  The second decision about it is ignored."""

    @property
    def payload(self) -> bytes:
        """From the IP header on, cut after about 4,000 bytes."""

    @property
    def mark(self) -> int:
        """The packet mark."""

    def accept(self, instead: bytes | None = None) -> None:
        """Let it go on; ``instead``: this packet in its place, with complete checksums."""

    def drop(self) -> None:
        """Throw it away."""


Handler = Callable[[QueuedPacket], None]


class _Waiting:
    """The real QueuedPacket."""

    __slots__ = ("_held", "_packet", "mark", "payload")

    def __init__(self, packet: Packet, held: set[_Waiting]) -> None:
        self.payload: bytes = packet.get_payload()
        self.mark: int = packet.get_mark()
        self._packet: Packet | None = packet
        self._held = held
        held.add(self)

    def accept(self, instead: bytes | None = None) -> None:
        if packet := self._decided():
            if instead is not None:
                packet.set_payload(instead)
            packet.accept()

    def drop(self) -> None:
        if packet := self._decided():
            packet.drop()

    def _decided(self) -> Packet | None:
        packet, self._packet = self._packet, None
        self._held.discard(self)
        return packet


class _Turn:
    """What NetfilterQueue.run_socket reads from: says "nothing more" after a batch, so that the loop is not starved."""

    def __init__(self, reader: socket.socket, on_overrun: Callable[[], None]) -> None:
        self._reader = reader
        self._on_overrun = on_overrun
        self._left = _BATCH

    def recv(self, size: int) -> bytes:
        if self._left <= 0:
            raise BlockingIOError(errno.EAGAIN, "next turn")
        self._left -= 1
        try:
            return self._reader.recv(size, socket.MSG_DONTWAIT)
        except OSError as error:
            if error.errno == errno.ENOBUFS:
                self._on_overrun()
            raise


class PacketQueue:
    """NFQUEUE ``number`` of the current network namespace, for IPv4 and IPv6."""

    def __init__(
        self,
        number: int,
        handler: Handler,
        *,
        on_error: Callable[[Exception], None],
        max_held: int = MAX_HELD,
        max_queued: int = MAX_QUEUED,
    ) -> None:
        """Bind the queue.  ``on_error`` is told what a handler raised; its packet is dropped and the queue goes on.

        Raises KernelError, for example when another process has the queue.
        """
        self._handler = handler
        self._on_error = on_error
        self._max_held = max_held
        self._held: set[_Waiting] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self.overruns = 0  # times that the kernel had to throw packets away because we read too slowly
        self.refused = 0  # packets dropped because too many were undecided
        what = f"binding NFQUEUE {number}"
        try:
            # Here, not above: who only wants the types need not have the library.
            from netfilterqueue import COPY_PACKET, NetfilterQueue

            self._queue = NetfilterQueue()
            self._queue.bind(number, self._arrived, max_queued, COPY_PACKET)
        except ImportError as error:
            raise KernelError(what, str(error), "install libnetfilter-queue1 and NetfilterQueue") from error
        except OSError as error:
            why = str(error) or "refused"
            raise KernelError(what, why, "is another redirectd running here, is nfnetlink_queue loaded?") from error
        self._reader = socket.socket(fileno=os.dup(self._queue.get_fd()))

    @property
    def held(self) -> int:
        """Packets that wait for a decision."""
        return len(self._held)

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin to hand packets over from ``loop``."""
        self._loop = loop
        loop.add_reader(self._reader.fileno(), self.read)

    def read(self) -> None:
        """Hand over what has arrived, a batch at most; never blocks."""
        self._queue.run_socket(cast(socket.socket, _Turn(self._reader, self._overrun)))

    def drain(self) -> None:
        """Hand over all that has arrived; never blocks."""
        waiting = select.poll()
        waiting.register(self._reader, select.POLLIN)
        for _ in range(MAX_QUEUED // _BATCH):
            if not waiting.poll(0):
                return
            self.read()

    def close(self) -> None:
        """Unbind.  The kernel drops what is undecided, and treats later packets as the rule says (bypass or drop)."""
        if self._loop is not None:
            self._loop.remove_reader(self._reader.fileno())
            self._loop = None
        for packet in list(self._held):
            packet.drop()
        self._queue.unbind()
        self._reader.close()

    def _overrun(self) -> None:
        self.overruns += 1

    def _arrived(self, packet: Packet) -> None:
        if len(self._held) >= self._max_held:
            self.refused += 1
            packet.drop()
            return
        waiting = _Waiting(packet, self._held)
        try:
            self._handler(waiting)
        except Exception as error:
            waiting.drop()
            self._on_error(error)

"""The tunnel: what the kernel routes to `redirect0` travels to the peer in UDP datagrams, and theirs come out of it.

    socket -> nftables, MARK_TUNNEL -> redirect0 -> cut -> UDP between control ports -> join -> redirect0 -> socket

A thread of its own does it, for the event loop may be busy for 100 ms at a time.  Calls take effect without locks:
only the thread touches packets, and the calls replace single references that it reads once a packet.

Nothing of a datagram says where its segment goes: addresses and ports are those of the flow, and the flow is known by
a random number, the counter's place and, with integrity, a tag.
"""

from __future__ import annotations

import errno
import logging
import os
import select
import socket
import struct
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Container, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Final, NamedTuple, TypeAlias

from redirectctl.flows.commands import Carried
from redirectctl.kernel.constants import TUN_DEVICE
from redirectctl.kernel.datagrams import (
    IP_MTU,
    IPV6_MTU,
    NO_SEGMENTATION,
    PKTINFO_SPACE,
    UDP_GRO,
    UDP_SEGMENT,
    Ancillary,
    arrived_at,
    sent_from,
    socket_for,
)
from redirectctl.kernel.tunnel.device import GSO_NONE, READ_SIZE, VNET_HEADER, open_tun
from redirectctl.kernel.tunnel.plpmtud import SAFE_MTU, SUSPICION, Path
from redirectctl.kernel.tunnel.relay import Relays
from redirectctl.kernel.tunnel.reports import REPORT_SECONDS, Report, Reporter, Sight
from redirectctl.kernel.tunnel.reuseport import share_port
from redirectctl.kernel.tunnel.segments import LARGEST_SEND, MOST_AT_ONCE, Buffer, Inbound, Outbound, continues, ending
from redirectctl.wire.addr import FourTuple, IPAddress, SockAddr
from redirectctl.wire.ip import Protocol
from redirectctl.wire.tunnel import HEAD, PROBE, VERSION, Probe, Refused, TunnelError, Type, decode, encode

__all__ = ["Carrier", "Report", "Sight", "Traffic", "share_port"]

_log = logging.getLogger(__name__)

HOLD_FLOW: Final = 1 << 20  # bytes that wait for a remote address: some ten full super-segments
HOLD_ALL: Final = 16 << 20
HOLD_TIME: Final = 0.3  # seconds: more than flows.constants.READY_TIME, also when the event loop is busy
LARGE: Final = 1 << 15  # bytes of a packet after which more of the same is to be expected
READ_AT_ONCE: Final = 4 << 16

_ANCILLARY = PKTINFO_SPACE + socket.CMSG_SPACE(4)
_RECEIVE_SIZE = 1 << 17  # more than the 64 datagrams and 64 KiB that UDP_GRO puts together
_BATCH = 16  # reads before other sources get their turn
_SWITCH_SECONDS = 0.0005  # see Carrier.__init__
_MSG_TRUNC = int(socket.MSG_TRUNC)  # an IntFlag takes a microsecond
_TCP, _TUNNEL, _PROBE = int(Protocol.TCP), int(Type.TUNNEL), int(Type.PROBE)
_MOST_PROBES = 64  # unanswered ones that a flow remembers

_DATA_OFFSET = struct.Struct("!I4xB")  # sequence number, data offset; from byte 4 of a TCP header
_FIN = 0x01
_HALF = 1 << 31  # sequence numbers further ahead than this are behind (RFC 9293, section 3.4)
_MASK = (1 << 32) - 1


@dataclass(slots=True)
class Traffic:
    """What the tunnel has carried for a connection."""

    datagrams_in: int = 0
    bytes_in: int = 0  # of datagrams, headers of IP and UDP not counted
    datagrams_out: int = 0
    bytes_out: int = 0
    last_received: float | None = None  # time.monotonic() of the last datagram that was not refused
    retransmissions: int = 0
    unsent: int = 0  # datagrams
    held: int = 0  # bytes that wait
    overflowed: int = 0  # packets that were held and had to go
    outdated: int = 0  # packets that were held for too long
    refused: Counter[Refused] = field(default_factory=Counter)


class _Route:
    """How datagrams get to a peer."""

    __slots__ = ("_segmented", "address", "path", "plain", "sock")

    def __init__(self, sock: socket.socket, local: IPAddress | None, remote: SockAddr, path: Path) -> None:
        self.sock = sock
        self.address = (str(remote.host), remote.port)
        self.path = path
        self.plain: Ancillary = [] if local is None else [sent_from(local)]
        self._segmented: dict[int, Ancillary] = {}

    def segmented(self, size: int) -> Ancillary:
        """To have the kernel cut at this size."""
        found = self._segmented.get(size)
        if found is None:
            if len(self._segmented) > 256:
                self._segmented.clear()
            found = self._segmented[size] = [*self.plain, (socket.SOL_UDP, UDP_SEGMENT, struct.pack("=H", size))]
        return found


Routes: TypeAlias = dict[tuple[int, int, int], _Route | None]  # by identity of the addresses, and port number


class _Held(NamedTuple):
    """A packet that waits for a remote address."""

    since: float
    packet: bytes
    cwr_once: bool


class _Flow:
    """A connection that is carried."""

    __slots__ = (
        "carried",
        "held",
        "high",
        "inbound",
        "outbound",
        "probes",
        "proof",
        "route",
        "suspicion",
        "traffic",
    )

    def __init__(self, carried: Carried, outbound: Outbound, inbound: Inbound, route: _Route | None) -> None:
        self.carried = carried
        self.outbound = outbound
        self.inbound = inbound
        self.route = route
        self.traffic = Traffic()
        self.held: deque[_Held] = deque()
        self.probes: dict[int, int] = {}  # counter: size
        self.high: int | None = None  # the sequence number after the highest that was sent
        self.suspicion = 0  # retransmissions since large segments have been seen to arrive
        self.proof: int | None = None  # acknowledged beyond this, they have


class Carrier:
    """Carries connections.  A call takes effect for the packets that come after it."""

    def __init__(
        self,
        sockets: Sequence[socket.socket],
        on_report: Callable[[Report], None],
        device: str = TUN_DEVICE,
    ) -> None:
        """``sockets``: from sharing.share_port; closed with the carrier.

        ``on_report`` is called in the carrier's thread.  The device is that of the caller's network namespace.
        Raises KernelError.
        """
        self._sockets = {0: list(sockets)}  # by the number of their port; 0: the control port
        self._changes: deque[Callable[[], None]] = deque()  # of what is listened to, for the thread
        self._device = device
        self._tun = open_tun(device)
        self._attached = True
        self._fresh: int | None = None  # a descriptor that takes the place of _tun
        self._flows: dict[bytes, _Flow] = {}  # by the addresses and ports of what the socket sends
        self._by_number: dict[int, _Flow] = {}  # by the flow number in datagrams to us
        self._paths: dict[tuple[IPAddress | None, SockAddr], Path] = {}
        self._holders: set[_Flow] = set()  # flows with packets that wait
        self._holding = 0  # bytes of all of them
        self._reporter = Reporter(on_report)
        self.relays = Relays(self._sockets[0])  # of other hosts, if this one is a rendezvous
        self._read_buffer = bytearray(READ_AT_ONCE + READ_SIZE)
        self._header_buffer = bytearray(READ_SIZE)
        self._receive_buffer = bytearray(_RECEIVE_SIZE)
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._poll = select.epoll()
        self._handlers: dict[int, Callable[[], bool]] = {self._tun: self._from_tun, self._wake: self._woken}
        for sock in self._sockets[0]:
            self._handlers[sock.fileno()] = partial(self._from_udp, sock)
        for fd in self._handlers:
            self._poll.register(fd, select.EPOLLIN)
        self._closing = False
        # After each system call the thread waits for the interpreter: by default up to 5 ms if another one computes.
        # With one that always does, a connection got 0.28 Gbit/s; 0.71 so, and 0.90 without.
        sys.setswitchinterval(min(sys.getswitchinterval(), _SWITCH_SECONDS))
        self._thread = threading.Thread(target=self._run, name="carrier", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether the thread that carries is there; when closed, nobody misses it."""
        return self._closing or self._thread.is_alive()

    @property
    def attached(self) -> bool:
        """Whether the device that packets come from is still there."""
        return self._attached

    def reattach(self) -> None:
        """Somebody has deleted the device, and there is another one now.  Raises KernelError."""
        self._fresh = open_tun(self._device)
        self._attached = True
        os.eventfd_write(self._wake, 1)

    def close(self) -> None:
        """End the thread; the device stays, and packets to it are lost."""
        if self._closing:
            return
        self._closing = True
        os.eventfd_write(self._wake, 1)
        self._thread.join()
        while self._changes:
            self._changes.popleft()()
        self._poll.close()
        os.close(self._wake)
        os.close(self._tun)
        if self._fresh is not None:
            os.close(self._fresh)
        for sock in [sock for of_port in self._sockets.values() for sock in of_port]:
            sock.close()

    def listen(self, ports: Mapping[int, Sequence[socket.socket]], used: Container[int]) -> None:
        """Besides the control port there are these ports now; of those before, they that are not used are closed."""
        for number in [n for n in self._sockets if n and n not in used]:
            self._changes.append(partial(self._stop, self._sockets.pop(number)))
        for number, sockets in ports.items():
            self._sockets[number] = list(sockets)
            self._changes.append(partial(self._listen, self._sockets[number]))
        os.eventfd_write(self._wake, 1)

    def carry(self, carried: Carried, routes: Routes | None = None) -> None:
        """Carry a connection from now on, or in another way than before.

        Counters and the replay window go on as long as the offers stay the same.  ``routes``: what was found out for
        others that are carried in the same moment.
        """
        key = _key_of(carried.socket)
        flow = self._flows.get(key)
        alike = id(carried.local), id(carried.remote), carried.port
        if routes is None or alike not in routes:
            routes = {} if routes is None else routes
            routes[alike] = self._route(carried.local, carried.remote, carried.port)
        route = routes[alike]
        before = flow.carried if flow is not None else None
        same = before is not None and before.integrity == carried.integrity
        if flow is not None and same and before is not None and before.sending == carried.sending:
            outbound = flow.outbound
        else:
            outbound = Outbound(carried.sending, carried.first, carried.integrity)
        if flow is not None and same and before is not None and before.receiving == carried.receiving:
            inbound = flow.inbound
        else:
            inbound = Inbound(carried.receiving, carried.integrity, carried.socket)
        if flow is None:
            flow = _Flow(carried, outbound, inbound, route)
        else:
            if (flow.carried.local, flow.carried.remote) != (carried.local, carried.remote):
                flow.probes = {}
            if flow.outbound is not outbound:  # it may be another connection with the same addresses and ports
                flow.high, flow.proof, flow.suspicion = None, None, 0
            flow.carried, flow.outbound, flow.inbound, flow.route = carried, outbound, inbound, route
        self._flows[key] = flow
        self._by_number[carried.receiving.flow] = flow
        if before is not None and before.receiving.flow != carried.receiving.flow:
            self._by_number.pop(before.receiving.flow, None)
        if before is not None and before.remote is None and route is not None:
            os.eventfd_write(self._wake, 1)

    def uncarry(self, socket: FourTuple) -> None:
        """Forget a connection; one that is not known is no error."""
        flow = self._flows.pop(_key_of(socket), None)
        if flow is not None:
            self._by_number.pop(flow.carried.receiving.flow, None)
            os.eventfd_write(self._wake, 1)

    def counters(self, socket: FourTuple) -> Traffic | None:
        """What has been carried for a connection; None if it is not known."""
        flow = self._flows.get(_key_of(socket))
        return replace(flow.traffic, refused=Counter(flow.traffic.refused)) if flow else None

    def mtu(self, local: IPAddress | None, remote: SockAddr) -> int | None:
        """The largest UDP payload that is used on a path; None if no connection has it."""
        path = self._paths.get((local, remote))
        return path.size if path else None

    def _route(self, local: IPAddress | None, remote: SockAddr | None, port: int) -> _Route | None:
        if remote is None:
            return None
        sock = socket_for(remote.host, local, self._sockets.get(port, self._sockets[0]))
        if sock is None:
            _log.warning("no socket from which to send to %s: its connections wait", remote)
            return None
        key = local, remote
        path = self._paths.get(key)
        if path is None:
            if len(self._paths) > 2 * len(self._flows) + 16:  # peers may move as often as they like
                used = {(each.carried.local, each.carried.remote) for each in list(self._flows.values())}
                self._paths = {key: path for key, path in self._paths.items() if key in used}
            path = self._paths[key] = Path(remote.host.version, _interface_mtu(local, remote))
        return _Route(sock, local, remote, path)

    # From here on: in the thread.

    def _run(self) -> None:
        # Unlike the rest of the daemon it may have much to do: for other programs, and not before them.
        if os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) < 0:
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 0)
        while not self._closing:
            timeout = REPORT_SECONDS if self._reporter.pending else -1
            for fd, _ in self._poll.poll(timeout):
                handler = self._handlers.get(fd)
                if handler is None:  # what was handled before it has closed it
                    continue
                try:
                    for _ in range(_BATCH):
                        if not handler():
                            break
                except Exception:  # of one packet; the others must not suffer
                    _log.exception("carrier")
            self._reporter.flush(time.monotonic())

    def _woken(self) -> bool:
        with suppress(BlockingIOError):
            os.eventfd_read(self._wake)
        fresh, self._fresh = self._fresh, None
        if fresh is not None:
            self._replace_tun(fresh)
        while self._changes:
            self._changes.popleft()()
        for flow in list(self._holders):
            if self._flows.get(_key_of(flow.carried.socket)) is not flow:  # it has been uncarried
                flow.held.clear()
                self._holding -= flow.traffic.held
                self._holders.discard(flow)
            elif (route := flow.route) is not None:
                self._release(flow, route)
        return False

    def _listen(self, sockets: list[socket.socket]) -> None:
        for sock in sockets:
            self._handlers[sock.fileno()] = partial(self._from_udp, sock)
            self._poll.register(sock.fileno(), select.EPOLLIN)

    def _stop(self, sockets: list[socket.socket]) -> None:
        for sock in sockets:
            if self._handlers.pop(sock.fileno(), None) is not None:
                self._poll.unregister(sock.fileno())
            sock.close()

    def _replace_tun(self, fresh: int) -> None:
        with suppress(OSError):  # it went when the device did
            self._poll.unregister(self._tun)
        del self._handlers[self._tun]
        os.close(self._tun)
        self._tun = fresh
        self._handlers[fresh] = self._from_tun
        self._poll.register(fresh, select.EPOLLIN)

    def _from_tun(self) -> bool:
        """What can be read and sent together; False if there is nothing more.

        A packet of 64 KiB is a little more than one send takes, and a second send of what is left costs both ends as
        much as the first.  So packets that continue each other are read behind one another and cut as one.  The next
        packet's header must not end up between the data: it goes into a buffer of its own.
        """
        length = self._read([self._read_buffer])
        while length:
            whole = memoryview(self._read_buffer)
            packet = whole[VNET_HEADER.size : length]
            found = _locate(packet)
            if found is None or (flow := self._flows.get(found.key)) is None:
                return True
            cwr_once = whole[1] != GSO_NONE
            following = 0
            if len(packet) >= LARGE:
                headers = memoryview(self._header_buffer)[: VNET_HEADER.size + found.data]
                while length < READ_AT_ONCE:
                    following = self._read([headers, whole[length:]])
                    if following <= len(headers):
                        break
                    header = headers[VNET_HEADER.size :]
                    other = _locate(header)
                    if other is None or other != found or not continues(packet, found.tcp, header):
                        break
                    packet[found.tcp + 13] |= ending(header, found.tcp)
                    length += following - len(headers)
                    packet = whole[VNET_HEADER.size : length]
                    following = 0
            self._go(flow, packet, found, cwr_once)
            if following:  # another packet has been read behind this one: to the front with it
                behind = max(0, following - len(headers))
                whole[len(headers) : len(headers) + behind] = bytes(whole[length : length + behind])
                whole[: len(headers)] = headers
            elif len(packet) >= LARGE and length < READ_AT_ONCE:
                return False
            length = following
        return bool(length)

    def _read(self, buffers: list[bytearray | memoryview]) -> int:
        """Bytes of one packet with its virtio header; 0 if there is none."""
        try:
            return os.readv(self._tun, buffers)
        except BlockingIOError:
            return 0
        except OSError as error:
            if error.errno in (errno.EBADFD, errno.ENODEV, errno.EIO):
                self._poll.unregister(self._tun)
                self._attached = False
                self._reporter.note(Sight.DEVICE_GONE, None, None)
            return 0

    def _go(self, flow: _Flow, packet: memoryview, found: _Found, cwr_once: bool) -> None:
        route = flow.route
        if route is None:
            self._hold(flow, packet, cwr_once)
            return
        if flow.held:
            self._release(flow, route)
        self._send(flow, route, packet, found, cwr_once)

    def _hold(self, flow: _Flow, packet: memoryview, cwr_once: bool) -> None:
        self._holders.add(flow)
        self._drop_outdated(flow)
        flow.held.append(_Held(time.monotonic(), bytes(packet), cwr_once))
        flow.traffic.held += len(packet)
        self._holding += len(packet)
        while flow.traffic.held > HOLD_FLOW or (self._holding > HOLD_ALL and flow.held):
            self._take_held(flow)
            flow.traffic.overflowed += 1

    def _release(self, flow: _Flow, route: _Route) -> None:
        self._drop_outdated(flow)
        while flow.held:
            held = self._take_held(flow)
            found = _locate(memoryview(held.packet))
            if found is not None:
                self._send(flow, route, memoryview(held.packet), found, held.cwr_once)
        self._holders.discard(flow)

    def _take_held(self, flow: _Flow) -> _Held:
        held = flow.held.popleft()
        flow.traffic.held -= len(held.packet)
        self._holding -= len(held.packet)
        return held

    def _drop_outdated(self, flow: _Flow) -> None:
        """What is sent late is a lie: its timestamp comes back, and TCP takes the time since for the round trip.

        TCP has sent it again meanwhile, or does when it is kicked: this is more than its least time-out.
        """
        oldest_wanted = time.monotonic() - HOLD_TIME
        while flow.held and flow.held[0].since < oldest_wanted:
            self._take_held(flow)
            flow.traffic.outdated += 1

    def _send(self, flow: _Flow, route: _Route, packet: memoryview, found: _Found, cwr_once: bool) -> None:
        """A packet of the flow's socket goes to the peer."""
        tcp, traffic = found.tcp, found.traffic
        path = route.path
        again = self._note_progress(flow, path, packet, tcp)
        while True:
            # What was lost once must get through, whatever the path has become.
            room = path.safe if again else path.size
            buffers, each, size = flow.outbound.cut(packet, tcp, traffic, room, cwr_once=cwr_once)
            count = len(buffers) // each
            try:
                sent = self._transmit(route, buffers, each, size)
            except OSError as error:
                if error.errno == errno.EMSGSIZE and path.too_big(size):
                    continue
                sent = 0
            break
        counted = flow.traffic
        counted.datagrams_out += sent
        counted.bytes_out += sent * size
        if sent < count:
            counted.unsent += count - sent
            self._reporter.note(Sight.UNSENT, flow.carried.socket, None)
        now = time.monotonic()
        if path.due(now):
            self._probe(flow, route, now)

    def _note_progress(self, flow: _Flow, path: Path, packet: memoryview, tcp: int) -> bool:
        """Whether a packet is a retransmission; several of them make us doubt the size of datagrams."""
        seq, offset = _DATA_OFFSET.unpack_from(packet, tcp + 4)
        length = len(packet) - tcp - (offset >> 4) * 4 + (packet[tcp + 13] & _FIN)
        if not length:
            return False
        high, end = flow.high, (seq + length) & _MASK
        if high is None or not (seq - high) & _MASK & _HALF:
            flow.high = end
            if length > path.safe:
                if flow.proof is None:
                    flow.proof = end
                elif not (flow.inbound.acked - flow.proof) & _MASK & _HALF:
                    flow.suspicion, flow.proof = 0, end
            return False
        if not (end - high) & _MASK & _HALF:
            flow.high = end
        flow.traffic.retransmissions += 1
        flow.proof = None
        flow.suspicion += 1
        if flow.suspicion >= SUSPICION:
            flow.suspicion = 0
            path.suspect(time.monotonic())
        self._reporter.note(Sight.RETRANSMISSION, flow.carried.socket, None)
        return True

    def _transmit(self, route: _Route, buffers: list[Buffer], each: int, size: int) -> int:
        """Send datagrams; returns how many the kernel took.  Raises OSError EMSGSIZE, when it took none."""
        step = min(MOST_AT_ONCE, LARGEST_SEND // size) * each
        for at in range(0, len(buffers), step):
            some = buffers[at : at + step]
            try:
                ancillary = route.segmented(size) if len(some) > each else route.plain
                route.sock.sendmsg(some, ancillary, 0, route.address)
            except OSError as error:
                if error.errno == errno.EMSGSIZE and at == 0:
                    raise
                if error.errno not in NO_SEGMENTATION or len(some) == each:
                    return at // each
                taken = self._one_by_one(route, some, each, at == 0)
                if taken * each < len(some):
                    return at // each + taken
        return len(buffers) // each

    def _one_by_one(self, route: _Route, buffers: list[Buffer], each: int, first: bool) -> int:
        for at in range(0, len(buffers), each):
            try:
                route.sock.sendmsg(buffers[at : at + each], route.plain, 0, route.address)
            except OSError as error:
                if error.errno == errno.EMSGSIZE and first and at == 0:
                    raise
                return at // each
        return len(buffers) // each

    def _probe(self, flow: _Flow, route: _Route, now: float) -> None:
        outbound, tag = flow.outbound, flow.inbound.tag_length
        for size in route.path.round(now):
            counter = outbound.counter
            outbound.counter += 1
            question = Probe(outbound.offer.flow, counter, None, size - PROBE.size - tag)
            if len(flow.probes) >= _MOST_PROBES:
                flow.probes.clear()
            flow.probes[counter] = size
            try:
                route.sock.sendmsg([outbound.sealed(encode(question), counter)], route.plain, 0, route.address)
            except OSError as error:
                if error.errno == errno.EMSGSIZE:
                    route.path.too_big(size)
                return

    def _from_udp(self, sock: socket.socket) -> bool:
        """One datagram, or several of one sender that UDP_GRO has put together; False if there is none."""
        try:
            length, ancillary, flags, source = sock.recvmsg_into([self._receive_buffer], _ANCILLARY)
        except BlockingIOError:
            return False
        except OSError as error:  # an ICMP error about an earlier datagram
            _log.debug("tunnel: %s", error)
            return True
        size = next((int.from_bytes(data, sys.byteorder) for _, kind, data in ancillary if kind == UDP_GRO), length)
        if flags & _MSG_TRUNC or not 0 < size <= length:
            self._refuse(Refused.TRUNCATED, None, source)
            return True
        for chunk in self.relays.pass_on(memoryview(self._receive_buffer)[:length], size, source):
            at = 0
            while at < len(chunk):
                at += self._receive(chunk[at:], size, source, sock, ancillary)
        return True

    def _receive(
        self, chunk: memoryview, size: int, source: tuple[str, int], sock: socket.socket, ancillary: Ancillary
    ) -> int:
        """Datagrams of one flow at the beginning of a chunk.  Returns how many bytes they were."""
        if len(chunk) < HEAD.size:
            self._refuse(Refused.TRUNCATED, None, source)
            return size
        kind, version, _, _, number, _ = HEAD.unpack_from(chunk)
        flow = self._by_number.get(number)
        if flow is None or version != VERSION or kind != _TUNNEL:
            if kind not in (_TUNNEL, _PROBE):
                self._refuse(Refused.UNKNOWN_TYPE, None, source)
            elif version != VERSION:
                self._refuse(Refused.UNKNOWN_VERSION, None, source)
            elif flow is None:
                self._refuse(Refused.UNKNOWN_FLOW, None, source)
            else:
                self._receive_probe(flow, chunk[:size], source, sock, ancillary)
            return size
        counted = flow.traffic
        refused: list[Refused] = []
        writes, length = flow.inbound.take(chunk, size, refused.append)
        for buffers in writes:
            try:
                os.writev(self._tun, buffers)
            except OSError as error:
                _log.debug("%s: write to the tunnel's device: %s", flow.carried.socket, error)
        if writes:
            counted.datagrams_in += -(-min(length, len(chunk)) // size) - len(refused)
            counted.bytes_in += min(length, len(chunk))
            counted.last_received = time.monotonic()
        for reason in refused:
            self._refuse(reason, flow, source)
        return length

    def _receive_probe(
        self, flow: _Flow, datagram: memoryview, source: tuple[str, int], sock: socket.socket, ancillary: Ancillary
    ) -> None:
        inbound, outbound = flow.inbound, flow.outbound
        try:
            if len(datagram) < PROBE.size + inbound.tag_length:
                raise TunnelError(Refused.TRUNCATED)
            probe = decode(bytes(datagram[: len(datagram) - inbound.tag_length]))
            reason = inbound.window.check(probe.counter, 1)
            if reason is not None:
                raise TunnelError(reason)
            if not inbound.authentic(datagram, probe.counter):
                raise TunnelError(Refused.FORGED)
            inbound.window.commit(probe.counter, 1)
            if isinstance(probe, Probe) and probe.answers is not None:
                size = flow.probes.pop(probe.answers, None)
                if size is None:
                    raise TunnelError(Refused.UNASKED)
                if flow.route is not None:
                    flow.route.path.confirm(size)
                return
        except TunnelError as error:
            self._refuse(error.reason, flow, source)
            return
        counter = outbound.counter
        outbound.counter += 1
        answer = Probe(outbound.offer.flow, counter, probe.counter)
        with suppress(OSError):  # the prober asks again
            local = arrived_at(ancillary)
            back = [] if local is None else [sent_from(local)]
            sock.sendmsg([outbound.sealed(encode(answer), counter)], back, 0, source)

    def _refuse(self, reason: Refused, flow: _Flow | None, source: tuple[str, int], count: int = 1) -> None:
        if flow is not None:
            flow.traffic.refused[reason] += count
        self._reporter.note(reason, flow.carried.socket if flow else None, source, count)


def _key_of(connection: FourTuple) -> bytes:
    local, remote = connection
    return local.host.packed + remote.host.packed + struct.pack("!HH", local.port, remote.port)


class _Found(NamedTuple):
    """Of an IP packet from the kernel."""

    key: bytes  # of its connection
    tcp: int  # where the TCP header begins
    data: int  # where the data begins
    traffic: int  # traffic class


def _locate(packet: memoryview) -> _Found | None:
    """None if it is not TCP.  IPv6 extension headers mean that it is not: no socket of ours sends any."""
    if len(packet) < 40:
        return None
    version = packet[0] >> 4
    if version == 4 and packet[9] == _TCP and len(packet) >= (tcp := (packet[0] & 0xF) * 4) + 20:
        key = bytes(packet[12:20]) + bytes(packet[tcp : tcp + 4])
        return _Found(key, tcp, tcp + (packet[tcp + 12] >> 4) * 4, packet[1])
    if version == 6 and packet[6] == _TCP and len(packet) >= 60:
        traffic = (packet[0] << 4 | packet[1] >> 4) & 0xFF
        return _Found(bytes(packet[8:44]), 40, 40 + (packet[52] >> 4) * 4, traffic)
    return None


def _interface_mtu(local: IPAddress | None, remote: SockAddr) -> int:
    """What the kernel believes to fit to there; SAFE_MTU when it has no route, or cannot be asked."""
    v4 = remote.host.version == 4
    try:
        with socket.socket(socket.AF_INET if v4 else socket.AF_INET6, socket.SOCK_DGRAM) as sock:
            if local is not None:
                sock.bind((str(local), 0))
            sock.connect((str(remote.host), remote.port))
            level, option = (socket.IPPROTO_IP, IP_MTU) if v4 else (socket.IPPROTO_IPV6, IPV6_MTU)
            return sock.getsockopt(level, option)
    except OSError:  # also where no descriptor is left
        return SAFE_MTU

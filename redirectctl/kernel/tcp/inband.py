"""Tokens inside a connection: an ACK with a TCP option that only the two hosts of the connection can have seen.

The peer learns from it which of its sockets the connection is, whatever NAT lies between, and that we are on the path.
A SYN for the socket makes it send an ACK (backoff.py); that ACK, or any other that the socket happens to send before,
is caught in NFQUEUE on its way out. One of them is enough: a bulk transfer's other ACKs stay in the kernel.

- A token for the connection as it is goes with that ACK. A host that does not look for it ignores the option (RFC 9293
  section 3.1), and a router that strips options leaves a plain ACK.
- A token for a wire tuple on trial goes in a packet of our own there, as large as the socket's segments. The data in it
  must never be taken for the program's, not by a host that does not catch it either: its sequence numbers are those of
  bytes that the peer has acknowledged. They are part of what is proven (flows/proofs.py, in_place). For a firewall on
  the way it is a retransmission. A socket that a kick has just asked is silent for half a second: then what is known of
  its numbers must do, and there is no timestamp.

Tokens that arrive are caught in prerouting before anything is rewritten, and never reach a socket.
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from collections import Counter
from collections.abc import Callable, Iterable
from typing import NamedTuple, Protocol

from redirectctl.flows.commands import Proof
from redirectctl.flows.proofs import in_place
from redirectctl.kernel.constants import MARK_EXIT, MARK_TOKEN
from redirectctl.kernel.datagrams import IPV6_FREEBIND, sent_from
from redirectctl.kernel.errors import KernelError
from redirectctl.kernel.netfilter.packet_queue import QueuedPacket
from redirectctl.kernel.sockets.diag import SocketInfo
from redirectctl.kernel.tcp.backoff import BackoffReverter
from redirectctl.wire.addr import FourTuple
from redirectctl.wire.ip import (
    SEQ_MASK,
    TOKEN_OPTION,
    PacketError,
    TcpFlags,
    TcpSegment,
    build_tcp,
    options_with_token,
    parse_tcp,
    replace_options,
    token_of,
)

AGAIN = (0.15, 0.17)  # seconds between attempts: the last is more than half a second after the first
# Seconds to wait for a moment in which nothing happens: where little is written and often, beside others that use the
# processors, the first may not be one.  What was asked answers again half a second later (`tcp_oow_rate_limited`).
LEARN_AGAIN = (0.05, 0.1, 0.2, 0.4, 0.53, 0.57, 0.61, 0.67)
NOT_SENT = "no way on the wire tuple"  # among the reasons of a token that was not sent

_TIMESTAMPS = 12  # bytes of that option, padded (RFC 7323 appendix A)
_ANY_WINDOW = 0xFFFF  # a firewall on the way must not think that less may come

OnToken = Callable[[FourTuple, bytes, tuple[int, int]], None]
OnRefused = Callable[[str, FourTuple | None], None]


class Sender(Protocol):
    """What Inband uses of RawSender: tests give a fake of this."""

    def send(self, wire: FourTuple, packet: bytes) -> None:
        """Put a packet on the wire, from ``wire.local.host`` to ``wire.remote.host``."""


class RawSender:
    """Raw sockets of the current network namespace; tokens skip conntrack while Rewriter.probe is in force."""

    def __init__(self, *, mark: int = MARK_TOKEN | MARK_EXIT) -> None:
        """``mark`` 0: of what is like any packet of its connection.

        Raises KernelError without CAP_NET_RAW and CAP_NET_ADMIN.  A host without IPv6 is fine.
        """
        self._mark = mark
        self._raw: dict[int, socket.socket] = {}
        try:
            # IPPROTO_RAW: the header is ours, nothing is received (raw(7), ipv6(7)).
            self._open(4, socket.AF_INET)
            if os.path.exists("/proc/thread-self/net/if_inet6"):
                self._open(6, socket.AF_INET6)
        except OSError as error:
            self.close()
            why = os.strerror(error.errno or 0)
            raise KernelError("opening raw sockets", why, "it needs CAP_NET_RAW and CAP_NET_ADMIN") from error

    def _open(self, version: int, family: int) -> None:
        kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
        self._raw[version] = raw = socket.socket(family, kind, socket.IPPROTO_RAW)
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, struct.pack("=I", self._mark))
        if family == socket.AF_INET6:
            # The old address of a moved connection is a route only, and no address (`ip6_datagram_send_ctl`).
            raw.setsockopt(socket.IPPROTO_IPV6, IPV6_FREEBIND, 1)

    def send(self, wire: FourTuple, packet: bytes) -> None:
        """Put a packet on the wire, routed as one from ``wire.local.host``.  Raises KernelError."""
        raw = self._raw.get(wire.version)
        if raw is None:
            raise KernelError("sending a segment", "this host has no IPv6", "enable it")
        # The source address decides about the route on hosts with several uplinks (`ip rule from`).
        try:
            raw.sendmsg([packet], [sent_from(wire.local.host)], 0, (str(wire.remote.host), 0))
        except OSError as error:
            why = os.strerror(error.errno or 0)
            raise KernelError(f"sending a segment on {wire}", why, "is there a route to it?") from error

    def close(self) -> None:
        """Close the sockets."""
        for raw in self._raw.values():
            raw.close()


class Position(NamedTuple):
    """Where a connection is, for a segment of our own."""

    snd_una: int  # or less
    rcv_nxt: int
    window: int  # as it stands in the header
    options: bytes
    missing: int = 0  # bytes of options that the socket's own segments have besides


class Inband:
    """Sends tokens and hands over those that arrive; lives as long as the daemon."""

    def __init__(
        self,
        backoff: BackoffReverter,
        sender: Sender,
        *,
        on_token: OnToken,
        on_sent: OnToken = lambda *_: None,
        on_refused: OnRefused = lambda *_: None,
    ) -> None:
        """``on_token``: called with the tuple of the segment that had it, as this host sees it, the token, and the
        segment's sequence number and ACK.  ``on_sent``: the same of a token that leaves on a connection as it is.

        ``on_refused``: called with the reason and, if it can be read, the tuple, when something was no token after all
        or a token could not be sent.
        """
        self._backoff = backoff
        self._sender = sender
        self._on_token = on_token
        self.on_sent = on_sent
        self._on_refused = on_refused
        self.refused: Counter[str] = Counter()  # by reason

    async def prove(self, proofs: Iterable[Proof]) -> set[FourTuple]:
        """Send tokens; the last of several for one socket counts.  Takes some 10 ms as a rule, half a second at most.

        Returns the sockets whose tokens have gone out.  The others are gone, have no address here now, or their ACKs
        cannot take an option.  Raises KernelError.
        """
        left = {proof.socket: proof for proof in proofs}
        sent: set[FourTuple] = set()
        for wait in (0.0, *AGAIN):
            if not left:
                break
            await asyncio.sleep(wait)
            attempt = _Attempt(self, left)
            caught = await self._backoff.catch(left, attempt.take, attempt.finish)
            sent |= attempt.sent
            left = {one: proof for one, proof in left.items() if one not in caught | sent}
        return sent

    async def numbers(self, sockets: Iterable[FourTuple]) -> dict[FourTuple, tuple[int, int]]:
        """Sequence number bases (send, receive) of those sockets of which they can be found out (backoff.py, Numbers).

        Between the two hosts of a connection: the receiver's `receive_base` is the sender's `send_base`, or one more
        if the sender opened the connection, since `bytes_acked` then has its SYN.  A socket in the middle of a
        transfer has no moment in which they can be read.  Takes three seconds or so at most.  Raises KernelError.
        """
        every = left = list(sockets)
        for wait in (0.0, *LEARN_AGAIN):
            if not left:
                break
            await asyncio.sleep(wait)
            left = await self._backoff.learn(left)
        return {one: (n.send_base, n.receive_base) for one, n in self._backoff.known(every).items()}

    def on_arrival(self, packet: QueuedPacket) -> None:
        """Handler of Queue.TOKEN."""
        arrived: FourTuple | None = None
        try:
            segment = parse_tcp(packet.payload)
            arrived = segment.sender_tuple.mirrored
            token = token_of(segment.options)
        except PacketError as error:
            packet.accept()
            self.refuse(error.reason, arrived)
            return
        packet.drop()
        self._on_token(arrived, token, (segment.seq, segment.ack))

    def refuse(self, reason: str, connection: FourTuple | None) -> None:
        """Count and report."""
        self.refused[str(reason)] += 1
        self._on_refused(str(reason), connection)

    def known(self, one: SocketInfo) -> Position | None:
        """Where a socket is that did not answer, if its numbers are known."""
        numbers = self._backoff.numbers(one)
        if numbers is None or one.info is None:
            return None
        without = _TIMESTAMPS if one.info.has_timestamps else 0
        return Position(numbers.snd_una(one), numbers.rcv_nxt(one), _ANY_WINDOW, b"", without)

    def send_plain(self, proof: Proof, wire: FourTuple, at: Position, now: SocketInfo) -> None:
        """Send a full-size segment of acknowledged bytes with the token on a wire tuple."""
        mss = now.info.send_mss if now.info else 0  # besides the options that every segment has (`tcp_current_mss`)
        data = bytes(max(mss + at.missing - TOKEN_OPTION, 0))
        numbers = (at.snd_una - len(data)) & SEQ_MASK, at.rcv_nxt & SEQ_MASK
        packet = build_tcp(
            *wire,
            seq=numbers[0],
            ack=numbers[1],
            flags=TcpFlags.ACK,
            window=at.window,
            options=options_with_token(at.options, in_place(proof.token, numbers), sack=False),
            data=data,
        )
        self._sender.send(wire, packet)


class _Attempt:
    """What is done with the ACKs of one call of BackoffReverter.catch."""

    def __init__(self, inband: Inband, proofs: dict[FourTuple, Proof]) -> None:
        self.sent: set[FourTuple] = set()
        self._inband = inband
        self._proofs = dict(proofs)
        self._acks: dict[FourTuple, TcpSegment] = {}

    def take(self, packet: QueuedPacket, segment: TcpSegment) -> None:
        """A socket's ACK on its way out."""
        proof = self._proofs[segment.sender_tuple]
        if proof.wire is not None:
            packet.accept()
            self._acks[proof.socket] = segment
            return
        try:
            instead = replace_options(packet.payload, options_with_token(segment.options, proof.token))
        except PacketError as error:
            packet.accept()
            self._inband.refuse(error.reason, proof.socket)
            return
        self._inband.on_sent(proof.socket, proof.token, (segment.seq, segment.ack))
        packet.accept(instead)
        self.sent.add(proof.socket)

    def finish(self, found: list[SocketInfo], silent: list[SocketInfo]) -> None:
        """All ACKs have come that will; the sockets as they are now."""
        for now in (*found, *silent):
            proof, ack = self._proofs[now.tuple], self._acks.get(now.tuple)
            # snd_una was at least this when the socket was looked at, after the ACK: snd_nxt then <= write_seq now, and
            # the write queue is write_seq - snd_una.
            caught = None if ack is None else Position(ack.seq - now.write_queue, ack.ack, ack.window, ack.options)
            at = caught or self._inband.known(now)
            if proof.wire is None or at is None:
                continue
            try:
                self._inband.send_plain(proof, proof.wire, at, now)
            except PacketError as error:
                self._inband.refuse(error.reason, proof.socket)
            except KernelError:
                self._inband.refuse(NOT_SENT, proof.socket)
            else:
                self.sent.add(proof.socket)

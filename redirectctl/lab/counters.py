"""Watches a router for numbers that must never come twice under one key.

    TRANSPORT of the control protocol    counter, by receiver index
    TUNNEL and PROBE                     counter, by flow

Run in the router's namespace: it prints a line of JSON for each number that came again, and when it is stopped one
with what it has seen.  Arguments: addresses of a host that passes TUNNEL and PROBE on as they are; those that it sends
were counted on their way to it.
"""

from __future__ import annotations

import ctypes
import json
import signal
import socket
import struct
import sys
from bisect import bisect_right
from collections.abc import Iterator
from ipaddress import ip_address
from types import FrameType

from redirectctl.wire.addr import IPAddress

_SOL_PACKET, _PACKET_VNET_HDR, _PACKET_STATISTICS = 263, 15, 6
_SO_ATTACH_FILTER, _SO_RCVBUFFORCE = 26, 33
_PACKET_HOST = 0
_VNET = struct.Struct("=BBHHHH")
_GSO_UDP_L4 = 5
_ETHERNET = 14
_UDP = 17
_NUMBERED = {5, 8, 9}  # TRANSPORT; TUNNEL, PROBE (wire/datagram.py, wire/tunnel.py): index or flow, then counter
_HEAD = struct.Struct("!BBBBIQ")
_PORT = 7747
_BUFFER = 64 << 20
_stopped = False


class Ranges:
    """Numbers that have come, as ranges: they come in order nearly always."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []

    def add(self, start: int, end: int) -> bool:
        """Add start to end - 1.  False if one of them was there."""
        place = bisect_right(self._starts, start)
        if (place and self._ends[place - 1] > start) or (place < len(self._starts) and self._starts[place] < end):
            return False
        if place and self._ends[place - 1] == start:
            self._ends[place - 1] = end
        else:
            self._starts.insert(place, start)
            self._ends.insert(place, end)
        return True


class Counters:
    """All that has come."""

    def __init__(self) -> None:
        self.seen: dict[tuple[bool, int], Ranges] = {}
        self.datagrams = 0
        self.again = 0

    def take(self, payload: memoryview, size: int, *, passed_on: bool = False) -> None:
        """Datagrams of ``size`` bytes, one behind the other; the last may be shorter.

        ``passed_on``: those of the tunnel have come before, from their sender.
        """
        found = [_HEAD.unpack_from(payload, at) for at in range(0, len(payload) - _HEAD.size + 1, size)]
        for kind, start, end in _runs(found):
            if passed_on and kind[0]:
                continue
            self.datagrams += end - start
            if not self.seen.setdefault(kind, Ranges()).add(start, end):
                self.again += 1
                what, number = kind
                print(json.dumps({"again": number, "tunnel": what, "from": start, "to": end}), flush=True)


def _runs(found: list[tuple[int, int, int, int, int, int]]) -> Iterator[tuple[tuple[bool, int], int, int]]:
    begin: tuple[tuple[bool, int], int, int] | None = None
    for kind, _, _, _, index, counter in found:
        if kind not in _NUMBERED:
            continue
        key = kind != 5, index
        if begin is not None and begin[0] == key and begin[2] == counter:
            begin = key, begin[1], counter + 1
            continue
        if begin is not None:
            yield begin
        begin = key, counter, counter + 1
    if begin is not None:
        yield begin


def udp_payload(packet: memoryview) -> tuple[IPAddress, memoryview] | None:
    """Source and payload of an Ethernet frame with UDP to or from the control port."""
    at = _ETHERNET
    if packet[at] >> 4 == 4:
        source, at = packet[at + 12 : at + 16], at + (packet[at] & 0xF) * 4
    else:
        source, at = packet[at + 8 : at + 24], at + 40
    ports = struct.unpack_from("!HH", packet, at)
    return (ip_address(bytes(source)), packet[at + 8 :]) if _PORT in ports else None


def main() -> int:
    """Watch until SIGTERM.  Exit status 1 if a number came again."""
    signal.signal(signal.SIGTERM, _stop)
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))  # ETH_P_ALL
    sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER)
    sock.setsockopt(_SOL_PACKET, _PACKET_VNET_HDR, 1)
    _only_udp(sock)
    sock.settimeout(0.2)
    counters = Counters()
    passes_on = {ip_address(address) for address in sys.argv[1:]}
    print(json.dumps({"watching": True}), flush=True)
    buffer = bytearray(1 << 17)
    while not _stopped:
        try:
            length, source = sock.recvfrom_into(buffer)
        except TimeoutError:
            continue
        # Each once: as it comes in by a bridge, not at its port before that nor where it goes out again.
        if source[2] != _PACKET_HOST or not source[0].startswith("br-"):
            continue
        _, kind, _, size, _, _ = _VNET.unpack_from(buffer)
        found = udp_payload(memoryview(buffer)[_VNET.size : length])
        if found is not None and len(found[1]) >= _HEAD.size:
            sender, payload = found
            counters.take(payload, size if kind == _GSO_UDP_L4 else len(payload), passed_on=sender in passes_on)
    _, dropped = struct.unpack("=II", sock.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, 8))
    told = {"datagrams": counters.datagrams, "keys": len(counters.seen), "again": counters.again, "dropped": dropped}
    print(json.dumps(told), flush=True)
    return 1 if counters.again else 0


def _only_udp(sock: socket.socket) -> None:
    """A BPF program: bulk TCP must not cost anything."""
    load, load_word, equal, give = 0x30, 0x28, 0x15, 0x06  # BPF_LD|B|ABS, BPF_LD|H|ABS, BPF_JMP|JEQ|K, BPF_RET|K
    instructions = (
        (load_word, 0, 0, 12),
        (equal, 0, 2, 0x0800),
        (load, 0, 0, _ETHERNET + 9),
        (equal, 3, 4, _UDP),
        (equal, 0, 3, 0x86DD),
        (load, 0, 0, _ETHERNET + 6),
        (equal, 0, 1, _UDP),
        (give, 0, 0, 0x40000),
        (give, 0, 0, 0),
    )
    program = b"".join(struct.pack("=HBBI", *instruction) for instruction in instructions)
    code = ctypes.create_string_buffer(program, len(program))
    attached = struct.pack("HL", len(instructions), ctypes.addressof(code))
    sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, attached)


def _stop(_number: int, _frame: FrameType | None) -> None:
    global _stopped  # noqa: PLW0603 - set by the signal handler, read by the loop
    _stopped = True


if __name__ == "__main__":
    sys.exit(main())

"""A firewall that makes sequence numbers random, as a SYN proxy or a randomising firewall does.

It is between a network and the rest.  For each connection that it has seen begin it adds a constant to the numbers of
one end, and another to those of the other, and takes them off what is acknowledged, SACK blocks (RFC 2018) included.
"""

from __future__ import annotations

import random
import select
import struct
import subprocess
import sys
from collections.abc import Callable
from typing import Final, NamedTuple

from redirectctl.lab.namespaces import LabError
from redirectctl.lab.topology import Network
from redirectctl.wire.ip import SEQ_MASK, PacketError, TcpFlags, checksum, parse_ip, parse_tcp, pseudo_header_sum

OUTWARD, INWARD = 10, 11  # NFQUEUE numbers in the router's namespace
_TCP, _SACK, _NOP, _END = 6, 5, 1, 0
_KEY = tuple[str, int, str, int]  # address and port of the end inside, then of the one outside


class Offsets(NamedTuple):
    """What is added to the numbers of each end."""

    inside: int
    outside: int


def renumbered(segment: bytes, own: int, others: int) -> bytes:
    """A TCP segment without checksum: ``own`` added to its number, ``others`` taken off what it acknowledges."""
    seq, ack = struct.unpack_from("!II", segment, 4)
    changed = bytearray(segment)
    struct.pack_into("!I", changed, 4, (seq + own) & SEQ_MASK)
    if segment[13] & TcpFlags.ACK:
        struct.pack_into("!I", changed, 8, (ack - others) & SEQ_MASK)
    at, end = 20, (segment[12] >> 4) * 4
    while at < end and segment[at] != _END:
        if segment[at] == _NOP:
            at += 1
            continue
        if segment[at] == _SACK:
            for edge in range(at + 2, at + segment[at + 1], 4):
                (number,) = struct.unpack_from("!I", segment, edge)
                struct.pack_into("!I", changed, edge, (number - others) & SEQ_MASK)
        at += max(2, segment[at + 1])
    struct.pack_into("!H", changed, 16, 0)
    return bytes(changed)


class Firewall:
    """What it remembers of connections."""

    def __init__(self, *, loose: bool) -> None:
        """``loose``: it takes up connections that it has not seen begin."""
        self._loose = loose
        self._known: dict[_KEY, Offsets] = {}

    def pass_on(self, packet: bytes, *, outward: bool) -> bytes:
        """As it leaves."""
        try:
            ip, tcp = parse_ip(packet), parse_tcp(packet)
        except PacketError:
            return packet
        here, there = (tcp.source, tcp.destination) if outward else (tcp.destination, tcp.source)
        key = str(here.host), here.port, str(there.host), there.port
        if tcp.flags & TcpFlags.SYN and not tcp.flags & TcpFlags.ACK:
            self._known.pop(key, None)
        elif key not in self._known and not self._loose:
            return packet
        offsets = self._known.setdefault(key, Offsets(random.getrandbits(32), random.getrandbits(32)))
        own, others = offsets if outward else (offsets.outside, offsets.inside)
        header = len(packet) - len(ip.payload)
        segment = bytearray(renumbered(ip.payload, own, others))
        total = pseudo_header_sum(tcp.source.host, tcp.destination.host, _TCP, len(segment))
        struct.pack_into("!H", segment, 16, checksum(bytes(segment), total))
        return packet[:header] + bytes(segment)


class Renumbering:
    """Such a firewall between a network of the lab and the others."""

    def __init__(self, network: Network, *, loose: bool = False) -> None:
        """``loose``: see Firewall."""
        router = network.owner
        argv = [sys.executable, "-m", "redirectctl.lab.renumbering", *(["loose"] if loose else [])]
        process = router.popen(argv, stdout=subprocess.PIPE)
        if process.stdout is None or process.stdout.readline() != "ready\n":
            raise LabError("the firewall did not start")
        for program in ("iptables", "ip6tables"):
            for flag, number in (("-i", OUTWARD), ("-o", INWARD)):
                rule = f"-t mangle -A FORWARD {flag} {network.bridge} -p tcp -j NFQUEUE --queue-num {number}"
                router.run([program, "-w", *rule.split()])


def main() -> None:
    """Be the firewall, until killed."""
    from netfilterqueue import NetfilterQueue, Packet

    firewall = Firewall(loose="loose" in sys.argv[1:])

    def handler(*, outward: bool) -> Callable[[Packet], None]:
        def handle(packet: Packet) -> None:
            packet.set_payload(firewall.pass_on(packet.get_payload(), outward=outward))
            packet.accept()

        return handle

    queues: Final = {}
    for number, outward in ((OUTWARD, True), (INWARD, False)):
        queue = NetfilterQueue()
        queue.bind(number, handler(outward=outward))
        queues[queue.get_fd()] = queue
    print("ready", flush=True)
    while True:
        for ready in select.select(list(queues), [], [])[0]:
            queues[ready].run(block=False)


if __name__ == "__main__":
    main()

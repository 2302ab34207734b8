"""IPv4, IPv6, TCP and ICMP headers: what the kernel side injects and what it reads from NFQUEUE.

::

    IPv4 (RFC 791)                                      IPv6 (RFC 8200)
     0      4      8             16           31         0      4          12                  31
    +------+------+-------------+--------------+        +------+-----------+--------------------+
    | ver 4| ihl  | dscp, ecn   | total length |        | ver 6| class     | flow label         |
    +------+------+-------------+--------------+        +------+-----------+---------+----------+
    | identification            | flags, offset|        | payload length   | next    | hop limit|
    +-------------+-------------+--------------+        +------------------+---------+----------+
    | ttl         | protocol    | checksum     |        | source, 16 bytes                      |
    +-------------+-------------+--------------+        +---------------------------------------+
    | source                                   |        | destination, 16 bytes                 |
    +------------------------------------------+        +---------------------------------------+
    | destination                              |
    +------------------------------------------+

    TCP (RFC 9293)                                      ICMP, ICMPv6 error (RFC 792, RFC 4443)
    +---------------------------+--------------+        +------+-----------+--------------------+
    | source port               | dest. port   |        | type | code      | checksum           |
    +---------------------------+--------------+        +------+-----------+--------------------+
    | sequence number                          |        | unused                                |
    +------------------------------------------+        +---------------------------------------+
    | acknowledgement number                   |        | IP header of the packet it is about,  |
    +------+------+-------------+--------------+        | then at least 8 bytes of its payload  |
    | off. | 0    | flags       | window       |        +---------------------------------------+
    +------+------+-------------+--------------+
    | checksum                  | urgent       |
    +---------------------------+--------------+
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from enum import IntEnum, IntFlag, StrEnum
from ipaddress import IPv6Address
from typing import NamedTuple

from redirectctl.wire.addr import FourTuple, IPAddress, SockAddr, from_packed

IPV4_HEADER = struct.Struct("!BBHHHBBH4s4s")
IPV6_HEADER = struct.Struct("!IHBB16s16s")
TCP_HEADER = struct.Struct("!HHIIBBHHH")
ICMP_HEADER = struct.Struct("!BBHI")

SEQ_MASK = 0xFFFF_FFFF
EXPERIMENT = 253  # TCP option kind for experiments (RFC 4727)
EXPERIMENT_ID = 0x7747  # which experiment: ours (RFC 6994)
TOKEN_SIZE = 8
MAX_OPTIONS = 40  # bytes of TCP options
HOP_LIMIT = 255  # passes sockets that ask for a minimum (RFC 5082, IP_MINTTL)

_DONT_FRAGMENT = 0x4000
_FRAGMENT_BITS = 0x3FFF  # more-fragments and the offset
_EXTENSION_HEADERS = (0, 43, 60)  # hop-by-hop, routing, destination options: RFC 8200 4.1
_FRAGMENT_HEADER = 44
_END, _NOP, _SACK, _STAMPS = (
    0,
    1,
    5,
    8,
)  # TCP option kinds: RFC 9293 section 3.1, RFC 2018 section 3, RFC 7323 section 3
_TIMESTAMPS = struct.Struct("!BBII")
_TOKEN = struct.Struct(f"!BBH{TOKEN_SIZE}s")
TOKEN_OPTION = _TOKEN.size  # bytes


class Protocol(IntEnum):
    """Transport protocols this module knows."""

    ICMP = 1
    TCP = 6
    ICMPV6 = 58


class TcpFlags(IntFlag):
    """The lower eight flags of a TCP header."""

    FIN = 0x01
    SYN = 0x02
    RST = 0x04
    PSH = 0x08
    ACK = 0x10
    URG = 0x20
    ECE = 0x40
    CWR = 0x80


class BadPacket(StrEnum):
    """Why a packet was not understood."""

    EMPTY = "empty"
    VERSION = "neither IPv4 nor IPv6"
    TRUNCATED = "shorter than its headers say"
    HEADER_LENGTH = "header length out of range"
    FRAGMENT = "a fragment"
    PROTOCOL = "not the expected protocol"
    CHECKSUM = "wrong checksum"
    OPTIONS = "malformed TCP options"
    TOKEN_LENGTH = "a token of the wrong length"
    NO_TOKEN = "no token"
    NO_ROOM = "no room for another TCP option"


class PacketError(ValueError):
    """A packet that cannot be used; ``reason`` says why."""

    def __init__(self, reason: BadPacket) -> None:
        super().__init__(reason.value)
        self.reason = reason


class IpPacket(NamedTuple):
    """An IP packet taken apart."""

    source: IPAddress
    destination: IPAddress
    protocol: int
    ttl: int
    payload: bytes  # transport header and data; may be cut short when only the start of the packet was copied
    length: int  # of the payload, as the IP header says


class TcpSegment(NamedTuple):
    """A TCP segment with its addresses, as sent: ``source`` is who sent it."""

    source: SockAddr
    destination: SockAddr
    seq: int
    ack: int
    flags: TcpFlags
    window: int  # unscaled
    options: bytes
    data_length: int  # bytes of data on the wire, even if they were not copied

    @property
    def sender_tuple(self) -> FourTuple:
        """The connection as the sender sees it."""
        return FourTuple(self.source, self.destination)

    @property
    def is_pure_ack(self) -> bool:
        """An ACK without data and without SYN, FIN or RST."""
        busy = TcpFlags.SYN | TcpFlags.FIN | TcpFlags.RST
        return self.data_length == 0 and self.flags & (TcpFlags.ACK | busy) == TcpFlags.ACK


class IcmpError(NamedTuple):
    """A destination-unreachable message and the TCP segment it quotes."""

    source: IPAddress
    destination: IPAddress
    type: int
    code: int
    quoted: FourTuple  # as the sender of the quoted segment sees it
    seq: int


def checksum(data: bytes, start: int = 0) -> int:
    """The Internet checksum of RFC 1071 over ``data``, ``start`` being the sum of what comes before it.

    The result is what goes into the header; over data that contains a right checksum it is 0.
    """
    if len(data) % 2:
        data += b"\0"
    # The sum of 16-bit words is the big number modulo 0xFFFF (RFC 1071, section 2 (A): 2^16 = 1 there).
    total = (start + int.from_bytes(data, "big")) % 0xFFFF
    if total == 0 and (start or any(data)):
        total = 0xFFFF
    return total ^ 0xFFFF


class TooBig(NamedTuple):
    """A segment did not fit through a link."""

    connection: FourTuple  # as its sender sees it, with the addresses it had on the wire
    seq: int
    mtu: int  # bytes of an IP packet that fit


def pseudo_header_sum(source: IPAddress, destination: IPAddress, protocol: int, length: int) -> int:
    """What a transport checksum starts from (RFC 9293 3.1, RFC 8200 8.1); ``length`` in bytes."""
    return int(source) % 0xFFFF + int(destination) % 0xFFFF + protocol + length


def build_ip(
    source: IPAddress, destination: IPAddress, protocol: int, payload: bytes, *, ttl: int = HOP_LIMIT
) -> bytes:
    """An IPv4 or IPv6 packet, not to be fragmented.  Raises ValueError when the families differ."""
    if source.version != destination.version:
        raise ValueError(f"{source} and {destination} are of different families")
    return _ip_header(source, destination, protocol, len(payload), ttl) + payload


def _ip_header(source: IPAddress, destination: IPAddress, protocol: int, length: int, ttl: int) -> bytes:
    if source.version == 6:
        return IPV6_HEADER.pack(6 << 28, length, protocol, ttl, source.packed, destination.packed)
    fields = (0x45, 0, IPV4_HEADER.size + length, 0, _DONT_FRAGMENT, ttl, protocol)
    check = checksum(IPV4_HEADER.pack(*fields, 0, source.packed, destination.packed))
    return IPV4_HEADER.pack(*fields, check, source.packed, destination.packed)


def build_tcp(
    source: SockAddr,
    destination: SockAddr,
    *,
    seq: int,
    ack: int = 0,
    flags: TcpFlags,
    window: int = 0,
    options: bytes = b"",
    data: bytes = b"",
) -> bytes:
    """An IP packet with one TCP segment.  ``options`` must be a multiple of 4 bytes, at most 40."""
    if len(options) % 4 or len(options) > 40:
        raise ValueError(f"{len(options)} bytes of TCP options")
    offset = (TCP_HEADER.size + len(options)) << 2
    fields = (source.port, destination.port, seq & SEQ_MASK, ack & SEQ_MASK, offset, flags, window)
    tail = options + data
    start = pseudo_header_sum(source.host, destination.host, Protocol.TCP, TCP_HEADER.size + len(tail))
    check = checksum(TCP_HEADER.pack(*fields, 0, 0) + tail, start)
    return build_ip(source.host, destination.host, Protocol.TCP, TCP_HEADER.pack(*fields, check, 0) + tail)


def token_of(options: bytes) -> bytes:
    """The first token in the options of a TCP header.  Raises PacketError.

    ::

        +------------+------------+-------------------------+----------------------------------+
        | kind: 253  | length: 12 | ExID: 0x7747            | token, 8 bytes                   |
        +------------+------------+-------------------------+----------------------------------+
    """
    for option in _each_option(options):
        if option[0] == EXPERIMENT and option[2:4] == EXPERIMENT_ID.to_bytes(2):
            if len(option) != _TOKEN.size:
                raise PacketError(BadPacket.TOKEN_LENGTH)
            return option[4:]
    raise PacketError(BadPacket.NO_TOKEN)


def options_with_token(options: bytes, token: bytes, *, sack: bool = True) -> bytes:
    """``options`` of a TCP header, and a token; without SACK blocks where these leave no room: the next ACK has them.

    ``sack``: False leaves them out in any case.  Raises PacketError when there is no room all the same.
    """
    if len(token) != TOKEN_SIZE:
        raise ValueError(f"a token of {len(token)} bytes")
    every = list(_each_option(options))
    added = _TOKEN.pack(EXPERIMENT, _TOKEN.size, EXPERIMENT_ID, token)
    without = [option for option in every if option[0] != _SACK]
    for kept in (every, without) if sack else (without,):
        found = b"".join(option for option in kept if option[0] != _NOP)
        # Padded in front: timestamps alone stay where everybody has them (RFC 7323 appendix A).
        found = bytes([_NOP]) * (-len(found) % 4) + found + added
        if len(found) <= MAX_OPTIONS:
            return found
    raise PacketError(BadPacket.NO_ROOM)


class Timestamps(NamedTuple):
    """A segment's (RFC 7323, section 3.2)."""

    value: int  # TSval
    echo: int  # TSecr


def timestamps_of(options: bytes) -> Timestamps | None:
    """In the options of a TCP header; None if there are none.  Raises PacketError."""
    for option in _each_option(options):
        if option[0] == _STAMPS and len(option) == _TIMESTAMPS.size:
            return Timestamps(*_TIMESTAMPS.unpack(option)[2:])
    return None


def build_timestamps(value: int, echo: int) -> bytes:
    """The option, padded as everybody does (RFC 7323, appendix A)."""
    return bytes([_NOP, _NOP]) + _TIMESTAMPS.pack(_STAMPS, _TIMESTAMPS.size, value & SEQ_MASK, echo & SEQ_MASK)


def _each_option(options: bytes) -> Iterator[bytes]:
    """The options of a TCP header one by one, kind and length included, up to the end mark."""
    at = 0
    while at < len(options) and options[at] != _END:
        size = 1
        if options[at] != _NOP:
            size = options[at + 1] if at + 1 < len(options) else 0
            if size < 2 or at + size > len(options):
                raise PacketError(BadPacket.OPTIONS)
        yield options[at : at + size]
        at += size


def replace_options(packet: bytes, options: bytes) -> bytes:
    """An IP packet with a TCP segment, whole, with other TCP options; all else stays, checksums and lengths are right.

    ``options`` must be a multiple of 4 bytes, at most 40.  Raises PacketError.
    """
    if len(options) % 4 or len(options) > MAX_OPTIONS:
        raise ValueError(f"{len(options)} bytes of TCP options")
    ip, segment = parse_ip(packet), parse_tcp(packet)
    if len(ip.payload) < ip.length:
        raise PacketError(BadPacket.TRUNCATED)
    v6 = ip.source.version == 6
    end = IPV6_HEADER.size + int.from_bytes(packet[4:6]) if v6 else int.from_bytes(packet[2:4])  # more may follow
    head = bytearray(packet[: end - ip.length])
    tcp = bytearray(ip.payload[: TCP_HEADER.size] + options + ip.payload[ip.length - segment.data_length :])
    tcp[12] = (TCP_HEADER.size + len(options)) << 2 | tcp[12] & 0xF
    tcp[16:18] = bytes(2)
    tcp[16:18] = checksum(bytes(tcp), pseudo_header_sum(ip.source, ip.destination, Protocol.TCP, len(tcp))).to_bytes(2)
    if v6:
        head[4:6] = (len(head) - IPV6_HEADER.size + len(tcp)).to_bytes(2)
    else:
        head[2:4] = (len(head) + len(tcp)).to_bytes(2)
        head[10:12] = bytes(2)
        head[10:12] = checksum(bytes(head)).to_bytes(2)
    return bytes(head + tcp)


def build_unreachable(connection: FourTuple, seq: int) -> bytes:
    """To the host of ``connection.local``: its segment with number ``seq`` found no way to ``connection.remote``.

    IPv4: host unreachable (RFC 792, type 3 code 1); IPv6: no route (RFC 4443 3.1, type 1 code 0): the ones that
    RFC 6069 counts as a sign that connectivity was lost.
    """
    kind, code = (3, 1) if connection.version == 4 else (1, 0)
    return _build_icmp_error(connection, seq, kind, code, 0)


def build_too_big(connection: FourTuple, seq: int, mtu: int) -> bytes:
    """To the host of ``connection.local``: its segment with number ``seq`` was larger than a link on the way takes.

    IPv4: fragmentation needed (RFC 1191 section 4); IPv6: packet too big (RFC 4443 section 3.2).
    """
    kind, code = (3, 4) if connection.version == 4 else (2, 0)
    return _build_icmp_error(connection, seq, kind, code, mtu)


def _build_icmp_error(connection: FourTuple, seq: int, kind: int, code: int, rest: int) -> bytes:
    local, remote = connection
    # 20 bytes are quoted as if a whole TCP header followed: RFC 792 promises ports and sequence number only.
    quoted_tcp = TCP_HEADER.pack(
        local.port, remote.port, seq & SEQ_MASK, 0, TCP_HEADER.size << 2, TcpFlags.ACK, 0, 0, 0
    )
    quoted = build_ip(local.host, remote.host, Protocol.TCP, quoted_tcp)
    protocol, start = Protocol.ICMP, 0
    if connection.version == 6:
        protocol = Protocol.ICMPV6
        start = pseudo_header_sum(local.host, local.host, protocol, ICMP_HEADER.size + len(quoted))
    check = checksum(ICMP_HEADER.pack(kind, code, 0, rest) + quoted, start)
    return build_ip(local.host, local.host, protocol, ICMP_HEADER.pack(kind, code, check, rest) + quoted)


def parse_ip(packet: bytes) -> IpPacket:
    """Take an IP packet apart; the end of its payload may be missing.  Raises PacketError."""
    if not packet:
        raise PacketError(BadPacket.EMPTY)
    version = packet[0] >> 4
    if version == 4:
        return _parse_ipv4(packet)
    if version == 6:
        return _parse_ipv6(packet)
    raise PacketError(BadPacket.VERSION)


def _parse_ipv4(packet: bytes) -> IpPacket:
    if len(packet) < IPV4_HEADER.size:
        raise PacketError(BadPacket.TRUNCATED)
    first, _, total, _, fragment, ttl, protocol, _, source, destination = IPV4_HEADER.unpack_from(packet)
    header = (first & 0xF) * 4
    if header < IPV4_HEADER.size or total < header:
        raise PacketError(BadPacket.HEADER_LENGTH)
    if len(packet) < header:
        raise PacketError(BadPacket.TRUNCATED)
    if checksum(packet[:header]):
        raise PacketError(BadPacket.CHECKSUM)
    if fragment & _FRAGMENT_BITS:
        raise PacketError(BadPacket.FRAGMENT)
    addresses = from_packed(source), from_packed(destination)
    return IpPacket(*addresses, protocol, ttl, packet[header:total], total - header)


def _parse_ipv6(packet: bytes) -> IpPacket:
    if len(packet) < IPV6_HEADER.size:
        raise PacketError(BadPacket.TRUNCATED)
    _, length, protocol, ttl, source, destination = IPV6_HEADER.unpack_from(packet)
    at, end = IPV6_HEADER.size, IPV6_HEADER.size + length
    while protocol in _EXTENSION_HEADERS:
        if len(packet) < at + 2:
            raise PacketError(BadPacket.TRUNCATED)
        protocol, at = packet[at], at + (packet[at + 1] + 1) * 8
        if at > end:
            raise PacketError(BadPacket.HEADER_LENGTH)
    if protocol == _FRAGMENT_HEADER:
        raise PacketError(BadPacket.FRAGMENT)
    return IpPacket(_ipv6(source), _ipv6(destination), protocol, ttl, packet[at:end], end - at)


def _ipv6(packed: bytes) -> IPAddress:
    """Also an IPv4-mapped one: in the header of a packet it is no IPv4 address."""
    found = from_packed(packed)
    return found if isinstance(found, IPv6Address) else IPv6Address(packed)


def parse_tcp(packet: bytes) -> TcpSegment:
    """Read the headers of an IP packet with a TCP segment.

    The data may be missing and the TCP checksum is not verified: what NFQUEUE hands over on the way out has a
    checksum that only the network card completes.  Raises PacketError.
    """
    ip = parse_ip(packet)
    if ip.protocol != Protocol.TCP:
        raise PacketError(BadPacket.PROTOCOL)
    if len(ip.payload) < TCP_HEADER.size:
        raise PacketError(BadPacket.TRUNCATED)
    sport, dport, seq, ack, offset, flags, window, _, _ = TCP_HEADER.unpack_from(ip.payload)
    header = (offset >> 4) * 4
    if header < TCP_HEADER.size or header > ip.length:
        raise PacketError(BadPacket.HEADER_LENGTH)
    if header > len(ip.payload):
        raise PacketError(BadPacket.TRUNCATED)
    return TcpSegment(
        source=SockAddr(ip.source, sport),
        destination=SockAddr(ip.destination, dport),
        seq=seq,
        ack=ack,
        flags=TcpFlags(flags),
        window=window,
        options=ip.payload[TCP_HEADER.size : header],
        data_length=ip.length - header,
    )


def parse_unreachable(packet: bytes) -> IcmpError:
    """Read a destination-unreachable message about a TCP segment, checksum verified.  Raises PacketError."""
    ip = parse_ip(packet)
    if ip.protocol not in (Protocol.ICMP, Protocol.ICMPV6):
        raise PacketError(BadPacket.PROTOCOL)
    if len(ip.payload) < ip.length or ip.length < ICMP_HEADER.size:
        raise PacketError(BadPacket.TRUNCATED)
    start = 0
    if ip.protocol == Protocol.ICMPV6:
        start = pseudo_header_sum(ip.source, ip.destination, ip.protocol, ip.length)
    if checksum(ip.payload, start):
        raise PacketError(BadPacket.CHECKSUM)
    kind, code, _, _ = ICMP_HEADER.unpack_from(ip.payload)
    if kind != (3 if ip.protocol == Protocol.ICMP else 1):
        raise PacketError(BadPacket.PROTOCOL)
    connection, seq = _quoted(ip.payload)
    return IcmpError(ip.source, ip.destination, kind, code, connection, seq)


def parse_too_big(icmp: bytes, version: int) -> TooBig:
    """Read an ICMP message, without its IP header, that says what fits through a link.  Raises PacketError.

    The checksum of an ICMPv6 message is not looked at: it covers the IP header, and the kernel has verified it.
    """
    if len(icmp) < ICMP_HEADER.size:
        raise PacketError(BadPacket.TRUNCATED)
    kind, code, _, rest = ICMP_HEADER.unpack_from(icmp)
    if (kind, code) != ((3, 4) if version == 4 else (2, 0)):
        raise PacketError(BadPacket.PROTOCOL)
    if version == 4 and checksum(icmp):
        raise PacketError(BadPacket.CHECKSUM)
    connection, seq = _quoted(icmp)
    if connection.local.host.version != version:
        raise PacketError(BadPacket.PROTOCOL)
    return TooBig(connection, seq, rest & 0xFFFF if version == 4 else rest)


def _quoted(icmp: bytes) -> tuple[FourTuple, int]:
    """The TCP segment that an ICMP error is about, as far as it is quoted: as its sender has it, and SEQ."""
    quoted = parse_ip(icmp[ICMP_HEADER.size :])
    if quoted.protocol != Protocol.TCP:
        raise PacketError(BadPacket.PROTOCOL)
    if len(quoted.payload) < 8:
        raise PacketError(BadPacket.TRUNCATED)
    sport, dport, seq = struct.unpack_from("!HHI", quoted.payload)
    return FourTuple(SockAddr(quoted.source, sport), SockAddr(quoted.destination, dport)), seq

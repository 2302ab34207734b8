"""Packets of wire/ip.py against hand-checked bytes and against scapy."""

from __future__ import annotations

import struct
from contextlib import suppress
from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, TCP, TCPerror
from scapy.layers.inet6 import (
    ICMPv6DestUnreach,
    ICMPv6PacketTooBig,
    IPv6,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
)
from scapy.packet import Raw
from scapy.utils import checksum as scapy_checksum

from redirectctl.wire.addr import FourTuple, SockAddr
from redirectctl.wire.ip import (
    TOKEN_OPTION,
    BadPacket,
    PacketError,
    TcpFlags,
    Timestamps,
    TooBig,
    build_ip,
    build_tcp,
    build_timestamps,
    build_too_big,
    build_unreachable,
    checksum,
    options_with_token,
    parse_ip,
    parse_tcp,
    parse_too_big,
    parse_unreachable,
    replace_options,
    timestamps_of,
    token_of,
)

V4 = FourTuple(SockAddr.parse("192.0.2.1:40000"), SockAddr.parse("198.51.100.7:22"))
V6 = FourTuple(SockAddr.parse("[2001:db8::1]:40000"), SockAddr.parse("[2001:db8:ffff::7]:22"))


def test_a_syn_byte_for_byte() -> None:
    packet = build_tcp(V4.remote, V4.local, seq=0x01020304, flags=TcpFlags.SYN)
    assert packet.hex(" ", 4) == (
        "45000028 00004000 ff068f93 c6336407 c0000201 "  # 198.51.100.7 -> 192.0.2.1, ttl 255, DF
        "00169c40 01020304 00000000 50020000 234a0000"
    )
    assert scapy_checksum(packet[:20]) == 0
    assert IP(packet)[TCP].seq == 0x01020304


def test_the_example_of_rfc_1071() -> None:
    # Section 3: the words 0001 f203 f4f5 f6f7 add up to ddf2.
    assert checksum(bytes.fromhex("0001f203f4f5f6f7")) == 0xDDF2 ^ 0xFFFF


@pytest.mark.parametrize(("data", "expected"), [(b"", 0xFFFF), (b"\0\0", 0xFFFF), (b"\xff\xff", 0), (b"\x01", 0xFEFF)])
def test_checksum_corner_cases(data: bytes, expected: int) -> None:
    assert checksum(data) == expected


@given(st.binary(max_size=200))
def test_checksum_agrees_with_scapy(data: bytes) -> None:
    assert checksum(data) == scapy_checksum(data)


def socket_addresses(version: int) -> st.SearchStrategy[SockAddr]:
    return st.builds(SockAddr, st.ip_addresses(v=version), st.integers(0, 65535))


tuples = st.sampled_from((4, 6)).flatmap(lambda v: st.builds(FourTuple, socket_addresses(v), socket_addresses(v)))
words = st.integers(0, 0xFFFF_FFFF)


@given(
    tuples,
    words,
    words,
    st.integers(0, 255).map(TcpFlags),
    st.integers(0, 65535),
    st.sampled_from([b"", b"\x01\x01\x01\x00", b"\xfd\x08\xa1\xb2token"[:8], b"\x01" * 40]),
    st.binary(max_size=99),
)
def test_built_segments_are_what_scapy_builds(
    connection: FourTuple, seq: int, ack: int, flags: TcpFlags, window: int, options: bytes, data: bytes
) -> None:
    packet = build_tcp(*connection, seq=seq, ack=ack, flags=flags, window=window, options=options, data=data)
    layer = IP if connection.version == 4 else IPv6
    theirs = layer(packet)
    built = theirs[TCP].chksum
    assert (str(ip_address(theirs.src)), theirs[TCP].sport) == (str(connection.local.host), connection.local.port)
    assert (theirs[TCP].seq, theirs[TCP].ack, int(theirs[TCP].flags)) == (seq, ack, flags)
    del theirs[TCP].chksum
    if connection.version == 4:
        del theirs.chksum
    rebuilt = bytes(theirs)
    # A sum of zero has two ones'-complement forms; both verify.
    assert rebuilt == packet or {built, layer(rebuilt)[TCP].chksum} == {0, 0xFFFF}

    segment = parse_tcp(packet)
    assert segment.sender_tuple == connection
    assert (segment.seq, segment.ack, segment.flags, segment.window) == (seq, ack, flags, window)
    assert (segment.options, segment.data_length) == (options, len(data))


@pytest.mark.parametrize("length", [2, 41, 44])
def test_options_that_do_not_fit_are_refused(length: int) -> None:
    with pytest.raises(ValueError, match="bytes of TCP options"):
        build_tcp(*V4, seq=0, flags=TcpFlags.ACK, options=b"\x01" * length)


def test_mixed_families_are_refused() -> None:
    with pytest.raises(ValueError, match="different families"):
        build_ip(V4.local.host, V6.local.host, 6, b"")


@pytest.mark.parametrize(
    ("flags", "data", "pure"),
    [
        (TcpFlags.ACK, b"", True),
        (TcpFlags.ACK | TcpFlags.ECE, b"", True),
        (TcpFlags.ACK, b"x", False),
        (TcpFlags.ACK | TcpFlags.FIN, b"", False),
        (TcpFlags.ACK | TcpFlags.RST, b"", False),
        (TcpFlags.ACK | TcpFlags.SYN, b"", False),
        (TcpFlags.RST, b"", False),
    ],
)
def test_pure_ack(flags: TcpFlags, data: bytes, pure: bool) -> None:
    assert parse_tcp(build_tcp(*V6, seq=1, ack=1, flags=flags, data=data)).is_pure_ack is pure


def test_data_that_was_not_copied_still_counts() -> None:
    packet = build_tcp(*V4, seq=1, flags=TcpFlags.ACK, data=bytes(1000))
    assert parse_tcp(packet[:60]).data_length == 1000


def test_unreachable_v4_is_what_scapy_builds() -> None:
    theirs = IP(build_unreachable(V4, 0xDEADBEEF))
    assert (theirs.src, theirs.dst, theirs.ttl) == ("192.0.2.1", "192.0.2.1", 255)
    assert (theirs[ICMP].type, theirs[ICMP].code) == (3, 1)
    assert (theirs[TCPerror].sport, theirs[TCPerror].dport, theirs[TCPerror].seq) == (40000, 22, 0xDEADBEEF)
    check = theirs[ICMP].chksum
    del theirs[ICMP].chksum
    assert IP(bytes(theirs))[ICMP].chksum == check


def test_unreachable_v6_is_what_scapy_builds() -> None:
    theirs = IPv6(build_unreachable(V6, 0xDEADBEEF))
    assert (theirs.src, theirs.dst, theirs.hlim) == ("2001:db8::1", "2001:db8::1", 255)
    assert (theirs[ICMPv6DestUnreach].code, theirs[TCPerror].seq) == (0, 0xDEADBEEF)
    check = theirs[ICMPv6DestUnreach].cksum
    del theirs[ICMPv6DestUnreach].cksum
    assert IPv6(bytes(theirs))[ICMPv6DestUnreach].cksum == check


@given(tuples, words)
def test_unreachable_reads_back(connection: FourTuple, seq: int) -> None:
    error = parse_unreachable(build_unreachable(connection, seq))
    assert (error.quoted, error.seq) == (connection, seq)
    assert error.source == error.destination == connection.local.host


def test_unreachable_with_a_flipped_bit_is_refused() -> None:
    for connection in (V4, V6):
        packet = bytearray(build_unreachable(connection, 5))
        packet[-1] ^= 1
        with pytest.raises(PacketError) as caught:
            parse_unreachable(bytes(packet))
        assert caught.value.reason is BadPacket.CHECKSUM


def icmp(kind: int, code: int, about: bytes, *, protocol: int = 1) -> bytes:
    """An error of a router about a packet."""
    address = parse_ip(about).source
    return build_ip(address, address, protocol, bytes(ICMP(type=kind, code=code, unused=0) / Raw(about)))


@pytest.mark.parametrize(
    ("packet", "reason"),
    [
        (build_tcp(*V4, seq=1, flags=TcpFlags.ACK), BadPacket.PROTOCOL),
        (build_unreachable(V4, 5)[:-1], BadPacket.TRUNCATED),
        (build_ip(V4.local.host, V4.local.host, 1, bytes(7)), BadPacket.TRUNCATED),
        (icmp(11, 0, build_tcp(*V4, seq=1, flags=TcpFlags.ACK)), BadPacket.PROTOCOL),
        (icmp(1, 0, build_tcp(*V4, seq=1, flags=TcpFlags.ACK)), BadPacket.PROTOCOL),
        (icmp(3, 1, build_ip(V4.local.host, V4.remote.host, 17, bytes(8))), BadPacket.PROTOCOL),
        (icmp(3, 1, build_tcp(*V4, seq=1, flags=TcpFlags.ACK)[:27]), BadPacket.TRUNCATED),
    ],
)
def test_what_says_nothing_of_an_unreachable_segment_is_refused(packet: bytes, reason: BadPacket) -> None:
    with pytest.raises(PacketError) as caught:
        parse_unreachable(packet)
    assert caught.value.reason is reason


def test_eight_bytes_of_a_segment_are_enough() -> None:
    error = parse_unreachable(icmp(3, 1, build_tcp(*V4, seq=7, flags=TcpFlags.ACK)[:28]))
    assert (error.quoted, error.seq, error.type, error.code) == (V4, 7, 3, 1)


@pytest.mark.parametrize("connection", [V4, V6], ids=["ipv4", "ipv6"])
def test_too_big_is_what_scapy_builds_and_reads_back(connection: FourTuple) -> None:
    packet = build_too_big(connection, 0xDEADBEEF, 1300)
    if connection is V4:
        v4 = IP(packet)[ICMP]
        assert (v4.type, v4.code, v4.nexthopmtu) == (3, 4, 1300)
    else:
        v6 = IPv6(packet)[ICMPv6PacketTooBig]
        assert (v6.code, v6.mtu) == (0, 1300)
    there = parse_ip(packet)
    assert there.source == there.destination == connection.local.host
    assert parse_too_big(there.payload, connection.version) == TooBig(connection, 0xDEADBEEF, 1300)


def test_the_size_of_a_link_takes_two_bytes_in_ipv4() -> None:
    """Those before it may be anything (RFC 1191)."""
    message = ICMP(type=3, code=4, unused=0, nexthopmtu=1300) / Raw(build_tcp(*V4, seq=7, flags=TcpFlags.ACK))
    raw = bytearray(bytes(message))
    raw[2:8] = b"\0\0\x05\x06" + raw[6:8]
    raw[2:4] = checksum(bytes(raw)).to_bytes(2)
    assert parse_too_big(bytes(raw), 4).mtu == 1300


TOO_BIG = {c.version: parse_ip(build_too_big(c, 5, 1300)).payload for c in (V4, V6)}


@pytest.mark.parametrize(
    ("message", "version", "reason"),
    [
        (TOO_BIG[4][:7], 4, BadPacket.TRUNCATED),
        (TOO_BIG[6][:7], 6, BadPacket.TRUNCATED),
        (TOO_BIG[4], 6, BadPacket.PROTOCOL),
        (TOO_BIG[6], 4, BadPacket.PROTOCOL),
        (parse_ip(build_unreachable(V4, 5)).payload, 4, BadPacket.PROTOCOL),
        (TOO_BIG[4][:-1] + b"\xff", 4, BadPacket.CHECKSUM),
        (TOO_BIG[6][:8] + build_tcp(*V4, seq=1, flags=TcpFlags.ACK), 6, BadPacket.PROTOCOL),
        (TOO_BIG[6][:8], 6, BadPacket.EMPTY),
    ],
)
def test_what_does_not_tell_the_size_of_a_link_is_refused(message: bytes, version: int, reason: BadPacket) -> None:
    with pytest.raises(PacketError) as caught:
        parse_too_big(message, version)
    assert caught.value.reason is reason


def test_extension_headers_are_skipped() -> None:
    chain = (
        IPv6(src="2001:db8::1", dst="2001:db8::2") / IPv6ExtHdrHopByHop() / IPv6ExtHdrRouting() / TCP(seq=7) / b"abc"
    )
    segment = parse_tcp(bytes(chain))
    assert (segment.seq, segment.data_length) == (7, 3)


def ipv4(**fields: object) -> bytes:
    return bytes(IP(src="192.0.2.1", dst="192.0.2.2", **fields) / TCP())


@pytest.mark.parametrize(
    ("packet", "reason"),
    [
        (b"", BadPacket.EMPTY),
        (b"\x50" + bytes(40), BadPacket.VERSION),
        (b"\x45" + bytes(10), BadPacket.TRUNCATED),
        (b"\x60" + bytes(10), BadPacket.TRUNCATED),
        (b"\x41" + ipv4()[1:], BadPacket.HEADER_LENGTH),
        (ipv4(len=10), BadPacket.HEADER_LENGTH),
        (ipv4(chksum=1), BadPacket.CHECKSUM),
        (ipv4(flags="MF"), BadPacket.FRAGMENT),
        (ipv4(frag=3), BadPacket.FRAGMENT),
        (bytes(IPv6() / IPv6ExtHdrFragment() / TCP()), BadPacket.FRAGMENT),
        (bytes(IPv6(nh=0)), BadPacket.TRUNCATED),
        (bytes(IPv6(nh=0) / Raw(b"\x06\xff" + bytes(20))), BadPacket.HEADER_LENGTH),
        (ipv4()[:30], BadPacket.TRUNCATED),
        (ipv4(options=b"\x07\x0b\x04" + bytes(9))[:30], BadPacket.TRUNCATED),
        (bytes(IP() / TCP(options=[("Timestamp", (1, 2))]))[:45], BadPacket.TRUNCATED),
        (bytes(IP() / ICMP()), BadPacket.PROTOCOL),
        (bytes(IP() / TCP(dataofs=4)), BadPacket.HEADER_LENGTH),
        (bytes(IP() / TCP(dataofs=15)), BadPacket.HEADER_LENGTH),
    ],
)
def test_bad_packets_are_named(packet: bytes, reason: BadPacket) -> None:
    with pytest.raises(PacketError) as caught:
        parse_tcp(packet)
    assert caught.value.reason is reason


@given(st.binary(max_size=120))
def test_random_bytes_never_do_more_than_a_packet_error(data: bytes) -> None:
    for first in (b"", b"\x45", b"\x60"):
        for parse in (parse_ip, parse_tcp, parse_unreachable):
            with suppress(PacketError):
                parse(first + data)


def test_addresses_come_back_as_their_family() -> None:
    assert isinstance(parse_ip(build_ip(V4.local.host, V4.remote.host, 6, b"")).source, IPv4Address)
    packet = build_ip(V6.local.host, V6.remote.host, 6, b"abcd")
    assert isinstance(parse_ip(packet).source, IPv6Address)
    assert struct.unpack_from("!H", packet, 4) == (4,)


TOKEN = bytes.fromhex("0102030405060708")
OPTION = bytes.fromhex("fd0c7747") + TOKEN
TIMESTAMPS = bytes.fromhex("0101080a 11111111 22222222")


def sack(blocks: int) -> bytes:
    return b"\x01\x01\x05" + bytes([2 + 8 * blocks]) + b"\x33" * 8 * blocks


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (b"", OPTION),
        (TIMESTAMPS, TIMESTAMPS + OPTION),
        (TIMESTAMPS + sack(1), TIMESTAMPS[2:] + sack(1)[2:] + OPTION),
        (TIMESTAMPS + sack(2), TIMESTAMPS[2:] + sack(2)[2:] + OPTION),
        (TIMESTAMPS + sack(3), TIMESTAMPS + OPTION),
        (sack(3), b"\x01\x01" + sack(3)[2:] + OPTION),
        (sack(4), OPTION),
        (TIMESTAMPS + b"\0\xff\xff\xff", TIMESTAMPS + OPTION),
    ],
    ids=["none", "timestamps", "one block", "two blocks", "three", "three alone", "four", "end mark"],
)
def test_a_token_beside_other_options(options: bytes, expected: bytes) -> None:
    assert options_with_token(options, TOKEN) == expected
    assert token_of(expected) == TOKEN


def test_a_token_takes_so_many_bytes() -> None:
    assert len(options_with_token(b"", TOKEN)) == TOKEN_OPTION == len(OPTION)


def test_a_token_without_sack_blocks() -> None:
    assert options_with_token(TIMESTAMPS + sack(1), TOKEN, sack=False) == TIMESTAMPS + OPTION


def test_no_room_for_a_token_beside_signatures() -> None:
    signature = b"\x1d\x14" + bytes(18)  # RFC 5925
    with pytest.raises(PacketError) as error:
        options_with_token(TIMESTAMPS + signature, TOKEN)
    assert error.value.reason is BadPacket.NO_ROOM


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ("", BadPacket.NO_TOKEN),
        ("0101080a1111111122222222", BadPacket.NO_TOKEN),
        ("fd0c77480102030405060708", BadPacket.NO_TOKEN),
        ("00000000fd0c77470102030405060708", BadPacket.NO_TOKEN),
        ("fd0477470101", BadPacket.TOKEN_LENGTH),
        ("fd0d774701020304050607080901", BadPacket.TOKEN_LENGTH),
        ("fd0c7747010203", BadPacket.OPTIONS),
        ("fd00", BadPacket.OPTIONS),
        ("fd01", BadPacket.OPTIONS),
        ("01fd", BadPacket.OPTIONS),
    ],
)
def test_what_is_no_token(options: str, reason: BadPacket) -> None:
    with pytest.raises(PacketError) as error:
        token_of(bytes.fromhex(options))
    assert error.value.reason is reason


@given(st.binary(max_size=40))
def test_any_options_give_a_token_or_a_reason(options: bytes) -> None:
    with suppress(PacketError):
        assert len(token_of(options)) == 8
    with suppress(PacketError):
        added = options_with_token(options, TOKEN)
        assert added.endswith(OPTION)
        assert len(added) <= 40
        assert len(added) % 4 == 0


@pytest.mark.parametrize("connection", [V4, V6], ids=["ipv4", "ipv6"])
@pytest.mark.parametrize("data", [b"", b"odd"])
def test_replaced_options_leave_all_else_and_make_checksums_right(connection: FourTuple, data: bytes) -> None:
    packet = bytearray(
        build_tcp(*connection, seq=7, ack=9, flags=TcpFlags.ACK, window=77, options=TIMESTAMPS, data=data)
    )
    if connection is V4:
        packet[1], packet[4:6], packet[8] = 0x02, b"id", 64
        packet[10:12] = bytes(2)
        packet[10:12] = checksum(bytes(packet[:20])).to_bytes(2)
    else:
        packet[1:4], packet[7] = b"\x21\x23\x45", 64
    packet[-len(data) - 16 : -len(data) - 14] = b"??"  # what the network card would have completed
    new = replace_options(bytes(packet), TIMESTAMPS + OPTION)
    expected = build_tcp(
        *connection, seq=7, ack=9, flags=TcpFlags.ACK, window=77, options=TIMESTAMPS + OPTION, data=data
    )
    ip = 20 if connection is V4 else 40
    assert new[ip:] == expected[ip:]
    if connection is V4:
        assert checksum(new[:20]) == 0
        assert (new[1], new[4:6], new[8], int.from_bytes(new[2:4])) == (0x02, b"id", 64, len(new))
    else:
        assert (new[1:4], new[7], int.from_bytes(new[4:6])) == (b"\x21\x23\x45", 64, len(new) - 40)


@pytest.mark.parametrize("connection", [V4, V6], ids=["ipv4", "ipv6"])
def test_what_follows_a_packet_is_not_taken_for_its_end(connection: FourTuple) -> None:
    packet = build_tcp(*connection, seq=7, ack=9, flags=TcpFlags.ACK, data=b"data")
    assert replace_options(packet + b"padding", OPTION) == replace_options(packet, OPTION)


def test_options_are_not_replaced_in_half_a_packet() -> None:
    packet = build_tcp(*V4, seq=7, ack=9, flags=TcpFlags.ACK, data=b"data")
    with pytest.raises(PacketError) as error:
        replace_options(packet[:-1], OPTION)
    assert error.value.reason is BadPacket.TRUNCATED


def test_what_does_not_fit_into_a_header_is_not_built() -> None:
    whole = build_tcp(*V4, seq=1, flags=TcpFlags.ACK)
    for length in (3, 44):
        with pytest.raises(ValueError, match=f"{length} bytes of TCP options"):
            replace_options(whole, bytes(length))
    for length in (7, 9):
        with pytest.raises(ValueError, match=f"a token of {length} bytes"):
            options_with_token(b"", bytes(length))


def test_timestamps_are_found_beside_other_options() -> None:
    assert build_timestamps(0x11111111, 2**32 + 0x22222222) == TIMESTAMPS
    assert timestamps_of(sack(2) + TIMESTAMPS) == Timestamps(value=0x11111111, echo=0x22222222)


@pytest.mark.parametrize("options", ["", "01010101", "01010806 11111111", "0101090a 11111111 22222222"])
def test_where_there_are_no_timestamps(options: str) -> None:
    assert timestamps_of(bytes.fromhex(options)) is None

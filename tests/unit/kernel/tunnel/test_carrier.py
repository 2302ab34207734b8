"""The tunnel's hot path against the slow form of wire/tunnel.py; sizes of datagrams; reports."""

from __future__ import annotations

import struct
from dataclasses import replace
from ipaddress import IPv4Address, ip_address

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given
from hypothesis import strategies as st

from redirectctl.kernel.tunnel import carrier
from redirectctl.kernel.tunnel.device import GSO_NONE, GSO_TCPV4, GSO_TCPV6, NEEDS_CSUM, VNET_HEADER
from redirectctl.kernel.tunnel.plpmtud import CANDIDATES, RAISE, RETRY, SAFE_MTU, Path
from redirectctl.kernel.tunnel.reports import Report, Reporter, Sight
from redirectctl.kernel.tunnel.segments import LARGEST_SEND, WINDOW, Inbound, Outbound, Window, continues
from redirectctl.wire.addr import FourTuple, SockAddr
from redirectctl.wire.ip import HOP_LIMIT, Protocol, checksum, parse_ip, pseudo_header_sum
from redirectctl.wire.tunnel import COUNTER_JUMP, TAG_LEN, Offer, Refused, Segment, decode, encode

V4 = FourTuple(SockAddr.parse("192.0.2.1:40000"), SockAddr.parse("203.0.113.9:22"))
V6 = FourTuple(SockAddr.parse("[2001:db8::1]:40000"), SockAddr.parse("[2001:db8:9::2]:22"))
OFFER = Offer(0xA1B2C3D4, bytes(range(16)), 1 << 60)
FIN, SYN, RST, PSH, ACK, URG, ECE, CWR = (1 << bit for bit in range(8))
TCP = struct.Struct("!HHIIHHHH")
MASK = 0xFFFFFFFF


def packet(segment: Segment, socket: FourTuple = V4, ip_options: bytes = b"") -> tuple[memoryview, int]:
    """What a socket sends, as it comes from the TUN device, and where its TCP header begins."""
    (local, lport), (remote, rport) = socket
    offset = 20 + len(segment.options) << 10 | segment.flags
    fields = (lport, rport, segment.seq, segment.ack, offset, segment.window, 0xBEEF, segment.urgent)
    tcp = TCP.pack(*fields) + segment.options + segment.data
    if socket.version == 6:
        head = struct.pack("!IHBB", 6 << 28 | segment.traffic_class << 20, len(tcp), 6, 64)
    else:
        first = 0x45 + len(ip_options) // 4
        length = 20 + len(ip_options) + len(tcp)
        head = struct.pack("!BBHHHBBH", first, segment.traffic_class, length, 7, 0x4000, 64, 6, 0)
    head += local.packed + remote.packed + ip_options
    return memoryview(head + tcp), len(head)


def written(buffers: list[bytes | memoryview], socket: FourTuple = V4) -> tuple[Segment, int]:
    """A packet that is written to the TUN device as a segment, and the size that it is to be cut to.

    Everything that the kernel relies on is checked: addresses, lengths, checksums, the virtio header.
    """
    whole = b"".join(buffers)
    flags, gso, header, size, start, at = VNET_HEADER.unpack_from(whole)
    ip = whole[VNET_HEADER.size :]
    found = parse_ip(ip)  # verifies the checksum of an IPv4 header
    tcp = found.payload
    assert (found.source, found.destination) == (socket.remote.host, socket.local.host)
    assert (found.protocol, found.ttl, found.length) == (Protocol.TCP, HOP_LIMIT, len(tcp))
    sport, dport, seq, ack, offset, window, check, urgent = TCP.unpack_from(tcp)
    data_at = (offset >> 12) * 4
    assert (sport, dport) == (socket.remote.port, socket.local.port)
    assert (flags, start, at) == (NEEDS_CSUM, len(ip) - len(tcp), 16)
    assert header == len(ip) - len(tcp) + data_at
    assert gso == ((GSO_TCPV4 if socket.version == 4 else GSO_TCPV6) if size else GSO_NONE)
    pseudo = pseudo_header_sum(found.source, found.destination, Protocol.TCP, len(tcp))
    assert check % 0xFFFF == pseudo % 0xFFFF
    completed = tcp[:16] + checksum(tcp).to_bytes(2, "big") + tcp[18:]  # what `skb_checksum_help` does
    assert checksum(completed, pseudo) == 0
    traffic = ip[1] if socket.version == 4 else int.from_bytes(ip[:2], "big") >> 4 & 0xFF
    data = tcp[data_at:]
    return Segment(0, 0, seq, ack, offset & 0xFFF, window, urgent, traffic, tcp[20:data_at], data), size


def pieces(
    outbound: Outbound, segment: Segment, room: int, *, cwr_once: bool = True, socket: FourTuple = V4
) -> list[bytes]:
    """The datagrams that a packet is cut into."""
    whole, tcp = packet(segment, socket)
    buffers, each, size = outbound.cut(whole, tcp, segment.traffic_class, room, cwr_once=cwr_once)
    found = [b"".join(buffers[at : at + each]) for at in range(0, len(buffers), each)]
    assert {len(one) for one in found[:-1]} <= {size}
    assert len(found[-1]) <= size <= room
    return found


def apart(segment: Segment, most: int, first: int, *, cwr_once: bool) -> list[Segment]:
    """The slow form of cutting: one segment after the other."""
    found = []
    count = max(1, -(-len(segment.data) // most))
    for index in range(count):
        at, flags = index * most, segment.flags
        if index < count - 1:
            flags &= ~(PSH | FIN)
        if index and cwr_once:
            flags &= ~CWR
        urgent = segment.urgent
        if segment.flags & URG and count > 1:
            urgent = max(0, urgent - at)
            flags = flags | URG if urgent else flags & ~URG
        elif count > 1:
            urgent = 0
        seq, data = (segment.seq + at) & MASK, segment.data[at : at + most]
        found.append(
            replace(segment, flow=OFFER.flow, counter=first + index, seq=seq, flags=flags, urgent=urgent, data=data)
        )
    return found


numbers = st.integers(0, MASK) | st.integers(MASK - 5000, MASK)
segments = st.builds(
    Segment,
    flow=st.just(0),
    counter=st.just(0),
    seq=numbers,
    ack=numbers,
    flags=st.integers(0, 0xFFF).map(lambda flags: flags & ~SYN),
    window=st.integers(0, 0xFFFF),
    urgent=st.integers(0, 0xFFFF) | st.integers(0, 900),
    traffic_class=st.integers(0, 255),
    options=st.integers(0, 10).flatmap(lambda words: st.binary(min_size=4 * words, max_size=4 * words)),
    data=st.binary(max_size=3000),
)


@given(
    segment=segments,
    room=st.integers(200, 1500),
    integrity=st.booleans(),
    cwr_once=st.booleans(),
    socket=st.sampled_from([V4, V6]),
)
def test_a_packet_is_cut_as_the_slow_form_cuts_it(
    segment: Segment, room: int, integrity: bool, cwr_once: bool, socket: FourTuple
) -> None:
    first = OFFER.start + (3 << 36)
    outbound = Outbound(OFFER, first, integrity)
    tag = TAG_LEN if integrity else 0
    most = room - 30 - len(segment.options) - tag
    found = pieces(outbound, segment, room, cwr_once=cwr_once, socket=socket)
    expected = apart(segment, most, first, cwr_once=cwr_once)
    assert [decode(one[: len(one) - tag]) for one in found] == expected
    assert outbound.counter == first + len(expected)
    if integrity:
        for one, told in zip(found, expected, strict=True):
            nonce = bytes(4) + told.counter.to_bytes(8, "big")
            assert one[-TAG_LEN:] == AESGCM(OFFER.key).encrypt(nonce, b"", encode(told))


def test_options_of_the_ip_header_are_left_out() -> None:
    segment = Segment(OFFER.flow, OFFER.start, 1, 2, ACK, 3, data=b"data")
    whole, tcp = packet(segment, ip_options=bytes(8))
    buffers, _, _ = Outbound(OFFER, OFFER.start, False).cut(whole, tcp, 0, 1000, cwr_once=True)
    assert decode(b"".join(buffers)) == segment


@given(segment=segments, room=st.integers(200, 1500), integrity=st.booleans(), socket=st.sampled_from([V4, V6]))
def test_what_is_cut_is_joined_to_what_it_was(segment: Segment, room: int, integrity: bool, socket: FourTuple) -> None:
    whole = pieces(Outbound(OFFER, OFFER.start, integrity), segment, room, cwr_once=False, socket=socket)
    inbound = Inbound(OFFER, integrity, socket)
    chunk = memoryview(b"".join(whole))
    writes, length = inbound.take(chunk, len(whole[0]), refused := [].append)
    assert length >= len(chunk)
    assert refused.__self__ == []
    assert inbound.acked == segment.ack
    if len(whole) > 1 and not segment.flags & (URG | RST):
        (only,) = writes
        told, size = written(only, socket)
        assert told == replace(segment, urgent=0)
        assert size == len(decode(whole[0][: len(whole[0]) - (TAG_LEN if integrity else 0)]).data)
    else:
        assert b"".join(written(each, socket)[0].data for each in writes) == segment.data


@st.composite
def bursts(draw: st.DrawFn) -> tuple[list[Segment], int]:
    """Datagrams of one flow as UDP_GRO hands them over: of one size but for the last; and that size.

    Some follow each other, some do not.
    """
    length = draw(st.integers(1, 60))
    counter, seq = OFFER.start + draw(st.integers(0, 1000)), draw(numbers)
    found: list[Segment] = []
    for last in [False] * draw(st.integers(0, 8)) + [True]:
        data = draw(st.binary(min_size=1, max_size=length) if last else st.binary(min_size=length, max_size=length))
        flags = draw(st.sampled_from([ACK] * 8 + [ACK | PSH, ACK | FIN, ACK | CWR, ACK | URG, ACK | RST]))
        found.append(Segment(OFFER.flow, counter, seq, draw(st.sampled_from([5] * 9 + [6])), flags, 7, data=data))
        counter += draw(st.sampled_from([1] * 9 + [2]))
        seq = (seq + len(data) + draw(st.sampled_from([0] * 9 + [1]))) & MASK
    return found, length


@given(burst=bursts(), integrity=st.booleans())
def test_joining_changes_no_byte_and_no_header_of_a_burst(burst: tuple[list[Segment], int], integrity: bool) -> None:
    sent, length = burst
    inbound, outbound = Inbound(OFFER, integrity, V4), Outbound(OFFER, OFFER.start, integrity)
    chunk = b"".join(outbound.sealed(encode(one), one.counter) for one in sent)
    writes, _ = inbound.take(memoryview(chunk), 30 + length + (TAG_LEN if integrity else 0), pytest.fail)
    again: list[Segment] = []
    for buffers in writes:
        told, size = written(buffers)
        again += apart(told, size or 100, 0, cwr_once=False)
    assert [replace(one, flow=0, counter=0) for one in sent] == [replace(one, flow=0, counter=0) for one in again]


def test_a_full_burst_becomes_one_write() -> None:
    segment = Segment(0, 0, MASK - 7000, 5, ACK | PSH, 7, options=bytes(12), data=bytes(range(256)) * 240)
    found = pieces(Outbound(OFFER, OFFER.start, True), segment, 1472)
    assert len(found) == 44
    assert len(b"".join(found)) <= LARGEST_SEND
    (buffers, *rest), _ = Inbound(OFFER, True, V4).take(memoryview(b"".join(found)), 1472, pytest.fail)
    assert rest == []
    assert written(buffers) == (segment, 1472 - 30 - 12 - TAG_LEN)


def ack(counter: int = OFFER.start, **fields: object) -> Segment:
    return replace(Segment(OFFER.flow, counter, 1, 2, ACK, 3, data=b"data"), **fields)


def refusals(inbound: Inbound, *datagrams: bytes) -> list[Refused]:
    """Why these datagrams were refused; they arrive one by one."""
    found: list[Refused] = []
    for each in datagrams:
        inbound.take(memoryview(each), len(each), found.append)
    return found


def sealed(segment: Segment, key: bytes = OFFER.key) -> bytes:
    return Outbound(Offer(OFFER.flow, key, OFFER.start), 0, True).sealed(encode(segment), segment.counter)


def test_a_bit_changed_anywhere_is_a_forgery() -> None:
    good = sealed(ack(options=bytes(12)))
    inbound = Inbound(OFFER, True, V4)
    for at in (2, 9, 15, 17, 21, 27, 29, 31, 44, len(good) - 16, len(good) - 1):
        bad = bytearray(good)
        bad[at] ^= 1
        expected = (
            Refused.TOO_OLD if at in (9, 15) and int.from_bytes(bad[8:16], "big") < OFFER.start else Refused.FORGED
        )
        assert refusals(inbound, bytes(bad)) == [expected], at
    assert refusals(inbound, good) == []


def test_another_connections_key_and_no_tag_at_all_are_forgeries() -> None:
    inbound = Inbound(OFFER, True, V4)
    assert refusals(inbound, sealed(ack(), bytes(16)), encode(ack(data=bytes(40)))) == [Refused.FORGED, Refused.FORGED]


def test_one_forged_datagram_of_a_burst_is_left_out_and_the_others_are_not() -> None:
    found = pieces(Outbound(OFFER, OFFER.start, True), ack(data=bytes(4000)), 500)
    found[3] = found[3][:-1] + bytes([found[3][-1] ^ 1])
    reasons: list[Refused] = []
    writes, _ = Inbound(OFFER, True, V4).take(memoryview(b"".join(found)), 500, reasons.append)
    assert reasons == [Refused.FORGED]
    assert len(writes) == len(found) - 1


@pytest.mark.parametrize("integrity", [False, True])
def test_a_replayed_datagram_is_refused_also_in_a_burst(integrity: bool) -> None:
    found = pieces(Outbound(OFFER, OFFER.start, integrity), ack(data=bytes(4000)), 500)
    inbound = Inbound(OFFER, integrity, V4)
    assert refusals(inbound, found[2], found[2]) == [Refused.REPLAYED]
    reasons: list[Refused] = []
    writes, _ = inbound.take(memoryview(b"".join(found)), 500, reasons.append)
    assert reasons == [Refused.REPLAYED]
    assert len(writes) == len(found) - 1
    assert refusals(inbound, *found) == [Refused.REPLAYED] * len(found)


def test_a_datagram_older_than_the_window_is_refused() -> None:
    inbound = Inbound(OFFER, False, V4)
    start = OFFER.start
    assert refusals(inbound, encode(ack(start + WINDOW)), encode(ack(start + 1))) == []
    assert refusals(inbound, encode(ack(start))) == [Refused.TOO_OLD]


def test_counters_before_the_offers_start_are_refused() -> None:
    assert refusals(Inbound(OFFER, False, V4), encode(ack(OFFER.start - 1))) == [Refused.TOO_OLD]
    assert refusals(Inbound(OFFER, False, V4), encode(ack(0))) == [Refused.TOO_OLD]


def test_without_integrity_a_counter_may_not_jump_too_far() -> None:
    inbound = Inbound(OFFER, False, V4)
    assert refusals(inbound, encode(ack(OFFER.start + COUNTER_JUMP))) == [Refused.COUNTER_JUMP]
    assert refusals(inbound, encode(ack(OFFER.start + COUNTER_JUMP - 1))) == []
    assert refusals(Inbound(OFFER, True, V4), sealed(ack(OFFER.start + 2 * COUNTER_JUMP))) == []


def test_what_makes_no_sense_moves_nothing() -> None:
    inbound = Inbound(OFFER, False, V4)
    good = encode(ack())
    short, long = good[:24] + b"\x40\x10" + good[26:], good[:24] + b"\xf0\x10" + good[26:]
    assert refusals(inbound, short, long) == [Refused.BAD_OFFSET] * 2
    assert refusals(inbound, encode(ack(flags=SYN)), encode(ack(flags=SYN | ACK))) == [Refused.BAD_SEGMENT] * 2
    assert refusals(inbound, good[:29], good[:16]) == [Refused.TRUNCATED] * 2
    assert refusals(inbound, good[:3] + b"\1" + good[4:]) == [Refused.RESERVED]
    assert refusals(inbound, good[:1] + b"\2" + good[2:]) == [Refused.UNKNOWN_VERSION]
    assert refusals(Inbound(OFFER, True, V4), good[:40]) == [Refused.TRUNCATED]
    assert refusals(inbound, good) == []


def test_nothing_in_a_datagram_chooses_addresses_or_ports() -> None:
    """Data that looks like headers is data."""
    trick = bytes(packet(ack(), V6)[0])
    (write,), _ = Inbound(OFFER, False, V4).take(memoryview(encode(ack(data=trick))), 30 + len(trick), pytest.fail)
    assert written(write)[0].data == trick


@pytest.mark.parametrize("socket", [V4, V6], ids=["IPv4", "IPv6"])
def test_the_largest_datagram_becomes_a_packet_that_ip_can_hold(socket: FourTuple) -> None:
    largest = ack(options=bytes(40), data=bytes(LARGEST_SEND - 30 - 40))
    (write,), _ = Inbound(OFFER, False, socket).take(memoryview(encode(largest)), LARGEST_SEND, pytest.fail)
    assert written(write, socket)[0].data == largest.data


def test_a_tag_with_one_bit_flipped_is_refused_and_the_true_one_still_counts() -> None:
    good, inbound = sealed(ack()), Inbound(OFFER, True, V4)
    for bit in range(TAG_LEN * 8):
        bad = bytearray(good)
        bad[len(good) - TAG_LEN + bit // 8] ^= 1 << bit % 8
        assert refusals(inbound, bytes(bad)) == [Refused.FORGED], bit
    assert refusals(inbound, good) == []


def test_another_flow_ends_the_work() -> None:
    first, other = encode(ack()), encode(replace(ack(), flow=5))
    writes, length = Inbound(OFFER, False, V4).take(memoryview(first + other), len(first), pytest.fail)
    assert (len(writes), length) == (1, len(first))


@given(data=st.binary(max_size=400), size=st.integers(1, 400), integrity=st.booleans())
def test_whatever_arrives_for_a_flow_is_written_or_refused(data: bytes, size: int, integrity: bool) -> None:
    chunk = b"\x08\x01\0\0" + OFFER.flow.to_bytes(4, "big") + (OFFER.start >> 32).to_bytes(4, "big") + data
    reasons: list[Refused] = []
    writes, length = Inbound(OFFER, integrity, V6).take(memoryview(chunk), size, reasons.append)
    assert length > 0
    assert len(writes) + len(reasons) <= -(-len(chunk) // size)
    for each in writes:
        written(each, V6)


@given(runs=st.lists(st.tuples(st.integers(0, 3 * WINDOW), st.integers(1, 64)), max_size=40))
def test_the_window_for_runs_agrees_with_a_set(runs: list[tuple[int, int]]) -> None:
    window, seen = Window(1000, None), set()
    for first, count in runs:
        counters = set(range(1000 + first, 1000 + first + count))
        refusal = window.check(1000 + first, count)
        if refusal is None:
            assert not counters & seen
            window.commit(1000 + first, count)
            seen |= counters
        else:
            expected = Refused.REPLAYED if counters & seen else Refused.TOO_OLD
            assert refusal in (expected, Refused.TOO_OLD)
            assert counters & seen or 1000 + first < max(seen) + 1 - WINDOW


def test_packets_that_continue_each_other_are_cut_as_one() -> None:
    def header(segment: Segment) -> memoryview:
        whole, tcp = packet(segment)
        return whole[: tcp + 20 + len(segment.options)]

    first = Segment(0, 0, MASK - 3, 5, ACK | PSH, 7, options=bytes(12), data=bytes(100))
    whole, tcp = packet(first)
    following = replace(first, seq=96, flags=ACK, data=b"")
    assert continues(whole, tcp, header(following))
    assert continues(whole, tcp, header(replace(following, flags=ACK | FIN | PSH)))
    for other in (
        replace(following, seq=97),
        replace(following, ack=6),
        replace(following, window=8),
        replace(following, flags=ACK | CWR),
        replace(following, options=bytes(11) + b"\1"),
    ):
        assert not continues(whole, tcp, header(other))
    for flag in (FIN, URG, RST):
        whole, tcp = packet(replace(first, flags=ACK | flag))
        assert not continues(whole, tcp, header(replace(following, flags=ACK | flag)))


def test_a_path_begins_with_what_surely_passes_and_grows_with_each_answer() -> None:
    path = Path(4, 1500)
    assert path.size == path.safe == 1280 - 28
    assert path.due(0.0)
    assert path.round(0.0) == [mtu - 28 for mtu in CANDIDATES]
    assert not path.due(RETRY[0] - 0.01)
    path.confirm(1400 - 28)
    path.confirm(1360 - 28)
    assert path.size == 1400 - 28
    assert path.round(RETRY[0]) == [mtu - 28 for mtu in (1452, 1472, 1492, 1500)]


def test_a_size_that_is_never_answered_is_given_up_for_a_while() -> None:
    path, now, rounds = Path(6, 1500), 0.0, []
    for _ in range(6000):
        if path.due(now) and path.round(now):
            rounds.append(now)
        now += 0.1
    assert [round(each, 1) for each in rounds] == [0.0, 0.5, 1.5]
    assert path.size == 1280 - 48
    assert not path.due(RAISE)


def test_the_interfaces_own_size_is_tried_if_it_is_larger() -> None:
    assert Path(4, 65535).round(0.0)[-1] == 9000 - 28
    assert Path(6, 3000).round(0.0)[-1] == 3000 - 48


def test_a_size_that_the_kernel_refuses_is_not_used_again() -> None:
    path = Path(4, 1500)
    for size in path.round(0.0):
        path.confirm(size)
    assert path.too_big(1472)
    assert path.size == 1492 - 28
    assert path.too_big(1280 - 28)
    assert path.size == path.safe == 576 - 28
    assert not path.too_big(576 - 28)
    assert not Path(6, 1500).too_big(1280 - 48)


def test_suspicion_begins_anew_but_not_again_and_again() -> None:
    path = Path(4, 1500)
    path.round(0.0)
    path.confirm(1472)
    path.suspect(100.0)
    assert path.size == path.safe
    assert path.due(100.0)
    path.round(100.0)
    path.confirm(1472)
    path.suspect(100.5)
    assert path.size == 1472


def test_reports_come_at_once_and_then_once_a_second_with_a_count(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 10.0
    monkeypatch.setattr("redirectctl.kernel.tunnel.reports.time.monotonic", lambda: now)
    seen: list[Report] = []
    reporter = Reporter(seen.append)
    source = SockAddr(ip_address("198.51.100.1"), 7747)
    for _ in range(5):
        reporter.note(Refused.FORGED, V4, ("198.51.100.1", 7747))
    reporter.note(Sight.RETRANSMISSION, V4, None)
    assert seen == [Report(Refused.FORGED, V4, source, 1), Report(Sight.RETRANSMISSION, V4, None, 1)]
    reporter.flush(10.9)
    assert len(seen) == 2
    reporter.flush(11.0)
    assert seen[2:] == [Report(Refused.FORGED, V4, source, 4)]
    reporter.flush(12.0)
    reporter.flush(13.0)
    assert not reporter.pending
    assert len(seen) == 3


def test_a_path_begins_without_a_descriptor_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(*_: object) -> None:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(carrier.socket, "socket", none_left)
    assert carrier._interface_mtu(None, SockAddr(IPv4Address("192.0.2.1"), 7747)) == SAFE_MTU

"""Messages inside a session: the bytes of each, the reason for each refusal."""

from __future__ import annotations

from contextlib import suppress
from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from redirectctl.wire import meeting as w
from redirectctl.wire import message as m
from redirectctl.wire.addr import FourTuple, SockAddr
from redirectctl.wire.datagram import MAX_DATAGRAM, MalformedError, Transport
from redirectctl.wire.fields import pack_ip, unpack_ip
from redirectctl.wire.tunnel import Offer

_CID, _CID2 = bytes.fromhex("c1d0000000000001"), bytes.fromhex("c1d0000000000002")
_V4 = "00000000000000000000ffff c0000201"  # 192.0.2.1
_TAG = b"names a pair of."
_V4B = "00000000000000000000ffff c6336402"  # 198.51.100.2
_V6 = "20010db8000000000000000000000001"
_TUPLE = FourTuple(SockAddr(ip_address("192.0.2.1"), 40000), SockAddr(ip_address("198.51.100.2"), 22))
_NONCE = b"a nonce ".hex()
_OFFER = Offer(1, b"K" * 16, 2**62 - 1)
_OFFERED = f"00000001 {b'K'.hex() * 16} 3fffffffffffffff"
_CLAIM = f"{_CID.hex()} 0000000000000009 {_V4} 9c40 {_V4B} 0016 {b'tokenize'.hex()} {_OFFERED}"

TABLE: list[tuple[m.Message, str]] = [
    (m.Hello(m.Trust.APPROVED, SockAddr(ip_address("192.0.2.1"), 7747)), f"01 01 {_V4} 1e43 00"),
    (m.Hello(m.Trust.PENDING, SockAddr(ip_address("2001:db8::1"), 1), (ip_address("192.0.2.1"),)),
     f"01 00 {_V6} 0001 01 {_V4}"),
    (m.Protect(7, (m.Claim(_CID, 9, _TUPLE, b"tokenize", _OFFER),)), f"02 00000007 01 {_CLAIM} 00"),
    (m.Protect(7, (m.Claim(_CID, 9, _TUPLE, b"tokenize", _OFFER, integrity=True),)), f"02 00000007 01 {_CLAIM} 01"),
    (m.Protect(7, ()), "02 00000007 00"),
    (m.Protected(7, (m.Verdict(_CID, 2**32, m.Status.NOT_YOURS),)),
     f"03 00000007 01 {_CID.hex()} 0000000100000000 04 {'00' * 72}"),
    (m.Protected(7, (m.Verdict(_CID, 2**32, m.Status.OK, _TUPLE, _OFFER, b"tokenize"),)),
     f"03 00000007 01 {_CID.hex()} 0000000100000000 00 {_V4} 9c40 {_V4B} 0016 {_OFFERED} {b'tokenize'.hex()}"),
    (m.Acm(5, b"a nonce ", ip_address("192.0.2.1"), m.Moved((ip_address("198.51.100.2"),))),
     f"04 0000000000000005 {_NONCE} {_V4} 00 01 00 {_V4B}"),
    (m.Acm(5, b"a nonce ", ip_address("192.0.2.1"), m.Moved((ip_address("198.51.100.2"),), (_CID,)), stalled=True),
     f"04 0000000000000005 {_NONCE} {_V4} 01 01 01 {_V4B} {_CID.hex()}"),
    (m.Acm(5, b"a nonce ", ip_address("2001:db8::1"), m.Moved((), (_CID, _CID2))),
     f"04 0000000000000005 {_NONCE} {_V6} 00 00 02 {_CID.hex()} {_CID2.hex()}"),
    (m.AcmAck(5, b"a nonce ", m.AcmStatus.STALE, 1000, SockAddr(ip_address("192.0.2.1"), 7747)),
     f"05 0000000000000005 {_NONCE} 01 000003e8 {_V4} 1e43"),
    (m.PathChallenge(5, b"a nonce ", b"12345678"), f"06 0000000000000005 {_NONCE} 3132333435363738"),
    (m.PathResponse(5, b"12345678"), "07 0000000000000005 3132333435363738"),
    (m.RstQuery(8, _CID), f"08 00000008 {_CID.hex()}"),
    (m.RstReply(8, alive=True), "09 00000008 01"),
    (m.EndOf(9, m.End.KILL, (_CID, _CID2)), f"0a 00000009 02 02 {_CID.hex()} {_CID2.hex()}"),
    (m.Done(9), "0b 00000009"),
    (m.Sync(10, (_CID,)), f"0c 0000000a 01 {_CID.hex()}"),
    (m.SyncReply(10, ()), "0d 0000000a 00"),
    (
        m.Bind(11, (m.TokenArrival(_CID, b"12345678", 1, 2),)),
        f"0e 0000000b 01 {_CID.hex()} 3132333435363738 00000001 00000002",
    ),
    (m.PathProbe(b"a nonce "), "12 61206e6f6e636520"),
    (m.PathProbed(b"a nonce "), "13 61206e6f6e636520"),
    (m.BindNumbers(11, ((_CID, b"12345678"),)), f"0f 0000000b 01 {_CID.hex()} 3132333435363738"),
    (m.Seen((_CID, _CID2)), f"10 02 {_CID.hex()} {_CID2.hex()}"),
    (m.Seen(()), "10 00"),
    (m.Bye(), "11"),
    (m.Name.of("büro"), "14 05 62c3bc726f"),
    (m.Name.of(""), "14 00"),
    (w.Register(1, (ip_address("192.0.2.1"),), (_TAG,), b"12345678"),
     f"20 00000001 3132333435363738 01 {_V4} 01 {_TAG.hex()}"),
    (w.Register(1, (), ()), "20 00000001 0000000000000000 00 00"),
    (w.Registered(1, w.Registration.FULL, SockAddr(ip_address("192.0.2.1"), 7747)),
     f"21 00000001 03 {_V4} 1e43 0000000000000000"),
    (w.Lookup(_TAG), f"22 {_TAG.hex()}"),
    (w.Found(_TAG, SockAddr(ip_address("192.0.2.1"), 7747), (ip_address("2001:db8::1"),)),
     f"23 {_TAG.hex()} {_V4} 1e43 01 {_V6}"),
    (w.Forward(_TAG, b"datagram"), f"24 {_TAG.hex()} {b'datagram'.hex()}"),
    (w.Forwarded(_TAG, b"datagram"), f"25 {_TAG.hex()} {b'datagram'.hex()}"),
    (w.Relay(2, _TAG, (1, 2**32 - 1)), f"26 00000002 {_TAG.hex()} 02 00000001 ffffffff"),
    (w.Relayed(2, 250), "27 00000002 00fa"),
]  # fmt: skip


@pytest.mark.parametrize(("message", "hexed"), TABLE)
def test_bytes(message: m.Message, hexed: str) -> None:
    assert m.encode(message) == bytes.fromhex(hexed)
    assert m.decode(bytes.fromhex(hexed)) == message


def test_the_table_has_every_message() -> None:
    assert {type(message) for message, _ in TABLE} == set(m._TYPES.values())


REFUSED = [
    ("", "empty"),
    ("00", "unknown-message"),
    ("15 00", "unknown-message"),
    ("14 02 61", "bad-length"),
    (f"14 41 {'61' * 65}", "bad-length"),
    ("11 00", "bad-length"),
    ("01", "bad-length"),
    ("01 01", "bad-length"),
    (f"01 03 {_V4} 1e43 00", "bad-value"),
    (f"01 01 {'00' * 16} 1e43 00", "no-address"),
    (f"01 01 {_V4} 1e43 01 {'00' * 16}", "no-address"),
    (f"01 01 {_V4} 1e43 09 {_V4 * 9}", "bad-length"),  # one more than MAX_ADDRESSES
    ("02 000000", "bad-length"),
    ("02 00000007 01", "bad-length"),
    ("02 00000007 0d" + "00" * 91 * 13, "bad-length"),  # one more than MAX_PROTECT
    (f"02 00000007 01 {_CLAIM} 00".replace(_V4, "00" * 16), "no-address"),
    (f"02 00000007 01 {_CLAIM} 00".replace(_V4, _V6), "bad-tuple"),
    (f"02 00000007 01 {_CLAIM} 00".replace("9c40", "0000"), "bad-tuple"),
    (f"02 00000007 01 {_CLAIM} 00".replace("00000001 4b", "00000000 4b"), "bad-offer"),
    (f"02 00000007 01 {_CLAIM} 00".replace("3fffffffffffffff", "4000000000000000"), "bad-offer"),
    (f"02 00000007 01 {_CLAIM} 02", "bad-value"),
    (f"03 00000007 01 {_CID.hex()} 0000000100000000 0c {'00' * 72}", "bad-value"),
    (f"03 00000007 01 {_CID.hex()} 0000000100000000 04 {'00' * 71} 01", "bad-value"),
    (f"03 00000007 01 {_CID.hex()} 0000000100000000 00 {'00' * 72}", "no-address"),
    (f"03 00000007 02 {_CID.hex()} 0000000100000000 00", "bad-length"),
    ("03 00000007 0d" + "00" * 89 * 13, "bad-length"),  # one more than MAX_PROTECT
    (f"0e 0000000b 02 {_CID.hex()} 3132333435363738", "bad-length"),
    ("0f 0000000b 0d" + "00" * 16 * 13, "bad-length"),  # one more than MAX_PROTECT
    (f"04 0000000000000005 {_NONCE} {_V4} 00 00", "bad-length"),
    (f"04 0000000000000005 {_NONCE} {_V4} 00 00 00", "empty"),
    (f"04 0000000000000005 {_NONCE} {_V4} 02 01 00 {_V4B}", "bad-value"),
    (f"04 0000000000000005 {_NONCE} {'00' * 16} 00 01 00 {_V4B}", "no-address"),
    (f"04 0000000000000005 {_NONCE} {_V4} 00 01 00 {'00' * 16}", "no-address"),
    (f"04 0000000000000005 {_NONCE} {_V4} 00 01 01 {_V4B}", "bad-length"),
    (f"04 0000000000000005 {_NONCE} {_V4} 00 09 00" + _V4B * 9, "bad-length"),  # one more than MAX_OLD
    (f"04 0000000000000005 {_NONCE} {_V4} 00 00 65" + "00" * 8 * 101, "bad-length"),  # one more than MAX_MOVED
    (f"05 0000000000000005 {_NONCE} 05 00000001 {_V4} 1e43", "bad-value"),
    (f"05 0000000000000005 {_NONCE} 01 00000001 {'00' * 16} 1e43", "no-address"),
    ("10", "bad-length"),
    ("10 02 c1d0000000000001", "bad-length"),
    ("10 41" + "00" * 8 * 65, "bad-length"),  # one more than MAX_TOKENS
    ("05 0000000000000005 01", "bad-length"),
    ("06 0000000000000005", "bad-length"),
    ("07 0000000000000005 313233343536373839", "bad-length"),
    ("08 00000008", "bad-length"),
    ("09 00000008 02", "bad-value"),
    (f"0a 00000009 03 01 {_CID.hex()}", "bad-value"),
    (f"0a 00000009 00 02 {_CID.hex()}", "bad-length"),
    ("0b 00", "bad-length"),
    ("0c 0000000a 81" + "00" * 8 * 129, "bad-length"),  # one more than MAX_CIDS
    ("0d 0000000a 01 00", "bad-length"),
    ("20 00000001", "bad-length"),
    (f"20 00000001 {'00' * 8} 09 {_V4 * 9} 00", "bad-length"),  # one more than MAX_ADDRESSES
    (f"20 00000001 {'00' * 8} 01 {_V4}", "bad-length"),
    (f"20 00000001 {'00' * 8} 00 3d {'00' * 16 * 61}", "bad-length"),  # one more than MAX_TAGS
    (f"20 00000001 {'00' * 8} 01 {'00' * 16} 00", "no-address"),
    (f"21 00000001 05 {_V4} 1e43 {'00' * 8}", "bad-value"),
    ("22 00", "bad-length"),
    (f"23 {_TAG.hex()} {'00' * 16} 1e43 00", "no-address"),
    (f"24 {_TAG.hex()}", "bad-length"),
    (f"25 {_TAG.hex()} {'00' * (w.MAX_FORWARDED + 1)}", "bad-length"),
    (f"26 00000002 {_TAG.hex()} fb {'00' * 4 * 251}", "bad-length"),  # one more than MAX_FLOWS
]


@pytest.mark.parametrize(("hexed", "reason"), REFUSED)
def test_refused(hexed: str, reason: str) -> None:
    with pytest.raises(MalformedError) as refused:
        m.decode(bytes.fromhex(hexed))
    assert refused.value.reason == reason


_u8, _u16, _u32, _u64 = (st.integers(0, 2**bits - 1) for bits in (8, 16, 32, 64))
_port = st.integers(1, 2**16 - 1)
_cid = st.binary(min_size=8, max_size=8)
_v4 = st.integers(1, 2**32 - 1).map(IPv4Address)
_v6 = st.integers(2**64, 2**128 - 1).map(IPv6Address)
_ip = st.one_of(_v4, _v6)
_pair = st.one_of(st.tuples(_v4, _v4), st.tuples(_v6, _v6))
_tuple = st.builds(lambda ips, a, b: FourTuple(SockAddr(ips[0], a), SockAddr(ips[1], b)), _pair, _port, _port)
_offer = st.builds(
    Offer, st.integers(1, 2**32 - 1), st.binary(min_size=16, max_size=16), st.integers(0, m.MAX_START - 1)
)


def _tuples_of(item: st.SearchStrategy[object], most: int, least: int = 0) -> st.SearchStrategy[tuple[object, ...]]:
    return st.lists(item, min_size=least, max_size=most).map(tuple)


_moved = st.builds(m.Moved, _tuples_of(_ip, m.MAX_OLD), _tuples_of(_cid, m.MAX_MOVED))

any_message = st.one_of(
    st.builds(m.Hello, st.sampled_from(m.Trust), st.builds(SockAddr, _ip, _port), _tuples_of(_ip, m.MAX_ADDRESSES)),
    st.builds(
        m.Protect,
        _u32,
        _tuples_of(st.builds(m.Claim, _cid, _u64, _tuple, _cid, _offer, st.booleans()), m.MAX_PROTECT),
    ),
    st.builds(
        m.Protected,
        _u32,
        _tuples_of(
            st.one_of(
                st.builds(m.Verdict, _cid, _u64, st.sampled_from([s for s in m.Status if s])),
                st.builds(m.Verdict, _cid, _u64, st.just(m.Status.OK), _tuple, _offer, _cid),
            ),
            m.MAX_PROTECT,
        ),
    ),
    st.builds(m.Bind, _u32, _tuples_of(st.builds(m.TokenArrival, _cid, _cid, _u32, _u32), m.MAX_PROTECT)),
    st.builds(m.BindNumbers, _u32, _tuples_of(st.tuples(_cid, _cid), m.MAX_PROTECT)),
    st.builds(m.Acm, _u64, _cid, _ip, _moved.filter(any), st.booleans()),
    st.builds(m.AcmAck, _u64, _cid, st.sampled_from(m.AcmStatus), _u32, st.builds(SockAddr, _ip, _port)),
    st.builds(m.PathChallenge, _u64, _cid, _cid),
    st.builds(m.PathResponse, _u64, _cid),
    st.builds(m.RstQuery, _u32, _cid),
    st.builds(m.RstReply, _u32, st.booleans()),
    st.builds(m.EndOf, _u32, st.sampled_from(m.End), _tuples_of(_cid, m.MAX_CIDS)),
    st.builds(m.Done, _u32),
    st.builds(m.Sync, _u32, _tuples_of(_cid, m.MAX_CIDS)),
    st.builds(m.SyncReply, _u32, _tuples_of(_cid, m.MAX_CIDS)),
    st.builds(m.Seen, _tuples_of(_cid, m.MAX_TOKENS)),
    st.builds(m.PathProbe, _cid),
    st.builds(m.PathProbed, _cid),
    st.builds(m.Bye),
)
_tag = st.binary(min_size=w.TAG_LEN, max_size=w.TAG_LEN)
_place = st.builds(SockAddr, _ip, _port)
_datagram = st.binary(min_size=1, max_size=w.MAX_FORWARDED)
of_a_rendezvous = st.one_of(
    st.builds(w.Register, _u32, _tuples_of(_ip, w.MAX_ADDRESSES), _tuples_of(_tag, w.MAX_TAGS), _cid),
    st.builds(w.Registered, _u32, st.sampled_from(w.Registration), _place, _cid),
    st.builds(w.Lookup, _tag),
    st.builds(w.Found, _tag, _place, _tuples_of(_ip, w.MAX_ADDRESSES)),
    st.builds(w.Forward, _tag, _datagram),
    st.builds(w.Forwarded, _tag, _datagram),
    st.builds(w.Relay, _u32, _tag, _tuples_of(_u32, w.MAX_FLOWS)),
    st.builds(w.Relayed, _u32, _u16),
)


@given(any_message)
def test_a_rendezvous_can_hand_it_over(message: m.Message) -> None:
    assert len(Transport(1, 1, 1, m.encode(message) + bytes(16)).encode()) <= w.MAX_FORWARDED


@given(any_message | of_a_rendezvous)
def test_round_trip_within_a_datagram(message: m.Message) -> None:
    plaintext = m.encode(message)
    assert m.decode(plaintext) == message
    assert len(plaintext) <= m.MAX_PLAINTEXT
    assert len(Transport(1, 1, 1, plaintext + bytes(16)).encode()) <= MAX_DATAGRAM


@given(st.one_of(st.binary(max_size=1300), st.builds(lambda t, b: bytes((t,)) + b, st.integers(0, 40), st.binary())))
def test_any_bytes_are_a_message_or_refused(data: bytes) -> None:
    try:
        message = m.decode(data)
    except MalformedError:
        return
    assert m.decode(m.encode(message)) == message


@given(any_message | of_a_rendezvous, st.integers(0), st.integers(1, 255))
def test_a_changed_byte_is_refused_or_another_message(message: m.Message, at: int, change: int) -> None:
    data = bytearray(m.encode(message))
    data[at % len(data)] ^= change
    with suppress(MalformedError):
        assert m.decode(bytes(data)) != message


@pytest.mark.parametrize("text", ["192.0.2.1", "2001:db8::1"])
def test_an_address_is_sixteen_bytes(text: str) -> None:
    assert len(pack_ip(ip_address(text))) == 16
    assert unpack_ip(pack_ip(ip_address(text))) == ip_address(text)


def test_no_address_is_any() -> None:
    assert pack_ip(None) == bytes(16)
    assert unpack_ip(bytes(16)) is None


@pytest.mark.parametrize(
    ("sent", "shown"),
    [
        (b"laptop", "laptop"),
        ("büro".encode(), "büro"),
        (b"\x1b[2Jrm -rf\n", "[2Jrm -rf"),
        (b'" at 192.0.2.1 "x', "at 192.0.2.1 x"),
        ("a\u202eb\u200bc".encode(), "abc"),
        (b"\xff\xfe", ""),
        (b" ' ` \\ ", ""),
    ],
)
def test_a_name_is_shown_as_what_nobody_can_be_led_by(sent: bytes, shown: str) -> None:
    assert m.Name(tuple(sent)).name == shown


def test_a_name_that_is_too_long_is_cut() -> None:
    assert m.Name.of("x" * 1000).name == "x" * m.MAX_NAME
    assert m.Name.of("x" * (m.MAX_NAME - 1) + "ü").name == "x" * (m.MAX_NAME - 1), "and no half of a character is left"

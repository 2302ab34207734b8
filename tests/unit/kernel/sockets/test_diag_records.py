"""Records of inet_diag as other kernels send them."""

from __future__ import annotations

import socket
import struct

import pytest

from redirectctl.kernel.errors import KernelError
from redirectctl.kernel.sockets.diag import SocketInfo, TcpState, _parse
from redirectctl.wire.addr import FourTuple, SockAddr

LOCAL, REMOTE = SockAddr.parse("192.0.2.1:40000"), SockAddr.parse("198.51.100.7:22")


def record(*attributes: tuple[int, bytes], family: int = socket.AF_INET) -> SocketInfo:
    """A `struct inet_diag_msg` of an established connection with attributes."""
    ends = [end.host.packed for end in (LOCAL, REMOTE)]
    if family == socket.AF_INET6:
        ends = [bytes(10) + b"\xff\xff" + end for end in ends]
    data = struct.pack("=BBBB", family, 1, 1, 3) + struct.pack("!HH", 40000, 22)
    data += b"".join(end.ljust(16, b"\0") for end in ends)
    data += struct.pack("=IIIIIIII", 7, 0x1111, 0x2222, 300, 10, 20, 1000, 4242)
    for kind, value in attributes:
        data += struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)
    return _parse(data, 0, len(data))


def tcp_info(size: int) -> bytes:
    """The first bytes of a `struct tcp_info` whose every 32-bit word is its own offset."""
    return (b"\x01\x04\x03\x02\x05\x00\x97\x00" + b"".join(struct.pack("=I", at) for at in range(8, 280, 4)))[:size]


def test_the_fixed_part() -> None:
    one = record()
    assert one == SocketInfo(
        tuple=FourTuple(LOCAL, REMOTE),
        family=socket.AF_INET,
        state=TcpState.ESTABLISHED,
        timer=1,
        timer_retransmits=3,
        receive_queue=10,
        write_queue=20,
        uid=1000,
        inode=4242,
        cookie=0x2222_0000_1111,
        ifindex=7,
        cgroup_id=None,
        wants_errors=False,
        info=None,
    )
    assert one.in_flight == 20


def test_ipv4_mapped_addresses_are_ipv4() -> None:
    one = record(family=socket.AF_INET6)
    assert (one.family, one.tuple) == (socket.AF_INET6, FourTuple(LOCAL, REMOTE))


def test_attributes_in_any_order_and_unknown_ones() -> None:
    one = record((99, b"what"), (21, struct.pack("=Q", 77)), (8, b"\0"), (22, b"\x01\0"), (2, tcp_info(248)))
    assert one.cgroup_id == 77
    assert one.wants_errors
    assert one.info is not None


@pytest.mark.parametrize("size", [232, 248, 280])
def test_tcp_info_by_offset(size: int) -> None:
    info = record((2, tcp_info(size))).info
    assert info is not None
    assert (info.state, info.retransmits, info.probes, info.backoff, info.send_scale) == (1, 3, 2, 5, 7)
    assert (info.rto, info.send_mss, info.unacked, info.last_data_received, info.rtt) == (8, 16, 24, 52, 68)
    assert (info.total_retransmits, info.notsent_bytes, info.min_rtt, info.send_window) == (100, 144, 148, 228)
    assert (info.options, info.receive_window) == (0, 232 if size > 232 else 0)
    wide = (info.bytes_acked, info.bytes_received, info.delivery_rate, info.bytes_sent, info.bytes_retransmitted)
    assert wide == tuple(at | (at + 4) << 32 for at in (120, 128, 160, 200, 208))


@pytest.mark.parametrize(("size", "known"), [(104, ()), (192, ("bytes_acked", "notsent_bytes", "delivery_rate"))])
def test_what_an_older_kernel_does_not_say_is_zero(size: int, known: tuple[str, ...]) -> None:
    info = record((2, tcp_info(size))).info
    assert info is not None
    assert info.rtt == 68
    assert info.send_window == info.bytes_sent == info.receive_window == 0
    for name in ("bytes_acked", "notsent_bytes", "delivery_rate"):
        assert (getattr(info, name) != 0) is (name in known)


@pytest.mark.parametrize(
    ("state", "acked", "sent", "repeated", "waiting", "opened"),
    [
        (TcpState.ESTABLISHED, 1, 0, 0, 0, True),
        (TcpState.ESTABLISHED, 0, 0, 0, 0, False),
        (TcpState.ESTABLISHED, 101, 250, 50, 100, True),
        (TcpState.ESTABLISHED, 100, 250, 50, 100, False),
        (TcpState.CLOSE_WAIT, 101, 100, 0, 0, True),
        (TcpState.FIN_WAIT1, 101, 100, 0, 1, True),
        (TcpState.FIN_WAIT1, 100, 100, 0, 1, False),
        (TcpState.FIN_WAIT2, 102, 100, 0, 0, True),
        (TcpState.LAST_ACK, 100, 100, 0, 1, False),
        (TcpState.ESTABLISHED, 101, 5000, 0, 0, False),  # some of it could not be sent, and came to nothing
    ],
)
def test_who_opened_a_connection(
    state: TcpState, acked: int, sent: int, repeated: int, waiting: int, opened: bool
) -> None:
    info = record((2, tcp_info(248))).info
    assert info is not None
    counts = info._replace(bytes_acked=acked, bytes_sent=sent, bytes_retransmitted=repeated, notsent_bytes=7)
    one = record()._replace(state=state, info=counts, write_queue=waiting + 7)
    assert one.opened is opened
    assert not one._replace(info=None).opened


def test_an_attribute_without_length_ends_the_record() -> None:
    # Never sent by a kernel; must not be an endless loop.
    data = struct.pack("=BBBB", 2, 1, 0, 0) + bytes(68) + bytes(8)
    assert _parse(data, 0, len(data)).info is None


def test_an_error_names_what_why_and_what_to_do() -> None:
    error = KernelError("closing a socket", "not supported", "another kernel")
    assert str(error) == "closing a socket: not supported; another kernel"
    assert (error.what, error.why, error.hint) == ("closing a socket", "not supported", "another kernel")

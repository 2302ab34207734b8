"""When a connection counts as stalled."""

from __future__ import annotations

from redirectctl.daemon.stalls import RETRANSMITS, StallWatch
from redirectctl.flows.engine import Engine
from redirectctl.kernel.diag import SocketInfo, TcpInfo, TcpState
from redirectctl.proto.noise import StaticKey
from redirectctl.wire.addr import FourTuple, SockAddr

ONE, OTHER = (
    FourTuple(SockAddr.parse(f"192.0.2.1:{port}"), SockAddr.parse("198.51.100.2:22")) for port in (40000, 40001)
)


def socket(tuple_: FourTuple, *, retransmits: int, acked: int, unacked: int = 1) -> SocketInfo:
    info = TcpInfo._make([0] * len(TcpInfo._fields))
    info = info._replace(retransmits=retransmits, bytes_acked=acked, unacked=unacked)
    return SocketInfo(tuple_, 2, TcpState.ESTABLISHED, 1, retransmits, 0, 100, 0, 1, 1, 0, None, False, info)


def watch() -> StallWatch:
    engine = Engine(StaticKey.from_private(bytes(range(32))), bytes, 1, None)  # type: ignore[arg-type]
    return StallWatch(engine, lambda sockets: {}, lambda: None)


def test_a_segment_that_stays_unacknowledged_between_two_looks_is_a_stall() -> None:
    looks = watch()
    assert looks.stalled([socket(ONE, retransmits=RETRANSMITS, acked=5)]) == []
    assert looks.stalled([socket(ONE, retransmits=RETRANSMITS + 1, acked=5)]) == [ONE]
    assert looks.stalled([socket(ONE, retransmits=RETRANSMITS + 2, acked=5)]) == [ONE]


def test_progress_between_two_looks_is_none() -> None:
    looks = watch()
    looks.stalled([socket(ONE, retransmits=RETRANSMITS, acked=5)])
    assert looks.stalled([socket(ONE, retransmits=RETRANSMITS, acked=6)]) == []


def test_few_retransmissions_or_nothing_in_flight_are_none() -> None:
    looks = watch()
    quiet = [
        socket(ONE, retransmits=RETRANSMITS - 1, acked=5),
        socket(OTHER, retransmits=RETRANSMITS, acked=5, unacked=0),
    ]
    assert looks.stalled(quiet) == []
    assert looks.stalled(quiet) == []

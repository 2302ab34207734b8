"""When a connection counts as stalled."""

from __future__ import annotations

from redirectctl.daemon.stalls import PROBES, RETRANSMITS, StallWatch
from redirectctl.flows.engine import Engine
from redirectctl.kernel.diag import SocketInfo, TcpInfo, TcpState
from redirectctl.proto.noise import StaticKey
from redirectctl.wire.addr import FourTuple, SockAddr

ONE, OTHER = (
    FourTuple(SockAddr.parse(f"192.0.2.1:{port}"), SockAddr.parse("198.51.100.2:22")) for port in (40000, 40001)
)


def socket(
    tuple_: FourTuple, *, retransmits: int, acked: int, unacked: int = 1, probes: int = 0, received: int = 0
) -> SocketInfo:
    info = TcpInfo._make([0] * len(TcpInfo._fields))
    info = info._replace(
        retransmits=retransmits, bytes_acked=acked, unacked=unacked, probes=probes, bytes_received=received
    )
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


def test_probes_that_nobody_answers_are_a_stall() -> None:
    """Of an idle connection (keepalive), or one with a closed window: nothing is in flight."""

    def probing(probes: int) -> SocketInfo:
        return socket(ONE, retransmits=0, acked=5, unacked=0, probes=probes)

    looks = watch()
    assert looks.stalled([probing(PROBES - 1)]) == []
    assert looks.stalled([probing(PROBES)]) == []
    assert looks.stalled([probing(PROBES + 1)]) == [ONE]
    assert looks.stalled([probing(0)]) == []
    assert looks.stalled([probing(PROBES)]) == []


def test_what_arrives_is_heard_once() -> None:
    looks = watch()
    at_rest = socket(OTHER, retransmits=0, acked=5, received=7)
    assert looks.heard([socket(ONE, retransmits=0, acked=5), at_rest]) == []  # the first look knows of no before
    assert looks.heard([socket(ONE, retransmits=0, acked=5, received=1), at_rest]) == [ONE]
    assert looks.heard([socket(ONE, retransmits=0, acked=6, received=1), at_rest]) == [ONE]
    assert looks.heard([socket(ONE, retransmits=3, acked=6, received=1), at_rest]) == []


def test_one_that_has_gone_and_come_is_new() -> None:
    looks = watch()
    stalled = socket(ONE, retransmits=RETRANSMITS, acked=5)
    looks.stalled([stalled])
    looks.heard([stalled])
    assert looks.stalled([]) == looks.heard([]) == []
    assert looks.stalled([stalled]) == []
    assert looks.heard([stalled._replace(info=stalled.info._replace(bytes_acked=9))]) == []  # type: ignore[union-attr]

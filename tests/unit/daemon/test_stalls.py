"""When a connection counts as stalled."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from redirectctl.daemon.stalls import PROBES, RETRANSMITS, SLOW, StallWatch
from redirectctl.flows.connection import Connection
from redirectctl.flows.engine import Engine
from redirectctl.flows.state import State
from redirectctl.kernel.sockets.diag import SocketInfo, TcpInfo, TcpState
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
    return StallWatch(engine, lambda sockets: {}, lambda: None, repeats=tuple, repeating=lambda least: [])


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


class Kernel:
    """One connection, what is counted, and how often somebody has looked."""

    def __init__(self, state: State = State.PROTECTED) -> None:
        self.count = 0
        self.looks = 0
        self.one = socket(ONE, retransmits=0, acked=5)
        self.told: list[FourTuple] = []
        self.heard: list[FourTuple] = []
        self.watch = StallWatch(
            watch()._engine,
            self._look_up,
            lambda: None,
            repeats=lambda: (b"%d" % self.count,),
            repeating=self._repeating,
        )
        engine = self.watch._engine
        engine.table.add(Connection(b"c" * 8, ONE, ONE, 0.0, state=state, peer=b"p" * 32))
        engine.stalled = lambda now, sockets: self.told.extend(sockets)  # type: ignore[method-assign]
        engine.heard = lambda now, sockets: self.heard.extend(sockets)  # type: ignore[method-assign]

    def _repeating(self, least: int) -> list[FourTuple]:
        self.looks += 1
        return [ONE, OTHER] if self.one.timer_retransmits >= least else []

    def _look_up(self, sockets: Iterable[FourTuple]) -> dict[FourTuple, SocketInfo]:
        return dict.fromkeys(sockets, self.one)

    def repeat(self, times: int) -> None:
        self.count += 1
        self.one = socket(ONE, retransmits=times, acked=5)


def test_nobody_looks_while_nothing_is_sent_again_but_now_and_then() -> None:
    kernel = Kernel()
    for beat in range(100):
        kernel.watch.look(beat * 0.5)
    assert kernel.looks == 50.0 // SLOW
    assert kernel.told == []


def test_what_is_sent_again_is_looked_at_at_once_and_until_it_is_over() -> None:
    kernel = Kernel()
    kernel.watch.look(0.0)
    kernel.repeat(RETRANSMITS)
    kernel.watch.look(0.5)
    assert kernel.told == []
    kernel.watch.look(1.0)  # nothing more was counted, the timer is backed off
    assert kernel.told == [ONE], "and not the other, which is none of ours"
    kernel.one = socket(ONE, retransmits=0, acked=6)
    kernel.watch.look(1.5)
    looks = kernel.looks
    kernel.watch.look(2.0)
    assert kernel.looks == looks


def test_what_is_not_counted_is_noticed_a_little_later() -> None:
    """A firewall of this host drops what the socket sends."""
    kernel = Kernel()
    kernel.watch.look(0.0)
    kernel.one = socket(ONE, retransmits=RETRANSMITS, acked=5)
    for beat in range(1, 20):
        kernel.watch.look(beat * 0.5)
    assert ONE in kernel.told


def test_one_that_is_suspended_already_is_no_stall() -> None:
    kernel = Kernel(State.SUSPENDED)
    for beat in range(10):
        kernel.repeat(RETRANSMITS + beat)
        kernel.watch.look(beat * 0.5)
    assert kernel.told == []


def test_only_what_is_wanted_to_be_known_is_listened_to() -> None:
    kernel = Kernel()
    for received in range(3):
        kernel.one = socket(ONE, retransmits=0, acked=5, received=received)
        kernel.watch.look(received * 0.5)
    assert kernel.heard == []
    kernel.watch.questioned(frozenset({b"p" * 32}))
    assert kernel.watch._hint.is_set(), "what is heard from now on counts, so the first look is now"
    kernel.watch._hint.clear()
    kernel.watch.look(2.0)
    kernel.watch.questioned(frozenset({b"p" * 32}))
    assert not kernel.watch._hint.is_set()
    kernel.one = socket(ONE, retransmits=0, acked=5, received=9)
    kernel.watch.look(2.5)
    assert kernel.heard == [ONE]
    kernel.watch.questioned(frozenset({b"q" * 32}))
    kernel.one = socket(ONE, retransmits=0, acked=5, received=10)
    kernel.watch.look(3.0)
    assert kernel.heard == [ONE]


@pytest.mark.parametrize(("held", "heard"), [(False, [ONE]), (True, [])])
def test_one_that_is_left_to_tcp_without_a_path_is_listened_to(held: bool, heard: list[FourTuple]) -> None:
    kernel = Kernel(State.SUSPENDED)
    (connection,) = kernel.watch._engine.table
    connection.blocked = held
    kernel.watch.questioned(frozenset({b"p" * 32}))
    for received in (5, 6):
        kernel.one = socket(ONE, retransmits=0, acked=5, received=received)
        kernel.watch.look(received * 0.5)
    assert kernel.heard == heard

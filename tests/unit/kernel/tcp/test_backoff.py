"""BackoffReverter against fakes of the kernel: which packets it makes for which socket."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

import pytest

from redirectctl.kernel.sockets.bytecode import EVERYTHING, SocketFilter
from redirectctl.kernel.sockets.diag import SocketInfo, TcpInfo, TcpState, Timer
from redirectctl.kernel.tcp.backoff import MAX_REMEMBERED, ROUNDS, BackoffReverter, Numbers
from redirectctl.wire.addr import FourTuple, IPAddress, SockAddr
from redirectctl.wire.ip import SEQ_MASK, TcpFlags, build_tcp

PEER = SockAddr.parse("198.51.100.7:22")
SND_UNA, RCV_NXT = 0xFFFF_FFF0, 0x8000_0000


def connection(port: int) -> FourTuple:
    return FourTuple(SockAddr.parse(f"192.0.2.1:{port}"), PEER)


def tcp_info(**fields: int) -> TcpInfo:
    return TcpInfo(**{**dict.fromkeys(TcpInfo._fields, 0), "scales": 0x77, "send_window": 512 << 7, **fields})


def idle(port: int, **fields: int) -> SocketInfo:
    info = tcp_info(bytes_acked=1000, bytes_received=2000, **fields)
    return SocketInfo(connection(port), 2, TcpState.ESTABLISHED, Timer.NONE, 0, 0, 0, 0, 1, port, 0, None, False, info)


def backed_off(port: int, steps: int = 3) -> SocketInfo:
    waits = idle(port, retransmits=steps, backoff=steps, unacked=1, notsent_bytes=30)
    return waits._replace(timer=Timer.RETRANSMIT, write_queue=130)


def held_back(port: int) -> SocketInfo:
    return idle(port, probes=4, backoff=4, notsent_bytes=50)._replace(timer=Timer.PROBE, write_queue=50)


def changed(one: SocketInfo, **fields: int) -> SocketInfo:
    return one._replace(info=one.info._replace(**fields) if one.info else None)


@dataclass
class Packet:
    payload: bytes
    mark: int = 0
    verdicts: list[str] = field(default_factory=list)
    instead: bytes | None = None

    def accept(self, instead: bytes | None = None) -> None:
        self.instead = instead
        self.verdicts.append("accept" if instead is None else "replace")

    def drop(self) -> None:
        self.verdicts.append("drop")


@dataclass
class FakeHost:
    """Sockets, Injector and the probe queue at once: reacts as Linux would."""

    sockets: dict[FourTuple, SocketInfo]
    local: bool = True
    deaf: int = 0  # ICMPs that are ignored (`sock_owned_by_user`)
    silent: set[FourTuple] = field(default_factory=set)  # answer no SYN
    log: list[tuple[str, FourTuple]] = field(default_factory=list)
    acks: list[tuple[int, int, int]] = field(default_factory=list)
    probed: list[FourTuple] = field(default_factory=list)
    packets: list[Packet] = field(default_factory=list)
    options: bytes = b""  # of its ACKs
    listings: int = 0

    def __post_init__(self) -> None:
        self.backoff = BackoffReverter(self, self, self.probe)

    def dump(
        self,
        wanted: SocketFilter = EVERYTHING,
        *,
        states: Iterable[TcpState] = (),
        only: Collection[FourTuple] | None = None,
    ) -> list[SocketInfo]:
        self.listings += 1
        found = [one for one in self.sockets.values() if wanted.passes(one.tuple, None)]
        return [one for one in found if only is None or one.tuple in only]

    def get(self, connection: FourTuple, *, ifindex: int = 0) -> SocketInfo | None:
        return self.sockets.get(connection)

    def destroy(self, target: FourTuple | SocketInfo) -> bool:
        raise NotImplementedError

    def delivered_here(self, addresses: Iterable[IPAddress]) -> set[IPAddress]:
        return set(addresses) if self.local else set()

    def probe(self, connections: Iterable[FourTuple]) -> None:
        self.probed += connections

    def syn(self, connection: FourTuple, *, bound: bool = False) -> None:
        self.log.append(("syn", connection))
        one = self.sockets.get(connection)
        if one and one.info and connection in self.probed and connection not in self.silent:
            seq, ack = SND_UNA + one.in_flight, RCV_NXT
            answer = build_tcp(*connection, seq=seq, ack=ack, flags=TcpFlags.ACK, options=self.options)
            self.packets.append(Packet(answer))
            self.backoff.on_ack(self.packets[-1])

    def ack(self, connection: FourTuple, *, seq: int, ack: int, window: int) -> None:
        self.log.append(("ack", connection))
        self.acks.append((seq, ack, window))
        if (seq, ack) == (RCV_NXT, SND_UNA):
            sent = changed(self.sockets[connection], unacked=1, notsent_bytes=0, backoff=0)
            self.sockets[connection] = sent._replace(timer=Timer.RETRANSMIT)

    def unreachable(self, connection: FourTuple, seq: int, times: int) -> None:
        for _ in range(times):
            self.log.append(("icmp", connection))
            one = self.sockets[connection]
            if self.deaf:
                self.deaf -= 1
            elif seq == SND_UNA and one.info and one.info.backoff:
                self.sockets[connection] = changed(one, backoff=one.info.backoff - 1)

    def count(self, kind: str, port: int) -> int:
        return self.log.count((kind, connection(port)))

    def revert_and_follow_up(self, *ports: int) -> int:
        return asyncio.run(self.backoff.revert_and_follow_up([connection(port) for port in ports]))


def host(*sockets: SocketInfo, **how: object) -> FakeHost:
    return FakeHost({one.tuple: one for one in sockets}, **how)  # type: ignore[arg-type]


def test_one_icmp_for_each_step_and_one_more() -> None:
    fake = host(backed_off(1, 3), backed_off(2, 12))
    assert fake.revert_and_follow_up(1, 2) == 2
    assert (fake.count("icmp", 1), fake.count("icmp", 2)) == (4, 13)
    assert (fake.count("syn", 1), fake.count("syn", 2)) == (1, 1)


def test_nothing_is_done_to_what_is_not_named() -> None:
    fake = host(backed_off(1), backed_off(2), idle(3))
    assert fake.revert_and_follow_up(1) == 1
    assert {one for _, one in fake.log} == {connection(1)}


def test_others_only_say_where_they_are() -> None:
    waiting_for_room = changed(held_back(4), send_window=0)
    fresh = changed(backed_off(5, 3), retransmits=0, backoff=0)
    fake = host(idle(3), waiting_for_room, fresh)
    assert fake.revert_and_follow_up(3, 4, 5) == 0
    assert sorted(fake.log) == [("syn", connection(port)) for port in (3, 4, 5)]
    assert fake.probed == []


def test_what_could_not_be_sent_gets_the_peers_last_ack_again() -> None:
    fake = host(held_back(1))
    assert fake.revert_and_follow_up(1) == 1
    assert fake.acks == [(RCV_NXT, SND_UNA, 512)]


def test_numbers_wrap_and_follow_the_counters() -> None:
    one = backed_off(1)
    fake = host(one)
    fake.revert_and_follow_up(1)
    numbers = fake.backoff.numbers(one)
    assert numbers is not None
    assert numbers == Numbers((SND_UNA - 1000) & SEQ_MASK, RCV_NXT - 2000, opened=True)
    later = changed(one, bytes_acked=1000 + 0x20, bytes_received=2000 + 2**31)
    assert (numbers.snd_una(later), numbers.rcv_nxt(later)) == (0x10, 0)


def test_known_numbers_need_no_probe() -> None:
    fake = host(backed_off(1))
    fake.revert_and_follow_up(1)
    fake.probed.clear()
    fake.sockets[connection(1)] = backed_off(1, 5)
    assert fake.revert_and_follow_up(1) == 1
    assert fake.probed == []
    fake.backoff.forget(1)
    fake.sockets[connection(1)] = backed_off(1, 5)
    assert fake.revert_and_follow_up(1) == 1
    assert fake.probed == [connection(1)]


def test_wrong_numbers_are_asked_for_again() -> None:
    one = backed_off(1)
    fake = host(one)
    fake.backoff._remember(one.cookie, Numbers(5, 5))
    assert fake.revert_and_follow_up(1) == 1
    assert fake.count("icmp", 1) == 8
    assert fake.probed == [connection(1)]


def test_a_socket_that_was_busy_is_kicked_again() -> None:
    fake = host(backed_off(1), deaf=5)
    assert fake.revert_and_follow_up(1) == 1
    assert fake.count("icmp", 1) > 4


def test_it_gives_up_in_the_end() -> None:
    fake = host(backed_off(1), deaf=10**6)
    assert fake.revert_and_follow_up(1) == 0
    assert fake.count("icmp", 1) == ROUNDS * 4


def test_one_that_does_not_answer_does_not_hold_up_the_others() -> None:
    fake = host(backed_off(1), backed_off(2), silent={connection(2)})
    assert fake.revert_and_follow_up(1, 2) == 1
    assert (fake.count("icmp", 1), fake.count("icmp", 2)) == (4, 0)


def test_programs_that_want_icmp_errors_are_left_alone() -> None:
    fake = host(backed_off(1)._replace(wants_errors=True))
    assert fake.revert_and_follow_up(1) == 0
    assert fake.log == [("syn", connection(1))]


@pytest.mark.parametrize("state", [TcpState.SYN_SENT, TcpState.TIME_WAIT, TcpState.CLOSE, TcpState.LISTEN])
def test_only_connections(state: TcpState) -> None:
    fake = host(backed_off(1)._replace(state=state))
    assert fake.revert_and_follow_up(1, 99) == 0
    assert fake.log == []


def test_nothing_is_injected_that_would_leave_the_host() -> None:
    fake = host(backed_off(1), held_back(2), idle(3), local=False)
    assert fake.revert_and_follow_up(1, 2, 3) == 0
    assert fake.log == []


def test_many_are_listed_at_once() -> None:
    fake = host(*(backed_off(port) for port in range(1, 1001)), idle(2000))
    assert fake.revert_and_follow_up(*range(1, 1001)) == 1000
    assert fake.listings == 3  # before, for the numbers, after
    assert fake.count("syn", 2000) == 0


def test_acks_are_always_let_go() -> None:
    fake = host(idle(1))
    other = Packet(build_tcp(*connection(1), seq=1, ack=1, flags=TcpFlags.ACK, data=b"data"))
    garbage = Packet(b"\x45garbage")
    for packet in (other, garbage):
        fake.backoff.on_ack(packet)
    asyncio.run(fake.backoff.learn([connection(1)]))
    assert [packet.verdicts for packet in (other, garbage, *fake.packets)] == [["accept"]] * 3


def test_a_connection_that_moves_on_while_asked_is_not_learnt() -> None:
    fake = host(idle(1))
    asked = fake.syn

    def moves_on(one: FourTuple, *, bound: bool = False) -> None:
        asked(one)
        fake.sockets[one] = changed(fake.sockets[one], bytes_received=2001)

    fake.syn = moves_on  # type: ignore[method-assign]
    asyncio.run(fake.backoff.learn([connection(1)]))
    assert fake.backoff.numbers(idle(1)) is None


@pytest.mark.parametrize(("carried", "asked"), [(160, True), (1_000_000, False)])
def test_a_program_that_writes_little_and_often_has_a_moment_in_which_it_can_be_asked(
    carried: int, asked: bool
) -> None:
    fake = host(idle(1))
    get = fake.get

    def carries_on(one: FourTuple, *, ifindex: int = 0) -> SocketInfo | None:
        found = get(one)
        if found and not fake.probed:
            info = tcp_info(bytes_acked=1000 + carried // 2, bytes_received=2000 + carried // 2)
            fake.sockets[one] = found._replace(info=info)
        return found

    fake.get = carries_on  # type: ignore[method-assign]
    asyncio.run(fake.backoff.learn([connection(1)]))
    assert bool(fake.probed) is asked
    assert (fake.backoff.numbers(idle(1)) is not None) is asked


@pytest.mark.parametrize(("window", "ahead"), [(0, 0), (300, 300), (900, 1000), (1000, 1000)])
def test_numbers_are_right_where_the_window_closed_over_what_is_in_flight(window: int, ahead: int) -> None:
    """TCP then puts the window's end into its ACKs, unless it is hardly past it (`tcp_acceptable_seq`)."""
    busy = changed(idle(1), unacked=1, send_window=window)._replace(write_queue=1000)
    fake = host(busy)
    answers = fake.syn

    def within_the_window(one: FourTuple, *, bound: bool = False) -> None:
        fake.sockets[one] = busy._replace(write_queue=ahead)
        answers(one)
        fake.sockets[one] = busy

    fake.syn = within_the_window  # type: ignore[method-assign]
    asyncio.run(fake.backoff.learn([connection(1)]))
    numbers = fake.backoff.numbers(busy)
    assert numbers is not None
    assert numbers.snd_una(busy) == SND_UNA


def test_learning_is_for_later() -> None:
    fake = host(idle(1), idle(2))
    asyncio.run(fake.backoff.learn([connection(1)]))
    asyncio.run(fake.backoff.learn([connection(1), connection(2)]))
    assert fake.probed == [connection(1), connection(2)]
    assert {kind for kind, _ in fake.log} == {"syn"}


def test_memory_is_bounded() -> None:
    fake = host()
    for cookie in range(MAX_REMEMBERED + 5):
        fake.backoff._remember(cookie, Numbers(0, 0))
    assert len(fake.backoff._numbers) == MAX_REMEMBERED
    assert fake.backoff.numbers(idle(1)) is None
    assert fake.backoff.numbers(idle(6)) is not None

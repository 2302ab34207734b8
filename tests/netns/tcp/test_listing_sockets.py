"""sock_diag against real sockets."""

from __future__ import annotations

import asyncio
import itertools
import os
import socket
from dataclasses import replace
from ipaddress import ip_address

import pytest

from redirectctl.kernel.sockets.bytecode import MAX_CONDITIONS, SocketFilter
from redirectctl.kernel.sockets.diag import CONNECTED, Destroyed, DestroyWatch, SockDiag, TcpState
from redirectctl.wire.addr import FourTuple
from tests.netns.tcp.socket_lab import Wire, inside, until, until_async


def diag_on(wire: Wire) -> SockDiag:
    with inside(wire.alice.name):
        return SockDiag()


def test_what_is_said_of_a_socket(wire: Wire) -> None:
    connection = wire.connect()
    diag = diag_on(wire)
    connection.client.send(bytes(1000))
    connection.server.recv(1000)
    connection.server.send(bytes(300))

    def settled() -> bool:
        one = diag.get(connection.tuple)
        return bool(one and one.write_queue == 0 and one.receive_queue == 300)

    until(settled)
    one = diag.get(connection.tuple)
    assert one is not None
    assert one.info is not None
    assert (one.state, one.family, one.uid, one.ifindex) == (TcpState.ESTABLISHED, socket.AF_INET, 0, 0)
    # bytes_acked counts the SYN of the side that connected.
    assert (one.info.bytes_acked, one.info.bytes_received, one.info.bytes_sent) == (1001, 300, 1000)
    assert one.info.send_window > 0
    assert one.info.rtt > 0
    assert one.inode == os.fstat(connection.client.fileno()).st_ino
    assert [found.cookie for found in diag.dump()] == [one.cookie]
    diag.close()


def test_numbers_in_flight(wire: Wire) -> None:
    connection = wire.connect()
    diag = diag_on(wire)
    wire.cut()
    connection.client.send(bytes(700))
    one = diag.get(connection.tuple)
    assert one is not None
    assert one.info is not None
    assert (one.write_queue, one.in_flight, one.info.unacked) == (700, 700, 1)
    wire.mend()
    diag.close()


@pytest.mark.parametrize("version", [4, 6])
def test_sockets_that_are_bound_to_an_interface(wire: Wire, version: int) -> None:
    """Nobody has to know it beforehand, and it may change."""
    connection, other = wire.connect(version), wire.connect(version)
    device = wire.alice.device.encode()
    connection.client.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device)
    gone: list[Destroyed] = []

    async def closed() -> None:
        watch.start(asyncio.get_running_loop())
        assert diag.destroy(connection.tuple)
        connection.client.close()  # nobody hears of it before
        await until_async(lambda: bool(gone))
        watch.close()

    with inside(wire.alice.name):
        index = socket.if_nametoindex(wire.alice.device)
        diag, watch = SockDiag(), DestroyWatch(gone.append, lambda: None)
        assert diag.get(connection.tuple, ifindex=0) is None
        for _ in range(2):
            one = diag.get(connection.tuple)
            assert one is not None
            assert (one.ifindex, diag.bound(connection.tuple)) == (index, index)
        assert {s.tuple: s.ifindex for s in diag.dump()} == {connection.tuple: index, other.tuple: 0}
        assert diag.bound(other.tuple) == 0
        connection.client.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"")
        one = diag.get(connection.tuple)
        assert one is not None
        assert (one.ifindex, diag.bound(connection.tuple)) == (0, 0)
        connection.client.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device)
        asyncio.run(closed())
        assert gone == [Destroyed(connection.tuple, one.cookie, index)]
        assert diag.get(connection.tuple) is None
        assert not diag.destroy(connection.tuple)
        assert diag.get(other.tuple) is not None
        diag.close()


def test_a_listener_is_not_a_connection(wire: Wire) -> None:
    connection = wire.connect()
    diag = diag_on(wire)
    stranger = connection.tuple._replace(local=connection.tuple.local._replace(port=1))
    assert diag.get(stranger) is None
    with inside(wire.bob.name):
        bob = SockDiag()
    assert bob.get(connection.tuple.mirrored) is not None
    assert bob.get(stranger.mirrored) is None
    assert [one.state for one in bob.dump(states=[TcpState.LISTEN])] == [TcpState.LISTEN]
    bob.close()
    diag.close()


@pytest.mark.parametrize("dual_stack", [False, True])
def test_ipv4_through_either_kind_of_socket(wire: Wire, dual_stack: bool) -> None:
    connection = wire.connect(4, dual_stack=dual_stack)
    diag = diag_on(wire)
    one = diag.get(connection.tuple)
    assert one is not None
    assert one.family == (socket.AF_INET6 if dual_stack else socket.AF_INET)
    assert one.tuple == connection.tuple
    local = SocketFilter(local_addresses=frozenset({connection.tuple.local.host}))
    assert [found.cookie for found in diag.dump(local)] == [one.cookie]
    assert diag.destroy(one)
    diag.close()


@pytest.mark.parametrize(("version", "dual_stack"), [(4, False), (4, True), (6, False)])
def test_only_some_of_many(wire: Wire, version: int, dual_stack: bool) -> None:
    made = [wire.connect(version, dual_stack=dual_stack) for _ in range(5)]
    diag = diag_on(wire)
    wanted = [made[1].tuple, made[3].tuple, made[4].tuple._replace(remote=made[4].tuple.local)]
    assert {one.tuple for one in diag.dump(only=wanted)} == {made[1].tuple, made[3].tuple}
    assert diag.dump(only=()) == []
    assert len(diag.dump()) == 5
    diag.close()


def test_filters_choose_what_python_would_choose(wire: Wire) -> None:
    """All combinations of no, matching and foreign conditions, in the kernel and (by their number) in Python."""
    connections = [wire.connect(4), wire.connect(4), wire.connect(6), wire.connect(4, dual_stack=True)]
    diag = diag_on(wire)
    everything = diag.dump()
    assert {one.tuple for one in everything} == {one.tuple for one in connections}
    group = everything[0].cgroup_id
    assert group is not None
    ports = {one.tuple.remote.port for one in connections}
    many = frozenset(range(60000, 60000 + MAX_CONDITIONS)) - ports
    groups = [frozenset(), {group}, {group + 10**9, 5}, {5, group, 7}]
    remotes = [frozenset(), {min(ports)}, ports, {1}, {1, 2, max(ports)}]
    locals_ = [frozenset(), *({ip_address(a)} for a in ("10.99.0.1", "fd99::1", "10.99.0.9"))]
    locals_.append({ip_address("10.99.0.9"), ip_address("fd99::1")})
    chosen = set()
    for cgroups, remote_ports, local_addresses in itertools.product(groups, remotes, locals_):
        wanted = SocketFilter(frozenset(cgroups), frozenset(remote_ports), frozenset(local_addresses))
        expected = {one.cookie for one in everything if wanted.passes(one.tuple, one.cgroup_id)}
        assert {one.cookie for one in diag.dump(wanted)} == expected, wanted
        chosen.add(len(expected))
        if remote_ports or cgroups:
            larger = replace(wanted, remote_ports=wanted.remote_ports | many)
            assert not larger.in_kernel
            assert {one.cookie for one in diag.dump(larger)} == expected
    assert chosen == {0, 1, 3, 4}
    diag.close()


@pytest.mark.parametrize("version", [4, 6])
def test_destroy_tells_the_program_at_once(wire: Wire, version: int) -> None:
    connection = wire.connect(version)
    other = wire.connect(version)
    diag = diag_on(wire)
    one = diag.get(connection.tuple)
    assert one is not None
    assert not diag.destroy(one._replace(cookie=one.cookie + 1000))
    assert diag.get(connection.tuple) is not None
    assert diag.destroy(connection.tuple)
    with pytest.raises(ConnectionAbortedError):
        connection.client.recv(1)
    assert diag.get(connection.tuple) is None
    assert not diag.destroy(connection.tuple)
    assert not diag.destroy(one)
    assert diag.get(other.tuple) is not None
    diag.close()


def test_who_is_destroyed_is_announced(wire: Wire) -> None:
    async def scenario() -> None:
        seen: list[Destroyed] = []
        lost: list[None] = []
        with inside(wire.alice.name):
            watch = DestroyWatch(seen.append, lambda: lost.append(None))
        diag = diag_on(wire)
        closed, killed, mapped, stays = (
            wire.connect(4),
            wire.connect(6),
            wire.connect(4, dual_stack=True),
            wire.connect(4),
        )
        cookies = {one.tuple: one.cookie for one in diag.dump()}
        watch.start(asyncio.get_running_loop())
        closed.server.close()
        closed.client.close()
        diag.destroy(killed.tuple)
        killed.client.close()
        mapped.client.close()
        mapped.server.close()
        gone = {one.tuple for one in (closed, killed, mapped)}
        await until_async(lambda: len(seen) >= 3)
        assert {one.tuple for one in seen} == gone
        assert all(cookies[one.tuple] == one.cookie for one in seen)
        assert diag.get(stays.tuple) is not None
        assert not lost
        watch.close()
        seen.clear()
        stays.client.close()
        stays.server.close()
        await until_async(lambda: not diag.dump(states=CONNECTED))
        assert not seen
        diag.close()

    asyncio.run(scenario())


def test_lost_announcements_are_announced(wire: Wire) -> None:
    seen: list[Destroyed] = []
    lost: list[None] = []
    with inside(wire.alice.name):
        watch = DestroyWatch(seen.append, lambda: lost.append(None), receive_buffer=4096)
    diag = diag_on(wire)
    made = 0

    def overflowed() -> bool:
        """The kernel tells of each when it has time; more at once than there is room for, sooner or later."""
        nonlocal made
        for _ in range(50):
            connection = wire.connect()
            connection.close()
            made += 1
        until(lambda: not diag.dump(states=CONNECTED))
        watch.read()
        return bool(lost)

    until(overflowed)
    assert 0 < len(seen) < made
    later: set[FourTuple] = set()

    def told() -> bool:
        """Of one that was closed later; the kernel may be telling of the first ones yet, and lose it with them."""
        connection = wire.connect()
        connection.close()
        later.add(connection.tuple)
        watch.read()
        return not later.isdisjoint(one.tuple for one in seen)

    until(told)
    watch.close()
    diag.close()

"""A kick ends the wait of a stalled connection, and disturbs no other."""

from __future__ import annotations

import asyncio
import hashlib
import os
import socket
import threading
from contextlib import suppress

import pytest

from redirectctl.kernel.sockets.diag import Timer
from tests.netns.tcp.socket_lab import Connection, Host, Tools, Wire, tools_on, until_async

IP_RECVERR = 11


KINDS = pytest.mark.parametrize("kind", [(4, False), (6, False), (4, True)], ids=["ipv4", "ipv6", "dual-stack"])


async def nothing_to_read(*sockets: socket.socket) -> None:
    for one in sockets:
        with pytest.raises(BlockingIOError):
            one.recv(1, socket.MSG_DONTWAIT)


async def readable(one: socket.socket, size: int = 100) -> bytes:
    one.setblocking(False)
    async with asyncio.timeout(10):
        return await asyncio.get_running_loop().sock_recv(one, size)


def retransmits(tools: Tools, connection: Connection) -> int:
    info = tools.look(connection.tuple).info
    return info.retransmits if info else 0


@KINDS
def test_a_backed_off_connection_goes_on_at_once(wire: Wire, kind: tuple[int, bool]) -> None:
    async def scenario() -> None:
        version, dual = kind
        kicked, control = (wire.connect(version, dual_stack=dual) for _ in range(2))
        with tools_on(wire.alice) as tools:
            wire.cut()
            kicked.client.send(b"lost")
            control.client.send(b"lost")
            # The fourth attempt is 3 s after the first, the fifth 3.2 s later: time enough to see the difference.
            await until_async(lambda: retransmits(tools, kicked) >= 4 and retransmits(tools, control) >= 4)
            wire.mend()
            assert await tools.backoff.revert_and_follow_up([kicked.tuple]) == 1
            assert await readable(kicked.server) == b"lost"
            await nothing_to_read(control.server)
            assert retransmits(tools, control) == 4
            await until_async(lambda: tools.look(kicked.tuple).write_queue == 0)
            assert await tools.backoff.revert_and_follow_up([control.tuple]) == 1
            assert await readable(control.server) == b"lost"

    asyncio.run(scenario())


@KINDS
def test_what_could_not_be_sent_is_sent_at_once(wire: Wire, kind: tuple[int, bool]) -> None:
    """A host without address or route: nothing is in flight, the probe timer backs off instead."""

    async def scenario() -> None:
        version, dual = kind
        kicked, control = (wire.connect(version, dual_stack=dual) for _ in range(2))
        with tools_on(wire.alice) as tools:
            wire.alice.refuse_to_send()
            kicked.client.send(b"held")
            control.client.send(b"held")

            def probes(connection: Connection) -> int:
                one = tools.look(connection.tuple)
                assert one.timer == Timer.PROBE
                return one.info.probes if one.info else 0

            await until_async(lambda: probes(kicked) >= 4 and probes(control) >= 4)
            wire.alice.send_again()
            assert await tools.backoff.revert_and_follow_up([kicked.tuple]) == 1
            assert await readable(kicked.server) == b"held"
            await nothing_to_read(control.server)
            assert probes(control) == 4

    asyncio.run(scenario())


def test_a_lost_window_update_is_repeated(wire: Wire) -> None:
    """alice waits for room at bob; bob's kick tells her that there is some."""

    async def scenario() -> None:
        kicked = wire.connect(receive_buffer=4096)
        kicked.client.setblocking(False)
        with tools_on(wire.alice) as alice, tools_on(wire.bob) as bob:
            with suppress(BlockingIOError):
                while True:
                    kicked.client.send(bytes(65536))

            def probes() -> int:
                one = alice.look(kicked.tuple)
                return one.info.probes if one.info and one.timer == Timer.PROBE else 0

            await until_async(lambda: probes() >= 1)
            wire.cut()
            await readable(kicked.server, 1 << 20)
            await until_async(lambda: probes() >= 4)
            wire.mend()
            before = alice.look(kicked.tuple)
            assert await bob.backoff.revert_and_follow_up([kicked.tuple.mirrored]) == 0
            assert await readable(kicked.server)
            assert alice.look(kicked.tuple).write_queue < before.write_queue

    asyncio.run(scenario())


def test_numbers_are_asked_for_once(wire: Wire) -> None:
    async def scenario() -> None:
        connection = wire.connect()
        with tools_on(wire.alice) as tools:
            await tools.backoff.learn([connection.tuple])
            assert tools.probed == [connection.tuple]
            for size in (1, 5000):
                connection.client.send(bytes(size))
                connection.server.send(bytes(size))
                await until_async(lambda: tools.look(connection.tuple).write_queue == 0)
            wire.cut()
            connection.client.send(b"lost")
            await until_async(lambda: retransmits(tools, connection) >= 3)
            wire.mend()
            assert await tools.backoff.revert_and_follow_up([connection.tuple]) == 1
            assert tools.probed == [connection.tuple]
            await until_async(lambda: tools.look(connection.tuple).write_queue == 0)
            assert retransmits(tools, connection) == 0

    asyncio.run(scenario())


def test_wrong_numbers_are_found_out(wire: Wire) -> None:
    async def scenario() -> None:
        connection = wire.connect()
        with tools_on(wire.alice) as tools:
            await tools.backoff.learn([connection.tuple])
            one = tools.look(connection.tuple)
            right = tools.backoff.numbers(one)
            assert right is not None
            tools.backoff._numbers[one.cookie] = right._replace(send_base=right.send_base ^ 0x4000_0000)
            wire.cut()
            connection.client.send(b"lost")
            await until_async(lambda: retransmits(tools, connection) >= 3)
            wire.mend()
            await asyncio.sleep(0.6)  # the kernel answers such a probe twice a second at most
            assert await tools.backoff.revert_and_follow_up([connection.tuple]) == 1
            found = tools.backoff.numbers(one)
            assert found is not None
            assert found._replace(stamp=right.stamp) == right  # a clock is read, not known exactly
            assert await readable(connection.server) == b"lost"

    asyncio.run(scenario())


def test_many_at_once_both_families(wire: Wire) -> None:
    async def scenario() -> None:
        connections = [wire.connect(4 + 2 * (i % 2)) for i in range(300)]
        with tools_on(wire.alice) as tools:
            wire.cut()
            for connection in connections:
                connection.client.send(b"lost")
            await until_async(lambda: all(retransmits(tools, c) >= 3 for c in connections))
            wire.mend()
            stalled = sum(retransmits(tools, c) > 0 for c in connections)
            assert await tools.backoff.revert_and_follow_up([c.tuple for c in connections]) == stalled == 300
            for connection in connections:
                assert await readable(connection.server) == b"lost"

    asyncio.run(scenario())


def test_a_running_transfer_is_not_disturbed(wire: Wire) -> None:
    """Both directions at full speed while both ends are asked and kicked all the time: every byte arrives, once."""
    size = 64 << 20
    data = os.urandom(1 << 20)

    def send(one: socket.socket) -> None:
        for _ in range(size >> 20):
            one.sendall(data)
        one.shutdown(socket.SHUT_WR)

    def receive(one: socket.socket) -> str:
        digest = hashlib.sha256()
        while part := one.recv(1 << 20):
            digest.update(part)
        return digest.hexdigest()

    async def scenario() -> None:
        connection = wire.connect()
        senders = [threading.Thread(target=send, args=(one,)) for one in (connection.client, connection.server)]
        with tools_on(wire.alice) as alice, tools_on(wire.bob) as bob:
            for sender in senders:
                sender.start()
            received = asyncio.gather(
                *(asyncio.to_thread(receive, one) for one in (connection.client, connection.server))
            )
            rounds = 0
            while not received.done():
                for tools, one in ((alice, connection.tuple), (bob, connection.tuple.mirrored)):
                    await tools.backoff.revert_and_follow_up([one])
                    await tools.backoff.learn([one])
                rounds += 1
            whole = hashlib.sha256()
            for _ in range(size >> 20):
                whole.update(data)
            assert await received == [whole.hexdigest()] * 2
            assert rounds >= 3

    asyncio.run(scenario())


def test_a_program_that_wants_icmp_errors_sees_none(wire: Wire) -> None:
    async def scenario() -> None:
        connection = wire.connect()
        connection.client.setsockopt(socket.IPPROTO_IP, IP_RECVERR, 1)
        with tools_on(wire.alice) as tools:
            assert tools.look(connection.tuple).wants_errors
            wire.cut()
            connection.client.send(b"lost")
            await until_async(lambda: retransmits(tools, connection) >= 2)
            assert await tools.backoff.revert_and_follow_up([connection.tuple]) == 0
            await nothing_to_read(connection.client)
            assert connection.client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
            wire.mend()

    asyncio.run(scenario())


@pytest.mark.parametrize("version", [4, 6])
def test_nothing_leaves_the_host(wire: Wire, version: int) -> None:
    """Without its address a kick does nothing; with the address routed to us for our mark only, it works again."""

    def strays(host: Host) -> int:
        listing = host.run("nft", "list", "counter", "inet", "stray", "seen")
        return int(listing.split("packets")[1].split()[0])

    async def scenario() -> None:
        connection = wire.connect(version)
        alice, bob = wire.alice, wire.bob
        family, local, prefix = ("ip", "-4", 24) if version == 4 else ("ip6", "-6", 64)
        alice.nft(
            "table inet stray {\ncounter seen {}\nchain c { type filter hook postrouting priority 0;\n"
            f"oifname a0 {family} saddr {bob.addresses[version]} counter name seen;\n}}\n}}"
        )
        with tools_on(alice) as tools:
            assert tools.injector.delivered_here([connection.tuple.local.host, connection.tuple.remote.host]) == {
                connection.tuple.local.host
            }
            alice.run("ip", "address", "delete", f"{alice.addresses[version]}/{prefix}", "dev", "a0")
            alice.run("ip", local, "route", "add", "default", "dev", "a0")
            connection.client.send(b"held")
            await until_async(lambda: tools.look(connection.tuple).write_queue > 0)
            assert await tools.backoff.revert_and_follow_up([connection.tuple]) == 0
            assert strays(alice) == 0
            alice.run("ip", local, "route", "add", "local", alice.addresses[version], "dev", "lo", "table", "77")
            alice.run("ip", local, "rule", "add", "fwmark", "0x10000000/0x10000000", "table", "77")
            assert tools.injector.delivered_here([connection.tuple.local.host]) == {connection.tuple.local.host}
            await tools.backoff.learn([connection.tuple])
            assert strays(alice) == 0

    asyncio.run(scenario())


def test_behind_a_strict_host_firewall(wire: Wire) -> None:
    async def scenario() -> None:
        connection = wire.connect()
        with tools_on(wire.alice) as tools:
            connection.client.send(b"seen")
            assert await readable(connection.server) == b"seen"
            wire.alice.nft(
                "table inet firewall {\nchain c { type filter hook input priority 0; policy drop;\n"
                "ct state vmap { established : accept, related : accept, invalid : drop };\niif lo accept;\n}\n}"
            )
            connection.client.send(b"seen")  # conntrack picks the connection up
            await until_async(lambda: tools.look(connection.tuple).write_queue == 0)
            wire.cut()
            connection.client.send(b"lost")
            await until_async(lambda: retransmits(tools, connection) >= 3)
            wire.mend()
            assert await tools.backoff.revert_and_follow_up([connection.tuple]) == 1
            await until_async(lambda: tools.look(connection.tuple).write_queue == 0)

    asyncio.run(scenario())

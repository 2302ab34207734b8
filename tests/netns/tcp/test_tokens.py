"""A token inside a connection reaches the other host, whatever lies between, and nothing else notices.

::

    alice 10.98.1.1, fd98:1::1  a0 ──── ra  router  rb ──── b0  bob 10.98.2.1, fd98:2::1
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import socket
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from redirectctl.flows.commands import Proof
from redirectctl.flows.connection import Flow
from redirectctl.flows.proofs import in_place
from redirectctl.kernel.constants import Queue
from redirectctl.kernel.netfilter.packet_queue import PacketQueue, QueuedPacket
from redirectctl.kernel.netfilter.rewriter import Rewriter
from redirectctl.kernel.sockets.diag import SockDiag
from redirectctl.kernel.tcp.backoff import BackoffReverter
from redirectctl.kernel.tcp.inband import Inband, RawSender
from redirectctl.kernel.tcp.inject import RawInjector
from redirectctl.wire.addr import FourTuple, SockAddr, parse_ip
from redirectctl.wire.ip import SEQ_MASK, checksum, pseudo_header_sum
from redirectctl.wire.ip import parse_ip as parse_packet
from tests.netns.tcp.socket_lab import Connection, Host, Wire, inside, run, until_async

KINDS = pytest.mark.parametrize("kind", [(4, False), (6, False), (4, True)], ids=["ipv4", "ipv6", "dual-stack"])
FAMILIES = pytest.mark.parametrize("version", [4, 6], ids=["ipv4", "ipv6"])
MEBIBYTE = 1 << 20


class Net(Wire):
    router: Host


@pytest.fixture
def net() -> Iterator[Net]:
    tag = uuid.uuid4().hex[:6]
    alice = Host(f"ib-a-{tag}", "a0", "", {4: "10.98.1.1", 6: "fd98:1::1"})
    bob = Host(f"ib-b-{tag}", "b0", "", {4: "10.98.2.1", 6: "fd98:2::1"})
    router = Host(f"ib-r-{tag}", "", "", {})
    made = Net(alice, bob)
    made.router = router
    try:
        for host in (alice, bob, router):
            run("ip", "netns", "add", host.name)
            host.run("ip", "link", "set", "lo", "up")
        router.run("sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
        for number, host in ((1, alice), (2, bob)):
            port = f"r{host.device[0]}"
            router.run("ip", "link", "add", port, "type", "veth", "peer", "name", host.device, "netns", host.name)
            for there, device, last in ((host, host.device, 1), (router, port, 254)):
                there.run("ip", "address", "add", f"10.98.{number}.{last}/24", "dev", device)
                there.run("ip", "address", "add", f"fd98:{number}::{last}/64", "dev", device, "nodad")
                there.run("ip", "link", "set", device, "up")
            host.run("ip", "route", "add", "default", "via", f"10.98.{number}.254")
            host.run("ip", "-6", "route", "add", "default", "via", f"fd98:{number}::254")
        yield made
    finally:
        for connection in made.connections:
            connection.close()
        for listener in made.listeners.values():
            listener.close()
        for host in (alice, bob, router):
            run("ip", "netns", "delete", host.name, check=False)


class Side:
    """What a daemon on one of the hosts has."""

    def __init__(self, host: Host, *, listening: bool = True) -> None:
        self.host = host
        self.errors: list[Exception] = []
        self.arrived: list[tuple[FourTuple, bytes]] = []
        self.placed: list[bytes] = []  # as tokens of segments of our own
        self.sizes: list[int] = []
        self.caught = 0
        with inside(host.name):
            self.rewriter = Rewriter()
            self.rewriter.setup()
            self.rewriter.listen(listening)
            self.diag = SockDiag()
            self.injector = RawInjector()
            self.sender = RawSender()
            self.backoff = BackoffReverter(self.diag, self.injector, self.rewriter.probe)
            self.inband = Inband(self.backoff, self.sender, on_token=self._on_token)
            self.queues = [
                PacketQueue(Queue.PROBE, self._on_ack, on_error=self.errors.append),
                PacketQueue(Queue.TOKEN, self._on_arrival, on_error=self.errors.append),
            ]
        for queue in self.queues:
            queue.start(asyncio.get_running_loop())

    def _on_token(self, at: FourTuple, token: bytes, numbers: tuple[int, int]) -> None:
        self.arrived.append((at, token))
        self.placed.append(in_place(token, numbers))

    def _on_ack(self, packet: QueuedPacket) -> None:
        self.caught += 1
        self.backoff.on_ack(packet)

    def _on_arrival(self, packet: QueuedPacket) -> None:
        ip = parse_packet(packet.payload)
        self.sizes.append(len(packet.payload))
        assert checksum(ip.payload, pseudo_header_sum(ip.source, ip.destination, ip.protocol, ip.length)) == 0
        self.inband.on_arrival(packet)

    def close(self) -> None:
        for queue in self.queues:
            queue.close()
        with inside(self.host.name):
            self.rewriter.teardown()
        self.rewriter.close()
        self.injector.close()
        self.sender.close()
        self.diag.close()


@contextmanager
def sides(net: Net, *, listening: bool = True) -> Iterator[tuple[Side, Side]]:
    alice, bob = (Side(host, listening=listening) for host in (net.alice, net.bob))
    try:
        yield alice, bob
        for side in (alice, bob):
            assert not side.errors
            assert not side.inband.refused
    finally:
        for side in (alice, bob):
            side.close()
    for host in (net.alice, net.bob):
        assert "redirectctl" not in host.run("nft", "list", "ruleset")
        for program in ("iptables-save", "ip6tables-save"):
            assert "NFQUEUE" not in host.run(program)


def seen_by_bob(connection: Connection) -> FourTuple:
    """The server's socket tuple: a router may have translated the client's address."""
    local, remote = connection.server.getsockname(), connection.server.getpeername()
    return FourTuple(SockAddr(parse_ip(local[0]), local[1]), SockAddr(parse_ip(remote[0]), remote[1]))


def carries(connection: Connection, size: int = 300_000) -> bool:
    """Bytes both ways, unchanged, and nothing else."""
    for sender, receiver in ((connection.client, connection.server), (connection.server, connection.client)):
        data = os.urandom(size)
        thread = threading.Thread(target=sender.sendall, args=(data,))
        thread.start()
        receiver.settimeout(10)
        received = b""
        while len(received) < size:
            received += receiver.recv(size)
        thread.join()
        if received != data:
            return False
        receiver.setblocking(False)
        with pytest.raises(BlockingIOError):
            receiver.recv(1)
        receiver.setblocking(True)
    return True


def second_address(net: Net, connection: Connection) -> FourTuple:
    """alice gets another address; the connection's wire tuple with that."""
    version = connection.tuple.version
    other, prefix, how = ("10.98.1.2", 24, []) if version == 4 else ("fd98:1::2", 64, ["nodad"])
    net.alice.run("ip", "address", "add", f"{other}/{prefix}", "dev", "a0", *how)
    local, remote = connection.tuple
    return FourTuple(SockAddr(parse_ip(other), local.port), remote)


@KINDS
def test_a_token_shows_which_socket_it_is_there(net: Net, kind: tuple[int, bool]) -> None:
    async def scenario() -> None:
        version, dual = kind
        connection = net.connect(version, dual_stack=dual)
        net.connect(version)
        there = seen_by_bob(connection)
        with sides(net) as (alice, bob):
            assert await alice.inband.prove([Proof(connection.tuple, b"claimant")]) == {connection.tuple}
            await until_async(lambda: bob.arrived == [(there, b"claimant")])
            assert await bob.inband.prove([Proof(there, b"answerer")]) == {there}
            await until_async(lambda: alice.arrived == [(connection.tuple, b"answerer")])
            assert carries(connection)

    asyncio.run(scenario())


def test_a_socket_that_was_just_asked_answers_again_half_a_second_later(net: Net) -> None:
    async def scenario() -> None:
        connection = net.connect()
        with sides(net) as (alice, bob):
            for token in (b"token--1", b"token--2"):
                assert await alice.inband.prove([Proof(connection.tuple, token)]) == {connection.tuple}
            await until_async(lambda: [token for _, token in bob.arrived] == [b"token--1", b"token--2"])
            assert carries(connection)

    asyncio.run(scenario())


@FAMILIES
def test_behind_a_masquerading_router_the_other_host_sees_the_routers_tuple(net: Net, version: int) -> None:
    async def scenario() -> None:
        net.router.nft(
            "table inet nat {\nchain c { type nat hook postrouting priority 100;\n"
            "oifname rb meta l4proto tcp masquerade to :20000-20999 random;\n}\n}"
        )
        connection = net.connect(version)
        there = seen_by_bob(connection)
        assert there.mirrored != connection.tuple
        with sides(net) as (alice, bob):
            await alice.inband.prove([Proof(connection.tuple, b"claimant")])
            await until_async(lambda: bob.arrived == [(there, b"claimant")])
            await bob.inband.prove([Proof(there, b"answerer")])
            await until_async(lambda: alice.arrived == [(connection.tuple, b"answerer")])
            assert carries(connection)

    asyncio.run(scenario())


@pytest.mark.parametrize("what", ["reset tcp option 253", "tcp option 253 exists drop"], ids=["strips", "drops"])
@FAMILIES
def test_a_router_that_wants_no_options_harms_nothing(net: Net, version: int, what: str) -> None:
    async def scenario() -> None:
        net.router.nft(f"table inet strip {{\nchain c {{ type filter hook forward priority 0;\n{what};\n}}\n}}")
        connection = net.connect(version)
        with sides(net) as (alice, bob):
            assert await alice.inband.prove([Proof(connection.tuple, b"claimant")]) == {connection.tuple}
            assert carries(connection)
            assert bob.arrived == []

    asyncio.run(scenario())


@FAMILIES
def test_a_host_that_looks_for_no_tokens_ignores_them(net: Net, version: int) -> None:
    async def scenario() -> None:
        connection = net.connect(version)
        with sides(net, listening=False) as (alice, bob):
            assert "chain in " not in net.bob.run("nft", "list", "table", "inet", "redirectctl")
            await alice.inband.prove([Proof(connection.tuple, b"ignored-")])
            assert carries(connection)
            # The worst that can be: a whole segment of ours on the tuple that the socket has.
            sent = await alice.inband.prove([Proof(connection.tuple, b"ignored-", connection.tuple)])
            assert sent == {connection.tuple}
            assert carries(connection)
            connection.client.send(b"more")
            assert connection.server.recv(100) == b"more"
            assert bob.arrived == []

    asyncio.run(scenario())


@FAMILIES
def test_a_wire_tuple_is_tried_with_a_full_segment(net: Net, version: int) -> None:
    async def scenario() -> None:
        connection = net.connect(version)
        assert carries(connection, 5000)
        wire = second_address(net, connection)
        family = "ip" if version == 4 else "ip6"
        net.alice.nft(
            "table inet watch {\ncounter tracked {}\nchain c { type filter hook postrouting priority 0;\n"
            f"{family} saddr {wire.local.host} ct state != untracked counter name tracked;\n}}\n}}"
        )
        with sides(net) as (alice, bob):
            proof = Proof(connection.tuple, b"full-one", wire)
            assert await alice.inband.prove([proof]) == {connection.tuple}
            await until_async(lambda: bob.placed == [b"full-one"])
            assert [at for at, _ in bob.arrived] == [wire.mirrored]
            assert bob.sizes == [1500]
            assert carries(connection)
            net.router.run("ip", "link", "set", "rb", "mtu", "1400")  # only the small ones get through
            assert await alice.inband.prove([proof]) == {connection.tuple}
            assert carries(connection)
            assert len(bob.arrived) == 1
        assert "packets 0 " in net.alice.run("nft", "list", "counter", "inet", "watch", "tracked")

    asyncio.run(scenario())


@FAMILIES
def test_a_token_of_a_moved_connection_arrives_as_on_the_wire(net: Net, version: int) -> None:
    async def scenario() -> None:
        connection = net.connect(version)
        wire = second_address(net, connection)
        with sides(net) as (alice, bob):
            alice.rewriter.apply([Flow(connection.tuple, wire)])
            bob.rewriter.apply([Flow(connection.tuple.mirrored, wire.mirrored)])
            assert carries(connection)
            await alice.inband.prove([Proof(connection.tuple, b"claimant")])
            await until_async(lambda: bob.arrived == [(wire.mirrored, b"claimant")])
            await bob.inband.prove([Proof(connection.tuple.mirrored, b"answerer")])
            await until_async(lambda: alice.arrived == [(wire, b"answerer")])
            alice.host.run("nft", "flush", "ruleset")
            with inside(alice.host.name):
                alice.rewriter.listen(False)  # sets up anew what somebody has removed
            await bob.inband.prove([Proof(connection.tuple.mirrored, b"unheard-")])
            assert carries(connection)
            assert len(alice.arrived) == 1

    asyncio.run(scenario())


@FAMILIES
def test_a_bulk_transfer_both_ways_is_not_disturbed(net: Net, version: int) -> None:
    size = 64 * MEBIBYTE
    data = os.urandom(MEBIBYTE)
    whole = hashlib.sha256()
    for _ in range(size // MEBIBYTE):
        whole.update(data)

    def send(one: socket.socket) -> None:
        for _ in range(size // MEBIBYTE):
            one.sendall(data)
        one.shutdown(socket.SHUT_WR)

    def receive(one: socket.socket) -> str:
        digest = hashlib.sha256()
        while part := one.recv(MEBIBYTE):
            digest.update(part)
        return digest.hexdigest()

    async def scenario() -> None:
        connection = net.connect(version)
        ends = (connection.client, connection.server)
        with sides(net) as (alice, bob):
            senders = [threading.Thread(target=send, args=(one,)) for one in ends]
            for sender in senders:
                sender.start()
            received = asyncio.gather(*(asyncio.to_thread(receive, one) for one in ends))
            proofs = 0
            while not received.done():
                for side, one in ((alice, connection.tuple), (bob, connection.tuple.mirrored)):
                    for wire in (None, one):
                        proofs += len(await side.inband.prove([Proof(one, b"token---", wire)]))
            assert await received == [whole.hexdigest()] * 2
            for sender in senders:
                sender.join()
            assert proofs >= 4
            assert alice.caught + bob.caught <= proofs + 4  # an ACK each, not those of the transfer
            await until_async(lambda: len(alice.arrived) + len(bob.arrived) >= proofs)

    asyncio.run(scenario())


def test_a_thousand_at_once(net: Net) -> None:
    async def scenario() -> None:
        with sides(net) as (alice, bob):  # libnftables wants a file descriptor below 1024
            connections = [net.connect(4 + 2 * (i % 2)) for i in range(1000)]
            proofs = [Proof(one.tuple, i.to_bytes(8)) for i, one in enumerate(connections)]
            assert len(await alice.inband.prove(proofs)) == 1000
            await until_async(lambda: len(bob.arrived) == 1000)
            assert set(bob.arrived) == {(proof.socket.mirrored, proof.token) for proof in proofs}

    asyncio.run(scenario())


@KINDS
def test_both_ends_have_the_same_number_bases_but_for_the_clients_syn(net: Net, kind: tuple[int, bool]) -> None:
    """`bytes_acked` of the end that opened the connection counts its SYN, `bytes_received` of the other does not."""

    async def scenario() -> None:
        version, dual = kind
        connection = net.connect(version, dual_stack=dual)
        here, there = connection.tuple, connection.tuple.mirrored
        with sides(net) as (alice, bob):
            for size in (0, 1, 100_000):
                assert carries(connection, size)
                for side in (alice, bob):
                    side.backoff = BackoffReverter(side.diag, side.injector, side.rewriter.probe)
                    side.inband = Inband(side.backoff, side.sender, on_token=lambda *_: None)
                client, server = (await alice.inband.numbers([here]))[here], (await bob.inband.numbers([there]))[there]
                assert client[1] == server[0]
                assert (server[1] - client[0]) & SEQ_MASK == 1
            assert await alice.inband.numbers([there]) == {}

    asyncio.run(scenario())

"""Kept addresses, fallback routes and reserved ports follow the set of flows."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable
from ipaddress import IPv4Address, ip_address
from pathlib import Path
from typing import Any

import pytest

from redirectctl.daemon import rewriting
from redirectctl.daemon.rewriting import Rewriting
from redirectctl.flows.connection import Flow
from redirectctl.kernel.errors import KernelError
from redirectctl.kernel.netfilter.elements import rules
from redirectctl.wire.addr import FourTuple, IPAddress, SockAddr


class FakeKeeper:
    def __init__(self) -> None:
        self.kept_now: set[IPAddress] = set()
        self.fallbacks: set[IPAddress] = set()
        self.arrivals: dict[IPv4Address, int] = {}

    async def setup(self) -> None: ...

    def close(self) -> None: ...

    async def reconcile(self, keep: Iterable[IPAddress], fallback: Iterable[IPAddress], arrivals: Any) -> None:
        self.kept_now, self.fallbacks, self.arrivals = set(keep), set(fallback), dict(arrivals)

    async def keep(self, address: IPAddress) -> None:
        assert address not in self.kept_now
        self.kept_now.add(address)

    async def drop(self, address: IPAddress) -> None:
        self.kept_now.remove(address)

    async def fallback(self, address: IPAddress) -> None:
        self.fallbacks.add(address)

    async def drop_fallback(self, address: IPAddress) -> None:
        self.fallbacks.remove(address)

    async def arrive(self, address: IPv4Address, interface: int) -> None:
        self.arrivals[address] = interface

    async def drop_arrival(self, address: IPv4Address, interface: int) -> None:
        assert self.arrivals.pop(address) == interface


class FakeRewriter:
    def __init__(self) -> None:
        self.flows: set[Flow] = set()
        self.transactions = 0
        self.refuses = False

    def setup(self, flows: Iterable[Flow]) -> None:
        self.flows = set(flows)

    def apply(self, add: Iterable[Flow], remove: Iterable[Flow]) -> None:
        if self.refuses:
            raise KernelError("rewrite", "no space", "nothing")
        self.transactions += 1
        self.flows = self.flows - set(remove) | set(add)


class FakePorts:
    def __init__(self, inherited: Iterable[int], note: Callable[[Collection[int]], None]) -> None:
        self.ours = set(inherited)
        self.note = note

    def reserve(self, ports: Iterable[int]) -> None:
        self.reconcile(self.ours | set(ports))

    def release(self, ports: Iterable[int]) -> None:
        self.reconcile(self.ours - set(ports))

    def reconcile(self, ports: Iterable[int]) -> None:
        self.note(set(ports))
        self.ours = set(ports)

    def restore(self, ports: Iterable[int]) -> set[int]:
        return set(ports) - self.ours


def flow(old: str, wire: str, port: int = 40000, peer: str = "192.0.2.1", peer_wire: str = "192.0.2.1") -> Flow:
    here, there = SockAddr(ip_address(old), port), SockAddr(ip_address(peer), 22)
    return Flow(
        FourTuple(here, there), FourTuple(SockAddr(ip_address(wire), port), SockAddr(ip_address(peer_wire), 22))
    )


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rewriting, "Rewriter", FakeRewriter)
    monkeypatch.setattr(rewriting, "Keeper", FakeKeeper)
    monkeypatch.setattr(rewriting, "ReservedPorts", FakePorts)


def made(tmp_path: Path, *others: FourTuple) -> Any:
    async def interface_to(remote: IPAddress, local: IPAddress) -> int | None:
        return 7

    return Rewriting(tmp_path, interface_to, lambda asked: set(asked) & set(others))


OLD, NEW, NEWER = "198.51.100.2", "203.0.113.9", "203.0.113.10"


@pytest.mark.usefixtures("kernel")
def test_an_old_address_is_kept_once_for_all_its_connections_and_given_back_with_the_last(tmp_path: Path) -> None:
    async def story() -> None:
        it = made(tmp_path)
        first, second = flow(OLD, OLD, 1), flow(OLD, OLD, 2)
        await it.apply([first, second], [])
        assert it.keeper.kept_now == set()
        moved = [flow(OLD, NEW, 1), flow(OLD, NEW, 2)]
        await it.apply(moved, [first, second])
        assert it.socket_of(moved[0].wire) == first.socket
        assert it.socket_of(first.wire) is None
        assert it.keeper.fallbacks == {ip_address("192.0.2.1")}
        assert it.keeper.kept_now == {ip_address(OLD)}
        assert it._ports.ours == {1, 2}
        again = [flow(OLD, NEWER, 1), flow(OLD, NEWER, 2)]
        await it.apply(again, moved)
        assert it.keeper.kept_now == {ip_address(OLD)}
        await it.apply([], again[:1])
        assert it.keeper.kept_now == {ip_address(OLD)}
        assert it._ports.ours == {2}
        await it.apply([], again[1:])
        assert it.keeper.kept_now == set()
        assert it._ports.ours == set()
        assert it.rewriter.flows == set()

    asyncio.run(story())


@pytest.mark.usefixtures("kernel")
def test_a_peer_that_moved_has_a_fallback_route_and_an_arrival(tmp_path: Path) -> None:
    async def story() -> None:
        it = made(tmp_path)
        there = flow(OLD, OLD, peer_wire="192.0.2.77")
        await it.apply([there], [])
        assert it.keeper.fallbacks == {ip_address("192.0.2.1")}
        assert it.keeper.arrivals == {ip_address("192.0.2.1"): 7}
        await it.apply([], [there])
        assert it.keeper.fallbacks == set()
        assert it.keeper.arrivals == {}

    asyncio.run(story())


@pytest.mark.usefixtures("kernel")
def test_a_connection_in_the_tunnel_keeps_its_address_before_any_move_and_is_none_of_the_mtu_watch(
    tmp_path: Path,
) -> None:
    async def story() -> None:
        it = made(tmp_path)
        still = flow(OLD, OLD)
        await it.apply([still], [])
        await it.apply([still._replace(tunnel=True)], [still])
        assert it.keeper.kept_now == {ip_address(OLD)}
        assert it.keeper.fallbacks == {ip_address("192.0.2.1")}
        assert it._ports.ours == set()
        moved = flow(OLD, NEW)
        await it.apply([moved._replace(tunnel=True)], [still._replace(tunnel=True)])
        assert it._ports.ours == {40000}  # packets with the wire tuple are received
        assert it.socket_of(moved.wire) is None
        await it.apply([moved], [moved._replace(tunnel=True)])
        assert it.socket_of(moved.wire) == moved.socket
        await it.apply([moved._replace(tunnel=True)], [moved])
        assert it.socket_of(moved.wire) is None
        assert it.rewriter.flows == {Flow(moved.socket, moved.wire, True)}
        await it.apply([still], [moved._replace(tunnel=True)])
        assert (it.keeper.kept_now, it.keeper.fallbacks, it._ports.ours) == (set(), set(), set())

    asyncio.run(story())


@pytest.mark.usefixtures("kernel")
def test_what_the_kernel_refuses_is_undone(tmp_path: Path) -> None:
    async def story() -> None:
        it = made(tmp_path)
        before = flow(OLD, OLD)
        await it.apply([before], [])
        it.rewriter.refuses = True
        with pytest.raises(KernelError):
            await it.apply([flow(OLD, NEW)], [before])
        assert it.keeper.kept_now == set()
        assert it._ports.ours == set()
        it.rewriter.refuses = False
        await it.apply([flow(OLD, NEW)], [before])
        assert it.keeper.kept_now == {ip_address(OLD)}

    asyncio.run(story())


@pytest.mark.usefixtures("kernel")
def test_a_restarted_daemon_knows_which_reserved_ports_are_its_own(tmp_path: Path) -> None:
    async def story() -> None:
        it = made(tmp_path)
        await it.apply([flow(OLD, NEW, 40001)], [])
        again = made(tmp_path)
        assert again._ports.ours == {40001}
        await again.take_over([flow(OLD, NEW, 40001)])
        await again.apply([], [flow(OLD, NEW, 40001)])
        assert again._ports.ours == set()
        assert made(tmp_path)._ports.ours == set()

    asyncio.run(story())


@pytest.mark.usefixtures("kernel")
def test_a_port_that_cannot_be_noted_now_is_reserved_later_and_holds_up_nothing(tmp_path: Path) -> None:
    async def story() -> None:
        it = made(tmp_path)
        note, room = it._ports.note, False

        def noted(ports: Collection[int]) -> None:
            if not room:
                raise OSError(28, "No space left on device")
            note(ports)

        it._ports.note = noted
        before = flow(OLD, OLD, 40001)
        await it.apply([before], [])
        await it.apply([flow(OLD, NEW, 40001)], [before])
        assert it.rewriter.flows == {rules(flow(OLD, NEW, 40001))}
        with pytest.raises(OSError, match="No space left"):
            it.restore_ports()
        room = True
        assert it.restore_ports() == set()  # nobody had removed it
        assert it._ports.ours == made(tmp_path)._ports.ours == {40001}
        room = False
        await it.apply([], [flow(OLD, NEW, 40001)])
        assert it.rewriter.flows == set()
        room = True
        it.restore_ports()
        assert it._ports.ours == made(tmp_path)._ports.ours == set()

    asyncio.run(story())


@pytest.mark.usefixtures("kernel")
def test_a_tuple_that_has_a_socket_is_not_taken_from_it(tmp_path: Path) -> None:
    """A neighbour of the peer, behind one NAT with it, has a connection from the same port."""

    async def story() -> None:
        before, after = flow(OLD, OLD, 1), flow(OLD, NEW, 1)
        closed = after._replace(tunnel=True, closed=True)
        it = made(tmp_path, after.wire)
        await it.apply([before], [])
        with pytest.raises(KernelError, match="another connection of this host has that tuple"):
            await it.apply([after], [before])
        assert it.rewriter.flows == {rules(before)}
        await it.apply([closed], [before])  # by the tunnel it may move
        assert it.rewriter.flows == {Flow(before.socket, before.socket, True)}
        for wider in (after._replace(tunnel=True), after):
            with pytest.raises(KernelError, match="another connection"):
                await it.apply([wider], [closed])
        # Its own socket, when it is back at its first address, is none of another's.
        it = made(tmp_path, before.socket)
        await it.apply([after], [])
        await it.apply([before], [after])

    asyncio.run(story())

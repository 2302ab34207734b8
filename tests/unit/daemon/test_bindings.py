"""Bindings of sockets follow what the kernel does with their connections."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Collection, Iterable
from types import SimpleNamespace

import pytest

from redirectctl.daemon.bindings import Bindings
from redirectctl.daemon.finder import fitness
from redirectctl.flows.connection import Connection, Flow, Table
from redirectctl.flows.network import Interface, Network
from redirectctl.kernel.errors import KernelError
from redirectctl.kernel.sockets.borrow import Handle
from redirectctl.wire.addr import FourTuple, IPAddress, SockAddr, parse_ip

HERE, NEW, PEER = map(parse_ip, ("192.0.2.1", "192.0.2.9", "198.51.100.2"))


def four(local: IPAddress = HERE, port: int = 40000) -> FourTuple:
    return FourTuple(SockAddr(local, port), SockAddr(PEER, 22))


class Host:
    """Sockets by inode, the interface of each, and what happened in which order."""

    def __init__(self, *sockets: FourTuple, device: str = "eth1", bound: bool = True, usable: str = "eth1") -> None:
        self.table = Table()
        self.network = Network(frozenset({HERE}), interfaces={HERE: Interface(usable)} if usable else {})
        self.devices: dict[int, str] = {}
        self.seen: list[str] = []
        self.lost: set[int] = set()
        for number, socket in enumerate(sockets):
            self.table.add(Connection(bytes((number,)), socket, socket, 0.0, device=device, bound=bound))
            self.devices[number + 1] = device if bound else ""
        self.sockets = sockets
        self.bindings = Bindings(self, self.look_up, self.borrow)  # type: ignore[arg-type]

    def look_up(self, sockets: Iterable[FourTuple]) -> dict[FourTuple, SimpleNamespace]:
        found = {s: self.sockets.index(s) + 1 for s in sockets}
        return {s: SimpleNamespace(inode=i, ifindex=len(self.devices[i])) for s, i in found.items()}

    def borrow(self, inodes: Collection[int]) -> dict[int, Handle]:
        return {i: Borrowed(self, i) for i in inodes if i not in self.lost}  # type: ignore[misc]

    async def change(self, add: Iterable[Flow], remove: Iterable[Flow] = (), *, fails: bool = False) -> None:
        async with self.bindings.follow(add, remove):
            self.seen.append("rules")
            if fails:
                raise KernelError("rules", "no", "")


class Borrowed:
    def __init__(self, host: Host, inode: int) -> None:
        self.host, self.inode = host, inode

    def bind(self, device: str) -> None:
        if device == "gone0":
            raise OSError(19, os.strerror(19))
        self.host.devices[self.inode] = device
        self.host.seen.append(f"bound to {device or 'none'}")

    def close(self) -> None:
        self.host.seen.append("closed")


STILL, MOVED, TUNNELLED = Flow(four(), four()), Flow(four(), four(NEW)), Flow(four(), four(), tunnel=True)
HELD = Flow(four(), four(), suspended=True)


@pytest.mark.parametrize("elsewhere", [MOVED, TUNNELLED, HELD])
def test_lifted_after_the_rules_are_there_and_put_back_before_they_go(elsewhere: Flow) -> None:
    host = Host(four())
    asyncio.run(host.change([elsewhere], [STILL]))
    assert host.seen == ["rules", "bound to none", "closed"]
    host.seen.clear()
    asyncio.run(host.change([MOVED if elsewhere is TUNNELLED else TUNNELLED], [elsewhere]))
    assert host.seen == ["rules"]  # as it is to be already
    host.seen.clear()
    asyncio.run(host.change([STILL], [elsewhere]))
    assert host.seen == ["bound to eth1", "rules", "closed"]


def test_a_held_connection_that_is_released_is_bound_again() -> None:
    host = Host(four())
    asyncio.run(host.change([HELD], [STILL]))
    asyncio.run(host.change([], [HELD]))
    assert host.devices == {1: "eth1"}


@pytest.mark.parametrize(("before", "after"), [(STILL, MOVED), (MOVED, STILL)])
def test_when_the_kernel_refuses_it_is_as_before(before: Flow, after: Flow) -> None:
    host = Host(four())
    if before is MOVED:
        asyncio.run(host.change([MOVED], [STILL]))
    devices = dict(host.devices)
    with pytest.raises(KernelError):
        asyncio.run(host.change([after], [before], fails=True))
    assert host.devices == devices
    assert host.seen[-1] in ("closed", "rules")


def test_sockets_that_no_program_has_bound_are_left_alone() -> None:
    host = Host(four(), bound=False)
    asyncio.run(host.change([MOVED], [STILL]))
    asyncio.run(host.change([STILL], [MOVED]))
    assert host.seen == ["rules", "rules"]


def test_one_that_cannot_be_had_does_not_stop_the_others(caplog: pytest.LogCaptureFixture) -> None:
    two = four(port=40001)
    host = Host(four(), two)
    host.lost = {1}
    asyncio.run(host.change([MOVED, Flow(two, four(NEW, 40001))], [STILL, Flow(two, two)]))
    assert host.devices == {1: "eth1", 2: ""}
    assert "192.0.2.1:40000-198.51.100.2:22 is bound to an interface, and cannot be borrowed" in caplog.text


def test_back_at_its_address_on_another_interface_it_is_not_bound() -> None:
    host = Host(four(), usable="br0")
    asyncio.run(host.change([MOVED], [STILL]))
    asyncio.run(host.change([STILL], [MOVED]))
    assert host.devices == {1: ""}


def test_at_the_start_the_network_is_not_known_and_nothing_is_lifted() -> None:
    host = Host(four(), usable="")
    asyncio.run(host.change([STILL]))
    assert host.devices == {1: "eth1"}


def test_an_interface_that_has_gone_is_no_failure(caplog: pytest.LogCaptureFixture) -> None:
    host = Host(four(), device="gone0", usable="gone0")
    asyncio.run(host.change([MOVED], [STILL]))
    asyncio.run(host.change([STILL], [MOVED]))
    assert "cannot be bound to gone0: No such device" in caplog.text


def test_only_sockets_of_vrfs_are_unfit() -> None:
    assert fitness(None) == ("", None)
    assert fitness(Interface("eth1", 4)) == ("eth1", None)
    assert fitness(Interface("red", 5, "vrf", vrf="red")) == ("red", "bound-to-vrf")
    assert fitness(Interface("eth2", 6, vrf="red")) == ("eth2", "bound-to-vrf")

"""The kernel's events become changes; none is lost."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from two_hosts import Host, Net, Side, address

from redirectctl.kernel.constants import TUN_DEVICE
from redirectctl.kernel.routing.monitor import NetChange, NetState, NetWatch
from redirectctl.kernel.routing.old_addresses import Keeper
from redirectctl.wire.addr import parse_ip

pytestmark = pytest.mark.netns
OLD, NEW = parse_ip("192.0.2.50"), parse_ip("2001:db8:3::50")


def watched(host: Host, scenario: Callable[[NetWatch, list[NetChange]], Awaitable[Any]], **options: Any) -> Any:
    async def run() -> Any:
        changes: list[NetChange] = []
        watch = NetWatch(changes.append, **options)
        await watch.start()
        try:
            return await scenario(watch, changes)
        finally:
            watch.close()

    return host.run(run())


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - polled, as everything in these tests
            await asyncio.sleep(0.01)


async def quiet(changes: list[NetChange]) -> None:
    """Wait until the kernel has nothing more to say about how the host was set up."""
    async with asyncio.timeout(30):
        said = -1
        while said != len(changes):
            said = len(changes)
            await asyncio.sleep(1.0)
    changes.clear()


async def sh(host: Host, command: str) -> None:
    process = await asyncio.create_subprocess_exec("nsenter", f"--net=/run/netns/{host.ns}", "sh", "-ec", command)
    assert await process.wait() == 0


def test_addresses_come_and_go(alice: Host) -> None:
    async def scenario(watch: NetWatch, changes: list[NetChange]) -> None:
        assert {address(3, 10, 4), address(3, 10, 6)} <= {a.ip for a in watch.state.candidates}
        await sh(alice, f"ip addr add {OLD}/24 dev net3")
        await until(lambda: any(OLD in change.added and OLD in change.usable for change in changes))
        assert await watch.usable(OLD, address(1, 10, 4))
        await sh(alice, f"ip addr del {OLD}/24 dev net3")
        await until(lambda: any(OLD in change.removed and OLD in change.unusable for change in changes))
        assert not await watch.usable(OLD, address(1, 10, 4))

    watched(alice, scenario)


def test_a_tentative_address_is_not_usable_until_it_is_unique(alice: Host) -> None:
    async def scenario(watch: NetWatch, changes: list[NetChange]) -> None:
        await sh(alice, f"ip -6 addr add {NEW}/64 dev net3")
        await until(lambda: any(NEW in change.added for change in changes))
        assert all(NEW not in change.usable for change in changes if NEW in change.added)
        await until(lambda: any(NEW in change.usable for change in changes))

    watched(alice, scenario)


def test_an_address_that_another_host_has_is_never_usable(net: Net, alice: Host) -> None:
    other = net.host("other")
    net.join(other, 3, 50)

    async def scenario(watch: NetWatch, changes: list[NetChange]) -> None:
        await sh(alice, f"ip -6 addr add {NEW}/64 dev net3")
        await until(lambda: any(a.ip == NEW and a.dadfailed for a in watch.state.addresses))
        assert all(NEW not in change.usable for change in changes)

    watched(alice, scenario)


def test_link_down_makes_addresses_unusable(net: Net, alice: Host) -> None:
    async def scenario(watch: NetWatch, changes: list[NetChange]) -> None:
        mine = address(3, 10, 4)
        ports = "for port in $(ip -o link show master br3 | cut -d: -f2 | cut -d@ -f1); do ip link set $port {}; done"
        await sh(net.router, ports.format("down"))
        await until(lambda: any(mine in change.unusable and mine not in change.removed for change in changes))
        await sh(net.router, ports.format("up"))
        await until(lambda: any(mine in change.usable for change in changes))

    watched(alice, scenario)


def test_kept_loopback_and_link_local_addresses_are_no_candidates(alice: Host) -> None:
    side = Side(alice)
    old = address(1, 10, 4)
    alice.run(side.keeper.keep(old))

    async def scenario(watch: NetWatch, _: list[NetChange]) -> NetState:
        return watch.state

    state = watched(alice, scenario)
    assert {str(a.ip) for a in state.candidates} == {str(address(3, 10, 4)), str(address(3, 10, 6))}
    (kept,) = (a for a in state.addresses if a.ip == old)
    assert state.ours(kept)
    assert kept.deprecated
    assert any(a.ip.is_link_local for a in state.addresses)


def test_routes(net: Net, alice: Host) -> None:
    side = Side(alice)

    async def scenario(watch: NetWatch, changes: list[NetChange]) -> None:
        route = await watch.route(address(1, 10, 4))
        assert route is not None
        assert (route.source, route.gateway) == (address(3, 10, 4), address(3, 1, 4))
        assert await watch.route(address(1, 10, 4), source=address(1, 99, 4)) is None  # not this host's
        changes.clear()
        await sh(alice, "ip route del default; ip -6 route del default")
        await until(lambda: any(change.routes for change in changes))
        assert await watch.route(address(1, 10, 4)) is None
        assert await watch.route(address(1, 10, 6)) is None
        await side.keeper.fallback(address(1, 10, 4))
        await side.keeper.fallback(address(1, 10, 6))
        assert await watch.route(address(1, 10, 4)) is None  # ours leads nowhere
        assert await watch.route(address(1, 10, 6)) is None
        assert not await watch.usable(address(3, 10, 4), address(1, 10, 4))

    watched(alice, scenario)


def test_our_own_routes_are_no_news(alice: Host) -> None:
    side = Side(alice)

    async def scenario(watch: NetWatch, changes: list[NetChange]) -> None:
        await quiet(changes)
        await side.keeper.fallback(address(1, 10, 4))
        await side.keeper.keep(address(1, 10, 6))
        await sh(alice, f"ip addr add {OLD}/24 dev net3")
        await until(lambda: any(OLD in change.added for change in changes))
        assert not any(change.routes for change in changes if OLD not in change.added)

    watched(alice, scenario)


@pytest.mark.parametrize(
    ("command", "told"),
    [
        ("ip rule del priority 7747", True),
        ("ip -6 rule del priority 40000", True),
        ("ip route flush table 7747", True),
        ("ip -6 route flush table 7749", True),
        (f"ip addr flush dev {TUN_DEVICE}", True),
        (f"ip link set {TUN_DEVICE} down", True),
        (f"ip link del {TUN_DEVICE}", True),
        ("ip rule add priority 5 table 100", True),
        ("ip rule add from 192.0.2.78 table 100", True),  # without a priority it goes before ours
        ("ip rule add priority 9000 table 100; ip rule del priority 9000", False),
        ("ip route add 192.0.2.9 dev lo table 7748", False),
    ],
)
def test_what_is_taken_from_us_is_told(alice: Host, command: str, told: bool) -> None:
    async def run() -> None:
        losses: list[None] = []
        keeper, changes = Keeper(), list[NetChange]()
        await keeper.setup()
        await keeper.keep(parse_ip("192.0.2.77"))
        watch = NetWatch(changes.append, lambda: losses.append(None))
        await watch.start()
        await sh(alice, command)
        await sh(alice, "ip link add marker type bridge")  # whatever came before it has been read
        await until(lambda: any(link.name == "marker" for link in watch.state.links.values()))
        assert bool(losses) == told
        kept = [parse_ip("192.0.2.77")]
        assert bool(await keeper.missing(kept, [], {})) == told
        await keeper.reconcile(kept)
        assert await keeper.missing(kept, [], {}) == {}
        watch.close()
        await keeper.teardown()
        keeper.close()

    alice.run(run())


def test_an_overflow_loses_nothing(alice: Host) -> None:
    async def scenario(watch: NetWatch, changes: list[NetChange]) -> None:
        # Without a turn of the event loop the small buffer overflows.
        alice.sh("; ".join(f"ip addr add 192.0.2.{n}/24 dev net3" for n in range(50, 90)))
        wanted = {parse_ip(f"192.0.2.{n}") for n in range(50, 90)}
        await until(lambda: wanted <= {a.ip for a in watch.state.addresses})
        assert wanted <= frozenset().union(*(change.added for change in changes))
        await sh(alice, f"ip addr del {OLD}/24 dev net3")
        await until(lambda: any(OLD in change.removed for change in changes))  # it goes on watching

    watched(alice, scenario, receive_buffer=1)


def test_what_happens_while_all_is_read_anew_is_not_lost(alice: Host) -> None:
    async def scenario(watch: NetWatch, changes: list[NetChange]) -> None:
        first = parse_ip("203.0.113.50")
        snapshot = watch.snapshot
        turns = iter([True])

        async def late() -> NetState:
            state = await snapshot()
            if next(turns, False):
                alice.sh(f"ip addr del {first}/24 dev net3")
            return state

        watch.snapshot = late  # type: ignore[method-assign]
        alice.sh("; ".join(f"ip addr add 203.0.113.{n}/24 dev net3" for n in range(50, 90)))
        await until(lambda: any(first in change.removed for change in changes))
        assert next(turns, False) is False  # it has overflown

    watched(alice, scenario, receive_buffer=1)

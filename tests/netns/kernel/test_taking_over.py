"""A daemon killed in the middle of a change of the kernel: the next one makes the kernel equal to the store.

One change is some ten requests to the kernel: addresses, routes, ports, nftables.  The daemon is ended before the first
of them, before the second, and so on; half of a request there is not.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from two_hosts import Host, Net, address

from redirectctl.daemon.rewriting import Rewriting
from redirectctl.flows.connection import Flow
from redirectctl.kernel.sockets import reserved_ports
from redirectctl.wire.addr import FourTuple, IPAddress, SockAddr

pytestmark = pytest.mark.netns
REQUESTS = 40  # more than any change needs


class KilledError(BaseException):
    """SIGKILL: nothing is undone."""


class Mortal:
    """Lets so many requests through, and then none."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, rewriting: Rewriting, lives: int) -> None:
        self._left = lives
        for owner, name in (
            (rewriting.keeper, "_request"),
            (rewriting.rewriter, "_run"),
            (rewriting.rewriter._netlink, "change"),
            (rewriting._ports, "_note"),
            (reserved_ports, "_write_ports"),
            (rewriting, "_release"),  # what one that lives would undo
        ):
            monkeypatch.setattr(owner, name, self._mortal(getattr(owner, name)))

    def _mortal(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            self._left -= 1
            if self._left < 0:
                raise KilledError
            return function(*arguments, **options)

        return call


async def _interface_to(_remote: IPAddress, _local: IPAddress) -> int | None:
    return None


def flow(number: int, old: IPAddress, wire: IPAddress, peer: IPAddress, *, tunnel: bool = False) -> Flow:
    here, there = SockAddr(old, 40000 + number), SockAddr(peer, 22)
    return Flow(FourTuple(here, there), FourTuple(SockAddr(wire, 40000 + number), there), tunnel)


def traces(host: Host) -> str:
    """All that a change touches, as the system's own tools print it."""
    nft = host.sh("nft -s list table inet redirectctl")
    lines = [line.strip() for line in nft.splitlines() if "counter untagged" not in line]
    routing = (
        "ip -o addr show dev redirect0 | sed 's/^[0-9]*//';"
        "for f in -4 -6; do ip $f rule; for t in 7747 7748 7749; do ip $f route show table $t 2>&1 || true; done;"
        "done; ip route show table local dev redirect0; cat /proc/sys/net/ipv4/ip_local_reserved_ports"
    )
    return "\n".join([*sorted(lines), *sorted(host.sh(routing).splitlines())])


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize(
    ("first", "then"),
    [("original", "tunnel"), ("tunnel", "rewritten"), ("rewritten", "original"), ("rewritten", "elsewhere")],
)
def test_killed_before_any_request(
    net: Net, bob: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: str, then: str, version: int
) -> None:
    old, new, later, peer = (
        address(1, 10, version),
        address(2, 10, version),
        address(2, 11, version),
        address(3, 10, version),
    )
    ways = {
        "original": flow(1, old, old, peer),
        "tunnel": flow(1, old, new, peer, tunnel=True),
        "rewritten": flow(1, old, new, peer),
        "elsewhere": flow(1, old, later, peer),
    }
    beside = flow(2, old, new, peer)  # which is not touched

    async def start(stored: Flow) -> Rewriting:
        rewriting = Rewriting(tmp_path, _interface_to, lambda _: ())
        await rewriting.take_over([stored, beside])
        return rewriting

    async def started(stored: Flow) -> None:
        (await start(stored)).close()

    async def changed(lives: int) -> bool:
        """False if it was killed."""
        rewriting = await start(ways[first])
        try:
            with monkeypatch.context() as patch:
                Mortal(patch, rewriting, lives)
                await rewriting.apply([ways[then]], [ways[first]])
        except KilledError:
            return False
        finally:
            rewriting.close()
        return True

    bob.run(started(ways[then]))
    wanted = traces(bob)
    for lives in range(REQUESTS):
        survived = bob.run(changed(lives))
        bob.run(started(ways[then]))  # the store was first
        assert traces(bob) == wanted, f"killed before request {lives}"
        if survived:
            break
    else:
        pytest.fail("it never came to the end")
    assert lives > 1

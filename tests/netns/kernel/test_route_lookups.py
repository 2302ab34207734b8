"""Routes that are asked for many at a time are those that `ip route get` shows, one after the other."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from ipaddress import ip_address
from typing import Any

import pytest
from two_hosts import Host, Net, address

from redirectctl.api.schema import EventName
from redirectctl.daemon.eventlog import EventLog
from redirectctl.daemon.network import NetworkView
from redirectctl.flows.network import Network
from redirectctl.kernel.errors import KernelError
from redirectctl.kernel.routing.lookup import AT_ONCE, Question, Route, RouteTable
from redirectctl.wire.addr import IPAddress

pytestmark = pytest.mark.netns
MARK = 0x10
NO_SUCH_FAMILY = 12  # AF_DECnet, which Linux 6.1 removed: rtnetlink answers as about AF_INET6 with ipv6.disable=1
NO_ROUTE = ("unreachable", "blackhole", "prohibit")


@pytest.fixture
def two_uplinks(net: Net) -> Host:
    """Each kind of route there is: by source, by mark, on the link, refused, to itself."""
    host = net.host("two")
    net.join(host, 1, 10)
    net.join(host, 3, 10)
    for version, flag, bits in ((4, "-4", 32), (6, "-6", 128)):
        one, three = address(1, 10, version), address(3, 10, version)
        other = {4: "203.0.113", 6: "2001:db8:ffff:"}[version]
        end = {4: ".{}", 6: ":{}"}[version]
        host.sh(
            f"ip {flag} route add default via {address(1, 1, version)} dev net1 table 101;"
            f"ip {flag} rule add from {one} lookup 101 priority 1000;"
            f"ip {flag} route add default via {address(1, 1, version)} dev net1 table 102;"
            f"ip {flag} rule add fwmark {MARK} lookup 102 priority 1001;"
            f"ip {flag} route add unreachable {other}{end.format(7)}/{bits};"
            f"ip {flag} route add blackhole {other}{end.format(8)}/{bits};"
            f"ip {flag} route add prohibit {other}{end.format(9)}/{bits};"
            f"ip {flag} route add {other}{end.format(6)}/{bits} via {address(1, 1, version)} dev net1 src {three}"
        )
    return host


def questions(host: Host) -> Iterator[Question]:
    for version, other in ((4, "203.0.113.{}"), (6, "2001:db8:ffff::{}")):
        sources = [None, address(1, 10, version), address(3, 10, version), address(1, 99, version)]
        targets = [ip_address(other.format(number)) for number in (5, 6, 7, 8, 9)]
        targets += [address(1, 20, version), address(3, 20, version), address(1, 10, version)]
        for target in targets:
            for source in sources:
                for mark in (0, MARK):
                    yield Question(target, source, mark)


def shown(host: Host, question: Question) -> Route | None:
    """As the command says it."""
    words = ["ip", "-j", f"-{question.target.version}", "route", "get", str(question.target)]
    if question.source is not None:
        words += ["from", str(question.source)]
    if question.mark:
        words += ["mark", str(question.mark)]
    text = host.sh(" ".join(words) + " 2>/dev/null || true")
    if not text.strip():
        return None
    found: dict[str, Any] = json.loads(text)[0]
    if found.get("type") in NO_ROUTE:
        return None
    return Route(
        _index(host, found["dev"]),
        ip_address(found["prefsrc"]) if "prefsrc" in found else None,
        ip_address(found["gateway"]) if "gateway" in found else None,
    )


def _index(host: Host, device: str) -> int:
    (link,) = json.loads(host.sh(f"ip -j link show {device}"))
    return int(link["ifindex"])


def test_they_are_those_that_ip_shows(two_uplinks: Host) -> None:
    asked = list(questions(two_uplinks))
    table = two_uplinks.do(RouteTable)
    found = two_uplinks.do(table.look_up, asked)
    two_uplinks.do(table.close)
    wanted = [shown(two_uplinks, question) for question in asked]
    assert dict(zip(asked, found, strict=True)) == dict(zip(asked, wanted, strict=True))
    assert len(asked) > AT_ONCE
    assert {None, *(route.ifindex for route in wanted if route)} == {None, 1, *(r.ifindex for r in found if r)}


def test_thousands(two_uplinks: Host) -> None:
    asked = [Question(ip_address((11 << 24) + number)) for number in range(5000)]
    asked[4000] = Question(ip_address("203.0.113.7"))
    table = two_uplinks.do(RouteTable)
    found = two_uplinks.do(table.look_up, asked)
    two_uplinks.do(table.close)
    assert found[4000] is None
    del found[4000]
    assert len(set(found)) == 1
    assert found[0] is not None


def test_a_family_that_the_kernel_does_not_have(two_uplinks: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """As with ipv6.disable=1: peers name such addresses all the same, and the routes to others are wanted."""
    there, far = ip_address("203.0.113.5"), ip_address("2001:db8:ffff::5")
    monkeypatch.setattr(socket, "AF_INET6", NO_SUCH_FAMILY)
    table = two_uplinks.do(RouteTable)
    before, none, after = two_uplinks.do(table.look_up, [Question(there), Question(far), Question(there)])
    two_uplinks.do(table.close)
    assert before is not None
    assert (none, after) == (None, before)


def test_without_memory_for_the_answers_it_says_so(two_uplinks: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    table = two_uplinks.do(RouteTable)
    monkeypatch.setattr(table, "_ask", lambda questions: {})
    with pytest.raises(KernelError, match="the kernel does not answer"):
        two_uplinks.do(table.look_up, [Question(ip_address("203.0.113.5"))])
    two_uplinks.do(table.close)


class Watched:
    """A NetworkView of a host."""

    def __init__(self, host: Host, directory: Any, remotes: list[IPAddress]) -> None:
        self.log = EventLog(directory, lambda: 1.0)
        self.view = NetworkView(self.log, lambda: remotes, lambda now, network: None, lambda: None)

    async def networks(self) -> Network:
        await self.view.start()
        try:
            return await self.view._look()
        finally:
            self.view.close()


def test_the_source_that_the_kernel_prefers_comes_first_and_deprecated_ones_last(
    two_uplinks: Host, tmp_path: Any
) -> None:
    old, new = ip_address("2001:db8:3::77"), address(3, 10, 6)
    two_uplinks.sh(f"ip -6 addr add {old}/64 dev net3 nodad preferred_lft 0")
    far, there = ip_address("203.0.113.5"), ip_address("2001:db8:ffff::5")
    refused = ip_address("203.0.113.7")
    network = two_uplinks.run(Watched(two_uplinks, tmp_path, [far, there, refused]).networks())
    assert network.usable == {address(1, 10, 4), address(3, 10, 4), address(1, 10, 6), new, old}
    first = {4: shown(two_uplinks, Question(far)), 6: shown(two_uplinks, Question(there))}
    assert network.sources[refused] == (address(1, 10, 4),)  # by its own rule
    for remote, version in ((far, 4), (there, 6)):
        route = first[version]
        assert route is not None
        assert network.sources[remote][0] == route.source
        assert set(network.sources[remote]) == {a for a in network.usable if a.version == version}
    assert network.sources[there][-1] == old


def test_an_address_that_came_back_is_named_with_its_interface(net: Net, tmp_path: Any) -> None:
    """redirect0 has it too: a connection that began there needs it."""
    host = net.host("back")
    net.join(host, 1, 10)
    back = [address(1, number, 4) for number in range(30, 38)]  # whose name was given was a matter of chance
    host.sh("ip tuntap add redirect0 mode tun; ip link set redirect0 up")
    for each in back:
        host.sh(f"ip addr add {each}/32 dev redirect0; ip addr add {each}/24 dev net1")
    watched = Watched(host, tmp_path, [])

    async def scenario() -> None:
        await watched.view.start()
        state = watched.view._watch.state
        without = type(state)(state.links, frozenset(a for a in state.addresses if not state.candidate(a)))
        watched.view._watch._state = without
        watched.view._watch._become(state, routes=False)
        watched.view.close()

    host.run(scenario())
    with watched.log.history(None) as history:
        added = {e.address: e.interface for e in history.read(100) if e.event is EventName.ADDRESS_ADDED}
    assert added == {str(a): "net1" for a in (*back, address(1, 10, 4), address(1, 10, 6))}

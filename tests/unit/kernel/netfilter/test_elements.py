"""What a connection is in the nftables sets and maps."""

from __future__ import annotations

from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from redirectctl.flows.connection import Flow
from redirectctl.kernel.netfilter.elements import Place, add_commands, describe, elements, flows_in, guard_place
from redirectctl.wire.addr import FourTuple, IPAddress, SockAddr, parse_ip


def tuple_of(text: str) -> FourTuple:
    local, remote = text.split()
    return FourTuple(SockAddr.parse(local), SockAddr.parse(remote))


SOCKET = "192.0.2.1:40000 203.0.113.1:22"
L, R, WL, WR = (parse_ip(text).packed for text in ("192.0.2.1", "203.0.113.1", "198.51.100.1", "198.18.0.1"))
LP, RP = b"\x9c\x40\0\0", b"\0\x16\0\0"
GUARD = (("ask4", R + RP + L + LP), b"")
HOLD = (("hold4", R + RP + L + LP), b"")


@pytest.mark.parametrize(
    ("wire", "expected"),
    [
        (SOCKET, [GUARD, (("src4", R + RP + L + LP), None)]),
        (
            "198.51.100.1:40000 203.0.113.1:22",
            [
                GUARD,
                HOLD,
                (("src4", R + RP + WL + LP), R),
                (("dst4", R + RP + WL + LP), L),
                (("wire4", WL + LP + R + RP), b""),
                (("osrc4", L + LP + R + RP), WL),
            ],
        ),
        (
            "192.0.2.1:40000 198.18.0.1:22",
            [
                GUARD,
                HOLD,
                (("src4", WR + RP + L + LP), R),
                (("dst4", R + RP + L + LP), None),
                (("wire4", L + LP + WR + RP), b""),
                (("odst4", L + LP + R + RP), WR),
                (("bsrc4", L + LP + WR + RP), None),
            ],
        ),
        (
            "198.51.100.1:40000 198.18.0.1:22",
            [
                GUARD,
                HOLD,
                (("src4", WR + RP + WL + LP), R),
                (("dst4", R + RP + WL + LP), L),
                (("wire4", WL + LP + WR + RP), b""),
                (("odst4", L + LP + R + RP), WR),
                (("bsrc4", L + LP + WR + RP), WL),
            ],
        ),
    ],
    ids=["not moved", "this host moved", "the peer moved", "both moved"],
)
def test_elements(wire: str, expected: list[tuple[Place, bytes | None]]) -> None:
    flow = Flow(tuple_of(SOCKET), tuple_of(wire))
    assert elements(flow) == expected
    assert elements(flow)[0][0] == guard_place(flow.socket)


TUN = (("tun4", L + LP + R + RP), b"")


@pytest.mark.parametrize(
    ("wire", "expected"),
    [
        (SOCKET, [GUARD, HOLD, TUN, (("src4", R + RP + L + LP), None)]),
        (
            "198.51.100.1:40000 198.18.0.1:22",
            [
                GUARD,
                HOLD,
                TUN,
                (("src4", WR + RP + WL + LP), R),
                (("dst4", R + RP + WL + LP), L),
                (("wire4", WL + LP + WR + RP), b""),
            ],
        ),
    ],
    ids=["no plain path but its own", "receives on a wire tuple too"],
)
def test_in_the_tunnel_nothing_that_goes_out_is_rewritten(
    wire: str, expected: list[tuple[Place, bytes | None]]
) -> None:
    assert elements(Flow(tuple_of(SOCKET), tuple_of(wire), True)) == expected


TAG = (("tag4", R + RP + L + LP), b"")


@pytest.mark.parametrize(
    ("wire", "expected"),
    [
        (SOCKET, [GUARD, HOLD, TUN, TAG, (("src4", R + RP + L + LP), None)]),
        (
            "198.51.100.1:40000 203.0.113.1:22",
            [
                GUARD,
                HOLD,
                TUN,
                TAG,
                (("tag4", R + RP + WL + LP), b""),
                (("src4", R + RP + L + LP), None),
                (("src4", R + RP + WL + LP), R),
                (("dst4", R + RP + WL + LP), L),
                (("wire4", WL + LP + R + RP), b""),
            ],
        ),
    ],
    ids=["not moved", "this host moved"],
)
def test_with_integrity_nothing_plain_comes_in_under_either_tuple(
    wire: str, expected: list[tuple[Place, bytes | None]]
) -> None:
    assert elements(Flow(tuple_of(SOCKET), tuple_of(wire), True, True)) == expected


def test_what_a_suspended_connection_sends_waits_and_rsts_are_held() -> None:
    flow = Flow(tuple_of(SOCKET), tuple_of(SOCKET), suspended=True)
    wait, back = (("wait4", L + LP + R + RP), b""), (("back4", R + RP + L + LP), b"")
    assert elements(flow) == [GUARD, HOLD, wait, back, (("src4", R + RP + L + LP), None)]


def test_what_the_tunnel_brings_for_a_suspended_connection_is_not_looked_at() -> None:
    flow = Flow(tuple_of(SOCKET), tuple_of(SOCKET), tunnel=True, suspended=True)
    assert {name for (name, _), _ in elements(flow)} == {"ask4", "hold4", "tun4", "wait4", "src4"}


def test_ipv6_keys_have_forty_bytes() -> None:
    flow = Flow(tuple_of("[2001:db8::1]:1 [2001:db8::2]:2"), tuple_of("[2001:db8::3]:1 [2001:db8::2]:2"))
    assert {(name, len(key), len(value or b"")) for (name, key), value in elements(flow)} == {
        ("ask6", 40, 0),
        ("hold6", 40, 0),
        ("src6", 40, 16),
        ("dst6", 40, 16),
        ("osrc6", 40, 16),
        ("wire6", 40, 0),
    }


def test_describe() -> None:
    assert describe(GUARD[0]) == "ask4 203.0.113.1:22-192.0.2.1:40000"


def test_commands_are_one_a_set() -> None:
    (command,) = add_commands([(("probe4", L + LP + R + RP), b""), (("probe4", WL + LP + R + RP), b"")], timeout=5)
    element = command["add"]["element"]
    assert (element["name"], len(element["elem"])) == ("probe4", 2)
    assert element["elem"][0] == {"elem": {"val": {"concat": ["192.0.2.1", 40000, "203.0.113.1", 22]}, "timeout": 5}}


def hosts(version: int) -> st.SearchStrategy[IPAddress]:
    prefix = "192.0.2." if version == 4 else "2001:db8::"
    return st.integers(1, 4).map(lambda number: ip_address(f"{prefix}{number}"))


@st.composite
def flow_lists(draw: st.DrawFn) -> list[Flow]:
    flows: list[Flow] = []
    for _ in range(draw(st.integers(0, 8))):
        version = draw(st.sampled_from([4, 6]))
        local, remote, wire_local, wire_remote = (draw(hosts(version)) for _ in range(4))
        lport, rport = draw(st.integers(1, 3)), draw(st.integers(1, 3))
        flows.append(
            Flow(
                FourTuple(SockAddr(local, lport), SockAddr(remote, rport)),
                FourTuple(SockAddr(wire_local, lport), SockAddr(wire_remote, rport)),
                tunnel := draw(st.booleans()),
                tunnel and draw(st.booleans()),
                draw(st.booleans()),
            )
        )
    return flows


@given(flow_lists())
def test_flows_are_read_back_from_what_was_written(candidates: list[Flow]) -> None:
    flows: set[Flow] = set()
    places: dict[Place, bytes | None] = {}
    for flow in candidates:
        mine = dict(elements(flow))
        if not places.keys() & mine.keys():  # the Rewriter refuses those
            places |= mine
            flows.add(flow)
    listing = [
        {"set": {"name": command["add"]["element"]["name"], "elem": command["add"]["element"]["elem"]}}
        for command in add_commands((place, value) for place, value in places.items() if value is not None)
    ]
    assert flows_in(listing) == flows


def tag_of(one: FourTuple) -> bytes:
    return b"".join(end.host.packed + end.port.to_bytes(2, "big") + b"\0\0" for end in one.mirrored)


def rewritten(filled: dict[Place, bytes], packet: FourTuple, kinds: tuple[str, ...]) -> FourTuple:
    """What the kernel's chain makes of a packet (local is its source): each map in turn, left at the first miss."""
    source, target = packet
    for kind in kinds:
        key = b"".join(end.host.packed + end.port.to_bytes(2, "big") + b"\0\0" for end in (source, target))
        value = filled.get((f"{kind}{packet.version}", key))
        if value is None:
            break
        if kind in {"src", "bsrc", "osrc"}:
            source = source._replace(host=ip_address(value))
        else:
            target = target._replace(host=ip_address(value))
    return FourTuple(source, target)


@given(flow_lists())
def test_no_connection_gets_another_ones_rewriting(candidates: list[Flow]) -> None:
    flows: dict[FourTuple, Flow] = {}
    places: dict[Place, bytes | None] = {}
    for flow in candidates:
        mine = dict(elements(flow))
        if not places.keys() & mine.keys():
            places |= mine
            flows[flow.socket] = flow
    filled = {place: value for place, value in places.items() if value is not None}
    tagged = {key for name, key in filled if name.startswith("tag")}
    for flow in flows.values():
        incoming = {tag_of(flow.wire), tag_of(flow.socket)}
        assert incoming <= tagged if flow.integrity else tag_of(flow.wire) not in tagged
        assert rewritten(filled, flow.wire.mirrored, ("src", "dst")) == flow.socket.mirrored
        if flow.tunnel:
            continue
        kinds = ("odst", "bsrc") if flow.wire.remote != flow.socket.remote else ("osrc",)
        assert rewritten(filled, flow.socket, kinds) == flow.wire


def test_foreign_elements_are_skipped() -> None:
    assert (
        flows_in([{"set": {"name": "ask4", "elem": ["192.0.2.1", {"prefix": {"addr": "10.0.0.0", "len": 8}}]}}])
        == frozenset()
    )
    assert flows_in([{"set": {"name": "other", "elem": [1]}}, {"chain": {"name": "in"}}]) == frozenset()

"""What the names of rendezvous lead to."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Mapping
from ipaddress import ip_address
from typing import Any

import pytest

from redirectctl.daemon import servers
from redirectctl.daemon.loops import Pulse
from redirectctl.daemon.servers import ServerNames, literal
from redirectctl.wire.addr import SockAddr

V4, V6 = SockAddr(ip_address("192.0.2.1"), 7747), SockAddr(ip_address("2001:db8::1"), 1)


@pytest.mark.parametrize(
    ("name", "found"), [("192.0.2.1:7747", (V4,)), ("[2001:db8::1]:1", (V6,)), ("r.example.net:7747", ())]
)
def test_addresses_need_no_looking_up(name: str, found: tuple[SockAddr, ...]) -> None:
    assert literal(name) == found


def test_it_is_told_at_once_what_needs_no_looking_up() -> None:
    told: list[Mapping[str, tuple[SockAddr, ...]]] = []
    ServerNames(told.append, ["192.0.2.1:7747", "r.example.net:7747"]).start()
    ServerNames(told.append, []).start()
    assert told == [{"192.0.2.1:7747": (V4,), "r.example.net:7747": ()}]


def test_names_are_looked_up_until_they_lead_somewhere_and_changes_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    answers: list[Any] = [socket.gaierror("not now"), ["192.0.2.1"], ["192.0.2.1"], ["2001:db8::1", "192.0.2.1"]]
    told: list[Mapping[str, tuple[SockAddr, ...]]] = []
    monkeypatch.setattr(servers, "LOOK_UP", 0.001)
    monkeypatch.setattr(servers, "LOOK_UP_LOST", 0.001)

    async def main() -> None:
        done = asyncio.Event()

        async def getaddrinfo(host: str, port: int, **_: object) -> list[tuple[Any, ...]]:
            if not answers:
                done.set()
                await asyncio.Event().wait()
            answer = answers.pop(0)
            if isinstance(answer, Exception):
                raise answer
            return [(0, 0, 0, "", (address, port)) for address in answer]

        monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo)
        names = ServerNames(told.append, ["r.example.net:7747"])
        names.start()
        task = asyncio.ensure_future(names.run(Pulse("rendezvous"), lambda: False))
        await done.wait()
        task.cancel()

    asyncio.run(main())
    both = (SockAddr(V6.host, 7747), V4)
    assert [found["r.example.net:7747"] for found in told] == [(), (V4,), both]


def test_another_configuration_is_told_and_what_is_known_is_kept() -> None:
    told: list[Mapping[str, tuple[SockAddr, ...]]] = []
    names = ServerNames(told.append, ["192.0.2.1:7747"])
    names.configure(["192.0.2.1:7747"])
    assert told == []
    names.configure(["192.0.2.1:7747", "[2001:db8::1]:1"])
    names.configure([])
    assert told == [{"192.0.2.1:7747": (V4,), "[2001:db8::1]:1": (V6,)}, {}]

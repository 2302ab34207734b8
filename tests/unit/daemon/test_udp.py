"""The control port on the loopback interface."""

from __future__ import annotations

import asyncio
import os
from ipaddress import ip_address

import pytest

from redirectctl.daemon import udp
from redirectctl.daemon.udp import OTHERS, ControlPort, ControlPortError, holders_of
from redirectctl.wire.addr import IPAddress, SockAddr
from redirectctl.wire.tunnel import Type

PORT = 47747


@pytest.mark.parametrize(("here", "there"), [("127.0.0.2", "127.0.0.3"), ("::1", "::1")])
def test_a_datagram_leaves_from_the_given_address_and_tells_where_it_came_to(here: str, there: str) -> None:
    async def story() -> None:
        got: asyncio.Queue[tuple[bytes, SockAddr, IPAddress, int]] = asyncio.Queue()
        port = ControlPort(PORT, [], lambda *seen: got.put_nowait(seen))
        port.start(asyncio.get_running_loop())
        try:
            port.send(ip_address(here), SockAddr(ip_address(there), PORT), b"hello")
            data, source, local, number = await asyncio.wait_for(got.get(), 10)
        finally:
            port.close()
        assert (data, number) == (b"hello", 0)
        assert source == SockAddr(ip_address(here), PORT)
        assert local == ip_address(there)

    asyncio.run(story())


def test_an_address_that_is_not_ours_and_a_host_without_route_lose_the_datagram_quietly() -> None:
    async def story() -> None:
        port = ControlPort(PORT, ["127.0.0.1"], lambda *_: None)
        try:
            port.send(ip_address("203.0.113.1"), SockAddr(ip_address("127.0.0.1"), PORT), b"x")
            port.send(None, SockAddr(ip_address("2001:db8::1"), PORT), b"x")
        finally:
            port.close()

    asyncio.run(story())


@pytest.mark.parametrize("listen", [[], ["127.0.0.1", "::1"]])
def test_other_ports_are_opened_and_closed(listen: list[str]) -> None:
    """Each is told by its number; what is for the tunnel comes to the sockets that were given out."""

    async def story() -> None:
        got: asyncio.Queue[tuple[bytes, SockAddr, IPAddress, int]] = asyncio.Queue()
        port = ControlPort(PORT, listen, lambda *seen: got.put_nowait(seen))
        port.start(asyncio.get_running_loop())
        tunnel = []
        try:
            for number, used in ((1, set()), (2, {1})):
                assert not port.has(number)
                tunnel += port.open(number, used) or []
                assert port.has(number)
            for host in map(ip_address, ("127.0.0.1", "::1")):
                sources = []
                for number in (0, 1, 2):
                    port.send(host, SockAddr(host, PORT), b"x", number)
                    data, source, local, arrived = await asyncio.wait_for(got.get(), 10)
                    assert (data, source.host, local, arrived) == (b"x", host, host, 0)
                    sources.append(source)
                    port.send(host, source, b"back")
                    assert await asyncio.wait_for(got.get(), 10) == (b"back", SockAddr(host, PORT), host, number)
                assert len(set(sources)) == 3
                port.send(host, sources[2], bytes((Type.TUNNEL,)))
                (arrived_at,) = [s for s in tunnel if s.getsockname()[1] == sources[2].port]
                assert arrived_at.recv(10) == bytes((Type.TUNNEL,))
            assert len(tunnel) == 4
            tunnel += port.open(3, {2}) or []
            assert [port.has(number) for number in (0, 1, 2, 3)] == [True, False, True, True]
            port.send(ip_address("127.0.0.1"), SockAddr(ip_address("127.0.0.1"), PORT), b"x", 1)
            assert (await asyncio.wait_for(got.get(), 10))[1].port == PORT  # from the control port, then
        finally:
            port.close()
            for sock in tunnel:
                sock.close()
        assert got.empty()

    asyncio.run(story())


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_a_port_that_is_taken_is_explained(address: str) -> None:
    """The holder is named, whichever family it is; the daemon does not start with the other one alone."""
    me = f"process {os.getpid()} of user {os.getuid()} (.*) has it; end it, or set another control.port on all hosts"

    async def story() -> None:
        first = ControlPort(PORT, [address], lambda *_: None)
        try:
            for listen in ([address], []):
                with pytest.raises(ControlPortError, match=rf"^control port 47747/udp: {me}$"):
                    ControlPort(PORT, listen, lambda *_: None)
        finally:
            first.close()
        assert holders_of(PORT) == []

    asyncio.run(story())


def test_there_are_not_more_other_ports_than_may_be() -> None:
    async def story() -> None:
        port = ControlPort(PORT, ["127.0.0.1"], lambda *_: None)
        tunnel = []
        try:
            numbers = range(1, OTHERS + 1)
            for number in numbers:
                tunnel += port.open(number, numbers) or []
            assert len(tunnel) == OTHERS
            assert port.open(OTHERS + 1, numbers) is None
            assert not port.has(OTHERS + 1)
        finally:
            port.close()
            for sock in tunnel:
                sock.close()

    asyncio.run(story())


def test_a_holder_that_cannot_be_found_is_not_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(udp, "holders_of", lambda port: [])

    async def story() -> None:
        first = ControlPort(PORT, ["127.0.0.1"], lambda *_: None)
        try:
            with pytest.raises(ControlPortError, match=r"udp: Address already in use; is another redirectd running\?"):
                ControlPort(PORT, ["127.0.0.1"], lambda *_: None)
        finally:
            first.close()

    asyncio.run(story())


def test_an_address_to_listen_on_that_is_not_there_is_explained() -> None:
    async def story() -> None:
        with pytest.raises(ControlPortError, match=r"Cannot assign requested address; see control\.listen"):
            ControlPort(PORT, ["203.0.113.99"], lambda *_: None)

    asyncio.run(story())

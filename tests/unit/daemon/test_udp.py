"""The control port on the loopback interface."""

from __future__ import annotations

import asyncio
import os
from ipaddress import ip_address

import pytest

from redirectctl.daemon import udp
from redirectctl.daemon.udp import ControlPort, ControlPortError, holders_of
from redirectctl.wire.addr import IPAddress, SockAddr

PORT = 47747


@pytest.mark.parametrize(("here", "there"), [("127.0.0.2", "127.0.0.3"), ("::1", "::1")])
def test_a_datagram_leaves_from_the_given_address_and_tells_where_it_came_to(here: str, there: str) -> None:
    async def story() -> None:
        got: asyncio.Queue[tuple[bytes, SockAddr, IPAddress]] = asyncio.Queue()
        port = ControlPort(PORT, [], lambda *seen: got.put_nowait(seen))
        port.start(asyncio.get_running_loop())
        try:
            port.send(ip_address(here), SockAddr(ip_address(there), PORT), b"hello")
            data, source, local = await asyncio.wait_for(got.get(), 10)
        finally:
            port.close()
        assert data == b"hello"
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

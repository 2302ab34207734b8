"""The rendezvous of the configuration: what their names lead to.

A name is looked up at the start, every five minutes, and every ten seconds while its rendezvous does not answer.  What
an answer says is only where to look: the key decides who is there.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Iterable, Mapping
from typing import Final

from redirectctl.daemon.loops import Pulse
from redirectctl.wire.addr import SockAddr, parse_ip

_log = logging.getLogger(__name__)

LOOK_UP: Final = 300.0  # seconds
LOOK_UP_LOST: Final = 10.0
PATIENCE: Final = 10.0  # seconds for one answer

OnServers = Callable[[Mapping[str, tuple[SockAddr, ...]]], None]


class ServerNames:
    """Tells of all of them whenever one leads elsewhere than before."""

    def __init__(self, on_servers: OnServers, names: Iterable[str]) -> None:
        self._on_servers = on_servers
        self._found: dict[str, tuple[SockAddr, ...]] = {name: literal(name) for name in names}
        self._again = asyncio.Event()

    def start(self) -> None:
        """Those that are addresses need no looking up."""
        if self._found:
            self._on_servers(dict(self._found))

    def configure(self, names: Iterable[str]) -> None:
        """The configuration has been read again."""
        wanted = {name: self._found.get(name) or literal(name) for name in names}
        if wanted != self._found:
            self._found = wanted
            self._on_servers(dict(wanted))
            self._again.set()

    async def run(self, pulse: Pulse, met: Callable[[], bool]) -> None:
        """``met``: all of them answer.  Until cancelled."""
        while True:
            self._again.clear()
            for name in [name for name in self._found if not literal(name)]:
                pulse.beat()
                found = await _look_up(name)
                if found and name in self._found and found != self._found[name]:
                    self._found[name] = found
                    self._on_servers(dict(self._found))
            await pulse.wait(self._again, LOOK_UP if met() else LOOK_UP_LOST)


def _split(name: str) -> tuple[str, int]:
    host, _, port = name.rpartition(":")
    return host.removeprefix("[").removesuffix("]"), int(port)


def literal(name: str) -> tuple[SockAddr, ...]:
    """The address that a name is, if it is one."""
    host, port = _split(name)
    try:
        return (SockAddr(parse_ip(host), port),)
    except ValueError:
        return ()


async def _look_up(name: str) -> tuple[SockAddr, ...]:
    host, port = _split(name)
    try:
        async with asyncio.timeout(PATIENCE):
            answers = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_DGRAM)
    except (OSError, TimeoutError) as error:
        _log.debug("rendezvous %s: %s", name, error)
        return ()
    return tuple(dict.fromkeys(SockAddr(parse_ip(str(to[0]).partition("%")[0]), port) for *_, to in answers))

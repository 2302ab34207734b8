"""Where a name leads that a person has given: as every program of this host would find it (/etc/hosts, nsswitch)."""

from __future__ import annotations

import asyncio
import socket
from ipaddress import ip_address
from typing import Final

from redirectctl.wire.addr import IPAddress

PATIENCE: Final = 6.0  # seconds: the resolver's own default is 5 for its first server
LONGEST: Final = 253  # characters of a name (RFC 1035, section 2.3.4)


class UnknownNameError(Exception):
    """A name leads nowhere; ``hint``: what to do."""

    def __init__(self, why: str, hint: str) -> None:
        super().__init__(why)
        self.hint = hint


async def addresses(text: str) -> tuple[IPAddress, ...]:
    """Of an address the address itself, of a name those that it leads to, at least one.  Raises UnknownNameError."""
    try:
        return (ip_address(text),)
    except ValueError:
        pass
    spelling = "is it spelled right? Of an alias in ssh's configuration, give the address (`ssh -G ALIAS`)"
    if not text or len(text) > LONGEST or not text.isprintable() or " " in text:
        raise UnknownNameError("neither an address nor a name", spelling)
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(PATIENCE):
            found = await loop.getaddrinfo(text, None, type=socket.SOCK_STREAM)
    except TimeoutError:
        why = f"no resolver answered within {PATIENCE:g} s"
        raise UnknownNameError(why, "does this host reach its resolver (/etc/resolv.conf)?") from None
    except (socket.gaierror, UnicodeError) as error:
        if isinstance(error, socket.gaierror) and error.errno == socket.EAI_AGAIN:
            hint = "does this host reach its resolver (/etc/resolv.conf)?"
            raise UnknownNameError("the name could not be looked up: no resolver answers", hint) from error
        raise UnknownNameError("no such name, and no such peer", spelling) from error
    hosts = (str(each[4][0]).partition("%")[0] for each in found)
    return tuple(dict.fromkeys(map(ip_address, hosts)))

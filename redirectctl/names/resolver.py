"""Addresses of a name, as the resolvers of this moment say (/etc/resolv.conf: another network has others).

Nothing is kept: every call asks anew.  dnspython takes 0.2 s to import, so that happens in a thread and when needed.
"""

from __future__ import annotations

import asyncio
import importlib
from ipaddress import ip_address
from typing import TYPE_CHECKING, Final, NamedTuple

from redirectctl.wire.addr import IPAddress

if TYPE_CHECKING:
    import dns.asyncresolver

LIFETIME: Final = 4.0  # seconds for all that one question takes
ATTEMPT: Final = 1.0  # seconds after which the next resolver is asked
MAX_ADDRESSES: Final = 8  # of one name and family
_MODULES: Final = ("dns.asyncresolver", "dns.asyncquery", "dns.update", "dns.tsig")


class NoAnswerError(Exception):
    """A name could not be looked up; the text says why, in a word or two.  ``final``: there is no such name."""

    def __init__(self, why: str, *, final: bool = False) -> None:
        super().__init__(why)
        self.final = final


class Found(NamedTuple):
    """What a name led to."""

    name: str  # whole, with a dot at the end: as the search list made it
    addresses: tuple[IPAddress, ...]
    lasts: float  # seconds


async def prepare() -> None:
    """Import what is needed, beside everything else."""
    await asyncio.to_thread(lambda: [importlib.import_module(name) for name in _MODULES])


async def look_up(name: str) -> Found:
    """A and AAAA records.  Raises NoAnswerError if there is none of either."""
    try:
        await prepare()
        resolver = _resolver()
    except (OSError, ImportError) as error:  # no descriptor is left, for example
        raise NoAnswerError(type(error).__name__) from error
    if "." not in name and not any(map(len, resolver.search)):
        raise NoAnswerError("no search list", final=True)  # the question would go to the root servers
    answers = await asyncio.gather(*(_ask(resolver, name, kind) for kind in ("A", "AAAA")), return_exceptions=True)
    found = [answer for answer in answers if isinstance(answer, Found)]
    if not found:
        errors = [answer for answer in answers if isinstance(answer, BaseException)]
        raise next((e for e in errors if not isinstance(e, NoAnswerError) or not e.final), errors[0])
    addresses = tuple(address for each in found for address in each.addresses)
    return Found(found[0].name, addresses, min(each.lasts for each in found))


def _resolver() -> dns.asyncresolver.Resolver:
    import dns.asyncresolver
    import dns.resolver

    try:
        resolver = dns.asyncresolver.Resolver()
    except dns.resolver.NoResolverConfiguration:
        raise NoAnswerError("no resolver is configured") from None
    resolver.timeout, resolver.lifetime, resolver.cache = ATTEMPT, LIFETIME, None
    return resolver


async def _ask(resolver: dns.asyncresolver.Resolver, name: str, kind: str) -> Found:
    import dns.exception
    import dns.resolver

    try:
        answer = await resolver.resolve(name, kind, search=True)
        addresses = tuple(ip_address(record.address) for record in answer)
    except (dns.exception.DNSException, OSError, ValueError) as error:
        none = isinstance(error, dns.resolver.NXDOMAIN | dns.resolver.NoAnswer)
        raise NoAnswerError("no such name" if none else type(error).__name__, final=none) from error
    return Found(answer.qname.to_text(), addresses[:MAX_ADDRESSES], answer.chaining_result.minimum_ttl)

"""Whether names lead where they should: our own, and those of peers."""

from __future__ import annotations

import asyncio

from redirectctl.api.reasons import advice, explain
from redirectctl.api.schema import Check
from redirectctl.daemon.runtime import Runtime
from redirectctl.doctor.outcome import count, fail, ok, several, skip, warn
from redirectctl.names import resolver, update
from redirectctl.names.resolver import Found, NoAnswerError
from redirectctl.names.update import UpdateError
from redirectctl.wire.addr import IPAddress


async def own(r: Runtime) -> Check:
    """What the zone's server has, against our addresses."""
    name, keeper = "dns.name", r.own_name
    if keeper.own is None:
        return skip(name, "this host keeps no name of its own up to date")
    wanted = keeper.wanted()
    called = keeper.own.name
    if not wanted:
        return warn(name, f"{called}: this host has no global address", "dns.private = true publishes private ones")
    try:
        there = await update.published(keeper.own)
    except UpdateError as error:
        return fail(name, f"{called}: {explain(error.reason)}: {error.detail}", advice(error.reason))
    if there == wanted:
        return ok(name, f"{called} leads to {_listed(wanted)}")
    text = f"{called} leads to {_listed(there)}, not to {_listed(wanted)}"
    if keeper.failure is not None:
        hint = advice(keeper.failure.reason)
        return fail(name, f"{text}: {explain(keeper.failure.reason)}: {keeper.failure.detail}", hint)
    return fail(name, text, "is another program changing it? it is published again at the next address change")


async def peer(r: Runtime, key: bytes, known: list[IPAddress]) -> Check:
    """Under which names a peer would be looked for, and where they lead now; ``known``: addresses of its."""
    name = "peer.names"
    names = r.names.names(key)
    if not names:
        why = "none known" if r.names.settings.lookup else "not looked up (dns.lookup)"
        return skip(name, f"{why}: if both hosts move at once, they cannot find each other by name")
    answers = await asyncio.gather(*map(resolver.look_up, names), return_exceptions=True)
    led = {n: a.addresses for n, a in zip(names, answers, strict=True) if isinstance(a, Found)}
    failed = [f"{n}: {a}" for n, a in zip(names, answers, strict=True) if isinstance(a, NoAnswerError)]
    texts = [f"{each} leads to {_listed(addresses)}" for each, addresses in led.items()] + failed
    if not led:
        return warn(name, several(texts), "does the name exist, and is a resolver reached (/etc/resolv.conf)?")
    if not any(address in known for addresses in led.values() for address in addresses):
        return warn(name, f"{several(texts)}: {count(len(known), 'known address', 'known addresses')}, none of these",
                    "is the name kept up to date?")  # fmt: skip
    return ok(name, several(texts))


def _listed(addresses: frozenset[IPAddress] | tuple[IPAddress, ...]) -> str:
    return several(sorted(map(str, addresses)), ", ") or "nothing"

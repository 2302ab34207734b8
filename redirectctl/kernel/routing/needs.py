"""What a connection needs of the kernel besides the nftables maps: for who puts it there, and for who checks it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from redirectctl.flows.connection import Flow
from redirectctl.wire.addr import IPAddress


class Needs(NamedTuple):
    """Of one flow or of many."""

    kept: frozenset[IPAddress] = frozenset()  # addresses of this host that its socket must be able to send from
    fallbacks: frozenset[IPAddress] = frozenset()  # what its socket takes for the peer's address
    ports: frozenset[int] = frozenset()  # reserved


def needs(flow: Flow) -> Needs:
    """Of one that travels, or waits, otherwise than its socket believes.

    Also where its wire tuple is not proven yet: else a new connection could take its port until then.
    """
    (here, _), (there, _) = flow.socket
    elsewhere = flow.wire.local.host != here
    apart = flow.tunnel or flow.suspended
    # In the tunnel also while an interface has the address: it may go without a move of the connection.
    # What a suspended one sends must find a route, or it never gets to where it is answered.
    kept = {here} if apart or elsewhere else ()
    # Also where only we moved: from the new network there may be no route that the socket would find.
    fallbacks = {there} if apart or flow.wire != flow.socket else ()
    return Needs(frozenset(kept), frozenset(fallbacks), frozenset({flow.wire.local.port} if elsewhere else ()))


def needs_of_all(flows: Iterable[Flow]) -> Needs:
    """What any of them needs."""
    each = [needs(flow) for flow in flows]
    return Needs(*(frozenset().union(*of_kind) for of_kind in zip(*each, strict=True))) if each else Needs()

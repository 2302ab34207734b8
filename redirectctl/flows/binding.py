"""Proofs that a connection's other end is where a peer says it is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from redirectctl.wire import message as messages
from redirectctl.wire.tunnel import Offer

if TYPE_CHECKING:
    from redirectctl.flows.engine import Engine


class Offers:
    """How this host wants to see tunnel datagrams: a flow id for one connection only, never one key twice."""

    def __init__(self, engine: Engine) -> None:
        self._e = engine
        self._flows: set[int] = set()

    def make(self) -> Offer:
        """A fresh one."""
        if len(self._flows) > 4 * len(self._e.table) + 4096:  # mostly of claims that came to nothing, or have ended
            self._flows = {c.receiving.flow for c in self._e.table if c.receiving is not None}
        flow = 0
        while not flow or flow in self._flows:
            flow = int.from_bytes(self._e.rng(4))
        self._flows.add(flow)
        return Offer(flow, self._e.rng(16), int.from_bytes(self._e.rng(8)) % messages.MAX_START)

    def keep(self, offer: Offer | None) -> None:
        """One of an earlier run."""
        if offer is not None:
            self._flows.add(offer.flow)

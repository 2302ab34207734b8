"""What a host wants to see in the tunnel datagrams that are sent to it."""

from __future__ import annotations

from redirectctl.flows.host import Host
from redirectctl.wire import message as messages
from redirectctl.wire.tunnel import Offer


class Offers:
    """How this host wants to see tunnel datagrams: a flow id for one connection only, never one key twice."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._flows: set[int] = set()

    def make(self) -> Offer:
        """A new offer, with a flow id and a key that were never used."""
        if len(self._flows) > 4 * len(self._host.table) + 4096:  # mostly of claims that came to nothing, or have ended
            self._flows = {c.receiving.flow for c in self._host.table if c.receiving is not None}
        flow = 0
        while not flow or flow in self._flows:
            flow = int.from_bytes(self._host.rng(4))
        self._flows.add(flow)
        return Offer(flow, self._host.rng(16), int.from_bytes(self._host.rng(8)) % messages.MAX_START)

    def keep(self, offer: Offer | None) -> None:
        """Note an offer of an earlier run, whose flow id is taken."""
        if offer is not None:
            self._flows.add(offer.flow)

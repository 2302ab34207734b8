"""`redirectctl doctor HOST` where the host is no peer yet: is there a daemon, and if not, who keeps it from answering.

A daemon that answers is a peer from then on, and is examined as one (peer.py): as with any first contact, a person
decides on both hosts.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import NamedTuple

from redirectctl.api.reasons import advice, explain
from redirectctl.api.schema import Check, CheckStatus
from redirectctl.daemon.contacts import PATIENCE
from redirectctl.daemon.runtime import Runtime
from redirectctl.doctor import reached
from redirectctl.doctor.icmp import IcmpWatch
from redirectctl.doctor.outcome import count, fail, merged, ok, several, skip
from redirectctl.doctor.peer import MOST_WAYS, PeerCheck
from redirectctl.doctor.reached import Way
from redirectctl.flows.state import State
from redirectctl.names import lookup
from redirectctl.proto.peer import PeerState
from redirectctl.wire.addr import IPAddress, SockAddr

NAME = "peer.name"
PUBLISHED = "peer.published-key"
_POLL = 0.05  # seconds between looks whether the peer that has answered is noted
_LOOKS = 40


class _Answer(NamedTuple):
    check: Check
    key: bytes | None  # of who answered


class StrangerCheck:
    """All checks about a host that a person has named in whatever way."""

    def __init__(self, runtime: Runtime, text: str) -> None:
        self._r = runtime
        self._text = text

    async def examine(self) -> list[Check]:
        """In the order in which things can go wrong."""
        try:
            addresses = await lookup.addresses(self._text)
        except lookup.UnknownNameError as error:
            return [fail(NAME, f"{self._text}: {error}", error.hint)]
        where = several([str(each) for each in addresses], ", ")
        named = self._text != str(addresses[0])
        text = f"{self._text} leads to {where}" if named else f"{where}: no peer has answered there yet"
        if all(self._own(each) for each in addresses):
            return [fail(NAME, f"{text}, which is this host itself", "name the other host")]
        known = self._known(addresses)
        if known is not None:
            return [
                ok(NAME, text),
                *await self._published(known, addresses),
                *await PeerCheck(self._r, known).examine(),
            ]
        wall = await reached.firewall(self._r.port.port)
        ways = [Way(SockAddr(each, self._r.port.port), None) for each in addresses[:MOST_WAYS]]
        routes = [await reached.routed(way) for way in ways]
        answers = await asyncio.gather(
            *(self._call(way, routing, wall) for way, routing in zip(ways, routes, strict=True))
        )
        for answer in answers:
            if answer.key is not None and await self._noted(answer.key):
                published = await self._published(answer.key, addresses)
                return [ok(NAME, text), *published, *await PeerCheck(self._r, answer.key).examine()]
        contact = merged([answer.check for answer in answers])
        return [ok(NAME, text), merged(routes), wall, contact, *self._connections(addresses)]

    async def _published(self, key: bytes, addresses: tuple[IPAddress, ...]) -> list[Check]:
        """What DNS has of that name, if that is to approve the key that has answered."""
        outcome = await self._r.published_keys.examine(key, self._text, addresses)
        if outcome is None:
            return []
        text = f"{self._text} in DNS: {outcome.why}"
        if outcome.approved:
            return [ok(PUBLISHED, text)]
        if outcome.bogus:
            hint = "compare the keys with `redirectctl identity` on that host before you approve one"
            return [fail(PUBLISHED, text, hint)]
        return [skip(PUBLISHED, f"{text}: nothing that is believed")]

    def _own(self, address: IPAddress) -> bool:
        return address.is_loopback or self._r.engine.network.is_ours(address)

    def _known(self, addresses: tuple[IPAddress, ...]) -> bytes | None:
        """The peer that has answered at one of them."""
        for peer in self._r.engine.peers.values():
            if peer.state is not PeerState.CHANGED and not peer.identity.isdisjoint(addresses):
                return peer.key
        return None

    async def _call(self, way: Way, routing: Check, wall: Check) -> _Answer:
        """A handshake with whoever is there."""
        if routing.status is CheckStatus.FAIL:
            return _Answer(reached.silence(way, {}, routing, wall, known=False), None)
        with IcmpWatch(way.to) as watch:
            try:
                async with asyncio.timeout(PATIENCE):
                    reason, key = await self._r.contacts.meet(way.to)
            except TimeoutError:
                reason, key = "no-answer", None
        if reason is None:
            return _Answer(ok(reached.CONTACT, f"UDP {way.to} answered"), key)
        if reason != "no-answer":
            hint = advice(reason) or "see `redirectctl events`"
            return _Answer(fail(reached.CONTACT, f"UDP {way.to}: {explain(reason)}", hint), None)
        return _Answer(reached.silence(way, watch.reports, routing, wall, known=False), None)

    async def _noted(self, key: bytes) -> bool:
        """Whether it is among the peers, which takes a moment."""
        for _ in range(_LOOKS):
            if key in self._r.peers.records:
                return True
            await asyncio.sleep(_POLL)
        return False

    def _connections(self, addresses: tuple[IPAddress, ...]) -> list[Check]:
        """They are open, so the host itself is there."""
        states = Counter(
            c.state.value
            for c in self._r.engine.table
            if c.socket.remote.host in addresses and c.state is not State.CLOSED
        )
        if not states:
            return []
        listed = several([f"{number} {state}" for state, number in states.items()], ", ")
        text = f"{count(states.total(), 'connection')} with it: {listed}"
        return [ok("peer.connections", f"{text}; they are protected as soon as a redirectd answers there")]

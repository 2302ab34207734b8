"""Approves peers whose keys DNS has under the names that commands used: `[trust] dns`.

A lookup takes a command of a user of this host, with a connection to a peer that waits for a person; or a person who
names a host to `redirectctl doctor`; or root, who names it in `[dns.names]`.  Nobody else can make this host ask.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Iterator
from typing import TYPE_CHECKING, Final, NamedTuple

from redirectctl.config import Dns
from redirectctl.daemon.contacts import Contacts
from redirectctl.daemon.loops import Pulse
from redirectctl.flows.engine import Engine
from redirectctl.flows.state import State
from redirectctl.kernel.processes import procfs
from redirectctl.names import published
from redirectctl.names.published import NotPublishedError
from redirectctl.proto.fingerprint import fingerprint, matches
from redirectctl.proto.peer import PeerState
from redirectctl.wire.addr import IPAddress, SockAddr

if TYPE_CHECKING:
    from redirectctl.names.secure import Anchors

_log = logging.getLogger(__name__)

LOOK: Final = 1.0  # seconds between looks who waits for a person
AGAIN: Final = 60.0  # seconds until the same is asked once more: the record may be new, or the resolver another one
MAX_AT_ONCE: Final = 4  # lookups, of different users
MAX_CALLED: Final = 2  # addresses of one name at which the key is to answer, one after the other
MAX_ASKED: Final = 1024  # that are remembered

_ROOT: Final = 0


class Question(NamedTuple):
    """Is this key that of the name?"""

    key: bytes
    name: str
    addresses: frozenset[IPAddress]  # to one of which the name has led; empty: any
    uid: int


class Outcome(NamedTuple):
    """What has come of a question."""

    approved: bool
    why: str
    bogus: bool = False


class PublishedKeys:
    """Whom DNS vouches for."""

    def __init__(
        self, engine: Engine, contacts: Contacts, names: Callable[[], Dns], changed: Callable[[], None]
    ) -> None:
        """``names``: the configured ones; ``changed``: the engine was told something."""
        self._engine = engine
        self._contacts = contacts
        self._names = names
        self._changed = changed
        self._trusted: Anchors | None = None
        self._asked: dict[tuple[bytes, str], float] = {}
        self._served: dict[int, float] = {}  # users, when a question of theirs was asked last

    @property
    def on(self) -> bool:
        """Whether DNS is asked at all."""
        return self._trusted is not None

    def configure(self, trusted: Anchors | None) -> None:
        """The trust anchors; None: DNS vouches for nobody."""
        self._trusted = trusted
        self._asked.clear()

    async def run(self, pulse: Pulse) -> None:
        """Look up what there is to look up."""
        while True:
            await pulse.sleep(LOOK)
            if questions := self._due(asyncio.get_running_loop().time()):
                await asyncio.gather(*map(self.ask, questions))

    def _due(self, now: float) -> list[Question]:
        """One of each user, those first who have waited longest."""
        if not self.on:
            return []
        due: dict[int, Question] = {}
        for question in self._questions():
            if now - self._asked.get((question.key, question.name), float("-inf")) >= AGAIN:
                due.setdefault(question.uid, question)
        chosen = sorted(due.values(), key=lambda each: self._served.get(each.uid, float("-inf")))[:MAX_AT_ONCE]
        if len(self._asked) + len(chosen) > MAX_ASKED:
            self._asked.clear()
        if len(self._served) + len(chosen) > MAX_ASKED:
            self._served.clear()
        for question in chosen:
            self._asked[question.key, question.name] = self._served[question.uid] = now
        return chosen

    def _questions(self) -> Iterator[Question]:
        """Of peers that wait for a person."""
        for peer in self._engine.peers.values():
            if peer.state is not PeerState.PENDING:
                continue
            for configured, called in self._names().names.items():
                if matches(fingerprint(peer.key), configured) and published.is_whole(called):
                    yield Question(peer.key, _plain(called), frozenset(), _ROOT)
            for c in self._engine.table.of(peer.key):
                if c.state is State.PENDING and c.initiator and c.pid is not None and c.uid is not None:
                    name = published.meant(procfs.arguments(c.pid))
                    if name is not None:
                        yield Question(peer.key, _plain(name), frozenset({c.socket.remote.host}), c.uid)

    async def examine(self, key: bytes, text: str, addresses: Collection[IPAddress]) -> Outcome | None:
        """A person has named a host, which led to these addresses, and a key has answered at one of them.

        None: nothing is to be looked up.
        """
        peer = self._engine.peers.get(key)
        if not self.on or peer is None or peer.state is not PeerState.PENDING or not published.is_whole(text):
            return None
        return await self.ask(Question(key, _plain(text), frozenset(addresses), _ROOT))

    async def ask(self, question: Question) -> Outcome:
        """Look it up, and approve the peer if DNS has this key for that name and address."""
        try:
            outcome = await self._ask(question)
        except Exception as error:  # dnspython's: what others send is not to end the loop
            _log.exception("the key of %s", question.name)
            outcome = Outcome(False, type(error).__name__)
        level = logging.INFO if outcome.approved else logging.WARNING if outcome.bogus else logging.DEBUG
        _log.log(level, "%s in DNS for %s: %s", question.name, fingerprint(question.key), outcome.why)
        return outcome

    async def _ask(self, question: Question) -> Outcome:
        if self._trusted is None:
            return Outcome(False, "DNS is not asked for keys (trust.dns)")
        try:
            found = await published.look_up(question.name, self._trusted)
        except NotPublishedError as error:
            return Outcome(False, str(error), error.bogus)
        if fingerprint(question.key) not in found.keys:
            return Outcome(False, f"has another key there: {', '.join(sorted(found.keys))}", bogus=True)
        at = question.addresses & found.addresses if question.addresses else found.addresses
        if not at:
            return Outcome(False, f"has other addresses there: {_listed(found.addresses)}", bogus=True)
        for address in sorted(at, key=str)[:MAX_CALLED]:
            if not await self._answers(question.key, address):
                continue
            if self.on and self._engine.published(asyncio.get_running_loop().time(), question.key, address):
                self._changed()
                return Outcome(True, "has this key there, validated")
            return Outcome(
                False, "has this key there, but another one is known at its address, or a person has decided"
            )
        return Outcome(False, "has this key there, but it does not answer at the address that is there")

    async def _answers(self, key: bytes, address: IPAddress) -> bool:
        """Whether the key answers where the name leads: it may only have called us from there."""
        loop, engine = asyncio.get_running_loop(), self._engine
        if not engine.answered_at(loop.time(), key, address):
            await self._contacts.within(SockAddr(address, engine.policy.control_port), key)
        answered = engine.answered_at(loop.time(), key, address)
        self._changed()
        return answered


def _plain(name: str) -> str:
    return name.rstrip(".").lower()


def _listed(addresses: Collection[IPAddress]) -> str:
    return ", ".join(sorted(map(str, addresses)))

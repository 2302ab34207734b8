"""Names of peers: where one that does not answer may be found again.

A name comes from the configuration, or from a command line: a word that led to the address at which the peer's key
answered.  Any user may have such a command, so what is learnt is kept for each user: nobody's names displace another's.
What a name leads to is told to the engine as a place, which nobody trusts (flows/rendezvous/places.py).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Iterable
from typing import NamedTuple

from redirectctl.config import Dns
from redirectctl.daemon.tasks import Tasks
from redirectctl.flows.connection import Connection
from redirectctl.flows.engine import Engine
from redirectctl.flows.rendezvous.places import DNS
from redirectctl.kernel.processes import procfs
from redirectctl.names import resolver
from redirectctl.names.resolver import Found, NoAnswerError
from redirectctl.names.words import destination, host_words
from redirectctl.proto.fingerprint import fingerprint, matches
from redirectctl.store.records import PeerRecord, StoreError
from redirectctl.store.store import MAX_NAMES as MAX_LEARNT
from redirectctl.store.store import Store
from redirectctl.wire.addr import IPAddress, SockAddr

_log = logging.getLogger(__name__)

MAX_NAMES = 8  # of one peer that are looked up, those of the configuration first
MAX_STUDIED = 1024  # command lines that have been studied; then all are forgotten
MAX_WAITING = 64  # command lines of all users; more at once are mostly the same command

UNKNOWN_USER = -1  # of a connection that an earlier run of the daemon found


class Sight(NamedTuple):
    """A command that connected to a peer."""

    key: bytes
    address: IPAddress
    words: tuple[str, ...]
    uid: int


class NameBook:
    """What the peers are called, and where that leads."""

    def __init__(
        self,
        engine: Engine,
        store: Store,
        records: dict[bytes, PeerRecord],
        tasks: Tasks,
        changed: Callable[[], None],
    ) -> None:
        """``records``: of all peers, kept up to date by the owner; ``changed``: the engine was told something."""
        self.settings = Dns()
        self._engine = engine
        self._store = store
        self._records = records
        self._tasks = tasks
        self._changed = changed
        self._learnt: dict[bytes, list[str]] = store.names()
        self._words: dict[bytes, dict[int, str]] = store.words()  # what each user's ssh calls a peer
        self._heard: set[tuple[bytes, bytes]] = set()  # peers and connections whose command was read
        self._looking: set[bytes] = set()
        self._studied: set[Sight] = set()
        self._waiting: list[Sight] = []

    def names(self, key: bytes) -> list[str]:
        """Under which a peer is looked up."""
        if not self.settings.lookup:
            return []
        record, known = self._records.get(key), fingerprint(key)
        called = [
            name
            for peer, name in self.settings.names.items()
            if matches(known, peer) or (record is not None and record.name == peer)
        ]
        return list(dict.fromkeys([*called, *self._learnt.get(key, [])]))[:MAX_NAMES]

    def forget(self, key: bytes) -> None:
        """The peer is forgotten; the store has done so."""
        self._learnt.pop(key, None)
        self._words.pop(key, None)

    # -- what people call a peer --------------------------------------------------------------------------------------

    def called(self, key: bytes, uid: int = 0) -> str | None:
        """What a user's commands call a peer, until a person names it; root is told what anybody's do."""
        return next(iter(self._callings(key, uid)), None)

    def meaning(self, word: str, uid: int, *, own: bool = False) -> list[bytes]:
        """The peers that a user means by a word of his command line; ``own``: not by another user's, also for root."""
        known = {**self._words, **self._learnt}
        return [key for key in known if key in self._records and word.lower() in self._callings(key, uid, own=own)]

    def _callings(self, key: bytes, uid: int, *, own: bool = False) -> list[str]:
        """The user's own word first, then root's, for root anybody's, the latest first; then names that DNS has."""
        words = self._words.get(key, {})
        wanted = [uid, 0, *(reversed(words) if uid == 0 and not own else ())]
        learnt = [name.rstrip(".") for name in self._learnt.get(key, [])]
        return list(dict.fromkeys([*(words[each] for each in wanted if each in words), *learnt]))

    def hear(self, connections: Iterable[Connection]) -> None:
        """Read what commands of these call their peers, also of peers that nobody has approved yet."""
        for c in connections:
            if c.peer is None or c.pid is None or not c.initiator or (c.peer, c.cid) in self._heard:
                continue
            if len(self._heard) >= MAX_STUDIED:
                self._heard.clear()
            self._heard.add((c.peer, c.cid))
            if (word := destination(procfs.arguments(c.pid))) is not None:
                self._call(c.peer, c.uid if c.uid is not None else UNKNOWN_USER, word)

    def _call(self, key: bytes, uid: int, word: str) -> None:
        words = self._words.setdefault(key, {})
        words.pop(uid, None)  # the latest comes last
        words[uid] = word
        while len(words) > MAX_LEARNT:
            del words[next(iter(words))]
        try:
            self._store.put_word(key, word, time.time(), uid)
        except StoreError as error:  # one that waits for a person may not be stored yet: later, when it is protected
            _log.debug("%s is called %s: %s", fingerprint(key), word, error)

    # -- looking up ---------------------------------------------------------------------------------------------------

    def seek(self, key: bytes) -> None:
        """A peer does not answer: ask DNS, unless that is under way."""
        names = self.names(key)
        if names and key not in self._looking:
            self._looking.add(key)
            self._tasks.start(self._look(key, names), "names")

    async def _look(self, key: bytes, names: list[str]) -> None:
        try:
            answers = await asyncio.gather(*map(resolver.look_up, names), return_exceptions=True)
        finally:
            self._looking.discard(key)
        found = [answer for answer in answers if isinstance(answer, Found)]
        for name, answer in zip(names, answers, strict=True):
            if isinstance(answer, Found):
                _log.debug("%s is at %s", name, ", ".join(map(str, answer.addresses)))
            elif isinstance(answer, NoAnswerError):
                _log.debug("%s: %s", name, answer)
            else:
                _log.error("%s could not be looked up", name, exc_info=answer)
        if found:
            port = self._engine.policy.control_port
            places = [SockAddr(address, port) for each in found for address in each.addresses]
            lasts = min(each.lasts for each in found)
            self._engine.place_learnt(asyncio.get_running_loop().time(), key, DNS, places, lasts)
            self._changed()

    # -- learning -----------------------------------------------------------------------------------------------------

    def study(self, connections: Iterable[Connection]) -> None:
        """These have become protected: by which names did their commands find the peers?"""
        connections = list(connections)
        for c in connections:
            self._heard.discard((c.peer or b"", c.cid))  # by now the peer is stored
        self.hear(connections)
        if not self.settings.lookup:
            return
        for connection in connections:
            sight = self._sight(connection)
            if sight is None or sight in self._studied:
                continue
            if sum(each.uid == sight.uid for each in self._waiting) >= MAX_WAITING - len(self._waiting):
                continue  # nobody has more than are left for all others
            if len(self._studied) >= MAX_STUDIED:
                self._studied.clear()
            self._studied.add(sight)
            self._waiting.append(sight)
            if len(self._waiting) == 1:
                self._tasks.start(self._study(), "names")

    def _sight(self, connection: Connection) -> Sight | None:
        """Only of what was opened here, to an address at which we called the peer and it answered."""
        peer = self._engine.peers.get(connection.peer) if connection.peer is not None else None
        address = connection.socket.remote.host
        if peer is None or not connection.initiator or connection.pid is None or address not in peer.identity:
            return None
        words = host_words(procfs.arguments(connection.pid))
        uid = connection.uid if connection.uid is not None else UNKNOWN_USER
        return Sight(peer.key, address, tuple(words), uid) if words else None

    async def _study(self) -> None:
        last = None
        while self._waiting:
            sight = next((each for each in self._waiting if each.uid != last), self._waiting[0])  # users in turn
            last = sight.uid
            try:
                certain = await self._learn(sight)
            except Exception:
                _log.exception("names of %s", fingerprint(sight.key))
                certain = False
            if not certain:
                self._studied.discard(sight)  # the next connection gives another opportunity
            self._waiting.remove(sight)

    async def _learn(self, sight: Sight) -> bool:
        """Which of the words leads to the peer?  False: it is worth asking once more."""
        name, certain = await _leading_to(sight.address, sight.words)
        if name is not None and sight.key in self._records:
            known = [name, *(n for n in self._learnt.get(sight.key, []) if n != name)]
            self._learnt[sight.key] = known[:MAX_LEARNT]  # for now, if it cannot be stored
            self._learnt[sight.key] = self._store.put_name(sight.key, name, time.time(), sight.uid)
            _log.info("%s is called %s", fingerprint(sight.key), name)
        return certain


async def _leading_to(address: IPAddress, words: Collection[str]) -> tuple[str | None, bool]:
    """The first of the words that leads to an address, as a whole name; and whether that is certain."""
    certain = True
    for word in words:
        try:
            found = await resolver.look_up(word)
        except NoAnswerError as error:
            certain = certain and error.final
            continue
        if address in found.addresses:
            return found.name, True
    return None, certain

"""The rewriting of moved connections and the RST guard of all protected ones: nftables table `inet redirectctl`.

`skeleton` has the table and what its sets are for, `elements` what a connection is in them.  A packet of a moved
connection goes through

    incoming  in (prerouting, raw - 10): wire tuple -> socket tuple, MARK_MOVED
    outgoing  out (output, mangle, type route): socket tuple -> wire tuple, then routed again

Both addresses are changed in `out` and not one of them in postrouting, so that the new route is one for packets from
the new source address (`ip rule from ...` of hosts with several uplinks).

What sends through the tunnel gets MARK_TUNNEL in `out` and keeps its socket tuple; old_addresses.py routes it to
redirect0.  Of a connection with integrity `in` lets nothing pass but what comes from there.
"""

from __future__ import annotations

import errno
from collections import Counter
from collections.abc import Callable, Container, Iterable
from typing import NamedTuple

from redirectctl.flows.connection import Flow
from redirectctl.kernel.errors import KernelError
from redirectctl.kernel.netfilter.batch import BatchError, ElementSocket
from redirectctl.kernel.netfilter.elements import (
    Place,
    add_commands,
    describe,
    elements,
    flows_in,
    guard_place,
    probe_place,
)
from redirectctl.kernel.netfilter.libnftables import Command, Nft, NftError
from redirectctl.kernel.netfilter.monitor import RulesetWatch
from redirectctl.kernel.netfilter.queue_rules import QUEUE_RULES, IptablesQueues, nft_has_queue, nft_queue_commands
from redirectctl.kernel.netfilter.skeleton import TABLE, TOKEN, UNTAGGED, reshape, rule_counts, skeleton
from redirectctl.wire.addr import FourTuple

PROBE_SECONDS = 5.0  # how long a probe waits for its ACK: the local stack answers within microseconds

_TAGGED = frozenset(f"tag{version}" for version in (4, 6))
_TABLE_NAME = {"family": TABLE["family"], "name": TABLE["table"]}


class _Entry(NamedTuple):
    """A flow that the kernel has."""

    flow: Flow
    elements: list[tuple[Place, bytes | None]]

    @property
    def guard(self) -> Place:
        return self.elements[0][0]


class Rewriter:
    """Keeps the table equal to a set of flows; not thread-safe, synchronous.

    It works in the network namespace of the thread that makes it.  All methods raise KernelError; one that raises has
    changed nothing.  `setup` and `teardown` may run iptables (tens of ms).
    """

    def __init__(self) -> None:
        # Called before a chain is unhooked: the kernel then drops what is in any NFQUEUE (`nf_queue_nf_hook_drop`), and
        # what has come for a suspended connection would have to be sent again.
        self.drain: Callable[[], None] = lambda: None
        self._nft = Nft()
        self._netlink = ElementSocket(TABLE["table"])
        self.watch = RulesetWatch(TABLE["table"])
        self.queues: IptablesQueues | None = None if nft_has_queue(self._nft) else IptablesQueues()
        self._seen = -1  # the ruleset's generation when the table was last known to be whole
        self._entries: dict[Place, _Entry] = {}
        self._places: dict[Place, bytes | None] = {}  # elements, and None where there must be none
        self._counts: Counter[str] = Counter()  # elements by set
        self._shape: frozenset[str] = frozenset()  # sets that the base chains look in
        self._probed: frozenset[str] = frozenset()  # sets that sockets being probed are in
        self._tokens: frozenset[str] = frozenset()  # TOKEN while tokens are waited for
        self._untagged = 0  # what counter UNTAGGED said last

    def close(self) -> None:
        """Let go of the kernel's interfaces; the table stays and goes on working."""
        self._nft.close()
        self._netlink.close()
        self.watch.close()

    def setup(self, flows: Iterable[Flow] = (), *, queues: bool = True) -> None:
        """Replace whatever table of ours there is by one for exactly ``flows``, in one transaction: without a gap.

        But for one packet: the new chains come before the old ones in their hooks, so a packet that has passed the new
        one, not yet valid, and reaches the old one when it no longer is, leaves as it is.  Under constant traffic that
        happened once in 1,900 transactions.  TCP repeats it.

        libnftables takes about 0.1 s for 1,000 flows.  ``queues``: make sure of the rules to NFQUEUE in iptables too.
        """
        entries: dict[Place, _Entry] = {}
        places: dict[Place, bytes | None] = {}
        for flow in flows:
            entry = _Entry(flow, elements(flow))
            if entries.setdefault(entry.guard, entry) is entry:
                _claim(entry, places, {}, {})
            elif entries[entry.guard].flow != flow:
                raise _conflict(flow, "the connection is listed twice")
        installed = {place: value for place, value in places.items() if value is not None}
        counts = Counter(name for name, _ in installed)
        shape = frozenset(counts) | self._tokens
        commands = skeleton()
        if self.queues is not None and queues:
            self.queues.install()
        elif self.queues is None:
            commands += nft_queue_commands(TABLE)
        self._run(commands + reshape(frozenset(), shape) + add_commands(installed.items()))
        self._entries, self._places, self._counts, self._shape = entries, places, counts, shape
        self._probed, self._untagged = frozenset(), 0

    def apply(self, add: Iterable[Flow] = (), remove: Iterable[Flow] = ()) -> None:
        """Take ``remove`` out and put ``add`` in, in one transaction; a move is both with one socket tuple.

        What is not there need not be removed.  Raises KernelError if two flows would share a tuple on the wire.
        If the table has been removed by somebody (`nft flush ruleset`), it is set up anew.
        """
        gone: dict[Place, _Entry] = {}
        for flow in remove:
            entry = self._entries.get(guard_place(flow.socket))
            if entry is not None and entry.flow == flow:
                gone[entry.guard] = entry
        old = {place: value for entry in gone.values() for place, value in entry.elements}
        new: dict[Place, _Entry] = {}
        fresh: dict[Place, bytes | None] = {}
        for flow in add:
            entry = _Entry(flow, elements(flow))
            present = new.get(entry.guard) or (None if entry.guard in gone else self._entries.get(entry.guard))
            if present is None:
                _claim(entry, fresh, self._places, old)
                new[entry.guard] = entry
            elif present.flow != flow:
                raise _conflict(flow, f"it is {present.flow.wire} on the wire now")
        delete = {place: value for place, value in old.items() if value is not None and fresh.get(place) != value}
        create = {place: value for place, value in fresh.items() if value is not None and old.get(place) != value}
        counts = self._counts.copy()
        counts.subtract(name for name, _ in delete)
        counts.update(name for name, _ in create)
        try:
            self._change(+counts, delete, create)
        except BatchError as error:
            if error.code != errno.ENOENT:
                raise
            remaining = {guard: entry for guard, entry in self._entries.items() if guard not in gone} | new
            self.setup(entry.flow for entry in remaining.values())
            return
        for place in old:
            del self._places[place]
        self._places |= fresh
        for guard in gone:
            del self._entries[guard]
        self._entries |= new
        self._counts = counts

    def probe(self, sockets: Iterable[FourTuple]) -> None:
        """Give the next outgoing pure ACK of exactly these socket tuples MARK_PROBE, which leads to Queue.PROBE.

        One each, until the next call, and for PROBE_SECONDS at most.
        """
        places = [(probe_place(socket), b"") for socket in sockets]
        # An element that is there already would keep its old timeout, so all are put in anew.
        flush = [{"flush": {"set": {**TABLE, "name": f"probe{version}"}}} for version in (4, 6)]
        self._probed = frozenset(name for (name, _), _ in places)
        shape = frozenset(+self._counts) | self._probed | self._tokens
        self._run(self._reshaping(shape) + flush + add_commands(places, timeout=int(PROBE_SECONDS)))
        self._shape = shape

    def listen(self, on: bool) -> None:
        """Give incoming segments with a token MARK_TOKEN, which leads to Queue.TOKEN; or no longer.

        They skip the rewriting: who reads them sees the tuple that they arrived with.
        """
        before, self._tokens = self._tokens, frozenset({TOKEN} if on else ())
        try:
            self._reshape(self._shape - {TOKEN} | self._tokens)
        except BatchError as error:
            if error.code != errno.ENOENT:
                self._tokens = before
                raise
            self.setup(self.wanted())

    def untagged(self) -> int:
        """How many plain packets of connections with integrity have been dropped since the last call; takes 0.4 ms.

        What was dropped shortly before the table was made anew, or the last such connection went, is not counted.
        """
        if not self._shape & _TAGGED:
            return 0
        try:
            # Not `reset`: nft 1.0.6 answers from a cache that it does not renew.
            (listed,) = self._nft.run([{"list": {"counter": {**TABLE, "name": UNTAGGED}}}])
        except NftError:
            if self.intact():
                raise
            return 0
        before, self._untagged = self._untagged, int(listed["counter"]["packets"])
        return self._untagged - before

    def flows(self) -> frozenset[Flow]:
        """What the kernel has, read back; empty without a table."""
        return flows_in(self._nft.run([{"list": {"table": _TABLE_NAME}}])) if self._netlink.has_table() else frozenset()

    def wanted(self) -> list[Flow]:
        """What the kernel should have."""
        return [entry.flow for entry in self._entries.values()]

    def intact(self) -> bool:
        """Whether the table is still there; takes 0.05 ms."""
        return self._netlink.has_table()

    def whole(self) -> bool:
        """Whether nobody has removed the table or a part of it; takes 0.02 ms if no ruleset was changed since.

        Else 1 ms for 1,000 elements.  What others have put in besides is no harm.
        """
        generation = self.watch.generation()
        if generation != self._seen and self.intact() and self._counted():
            self._seen = generation
        return generation == self._seen

    def _counted(self) -> bool:
        wanted = rule_counts(self._shape)
        rules = self.watch.rules()
        if self.queues is None:
            wanted.update(f"queue-{rule.hook}" for rule in QUEUE_RULES)
        counts = +self._counts
        return rules == wanted and self.watch.elements(counts) >= counts

    def _run(self, commands: list[Command]) -> None:
        with self.watch.ours():
            self._nft.run(commands)

    def teardown(self) -> None:
        """Remove the table and the rules to NFQUEUE; what is not there is no error."""
        self._run([{"add": {"table": _TABLE_NAME}}, {"delete": {"table": _TABLE_NAME}}])
        if self.queues:
            self.queues.remove()
        self._entries, self._places, self._counts, self._shape = {}, {}, Counter(), frozenset()
        self._probed, self._tokens, self._untagged = frozenset(), frozenset(), 0

    def _change(self, counts: Counter[str], delete: dict[Place, bytes], create: dict[Place, bytes]) -> None:
        """Rules that look in empty sets harm nobody: they come before the first element and go after the last."""
        shape = frozenset(counts) | self._probed | self._tokens
        self._reshape(shape | self._shape)
        with self.watch.ours():
            self._netlink.change(delete.items(), create.items())
        self._reshape(shape)

    def _reshape(self, shape: frozenset[str]) -> None:
        if shape == self._shape:
            return
        try:
            self._run(self._reshaping(shape))
        except NftError as error:
            if self.intact():
                raise
            raise BatchError(errno.ENOENT, error.why) from error
        self._shape = shape

    def _reshaping(self, shape: frozenset[str]) -> list[Command]:
        """Elements that led to a queue are gone by now: nothing comes after what is read here."""
        commands = reshape(self._shape, shape)
        if any("delete" in command for command in commands):
            self.drain()
        return commands


def _claim(
    entry: _Entry, fresh: dict[Place, bytes | None], installed: Container[Place], leaving: Container[Place]
) -> None:
    """Enter a flow's elements into ``fresh``; none may be another's: two flows would be one on the wire."""
    for place, value in entry.elements:
        if place in fresh or (place in installed and place not in leaving):
            raise _conflict(entry.flow, f"{describe(place)} belongs to another connection")
        fresh[place] = value


def _conflict(flow: Flow, why: str) -> KernelError:
    return KernelError(f"rewrite {flow.socket} as {flow.wire}", why, "close one of the two connections")

"""Puts back what others take out of the kernel: firewalls that are loaded anew, network managers, people.

    nftables table               the kernel tells of every change (kernel/netfilter/monitor.py); looked at at once
    iptables rules to NFQUEUE    looked at after such a change, for iptables is nftables too on most hosts
    device, rules, addresses,    the kernel tells of what goes (kernel/routing/monitor.py)
    routes
    reserved ports               nobody tells: looked at each BEAT

and everything, told of or not, each SLOW seconds.

Who takes the same thing out again and again wants it so.  It is left alone for a while then, and the event log says so:
two programs that undo each other's work without end help nobody.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Final

from redirectctl.api.schema import EventName
from redirectctl.daemon.loops import Pulse
from redirectctl.daemon.rewriting import Rewriting
from redirectctl.kernel.errors import KernelError
from redirectctl.kernel.tunnel.carrier import Carrier

_log = logging.getLogger(__name__)

BEAT: Final = 1.0  # seconds between looks at what costs some 0.05 ms
SLOW: Final = 15.0  # seconds between looks at everything: routing and iptables cost some 20 ms
APART: Final = 2.0  # seconds between looks at iptables: two processes, and there are hosts with many changes a second
SETTLE: Final = 0.05  # seconds: who takes out one rule or route often takes out more
TIMES, WITHIN, PAUSE = 10, 60.0, 60.0  # so often within so many seconds is contested; then left alone for that long

# Why something was put back (`reason` of kernel.repaired and kernel.contested); besides them those of Keeper.missing.
TABLE: Final = "nft-table"
QUEUES: Final = "queue-rules"
PORTS: Final = "reserved-ports"

Tell = Callable[[EventName, str, str], object]  # event, reason, detail


class Contest:
    """How often each kind of thing had to be put back."""

    def __init__(self) -> None:
        self._times: defaultdict[str, deque[float]] = defaultdict(deque)
        self._until: dict[str, float] = {}

    def left_alone(self, kind: str, now: float) -> bool:
        """Whether it is not to be put back now."""
        return now < self._until.get(kind, now)

    def count(self, kind: str, now: float) -> bool:
        """It is put back once more.  True: that was once too often, and it is left alone from now on."""
        times = self._times[kind]
        times.append(now)
        while now - times[0] > WITHIN:
            times.popleft()
        if len(times) < TIMES:
            return False
        times.clear()
        self._until[kind] = now + PAUSE
        return True


class Repairs:
    """Looks, and puts back, for as long as the daemon runs."""

    def __init__(self, rewriting: Rewriting, carrier: Callable[[], Carrier], tell: Tell) -> None:
        """``tell``: for the event log."""
        self._rewriting = rewriting
        self._carrier = carrier
        self._tell = tell
        self._contest = Contest()
        self._hint = asyncio.Event()
        self._routing = self._queues = True  # whether they are to be looked at
        self._looked = float("-inf")  # when at the queues

    def routing_lost(self) -> None:
        """Something of ours in the kernel's routing has gone; it may have been by ourselves."""
        self._routing = True
        self._hint.set()

    async def run(self, pulse: Pulse) -> None:
        """Until cancelled."""
        loop, watch = asyncio.get_running_loop(), self._rewriting.rewriter.watch
        watch.heed()
        loop.add_reader(watch.fileno(), self._ruleset_changed)
        slow = loop.time()
        try:
            while True:
                if await pulse.wait(self._hint, BEAT):
                    await pulse.sleep(SETTLE)
                self._hint.clear()
                if loop.time() - slow >= SLOW:
                    slow = loop.time()
                    self._routing = self._queues = True
                await self._look()
        finally:
            loop.remove_reader(watch.fileno())

    def _ruleset_changed(self) -> None:
        """Until the table is there again a stranger's RST may end a connection: at once."""
        with _logged():
            self._rewriting.rewriter.watch.drain()
            self._look_at_table()
        self._queues = True
        self._hint.set()

    async def _look(self) -> None:
        for look in (self._look_at_table, self._look_at_ports):
            with _logged():
                look()
        with _logged():
            now = asyncio.get_running_loop().time()
            if self._queues and now - self._looked >= APART:
                self._queues, self._looked = False, now
                await self._look_at_queues()
        with _logged():
            if self._routing or not self._carrier().attached:
                self._routing = False
                await self._look_at_routing()

    def _look_at_table(self) -> None:
        rewriter = self._rewriting.rewriter
        if self._may(TABLE) and not rewriter.whole():
            rewriter.setup(rewriter.wanted(), queues=False)
            self._put_back(TABLE, f"{len(rewriter.wanted())} protected connections")

    def _look_at_ports(self) -> None:
        if self._may(PORTS) and (ports := self._rewriting.restore_ports()):
            self._put_back(PORTS, ", ".join(map(str, sorted(ports))))

    async def _look_at_queues(self) -> None:
        queues = self._rewriting.rewriter.queues
        # In a thread: it is another program that looks, and takes its time.
        if queues is not None and self._may(QUEUES) and not await asyncio.to_thread(queues.intact):
            await asyncio.to_thread(queues.install)
            self._put_back(QUEUES, "iptables")

    async def _look_at_routing(self) -> None:
        missing = await self._rewriting.missing()
        if any(self._may(kind) for kind in missing):
            for kind, what in (await self._rewriting.restore_routing()).items():
                self._put_back(kind, what)
        carrier = self._carrier()
        if not carrier.attached and "device" not in await self._rewriting.missing():
            carrier.reattach()

    def _may(self, kind: str) -> bool:
        return not self._contest.left_alone(kind, asyncio.get_running_loop().time())

    def _put_back(self, kind: str, what: str | Iterable[str]) -> None:
        detail = what if isinstance(what, str) else ", ".join(what)
        _log.warning("put back what another program had removed: %s: %s", kind, detail)
        self._tell(EventName.KERNEL_REPAIRED, kind, detail)
        if self._contest.count(kind, asyncio.get_running_loop().time()):
            text = f"put back {TIMES} times within {WITHIN:.0f} s; not put back for {PAUSE:.0f} s now"
            _log.error("another program keeps removing what connections need: %s: %s", kind, text)
            self._tell(EventName.KERNEL_CONTESTED, kind, text)


@contextmanager
def _logged() -> Iterator[None]:
    """One thing that cannot be put back is no reason to leave the others."""
    try:
        yield
    except (KernelError, OSError) as error:
        _log.error("%s", error)

"""The running daemon: everything that it has, how it starts and how it stops.

driver.py     the engine's clock and turn
inputs.py     what kernel and network tell it; finder.py, stalls.py, network.py tell it by themselves
executor.py   what becomes of its commands
peerbook.py   peers as they are stored
"""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from ipaddress import ip_network
from pathlib import Path
from typing import TYPE_CHECKING

from redirectctl.api import schema
from redirectctl.config import Config
from redirectctl.daemon import notices, records
from redirectctl.daemon.bindings import Bindings
from redirectctl.daemon.candidates import Candidates
from redirectctl.daemon.contacts import Contacts
from redirectctl.daemon.driver import Driver
from redirectctl.daemon.eventlog import EventLog
from redirectctl.daemon.executor import Executor
from redirectctl.daemon.finder import Finder
from redirectctl.daemon.gaps import Gaps
from redirectctl.daemon.held import HeldResets
from redirectctl.daemon.inputs import Inputs
from redirectctl.daemon.learning import Learning
from redirectctl.daemon.logind import SleepSignals
from redirectctl.daemon.loops import Loops, Pulse
from redirectctl.daemon.namebook import NameBook
from redirectctl.daemon.network import NetworkView
from redirectctl.daemon.ownname import OwnNameKeeper
from redirectctl.daemon.peerbook import PeerBook
from redirectctl.daemon.publishedkeys import PublishedKeys
from redirectctl.daemon.repair import Repairs
from redirectctl.daemon.rewriting import Rewriting
from redirectctl.daemon.servers import ServerNames
from redirectctl.daemon.stalls import StallWatch
from redirectctl.daemon.suspending import Suspending
from redirectctl.daemon.takeover import newest, untangle
from redirectctl.daemon.tasks import Tasks
from redirectctl.daemon.udp import ControlPort
from redirectctl.daemon.waking import WakeWatch
from redirectctl.flows.commands import Notice
from redirectctl.flows.engine import Engine
from redirectctl.flows.network import Network
from redirectctl.flows.policy import Policy
from redirectctl.kernel.constants import Queue
from redirectctl.kernel.errors import KernelError
from redirectctl.kernel.netfilter.packet_queue import Handler, PacketQueue
from redirectctl.kernel.routing.exits import Exits, Wanted
from redirectctl.kernel.sockets import borrow
from redirectctl.kernel.sockets.counters import TcpCounters
from redirectctl.kernel.tcp.backoff import BackoffReverter
from redirectctl.kernel.tcp.inband import Inband, RawSender
from redirectctl.kernel.tcp.inject import RawInjector
from redirectctl.kernel.tcp.path_mtu import MtuWatch
from redirectctl.kernel.tcp.suspend import Suspender
from redirectctl.kernel.tcp.timeouts import keepalive_limit, retransmission_limit
from redirectctl.kernel.tunnel.carrier import Carrier
from redirectctl.proto.events import Transmit
from redirectctl.proto.noise import StaticKey
from redirectctl.store.database import readable
from redirectctl.store.records import StoreError
from redirectctl.store.store import Store
from redirectctl.wire.addr import FourTuple

if TYPE_CHECKING:
    from redirectctl.names.secure import Anchors

_log = logging.getLogger(__name__)

UNTAGGED = 1.0  # seconds between looks how many plain packets of connections with integrity were dropped
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
SOON = 1.0  # seconds of silence that say nothing yet, however little TCP bears: announcements are repeated meanwhile
EARLY = 4.0  # part of the time after which TCP gives up: before that, connections must be suspended
PRUNE = 3600.0  # seconds between looks for peers not met for long


class Runtime:
    """Everything that a daemon has while it runs."""

    def __init__(self, config: Config, state: Path, listed: Mapping[str, str], anchors: Anchors | None = None) -> None:
        """Open the store and the kernel's interfaces.

        ``listed``: what known_peers.read() gave; ``anchors``: what published.load_anchors() gave, where `trust.dns` is.
        Raises StoreError, KernelError, ControlPortError, OSError."""
        self.config = config
        self.state = state
        self.store = Store(state)
        self.log = EventLog(state, time.time)
        self.started = time.time()
        self.started_boottime = time.clock_gettime(time.CLOCK_BOOTTIME)
        self._booted_at = self.store.booted(_BOOT_ID.read_text().strip(), self.started - self.started_boottime)
        self.pid = os.getpid()
        self.tasks = Tasks()
        self.loops = Loops(self.tasks)
        self.peers = PeerBook(self.store, self.log, self.tasks, lambda: self.uptime, self._forget)
        self.peers.prune(config.trust.forget_after)
        static = StaticKey.from_private(self.store.load_identity(os.urandom))
        known = self.peers.restored(config.control.port)
        self.engine = engine = Engine(static, os.urandom, self.store.next_generation(), policy(config, listed), known)
        self.peers.follow(engine)
        self._driver = Driver(engine)
        self.wake, self.tell = self._driver.wake, self._driver.tell
        self._held = HeldResets()
        self._inputs = Inputs(self._driver, self.log, self._held, self._on_loss)
        self._exits = Exits()
        self.port = ControlPort(config.control.port, config.control.listen, self._inputs.datagram)
        self.network = NetworkView(self.log, engine.remotes, self._on_network, self._on_loss, self._exits.reconcile)
        self._counters = TcpCounters()
        self.finder = Finder(
            engine,
            config.protect,
            self.network.all_addresses,
            self.network.interface,
            self.wake,
            self._counters.opens,
        )
        self.rewriting = Rewriting(state, self.network.interface_to, self.finder.present)
        self.repairs = Repairs(self.rewriting, lambda: self.carrier, self._on_repair)
        self.names = NameBook(engine, self.store, self.peers.records, self.tasks, self.wake)
        self.names.settings = config.dns
        self.own_name = OwnNameKeeper(self.log, self.network.addresses)
        self.own_name.configure(config.dns)
        injector = RawInjector()
        self.backoff = BackoffReverter(self.finder.diag, injector, self.rewriting.rewriter.probe)
        lend = functools.partial(borrow.borrow, on_refused=self._inputs.refused_in_thread)
        self._plain_sender = RawSender(mark=0)
        self.suspender = Suspender(
            self.finder.diag, injector, self.backoff, self._plain_sender, lend, answered=self._on_answered
        )
        self._bindings = Bindings(engine, self.finder.look_up, lend)
        self._suspending = Suspending(engine, self.suspender, self.tasks, self.wake)
        self._sender = RawSender()
        self._inband = Inband(
            self.backoff,
            self._sender,
            on_token=self._inputs.token,
            on_sent=self._inputs.token_sent,
            on_refused=self._inputs.no_token,
        )
        self._mtu = MtuWatch(self.rewriting.socket_of, injector)
        self._stalls = StallWatch(
            engine,
            self.finder.look_up,
            self.wake,
            repeats=self._counters.repeats,
            repeating=self.finder.repeating,
        )
        self._waking = WakeWatch(self._on_waking)
        self.sleep_signals = SleepSignals(self._waking.told)
        self._servers = ServerNames(self._inputs.servers, config.rendezvous.servers)
        self.contacts = Contacts(self._driver)
        self.published_keys = PublishedKeys(engine, self.contacts, lambda: self.config.dns, self.wake)
        self.published_keys.configure(anchors)
        self._executor = Executor(
            driver=self._driver,
            tasks=self.tasks,
            gaps=Gaps(
                engine.table,
                self.finder.measured,
                lambda: engine.host.network.usable,
                lambda: self.now,
                self.tasks,
                lambda notice: notices.record(self.log, engine.table, notice),
            ),
            booted_at=self._booted_at,
            port=self.port,
            carrier=lambda: self.carrier,
            relay_rate=lambda: self.config.rendezvous.relay_limit * 125_000.0,
            rewriting=self.rewriting,
            bindings=self._bindings,
            finder=self.finder,
            network=self.network,
            peers=self.peers,
            names=self.names,
            learning=Learning(engine.table, self.finder, self.names, self.backoff, self.tasks),
            suspending=self._suspending,
            backoff=self.backoff,
            inband=self._inband,
            candidates=Candidates(
                self.finder.between,
                self._inband.numbers,
                lambda claim, found: self.tell(engine.numbers, claim, found),
            ),
            contacts=self.contacts,
            held=self._held,
        )
        self._carrier: Carrier | None = None  # while the daemon runs
        self._queues: list[PacketQueue] = []

    @property
    def now(self) -> float:
        """The engine's clock."""
        return self._driver.now

    @property
    def carrier(self) -> Carrier:
        """The tunnel; it is there from start() on."""
        if self._carrier is None:
            raise RuntimeError("the daemon has not started")
        return self._carrier

    @property
    def offset(self) -> float:
        """Epoch time minus the engine's clock: for listings.  The clock may be set at any time."""
        return time.time() - self.now

    @property
    def uptime(self) -> float:
        """Seconds that the daemon has run."""
        return time.clock_gettime(time.CLOCK_BOOTTIME) - self.started_boottime

    # -- life ---------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Take up what an earlier run left, then begin.  Raises KernelError."""
        loop = asyncio.get_running_loop()
        self._inputs.start(loop)
        await self.network.start()
        with readable(self.store.path):
            restored = [records.restored_connection(r, self._booted_at) for r in self.store.connections()]
        present = self.finder.present([c.socket for c in restored])
        ended = [c for c in restored if c.socket not in present]
        restored, older = newest(c for c in restored if c.socket in present and c.peer in self.engine.peers)
        for connection in untangle(restored, self.rewriting.rewriter.flows):
            _log.warning(
                "%s starts again from its socket tuple: another connection has its wire tuple", connection.socket
            )
        await self.rewriting.take_over([c.flow for c in restored if c.movable or c.may_come_tunnelled])
        self.store.delete_connections([c.cid for c in (*ended, *older)])
        self._carrier = Carrier(self.port.shared(), self._inputs.report_in_thread)
        handlers: dict[Queue, Handler] = {
            Queue.RST: lambda packet: self._inputs.reset(packet, self.backoff),
            Queue.HOLD: lambda packet: self._inputs.reset(packet, self.backoff),
            Queue.PROBE: self.backoff.on_ack,
            Queue.TOKEN: self._inband.on_arrival,
            Queue.WAIT: self.suspender.on_packet,
            Queue.ANSWER: self.suspender.on_arrival,
        }
        self._queues = [PacketQueue(each, handlers[each], on_error=self._on_queue_error) for each in Queue]
        for queue in self._queues:
            queue.start(loop)
        self.rewriting.rewriter.drain = self._drain
        self.loops.start("commands", lambda pulse: self._driver.run(pulse, self._executor.carry_out, self._settled))
        self.loops.start("network", self.network.run)
        self.loops.start("finder", self.finder.run)
        self.loops.start("event log", self.log.run)
        self.loops.start("prune", self._prune)
        self.loops.start("repairs", self.repairs.run)
        self.loops.start("untagged", self._count_untagged)
        self.loops.start("stalls", self._stalls.run)
        self.loops.start("own name", self.own_name.run)
        self.loops.start("published keys", self.published_keys.run)
        self.loops.start("rendezvous", lambda pulse: self._servers.run(pulse, self._met))
        self.loops.start("suspended", self._suspending.run)
        self.loops.start("waking", self._waking.run)
        self.loops.start("logind", self.sleep_signals.run)
        self.loops.start("saving", self.peers.saving.run)
        self.loops.watch("tunnel", lambda: self.carrier.alive)
        self.port.start(loop)
        self._mtu.start(loop)
        self.finder.start(loop)
        self._servers.start()
        self.engine.restore(self.now, restored)
        async with self._bindings.follow([c.flow for c in restored if c.movable or c.moved]):
            pass  # the rules are there; an earlier run may not have got to the sockets
        self.wake()
        self.log.record(schema.EventName.DAEMON_STARTED, connections=len(restored))
        try:
            borrow.check()
        except KernelError as error:
            self._inputs.refused(error)

    def announce_stop(self) -> None:
        """For those who follow the events."""
        self.log.record(schema.EventName.DAEMON_STOPPED, connections=len(self.engine.table.movable()))

    async def stop(self) -> None:
        """Stop within a moment; rewritten connections go on, their rules stay.  So do others that can."""
        self._driver.stop()
        await self.tasks.cancel()
        self.engine.stopping(self.now)
        for command in self.engine.drain():
            if isinstance(command, Transmit):
                self.port.send(command.source, command.to, command.data)
        self.rewriting.rewriter.drain = lambda: None
        for queue in self._queues:
            queue.close()
        if flows := self.engine.choice.unread_from_now():
            before, meanwhile = zip(*flows, strict=True)
            try:
                await self.rewriting.apply(meanwhile, before)
            except KernelError as error:
                _log.warning("%s", error)
        if self._carrier is not None:
            self._carrier.close()
        if not any(c.guarded for c in self.engine.table):
            try:
                self.rewriting.rewriter.teardown()
                await self.rewriting.keeper.teardown()
                await self._exits.reconcile(Wanted())
            except KernelError as error:
                _log.warning("%s", error)
        self.suspender.close()
        self.finder.close()
        self._counters.close()
        self.network.close()
        self._exits.close()
        self.port.close()
        self._mtu.close()
        self._sender.close()
        self._plain_sender.close()
        self.rewriting.close()
        with suppress(StoreError):  # the time that it has run is too little then, and no peer is forgotten too soon
            self.peers.prune(self.config.trust.forget_after)
        self.log.close()
        self.peers.flush()
        self.store.close()

    def reload(self, config: Config, listed: Mapping[str, str], anchors: Anchors | None = None) -> None:
        """SIGHUP: everything but the control port changes at once."""
        if config.control != self.config.control:
            _log.warning("[control]: changes take effect only after a restart")
        self.config = config
        self.finder.settings = config.protect
        self.names.settings = config.dns
        self.published_keys.configure(anchors)
        self.own_name.configure(config.dns)
        self.tell(self.engine.policy_changed, policy(config, listed))
        self._servers.configure(config.rendezvous.servers)

    # -- events -------------------------------------------------------------------------------------------------------

    def _on_network(self, now: float, network: Network) -> None:
        self.engine.network_changed(now, network)
        self.own_name.network_changed()
        self.wake()

    def _on_loss(self) -> None:
        self.repairs.routing_lost()

    def _on_waking(self, slept: float) -> None:
        _log.info("awake after %.0f s", slept)
        self.network.refresh()
        self.tell(self.engine.woke)

    def _on_answered(self, socket: FourTuple) -> None:
        self._suspending.answered(socket)

    def _met(self) -> bool:
        """Every rendezvous of ours answers: its name needs not be looked up."""
        return all(server.usable for server in self.engine.rendezvous.servers)

    def _settled(self) -> None:
        self._stalls.questioned(self.engine.questioned())

    def _drain(self) -> None:
        for queue in self._queues:
            queue.drain()

    def _on_queue_error(self, error: Exception) -> None:
        _log.error("a queued packet was dropped", exc_info=error)

    # -- housekeeping -------------------------------------------------------------------------------------------------

    def _forget(self, key: bytes) -> None:
        self.tell(self.engine.forget, key)

    def _on_repair(self, event: schema.EventName, reason: str, detail: str) -> None:
        self.log.record(event, reason=reason, detail=detail)

    async def _count_untagged(self, pulse: Pulse) -> None:
        while True:
            await pulse.sleep(UNTAGGED)
            if dropped := self.rewriting.rewriter.untagged():
                notice = Notice("packet.refused", None, None, "not-tagged", None, {"count": dropped})
                notices.record(self.log, self.engine.table, notice)

    async def _prune(self, pulse: Pulse) -> None:
        while True:
            await pulse.sleep(PRUNE)
            self.peers.prune(self.config.trust.forget_after)


def policy(config: Config, listed: Mapping[str, str]) -> Policy:
    """The part of the configuration that the engine needs."""
    return Policy(
        own_name=own_name(config.trust.own_name),
        control_port=config.control.port,
        first_contact=config.trust.first_contact,
        listed=listed,
        long_lived_after=config.protect.long_lived_after,
        close_short_lived=config.protect.close_short_lived,
        accept_ports=frozenset(config.protect.accept_ports),
        integrity=config.integrity.mode == "on",
        prefer=config.path.prefer,
        serve=config.rendezvous.serve,
        suspend_after=min(
            config.outage.suspend_after, max(SOON, min(retransmission_limit(), keepalive_limit()) / EARLY)
        ),
        give_up_after=config.outage.give_up_after,
        leave_vpn=config.path.leave_vpn,
        last=config.path.last,
        never=config.path.never,
        accept_from=tuple(map(ip_network, config.path.accept_from)),
    )


def own_name(configured: str) -> str:
    """What peers are told that this host is called; empty: nothing."""
    return {"": socket.gethostname(), "-": ""}.get(configured, configured)

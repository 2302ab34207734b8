"""The running daemon: events go into the engine, its commands are carried out, one after the other.

Nothing calls upward: kernel, control port and clients call the engine and `wake`; `_carry_out_all` does the rest.
"""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import logging
import os
import time
from collections.abc import Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from ipaddress import ip_network
from pathlib import Path

from redirectctl.api import schema
from redirectctl.config import Config
from redirectctl.daemon import records
from redirectctl.daemon.bindings import Bindings
from redirectctl.daemon.candidates import Candidates
from redirectctl.daemon.eventlog import AT_WILL, STRANGERS, Cause, EventFields, EventLog, network_of
from redirectctl.daemon.finder import BUSY, Finder
from redirectctl.daemon.logind import SleepSignals
from redirectctl.daemon.loops import Loops, Pulse
from redirectctl.daemon.namebook import NameBook
from redirectctl.daemon.network import NetworkView
from redirectctl.daemon.ownname import OwnNameKeeper
from redirectctl.daemon.repair import Repairs
from redirectctl.daemon.rewriting import Rewriting
from redirectctl.daemon.saving import Saving
from redirectctl.daemon.servers import ServerNames
from redirectctl.daemon.stalls import StallWatch
from redirectctl.daemon.suspending import Suspending
from redirectctl.daemon.takeover import newest, untangle
from redirectctl.daemon.tasks import Tasks
from redirectctl.daemon.udp import ControlPort
from redirectctl.daemon.undecided import STATES as UNDECIDED
from redirectctl.daemon.undecided import Undecided
from redirectctl.daemon.waking import WakeWatch
from redirectctl.flows import commands
from redirectctl.flows.connection import Connection
from redirectctl.flows.engine import Engine
from redirectctl.flows.network import Network
from redirectctl.flows.policy import Policy
from redirectctl.kernel.constants import Queue
from redirectctl.kernel.errors import KernelError
from redirectctl.kernel.netfilter.packet_queue import Handler, PacketQueue, QueuedPacket
from redirectctl.kernel.routing.exits import Exits, Wanted
from redirectctl.kernel.sockets import borrow
from redirectctl.kernel.sockets.counters import TcpCounters
from redirectctl.kernel.tcp.backoff import BackoffReverter
from redirectctl.kernel.tcp.inband import Inband, RawSender
from redirectctl.kernel.tcp.inject import RawInjector
from redirectctl.kernel.tcp.path_mtu import MtuWatch
from redirectctl.kernel.tcp.suspend import Suspender
from redirectctl.kernel.tcp.timeouts import keepalive_limit, retransmission_limit
from redirectctl.kernel.tunnel.carrier import Carrier, Report, Routes, Sight
from redirectctl.proto.events import Transmit
from redirectctl.proto.fingerprint import fingerprint
from redirectctl.proto.noise import StaticKey
from redirectctl.store.database import readable
from redirectctl.store.records import PeerRecord, StoreError
from redirectctl.store.store import Store
from redirectctl.wire.addr import FourTuple, IPAddress, SockAddr
from redirectctl.wire.ip import PacketError, parse_tcp

_log = logging.getLogger(__name__)

UNTAGGED = 1.0  # seconds between looks how many plain packets of connections with integrity were dropped
PROVE_AFTER = 0.005  # seconds in which other connections are to be proven too: one batch for all
LEARN_AFTER = 0.2  # seconds in which other connections become protected too: one batch for all
LEARN_AGAIN = (1.0, 3.0, 10.0, 30.0, 0.0)  # seconds: a busy connection may have a quiet moment
AGAIN = 1.0  # seconds until what failed, and is needed, is tried again
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
SOON = 1.0  # seconds of silence that say nothing yet, however little TCP bears: announcements are repeated meanwhile
EARLY = 4.0  # part of the time after which TCP gives up: before that, connections must be suspended
REFUSED_AGAIN = 60.0  # seconds between two times that the event log is told that sockets cannot be borrowed
PRUNE = 3600.0  # seconds between looks for peers not met for long


class Runtime:
    """Everything that a daemon has while it runs."""

    def __init__(self, config: Config, state: Path) -> None:
        """Open the store and the kernel's interfaces.  Raises StoreError, KernelError, ControlPortError, OSError."""
        self.config = config
        self.state = state
        self.store = Store(state)
        self.log = EventLog(state, time.time)
        self.started = time.time()
        self.started_boottime = time.clock_gettime(time.CLOCK_BOOTTIME)
        self._booted_at = self.store.booted(_BOOT_ID.read_text().strip(), self.started - self.started_boottime)
        self._ran_before = self.store.ran
        self.pid = os.getpid()
        self.tasks = Tasks()
        self.loops = Loops(self.tasks)
        self.saving = Saving(self.store, self.log, self._had_to_go)
        with readable(self.store.path):
            self.peer_records: dict[bytes, PeerRecord] = {r.public: r for r in self.store.peers()}
        self.forget_old_peers()
        with readable(self.store.path):
            peers = [records.restored_peer(r, config.control.port) for r in self.peer_records.values()]
        static = StaticKey.from_private(self.store.load_identity(os.urandom))
        self.engine = Engine(static, os.urandom, self.store.next_generation(), policy(config), peers)
        self._exits = Exits()
        self.port = ControlPort(config.control.port, config.control.listen, self._on_datagram)
        self.network = NetworkView(
            self.log, self.engine.remotes, self._on_network, self._on_loss, self._exits.reconcile
        )
        self._counters = TcpCounters()
        self.finder = Finder(
            self.engine,
            config.protect,
            self.network.all_addresses,
            self.network.interface,
            self.wake,
            self._counters.opens,
        )
        self.rewriting = Rewriting(state, self.network.interface_to, self.finder.present)
        self.repairs = Repairs(self.rewriting, lambda: self.carrier, self._on_repair)
        self._beside = self.store.beside()
        self._writer = ThreadPoolExecutor(1, "store")  # for what strangers make us write; nobody else uses _beside
        self._undecided = Undecided(
            self._beside.put_undecided, self._writer, self.tasks, self.peer_records.get, self._had_to_go
        )
        self.names = NameBook(self.engine, self.store, self.peer_records, self.tasks, self.wake)
        self.names.settings = config.dns
        self.own_name = OwnNameKeeper(self.log, self.network.addresses)
        self.own_name.configure(config.dns)
        injector = RawInjector()
        self.backoff = BackoffReverter(self.finder.diag, injector, self.rewriting.rewriter.probe)
        lend = functools.partial(borrow.borrow, on_refused=self._on_refused_in_thread)
        self._plain_sender = RawSender(mark=0)
        self.suspender = Suspender(
            self.finder.diag, injector, self.backoff, self._plain_sender, lend, answered=self._on_answered
        )
        self._bindings = Bindings(self.engine, self.finder.look_up, lend)
        self._suspending = Suspending(self.engine, self.suspender, self.tasks, self.wake)
        self._sender = RawSender()
        self._inband = Inband(
            self.backoff, self._sender, on_token=self._on_token, on_sent=self._on_sent, on_refused=self._on_no_token
        )
        self._candidates = Candidates(self.finder.between, self._inband.numbers, self._on_numbers)
        self._mtu = MtuWatch(self.rewriting.socket_of, injector)
        self._stalls = StallWatch(
            self.engine,
            self.finder.look_up,
            self.wake,
            repeats=self._counters.repeats,
            repeating=self.finder.repeating,
        )
        self._waking = WakeWatch(self._on_waking)
        self.sleep_signals = SleepSignals(self._waking.told)
        self._servers = ServerNames(self._on_servers, config.rendezvous.servers)
        self._carrier: Carrier | None = None  # while the daemon runs
        self._loop: asyncio.AbstractEventLoop | None = None
        self._queues: list[PacketQueue] = []
        self._held: dict[int, QueuedPacket] = {}
        self._held_number = 0
        self._unstudied: set[FourTuple] = set()
        self._nameless: set[FourTuple] = set()
        self._naming: asyncio.Task[None] | None = None
        self._proofs: dict[FourTuple, commands.Proof] = {}
        self._refused_at = float("-inf")  # when the event log was last told that sockets cannot be borrowed
        self._contacts: dict[asyncio.Future[str | None], tuple[SockAddr, IPAddress | None, bytes]] = {}
        self._not_carried: dict[FourTuple, str] = {}  # why the tunnel does not have them as it should
        self._listening = False
        self._awake = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None

    @property
    def now(self) -> float:
        """The engine's clock."""
        return asyncio.get_running_loop().time()

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

    @property
    def _ran(self) -> float:
        """The same, all its lives together."""
        return self._ran_before + self.uptime

    # -- life ---------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Take up what an earlier run left, then begin.  Raises KernelError."""
        self._loop = loop = asyncio.get_running_loop()
        await self.network.start()
        with readable(self.store.path):
            restored = [records.restored_connection(r, self._booted_at) for r in self.store.connections()]
        present = self.finder.present([c.socket for c in restored])
        ended = [c for c in restored if c.socket not in present]
        restored, older = newest(c for c in restored if c.socket in present and c.peer in self.engine.peers)
        for connection in untangle(restored, self.rewriting.rewriter.flows):
            _log.warning("%s begins anew: it would be another connection on the wire", connection.socket)
        await self.rewriting.take_over([c.flow for c in restored if c.movable or c.may_come_tunnelled])
        self.store.delete_connections([c.cid for c in (*ended, *older)])
        self._carrier = Carrier(self.port.shared(), self._on_report_in_thread)
        handlers: dict[Queue, Handler] = {
            Queue.RST: self._on_rst,
            Queue.HOLD: self._on_rst,
            Queue.PROBE: self.backoff.on_ack,
            Queue.TOKEN: self._inband.on_arrival,
            Queue.WAIT: self.suspender.on_packet,
            Queue.ANSWER: self.suspender.on_arrival,
        }
        self._queues = [PacketQueue(each, handlers[each], on_error=self._on_queue_error) for each in Queue]
        for queue in self._queues:
            queue.start(loop)
        self.rewriting.rewriter.drain = self._drain
        self.loops.start("commands", self._carry_out_all)
        self.loops.start("network", self.network.run)
        self.loops.start("finder", self.finder.run)
        self.loops.start("event log", self.log.run)
        self.loops.start("prune", self._prune)
        self.loops.start("repairs", self.repairs.run)
        self.loops.start("untagged", self._count_untagged)
        self.loops.start("stalls", self._stalls.run)
        self.loops.start("own name", self.own_name.run)
        self.loops.start("rendezvous", lambda pulse: self._servers.run(pulse, self._met))
        self.loops.start("suspended", self._suspending.run)
        self.loops.start("waking", self._waking.run)
        self.loops.start("logind", self.sleep_signals.run)
        self.loops.start("saving", self.saving.run)
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
            self._on_refused(error)

    def announce_stop(self) -> None:
        """For those who follow the events."""
        self.log.record(schema.EventName.DAEMON_STOPPED, connections=len(self.engine.table.movable()))

    async def stop(self) -> None:
        """Stop within a moment; rewritten connections go on, their rules stay.  So do others that can."""
        if self._timer is not None:
            self._timer.cancel()
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
            self.store.prune(self._ran, self.config.trust.forget_after)
        self.log.close()
        self._writer.shutdown()
        self._undecided.flush()
        self._beside.close()
        self.store.close()

    def reload(self, config: Config) -> None:
        """SIGHUP: everything but the control port changes at once."""
        if config.control != self.config.control:
            _log.warning("[control] changes at the next start only")
        self.config = config
        self.finder.settings = config.protect
        self.names.settings = config.dns
        self.own_name.configure(config.dns)
        self.engine.policy_changed(self.now, policy(config))
        self._servers.configure(config.rendezvous.servers)
        self.wake()

    def wake(self) -> None:
        """The engine was told something: carry out what it wants."""
        self._awake.set()

    async def contact(self, to: SockAddr, key: bytes, source: IPAddress | None = None) -> str | None:
        """A fresh handshake with a peer, from ``source`` if given: None when there is a session, else the named reason.

        Takes up to 9 s.
        """
        ended: asyncio.Future[str | None] = asyncio.get_running_loop().create_future()
        self._contacts[ended] = (to, source, key)
        try:
            self.engine.meet(self.now, to, source, key)
            self.wake()
            return await ended
        finally:
            del self._contacts[ended]

    # -- events -------------------------------------------------------------------------------------------------------

    def _on_datagram(self, data: bytes, source: SockAddr, local: IPAddress, port: int) -> None:
        self.engine.receive(self.now, data, source, local, port)
        self.wake()

    def _on_network(self, now: float, network: Network) -> None:
        self.engine.network_changed(now, network)
        self.own_name.network_changed()
        self.wake()

    def _on_servers(self, servers: Mapping[str, tuple[SockAddr, ...]]) -> None:
        self.engine.rendezvous_at(self.now, servers)
        self.wake()

    def _met(self) -> bool:
        """Every rendezvous of ours answers: its name needs not be looked up."""
        return all(server.usable for server in self.engine.rendezvous.servers)

    def _on_loss(self) -> None:
        self.repairs.routing_lost()

    def _on_waking(self, slept: float) -> None:
        _log.info("awake after %.0f s", slept)
        self.network.refresh()
        self.engine.woke(self.now)
        self.wake()

    def _on_rst(self, packet: QueuedPacket) -> None:
        try:
            segment = parse_tcp(packet.payload)
        except PacketError:
            packet.drop()  # a RST that cannot be read cannot be asked about
            return
        self._held_number += 1
        self._held[self._held_number] = packet
        here = FourTuple(segment.destination, segment.source)
        numbers = self.backoff.known([here]).get(here)
        self.engine.rst(self.now, here, self._held_number, opened=numbers is not None and numbers.opened)
        self.wake()

    def _on_token(self, arrived: FourTuple, token: bytes, numbers: tuple[int, int]) -> None:
        self.engine.token(self.now, arrived, token, numbers)
        self.wake()

    def _on_sent(self, socket: FourTuple, token: bytes, numbers: tuple[int, int]) -> None:
        self.engine.proved(self.now, socket, token, numbers)
        self.wake()

    def _on_no_token(self, reason: str, connection: FourTuple | None) -> None:
        _log.debug("no token for or from %s: %s", connection, reason)

    def _on_answered(self, socket: FourTuple) -> None:
        self._suspending.answered(socket)

    def _on_report_in_thread(self, report: Report) -> None:
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._on_report, report)

    def _on_report(self, report: Report) -> None:
        """The carrier has something to tell."""
        if report.what is Sight.RETRANSMISSION:
            return  # StallWatch looks at all connections, not at those in the tunnel only
        connection = self.engine.table.at(report.socket) if report.socket is not None else None
        if isinstance(report.what, Sight):
            _log.log(logging.ERROR if report.what is Sight.DEVICE_GONE else logging.DEBUG, "tunnel: %s", report.what)
            if report.what is Sight.DEVICE_GONE:
                self.repairs.routing_lost()
            return
        self._record(
            commands.Notice(
                "packet.refused",
                connection.cid if connection is not None else None,
                connection.peer if connection is not None else None,
                str(report.what),
                report.source.host if report.source is not None else None,
                {"source": str(report.source), "count": report.count},
            )
        )

    def _on_refused_in_thread(self, error: KernelError) -> None:
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._on_refused, error)

    def _on_refused(self, error: KernelError) -> None:
        """Sockets cannot be borrowed: what is suspended may not live for long, and nothing else would tell."""
        _log.error("%s", error)
        if self.now - self._refused_at >= REFUSED_AGAIN:
            self._refused_at = self.now
            self.log.record(schema.EventName.KERNEL_REFUSED, reason="borrowing", detail=str(error))

    def _drain(self) -> None:
        for queue in self._queues:
            queue.drain()

    def _on_queue_error(self, error: Exception) -> None:
        _log.error("a queued packet was dropped", exc_info=error)

    # -- commands -----------------------------------------------------------------------------------------------------

    async def _carry_out_all(self, pulse: Pulse) -> None:
        while True:
            await pulse.wait(self._awake)
            self._awake.clear()
            while todo := self.engine.drain():
                for command in todo:
                    pulse.beat()
                    try:
                        await self._carry_out(command)
                    except Exception as error:
                        expected = isinstance(error, KernelError)
                        name = type(command).__name__
                        _log.error("could not carry out %s: %s", name, error, exc_info=None if expected else error)
                        self._failed(command, error)
            self._stalls.questioned(self.engine.questioned())
            self._set_timer()

    async def _carry_out(self, command: commands.Command) -> None:
        match command:
            case Transmit(source, to, data, port):
                if not self.port.has(port):
                    self._open_port(port)
                self.port.send(source, to, data, port)
            case commands.Rewrite(purpose, add, remove):
                if isinstance(purpose, commands.Guarding):
                    self.engine.bound(self.finder.bound(flow.socket for flow in add))
                if why := next((self._not_carried[f.socket] for f in add if f.tunnel and f.socket in self._not_carried),
                               None):  # fmt: skip
                    raise KernelError("tunnel", why, "redirectctl doctor")  # it would be a black hole
                async with self._bindings.follow(add, remove):
                    await self.rewriting.apply(add, remove)
                self.engine.rewritten(self.now, command)
            case commands.SaveConnections(connections):
                self.saving.put_connections(records.connection_records(connections, self._booted_at))
            case commands.DropConnections(cids):
                self.saving.delete_connections(cids)
            case commands.CheckSockets(question, sockets):
                self.engine.checked(self.now, question, self.finder.present(sockets))
            case commands.RevertBackoff(sockets):
                self.tasks.start(self.backoff.follow_up(self.backoff.revert(sockets)), "kick")
            case commands.Prepare(sockets):
                self._suspending.prepare(sockets)
            case commands.Suspend(before):
                self._suspending.suspend(before)
            case commands.Resume(sockets):
                self._suspending.resume(sockets)
            case commands.LetOut(sockets, on):
                self._suspending.let_out(sockets, on=on)
            case commands.Ask(sockets):
                self._suspending.ask(sockets)
            case commands.GiveBack(before):
                self._suspending.give_back(before)
            case commands.Forget(sockets):
                self._suspending.forget(sockets)
            case commands.Prove(proofs):
                if not self._proofs:
                    self.tasks.start(self._prove(), "prove")
                self._proofs |= {proof.socket: proof for proof in proofs}
            case commands.Listen(on):
                self._listen(on)
            case commands.AskNumbers(claim, sockets):
                self.tasks.start(self._numbers(claim, sockets), "numbers")
            case commands.FindNumbers(theirs, port, remote):
                if self._candidates.want(theirs, (port, remote)):
                    self.tasks.start(self._candidates.run(), "candidates")
            case commands.Carry(carried):
                alike: Routes = {}
                for each in carried:
                    self._carry(each, alike)
            case commands.Uncarry(sockets):
                for socket in sockets:
                    self._not_carried.pop(socket, None)
                    self.carrier.uncarry(socket)
            case commands.Relays(guest, source, routes):
                rate = self.config.rendezvous.relay_limit * 125_000.0
                self.carrier.relays.set(guest, source, routes, rate)
            case commands.RevertBackoffEarly(sockets):
                self.backoff.revert_early(sockets)
            case commands.FindRoutes():
                self.network.refresh()
            case commands.Seek(key):
                self.names.seek(key)
            case commands.Verdict(token, accept):
                packet = self._held.pop(token, None)
                if packet is not None:
                    (packet.accept if accept else packet.drop)()
            case commands.Destroy(sockets):
                for socket in sockets:
                    self._destroy(socket)
            case commands.SavePeer(peer):
                await self._save_met(peer.key)
            case commands.DropPeer(key):
                record = self.peer_records.pop(key, None)
                if record is not None and record.state in UNDECIDED:
                    self._undecided.drop(key)
                elif record is not None:
                    self._undecided.decided(key)
                    await self._delete_peer(key)
                self.names.forget(key)
            case commands.Contacted(to, key, reason, source):
                for ended, wanted in self._contacts.items():
                    if wanted in ((to, source, key), (to, None, key)) and not ended.done():
                        ended.set_result(reason)
            case commands.Notice():
                self._record(command)

    async def _prove(self) -> None:
        """One attempt for all that comes within a moment: it takes two changes of nftables, for however many."""
        await asyncio.sleep(PROVE_AFTER)
        proofs, self._proofs = self._proofs, {}
        await self._inband.prove(proofs.values())

    async def _numbers(self, claim: commands.OwnClaim, sockets: Collection[FourTuple]) -> None:
        found: Mapping[FourTuple, tuple[int, int]] = {}
        try:
            found = await self._inband.numbers(sockets)
        finally:
            self._on_numbers(claim, found)

    def _on_numbers(
        self, claim: commands.OwnClaim | commands.PeersClaim, found: Mapping[FourTuple, tuple[int, int]]
    ) -> None:
        self.engine.numbers(self.now, claim, found)
        self.wake()

    def _failed(self, command: commands.Command, error: Exception) -> None:
        """Who waits for an outcome is told of every one: what is waited for in vain blocks what follows."""
        match command:
            case commands.Rewrite():
                self.engine.rewritten(self.now, command, str(error))
            case commands.CheckSockets(question):
                self.engine.checked(self.now, question, None)
            case commands.AskNumbers(claim) | commands.FindNumbers(claim):
                self.engine.numbers(self.now, claim, {})

    def _carry(self, carried: commands.Carried, routes: Routes) -> None:
        try:
            self.carrier.carry(carried, routes)
        except Exception as error:
            _log.exception("the tunnel cannot take %s", carried.socket)
            self._not_carried[carried.socket] = str(error)
        else:
            self._not_carried.pop(carried.socket, None)

    def _listen(self, on: bool) -> None:
        self._listening = on
        try:
            self.rewriting.rewriter.listen(on)
        except Exception as error:
            _log.error("listening for tokens: %s", error)
            asyncio.get_running_loop().call_later(AGAIN, lambda: self._listen(on) if on == self._listening else None)

    def _destroy(self, socket: FourTuple) -> None:
        try:
            self.finder.diag.destroy(socket)
        except KernelError as error:  # the others are to be closed all the same
            _log.error("%s: %s", socket, error)

    def _open_port(self, number: int) -> None:
        """One more for a peer that does not answer at the others."""
        used = self.engine.endpoint.ports_in_use()
        sockets = self.port.open(number, used)
        self.carrier.listen({} if sockets is None else {number: sockets}, used)

    def save_peer(self, key: bytes) -> None:
        """Write down what the engine knows of a peer, because a person has decided: before it is answered."""
        if (record := self._record_of(key)) is not None:
            self._undecided.decided(key)
            self.saving.put_peer(record)

    async def _save_met(self, key: bytes) -> None:
        """The same because it was met: where anybody is accepted anybody can have it done, so a thread does it."""
        record = self._record_of(key)
        if record is None:
            return
        if record.state in UNDECIDED:
            self._undecided.put(record)
            return
        self._undecided.decided(key)
        loop = asyncio.get_running_loop()
        try:
            self._had_to_go(await loop.run_in_executor(self._writer, self._beside.put_peer, record))
        except (StoreError, OSError):
            self.saving.put_peer(record)  # says why, and stores it when that works again
        now = self.peer_records.get(key)
        if now is not None and now is not record:
            self.saving.put_peer(now)  # a person has decided meanwhile, and may have been overtaken

    async def _delete_peer(self, key: bytes) -> None:
        """By a thread, as what strangers make us write: with each that is accepted another may have to go."""
        loop = asyncio.get_running_loop()
        try:
            await loop.run_in_executor(self._writer, self._beside.delete_peer, key)
        except (StoreError, OSError):
            self.saving.delete_peer(key)

    def _record_of(self, key: bytes) -> PeerRecord | None:
        peer = self.engine.peers.get(key)
        if peer is None:
            return None
        relayed = self.engine.host.by_way_of(key, peer.remote)
        record = records.peer_record(peer, self.peer_records.get(key), time.time(), self._ran, relayed=relayed)
        self.peer_records[key] = record
        return record

    def _had_to_go(self, keys: Iterable[bytes]) -> None:
        """Undecided peers that there is no room for."""
        for key in keys:
            self.peer_records.pop(key, None)
            self._undecided.decided(key)
            self.engine.forget(self.now, key)
            self.wake()

    def rename(self, key: bytes, name: str | None) -> None:
        """What a person calls this peer."""
        self.peer_records[key] = dataclasses.replace(self.peer_records[key], name=name)

    def _record(self, notice: commands.Notice) -> None:
        fields: EventFields = dict(notice.details)  # type: ignore[assignment]
        allowed = EventFields.__annotations__
        extra = {name: fields.pop(name) for name in list(fields) if name not in allowed}  # type: ignore[misc]
        if extra:
            fields["detail"] = ", ".join(f"{name} {value}" for name, value in extra.items())
        if notice.connection is not None:
            fields["connection"] = notice.connection.hex()
        if notice.peer is not None:
            fields["peer"] = fingerprint(notice.peer)
        if notice.reason is not None:
            fields["reason"] = notice.reason
        if notice.address is not None:
            fields["address"] = str(notice.address)
        self.log.record(schema.EventName(notice.name), **self._cause(notice), **fields)
        if notice.name == "connection.protected" and notice.connection is not None:
            connection = self.engine.table.get(notice.connection)
            if connection is not None:
                self._study(connection)

    def _cause(self, notice: commands.Notice) -> Cause:
        """Whose share of the log an event is written on."""
        connection = self.engine.table.get(notice.connection) if notice.connection is not None else None
        if notice.name in ("peer.approved", "peer.rejected") and notice.reason is None:
            return Cause(who=None)  # a person has
        if notice.peer is not None and notice.name not in ("peer.first_contact", "peer.key_changed", "peer.approved"):
            return Cause(who=fingerprint(notice.peer))
        if connection is not None and connection.uid is not None:
            return Cause(who=f"user {connection.uid}")
        if notice.name.startswith("connection."):
            return Cause(who="users")
        if notice.name in AT_WILL and notice.reason != "kernel":
            return Cause(who=STRANGERS, where=network_of(notice.address))
        return Cause(who=None)

    def _study(self, connection: Connection) -> None:
        """What is good to know of a newly protected connection before it moves: its program, its sequence numbers."""
        if not self._unstudied:
            self.tasks.start(self._learn(), "learn")
        self._unstudied.add(connection.socket)

    async def _learn(self) -> None:
        await asyncio.sleep(LEARN_AFTER)
        sockets, self._unstudied = self._unstudied, set()
        studied = [c for socket in sockets if (c := self.engine.table.at(socket)) is not None]
        self.names.study([c for c in studied if c.pid is not None])
        self._nameless |= {c.socket for c in studied if c.pid is None}
        if self._nameless and (self._naming is None or self._naming.done()):
            self._naming = self.tasks.start(self._name(), "name")
        busy: Collection[FourTuple] = sockets
        for pause in LEARN_AGAIN:
            busy = await self.backoff.learn(busy)
            if not busy:
                break
            await asyncio.sleep(pause)

    async def _name(self) -> None:
        """Programs that have connections that peers asked for: a walk over all processes, for however many."""
        while self._nameless:
            began = self.now
            sockets, self._nameless = self._nameless, set()
            connections = [c for socket in sockets if (c := self.engine.table.at(socket)) is not None]
            await self.finder.name(connections)
            self.names.study(connections)
            await asyncio.sleep(BUSY * (self.now - began))  # peers ask as often as they like

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        at = self.engine.next_timer()
        if at is not None:
            self._timer = asyncio.get_running_loop().call_at(at, self._tick)

    def _tick(self) -> None:
        self._timer = None
        self.engine.tick(self.now)
        self.wake()

    # -- housekeeping -------------------------------------------------------------------------------------------------

    def forget_old_peers(self) -> None:
        """Drop peers that were not met for as long as the configuration says."""
        for public in self.store.prune(self._ran, self.config.trust.forget_after):
            self.peer_records.pop(public, None)

    def _on_repair(self, event: schema.EventName, reason: str, detail: str) -> None:
        self.log.record(event, reason=reason, detail=detail)

    async def _count_untagged(self, pulse: Pulse) -> None:
        while True:
            await pulse.sleep(UNTAGGED)
            if dropped := self.rewriting.rewriter.untagged():
                self._record(commands.Notice("packet.refused", None, None, "not-tagged", None, {"count": dropped}))

    async def _prune(self, pulse: Pulse) -> None:
        while True:
            await pulse.sleep(PRUNE)
            self.forget_old_peers()
            for key in set(self.engine.peers) - set(self.peer_records):
                self.engine.forget(self.now, key)
            self.wake()


def policy(config: Config) -> Policy:
    """The part of the configuration that the engine needs."""
    return Policy(
        control_port=config.control.port,
        first_contact=config.trust.first_contact,
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

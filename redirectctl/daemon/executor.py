"""Carries out what the engine wants, one command after the other; each says what has become of it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Final

from redirectctl.daemon import records
from redirectctl.daemon.bindings import Bindings
from redirectctl.daemon.candidates import Candidates
from redirectctl.daemon.contacts import Contacts
from redirectctl.daemon.driver import Driver
from redirectctl.daemon.finder import Finder
from redirectctl.daemon.gaps import Gaps
from redirectctl.daemon.held import HeldResets
from redirectctl.daemon.learning import Learning
from redirectctl.daemon.namebook import NameBook
from redirectctl.daemon.network import NetworkView
from redirectctl.daemon.peerbook import PeerBook
from redirectctl.daemon.rewriting import Rewriting
from redirectctl.daemon.suspending import Suspending
from redirectctl.daemon.tasks import Tasks
from redirectctl.daemon.udp import ControlPort
from redirectctl.flows import commands
from redirectctl.kernel.errors import KernelError
from redirectctl.kernel.tcp.backoff import BackoffReverter
from redirectctl.kernel.tcp.inband import Inband
from redirectctl.kernel.tunnel.carrier import Carrier, Routes
from redirectctl.proto.events import Transmit
from redirectctl.wire.addr import FourTuple

_log = logging.getLogger(__name__)

PROVE_AFTER: Final = 0.005  # seconds in which other connections are to be proven too: one batch for all
AGAIN: Final = 1.0  # seconds until what failed, and is needed, is tried again


@dataclass(slots=True)
class Executor:
    """What commands are carried out with."""

    driver: Driver
    tasks: Tasks
    gaps: Gaps
    booted_at: float  # as Store.booted() says
    port: ControlPort
    carrier: Callable[[], Carrier]
    relay_rate: Callable[[], float]  # bytes a second for each guest of our rendezvous
    rewriting: Rewriting
    bindings: Bindings
    finder: Finder
    network: NetworkView
    peers: PeerBook
    names: NameBook
    learning: Learning
    suspending: Suspending
    backoff: BackoffReverter
    inband: Inband
    candidates: Candidates
    contacts: Contacts
    held: HeldResets
    _proofs: dict[FourTuple, commands.Proof] = field(default_factory=dict)
    _not_carried: dict[FourTuple, str] = field(default_factory=dict)  # why the tunnel does not have them as it should
    _listening: bool = False

    async def carry_out(self, command: commands.Command) -> None:
        """Whatever becomes of it, who waits for it is told."""
        try:
            await self._carry_out(command)
        except Exception as error:
            expected = isinstance(error, KernelError)
            name = type(command).__name__
            _log.error("could not carry out %s: %s", name, error, exc_info=None if expected else error)
            self._failed(command, error)

    async def _carry_out(self, command: commands.Command) -> None:
        engine, now = self.driver.engine, self.driver.now
        match command:
            case Transmit(source, to, data, port):
                if not self.port.has(port):
                    self._open_port(port)
                self.port.send(source, to, data, port)
            case commands.Rewrite():
                await self._rewrite(command)
            case commands.SaveConnections(connections):
                self.peers.saving.put_connections(records.connection_records(connections, self.booted_at))
            case commands.DropConnections(cids):
                self.peers.saving.delete_connections(cids)
            case commands.CheckSockets(question, sockets):
                engine.checked(now, question, self.finder.present(sockets))
            case commands.RevertBackoff(sockets):
                self.tasks.start(self.backoff.follow_up(self.backoff.revert(sockets)), "back-off")
            case commands.RevertBackoffEarly(sockets):
                self.backoff.revert_early(sockets)
            case commands.Prepare(sockets):
                self.suspending.prepare(sockets)
            case commands.Suspend(before):
                self.suspending.suspend(before)
            case commands.Resume(sockets):
                self.suspending.resume(sockets)
            case commands.LetOut(sockets, on):
                self.suspending.let_out(sockets, on=on)
            case commands.Ask(sockets):
                self.suspending.ask(sockets)
            case commands.GiveBack(before):
                self.suspending.give_back(before)
            case commands.Forget(sockets):
                self.suspending.forget(sockets)
            case commands.Prove(proofs):
                if not self._proofs:
                    self.tasks.start(self._prove(), "prove")
                self._proofs |= {proof.socket: proof for proof in proofs}
            case commands.Listen(on):
                self._listen(on)
            case commands.AskNumbers(claim, sockets):
                self.tasks.start(self._numbers(claim, sockets), "numbers")
            case commands.FindNumbers(theirs, number, remote):
                if self.candidates.want(theirs, (number, remote)):
                    self.tasks.start(self.candidates.run(), "candidates")
            case commands.Carry(carried):
                alike: Routes = {}
                for each in carried:
                    self._carry(each, alike)
            case commands.Uncarry(sockets):
                for socket in sockets:
                    self._not_carried.pop(socket, None)
                    self.carrier().uncarry(socket)
            case commands.Relays(guest, source, routes):
                self.carrier().relays.set(guest, source, routes, self.relay_rate())
            case commands.FindRoutes():
                self.network.refresh()
            case commands.Seek(key):
                self.names.seek(key)
            case commands.Verdict(packet, accept):
                self.held.decide(packet, accept)
            case commands.Destroy(sockets):
                for socket in sockets:
                    self._destroy(socket)
            case commands.SavePeer(peer):
                await self.peers.save_met(peer.key)
            case commands.DropPeer(key):
                await self.peers.drop(key)
                self.names.forget(key)
            case commands.Contacted(to, key, reason, source):
                self.contacts.ended(to, key, reason, source)
            case commands.Notice():
                self._record(command)

    def _failed(self, command: commands.Command, error: Exception) -> None:
        """Who waits for an outcome is told of every one: what is waited for in vain blocks what follows."""
        engine, now = self.driver.engine, self.driver.now
        match command:
            case commands.Rewrite():
                engine.rewritten(now, command, str(error))
            case commands.CheckSockets(question):
                engine.checked(now, question, None)
            case commands.AskNumbers(claim) | commands.FindNumbers(claim):
                engine.numbers(now, claim, {})

    def _record(self, notice: commands.Notice) -> None:
        table = self.driver.engine.table
        self.gaps.take(notice)
        connection = table.get(notice.connection) if notice.connection is not None else None
        if notice.name == "connection.protected" and connection is not None:
            self.learning.study(connection)

    # -- the kernel ---------------------------------------------------------------------------------------------------

    async def _rewrite(self, command: commands.Rewrite) -> None:
        engine, add = self.driver.engine, command.add
        if isinstance(command.purpose, commands.Guarding):
            engine.bound(self.finder.bound(flow.socket for flow in add))
        if why := next((self._not_carried[f.socket] for f in add if f.tunnel and f.socket in self._not_carried), None):
            raise KernelError("tunnel", why, "`redirectctl doctor`")  # it would be a black hole
        async with self.bindings.follow(add, command.remove):
            await self.rewriting.apply(add, command.remove)
        engine.rewritten(self.driver.now, command)

    async def _prove(self) -> None:
        """One attempt for all that comes within a moment: it takes two changes of nftables, for however many."""
        await asyncio.sleep(PROVE_AFTER)
        proofs, self._proofs = self._proofs, {}
        await self.inband.prove(proofs.values())

    async def _numbers(self, claim: commands.OwnClaim, sockets: Collection[FourTuple]) -> None:
        found: Mapping[FourTuple, tuple[int, int]] = {}
        try:
            found = await self.inband.numbers(sockets)
        finally:
            self.driver.tell(self.driver.engine.numbers, claim, found)

    def _carry(self, carried: commands.Carried, routes: Routes) -> None:
        try:
            self.carrier().carry(carried, routes)
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
        used = self.driver.engine.endpoint.ports_in_use()
        sockets = self.port.open(number, used)
        self.carrier().listen({} if sockets is None else {number: sockets}, used)

"""Finding opted-in connections, and noticing when they end."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field

from redirectctl.config import Protect
from redirectctl.daemon.loops import Pulse
from redirectctl.flows.connection import Connection
from redirectctl.flows.engine import Engine
from redirectctl.flows.state import State
from redirectctl.kernel import procs
from redirectctl.kernel.cgroup import Cgroup, CgroupTree
from redirectctl.kernel.constants import CGROUP_PREFIX
from redirectctl.kernel.diag import Destroyed, DestroyWatch, SockDiag, SocketInfo, TcpInfo, TcpState
from redirectctl.kernel.errors import KernelError
from redirectctl.kernel.inet_filter import SocketFilter
from redirectctl.kernel.survey import Survey, present, repeating
from redirectctl.kernel.tcpcounters import Count
from redirectctl.wire.addr import FourTuple, IPAddress

_log = logging.getLogger(__name__)

BEAT = 1.0  # seconds; the threshold is ten times that: a connection younger than two beats need never be seen
SLOW = 10.0  # seconds between looks at all sockets; the others are at those that are new, if the kernel counted some
BUSY = 20.0  # a look takes at most this part of our time
AUDIT = 30.0  # seconds between looks whether known connections still exist, in case a notification was lost
KEEP_ID = 60.0  # seconds for which the id of a removed cgroup is still asked for: its sockets may live on
ONE_BY_ONE = 32  # sockets; looking up more of them takes longer than reading the whole table
OPEN = (TcpState.ESTABLISHED, TcpState.CLOSE_WAIT)
ALIVE = (
    TcpState.ESTABLISHED,
    TcpState.FIN_WAIT1,
    TcpState.FIN_WAIT2,
    TcpState.CLOSE_WAIT,
    TcpState.LAST_ACK,
    TcpState.CLOSING,
)


@dataclass(slots=True)
class _Group:
    cgroup: Cgroup
    last_seen: float
    sockets: dict[FourTuple, int] = field(default_factory=dict)  # open at the last look, with the user's id


class Finder:
    """Looks at the socket table, at a slow beat and only while something is opted in."""

    def __init__(
        self,
        engine: Engine,
        settings: Protect,
        own_addresses: Callable[[], frozenset[IPAddress]],
        changed: Callable[[], None],
        opens: Callable[[], Count],
    ) -> None:
        """``changed`` is called after the engine was told something; ``opens``: TcpCounters.opens.

        Raises KernelError.
        """
        self._engine = engine
        self.settings = settings
        self._own_addresses = own_addresses
        self._changed = changed
        self._opens = opens
        self.diag = SockDiag()
        self._survey = Survey(self.diag)
        self._counted: Count | None = None  # at the last look, and what it was about
        self._wanted: SocketFilter | None = None
        self._looked_anew = float("-inf")  # when at all sockets, not only at those that are new
        self._destroyed = DestroyWatch(self._on_destroyed, self._audit)
        self._groups: dict[int, _Group] = {}
        try:
            self._tree: CgroupTree | None = CgroupTree()
        except KernelError as error:
            _log.warning("%s; only ports and single connections can be opted in", error)
            self._tree = None
        self._wake = asyncio.Event()

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Watch, and take up what an earlier run opted in."""
        self._destroyed.start(loop)
        if self._tree is not None:
            self._tree.sweep()
            for cgroup in self._tree.find_all():
                self._groups[cgroup.id] = _Group(cgroup, loop.time())
        self._wake.set()

    def close(self) -> None:
        """Stop; cgroups with processes stay."""
        self._destroyed.close()
        self.diag.close()
        if self._tree is not None:
            self._tree.sweep()

    def opt_in(self, pid: int, start_time: int | None = None) -> Cgroup:
        """A process and its future children.  Raises KernelError."""
        if self._tree is None:
            self._tree = CgroupTree()
        cgroup = self._tree.opt_in(pid, start_time=start_time)
        self._groups[cgroup.id] = _Group(cgroup, asyncio.get_running_loop().time())
        self._wake.set()
        return cgroup

    def sockets_with(self, pid: int, uid: int) -> list[FourTuple]:
        """Open sockets of the command that a process was opted in with, which a user may be told about.

        All of them if the cgroup was made for this very process; in somebody else's (`redirect-run su`) the user's own.
        """
        cgroup = self._tree.group_of(pid) if self._tree is not None else None
        group = self._groups.get(cgroup.id) if cgroup is not None else None
        if cgroup is None or group is None:
            return []
        whole = uid == 0 or cgroup.path.name == f"{CGROUP_PREFIX}{pid}"
        return [socket for socket, owner in group.sockets.items() if whole or owner == uid]

    def opt_in_sockets(self, sockets: Iterable[SocketInfo]) -> list[FourTuple]:
        """Connections that are open already; those that cannot be protected are left out."""
        taken = [s for s in sockets if self._eligible(s.tuple)]
        self._tell(taken, age=self.settings.long_lived_after)  # somebody asked: no waiting for the threshold
        return [s.tuple for s in taken]

    def eligible(self, socket: FourTuple) -> bool:
        """Whether a connection leaves this host, so that it could be protected."""
        return self._eligible(socket)

    async def run(self, pulse: Pulse) -> None:
        """The beat, until cancelled."""
        loop = asyncio.get_running_loop()
        last_audit = loop.time()
        while True:
            if not (self._groups or self.settings.ports or self.settings.scope == "all" or len(self._engine.table)):
                self._wake.clear()
                await pulse.wait(self._wake)
            began = loop.time()
            if (wanted := self._what()) is not None:
                self._look(began, wanted)
            if loop.time() - last_audit >= AUDIT:
                last_audit = loop.time()
                self._audit()
                self._sweep(loop.time())
            # With scope = "all" and tens of thousands of sockets a look takes a third of a second.
            await pulse.sleep(max(BEAT, BUSY * (loop.time() - began)))

    def _what(self) -> SocketFilter | None:
        """What to look for."""
        if self.settings.scope == "all":
            return SocketFilter()
        if self._groups or self.settings.ports:
            return SocketFilter(cgroups=frozenset(self._groups), remote_ports=frozenset(self.settings.ports))
        return None

    def _look(self, now: float, wanted: SocketFilter) -> None:
        """At what is new, and now and then at all: one may be known no more, or was not counted when it came."""
        anew = now - self._looked_anew >= SLOW
        counted = self._opens()
        if (counted, wanted) == (self._counted, self._wanted) and not anew:
            return
        seen = self._survey.look(wanted, OPEN)
        self._counted, self._wanted = counted, wanted
        if anew:
            self._looked_anew = now
        for group in self._groups.values():
            group.sockets = {}
        for one in seen.sockets if self._groups else ():
            if one.cgroup_id in self._groups:
                self._groups[one.cgroup_id].last_seen = now
                self._groups[one.cgroup_id].sockets[one.tuple] = one.uid
        found = seen.sockets if anew else seen.fresh
        self._tell([s for s in found if self._engine.table.at(s.tuple) is None and self._eligible(s.tuple)])

    def _tell(self, fresh: list[SocketInfo], age: float = 0.0) -> None:
        if not fresh:
            return
        now = asyncio.get_running_loop().time()
        try:
            owners = procs.owners([s.inode for s in fresh], likely=self._likely())
        except OSError as error:  # no descriptor is left: to be protected is more than to be named
            _log.error("programs of connections: %s", error)
            owners = {}
        for one in fresh:
            owner = owners.get(one.inode)
            pid, command = (owner.pid, owner.command) if owner is not None else (None, None)
            self._engine.found(now, one.tuple, age=age, pid=pid, command=command)
        self._changed()

    def _likely(self) -> list[int]:
        if self._tree is None:
            return []
        return [pid for group in self._groups.values() for pid in self._tree.processes(group.cgroup)]

    def name(self, connections: Collection[Connection]) -> None:
        """Find out which programs have connections that a peer asked us to protect.  One look for all: it is slow."""
        infos = self.look_up(c.socket for c in connections)
        found = procs.owners([info.inode for info in infos.values()])
        for connection in connections:
            info = infos.get(connection.socket)
            owner = found.get(info.inode) if info is not None else None
            if owner is not None:
                connection.pid, connection.command = owner.pid, owner.command

    def _eligible(self, socket: FourTuple) -> bool:
        remote = socket.remote.host
        if remote.is_loopback or remote.is_link_local or socket.local.host.is_link_local:
            return False
        return remote not in self._own_addresses()

    def present(self, sockets: Iterable[FourTuple]) -> frozenset[FourTuple]:
        """Those of them that exist and are not closed altogether."""
        wanted = list(sockets)
        return frozenset(self.look_up(wanted)) if len(wanted) <= ONE_BY_ONE else present(self.diag, wanted, ALIVE)

    def repeating(self, least: int) -> list[FourTuple]:
        """Connections that have sent the same segment, or a probe, at least so often without an answer."""
        return repeating(self.diag, ALIVE, least)

    def between(self, port: int, remote: IPAddress) -> list[FourTuple]:
        """Connections of a local port with a remote host."""
        found = self.diag.dump(states=ALIVE)
        return [one.tuple for one in found if one.tuple.local.port == port and one.tuple.remote.host == remote]

    def measured(self, sockets: Iterable[FourTuple]) -> dict[FourTuple, TcpInfo]:
        """What the kernel counts for those that exist: 10 us each, of every socket where many are asked for."""
        return {s: found.info for s, found in self.look_up(sockets).items() if found.info is not None}

    def look_up(self, sockets: Iterable[FourTuple]) -> dict[FourTuple, SocketInfo]:
        """Those of the sockets that are not closed altogether."""
        wanted = list(sockets)
        if len(wanted) <= ONE_BY_ONE:
            found = (self.diag.get(s) for s in wanted)
            return {info.tuple: info for info in found if info is not None and info.state in ALIVE}
        return {info.tuple: info for info in self.diag.dump(states=ALIVE, only=wanted)}

    def _on_destroyed(self, gone: Destroyed) -> None:
        if self._engine.table.at(gone.tuple) is None:
            return
        left = self.diag.get(gone.tuple)
        # What waits for the other end's FIN without a program (`tcp_time_wait`) ends without a notification.
        waits = left is not None and left.state is TcpState.FIN_WAIT2 and not left.inode
        if left is None or left.state not in ALIVE or waits:
            self._looked_anew = float("-inf")  # its tuple may be another connection's already
            self._engine.gone(asyncio.get_running_loop().time(), gone.tuple)
            self._changed()

    def _audit(self) -> None:
        """Connections that have ended without our being told."""
        known = [c.socket for c in self._engine.table if c.state is not State.CLOSED]
        present = self.present(known)
        now = asyncio.get_running_loop().time()
        for socket in known:
            if socket not in present:
                self._engine.gone(now, socket)
        self._changed()

    def _sweep(self, now: float) -> None:
        if self._tree is None:
            return
        self._tree.sweep()
        for number, group in list(self._groups.items()):
            if not group.cgroup.path.exists() and now - group.last_seen > KEEP_ID:
                del self._groups[number]

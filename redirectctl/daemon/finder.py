"""Finding opted-in connections, and noticing when they end.

Walks over /proc and the cgroup hierarchy, and the moving of a process, take from 20 ms up to as long as other users
make them take: threads do that, and what comes of it is looked at anew when they are done.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from redirectctl.config import Protect
from redirectctl.daemon.candidates import Pair
from redirectctl.daemon.loops import Pulse
from redirectctl.flows.connection import Connection
from redirectctl.flows.constants import MAX_CONNECTIONS
from redirectctl.flows.engine import Engine
from redirectctl.flows.network import Interface
from redirectctl.flows.state import State
from redirectctl.kernel.constants import CGROUP_PREFIX
from redirectctl.kernel.errors import KernelError
from redirectctl.kernel.processes import procfs
from redirectctl.kernel.processes.cgroup import Cgroup, CgroupTree
from redirectctl.kernel.processes.pidfd import Pidfd
from redirectctl.kernel.sockets.bytecode import SocketFilter
from redirectctl.kernel.sockets.counters import Count
from redirectctl.kernel.sockets.diag import CONNECTED, Destroyed, DestroyWatch, SockDiag, SocketInfo, TcpInfo, TcpState
from redirectctl.kernel.sockets.survey import Survey, between, present, repeating
from redirectctl.proto.constants import ATTEMPTS_MAX
from redirectctl.wire.addr import FourTuple, IPAddress

_log = logging.getLogger(__name__)

BEAT = 1.0  # seconds; the threshold is ten times that: a connection younger than two beats need never be seen
SLOW = 10.0  # seconds between looks at all sockets; the others are at those that are new, if the kernel counted some
BUSY = 20.0  # a look takes at most this part of our time
AUDIT = 30.0  # seconds between looks whether known connections still exist, in case a notification was lost
KEEP_ID = 60.0  # seconds for which the id of a removed cgroup is still asked for: its sockets may live on
ONE_BY_ONE = 32  # sockets; looking up more of them takes longer than reading the whole table
WALKS = 2  # at a time: the beat's, and what programs have connections that peers asked for
# Hosts that are being asked for a daemon, of all users but root: the rest of ATTEMPTS_MAX is for peers and for root.
MAX_ASKED = ATTEMPTS_MAX - 64
MAX_OF_USERS = MAX_CONNECTIONS - MAX_CONNECTIONS // 8  # connections of all users but root
OPEN = (TcpState.ESTABLISHED, TcpState.CLOSE_WAIT)


@dataclass(slots=True)
class _Group:
    cgroup: Cgroup
    last_seen: float
    made_for: int | None  # start time (procfs.start_time) of the process whose number its name has; None: not known
    sockets: dict[FourTuple, int] = field(default_factory=dict)  # open at the last look, with the user's id


class Finder:
    """Looks at the socket table, at a slow beat and only while something is opted in."""

    def __init__(
        self,
        engine: Engine,
        settings: Protect,
        own_addresses: Callable[[], frozenset[IPAddress]],
        interface: Callable[[int], Interface | None],
        changed: Callable[[], None],
        opens: Callable[[], Count],
    ) -> None:
        """``changed`` is called after the engine was told something.

        ``interface``: by index; ``opens``: TcpCounters.opens.
        Raises KernelError.
        """
        self._engine = engine
        self.settings = settings
        self._own_addresses = own_addresses
        self._interface = interface
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
        self._walks = ThreadPoolExecutor(WALKS, "walk")
        self._moves = ThreadPoolExecutor(WALKS, "opt in")

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Watch, and take up what an earlier run opted in."""
        self._destroyed.start(loop)
        if self._tree is not None:
            self._tree.sweep()
            for cgroup in self._tree.find_all():
                self._groups[cgroup.id] = _Group(cgroup, loop.time(), _made_for(self._tree, cgroup))
        self._wake.set()

    def close(self) -> None:
        """Stop; cgroups with processes stay."""
        self._destroyed.close()
        self.diag.close()
        self._walks.shutdown(wait=False, cancel_futures=True)
        self._moves.shutdown(wait=False, cancel_futures=True)
        if self._tree is not None:
            self._tree.sweep()

    async def opt_in(self, pid: int, process: Pidfd | None = None) -> Cgroup:
        """A process (``process``, whoever has the number by now) and its future children.  Raises KernelError."""
        tree = self._tree = self._tree or CgroupTree()
        held = process.copy() if process is not None else None

        def move() -> tuple[Cgroup, int | None]:
            try:
                cgroup = tree.opt_in(pid, process=held)
            finally:
                if held is not None:
                    held.close()
            return cgroup, _made_for(tree, cgroup)

        loop = asyncio.get_running_loop()
        # Who asked may go away meanwhile: it is done all the same.
        cgroup, made_for = await asyncio.shield(loop.run_in_executor(self._moves, move))
        known = self._groups.get(cgroup.id)
        if known is None:
            self._groups[cgroup.id] = _Group(cgroup, loop.time(), made_for)
        else:
            known.last_seen = loop.time()
        self._wake.set()
        return cgroup

    def sockets_with(self, pid: int, uid: int) -> list[FourTuple]:
        """Open sockets of the command that a process was opted in with, which a user may be told about.

        All of them if the cgroup was made for this very process; in somebody else's (`redirect-run su`) the user's own.
        """
        group = self._group_of(pid)
        if group is None:
            return []
        made_for = group.cgroup.path.name == f"{CGROUP_PREFIX}{pid}" and group.made_for is not None
        whole = uid == 0 or (made_for and group.made_for == procfs.start_time(pid))
        return [socket for socket, owner in group.sockets.items() if whole or owner == uid]

    def opted_in(self, pid: int, uid: int) -> bool:
        """Whether some process was opted in with which this user has open sockets."""
        group = self._group_of(pid)
        return group is not None and any(uid in (0, owner) for owner in group.sockets.values())

    def _group_of(self, pid: int) -> _Group | None:
        cgroup = self._tree.group_of(pid) if self._tree is not None else None
        return self._groups.get(cgroup.id) if cgroup is not None else None

    async def opt_in_sockets(self, sockets: Iterable[SocketInfo]) -> list[FourTuple]:
        """Connections that are open already; those that cannot be protected are left out."""
        taken = [s for s in sockets if self._eligible(s.tuple)]
        await self._tell(taken, asked=True)
        return [s.tuple for s in taken]

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
                await self._look(began, wanted)
            if loop.time() - last_audit >= AUDIT:
                last_audit = loop.time()
                self._audit()
                await self._sweep()
            # With scope = "all" and tens of thousands of sockets a look takes a third of a second.
            await pulse.sleep(max(BEAT, BUSY * (loop.time() - began)))

    def _what(self) -> SocketFilter | None:
        """What to look for."""
        if self.settings.scope == "all":
            return SocketFilter()
        if self._groups or self.settings.ports:
            return SocketFilter(cgroups=frozenset(self._groups), remote_ports=frozenset(self.settings.ports))
        return None

    async def _look(self, now: float, wanted: SocketFilter) -> None:
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
        fresh = [s for s in found if self._engine.table.at(s.tuple) is None and self._eligible(s.tuple)]
        if fresh:
            await self._tell(shared_out(fresh, self._engine.table))

    async def _tell(self, fresh: list[SocketInfo], *, asked: bool = False) -> None:
        if not fresh:
            return
        age = self.settings.long_lived_after if asked else 0.0  # somebody asked: no waiting for the threshold
        owners = await self._owners([s.inode for s in fresh], likely=True)
        present = self.present(s.tuple for s in fresh)  # some may have ended meanwhile, and nobody would tell
        now = asyncio.get_running_loop().time()
        for one in fresh:
            if one.tuple not in present:
                continue
            owner = owners.get(one.inode)
            pid, command = (owner.pid, owner.command) if owner is not None else (None, None)
            device, unfit = fitness(self._interface(one.ifindex) if one.ifindex else None)
            self._engine.found(
                now,
                one.tuple,
                age=age,
                pid=pid,
                command=command,
                uid=one.uid,
                device=device,
                unfit=unfit,
                asked=asked,
            )
        self._changed()

    def bound(self, sockets: Iterable[FourTuple]) -> dict[FourTuple, str]:
        """Those of these, which have been looked up, that are bound to an interface, and its name."""
        indices = {s: index for s in sockets if (index := self.diag.bound(s))}
        found = ((s, self._interface(index)) for s, index in indices.items())
        return {s: interface.name for s, interface in found if interface is not None}

    async def _owners(self, inodes: Collection[int], *, likely: bool = False) -> dict[int, procfs.Process]:
        """Which processes have these sockets.  Looks at every process, unless those that are likely have them all."""
        tree, groups = self._tree, [group.cgroup for group in self._groups.values()]

        def walk() -> dict[int, procfs.Process]:
            members = (pid for group in groups for pid in tree.processes(group)) if likely and tree is not None else ()
            return procfs.owners(inodes, likely=members)

        try:
            return await asyncio.get_running_loop().run_in_executor(self._walks, walk)
        except OSError as error:  # no descriptor is left: to be protected is more than to be named
            _log.error("programs of connections: %s", error)
            return {}

    async def name(self, connections: Collection[Connection]) -> None:
        """Find out which programs have connections that a peer asked us to protect.  One look for all: it is slow."""
        infos = self.look_up(c.socket for c in connections)
        found = await self._owners([info.inode for info in infos.values()]) if infos else {}
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

    async def take_over(self, process: int, uid: int) -> None:
        """A user's connections whose program has ended may be this process's: of an ssh that went into the background.

        Looks at no other process, and at this one only if it is the user's.
        """
        if uid not in {0, *procfs.users(process)}:
            return
        open_ones = [c for c in self._engine.table if uid in (0, c.uid) and c.state is not State.CLOSED]
        left = [c for c in open_ones if c.pid not in (None, process) and procfs.start_time(c.pid) is None]
        if not left:
            return
        inodes = await asyncio.get_running_loop().run_in_executor(self._walks, procfs.sockets_of, process)
        infos = self.look_up(c.socket for c in left)
        for connection in left:
            if (info := infos.get(connection.socket)) is not None and info.inode in inodes:
                connection.pid = process

    def present(self, sockets: Iterable[FourTuple]) -> frozenset[FourTuple]:
        """Those of them that exist and are not closed altogether."""
        wanted = list(sockets)
        return frozenset(self.look_up(wanted)) if len(wanted) <= ONE_BY_ONE else present(self.diag, wanted, CONNECTED)

    def repeating(self, least: int) -> list[FourTuple]:
        """Connections that have sent the same segment, or a probe, at least so often without an answer."""
        return repeating(self.diag, CONNECTED, least)

    def between(self, wanted: Collection[Pair]) -> dict[Pair, list[FourTuple]]:
        """Connections of a local port with a remote host, of each such pair."""
        return between(self.diag, wanted, CONNECTED)

    def measured(self, sockets: Iterable[FourTuple]) -> dict[FourTuple, TcpInfo]:
        """What the kernel counts for those that exist: 10 us each, of every socket where many are asked for."""
        return {s: found.info for s, found in self.look_up(sockets).items() if found.info is not None}

    def look_up(self, sockets: Iterable[FourTuple]) -> dict[FourTuple, SocketInfo]:
        """Those of the sockets that are not closed altogether."""
        wanted = list(sockets)
        if len(wanted) <= ONE_BY_ONE:
            found = (self.diag.get(s) for s in wanted)
            return {info.tuple: info for info in found if info is not None and info.state in CONNECTED}
        return {info.tuple: info for info in self.diag.dump(only=wanted)}

    def _on_destroyed(self, gone: Destroyed) -> None:
        if self._engine.table.at(gone.tuple) is None:
            return
        left = self.diag.get(gone.tuple, ifindex=gone.ifindex)
        # What waits for the other end's FIN without a program (`tcp_time_wait`) ends without a notification.
        waits = left is not None and left.state is TcpState.FIN_WAIT2 and not left.inode
        if left is None or left.state not in CONNECTED or waits:
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

    async def _sweep(self) -> None:
        if self._tree is None:
            return
        loop, groups = asyncio.get_running_loop(), dict(self._groups)
        tree = self._tree

        def walk() -> list[int]:
            tree.sweep()
            return [number for number, group in groups.items() if not group.cgroup.path.exists()]

        for number in await loop.run_in_executor(self._walks, walk):
            if loop.time() - groups[number].last_seen > KEEP_ID:
                self._groups.pop(number, None)


def _made_for(tree: CgroupTree, cgroup: Cgroup) -> int | None:
    """Of a cgroup that is met for the first time: when the process began that it was made for, if that is in it."""
    pid = int(cgroup.path.name.removeprefix(CGROUP_PREFIX))
    return procfs.start_time(pid) if tree.group_of(pid) == cgroup else None


def shared_out(fresh: Iterable[SocketInfo], known: Iterable[Connection]) -> list[SocketInfo]:
    """Those of new sockets that may be taken on now; the others are found again.

    Connections, and handshakes with hosts that may not have a daemon, are for all users together: nobody gets more of
    either than is left for the others.  Root is not counted.
    """
    connections: Counter[int] = Counter()
    asked: defaultdict[int, set[IPAddress]] = defaultdict(set)
    for one in known:
        if one.uid and one.state is not State.CLOSED:
            connections[one.uid] += 1
            if one.state in (State.SHORT, State.NEGOTIATING) and one.peer is None:
                asked[one.uid].add(one.socket.remote.host)
    taken = []
    for socket in fresh:
        hosts, host = asked[socket.uid], socket.tuple.remote.host
        if socket.uid:
            left = MAX_ASKED - sum(map(len, asked.values()))
            if connections[socket.uid] >= MAX_OF_USERS - connections.total() or (
                host not in hosts and len(hosts) >= left
            ):
                continue
            connections[socket.uid] += 1
            hosts.add(host)
        taken.append(socket)
    return taken


def fitness(bound_to: Interface | None) -> tuple[str, str | None]:
    """The interface that a socket is bound to, and why that keeps it from being protected.

    None: it is not bound, or what it is bound to has gone, and it can send nothing.
    """
    if bound_to is None:
        return "", None
    return bound_to.name, "bound-to-vrf" if bound_to.vrf else None

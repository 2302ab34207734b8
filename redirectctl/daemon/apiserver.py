"""The Unix socket: who asks, whether they may, and which handler answers.

Everybody may connect.  `status`, `identity`, `opt-in` (of the process that asks) and `watch` (of its own command) are
for all; everything else is for root, the user that the daemon runs as, and the group `redirectctl`.  Callers are known
from the kernel (SO_PEERCRED, SO_PEERGROUPS, SO_PEERPIDFD), not from what they say.  A connection outlives the process
that made it, whose number goes to another one then: what is about the process is done only while it runs, as its user.
Refusals are logged with a named reason.
"""

from __future__ import annotations

import asyncio
import contextlib
import grp
import logging
import os
import pwd
import socket
import stat
import struct
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, StrEnum
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple, Protocol

from redirectctl.api import schema
from redirectctl.api.schema import ErrorCode, RequestError
from redirectctl.daemon.eventlog import EventLog, Subscription
from redirectctl.daemon.repeats import Repeats
from redirectctl.daemon.slots import Slot, Slots
from redirectctl.kernel.processes.pidfd import Pidfd, of_peer

ADMIN_GROUP: Final = "redirectctl"
BACKLOG: Final = 128  # connections that the kernel keeps until we accept them; many redirect-run may start at once
MAX_CLIENTS: Final = 256  # at once, each with buffers of some 64 KiB; see slots.py for who gets them
MAX_CLIENTS_PER_USER: Final = 64  # and root beside them
REQUEST_TIMEOUT: Final = 10.0  # seconds for the first request to arrive
IDLE_TIMEOUT: Final = 300.0  # seconds between two requests of one client
WRITE_TIMEOUT: Final = 10.0  # seconds for a client to read its reply
MAX_WATCHERS: Final = 512  # counted apart from other clients: each redirect-run on a terminal is one while it runs
MAX_WATCHERS_PER_USER: Final = 128
WATCH_BEAT: Final = 1.0  # seconds between looks for changes that are no event
WATCH_PAUSE: Final = 0.1  # seconds between two looks, however much happens
EVENTS_AT_ONCE: Final = 500  # of the log, read in a thread between two waits for the client

_SO_PEERGROUPS: Final = 59  # asm-generic/socket.h; Python has no name for it.  Linux 4.13
_GROUPS_SIZE: Final = 1024  # bytes, the most that Python's getsockopt reads: 256 groups

_log = logging.getLogger(__name__)


class Refusal(StrEnum):
    """Why a client was refused."""

    TOO_MANY = "too-many-clients"
    IDLE = "idle"
    TOO_LONG = "request-too-long"
    TOO_SLOW = "request-too-slow"
    MALFORMED = "request-malformed"
    NO_RIGHT = "no-right"
    NOT_READING = "reply-not-read"


@dataclass(frozen=True, slots=True)
class Caller:
    """The process at the other end, as the kernel knows it."""

    pid: int  # 0 if it is in a process namespace that we do not see
    uid: int
    groups: frozenset[int]
    process: Pidfd | None = None  # None: it has ended

    def __str__(self) -> str:
        return f"process {self.pid} of user {self.uid}"


class Service(Protocol):
    """What the daemon does when asked.  Every method may raise RequestError, which becomes the reply."""

    async def status(self, request: schema.StatusRequest, caller: Caller) -> schema.StatusReply:
        """The daemon in a few numbers."""
        ...

    async def connections(self, request: schema.ConnectionsRequest, caller: Caller) -> schema.ConnectionsReply:
        """All connections."""
        ...

    async def connection(self, request: schema.ConnectionRequest, caller: Caller) -> schema.ConnectionReply:
        """One connection, with counters and history."""
        ...

    async def peers(self, request: schema.PeersRequest, caller: Caller) -> schema.PeersReply:
        """All peers."""
        ...

    async def peer(self, request: schema.PeerRequest, caller: Caller) -> schema.PeerReply:
        """One peer, with the picture of its key."""
        ...

    async def identity(self, request: schema.IdentityRequest, caller: Caller) -> schema.IdentityReply:
        """Own fingerprint."""
        ...

    async def prove(self, request: schema.ProveRequest, caller: Caller) -> schema.ProofsReply:
        """What the two hosts of a pairing show each other."""
        ...

    async def meet(self, request: schema.MeetRequest, caller: Caller) -> schema.MeetReply:
        """Call a host whose key a person has named."""
        ...

    async def approve(self, request: schema.ApproveRequest, caller: Caller) -> schema.PeerReply:
        """Trust a peer's key."""
        ...

    async def reject(self, request: schema.RejectRequest, caller: Caller) -> schema.PeerReply:
        """Never trust a peer's key."""
        ...

    async def forget(self, request: schema.ForgetRequest, caller: Caller) -> schema.PeerReply:
        """Know nothing of a peer."""
        ...

    async def rename(self, request: schema.RenameRequest, caller: Caller) -> schema.PeerReply:
        """Call a peer something else."""
        ...

    async def protect(self, request: schema.ProtectRequest, caller: Caller) -> schema.ConnectionsReply:
        """Opt a running process or one connection in."""
        ...

    async def release(self, request: schema.ReleaseRequest, caller: Caller) -> schema.ConnectionReply:
        """Stop protecting a connection."""
        ...

    async def kill(self, request: schema.KillRequest, caller: Caller) -> schema.ConnectionReply:
        """Close a connection on both hosts."""
        ...

    async def announce(self, request: schema.AnnounceRequest, caller: Caller) -> schema.AnnounceReply:
        """Say our addresses to all peers."""
        ...

    async def retry(self, request: schema.RetryRequest, caller: Caller) -> schema.RetryReply:
        """Ask hosts that did not answer again."""
        ...

    async def opt_in(self, request: schema.OptInRequest, caller: Caller) -> schema.OptedIn:
        """Opt the calling process in."""
        ...

    async def begin_watch(self, request: schema.WatchRequest, caller: Caller) -> None:
        """Somebody begins to watch; watched() says what there is."""
        ...

    def watched(self, request: schema.WatchRequest, caller: Caller, may_decide: bool) -> schema.WatchReply:
        """What there is to tell about the caller's command.  may_decide: whether the caller may approve peers."""
        ...

    async def doctor(self, request: schema.DoctorRequest, caller: Caller) -> schema.DoctorReply:
        """Check everything that can be checked from inside the daemon."""
        ...


class Right(Enum):
    """Who may ask."""

    ANYBODY = "anybody"
    ADMIN = "admin"


class Route(NamedTuple):
    """Which method of Service answers, and who may ask."""

    method: str
    right: Right


ROUTES: Final[dict[type[schema.Request], Route]] = {
    schema.StatusRequest: Route("status", Right.ANYBODY),
    schema.OptInRequest: Route("opt_in", Right.ANYBODY),
    schema.WatchRequest: Route("watched", Right.ANYBODY),  # answered here, by any number of replies
    schema.ConnectionsRequest: Route("connections", Right.ADMIN),
    schema.ConnectionRequest: Route("connection", Right.ADMIN),
    schema.PeersRequest: Route("peers", Right.ADMIN),
    schema.PeerRequest: Route("peer", Right.ADMIN),
    schema.IdentityRequest: Route("identity", Right.ANYBODY),
    schema.ProveRequest: Route("prove", Right.ADMIN),
    schema.MeetRequest: Route("meet", Right.ADMIN),
    schema.ApproveRequest: Route("approve", Right.ADMIN),
    schema.RejectRequest: Route("reject", Right.ADMIN),
    schema.ForgetRequest: Route("forget", Right.ADMIN),
    schema.RenameRequest: Route("rename", Right.ADMIN),
    schema.ProtectRequest: Route("protect", Right.ADMIN),
    schema.ReleaseRequest: Route("release", Right.ADMIN),
    schema.KillRequest: Route("kill", Right.ADMIN),
    schema.AnnounceRequest: Route("announce", Right.ADMIN),
    schema.RetryRequest: Route("retry", Right.ADMIN),
    schema.DoctorRequest: Route("doctor", Right.ADMIN),
    schema.EventsRequest: Route("", Right.ADMIN),  # answered here, by any number of replies
}


class ApiError(Exception):
    """The socket cannot be made: ``what: why; what to do``."""


class ApiServer:
    """Answers requests on a Unix socket."""

    def __init__(
        self,
        service: Service,
        events: EventLog,
        version: str,
        *,
        request_timeout: float = REQUEST_TIMEOUT,
        max_clients_per_user: int = MAX_CLIENTS_PER_USER,
    ) -> None:
        """version: of the daemon, for clients."""
        self._service = service
        self._events = events
        self._hello = schema.encode(schema.Hello(version=version))
        self._request_timeout = request_timeout
        self._slots = Slots(MAX_CLIENTS, max_clients_per_user)
        self._watching = Slots(MAX_WATCHERS, MAX_WATCHERS_PER_USER)
        self._admin_group = admin_group()
        self._refused: Repeats[tuple[Caller, Refusal, str]] = Repeats()  # by user
        self._clients: dict[asyncio.Task[None], Caller] = {}
        self._ends: dict[Slot, Callable[[], None]] = {}  # what to do when an idle client has to make room
        self._server: asyncio.Server | None = None
        self._path = Path()
        self._inode = 0

    async def start(self, path: Path) -> None:
        """Serve on `path`; its directory is made if missing.  Raises ApiError."""
        listener, self._inode = _listen(path, self._admin_group)
        self._path = path
        # asyncio accepts as many at a time as its backlog.  Where no descriptor is left each of them fails, and gets a
        # timer of its own to be tried again, ever more of them.  So one at a time; the kernel's backlog is another.
        self._server = await asyncio.start_unix_server(self._accept, sock=listener, limit=schema.MAX_REQUEST, backlog=1)
        listener.listen(BACKLOG)

    async def close(self) -> None:
        """End all clients, followers after they were told what was logged, and remove the socket."""
        if self._server is None:
            return
        self._server.close()
        with contextlib.suppress(OSError):
            if self._path.stat().st_ino == self._inode:
                self._path.unlink()
        clients = list(self._clients)
        for task in clients:
            task.cancel()
        await asyncio.gather(*clients, return_exceptions=True)
        self._log_left_out(float("inf"))
        self._server = None

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        caller = _caller(writer.get_extra_info("socket"))
        if caller is None:
            writer.transport.abort()
            return
        self._log_left_out()
        slot, displaced = self._slots.enter(caller.uid)
        if displaced is not None:
            self._ends[displaced]()
        task = asyncio.create_task(self._serve(reader, writer, caller, slot), name=f"api client, {caller}")
        self._clients[task] = caller
        task.add_done_callback(partial(self._ended, slot))
        if slot is not None:
            self._ends[slot] = partial(self._end_idle, writer, caller, task)

    def _end_idle(self, writer: asyncio.StreamWriter, caller: Caller, task: asyncio.Task[None]) -> None:
        why = "it closed this connection, which was idle, because another program needed the slot"
        self._refuse(writer, caller, Refusal.IDLE, RequestError("daemon", why, "connect again"))
        task.cancel()

    def _ended(self, slot: Slot | None, task: asyncio.Task[None]) -> None:
        caller = self._clients.pop(task)
        if slot is not None:
            self._slots.leave(slot)
            del self._ends[slot]
        if caller.process is not None:
            caller.process.close()
        if not task.cancelled() and (error := task.exception()):
            _log.error("%s failed", task.get_name(), exc_info=error)

    async def _serve(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, caller: Caller, slot: Slot | None
    ) -> None:
        """One client from beginning to end."""
        try:
            if slot is None:
                why = "too many programs talk to it at once"
                self._refuse(writer, caller, Refusal.TOO_MANY, RequestError("daemon", why, "end some or wait"))
            else:
                writer.write(self._hello)
                await self._converse(reader, writer, caller, slot)
            writer.close()
            async with asyncio.timeout(WRITE_TIMEOUT):
                await writer.wait_closed()
        except TimeoutError:
            self._log_refusal(caller, Refusal.NOT_READING, f"the reply was not read within {WRITE_TIMEOUT:g} s")
        except OSError:
            _log.debug("api: %s went away", caller)
        finally:
            writer.transport.abort()

    async def _converse(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, caller: Caller, slot: Slot
    ) -> None:
        """Requests and replies until the client ends or is refused."""
        timeout = self._request_timeout
        while True:
            try:
                slot.idle_since = asyncio.get_running_loop().time()
                async with asyncio.timeout(timeout):
                    line = await reader.readuntil(b"\n")
                slot.idle_since = None
                request = schema.decode_request(line)
            except asyncio.IncompleteReadError:
                return
            except asyncio.LimitOverrunError:
                why = f"longer than {schema.MAX_REQUEST} bytes"
                error = RequestError("request", why, "shorten it", ErrorCode.USAGE)
                self._refuse(writer, caller, Refusal.TOO_LONG, error)
                return
            except TimeoutError:
                error = RequestError("request", f"none within {timeout:g} s", "connect again", ErrorCode.USAGE)
                self._refuse(writer, caller, Refusal.TOO_SLOW, error)
                return
            except RequestError as error:
                self._refuse(writer, caller, Refusal.MALFORMED, error)
                return
            try:
                await self._check_right(request, caller)
            except RequestError as error:
                self._refuse(writer, caller, Refusal.NO_RIGHT, error)
            else:
                if isinstance(request, schema.EventsRequest):
                    await self._send_events(request, reader, writer)
                    if request.follow:
                        return
                elif isinstance(request, schema.WatchRequest):
                    await self._watch(request, reader, writer, caller, slot)
                    return
                else:
                    writer.write(await self._answer(request, caller))
            async with asyncio.timeout(WRITE_TIMEOUT):
                await writer.drain()
            timeout = IDLE_TIMEOUT

    def _refuse(self, writer: asyncio.StreamWriter, caller: Caller, refusal: Refusal, error: RequestError) -> None:
        self._log_refusal(caller, refusal, str(error))
        writer.write(schema.encode(error.error))

    def _log_refusal(self, caller: Caller, refusal: Refusal, why: str) -> None:
        """The first of a user and reason at once, further ones after a pause, counted: anybody can cause them."""
        self._log_left_out()
        now = asyncio.get_running_loop().time()
        times = self._refused.note(now, f"user {caller.uid}", refusal, (caller, refusal, why))
        if times:
            _log_refused(caller, refusal, why, times)

    def _log_left_out(self, now: float | None = None) -> None:
        """What has waited long enough.  now: infinity for all of it."""
        at = asyncio.get_running_loop().time() if now is None else now
        for _, (caller, refusal, why), times in self._refused.due(at):
            _log_refused(caller, refusal, why, times)

    async def _check_right(self, request: schema.Request, caller: Caller) -> None:
        route = ROUTES[type(request)]
        name = type(request).__struct_config__.tag
        if isinstance(request, (schema.OptInRequest, schema.WatchRequest)):
            _check_process(str(name), caller)
        if route.right is Right.ADMIN and not await self._is_admin(caller):
            hint = await asyncio.to_thread(how_to_join, caller.uid)
            raise RequestError(str(name), "not permitted", hint, ErrorCode.DENIED)

    async def _is_admin(self, caller: Caller) -> bool:
        """Whoever has joined the group since they logged in is a member too: their processes do not show it yet."""
        if caller.uid in {0, os.geteuid()} or self._admin_group in caller.groups:
            return True
        # The names of users and groups may have to be asked for over a network: nobody else waits for that.
        return self._admin_group is not None and await asyncio.to_thread(has_joined, caller.uid)

    async def _answer(self, request: schema.Request, caller: Caller) -> bytes:
        """The reply as a line."""
        try:
            reply: schema.Reply = await getattr(self._service, ROUTES[type(request)].method)(request, caller)
            return schema.encode(reply)
        except RequestError as error:
            return schema.encode(error.error)
        except Exception as error:
            name = str(type(request).__struct_config__.tag)
            _log.exception("api: %s, asked for by %s, failed", name, caller)
            why = ascii(error)
            return schema.encode(RequestError(name, f"the daemon failed: {why}", "see redirectd's log").error)

    async def _send_events(
        self, request: schema.EventsRequest, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """The log, and with follow what comes until the client sends something or goes away."""
        with contextlib.ExitStack() as stack:
            subscription = stack.enter_context(self._events.subscribe()) if request.follow else None
            if not request.follow or request.since is not None:
                history = stack.enter_context(self._events.history(request.since))
                while batch := await asyncio.to_thread(history.read, EVENTS_AT_ONCE):
                    _write_events(writer, batch)
                    await writer.drain()  # as slow as a person at a pager
            if subscription is None:
                writer.write(schema.encode(schema.EventsEnd()))
                return
            gone = asyncio.ensure_future(reader.read(1))
            try:
                while not gone.done():
                    arrived = asyncio.ensure_future(subscription.wait())
                    try:
                        await asyncio.wait({gone, arrived}, return_when=asyncio.FIRST_COMPLETED)
                    finally:
                        arrived.cancel()
                    _write_events(writer, subscription.take())
                    await writer.drain()  # the subscription is bounded
            finally:
                gone.cancel()
                _write_events(writer, subscription.take())  # at shutdown: that it stops

    async def _watch(
        self,
        request: schema.WatchRequest,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        caller: Caller,
        slot: Slot,
    ) -> None:
        """What there is to tell about the caller's command, whenever that changes."""
        watching, _ = self._watching.enter(caller.uid)
        if watching is None:
            error = RequestError("watch", "too many programs watch", "end some or wait")
            self._refuse(writer, caller, Refusal.TOO_MANY, error)
            return
        self._slots.leave(slot)  # counted there instead
        try:
            await self._service.begin_watch(request, caller)
            with self._events.subscribe() as subscription:
                await self._follow(request, reader, writer, caller, subscription)
        finally:
            self._watching.leave(watching)

    async def _follow(
        self,
        request: schema.WatchRequest,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        caller: Caller,
        subscription: Subscription,
    ) -> None:
        gone = asyncio.ensure_future(reader.read(1))
        may_decide = await self._is_admin(caller)
        told: object = None
        try:
            while not gone.done():
                subscription.take()  # only that something happened matters
                try:
                    _check_process("watch", caller)
                except RequestError as error:
                    self._refuse(writer, caller, Refusal.NO_RIGHT, error)
                    return
                reply = self._service.watched(request, caller, may_decide)
                if (summary := _summary(reply)) != told:
                    told = summary
                    writer.write(schema.encode(reply))
                    async with asyncio.timeout(WRITE_TIMEOUT):
                        await writer.drain()
                await asyncio.wait({gone}, timeout=WATCH_PAUSE)
                arrived = asyncio.ensure_future(subscription.wait())
                try:
                    await asyncio.wait({gone, arrived}, timeout=WATCH_BEAT, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    arrived.cancel()
        finally:
            gone.cancel()


def _log_refused(caller: Caller, refusal: Refusal, why: str, times: int) -> None:
    _log.warning("api: %s: %s: %s%s", caller, refusal, why, f" ({times} times)" if times > 1 else "")


def _check_process(what: str, caller: Caller) -> None:
    """Whether the process that connected is still there, and its user's own.  Raises RequestError."""
    if caller.pid <= 0:
        why = "this process is in a process namespace that the daemon does not see"
        raise RequestError(what, why, "run it outside of the container", ErrorCode.DENIED)
    if caller.process is None or caller.process.ended:
        raise RequestError(what, "the process that connected has ended", "connect again", ErrorCode.DENIED)
    if not caller.process.belongs_to(caller.uid):
        why = f"process {caller.pid} has other user ids than {caller.uid}"
        raise RequestError(what, why, "connect as the user that the command is run as", ErrorCode.DENIED)


def _summary(reply: schema.WatchReply) -> object:
    """Equal when nothing has changed but the time."""
    connections = [
        (each.id, each.state, each.reason, each.lost_for is None, each.lasted, each.peer, each.name)
        for each in reply.connections
    ]
    return connections, [(each.fingerprint, each.known) for each in reply.questions], reply.identity, reply.process


def admin_group() -> int | None:
    """Id of the group whose members may do everything; None if this machine has no such group."""
    try:
        return grp.getgrnam(ADMIN_GROUP).gr_gid
    except KeyError:
        return None


def has_joined(uid: int) -> bool:
    """Whether the group's list of members names a user."""
    try:
        return pwd.getpwuid(uid).pw_name in grp.getgrnam(ADMIN_GROUP).gr_mem
    except KeyError:
        return False


def how_to_join(uid: int) -> str:
    """What somebody without rights can do about it."""
    try:
        user = pwd.getpwuid(uid).pw_name
    except KeyError:
        user = str(uid)
    return f"ask as root, or join the group {ADMIN_GROUP}: `sudo usermod -aG {ADMIN_GROUP} {user}`"


def _write_events(writer: asyncio.StreamWriter, events: list[schema.Event]) -> None:
    if events:
        writer.write(b"".join(schema.encode(schema.EventReply(event)) for event in events))


def _caller(sock: socket.socket) -> Caller | None:
    """Who connected; None if the connection is gone already."""
    try:
        pid, uid, gid = struct.unpack("iII", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    except OSError:
        return None
    try:
        packed = sock.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, _GROUPS_SIZE)
    except OSError:  # more than 256 groups, or a kernel that does not say: the primary group has to do
        packed = b""
    groups = frozenset({gid, *struct.unpack(f"{len(packed) // 4}I", packed)})
    return Caller(pid, uid, groups, of_peer(sock, pid) if pid > 0 else None)


def _listen(path: Path, group: int | None) -> tuple[socket.socket, int]:
    """A bound socket that everybody may connect to, and its inode.  One that nobody listens on is replaced."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        _remove_stale(path)
        sock.bind(str(path))
        if group is not None and os.geteuid() == 0:
            os.chown(path, -1, group)
        path.chmod(0o666)
        inode = path.stat().st_ino
    except BaseException as error:
        sock.close()
        if isinstance(error, OSError):
            raise ApiError(f"{path}: {error.strerror or error}; name another with --socket") from error
        raise
    return sock, inode


def _remove_stale(path: Path) -> None:
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise ApiError(f"{path}: exists and is no socket; remove it or name another with --socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
        else:
            raise ApiError(f"{path}: another redirectd listens there; stop it or name another with --socket")

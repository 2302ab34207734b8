"""What the daemon answers to its clients.  Rights have been checked by the API server; arguments are checked here."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from ipaddress import ip_address
from pathlib import Path

import msgspec
from msgspec import UNSET

from redirectctl import __version__
from redirectctl.api import schema
from redirectctl.api.schema import RequestError
from redirectctl.daemon import records, watching
from redirectctl.daemon.apiserver import Caller
from redirectctl.daemon.runtime import Runtime
from redirectctl.flows.connection import Connection
from redirectctl.flows.state import State
from redirectctl.kernel.errors import KernelError
from redirectctl.kernel.processes import procfs
from redirectctl.kernel.sockets.bytecode import SocketFilter
from redirectctl.kernel.sockets.diag import SocketInfo
from redirectctl.names import lookup
from redirectctl.proto import pairing
from redirectctl.proto.constants import KEY_LEN
from redirectctl.proto.errors import MisuseError
from redirectctl.proto.fingerprint import fingerprint, is_like_fingerprint, matches, picture
from redirectctl.proto.peer import PeerState as TrustState
from redirectctl.store.records import PeerRecord, PeerState
from redirectctl.wire.addr import FourTuple, IPAddress, SockAddr

AT_ONCE = 250  # connections listed between two looks at what else there is to do
MOST_CALLED = 8  # addresses of one host
EXPECTED = 60.0  # seconds in which a host that a person has named may be met
LONGEST_NAME = 64  # characters, of a peer
MOST_LISTED = 4  # fingerprints in one message
WAITING = (PeerState.PENDING, PeerState.CHANGED)
LONGEST_TARGET = 128  # characters; two IPv6 addresses with ports take 95


# All checks, or those about a peer (its public key) or another host (its address or name): doctor/examine.py.
Examine = Callable[[Runtime, bytes | str | None], Awaitable[list[schema.Check]]]


class DaemonService:
    """The Service of apiserver.py."""

    def __init__(self, runtime: Runtime, examine: Examine, config: Path | None = None) -> None:
        """config: the file that was named when the daemon was started."""
        self._r = runtime
        self._examine = examine
        self._config = config

    async def status(self, request: schema.StatusRequest, caller: Caller) -> schema.StatusReply:
        """The daemon in a few numbers."""
        r = self._r
        counts: dict[schema.ConnectionState, int] = {}
        for connection in r.engine.table:
            state = schema.ConnectionState(connection.state.value)
            counts[state] = counts.get(state, 0) + 1
        status = schema.Status(
            version=__version__,
            uptime=round(r.uptime, 3),
            identity=fingerprint(r.engine.endpoint.static.public),
            addresses=[str(a) for a in r.network.addresses()],
            control_port=r.port.port,
            connections=counts,
            peers=len(r.peers.records),
            pid=r.pid,
            long_lived_after=r.config.protect.long_lived_after,
            networks=[schema.Network(address=str(a), prefix=n, interface=i) for a, n, i in r.network.places()],
            waiting=[p.fingerprint for p in r.peers.records.values() if p.state in WAITING],
            config=str(self._config.absolute()) if self._config is not None else UNSET,
            desktop_notices=r.config.desktop.notices,
        )
        return schema.StatusReply(status=status)

    async def connections(self, request: schema.ConnectionsRequest, caller: Caller) -> schema.ConnectionsReply:
        """All connections."""
        table = self._r.engine.table
        counters = self._counters(table) if request.counters else {}
        listed = []
        for number, c in enumerate(tuple(table), 1):
            listed.append(self._listed_connection(c, counters.get(c.socket)))
            if number % AT_ONCE == 0:
                await asyncio.sleep(0)  # 5,000 take 40 ms: a move must not wait for them
        return schema.ConnectionsReply(connections=listed)

    async def connection(self, request: schema.ConnectionRequest, caller: Caller) -> schema.ConnectionReply:
        """One connection, with counters and history."""
        table = self._r.engine.table
        named = next((c for c in table if c.cid.hex() == request.connection), None)
        c = named or self._connection("connection", request.connection)
        listed = self._listed_connection(c, self._counters([c]).get(c.socket))
        history = records.listed_history(c, self._r.offset)
        return schema.ConnectionReply(connection=msgspec.structs.replace(listed, history=history))

    async def peers(self, request: schema.PeersRequest, caller: Caller) -> schema.PeersReply:
        """All peers."""
        movable = Counter(c.peer for c in self._r.engine.table if c.movable)
        self._read_commands()
        known = list(self._r.peers.records.values())
        return schema.PeersReply(peers=[self._listed(p, caller, movable[p.public]) for p in known])

    async def peer(self, request: schema.PeerRequest, caller: Caller) -> schema.PeerReply:
        """One peer, with the picture of its key."""
        peer = self._peer("peer", request.peer, caller)
        return schema.PeerReply(peer=self._listed(peer, caller), picture=picture(peer.public, "redirectctl"))

    async def identity(self, request: schema.IdentityRequest, caller: Caller) -> schema.IdentityReply:
        """Own fingerprint."""
        public = self._r.engine.endpoint.static.public
        return schema.IdentityReply(
            fingerprint=fingerprint(public), picture=picture(public, "redirectctl"), public=public
        )

    async def prove(self, request: schema.ProveRequest, caller: Caller) -> schema.ProofsReply:
        """What the two hosts of a pairing show each other."""
        self._check_key("prove", request.key)
        static = self._r.engine.endpoint.static
        try:
            both = pairing.proofs(static, request.key, request.nonce_asks, request.nonce_answers, asks=request.asks)
        except MisuseError as error:
            raise RequestError("prove", str(error), "", schema.ErrorCode.USAGE) from None
        return schema.ProofsReply(asks=both.asks, answers=both.answers)

    async def meet(self, request: schema.MeetRequest, caller: Caller) -> schema.MeetReply:
        """Call a host whose key a person has named: up to 10 s."""
        self._check_key("meet", request.key)
        if len(request.addresses) > MOST_CALLED or not 0 < request.port < 65536:
            why = f"at most {MOST_CALLED} addresses, and a port from 1 to 65535"
            raise RequestError("meet", why, "", schema.ErrorCode.USAGE)
        try:
            places = [SockAddr(ip_address(each), request.port) for each in request.addresses]
        except ValueError as error:
            raise RequestError("meet", str(error), "name addresses", schema.ErrorCode.USAGE) from None
        engine = self._r.engine
        engine.expect(self._r.now, request.key, EXPECTED)
        self._r.wake()
        meetings = await asyncio.gather(*(self._meet(request.key, to) for to in places))
        self._r.wake()
        return schema.MeetReply(fingerprint=fingerprint(request.key), meetings=list(meetings))

    async def approve(self, request: schema.ApproveRequest, caller: Caller) -> schema.PeerReply:
        """Trust a peer's key."""
        peer = self._peer("approve", request.peer, caller)
        if peer.state is PeerState.CHANGED:
            raise RequestError(
                f"approve {peer.fingerprint}",
                "this key answered where another host's key is known",
                "compare it with `redirectctl identity` there; if it is right, `redirectctl forget PEER` with the old"
                " one, and connect again",
            )
        if request.name is not None:
            self._check_name(f"approve {request.peer}", request.name, peer)
            self._r.peers.rename(peer.public, request.name)
        self._r.engine.approve(self._r.now, peer.public)
        return self._decided(peer.public, caller)

    async def reject(self, request: schema.RejectRequest, caller: Caller) -> schema.PeerReply:
        """Never trust a peer's key."""
        peer = self._peer("reject", request.peer, caller)
        self._r.engine.reject(self._r.now, peer.public)
        return self._decided(peer.public, caller)

    async def forget(self, request: schema.ForgetRequest, caller: Caller) -> schema.PeerReply:
        """Know nothing of a peer."""
        peer = self._peer("forget", request.peer, caller)
        listed = self._listed(peer, caller)
        self._r.engine.forget(self._r.now, peer.public)
        self._r.wake()
        return schema.PeerReply(peer=listed)

    async def rename(self, request: schema.RenameRequest, caller: Caller) -> schema.PeerReply:
        """Call a peer something else."""
        peer = self._peer("rename", request.peer, caller)
        if request.name is not None:
            self._check_name(f"rename {request.peer}", request.name, peer)
        self._r.peers.rename(peer.public, request.name)
        return self._decided(peer.public, caller)

    async def protect(self, request: schema.ProtectRequest, caller: Caller) -> schema.ConnectionsReply:
        """Opt a running process or one connection in."""
        if len(request.target) > LONGEST_TARGET:
            why = f"{len(request.target)} characters are neither a process number nor LOCAL-REMOTE"
            raise RequestError("protect", why, "as in 192.0.2.1:40000-198.51.100.2:22", schema.ErrorCode.USAGE)
        r, what = self._r, f"protect {request.target}"
        try:
            if request.target.isascii() and request.target.isdigit():
                found = await self._sockets_of(int(request.target))
                await r.finder.opt_in(int(request.target))
            else:
                found = [s for s in [r.finder.diag.get(_connection(what, request.target))] if s is not None]
                if not found:
                    raise RequestError(what, "no such connection", "see `ss -tn` for LOCAL-REMOTE, or name a process")
        except KernelError as error:
            raise RequestError(what, f"{error.what}: {error.why}", error.hint) from error
        taken = await r.finder.opt_in_sockets(found)
        if found and not taken:
            why = "both ends of the connection are on this host, or it uses link-local addresses"
            raise RequestError(what, why, "only connections to other hosts can move")
        listed = [c for s in taken if (c := r.engine.table.at(s)) is not None]
        r.engine.retry(r.now, {c.socket.remote.host for c in listed})
        r.wake()
        return schema.ConnectionsReply(connections=[self._listed_connection(c) for c in listed])

    async def release(self, request: schema.ReleaseRequest, caller: Caller) -> schema.ConnectionReply:
        """Stop protecting a connection."""
        connection = self._connection("release", request.connection)
        self._r.engine.release(self._r.now, connection.cid)
        self._r.wake()
        return schema.ConnectionReply(connection=self._listed_connection(connection))

    async def kill(self, request: schema.KillRequest, caller: Caller) -> schema.ConnectionReply:
        """Close a connection on both hosts."""
        connection = self._connection("kill", request.connection)
        self._r.engine.kill(self._r.now, connection.cid)
        self._r.wake()
        return schema.ConnectionReply(connection=self._listed_connection(connection))

    async def announce(self, request: schema.AnnounceRequest, caller: Caller) -> schema.AnnounceReply:
        """Say our addresses to all peers."""
        peers = self._r.engine.announce(self._r.now)
        self._r.wake()
        return schema.AnnounceReply(peers=peers)

    async def retry(self, request: schema.RetryRequest, caller: Caller) -> schema.RetryReply:
        """Ask hosts that did not answer again."""
        hosts = None if request.host is None else await self._addresses(f"retry {request.host}", request.host, caller)
        asked = self._r.engine.retry(self._r.now, hosts)
        self._r.wake()
        if hosts is not None and not asked:
            why = f"no connection waits for an answer from {', '.join(sorted(map(str, hosts)))}"
            raise RequestError(f"retry {request.host}", why, "see `redirectctl connections`")
        return schema.RetryReply(hosts=sorted(map(str, asked)))

    async def opt_in(self, request: schema.OptInRequest, caller: Caller) -> schema.OptedIn:
        """Opt the calling process in: the kernel says which it is."""
        what = "opt in"
        if procfs.in_our_network(caller.pid) is False:
            raise RequestError(what, "the caller is in another network namespace", "run redirectd there as well")
        try:
            await self._r.finder.opt_in(caller.pid, caller.process)
        except KernelError as error:
            raise RequestError(what, f"{error.what}: {error.why}", error.hint) from error
        return schema.OptedIn(asks=self._r.config.trust.first_contact == "ask")

    async def begin_watch(self, request: schema.WatchRequest, caller: Caller) -> None:
        """Somebody begins to watch."""
        if request.process > 0:
            await self._r.finder.take_over(request.process, caller.uid)

    def watched(self, request: schema.WatchRequest, caller: Caller, may_decide: bool) -> schema.WatchReply:
        """What there is to tell about the caller's command."""
        return watching.watched(self._r, caller.pid, caller.uid, may_decide, request.process)

    async def doctor(self, request: schema.DoctorRequest, caller: Caller) -> schema.DoctorReply:
        """Check what can be checked from inside the daemon."""
        host = self._examined(request.peer, caller) if request.peer is not None else None
        return schema.DoctorReply(checks=await self._examine(self._r, host))

    async def _meet(self, key: bytes, to: SockAddr) -> schema.Meeting:
        """At one address, unless another host is known there: as with ssh, that is for a person to settle."""
        engine, address = self._r.engine, str(to.host)
        for peer in engine.peers.values():
            if peer.key != key and to.host in peer.identity and peer.state is TrustState.APPROVED:
                return schema.Meeting(address=address, reason="key-changed", known=fingerprint(peer.key))
        reason = await self._r.contacts.within(to, key)
        if reason is None and not engine.answered_at(self._r.now, key, to.host):
            reason = "no-answer"  # it has called us meanwhile, which says nothing about this address
        return schema.Meeting(address=address, reason=reason)

    def _check_key(self, what: str, key: bytes) -> None:
        if len(key) != KEY_LEN:
            raise RequestError(what, f"a key has {KEY_LEN} bytes", "", schema.ErrorCode.USAGE)
        if key == self._r.engine.endpoint.static.public:
            raise RequestError(what, "it is this host's own key", "name another host")

    # -- arguments ----------------------------------------------------------------------------------------------------

    def _peer(self, verb: str, text: str, caller: Caller | None = None) -> PeerRecord:
        """By fingerprint, unique prefix of it, name, or an address at which we called it and its key answered.

        Who calls us may have chosen the address that we saw, so that does not say whose key is meant; nor does what a
        peer calls itself.
        """
        peers = list(self._r.peers.records.values())
        what = f"{verb} {text}"
        if found := self._named(text, caller, trusting=verb == "approve") or [
            p for p in peers if _is_at(p, text, called=True)
        ]:
            if len(found) == 1:
                if verb == "approve" and self._is_others_word(text, found[0], caller):
                    why = f"another user's command calls this host so: {_listed_keys(found)}"
                    raise RequestError(what, why, "compare with `redirectctl identity` there, and name its fingerprint")
                return found[0]
            raise RequestError(what, f"{len(found)} peers match: {_listed_keys(found)}", "name one by its fingerprint")
        if seen := [p for p in peers if _is_at(p, text)]:
            if len(seen) == 1 and seen[0].state is PeerState.APPROVED and verb != "approve":
                return seen[0]  # nothing is trusted by that
            why = f"peers have only called from this address, none has answered there: {_listed_keys(seen)}"
            raise RequestError(what, why, "compare with `redirectctl identity` on that host, and name its fingerprint")
        if short := self._beginning_so(text):
            why = f"so few characters may begin the fingerprint of another host's key too: {_listed_keys(short)}"
            raise RequestError(what, why, "compare with `redirectctl identity` on that host, and name it whole")
        if is_like_fingerprint(text):
            why = f"does not match: no peer's fingerprint is this, nor begins so{_waiting(peers)}"
            raise RequestError(what, why, "compare it again with `redirectctl identity` on that host")
        raise RequestError(what, "no such peer", "see `redirectctl peers`")

    def _check_name(self, what: str, name: str, peer: PeerRecord) -> None:
        if not 0 < len(name) <= LONGEST_NAME or not name.isprintable():
            raise RequestError(what, f"a name has 1 to {LONGEST_NAME} printable characters", "choose another")
        if is_like_fingerprint(name) or _is_address(name):
            raise RequestError(what, "a key or an address is no name, as it may be another host's", "choose another")
        if any(other.name == name for other in self._r.peers.records.values() if other is not peer):
            raise RequestError(what, f"another peer is called {name}", "choose another name")

    def _named(self, text: str, caller: Caller | None, *, trusting: bool = False) -> list[PeerRecord]:
        """By fingerprint or name, what the caller's commands call it, or unique prefix of a fingerprint.

        Anybody can make a key whose fingerprint begins as a host is called: nothing is trusted by a short prefix that
        may be meant as a name.
        """
        peers = self._r.peers.records.values()
        found = [p for p in peers if text in (p.fingerprint, p.name)] or self._called(text, caller)
        return found or ([] if trusting and not is_like_fingerprint(text) else self._beginning_so(text))

    def _beginning_so(self, text: str) -> list[PeerRecord]:
        return [p for p in self._r.peers.records.values() if matches(p.fingerprint, text)]

    def _examined(self, text: str, caller: Caller) -> bytes | str:
        """Whom doctor has to examine: a peer as elsewhere, and any other host.

        Nothing is trusted by that.  Of those that were at one address it is the known key rather than a changed one,
        and the one that was heard last.
        """
        if found := self._named(text, caller):
            return found[0].public if len(found) == 1 else self._peer("doctor", text, caller).public
        peers = self._r.peers.records.values()
        at = [p for p in peers if _is_at(p, text, called=True)] or [p for p in peers if _is_at(p, text)]
        if not at:
            return text
        return max(at, key=lambda p: (p.state is not PeerState.CHANGED, p.last_contact or 0.0)).public

    async def _addresses(self, what: str, text: str, caller: Caller) -> set[IPAddress]:
        """Of a peer, by fingerprint, prefix of it or name; else of any host, by address or name."""
        if found := self._named(text, caller):
            return {a.address for peer in found for a in peer.addresses}
        try:
            return set(await lookup.addresses(text))
        except lookup.UnknownNameError as error:
            raise RequestError(what, str(error), error.hint) from error

    def _called(self, word: str, caller: Caller | None) -> list[PeerRecord]:
        """Peers that nobody has named, and that the caller's commands call so."""
        if caller is None:
            return []
        self._read_commands()
        found = [self._r.peers.records[key] for key in self._r.names.meaning(word, caller.uid)]
        return [p for p in found if p.name is None]

    def _is_others_word(self, text: str, peer: PeerRecord, caller: Caller | None) -> bool:
        """Whether root would approve a key only because a user's command calls its host so, which may be any host."""
        if caller is None or caller.uid != 0 or text in (peer.fingerprint, peer.name):
            return False
        if peer.public not in self._r.names.meaning(text, 0):
            return False
        himself = (0, procfs.login(caller.pid) or 0)
        return not any(peer.public in self._r.names.meaning(text, uid, own=True) for uid in himself)

    def _read_commands(self) -> None:
        """A peer that waits for a person has a name as soon as a command has one for it."""
        self._r.names.hear([c for c in self._r.engine.table if c.state is State.PENDING])

    def _connection(self, verb: str, text: str) -> Connection:
        """By id, unique prefix of it, or LOCAL-REMOTE."""
        what = f"{verb} {text}"
        alive = [c for c in self._r.engine.table if c.state is not State.CLOSED]
        found = [c for c in alive if str(c.socket) == text] or [
            c for c in alive if text and c.cid.hex().startswith(text)
        ]
        if len(found) == 1:
            return found[0]
        if found:
            raise RequestError(
                what, f"{len(found)} connections match", "give more of the id; see `redirectctl connections`"
            )
        raise RequestError(what, "no such connection", "see `redirectctl connections`")

    def _counters(self, connections: Iterable[Connection]) -> dict[FourTuple, schema.Counters]:
        alive = [c.socket for c in connections if c.state is not State.CLOSED]
        return {s: records.listed_counters(info) for s, info in self._r.finder.measured(alive).items()}

    async def _sockets_of(self, pid: int) -> list[SocketInfo]:
        if procfs.start_time(pid) is None:
            raise RequestError(f"protect {pid}", "no such process", "see `ps`")
        if procfs.in_our_network(pid) is False:
            raise RequestError(f"protect {pid}", "it is in another network namespace", "run redirectd there as well")
        everything = self._r.finder.diag.dump(SocketFilter())
        owned = await asyncio.to_thread(procfs.sockets_of, pid)
        return [s for s in everything if s.inode in owned]

    def _listed_connection(self, c: Connection, counters: schema.Counters | None = None) -> schema.Connection:
        relayed = self._r.engine.host.relayed(c)
        return records.listed_connection(c, self._r.now, self._r.port.port, counters, relayed=relayed)

    def _listed(self, peer: PeerRecord, caller: Caller, connections: int | None = None) -> schema.Peer:
        if connections is None:
            connections = len(self._r.engine.table.movable(peer.public))
        known = self._r.engine.peers.get(peer.public)
        observed = known.reflexive if known is not None else None
        called = self._r.names.called(peer.public, caller.uid)
        return records.listed_peer(peer, connections, observed, self._r.names.names(peer.public), called)

    def _decided(self, public: bytes, caller: Caller) -> schema.PeerReply:
        """The engine has changed the peer; the store follows before the answer goes out."""
        self._r.peers.save(public)
        self._r.wake()
        return schema.PeerReply(peer=self._listed(self._r.peers.records[public], caller))


def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


def _is_at(peer: PeerRecord, address: str, *, called: bool = False) -> bool:
    """Whether a peer was at an address; ``called``: we called it there, and its key answered."""
    return any(str(a.address) == address and (a.identity or not called) for a in peer.addresses)


def _waiting(peers: list[PeerRecord]) -> str:
    pending = [p for p in peers if p.state is PeerState.PENDING]
    return f"; waiting for approval: {_listed_keys(pending)}" if pending else ""


def _listed_keys(peers: list[PeerRecord]) -> str:
    more = f" and {len(peers) - MOST_LISTED} more" if len(peers) > MOST_LISTED else ""
    return ", ".join(_told_apart(p) for p in peers[:MOST_LISTED]) + more


def _told_apart(peer: PeerRecord) -> str:
    """Its key, and what it is called; in quotes what it calls itself."""
    label = peer.name or (f'"{peer.says}"' if peer.says else "")
    return f"{peer.fingerprint} ({label})" if label else peer.fingerprint


def _connection(what: str, text: str) -> FourTuple:
    local, separator, remote = text.partition("-")
    try:
        if not separator:
            raise ValueError(f"{text!r} is neither a process number nor LOCAL-REMOTE")
        return FourTuple(SockAddr.parse(local), SockAddr.parse(remote))
    except ValueError as error:
        raise RequestError(what, str(error), "as in 192.0.2.1:40000-198.51.100.2:22", schema.ErrorCode.USAGE) from None

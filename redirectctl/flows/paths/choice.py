"""How a moved connection's packets travel: through the tunnel, or plainly, with rewritten addresses.

The tunnel works wherever the daemons reach each other, so a move begins there.  Plain packets cost less, but a NAT, a
firewall that has not seen the connection begin, or a small MTU may stop them.  So each host proves its own direction,
while the tunnel carries the traffic:

    prover                                              the other host
      SEEN (nothing): only when tried again later ->    listens for tokens for a while, as after every move
      a full-size segment with a token, plainly   =>    has a connection with exactly this wire tuple?
                                                        no socket has it?  receives it from now on
                                                  <-    SEEN (token)
      sends it plainly from now on, and receives
      it so

A token stands for the numbers of the segment that had it, too: what changes sequence numbers on the way does not carry.

The tunnel is received at any time, so a change loses nothing.  Plain packets are received on the tuple that the
connection began on, and on others that were proven: where a peer says it is, behind the same NAT, somebody else's
connection may have the same ports.

A connection that makes no progress afterwards goes back to the tunnel.  If the peer's daemon answers at once, the plain
way is at fault, and left alone for a while.  If not, it was an outage, whose end says that it may be tried again.
Until then nobody reads the tunnel either, so that is no place to wait in.

One or two connections stand for all that take the same route, until it is seen to carry: whatever is in the way
treats them alike.  Then each proves its own tuple.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum

from redirectctl.flows import commands, constants, facts, timer_kinds
from redirectctl.flows.connection import Connection, Flow, Path, Route
from redirectctl.flows.devices import may_use
from redirectctl.flows.host import Host
from redirectctl.flows.kernel_state import KernelState
from redirectctl.flows.network import Network
from redirectctl.flows.paths.liveness import Liveness
from redirectctl.flows.paths.suspension import Suspension
from redirectctl.flows.proofs import Numbers, in_place
from redirectctl.flows.state import State
from redirectctl.proto import events
from redirectctl.proto.bucket import Buckets
from redirectctl.proto.shares import Shared
from redirectctl.wire import message as messages
from redirectctl.wire.addr import FourTuple, IPAddress

_TRIALS = "trials"  # why we listen for tokens: a peer may be proving its direction


class TunnelReason(Enum):
    """Why the tunnel carries a connection's packets, not the network as they are."""

    INTEGRITY = "integrity"
    PREFERRED = "preferred"  # by the configuration
    NO_PATH = "no-path"
    RELAYED = "relayed"  # by a rendezvous: the hosts do not reach each other
    OTHER_FAMILY = "other-family"
    NAT = "nat"  # addresses or ports are changed on the way
    BEING_TRIED = "being-tried"
    NOT_SEEN = "not-seen"  # no plain segment of ours has arrived
    STALLED = "stalled"  # they arrived at first, and then did not


@dataclass(slots=True)
class Trial:
    """A route that is being tried, or that has failed."""

    tries: int = -1  # -1: the peer has to be told first
    failures: int = 0  # times that no token was seen, or that it was proven and carried nothing afterwards
    stalled: bool = False  # the latest of them: it carried nothing afterwards
    suspected: float | None = None  # when it was seen to carry nothing, as long as that may have been an outage
    began: float = float("-inf")  # when it was last tried
    proven: float | None = None  # when it was last seen to carry something
    active: float = float("-inf")  # when something last arrived on its connections
    carries: bool = False  # a token has been seen since it was last tried
    turn: deque[bytes] = field(default_factory=deque)  # connections that are still to send a token before others again
    tokens: dict[bytes, bytes] = field(default_factory=dict)  # the latest, and the connections that they prove


class Choice:
    """Chooses between plain packets and the tunnel, for what this host sends."""

    def __init__(self, host: Host, kernel: KernelState, liveness: Liveness, suspension: Suspension) -> None:
        self._host = host
        self._kernel = kernel
        self._liveness = liveness
        self._suspension = suspension
        self._trials: Shared[bytes, Route, Trial] = Shared()  # of each peer
        self._unread: dict[bytes, float] = {}  # peers that read no tunnel, and since when they get plain packets
        self._looked = Buckets(constants.MAX_HEARD)  # tokens that have come on connections of each peer
        self._came: dict[bytes, bytes] = {}  # connections to be opened, and the tokens that have come on them
        self._opening = False  # the kernel is being asked for others
        self._open_next = float("-inf")
        self._taken: dict[bytes, float] = {}  # connections whose tuple the kernel refused, and when

    def forget(self, key: bytes) -> None:
        """Forget a peer."""
        self._looked.forget(key)
        for route in self._trials.keys(key):
            self._drop(route)
        self._unread.pop(key, None)

    # -- what may be --------------------------------------------------------------------------------------------------

    def tunnels(self, connection: Connection) -> bool:
        """Whether the connection can go through the tunnel, and goes there when it moves."""
        return self._host.policy.prefer != "rewritten" and connection.sending is not None

    def plain_wire(self, connection: Connection, local: IPAddress | None, remote: IPAddress | None) -> FourTuple:
        """The wire tuple that plain packets would have between two addresses; the socket tuple if none can."""
        (_, lport), (_, rport) = socket = connection.socket
        here, there = local or connection.wire.local.host, remote or connection.wire.remote.host
        if connection.natted or here.version != socket.version or there.version != socket.version:
            return socket
        return FourTuple(type(socket.local)(here, lport), type(socket.remote)(there, rport))

    def _may_be_plain(self, connection: Connection) -> bool:
        if not connection.tunnel or not connection.movable or connection.integrity or connection.peer is None:
            return False
        return (
            self._host.policy.prefer == "auto"
            # Where the peer sees us, and where we see it, is where plain packets would come from: nobody translates.
            and connection.outer_local == connection.wire.local.host
            and connection.outer_remote is not None
            and connection.outer_remote.host == connection.wire.remote.host
            and not self._host.relayed(connection)
            and connection.wire.local.host in self._host.network.usable
        )

    def why_tunnel(self, connection: Connection) -> TunnelReason | None:
        """Why the tunnel carries what a connection sends; None if it does not."""
        if not connection.tunnel:
            return None
        if connection.integrity:
            return TunnelReason.INTEGRITY
        if self._host.policy.prefer != "auto":
            return TunnelReason.PREFERRED
        local, remote = connection.outer_local, connection.outer_remote
        if local is None or remote is None or local not in self._host.network.usable:
            return TunnelReason.NO_PATH
        if self._host.relayed(connection):
            return TunnelReason.RELAYED
        if remote.host.version != connection.socket.version:
            return TunnelReason.OTHER_FAMILY
        if not self._may_be_plain(connection):
            return TunnelReason.NAT
        trial = self._trials.get(self._route(connection))
        if trial is None or trial.tries >= 0:
            return TunnelReason.BEING_TRIED
        return TunnelReason.STALLED if trial.stalled else TunnelReason.NOT_SEEN

    def _route(self, connection: Connection) -> Route:
        return Route(connection.peer or b"", connection.wire.local.host, connection.wire.remote.host)

    def unread_from_now(self) -> list[tuple[Flow, Flow]]:
        """Flows as they are, and as they have to be when this daemon ends: nobody reads the tunnel then.

        Connections whose wire tuple is proven send plainly, and suspended ones that are let out send by themselves. The
        store does not change: the next start takes over what is stored.
        """
        connections = [c for c in self._host.table if c.guarded and not c.blocked and self._is_safe_plainly(c)]
        flows = [(c.installed, c.installed._replace(tunnel=False)) for c in connections if c.installed is not None]
        suspended = [c.installed for c in self._host.table if c.blocked and self._liveness.since(c) is not None]
        return flows + [(flow, flow._replace(suspended=False)) for flow in suspended if flow is not None]

    def _is_safe_plainly(self, connection: Connection) -> bool:
        """Whether it may be sent plainly although nothing proves this direction and no daemon is there.

        Whoever gets such a packet by mistake may answer with an RST. The kernel drops the RSTs of moved connections
        only (MARK_HOLD). The token on its tuple has proven that the peer sends there.
        """
        return connection.wire != connection.socket and connection.proven and self._may_be_plain(connection)

    # -- proving ------------------------------------------------------------------------------------------------------

    def path_found(
        self, now: float, connections: Iterable[Connection], elsewhere: Container[bytes] = frozenset()
    ) -> None:
        """These have a path again, some from or to another address: try the plain way for what is in the tunnel."""
        connections = list(connections)
        self.protected(now, [c for c in connections if c.integrity and not c.tunnel])  # killed before they were in it
        if any(c.tunnel and not c.integrity for c in connections):
            self._listen(now)
        stayed = {self._route(c) for c in connections if c.cid not in elsewhere}
        routes = {self._route(c) for c in connections if self._may_be_plain(c)}
        if routes:
            for old in [r for r in self._trials if r.local not in self._host.network.usable]:
                self._drop(old)
        for route in routes:
            trial = self._trials.get(route)
            if trial is not None and trial.suspected is not None:
                if route in stayed and now - trial.suspected < constants.STALL_ANSWER:
                    self._pause(now, route, trial, stalled=True)
                else:
                    trial.stalled = False
                trial.suspected = None
            if trial is not None and trial.stalled and self._host.timers.armed(timer_kinds.TryPlain(route)):
                continue  # each time that it is taken, and does not carry, costs its connections a moment
            trial = trial or self._begin(route)
            if trial is None:
                continue
            trial.tries, trial.stalled, trial.carries = 0, False, False
            trial.began = trial.active = now
            self.attempt(now, route)

    def heard(self, now: float, connections: Iterable[Connection]) -> None:
        """Something has arrived on these: after a silence much may have changed, so try their routes again."""
        if not self._trials:
            return
        for route in {self._route(c) for c in connections if self._may_be_plain(c)}:
            if (trial := self._trials.get(route)) is not None:
                silent = now - trial.active >= constants.PLAIN_AGAIN
                trial.active = now
                if silent:
                    self._again(now, route, trial)

    def questioned(self) -> set[bytes]:
        """Peers whose routes are left to the tunnel until traffic, after a silence, has them tried again."""
        return {r.peer for r, t in self._trials.items() if t.tries < 0 and not t.stalled and self._paused(r)}

    def network_changed(self, now: float, before: Network) -> None:
        """Addresses or routes may have changed: try the routes again that are concerned."""
        network = self._host.network
        for route, trial in list(self._trials.items()):
            sources = network.sources.get(route.remote)
            if network.usable != before.usable or sources != before.sources.get(route.remote):
                self._again(now, route, trial)

    def _again(self, now: float, route: Route, trial: Trial) -> None:
        """Try a route before its time, if it has only never been seen to carry anything."""
        paused = trial.tries < 0 and self._paused(route)
        if paused and not trial.stalled and now - trial.began >= constants.PLAIN_AGAIN:
            self.attempt(now, route)

    def _paused(self, route: Route) -> bool:
        return self._host.timers.armed(timer_kinds.TryPlain(route))

    def _listen(self, now: float) -> None:
        self._host.listen.add(_TRIALS)
        self._host.timers.set(timer_kinds.StopListening(), now + constants.LISTEN_TIME)

    def stop_listening(self) -> None:
        """Stop looking for tokens: no peer has had anything to prove for LISTEN_TIME."""
        self._host.listen.discard(_TRIALS)

    def attempt(self, now: float, route: Route) -> None:
        """Have some connections of a route send tokens plainly."""
        trial = self._trials.get(route)
        if trial is None:
            return
        together = constants.PLAIN_TOGETHER if trial.carries else constants.PLAIN_FIRST
        chosen = self._next(now, route, trial, together if trial.tries >= 0 else 1)
        if not chosen:  # or no path, which comes with news
            if any(self._takes(route, c) for c in self._host.table.select(self._taken)):
                self._pause(now, route, trial)
            elif trial.tries < 0 or not (trial.carries and trial.failures):  # that it has failed may count once more
                self._drop(route)
            return
        if trial.tries < 0:
            self._host.send(now, route.peer, messages.Seen(()))
            trial.tries, trial.began, trial.carries = 0, now, False
            self._host.timers.set(timer_kinds.TryPlain(route), now + constants.PLAIN_RETRIES[0])
            return
        proofs = []
        for member in chosen:
            proofs.append(commands.Proof(member.socket, self._host.rng(8), member.wire))
            trial.tokens[proofs[-1].token] = member.cid
        while len(trial.tokens) > constants.TOKENS_KEPT:
            del trial.tokens[next(iter(trial.tokens))]
        self._host.emit(commands.Prove(tuple(proofs)))
        trial.tries += 1
        if trial.tries <= len(constants.PLAIN_RETRIES):
            self._host.timers.set(timer_kinds.TryPlain(route), now + constants.PLAIN_RETRIES[trial.tries - 1])
        else:
            self._pause(now, route, trial)

    def _next(self, now: float, route: Route, trial: Trial, count: int) -> list[Connection]:
        """So many of its connections, of which each has its turn before any has a second.

        A socket answers a provocation once in half a second: others stand in for it, where there are some.
        """
        chosen: dict[bytes, Connection] = {}
        for again in (False, True):
            if again and len(chosen) < count:
                trial.turn.extend(c.cid for c in self._host.table.of(route.peer) if self._takes(route, c))
            while trial.turn and len(chosen) < count:
                c = self._host.table.get(trial.turn.popleft())
                if c is None or c.state is not State.PROTECTED or self._was_refused(now, c):
                    continue
                if self._takes(route, c):
                    chosen[c.cid] = c
        return list(chosen.values())

    def _takes(self, route: Route, connection: Connection) -> bool:
        """Whether this connection's packets take the route once it is proven."""
        return self._may_be_plain(connection) and self._route(connection) == route

    def _pause(self, now: float, route: Route, trial: Trial, *, stalled: bool = False) -> None:
        """A route has failed: leave it alone, longer each time."""
        trial.stalled = stalled
        self._wait(now, route, trial)
        trial.failures += 1

    def _begin(self, route: Route) -> Trial | None:
        """Note a route that is tried or has failed.  None: its peer has too many."""
        trial = Trial()
        gone = self._trials.put(constants.MAX_TRIALS, route.peer, route, trial)
        if gone is None:
            return trial
        self._host.timers.cancel(timer_kinds.TryPlain(gone[0]))
        return trial if gone[1] is not trial else None

    def _suspect(self, now: float, route: Route) -> None:
        """A route carries nothing.  The peer's answer to our announcement tells whether that is the route's fault."""
        trial = self._trials.get(route) or self._begin(route)
        if trial is None:
            return
        if trial.proven is not None and now - trial.proven > constants.PLAIN_FORGIVEN:
            trial.failures = 0
        trial.stalled, trial.suspected = True, now
        self._wait(now, route, trial)

    def _wait(self, now: float, route: Route, trial: Trial) -> None:
        trial.tries = -1
        pause = constants.PLAIN_PAUSES[min(trial.failures, len(constants.PLAIN_PAUSES) - 1)]
        self._host.timers.set(timer_kinds.TryPlain(route), now + pause)

    def _drop(self, route: Route) -> None:
        self._trials.pop(route)
        self._host.timers.cancel(timer_kinds.TryPlain(route))

    def token(self, now: float, arrived: FourTuple, token: bytes, numbers: Numbers) -> None:
        """A token has arrived plainly: tell the peer, and receive plain packets there from now on."""
        connection = self._host.table.on_wire(arrived)
        if connection is None or connection.peer is None:
            return
        # One of a connection is looked at at a time, so who forges them on one keeps none of the others from it.
        most = constants.MAX_TOKENS_LOOKED_UP
        if connection.cid not in self._came and not self._looked.take(now, connection.peer, most, most):
            return
        if not connection.integrity and not (connection.flow.closed and self._was_refused(now, connection)):
            self._came[connection.cid] = in_place(token, numbers)
            self.open(now)

    def open(self, now: float) -> None:
        """Receive plain packets on the tuples on which tokens have come: many in one transaction."""
        if self._opening or not self._came:
            return
        if now < self._open_next:
            self._host.timers.set(timer_kinds.OpenTuples(), self._open_next)
            return
        self._open_next = now + constants.OPEN_PAUSE
        came, self._came = self._came, {}
        connections = self._host.table.select(came)
        self._tell_seen(now, connections, came)
        closed = [c for c in connections if c.movable and c.flow.closed]
        self._open_these(closed, tuple((c.cid, came[c.cid]) for c in closed))

    def _tell_seen(self, now: float, connections: Iterable[Connection], came: Mapping[bytes, bytes]) -> None:
        """Tell the peers which tokens have arrived, many in one message."""
        seen: dict[bytes, list[bytes]] = defaultdict(list)
        for c in connections:
            if c.peer is not None and c.movable and not c.flow.closed:
                seen[c.peer].append(came[c.cid])
        for key, those in seen.items():
            for start in range(0, len(those), messages.MAX_TOKENS):
                self._host.send(now, key, messages.Seen(tuple(those[start : start + messages.MAX_TOKENS])))

    def _open_these(self, closed: list[Connection], tokens: tuple[tuple[bytes, bytes], ...]) -> None:
        if closed:
            self._opening = True
            proven = {c.cid for c in closed}
            self._kernel.reroute(
                commands.ReceivePlainly(tokens), [(c, c.wire, c.tunnel) for c in closed], proven=proven
            )

    def opened(self, now: float, tokens: tuple[tuple[bytes, bytes], ...], error: str | None) -> None:
        """The kernel now receives plain packets on these tuples; or another socket has one of them."""
        self._opening = False
        of_cid = dict(tokens)
        connections = self._host.table.select(of_cid)
        if error is None:
            self._tell_seen(now, connections, of_cid)
        elif len(tokens) > 1:  # one by one: the others are to be received
            for c in connections:
                self._open_these([c], ((c.cid, of_cid[c.cid]),))
        else:
            self._refused(now, connections)
        self.open(now)

    def received(self, now: float, event: events.Received) -> None:
        """Seen: our direction of a route is proven, or (nothing seen) the peer is about to prove its own."""
        tokens = event.message.tokens if isinstance(event.message, messages.Seen) else ()
        if not tokens and self._host.table.movable(event.key):
            self._listen(now)
        for route in self._trials.keys(event.key):
            trial = self._trials.get(route)
            if trial is None:
                continue
            cids = {cid for token in tokens if (cid := trial.tokens.pop(token, None)) is not None}
            if cids:
                trial.proven, trial.stalled, trial.suspected, trial.carries, trial.tries = now, False, None, True, 0
                self._host.timers.cancel(timer_kinds.TryPlain(route))
                proven = [c for c in self._host.table.select(cids) if self._takes(route, c)]
                self._change(proven, tunnel=False, proven=cids)
                self._host.timers.set(timer_kinds.TryPlain(route), now + constants.PLAIN_NEXT)

    def _change(self, connections: list[Connection], *, tunnel: bool, proven: Container[bytes] = ()) -> None:
        if connections:
            self._kernel.reroute(commands.ChangePath(tunnel), [(c, c.wire, tunnel) for c in connections], proven=proven)

    def rewritten(self, now: float, added: Iterable[Flow], error: str | None) -> None:
        """The kernel has changed how these travel; or it refused, and that was taken back."""
        flows = {flow.socket: flow for flow in added}
        connections = self._host.table.sockets(flows)
        if error is None:
            self.log_paths([c for c in connections if c.guarded and not c.strict])
            return
        refused = [c for c in connections if self._may_be_plain(c) and not flows[c.socket].tunnel]
        if len(refused) == 1:
            self._refused(now, refused)
        else:  # one by one: the others are to leave the tunnel
            for c in refused:
                self._change([c], tunnel=False, proven=(c.cid,))

    def _refused(self, now: float, connections: Iterable[Connection]) -> None:
        """Note that another socket of this host has the tuple of these."""
        self._taken = {cid: at for cid, at in self._taken.items() if now - at < constants.PLAIN_AGAIN}
        self._taken.update((c.cid, now) for c in connections)

    def _was_refused(self, now: float, connection: Connection) -> bool:
        return now - self._taken.get(connection.cid, float("-inf")) < constants.PLAIN_AGAIN

    def log_paths(self, connections: Iterable[Connection], reason: str | None = None) -> None:
        """Log how these connections travel now."""
        for connection in connections:
            local, remote = connection.on_wire(self._host.policy.control_port)
            reason = reason or ("relayed" if self._host.relayed(connection) else None)
            self._host.notice(
                "path.changed", connection, reason=reason, path=connection.path.value,
                wire_local=str(local), wire_remote=str(remote),
            )  # fmt: skip

    # -- without a move -----------------------------------------------------------------------------------------------

    def protected(self, now: float, connections: Iterable[Connection]) -> None:
        """These are protected now: those with integrity go into the tunnel."""
        changes = []
        for c in connections:
            peer = self._host.peers.get(c.peer) if c.peer is not None else None
            if c.integrity and peer is not None and peer.remote is not None:
                local = peer.local or c.socket.local.host
                local = local if may_use(self._host.policy, self._host.network, c, local) else c.socket.local.host
                c.outer_local, c.outer_remote = local, peer.remote
                c.confirmed = c.outer_local
                changes.append((c, c.wire, True))
        if changes:
            self._kernel.reroute(commands.ChangePath(tunnel=True), changes)
        for key in {c.peer for c, _, _ in changes if c.peer is not None}:
            self._host.timers.set(timer_kinds.RefusePlain(key), now + constants.INTEGRITY_GRACE)

    def leave(self, connections: Iterable[Connection]) -> None:
        """Take connections that have not moved out of the tunnel, where they are for integrity only."""
        tunnelled = [c for c in connections if c.integrity and c.tunnel and c.wire == c.socket]
        self._change(tunnelled, tunnel=False)
        for connection in tunnelled:
            connection.strict = False

    def be_strict(self, key: bytes) -> None:
        """What the peer sent before it went into the tunnel has arrived: accept nothing plain from now on."""
        remove, add = [], []
        for c in self._host.table.movable(key):
            if c.integrity and c.tunnel and not c.strict:
                remove.append(c.flow)
                c.strict = True
                add.append(c.flow)
        if add:
            self._host.emit(commands.Rewrite(commands.ChangePath(tunnel=True), tuple(add), tuple(remove)))

    def policy_changed(self, now: float) -> None:
        """The configuration has been read again: use what [path] prefer says."""
        moved = [c for c in self._host.table.movable() if c.outer_remote is not None and not c.integrity]
        if self._host.policy.prefer == "tunnel":
            self._change([c for c in moved if not c.tunnel], tunnel=True)
        else:
            for route in {self._route(c) for c in moved}:
                self._drop(route)
            self.path_found(now, [c for c in moved if c.tunnel])

    # -- when a way does not carry ------------------------------------------------------------------------------------

    def stalled(self, now: float, sockets: Iterable[FourTuple]) -> None:
        """These retransmit without an answer: send them through the tunnel if they have one, and report the stall."""
        peers: dict[bytes, list[Connection]] = defaultdict(list)
        back: list[Connection] = []
        unread: list[Connection] = []
        for socket in sockets:
            connection = self._host.table.at(socket)
            if connection is None or not connection.movable or connection.peer is None:
                continue
            plain = connection.path is Path.REWRITTEN or (not connection.tunnel and connection.outer_remote is not None)
            if plain and self.tunnels(connection):
                if now - self._unread.get(connection.peer, float("-inf")) > constants.UNREAD_TRY:
                    back.append(connection)
            elif self._nobody_reads(now, connection):
                unread.append(connection)
            peers[connection.peer].append(connection)
        for route in {self._route(c) for c in back}:
            self._suspect(now, route)
        self._change(back, tunnel=True)
        if unread:
            self._unread.update((c.peer, now) for c in unread if c.peer is not None)
            self._change(unread, tunnel=False)
            self._host.emit(commands.RevertBackoff(tuple(c.socket for c in unread)))
        for key, connections in peers.items():
            self._suspension.unanswered(now, connections)
            self._host.report(now, facts.Stalled(key, connections))

    def _nobody_reads(self, now: float, connection: Connection) -> bool:
        """Whether nobody seems to read the tunnel at the other end: plain packets need no daemon there.

        The answer to our announcement, when one comes, leads back.
        """
        if connection.peer is None or not self._is_safe_plainly(connection):
            return False
        since = self._suspension.silent_since(connection.peer)
        trial = self._trials.get(self._route(connection))
        if trial is not None and trial.stalled:
            tried = since is None or self._unread.get(connection.peer, float("-inf")) >= since
            if tried or trial.suspected is None:
                return False
        silent = since is not None and now - since > constants.UNREAD
        return silent or self._suspension.departed(connection.peer)

    def silent(self, connections: Iterable[Connection]) -> None:
        """The peer has not answered for long, so nobody reads the tunnel: send plainly again what was plain before.

        These are the connections that stalled in this outage. The peer's kernel needs no daemon for plain packets
        (liveness.py).
        """
        plain = [c for c in connections if c.proven and self._may_be_plain(c)]
        trials = {c.cid: self._trials.get(self._route(c)) for c in plain}
        undecided = [c for c in plain if (trial := trials[c.cid]) is not None and trial.suspected is not None]
        self._change(undecided, tunnel=False)

"""What becomes of connections when one end of them is at another address: the same for moves of both hosts."""

from __future__ import annotations

from redirectctl.flows import commands
from redirectctl.flows.connection import Connection
from redirectctl.flows.host import Host
from redirectctl.flows.kernel_state import Change, KernelState
from redirectctl.flows.paths.choice import Choice
from redirectctl.flows.paths.suspension import LOST_HERE, Suspension
from redirectctl.flows.state import State
from redirectctl.wire.addr import IPAddress, SockAddr


class Rerouting:
    """Moves connections to a pair that is proven, and lets their sockets send again."""

    def __init__(self, host: Host, kernel: KernelState, suspension: Suspension, choice: Choice) -> None:
        self._host = host
        self._kernel = kernel
        self._suspension = suspension
        self._choice = choice

    def changed(
        self,
        c: Connection,
        *,
        outer: tuple[IPAddress, SockAddr],
        stalled: bool,
        local: IPAddress | None = None,
        remote: IPAddress | None = None,
    ) -> Change:
        """How a connection travels when one end has another address, or was announced again.

        ``outer``: our address and the peer's control port, between which the announcement was proven.
        """
        wire = self._choice.plain_wire(c, local, remote)
        if not self._choice.tunnels(c):
            return c, wire, False
        if remote is not None and remote != outer[1].host:
            wire = c.socket  # behind a NAT: nothing plain comes from there
        stays = outer[0] == c.local_now and outer[1].host == c.remote_now
        if remote is not None and remote != outer[1].host:
            stays = stays and remote == c.peer_tuple.local.host  # the NAT knows the connection only as it began
        c.outer_local, c.outer_remote = outer
        return c, wire, c.tunnel or stalled or not stays

    def release(self, connections: list[Connection]) -> None:
        """Let the tunnel send what it holds for these."""
        held = [c for c in connections if c.tunnel_waits]
        for connection in held:
            connection.tunnel_waits = False
        self._kernel.carry(held)

    def path_found(self, now: float, connections: list[Connection], elsewhere: set[bytes]) -> None:
        """These have a path again, those in ``elsewhere`` from another address: log it, and choose how they travel."""
        for connection in connections:
            if connection.cid not in elsewhere and connection.state is not State.SUSPENDED:
                continue
            connection.moves += connection.cid in elsewhere or connection.reason in LOST_HERE
            if connection.state is State.SUSPENDED:
                self._suspension.path_found(now, connection)
            self._choice.log_paths([connection])
        if connections:
            self._host.emit(commands.SaveConnections(tuple(connections)))
            self._choice.path_found(now, connections, elsewhere)

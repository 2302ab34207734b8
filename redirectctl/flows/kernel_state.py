"""What the kernel and the tunnel are told of connections, and what becomes of that.

Each change is one transaction.  The engine goes on as if it were done; where the kernel refuses, what was changed is
as it was before, unless it has been changed again meanwhile: then that later change fails too.
"""

from __future__ import annotations

from collections.abc import Container, Iterable
from typing import Final

from redirectctl.flows import commands
from redirectctl.flows.commands import Carried, Purpose, Rewrite
from redirectctl.flows.connection import Connection, Flow
from redirectctl.flows.devices import confined_to
from redirectctl.flows.host import Host
from redirectctl.wire.addr import FourTuple

# Of tunnel datagrams: so many in one run of the daemon, or 90 TB, never repeat a counter.  A thousand runs within the
# life of a connection stay below COUNTER_JUMP.
COUNTER_BITS: Final = 36

Change = tuple[Connection, FourTuple, bool]  # with its new wire tuple, and whether it goes into the tunnel


class KernelState:
    """Keeps the kernel's flows and the tunnel's table as the connections need them."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self.tunnel_changes = 0  # how often the tunnel's table was changed

    def guard(self, connections: list[Connection], claim: int | None = None) -> None:
        """Have the kernel hold RSTs for these connections.  When it does, they are protected.

        ``claim``: whom to answer then.
        """
        if connections:
            for connection in connections:
                connection.device = connection.device or confined_to(self._host.network, connection.socket.local.host)
            self._host.emit(commands.SaveConnections(tuple(connections)))
            add = tuple(c.flow for c in connections if not c.guarded)
            for connection in connections:
                connection.guarded = True
            self._host.emit(Rewrite(commands.Guarding(tuple(c.cid for c in connections), claim), add=add))

    def unguard(self, connections: Iterable[Connection]) -> list[Connection]:
        """Have the kernel and the tunnel forget these.  Returns those that the kernel had."""
        gone = [c for c in connections if c.guarded]
        for connection in gone:
            connection.guarded, connection.installed = False, None
        if gone:
            self._host.emit(Rewrite(commands.Guarding(), remove=tuple(c.flow for c in gone)))
            self._host.emit(commands.Uncarry(tuple(c.socket for c in gone)))
            self.tunnel_changes += 1
        return gone

    def carry(self, connections: Iterable[Connection]) -> None:
        """Give the tunnel these connections as they are now."""
        carried = tuple(
            Carried(
                c.socket,
                c.sending,
                c.receiving,
                c.sending.start + (self._host.generation - c.agreed_in << COUNTER_BITS),
                c.integrity,
                c.outer_local,
                None if c.tunnel_waits else c.outer_remote,
                self._host.endpoint.port_number(c.peer, c.outer_remote) if c.outer_remote is not None else 0,
            )
            for c in connections
            if c.sending is not None and c.receiving is not None
        )
        if carried:
            self._host.emit(commands.Carry(carried))
            self.tunnel_changes += 1

    def reroute(
        self,
        purpose: Purpose,
        changes: list[Change],
        *,
        hold: Container[bytes] = (),
        lift: Container[bytes] = (),
        proven: Container[bytes] = (),
    ) -> None:
        """Change how connections travel: store it, tell the tunnel, then change the kernel in one transaction.

        ``hold``: those of which the kernel holds back what they send; ``lift``: those of which it no longer does.
        ``proven``: those whose wire tuple has been proven to lead to the peer.
        """
        remove: list[Flow] = []
        add: list[Flow] = []
        rewired = False
        for connection, wire, tunnel in changes:
            held = connection.cid in hold or (connection.blocked and connection.cid not in lift)
            before = connection.flow
            # Who has proven a tuple has proven nothing of the next one: a NAT gives many hosts one address.
            connection.proven = connection.cid in proven or (connection.proven and wire == connection.wire)
            rewired = rewired or wire != connection.wire
            connection.wire, connection.tunnel, connection.blocked = wire, tunnel, held
            if connection.flow != before:
                remove.append(before)
                add.append(connection.flow)
        connections = [connection for connection, _, _ in changes]
        if rewired:
            self._host.table.rewired()
        if add:
            self._host.emit(commands.SaveConnections(tuple(connections)))
        self.carry(connections)
        self._host.emit(Rewrite(purpose, tuple(add), tuple(remove)))

    def rewritten(self, rewrite: Rewrite, error: str | None) -> None:
        """A transaction is done; or it failed, and the connections go back to what the kernel has."""
        flows = {flow.socket: flow for flow in rewrite.add}
        concerned = [c for c in self._host.table.sockets(flows) if c.guarded]
        if error is None:
            for connection in concerned:
                connection.installed = flows[connection.socket]
            return
        # One that has been changed again meanwhile is left to that change, which must fail too.
        undone = [c for c in concerned if c.flow == flows[c.socket] and c.installed is not None]
        for connection in undone:
            if connection.installed is not None:
                connection.wire, connection.tunnel = connection.installed.wire, connection.installed.tunnel
                self._host.table.rewired()
                connection.blocked = connection.installed.suspended
                connection.proven = connection.tunnel and not connection.installed.closed
        self._host.emit(commands.SaveConnections(tuple(c for c in undone if c.movable)))
        self._host.notice("redirect.refused", reason="kernel", detail=error)

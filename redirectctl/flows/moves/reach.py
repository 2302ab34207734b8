"""Where connections may go: from which addresses of ours to which of the peer's."""

from __future__ import annotations

from collections.abc import Iterable

from redirectctl.flows.connection import Connection
from redirectctl.flows.devices import may_use
from redirectctl.flows.host import Host
from redirectctl.flows.paths.choice import Choice
from redirectctl.flows.rendezvous.places import Places
from redirectctl.wire.addr import IPAddress, SockAddr

Alike = tuple[object, ...]  # what connections have in common that can go the same ways


class Reach:
    """Finds the addresses of both hosts between which a connection may go."""

    def __init__(self, host: Host, places: Places, choice: Choice) -> None:
        self._host = host
        self._places = places
        self._choice = choice

    def remotes(self, connection: Connection) -> tuple[IPAddress, ...]:
        """Addresses of the peer: the present one first, then, for the tunnel, the others that are known."""
        remotes = [connection.remote_now]
        peer = self._host.peers.get(connection.peer) if connection.peer is not None else None
        if peer is not None and self._choice.tunnels(connection):
            remotes += [connection.wire.remote.host, connection.socket.remote.host, *peer.addresses]
            remotes += [place.host for place in self._places.of(peer.key)]
        # Where it is is asked for in any case: that it is known tells that there is no way there.
        ours = self._host.network.is_ours
        return tuple(r for r in dict.fromkeys(remotes) if r == connection.remote_now or not ours(r))

    def sources(self, connection: Connection, known: dict[Alike, tuple[IPAddress, ...]]) -> tuple[IPAddress, ...]:
        """Our addresses that policy lets this connection use, of those with a route to the peer.

        ``known``: what has been found out in the same moment.  Of ten thousand connections most are alike.
        """
        alike = self.alike(connection)
        if (sources := known.get(alike)) is None:
            policy, net = self._host.policy, self._host.network
            mine = (a for a in self.routed(connection) if may_use(policy, net, connection, a))
            sources = known[alike] = tuple(dict.fromkeys(mine))
        return sources

    @staticmethod
    def alike(c: Connection) -> Alike:
        """A key that is equal for connections that can go the same ways."""
        # Addresses as numbers, with their kind: the hash of an address is dear (see FourTuple).
        ends = c.local_now, c.remote_now, c.wire.remote.host, c.socket.remote.host
        return (*map(int, ends), *map(type, ends), c.peer, c.device, c.sending is None)

    def routed(self, connection: Connection) -> Iterable[IPAddress]:
        """Our usable addresses with a route to where the peer is, or may be."""
        net = self._host.network
        remotes = (r for r in self.remotes(connection) if not net.is_ours(r))
        return (a for remote in remotes for a in net.sources.get(remote, ()) if a in net.usable)

    def targets(self, connection: Connection) -> Iterable[SockAddr]:
        """Control ports at which the peer may be."""
        if connection.outer_remote is not None:
            yield connection.outer_remote
        for remote in self.remotes(connection):
            # What a NAT gave it is good for where we were; what a NAT forwards to it is good for everybody.
            yield SockAddr(remote, self.port(connection.peer or b""))
            yield SockAddr(remote, self._host.policy.control_port)

    def port(self, key: bytes) -> int:
        """The peer's control port as far as is known, else that of the configuration."""
        peer = self._host.peers.get(key)
        if peer is None or peer.remote is None or self._host.by_way_of(key, peer.remote):
            return self._host.policy.control_port
        return peer.remote.port

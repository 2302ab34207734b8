"""What people, or the policy, decide about peers, and peers that are gone."""

from __future__ import annotations

from redirectctl.flows import commands, constants
from redirectctl.flows.agreement import Agreement
from redirectctl.flows.contact import Contact
from redirectctl.flows.host import Host
from redirectctl.flows.lifecycle import Lifecycle
from redirectctl.flows.moves.addresses import Addresses
from redirectctl.flows.moves.outgoing import OwnMoves
from redirectctl.flows.rendezvous.places import Places
from redirectctl.flows.state import State
from redirectctl.proto.fingerprint import fingerprint
from redirectctl.proto.peer import Accepted, Peer, PeerState
from redirectctl.wire.addr import IPAddress, SockAddr


class Trusting:
    """Sets peers' states, and does what follows for their connections."""

    def __init__(
        self,
        host: Host,
        agreement: Agreement,
        places: Places,
        addresses: Addresses,
        moves: OwnMoves,
        contact: Contact,
        lifecycle: Lifecycle,
    ) -> None:
        self._host = host
        self._agreement = agreement
        self._places = places
        self._addresses = addresses
        self._moves = moves
        self._contact = contact
        self._lifecycle = lifecycle

    def approve(self, now: float, key: bytes) -> None:
        """A person, or the policy, trusts this key: protect the connections that waited for that."""
        peer = self._host.peers.get(key)
        if peer is None:
            return
        if peer.accepted or peer.listed:  # not by a person: from now on it stays
            peer.accepted, peer.listed = Accepted.NO, False
            self._host.emit(commands.SavePeer(peer))
        if peer.state is not PeerState.APPROVED:
            self._approved(now, peer)

    def published(self, now: float, key: bytes, at: IPAddress) -> bool:
        """DNS vouches for the key as that of the host at this address, by signatures that the caller has validated.

        It counts where a person would be asked, and for the key that has answered there when we called.  Where another
        key is known, a person decides.  Returns whether the key is approved by that.
        """
        peer = self._host.peers.get(key)
        if peer is None or peer.state is not PeerState.PENDING or at not in peer.identity or self._replaces(peer):
            return False
        self._approved(now, peer, "dns-key")
        return True

    def accept_waiting(self, now: float) -> list[bytes]:
        """The policy is to accept every new host: do so with those that wait for a person.  Returns their keys.

        As with those that are met (Host._admit), not with another key where one is known.
        """
        listed = self._accept_listed(now)
        if self._host.policy.first_contact != "accept-new":
            return listed
        waiting = [p for p in self._host.peers.values() if p.state is PeerState.PENDING and not self._replaces(p)]
        for peer in waiting:
            peer.accepted = Accepted.NO if peer.identity else Accepted.UNUSED
            self._approved(now, peer, "accept-new")
        return listed + [peer.key for peer in waiting]

    def met(self, peer: Peer) -> str | None:
        """A peer has been met for the first time: why it is approved without a person, if it is."""
        if peer.state is not PeerState.APPROVED:
            return None
        if fingerprint(peer.key) not in self._host.policy.listed:
            return "accept-new"
        peer.accepted, peer.listed = Accepted.NO, True
        self._host.emit(commands.SavePeer(peer))
        return "known-peers"

    def _accept_listed(self, now: float) -> list[bytes]:
        """Approve those that wait and are listed, and forget those that are listed no more.  Returns the former."""
        listed = {p.key for p in self._host.peers.values() if fingerprint(p.key) in self._host.policy.listed}
        waiting = [p for p in self._host.peers.values() if p.state is PeerState.PENDING and p.key in listed]
        for peer in waiting:
            peer.accepted, peer.listed = Accepted.NO, True
            self._approved(now, peer, "known-peers")
        for peer in [p for p in self._host.peers.values() if p.listed and p.key not in listed]:
            self._host.notice("peer.rejected", peer=peer.key, reason="known-no-more")
            self.forget(now, peer.key)
        return [peer.key for peer in waiting]

    def _replaces(self, peer: Peer) -> bool:
        """Whether another key is known where this one is."""
        places = {*peer.identity, *([peer.seen_at] if peer.seen_at is not None else [])}
        return any(not places.isdisjoint(p.identity) for p in self._host.peers.values() if p is not peer)

    def _approved(self, now: float, peer: Peer, reason: str | None = None) -> None:
        peer.state = PeerState.APPROVED
        self._host.emit(commands.SavePeer(peer))
        self._host.notice("peer.approved", peer=peer.key, reason=reason)
        self._agreement.hello(now, peer)
        again = (State.PENDING, State.REFUSED, State.RELEASED)
        waiting = [c for c in self._host.table.of(peer.key) if c.state in again and c.reason != "released"]
        self._contact.negotiate(now, waiting)

    def reject(self, now: float, key: bytes) -> None:
        """A person rejects this key: stop protecting its connections, and never accept it again."""
        peer = self._host.peers.get(key)
        if peer is None:
            return
        peer.state, peer.accepted, peer.listed = PeerState.REJECTED, Accepted.NO, False  # it stays rejected
        self._host.emit(commands.SavePeer(peer))
        self._host.notice("peer.rejected", peer=key)
        self._agreement.hello(now, peer)
        self._lifecycle.leave(now, key, "peer-rejected")

    def forget(self, now: float, key: bytes) -> None:
        """A person forgets this peer: stop protecting its connections, and know nothing of it."""
        peer = self._host.peers.get(key)
        self._lifecycle.leave(now, key, "peer-forgotten", released=True)
        self._drop_peer(key)
        for other in list(self._host.peers.values()):  # nothing is known against it any more: it is met like any other
            if peer is not None and other.state is PeerState.CHANGED and other.identity & peer.identity:
                self._drop_peer(other.key)

    def had_to_go(self, now: float, key: bytes) -> None:
        """The endpoint has dropped this peer for want of room: stop protecting its connections."""
        for connection in self._host.table.of(key):
            if connection.movable or connection.state is State.NEGOTIATING:
                self._lifecycle.unprotect(now, connection, "peer-forgotten")
        self._dropped(key)

    def _dropped(self, key: bytes) -> None:
        """Have all parts forget a peer that is gone."""
        self._agreement.forget(key)
        self._places.forget(key)
        self._addresses.forget(key)
        self._moves.forget(key)

    def _drop_peer(self, key: bytes) -> None:
        self._dropped(key)
        self._host.endpoint.forget(key)
        self._host.emit(commands.DropPeer(key))

    # -- another key where one is known -------------------------------------------------------------------------------

    def another_key(self, now: float, at: SockAddr, known: bytes, seen: bytes) -> None:
        """Another key answers at an address where a peer was expected: find out whether that is a key change."""
        if self._same_host(known, seen):
            self._host.peers[known].identity.discard(at.host)  # whoever is met there next is the other one
            self._host.emit(commands.SavePeer(self._host.peers[known]))
            return
        if not self._was_at(known, at) or self._is_other(known, at, seen):
            # Names are often out of date, and a peer can name any address as its own: whoever is there is no danger
            # to the key that we know, and that host's key no change of this one.
            self._host.notice("redirect.refused", peer=known, reason="another-host-there", address=at.host)
        else:
            self._key_changed(now, at, known, seen)

    def _same_host(self, known: bytes, seen: bytes) -> bool:
        """Whether both keys are listed under one name: the host changes to another key."""
        listed = self._host.policy.listed
        name = listed.get(fingerprint(seen), "")
        return name != "" and known in self._host.peers and listed.get(fingerprint(known)) == name

    def _was_at(self, known: bytes, at: SockAddr) -> bool:
        peer = self._host.peers.get(known)
        return peer is not None and peer.was_at(at.host)

    def _is_other(self, known: bytes, at: SockAddr, seen: bytes) -> bool:
        """Whether a known host answers at an address at which the expected peer was never called."""
        peers = self._host.peers
        return seen in peers and known in peers and at.host not in peers[known].identity

    def _key_changed(self, now: float, at: SockAddr, known: bytes, seen: bytes) -> None:
        """Log a changed key, list it as a peer of its own, and protect nothing more there until a person decides."""
        peers = self._host.peers
        self._host.notice("peer.key_changed", peer=seen, reason="key-changed", address=at.host, known=known.hex())
        if seen not in peers:
            changed = [p for p in peers.values() if p.state is PeerState.CHANGED]
            if len(changed) >= constants.MAX_CHANGED:
                self._drop_peer(min(changed, key=lambda p: p.last_contact or 0.0).key)
            peers[seen] = Peer(seen, PeerState.CHANGED, identity={at.host}, last_contact=now)
            self._host.emit(commands.SavePeer(peers[seen]))
            self._known_at(at, known)
        for connection in list(
            self._host.table
        ):  # those that are being asked for in a session which only we still have
            asked = connection.peer == known and connection.state is State.NEGOTIATING
            if asked and connection.socket.remote.host == at.host:
                self._contact.refuse(now, connection, "key-changed")

    def _known_at(self, at: SockAddr, known: bytes) -> None:
        """That peer may have moved to where another key answers now: whoever looks at that key has to find this one."""
        peer = self._host.peers.get(known)
        if peer is None or self._host.by_way_of(known, at) or len(peer.identity) >= constants.MAX_CHANGED:
            return
        peer.identity.add(at.host)
        self._host.emit(commands.SavePeer(peer))

"""The other host's part of a pairing: `redirectctl pair --answer`, which ssh runs there."""

from __future__ import annotations

import hmac
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ipaddress import ip_address
from typing import Final

from msgspec import UNSET

from redirectctl.api import schema
from redirectctl.api.client import Client, UnreachableError
from redirectctl.api.schema import CheckStatus, ErrorCode, PeerState, RequestError
from redirectctl.config import is_host_name
from redirectctl.pairing import exchange
from redirectctl.pairing.exchange import Channel, Why

PATIENCE: Final = 60.0  # seconds for each line of the host that asks
CONTROL_PORT: Final = "control.firewall"  # the check of doctor about the packet filter
SEEN: Final = 5.0  # seconds for our daemon to have taken note of a session that the other one has
LOOK: Final = 0.1  # seconds between looks


class _Refusal(Exception):
    """We do not go on."""

    def __init__(self, why: Why) -> None:
        super().__init__(str(why))
        self.why = why


def answer(channel: Channel, connect: Callable[[], Client], came_from: str | None) -> bool:
    """One pairing, from beginning to end; whether the other host's key is approved now.

    ``came_from``: the address that sshd saw the other host at.
    """
    try:
        with _errors_told():
            opened = channel.receive(exchange.Open, PATIENCE)
            with connect() as daemon:
                _approve(channel, daemon, opened, came_from)
    except _Refusal as refusal:
        channel.send(exchange.Sorry(refusal.why))
        return False
    return True


@contextmanager
def _errors_told() -> Iterator[None]:
    """What goes wrong here in the words of the exchange."""
    try:
        yield
    except UnreachableError:
        raise _Refusal(Why.NO_DAEMON) from None
    except RequestError as error:
        raise _Refusal(Why.DENIED if error.error.code is ErrorCode.DENIED else Why.FAILED) from None
    except exchange.NotUnderstoodError:
        raise _Refusal(Why.VERSION) from None


def _approve(channel: Channel, daemon: Client, opened: exchange.Open, came_from: str | None) -> None:
    own = daemon.call(schema.IdentityRequest(), schema.IdentityReply)
    status = daemon.call(schema.StatusRequest(), schema.StatusReply).status
    if own.public is UNSET:
        raise _Refusal(Why.VERSION)
    if own.public == opened.key:
        raise _Refusal(Why.OWN_KEY)
    nonce = secrets.token_bytes(32)
    proofs = daemon.call(schema.ProveRequest(opened.key, opened.nonce, nonce, asks=False), schema.ProofsReply)
    channel.send(exchange.Ready(own.public, nonce, status.control_port, proofs.answers))
    shown = channel.receive(exchange.Proven, PATIENCE)
    if not hmac.compare_digest(shown.proof, proofs.asks):
        raise _Refusal(Why.PROOF)
    met = daemon.call(schema.MeetRequest(opened.key, [], opened.port), schema.MeetReply)
    _check_state(_known(daemon, met.fingerprint))
    channel.send(exchange.Expecting(_firewall(daemon)))
    reached = channel.receive((exchange.Met, exchange.Unmet), PATIENCE)
    if isinstance(reached, exchange.Unmet):
        places = _places(opened, came_from)
        # The likeliest first and alone: called from two addresses, the other daemon believes that we are at one.
        if not any(_reaches(daemon, opened, some) for some in (places[:1], places[1:])):
            raise _Refusal(Why.UNMET)
        channel.send(exchange.CalledBack())
        channel.receive(exchange.Met, PATIENCE)
    channel.send(exchange.Approved(_decide(daemon, met.fingerprint, opened.name)))


def _reaches(daemon: Client, opened: exchange.Open, places: list[str]) -> bool:
    back = daemon.call(schema.MeetRequest(opened.key, places, opened.port), schema.MeetReply)
    return any(meeting.reason is None for meeting in back.meetings)


def _decide(daemon: Client, fingerprint: str, name: str) -> str:
    """Approve the key of a host that our daemon has met; returns what it is called here."""
    peer = _wait(daemon, fingerprint)
    wanted = name if peer.name is None and is_host_name(name) else None
    return approve(daemon, fingerprint, wanted).name or ""


def approve(daemon: Client, fingerprint: str, name: str | None) -> schema.Peer:
    """Approve a key.  A name that is another's, or none, is left out."""
    if name is not None:
        try:
            return daemon.call(schema.ApproveRequest(fingerprint, name), schema.PeerReply).peer
        except RequestError as error:
            if error.error.code is ErrorCode.DENIED:
                raise
    return daemon.call(schema.ApproveRequest(fingerprint), schema.PeerReply).peer


def _wait(daemon: Client, fingerprint: str) -> schema.Peer:
    """The peer, once our daemon has met it."""
    until = time.monotonic() + SEEN
    while (peer := _known(daemon, fingerprint)) is None or peer.last_contact is None:
        if time.monotonic() > until:
            raise _Refusal(Why.UNMET)
        time.sleep(LOOK)
    _check_state(peer)
    return peer


def _check_state(peer: schema.Peer | None) -> None:
    if peer is not None and peer.state is PeerState.REJECTED:
        raise _Refusal(Why.REJECTED)
    if peer is not None and peer.state is PeerState.CHANGED:
        raise _Refusal(Why.CHANGED)


def _known(daemon: Client, fingerprint: str) -> schema.Peer | None:
    peers = daemon.call(schema.PeersRequest(), schema.PeersReply).peers
    return next((peer for peer in peers if peer.fingerprint == fingerprint), None)


def _firewall(daemon: Client) -> CheckStatus:
    checks = daemon.call(schema.DoctorRequest(), schema.DoctorReply).checks
    return next((check.status for check in checks if check.name == CONTROL_PORT), CheckStatus.SKIP)


def _places(opened: exchange.Open, came_from: str | None) -> list[str]:
    """Where the other host may be: where its ssh came from, and what it has itself."""
    places = []
    for text in ([came_from] if came_from else []) + opened.addresses:
        try:
            places.append(str(ip_address(text.partition("%")[0])))
        except ValueError:
            continue
    return list(dict.fromkeys(places))[: exchange.ADDRESSES_MAX]

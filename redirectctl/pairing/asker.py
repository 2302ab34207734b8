"""This host's part of a pairing: it asks the other one over ssh, and approves a key only when that is proven.

A key is approved if the host that ssh leads to has shown that it holds it (proto/pairing.py), and if it then answers at
an address that ssh's host name leads to, or has called from one.
"""

from __future__ import annotations

import hmac
import secrets
import shlex
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from msgspec import UNSET

from redirectctl.api import schema
from redirectctl.api.client import Client
from redirectctl.api.schema import CheckStatus, ErrorCode, PeerState, RequestError
from redirectctl.pairing import exchange, ssh, words
from redirectctl.pairing.answerer import CONTROL_PORT, LOOK, SEEN
from redirectctl.pairing.words import Trouble, TroubleError

LOGIN: Final = 150.0  # seconds for a person to log in: sshd itself gives 120 (LoginGraceTime)
PATIENCE: Final = 30.0  # seconds for each answer after that; a handshake that nobody answers takes 9
REMOTE: Final = ("redirectctl", "pair", "--answer")
SUDO: Final = ("sudo", "-n")


@dataclass(frozen=True, slots=True)
class Target:
    """The other host, as the person named it."""

    text: str  # [USER@]HOST or ssh://…
    arguments: Sequence[str]  # for ssh
    sudo: bool

    @property
    def name(self) -> str:
        """What the peer is to be called: the host's name on the command line."""
        text = self.text.removeprefix("ssh://").partition("/")[0].rpartition("@")[2]
        if self.text.startswith("ssh://"):
            text = text.removeprefix("[").partition("]")[0] if text.startswith("[") else text.partition(":")[0]
        return text[: exchange.NAME_MAX]

    @property
    def again(self) -> str:
        """The command line that pairs with it."""
        sudo = ["--sudo"] if self.sudo else []
        return shlex.join(
            ["redirectctl", "pair", *sudo, self.text, *(["--", *self.arguments] if self.arguments else [])]
        )

    def over_ssh(self, *command: str) -> str:
        """A command line that runs a command there, for a person to type."""
        return shlex.join(["ssh", "-t", *self.arguments, self.text, *command])


@dataclass(slots=True)
class Paired:
    """What came of it."""

    peer: schema.Peer
    addresses: list[str]  # where its key has answered us
    called: str  # what this host is called there; may be empty
    here: CheckStatus  # whether this host's packet filter lets UDP in
    there: CheckStatus  # the other one's


def pair(daemon: Client, target: Target) -> Paired:
    """Pair with another host.  Raises TroubleError, RequestError, UnreachableError."""
    own = daemon.call(schema.IdentityRequest(), schema.IdentityReply)
    status = daemon.call(schema.StatusRequest(), schema.StatusReply).status
    if own.public is UNSET:
        raise TroubleError(Trouble.OLDER_HERE)
    try:
        settings = ssh.settings(target.text, target.arguments)
        if settings is None:
            raise TroubleError(Trouble.SSH_ARGUMENTS)
        with ssh.Ssh(target.text, target.arguments, (*(SUDO if target.sudo else ()), *REMOTE)) as link:
            nonce = secrets.token_bytes(32)
            name = socket.gethostname()[: exchange.NAME_MAX]
            addresses = _own_addresses(_addresses(settings.host), status.addresses)
            opened = exchange.Open(own.public, nonce, status.control_port, name, addresses)
            return _Pairing(daemon, target, settings, link, opened).run()
    except ssh.SshMissingError:
        raise TroubleError(Trouble.NO_SSH) from None


class _Pairing:
    """The exchange with a host that ssh leads to."""

    def __init__(
        self, daemon: Client, target: Target, settings: ssh.Settings, link: ssh.Ssh, opened: exchange.Open
    ) -> None:
        self._daemon = daemon
        self._target = target
        self._settings = settings
        self._link = link
        self._opened = opened

    def run(self) -> Paired:
        channel = self._link.channel
        try:
            channel.send(self._opened)
            ready = channel.receive(exchange.Ready, LOGIN)
        except exchange.ExchangeError as error:
            raise self._not_begun(error) from None
        try:
            return self._go_on(channel, ready)
        except exchange.SorryError as error:
            raise words.sorry(error.why, self._settings.user) from None
        except exchange.LateError:
            raise TroubleError(Trouble.SILENT) from None
        except exchange.NotUnderstoodError:
            raise TroubleError(Trouble.NOT_UNDERSTOOD) from None
        except exchange.EndedError:
            raise TroubleError(Trouble.ENDED) from None

    def _not_begun(self, error: exchange.ExchangeError) -> TroubleError:
        """There is nobody there who could answer: why?"""
        if isinstance(error, exchange.SorryError):
            return words.sorry(error.why, self._settings.user)
        if isinstance(error, exchange.LateError):
            return TroubleError(Trouble.SILENT)
        if isinstance(error, exchange.NotUnderstoodError):
            return TroubleError(Trouble.NOT_UNDERSTOOD)
        ended = self._link.end()
        if ended.code == ssh.SSH_FAILED:
            return TroubleError(Trouble.SSH_FAILED, said=ended.said)
        if ended.code == ssh.NOT_FOUND:
            return TroubleError(Trouble.NOT_INSTALLED)
        refused = Trouble.SUDO_REFUSED if self._target.sudo else Trouble.OLDER_THERE
        return TroubleError(refused, user=self._settings.user)

    def _go_on(self, channel: exchange.Channel, ready: exchange.Ready) -> Paired:
        if ready.key == self._opened.key:
            raise TroubleError(Trouble.OWN_KEY)
        question = schema.ProveRequest(ready.key, self._opened.nonce, ready.nonce, asks=True)
        try:
            proofs = self._daemon.call(question, schema.ProofsReply)
        except RequestError as error:
            if error.error.code is ErrorCode.USAGE:  # it is no key at all
                raise TroubleError(Trouble.PROOF) from None
            raise
        if not hmac.compare_digest(ready.proof, proofs.answers):
            raise TroubleError(Trouble.PROOF)
        channel.send(exchange.Proven(proofs.asks))
        expecting = channel.receive(exchange.Expecting, PATIENCE)
        places = _addresses(self._settings.host)
        if not places:
            raise TroubleError(Trouble.PROXIED if self._settings.proxied else Trouble.NO_ADDRESS)
        met = self._daemon.call(schema.MeetRequest(ready.key, places, ready.port), schema.MeetReply)
        self._check_known(met.fingerprint)
        answered = [meeting.address for meeting in met.meetings if meeting.reason is None]
        if not answered:
            if known := next((meeting.known for meeting in met.meetings if meeting.known), None):
                raise TroubleError(Trouble.OTHER_KEY_KNOWN, known=known)
            reasons = {meeting.reason for meeting in met.meetings}
            if "key-changed" in reasons:
                raise TroubleError(Trouble.OTHER_KEY_ANSWERS)
            if "rejected-peer" in reasons:
                raise TroubleError(Trouble.REJECTED_HERE, known=met.fingerprint)
            self._called_back(channel, expecting, met, places)
        channel.send(exchange.Met())
        approved = channel.receive(exchange.Approved, PATIENCE)
        peer = self._approve(met.fingerprint)
        return Paired(peer, answered, approved.name, self._firewall(), expecting.firewall)

    def _called_back(
        self, channel: exchange.Channel, expecting: exchange.Expecting, met: schema.MeetReply, places: list[str]
    ) -> None:
        """Its daemon does not answer ours: can it call?  It must come from an address of the host."""
        channel.send(exchange.Unmet())
        try:
            channel.receive(exchange.CalledBack, PATIENCE)
        except exchange.SorryError as error:
            if error.why is not exchange.Why.UNMET:
                raise
            if self._settings.proxied:
                raise TroubleError(Trouble.PROXIED) from None
            if expecting.firewall in (CheckStatus.FAIL, CheckStatus.WARN):
                raise TroubleError(Trouble.CLOSED_THERE) from None
            raise self._silence(places, expecting.firewall) from None
        until = time.monotonic() + SEEN
        while not self._is_at(met.fingerprint, places):
            if time.monotonic() > until:
                raise TroubleError(Trouble.ELSEWHERE)
            time.sleep(LOOK)

    def _is_at(self, fingerprint: str, places: list[str]) -> bool:
        """Whether our daemon has met a peer at one of these addresses: it may have called from others besides."""
        peer = next((p for p in self._peers() if p.fingerprint == fingerprint), None)
        return peer is not None and peer.last_contact is not None and not set(peer.addresses).isdisjoint(places)

    def _silence(self, places: list[str], there: CheckStatus) -> TroubleError:
        """What doctor finds on the way.  ``there``: what the other host's own packet filter does."""
        try:
            checks = self._daemon.call(schema.DoctorRequest(places[0]), schema.DoctorReply).checks
        except RequestError:
            checks = []
        here = next((check.status for check in checks if check.name == CONTROL_PORT), CheckStatus.SKIP)
        if here in (CheckStatus.FAIL, CheckStatus.WARN):
            return TroubleError(Trouble.CLOSED_HERE)
        if here is there is CheckStatus.OK:
            return TroubleError(Trouble.CLOSED_BETWEEN)
        failed = [check for check in checks if check.status is CheckStatus.FAIL]
        return TroubleError(Trouble.CLOSED, said=failed[0].found if failed else "")

    def _approve(self, fingerprint: str) -> schema.Peer:
        peer = next((p for p in self._peers() if p.fingerprint == fingerprint), None)
        taken = any(p.name == self._target.name for p in self._peers())
        name = self._target.name if peer is not None and peer.name is None and not taken else None
        return self._daemon.call(schema.ApproveRequest(fingerprint, name), schema.PeerReply).peer

    def _check_known(self, fingerprint: str) -> None:
        """A host that has another key under this name may have been set up anew, or be another host."""
        for peer in self._peers():
            if peer.name == self._target.name and peer.fingerprint != fingerprint and peer.state is PeerState.APPROVED:
                raise TroubleError(Trouble.OTHER_KEY_KNOWN, known=peer.fingerprint)

    def _peers(self) -> list[schema.Peer]:
        return self._daemon.call(schema.PeersRequest(), schema.PeersReply).peers

    def _firewall(self) -> CheckStatus:
        checks = self._daemon.call(schema.DoctorRequest(), schema.DoctorReply).checks
        return next((check.status for check in checks if check.name == CONTROL_PORT), CheckStatus.SKIP)


def _addresses(host: str) -> list[str]:
    """Of a host, as ssh finds them; none if its name leads nowhere."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return []
    addresses = [str(address[0]).partition("%")[0] for _, _, _, _, address in found]
    return list(dict.fromkeys(addresses))[: exchange.ADDRESSES_MAX]


def _own_addresses(there: Sequence[str], own: Sequence[str]) -> list[str]:
    """This host's, with that first from which it would call the other one."""
    first = []
    for address in there[:1]:
        try:
            with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM) as probe:
                probe.connect((address, 9))  # UDP: nothing is sent
                first = [str(probe.getsockname()[0]).partition("%")[0]]
        except OSError:
            pass
    return list(dict.fromkeys([*first, *own]))[: exchange.ADDRESSES_MAX]

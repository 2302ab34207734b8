"""Named reasons (docs/protocol.md) in words, and what to do about them.

They stand alone, beside a connection or a move as well as in a list: "the other host" is the one at the other end.
"""

from __future__ import annotations

from typing import Final, NamedTuple


class Explanation(NamedTuple):
    """What a named reason means; ``hint``: what a person can do about it, empty if nothing."""

    text: str
    hint: str = ""


_NOT_OURS = Explanation("a datagram does not follow redirectctl's protocol, or was altered")
_OTHER_KIND = Explanation("a message that makes no sense", "install the same version on both hosts")
_VERSION = Explanation("the other host speaks another version of the protocol", "install the same on both")
_HANDSHAKE = Explanation(
    "a handshake message belongs to no handshake of this host, came twice, or is not from the host that began it"
)
_BUSY = Explanation("this host is under load, or somebody floods it")
_REPLAY = Explanation("a message was sent again, or came very late")
_STRANGERS = Explanation("too many hosts have called", "`redirectctl peers`; forget those that you do not know")
_NOT_THE_PEERS = Explanation("a tunnel datagram that was altered, or is not from the peer")
_BAD_TUNNEL = Explanation("a tunnel datagram carries no segment of its connection")
_ADDRESS = Explanation("this announcement alone is no reason to send traffic to the announced address")
_REJECTED = Explanation("the other host's key was rejected here", "`redirectctl approve PEER`, if that was a mistake")
_WHO = "a reloaded firewall or a network manager may have done it: let it leave alone what redirectctl has made"

_EXPLANATIONS: Final = {
    # of a connection: not protected
    "no-answer": Explanation(
        "the other host's redirectd does not answer", "is redirectd running there, is its UDP port open?"
    ),
    "approval-pending-here": Explanation("the other host's key waits for approval here", "`redirectctl approve PEER`"),
    "approval-pending-there": Explanation(
        "this host's key waits for approval there", "`redirectctl approve PEER` on that host"
    ),
    "peer-rejected": _REJECTED,
    "first-contact-refused": Explanation("hosts that are not known are refused", "see trust.first_contact"),
    "rejected-there": Explanation("this host's key was rejected there", "ask whoever runs that host"),
    "key-changed": Explanation("another key answers there", "compare fingerprints with `redirectctl identity` there"),
    "no-such-connection-there": Explanation(
        "the other host does not have that connection", "is there a proxy between the hosts?"
    ),
    "not-proven": Explanation(
        "no proof came on the connection itself", "is there a proxy, or a gateway with other hosts behind it, between?"
    ),
    "port-not-accepted": Explanation("the other host does not accept that port", "see protect.accept_ports there"),
    "too-many-connections": Explanation("the other host has too many connections", "close some"),
    "too-many-claims": Explanation(
        "this host claims more connections at a time than the other host handles", "it tries the others again later"
    ),
    "claimed-by-another": Explanation("another host claims that connection", "`redirectctl events` there"),
    "sequence-numbers-changed": Explanation(
        "something between the hosts changes sequence numbers: after a move neither end would accept the other",
        "a SYN proxy or a firewall that makes sequence numbers random? Leave this connection out of it",
    ),
    "kernel-refused-there": Explanation("the other host's kernel refused", "`redirectctl doctor` there"),
    "integrity-required-there": Explanation(
        "integrity is on there and off here", 'set mode = "on" in [integrity] here, or "off" there'
    ),
    "integrity-refused-there": Explanation(
        "integrity is on here and off there", 'set mode = "on" in [integrity] there, or "off" here'
    ),
    "integrity-required-here": Explanation(
        "integrity is on here and off there", 'set mode = "on" in [integrity] there, or "off" here'
    ),
    "integrity-refused-here": Explanation(
        "integrity is on there and off here", 'set mode = "on" in [integrity] here, or "off" there'
    ),
    "too-many-handshakes": Explanation("too many handshakes are under way", "wait a moment"),
    "peer-forgotten": Explanation("the peer was forgotten", "the next connection with that host makes contact again"),
    # of a connection: not any more
    "lost-there": Explanation(
        "the other host has forgotten that connection", "it lives on where it is, but cannot move again"
    ),
    "released": Explanation("a person released it here"),
    "released-there": Explanation("a person released it there"),
    "killed": Explanation("a person killed it here"),
    "killed-there": Explanation("a person killed it there"),
    "closed": Explanation("it has ended"),
    "address-gone": Explanation(
        "this host lost the connection's address before it was protected", "see protect.long_lived_after"
    ),
    "no-path": Explanation("no address of this host reaches the other one"),
    "stays-on-device": Explanation(
        "it may not leave the VPN, VRF or interface where it began, and there is no path by that one now",
        "see path.leave_vpn",
    ),
    "bound-to-vrf": Explanation("its socket is bound to a VRF", "only sockets outside a VRF can be protected"),
    "peer-silent": Explanation("the other host is silent", "this host goes on asking; does the network there work?"),
    "given-up": Explanation("there was no path for too long", "see outage.give_up_after"),
    # of datagrams of the control port and of the tunnel
    "too-short": _NOT_OURS,
    "too-long": _NOT_OURS,
    "bad-length": _NOT_OURS,
    "truncated": _NOT_OURS,
    "reserved-not-zero": _NOT_OURS,
    "unknown-type": _NOT_OURS,
    "unknown-pattern": _NOT_OURS,
    "bad-version-list": _NOT_OURS,
    "low-order-key": _NOT_OURS,
    "unknown-message": _OTHER_KIND,
    "empty": _OTHER_KIND,
    "bad-value": _OTHER_KIND,
    "bad-tuple": _OTHER_KIND,
    "bad-offer": _OTHER_KIND,
    "no-address": _OTHER_KIND,
    "bad-mac1": Explanation("a handshake that was not made for this host", "was the state directory restored here?"),
    "cookie-required": _BUSY,
    "rate-limited": _BUSY,
    "not-approved": Explanation(
        "a host that nobody has approved here sent more than a greeting or a claim",
        "`redirectctl peers`; `redirectctl approve PEER`",
    ),
    "unknown-version": _VERSION,
    "no-common-version": _VERSION,
    "version-downgrade": Explanation("somebody between the hosts altered the handshake", "look for who that is"),
    "forged-init": _HANDSHAKE,
    "forged-response": _HANDSHAKE,
    "forged-final": _HANDSHAKE,
    "forged-cookie": _HANDSHAKE,
    "no-such-handshake": _HANDSHAKE,
    "no-such-session": _HANDSHAKE,
    "replayed-handshake": Explanation("somebody recorded the first message of a handshake and sent it again"),
    "unknown-peer": Explanation("hosts that are not known are refused", "see trust.first_contact"),
    "rejected-peer": _REJECTED,
    "own-key": Explanation(
        "the other host has this host's own key", "is the state directory copied from another host?"
    ),
    "no-static-key": Explanation("the other host showed no key"),
    "too-many-peers": _STRANGERS,
    "too-many-pending": _STRANGERS,
    "too-many-unused": _STRANGERS,
    "unknown-session": Explanation(
        "a message of a session whose keys are gone", "after a restart the daemons agree on new ones by themselves"
    ),
    "expired-session": Explanation(
        "a message of a session whose keys are too old", "the daemons agree on new ones by themselves"
    ),
    "replayed": _REPLAY,
    "too-old": _REPLAY,
    "counter-limit": _REPLAY,
    "forged": Explanation("a message was altered, or is not from the peer"),
    "unknown-flow": Explanation(
        "a tunnel datagram belongs to no connection of this host", "a restarted daemon gets some"
    ),
    "bad-offset": _BAD_TUNNEL,
    "bad-segment": _BAD_TUNNEL,
    "counter-jump": _NOT_THE_PEERS,
    "unasked": _NOT_THE_PEERS,
    "wrong-pair": Explanation("a rendezvous forwarded a datagram that is not from the peer that the tag stands for"),
    "unknown-tag": Explanation("a rendezvous named a tag that this host has not registered"),
    "not-our-rendezvous": Explanation(
        "a host acts as a rendezvous, but this host does not use it as one", "see rendezvous.servers"
    ),
    "not-registered": Explanation("a host asked the rendezvous here for something, and is not registered"),
    "forward-limit": Explanation("a host wants the rendezvous here to forward too many datagrams"),
    "not-tagged": Explanation("plain packets for a connection with integrity", "somebody forges segments of it"),
    # of what was put back into the kernel
    "nft-table": Explanation("the nftables table, or a part of it, was removed", _WHO),
    "queue-rules": Explanation("rules in table raw of iptables were removed", _WHO),
    "device": Explanation("device redirect0 was removed, or taken down", _WHO),
    "rules": Explanation("routing rules were removed", _WHO),
    "routes": Explanation("routes in tables 7747 to 7749 were removed", _WHO),
    "addresses": Explanation("old addresses were removed from redirect0", _WHO),
    "reserved-ports": Explanation("ports of moved connections are no longer reserved", _WHO),
    # of what the kernel refuses
    "borrowing": Explanation(
        "redirectd gets no descriptors of programs' sockets (pidfd_getfd): suspended connections end when TCP gives up",
        "`redirectctl doctor`",
    ),
    # of moves
    "no-connection": Explanation("it names no connection that is protected with that host"),
    "stale-epoch": Explanation("this host has already applied a later announcement"),
    "no-host-address": _ADDRESS,
    "our-own-address": _ADDRESS,
    "announced-from-elsewhere": _ADDRESS,
    "not-accepted-from-there": Explanation(
        "the other host has moved to a network from which this one accepts no connections", "see path.accept_from here"
    ),
    "path-challenge-failed": Explanation(
        "nobody with the other host's keys answered at the announced address", "does a firewall there drop the answers?"
    ),
    "unknown-nonce": Explanation(
        "an answer to an announcement returns no nonce that this host has sent lately: it is late, or forged"
    ),
    "relay-limit": Explanation("the rendezvous relays no more connections of this host"),
    "not-serving": Explanation("that host is no rendezvous", "set serve = true in [rendezvous] there"),
    "rendezvous-full": Explanation("the rendezvous has no room for this host, or not for all of its peers"),
    "relayed": Explanation("through a rendezvous, because the hosts do not reach each other"),
    "direct-again": Explanation("the hosts reach each other without the rendezvous again"),
    "another-host-there": Explanation(
        "another host has the address that the name led to", "is the name in DNS kept up to date?"
    ),
    "not-your-connection": Explanation("a question about another host's connection"),
    "kernel": Explanation("the kernel refused the rules", "`redirectctl doctor`"),
    "no-connection-there": Explanation("the other host protects none of the connections that were announced"),
    "stale-there": Explanation("the other host has already applied a later announcement"),
    "unusable-there": Explanation(
        "the other host does not send to the announced address", "see path.leave_vpn, never and accept_from there"
    ),
    "failed-there": Explanation("the other host's kernel refused the rules", "`redirectctl doctor` there"),
    "address-changed": Explanation("this host's address has changed"),
    "better-address": Explanation("another address of this host is the better one for the way to the peer"),
    "not-confirmed": Explanation("it is not certain that the peer knows this host's address"),
    "announced": Explanation("announced by hand"),
    "woke": Explanation("this host has slept"),
    "observed-address-changed": Explanation("the peer sees this host at another address than before: there is a NAT"),
    "retransmitting": Explanation("packets got lost: perhaps a NAT or firewall has forgotten the connection"),
    # of the own name in DNS
    "no-answer-from-server": Explanation("the zone's server does not answer", "see dns.server; is TCP 53 open there?"),
    "bad-answer-from-server": Explanation("the zone's server sent no valid DNS answer", "see dns.server"),
    "refused-by-server": Explanation(
        "the zone's server refuses the update", "is dns.zone right, and is the key permitted to change dns.name there?"
    ),
    "key-refused": Explanation("the zone's server does not know the key", "see dns.key_file: the same on both"),
    "clocks-differ": Explanation("this host's clock and the zone's server's differ", "set the clock (timedatectl)"),
    "key-file": Explanation("the key cannot be read", "see dns.key_file"),
    # of peers
    "accept-new": Explanation("trust.first_contact is accept-new"),
    "known-peers": Explanation("a file of trust.known_peers has its key"),
    "dns-key": Explanation("DNS has its key under the name of the command, with valid signatures (trust.dns)"),
    "known-no-more": Explanation(
        "no file of trust.known_peers has its key any more", "`redirectctl approve PEER`, when it has called again"
    ),
    # of RSTs
    "peer-alive": Explanation("the peer's socket lives: somebody has its old address"),
    "peer-unreachable": Explanation("the peer cannot be asked whether its socket lives"),
    "being-asked": Explanation("the peer is being asked whether its socket lives"),
}


def in_words(reason: str) -> str | None:
    """What a named reason means, None if it has no words.  `kernel: ...` goes on with what the kernel said."""
    name, _, said = reason.partition(": ")
    explanation = _EXPLANATIONS.get(name)
    if explanation is None:
        return None
    return f"{explanation.text}: {said}" if said else explanation.text


def explain(reason: str | None) -> str:
    """In words, with its name; a reason that has no words as it is."""
    if reason is None:
        return "no reason given"
    words = in_words(reason)
    return f"{words} ({reason.partition(': ')[0]})" if words is not None else reason


def advice(reason: str | None) -> str:
    """What to do about it; empty if nothing can be done."""
    explanation = _EXPLANATIONS.get((reason or "").partition(": ")[0])
    return explanation.hint if explanation is not None else ""

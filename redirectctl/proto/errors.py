"""What may go wrong between two daemons: the other end's fault (named, counted, survived) or our own."""

from __future__ import annotations

from enum import StrEnum


class Reason(StrEnum):
    """Why something that came from the network was refused; the text is what logs and events show."""

    TRUNCATED = "truncated"  # shorter than its layout
    TOO_LONG = "too-long"  # above the 65,535 bytes of a Noise message
    LOW_ORDER_KEY = "low-order-key"  # a public key whose Diffie-Hellman result is zero whatever our key is
    FORGED = "forged"  # the authentication tag does not verify: altered, wrong key, or another context
    COUNTER_LIMIT = "counter-limit"  # at or above REJECT_AFTER_MESSAGES
    REPLAYED = "replayed"  # this counter was accepted before
    TOO_OLD = "too-old"  # a counter left of the replay window
    UNEXPECTED = "unexpected"  # an answer to nothing that is outstanding


class MisuseError(Exception):
    """The caller broke a rule of this API; never caused by bytes from the network."""


class PeerError(Exception):
    """The other end, or whoever pretends to be it, sent something that is refused for `reason`."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(str(reason))
        self.reason = reason


class HandshakeError(PeerError):
    """A handshake message is refused; the handshake stands where it stood before."""


class AuthError(PeerError):
    """A transport message is refused."""


class CookieError(PeerError):
    """A cookie reply is refused; what the jar held before still counts."""

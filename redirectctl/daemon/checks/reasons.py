"""Why a connection is not protected, or a contact failed, in words and with what to do."""

from __future__ import annotations

from typing import NamedTuple


class Explanation(NamedTuple):
    """Of a named reason."""

    text: str
    hint: str


_EXPLANATIONS = {
    "no-answer": Explanation("its redirectd does not answer", "is redirectd running there, is its UDP port open?"),
    "approval-pending-here": Explanation("its key waits for approval here", "redirectctl approve PEER"),
    "approval-pending-there": Explanation("our key waits for approval there", "redirectctl approve PEER on that host"),
    "peer-rejected": Explanation("its key was rejected here", "redirectctl approve PEER, if that was a mistake"),
    "rejected-there": Explanation("our key was rejected there", "ask whoever runs that host"),
    "key-changed": Explanation("another key answers there", "compare fingerprints with redirectctl identity there"),
    "no-such-connection-there": Explanation(
        "it does not have that connection", "is there NAT or a proxy between the hosts?"
    ),
    "not-proven": Explanation("the connection's addresses are not those of the hosts", "is there NAT between them?"),
    "port-not-accepted": Explanation("it does not accept that port", "see protect.accept_ports there"),
    "too-many-connections": Explanation("it has too many connections", "close some"),
    "claimed-by-another": Explanation("another host claims that connection", "redirectctl events there"),
    "kernel-refused-there": Explanation("its kernel refused", "redirectctl doctor there"),
    "lost-there": Explanation("it has forgotten that connection", "it lives on where it is, but cannot move again"),
    "peer-forgotten": Explanation("the peer was forgotten", "it is met again with the next connection"),
    "released": Explanation("it was released here", ""),
    "released-there": Explanation("it was released there", ""),
    "version-downgrade": Explanation("somebody between the hosts altered the handshake", "look for who that is"),
    "no-common-version": Explanation("it speaks another version of the protocol", "install the same on both"),
    "own-key": Explanation("the answer is our own", "is the state directory copied from another host?"),
    "too-many-handshakes": Explanation("too many handshakes are under way", "wait a moment"),
}


def explain(reason: str | None) -> str:
    """In words; a reason that has no explanation as it is."""
    if reason is None:
        return "no reason given"
    explanation = _EXPLANATIONS.get(reason)
    return f"{explanation.text} ({reason})" if explanation is not None else reason


def advice(reason: str | None) -> str:
    """What to do about it; empty if nothing can be done."""
    explanation = _EXPLANATIONS.get(reason or "")
    return explanation.hint if explanation is not None else ""

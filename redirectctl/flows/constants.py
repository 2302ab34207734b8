"""Times and limits of connections and moves."""

from __future__ import annotations

from typing import Final

CONTROL_PORT: Final = 7747

# --- the protocol -----------------------------------------------------------------------------------------------------

ACM_RETRIES: Final = (
    0.1,
    0.2,
    0.4,
    0.8,
    1.6,
    3.0,
    5.0,
    10.0,
    15.0,
    30.0,
)  # then every 30 s, while there is something to save
ACM_REHANDSHAKE: Final = 2  # unanswered ACMs after which a handshake is tried too: the peer may have restarted
ACM_WIDEN: Final = 3  # unanswered ACMs after which all known addresses of the peer are tried
ACM_OTHER_PORT: Final = 5  # unanswered ACMs, in 3.1 s, after which other ports of ours are tried too
CHALLENGE_RETRIES: Final = (0.1, 0.2, 0.4, 0.8, 1.6)  # 3.1 s in all, then the last validated address stays
PATIENCE: Final = 0.25  # seconds that a better pair has to answer after another one has
HINT_PAUSE: Final = 2.0  # seconds between two hints that are followed; twice as long each time
HINT_PAUSE_MAX: Final = 60.0
FAILURE_PAUSE: Final = 5.0  # seconds after which an address that did not carry is asked again; twice as long each time
FAILURE_PAUSE_MAX: Final = 600.0
FAILURE_MEMORY: Final = 600.0  # seconds for which a failure makes the next one count as another in a row
PROOFS: Final = 3  # probes that such an address has to answer, one after the other
PROBE_TIME: Final = 1.0  # seconds for each of them
READY_TIME: Final = 0.2  # seconds that a peer has to become ready for us: TCP's least time-out (TCP_RTO_MIN)
CHOICE_TIME: Final = 1.0  # seconds after which a move that got no further answers challenges on its other addresses
PLAIN_RETRIES: Final = (0.2, 0.5, 1.0, 2.0, 4.0)  # seconds after each attempt to prove that plain packets get through
PLAIN_PAUSES: Final = (2.0, 5.0, 15.0, 60.0, 240.0, 960.0, 3600.0)  # seconds that a route is left to the tunnel then
PLAIN_FIRST: Final = 2  # connections that send a token at first: they stand for all of a route
PLAIN_TOGETHER: Final = 32  # of the others, at once
PLAIN_NEXT: Final = 0.1  # seconds between those and the next
OPEN_PAUSE: Final = 0.03  # seconds between two changes of what is received plainly
PLAIN_FORGIVEN: Final = 3600.0  # seconds of plain packets after which it is as if it had never failed
PLAIN_AGAIN: Final = 10.0  # seconds of silence after which traffic has it tried again; and between two such tries
STALL_ANSWER: Final = 1.0  # seconds in which a peer's daemon answers; later, it was more than the plain way that failed
LISTEN_TIME: Final = 20.0  # seconds after a move, or a peer's word, for which tokens may come: longer than its attempts
INTEGRITY_GRACE: Final = 2.0  # seconds after which nothing plain is accepted any more, of what is to have tags
UNREAD: Final = 2.0  # seconds of silence after which what stalls in the tunnel is sent plainly, if it can be
UNREAD_TRY: Final = 4.0  # seconds that this gets: after 3 s of losses TCP has waited for less than that
STALL_PAUSE: Final = 5.0  # seconds between two announcements to a peer because packets get lost
PROVE_RETRIES: Final = (0.5, 1.0, 2.0)  # seconds after each token sent on a claimed connection, then by numbers
CLAIM_TIME: Final = 15.0  # seconds for each step of proving a claim: longer than a request is repeated
CLAIM_TRIES: Final = 3  # claims of one connection, when the peer restarts meanwhile
UNPROVEN_TIME: Final = 20.0  # seconds after which what could not be proven is claimed again; twice as long each time
UNPROVEN_TIME_MAX: Final = 3600.0
GATHER_TIME: Final = 0.01  # seconds in which tokens that come go in one BIND
KEEPALIVE_TIME: Final = 20.0  # seconds: NATs forget UDP mappings after 30 s (RFC 4787 asks for 120)
REQUEST_RETRIES: Final = (0.3, 0.6, 1.2, 2.4, 4.8)  # seconds after each try of a request inside a session

EACH: Final = 0.0005  # seconds more that each connection may take that is concerned: see patience()
EACH_MAX: Final = 5.0
HOLD_AFTER: Final = 1.0  # seconds without an address after which the kernel suspends: most moves are over by then
HOLD_AGAIN: Final = 3.0  # seconds that a path may take to be proven, once the kernel lets packets through again
PROBE_PART: Final = 6000.0  # of the time without a path: the pause between two announcements, as long as there is none
PROBE_PAUSE: Final = 0.05  # seconds, at least: 20 kbit/s; a pause of 0.05 s is over after 5 minutes
PROBE_PAUSE_MAX: Final = 30.0
PROBE_PAUSE_RELAYED: Final = 1.0  # at least, where a rendezvous has to hand them over
PROBES: Final = 100.0  # a second, to all peers
ASKED: Final = 16  # suspended connections with a peer that are asked at a time
ASKED_MORE: Final = 256  # and others, when one was answered
ASK_MORE_PAUSE: Final = 0.1  # seconds between two times that others are asked for that
ASK_AFTER: Final = 0.2  # seconds after an address has come back: a peer's daemon has answered by then
ASK_PART: Final = 100.0  # of the time without a path: the pause between two times, as long as there is no answer
ASK_PAUSE: Final = 0.6  # seconds, at least: Linux acknowledges one in half a second (net.ipv4.tcp_invalid_ratelimit)
ASK_PAUSE_MAX: Final = 30.0
REFUSED_PAUSE: Final = (
    60.0  # seconds that a way is left alone where a RST came that is not believed; then twice as long
)
REFUSED_PAUSE_MAX: Final = 3600.0
UNANSWERED_FOR: Final = 2.0  # seconds since the last look at a socket's retransmissions, for which it counts

# --- limits of this implementation ------------------------------------------------------------------------------------

MAX_CONNECTIONS: Final = 20_000  # in all; a flow costs about a kilobyte here and in the kernel
MAX_PER_PEER: Final = 10_000  # and no more than are left for all others
CHOSEN_PART: Final = 8  # of all connections, the part for peers that a person has approved or that we have called
MAX_VALIDATIONS: Final = 64  # announcements of one peer whose ways are challenged; the oldest epoch goes
MAX_WAYS: Final = 12  # of one announcement, each of which is challenged; the oldest goes
MAX_PAIRS_TRIED: Final = 16  # pairs of addresses that one round of an announcement tries
MAX_FAILURES: Final = 1024  # addresses of ours that did not carry, by peer
MAX_NONCES: Final = 256  # of one move, newest first out: at 20 announcements a second those of more than ten seconds
MESSAGES_RATE: Final = 500.0  # a second from one peer; a thousand claims take some 200, a move a few
MESSAGES_BURST: Final = 4000.0  # ten thousand claims, with their answers
STRANGERS_RATE: Final = 10.0  # the same of one that nobody has approved, or that was accepted and never of use
STRANGERS_BURST: Final = 100.0  # CLAIM_WINDOW claims: 22 PROTECT, and as many BIND
LOOKED_AT: Final = 1000  # connections looked at because of a message, which count as one more: half a millisecond
MAX_HEARD: Final = 8192  # peers whose rate is remembered; the oldest goes, and has its whole allowance again
MAX_REQUESTS: Final = 4096  # unanswered requests of ours, shared by peer (proto/shares.py); and BINDs being worked on
CLAIM_WINDOW: Final = 256  # claims of ours that one peer has to prove at a time
MAX_CLAIMED: Final = 4096  # claims of peers that wait for proof, shared; and answers kept for those who ask again
MAX_PLACES: Final = 4  # tuples on which the token of one claim may come
MAX_ANSWERS: Final = 8  # tokens sent back for one claim
MAX_NUMBERED: Final = 2  # proofs by numbers looked at for one claim
NUMBERED_RATE: Final = 50.0  # proofs by numbers of one peer that are looked at in a second: each takes 1 ms of ours
NUMBERED_BURST: Final = 512.0
MAX_CANDIDATES: Final = 64  # sockets whose numbers are compared
UNDECIDED_TIME: Final = 10.0  # seconds after which a claim that the peer passed over counts as unanswered
ROUTES_PAUSE: Final = 0.5  # seconds between two times that routes are looked up because somebody names a place
UNPROVEN_ROUTES: Final = 1024  # addresses that peers are only said to have, to which routes are looked up: 20 us each
MAX_UNTOLD: Final = 4096  # killed connections whose peers could not be told, shared
MAX_CHANGED: Final = 64  # other keys seen where one is known; the oldest goes
MAX_RST_QUESTIONS: Final = 1024  # held RSTs, shared; one more is dropped, the sender's next segment draws another

MAX_TAGS: Final = 1024  # peers that one host may be found by, at one rendezvous
MAX_GUESTS: Final = 4096  # hosts at our rendezvous; about 2 KiB each, and 200 bytes a tag
MAX_ALL_TAGS: Final = 65_536  # of all guests, shared
MAX_RELAYED: Final = 1024  # flows that one host has relayed
MAX_RELAYED_ALL: Final = 65_536  # of all, shared
FORWARD_RATE: Final = 50.0  # datagrams a second that one host may have handed over; ACMs and handshakes need a few
FORWARD_BURST: Final = 200.0
INTRODUCE_RATE: Final = 16.0  # times a second that one host may cause two to be told of each other
INTRODUCE_BURST: Final = 256.0  # a server that moves, with as many clients
FOUND_RATE: Final = 0.5  # a second: words of one rendezvous about one peer that we act upon
FOUND_BURST: Final = 6.0

UNSUPPORTED_TIME: Final = 25.0  # seconds until a host that did not answer is asked again, if connections wait; with the
#                                wait of a handshake's last try below half a minute
ASKED_AGAIN: Final = 32  # such hosts that are asked at a time, shared by user: 18 datagrams, 3 KB, a second at most
PENDING_POLL: Final = 30.0  # seconds between questions whether the other side has approved us
LINGER: Final = 65.0  # seconds that a moved connection's rewriting outlives its socket: TIME_WAIT is 60 s in Linux
LINGER_BOTH: Final = 2.0  # the same when the peer's socket is gone too: only packets under way
LISTED: Final = 60.0  # seconds that an ended connection stays in listings
TELL_PAUSE: Final = 2.0  # seconds between two times that a peer is told that it is seen elsewhere than before
DOUBT_PAUSE: Final = 5.0  # seconds between two times that a peer is asked which connections of a move it has
KEEP_PAUSE: Final = 2.0  # seconds between two times that what a peer says of its addresses is stored; what follows
#                          waits for the disk, so right after a move, and not during the next
CHANGED_POLL: Final = 3600.0  # seconds until a peer whose key seems to have changed is asked again
REACH_PAUSE: Final = 60.0  # seconds between attempts to reach the peers of protected connections
ACM_RELAY: Final = 2  # unanswered ACMs after which a rendezvous is asked to hand them over
MEET_TIME: Final = 60.0  # seconds that a registration at a rendezvous lasts, and what it says of a peer
MEET_BEAT: Final = 20.0  # seconds between two: a NAT on the way must not forget us, see KEEPALIVE_TIME
MEET_RETRIES: Final = (0.3, 0.6, 1.2, 2.4, 4.8, 10.0)  # seconds after each without an answer; then every 10 s
MEET_REFUSED: Final = 60.0  # seconds until the next, when it does not want us
MEET_REHANDSHAKE: Final = 2  # registrations without an answer after which a handshake is tried: it may have restarted
MEET_PROOFS: Final = 2  # proofs of where we are that it may ask for, each time that we register
MEET_LOST: Final = 5  # after which it counts as lost
MEET_ELSEWHERE: Final = 6  # after which another address of its name is tried
PUNCHES: Final = (0.1, 0.2, 0.4, 0.8)  # seconds after each datagram to where a rendezvous has found a peer
DIRECT_PAUSES: Final = (2.0, 10.0, 60.0)  # seconds between attempts to do without a relay; then every minute
DIRECT_SOON: Final = 1.0  # seconds after a relayed peer has been found elsewhere: its own announcement comes first
DIRECT_TRIES: Final = 5  # announcements of one such attempt
PLACE_TIME: Final = 10.0  # seconds for which what somebody says of a peer's place is good at least: one attempt
MAX_TOLD: Final = 8  # places of one peer, from each who says so
MAX_TRIALS: Final = 1024  # routes that are being tried, or have failed, shared
MAX_TOKENS_LOOKED_UP: Final = 1000  # a second, on connections of one peer, and at once
TOKENS_KEPT: Final = 256  # of one trial: those of all its attempts
HELD_PAUSE: Final = 10.0  # seconds for which one rst.held event stands


def patience(seconds: float, count: int) -> float:
    """How long something about so many connections may take, if it may take ``seconds`` for one."""
    return seconds + min(EACH * count, EACH_MAX)

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
CHALLENGE_RETRIES: Final = (0.1, 0.2, 0.4, 0.8, 1.6)  # 3.1 s in all, then the last validated address stays
CHOICE_TIME: Final = 1.0  # seconds after which a move that got no further answers challenges on its other addresses
PLAIN_RETRIES: Final = (0.2, 0.5, 1.0, 2.0, 4.0)  # seconds after each attempt to prove that plain packets get through
PLAIN_PAUSE: Final = 60.0  # seconds that a route is left to the tunnel after that; twice as long each time
PLAIN_PAUSE_MAX: Final = 3600.0
LISTEN_TIME: Final = 20.0  # seconds after a move, or a peer's word, for which tokens may come: longer than its attempts
STALL_PAUSE: Final = 5.0  # seconds between two announcements to a peer because packets get lost
REQUEST_RETRIES: Final = (0.3, 0.6, 1.2, 2.4, 4.8)  # seconds after each try of a request inside a session

# --- limits of this implementation ------------------------------------------------------------------------------------

MAX_CONNECTIONS: Final = 20_000  # in all; a flow costs about a kilobyte here and in the kernel
MAX_PER_PEER: Final = 10_000
MAX_VALIDATIONS: Final = 8  # address validations of one peer under way; the oldest epoch goes
MAX_REQUESTS: Final = 4096  # unanswered requests of ours, all peers together
MAX_PROOFS: Final = 256  # addresses of peers that are to show that they receive there what they claim from there
MAX_HELD_CLAIMS: Final = 512  # PROTECTs that wait for one such proof: MAX_PER_PEER connections in batches
PROOF_TIME: Final = 10.0  # seconds for it: as long as PROTECT is repeated
UNDECIDED_TIME: Final = 10.0  # seconds after which a claim that the peer passed over counts as unanswered
MAX_CHANGED: Final = 64  # other keys seen where one is known; the oldest goes
MAX_RST_QUESTIONS: Final = 1024  # held RSTs; one more is dropped, the sender's next segment draws another

UNSUPPORTED_TIME: Final = 600.0  # seconds that an address without redirectctl is left alone
UNANSWERED_TIME: Final = 60.0  # the same for a known peer that does not answer
PENDING_POLL: Final = 30.0  # seconds between questions whether the other side has approved us
LINGER: Final = 65.0  # seconds that a moved connection's rewriting outlives its socket: TIME_WAIT is 60 s in Linux
LINGER_BOTH: Final = 2.0  # the same when the peer's socket is gone too: only packets under way
LISTED: Final = 60.0  # seconds that an ended connection stays in listings
TELL_PAUSE: Final = 2.0  # seconds between two times that a peer is told that it is seen elsewhere than before
DOUBT_PAUSE: Final = 5.0  # seconds between two times that a peer is asked which connections of a move it has
REACH_PAUSE: Final = 60.0  # seconds between attempts to reach the peers of protected connections
MAX_TRIALS: Final = 1024  # routes that are being tried, or have failed
MAX_TOKENS_LOOKED_UP: Final = 100  # a second: each takes a look at all connections
TOKENS_KEPT: Final = 16  # of one trial: those of all its attempts
HELD_PAUSE: Final = 10.0  # seconds for which one rst.held event stands

"""Numbers of the protocol, on which both ends must agree, and below them limits that are ours alone."""

from __future__ import annotations

from typing import Final

# --- the protocol -----------------------------------------------------------------------------------------------------

KEY_LEN: Final = 32  # X25519 keys, ChaCha20 keys, PSKs and BLAKE2s hashes are all this long
TAG_LEN: Final = 16  # Poly1305
MAX_NOISE_MESSAGE: Final = 65535  # Noise rev 34, section 3

MAC_LEN: Final = 16  # mac1, mac2 and cookies: keyed BLAKE2s, as in WireGuard (white paper, 5.4.4)
COOKIE_NONCE_LEN: Final = 24  # drawn at random for every reply: 192 bits do not collide
COOKIE_REPLY_LEN: Final = COOKIE_NONCE_LEN + MAC_LEN + TAG_LEN
COOKIE_LIFETIME: Final = 120.0  # seconds an initiator uses a cookie, and the beat of the responder's secret
LABEL_MAC1: Final = b"redirectctl v1 mac1"  # neither label begins the other: their hashes never share an input
LABEL_COOKIE: Final = b"redirectctl v1 cookie"
LABEL_SOURCE: Final = b"redirectctl v1 source"
UNKNOWN_PUBLIC: Final = bytes(KEY_LEN)  # stands for a public key not yet known; of low order, so nobody's key

# As in WireGuard (white paper, 6.1): far below the birthday bound that ChaCha20-Poly1305 needs, and never reached in
# practice; the times are what limits how much one stolen session key is worth.
REKEY_AFTER_MESSAGES: Final = 2**60
REJECT_AFTER_MESSAGES: Final = 2**64 - 2**13 - 1  # leaves the replay window (below 2**13) room before 64 bits wrap
REKEY_AFTER_TIME: Final = 120.0  # seconds after which the initiator makes a new session when it has something to send
REJECT_AFTER_TIME: Final = 180.0  # seconds after which neither end accepts or uses a session: time for lost handshakes
VERSIONS: Final = (3, 2)  # that we speak, highest first
NAMES_SINCE: Final = 3  # version from which on peers say what they are called
LABEL_PROLOGUE: Final = b"redirectctl handshake"
LABEL_PAIRWISE: Final = b"redirectctl pairwise secret"
XX_PADDING: Final = 80  # makes the first message of XX longer than its answer: nobody is flooded through us

# --- limits of this implementation ------------------------------------------------------------------------------------

REPLAY_BLOCK_BITS: Final = 64  # RFC 6479 clears whole blocks, so that moving the window costs no shifting
REPLAY_BLOCKS: Final = 128  # 1 KiB a session; packets of one path are rarely more than hundreds out of order
REPLAY_WINDOW: Final = (REPLAY_BLOCKS - 1) * REPLAY_BLOCK_BITS  # one block is always partly in use (RFC 6479, 2)

HANDSHAKES_PER_SECOND: Final = 20.0  # of one source; as WireGuard: many daemons behind one NAT get through
HANDSHAKE_BURST: Final = 5.0  # a retry and simultaneous starts of a few daemons behind one address
RATE_LIMIT_SOURCES: Final = 4096  # about 0.7 MiB at most; 4096 sources at their rate are 82,000 handshakes a second,
#                                   far more than Python can answer: the table is not what gives way first

REKEY_AFTER_TIME_RESPONDER: Final = 150.0  # later than the initiator's, so that both do not start at once
HANDSHAKE_DOUBTS: Final = 2  # tries with the known key after another has answered
HANDSHAKE_RETRIES: Final = (0.4, 0.8, 1.6, 3.2, 3.0)  # seconds after each of five tries: about 9 s in all
HANDSHAKE_OTHER_PORT: Final = 3  # unanswered ones, in 2.8 s, after which another port of ours is tried with known peers
FRESH_PORT: Final = 3.0  # seconds for which we do with the newest port, whoever needs a fresh one
CONFIRM_RETRIES: Final = (0.2, 0.4, 0.8, 1.6, 3.2)  # repeats of the first message of a session, until an answer comes
HALF_OPEN_MAX: Final = 256  # XX handshakes that wait for their third message, shared by network (shares.py)
HALF_OPEN_TIME: Final = 10.0  # seconds that they may wait: longer than all the initiator's tries
LOAD_HANDSHAKES: Final = 40  # in a second: from there on a cookie is asked for (a handshake costs about a millisecond)
ATTEMPTS_MAX: Final = 256  # handshakes that we have under way; with whom there are most gives way
ATTEMPTS_OF_PEER: Final = 12  # with one peer, along different pairs of addresses
SESSIONS_PER_PEER: Final = 4  # newest first, and as many not yet confirmed: both ends may start at once, on many paths
PENDING_MAX: Final = 64  # strangers that wait for a person; the oldest of the network that has most goes
UNUSED_MAX: Final = 256  # accepted with "accept-new", but never of use (Accepted.UNUSED); the same
PEERS_MAX: Final = 4096  # then one goes that has no connection and was accepted because everybody is, or nobody is met
PROVEN_MAX: Final = 32  # places of one peer that are remembered as proven
UNPROVEN_BURST: Final = 8192.0  # bytes to places where a peer has never answered: some dozen announcements
UNPROVEN_RATE: Final = 100.0  # bytes a second after that
SECRET_RACE: Final = 60.0  # seconds in which two first contacts count as one race, which the greater hash wins
UNKNOWN_HINT_PAUSE: Final = 5.0  # seconds between handshakes that a hint can make us start

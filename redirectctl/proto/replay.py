"""Which counters of a session have been seen: the sliding window of RFC 6479.

A ring of 64-bit blocks.  The window moves by clearing the blocks that it enters, never by shifting bits::

    block  … | k-1 | k | k+1 | …       bit c of the stream is bit c mod 64 of block (c div 64) mod 128
                        └ holds the highest counter; the 127 blocks' worth of counters up to it can be told apart
"""

from __future__ import annotations

from redirectctl.proto.constants import REJECT_AFTER_MESSAGES, REPLAY_BLOCK_BITS, REPLAY_BLOCKS, REPLAY_WINDOW
from redirectctl.proto.errors import MisuseError, Reason


class ReplayWindow:
    """check() before the message is authenticated, commit() only after: a forged counter must not move the window."""

    __slots__ = ("_blocks", "_next")

    def __init__(self) -> None:
        self._blocks = [0] * REPLAY_BLOCKS
        self._next = 0  # one above the highest counter committed

    def check(self, counter: int) -> Reason | None:
        """None when the counter is fresh, else REPLAYED, TOO_OLD or COUNTER_LIMIT.  Changes nothing."""
        if not 0 <= counter < REJECT_AFTER_MESSAGES:
            return Reason.COUNTER_LIMIT
        if counter >= self._next:
            return None
        if self._next - counter > REPLAY_WINDOW:
            return Reason.TOO_OLD
        block, bit = divmod(counter, REPLAY_BLOCK_BITS)
        return Reason.REPLAYED if self._blocks[block % REPLAY_BLOCKS] >> bit & 1 else None

    def commit(self, counter: int) -> None:
        """Remember a counter whose message was authentic.  Raises MisuseError when check() would refuse it."""
        refusal = self.check(counter)
        if refusal is not None:
            raise MisuseError(f"commit of a counter that is {refusal}")
        block, bit = divmod(counter, REPLAY_BLOCK_BITS)
        highest_block = (self._next - 1) // REPLAY_BLOCK_BITS
        for entered in range(highest_block + 1, min(block, highest_block + REPLAY_BLOCKS) + 1):
            self._blocks[entered % REPLAY_BLOCKS] = 0
        self._blocks[block % REPLAY_BLOCKS] |= 1 << bit
        self._next = max(self._next, counter + 1)

"""RSTs that wait in an NFQUEUE for the engine's verdict."""

from __future__ import annotations

from redirectctl.kernel.netfilter.packet_queue import QueuedPacket


class HeldResets:
    """By a number of ours."""

    def __init__(self) -> None:
        self._packets: dict[int, QueuedPacket] = {}
        self._last = 0

    def hold(self, packet: QueuedPacket) -> int:
        """Its number."""
        self._last += 1
        self._packets[self._last] = packet
        return self._last

    def decide(self, number: int, accept: bool) -> None:
        """See commands.Verdict."""
        packet = self._packets.pop(number, None)
        if packet is not None:
            (packet.accept if accept else packet.drop)()

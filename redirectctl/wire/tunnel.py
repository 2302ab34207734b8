"""Datagrams of the tunnel path: each carries one TCP segment of one connection, and stands alone.

    TUNNEL (8) | type (1) | version (1) | traffic class (1) | 0 (1) | flow (4) | counter (8)
               | sequence number (4) | acknowledgement (4) | offset, flags (2) | window (2) | urgent pointer (2)
               | TCP options | data | tag (16), with integrity only |

What the receiver knows is left out: the IP header, the ports and the checksum.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Offer:
    """How a host wants to see the datagrams of one connection that are sent to it."""

    flow: int  # 32 bits, chosen at random by the host, not 0
    key: bytes  # 16 bytes, AES-128-GCM
    start: int  # counters begin here; below 2**62, random: it takes more than a guessed flow to forge a datagram

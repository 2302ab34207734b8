"""How long this host's TCP goes on without an answer, before it ends a connection with ETIMEDOUT."""

from __future__ import annotations

from pathlib import Path
from typing import Final

_IPV4: Final = Path("/proc/sys/net/ipv4")
_RTO_MIN, _RTO_MAX = 0.2, 120.0  # seconds
_DEFAULTS: Final = {"tcp_retries2": 15, "tcp_keepalive_intvl": 75, "tcp_keepalive_probes": 9}


def retransmission_limit(sysctls: Path = _IPV4) -> float:
    """Seconds from the first retransmission of a quick connection (`tcp_model_timeout`)."""
    doublings = 9  # _RTO_MAX is 600 times _RTO_MIN
    retries = _read(sysctls, "tcp_retries2")
    if retries <= doublings:
        return float((2 << retries) - 1) * _RTO_MIN
    return float((2 << doublings) - 1) * _RTO_MIN + (retries - doublings) * _RTO_MAX


def keepalive_limit(sysctls: Path = _IPV4) -> float:
    """Seconds from the second keepalive probe without an answer; a program may set others for its own sockets."""
    return float(_read(sysctls, "tcp_keepalive_intvl") * max(0, _read(sysctls, "tcp_keepalive_probes") - 1))


def _read(sysctls: Path, name: str) -> int:
    try:
        return int((sysctls / name).read_text())
    except (OSError, ValueError):
        return _DEFAULTS[name]

"""What the engine is told of the configuration and of this host's TCP."""

from __future__ import annotations

import pytest

from redirectctl.config import Config, Outage
from redirectctl.daemon import runtime


@pytest.mark.parametrize(
    ("configured", "retransmissions", "keepalives", "used"),
    [
        (10.0, 924.6, 600.0, 10.0),
        (300.0, 924.6, 600.0, 150.0),
        (10.0, 6.2, 600.0, 1.55),  # tcp_retries2 = 4
        (10.0, 924.6, 6.0, 1.5),
        (10.0, 924.6, 0.0, runtime.SOON),  # tcp_keepalive_probes = 1: one lost probe is the end
        (10.0, 0.2, 600.0, runtime.SOON),
        (0.5, 0.2, 0.0, 0.5),
    ],
)
def test_connections_are_suspended_before_tcp_gives_up(
    monkeypatch: pytest.MonkeyPatch, configured: float, retransmissions: float, keepalives: float, used: float
) -> None:
    monkeypatch.setattr(runtime, "retransmission_limit", lambda: retransmissions)
    monkeypatch.setattr(runtime, "keepalive_limit", lambda: keepalives)
    config = Config(outage=Outage(suspend_after=configured))
    assert runtime.policy(config).suspend_after == pytest.approx(used)
